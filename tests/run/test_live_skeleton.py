"""Live tapes: what the native tapes are told with placeholders, and that nothing is lost when a region diverges."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

from terra_cx.run import conductor
from terra_cx.run.anchor import ActiveAnchor
from terra_cx.run.live_skeleton import LiveSkeleton
from terra_cx.tf.placeholder import Placeholder

LATE = 30
STEPS = 45


@pytest.fixture(autouse=True)
def live_tapes(monkeypatch):
    """All tapes are live, whether they need it or not."""
    monkeypatch.setattr(conductor, "ActiveAnchor", partial(ActiveAnchor, live_tapes="in this test"))


def loop(step):
    """A program whose steps are ``step(number, w, v, x)``, which returns the loss's gradients to w and v."""

    def program(see):
        rng = np.random.default_rng(3)
        w, v = (tf.Variable(rng.normal(size=(3, 3)).astype("float32")) for _ in range(2))
        for number in range(STEPS):
            found = step(number, w, v, tf.constant(rng.normal(size=(3, 3)).astype("float32")))
            see(found)
            w.assign_sub(0.05 * tf.tanh(found[0]))
            v.assign_sub(0.05 * tf.tanh(found[1]))
        return w, v

    return program


def test_gradients_are_summed_in_eagers_order():
    def step(number, w, v, x):
        with tf.GradientTape() as tape:
            y = tf.tanh(x @ w)
            parts = [
                y @ v,
                y * v,
                tf.sin(y) @ v,
                y / 3.0,
                tf.reshape(y, [-1, 3]),
                tf.stack([y[0], y[1], y[0]]),
            ]
            loss = tf.add_n(
                [tf.reduce_mean(tf.square(part + tf.cast(tf.rank(y), tf.float32))) for part in parts]
            )
        return tape.gradient(loss, [w, v])

    assert both_ways(loop(step), co_executed=25, fallbacks=0)["anchors"][0]["live_tapes"]


def in_the_forward_pass(number, y, v):
    return tf.sin(y @ v) if number >= LATE else y @ v


def in_the_backward_pass(number, y, v):
    @tf.custom_gradient
    def own(a):
        return tf.sin(a), lambda upstream: tf.sin(upstream) if number >= LATE else upstream * 0.5

    return own(y) @ v


def after_an_op_of_the_owners(number, y, v):
    doubled = tf.py_function(lambda a: 2.0 * a, [y], tf.float32)
    return tf.sin(doubled @ v) if number >= LATE else doubled @ v


def after_a_function(number, y, v):
    return tf.cos(DENSE(y, v)) if number >= LATE else DENSE(y, v)


def after_a_custom_gradient(number, y, v):
    y = tf.grad_pass_through(tf.round)(y)
    return tf.cos(y @ v) if number >= LATE else y @ v


DENSE = tf.function(lambda y, v: tf.tanh(y @ v))


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    "diverges",
    [
        in_the_forward_pass,
        in_the_backward_pass,
        after_an_op_of_the_owners,
        after_a_function,
        after_a_custom_gradient,
    ],
)
def test_a_divergence_leaves_the_tapes_whole(diverges, persistent):
    def step(number, w, v, x):
        with tf.GradientTape(persistent=persistent) as tape:
            y = tf.tanh(x @ w)
            loss = tf.reduce_sum(diverges(number, y, v) * y)
        if persistent and diverges is not after_an_op_of_the_owners:  # that can be asked once, in eager too
            first = tape.gradient(loss, y)
            return [found + tf.reduce_mean(first) for found in tape.gradient(loss, [w, v])]
        return tape.gradient(loss, [w, v])

    report = both_ways(loop(step), co_executed=25)
    assert sum(fallback["count"] for fallback in report["fallbacks"]) >= 1


def own_after_a_function(number, y, v):
    """What a tape is told of real tensors in, a second time, is not what it was told of them first."""

    @tf.custom_gradient
    def own(a):
        return tf.sin(a), lambda upstream: tf.sin(upstream) if number >= LATE else upstream * 0.5

    return own(tf.tanh(DENSE(tf.tanh(y), v) * y))


def a_tape_alone(number, w, v, x):
    with tf.GradientTape(persistent=True) as tape:
        y = x @ w
        loss = tf.reduce_sum(own_after_a_function(number, y, v) * y)
    first = tape.gradient(loss, y)
    later = tf.reduce_sum(first)  # the divergence is behind us
    with tape:
        loss = loss * loss + later * tf.reduce_sum(y)
    return tape.gradient(loss, [w, v])


def a_tape_in_another(number, w, v, x):
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape(persistent=True) as tape:
            y = x @ w
            loss = tf.reduce_sum(own_after_a_function(number, y, v) * y)
        first = tape.gradient(loss, [y, v])
        loss = loss + tf.reduce_sum(first[0] * y) + tf.reduce_sum(first[1] * v)
    second, third = tape.gradient(loss, [w, v]), outer.gradient(loss, [w, v])
    return [*third, *second]


def a_tape_that_does_not_record_in_another(number, w, v, x):
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape(persistent=True) as tape:
            y = x @ w
            loss = tf.reduce_sum(own_after_a_function(number, y, v) * y)
        with outer.stop_recording():
            first = tape.gradient(loss, [y, v])
        loss = loss + tf.reduce_sum(first[0] * y) + tf.reduce_sum(first[1] * v)
        first = tape.gradient(y, w)
    return [found + tf.reduce_sum(first) for found in outer.gradient(loss, [w, v])]


def a_tape_in_its_own_context(number, w, v, x):
    with tf.GradientTape(persistent=True) as tape:
        y = x @ w
        loss = tf.reduce_sum(own_after_a_function(number, y, v) * y)
        first = tape.gradient(loss, [y, v])
        loss = loss + tf.reduce_sum(first[0] * y) + tf.reduce_sum(first[1] * v)
    return tape.gradient(loss, [w, v])


@pytest.mark.parametrize(
    ("step", "co_executed"),
    [
        (a_tape_alone, 25),
        (a_tape_in_another, 25),
        (a_tape_that_does_not_record_in_another, 25),
        (a_tape_in_its_own_context, 0),
    ],
)
def test_a_region_diverges_while_tensorflow_reads_a_tape_that_stays(step, co_executed):
    report = both_ways(loop(step), co_executed=co_executed)
    assert sum(fallback["count"] for fallback in report["fallbacks"]) >= 1


def test_a_divergence_between_two_tapes():
    def step(number, w, v, x):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                y = tf.reduce_sum(tf.tanh(x @ w) @ v)
            first = tape.gradient(y, w)
            loss = tf.reduce_mean(tf.square(tf.sin(first) if number >= LATE else first))
        return outer.gradient(loss, [w, v])

    both_ways(loop(step), co_executed=25)


def test_what_the_gradients_code_reads_is_there():
    def step(number, w, v, x):
        seen = []

        @tf.custom_gradient
        def own(a):
            def backward(upstream):
                seen.append(float(tf.reduce_sum(upstream * a)))
                return upstream * (0.5 if seen[-1] > 0 else 2.0)

            return tf.sin(a), backward

        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(own(x @ w) @ v)
        return [*tape.gradient(loss, [w, v]), seen]

    both_ways(loop(step), co_executed=20)


def test_an_error_of_the_gradients_code_is_the_programs():
    def step(number, w, v, x):
        @tf.custom_gradient
        def own(a):
            def backward(upstream):
                if number == LATE:
                    raise KeyError("no gradient today")
                return upstream

            return tf.sin(a), backward

        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(own(x @ w) @ v)
        try:
            return tape.gradient(loss, [w, v])
        except KeyError as error:
            return [w * 0.0, v * 0.0, str(error)]

    both_ways(loop(step), co_executed=25)


def test_a_tape_that_has_given_its_gradient_stays_out_of_a_rebuild(monkeypatch):
    """The tape knows values by their own numbers where the graph was faster than it; they die in the rebuild."""
    tell = LiveSkeleton._tell

    def late(skeleton, op, inputs, attrs, outputs, scope):
        busy, skeleton.busy = skeleton.busy, False
        for output in outputs:
            if type(output) is Placeholder:
                output.numpy()
        skeleton.busy = busy
        return tell(skeleton, op, inputs, attrs, outputs, scope)

    monkeypatch.setattr(LiveSkeleton, "_tell", late)

    def program(see):
        w = tf.Variable(tf.linspace(0.1, 0.9, 5))
        kept = []
        for number in range(STEPS):
            with tf.GradientTape(persistent=True) as outer:
                with tf.GradientTape() as inner:
                    value = tf.tanh(tf.sin(w))
                loss = tf.reduce_sum(inner.gradient(value, w) ** 2)
                if number == LATE:
                    loss = tf.exp(loss)
            kept = [*kept[-2:], (outer, loss)]
            w.assign_sub(0.1 * outer.gradient(loss, w))
            see(loss)
        see([tape.gradient(loss, w) for tape, loss in kept])
        return w

    report = both_ways(program, co_executed=15)
    assert sum(fallback["count"] for fallback in report["fallbacks"]) > 0


@pytest.mark.parametrize(
    "turns", [lambda number: 2, lambda number: 1 + number % 3], ids=["always 2", "1 to 3"]
)
def test_gradients_of_an_inner_loop_under_an_outer_tape(turns):
    """Meta-learning: what a gradient's Python makes of shapes alone is known, and yet another tensor in each turn."""

    def program(see):
        w = tf.Variable(2.0)
        rng = np.random.default_rng(0)
        for number in range(40):
            with tf.GradientTape() as outer:
                total = 0.0
                for _ in range(2):
                    x = rng.uniform(-3, 3, 4).astype("f")
                    p = tf.identity(w)
                    for _ in range(turns(number)):
                        with tf.GradientTape() as tape:
                            tape.watch(p)
                            loss = tf.reduce_mean((x * p - np.sin(x)) ** 2)
                        p = p - 0.05 * tape.gradient(loss, p)
                    total += tf.reduce_mean((x * p - np.sin(x)) ** 2)
            gradient = outer.gradient(total, w)
            w.assign_sub(0.1 * gradient)
            see(total, gradient)

    both_ways(program, co_executed=10)

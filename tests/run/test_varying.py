"""Shapes that go on changing, loops with other trip counts, and thousands of ways: bounded blocks, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways
from varying import depth, recurrence, translation, treebank, weights

from terra_cx.run.conductor import Conductor
from terra_cx.trace import tracegraph


def run(program, steps, co_executed, **sizes):
    """Both ways; the anchor's report and the whole one."""
    report = both_ways(
        lambda see: program(see, steps, **sizes), co_executed=co_executed, pace="turns", mode="co"
    )
    anchor = max(report["anchors"], key=lambda each: each["nodes"])
    assert anchor["state"] == "co-executing"
    return anchor, report


def test_a_translator_of_texts_of_many_lengths_has_few_blocks():
    anchor, report = run(translation, 45, co_executed=22, distinct=15)
    assert "more than 8 shapes" in anchor["relaxed"]
    assert report["runner"]["variants"] <= 6
    assert sum(each["count"] for each in report["fallbacks"]) <= 2


@pytest.fixture
def impatient(monkeypatch):
    """Gradients are taken op by op as soon as they have a few histories."""
    monkeypatch.setattr(tracegraph, "HISTORIES", 3)


def test_a_loop_under_a_tape_has_as_many_blocks_for_all_trip_counts(impatient):
    anchor, report = run(recurrence, 36, co_executed=8, distinct=9)
    assert report["runner"]["variants"] <= 24
    assert anchor["nodes"] <= 100


def test_a_loop_that_runs_long_is_learned_anew_as_well():
    """What is learned anew is traced, however many ops a step has, and not met as a divergence of an empty graph."""
    anchor, report = run(recurrence, 32, co_executed=8, distinct=160)
    assert anchor["relaxed"]
    assert sum(each["count"] for each in report["fallbacks"]) <= 8


def test_a_tree_has_as_many_blocks_as_its_program(impatient):
    anchor, report = run(treebank, 45, co_executed=8, trees=30, leaves=7)
    assert report["runner"]["variants"] <= 30
    assert anchor["nodes"] <= 100


def test_of_thousands_of_ways_each_layer_is_compiled_a_few_times(impatient):
    anchor, report = run(depth, 40, co_executed=8, layers=10)
    assert anchor["nodes"] <= 100
    assert report["runner"]["variants"] <= 8 * 10


@pytest.fixture
def soon(monkeypatch):
    """Shapes are relaxed as soon as there are two."""
    monkeypatch.setattr(tracegraph, "FORMS", 1)


def rows(step, number):
    """So many rows of four, others in each step."""
    return tf.constant(np.random.default_rng(step).normal(size=(number, 4)).astype("float32"))


def loop(step, steps=60):
    """A program of such steps: ``step(see, variable, x, n)``, where the ``n`` rows of ``x`` are others each time."""

    def program(see):
        w = weights(1, 4, 4)
        for number in range(steps):
            size = 2 + number * 5 % 13
            step(see, w, rows(number, size), size)
        return w

    return program


def shapes_are_told(see, w, x, n):
    y = tf.concat([x @ w, x], 0)
    see(tuple(y.shape), len(y), tf.transpose(y).shape.as_list(), tuple(tf.reshape(y, [n, 2, 4]).shape))
    w.assign_sub(0.01 * tf.reduce_mean(y, 0) * w)


def shapes_are_values(see, w, x, n):
    count = tf.shape(x)[0]
    y = tf.reshape(x @ w, [count * 2, 2]) + tf.cast(tf.range(2 * count)[:, tf.newaxis], tf.float32)
    see(tf.reduce_mean(y), int(count), y[: int(count)])
    w.assign_sub(0.01 * tf.fill([4, 4], tf.reduce_max(y)))


def only_values_tell(see, w, x, n):
    kept = tf.boolean_mask(x @ w, tf.reduce_sum(x, 1) > 0.0)
    see(tf.reduce_sum(kept), tuple(kept.shape), tf.unique(tf.cast(x[:, 0] > 0.0, tf.int32)).y)
    w.assign_sub(0.01 * tf.matmul(kept, kept, transpose_a=True))


def numbers_are_drawn(see, w, x, n):
    y = tf.nn.dropout(x @ w, 0.5) + tf.random.normal([n, 4], seed=3)
    see(tf.reduce_sum(y))
    w.assign_add(0.01 * tf.matmul(y, y, transpose_a=True))


def a_gradient_looks_at_shapes(see, w, x, n):
    with tf.GradientTape() as tape:
        y = x @ w
        y = y * tf.reduce_mean(y, 1, keepdims=True) + tf.reduce_mean(x[:1], 0)
        loss = tf.reduce_mean(tf.square(y)) + tf.reduce_sum(tf.pad(y, [[1, 0], [0, 1]])[: n // 2])
    gradient = tape.gradient(loss, w)
    see(loss, gradient)
    w.assign_sub(0.01 * tf.tanh(gradient))


def a_list_grows(see, w, x, n):
    with tf.GradientTape() as tape:
        h, states = x[:1], []
        for row in range(n):
            h = tf.tanh(h @ w + x[row])
            states.append(h)
        loss = tf.reduce_mean(tf.square(tf.stack(states)) + tf.add_n(states))
    gradient = tape.gradient(loss, w)
    see(loss, gradient)
    w.assign_sub(0.01 * tf.tanh(gradient))


def one_size_is_one(see, w, x, n):
    with tf.GradientTape() as tape:
        y = x @ w * (x[:1] if n % 3 == 0 else x)  # broadcast or not: its gradient is a sum or none
        loss = tf.reduce_sum(y * y)
    gradient = tape.gradient(loss, w)
    see(loss, gradient)
    w.assign_sub(0.001 * tf.tanh(gradient))


def some_are_refused(see, w, x, n):
    try:
        y = tf.reshape(x @ w, [-1, 8])
    except tf.errors.InvalidArgumentError as error:
        see(str(error))
        y = x
    see(tf.reduce_sum(y))
    w.assign_sub(0.01 * tf.reduce_mean(y) * w)


STEPS = [
    shapes_are_told,
    shapes_are_values,
    only_values_tell,
    numbers_are_drawn,
    a_gradient_looks_at_shapes,
    a_list_grows,
    one_size_is_one,
    some_are_refused,
]


@pytest.mark.parametrize("step", STEPS, ids=[step.__name__ for step in STEPS])
def test_steps_of_all_sizes(soon, step):
    report = both_ways(loop(step), co_executed=6, pace="turns")
    assert report["anchors"][0]["relaxed"]


def test_a_shape_is_told_without_waiting(soon):
    def step(see, w, x, n):
        y = tf.concat([x @ w, x], 0)
        assert y.shape[0] == 2 * n
        w.assign_sub(0.01 * tf.reduce_mean(tf.tanh(y) @ w) * w)

    report = both_ways(loop(step), co_executed=10, pace="turns", fallbacks=3)
    (anchor,) = report["anchors"]
    assert anchor["blocks"] <= 3  # nothing was read that would have cut one


def test_few_shapes_are_known_each_on_its_own():
    def program(see):
        w = weights(1, 4, 4)
        for number in range(40):
            x = rows(number, 3 + number % 3)
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(x @ w))
            w.assign_sub(0.01 * tape.gradient(loss, w))
            see(loss)
        return w

    (anchor,) = both_ways(program, co_executed=10, pace="turns")["anchors"]
    assert anchor["relaxed"] is None
    assert anchor["live_tapes"] is None


def test_lengths_that_come_late_need_no_new_block(soon):
    def program(see):
        w = weights(1, 4, 4)
        for number in range(60):
            x = rows(number, 2 + number % 4 if number < 30 else number)
            y = tf.tanh(x @ w)
            see(tf.reduce_sum(y))
            w.assign_sub(0.01 * tf.matmul(x, y, transpose_a=True))
        return w

    report = both_ways(program, co_executed=30, pace="turns")
    assert report["runner"]["variants"] <= 3


@pytest.fixture
def recorded(monkeypatch):
    """The regions whose rest was recorded."""
    found = []
    record_rest = Conductor._record_rest
    monkeypatch.setattr(Conductor, "_record_rest", lambda *args: found.append(args) or record_rest(*args))
    return found


def test_what_comes_behind_the_loop_is_recorded_once(recorded):
    """An evaluation after each epoch, with a loop of its own, begins in the region of the loop's last visit."""

    def program(see):
        rng = np.random.default_rng(1)
        w = tf.Variable(rng.normal(size=(4, 4)).astype("float32"))

        def evaluate(x):
            for _ in range(150):
                x = tf.sigmoid(x @ w)
            return x

        for _ in range(8):
            for _ in range(20):
                x = tf.constant(rng.normal(size=(3, 4)).astype("float32"))
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(tf.tanh(x @ w) - 0.5))
                w.assign_sub(0.1 * tape.gradient(loss, w))
                see(loss)
            see(evaluate(x))
        return w

    both_ways(program, co_executed=100)
    assert len(recorded) <= 2


def test_a_way_that_is_too_long_to_be_traced_is_recorded_once(recorded):
    """A text is sampled now and then: recording its first thousands of ops takes half as long as the sampling."""

    def program(see):
        rng = np.random.default_rng(1)
        w = tf.Variable(rng.normal(size=(4, 4)).astype("float32"))
        for step in range(80):
            x = tf.constant(rng.normal(size=(3, 4)).astype("float32"))
            with tf.GradientTape(persistent=True) as tape:
                loss = tf.reduce_mean(tf.square(tf.tanh(x @ w) - 0.5))
            w.assign_sub(0.1 * tape.gradient(loss, w))
            see(loss)
            if step % 10 == 9 and step > 25:
                for _ in range(600 + step):
                    x = tf.tanh(x @ w) + 0.1 * x
                see(x, tape.gradient(loss, w))
        return w

    report = both_ways(program, co_executed=50)
    assert sum(fallback["count"] for fallback in report["fallbacks"]) == 6
    assert len(recorded) == 1

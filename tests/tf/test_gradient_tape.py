"""The short way through ``GradientTape.gradient`` gives what TensorFlow's own method gives, and knows its limits."""

from __future__ import annotations

import keras
import pytest
import tensorflow as tf
from truth import both_ways

from terra_cx.tf import gradient_tape

STEPS = 30
FORMS = {
    "a list": lambda tape, loss, v: tape.gradient(loss, [v["a"], v["b"]]),
    "a tuple": lambda tape, loss, v: tape.gradient(loss, (v["b"], v["a"])),
    "one variable": lambda tape, loss, v: tape.gradient(loss, v["a"]),
    "a dictionary": lambda tape, loss, v: tape.gradient(loss, {"x": v["a"], "y": [v["b"]]}),
    "the same one twice": lambda tape, loss, v: tape.gradient(loss, [v["a"], v["a"]]),
    "of Keras": lambda tape, loss, v: tape.gradient(loss, [v["k"], v["a"]]),
    "rows of a table": lambda tape, loss, v: tape.gradient(loss, [v["t"], v["a"]]),
    "one without a path": lambda tape, loss, v: tape.gradient(loss, [v["a"], v["u"]]),
    "zero without a path": lambda tape, loss, v: tape.gradient(
        loss, [v["a"], v["u"]], unconnected_gradients=tf.UnconnectedGradients.ZERO
    ),
    "by a word": lambda tape, loss, v: tape.gradient(loss, [v["u"]], unconnected_gradients="zero"),
    "two targets": lambda tape, loss, v: tape.gradient([loss, loss * 2.0], [v["a"]]),
    "weighted": lambda tape, loss, v: tape.gradient(loss, [v["a"]], output_gradients=tf.constant(3.0)),
    "an integer": lambda tape, loss, v: tape.gradient(loss, [v["a"], v["i"]]),
}


def variables():
    return {
        "a": tf.Variable(tf.random.normal([3, 3])),
        "b": tf.Variable(tf.random.normal([3])),
        "k": keras.Variable(tf.random.normal([3])),
        "t": tf.Variable(tf.random.normal([5, 3])),
        "u": tf.Variable(1.0),
        "i": tf.Variable(1),
    }


def flat(gradient):
    if isinstance(gradient, tf.IndexedSlices):
        return [gradient.values, gradient.indices, gradient.dense_shape]
    if isinstance(gradient, dict):
        return {key: flat(item) for key, item in gradient.items()}
    if isinstance(gradient, (list, tuple)):
        return [type(gradient).__name__, *map(flat, gradient)]
    return gradient


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inside", [False, True])
def test_as_tensorflows_own(form, inside):
    def program(see):
        v = variables()
        for _ in range(STEPS):
            with tf.GradientTape() as tape:
                rows = tf.nn.embedding_lookup(v["t"], [2, 1])
                y = tf.matmul(rows, v["a"]) * v["b"] + v["k"]
                loss = tf.reduce_mean(tf.square(y))
                if inside:
                    gradient = FORMS[form](tape, loss, v)
            if not inside:
                gradient = FORMS[form](tape, loss, v)
            see(flat(gradient), [tuple(w.shape) for w in tape.watched_variables()])
            v["a"].assign_sub(0.01 * v["a"])
        return v["a"]

    both_ways(program)


def test_asked_again_and_of_nothing():
    def program(see):
        w = tf.Variable(tf.random.normal([3]))
        for _ in range(STEPS):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(w * w)
            (gradient,) = tape.gradient(loss, [w])
            for target in (loss, None):
                try:
                    tape.gradient(target, [w])
                except (RuntimeError, TypeError) as error:
                    see(type(error).__name__, str(error))
            w.assign_sub(0.1 * gradient)
        return w

    both_ways(program)


def test_a_method_of_the_programs_own_stays(monkeypatch):
    calls = []
    own = tf.GradientTape.gradient

    def counted(self, *args, **kwargs):
        calls.append(1)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(tf.GradientTape, "gradient", counted)

    def program(see):
        w = tf.Variable(tf.random.normal([3]))
        for _ in range(STEPS):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(w * w)
            w.assign_sub(0.1 * tape.gradient(loss, w))
        return w

    both_ways(program)
    assert len(calls) == 2 * STEPS
    assert tf.GradientTape.gradient is counted


def test_it_goes_as_it_came():
    gradient_tape.remove()
    own = tf.GradientTape.gradient
    gradient_tape.install(lambda: True)
    assert tf.GradientTape.gradient is not own
    assert tf.GradientTape.gradient.__qualname__ == own.__qualname__
    gradient_tape.remove()
    assert tf.GradientTape.gradient is own


def test_a_method_that_was_the_programs_own_from_the_start_stays(monkeypatch):
    """The program may have replaced it before terra-cx looks at TensorFlow for the first time."""
    calls = []
    tensorflows = gradient_tape._method.own

    def own(self, *args, **kwargs):
        calls.append(1)
        return tensorflows(self, *args, **kwargs)

    monkeypatch.setattr(gradient_tape._method, "own", own)
    monkeypatch.setattr(tf.GradientTape, "gradient", own)
    gradient_tape.install(lambda: True)
    assert tf.GradientTape.gradient is own
    test_as_tensorflows_own("a list", False)
    assert len(calls) == 2 * STEPS

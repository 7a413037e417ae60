"""The short ways through a variable's writes give what TensorFlow's own methods give, and know their limits."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

import terra_cx
from terra_cx.tf import variable_writes

STEPS = 30
NAMES = ("assign", "assign_add", "assign_sub")


class Own(type(tf.Variable(0.0))):
    """A class of the program's own."""

    def assign_sub(self, delta, **kwargs):
        return super().assign_sub(2.0 * delta, **kwargs)


VALUES = {
    "a tensor": lambda w, x: x,
    "an array": lambda w, x: np.full((3,), 0.5, np.float32),
    "a number in a list": lambda w, x: [0.5, 1.5, 2.5],
    "a variable": lambda w, x: w,
    "another dtype": lambda w, x: tf.cast(x, tf.float64),
    "another shape": lambda w, x: x[:2],
    "None": lambda w, x: None,
}


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    variable_writes.remove()
    for name in NAMES:
        assert getattr(variable_writes._Plain, name) is variable_writes._methods[name].own


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("taped", [False, True])
def test_as_tensorflows_own(name, value, taped):
    def program(see):
        w = tf.Variable(tf.random.normal([3]))
        for _ in range(STEPS):
            x = 0.1 * tf.random.normal([3])
            with tf.GradientTape(persistent=True) as tape:
                loss = tf.reduce_sum(w * w * x)
                if taped:
                    write(see, w, x)
                    loss = loss + tf.reduce_sum(w)
            if not taped:
                write(see, w, x)
            see(tape.gradient(loss, w))
            w.assign(tf.tanh(w))
        return w

    def write(see, w, x):
        try:
            result = getattr(w, name)(VALUES[value](w, x), name="mine", read_value=True)
        except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            see(type(error).__name__, str(error))
        else:
            see(type(result).__name__, result.name, result.shape, result.trainable, result, result + 1.0)

    both_ways(program, co_executed=1 if value == "another shape" else 5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_returned_is_as_the_constructor_makes_it(name):
    variables = [
        tf.Variable([1.0, 2.0]),
        tf.Variable(3, dtype=tf.int64),
        tf.Variable([[True]], trainable=False),
    ]
    if name != "assign":
        variables.pop()
    expected = [getattr(w, name)(w.read_value()) for w in variables for _ in range(3)]
    variable_writes.install(lambda: True)
    for w, own in zip([w for w in variables for _ in range(3)], expected, strict=True):
        result = getattr(w, name)(w.read_value())
        assert type(result) is type(own)
        assert vars(result) == vars(own)
        assert getattr(w, name)(w.read_value(), read_value=False) is None


def test_classes_of_the_programs_own_and_of_keras():
    def program(see):
        own, keras_own = Own(tf.random.normal([3])), keras.Variable(tf.random.normal([3]))
        for _ in range(STEPS):
            x = 0.1 * tf.random.normal([3])
            see(own.assign_sub(x), keras_own.assign_sub(x), keras_own.assign(keras_own + x))
        return own, keras_own.numpy()

    both_ways(program)


def test_inside_a_function_that_is_traced_in_a_step():
    def program(see):
        w = tf.Variable(tf.random.normal([3]))
        for step in range(STEPS):
            x = 0.1 * tf.random.normal([3])
            if step in (5, 20):
                write = tf.function(lambda y, x=x: w.assign_add(y * x), autograph=False)
                see(write(x))
            w.assign_sub(0.5 * x)
            see(w)
        return w

    both_ways(program)


def test_a_method_of_the_programs_own_stays(monkeypatch):
    calls = []
    own = variable_writes._Plain.assign_sub

    def counted(self, *args, **kwargs):
        calls.append(1)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(variable_writes._Plain, "assign_sub", counted)

    def program(see):
        w = tf.Variable(tf.random.normal([3]))
        for _ in range(STEPS):
            w.assign_sub(0.1 * w)
        return w

    both_ways(program)
    assert len(calls) == 2 * STEPS
    monkeypatch.undo()


def test_it_is_there_in_every_session():
    put = []
    for _ in range(2):
        with terra_cx.co_execute(quiet=True) as session:
            w = tf.Variable(1.0)
            for _ in range(STEPS):
                terra_cx.region()
                w.assign_sub(tf.tanh(w))
            short = variable_writes._Plain.assign_sub
            assert short is variable_writes._methods["assign_sub"].short
            put.append(short)
        assert session.report()["regions"]["co_executed"] > 10
    assert put[0] is not put[1]  # each asks its own session

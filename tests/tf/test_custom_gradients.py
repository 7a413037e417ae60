"""Which custom gradients are understood, and when two of them are the same."""

from __future__ import annotations

import functools

import pytest
import tensorflow as tf
from held import held
from tensorflow.python import pywrap_tfe
from tensorflow.python.framework import ops

from terra_cx.tf.custom_gradients import gradient_detail, has_foreign_gradient

X = tf.constant([1.0, 2.0])


def recorded(monkeypatch, function, *arguments):
    """The details of what ``function`` records on a tape."""
    details = []

    def record(op, outputs, inputs, *functions):
        details.append(gradient_detail(op, outputs, inputs, functions))

    monkeypatch.setattr(pywrap_tfe, "TFE_Py_TapeSetRecordOperation", record)
    function(*arguments)
    return details


def test_tensorflows_own_are_understood(monkeypatch):
    (first,) = recorded(monkeypatch, tf.nn.silu, X)
    (second,) = recorded(monkeypatch, tf.nn.silu, X * 2.0)
    assert first is not None
    assert first == second
    assert hash(first) == hash(second)


def test_a_placeholder_is_a_tensor(monkeypatch, boundary):
    (first,) = recorded(monkeypatch, tf.nn.silu, X)
    (second,) = recorded(monkeypatch, tf.nn.silu, held(X))
    assert first == second


def test_a_copy_is_understood_and_names_its_device(monkeypatch):
    (detail,) = recorded(monkeypatch, X.cpu)
    assert "CPU:0" in repr(detail)


@pytest.mark.parametrize("library", ["tensorflow", "tensorflow_probability"])
def test_a_plain_value_that_a_function_is_closed_over_is_part_of_it(library):
    namespace = dict(vars(tf.nn), __name__=f"{library}.python.ops.made_up")
    make = eval("lambda value: lambda upstream: upstream * value", namespace)

    def detail(value):
        return gradient_detail("op", [X], [X], [make(value)])

    assert detail(1.0) == detail(1.0) != detail(2.0)
    assert detail(1) != detail(1.0) != detail(True)
    assert detail(0.0) != detail(-0.0)
    assert detail([1, (2, None)]) != detail([1, (2, "None")])
    assert detail(tf.float32) != detail(tf.float64)
    assert detail({"a": 1}) != detail({"a": 2})
    assert detail(X) == detail(X * 5.0)  # seen in the gradient's ops
    first, second = tf.Variable(1.0), tf.Variable(1.0)
    assert detail(first) == detail(first) != detail(second)


NOT_UNDERSTOOD = {
    "a user's function": lambda upstream: upstream,
    "a partial": functools.partial(tf.multiply, X),
    "a builtin": max,
    "a class": dict,
    "a bound method": [].append,
    "a tf.function": tf.function(lambda upstream: upstream),
}


@pytest.mark.parametrize("what", NOT_UNDERSTOOD)
def test_what_is_not_tensorflows_could_do_anything(what, monkeypatch):
    function = NOT_UNDERSTOOD[what]
    assert gradient_detail("op", [X], [X], [function]) is None
    if what not in ("a builtin", "a class"):  # whose signature tf.custom_gradient cannot find out
        wrapped = tf.custom_gradient(lambda x: (x * 2.0, function))
        assert recorded(monkeypatch, wrapped, X) == [None]


def test_recomputing_runs_a_function_when_the_gradient_is_taken(monkeypatch):
    assert None in recorded(monkeypatch, tf.recompute_grad(lambda x: x * 2.0), X)


def test_registered_gradients():
    assert not has_foreign_gradient("MatMul")
    assert not has_foreign_gradient("Shape")  # none, on purpose
    assert not has_foreign_gradient("NoSuchOp")
    ops.RegisterGradient("TerraCxTestOp")(lambda op, upstream: upstream)
    assert has_foreign_gradient("TerraCxTestOp")

"""Values as JSON and back: exactly, or not at all."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from terra_cx.cache.values import (
    Unstorable,
    packed,
    packed_tensor,
    packed_type,
    unpacked,
    unpacked_tensor,
    unpacked_type,
)
from terra_cx.trace.rules import same_const, same_known


def again(value):
    return unpacked(json.loads(json.dumps(packed(value))))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        -(2**70),
        0.1,
        -0.0,
        math.inf,
        "text \ud800",
        b"\x00\xff",
        1j,
        (1, [2.0, (True,)]),
        [],
        (),
    ],
)
def test_python_values(value):
    found = again(value)
    assert type(found) is type(value)
    assert same_const(found, value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    "value", [np.float32(0.1), np.int8(-3), np.zeros((2, 0)), np.array([[1, 2]], ">i4"), np.array(True)]
)
def test_arrays(value):
    found = again(value)
    assert type(found) is type(value)
    assert found.shape == value.shape
    assert found.tolist() == value.tolist()


def test_tensorflows_own():
    assert again(tf.bfloat16) is tf.bfloat16
    assert again(tf.TensorShape([2, None])).as_list() == [2, None]
    assert again(tf.TensorShape(None)).rank is None


@pytest.mark.parametrize("value", [object(), {1: 2}, {1}, np.array(["a"]), np.array([None]), lambda: 0, tf])
def test_what_has_no_form(value):
    with pytest.raises(Unstorable):
        packed(value)


@pytest.mark.parametrize("value", [{"x": 1}, {"t": 1}, {"b": "?"}, {}, {"a": ["f4", [2], "AAAA"]}])
def test_what_is_no_value(value):
    with pytest.raises((LookupError, TypeError, ValueError)):
        unpacked(value)


@pytest.mark.parametrize("kind", [int, list, np.ndarray, np.float32, np.bool_])
def test_types(kind):
    assert unpacked_type(packed_type(kind)) is kind


def test_types_of_others():
    with pytest.raises(Unstorable):
        packed_type(Unstorable)
    with pytest.raises(LookupError):
        unpacked_type("system")


@pytest.mark.parametrize(
    "tensor",
    [
        tf.constant([[1, -2], [3, 4]], tf.int64),
        tf.constant([], tf.float32),
        tf.constant(math.nan, tf.float64),
        tf.constant([1.5, -0.0], tf.bfloat16),
        tf.constant([True, False]),
    ],
)
def test_tensors(tensor):
    assert same_known(unpacked_tensor(json.loads(json.dumps(packed_tensor(tensor)))), tensor)


def test_tensors_that_are_no_arrays():
    for tensor in (tf.Variable(1.0).handle, tf.constant(["text"]), tf.zeros([600_000]), None):
        with pytest.raises(Unstorable):
            packed_tensor(tensor)

"""The gradient of slices: TensorFlow's own, without a look at the indices."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from terra_cx.tf import strided_slice
from terra_cx.tf.boundary import Boundary

X = tf.reshape(tf.range(120.0), [4, 5, 6])
SLICES = {
    "an index": lambda x: x[tf.constant(2)],
    "a negative index": lambda x: x[-1],
    "a range": lambda x: x[1:3, :, 2:],
    "backwards": lambda x: x[::-1, 4:0:-2],
    "an ellipsis": lambda x: x[..., 3],
    "a new axis": lambda x: x[:, tf.newaxis, 1],
    "long indices": lambda x: tf.strided_slice(
        x, np.int64([0, 1, 2]), np.int64([4, 4, 6]), np.int64([2, 1, 3])
    ),
    "an empty range": lambda x: x[3:1],
}


@pytest.fixture
def boundary():
    made = Boundary()
    made.install()
    yield made
    made.remove()


def gradient(function, x=X):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.square(function(x))
    return tape.gradient(y, x)


@pytest.mark.parametrize("function", SLICES.values(), ids=SLICES)
def test_as_tensorflows_own(function, request):
    expected = gradient(function)
    request.getfixturevalue("boundary")
    assert gradient(function).numpy().tobytes() == expected.numpy().tobytes()


def test_no_value_is_read(boundary):
    read = []
    boundary.watch_reads(read.append)
    made = gradient(SLICES["an index"])
    boundary.watch_reads(None)
    assert read == []
    assert made.shape == X.shape


def test_while_a_graph_is_built_shapes_are_known_as_ever(boundary):
    @tf.function
    def made(x):
        return gradient(lambda x: x[1:3], x)

    assert made.get_concrete_function(X).structured_outputs.shape == X.shape
    assert np.array_equal(made(X), gradient(lambda x: x[1:3]))


def test_second_order(boundary):
    with tf.GradientTape() as outer:
        outer.watch(X)
        with tf.GradientTape() as inner:
            inner.watch(X)
            y = X[1] ** 3
        first = inner.gradient(y, X)
    assert np.array_equal(outer.gradient(first, X)[1], 6.0 * X[1])


def test_it_is_gone_with_the_boundary():
    made = Boundary()
    made.install()
    assert strided_slice._registered["type"] is strided_slice.gradient
    made.remove()
    assert strided_slice._registered["type"] is strided_slice._own

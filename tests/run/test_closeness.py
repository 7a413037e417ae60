"""Results that are close enough to eager's pass, others do not, and what eager itself cannot tell is no difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from terra_cx.levels import SENSITIVITY, TOLERANCE
from terra_cx.run.closeness import PROBES, apart, moved_by_one, too_far

FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")


def no_probe(number):
    raise AssertionError("asked for a second opinion")


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_tolerance_is_relative_to_the_largest_element(dtype):
    truth = tf.cast([1e-3, 4.0, 0.0], dtype)
    tolerance = TOLERANCE[truth.dtype.as_datatype_enum]
    within, beyond = (
        tf.constant(np.asarray(truth) + np.asarray(f * tolerance * 4.0, truth.dtype.as_numpy_dtype))
        for f in (0.5, 2.0)
    )
    assert too_far([within], [truth], no_probe) is None
    problem = too_far([beyond], [truth], lambda number: [truth])
    assert dtype in problem
    assert "(3,)" in problem


@pytest.mark.parametrize(
    ("got", "truth"),
    [
        ([1, 2, 3], [1, 2, 4]),
        ([True], [False]),
        ([b"a"], [b"b"]),
        ([1.0, math.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, math.nan]),
        ([math.inf], [-math.inf]),
        ([1.0], [math.inf]),
        ([[1.0]], [1.0]),
        ([1.0], [1]),
    ],
)
def test_what_must_be_equal(got, truth):
    assert too_far([tf.constant(got)], [tf.constant(truth)], no_probe) is not None


def test_nan_and_infinities_in_the_same_places_are_equal():
    values = [math.nan, math.inf, -math.inf, 1.0]
    near = [math.nan, math.inf, -math.inf, float(np.nextafter(np.float32(1), np.float32(2)))]
    assert too_far([tf.constant(near)], [tf.constant(values)], no_probe) is None
    assert too_far([tf.constant(values[:3])], [tf.constant(values[:3])], no_probe) is None
    assert too_far([tf.zeros([0])], [tf.zeros([0])], no_probe) is None


def test_the_second_opinion():
    """A sum that cancels is rounding alone: it may move as far as eager's own does."""
    truth, asked = tf.constant([1e-8]), []

    def probe(number):
        asked.append(number)
        return [truth + 1e-8]

    assert too_far([truth + SENSITIVITY * 0.9e-8], [truth], probe) is None
    assert asked == list(range(PROBES))
    assert too_far([truth + SENSITIVITY * 1.1e-8], [truth], probe) is not None
    assert too_far([truth + 1e-8], [truth], lambda number: [truth]) is not None
    # Not for its neighbour, which is well determined.
    steady = tf.constant([1.0])
    assert too_far([truth, steady + 1e-3], [truth, steady], lambda number: [truth + 1.0, steady]) is not None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("values", [[1.0, -3.0, 0.0, 200.0] * 20, 5.0])
def test_moving_is_by_one_unit_in_the_last_place(dtype, values):
    tensor = tf.cast(values, dtype)
    moved = moved_by_one(tensor, np.random.default_rng(0))
    assert (moved.dtype, moved.shape) == (tensor.dtype, tensor.shape)
    wide = [np.asarray(tf.cast(each, "complex128")).reshape(-1) for each in (tensor, moved)]
    zeros = wide[0] == 0
    np.testing.assert_array_equal(wide[1][zeros], 0)
    relative = np.abs(wide[1] - wide[0])[~zeros] / np.abs(wide[0][~zeros])
    unit = 2.0**-7 if dtype == "bfloat16" else float(np.finfo(tensor.dtype.real_dtype.as_numpy_dtype).eps)
    assert relative.min() >= 0.49 * unit
    assert relative.max() <= 1.5 * unit  # rounded to one of the type's numbers


def test_moving_leaves_other_types_alone():
    for values in ([1, 2], [True], [b"a"]):
        tensor = tf.constant(values)
        assert moved_by_one(tensor, np.random.default_rng(0)) is tensor


def test_apart():
    assert apart(tf.constant([1.0, 2.0]), tf.constant([1.0, 4.0])) == (2.0, 4.0)
    assert apart(tf.constant([1.0]), tf.constant([1.0])) == (0.0, 0.0)
    assert apart(tf.constant([0.0]), tf.constant([-0.0])) == (0.0, 0.0)
    assert apart(tf.constant([1]), tf.constant([2]))[0] == math.inf

"""How far values are apart, and lines of output."""

import json
from dataclasses import astuple

import numpy as np
import pytest

from terra_cx.check.nearness import distance, furthest, near_text
from terra_cx.check.stream import describe, restored


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        (np.float32(1), np.float32(1 + 1e-6), pytest.approx(1e-6, rel=0.1)),
        (np.float32(1), np.float32(2), 0.5),
        (np.float32(1e-20), np.float32(2e-20), pytest.approx(0.5)),
        (np.float32(0.0), np.float32(-0.0), 0.0),
        (np.float32([1, 1e-9]), np.float32([1, 3e-9]), pytest.approx(2e-9)),  # of the whole vector
        (np.float32("nan"), np.float32(1), None),
        (np.float32("inf"), np.float32(1), None),
        (np.float32(1), np.float64(1), None),
        (np.int32(1000000), np.int32(1000001), None),
        (np.float32([1, 2]), np.float32([1, 2, 3]), None),
        (np.arange(9.0), np.where(np.arange(9) == 8, 8.0001, np.arange(9.0)), None),  # not among those shown
        (b"a", b"b", None),
    ],
)
def test_distance(one, other, apart):
    assert distance(describe(one), describe(other)) == apart


# -- long values, by their sketches ------------------------------------------------------------------------------------
LONG = np.random.default_rng(0).normal(size=(40, 50))


def sketched(array):
    return describe(array, sketched=True)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("far", [1e-2, 0.3])
def test_the_distance_of_long_values_is_told_to_a_factor_of_two(dtype, far):
    noise = np.random.default_rng(1).normal(size=LONG.shape)
    other = LONG + far * noise * np.linalg.norm(LONG) / np.linalg.norm(noise)
    assert far / 2 < distance(sketched(LONG.astype(dtype)), sketched(other.astype(dtype))) < far * 2


@pytest.mark.parametrize("place", [0, 7, 1999])
def test_one_element_is_enough(place):
    other = LONG.copy().reshape(-1)
    other[place] += 0.1 * np.linalg.norm(LONG)
    assert distance(sketched(LONG), sketched(other.reshape(LONG.shape))) == pytest.approx(0.1, rel=0.05)


def test_what_no_sketch_can_tell():
    holed = np.where(np.arange(2000).reshape(40, 50) == 9, np.nan, LONG)
    assert distance(sketched(LONG), sketched(holed)) is None
    assert distance(sketched(LONG), sketched(LONG.T.copy())) is None
    assert distance(sketched(np.zeros(9)), sketched(-np.zeros(9))) == 0.0


def test_short_values_and_other_types_have_no_sketch():
    assert [sketched(value).sketch for value in (LONG[0, :6], np.arange(50), b"abc")] == [()] * 3
    assert describe(LONG).sketch == ()


def test_a_value_survives_json():
    for value in (sketched(LONG), sketched(np.float32(2)), describe(np.arange(3))):
        assert restored(json.loads(json.dumps(astuple(value)))) == value


def test_furthest():
    a, b, c = (describe(np.float32(value)) for value in (1.0, 1.001, 1.1))
    assert furthest([(a, a), (a, b), (b, a)]) == pytest.approx(1e-3, rel=0.01)
    assert furthest([(a, b), (a, c)]) == pytest.approx(0.1 / 1.1, rel=0.01)
    assert furthest([(a, describe(np.int32(1)))]) is None
    assert furthest([]) == 0.0


# -- lines of output ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("step 3 loss 0.12345", "step 3 loss 0.12346", True),
        ("step 3 loss 0.12345", "step 4 loss 0.12345", False),  # a whole number
        ("step 3 loss 0.12345", "step 3 cost 0.12345", False),
        ("loss 1.0", "loss 1.005", True),
        ("loss 1.00", "loss 1.05", False),
        ("loss 0.1", "loss 0.2", True),  # one off in the last place
        ("loss 0.1", "loss 0.3", False),
        ("1.5e-08", "1.501e-08", True),
        ("1.5e-08", "1.5e-07", False),
        ("[0.5 0.25]", "[0.5 0.25 0.1]", False),
        ("nan", "0.5", False),
        ("6 variables, sha256 a5e28c", "6 variables, sha256 018e43", False),
        ("", "", True),
    ],
)
def test_near_text(one, other, near):
    assert near_text(one, other, 1e-2) is near
    assert near_text(other, one, 1e-2) is near

"""Seeds of random ops: what TensorFlow's generator gives, gives again, and gave."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from terra_cx.tf import native, seeds


@pytest.fixture(autouse=True)
def seeded():
    tf.random.set_seed(11)


def taken(count):
    """What ops would be given next; they are given it all the same."""
    stood = seeds.state()
    found = [seeds.next_seeds() for _ in range(count)]
    native.context()._rng.setstate(stood)
    return found


def test_what_was_given():
    stood, expected = seeds.state(), taken(2)
    assert seeds.are_next(stood, [])
    tf.random.normal([2]), tf.random.uniform([2])
    now = seeds.state()
    assert seeds.are_next(stood, expected)
    assert not seeds.are_next(stood, expected[:1])
    assert not seeds.are_next(stood, expected[::-1])
    assert not seeds.are_next(None, expected)
    assert seeds.state() == now


def test_what_was_given_for_nothing_is_given_again():
    first, second, third = taken(3)
    assert [seeds.next_seeds(), seeds.next_seeds()] == [first, second]
    with seeds.given_again([first, second]):
        assert [seeds.next_seeds() for _ in range(3)] == [first, second, third]
    following = seeds.next_seeds()  # others that have drawn meanwhile have what they have
    assert following not in (first, second, third)


def test_another_global_seed_meanwhile():
    with seeds.given_again([(11, 5)]):
        tf.random.set_seed(4)
        expected = taken(1)
    assert [seeds.next_seeds()] == expected


@pytest.mark.parametrize(("seed", "same"), [(11, True), (np.int64(11), False), (11.0, False)])
def test_a_global_seed_of_another_type_is_another_one(seed, same):
    tf.random.set_seed(seed)
    assert seeds.is_global(11) is same
    assert not seeds.is_global(None)

"""Variables and random generators that a program leaves behind. (The crossings themselves: tests/check.)"""

import gc
import random

import numpy as np
import pytest
import tensorflow as tf

from terra_cx.tf import crossings
from terra_cx.tf.crossings import Variables, generators


@pytest.fixture
def variables():
    return Variables()


def values(variables):
    return {
        number: (name, None if value is None else value.tolist())
        for number, name, value in variables.values()
    }


def test_the_last_value_in_order_of_creation(variables):
    first, second = tf.Variable([1.0, 2.0], name="first"), tf.Variable(3, name="second")
    variables._add(first)
    variables._add(second)
    first.assign_add([1.0, 1.0])
    assert values(variables) == {0: ("first:0", [2.0, 3.0]), 1: ("second:0", 3)}


def test_a_variable_that_died_has_its_last_value(variables):
    variable = tf.Variable([1.0], name="gone")
    variables._add(variable)
    variable.assign([5.0])
    death = variables._entries[0].death
    del variable
    gc.collect()
    assert death() is None
    assert values(variables) == {0: ("gone:0", [5.0])}


def test_the_oldest_dead_are_given_up(variables, monkeypatch):
    monkeypatch.setattr(crossings, "_KEPT_BYTES", 100)
    alive = tf.Variable(tf.ones([100]))
    variables._add(alive)
    for number in range(5):
        variables._add(tf.Variable(tf.fill([10], float(number))))
        gc.collect()
    assert list(values(variables)) == [0, 4, 5]
    assert variables.made == 6


def test_a_view_of_a_variable_is_no_other(variables):
    variable = tf.Variable([1.0])
    variables._add(variable)
    variables._add(variable.assign_add([1.0]))
    assert variables.made == 1


def test_variables_of_graphs_have_no_value(variables):
    with tf.Graph().as_default():
        variables._add(tf.Variable([1.0]))
    assert values(variables) == {}


def test_a_variable_that_cannot_be_read_has_no_value(variables, monkeypatch):
    def refuse(*_):
        raise tf.errors.NotFoundError(None, None, "gone")

    variables._add(tf.Variable([1.0], name="lost"))
    monkeypatch.setattr(crossings.native, "run_fast", refuse)
    assert values(variables) == {0: ("lost:0", None)}


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("random", random.random),
        ("numpy.random", np.random.rand),
        ("tf.random", lambda: tf.random.uniform([])),
    ],
)
def test_generators_tell_a_draw(name, draw):
    tf.keras.utils.set_random_seed(3)
    before = generators()
    assert before == generators()
    draw()
    after = generators()
    assert [each for each in after if after[each] != before[each]] == [name]

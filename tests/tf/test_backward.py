"""Where an op of a backward pass belongs: tokens that tapes are told, and what they give to gradient functions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tensorflow as tf
from tensorflow.python.eager import backprop

from terra_cx.tf import backward, native


@pytest.fixture
def installed():
    """Gradient functions are called through ours; the position is what the test says."""
    at = SimpleNamespace(position=0)
    backward.install()
    backward.follow(lambda: at.position)
    yield at
    backward.remove()


def told(tape, op, inputs, attrs, outputs, site):
    """Tell a tape of an op at a site."""
    native.record_gradient(op, inputs, attrs, outputs, backward.token(site))


def test_a_token_stands_for_one_site():
    assert backward.token("here") == backward.token("here") != backward.token("there")


def test_what_a_gradient_function_issues_is_placed_where_its_op_is(installed, monkeypatch):
    found = []
    own = backward._own

    def noted(*args):
        found.append((backward.place(installed.position), args[0], args[-1]))
        installed.position += 3
        return own(*args)

    monkeypatch.setattr(backward, "_own", noted)
    x = tf.constant([0.5, 1.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        with tape.stop_recording():
            y = tf.tanh(x)
            z = tf.square(y)
        told(tape, "Tanh", [x], ("T", 1), [y], "the tanh")
        told(tape, "Square", [y], ("T", 1), [z], "the square")
    with backward.asked():
        gradient = tape.gradient(z, x)
        assert backward.place(7) == ("the tanh", 4)  # what comes after a gradient function counts for it
    assert found == [(("the square", 0), "Square", ""), (("the tanh", 0), "Tanh", "")]
    expected = 2 * tf.tanh(x) * (1 - tf.tanh(x) ** 2)
    tf.debugging.assert_near(gradient, expected)


def test_an_op_that_was_told_without_a_token_has_no_place(installed):
    x = tf.Variable(2.0)
    with tf.GradientTape() as tape:
        y = x * x
    with backward.asked():
        assert tape.gradient(y, x).numpy() == 4.0
        assert backward.place(1) is None
    assert backward.place(1) is None


def test_tokens_are_given_anew_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(backward, "_MOST", 2)
    backward.remove()
    step = SimpleNamespace(token=None, node=SimpleNamespace(call=SimpleNamespace(site="a")))
    first = backward.step_token(step)
    assert backward.step_token(step) == first
    for site in "bcd":
        backward.token(site)
    assert backward.step_token(step) != first
    backward.remove()


def test_tensorflows_own_function_is_given_back():
    backward.install()
    backward.remove()
    assert backward._own is backprop._gradient_function
    x = tf.Variable(3.0)
    with tf.GradientTape() as tape:
        y = x * x
    assert tape.gradient(y, x).numpy() == 6.0

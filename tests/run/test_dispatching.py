"""Dispatching: what a run returns, beside what Python holds, is what a gradient may still ask for."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

from terra_cx.compile.blocks import build_block
from terra_cx.run import anchor
from terra_cx.run.handover import Handover

STEPS = 40


@pytest.fixture
def sizes(monkeypatch):
    """How many values each run returns."""
    numbers = []
    issue = Handover.issue

    def issued(self, run):
        if run.complete:
            numbers.append(len(run.outputs))
        issue(self, run)

    monkeypatch.setattr(Handover, "issue", issued)
    return numbers


@pytest.fixture
def returned(sizes, monkeypatch):
    """The same, where each output may be wanted by a gradient of a later block."""

    def build(*args):
        block = build_block(*args)
        for step in block.steps:
            if step.computed and step.specs:
                step.needed.add(0)  # as if blocks had ended between the ops and their gradient before
        return block

    monkeypatch.setattr(anchor, "build_block", build)
    return sizes


def program(see, *, every=7, persistent=False, ask=True, keep=None):
    """Steps that read their loss now and then.

    Args:
        see: shows a value.
        every: steps between two readings.
        persistent: whether the tape may be asked again.
        ask: whether it is asked at all.
        keep: where tapes are kept.
    """
    weight = tf.Variable(np.eye(3, dtype="float32"))
    for number in range(STEPS):
        with tf.GradientTape(persistent=persistent) as tape:
            loss = tf.reduce_sum(tf.tanh(tf.sin(weight * 0.5)))
        weight.assign_sub(tape.gradient(loss, weight) if ask else weight * 0.1)
        if keep is not None:
            keep.append(tape)
        if number % every == 0:
            see(loss)
    return weight


@pytest.mark.parametrize("every", [1, 7, STEPS])
def test_what_no_gradient_can_ask_for_any_more_is_not_returned(returned, every):
    both_ways(lambda see: program(see, every=every), fallbacks=0)
    assert set(returned[10:]) == {1}


@pytest.mark.parametrize("options", [{"persistent": True}, {"ask": False}])
def test_a_tape_that_can_be_asked_keeps_what_it_may_ask_for(returned, options):
    both_ways(lambda see: program(see, keep=[], **options))
    assert min(returned[10:]) > 3


def test_a_gradient_of_what_was_computed_before_the_tape(returned):
    """The reading hands over a block that ends before the tape is there."""

    def before(see):
        weight = tf.Variable(np.eye(3, dtype="float32"))
        for _ in range(STEPS):
            hidden = tf.sin(weight * 0.5)
            see(tf.reduce_sum(hidden))
            with tf.GradientTape() as tape:
                tape.watch(hidden)
                loss = tf.reduce_sum(tf.tanh(hidden) * hidden)
            weight.assign_sub(tape.gradient(loss, hidden))
        return weight

    both_ways(before, fallbacks=0)


def test_what_was_held_once_is_not_returned_for_ever(sizes):
    """A summary of the activations, in one step."""

    def held_once(see):
        weight = tf.Variable(np.eye(3, dtype="float32"))
        for number in range(260):
            with tf.GradientTape() as tape:
                hidden = tf.sin(weight * 0.5)
                loss = tf.reduce_sum(tf.tanh(hidden))
            weight.assign_sub(tape.gradient(loss, weight) * 0.1)
            if number == 60:
                see(hidden, loss)
            del hidden
        return weight

    both_ways(held_once, co_executed=200)
    assert sizes[-1] < max(sizes)
    assert sizes[-1] == sizes[20]

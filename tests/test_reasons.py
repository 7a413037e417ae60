"""Each reason for not co-executing: a program that meets it, and a page that tells what to do."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

from terra_cx.levels import Level
from terra_cx.reasons import NEEDS_LIVE_TAPES, Reason
from terra_cx.run import leveling, pace, skeleton
from terra_cx.tf.opdefs import Kind
from terra_cx.trace import recorder

LATE = 30
STEPS = 60


def loop(step, steps=STEPS):
    """A program whose steps are ``step(number, w, x)``, which returns what to see."""

    def program(see):
        rng = np.random.default_rng(5)
        w = tf.Variable(tf.eye(4))
        for number in range(steps):
            see(step(number, w, tf.constant(rng.normal(size=(4, 4)).astype("float32"))))
            w.assign_sub(0.01 * tf.tanh(w))
        return w

    return program


def another_op(number, w, x):
    return tf.sin(w @ x) if number == LATE else w @ x


def another_shape(number, w, x):
    return tf.reduce_sum(x[: 2 if number == LATE else 3] @ w)


def another_attribute(number, w, x):
    return tf.reduce_sum(w @ x, axis=0, keepdims=number == LATE)


def a_shape_of_the_data(number, w, x):
    return tf.shape(tf.boolean_mask(w @ x, x[:, 0] > 0.0))


def another_history(number, w, x):
    with tf.GradientTape() as tape:
        if number == LATE:
            tape.watch(x)
        y = tf.reduce_sum(w @ x)
    return tape.gradient(y, [w])


def a_function_late(number, w, x):
    with tf.GradientTape() as tape:
        y = DOUBLED(w @ x) if number == LATE else 2.0 * (w @ x)
    return tape.gradient(y, w)


DOUBLED = tf.function(lambda x: 2.0 * x)


def a_gradient_with_an_unknown_op(number, w, x):
    with tf.GradientTape() as tape:
        y = tf.tanh(w @ x)
    return tape.gradient(y, w)


@tf.custom_gradient
def clipped(x):
    return x, lambda upstream: tf.clip_by_value(upstream, -1.0, 1.0)


def a_custom_gradient(number, w, x):
    with tf.GradientTape() as tape:
        y = clipped(w @ x)
    return tape.gradient(y, w)


def a_copy_under_a_tape(number, w, x):
    with tf.GradientTape() as tape:
        y = (w @ x).cpu()
    return tape.gradient(y, w)


def a_tape_of_the_step_before(see):
    w = tf.Variable(tf.eye(4))
    tape = y = None
    for number in range(STEPS):
        if tape is not None:
            see(tape.gradient(y, w))
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(w @ w) * float(number)
        w.assign_sub(0.01 * tf.tanh(w))


def seeds_in_the_step(number, w, x):
    tf.random.set_seed(number)
    return tf.random.uniform([2]) + x[0, 0]


def a_new_variable(number, w, x):
    return tf.Variable(w @ x) + 1.0


def steps_that_never_repeat(number, w, x):
    return tf.nn.leaky_relu(x[0, 0], alpha=number / 1000.0) if number > 20 else x[0, 0]


def plain(number, w, x):
    return tf.reduce_sum(w @ x)


def fails(*_):
    raise LookupError("on purpose")


def tanh_grad_is_unknown(monkeypatch):
    known = recorder.classify
    monkeypatch.setattr(recorder, "classify", lambda op: Kind.OWNER if op == "TanhGrad" else known(op))


def validation_fails(monkeypatch):
    monkeypatch.setattr(skeleton.Skeleton, "elsewhere", fails)


def eager_is_fast(monkeypatch):
    monkeypatch.setattr(pace, "MARGIN", 1e9)


class Wrong:
    """A function whose results are all off."""

    level, due = Level.GRAPH, False

    def __init__(self, function):
        self.function = function

    def __call__(self, feeds):
        return [result + 1 for result in self.function(feeds)]


def levels_are_wrong(monkeypatch):
    honest = leveling.function_at
    monkeypatch.setattr(leveling, "function_at", lambda *args: Wrong(honest(*args)))


def levels_do_not_compile(monkeypatch):
    monkeypatch.setattr(leveling, "function_at", fails)


PROGRAMS = {
    Reason.NEW_OP: (loop(another_op), {}),
    Reason.NEW_ARGUMENTS: (loop(another_shape), {}),
    Reason.NEW_ATTRIBUTES: (loop(another_attribute), {}),
    Reason.NEW_SHAPE: (loop(a_shape_of_the_data), {}),
    Reason.NEW_GRADIENT: (loop(another_history), {}),
    Reason.TAPE_QUERY: (loop(a_function_late), {}),
    Reason.INTERNAL_ERROR: (loop(another_op), {"patch": validation_fails, "failures": True}),
    Reason.USER_GRADIENT: (loop(a_custom_gradient), {}),
    Reason.GRADIENT_EFFECT: (loop(a_gradient_with_an_unknown_op), {"patch": tanh_grad_is_unknown}),
    Reason.OPAQUE_UNDER_TAPE: (loop(a_copy_under_a_tape), {}),
    Reason.TAPE_ACROSS_REGIONS: (a_tape_of_the_step_before, {}),
    Reason.NATIVE_EFFECT: (loop(seeds_in_the_step), {}),
    Reason.UNSETTLED: (loop(a_new_variable), {}),
    Reason.DIVERGES: (loop(steps_that_never_repeat, 110), {}),
    Reason.DOES_NOT_PAY: (loop(plain, 600), {"patch": eager_is_fast, "settings": {"pace": "measured"}}),
    Reason.GRAPH_TOO_LARGE: (loop(plain), {"settings": {"max_nodes": 3}}),
    Reason.LEVEL_DIFFERS: (loop(plain), {"patch": levels_are_wrong, "settings": {"level": "graph"}}),
    Reason.LEVEL_NOT_COMPILED: (
        loop(plain),
        {"patch": levels_do_not_compile, "settings": {"level": "graph"}},
    ),
}


@pytest.mark.parametrize("reason", Reason)
def test_it_is_given(reason, monkeypatch):
    program, more = PROGRAMS[reason]
    more.get("patch", lambda _: None)(monkeypatch)
    settings = more.get("settings", {})
    least = 15 if reason in NEEDS_LIVE_TAPES else 0
    report = both_ways(program, co_executed=least, failures=more.get("failures", False), **settings)
    told = {fallback["reason"] for fallback in report["fallbacks"]}
    whys = [anchor[key] for anchor in report["anchors"] for key in ("given_up", "live_tapes")]
    told |= {why.partition(":")[0] for why in whys if why}
    told |= {refused["reason"] for refused in report["levels"]["refused"]} if report["levels"] else set()
    assert reason in told


def test_each_has_its_place_on_the_page_with_cause_and_remedy():
    page = (Path(__file__).parents[1] / "docs" / "reasons.md").read_text()
    parts = re.split(r"^## `(.+)`$", page, flags=re.MULTILINE)[1:]
    told = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(told) == [reason.value for reason in Reason]
    assert all("**Cause.**" in text and "**Remedy.**" in text for text in told.values())

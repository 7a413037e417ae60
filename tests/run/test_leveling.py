"""Blocks at the levels of optimization: what they compute, when they fail, and why some stay at a lower one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

import terra_cx
from terra_cx.levels import TOLERANCE, Level
from terra_cx.run import contest, leveling

ABOVE = ("graph", "xla")
STEPS = 30


def ran_at(report, level, least=1):
    """The level's blocks, which there must be."""
    assert report["regions"]["co_executed"] >= 5
    assert report["levels"]["asked"] == level
    assert report["levels"]["blocks"].get(level, 0) >= least, report["levels"]
    return report["levels"]


# -- the same numbers, where no rounding is ---------------------------------------------------------------------------
# Small whole numbers as floats: sums and products of them are exact in any order, so bits can be compared.
def whole(rng, *shape):
    return rng.integers(-3, 4, shape).astype("float32")


def effects_in_order(see):
    rng = np.random.default_rng(1)
    a, b = tf.Variable(whole(rng, 4, 4)), tf.Variable(tf.zeros([4]))
    for _ in range(STEPS):
        x = tf.constant(whole(rng, 4, 4))
        first = a @ x
        a.assign(tf.clip_by_value(first, -5.0, 5.0))
        second = a @ x  # after the write
        b.assign_add(tf.reduce_sum(second, 0))
        third = b * 2.0
        b.assign(tf.math.floormod(b, 7.0))
        b.assign(b + 1.0)  # a write over a write
        see(first, second, third, b)
    return a, b


def results_nobody_reads(see):
    """Grappler prunes what is not needed; effects are, and so is what may fail."""
    rng = np.random.default_rng(2)
    a = tf.Variable(tf.zeros([3]))
    for step in range(STEPS + 6):
        x = tf.constant(whole(rng, 3))
        index = tf.constant([step % 3 if step < STEPS else 7])
        try:
            tf.gather(x * 2.0, index)
            a.assign_add(x)
        except tf.errors.InvalidArgumentError as error:
            see(str(error))
        see(a.numpy())
    return a


def a_failure_between_effects(see):
    rng = np.random.default_rng(3)
    a, b = tf.Variable(tf.zeros([3])), tf.Variable(tf.zeros([3]))
    for step in range(STEPS + 6):
        x = tf.constant(whole(rng, 3))
        index = tf.constant([step % 3, 9 if step in (STEPS, STEPS + 3) else 0])
        try:
            a.assign_add(x)
            y = tf.gather(x, index) + tf.reduce_sum(x)
            b.assign_add(tf.tile(y[:1], [3]))
        except tf.errors.InvalidArgumentError as error:
            see("refused", str(error))
        see(a, b)
    return a, b


def random_numbers(see):
    rng = np.random.default_rng(4)
    a = tf.Variable(tf.ones([64]))
    for step in range(STEPS):
        seed = tf.constant([step, 5])
        uniform = tf.random.uniform([64])
        normal, truncated = tf.random.normal([64], seed=3), tf.random.truncated_normal([64])
        stateless = tf.random.stateless_uniform([64], seed) * 2.0
        gauss, cut = tf.random.stateless_normal([64], seed), tf.random.stateless_truncated_normal([64], seed)
        dropped = tf.nn.dropout(a * tf.constant(whole(rng, 64)), 0.5)
        a.assign(tf.clip_by_value(a + dropped, -9.0, 9.0))
        see(uniform, normal, truncated, stateless, gauss, cut, dropped)
    return a


def other_types(see):
    """Integers, booleans and strings are equal at every level."""
    rng = np.random.default_rng(5)
    count = tf.Variable(tf.zeros([5], tf.int64))
    for step in range(STEPS):
        x = tf.constant(rng.integers(-(2**31), 2**31, 5), tf.int64)
        y = tf.cast(x, tf.int32) * 2_000_000_011 + step  # wraps around
        count.assign_add(x // 7 + x % 5 + tf.bitwise.right_shift(x, 3))
        words = tf.strings.join([tf.strings.as_string(y), "x"])
        cut = tf.cast(tf.cast(x, tf.float32) * 3.0, tf.int32)  # out of range
        see(
            cut,
            y,
            x > 0,
            tf.argmax(tf.cast(y, tf.float32)),
            words.numpy().tolist(),
            count,
            tf.cast(x, tf.uint8),
        )
    return count


EXACT = (
    effects_in_order,
    results_nobody_reads,
    a_failure_between_effects,
    random_numbers,
    other_types,
)


@pytest.mark.parametrize("level", ABOVE)
@pytest.mark.parametrize("program", EXACT, ids=lambda program: program.__name__)
def test_bits_that_no_order_of_sums_changes(program, level):
    ran_at(both_ways(program, level=level), level)


# -- the same numbers, up to rounding ---------------------------------------------------------------------------------
def layers(dtype, steps=STEPS):
    """Convolution, batch normalisation behind a bias, attention, softmax, momentum."""

    def program(see):
        rng = np.random.default_rng(6)

        def variable(*shape):
            return tf.Variable(tf.constant(rng.normal(size=shape) * 0.3, dtype))

        kernel, bias, q, w = variable(3, 3, 2, 8), variable(8), variable(8, 8), variable(8, 5)
        parameters = [kernel, bias, q, w]
        moments = [tf.Variable(tf.zeros_like(each)) for each in parameters]
        for _ in range(steps):
            x = tf.constant(rng.normal(size=(4, 6, 6, 2)), dtype)
            labels = tf.constant(np.eye(5)[rng.integers(0, 5, 4)], dtype)
            with tf.GradientTape() as tape:
                h = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)
                mean, variance = tf.nn.moments(h, [0, 1, 2])
                h = tf.nn.gelu((h - mean) * tf.math.rsqrt(variance + 1e-3))
                t = tf.reshape(h, [4, 36, 8])
                t = tf.nn.softmax(t @ q @ tf.transpose(t, [0, 2, 1]) / 3.0) @ t
                logits = tf.tanh(tf.reduce_mean(t, 1)) @ w
                loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
            for parameter, moment, gradient in zip(
                parameters, moments, tape.gradient(loss, parameters), strict=True
            ):
                moment.assign(0.9 * moment + 0.1 * gradient)
                parameter.assign_sub(0.05 * moment)
            see(loss.numpy(), logits.numpy())
        see(*(parameter.numpy() for parameter in parameters))

    return program


def values_of(program, **settings):
    """What a program showed, as float64, with the report."""
    tf.keras.utils.set_random_seed(20)
    seen = []

    def see(*values):
        seen.extend(np.asarray(value, np.float64) for value in values)

    if not settings:
        program(see)
        return seen, None
    made = terra_cx.co_execute(quiet=True, **settings)(program)
    made(see)
    return seen, made.last_session.report()


REFERENCE = {}


@pytest.mark.parametrize("level", ABOVE)
def test_errors_are_those_of_eager(level):
    """Measured against float64, a level's numbers are as good as eager's: that is what rounding means."""
    if not REFERENCE:
        REFERENCE["float64"], REFERENCE["float32"] = (
            values_of(layers(dtype))[0] for dtype in ("float64", "float32")
        )
    got, report = values_of(layers("float32"), level=level)
    ran_at(report, level)
    assert not report["levels"]["refused"]
    pairs = list(zip(REFERENCE["float64"], REFERENCE["float32"], got, strict=True))
    for reference, eager, ours in pairs:
        scale = np.max(np.abs(reference))
        eagers_error, our_error = (np.max(np.abs(each - reference)) for each in (eager, ours))
        assert our_error <= 4 * eagers_error + TOLERANCE[1] * scale
    assert any((ours != eager).any() for _, eager, ours in pairs)  # or the level did nothing


def test_float64_keeps_its_precision():
    def program(see):
        rng = np.random.default_rng(10)
        w = tf.Variable(tf.eye(6, dtype=tf.float64))
        for _ in range(STEPS):
            x = tf.constant(rng.normal(size=(6, 6)))
            w.assign_sub(0.1 * tf.nn.softmax(tf.tanh(w @ x) @ x))
            see(w.numpy())

    eager, _ = values_of(program)
    got, report = values_of(program, level="xla")
    ran_at(report, "xla")
    for one, other in zip(eager, got, strict=True):
        assert np.max(np.abs(one - other)) <= 1e-12 * np.max(np.abs(one))


# -- lower than asked for ---------------------------------------------------------------------------------------------
def simple(see):
    rng = np.random.default_rng(7)
    w = tf.Variable(tf.eye(4))
    for _ in range(STEPS):
        w.assign_sub(0.1 * tf.sin(w @ tf.constant(rng.normal(size=(4, 4)).astype("float32"))))
        see(w)
    return w


def lying(monkeypatch, levels, lie):
    """Functions of these levels are compiled as always, and then ``lie(function)`` is run instead."""
    honest = leveling.function_at

    def function_at(block, outputs, level):
        function = honest(block, outputs, level)
        return lie(function) if level in levels else function

    monkeypatch.setattr(leveling, "function_at", function_at)


class Wrong:
    """Its values are off by so much."""

    def __init__(self, function, by):
        self.function, self.by, self.level, self.due = function, by, function.level, False

    def __call__(self, feeds):
        return [result + tf.cast(self.by, result.dtype) for result in self.function(feeds)]


def test_a_level_that_is_too_far_off_is_refused_and_the_next_one_taken(monkeypatch):
    lying(monkeypatch, [Level.XLA], lambda function: Wrong(function, 1e-3))
    found = values_of(simple, level="xla")[1]["levels"]
    assert set(found["blocks"]) == {"graph"}
    refused = found["refused"][0]
    assert (refused["reason"], refused["level"]) == ("level-differs", "xla")
    assert {each["level"] for each in found["refused"]} == {"xla"}
    assert refused["line"].startswith("test_leveling.py:")
    assert "allowed" in refused["detail"]


def test_where_all_are_refused_the_block_is_exact(monkeypatch):
    lying(monkeypatch, [Level.XLA, Level.GRAPH], lambda function: Wrong(function, 1e-3))
    report = both_ways(simple, level="xla")  # bit for bit
    assert report["levels"]["blocks"].keys() == {"exact"}
    assert {each["level"] for each in report["levels"]["refused"]} == {"xla", "graph"}


def test_a_level_that_does_not_compile_is_no_error(monkeypatch):
    def refuse(function):
        raise tf.errors.UnimplementedError(None, None, "no kernel\nand more")

    lying(monkeypatch, [Level.XLA, Level.GRAPH], refuse)
    report = both_ways(simple, level="xla")
    assert report["levels"]["blocks"].keys() == {"exact"}
    assert report["internal_errors"] == 0
    assert {each["reason"] for each in report["levels"]["refused"]} == {"level-not-compiled"}
    assert {each["detail"] for each in report["levels"]["refused"]} == {"UnimplementedError: no kernel"}


def test_a_lost_effect_is_found_out(monkeypatch):
    lying(monkeypatch, [Level.GRAPH], lambda function: Lost(function))
    assert both_ways(simple, level="graph")["levels"]["blocks"].keys() == {"exact"}


class Lost:
    """Returns the right values and writes nothing."""

    def __init__(self, function):
        self.function, self.level, self.due = function, function.level, False

    def __call__(self, feeds):
        handles = self.function._captures
        before = [
            tf.raw_ops.ReadVariableOp(resource=h, dtype=tf.float32) for h in handles if h.dtype == tf.resource
        ]
        results = self.function(feeds)
        for handle, value in zip([h for h in handles if h.dtype == tf.resource], before, strict=True):
            tf.raw_ops.AssignVariableOp(resource=handle, value=value)
        return results


def test_what_xla_does_not_know_stays_with_its_kernels():
    def program(see):
        rng = np.random.default_rng(8)
        w = tf.Variable(tf.eye(4))
        for _ in range(STEPS):
            x = tf.constant(whole(rng, 4, 4))
            see(
                tf.strings.as_string(x @ w).numpy().tolist(),
                tf.linalg.det(x),
                tf.unique(tf.reshape(x, [-1])).y,
            )
            w.assign_add(x - x)

    ran_at(both_ways(program, level="xla"), "xla")


def test_ties_and_nan_under_xla():
    """Where XLA's kernels are other functions than TensorFlow's."""

    def program(see):
        rng = np.random.default_rng(11)
        w = tf.Variable(tf.zeros([1, 4, 4, 1]))
        for step in range(STEPS):
            x = tf.constant(rng.integers(0, 2, [1, 4, 4, 1]).astype("float32"))
            with tf.GradientTape() as tape:
                y = tf.reduce_sum(tf.nn.max_pool2d(x + w, 2, 1, "SAME"))
            w.assign_add(tf.round(tape.gradient(y, w)))
            late = math.nan if step > STEPS - 5 else 1.0
            z = tf.constant([2.0, late, 1.0]) * 2.0
            see(tf.maximum([1.0, 2.0, 3.0], z), tf.minimum([1.0, 2.0, 3.0], z))
            see(
                tf.reduce_max(z),
                tf.reduce_min(z),
                tf.nn.relu(z),
                tf.argmax(z),
                tf.clip_by_value(z, -1.0, 1.0),
            )
            with tf.GradientTape() as tape:
                tape.watch(z)
                root = tf.reduce_sum(tf.where(z > 3.0, tf.sqrt(z - 2.0), 0.0))
            see(w, tape.gradient(root, z), tf.math.top_k(z, 2).values, tf.argmin(z))

    ran_at(both_ways(program, level="xla"), "xla")


def test_nothing_to_compile():
    def program(see):
        a = tf.Variable(0, dtype=tf.int64)
        for step in range(STEPS):
            see(tf.strings.to_number(tf.strings.as_string(tf.constant(step))))
            a.assign_add(1)
            see(a.numpy())

    both_ways(program, level="xla")


# -- auto -------------------------------------------------------------------------------------------------------------
def test_auto_tries_the_levels_and_picks_one(monkeypatch):
    monkeypatch.setattr(contest, "COSTS", {Level.GRAPH: 0.0, Level.XLA: 0.0})
    monkeypatch.setattr(contest, "PAIRS", 3)

    def program(see):
        rng = np.random.default_rng(9)
        w = tf.Variable(tf.eye(4))
        for _ in range(60):
            w.assign(tf.clip_by_value(w @ tf.constant(whole(rng, 4, 4)), -3.0, 3.0))
            see(w)

    report = both_ways(program, level="auto")
    measured = report["levels"]["measured"]
    over = [each for each in measured if each["over"]]
    assert over
    for each in over:
        assert each["exact_ms"] > 0
        assert set(each["relative"]) == {"graph", "xla"}
        assert {"exact": 1.0, **each["relative"]}[each["picked"]] <= 1.0
    assert set(report["levels"]["blocks"]) >= {each["picked"] for each in measured}


def test_auto_costs_a_short_program_nothing():
    report = both_ways(simple, level="auto")
    assert report["levels"]["blocks"].keys() == {"exact"}
    assert not report["levels"]["measured"] + report["levels"]["refused"]


def test_exact_is_the_default():
    levels = both_ways(simple)["levels"]
    assert levels["asked"] == "exact"
    assert levels["blocks"].keys() == {"exact"}

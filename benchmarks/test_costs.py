"""What the pieces of a co-executed step cost Python, each beside the same thing in eager in the same run.

`make costs` prints one table per piece; a round does it `MANY` times (those of `FEW` a tenth of that). In mode
``co`` the step is co-executed in turns: the graph runs between the rounds, so that what is timed is the skeleton alone.
Nothing is asserted about times; it is asserted that the rounds were co-executed.
"""

from __future__ import annotations

import statistics

import keras
import numpy as np
import pytest
import tensorflow as tf

import terra_cx

MANY, ROUNDS, WARM = 100, 60, 40


def tanh(tensors):
    """One argument, no attribute of its own."""
    x = tensors["x"]
    for _ in range(MANY):
        x = tf.raw_ops.Tanh(x=x)
    return x


def plus(tensors):
    """By Python's operator, with TensorFlow's dispatch around it."""
    x, y = tensors["x"], tensors["y"]
    for _ in range(MANY):
        x = x + y
    return x


def times_number(tensors):
    """A raw argument, compared by value."""
    x = tensors["x"]
    for _ in range(MANY):
        x = x * 0.5
    return x


def matmul(tensors):
    """A public function with a wrapper around the op."""
    x, y = tensors["x"], tensors["y"]
    for _ in range(MANY):
        x = tf.matmul(x, y)
    return x


def read_variable(tensors):
    """The op and a read: two ops, and the tapes are asked."""
    x, w = tensors["x"], tensors["w"]
    for _ in range(MANY):
        x = x + w
    return x


def assign(tensors):
    """A write."""
    w, x = tensors["w"], tensors["x"]
    for _ in range(MANY):
        w.assign_sub(x)
    return x


def tape(tensors):
    """A tape around one op, and its gradient: many ops in eager, two validated ones here."""
    w, x = tensors["w"], tensors["x"]
    for _ in range(MANY // 10):
        with tf.GradientTape() as recorded:
            y = tf.tanh(w)
        x = x + recorded.gradient(y, w)
    return x


def layer(tensors):
    """A call of a layer of Keras's, elided."""
    x, dense = tensors["x"], tensors["dense"]
    for _ in range(MANY // 10):
        x = dense(x)
    return x


def optimizer(tensors):
    """A step of an optimizer, elided."""
    variables = tensors["dense"].trainable_variables
    for _ in range(MANY // 10):
        tensors["adam"].apply([tensors["x"], tensors["x"][0]], variables)


def fetch(tensors):
    """One op whose value Python reads: the graph runs it meanwhile."""
    x = tensors["x"]
    for _ in range(MANY // 10):
        x = tf.raw_ops.Tanh(x=x)
        x.numpy()
    return x


PIECES = [tanh, plus, times_number, matmul, read_variable, assign, tape, layer, optimizer, fetch]
FEW = (tape, layer, optimizer, fetch)


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    x, y = (tf.constant(rng.normal(size=(4, 4)).astype(np.float32) * 0.1) for _ in range(2))
    dense, adam = keras.layers.Dense(4), keras.optimizers.Adam(0.001)
    dense(x)
    return {"x": x, "y": y, "w": tf.Variable(x), "dense": dense, "adam": adam}


@pytest.mark.parametrize("mode", ["eager", "co"])
@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.__name__)
def test_cost(benchmark, piece, mode, tensors):
    benchmark.group = piece.__name__
    if mode == "eager":
        benchmark.pedantic(piece, args=(tensors,), rounds=ROUNDS, warmup_rounds=WARM)
    else:
        with terra_cx.co_execute(quiet=True, pace="turns") as session:
            benchmark.pedantic(
                piece,
                setup=lambda: (terra_cx.region(), ((tensors,), {}))[1],
                rounds=ROUNDS,
                warmup_rounds=WARM,
            )
        assert session.report()["regions"]["co_executed"] >= ROUNDS
    repeats = MANY // 10 if piece in FEW else MANY
    benchmark.extra_info["us_each"] = statistics.median(benchmark.stats.stats.data) / repeats * 1e6

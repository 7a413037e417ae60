"""Elided calls of legacy Keras (the package tf-keras): what changes what a call does takes effect in the very step."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from changes import beta, frozen_layer, learning_rate, loss_reduction, new_weights, nothing
from truth import both_ways

keras = pytest.importorskip(
    "tf_keras", reason="tf-keras is not installed; make venv does it, without its tensorflow"
)

LATE, STEPS = 30, 45


class Parts:
    """A small training program's objects."""

    def __init__(self):
        keras.utils.set_random_seed(3)
        layers = keras.layers
        self.model = keras.Sequential(
            [
                layers.Dense(
                    8, activation="relu", kernel_regularizer=keras.regularizers.L2(0.01), input_shape=(4,)
                ),
                layers.BatchNormalization(),
                layers.Dropout(0.3),
                layers.Dense(3),
            ]
        )
        self.schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.9)
        self.optimizer = keras.optimizers.Adam(0.01)
        self.optimizer.build(self.model.trainable_variables)
        self.loss = keras.losses.MeanSquaredError()
        self.metric = keras.metrics.MeanSquaredError()

    def step(self, x, y, training):
        with tf.GradientTape() as tape:
            predicted = self.model(x, training=training)
            loss = self.loss(y, predicted) + sum(self.model.losses)
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        self.metric.update_state(y, predicted)
        return loss


def new_activation(parts):
    parts.model.layers[0].activation = tf.tanh


def edited_attributes(parts):
    vars(parts.model.layers[0])["activation"] = tf.nn.softplus


def momentum(parts):
    parts.model.layers[1].momentum = 0.5


def dropout_rate(parts):
    parts.model.layers[2].rate = 0.7


def regularizer(parts):
    parts.model.layers[0].kernel_regularizer.l2 = np.float32(0.5)


def dropped_bias(parts):
    parts.model.layers[3].use_bias = False


def replaced_method(parts):
    layer = parts.model.layers[3]
    layer.call = lambda inputs: tf.tanh(inputs @ layer.kernel)


CHANGES = [
    nothing, learning_rate, beta, frozen_layer, new_activation, edited_attributes, new_weights, momentum, dropout_rate,
    regularizer, loss_reduction, dropped_bias, replaced_method,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_takes_effect_at_once(change):
    def program(see):
        rng = np.random.default_rng(1)
        parts = Parts()
        for number in range(STEPS):
            x = tf.constant(rng.normal(size=(5, 4)).astype("float32"))
            y = tf.constant(rng.normal(size=(5, 3)).astype("float32"))
            if number == LATE:
                change(parts)
            see(parts.step(x, y, training=number % 5 != 4))
            if number % 10 == 9:
                see(parts.metric.result())
        return [variable.numpy() for variable in (*parts.model.variables, *parts.optimizer.variables)]

    report = both_ways(program, co_executed=10)
    (elisions,) = [anchor["elisions"] for anchor in report["anchors"]]
    assert elisions["mismatches"] == 0
    assert elisions["elided"] >= 20, elisions
    if change is nothing:
        elided = {call["call"] for call in elisions["calls"] if call["elided"] > 5}
        assert {"Loss.__call__", "Optimizer.apply_gradients", "Layer.trainable_variables"} <= elided, elisions


def test_a_schedule_of_the_program():
    class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.01 * tf.minimum(1.0, (tf.cast(step, tf.float32) + 1.0) / 20.0)

    def program(see):
        rng = np.random.default_rng(1)
        parts = Parts()
        parts.optimizer = keras.optimizers.Adam(WarmUp(), global_clipnorm=1.0)
        for number in range(STEPS):
            if number == LATE:
                parts.optimizer.beta_1 = 0.5
            x = tf.constant(rng.normal(size=(5, 4)).astype("float32"))
            see(parts.step(x, tf.ones((5, 3)), training=False))
        return [variable.numpy() for variable in (*parts.model.variables, *parts.optimizer.variables)]

    (anchor,) = both_ways(program, co_executed=10)["anchors"]
    calls = anchor["elisions"]["calls"]
    assert anchor["elisions"]["mismatches"] == 0
    assert any("WarmUp.__call__" in (call["refused"] or "") for call in calls)
    assert any(call["call"].endswith("_internal_apply_gradients") and call["elided"] > 5 for call in calls), (
        calls
    )


def test_what_a_write_returned():
    """``apply_gradients`` returns the variable that counts steps; reading it later gives what it is then."""

    def program(see):
        parts, kept = Parts(), []
        for _ in range(STEPS):
            x = tf.ones((5, 4))
            with tf.GradientTape() as tape:
                loss = parts.loss(tf.zeros((5, 3)), parts.model(x))
            variables = parts.model.trainable_variables
            done = parts.optimizer.apply_gradients(
                zip(tape.gradient(loss, variables), variables, strict=True)
            )
            kept.append(done)
            see(done, kept[0], loss)

    report = both_ways(program, co_executed=10)
    assert any(
        call["call"] == "Optimizer.apply_gradients" and call["elided"] > 10
        for call in report["anchors"][0]["elisions"]["calls"]
    )

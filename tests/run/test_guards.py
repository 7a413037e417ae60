"""What guards of elided calls must see: each of these once was not seen, and the values differed from eager's."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

LATE, STEPS = 45, 60
"""Comparisons come after the 32nd and after the 64th call: what no guard sees shows between."""


def a_tensor_that_a_layer_holds_is_an_operand_too(see):
    a, b, c = (tf.constant(v) for v in (2.0, 3.0, 5.0))
    layer = keras.layers.Rescaling(scale=a)
    x, v = tf.ones([2]), tf.Variable(0.0)
    for step in range(STEPS):
        v.assign_add(1.0)
        layer.scale = a if step < 20 else b
        see(x * (c if step >= LATE else layer.scale), layer(x))


def a_tensor_is_marked_with_its_logits(see):
    loss = keras.losses.BinaryCrossentropy()
    z, t, v = tf.constant([-30.0, 12.0, 25.0]), tf.constant([1.0, 0.0, 1.0]), tf.Variable(0.0)
    for step in range(STEPS):
        v.assign_add(1.0)
        activation = tf.nn.sigmoid if step < LATE else keras.activations.sigmoid
        see(loss(t, activation(z * 1.5)))


def a_partial_of_other_keywords(see):
    act = functools.partial(keras.activations.elu, alpha=1.0)
    layer = keras.layers.Dense(2, activation=act, kernel_initializer="ones")
    f = functools.partial(keras.metrics.binary_accuracy, threshold=0.5)
    metric = keras.metrics.MeanMetricWrapper(f)
    x = tf.constant([[-1.0, 0.3]])
    for step in range(STEPS):
        if step == LATE:
            act.keywords["alpha"] = 0.1
            f.keywords["threshold"] = 0.9
        metric.update_state(tf.constant([[1.0]]), tf.constant([[0.7]]))
        see(layer(x), metric.result())


def a_partial_of_another_function(see):
    act = functools.partial(keras.activations.elu, alpha=1.0)
    layer = keras.layers.Dense(2, activation=act, kernel_initializer="ones")
    x, v = tf.constant([[-1.0, 0.3]]), tf.Variable(0.0)
    for step in range(STEPS):
        v.assign_add(1.0)
        if step == LATE:
            act.__setstate__((keras.activations.elu, (), {"alpha": 0.1}, None))
        see(layer(x))


def a_method_of_a_dict_and_one_of_an_array(see):
    config, array = {"lr": 0.1}, np.array(0.1)
    v, w = keras.Variable([1.0]), keras.Variable([1.0])
    one = keras.optimizers.SGD(learning_rate=functools.partial(config.get, "lr"))
    two = keras.optimizers.SGD(learning_rate=array.item)
    for step in range(STEPS):
        if step == LATE:
            config["lr"] = 0.01
            array[...] = 0.01
        one.apply([tf.constant([0.1])], [v])
        two.apply([tf.constant([0.1])], [w])
        see(v.numpy(), w.numpy())


def a_function_whose_results_are_kept(see):
    config, v = {"lr": 0.1}, keras.Variable([1.0])

    @functools.lru_cache
    def rate():
        return config["lr"]

    optimizer = keras.optimizers.SGD(learning_rate=rate)
    for step in range(STEPS):
        if step == LATE:
            config["lr"] = 0.01
            rate.cache_clear()
        optimizer.apply([tf.constant([0.1])], [v])
        see(v.numpy())


def an_attribute_goes_and_another_comes(see):
    loss = keras.losses.MeanSquaredError()
    loss.note = "anything"
    x, v = tf.constant([[-1.0, 0.3]]), tf.Variable(0.0)
    for step in range(STEPS):
        v.assign_add(1.0)
        if step == LATE:
            del loss.note
            loss.call = lambda true, pred: true * 0.0 + 7.0
        see(loss(x, x * 2.0))


def a_variable_of_the_programs_own_class(see):
    class Scaled(type(tf.Variable(0.0))):
        scale, reads = 1.0, 0

        def value(self):
            self.reads += 1
            read = super().value()
            return read if self.scale == 1.0 else read * self.scale

    v = Scaled([1.0, 2.0])
    for step in range(STEPS):
        v.assign_add([1.0, 1.0])
        if step == LATE:
            v.scale = 2.0
        x = tf.ones([2]) * 3.0
        see(tf.add(x, v), v.reads)


def a_setting_that_holds_for_a_part_of_the_step(see):
    unit, loss = keras.layers.UnitNormalization(), keras.losses.BinaryCrossentropy()
    x, v = tf.constant([[-1.0, 0.3]]), tf.Variable(0.0)
    for step in range(STEPS):
        v.assign_add(1.0)
        u = unit(x)
        if step >= LATE:
            keras.config.set_epsilon(1e-2)
        y = loss(tf.constant([[1.0, 0.0]]), tf.nn.sigmoid(x * 90.0))
        keras.config.set_epsilon(1e-7)
        see(u, y)


def an_attribute_of_an_op_is_of_another_type(see):
    x, v = tf.constant([1.0, 2.0, 3.0]), tf.Variable(0.0)
    for step in range(STEPS):
        v.assign_add(1.0)
        try:
            see(tf.cumsum(x * 2.0, exclusive=True if step < LATE else 1) + 1.0)
        except TypeError:
            see("TypeError")


def a_layer_returns_one_tensor_twice(see):
    lstm = keras.layers.LSTM(2, return_state=True, unroll=True)
    x, v = tf.ones([1, 2, 3]), tf.Variable(0.0)
    for _ in range(STEPS):
        v.assign_add(1.0)
        output, h, c = lstm(x)
        see(output is h, len({id(t) for t in (output, h, c)}), c)


def a_layer_returns_what_it_has_made_of_an_array(see):
    layer, dropout = keras.layers.Identity(), keras.layers.Dropout(0.5)
    rng, v = np.random.default_rng(3), tf.Variable(0.0)
    for _ in range(STEPS):
        v.assign_add(1.0)
        a = rng.normal(size=(2, 3)).astype("float32")
        see(layer(a) + 1.0, dropout(a, training=False) * 2.0)


@pytest.mark.parametrize(
    "program",
    [
        a_tensor_that_a_layer_holds_is_an_operand_too,
        a_tensor_is_marked_with_its_logits,
        a_partial_of_other_keywords,
        a_partial_of_another_function,
        a_method_of_a_dict_and_one_of_an_array,
        a_function_whose_results_are_kept,
        an_attribute_goes_and_another_comes,
        a_variable_of_the_programs_own_class,
        a_setting_that_holds_for_a_part_of_the_step,
        an_attribute_of_an_op_is_of_another_type,
        a_layer_returns_one_tensor_twice,
        a_layer_returns_what_it_has_made_of_an_array,
    ],
    ids=lambda program: program.__name__,
)
def test_it_takes_effect_in_the_very_step(program):
    try:
        report = both_ways(program, co_executed=20)
    finally:
        keras.config.set_epsilon(1e-7)
    counts = [anchor["elisions"] for anchor in report["anchors"]]
    assert not any(found["mismatches"] for found in counts)
    assert sum(found["elided"] + found["functions"] for found in counts) > 20, counts

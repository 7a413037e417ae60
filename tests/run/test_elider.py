"""Elided library calls: what changes what a call does takes effect in the very step, as in eager, and is not elided."""

from __future__ import annotations

import os
import random
import signal
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from changes import beta, frozen_layer, learning_rate, loss_reduction, new_weights, nothing
from truth import both_ways, run_once

import terra_cx
from terra_cx.run import elider, pace
from terra_cx.tf import native
from terra_cx.trace import library_calls

LATE = 30
STEPS = 45


def network(*layers, seed=3):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.layers.Input((4,)), *layers])


def dense(units=4, **more):
    return keras.layers.Dense(units, **more)


class Parts:
    """A small training program's objects."""

    def __init__(self, *layers, optimizer=None, loss=None):
        self.model = network(*(layers or (dense(8, activation="relu"), dense(3))))
        self.optimizer = optimizer or keras.optimizers.Adam(0.01)
        self.loss = loss or keras.losses.MeanSquaredError()
        self.metric = keras.metrics.MeanSquaredError()

    def step(self, x, y, **more):
        with tf.GradientTape() as tape:
            loss = self.loss(y, self.model(x, **more))
            loss += sum(self.model.losses)
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss


def program(make, change, step=None, late=LATE):
    """A program that makes its parts, trains, and calls ``change(parts)`` before step ``late``."""

    def run(see):
        rng = np.random.default_rng(1)
        parts = make()
        for number in range(STEPS):
            x = tf.constant(rng.normal(size=(5, 4)).astype("float32"))
            y = tf.constant(rng.normal(size=(5, 3)).astype("float32"))
            if number == late:
                change(parts)
            see((step or Parts.step)(parts, x, y))
        return [variable.numpy() for variable in (*parts.model.variables, *parts.optimizer.variables)]

    return run


def elided(report):
    return sum(anchor["elisions"]["elided"] for anchor in report["anchors"])


def compare(make, change, step=None, least=30, co_executed=12, **settings):
    """Both ways; so many calls must have been elided."""
    report = both_ways(program(make, change, step), co_executed=co_executed, **settings)
    assert elided(report) >= least, report["anchors"][0]["elisions"]
    assert sum(anchor["elisions"]["mismatches"] for anchor in report["anchors"]) == 0
    return report


def new_activation(parts):
    parts.model.layers[0].activation = keras.activations.tanh


def edited_attributes(parts):
    vars(parts.model.layers[0])["activation"] = keras.activations.tanh


def dropped_bias(parts):
    parts.model.layers[0].use_bias = False
    parts.model.layers[0].bias = None


def replaced_method(parts):
    layer = parts.model.layers[1]
    layer.call = lambda inputs: tf.tanh(inputs @ layer.kernel + layer.bias)


def clipping(parts):
    parts.optimizer.clipnorm = 0.01


def dtype_policy(parts):
    parts.model.layers[0].dtype_policy = keras.DTypePolicy("mixed_float16")


def added_loss(parts):
    """One that the layer adds when it is called."""
    parts.model.layers[0].activity_regularizer = keras.regularizers.L2(0.5)


class Doubling(keras.layers.Dense):
    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs)


def another_class(parts):
    parts.model.layers[0].__class__ = Doubling


CHANGES = [
    another_class,
    dtype_policy,
    added_loss,
    nothing,
    learning_rate,
    beta,
    frozen_layer,
    new_activation,
    edited_attributes,
    new_weights,
    dropped_bias,
    replaced_method,
    loss_reduction,
    clipping,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_takes_effect_at_once(change):
    compare(Parts, change)


def test_all_calls_of_a_plain_step_are_elided():
    report = compare(Parts, nothing, least=60)
    calls = [call for anchor in report["anchors"] for call in anchor["elisions"]["calls"]]
    assert {"Layer.__call__", "Loss.__call__", "BaseOptimizer.apply_gradients"} <= {
        call["call"] for call in calls if call["elided"] > 10 and not call["refused"]
    }


def test_regions_in_which_calls_run_to_be_compared_are_not_measured(monkeypatch):
    measured, compared = [], set()
    ended, compare_call = pace.Pace.ended, elider.Elider._compared

    def noting(self, seconds, disturbed, rare):
        if not rare:
            measured.append(seconds)
        ended(self, seconds, disturbed, rare)

    def comparing(self, *args):
        compared.add(self._skeleton.log.number)
        return compare_call(self, *args)

    monkeypatch.setattr(pace.Pace, "ended", noting)
    monkeypatch.setattr(elider.Elider, "_compared", comparing)
    report = compare(Parts, nothing, pace="measured")
    assert compared
    assert 0 < len(measured) <= report["regions"]["co_executed"] - len(compared)


def test_what_a_step_does_only_later_is_elided():
    """An agent learns once its memory is full. The new way is recorded without its calls, for it begins in a region."""

    def run(see):
        rng = np.random.default_rng(1)
        parts, memory = Parts(), tf.Variable(tf.zeros([5, 4]))
        parts.model(memory), parts.optimizer.build(parts.model.trainable_variables)
        for number in range(90):
            x = tf.constant(rng.normal(size=(5, 4)).astype("float32"))
            memory.assign_add(x)
            see(parts.step(x, x[:, 1:]) if number >= 50 else tf.argmax(x[0]))
        return [variable.numpy() for variable in (*parts.model.variables, *parts.optimizer.variables)]

    report = both_ways(run, co_executed=60)
    assert elided(report) >= 80, report["anchors"][0]["elisions"]


def test_calls_of_several_shapes_are_elided():
    """Each is noted once it has been called so often, with what follows it: that is no fallback, and nothing is new."""

    def run(see):
        rng = np.random.default_rng(1)
        parts = Parts()
        for number in range(150):
            x = tf.constant(rng.normal(size=(3 + number % 3, 4)).astype("float32"))
            see(parts.step(x, x[:, 1:]))
        return [variable.numpy() for variable in (*parts.model.variables, *parts.optimizer.variables)]

    report = both_ways(run, co_executed=120, fallbacks=2)
    (anchor,) = report["anchors"]
    assert anchor["relaxed"] is None
    models = [call for call in anchor["elisions"]["calls"] if call["of"] == "Sequential" and call["ops"]]
    assert [call["elided"] > 8 for call in models] == [True] * 3, models
    assert 4 <= report["regions"]["traced"] <= 10, report["regions"]


def test_what_is_trusted_is_not_compared_anew_when_a_step_is_traced_again():
    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        if parts.calls >= LATE - 10:
            parts.model.layers[0].activation = (keras.activations.relu, tf.nn.relu)[parts.calls % 2]
        loss = parts.step(x, y)
        parts.metric.update_state(y, x[:, 1:])
        return loss

    report = compare(Parts, nothing, step)
    assert report["regions"]["traced"] > 3  # because of the model's calls
    (metric,) = [call for call in report["anchors"][0]["elisions"]["calls"] if "update_state" in call["call"]]
    assert metric["elided"] > 15, metric


def test_a_call_is_given_what_was_computed_before_it_was_noted():
    """The rest of the region is recorded from the call on; its argument is a placeholder of what came before."""

    def run(see):
        rng = np.random.default_rng(1)
        keras.utils.set_random_seed(3)
        first, second, v = keras.layers.Dense(4), keras.layers.Dense(3), tf.Variable(0.0)
        for number in range(100):
            v.assign_add(1.0)
            hidden = first(tf.constant(rng.normal(size=(5, 4)).astype("float32")))
            see(second(hidden) if number >= 30 else hidden)

    report = both_ways(run, co_executed=60)
    calls = report["anchors"][0]["elisions"]["calls"]
    assert [call["refused"] for call in calls] == [None, None], calls
    assert min(call["elided"] for call in calls) > 15, calls


def small(step, steps):
    """``step(number, x)`` in a loop that writes a variable, so that it is one of steps."""

    def run(see):
        rng, v = np.random.default_rng(1), tf.Variable(0.0)
        keras.utils.set_random_seed(3)
        for number in range(steps):
            v.assign_add(1.0)
            see(step(number, tf.constant(rng.normal(size=(5, 4)).astype("float32")), v))

    return run


def test_a_call_that_reads_a_tensor_from_before_it_was_noted():
    def run(see):
        normalise = keras.layers.BatchNormalization()

        def step(number, x, v):
            flag = tf.not_equal(v, 101.0)  # False in one step
            return normalise(x, training=flag) if number >= 30 else x

        small(step, 120)(see)

    report = both_ways(run, co_executed=60)
    assert "reads the value" in report["anchors"][0]["elisions"]["calls"][0]["refused"]


def test_a_tensor_that_is_held_and_passed():
    held = tf.constant(np.random.default_rng(2).normal(size=(5, 4)).astype("float32"))
    scale = keras.layers.Rescaling(held)
    report = both_ways(small(lambda number, x, v: scale(held if number < 60 else x), 90), co_executed=50)
    assert "holds as well" in report["anchors"][0]["elisions"]["calls"][0]["refused"]


class Mode(str):
    """One without a hash, because it has a comparison of its own."""

    def __eq__(self, other):
        return str.__eq__(self, other)


def test_an_argument_without_a_hash():
    layer = keras.layers.Dropout(0.5, seed=1)
    both_ways(
        small(lambda number, x, v: layer(x, training=Mode("") if number > 25 else False), 60), co_executed=30
    )


def test_new_objects_in_each_step_are_noted_ever_less_often():
    def step(number, x, v):
        return keras.losses.MeanSquaredError()(x, x * v)

    report = both_ways(small(step, 1000), co_executed=900)
    assert report["regions"]["traced"] < 12, report["regions"]


def test_not_with_no_elide():
    report = both_ways(program(Parts, nothing), co_executed=20, no_elide=True)
    assert report["anchors"][0]["elisions"] is None


@pytest.mark.parametrize("pace", ["turns", "overlapped"])
def test_in_both_paces(pace):
    compare(Parts, learning_rate, pace=pace)


def test_a_dropout_rate_and_the_training_flag():
    def make():
        return Parts(dense(8), keras.layers.Dropout(0.3, seed=2), dense(3))

    def rate(parts):
        parts.model.layers[1].rate = 0.6

    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        return parts.step(x, y, training=parts.calls % 4 != 0)

    compare(make, rate, step, least=20)


def test_arrays_are_passed():
    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        labels = y.numpy() if parts.calls != LATE else np.zeros([5, 3], np.float32)
        with tf.GradientTape() as tape:
            loss = parts.loss(labels, parts.model(x.numpy()))
        variables = parts.model.trainable_variables
        parts.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    report = compare(Parts, learning_rate, step, least=60)
    calls = report["anchors"][0]["elisions"]["calls"]
    assert {"Layer.__call__", "Loss.__call__"} <= {call["call"] for call in calls if call["elided"] > 10}


def test_arrays_that_several_ops_are_given():
    """Labels of a metric, pictures of a batch normalisation: each is one tensor, made of the array once."""

    def program(see):
        keras.utils.set_random_seed(3)
        rng = np.random.default_rng(1)
        model = keras.Sequential(
            [
                keras.layers.Input((4, 4, 1)),
                keras.layers.BatchNormalization(),
                keras.layers.Flatten(),
                dense(3),
            ]
        )
        loss, metric = (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            keras.metrics.SparseCategoricalAccuracy(),
        )
        optimizer = keras.optimizers.SGD(0.1)
        for step in range(STEPS):
            pictures = rng.normal(size=(5, 4, 4, 1)).astype("float32")
            labels = rng.integers(0, 3, 5) if step < LATE else np.array([0, 0, 0, 0, 1])
            with tf.GradientTape() as tape:
                logits = model(pictures, training=True)
                value = loss(labels, logits)
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(value, variables), variables)
            metric.update_state(labels, logits)
            see(value, metric.result())
        return model.variables

    report = both_ways(program, co_executed=12)
    calls = report["anchors"][0]["elisions"]["calls"]
    assert {
        ("MeanMetricWrapper.update_state", "SparseCategoricalAccuracy"),
        ("Layer.__call__", "Sequential"),
    } <= {(call["call"], call["of"]) for call in calls if call["elided"] > 10}, calls


def test_an_array_that_stays_the_same_and_then_does_not():
    labels = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")

    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        with tf.GradientTape() as tape:
            loss = parts.loss(labels if parts.calls < LATE else y.numpy(), parts.model(x))
        variables = parts.model.trainable_variables
        parts.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    report = compare(Parts, nothing, step, least=60)
    calls = report["anchors"][0]["elisions"]["calls"]
    assert any(call["call"] == "Loss.__call__" and call["elided"] > 20 for call in calls)


def test_losses_and_metrics_that_a_layer_adds():
    class Watched(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense, self.mean, self.factor = dense(8), keras.metrics.Mean(), 0.0

        def call(self, x):
            y = self.dense(x)
            if self.factor:
                self.add_loss(self.factor * tf.reduce_sum(tf.square(y)))
            self.mean.update_state(y)
            return y

    def adds(parts):
        parts.model.layers[0].factor = 0.25

    def step(parts, x, y):
        loss = parts.step(x, y)
        return loss, parts.model.layers[0].mean.result(), len(parts.model.losses), len(parts.model.metrics)

    compare(lambda: Parts(Watched(), dense(3)), adds, step, least=20, co_executed=8)


def scoped(scope):
    """Forward, in some steps in a scope; one cannot train there what was made outside."""

    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        loss = parts.step(x, y)
        if parts.calls < LATE or parts.calls % 2:
            return loss, parts.loss(y, parts.model(x))
        with scope():
            return loss, parts.loss(y, parts.model(x))

    return step


def test_a_device_scope(monkeypatch):
    monkeypatch.setattr(native, "only_device", type(None))  # as if there were a choice
    compare(Parts, nothing, scoped(lambda: tf.device("CPU:0")), co_executed=8)


def test_a_distribution_scope():
    compare(Parts, nothing, scoped(lambda: tf.distribute.OneDeviceStrategy("CPU:0").scope()))


def test_equal_arrays_that_become_different_ones():
    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        first, second = y.numpy(), y.numpy().astype(float if parts.calls % 2 else np.float32)
        if parts.calls >= LATE:
            second = second * 2
        return parts.loss(first, second), parts.step(x, y)

    compare(Parts, nothing, step)


def test_a_schedule():
    def make():
        return Parts(
            optimizer=keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9))
        )

    def decay(parts):
        parts.optimizer._learning_rate.decay_rate = 0.5

    compare(make, decay)


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of the program's."""

    def __init__(self, top):
        self.top = top

    def __call__(self, step):
        return self.top * tf.minimum(1.0, (tf.cast(step, tf.float32) + 1.0) / 20.0)


def higher(parts):
    parts.optimizer._learning_rate.top = 0.1


def clipped(parts):
    parts.optimizer.global_clipnorm = 0.01


def decayed(parts):
    parts.optimizer.weight_decay = 0.5


@pytest.mark.parametrize(
    "change", [nothing, higher, beta, clipped, decayed], ids=lambda change: change.__name__
)
def test_a_schedule_of_the_program(change):
    """Its Python runs each time, within the optimizer's, whose other Python is elided."""

    def make():
        return Parts(optimizer=keras.optimizers.AdamW(WarmUp(0.01), global_clipnorm=1.0))

    calls = compare(make, change, least=60)["anchors"][0]["elisions"]["calls"]
    assert {call["call"] for call in calls if "WarmUp.__call__" in (call["refused"] or "")}
    inner = {"BaseOptimizer._clip_gradients", "TFOptimizer._backend_update_step"}
    assert inner <= {call["call"] for call in calls if call["elided"] > 5}


@pytest.mark.parametrize("change", [nothing, learning_rate, beta], ids=lambda change: change.__name__)
def test_gradients_in_slices(change):
    """The gradient of a table that is looked up in: the optimizer's call is elided, the slices' tensors checked."""

    def make():
        parts = Parts()
        parts.table = tf.Variable(np.random.default_rng(2).normal(size=(7, 4)).astype("float32"))
        return parts

    def step(parts, x, y):
        rows = tf.argsort(x[0])[: 2 + len(x) % 2]
        with tf.GradientTape() as tape:
            loss = parts.loss(y[:2], parts.model(tf.gather(parts.table, rows))[:2])
        variables = [parts.table, *parts.model.trainable_variables]
        gradients = tape.gradient(loss, variables)
        assert isinstance(gradients[0], tf.IndexedSlices)
        parts.optimizer.apply(gradients, variables)
        return loss, parts.table

    calls = compare(make, change, step)["anchors"][0]["elisions"]["calls"]
    assert any(call["call"] == "BaseOptimizer.apply" and call["elided"] > 10 for call in calls)


def backwards(parts):
    parts.model.layers[1].go_backwards = True


def other_activation(parts):
    parts.model.layers[1].cell.activation = keras.activations.sigmoid


@pytest.mark.parametrize(
    ("layer", "change"),
    [
        (keras.layers.LSTM, nothing),
        (keras.layers.LSTM, backwards),
        (keras.layers.GRU, other_activation),
    ],
)
def test_recurrent_layers(layer, change):
    def make():
        parts = Parts(optimizer=keras.optimizers.Adam(0.01))
        layers = [keras.layers.Embedding(9, 4, mask_zero=True), layer(3), dense(3)]
        parts.model = keras.Sequential([keras.layers.Input((4,)), *layers])
        return parts

    def step(parts, x, y):
        return parts.step(tf.cast(tf.abs(x) * 4.0, tf.int32) % 9, y)

    calls = compare(make, change, step)["anchors"][0]["elisions"]["calls"]
    elided = {(call["call"], call["of"]) for call in calls if call["elided"] > 10}
    assert ("Layer.__call__", "Sequential") in elided, calls


def test_batch_normalisation_and_regularisers():
    def make():
        return Parts(
            dense(8, kernel_regularizer=keras.regularizers.L2(0.01)),
            keras.layers.BatchNormalization(),
            dense(3),
        )

    def momentum(parts):
        parts.model.layers[1].momentum = 0.5

    report = compare(make, momentum, lambda parts, x, y: parts.step(x, y, training=True))
    calls = report["anchors"][0]["elisions"]["calls"]
    assert any(call["of"] == "Sequential" and call["call"] == "Layer.__call__" for call in calls)


def test_a_regulariser_is_changed_inside():
    def make():
        return Parts(dense(8, kernel_regularizer=keras.regularizers.L2(0.01)), dense(3))

    def stronger(parts):
        parts.model.layers[0].kernel_regularizer.l2 = 0.5

    compare(make, stronger)


def test_metrics():
    def step(parts, x, y):
        loss = parts.step(x, y)
        parts.metric.update_state(y, parts.model(x))
        return loss, parts.metric.result()

    def reset(parts):
        parts.metric.reset_state()

    compare(Parts, reset, step, least=60)


def test_layers_inside_a_layer_of_the_programs():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = dense(8)
            self.calls = 0

        def call(self, x):
            self.calls += 1
            return tf.tanh(self.inner(x)) * (2.0 if self.calls > 40 else 1.0)

    def frozen(parts):
        parts.model.layers[0].inner.activation = keras.activations.tanh

    report = compare(lambda: Parts(Block(), dense(3)), frozen)
    calls = report["anchors"][0]["elisions"]["calls"]
    assert any("Block" in (call["refused"] or "") or call["of"] == "Sequential" for call in calls)


def test_a_layer_is_replaced():
    def make():
        parts = Parts()
        parts.scale = keras.layers.Rescaling(0.5)
        return parts

    def other(parts):
        parts.scale = keras.layers.Rescaling(2.0)

    compare(make, other, lambda parts, x, y: parts.step(parts.scale(x), y))


def test_another_batch_size_now_and_then():
    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        rows = 5 if parts.calls % 5 else 3
        return parts.step(x[:rows], y[:rows])

    compare(Parts, learning_rate, step)


def test_another_dtype():
    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        return parts.step(tf.cast(x, "float64") if parts.calls > LATE else x, y)

    compare(Parts, nothing, step)


def test_an_argument_that_becomes_another_one():
    """In the trace one tensor is passed twice; then it is two."""

    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        found = parts.model(x)
        other = found if parts.calls < LATE else found * 0.5
        return parts.loss(found, other), parts.step(x, y)

    compare(Parts, nothing, step)


def test_a_tape_around_the_step():
    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        if parts.calls < LATE:
            return parts.step(x, y)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                loss = parts.loss(y, parts.model(x))
            gradients = tape.gradient(loss, parts.model.trainable_variables)
            size = tf.add_n([tf.reduce_sum(gradient**2) for gradient in gradients])
        return parts.step(x, y), outer.gradient(size, x)

    compare(Parts, nothing, step)


def test_a_gradient_to_the_models_inside():
    def step(parts, x, y):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            hidden = parts.model.layers[0](x)
            loss = parts.loss(y, parts.model.layers[1](hidden))
        found = (
            tape.gradient(loss, [x, hidden]),
            [variable.shape for variable in tape.watched_variables()],
        )
        return found, parts.step(x, y)

    compare(Parts, new_activation, step)


def test_a_divergence_after_elided_calls_rebuilds_the_tape():
    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        with tf.GradientTape() as tape:
            out = parts.model(x)
            loss = parts.loss(y, tf.sin(out) if parts.calls in (LATE, LATE + 3) else out)
        variables = parts.model.trainable_variables
        parts.optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    compare(Parts, nothing, step)


def test_a_function_of_the_library_is_patched(monkeypatch):
    from keras.src.layers.core import dense as module

    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        monkeypatch.setattr(module.ops, "add", double if parts.calls >= LATE else plain)
        return parts.step(x, y)

    plain = module.ops.add

    def double(a, b):
        return plain(plain(a, b), b)

    compare(Parts, nothing, step, least=20)


def test_a_method_of_a_class_is_patched(monkeypatch):
    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        own = keras.layers.Layer.call if parts.calls < LATE else (lambda self, inputs: inputs * 2.0)
        if parts.calls >= LATE:
            monkeypatch.setattr(
                keras.layers.Dense, "call", lambda self, inputs: own(self, inputs @ self.kernel)
            )
        found = parts.step(x, y)
        monkeypatch.undo()
        return found

    compare(Parts, nothing, step, least=20)  # what means one thing for a part of a step is not elided


def test_settings_of_keras():
    def epsilon(parts):
        keras.config.set_epsilon(0.1)

    def make():
        keras.config.set_epsilon(1e-7)
        return Parts(dense(8), keras.layers.LayerNormalization(epsilon=1e-3), dense(3, activation="softmax"),
                     loss=keras.losses.CategoricalCrossentropy())  # fmt: skip

    try:
        compare(make, epsilon)
    finally:
        keras.config.set_epsilon(1e-7)


def test_errors_are_the_programs(capsys):
    def step(parts, x, y):
        parts.calls = getattr(parts, "calls", 0) + 1
        try:
            return parts.step(x[:, :3] if parts.calls == LATE else x, y)
        except ValueError as error:
            return str(error)[:40]

    compare(Parts, nothing, step)


def test_functional_models_with_two_inputs_and_masks():
    def make():
        keras.utils.set_random_seed(3)
        words = keras.Input((6,), dtype="int32")
        numbers = keras.Input((4,))
        found = keras.layers.Embedding(10, 4, mask_zero=True)(words)
        found = keras.layers.GRU(3)(found)
        out = keras.layers.Dense(3)(keras.layers.Concatenate()([found, numbers]))
        parts = Parts()
        parts.model = keras.Model([words, numbers], out)
        parts.optimizer = keras.optimizers.RMSprop(0.01)
        return parts

    def step(parts, x, y):
        words = tf.cast(tf.abs(tf.concat([x, x[:, :2]], 1)) * 3.0, tf.int32) % 10
        with tf.GradientTape() as tape:
            loss = parts.loss(y, parts.model([words, x]))
        variables = parts.model.trainable_variables
        parts.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    calls = both_ways(program(make, learning_rate, step), co_executed=15)["anchors"][0]["elisions"]["calls"]
    found = {(call["call"], call["of"]) for call in calls if call["elided"] > 10}
    # The optimizer's is refused: RMSprop reads the value of a tensor that it makes of a gradient in slices.
    assert {("Layer.__call__", "Functional"), ("Loss.__call__", "MeanSquaredError")} <= found, calls
    assert sum(call["ops"] * call["elided"] for call in calls) > 2000


HIDDEN = """
import os
import keras

class Weighted(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self._convert_input_args = False

    def call(self, x, values=None):
        return x * float(values.max()) if len(values) else x

class Scale(keras.layers.Layer):
    def call(self, x):
        return x * 2.0 if os.environ.get("TERRA_TEST_SCALE") is None else x + x * 2.0
"""


@pytest.fixture
def hidden():
    """Layers that count as Keras's own."""
    module = types.ModuleType("keras.hidden")
    exec(compile(HIDDEN, os.path.dirname(keras.__file__) + "/hidden.py", "exec"), vars(module))
    return module


def test_what_is_computed_of_an_array_is_no_constant(hidden):
    """All arrays have the same largest element, up to some step."""

    def program(see):
        weighted = hidden.Weighted()
        rng = np.random.default_rng(1)
        w = tf.Variable(tf.ones([2, 2]))
        for step in range(STEPS):
            values = np.append(rng.random(3), 2.0 if step < LATE else 3.0)
            x = weighted(w, values=values)
            w.assign_add(0.01 * tf.tanh(x))
            see(x)

    report = both_ways(program, co_executed=12)
    [refused] = [
        call["refused"] for call in report["anchors"][0]["elisions"]["calls"] if call["of"] == "Weighted"
    ]
    assert "array" in refused


def test_a_difference_disables_the_call_and_is_told(capfd, monkeypatch, hidden):
    """A layer that depends on what nobody looks at: wrong until it is compared, and then never again."""

    def program(see):
        scale = hidden.Scale()
        w = tf.Variable(tf.ones([2, 2]))
        for step in range(90):
            if step == LATE:
                monkeypatch.setenv("TERRA_TEST_SCALE", "1")
            x = scale(w * float(step))
            w.assign_add(0.01 * tf.tanh(x))
            see(x)

    outcome = run_once(program, {})
    [anchor] = outcome.report["anchors"]
    assert anchor["elisions"]["mismatches"] == 1
    told = capfd.readouterr().err
    assert "Layer.__call__ of Scale" in told
    assert "it issued other ops" in told
    assert outcome.seen[-1] != outcome.seen[-2]


def test_a_failure_while_a_call_is_noted_only_refuses_it(monkeypatch):
    def failing(*_):
        raise LookupError("injected")

    monkeypatch.setattr(library_calls._Noted, "_result", failing)
    report = both_ways(program(Parts, nothing), co_executed=12)
    refused = [call["refused"] for call in report["anchors"][0]["elisions"]["calls"]]
    assert sum("LookupError: injected" in (why or "") for why in refused) >= 3


@pytest.mark.parametrize("name", ["_is_like", "_holds", "_plan", "_made", "_difference"])
def test_a_failure_of_ours_is_not_the_programs(monkeypatch, capfd, name):
    calls = []

    def failing(self, *args):
        calls.append(name)
        if len(calls) == 20:
            raise AttributeError("injected")
        return own(self, *args)

    own = getattr(elider.Elider, name)
    monkeypatch.setattr(elider.Elider, name, failing)
    if name == "_made":
        monkeypatch.setattr(elider.Elider, "_stretch", elider.Elider._made)
    both_ways(program(Parts, nothing), co_executed=12, failures=True)
    assert "injected" in capfd.readouterr().err


class Interrupt:
    """A profile function that sends SIGINT at the ``nth`` return of a native function in the elider."""

    def __init__(self, nth):
        self.nth = nth
        self.places = 0

    def __call__(self, frame, event, argument):
        if event in ("call", "c_return") and frame.f_code.co_filename == elider.__file__:
            self.places += 1
            if self.places == self.nth:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_an_elided_call():
    """It comes out where the call stands, and the program can go on."""

    def program(interrupt, caught):
        rng = np.random.default_rng(1)
        parts = Parts()
        for step in range(STEPS):
            x = tf.constant(rng.normal(size=(5, 4)).astype("float32"))
            y = tf.constant(rng.normal(size=(5, 3)).astype("float32"))
            if step == LATE:
                sys.setprofile(interrupt)
            try:
                parts.step(x, y)
            except KeyboardInterrupt:
                caught.append(step)
            finally:
                sys.setprofile(None)
        return [np.isfinite(variable.numpy()).all() for variable in parts.model.variables]

    counter = Interrupt(0)
    assert all(terra_cx.co_execute(quiet=True)(program)(counter, []))
    assert counter.places > 100
    for nth in [50, *random.Random(1).sample(range(1, counter.places + 1), 2)]:
        caught, interrupt = [], Interrupt(nth)
        run = terra_cx.co_execute(quiet=True)(program)
        assert all(run(interrupt, caught)), nth
        # Where blocks are cut, and so how many places there are, depends on the machine.
        assert caught == ([LATE] if interrupt.places == nth else []), nth
        assert caught or nth > 100
        report = run.last_session.report()
        assert report["internal_errors"] == 0, nth
        assert report["regions"]["co_executed"] >= 20, nth


def test_a_run_that_is_handed_over_in_the_midst_of_a_call(monkeypatch):
    """What the call would have told the tapes is taken back: it runs, and its own code tells them."""
    own, frozen = elider.Elider._commit, []

    def commit(self, call, plan, made):
        skeleton, run = self._skeleton, self._skeleton.run
        if len(frozen) < 3 and call.accesses and run is plan[0][0] and run.pos and not run.frozen:
            skeleton.publish()  # as another thread does that reads a value
            frozen.append(skeleton.log)
        own(self, call, plan, made)

    def answered(self, call, leaves):
        log = self._skeleton.log
        events, times = list(log.events), len(frozen)
        answer = own_elided(self, call, leaves)
        if len(frozen) > times:
            assert answer is None
            assert log.events == events
        return answer

    own_elided = elider.Elider._elided
    monkeypatch.setattr(elider.Elider, "_commit", commit)
    monkeypatch.setattr(elider.Elider, "_elided", answered)
    both_ways(program(Parts, nothing, lambda parts, x, y: parts.step(tf.tanh(x), y)), co_executed=5)
    assert len(frozen) == 3

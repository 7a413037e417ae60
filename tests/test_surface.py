"""What Python and eager TensorFlow allow in a step, a small program each, compared with eager bit for bit.

`CO_EXECUTED` must be co-executed for most of their steps. `EXPLAINED` are not, and the reason is told.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import cProfile
import gc
import itertools
import os
import pickle
import queue
import sys
import tempfile
import threading
import tracemalloc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

from terra_cx.reasons import Reason

STEPS = 40


def batches(*shape, steps=STEPS):
    rng = np.random.default_rng(11)
    return [rng.normal(size=shape).astype(np.float32) for _ in range(steps)]


def matrix(*shape):
    return tf.Variable(np.random.default_rng(2).normal(size=shape).astype(np.float32) * 0.4)


def descend(tape, loss, variables, rate=0.05):
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        variable.assign_sub(rate * gradient)


def learn(w, x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(x @ w - 1.0))
    descend(tape, loss, [w])
    return loss


# -- tapes -----------------------------------------------------------------------------------------------------------
def a_tape_that_is_reset(see):
    w = matrix(3, 3)
    for x in batches(2, 3):
        with tf.GradientTape() as tape:
            tf.reduce_sum(tf.exp(x @ w))
            tape.reset()
            loss = tf.reduce_mean(tf.square(x @ w))
        descend(tape, loss, [w])
        see(loss)
    return w


def a_tape_that_watches_only_what_it_is_told(see):
    w, v = matrix(3, 3), matrix(3, 3)
    for x in batches(2, 3):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(w)
            loss = tf.reduce_mean(tf.square(x @ w @ v))
        found = tape.gradient(loss, [w, v], unconnected_gradients=tf.UnconnectedGradients.ZERO)
        w.assign_sub(0.1 * found[0])
        see(loss, found)
    return w


def third_derivatives(see):
    a = tf.Variable(0.7)
    for x in batches():
        with tf.GradientTape() as one:
            with tf.GradientTape() as two:
                with tf.GradientTape() as three:
                    y = tf.sin(a * x) * a
                first = three.gradient(y, a)
            second = two.gradient(first, a)
        third = one.gradient(second, a)
        a.assign_sub(0.01 * third)
        see(first, second, third)
    return a


def output_gradients_and_targets_in_lists(see):
    w = matrix(3, 3)
    for x in batches(2, 3):
        weight = tf.exp(-tf.constant(x))
        with tf.GradientTape() as tape:
            outs = [tf.tanh(x @ w), tf.square(x @ w)]
        found = tape.gradient(outs, [[w], w, outs[0]], output_gradients=[tf.constant(x), weight])
        w.assign_sub(0.1 * found[1])
        see(found)
    return w


def output_gradients_that_change_their_identity(see):
    w = matrix(3, 3)
    inputs = zip(batches(3, 3, steps=60), batches(3, 3, steps=60)[::-1], strict=True)
    for step, (x, a) in enumerate(inputs):
        a, before = tf.constant(a), tf.tanh(x)
        b = a if step % 3 == 0 else tf.constant(x)
        with tf.GradientTape(persistent=True) as tape:
            y = tf.tanh(x @ w)
            z = y * y
            if step % 4 == 1:
                z = z * a
            if step % 5 == 2:
                z = z + before
        first = tape.gradient([y, z], w, output_gradients=[a, b])
        second = tape.gradient(y, [w], output_gradients=before if step % 2 else first)
        see(first, second, tape.gradient(z, y, output_gradients=second[0]))
        w.assign_sub(0.01 * tf.tanh(first))
    return w


def an_output_gradient_that_is_a_source_of_the_outer_tape(see):
    w = matrix(3)
    for x in batches(3):
        x = tf.constant(x)
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(x)
            y = w * 2.0
            with tf.GradientTape() as inner:
                inner.watch(y)
                z = y * y
            found = inner.gradient(z, y, output_gradients=x)
        see(outer.gradient(found, [x, w, y]), outer.gradient(y, [w, x], output_gradients=x))
        w.assign_add(0.001 * x)
    return w


def a_jacobian(see):
    w = matrix(3, 3)
    for x in batches(2, 3):
        with tf.GradientTape(persistent=True) as tape:
            y = tf.tanh(x @ w)
        found = tape.jacobian(y, w, experimental_use_pfor=False)
        w.assign_sub(0.1 * tf.reduce_sum(found, axis=[0, 1]))
        see(found)
    return w


def a_batch_jacobian_with_pfor(see):
    w = matrix(3, 3)
    for x in batches(2, 3):
        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.tanh(x @ w)
        found = tape.batch_jacobian(y, x)
        w.assign_sub(0.01 * tf.reduce_mean(found, axis=0))
        see(found)
    return w


def forward_mode(see):
    w = matrix(3, 3)
    for x in batches(2, 3):
        with tf.autodiff.ForwardAccumulator(w, tf.ones([3, 3])) as forward:
            y = tf.tanh(x @ w)
        w.assign_sub(0.01 * tf.matmul(x, forward.jvp(y), transpose_a=True))
        see(y)
    return w


# -- state -----------------------------------------------------------------------------------------------------------
def what_writes_return_is_used_under_a_tape(see):
    w, count, flags = matrix(3), tf.Variable(1), tf.Variable([True, False])
    frozen = tf.Variable(matrix(3), trainable=False)
    for x in batches(3):
        with tf.GradientTape(persistent=True) as tape:
            y = w.assign_add(0.1 * tf.constant(x)) * 2.0
            kept = frozen.assign(0.1 * y)
            loss = tf.reduce_sum(y * y) + tf.reduce_sum(kept * w)
            less = w.assign_sub(tf.tanh(w))
            other = tf.reduce_sum(less * less) + loss
        see(tape.gradient(loss, w), tape.gradient(other, [w]), other, count.assign_add(count))
        see(flags.assign(tf.logical_not(flags)), [v.name for v in tape.watched_variables()], less.trainable)
        kept.assign(kept * 0.5)
        see(frozen, w.assign(w), less.assign_add(x).assign_sub(x))
    return [w, count, flags, frozen]


def scatters_into_a_variable(see):
    table = matrix(8, 3)
    for step, x in enumerate(batches(2, 3)):
        table.scatter_sub(tf.IndexedSlices(0.1 * tf.constant(x), [step % 8, (step + 3) % 8]))
        see(tf.reduce_sum(table))
    return table


def rows_are_written_in_all_ways_and_some_do_not_exist(see):
    table, counts, memory = matrix(8, 3), tf.Variable(tf.zeros([8], tf.int32)), matrix(8, 4)
    for step, x in enumerate(batches(2, 3)):
        rows = tf.constant([step % 8, (step * 5 + 3) % (8 if step % 7 else 11)])
        values = tf.tanh(x)
        memory[step % 8].assign(tf.reduce_sum(values) * tf.ones([4]))
        try:
            table.scatter_mul(tf.IndexedSlices(tf.ones([2, 3]) * 0.9, rows))
            table.scatter_add(tf.IndexedSlices(values, rows))
            counts.scatter_nd_add(rows[:, None], [1, 1])
        except tf.errors.InvalidArgumentError as error:
            see(type(error).__name__)
        table.scatter_max(tf.IndexedSlices(values - 1.0, [1, 2]))
        memory.scatter_nd_update([[step % 8, 1], [0, step % 4]], values[0, :2])
        see(tf.reduce_sum(table), counts[step % 8])
    return [table, counts, memory]


def embeddings_and_the_optimizers_that_write_their_rows(see):
    for make in (
        lambda: keras.optimizers.SGD(0.1),
        lambda: keras.optimizers.RMSprop(0.01),
        lambda: keras.optimizers.Adagrad(0.1),
    ):
        model = keras.Sequential(
            [keras.layers.Embedding(20, 4), keras.layers.Flatten(), keras.layers.Dense(1)]
        )
        optimizer = make()
        rng = np.random.default_rng(5)
        for _ in range(STEPS):
            tokens = rng.integers(0, 20, (4, 6))
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(tokens) - 1.0))
            variables = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            see(loss)
        see(*variables, *optimizer.variables)


def legacy_optimizers_that_write_rows(see):
    tf_keras = pytest.importorskip("tf_keras")
    table = tf.Variable(np.linspace(-1, 1, 40, dtype="float32").reshape(10, 4))
    optimizers = [
        tf_keras.optimizers.Adam(0.05),
        tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9),
        tf_keras.optimizers.legacy.Adagrad(0.1),
        tf_keras.optimizers.legacy.RMSprop(0.01, momentum=0.5),
        tf_keras.optimizers.legacy.Adam(0.01),
    ]
    rng = np.random.default_rng(5)
    for _ in range(STEPS):
        tokens = rng.integers(0, 10, 6)
        for optimizer in optimizers:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(tf.gather(table, tokens) - 1.0))
            optimizer.apply_gradients([(tape.gradient(loss, table), table)])
        see(loss)
    return [
        table,
        *(v for o in optimizers for v in (o.variables() if callable(o.variables) else o.variables)),
    ]


def a_sliced_variable_is_assigned(see):
    table = matrix(4, 3)
    for step, x in enumerate(batches(3)):
        table[step % 2].assign(tf.tanh(x))
        see(tf.reduce_sum(table))
    return table


def an_average_by_hand_and_one_of_tensorflow(see):
    w = matrix(3, 3)
    shadow = tf.Variable(w)
    average = tf.train.ExponentialMovingAverage(0.9)
    for x in batches(2, 3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x @ w))
        descend(tape, loss, [w])
        average.apply([w])
        shadow.assign(0.9 * shadow + 0.1 * w)
        see(loss)
    return [w, shadow, average.average(w)]


def a_generator_of_random_numbers(see):
    w, generator = matrix(3, 3), tf.random.Generator.from_seed(4)
    for x in batches(2, 3):
        w.assign_add(0.01 * generator.normal([3, 3]) + 0.01 * tf.reduce_mean(x))
        see(generator.uniform([2]))
    return [w, generator.state]


def stateless_random_numbers(see):
    w = matrix(3, 3)
    for step, x in enumerate(batches(2, 3)):
        w.assign_add(0.01 * tf.random.stateless_normal([3, 3], [step, 1]))
        see(tf.reduce_sum(x @ w))
    return w


def a_lookup_table(see):
    w = matrix(3, 3)
    words = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a", "b"], [1, 2]), 0)
    for step, x in enumerate(batches(2, 3)):
        found = words.lookup(tf.constant(["a", "b", "c"][step % 3]))
        w.assign_sub(0.01 * tf.cast(found, tf.float32) * tf.tanh(tf.matmul(x, x, transpose_a=True)))
        see(found)
    return w


def a_tensor_array(see):
    w = matrix(3, 3)
    for x in batches(2, 3):
        rows = tf.TensorArray(tf.float32, size=3)
        with tf.GradientTape() as tape:
            h = tf.constant(x)
            for index in range(3):
                h = tf.tanh(h @ w)
                rows = rows.write(index, h)
            loss = tf.reduce_mean(rows.stack())
        descend(tape, loss, [w])
        see(loss)
    return w


def a_queue(see):
    w, waiting = matrix(3, 3), tf.queue.FIFOQueue(5, [tf.float32], shapes=[[2, 3]])
    for x in batches(2, 3):
        waiting.enqueue(tf.constant(x))
        w.assign_sub(0.01 * tf.reduce_mean(waiting.dequeue()) * tf.tanh(w))
        see(waiting.size())
    return w


def checkpoints_are_written_and_read(see):
    w = matrix(3, 3)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = tf.train.Checkpoint(w=w)
        for step, x in enumerate(batches(2, 3)):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(x @ w - 1.0))
            descend(tape, loss, [w])
            if step == 22:
                path = checkpoint.write(f"{folder}/c")
            if step == 30:
                checkpoint.read(path).assert_consumed()
            see(loss)
    return w


def keras_weights_set_by_hand(see):
    layer = keras.layers.Dense(3)
    layer.build((2, 3))
    for step, x in enumerate(batches(2, 3)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(layer(x)))
        descend(tape, loss, layer.trainable_variables)
        if step % 15 == 14:
            layer.set_weights([value * 0.5 for value in layer.get_weights()])
        see(loss)
    return layer.get_weights()


def mixed_precision_with_loss_scaling(see):
    model = keras.Sequential(
        [
            keras.layers.Dense(4, activation="relu", dtype="mixed_float16"),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )
    model.build((2, 3))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), dynamic_growth_steps=5)
    optimizer.build(model.trainable_variables)
    for x in batches(2, 3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x)))
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(scaled, model.trainable_variables), model.trainable_variables)
        see(loss)
    return [model.get_weights(), optimizer.variables]


def metrics_and_batch_normalisation(see):
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.build((4, 3))
    accuracy, optimizer = keras.metrics.SparseCategoricalAccuracy(), keras.optimizers.Adam(0.01)
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer.build(model.trainable_variables)
    for step, x in enumerate(batches(4, 3)):
        y = (x[:, 0] > 0).astype(np.int64)
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss = entropy(y, logits)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        accuracy.update_state(y, logits)
        if step % 10 == 9:
            see(float(accuracy.result()), loss)
            accuracy.reset_state()
    return [model.get_weights(), accuracy.variables]


def summaries_in_every_step(see):
    w = matrix(3, 3)
    with tempfile.TemporaryDirectory() as folder:
        with tf.summary.create_file_writer(folder).as_default():
            for step, x in enumerate(batches(2, 3)):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(x @ w))
                descend(tape, loss, [w])
                tf.summary.write("loss", loss, step=step)
                tf.summary.write("w", w, step=step)
        (file,) = os.listdir(folder)
        events = tf.data.TFRecordDataset(f"{folder}/{file}").as_numpy_iterator()
        values = [
            value for event in map(tf.compat.v1.Event.FromString, events) for value in event.summary.value
        ]
        see([(value.tag, value.tensor.tensor_content, list(value.tensor.float_val)) for value in values])
    return w


def legacy_keras(see):
    tf_keras = pytest.importorskip(
        "tf_keras", reason="tf-keras is not installed; make venv does it, without its tensorflow"
    )
    tf_keras.utils.set_random_seed(20)  # it has a generator of its own once any test has done so
    layers = [tf_keras.layers.Dense(4, activation="relu"), tf_keras.layers.BatchNormalization()]
    model = tf_keras.Sequential([*layers, tf_keras.layers.Dropout(0.3), tf_keras.layers.Dense(1)])
    model.build((None, 3))
    optimizer, metric = tf_keras.optimizers.Adam(0.01), tf_keras.metrics.Mean()
    optimizer.build(model.trainable_variables)
    for step, x in enumerate(batches(4, 3)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - 1.0))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        metric.update_state(loss)
        if step % 10 == 9:
            see(metric.result())
            optimizer.learning_rate = 0.01 / (step + 1)
    return [model.get_weights(), [v.numpy() for v in optimizer.variables]]


class Bilinear(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = matrix(3, 3)
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return tf.reduce_sum(x @ self.w * x, axis=1)


def a_module_that_counts_and_is_exported(see):
    module = Bilinear()
    for x in batches(2, 3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(module(x)))
        descend(tape, loss, module.trainable_variables)
        see(loss)
    module.serve = tf.function(module.__call__, input_signature=[tf.TensorSpec([None, 3])])
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder)
        see(tf.saved_model.load(folder).serve(tf.ones([1, 3])))
    return [module.w, module.calls]


# -- control and data ------------------------------------------------------------------------------------------------
def a_tree_network(see):
    w, leaf = matrix(6, 3), matrix(5, 3)
    trees = [(0, (1, 2)), ((3, 4), (0, 1)), ((1, 1), 2)]

    def encode(tree):
        if isinstance(tree, int):
            return leaf[tree][None]
        return tf.tanh(tf.concat([encode(tree[0]), encode(tree[1])], axis=1) @ w)

    for step in range(STEPS + 10):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(encode(trees[step % 3]) - 0.3))
        found = tape.gradient(loss, [w, leaf])
        w.assign_sub(0.1 * found[0])
        leaf.assign_sub(0.1 * tf.convert_to_tensor(found[1]))
        see(loss)
    return [w, leaf]


def a_reinforcement_loop_that_reads_each_action(see):
    w, rng = matrix(3, 2), np.random.default_rng(6)
    state = np.ones(3, np.float32)
    for _ in range(STEPS):
        with tf.GradientTape() as tape:
            logits = tf.constant(state)[None] @ w
            action = int(tf.random.categorical(logits, 1, seed=1)[0, 0])
            state = np.tanh(state + (0.3 if action else -0.3) * rng.normal(size=3)).astype(np.float32)
            loss = -tf.nn.log_softmax(logits)[0, action] * float(state.sum())
        descend(tape, loss, [w])
        see(action, loss)
    return w


def inner_loops_of_meta_learning(see):
    w = matrix(3, 1)
    for x in batches(2, 3):
        with tf.GradientTape() as outer:
            fast = tf.identity(w)
            for _ in range(2):
                with tf.GradientTape() as inner:
                    inner.watch(fast)
                    loss = tf.reduce_mean(tf.square(x @ fast - 1.0))
                fast = fast - 0.1 * inner.gradient(loss, fast)
            meta = tf.reduce_mean(tf.square(x @ fast + 0.5))
        descend(outer, meta, [w])
        see(meta)
    return w


def sequences_of_changing_length(see):
    w, rng = matrix(3, 3), np.random.default_rng(3)
    for _ in range(STEPS + 20):
        x = rng.normal(size=(int(rng.integers(2, 5)), 1, 3)).astype(np.float32)
        with tf.GradientTape() as tape:
            h = tf.zeros([1, 3])
            for frame in tf.unstack(tf.constant(x)):
                h = tf.tanh(frame + h @ w)
            loss = tf.reduce_mean(tf.square(h - 0.5))
        descend(tape, loss, [w])
        see(loss)
    return w


def exceptions_steer_the_step(see):
    class Skip(Exception):
        pass

    def part(x, w, step):
        y = tf.tanh(x @ w)
        if step % 4 == 3:
            raise Skip(step)
        return y

    w = matrix(3, 3)
    for step, x in enumerate(batches(2, 3, steps=STEPS + 10)):
        try:
            w.assign_sub(0.01 * tf.matmul(x, part(x, w, step), transpose_a=True))
        except Skip as skip:
            w.assign_add(0.001 * tf.ones([3, 3]))
            see(skip.args)
        finally:
            see(tf.reduce_sum(w))
    return w


def a_refused_op_under_a_tape_that_is_asked_later(see):
    w = matrix(4, 3)
    for step in range(STEPS + 30):
        with tf.GradientTape(persistent=True) as tape:
            total = tf.reduce_sum(tf.tanh(w))
            try:
                rows = tf.gather(w, [step % 6, 0])
                loss = tf.reduce_sum(rows * rows) + total
            except tf.errors.InvalidArgumentError:
                loss = total * 2.0
            if step % 7 == 3:
                loss = loss * tf.reduce_max(w)
        found = tf.convert_to_tensor(tape.gradient(loss, w))
        see(found, tape.gradient(total, w))
        w.assign_sub(0.01 * found)
    return w


def ragged_sparse_string_and_complex_tensors(see):
    w = matrix(3, 3)
    for step, x in enumerate(batches(4, 3)):
        ragged = tf.RaggedTensor.from_row_lengths(x, [1, 3])
        sparse = tf.sparse.from_dense(tf.nn.relu(tf.constant([[1.0, 0.0, 2.0]])))
        spectrum = tf.signal.fft(tf.cast(tf.constant(x), tf.complex64))
        w.assign_sub(0.01 * tf.matmul(tf.constant(x), tf.math.abs(spectrum), transpose_a=True))
        see(tf.reduce_sum(ragged, axis=1), tf.sparse.sparse_dense_matmul(sparse, w))
        see(tf.strings.join(["step", tf.strings.as_string(step)]))
    return w


def a_dataset_that_ends_and_begins_again(see):
    w = matrix(3, 3)
    data = tf.data.Dataset.from_tensor_slices(np.stack(batches(3))).shuffle(9, seed=2).batch(7)
    for _ in range(6):
        for x in data:
            see(learn(w, x))
    return w


def a_validation_set_after_each_epoch(see):
    w = matrix(3, 2)
    train = tf.data.Dataset.from_tensor_slices(np.stack(batches(2, 3, steps=10)))
    held = tf.data.Dataset.from_tensor_slices(np.stack(batches(2, 3, steps=3)))
    for epoch in range(6):
        for x in train:
            see(learn(w, x))
        if epoch % 2:
            see(tf.add_n([tf.reduce_sum(tf.tanh(x @ w)) for x in held]))
        for x in held:
            see(tf.reduce_mean(x @ w))
    return w


def elements_are_taken_here_and_there(see):
    w, taken = matrix(3, 2), []
    data = tf.data.Dataset.from_tensor_slices(np.stack(batches(2, 3, steps=250)))
    rest, few = iter(data), iter(data.take(50))
    for step, x in enumerate(batches(2, 3, steps=80)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x @ w - 1.0))
            for _ in range(step % 2 + 2 * (step % 11 == 10)):
                loss += tf.reduce_mean(tf.square(next(rest) @ w))
            more = next(few, None)
            if more is not None:
                loss += tf.reduce_sum(more) * 0.01
        descend(tape, loss, [w])
        taken.append(next(rest))
        see(loss, taken[-1])
    return [w, taken, next(rest)]


def a_refused_op_before_an_iterator_ends(see):
    w, lost = matrix(3, 2), []
    data = tf.data.Dataset.from_tensor_slices(np.stack(batches(2, 3, steps=3)))
    for step, x in enumerate(batches(2, 3)):
        w.assign_sub(0.1 * tf.tanh(tf.transpose(x) @ x @ w))
        try:
            for y in data:
                row = tf.gather(w, [3 if step % 9 == 8 else step % 3])
                w.assign_add(0.01 * tf.tile(row, [3, 1]) * tf.reduce_mean(y))
        except tf.errors.InvalidArgumentError:
            lost.append(step)
        see(w, lost)
    return w


def numpy_functions_between(see):
    w = matrix(3, 3)
    for x in batches(2, 3):
        y = tf.numpy_function(lambda a: np.sort(a, axis=1), [tf.constant(x) @ w], tf.float32)
        w.assign_sub(0.01 * tf.matmul(x, tf.ensure_shape(y, [2, 3]), transpose_a=True))
        see(y)
    return w


def a_function_of_tensorflow_in_the_step(see):
    w = matrix(3, 3)
    activate = tf.function(lambda x: tf.tanh(x) * 0.5)
    for x in batches(2, 3):
        w.assign_sub(0.01 * tf.matmul(x, activate(x @ w), transpose_a=True))
        see(tf.reduce_sum(w))
    return w


def maps_and_loops_of_tensorflow(see):
    w = matrix(3, 3)
    for x in batches(2, 3):
        with tf.GradientTape() as tape:
            y = tf.map_fn(lambda row: tf.tanh(tf.linalg.matvec(w, row)), tf.constant(x))
            _, total = tf.while_loop(
                lambda i, _: i < 3,
                lambda i, total, y=y: (i + 1, total * 0.5 + tf.reduce_mean(y)),
                [0, tf.constant(0.0)],
            )
        descend(tape, total, [w])
        see(total)
    return w


def a_vectorized_map(see):
    w = matrix(3, 3)
    for x in batches(2, 3):
        y = tf.vectorized_map(lambda row: tf.tanh(tf.linalg.matvec(w, row)), tf.constant(x))
        w.assign_sub(0.01 * tf.matmul(x, y, transpose_a=True))
        see(y)
    return w


def fit_with_callbacks(see):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)
            self.history_of_losses = []

        def call(self, x, training=False):
            return self.dense(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            self.history_of_losses.append(loss)
            return {"loss": loss}

    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.1 / (epoch + 1)
            see(logs["loss"])

    model = Model()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.5), run_eagerly=True)
    x = np.concatenate(batches(2, 3))
    model.fit(x, x[:, :1], batch_size=8, epochs=5, verbose=0, callbacks=[Halve()], shuffle=False)
    return [model.get_weights(), model.history_of_losses]


# -- the interpreter -------------------------------------------------------------------------------------------------
def a_loader_in_a_thread(see):
    w, ready = matrix(3, 3), queue.Queue(3)

    def load():
        for x in batches(2, 3):
            ready.put(x * 0.5)
        ready.put(None)

    thread = threading.Thread(target=load)
    thread.start()
    while (x := ready.get()) is not None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x @ w))
        descend(tape, loss, [w])
        see(loss)
    thread.join()
    return w


def values_read_by_a_pool(see):
    w = matrix(3, 3)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = []
        for x in batches(2, 3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(x @ w))
            descend(tape, loss, [w])
            waiting.append(pool.submit(float, loss))
        see([future.result() for future in waiting])
    return w


def steps_of_asyncio(see):
    w = matrix(3, 3)

    async def train():
        for x in batches(2, 3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(x @ w))
            descend(tape, loss, [w])
            await asyncio.sleep(0)
            see(loss)

    asyncio.run(train())
    return w


def copies_pickles_and_weak_references(see):
    w, seen = matrix(3, 3), []
    for step, x in enumerate(batches(2, 3)):
        y = tf.tanh(x @ w)
        reference = weakref.ref(y)
        twin = copy.deepcopy(y)
        w.assign_sub(0.01 * tf.matmul(x, pickle.loads(pickle.dumps(y)) + twin - y, transpose_a=True))
        seen.append((reference() is y, len({y.ref(), y.ref()})))
        del y
        if step % 9 == 0:
            gc.collect()
        seen.append(reference() is None)
    see(seen)
    return w


def a_profiler_around_some_steps(see):
    w = matrix(3, 3)
    profiler = cProfile.Profile()
    for step, x in enumerate(batches(2, 3)):
        if step == 20:
            profiler.enable()
        if step == 25:
            profiler.disable()
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x @ w))
        descend(tape, loss, [w])
        see(loss)
    return w


def traced_memory(see):
    w = matrix(3, 3)
    tracemalloc.start()
    try:
        for x in batches(2, 3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(x @ w))
            descend(tape, loss, [w])
            see(loss, tracemalloc.get_traced_memory()[0] > 0)
    finally:
        tracemalloc.stop()
    return w


def a_trace_function_of_the_programs_own(see):
    """As a debugger or coverage has one."""
    w, lines = matrix(3, 3), []

    def trace(frame, event, argument):
        if frame.f_code.co_name == "square":
            lines.append((event, frame.f_lineno - frame.f_code.co_firstlineno))
            return trace
        return None

    def square(x):
        y = x @ w
        return tf.reduce_mean(tf.square(y))

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for x in batches(2, 3):
            with tf.GradientTape() as tape:
                loss = square(x)
            descend(tape, loss, [w])
            see(loss)
    finally:
        sys.settrace(before)
    see(lines)
    return w


def iterators_of_python(see):
    w = matrix(3, 3)
    pairs = zip(itertools.cycle([1.0, 0.5]), map(tf.constant, batches(2, 3)), strict=False)
    for factor, x in pairs:
        parts = [tf.tanh(row) * factor for row in x]
        w.assign_sub(0.01 * tf.reduce_sum(tf.stack([part * w for part in parts]), axis=0))
        see({f"part {n}": part for n, part in enumerate(parts)})
    return w


def a_variable_that_is_replaced(see):
    box = {"w": matrix(3, 3)}
    for step, x in enumerate(batches(2, 3, steps=STEPS + 20)):
        if step == 30:
            box["w"] = tf.Variable(box["w"] * 0.5)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x @ box["w"]))
        descend(tape, loss, [box["w"]])
        see(loss)
    return box["w"]


# -- live tapes ------------------------------------------------------------------------------------------------------
def a_custom_gradient_with_python_state(see):
    w, seen = matrix(3, 3), []

    @tf.custom_gradient
    def bounded(y):
        def backward(upstream):
            seen.append(len(seen))
            return tf.clip_by_value(upstream, -limit, limit) * (2.0 if len(seen) > 25 else 1.0)

        return tf.sin(y), backward

    for step, x in enumerate(batches(2, 3)):
        limit = 0.05 if step < 30 else 0.02
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(bounded(x @ w) * 0.3)
        descend(tape, loss, [w])
        see(loss, len(seen))
    return w


def a_custom_gradient_with_variables(see):
    w, v = matrix(3, 3), matrix(3, 3)

    @tf.custom_gradient
    def scaled(y):
        def backward(upstream, variables):
            return upstream * 2.0, [tf.matmul(y, upstream, transpose_a=True) for _ in variables]

        return y @ v, backward

    for x in batches(2, 3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(scaled(tf.tanh(x @ w))))
        descend(tape, loss, [w, v])
        see(loss)
    return w, v


def layers_that_are_computed_again(see):
    w, v = matrix(3, 3), matrix(3, 3)
    layers = [tf.recompute_grad(lambda y, m=m: tf.tanh(y @ m) + y) for m in (w, v)]
    for x in batches(2, 3):
        with tf.GradientTape() as tape:
            y = tf.constant(x)
            for layer in layers:
                y = layer(y)
            loss = tf.reduce_mean(tf.square(y))
        descend(tape, loss, [w, v])
        see(loss)
    return w, v


def second_derivatives_of_a_custom_gradient(see):
    w = matrix(3, 3)

    @tf.custom_gradient
    def cube(y):
        return y * y * y, lambda upstream: upstream * 3.0 * y * y

    for x in batches(2, 3):
        with tf.GradientTape() as outer:
            with tf.GradientTape(persistent=True) as tape:
                y = tf.reduce_sum(cube(x @ w))
            first = tape.gradient(y, w)
            loss = tf.reduce_mean(tf.square(first))
        again = tape.gradient(y, w)
        descend(outer, loss, [w], 0.001)
        see(first, again, loss)
    return w


def functions_of_tensorflow_under_a_tape(see):
    w, v = matrix(3, 3), matrix(3, 3)
    dense = tf.function(lambda y: tf.tanh(y @ v))
    for step, x in enumerate(batches(2, 3)):
        with tf.GradientTape() as tape:
            y = dense(x @ w)
            if step % 5 == 4:
                y = dense(y)
            loss = tf.reduce_mean(tf.square(y))
        descend(tape, loss, [w, v])
        see(loss)
    return w, v


def host_callbacks_under_a_tape(see):
    w = matrix(3, 3)
    for x in batches(2, 3):
        with tf.GradientTape() as tape:
            y = tf.py_function(lambda a: tf.tanh(a) * 2.0, [x @ w], tf.float32)
            loss = tf.reduce_mean(tf.square(tf.ensure_shape(y, [2, 3])))
        descend(tape, loss, [w])
        see(loss)
    return w


def copies_under_a_tape(see):
    w = matrix(3, 3)
    for step, x in enumerate(batches(2, 3)):
        with tf.GradientTape() as tape:
            y = tf.identity(tf.tanh(x @ w)).cpu()
            loss = tf.reduce_mean(tf.square(y) if step % 4 else y)
        descend(tape, loss, [w])
        see(loss)
    return w


def batches_that_are_made_while_python_computes(see):
    """TensorFlow pulls ahead by itself (docs/design/input.md): each step waits until the next batch is made."""
    w, made, rows = matrix(3, 3), threading.Condition(), np.stack(batches(3))
    numbers = []

    def make(number):
        with made:
            numbers.append(int(number))
            made.notify()
        return rows[number]

    data = tf.data.Dataset.range(STEPS).map(
        lambda n: tf.ensure_shape(tf.py_function(make, [n], tf.float32), [3])
    )
    for step, row in enumerate(data):
        with made:
            assert made.wait_for(lambda ahead=step + 2: len(numbers) >= min(ahead, STEPS), timeout=60)
        w.assign_add(0.01 * row[:, None] * w)
        see(tf.reduce_sum(w))
    return w


CO_EXECUTED = [
    batches_that_are_made_while_python_computes,
    a_custom_gradient_with_python_state,
    a_custom_gradient_with_variables,
    layers_that_are_computed_again,
    second_derivatives_of_a_custom_gradient,
    functions_of_tensorflow_under_a_tape,
    host_callbacks_under_a_tape,
    copies_under_a_tape,
    a_tape_that_is_reset,
    a_tape_that_watches_only_what_it_is_told,
    third_derivatives,
    output_gradients_and_targets_in_lists,
    output_gradients_that_change_their_identity,
    an_output_gradient_that_is_a_source_of_the_outer_tape,
    a_jacobian,
    what_writes_return_is_used_under_a_tape,
    scatters_into_a_variable,
    rows_are_written_in_all_ways_and_some_do_not_exist,
    embeddings_and_the_optimizers_that_write_their_rows,
    legacy_optimizers_that_write_rows,
    a_sliced_variable_is_assigned,
    an_average_by_hand_and_one_of_tensorflow,
    a_generator_of_random_numbers,
    stateless_random_numbers,
    a_lookup_table,
    a_tensor_array,
    a_queue,
    checkpoints_are_written_and_read,
    keras_weights_set_by_hand,
    mixed_precision_with_loss_scaling,
    metrics_and_batch_normalisation,
    summaries_in_every_step,
    legacy_keras,
    a_module_that_counts_and_is_exported,
    a_tree_network,
    a_reinforcement_loop_that_reads_each_action,
    inner_loops_of_meta_learning,
    sequences_of_changing_length,
    exceptions_steer_the_step,
    a_refused_op_under_a_tape_that_is_asked_later,
    ragged_sparse_string_and_complex_tensors,
    a_dataset_that_ends_and_begins_again,
    a_validation_set_after_each_epoch,
    elements_are_taken_here_and_there,
    a_refused_op_before_an_iterator_ends,
    numpy_functions_between,
    a_function_of_tensorflow_in_the_step,
    maps_and_loops_of_tensorflow,
    fit_with_callbacks,
    a_loader_in_a_thread,
    values_read_by_a_pool,
    steps_of_asyncio,
    copies_pickles_and_weak_references,
    a_profiler_around_some_steps,
    traced_memory,
    a_trace_function_of_the_programs_own,
    iterators_of_python,
    a_variable_that_is_replaced,
]
EXPLAINED = {
    a_batch_jacobian_with_pfor: Reason.UNSETTLED,
    forward_mode: Reason.NATIVE_EFFECT,
    a_vectorized_map: Reason.UNSETTLED,
}


@pytest.mark.parametrize("program", CO_EXECUTED, ids=lambda program: program.__name__)
def test_it_is_co_executed(program):
    both_ways(program, co_executed=15)


def test_the_end_of_an_inner_iterator_is_no_fallback():
    report = both_ways(a_validation_set_after_each_epoch, co_executed=40)
    assert sum(fallback["count"] for fallback in report["fallbacks"]) <= 3, report["fallbacks"]


@pytest.mark.parametrize("program", EXPLAINED, ids=lambda program: program.__name__)
def test_it_is_explained(program):
    report = both_ways(program, co_executed=0)
    told = {fallback["reason"] for fallback in report["fallbacks"]}
    told |= {anchor["given_up"].partition(":")[0] for anchor in report["anchors"] if anchor["given_up"]}
    assert EXPLAINED[program] in told

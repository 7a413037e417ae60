"""Programs that were once computed wrongly, or not co-executed at all: a few lines of each."""

from __future__ import annotations

import gc
import time
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

STEPS = 50


def variable(*shape):
    return tf.Variable(np.random.default_rng(1).normal(size=shape).astype(np.float32))


def rows(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def batches_of_three_sizes(rng, w):
    """A gradient was fed the constant of another op, after a region that had diverged."""
    x = rows(rng, int(rng.choice([3, 4, 5])), 4)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(tf.matmul(x, w))) / 2.0
    return loss, tape


def a_branch_with_an_operand_of_numpy(rng, w):
    """The same, by a branch."""
    with tf.GradientTape() as tape:
        y = tf.matmul(rows(rng, 4, 4), w)
        y = y - tf.reduce_mean(y, axis=[0, 1])
        if rng.random() < 0.3:
            y = tf.matmul(np.eye(4, dtype=np.float32) / 2, y)
        loss = tf.reduce_mean(y * y) + 1e-3 * tf.reduce_sum(w * w)
    return loss, tape


def logits_of_three_dimensions(rng, w):
    """A list with a tensor in it is refused by native code, which the skeleton did not know."""
    labels = rng.integers(0, 4, size=(2, 3))
    with tf.GradientTape() as tape:
        logits = tf.matmul(rows(rng, 2, 3, 4), w)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    return loss, tape


def a_list_in_a_list(rng, w):
    """The same, one level further down (`tf.repeat`)."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(tf.repeat(w, 2, axis=1) - rows(rng, 4, 8)))
    return loss, tape


def an_output_of_unknown_shape_that_nobody_takes(rng, w):
    """Any unknown shape under the tape made the gradient a new one in each step."""
    boxes = rng.random((12, 4)).astype(np.float32)
    with tf.GradientTape() as tape:
        y = tf.matmul(rows(rng, 3, 4), w)
        kept = tf.image.non_max_suppression(boxes, boxes[:, 0], 6, iou_threshold=0.4).numpy()
        loss = tf.reduce_sum(y * y) * float(kept.sum() + 1) * 0.01
    return loss, tape


def an_output_of_unknown_shape_that_the_gradient_takes(rng, w):
    """And the kernel's shape is not the one that inference tells."""
    with tf.GradientTape() as tape:
        x = tf.reshape(tf.matmul(rows(rng, 8, 4), w), [2, 2, 2, 4])
        y, _, _ = tf.compat.v1.nn.fused_batch_norm(
            x, np.ones(4, np.float32), np.zeros(4, np.float32), epsilon=1e-5
        )
        loss = tf.reduce_sum(y * y * 0.3 + y)
    return loss, tape


def a_shape_that_varies_under_the_tape(rng, w):
    """Here it matters: the gradient's ops hold shapes."""
    with tf.GradientTape() as tape:
        y = tf.matmul(rows(rng, 6, 4), w)
        chosen = tf.boolean_mask(y, tf.reduce_sum(y, axis=1) > 0.0)
        loss = tf.reduce_sum(chosen * chosen) * 0.01
    return loss, tape


def seventy_turns_of_pure_python(rng, w):
    """The visits of a loop inside the step were taken for another place of the program."""
    total = 0.0
    for turn in range(70):
        total += turn * 1e-5
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(tf.matmul(rows(rng, 3, 4), w))) * total
    return loss, tape


def trained(step, prepare=lambda: None):
    """A program of so many steps, each of which gives a loss and its tape."""

    def program(see):
        prepare()
        w, rng = variable(4, 4), np.random.default_rng(5)
        for _ in range(STEPS):
            loss, tape = step(rng, w)
            w.assign_sub(0.05 * tape.gradient(loss, w))
            see(loss)
        return w

    return program


@pytest.mark.parametrize(
    ("step", "co_executed"),
    [
        (batches_of_three_sizes, 10),
        (a_branch_with_an_operand_of_numpy, 15),
        (logits_of_three_dimensions, 25),
        (a_list_in_a_list, 25),
        (an_output_of_unknown_shape_that_nobody_takes, 30),
        (an_output_of_unknown_shape_that_the_gradient_takes, 30),
        (a_shape_that_varies_under_the_tape, 0),
        (seventy_turns_of_pure_python, 30),
    ],
)
def test_it_is_right_now(step, co_executed):
    both_ways(trained(step), co_executed=co_executed)


def test_a_long_preparation_does_not_hide_the_step():
    def count():
        counts = [0] * 7
        for index in range(30_000):
            counts[index % 7] += 1

    both_ways(trained(batches_of_three_sizes, count), co_executed=5)


def test_an_update_written_by_hand_after_micro_batches_is_part_of_the_step():
    def program(see):
        parameters, rng = [variable(4, 4), variable(4, 4)], np.random.default_rng(5)
        for _ in range(STEPS):
            total = [0.0] * len(parameters)
            for _ in range(2):
                with tf.GradientTape() as tape:
                    y = rows(rng, 3, 4)
                    for parameter in parameters:
                        y = tf.tanh(tf.matmul(y, parameter))
                    loss = tf.reduce_mean(tf.square(y))
                total = [a + g for a, g in zip(total, tape.gradient(loss, parameters), strict=True)]
            for parameter, gradient in zip(parameters, total, strict=True):
                parameter.assign_sub(0.1 * gradient)
            see(loss)
        return parameters

    report = both_ways(program, co_executed=30, fallbacks=0)
    assert len(report["anchors"]) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("count", [2, 3, 5, 8, 9, 10, 17, 20])
def test_sums_of_many_are_eagers_to_the_last_bit(count, dtype):
    """In a graph another kernel adds them up, in another order."""

    def program(see):
        w, rng = variable(16, 16), np.random.default_rng(5)
        for _ in range(30):
            terms = [tf.cast(tf.sin(w * float(1 + index)), dtype) for index in range(count)]
            see(tf.add_n(terms))
            w.assign(rows(rng, 16, 16))
        return w

    both_ways(program, co_executed=10)


def test_thousands_of_turns_without_ops_between_two_steps():
    """A tokenizer used up the survey's visits, though none of them tells anything."""

    def program(see):
        w, rng = variable(4, 4), np.random.default_rng(5)
        for _ in range(STEPS):
            for index in range(6000):
                index // 7
            loss, tape = logits_of_three_dimensions(rng, w)
            w.assign_sub(0.05 * tape.gradient(loss, w))
            see(loss)
        return w

    both_ways(program, co_executed=25)


def test_a_preparation_that_takes_long(monkeypatch):
    """How long a survey lasted was taken for what it had cost, and the next one came minutes later."""
    monkeypatch.setattr("terra_cx.session._SURVEY_GRACE", 0.5)

    def load():
        for _ in range(2500):
            time.sleep(0.0004)

    both_ways(trained(logits_of_three_dimensions, load), co_executed=25)


def test_the_shape_of_a_tensor_whose_shape_only_its_value_tells():
    """How legacy Keras sums the gradients of an embedding: the number of different rows was expected to be the same."""

    def program(see):
        w, rng = tf.Variable(tf.ones([16, 3])), np.random.default_rng(5)
        for _ in range(60):
            ids = tf.constant(rng.integers(0, 16, 12))
            unique, places = tf.unique(ids)
            rows = tf.math.unsorted_segment_sum(tf.gather(w, ids), places, tf.shape(unique)[0])
            w.scatter_sub(tf.IndexedSlices(0.01 * rows, unique))
            see(tf.reduce_sum(rows))
        return w

    report = both_ways(program, co_executed=30)
    assert sum(f["count"] for f in report["fallbacks"] if f["reason"] == "new-shape") <= 2


def test_parts_of_a_batch_are_taken_by_index_and_joined():
    """The index was read by the gradient's code; and which turn of the loop had made what was mistaken."""

    def program(see):
        w, rng = variable(4, 4), np.random.default_rng(5)
        for _ in range(STEPS):
            present = [image for image in range(3) if rng.random() < 0.8] or [0]
            with tf.GradientTape() as tape:
                features = tf.matmul(rows(rng, 3, 5, 4), w)
                parts = []
                for image in present:
                    part = features[image]
                    parts.append(tf.nn.relu(part))
                loss = tf.reduce_mean(tf.concat(parts, axis=0))
            w.assign_sub(0.05 * tape.gradient(loss, w))
            see(loss)
        return w

    report = both_ways(program, co_executed=25)
    assert sum(f["count"] for f in report["fallbacks"] if f["reason"] == "new-gradient") <= 6


def test_steps_of_several_lengths_keep_their_blocks_whole():
    """Each read of a variable was a place where all lengths met and parted, and each length outdated all gradients."""
    lengths = [3, 5, 8, 13]

    def program(see):
        rng = np.random.default_rng(5)
        layers = [(variable(4, 4), variable(4)) for _ in range(6)]
        flat = [v for layer in layers for v in layer]
        for _ in range(2 * STEPS):
            with tf.GradientTape() as tape:
                x = rows(rng, int(rng.choice(lengths)), 4)
                for kernel, offset in layers:
                    x = tf.tanh(tf.matmul(x, kernel) + offset) * 0.9
                loss = tf.reduce_mean(tf.square(x))
            for v, gradient in zip(flat, tape.gradient(loss, flat), strict=True):
                v.assign_sub(0.1 * gradient)
            see(loss)
        return flat

    report = both_ways(program, co_executed=70)
    (anchor,) = report["anchors"]
    assert anchor["blocks"] <= 4 * len(lengths)
    assert sum(f["count"] for f in report["fallbacks"] if f["reason"] == "new-gradient") <= 2 * len(lengths)


@pytest.mark.parametrize("read_late", [False, True])
def test_a_penalty_on_a_gradient(read_late):
    """Three faults at once: the outer gradient's code reads shapes that the inner one computed; the update that ends
    just before the tape counted as under it; after a divergence the inner gradient's tensors were constants."""

    def program(see):
        rng = np.random.default_rng(3)
        hidden, bias, last = variable(4, 6), variable(6), variable(6, 1)
        weights = [hidden, bias, last]

        def score(x):
            return tf.nn.leaky_relu(x @ hidden + bias) @ last

        def update(gradients):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.assign_sub(0.01 * gradient)

        for step in range(STEPS):
            for _ in range(2):
                x = rows(rng, 8, 4)
                with tf.GradientTape() as tape:
                    mixed = tf.constant(x) * tf.random.uniform([8, 1])
                    with tf.GradientTape() as inner:
                        inner.watch(mixed)
                        made = score(mixed)
                    norm = tf.norm(inner.gradient(made, mixed) + 1e-12, axis=1)
                    if read_late and step % 7 == 6:
                        norm = 2.0 * norm
                    loss = tf.reduce_mean((norm - 1) ** 2) + tf.reduce_mean(score(x))
                update(tape.gradient(loss, weights))
            see(loss)
        return weights

    both_ways(program, co_executed=30, fallbacks=6)


def test_a_variables_read_diverges_in_front_of_the_op_that_is_given_the_variable():
    """The skeleton went on validating the op when the recorder was in charge already: the tape never heard of it."""

    def program(see):
        rng = np.random.default_rng(7)
        u, v = variable(3, 3), variable(3, 3)
        for step in range(STEPS):
            x = tf.constant(rows(rng, 4, 3))
            for _ in range(step % 3):
                with tf.GradientTape(persistent=True) as other:
                    total = tf.reduce_max(x) * 0.1 + tf.reduce_mean(u @ v)
                other.gradient(total, [u, v, x])
                if float(tf.reduce_sum(x)) > 0:
                    break
            with tf.GradientTape(persistent=True) as tape:
                total = tf.reduce_max(u) * step + tf.reduce_mean(u @ v)
            see(tape.gradient(total, u))

    report = both_ways(program)
    assert report["regions"]["co_executed"] >= 20
    # Mostly "new-op"; where blocks were cut elsewhere, because the machine was busy while they were traced, another.
    assert report["fallbacks"]


def test_a_source_of_a_gradient_may_have_other_sizes_when_nothing_was_computed_from_it():
    """By random programs: the gradient was the same for all sizes, and a batch of 4 rows passed for one of 2."""

    def program(see):
        rng = np.random.default_rng(7)
        u, v = (tf.Variable(rng.normal(size=(3, 3)).astype("float32")) for _ in range(2))
        kept = [tf.eye(3)]
        for _ in range(40):
            x = tf.constant(rng.normal(size=(int(rng.choice([2, 3, 4])), 3)).astype("float32"))
            u.assign(tf.map_fn(tf.tanh, u))
            with tf.GradientTape() as tape:
                tape.watch(x)
                kept.append(tf.nn.dropout(u, 0.5) * 0.5)
                del kept[:-3]
                loss = tf.constant(float(v[0, 0])) * 0.5 + tf.reduce_mean(u @ v)
            gradient = tape.gradient(loss, [u, v, x])
            u.assign_sub(0.05 * tf.tanh(gradient[0]))
            see(tf.random.uniform(tf.shape(x), seed=3) * tf.tanh(x))
            u.assign_sub(0.01 * tf.tanh(u @ v))
        return [u, v, *kept]

    both_ways(program)


def test_seeds_are_set_before_each_run_of_a_loop():
    """That is in the last step of the run before, and no reason to give the loop up."""

    def program(see):
        rng = np.random.default_rng(1)
        for run in range(5):
            tf.random.set_seed(run)
            w = tf.Variable(tf.random.normal([6, 6]))
            for _ in range(30):
                x = rng.normal(size=(16, 6)).astype("float32")
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.nn.dropout(tf.tanh(x @ w), 0.1) ** 2)
                w.assign_sub(0.05 * (run + 1) * tape.gradient(loss, w))
                see(loss)

    report = both_ways(program, co_executed=90)
    assert [anchor["given_up"] for anchor in report["anchors"]] == [None]
    assert any(fallback["reason"] == "native-effect" for fallback in report["fallbacks"])


@pytest.mark.parametrize("late", [6, 15])
def test_a_recursion_without_end_takes_a_tensor_along(late):
    """TensorFlow's constructor of tensors crashes where it meets the limit of the stack itself."""

    def down(x):
        return down(x + 1)

    def program(see):
        w = tf.Variable(tf.fill([3, 3], 0.1))
        for step in range(25):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.tanh(w) ** 2)
            w.assign_sub(0.1 * tape.gradient(loss, w))
            if step == late:
                try:
                    down(loss)
                except RecursionError:
                    see("caught")
            see(loss)

    both_ways(program)


def test_models_that_were_replaced_are_let_go():
    """A sweep over models: what is known of one must not keep its weights in memory for ever."""
    alive = []

    def program(see):
        rng, models = np.random.default_rng(1), []
        for _ in range(14):
            layer = keras.layers.Dense(3, kernel_initializer=keras.initializers.Constant(0.1))
            layer.build([4, 3])
            models.append(weakref.ref(layer.kernel.value.handle))
            for _ in range(24):
                x = rng.normal(size=(4, 3)).astype("float32")
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(layer(x) ** 2)
                weights = layer.trainable_variables
                for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
                    weight.assign_sub(0.1 * gradient)
                see(loss)
        gc.collect()
        alive.append(sum(handle() is not None for handle in models))

    both_ways(program, co_executed=60)
    eager, co = alive
    assert eager == 1
    assert co <= 6


def test_what_never_settles_is_named():
    def program(see):
        w = tf.Variable(tf.eye(3))
        for step in range(50):
            w.assign_sub(0.1 * tf.debugging.check_numerics(tf.tanh(w), f"step {step}"))
            see(w)

    (anchor,) = both_ways(program, co_executed=0)["anchors"]
    assert "something new, the last CheckNumerics at test_found.py:" in anchor["given_up"]

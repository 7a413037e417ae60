"""Each mechanism of co-execution by a small program, run both ways and compared bit for bit."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways, run_once

from terra_cx.trace.tracegraph import GAP_SECONDS

STEPS = 48


def batches(size: int = 8, width: int = 6):
    rng = np.random.default_rng(3)
    return rng.normal(size=(STEPS, size, width)).astype("float32")


def test_plain_training_step():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        losses = []
        for x in batches():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(tf.matmul(x, weights)))
            weights.assign_sub(0.1 * tape.gradient(loss, weights))
            losses.append(loss)
        see(losses)
        return weights

    report = both_ways(program, co_executed=18, fallbacks=0)
    assert report["anchors"][0]["blocks"] == 1


def test_branch_on_python_value_and_join():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        for step, x in enumerate(batches()):
            with tf.GradientTape() as tape:
                h = tf.matmul(x, weights)
                h = tf.nn.relu(h) if step % 3 == 0 else tf.tanh(h)
                loss = tf.reduce_sum(h * h)
            weights.assign_sub(0.01 * tape.gradient(loss, weights))
            see(loss)
        return weights

    both_ways(program, co_executed=10)


def test_independent_branches_need_blocks_in_proportion():
    def program(see):
        weights = [tf.Variable(tf.random.normal([6, 6])) for _ in range(8)]
        flips = np.random.default_rng(4)
        x = tf.constant(batches()[0])
        for _ in range(200):
            h = x
            for index in range(8):
                h = tf.matmul(h, weights[index])
                h = tf.tanh(h) if flips.random() < 0.5 else tf.nn.relu(h) * 0.5
            weights[0].assign_sub(0.001 * weights[0])
            see(tf.reduce_sum(h))
        return weights

    report = both_ways(program, co_executed=150)
    assert report["anchors"][0]["blocks"] <= 40  # of 256 ways through the step
    assert report["runner"]["variants"] <= 60


def test_branch_on_tensor_value():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        for x in batches():
            y = tf.reduce_sum(tf.matmul(x, weights))
            if y > 0:
                weights.assign_sub(tf.fill([6, 6], 0.1))
            else:
                weights.assign_add(tf.fill([6, 6], 0.05))
            see(y)
        return weights

    both_ways(program, co_executed=10)


def test_nested_loop_of_constant_length():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        for x in batches():
            with tf.GradientTape() as tape:
                h = x
                for _ in range(3):
                    h = tf.tanh(tf.matmul(h, weights))
                loss = tf.reduce_mean(h)
            weights.assign_sub(0.1 * tape.gradient(loss, weights))
            see(loss)
        return weights

    both_ways(program, co_executed=15, fallbacks=0)


def test_loop_of_varying_length_under_a_tape():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        for step, x in enumerate([*batches(), *batches(), *batches()]):
            with tf.GradientTape() as tape:
                h = x
                for _ in range(1 + step % 3):
                    h = tf.tanh(tf.matmul(h, weights))
                loss = tf.reduce_mean(h)
            weights.assign_sub(0.1 * tape.gradient(loss, weights))
            see(loss)
        return weights

    both_ways(program, co_executed=5)


def test_changed_constant_is_fed():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        for step, x in enumerate(batches()):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(tf.matmul(x, weights))) * (1.0 + step)
            weights.assign_sub(0.1 / (1 + step) * tape.gradient(loss, weights))
            see(loss)
        return weights

    report = both_ways(program, co_executed=16, fallbacks=0)
    assert report["runner"]["variants"] <= 3


def test_object_mutation_runs_every_step():
    class Model:
        def __init__(self):
            self.weights = tf.Variable(tf.random.normal([6, 6]))
            self.calls = 0
            self.last = None

        def step(self, x):
            self.calls += 1
            with tf.GradientTape() as tape:
                self.last = tf.reduce_mean(tf.matmul(x, self.weights) ** 2)
            self.gradient = tape.gradient(self.last, self.weights)
            self.weights.assign_sub(0.1 * self.gradient)

    def program(see):
        model = Model()
        for x in batches():
            model.step(x)
        see(model.calls, model.last, model.gradient)
        return model.weights

    both_ways(program, co_executed=16)


def test_losses_read_many_steps_later():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        losses = []
        for index, x in enumerate([*batches(), *batches(), *batches()]):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(tf.matmul(x, weights)))
            weights.assign_sub(0.1 * tape.gradient(loss, weights))
            losses.append(loss)
            if index >= 50:
                see(losses[index - 50])
        return weights, losses

    both_ways(program, co_executed=50)


def test_reads_in_the_middle_of_a_step(capsys):
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        for x in batches():
            with tf.GradientTape() as tape:
                y = tf.matmul(x, weights)
                see(y.numpy())
                loss = tf.reduce_mean(y * y)
                see(float(loss))
            print(loss)
            if loss > 0.5:
                see("large")
            weights.assign_sub(0.1 * tape.gradient(loss, weights))
        return weights

    both_ways(program, co_executed=16)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 * STEPS
    assert printed[:STEPS] == printed[STEPS:]


def test_divergence_in_the_middle_of_a_tape():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        for step, x in enumerate(batches()):
            with tf.GradientTape() as tape:
                h = tf.matmul(x, weights)
                if step == 40:
                    h = tf.sin(h)
                loss = tf.reduce_mean(h * h)
            weights.assign_sub(0.1 * tape.gradient(loss, weights))
            see(loss)
        return weights

    report = both_ways(program, co_executed=14)
    assert any(f["reason"] == "new-op" for f in report["fallbacks"])


def test_divergence_with_blocks_already_dispatched_under_the_open_tape():
    def program(see):
        weights, count = tf.Variable(tf.random.normal([6, 6])), tf.Variable(0.0)
        for step, x in enumerate(batches()):
            with tf.GradientTape() as tape:
                h = tf.matmul(x, weights) + tf.random.uniform([6])
                count.assign_add(1.0)
                see(tf.reduce_sum(h))  # the block up to here is dispatched
                h = h * count
                if step == 40:
                    h = tf.sin(h)
                loss = tf.reduce_mean(h * weights[:1])
            weights.assign_sub(0.1 * tape.gradient(loss, weights))
            see(loss)
        return weights, count

    both_ways(program, co_executed=14)


def test_nested_and_persistent_tapes():
    def program(see):
        weights = tf.Variable(tf.random.normal([4, 4]))
        for x in batches(4, 4):
            with tf.GradientTape(persistent=True) as outer:
                with tf.GradientTape() as inner:
                    inner.watch(weights)
                    y = tf.reduce_sum(tf.matmul(x, weights) ** 3)
                first = inner.gradient(y, weights)
                penalty = tf.reduce_sum(first * first)
            second = outer.gradient(penalty, weights)
            third = outer.gradient(y, weights)
            weights.assign_sub(1e-5 * (second + third))
            see(y, penalty)
            del outer
        return weights

    both_ways(program, co_executed=10)


@pytest.mark.parametrize("watched", [False, True])
def test_tensor_chosen_before_the_tape(watched):
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        for step, x in enumerate(batches()):
            first, second = tf.sin(x), tf.cos(x)
            chosen = first if step % 3 else second
            with tf.GradientTape() as tape:
                if watched:
                    tape.watch(chosen)
                loss = tf.reduce_sum(tf.matmul(chosen, weights) ** 2)
            gradients = tape.gradient(loss, [weights, chosen])
            assert (gradients[1] is not None) is watched
            weights.assign_sub(0.001 * gradients[0])
            see(gradients)
        return weights

    both_ways(program, co_executed=10)


def test_watched_tensor_differs_from_the_used_one():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        for step, x in enumerate(batches()):
            first, second = tf.sin(x), tf.cos(x)
            with tf.GradientTape() as tape:
                tape.watch(first if step % 2 else second)
                loss = tf.reduce_sum(tf.matmul(first, weights) ** 2)
            gradients = tape.gradient(loss, [weights, first, second])
            weights.assign_sub(0.001 * gradients[0])
            see(*[gradient is None for gradient in gradients], gradients[0])
        return weights

    both_ways(program, co_executed=10)


def test_guarded_indices_that_change_late():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        for step, x in enumerate(batches()):
            rows = tf.constant([0, 1] if step < 30 else [2, 3])
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.gather(tf.matmul(x, weights), rows) ** 2)
            weights.assign_sub(0.001 * tape.gradient(loss, weights))
            see(loss)
        return weights

    both_ways(program, co_executed=10)


def test_watch_stop_recording_and_unconnected():
    def program(see):
        weights, other = tf.Variable(tf.random.normal([6, 6])), tf.Variable([1.0])
        for x in batches():
            x = tf.constant(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                h = tf.matmul(x, weights)
                with tape.stop_recording():
                    scale = tf.reduce_max(h)
                loss = tf.reduce_sum(h * h) * scale
            a, b, c = tape.gradient(loss, [weights, x, other])
            assert c is None
            weights.assign_sub(0.001 * a)
            see(b)
        return weights

    both_ways(program, co_executed=10)


def test_gradient_of_a_gather_is_indexed_slices():
    def program(see):
        table = tf.Variable(tf.random.normal([10, 4]))
        rng = np.random.default_rng(0)
        for _ in range(STEPS):
            rows = tf.constant(rng.permutation(10)[:5])
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.gather(table, rows) ** 2)
            gradient = tape.gradient(loss, table)
            assert isinstance(gradient, tf.IndexedSlices)
            see(gradient.values, gradient.indices)
            table.assign_sub(0.1 * tf.convert_to_tensor(gradient))
        return table

    both_ways(program, co_executed=10)


def test_exception_in_user_code_is_caught_by_the_user():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        for step, x in enumerate(batches()):
            try:
                weights.assign_add(tf.fill([6, 6], 0.25))
                if step % 5 == 4:
                    raise KeyError("user")
                weights.assign_sub(0.1 * tf.matmul(weights, weights))
            except KeyError as error:
                see("caught", str(error), weights.numpy())
            see(tf.reduce_sum(tf.matmul(x, weights)))
        return weights

    both_ways(program, co_executed=10)


def test_exception_leaves_the_loop():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        try:
            for step, _ in enumerate(batches()):
                weights.assign_add(tf.fill([6, 6], 0.25))
                if step == 40:
                    raise RuntimeError("enough")
                weights.assign_sub(0.1 * weights)
        except RuntimeError:
            see(weights.numpy())
        return weights

    both_ways(program, co_executed=10)


def gather_program(bad_step, caught):
    def program(see):
        weights, count = tf.Variable(tf.random.normal([6, 3])), tf.Variable(0)
        for step in range(STEPS):
            index = tf.constant(99 if step == bad_step else step % 6)
            count.assign_add(1)
            if caught:
                try:
                    row = tf.gather(weights, index)
                    weights.assign_sub(0.1 * (weights - row))
                except tf.errors.InvalidArgumentError as error:
                    see("caught", error.message, count.numpy(), weights.numpy())
            else:
                row = tf.gather(weights, index)
                weights.assign_sub(0.1 * (weights - row))
        see(weights.numpy(), count.numpy())
        return weights, count

    return program


def test_kernel_error_reaches_the_right_except():
    both_ways(gather_program(40, caught=True), co_executed=14)


def test_kernel_error_that_nobody_catches():
    program = gather_program(40, caught=False)
    eager, co = run_once(program, None), run_once(program, {})
    assert co.error == eager.error
    assert eager.error is not None
    assert eager.error[0] == "InvalidArgumentError"
    assert co.report["regions"]["co_executed"] > 10


def test_kernel_error_leaves_variables_as_eager_and_names_the_line():
    left = []

    def program(see):
        a, b, table = tf.Variable(0.0), tf.Variable(0.0), tf.Variable(tf.random.normal([6, 3]))
        left.append((a, b, table))
        for step in range(STEPS):
            a.assign_add(1.0)
            row = tf.gather(table, tf.constant(99 if step == 40 else step % 6))
            b.assign_add(1.0)
            table.assign_sub(0.1 * (table - row))

    with pytest.raises(tf.errors.InvalidArgumentError):
        program(None)
    import terra_cx

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        terra_cx.co_execute()(program)(None)
    assert any("test_mechanisms.py" in note for note in caught.value.__notes__)
    eager, co = ([v.numpy() for v in group] for group in left)
    assert eager[0] == co[0] == 41.0
    assert eager[1] == co[1] == 40.0
    assert eager[2].shape == co[2].shape


@pytest.mark.parametrize("seeded", ["global", "op", "none"])
def test_random_streams(seeded):
    def program(see):
        if seeded == "none":
            generator = tf.random.Generator.from_seed(3)
        weights = tf.Variable(tf.random.normal([6, 6]))
        for step, x in enumerate(batches()):
            if seeded == "global":
                noise = tf.random.normal([6]) + tf.random.uniform([6])
            elif seeded == "op":
                noise = tf.random.normal([6], seed=4) + tf.random.truncated_normal([6], seed=9)
            else:
                noise = generator.normal([6]) + tf.random.stateless_uniform([6], [step, 2])
            weights.assign_sub(0.01 * weights * noise)
            see(tf.reduce_sum(tf.matmul(x, weights)))
        return weights

    both_ways(program, co_executed=10)


def test_keras_dropout_and_batchnorm_with_adam():
    def program(see):
        layers = tf.keras.layers
        model = tf.keras.Sequential(
            [
                layers.Dense(8),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Dropout(0.4),
                layers.Dense(2),
            ]
        )
        optimizer = tf.keras.optimizers.Adam(0.01)
        for step, x in enumerate(batches()):
            optimizer.learning_rate = 0.01 / (1 + step)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(model(x, training=True) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            see(loss)
        return model.get_weights(), [v.numpy() for v in optimizer.variables]

    both_ways(program, co_executed=15)


def test_placeholder_kept_pickled_threaded_and_given_to_numpy():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        kept, closures = [], []
        for x in batches():
            y = tf.matmul(x, weights)
            weights.assign_sub(0.01 * weights)
            kept.append(y)
            closures.append(lambda y=y: y + 1.0)
            total = tf.reduce_sum(y)
            see(pickle.loads(pickle.dumps(total)), np.asarray(y), np.linalg.norm(y), copy.deepcopy({"y": y}))
            out = []
            thread = threading.Thread(target=lambda total=total, out=out: out.append(total.numpy()))
            thread.start()
            thread.join()
            see(out)
        see(kept[3], closures[5](), closures[-1]())
        return weights

    both_ways(program, co_executed=10)


def test_op_from_a_finaliser_inside_the_hook():
    class Noisy:
        def __init__(self):
            self.me = self

        def __del__(self):
            tf.zeros([1]) + 1.0

    def program(see):
        weights = tf.Variable(tf.random.normal([6, 6]))
        threshold = gc.get_threshold()
        gc.set_threshold(50)
        try:
            for x in batches():
                for _ in range(3):
                    Noisy()
                weights.assign_sub(0.01 * tf.matmul(weights, weights))
                see(tf.reduce_sum(tf.matmul(x, weights)))
        finally:
            gc.set_threshold(*threshold)
        return weights

    both_ways(program, co_executed=0)


def test_reused_numpy_buffer():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        buffer = np.zeros([8, 6], "float32")
        for step in range(STEPS):
            buffer[:] = step
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(tf.matmul(buffer, weights)))
            buffer[:] = -1
            weights.assign_sub(1e-4 * tape.gradient(loss, weights))
            see(loss)
        return weights

    both_ways(program, co_executed=14)


def test_a_custom_gradient_reads_python_state_when_it_is_taken():
    state = {"scale": 1.0}

    @tf.custom_gradient
    def scaled(x):
        def backward(upstream):
            return upstream * state["scale"]

        return x * 2.0, backward

    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        for step, x in enumerate(batches()):
            state["scale"] = float(step)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(scaled(tf.matmul(x, weights)))
            weights.assign_sub(0.1 * tape.gradient(loss, weights))
            see(loss)
        return weights

    report = both_ways(program)
    assert report["anchors"][0]["live_tapes"].startswith("user-gradient")


def test_data_iterator_with_epochs():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        data = tf.data.Dataset.from_tensor_slices(batches().reshape(-1, 6)).batch(16)
        for _ in range(4):
            for x in data:
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(tf.matmul(x, weights)))
                weights.assign_sub(0.1 * tape.gradient(loss, weights))
            see(loss)
        return weights

    both_ways(program, co_executed=25)


def test_ops_of_the_owner_run_in_order(capfd):
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        seen = []
        for x in batches():
            weights.assign_sub(0.1 * weights)
            y = tf.numpy_function(
                lambda a, w=weights: seen.append(float(w.numpy()[0, 0])) or a * 2, [x], tf.float32
            )
            see(tf.reduce_sum(tf.matmul(y, weights)))
        see(seen)
        return weights

    both_ways(program, co_executed=10)


def test_mode_lazy_and_trace_and_eager():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        for x in batches():
            weights.assign_sub(0.1 * weights)
            see(tf.reduce_sum(tf.matmul(x, weights)))
        return weights

    both_ways(program, co_executed=10, mode="lazy")
    report = both_ways(program, co_executed=0, mode="trace")
    assert report["regions"]["co_executed"] == 0
    assert report["regions"]["traced"] > 10


@pytest.mark.parametrize("dominates", ["python", "graph"])
def test_the_pace_is_measured_and_changes_no_value(dominates):
    """Windows alternate between overlapped, in turns and eager; the loop reads, draws and fails to care."""
    size = 6 if dominates == "python" else 200

    def program(see):
        weights = tf.Variable(tf.random.normal([size, size]) * 0.01)
        losses = []
        for step in range(400):
            x = tf.random.normal([size, size])
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(tf.matmul(tf.tanh(tf.matmul(x, weights)), weights)))
            weights.assign_sub(0.1 * tape.gradient(loss, weights))
            losses.append(loss)
            if step % 7 == 0:
                see(float(loss))
        see(losses)
        return weights

    report = both_ways(program, co_executed=60, fallbacks=0, pace="measured")
    anchor = report["anchors"][0]
    assert set(anchor["manner_ms"]) == {"overlapped", "in turns", "eager"}
    assert report["regions"]["eager"] > 2  # of the survey


@pytest.mark.parametrize(("until", "blocks"), [(4, 1), (100, 2)])
def test_a_block_ends_where_python_is_busy_for_as_long_as_it_is(until, blocks, monkeypatch):
    monkeypatch.setattr("terra_cx.trace.tracegraph.GAP_SECONDS", GAP_SECONDS)

    def program(see):
        weight = tf.Variable(tf.ones([8, 8]))
        for step in range(60):
            hidden = tf.matmul(weight, weight) * 0.1
            if step < until:
                busy = time.perf_counter() + 3 * GAP_SECONDS
                while time.perf_counter() < busy:
                    pass
            weight.assign(tf.nn.relu(hidden))
        see(weight)

    report = both_ways(program, pace="overlapped")
    assert report["anchors"][0]["blocks"] == blocks
    assert report["runner"]["compiled_runs"] > 30 * blocks


def test_a_step_leaves_no_cyclic_garbage():
    """What only the garbage collector frees would count as alive: a block would return it, and be compiled for it."""

    def garbage(steps):
        def program(see):
            weights = tf.Variable(tf.random.normal([6, 6]))
            bias = tf.Variable(tf.zeros([6]))
            for _ in range(steps):
                with tf.GradientTape() as outer, tf.GradientTape() as inner:
                    inner.watch(x := tf.random.normal([4, 6]))
                    y = tf.nn.relu(tf.matmul(x, weights) + bias)
                    first = tf.reduce_sum(y * y)
                    second = tf.reduce_mean(tf.tanh(y))
                weights.assign_sub(0.01 * outer.gradient(first, weights))
                see(float(second))
                bias.assign_sub(0.01 * inner.gradient(second, bias))
            return weights, bias

        gc.collect()
        gc.disable()
        try:
            co = run_once(program, {})
            left = gc.collect()
        finally:
            gc.enable()
        assert co.report["regions"]["co_executed"] > steps - 25
        return left

    short, long = garbage(30), garbage(80)
    assert long - short < 50  # tracing and compiling leave some, once; a step leaves none

"""The step loop is found without annotation, in every shape that a training program may have."""

from __future__ import annotations

import functools
import types

import numpy as np
import tensorflow as tf
from truth import both_ways

import terra_cx
from terra_cx import session
from terra_cx.run import conductor
from terra_cx.trace import regions, surveyor


def data(steps: int, width: int = 6):
    rng = np.random.default_rng(5)
    return rng.normal(size=(steps, 8, width)).astype("float32")


def update(weights, x, rate=0.05):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(tf.matmul(x, weights)))
    weights.assign_sub(rate * tape.gradient(loss, weights))
    return loss


def share(report):
    """Co-executed regions of all."""
    return report["regions"]["co_executed"] / max(report["regions"]["total"], 1)


def test_what_a_survey_costs_is_no_part_of_eagers_steps(monkeypatch):
    """On a clock that only a survey moves on: an hour for each op."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(surveyor, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(session, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    surveyed = []

    def op(self, *args):
        clock.now += 3600.0
        surveyed.append(args)
        return noted(self, *args)

    noted = regions.Survey.op
    monkeypatch.setattr(regions.Survey, "op", op)
    times = []
    activate = conductor.Conductor.activate
    monkeypatch.setattr(
        conductor.Conductor,
        "activate",
        lambda self, anchor, line, eager: times.append(eager) or activate(self, anchor, line, eager),
    )

    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        for x in data(40):
            see(update(weights, x))

    both_ways(program, co_executed=10)
    assert len(surveyed) > 10
    [eager] = times
    assert len(eager) > 1
    assert max(eager) == 0.0


def test_epochs_over_batches_over_a_validation_loop():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        batches, validation = data(30), data(5)
        for epoch in range(4):
            total = 0.0
            for x in batches:
                total += float(update(weights, x))
            see(epoch, total)
            errors = [tf.reduce_mean(tf.square(tf.matmul(x, weights))) for x in validation]
            for error in errors:
                see(error)
        return weights

    report = both_ways(program, co_executed=70)
    assert report["regions"]["total"] > 90


def test_two_training_loops_one_after_the_other():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        for x in data(60):
            see(update(weights, x))
        see(weights.numpy())
        other = tf.Variable(tf.random.normal([6, 2]))
        for x in data(150):
            other.assign_sub(0.1 * other)
            see(update(other, x, rate=0.01))
        return weights, other

    report = both_ways(program, co_executed=80)
    assert len(report["anchors"]) == 2


def test_predictions_and_training_after_them():
    """A loop that only issues ops is a step if it is long, and what trains later is found as well."""

    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        for x in data(300):
            see(tf.argmax(tf.nn.softmax(tf.tanh(tf.matmul(x, weights))), axis=-1))
        for x in data(100):
            see(update(weights, x))
        return weights

    report = both_ways(program, co_executed=80)
    assert len([anchor for anchor in report["anchors"] if anchor["state"] == "co-executing"]) == 2


def test_an_evaluation_within_the_loop_is_no_step_of_its_own():
    """It is too long to be recorded, and writes in a loop over layers."""

    def program(see):
        weights, mean = tf.Variable(tf.random.normal([6, 3])), tf.Variable(0.0)
        for number, x in enumerate(data(60)):
            see(update(weights, x))
            if number % 15 == 14:
                for _ in range(30):
                    for layer in range(18):
                        mean.assign(0.9 * mean + 0.1 * tf.reduce_mean(tf.square(x)) * float(layer))
                see(mean)
        return weights

    report = both_ways(program, co_executed=30)
    assert [anchor["state"] for anchor in report["anchors"]] == ["co-executing"]
    assert report["regions"]["total"] <= 60


def test_while_loop():
    def program(see):
        weights, step = tf.Variable(tf.random.normal([6, 3])), 0
        batches = data(60)
        while step < 60:
            see(update(weights, batches[step]))
            step += 1
        return weights

    assert share(both_ways(program, co_executed=25)) > 0.5


def test_loop_in_a_method():
    class Trainer:
        def __init__(self):
            self.weights = tf.Variable(tf.random.normal([6, 3]))
            self.history = []

        def fit(self, batches):
            for x in batches:
                self.history.append(update(self.weights, x))

    def program(see):
        trainer = Trainer()
        trainer.fit(data(60))
        see(trainer.history)
        return trainer.weights

    both_ways(program, co_executed=30)


def test_loop_driven_by_a_generator():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))

        def feed():
            for x in data(60):
                yield x * 0.5

        for x in feed():
            see(update(weights, x))
        return weights

    both_ways(program, co_executed=30)


def test_steps_inside_a_generator():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))

        def train():
            for x in data(60):
                yield update(weights, x)

        for loss in train():
            see(loss)
        return weights

    both_ways(program, co_executed=30)


def test_gradient_accumulation_is_one_region():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        total = tf.Variable(tf.zeros([6, 3]))
        for macro in data(40, 24):
            total.assign(tf.zeros([6, 3]))
            for x in np.split(macro, 4, axis=1):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(tf.matmul(x, weights)))
                total.assign_add(tape.gradient(loss, weights))
            weights.assign_sub(0.05 * total)
            see(loss)
        return weights

    report = both_ways(program, co_executed=15)
    assert report["regions"]["total"] < 60


def test_n_critic_updates_are_one_region():
    def program(see):
        critic, generator = tf.Variable(tf.random.normal([6, 3])), tf.Variable(tf.random.normal([6, 6]))
        for x in data(40):
            for _ in range(5):
                with tf.GradientTape() as tape:
                    fake = tf.matmul(tf.random.normal([8, 6]), generator)
                    loss = tf.reduce_mean(tf.matmul(x, critic)) - tf.reduce_mean(tf.matmul(fake, critic))
                critic.assign_sub(0.01 * tape.gradient(loss, critic))
            with tf.GradientTape() as tape:
                fake = tf.matmul(tf.random.normal([8, 6]), generator)
                score = tf.reduce_mean(tf.matmul(fake, critic))
            generator.assign_add(0.01 * tape.gradient(score, generator))
            see(loss, score)
        return critic, generator

    report = both_ways(program, co_executed=15)
    assert report["regions"]["total"] < 60


def test_step_function_called_by_a_library():
    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))

        def step(carry, x):
            loss = update(weights, x)
            see(loss)
            return carry + 1

        see(functools.reduce(step, data(60), 0))
        return weights

    both_ways(program, co_executed=25)


def test_region_marks_the_step_in_code_that_runs_already():
    weights = tf.Variable(tf.ones([6, 3]))
    expected = tf.Variable(tf.ones([6, 3]))
    for x in data(30):
        update(expected, x)
    with terra_cx.co_execute(quiet=True) as session:
        for x in data(30):
            terra_cx.region()
            update(weights, x)
    assert session.report()["regions"]["co_executed"] > 15
    assert weights.numpy().tobytes() == expected.numpy().tobytes()


def test_keras_fit_run_eagerly():
    def program(see):
        model = tf.keras.Sequential([tf.keras.layers.Dense(8, activation="relu"), tf.keras.layers.Dense(1)])
        model.compile(optimizer="sgd", loss="mse", run_eagerly=True)
        x = data(40).reshape(-1, 6)
        history = model.fit(x, x.sum(axis=1), batch_size=8, epochs=2, verbose=0, shuffle=False)
        see(history.history["loss"])
        return model.get_weights()

    both_ways(program, co_executed=30)


def test_custom_train_step_in_keras_fit():
    class Model(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = tf.keras.layers.Dense(1)
            self.steps = 0

        def call(self, x):
            return self.dense(x)

        def train_step(self, batch):
            x, y = batch
            self.steps += 1
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x, training=True) - y[:, None]))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    def program(see):
        model = Model()
        model.compile(optimizer="adam", run_eagerly=True)
        x = data(40).reshape(-1, 6)
        history = model.fit(x, x.sum(axis=1), batch_size=8, epochs=2, verbose=0, shuffle=False)
        see(history.history["loss"], model.steps)
        return model.get_weights()

    both_ways(program, co_executed=30)


def test_a_model_with_a_lambda_layer_is_saved(tmp_path):
    def program(see):
        scale = 2.0
        model = tf.keras.Sequential([tf.keras.layers.Lambda(lambda x: x * 2.0), tf.keras.layers.Dense(1)])
        optimizer = tf.keras.optimizers.SGD(0.01)
        for x in data(30):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(model(x) ** 2) * scale
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            see(loss)
        model.save(tmp_path / "model.keras")
        loaded = tf.keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
        return loaded.get_weights()

    both_ways(program, co_executed=8)

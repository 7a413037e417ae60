"""Profiles of programs that really run."""

import json
import math
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_chrome_trace import check_trace, of

import terra_cx
from terra_cx.profile import profiler as profiling
from terra_cx.profile.events import CO_EXECUTED, Region, Window
from terra_cx.profile.profiler import AnchorProfile, Plan, _Spent
from terra_cx.profile.window import WindowRecorder
from terra_cx.run.anchor import ActiveAnchor

STEPS = 90


def train(steps=STEPS, read_every=3):
    weight = tf.Variable(tf.ones([16, 16]))
    batch = np.ones((8, 16), "f4")
    losses = []
    for step in range(steps):
        with tf.GradientTape() as tape:
            hidden = tf.nn.relu(tf.matmul(batch * (step % 5), weight))
            loss = tf.reduce_mean(hidden**2)
        weight.assign_sub(1e-3 * tape.gradient(loss, weight))
        if step % read_every == 0:
            losses.append(float(loss))  # READ
    return losses, weight.numpy()


def train_keras(steps=STEPS):
    model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(8)])
    optimizer = keras.optimizers.SGD(0.01)
    batch = tf.ones((4, 8))
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(batch) ** 2)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    return float(loss)


@pytest.fixture
def plan(monkeypatch):
    """Windows of a few steps, one after the other whatever they cost; TensorFlow's profiler has tests of its own."""
    monkeypatch.setattr(
        profiling,
        "Plan",
        lambda: Plan(
            first=4, times=2, steps=4, seconds=0.0, first_seconds=0.0, devices=False, share=math.inf
        ),
    )


def profiled(function, directory, *args, **settings):
    run = terra_cx.co_execute(profile=directory, **settings)(function)
    result = run(*args)
    return result, json.loads((directory / "profile.json").read_text()), run.last_session


def line_of(mark):
    with open(__file__) as file:
        return next(number for number, text in enumerate(file, start=1) if text.rstrip().endswith(mark))


def test_a_run_leaves_a_page_a_timeline_and_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "Plan", lambda: Plan(first_seconds=0.0))
    _, profile, _ = profiled(train, tmp_path)
    assert profile["problems"] == []
    (anchor,) = profile["anchors"]
    assert anchor["window"]["steps"] >= 8
    assert anchor["window"]["device"] in ("cpu", "gpu")
    assert anchor["metrics"]["device"]["busy_ms"] > 0
    assert "READ" in (tmp_path / "profile.html").read_text()
    events = check_trace(json.loads((tmp_path / "trace.json").read_text()))
    assert of(events, cat="step")
    assert of(events, cat="compiled")
    assert of(events, cat="kernel")
    assert of(events, ph="t")  # an arrow to a fetch


def test_what_is_counted_is_what_happened(tmp_path, plan):
    _, profile, session = profiled(train, tmp_path)
    (anchor,) = profile["anchors"]
    counted = session.report()["anchors"][0]
    assert anchor["regions"]["co_executed"] == session.report()["regions"]["co_executed"] > STEPS / 2
    assert anchor["step_ms"]["co"] == session.report()["step_ms"]["co"]
    assert (anchor["line"], anchor["state"]) == (counted["line"], counted["state"])
    found = next(line for line in anchor["lines"] if line["line"] == f"{__file__}:{line_of('# READ')}")
    assert 0 < found["waits"] <= STEPS / 3
    assert {fetch["op"] for fetch in found["fetches"]} == {"Mean"}
    metrics = anchor["metrics"]
    elided = sum(line["elided_ops"] for line in anchor["lines"])
    assert metrics["ops_per_step"] == pytest.approx(elided + sum(line["ops"] for line in anchor["lines"]))
    assert metrics["elided_share"] == pytest.approx(elided / metrics["ops_per_step"])
    assert 0 <= metrics["overlap"] <= 1
    assert profile["totals"]["runs"]["compiled"] >= anchor["window"]["steps"]


@pytest.mark.parametrize("settings", [{}, {"pace": "turns"}, {"mode": "lazy"}, {"no_elide": True}])
def test_the_parts_of_a_step_add_up_to_the_step(tmp_path, plan, settings):
    _, profile, _ = profiled(train, tmp_path, **settings)
    (anchor,) = profile["anchors"]
    metrics, step = anchor["metrics"], anchor["metrics"]["step_ms"]
    assert sum(anchor["parts_ms"].values()) == pytest.approx(step)
    assert sum(sum(line["parts_ms"].values()) for line in anchor["lines"]) == pytest.approx(step)
    assert metrics["python_busy_ms"] + metrics["fetch_wait_ms"] + metrics["graph_wait_ms"] == pytest.approx(
        step
    )
    assert metrics["graph_busy_ms"] + metrics["feed_wait_ms"] + metrics["path_wait_ms"] <= step * (1 + 1e-9)


def test_elided_calls_are_told_apart(tmp_path, plan):
    _, profile, _ = profiled(train_keras, tmp_path)
    (anchor,) = profile["anchors"]
    assert 0 < anchor["metrics"]["elided_share"] < 1
    assert anchor["parts_ms"]["elided"] > 0
    assert sum(anchor["parts_ms"].values()) == pytest.approx(anchor["metrics"]["step_ms"])


def test_a_profile_changes_no_value(tmp_path, plan):
    losses, weight = train()
    (profiled_losses, profiled_weight), _, session = profiled(train, tmp_path)
    assert profiled_losses == losses
    assert profiled_weight.tobytes() == weight.tobytes()
    assert session.report()["internal_errors"] == 0


def test_windows_are_few_however_long_the_run_is(tmp_path, plan):
    _, _, session = profiled(train, tmp_path, 400)
    (anchor,) = session.profiler.anchors.values()
    assert 0 < len(anchor.windows) <= 2
    assert anchor.windows[-1].window.first > 100
    assert anchor.next_at > 400


def test_steps_of_a_window_do_not_count_for_the_pace(tmp_path, plan, monkeypatch):
    paced = []

    def counted(anchor, *args):
        paced.append(anchor.regions[CO_EXECUTED] - 1)
        return own(anchor, *args)

    own = ActiveAnchor.paced
    monkeypatch.setattr(ActiveAnchor, "paced", counted)
    _, _, session = profiled(train, tmp_path, 200, pace="measured")
    (anchor,) = session.profiler.anchors.values()
    first = anchor.windows[-1].window.first
    assert len(anchor.windows[-1].window.steps()) >= 4
    assert not set(paced) & set(range(first, first + 4))
    assert min(paced) < first < max(paced)


def test_nothing_is_left_in_place(tmp_path, plan):
    threads = set(threading.enumerate())
    _, _, session = profiled(train, tmp_path)
    conductor = session.conductor
    for thing in (conductor, conductor.handover, conductor.runner, conductor.runner.path):
        assert not any(callable(value) and name in dir(type(thing)) for name, value in vars(thing).items())
    assert conductor.runner.tap is None
    assert {thread for thread in threading.enumerate() if "terra" in thread.name} <= threads


def test_without_a_profile_nothing_is_put_in_place():
    run = terra_cx.co_execute()(train)
    run()
    session = run.last_session
    assert session.profiler is None
    assert "begin_region" not in vars(session.conductor)


def test_a_failure_of_ours_ends_the_profile_and_not_the_program(tmp_path, plan, monkeypatch):
    def fail(self):
        raise RuntimeError("no window today")

    monkeypatch.setattr(WindowRecorder, "close", fail)
    (losses, _), profile, session = profiled(train, tmp_path)
    assert losses == train()[0]
    assert profile["problems"][0] == "profiling ended early: RuntimeError: no window today"
    assert session.report()["regions"]["co_executed"] > STEPS / 2
    assert "begin_region" not in vars(session.conductor)


def test_a_profiler_of_the_programs_has_precedence(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "Plan", lambda: Plan(first=4, steps=70, first_seconds=0.0))

    def program():
        weight = tf.Variable(tf.ones([16, 16]))
        for step in range(STEPS):
            if step == STEPS - 5:
                tf.profiler.experimental.start(str(tmp_path / "own"))
            weight.assign_sub(1e-3 * tf.matmul(weight, weight))
        tf.profiler.experimental.stop()

    _, profile, _ = profiled(program, tmp_path)
    assert list((tmp_path / "own").rglob("*.xplane.pb"))
    assert profile["problems"] == ["no device lanes: the program used TensorFlow's profiler itself"]
    assert profile["anchors"][0]["metrics"]["device"] is None


def test_windows_are_opened_as_far_as_steps_afford_them(tmp_path, monkeypatch):
    """The first always is; the next ones wait until all of them together are a small part of the steps' time."""
    monkeypatch.setattr(
        profiling,
        "Plan",
        lambda: Plan(first=4, times=2, steps=4, seconds=0.0, first_seconds=0.0, share=0.0, devices=False),
    )
    _, profile, _ = profiled(train, tmp_path)
    assert profile["anchors"][0]["window"]["first"] == 4


def test_what_windows_cost():
    profile = AnchorProfile(anchor=None)

    def steps(*times):
        profile.regions[CO_EXECUTED] += len(times)
        profile.nanoseconds[CO_EXECUTED] += sum(times)

    def window(handling, *times):
        steps(*times)
        profile.spent.append(_Spent(handling))
        regions = [Region(0, time, CO_EXECUTED, n) for n, time in enumerate(times)]
        profile.seen(Window("train.py:1", 0, regions=regions))

    steps(*[5000] * 4)  # blocks were compiled
    window(30, 130, 130, 3000)  # and once in the first window
    profile.charge(10)
    assert not profile.affords(1.0)  # how long a step usually takes is not known
    steps(*[100] * 10)
    first = 40 + 3 * (130 - 100)
    total = 20000 + 3260 + 1000
    assert profile.affords(2 * first / total)
    assert not profile.affords((2 * first - 1) / total)
    window(20, 110, 110)
    second, total = 20 + 2 * 10, total + 220
    assert profile.affords((first + 2 * second) / total)
    assert not profile.affords((first + 2 * second - 1) / total)


def test_functions_that_are_elided_count_for_their_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "Plan", lambda: Plan(first_seconds=0.0))
    _, profile, _ = profiled(train, tmp_path)
    (anchor,) = profile["anchors"]
    lines = {line["text"]: line for line in anchor["lines"]}
    squared = lines["loss = tf.reduce_mean(hidden**2)"]
    assert squared["elided_ops"] > squared["ops"]
    assert sum(line["ops"] + line["elided_ops"] for line in anchor["lines"]) > 10

"""Warm starts: what one run has learned, the next begins with, and both do what eager does, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from truth import run_once

from terra_cx import cli
from terra_cx.cache.store import VERSION, entries


def batches(steps=32):
    return np.random.default_rng(3).normal(size=(steps, 4, 6)).astype("float32")


def plain(see, *, rate=0.1, width=3):
    weights = tf.Variable(tf.random.normal([6, width]))
    for x in batches():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.matmul(x, weights)))
        weights.assign_sub(rate * tape.gradient(loss, weights))
        see(loss)
    return weights


def branching(see):
    weights = tf.Variable(tf.random.normal([6, 6]))
    for step, x in enumerate(batches(60)):
        with tf.GradientTape() as tape:
            h = tf.matmul(x, weights)
            h = tf.nn.relu(h) if step % 5 in (0, 3) else tf.tanh(h)
            loss = tf.reduce_sum(h * h)
        weights.assign_sub(0.01 * tape.gradient(loss, weights))
        if step % 7 == 0:
            see(loss)
    return weights


def built_in_the_first_step(see):
    model = keras.Sequential([keras.layers.Dense(5, activation="relu"), keras.layers.Dropout(0.3, seed=4)])
    head = keras.layers.Dense(2)
    optimizer = keras.optimizers.Adam(0.01)
    for x in batches():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(head(model(x, training=True))))
        variables = model.trainable_variables + head.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        see(loss)
    return model.variables + head.variables + optimizer.variables


def a_loop_under_the_tape(see):
    weights = tf.Variable(tf.random.normal([6, 6]) * 0.3)
    rng = np.random.default_rng(5)
    for x in batches(48):
        with tf.GradientTape() as tape:
            h = tf.constant(x)
            for _ in range(rng.integers(1, 5)):
                h = tf.tanh(tf.matmul(h, weights))
            loss = tf.reduce_sum(h)
        weights.assign_sub(0.01 * tape.gradient(loss, weights))
        see(loss)
    return weights


def lengths_that_go_on_changing(see):
    weights = tf.Variable(tf.random.normal([6, 6]) * 0.3)
    rng = np.random.default_rng(6)
    for _ in range(96):
        x = rng.normal(size=(2, rng.integers(2, 24), 6)).astype("float32")
        with tf.GradientTape() as tape:
            h = tf.tanh(tf.matmul(x, weights) + tf.reduce_mean(x, axis=1, keepdims=True))
            loss = tf.reduce_sum(h) / tf.cast(tf.shape(h)[1], tf.float32)
        weights.assign_sub(0.01 * tape.gradient(loss, weights))
        see(loss)
    return weights


def more_shapes_than_a_few(see):
    """Twelve, of which each has come after many regions: they are known each on its own."""
    weights = tf.Variable(tf.random.normal([6, 6]) * 0.3)
    rng = np.random.default_rng(6)
    for step in range(220):
        x = rng.normal(size=(int(rng.integers(1, 2 + step // 18)), 6)).astype("float32")
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.tanh(tf.matmul(x, weights)))
        weights.assign_sub(0.01 * tape.gradient(loss, weights))
        see(loss)
    return weights


def two_loops(see):
    weights = tf.Variable(tf.random.normal([6, 3]))
    for x in batches():
        weights.assign_sub(0.01 * tf.matmul(x, tf.matmul(x, weights), transpose_a=True))
        see(weights[0, 0])
    other = tf.Variable(tf.random.normal([6, 3]))
    for x in batches(100):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.matmul(x, other)))
        other.assign_sub(0.1 * tape.gradient(loss, other))
        see(loss)
    return weights, other


def gradient_of_the_programs_own(see):
    @tf.custom_gradient
    def clipped(x):
        return x * 1.0, lambda upstream: tf.clip_by_value(upstream, -0.1, 0.1)

    weights = tf.Variable(tf.random.normal([6, 3]))
    for x in batches():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(clipped(tf.matmul(x, weights)))
        weights.assign_sub(0.1 * tape.gradient(loss, weights))
        see(loss)
    return weights


def refused_in_the_first_step(see):
    """The first step does what no later one does: it cannot even be recorded."""
    weights, other = tf.Variable(tf.random.normal([6, 3])), None
    outer = tf.GradientTape(persistent=True)
    for step, x in enumerate(batches()):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.matmul(x, weights)))
        if step == 0:
            with outer:
                other = tf.square(weights)
            other = outer.gradient(other, weights)  # a tape from before the step
        weights.assign_sub(0.1 * tape.gradient(loss, weights))
        see(loss, other)
    return weights


PROGRAMS = [
    plain,
    branching,
    built_in_the_first_step,
    a_loop_under_the_tape,
    lengths_that_go_on_changing,
    more_shapes_than_a_few,
    two_loops,
    gradient_of_the_programs_own,
    refused_in_the_first_step,
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_second_run_begins_where_the_first_ended(tmp_path, program):
    settings = {"cache": str(tmp_path)}
    eager, cold, warm = run_once(program, None), run_once(program, settings), run_once(program, settings)
    for run in (cold, warm):
        assert run.error is None
        assert run.seen == eager.seen
        assert run.result == eager.result
        assert run.draws == eager.draws
        assert run.report["internal_errors"] == 0
    assert cold.report["cache"]["saved"] >= 1
    assert warm.report["cache"]["loaded"] == len(warm.report["anchors"]) == len(cold.report["anchors"])
    assert warm.report["cache"]["problems"] == 0
    for anchor in warm.report["anchors"]:
        assert "operations known" in anchor["warm_start"]
        assert (anchor["relaxed"] is not None) is (program is lengths_that_go_on_changing)
    if len(cold.report["anchors"]) == 1:
        assert anchor["nodes"] == cold.report["anchors"][0]["nodes"], "it has learned something a second time"
    # Of each loop the first region binds, later ones note library calls; nothing waits for warmth or stability.
    assert warm.report["regions"]["eager"] == 0
    assert cold.report["regions"]["eager"] > 0
    assert warm.report["regions"]["co_executed"] > cold.report["regions"]["co_executed"] > 5
    assert sum(f["count"] for f in warm.report["fallbacks"]) <= 2 * len(warm.report["anchors"])
    assert warm.report["runner"]["mismatches"] == 0


def test_the_second_region_is_co_executed(tmp_path):
    import terra_cx

    settings = {"cache": str(tmp_path), "quiet": True}
    run_once(plain, {"cache": str(tmp_path)})
    stages = []

    def watched():
        weights = tf.Variable(tf.random.normal([6, 3]))
        for x in batches(4):
            conductor = session.conductor
            stages.append(conductor.skeleton is not None if conductor is not None else None)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(tf.matmul(x, weights)))
            weights.assign_sub(0.1 * tape.gradient(loss, weights))

    for _ in range(3):
        stages.clear()
        with terra_cx.co_execute(**settings) as session:
            session.inplace.plant(watched)
            watched()
            watched()
        if session.report()["cache"]["loaded"]:
            break
    assert stages[:2] == [False, True]


def test_told_to_do_something_else(tmp_path):
    settings = {"cache": str(tmp_path)}

    def wide(see):
        return plain(see, width=4)

    run_once(plain, settings)
    eager, other = run_once(wide, None), run_once(wide, settings)
    assert other.seen == eager.seen
    assert other.report["cache"]["problems"] == 0
    assert other.report["anchors"][0]["warm_start"].startswith("no: ")
    assert other.report["regions"]["co_executed"] > 5
    again = run_once(wide, settings)
    assert "known" in again.report["anchors"][0]["warm_start"]


def test_a_constant_that_is_another_one(tmp_path):
    settings = {"cache": str(tmp_path)}

    def faster(see):
        return plain(see, rate=0.2)

    run_once(plain, settings)
    eager, other = run_once(faster, None), run_once(faster, settings)
    assert other.seen == eager.seen
    assert other.result == eager.result
    assert other.report["regions"]["co_executed"] > 5
    third = run_once(faster, settings)
    assert third.seen == eager.seen


def damaged(path):
    path.write_bytes(path.read_bytes()[:-20])


def foreign(path):
    path.write_bytes(b"something else")


def of_the_future(path):
    path.write_bytes(path.read_bytes().replace(b"cache %d\n" % VERSION, b"cache %d\n" % (VERSION + 1), 1))


@pytest.mark.parametrize("damage", [damaged, foreign, of_the_future])
def test_a_bad_entry_is_told_once_and_written_anew(tmp_path, capsys, damage):
    settings = {"cache": str(tmp_path)}
    run_once(plain, settings)
    for entry in entries(tmp_path):
        damage(entry.path)
    eager, cold = run_once(plain, None), run_once(plain, settings)
    assert cold.seen == eager.seen
    assert capsys.readouterr().err.count("terra-cx: cache: ") == 1
    assert cold.report["cache"]["problems"] == 1
    assert cold.report["regions"]["co_executed"] > 5
    assert run_once(plain, settings).report["cache"]["loaded"] == 1


def test_read_only(tmp_path):
    run_once(plain, {"cache": str(tmp_path)})
    before = {entry.path: entry.path.read_bytes() for entry in entries(tmp_path)}
    warm = run_once(plain, {"cache": str(tmp_path), "cache_readonly": True})
    assert warm.report["cache"]["loaded"] == 1
    run_once(branching, {"cache": str(tmp_path), "cache_readonly": True})
    assert {entry.path: entry.path.read_bytes() for entry in entries(tmp_path)} == before


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    eager, run = run_once(plain, None), run_once(plain, {"cache": str(tmp_path / "file" / "cache")})
    assert run.seen == eager.seen
    assert run.report["regions"]["co_executed"] > 5
    assert run.report["internal_errors"] == 0
    assert capsys.readouterr().err.count("cannot be written (Not a directory)") == 1


def test_a_mistake_of_ours_ends_the_use_of_the_cache_only(tmp_path, monkeypatch):
    from terra_cx.cache.journal import Journal

    run_once(plain, {"cache": str(tmp_path)})

    def broken(*_):
        raise AssertionError("made to fail")

    for name in ("warm", "noted", "stored"):
        with monkeypatch.context() as patch:
            patch.setattr(Journal, name, broken)
            for entry in entries(tmp_path) if name != "warm" else ():
                entry.path.unlink()
            eager, run = run_once(plain, None), run_once(plain, {"cache": str(tmp_path)})
        assert run.seen == eager.seen
        assert run.result == eager.result
        assert run.report["internal_errors"] == 1
        assert run.report["regions"]["co_executed"] > 5


UPDATE = """
def update(weights, x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(tf.matmul(x, weights)))
    weights.assign_sub(0.1 * tape.gradient(loss, weights))
    return loss
"""


def calling(source):
    """A program whose step is in other code than its loop."""
    names = {"tf": tf}
    exec(compile(source, __file__, "exec"), names)
    update = names["update"]

    def program(see):
        weights = tf.Variable(tf.random.normal([6, 3]))
        for x in batches():
            see(update(weights, x))
        return weights

    return program


def test_code_that_the_loop_calls_was_edited(tmp_path):
    settings = {"cache": str(tmp_path)}
    run_once(calling(UPDATE), settings)
    same = run_once(calling(UPDATE), settings)
    assert "known" in same.report["anchors"][0]["warm_start"]
    for edit in (UPDATE.replace("0.1 *", "0.2 *"), "\n" + UPDATE):
        eager, edited = run_once(calling(edit), None), run_once(calling(edit), settings)
        assert edited.seen == eager.seen
        assert edited.report["anchors"][0]["warm_start"].startswith("no: ")
        assert edited.report["cache"]["problems"] == 0
        assert edited.report["regions"]["co_executed"] > 5


SCRIPT = """
import numpy as np, tensorflow as tf
tf.random.set_seed(3)
weights = tf.Variable(tf.random.normal([6, 3]))
rng = np.random.default_rng(2)
for step in range(40):
    with tf.GradientTape() as tape:
        x = rng.normal(size=(4, 6)).astype("float32")
        loss = tf.reduce_mean(tf.square(tf.matmul(x, weights)))
    weights.assign_sub(0.1 * tape.gradient(loss, weights))
    if step % 10 == 0:
        print(step, float(loss))
print(weights.numpy().tobytes().hex())
"""


def test_processes(tmp_path):
    """Two cold runs at once, then a warm one."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TERRA_CACHE": "cache"}

    def started(name):
        command = [sys.executable, "-m", "terra_cx", "run", "--report", name, "script.py"]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ended(process, name):
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert "cache" not in err
        return out, json.loads((tmp_path / name).read_text())

    both = [(started(name), name) for name in ("one.json", "two.json")]
    runs = [ended(*one) for one in both]
    assert all(report["cache"]["saved"] or report["cache"]["loaded"] for _, report in runs)
    assert len(entries(tmp_path / "cache")) == 1
    runs.append(ended(started("warm.json"), "warm.json"))
    assert len({out for out, _ in runs}) == 1
    warm = runs[-1][1]
    assert warm["cache"]["loaded"] == 1
    assert warm["regions"]["eager"] == 0
    assert warm["regions"]["co_executed"] >= 37


def test_a_run_that_is_killed_has_saved_what_it_knew(tmp_path):
    script = SCRIPT.replace("range(40)", "range(110)").replace("import numpy", "import os, sys, numpy")
    killed = (
        "    if step == 100 and sys.argv[1:]:\n        os.kill(os.getpid(), 9)\n    with tf.GradientTape()"
    )
    (tmp_path / "script.py").write_text(script.replace("    with tf.GradientTape()", killed))
    words = ["-m", "terra_cx", "run", "--cache", "cache", "--report", "report.json", "script.py"]
    command = [sys.executable, *words]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    first = subprocess.run(
        [*command, "kill"], cwd=tmp_path, env=environment, capture_output=True, timeout=100
    )
    assert first.returncode == -9
    assert len(entries(tmp_path / "cache")) == 1
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["cache"]["loaded"] == 1
    assert "known" in report["anchors"][0]["warm_start"]
    assert report["regions"]["eager"] == 0


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TERRA_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    run_once(plain, {"cache": str(tmp_path / "cache")})
    (tmp_path / "cache" / ("0" * 40 + ".terra")).write_bytes(b"nothing")
    assert cli.main(["cache", "info", "cache"]) == 0
    shown = capsys.readouterr().out
    assert f"{Path(__file__).name}:" in shown
    assert "not used, it is no file of terra-cx's" in shown
    assert "2 loops in cache" in shown
    monkeypatch.setenv("TERRA_CACHE", "cache")
    assert cli.main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "2 loops removed from cache\n"
    assert entries(tmp_path / "cache") == []
    assert cli.main(["cache", "clear", "nowhere"]) == 2
    monkeypatch.delenv("TERRA_CACHE")
    assert cli.main(["cache", "info"]) == 2
    assert textwrap.shorten(capsys.readouterr().err, 60).startswith("terra-cx cache: nowhere is no directory")

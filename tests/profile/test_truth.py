"""Every metric against what a program has measured itself (`make truth`): it takes a minute, and a machine at rest."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf
from test_chrome_trace import check_trace

import terra_cx
from terra_cx.profile import profiler as profiling
from terra_cx.profile.events import Window
from terra_cx.profile.intervals import intersection, length, subtract
from terra_cx.profile.metrics import measure
from terra_cx.profile.profiler import Plan
from terra_cx.run.graph_runner import GraphRunner
from terra_cx.run.handover import Handover

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("PROFILE_TRUTH"), reason="times are compared: make truth"),
]

WITHIN, STEPS = 0.05, 400
clock = time.perf_counter_ns


class Truth:
    """What a program notes about itself; all are lists of (start, end)."""

    def __init__(self):
        self.steps, self.sleeps, self.reads, self.work, self.waits = [], [], [], [], []

    def inside(self, window, spans):
        begin, end = window.regions[0].start, window.regions[-1].end
        return [(start, until) for start, until in spans if begin <= start and until <= end]


def program(truth, steps, sleep, read_every, size):
    """A step that sleeps, multiplies matrices, and reads its loss now and then."""
    weight = tf.Variable(tf.random.normal([size, size]))
    batch = tf.ones([size, size])  # converting an array takes Python's time, and nobody could say how long
    begin = clock()
    for step in range(steps):
        start = clock()
        time.sleep(sleep)
        truth.sleeps.append((start, clock()))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.tanh(tf.matmul(batch, weight)))
        weight.assign_sub(1e-3 * tape.gradient(loss, weight))
        if step % read_every == 0:
            start = clock()
            float(loss)
            truth.reads.append((start, clock()))
        truth.steps.append((begin, begin := clock()))


@pytest.fixture
def truth(monkeypatch):
    """With the graph runner noting its work, and Python its waits, inside of what the profiler taps."""
    made = Truth()

    def noted(spans, real):
        def note(*args):
            start = clock()
            try:
                return real(*args)
            finally:
                spans.append((start, clock()))

        return note

    monkeypatch.setattr(GraphRunner, "_compute", noted(made.work, GraphRunner._compute))
    monkeypatch.setattr(Handover, "wait", noted(made.waits, Handover.wait))
    return made


@pytest.mark.parametrize(
    ("sleep", "read_every", "size", "bound"),
    [(0.032, 1, 400, "python"), (0.016, 1, 1200, "fetch"), (0.016, 1000, 1200, "graph")],
)
def test_each_metric_is_within_five_percent_of_the_truth(
    tmp_path, monkeypatch, truth, sleep, read_every, size, bound
):
    monkeypatch.setattr(profiling, "Plan", lambda: Plan(first=40, times=1000, steps=STEPS, most_seconds=60))
    run = terra_cx.co_execute(profile=tmp_path, pace="overlapped")(program)
    run(truth, STEPS + 100, sleep, read_every, size)
    (profile,) = run.last_session.profiler.anchors.values()
    window = profile.window()
    assert isinstance(window, Window)
    found = measure(window)
    rows = list(compared(found, window, truth))
    for name, measured, true in rows:
        print(f"{bound:8} {name:16} {measured:9.4f}  truth {true:9.4f}  {100 * (measured / true - 1):+.2f} %")
    assert found.bound_by.what == bound
    for name, measured, true in rows:
        assert measured == pytest.approx(true, rel=WITHIN), name


def compared(found, window, truth):
    """Name, as the profile says, as the program says; milliseconds per step."""
    steps = len(window.steps())
    spans = [(window.regions[0].start, window.regions[-1].end)]
    per_step = 1e6 * steps
    reads, sleeps = (truth.inside(window, noted) for noted in (truth.reads, truth.sleeps))
    work = intersection(spans, truth.work)
    inner = truth.inside(window, truth.steps)
    yield "step", found.step_ms, length(inner) / len(inner) / 1e6
    yield "graph busy", found.graph_busy_ms, length(work) / per_step
    sleeping = sum(
        parts.get("host", 0) for line, parts in found.lines.items() if is_line(line, "time.sleep(")
    )
    yield "sleep", sleeping, length(sleeps) / per_step
    if length(subtract(spans, work)) > 0.05 * length(spans):
        yield (
            "runner waits",
            found.feed_wait_ms + found.path_wait_ms,
            length(subtract(spans, work)) / per_step,
        )
    yield "parts", sum(found.parts_ms.values()), length(inner) / len(inner) / 1e6
    python = subtract(spans, [*reads, *truth.waits])
    yield "python busy", found.python_busy_ms, length(python) / per_step
    if reads:
        yield "fetch wait", found.fetch_wait_ms, length(reads) / per_step
    else:
        yield "graph wait", found.graph_wait_ms, (length(spans) - length(python)) / per_step
    overlap = length(intersection(python, work)) / length(work)
    if overlap > 0.05:
        yield "overlap", found.overlap, overlap
    alone = length(subtract(python, work))
    if alone > 0.05 * length(spans):
        yield "python alone", found.python_alone_ms, alone / per_step
    yield "ops", found.ops_per_step, 11


PROGRAMS = sorted(
    file.stem
    for file in (Path(__file__).parents[2] / "programs").glob("*.py")
    if '__name__ == "__main__"' in file.read_text()
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_parts_of_a_step_of_every_program_add_up_to_the_step(tmp_path, name):
    program = Path(__file__).parents[2] / "programs" / f"{name}.py"
    words = ["--profile", tmp_path, program, "--steps", "48", "--scale", "tiny"]
    command = [sys.executable, "-m", "terra_cx", "run", "--quiet", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    profile = json.loads((tmp_path / "profile.json").read_text())
    check_trace(json.loads((tmp_path / "trace.json").read_text()))
    seen = [anchor for anchor in profile["anchors"] if anchor["metrics"] is not None]
    for anchor in seen:
        step = anchor["metrics"]["step_ms"]
        print(
            f"{name:18} {anchor['window']['steps']} steps of {step:.2f} ms, {anchor['metrics']['bound_by']}"
        )
        assert sum(anchor["parts_ms"].values()) == pytest.approx(step)
        assert sum(sum(line["parts_ms"].values()) for line in anchor["lines"]) == pytest.approx(step)
    assert seen or profile["problems"]
    assert profile["internal_errors"] == 0


def is_line(line, text):
    file, _, number = line.rpartition(":")
    with open(file) as source:
        return source.read().splitlines()[int(number) - 1].strip().startswith(text)

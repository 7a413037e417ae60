"""What is concluded from the runs of one program; no process is started."""

import json
from dataclasses import astuple

import numpy as np
import pytest

from terra_cx.bench.command import _is_wrong
from terra_cx.bench.measure import Bench, Figures, Measurement
from terra_cx.bench.modes import MODES, USUAL
from terra_cx.check.runs import Run
from terra_cx.check.stream import describe

ANCHOR = "/p/train.py:7"


class FakeRunner:
    """Gives runs that are the same but for what a test says about a mode."""

    def __init__(self, **changes):
        self.changes = {name.replace("_", "-"): change for name, change in changes.items()}
        self.jobs = []

    def run(self, job, folder):
        mode = job.more["mode"]["name"]
        number = sum(each.more["mode"]["name"] == mode for each in self.jobs)
        self.jobs.append(job)
        change = {**self.changes.get(mode, {}), **self.changes.get(f"{mode}{number}", {})}
        return leave(folder, mode, **change)


def leave(
    folder, mode, *, value=1.0, output="loss\n", status=0, lap=0.01, laps=60, calls=120, limit=None, stderr=""
):
    folder.mkdir(parents=True)
    item = ["/p/train.py", 9, None, *astuple(describe(np.float32(value)))]
    (folder / "stream.jsonl").write_text(json.dumps(item) + "\n")
    (folder / "stdout").write_text(output)
    end = {
        "made": 0,
        "variables": [],
        "generators": {},
        "clocks": {ANCHOR: {"count": 120, "laps": [lap] * laps}},
        "crossings": {"compared": 1, "library": 0, "other threads": 0},
        "problems": [],
        "failure": None,
        "bench": {
            "calls": calls,
            "head": {"steps": 60, "seconds": 2.6} if calls else None,
            "laps": [lap] * laps if calls else [],
            "first_seconds": 3.0 if calls else None,
            "peak_mb": 600.0,
            "threads": [2, 2],
            "limit_ms": limit,
        },
    }
    report = {"regions": {"total": 100, "co_executed": 95}} if mode in ("co", "lazy") else None
    return Run(folder, status, 1.0, stderr, end, report)


@pytest.fixture
def bench(tmp_path):
    def bench(*modes, rounds=2, **changes):
        bench.runner = FakeRunner(**changes)
        chosen = [MODES[mode] for mode in modes or MODES]
        bench.told = []
        made = Bench(bench.runner, ("--x",), chosen, rounds, "train_step", 2)
        return made.of(
            "train.py", tmp_path / "train.py", tmp_path, lambda what, steps: bench.told.append(what)
        )

    return bench


def test_modes_take_turns(bench):
    made = bench("eager", "co", "async")
    assert bench.told == ["train.py " + mode for mode in ("eager", "co", "async") * 2]
    assert made.timed_at == "train_step"
    assert {job.arguments for job in bench.runner.jobs} == {("--x",)}
    assert [job.settings["mode"] for job in bench.runner.jobs][:3] == ["eager", "co", "eager"]
    assert [job.more["mode"]["asynchronous"] for job in bench.runner.jobs][:3] == [False, False, True]


def test_levels_are_modes(bench):
    bench("eager", "co", "co-graph", "co-xla", "co-auto", rounds=1)
    asked = [(job.settings["mode"], job.settings["level"]) for job in bench.runner.jobs]
    # The setting of the environment must not turn `co` into something else.
    assert asked == [("eager", "exact"), *(("co", level) for level in ("exact", "graph", "xla", "auto"))]
    assert [mode.name for mode in USUAL] == ["eager", "function", "xla", "async", "lazy", "co"]


@pytest.mark.parametrize(
    ("mode", "wrong"), [("co", True), ("lazy", True), ("co-graph", False), ("function", False)]
)
def test_only_a_level_may_round(bench, mode, wrong):
    name = mode.replace("-", "_")
    made = bench("eager", mode, rounds=1, **{name: {"value": 1.0 + 1e-5}})
    assert made.figures[mode].result == "rounding"
    assert _is_wrong(made) is wrong


def test_a_level_may_not_be_wrong(bench):
    made = bench("eager", "co-graph", rounds=1, co_graph={"value": 1.5})
    assert made.figures["co-graph"].result == "wrong"
    assert _is_wrong(made)


def test_figures(bench):
    made = bench(co0={"lap": 0.004, "limit": 1.0}, co1={"lap": 0.006, "limit": 3.0})
    co = made.figures["co"]
    assert co.rounds_ms == pytest.approx([4.0, 6.0])
    assert co.step_ms == pytest.approx(5.0)
    assert co.spread_ms == pytest.approx((4.0, 6.0))
    assert co.limit_ms == 2.0
    assert co.co_executed == 0.95
    assert (co.first_seconds, co.peak_mb, co.threads) == (3.0, 600.0, [2, 2])
    assert co.warmup_seconds == pytest.approx(2.6 - 60 * 0.004)
    assert made.speedup("co") == pytest.approx(2.0)
    assert made.figures["eager"].co_executed is None


def test_a_failing_mode_is_not_run_again(bench):
    made = bench("eager", "function", function={"status": 1, "stderr": "x\nAttributeError: numpy\n"})
    figures = made.figures["function"]
    assert (figures.result, figures.detail) == ("fails", "exit status 1: AttributeError: numpy")
    assert made.speedup("function") is None
    assert len(bench.runner.jobs) == 3


def test_a_program_that_fails_in_eager_is_not_timed(bench):
    made = bench(eager={"status": 2, "stderr": "no such file"})
    assert (made.failure, made.figures, len(bench.runner.jobs)) == ("exit status 2: no such file", {}, 1)


def test_a_difference_in_any_round_counts(bench):
    made = bench("eager", "co", co1={"value": 1.5})
    assert made.figures["co"].result == "wrong"
    assert made.figures["eager"].result == "identical"


def test_rounding(bench):
    made = bench("eager", "xla", xla={"value": 1.0000001})
    assert made.figures["xla"].result == "rounding"
    assert made.figures["xla"].detail.startswith(
        "first by 1e-07 of the value, at most by 1e-07: /p/train.py:9: "
    )


def test_nobody_is_blamed_where_eager_differs_from_itself(bench):
    made = bench("eager", "co", "xla", eager1={"output": "other\n"}, co={"output": "third\n"})
    results = {mode: figures.result for mode, figures in made.figures.items()}
    assert results == {"eager": "nondeterministic", "co": "nondeterministic", "xla": "identical"}


def test_without_a_step_function_steps_are_those_of_the_anchor(bench):
    changes = {mode: {"calls": 0} for mode in MODES}
    made = bench(**{**changes, "co": {"calls": 0, "lap": 0.005}})
    assert made.timed_at == ANCHOR
    assert made.notes == [f"no function train_step was called; steps begin at {ANCHOR}"]
    assert made.figures["function"].result == made.figures["xla"].result == "not applicable"
    assert made.speedup("co") == pytest.approx(2.0)
    assert made.figures["co"].first_seconds is None
    eager = [job.anchor for job in bench.runner.jobs if job.more["mode"]["name"] == "eager"]
    assert eager == ["", ANCHOR, ANCHOR]


def test_too_few_steps_have_no_time(bench):
    made = bench("eager", "co", co={"laps": 5})
    assert made.figures["co"].step_ms is None
    assert made.speedup("co") is None
    assert made.figures["co"].result == "identical"


def test_folders_of_runs_are_removed(bench, tmp_path):
    bench("eager", "co")
    assert [each.name for each in tmp_path.iterdir()] == ["truth"]


def test_speedup_of_nothing():
    made = Measurement("a", None, {"eager": Figures("eager"), "co": Figures("co", rounds_ms=[1.0])})
    assert made.speedup("co") is None

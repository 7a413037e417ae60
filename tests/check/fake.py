"""Runs that never happened: what a child would have left, written by the tests."""

import json
from dataclasses import astuple
from pathlib import Path

import numpy as np

from terra_cx.check.runs import Run
from terra_cx.check.stream import describe

ANCHOR = "/p/train.py:7"


def record(**changes):
    """A co-executed run's report."""
    made = {
        "tensorflow": "2.21.0",
        "regions": {"total": 60, "co_executed": 50, "traced": 2, "eager": 8},
        "fallbacks": [],
        "anchors": [{"line": ANCHOR, "given_up": None}],
        "internal_errors": 0,
    }
    return {**made, **changes}


def fallback(count=3, reason="new-op"):
    return {"reason": reason, "line": "train.py:9", "count": count, "seconds": 0.1, "detail": "Mul"}


def leave(
    folder: Path,
    *,
    values=(1.0, 2.0),
    lines=None,
    output="loss 1.0\n",
    status=0,
    variables=(("w:0", 3.0),),
    made=None,
    generators=None,
    lap=0.010,
    laps=60,
    report=None,
    problems=(),
    failure=None,
    stderr="",
    ended=True,
    stepped=False,
):
    """Write a run's files into a new `folder` and return the run."""
    folder.mkdir(parents=True)
    items = []
    for index, value in enumerate(values):
        line = lines[index] if lines else 9
        step = index + 1 if stepped else None
        items.append(json.dumps(["/p/train.py", line, step, *astuple(describe(np.float32(value)))]) + "\n")
    (folder / "stream.jsonl").write_text("".join(items))
    (folder / "stdout").write_text(output)
    end = {
        "made": len(variables) if made is None else made,
        "variables": [
            (number, name, None if value is None else list(astuple(describe(np.float32(value)))))
            for number, (name, value) in enumerate(variables)
        ],
        "generators": generators or {"random": "a"},
        "clocks": {ANCHOR: {"count": 2 * laps, "laps": [lap] * laps}},
        "crossings": {"compared": len(values), "library": 0, "other threads": 0},
        "problems": list(problems),
        "failure": failure,
    }
    end = json.loads(json.dumps(end))
    return Run(folder, status, 1.0, stderr, end if ended else None, report)


class FakeRunner:
    """Stands for `Runner`: gives back, in turns, runs made of these keyword arguments."""

    def __init__(self, *runs):
        self.runs = list(runs)
        self.jobs = []

    def run(self, job, folder):
        self.jobs.append(job)
        return leave(folder, **self.runs.pop(0))

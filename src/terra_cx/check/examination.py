"""The examination of one program: eager, co-executed, eager again, and what follows from the three.

The second eager run has probes and is timed at the anchor that the co-executed run has found; it is also what the
first is compared with. It comes last for that, and so that the two modes take turns on a machine whose speed drifts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from terra_cx.check.compare import Difference, differences, steady_generators, step_of
from terra_cx.check.nearness import furthest
from terra_cx.check.runs import Job, Run, Runner
from terra_cx.check.speed import Speed
from terra_cx.check.stream import read
from terra_cx.check.verdict import Gates, Outcome, Verdict, judge

__all__ = ["RUNS", "Examination", "main_anchor", "with_steps"]

RUNS = 3


@dataclass(frozen=True, slots=True)
class Examination:
    """How programs are examined.

    Args:
        runner: starts the processes.
        arguments: what every program gets.
        settings: settings for the co-executed run, by field name.
        masks: what of an output line is not compared.
        gates: what is asked beside equality.
        baseline: ratios of step times, by name.
        tolerance: how far numbers may be from eager's, as a part of them (`nearness.distance`); 0 for not at all.
    """

    runner: Runner
    arguments: tuple[str, ...]
    settings: Mapping[str, object]
    masks: Sequence[re.Pattern[str]] = ()
    gates: Gates = dataclasses.field(default_factory=Gates)
    baseline: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tolerance: float = 0.0

    def of(self, name: str, script: Path, folder: Path, started: Callable[[str], None]) -> Verdict:
        """Examine one program.

        Args:
            name: what it is called in reports.
            script: its file.
            folder: an empty folder for what the runs leave.
            started: told what begins: a mode.

        Raises:
            OSError: a process could not be started, or a file not be written.
        """
        verdict = Verdict(name, script, before=self.baseline.get(name))
        if self.baseline and verdict.before is None:
            verdict.notes.append("not in the baseline")

        more = {"sketched": True} if self.tolerance else {}

        def run(what: str, mode: str, anchor: str = "") -> Run:
            started(what)
            settings = {**(self.settings if mode != "eager" else {}), "mode": mode}
            done = self.runner.run(Job(str(script), self.arguments, settings, anchor, more), folder / what)
            verdict.seconds += done.seconds
            return done

        eager = run("eager", "eager")
        if eager.status != 0:
            verdict.stderr = eager.stderr
            return verdict.blame(Outcome.FAILED, eager.ending)
        if eager.end is not None:
            verdict.crossings = eager.end["crossings"]
            verdict.variables = len(eager.end["variables"])
        co = run("co", "co")
        verdict.report = co.report
        anchor = main_anchor(co)
        again = run("eager-again", "eager", anchor)
        failures = [r.end["failure"] for r in (eager, co, again) if r.end is not None and r.end["failure"]]
        if failures:
            return verdict.blame(Outcome.FAILED, f"it could not be observed: {failures[0]}")
        unsteady = list(differences(eager, again, self.masks))
        if unsteady:
            verdict.differences = with_steps(unsteady, again)
            return verdict.blame(Outcome.NONDETERMINISTIC, f"two eager runs: {verdict.differences[0]}")
        seeded = steady_generators(eager, again)
        found = list(differences(eager, co, self.masks, seeded))
        inexact = found and self.tolerance
        if inexact:
            found = list(differences(eager, co, self.masks, seeded, self.tolerance))
        verdict.differences = with_steps(found, again)
        if verdict.differences and co.status != 0:
            verdict.stderr = co.stderr
        verdict.speed = _speed(again, co, anchor)
        judge(verdict, co, self.gates)
        if inexact and verdict.outcome is Outcome.IDENTICAL:
            verdict.blame(Outcome.WITHIN, _how_far(eager, co, self.tolerance))
        return verdict


def main_anchor(co: Run) -> str:
    """The anchor with most regions, as `file:line`; empty if there was none."""
    clocks = co.end["clocks"] if co.end is not None else {}
    return max(clocks, key=lambda line: int(clocks[line]["count"]), default="")


def with_steps(found: Iterable[Difference], counted: Run) -> list[Difference]:
    """Differences with the step in which the value was read, taken from a run that counted them."""
    return [
        each if each.index is None else dataclasses.replace(each, step=step_of(counted, each.index))
        for each in found
    ]


def _how_far(eager: Run, co: Run, tolerance: float) -> str:
    pairs = zip(read(eager.stream), read(co.stream), strict=False)
    far = furthest((left.value, right.value) for left, right in pairs)
    read_so = f"the values read at most {far:.0e} of eager's away, " if far is not None else ""
    return f"{read_so}{tolerance:g} allowed for them, the final variables and the output"


def _speed(eager: Run, co: Run, anchor: str) -> Speed:
    if not anchor:
        return Speed(None, None, "no training step was found")
    if eager.end is None or co.end is None:
        return Speed(None, None, "the program ended by os._exit")
    eager_laps = eager.end["clocks"].get(anchor, {}).get("laps", [])
    return Speed.of(eager_laps, co.end["clocks"][anchor]["laps"])

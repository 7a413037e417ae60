"""Times one program in all modes, in turns, and says whether each computes what eager does."""

from __future__ import annotations

import dataclasses
import re
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terra_cx.bench.modes import MODES, Mode
from terra_cx.bench.result import result_of
from terra_cx.check.compare import differences
from terra_cx.check.examination import main_anchor
from terra_cx.check.runs import Job, Run, Runner
from terra_cx.check.speed import MIN_LAPS, step_ms
from terra_cx.check.terminal import Announce

__all__ = ["Bench", "Figures", "Measurement"]


@dataclass(slots=True)
class Figures:
    """One mode of one program.

    `result` is `identical`, `rounding`, `wrong`, `fails`, `not applicable` or `nondeterministic` (eager only), `detail`
    says more. Times are of steady steps, in milliseconds, a number a round; `first_seconds` and `warmup_seconds` are of
    the first round.
    """

    mode: str
    result: str = "identical"
    detail: str = ""
    rounds_ms: list[float] = field(default_factory=list)
    first_seconds: float | None = None
    warmup_seconds: float | None = None
    peak_mb: float | None = None
    limits_ms: list[float] = field(default_factory=list)
    co_executed: float | None = None
    threads: list[int] | None = None
    laps: list[float] = field(default_factory=list)

    @property
    def step_ms(self) -> float | None:
        """Median over the rounds."""
        return statistics.median(self.rounds_ms) if self.rounds_ms else None

    @property
    def limit_ms(self) -> float | None:
        """The compiled graph alone, median over the rounds."""
        return statistics.median(self.limits_ms) if self.limits_ms else None

    @property
    def spread_ms(self) -> tuple[float, float] | None:
        """First and third quartile of single steps, all rounds together."""
        if len(self.laps) < MIN_LAPS:
            return None
        low, _, high = statistics.quantiles(self.laps, n=4)
        return 1e3 * low, 1e3 * high


@dataclass(slots=True)
class Measurement:
    """All modes of one program. `timed_at` is the step function's name or the anchor; `failure` ends it."""

    name: str
    script: Path
    figures: dict[str, Figures] = field(default_factory=dict)
    timed_at: str = ""
    failure: str = ""
    unreadable: bool = False
    notes: list[str] = field(default_factory=list)

    def speedup(self, mode: str) -> float | None:
        """Eager's step time over that of a mode."""
        eager, other = self.figures["eager"].step_ms, self.figures[mode].step_ms
        return eager / other if eager and other else None


@dataclass(frozen=True, slots=True)
class Bench:
    """How programs are timed.

    Args:
        runner: starts the processes.
        arguments: what every program gets.
        modes: which, eager first.
        rounds: how often each.
        step: the name of the step function.
        threads: of TensorFlow, within and between ops.
        masks: what of an output line is not compared.
    """

    runner: Runner
    arguments: tuple[str, ...]
    modes: Sequence[Mode]
    rounds: int
    step: str
    threads: int
    masks: Sequence[re.Pattern[str]] = ()

    def of(self, name: str, script: Path, folder: Path, announce: Announce) -> Measurement:
        """Time one program.

        Args:
            name: what it is called in reports.
            script: its file.
            folder: an empty folder for what the runs leave.
            announce: told what begins.

        Raises:
            OSError: a process could not be started, or a file not be written.
        """

        def started(mode: str) -> None:
            announce(f"{name} {mode}", 1)

        made = Measurement(name, script)
        truth = self._run(script, folder / "truth", MODES["eager"], "", started)
        if truth.status != 0:
            made.failure = truth.ending
            return made
        calls = _bench(truth).get("calls", 0)
        anchor = ""
        if calls:
            made.timed_at = self.step
        else:
            # Where there is no step function, co-execution knows where steps begin.
            scout = self._run(script, folder / "scout", MODES["co"], "", started)
            anchor = made.timed_at = main_anchor(scout)
            made.notes.append(
                f"no function {self.step} was called; "
                + (f"steps begin at {anchor}" if anchor else "no step was found")
            )
        made.figures = {mode.name: Figures(mode.name) for mode in self.modes}
        for number in range(self.rounds):
            for mode in self.modes:
                figures = made.figures[mode.name]
                if figures.result in ("fails", "not applicable"):
                    continue
                if mode.wrap and not calls:
                    figures.result = "not applicable"
                    figures.detail = f"no function {self.step} was called"
                elif number == 0 and mode.name == "eager" and calls:
                    self._take(figures, truth, truth, anchor)
                else:
                    place = folder / f"{mode.name}-{number}"
                    run = self._run(script, place, mode, anchor, started, calls)
                    self._take(figures, run, truth, anchor)
                    shutil.rmtree(place)
        if made.figures["eager"].result != "identical":
            for figures in made.figures.values():
                if figures.result in ("wrong", "rounding"):
                    figures.result = "nondeterministic"
        return made

    def runs(self) -> int:
        """How many processes a program takes at most."""
        return self.rounds * len(self.modes) + 1

    def _run(
        self,
        script: Path,
        folder: Path,
        mode: Mode,
        anchor: str,
        started: Callable[[str], None],
        calls: int = 0,
    ) -> Run:
        started(mode.name)
        more = {
            "name": self.step,
            "threads": self.threads,
            "mode": dataclasses.asdict(mode),
            "most": calls if mode.wrap else 0,
            "sketched": True,
        }
        settings = {"mode": mode.session, "level": mode.level}
        return self.runner.run(
            Job(str(script), self.arguments, settings, anchor if mode.session == "eager" else "", more),
            folder,
        )

    def _take(self, figures: Figures, run: Run, truth: Run, anchor: str) -> None:
        """Add a run to a mode's figures."""
        if run.status != 0:
            figures.result, figures.detail = "fails", run.ending
            return
        if run.end is not None and run.end["failure"]:
            figures.result, figures.detail = "fails", f"it could not be observed: {run.end['failure']}"
            return
        result, detail = result_of(list(differences(truth, run, self.masks)), truth, run)
        if _bench(run).get("endless"):
            calls = _bench(truth)["calls"]
            result, detail = "wrong", f"does not end: eager calls {self.step} {calls} times; {detail}"
        if _RANK.index(result) > _RANK.index(figures.result):
            figures.result, figures.detail = result, detail
        bench = _bench(run)
        if not bench:
            return
        laps = run.end["clocks"].get(anchor, {}).get("laps", []) if anchor and run.end else bench["laps"]
        steady = step_ms(laps)
        if steady is not None:
            figures.rounds_ms.append(steady)
            figures.laps += laps
            if figures.warmup_seconds is None and bench["head"] is not None:
                head = bench["head"]
                figures.warmup_seconds = max(0.0, head["seconds"] - head["steps"] * steady / 1e3)
        if figures.first_seconds is None:
            figures.first_seconds = bench["first_seconds"]
        if bench["peak_mb"] is not None:
            figures.peak_mb = max(figures.peak_mb or 0.0, bench["peak_mb"])
        if bench["limit_ms"] is not None:
            figures.limits_ms.append(bench["limit_ms"])
        figures.threads = bench["threads"]
        if run.report is not None and run.report["regions"]["total"]:
            regions = run.report["regions"]
            share = regions["co_executed"] / regions["total"]
            figures.co_executed = min(share, figures.co_executed if figures.co_executed is not None else 1.0)


_RANK = ("identical", "rounding", "wrong", "fails", "not applicable")


def _bench(run: Run) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (run.end or {}).get("bench", {})
    return found

"""The command `terra-cx check`: its words, its progress, its files, its exit status."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

from terra_cx import config
from terra_cx.check import baseline, junit, output, programs
from terra_cx.check.examination import RUNS, Examination
from terra_cx.check.nearness import ROUNDING
from terra_cx.check.runs import Runner
from terra_cx.check.terminal import console_for, progress, stoppable
from terra_cx.check.verdict import Gates, Outcome, Verdict, exit_status
from terra_cx.check.words import common, factor, parse, percent, whole
from terra_cx.report import files

__all__ = ["main"]

_EPILOG = """
exit status: 0 every program identical, or above level exact within tolerance, and co-executed; 1 a difference;
2 wrong usage, nothing was run; 3 nondeterministic in plain eager; 4 not co-executed; 5 fails in plain eager;
6 too slow; 7 fell back, with --fail-on fallback; 8 a path or the baseline cannot be read; 9 a file cannot be
written. Of several the first of 1 5 8 3 4 7 6 9.
"""


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    parser = _parser()
    options, arguments = parse(parser, words)
    timed = options.fail_under_speedup or options.max_regression or options.write_baseline
    if options.jobs > 1 and timed:
        parser.error("programs that run side by side cannot be timed; leave --jobs out where speed is judged")
    if options.max_regression is not None and options.baseline is None:
        parser.error("--max-regression needs a --baseline to compare with")
    return _Check(options, arguments).run()


class _Check:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace, arguments: tuple[str, ...]) -> None:
        self._options = options
        self._arguments = arguments
        self._level = options.level or config.load().level
        self._tolerance = options.tolerance if self._level != "exact" else 0.0
        self._unreadable = False
        self._files = files.Claims(
            {name: getattr(options, name) for name in ("json", "junit", "write_baseline")}
        )
        self._problems = self._files.problems

    def run(self) -> int:
        options = self._options
        verdicts = self._find()
        ratios = self._baseline()
        runner = Runner(options.timeout)
        gates = Gates(options.fail_under_speedup, options.max_regression, "fallback" in options.fail_on)
        settings = {"level": self._level}
        examination = Examination(
            runner, self._arguments, settings, options.mask, gates, ratios, self._tolerance
        )
        head = f"level {self._level}: numbers within {self._tolerance:g} of eager's count as equal"
        head = head if self._tolerance else ""
        examined: list[Verdict] = []
        try:
            with stoppable(), tempfile.TemporaryDirectory(prefix="terra-cx-check-") as folder:
                verdicts = _examine(examination, verdicts, Path(folder), options.jobs, examined)
        except KeyboardInterrupt:
            runner.stop()
            if examined:
                output.show(console_for(sys.stdout), examined, self._problems, head)
            told = f"interrupted, {len(examined)} of {len(verdicts)} programs were examined"
            sys.stderr.write(f"terra-cx check: {told}\n")
            return 128 + signal.SIGINT
        ratios = {v.name: v.speed.ratio for v in verdicts if v.speed.ratio and not v.outcome.code}
        self._files.write("write_baseline", lambda: baseline.text(ratios, self._arguments))
        self._files.write("junit", lambda: junit.text(verdicts))
        # Last, because it tells what could not be written.
        self._files.write(
            "json",
            lambda: files.as_json(
                output.record(
                    verdicts,
                    self._arguments,
                    self._status(verdicts),
                    self._problems,
                    self._level,
                    self._tolerance,
                )
            ),
        )
        output.show(console_for(sys.stdout), verdicts, self._problems, head)
        return self._status(verdicts)

    def _status(self, verdicts: Sequence[Verdict]) -> int:
        return exit_status([v.outcome for v in verdicts], self._unreadable, self._files.failed)

    def _find(self) -> list[Verdict]:
        """A verdict, still open, per program."""
        found = [(Verdict(p.name, p.script), p.problem) for p in programs.listed(self._options.paths)]
        return [v.blame(Outcome.UNREADABLE, problem) if problem else v for v, problem in found]

    def _baseline(self) -> dict[str, float]:
        if self._options.baseline is None:
            return {}
        try:
            return baseline.read(self._options.baseline, self._arguments)
        except baseline.BaselineError as error:
            self._unreadable = True
            self._problems.append(str(error))
            return {}


def _examine(
    examination: Examination, verdicts: Sequence[Verdict], folder: Path, jobs: int, examined: list[Verdict]
) -> list[Verdict]:
    """Examine every program that can be read, `jobs` at a time, in the order given.

    If that is interrupted, ``examined`` is given the verdicts that there are.
    """
    readable = sum(not verdict.outcome.code for verdict in verdicts)
    with progress(RUNS * readable) as announce, ThreadPoolExecutor(jobs) as pool:

        def one(number: int, verdict: Verdict) -> Verdict:
            if verdict.outcome.code:
                return verdict
            name = verdict.name
            try:
                return examination.of(
                    name, verdict.script, folder / str(number), lambda mode: announce(f"{name} {mode}", 1)
                )
            except OSError as error:
                return verdict.blame(Outcome.UNREADABLE, f"cannot be run: {error}")

        waiting = [pool.submit(one, number, verdict) for number, verdict in enumerate(verdicts)]
        try:
            return [future.result() for future in waiting]
        except KeyboardInterrupt:
            examined += [future.result() for future in waiting if future.done()]
            for future in waiting:
                future.cancel()
            examination.runner.stop()
            raise


def _parser() -> argparse.ArgumentParser:
    parser = common(
        "check",
        "Runs each program in plain eager, co-executed, and in eager again, and compares bit for bit every value that "
        "reached Python, the standard output, the final variables and the random generators.",
        _EPILOG,
    )
    parser.add_argument(
        "--level",
        choices=get_args(config.LevelName),
        help="co-execute at this level of optimization; above exact, numbers need only be near eager's (default: "
        "as set in the environment or pyproject.toml, else exact)",
    )
    parser.add_argument(
        "--tolerance",
        type=factor,
        default=ROUNDING,
        metavar="X",
        help="how far numbers may be from eager's at such a level, as a part of them (default: 0.01)",
    )
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML for a CI system")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="step-time ratios to compare with")
    parser.add_argument("--write-baseline", type=Path, metavar="FILE", help="write such ratios")
    parser.add_argument(
        "--max-regression", type=percent, metavar="P%", help="fail where the ratio grew by more than that"
    )
    parser.add_argument(
        "--fail-under-speedup",
        type=factor,
        metavar="X",
        help="fail where co-execution is not X times as fast",
    )
    parser.add_argument(
        "--fail-on", action="append", default=[], choices=("fallback",), help="fail where a program fell back"
    )
    parser.add_argument("--jobs", type=whole, default=1, metavar="N", help="programs at a time (default: 1)")
    return parser

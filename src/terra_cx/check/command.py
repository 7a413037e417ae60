"""The command `terra-cx check`: its words, its progress, its files, its exit status."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from terra_cx import config
from terra_cx.check import baseline, junit, output, programs
from terra_cx.check.examination import RUNS, Examination
from terra_cx.check.runs import Runner
from terra_cx.check.verdict import Gates, Outcome, Verdict, exit_status
from terra_cx.errors import ConfigError, UsageError
from terra_cx.report import files

__all__ = ["Announce", "main", "progress", "split_words", "stoppable"]

_EPILOG = """
exit status: 0 every program identical and co-executed; 1 a difference; 2 wrong usage, nothing was run;
3 nondeterministic in plain eager; 4 not co-executed; 5 fails in plain eager; 6 too slow; 7 fell back, with
--fail-on fallback; 8 a path or the baseline cannot be read; 9 a file cannot be written. Of several the first of
1 5 8 3 4 7 6 9.
"""


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    words, arguments = split_words(words)
    parser = _parser()
    options = parser.parse_args(words)
    if options.steps is not None:
        arguments = ("--steps", str(options.steps), *arguments)
    timed = options.fail_under_speedup or options.max_regression or options.write_baseline
    if options.jobs > 1 and timed:
        parser.error("programs that run side by side cannot be timed; leave --jobs out where speed is judged")
    if options.max_regression is not None and options.baseline is None:
        parser.error("--max-regression needs a --baseline to compare with")
    try:
        if config.load().disable:
            parser.error("terra-cx is turned off here, so there is nothing to check; unset TERRA_DISABLE")
    except ConfigError as error:
        parser.error(str(error))
    return _Check(options, arguments).run()


def split_words(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Our words, and those behind the first `--`, which are the programs'."""
    if "--" not in words:
        return list(words), ()
    at = list(words).index("--")
    return list(words[:at]), tuple(words[at + 1 :])


class _Check:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace, arguments: tuple[str, ...]) -> None:
        self._options = options
        self._arguments = arguments
        self._problems: list[str] = []
        self._unreadable = False
        self._unwritable = False
        self._places = {
            name: self._claim(path)
            for name in ("json", "junit", "write_baseline")
            if (path := getattr(options, name)) is not None
        }

    def run(self) -> int:
        options = self._options
        verdicts = self._find()
        ratios = self._baseline()
        runner = Runner(options.timeout)
        gates = Gates(options.fail_under_speedup, options.max_regression, "fallback" in options.fail_on)
        examination = Examination(runner, self._arguments, {}, options.mask, gates, ratios)
        try:
            with stoppable(), tempfile.TemporaryDirectory(prefix="terra-cx-check-") as folder:
                verdicts = _examine(examination, verdicts, Path(folder), options.jobs)
        except KeyboardInterrupt:
            runner.stop()
            sys.stderr.write("terra-cx check: interrupted\n")
            return 128 + signal.SIGINT
        ratios = {v.name: v.speed.ratio for v in verdicts if v.speed.ratio and not v.outcome.code}
        self._write("write_baseline", lambda: baseline.text(ratios, self._arguments))
        self._write("junit", lambda: junit.text(verdicts))
        # Last, because it tells what could not be written.
        self._write(
            "json",
            lambda: files.as_json(
                output.record(verdicts, self._arguments, self._status(verdicts), self._problems)
            ),
        )
        output.show(_console(), verdicts, self._problems)
        return self._status(verdicts)

    def _status(self, verdicts: Sequence[Verdict]) -> int:
        return exit_status([v.outcome for v in verdicts], self._unreadable, self._unwritable)

    def _find(self) -> list[Verdict]:
        """A verdict, still open, per program."""
        found: dict[Path, Verdict] = {}
        for path in self._options.paths:
            try:
                scripts = programs.find(path)
            except programs.NoProgramError as error:
                found[path] = Verdict(str(path), path).blame(Outcome.UNREADABLE, str(error))
                continue
            for script, name in zip(scripts, programs.names(scripts), strict=True):
                found.setdefault(script.resolve(), Verdict(name, script))
        return list(found.values())

    def _baseline(self) -> dict[str, float]:
        if self._options.baseline is None:
            return {}
        try:
            return baseline.read(self._options.baseline, self._arguments)
        except baseline.BaselineError as error:
            self._unreadable = True
            self._problems.append(str(error))
            return {}

    def _claim(self, path: Path) -> Path | None:
        try:
            return files.claim(path)
        except UsageError as error:
            # Programs take long, and their verdicts are worth having on the terminal.
            self._cannot_write(str(error))
            return None

    def _write(self, name: str, make: Callable[[], str]) -> None:
        place = self._places.get(name)
        if place is None:
            return
        try:
            files.write_text(place, make())
        except OSError as error:
            self._cannot_write(f"cannot write {place}: {error.strerror}")

    def _cannot_write(self, problem: str) -> None:
        self._unwritable = True
        self._problems.append(problem)


def _console() -> Console:
    """Where the table goes; in a file or a log it may be wide."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 160))


def _examine(examination: Examination, verdicts: Sequence[Verdict], folder: Path, jobs: int) -> list[Verdict]:
    """Examine every program that can be read, `jobs` at a time, in the order given."""
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
            for future in waiting:
                future.cancel()
            examination.runner.stop()
            raise


Announce = Callable[[str, int], None]


class progress:  # noqa: N801  # reads as the function it is used as
    """A progress bar on stderr, if that is a terminal; gives the function that moves it.

    Args:
        total: steps of the bar.
    """

    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total)
        self._done = -1
        self._lock = threading.Lock()

    def __enter__(self) -> Announce:
        self._bar.start()
        return self._announce

    def _announce(self, what: str, steps: int) -> None:
        """Something begins; `steps` is what it will have moved the bar by when the next begins."""
        with self._lock:
            self._done += steps
            self._bar.update(self._task, description=what, completed=max(self._done, 0))

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


class stoppable:  # noqa: N801  # reads as the function it is used as
    """Turns SIGTERM into a KeyboardInterrupt, so that the processes that were started end as well."""

    def __enter__(self) -> None:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="terra-cx check",
        usage="terra-cx check [options] PATH... [-- ARGUMENTS]",
        description="Runs each program in plain eager, co-executed, and in eager again, and compares bit for bit every "
        "value that reached Python, the standard output, the final variables and the random generators. "
        "ARGUMENTS go to every program.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a script, or a folder of scripts"
    )
    parser.add_argument("--steps", type=_whole, metavar="N", help="give --steps N to every program")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML for a CI system")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="step-time ratios to compare with")
    parser.add_argument("--write-baseline", type=Path, metavar="FILE", help="write such ratios")
    parser.add_argument(
        "--max-regression", type=_percent, metavar="P%", help="fail where the ratio grew by more than that"
    )
    parser.add_argument(
        "--fail-under-speedup",
        type=_factor,
        metavar="X",
        help="fail where co-execution is not X times as fast",
    )
    parser.add_argument(
        "--fail-on", action="append", default=[], choices=("fallback",), help="fail where a program fell back"
    )
    parser.add_argument(
        "--mask",
        action="append",
        default=[],
        type=_pattern,
        metavar="REGEX",
        help="what matches in the standard output is not compared (a time, a date)",
    )
    parser.add_argument("--jobs", type=_whole, default=1, metavar="N", help="programs at a time (default: 1)")
    parser.add_argument(
        "--timeout",
        type=_whole,
        default=3600,
        metavar="SECONDS",
        help="kill a run that takes longer (default: 3600)",
    )
    return parser


def _whole(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {word!r}")
    return int(word)


def _factor(word: str) -> float:
    try:
        number = float(word.removesuffix("x"))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"a number above 0, not {word!r}")
    return number


def _percent(word: str) -> float:
    try:
        number = float(word.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not word.endswith("%") or not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"a share such as 10%, not {word!r}")
    return number / 100


def _pattern(word: str) -> re.Pattern[str]:
    try:
        return re.compile(word)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{word!r} is no regular expression: {error}") from None

"""The command `terra-cx bench`: its words, its progress, its files, its exit status."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from terra_cx.bench import output, plot
from terra_cx.bench.measure import Bench, Measurement
from terra_cx.bench.modes import MODES, USUAL, Mode
from terra_cx.check import programs
from terra_cx.check.runs import Runner
from terra_cx.check.terminal import console_for, progress, stoppable
from terra_cx.check.words import common, parse, whole
from terra_cx.errors import UsageError
from terra_cx.machine import cpus
from terra_cx.report import files

__all__ = ["main"]

WRONG, FAILED, UNREADABLE, UNWRITABLE = 1, 5, 8, 9

_EPILOG = """
exit status: 0 measured; 1 a mode of terra-cx computed something else than eager, or failed; 2 wrong usage,
nothing was run; 5 a program fails in plain eager; 8 a path cannot be read; 9 a file cannot be written. Of several
the first of 1 5 8 9. What tf.function makes of a program is told and does not count.
"""


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    parser = _parser()
    options, arguments = parse(parser, words)
    if options.plot is not None:
        try:
            plot.require()
        except UsageError as error:
            parser.error(str(error))
    return _Command(options, arguments).run()


class _Command:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace, arguments: tuple[str, ...]) -> None:
        self._options = options
        self._arguments = arguments
        self._threads = options.threads or cpus()
        self._files = files.Claims({"json": options.json, "plot": options.plot})

    def run(self) -> int:
        options = self._options
        runner = Runner(options.timeout, "terra_cx.bench.child")
        bench = Bench(
            runner, self._arguments, options.modes, options.rounds, options.step, self._threads, options.mask
        )
        try:
            with stoppable(), tempfile.TemporaryDirectory(prefix="terra-cx-bench-") as folder:
                measured = _measure(bench, self._find(), Path(folder))
        except KeyboardInterrupt:
            runner.stop()
            sys.stderr.write("terra-cx bench: interrupted\n")
            return 128 + signal.SIGINT
        head = output.conditions(self._threads, options.rounds, self._arguments)
        self._files.write("plot", lambda: plot.svg(measured, head))
        self._files.write("json", lambda: files.as_json(self._record(measured)))
        output.show(console_for(sys.stdout), measured, self._files.problems, head)
        return self._status(measured)

    def _record(self, measured: Sequence[Measurement]) -> dict[str, object]:
        settings = {
            "threads": self._threads,
            "arguments": list(self._arguments),
            "rounds": self._options.rounds,
            "step": self._options.step,
        }
        return output.record(measured, settings, self._status(measured), self._files.problems)

    def _status(self, measured: Sequence[Measurement]) -> int:
        if any(_is_wrong(one) for one in measured):
            return WRONG
        if any(one.failure and not one.unreadable for one in measured):
            return FAILED
        if any(one.unreadable for one in measured):
            return UNREADABLE
        return UNWRITABLE if self._files.failed else 0

    def _find(self) -> list[Measurement]:
        return [
            Measurement(found.name, found.script, failure=found.problem, unreadable=bool(found.problem))
            for found in programs.listed(self._options.paths)
        ]


def _is_wrong(one: Measurement) -> bool:
    """Whether a mode of terra-cx did not do what eager does."""
    return any(
        figures.result in ("wrong", "fails")
        or (figures.result == "rounding" and MODES[mode].level == "exact")
        for mode, figures in one.figures.items()
        if MODES[mode].session != "eager"
    )


def _measure(bench: Bench, found: Sequence[Measurement], folder: Path) -> list[Measurement]:
    measured = []
    readable = sum(not one.failure for one in found)
    with progress(bench.runs() * readable) as announce:
        for number, one in enumerate(found):
            if one.failure:
                measured.append(one)
                continue
            try:
                measured.append(bench.of(one.name, one.script, folder / str(number), announce))
            except OSError as error:
                one.failure, one.unreadable = f"cannot be run: {error}", True
                measured.append(one)
    return measured


def _modes(word: str) -> list[Mode]:
    names = ["eager", *(name for name in word.split(",") if name and name != "eager")]
    for name in names:
        if name not in MODES:
            raise argparse.ArgumentTypeError(f"unknown mode {name!r}; known are {', '.join(MODES)}")
    return [MODES[name] for name in dict.fromkeys(names)]


def _parser() -> argparse.ArgumentParser:
    parser = common(
        "bench",
        "Times each program in several modes, each run in a process of its own, the modes in turns, and compares what "
        "they compute with plain eager.",
        _EPILOG,
    )
    parser.add_argument(
        "--modes",
        type=_modes,
        default=USUAL,
        metavar="LIST",
        help="with commas between, eager is always first: "
        + "; ".join(f"{mode.name}: {mode.help}" for mode in MODES.values())
        + " (default: all but those of a level)",
    )
    parser.add_argument("--rounds", type=whole, default=2, metavar="N", help="runs of each mode (default: 2)")
    parser.add_argument(
        "--step",
        default="train_step",
        metavar="NAME",
        help="the function that is one step: timed, and wrapped by function and xla (default: train_step)",
    )
    parser.add_argument(
        "--threads",
        type=whole,
        metavar="N",
        help="TensorFlow's threads within ops and between (default: CPUs)",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw a bar chart as SVG (needs matplotlib)"
    )
    return parser

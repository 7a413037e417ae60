"""What a bench tells: the table on the terminal, the record that `--json` writes.

Keys of the record, version 1:

| key | value |
| --- | --- |
| `version` | 1; raised when a key changes its meaning or goes away |
| `terra_cx`, `python`, `machine`, `cpus` | versions, the processor's name, how many of them may be used |
| `threads` | TensorFlow's threads, within an op and between ops alike |
| `arguments`, `rounds`, `step` | what the programs got, runs of each mode, the step function's name |
| `exit_status`, `problems` | of the command; what could not be read or written |
| `programs` | list of `{program, script, timed_at, failure, notes, modes}` |

and of a mode, in the list `modes`:

| key | value |
| --- | --- |
| `mode` | its name |
| `result`, `detail` | identical, rounding, wrong, fails, not applicable, nondeterministic; and how so |
| `step_ms`, `rounds_ms` | steady step time: median of the rounds, each round |
| `quartiles_ms` | first and third quartile of single steady steps, all rounds together |
| `speedup` | eager's step time over this |
| `first_seconds` | from the start of the process to the end of the first step |
| `warmup_seconds` | what the first half of the steps took more than as many steady ones |
| `peak_mb` | most resident memory, MiB |
| `limit_ms` | the compiled graph alone |
| `co_executed` | the share of regions that were co-executed, the least of all rounds |
| `threads` | `[intra, inter]` as TensorFlow had them at the end |

What is not known is null.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import terra_cx
from terra_cx.bench.measure import Figures, Measurement
from terra_cx.bench.modes import MODES
from terra_cx.machine import cpus, processor

__all__ = ["conditions", "record", "show"]

VERSION = 1

_STYLES = {"identical": "green", "wrong": "bold red", "fails": "red"}


def conditions(threads: int, rounds: int, arguments: Sequence[str]) -> str:
    """One line that says how everything was measured."""
    words = f" {' '.join(arguments)}" if arguments else ""
    return (
        f"{processor()}, {cpus()} CPUs, TensorFlow threads {threads} within and {threads} between ops, "
        f"{rounds} round{'s' * (rounds != 1)}{', arguments' + words if words else ''}"
    )


def show(console: Console, measured: Sequence[Measurement], problems: Sequence[str], head: str) -> None:
    """Print the table, then what is to be said about each program."""
    console.print(head, style="dim", highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("program", overflow="fold", min_width=12)
    table.add_column("mode", no_wrap=True)
    for name in ("step ms", "quartiles", "speed", "limit ms", "co", "first s", "warm-up s", "MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for one in measured:
        for index, (mode, figures) in enumerate(one.figures.items()):
            table.add_row(one.name if not index else "", *_row(one, mode, figures))
        if one.figures:
            table.add_section()
    if table.row_count:
        console.print(table)
    for one in measured:
        for words in _lines(one):
            console.print(Text.assemble((f"{one.name}", "bold"), words), soft_wrap=True)
    for problem in problems:
        console.print(Text.assemble(("terra-cx bench: ", "bold"), problem), soft_wrap=True)


def _row(one: Measurement, mode: str, figures: Figures) -> list[str | Text]:
    speedup, spread = one.speedup(mode), figures.spread_ms
    timed = figures.result not in ("fails", "not applicable")
    limit = _number(figures.limit_ms) if MODES[mode].session != "eager" else ""
    return [
        mode,
        _number(figures.step_ms) if timed else "-",
        f"{spread[0]:.2f}-{spread[1]:.2f}" if spread is not None else "-",
        f"{speedup:.2f}x" if speedup is not None else "-",
        limit,
        f"{figures.co_executed:.0%}" if figures.co_executed is not None else "",
        _number(figures.first_seconds, 1) if timed else "-",
        _number(figures.warmup_seconds, 1) if timed else "-",
        _number(figures.peak_mb, 0) if timed else "-",
        Text(figures.result, _STYLES.get(figures.result, "yellow")),
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if value is not None else "n/a"


def _lines(one: Measurement) -> list[str]:
    lines = [f": {one.failure}"] if one.failure else []
    lines += [f": {note}" for note in one.notes]
    lines += [f" {mode}: {f.result}, {f.detail}" for mode, f in one.figures.items() if f.detail]
    return lines


def record(
    measured: Sequence[Measurement],
    settings: dict[str, Any],
    status: int,
    problems: Sequence[str],
) -> dict[str, Any]:
    """The record of a bench, as JSON can hold it.

    Args:
        measured: the programs.
        settings: `threads`, `arguments`, `rounds`, `step`.
        status: the command's exit status.
        problems: what could not be read or written.
    """
    return {
        "version": VERSION,
        "terra_cx": terra_cx.__version__,
        "python": platform.python_version(),
        "machine": processor(),
        "cpus": cpus(),
        **settings,
        "exit_status": status,
        "problems": list(problems),
        "programs": [
            {
                "program": one.name,
                "script": os.path.abspath(one.script),
                "timed_at": one.timed_at,
                "failure": one.failure,
                "notes": one.notes,
                "modes": [_mode(one, mode, figures) for mode, figures in one.figures.items()],
            }
            for one in measured
        ],
    }


def _mode(one: Measurement, mode: str, figures: Figures) -> dict[str, Any]:
    return {
        "mode": mode,
        "result": figures.result,
        "detail": figures.detail,
        "step_ms": figures.step_ms,
        "rounds_ms": figures.rounds_ms,
        "quartiles_ms": list(figures.spread_ms) if figures.spread_ms is not None else None,
        "speedup": one.speedup(mode),
        "first_seconds": figures.first_seconds,
        "warmup_seconds": figures.warmup_seconds,
        "peak_mb": figures.peak_mb,
        "limit_ms": figures.limit_ms,
        "co_executed": figures.co_executed,
        "threads": figures.threads,
    }

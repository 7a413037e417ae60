"""What a check tells: the table on the terminal, the record that `--json` writes.

Keys of the record, version 1:

| key | value |
| --- | --- |
| `version` | 1; raised when a key changes its meaning or goes away |
| `terra_cx`, `python`, `tensorflow` | versions; `tensorflow` is null if no program imported it |
| `arguments` | what every program got |
| `level`, `tolerance` | the level of optimization; how far numbers may be from eager's, relatively, 0 at `exact` |
| `exit_status` | of the check |
| `problems` | what could not be read or written, in words |
| `programs` | a list, in the order of the table |

and of a program:

| key | value |
| --- | --- |
| `program`, `script` | its name in the table, its absolute path |
| `outcome`, `detail` | the verdict's word, and why in a sentence (empty if identical) |
| `differences` | list of `{what, where, file, line, step, eager, other}`, at most one of each kind |
| `values`, `variables` | how many values that reached Python, how many final variables were compared |
| `regions`, `fallbacks`, `anchors`, `internal_errors` | as in the report of terra-run |
| `eager_ms`, `co_ms`, `ratio`, `speedup` | steady step times, co over eager, eager over co; null if not known |
| `speed_unknown` | why they are not known |
| `baseline_ratio` | the baseline's ratio, null if there is none |
| `levels` | at which level blocks ran, as in the report of terra-run |
| `seconds` | of all runs together |
| `notes` | remarks |
| `stderr` | the last lines of the run that failed |
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
from terra_cx.check.verdict import Outcome, Verdict

__all__ = ["record", "show"]

VERSION = 1

_STYLES = {
    Outcome.IDENTICAL: "green",
    Outcome.WITHIN: "green",
    Outcome.DIFFERENT: "bold red",
    Outcome.NONDETERMINISTIC: "yellow",
    Outcome.UNREADABLE: "yellow",
}
_MOST = 3  # fallbacks per program that are shown


def show(console: Console, verdicts: Sequence[Verdict], problems: Sequence[str], head: str = "") -> None:
    """Print a line on how it was compared, if any, the table, then a few lines on each program that needs them."""
    if head:
        console.print(head, style="dim", highlight=False, soft_wrap=True)
    ran = [verdict for verdict in verdicts if verdict.outcome is not Outcome.UNREADABLE]
    if ran:
        console.print(_table(ran))
    for verdict in verdicts:
        for label, words in _lines(verdict):
            console.print(
                Text.assemble((f"{verdict.name}: ", "bold"), label, " " * bool(label), words), soft_wrap=True
            )
    for problem in problems:
        console.print(Text.assemble(("terra-cx check: ", "bold"), problem), soft_wrap=True)


def _table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("program", overflow="fold", min_width=12)
    table.add_column("result", no_wrap=True)
    for name in ("values", "variables", "regions", "co", "fallbacks", "eager ms", "co ms", "speed"):
        table.add_column(name, justify="right", no_wrap=True)
    compared = any(verdict.before is not None for verdict in verdicts)
    if compared:
        table.add_column("baseline", justify="right", no_wrap=True)
    for verdict in verdicts:
        regions, speed = verdict.regions, verdict.speed
        known = verdict.report is not None
        table.add_row(
            verdict.name,
            Text(verdict.outcome.word, _STYLES.get(verdict.outcome, "red")),
            str(verdict.crossings.get("compared", "-")),
            str(verdict.variables) if verdict.crossings else "-",
            str(regions["total"]) if known else "-",
            str(regions["co_executed"]) if known else "-",
            str(sum(fallback["count"] for fallback in verdict.fallbacks)) if known else "-",
            _number(speed.eager_ms),
            _number(speed.co_ms),
            f"{1 / speed.ratio:.2f}x" if speed.ratio else "n/a",
            *([f"{1 / verdict.before:.2f}x" if verdict.before else "-"] if compared else []),
        )
    return table


def _number(milliseconds: float | None) -> str:
    return f"{milliseconds:.2f}" if milliseconds is not None else "n/a"


def _lines(verdict: Verdict) -> list[tuple[str, str]]:
    lines = []
    if verdict.detail:
        lines.append((verdict.outcome.word + ",", verdict.detail))
    lines += [("", f"{each.what}, {each}") for each in verdict.differences[1:]]
    lines += [("stderr |", line) for line in verdict.stderr.splitlines()]
    fallbacks = sorted(verdict.fallbacks, key=lambda fallback: -int(fallback["count"]))
    for fallback in fallbacks[:_MOST]:
        why = f": {fallback['detail']}" if fallback["detail"] else ""
        lines.append(("fallback", f"{fallback['line']} {fallback['reason']}, {fallback['count']} times{why}"))
    if len(fallbacks) > _MOST:
        lines.append(("fallback", f"and {len(fallbacks) - _MOST} more kinds; --json lists them"))
    return lines + [("note,", note) for note in verdict.notes]


def record(
    verdicts: Sequence[Verdict],
    arguments: Sequence[str],
    status: int,
    problems: Sequence[str],
    level: str = "exact",
    tolerance: float = 0.0,
) -> Any:
    """The record of a check, as JSON can hold it."""
    reports = [verdict.report for verdict in verdicts if verdict.report is not None]
    return {
        "version": VERSION,
        "terra_cx": terra_cx.__version__,
        "python": platform.python_version(),
        "tensorflow": next((report["tensorflow"] for report in reports if report["tensorflow"]), None),
        "arguments": list(arguments),
        "level": level,
        "tolerance": tolerance,
        "exit_status": status,
        "problems": list(problems),
        "programs": [_program(verdict) for verdict in verdicts],
    }


def _program(verdict: Verdict) -> dict[str, Any]:
    report, speed = verdict.report or {}, verdict.speed
    return {
        "program": verdict.name,
        "script": os.path.abspath(verdict.script),
        "outcome": verdict.outcome.word,
        "detail": verdict.detail,
        "differences": [
            {
                "what": each.what,
                "where": each.where,
                "file": each.file,
                "line": each.line,
                "step": each.step,
                "eager": each.expected,
                "other": each.got,
            }
            for each in verdict.differences
        ],
        "values": verdict.crossings.get("compared"),
        "variables": verdict.variables,
        "regions": report.get("regions"),
        "fallbacks": report.get("fallbacks", []),
        "anchors": report.get("anchors", []),
        "levels": report.get("levels"),
        "internal_errors": report.get("internal_errors"),
        "eager_ms": speed.eager_ms,
        "co_ms": speed.co_ms,
        "ratio": speed.ratio,
        "speedup": 1 / speed.ratio if speed.ratio else None,
        "speed_unknown": speed.unknown or None,
        "baseline_ratio": verdict.before,
        "seconds": verdict.seconds,
        "notes": verdict.notes,
        "stderr": verdict.stderr,
    }

"""What `terra-cx diff` tells: on the terminal, and as the record that `--json` writes.

Keys of the record, version 1; numbers that are not known are null:

| key | value |
| --- | --- |
| `kind`, `version` | `"terra-cx difference"`, 1; raised when a key changes its meaning or goes away |
| `terra_cx` | the version that compared |
| `before`, `after` | the files |
| `threshold`, `slower`, `exit_status` | a share; names of the measures that grew by more; of the command |
| `measures` | list of `{name, before, after, unit, change, judged}`; the unit is `ms`, `s` or `share` |
| `causes` | list of `{line, what, step_ms, seconds}`, most first |
| `notes` | what else was different |
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import terra_cx
from terra_cx.diff.compare import Comparison, Measure, told
from terra_cx.explain.source import short
from terra_cx.report.quantities import duration, milliseconds, share
from terra_cx.report.runs import Run

__all__ = ["record", "show"]

VERSION = 1
_MOST = 10


def show(console: Console, found: Comparison, threshold: float) -> None:
    """Print the comparison."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for measure in found.measures:
        if measure.before is None and measure.after is None:
            continue
        table.add_row(
            measure.name,
            told(measure.before, measure.unit),
            told(measure.after, measure.unit),
            Text(_change(measure), _style(measure, threshold)),
        )
    console.print(table)
    if found.causes:
        console.print(Text("what takes more", "bold"))
        causes = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
        causes.add_column(justify="right", no_wrap=True)
        causes.add_column(no_wrap=True, style="cyan")
        causes.add_column(overflow="fold")
        for cause in found.causes[:_MOST]:
            more = (
                f"{milliseconds(cause.step_ms)} a step"
                if cause.step_ms is not None
                else duration(cause.seconds)
            )
            causes.add_row(f"+{more}", short(cause.line), cause.what)
        console.print(Padding(causes, (0, 0, 0, 2)))
        if len(found.causes) > _MOST:
            console.print(f"  and {len(found.causes) - _MOST} more; --json has them")
    for note in found.notes:
        console.print(Text.assemble(("note: ", "yellow"), note))
    slower = found.slower(threshold)
    if slower:
        names = ", ".join(measure.name for measure in slower)
        console.print(Text(f"slower by more than {share(threshold)}: {names}", "bold red"))
    else:
        console.print(Text(f"nothing is slower by more than {share(threshold)}", "bold green"))


def _change(measure: Measure) -> str:
    change = measure.change
    if change is None:
        return ""
    if measure.unit == "share":
        assert measure.before is not None
        assert measure.after is not None
        return f"{100 * (measure.after - measure.before):+.0f} points"
    return f"{change:+.0%}"


def _style(measure: Measure, threshold: float) -> str:
    if measure.is_slower(threshold):
        return "bold red"
    change = measure.change
    return "green" if measure.judged and change is not None and change < -threshold else ""


def record(found: Comparison, before: Run, after: Run, threshold: float, status: int) -> dict[str, Any]:
    """The comparison as JSON can hold it."""
    return {
        "kind": "terra-cx difference",
        "version": VERSION,
        "terra_cx": terra_cx.__version__,
        "before": str(before.path),
        "after": str(after.path),
        "threshold": threshold,
        "slower": [measure.name for measure in found.slower(threshold)],
        "exit_status": status,
        "measures": [
            {
                "name": measure.name,
                "before": measure.before,
                "after": measure.after,
                "unit": measure.unit,
                "change": measure.change,
                "judged": measure.judged,
            }
            for measure in found.measures
        ],
        "causes": [asdict(cause) for cause in found.causes],
        "notes": list(found.notes),
    }

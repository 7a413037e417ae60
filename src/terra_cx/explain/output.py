"""What `terra-cx explain` tells: on the terminal, and as the record that `--json` writes.

Keys of the record, version 1; numbers that are not known are null:

| key | value |
| --- | --- |
| `kind`, `version` | `"terra-cx explanation"`, 1; raised when a key changes its meaning or goes away |
| `terra_cx` | the version that explained |
| `file`, `command` | what was read; the words that started the program |
| `regions`, `step_ms`, `overlap`, `parts_ms`, `bound_by` | counts of all loops; the rest of the main loop |
| `advice` | list of `{kind, line, what, remedy, step_ms, seconds}`, most first |
| `lines` | list of `{line, text, ops, elided_ops, python_ms, wait_ms, waits, wait_seconds, notes}` |
| `calls` | list of `{call, of, line, ops, elided, refused}`: library calls |
| `problems` | what could not be profiled or read |
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import terra_cx
from terra_cx.explain.advice import Advice, gain_text
from terra_cx.explain.annotate import Annotated, Page
from terra_cx.explain.source import short
from terra_cx.report.quantities import count, milliseconds, number, share
from terra_cx.report.runs import Call, Run

__all__ = ["record", "show"]

VERSION = 1
_MOST_ADVICE = 10
_NARROW = 72
"""Columns below which times of single lines are left out."""
_PARTS = {
    "user": ("your Python", "cyan"),
    "host": ("NumPy and others", "blue"),
    "library": ("TensorFlow's and Keras's Python", "magenta"),
    "terra": ("terra-cx", "green"),
    "elided": ("terra-cx, for elided calls", "green"),
    "fetch": ("waiting for a value", "red"),
    "graph": ("waiting for the graph", "yellow"),
}


def show(console: Console, run: Run, advice: Sequence[Advice], pages: Sequence[Page]) -> None:
    """Print the explanation, as wide as `console`."""
    _head(console, run)
    _parts(console, run)
    _advice(console, run, advice)
    for page in pages:
        _page(console, page, _step_ms(run))
    _calls(console, [call for anchor in run.anchors for call in anchor.calls])
    for problem in run.problems:
        console.print(Text.assemble(("terra-cx explain: ", "bold"), problem))


def _step_ms(run: Run) -> float | None:
    """What a co-executed step of the main loop takes: in the window that its parts are of, if there is one."""
    if run.main is None:
        return None
    measured = (run.main.metrics or {}).get("step_ms")
    return measured if measured is not None else run.main.step_ms


def _head(console: Console, run: Run) -> None:
    main, regions = run.main, run.regions
    words = f"{regions.get('co_executed', 0)} of {count(regions.get('total', 0), 'step')} co-executed"
    if main is None:
        words = "no training step was found; everything ran in plain eager"
    elif (step := _step_ms(run)) and main.eager_ms is not None:
        speed = f"{main.eager_ms / step:.1f}x"
        words += f"; a step takes {milliseconds(step)}, in eager {milliseconds(main.eager_ms)} ({speed})"
    if run.overlap is not None:
        words += f"; overlap {share(run.overlap)}"
    console.print(
        Text.assemble((" ".join(map(short, run.command[:1])) or str(run.path), "bold"), ": ", words)
    )
    bound = main.metrics.get("bound_by") if main is not None and main.metrics is not None else None
    if bound is not None:
        what = {"python": "Python", "graph": "the graph", "fetch": "a value that Python waits for"}
        line = Text.assemble("bound by ", (what.get(bound["what"], bound["what"]), "bold"))
        if bound["line"]:
            line.append(f", {short(bound['line'])}")
        if bound["share"] is not None:
            line.append(f": {share(bound['share'])} of a step")
        console.print(line)


def _parts(console: Console, run: Run) -> None:
    parts = run.main.parts if run.main is not None else None
    if not parts or sum(parts.values()) <= 0:
        return
    whole = sum(parts.values())
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(min_width=8)
    table.add_column(overflow="fold")
    longest = max(8, min(40, console.width - 52))
    for part, (name, style) in _PARTS.items():
        if parts.get(part):
            bar = "█" * max(1, round(longest * parts[part] / whole))
            table.add_row(milliseconds(parts[part]), share(parts[part] / whole), Text(bar, style), name)
    console.print(Text("a step", "bold"))
    console.print(Padding(table, (0, 0, 0, 2)))


def _advice(console: Console, run: Run, advice: Sequence[Advice]) -> None:
    console.print(Text("what to change", "bold"))
    if not advice:
        console.print("  nothing that would gain much was found")
    if not run.is_profile:
        console.print(
            "  (a report has no times of lines; `terra-cx explain SCRIPT` runs the script and measures them)"
        )
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", style="bold")
    table.add_column(overflow="fold")
    for place, each in enumerate(advice[:_MOST_ADVICE], 1):
        table.add_row(
            f"{place}.", Text.assemble(f"{each.what}; {each.remedy} ", (f"({gain_text(each, run)})", "bold"))
        )
    console.print(Padding(table, (0, 0, 0, 2)))
    if len(advice) > _MOST_ADVICE:
        console.print(f"  and {len(advice) - _MOST_ADVICE} smaller ones; --json has them")


def _page(console: Console, page: Page, step_ms: float | None) -> None:
    name = os.path.relpath(page.name)
    console.print(Text(page.name if name.startswith("..") else name, "bold"))
    if page.stale:
        console.print(Text("  the file has changed since the run; the lines are those of the run", "yellow"))
    wide = console.width >= _NARROW
    measured = any(line.ops is not None for line in page.lines)
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=measured, expand=True)
    columns = ("ops", "elided", "python ms", "wait ms") if wide else ("ops", "wait ms")
    for name in columns if measured else ():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("line", justify="right", no_wrap=True, style="dim")
    table.add_column("", ratio=1, overflow="fold")
    before = None
    for line in page.lines:
        figures = _figures(line, step_ms, wide) if measured else []
        blank = [""] * len(figures)
        if before is not None and line.number != before + 1:
            table.add_row(*blank, "...", "")
        before = line.number
        style = "bold red" if line.diverged else _heat(line, step_ms)
        text = Text(line.text, style, no_wrap=True, overflow="ellipsis")
        table.add_row(*figures, str(line.number), text)
        for note in line.notes:
            table.add_row(*blank, "^", Text(note, "yellow" if line.diverged else "dim"))
    console.print(table)


def _figures(line: Annotated, step_ms: float | None, wide: bool) -> list[Text]:
    numbers = (
        (line.ops, number(line.ops or 0)),
        (line.elided_ops, number(line.elided_ops or 0)),
        (line.python_ms, f"{line.python_ms or 0:.2f}"),
        (line.wait_ms, f"{line.wait_ms or 0:.2f}"),
    )
    style = _heat(line, step_ms)
    found = [Text(text if value else "", style) for value, text in numbers]
    return found if wide else [found[0], found[3]]


def _heat(line: Annotated, step_ms: float | None) -> str:
    """The style of a line by the part of a step that it takes."""
    taken = (line.python_ms or 0.0) + (line.wait_ms or 0.0)
    if not step_ms or not taken:
        return ""
    return "bold red" if taken > 0.25 * step_ms else "yellow" if taken > 0.08 * step_ms else "green"


def _calls(console: Console, calls: Sequence[Call]) -> None:
    """Library calls that are elided, and why others are not."""
    if not calls:
        return
    elided = sorted(
        (call for call in calls if call.refused is None), key=lambda call: -call.elided * max(call.ops, 1)
    )
    refused = [call for call in calls if call.refused is not None]
    for title, chosen in (
        ("library calls that are elided", elided),
        ("library calls that are not elided", refused),
    ):
        if not chosen:
            continue
        console.print(Text(title, "bold"))
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for words, times in _grouped(chosen).items():
            line, name, told = words
            table.add_row(Text(line, "cyan"), name + (f" x{times}" if times > 1 else ""), told)
        console.print(Padding(table, (0, 0, 0, 2)))


def _grouped(calls: Sequence[Call]) -> dict[tuple[str, str, str], int]:
    """Lines, names and words of calls, with how many calls share them."""
    found: dict[tuple[str, str, str], int] = {}
    for call in calls:
        told = call.refused or f"{count(call.ops, 'op')}, {count(call.elided, 'time')}"
        key = (
            "" if call.line == "?" else short(call.line),
            f"{call.of}.{call.call.rpartition('.')[2]}",
            told,
        )
        found[key] = found.get(key, 0) + 1
    return found


def record(run: Run, advice: Sequence[Advice], pages: Sequence[Page]) -> dict[str, Any]:
    """The explanation as JSON can hold it."""
    main = run.main
    return {
        "kind": "terra-cx explanation",
        "version": VERSION,
        "terra_cx": terra_cx.__version__,
        "file": str(run.path),
        "command": list(run.command),
        "regions": dict(run.regions),
        "step_ms": {"eager": main.eager_ms, "co": main.step_ms} if main is not None else None,
        "overlap": run.overlap,
        "parts_ms": dict(main.parts) if main is not None and main.parts is not None else None,
        "bound_by": main.metrics.get("bound_by") if main is not None and main.metrics is not None else None,
        "advice": [asdict(each) for each in advice],
        "lines": [
            {
                "line": f"{page.name}:{line.number}",
                "text": line.text.strip(),
                "ops": line.ops,
                "elided_ops": line.elided_ops,
                "python_ms": line.python_ms,
                "wait_ms": line.wait_ms,
                "waits": line.waits,
                "wait_seconds": line.wait_seconds,
                "notes": line.notes,
            }
            for page in pages
            for line in page.lines
            if line.notes or line.ops is not None
        ],
        "calls": [asdict(call) for anchor in run.anchors for call in anchor.calls],
        "problems": list(run.problems),
    }

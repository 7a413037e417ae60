"""What a run has left, laid beside the program's lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from terra_cx.explain.source import Source, place
from terra_cx.report.quantities import count, duration
from terra_cx.report.runs import Fallback, Line, Run

__all__ = ["Annotated", "Page", "pages"]

PYTHON = ("user", "host", "library", "terra", "elided")
"""The parts of a step in which Python runs."""
WAITING = ("fetch", "graph")
_CONTEXT = 2
"""Lines that are shown around one that has something to say."""


@dataclass(slots=True)
class Annotated:
    """One line of a file. Times and ops are per co-executed step; None where nothing was measured."""

    number: int
    text: str
    ops: float | None = None
    elided_ops: float | None = None
    python_ms: float | None = None
    wait_ms: float | None = None
    waits: int = 0
    wait_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    diverged: bool = False


@dataclass(slots=True)
class Page:
    """A file with its lines, in order; where the step from one number to the next is larger than 1, lines are left out.

    `stale` tells that the file does not read as it did in the run; then its lines are those of the run.
    """

    name: str
    lines: list[Annotated]
    stale: bool = False


def pages(run: Run, source: Source) -> list[Page]:
    """A page per file that the run says something about; the file of the main loop first."""
    told: dict[str, dict[int, Annotated]] = defaultdict(dict)

    def at(line: str, text: str = "") -> Annotated:
        name, number = place(line)
        return told[name if number else "?"].setdefault(
            number, Annotated(number, text or source.text(line) or "")
        )

    for anchor in run.anchors:
        _note(
            at(anchor.line, anchor.text), f"a step begins here: {count(anchor.steps, 'step')}, {anchor.state}"
        )
        if anchor.given_up:
            at(anchor.line, anchor.text).diverged = True
            _note(at(anchor.line, anchor.text), f"given up: {anchor.given_up}")
        for line in anchor.lines:
            _lay(at(line.line, line.text), line)
        for fallback in anchor.fallbacks:
            at(fallback.line).diverged = True
            for words in _divergence(fallback):
                _note(at(fallback.line), words)
    told.pop("?", None)
    first = place(run.main.line)[0] if run.main is not None else ""
    names = sorted(told, key=lambda name: (name != first, name))
    return [_page(name, told[name], source, run) for name in names]


def _lay(annotated: Annotated, line: Line) -> None:
    annotated.ops = (annotated.ops or 0.0) + line.ops
    annotated.elided_ops = (annotated.elided_ops or 0.0) + line.elided_ops
    annotated.python_ms = (annotated.python_ms or 0.0) + sum(line.parts.get(part, 0.0) for part in PYTHON)
    annotated.wait_ms = (annotated.wait_ms or 0.0) + sum(line.parts.get(part, 0.0) for part in WAITING)
    annotated.waits += line.waits
    annotated.wait_seconds += line.wait_seconds
    if line.waits:
        words = f"waited {count(line.waits, 'time')}, {duration(line.wait_seconds)} in all"
        makers = [f"{each.op} of line {place(each.line)[1]}" for each in line.fetches]
        _note(annotated, words + (f", for {', '.join(dict.fromkeys(makers))}" if makers else ""))


def _divergence(fallback: Fallback) -> Iterable[str]:
    words = (
        f"diverged {count(fallback.count, 'time')}, {duration(fallback.seconds)} in all ({fallback.reason})"
    )
    yield words + (f": {fallback.detail}" if fallback.detail else "")
    for each in fallback.differences[:4]:
        words = f"{each['what']}: {each['new']} where {each['known']} is known"
        if words.partition(": ")[2] not in fallback.detail:
            yield f"{count(each['count'], 'time')} {words}"


def _note(annotated: Annotated, words: str) -> None:
    if words not in annotated.notes:
        annotated.notes.append(words)


def _page(name: str, told: dict[int, Annotated], source: Source, run: Run) -> Page:
    texts = source.lines(name)
    as_run = all(
        source.is_as_run(line.line, line.text)
        for anchor in run.anchors
        for line in anchor.lines
        if place(line.line)[0] == name
    )
    if texts is None or not as_run:
        return Page(name, [told[number] for number in sorted(told)], stale=texts is not None)
    shown: set[int] = set()
    for number in told:
        shown.update(range(max(1, number - _CONTEXT), min(len(texts), number + _CONTEXT) + 1))
    lines = [told.get(number) or Annotated(number, "") for number in sorted(shown | told.keys())]
    for line in lines:
        if 0 < line.number <= len(texts):
            line.text = texts[line.number - 1].expandtabs(4)
    return Page(name, lines)

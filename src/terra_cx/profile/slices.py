"""The owner thread's time line: each moment of a window's regions belongs to exactly one slice.

Ops, elided calls and waits were noted with start and end; the innermost one that covers a moment has it. What is left
are *gaps*, in which Python ran on its own. A gap in which samples fell is divided among them, each reaching half way to
its neighbours. One without samples is PYTHON, and what it was has to be estimated (`metrics.line_parts`): by the
samples that fell into other gaps between the same two lines.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from terra_cx.profile.events import FETCH, Op, Region, Sample, Wait, Window
from terra_cx.profile.intervals import subtract

__all__ = ["GRAPH", "PARTS", "PYTHON", "WAITS", "Slice", "owner_slices"]

PYTHON = "python"
GRAPH = "graph"
PARTS = ("user", "host", "library", "terra", "elided", FETCH, GRAPH)
"""The parts of a step, in the order in which they are shown; the last two are waits."""
WAITS = (FETCH, GRAPH)
_SAMPLED = ("user", "host", "library", "terra")
"""Parts that gaps are divided into; what is noted has them without samples."""


@dataclass(slots=True)
class Slice:
    """A stretch of the owner thread's time; ``part`` is one of `PARTS`, or PYTHON."""

    start: int
    end: int
    part: str
    line: str
    name: str = ""
    samples: int = 0
    """How many it stands for."""
    gap: tuple[str, str] = ("", "")
    """For what Python did on its own: the lines of what is noted before and after, empty at the ends of a region."""


def owner_slices(window: Window) -> list[Slice]:
    """The slices of all regions of a window, in order."""
    found: list[Slice] = []
    things: list[Op | Wait] = sorted(
        [*window.ops, *window.waits], key=lambda thing: (thing.start, -thing.end)
    )
    starts = [thing.start for thing in things]
    samples = sorted(
        (sample for sample in window.samples if sample.part in _SAMPLED), key=lambda sample: sample.time
    )
    times = [sample.time for sample in samples]
    for region in window.regions:
        inside = things[bisect_left(starts, region.start) : bisect_left(starts, region.end)]
        leaves = sorted(_leaves(region, inside), key=lambda leaf: leaf.start)
        found += leaves
        before = 0
        for start, end in subtract([(region.start, region.end)], [(leaf.start, leaf.end) for leaf in leaves]):
            while before < len(leaves) and leaves[before].end <= start:
                before += 1
            previous = leaves[before - 1].line if before else ""
            following = leaves[before].line if before < len(leaves) else ""
            here = samples[bisect_left(times, start) : bisect_left(times, end)]
            gap = (previous, following)
            line = following or previous or window.anchor
            found += _divided(start, end, here, gap) or [Slice(start, end, PYTHON, line, gap=gap)]
    found.sort(key=lambda one: one.start)
    return found


def _leaves(region: Region, things: list[Op | Wait]) -> Iterator[Slice]:
    """What is noted in a region, each without what is noted inside it."""
    for index, thing in enumerate(things):
        inner = []
        for other in things[index + 1 :]:
            if other.start >= thing.end:
                break
            inner.append((other.start, other.end))
        part = _part(thing)
        name = thing.name if isinstance(thing, Op) else thing.why
        own = [(thing.start, min(thing.end, region.end))]
        for start, end in subtract(own, inner) if inner else own:
            if end > start:
                yield Slice(start, end, part, thing.line, name)


def _part(thing: Op | Wait) -> str:
    if isinstance(thing, Wait):
        return FETCH if thing.why == FETCH else GRAPH
    return "elided" if thing.elided else "terra"


def _divided(start: int, end: int, samples: list[Sample], gap: tuple[str, str]) -> list[Slice]:
    slices: list[Slice] = []
    position = start
    for index, sample in enumerate(samples):
        until = end if index == len(samples) - 1 else (sample.time + samples[index + 1].time) // 2
        last = slices[-1] if slices else None
        if last is not None and (last.part, last.line) == (sample.part, sample.line):
            last.end = until
            last.samples += 1
        elif until > position:
            slices.append(Slice(position, until, sample.part, sample.line, samples=1, gap=gap))
        position = max(position, until)
    return slices

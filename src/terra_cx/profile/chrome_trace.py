"""The timeline as Chrome's trace format: what Perfetto and ``chrome://tracing`` open.

Slices of one lane nest: where clocks or rounding would have one end after what surrounds it, it ends with it. Arrows
lead from the op's call site to the block that computes it, and on to the wait of who reads the value. Times are
microseconds since the first window began.

Source: "Trace Event Format", and Perfetto's documentation of what it reads of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from terra_cx.profile.events import FETCH, BlockRunSlice, Op, Window
from terra_cx.profile.metrics import guess, run_ahead
from terra_cx.profile.slices import PYTHON, WAITS, Slice, owner_slices

__all__ = ["Arrow", "Bar", "arrows", "build", "nested", "owner_bars", "runner_bars", "short"]

Event = dict[str, Any]
_HOST, _DEVICES = 1, 2
_PYTHON, _GRAPH = 1, 2


@dataclass(slots=True)
class Bar:
    """One slice of a lane. ``what`` is its part or kind, by which it gets its colour."""

    start: int
    end: int
    name: str
    what: str
    line: str = ""
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Arrow:
    """From an op's call site to the block run that computes it, and on to the wait for it if there was one."""

    op: int
    run: int
    wait: int | None = None


def build(windows: Sequence[Window], profile: Mapping[str, Any]) -> dict[str, Any]:
    """The trace of some windows that do not overlap.

    Args:
        windows: what was recorded.
        profile: the profile, for what is said about the whole.
    """
    events: list[Event] = list(_names(windows))
    zero = min((moment for window in windows for moment in _beginnings(window)), default=0)
    numbers = count(1)
    lanes = _lane_numbers(windows)
    for window in windows:
        steps = [
            Bar(r.start, r.end, f"step {window.first + index}", "step", window.anchor, {"kind": r.kind})
            for index, r in enumerate(window.regions)
        ]
        events += _slices([*steps, *owner_bars(owner_slices(window))], _HOST, _PYTHON, zero)
        events += _slices(runner_bars(window.runs), _HOST, _GRAPH, zero)
        for lane in window.lanes:
            kernels = [Bar(k.start, k.end, k.name, "kernel") for k in lane.kernels if k.start >= zero]
            events += _slices(kernels, _DEVICES, lanes[lane.name], zero)
        for arrow in arrows(window):
            events += _flow(arrow, next(numbers), zero)
        events += _counter("queue depth", "runs", window.depths, zero)
        events += _counter("run-ahead", "regions", run_ahead(window), zero)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "terra_cx": profile["terra_cx"],
            "tensorflow": profile["tensorflow"],
            "command": " ".join(profile["command"]),
        },
    }


def _beginnings(window: Window) -> Iterator[int]:
    """When the first things of a window begin; the graph runner may be at work on runs from before it."""
    yield from (region.start for region in window.regions[:1])
    for run in window.runs[:1]:
        yield run.start if run.idle_from is None else run.idle_from


def short(line: str) -> str:
    """``train.py:12`` of a line with an absolute file."""
    return os.path.basename(line)


def owner_bars(slices: Iterable[Slice]) -> Iterator[Bar]:
    """The owner thread's slices; neighbours that look the same become one bar."""
    last: Bar | None = None
    for one in slices:
        if one.part in WAITS:
            name = "wait: " + (one.name or one.part)
        elif one.name:
            name = one.name
        else:
            name = short(one.line)
        what = one.part if one.part != PYTHON else "library" if guess(one.gap) == "library" else PYTHON
        if last is not None and (last.end, last.name, last.what, last.line) == (
            one.start, name, what, one.line,
        ):  # fmt: skip
            last.end = one.end
            continue
        if last is not None:
            yield last
        last = Bar(one.start, one.end, name, what, one.line)
    if last is not None:
        yield last


def runner_bars(runs: Iterable[BlockRunSlice]) -> Iterator[Bar]:
    """The graph runner's: waits, block runs, and inside these what comes before the work."""
    for run in runs:
        if run.idle_from is not None and run.idle_from < run.start:
            what = "feed wait" if run.feeds else "path wait"
            yield Bar(run.idle_from, run.start, what, what, run.line)
        more = {"ops": run.ops, "how": run.how, "block ends": run.ends, "last line": run.last_line}
        yield Bar(run.start, run.end, f"block at {short(run.line)}", run.how, run.line, more)
        if run.begun > run.start:
            yield Bar(run.start, run.begun, "dispatch", "dispatch", run.line)


def arrows(window: Window) -> list[Arrow]:
    """One for each fetch that waited, and for each other run one from the op that began it."""
    runs = {run.key: run for run in window.runs}
    sites: dict[int, list[Op]] = {}
    for op in sorted(window.ops, key=lambda op: (op.end, -op.start)):
        if op.ops:
            sites.setdefault(op.region, []).append(op)
    found, told = [], set()
    for wait in window.waits:
        run = runs.get(wait.run) if wait.run is not None and wait.why == FETCH else None
        site = _site(sites, run, wait.position) if run is not None else None
        if run is not None and site is not None and site.start <= run.start < wait.end:
            told.add(run.key)
            found.append(Arrow(site.start, run.start, max(wait.start, wait.end - 1)))
    for key, run in runs.items():
        site = _site(sites, run, run.key[2]) if key not in told else None
        if site is not None and site.start <= run.start:
            found.append(Arrow(site.start, run.start))
    return found


def _site(sites: Mapping[int, list[Op]], run: BlockRunSlice, position: int) -> Op | None:
    """Where Python issued the op at a position of the run's region."""
    return next((op for op in sites.get(run.key[1], ()) if op.position > position), None)


def nested(bars: Iterable[Bar]) -> Iterator[Bar]:
    """The bars of a lane in order, each cut so that it lies inside every one that it begins in."""
    around: list[Bar] = []
    for bar in sorted(bars, key=lambda bar: (bar.start, -bar.end)):
        while around and around[-1].end <= bar.start:
            around.pop()
        if around and bar.end > around[-1].end:
            bar = Bar(bar.start, around[-1].end, bar.name, bar.what, bar.line, bar.more)
        around.append(bar)
        yield bar


def _slices(bars: Iterable[Bar], process: int, thread: int, zero: int) -> Iterator[Event]:
    for bar in nested(bars):
        arguments = {"line": bar.line, **bar.more} if bar.line else bar.more
        yield {
            "ph": "X",
            "pid": process,
            "tid": thread,
            "ts": (bar.start - zero) / 1000,
            "dur": (bar.end - bar.start) / 1000,
            "name": bar.name,
            "cat": bar.what,
            "args": arguments,
        }


def _flow(arrow: Arrow, number: int, zero: int) -> Iterator[Event]:
    common = {"pid": _HOST, "name": "value", "cat": "value", "id": number}
    yield {**common, "ph": "s", "tid": _PYTHON, "ts": (arrow.op - zero) / 1000}
    if arrow.wait is None:
        yield {**common, "ph": "f", "bp": "e", "tid": _GRAPH, "ts": (arrow.run - zero) / 1000}
    else:
        yield {**common, "ph": "t", "tid": _GRAPH, "ts": (arrow.run - zero) / 1000}
        yield {**common, "ph": "f", "bp": "e", "tid": _PYTHON, "ts": (arrow.wait - zero) / 1000}


def _counter(name: str, unit: str, levels: Iterable[tuple[int, int]], zero: int) -> Iterator[Event]:
    for time, value in levels:
        if time >= zero:
            ts = (time - zero) / 1000
            yield {"ph": "C", "pid": _HOST, "tid": 0, "name": name, "ts": ts, "args": {unit: value}}


def _lane_numbers(windows: Sequence[Window]) -> dict[str, int]:
    names = dict.fromkeys(lane.name for window in windows for lane in window.lanes)
    return {name: index for index, name in enumerate(names, start=1)}


def _names(windows: Sequence[Window]) -> Iterator[Event]:
    def meta(process: int, thread: int, what: str, **args: Any) -> Event:
        return {"ph": "M", "pid": process, "tid": thread, "ts": 0, "name": what, "args": args}

    yield meta(_HOST, 0, "process_name", name="program")
    yield meta(_HOST, _PYTHON, "thread_name", name="Python (skeleton)")
    yield meta(_HOST, _GRAPH, "thread_name", name="graph runner")
    lanes = _lane_numbers(windows)
    if lanes:
        yield meta(_DEVICES, 0, "process_name", name="devices")
    for name, number in lanes.items():
        yield meta(_DEVICES, number, "thread_name", name=name)

"""The metrics of a window, as `docs/metrics.md` defines them: pure functions of what was recorded.

Everything is taken over the window's *steps*: its regions that were co-executed to their end. Times come out in
milliseconds per step.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from terra_cx.profile.events import FETCH, Op, Span, Window
from terra_cx.profile.intervals import intersection, length, subtract, union
from terra_cx.profile.slices import GRAPH, PARTS, PYTHON, WAITS, Slice, owner_slices

__all__ = [
    "BoundBy",
    "DeviceMetrics",
    "Level",
    "LineParts",
    "Metrics",
    "guess",
    "line_parts",
    "measure",
    "run_ahead",
]

_ENOUGH_HERE, _ENOUGH_ANYWHERE = 5, 20
"""Samples in gaps between two lines, and in short gaps anywhere, that say what such gaps consist of."""
_SHORT = 1_000_000
"""A gap of less than so many nanoseconds is short: more often than not, no sample falls into it."""


@dataclass(slots=True)
class Level:
    """Something that is counted over time: its mean over time, and the most."""

    mean: float
    max: int


@dataclass(slots=True)
class BoundBy:
    """What a step's time is bound by: ``python``, ``graph`` or ``fetch``, at which line, and its share of the step."""

    what: str
    line: str
    share: float


@dataclass(slots=True)
class DeviceMetrics:
    """What the devices did; ``lanes`` are milliseconds by lane."""

    kind: str
    busy_ms: float
    idle_ms: float
    host_wait_ms: float
    kernel_wait_ms: float
    overlap: float | None
    lanes: dict[str, float]


@dataclass(slots=True)
class LineParts:
    """What a step's time went to at each line: nanoseconds by part, over the whole window."""

    lines: dict[str, dict[str, float]] = field(default_factory=dict)

    def part(self, part: str) -> float:
        """Nanoseconds of a part, of all lines."""
        return sum(parts.get(part, 0.0) for parts in self.lines.values())

    def add(self, line: str, part: str, amount: float) -> None:
        """Count time of a line."""
        parts = self.lines.setdefault(line, {})
        parts[part] = parts.get(part, 0.0) + amount


@dataclass(slots=True)
class Metrics:
    """See `docs/metrics.md`."""

    steps: int
    step_ms: float
    python_busy_ms: float
    graph_busy_ms: float
    overlap: float | None
    python_alone_ms: float
    fetch_wait_ms: float
    graph_wait_ms: float
    feed_wait_ms: float
    path_wait_ms: float
    queue_depth: Level
    run_ahead: Level
    ops_per_step: float
    elided_ops_per_step: float
    elided_share: float | None
    runs_per_step: float
    device: DeviceMetrics | None
    bound_by: BoundBy
    parts_ms: dict[str, float]
    lines: dict[str, dict[str, float]]
    """Milliseconds per step, by line and part."""
    ops: dict[str, tuple[float, float]]
    """Ops per step by line: issued one by one, and by elided calls."""


def measure(window: Window) -> Metrics | None:
    """All metrics of a window; None if none of its regions was co-executed to its end."""
    steps = window.steps()
    if not steps:
        return None
    spans = union((step.start, step.end) for step in steps)
    whole = length(spans)
    if not whole:
        return None
    per_step = 1e6 * len(steps)
    slices = [one for one in owner_slices(window) if _inside(one.start, spans)]
    waits = [(one.start, one.end) for one in slices if one.part in WAITS]
    python = subtract(spans, waits)
    graph = intersection(spans, [(run.start, run.end) for run in window.runs])
    both = length(intersection(python, graph))
    parts = line_parts(slices)
    feed, path = _runner_waits(window, spans)
    python_alone = length(python) - both
    fetch_wait, graph_wait = parts.part(FETCH), parts.part(GRAPH)
    ops = [op for op in window.ops if _inside(op.start, spans)]
    issued, elided = sum(op.ops for op in ops), sum(op.ops for op in ops if op.elided)
    return Metrics(
        steps=len(steps),
        step_ms=whole / per_step,
        python_busy_ms=length(python) / per_step,
        graph_busy_ms=length(graph) / per_step,
        overlap=both / length(graph) if graph else None,
        python_alone_ms=python_alone / per_step,
        fetch_wait_ms=fetch_wait / per_step,
        graph_wait_ms=graph_wait / per_step,
        feed_wait_ms=length(feed) / per_step,
        path_wait_ms=length(path) / per_step,
        queue_depth=_level(window.depths, spans),
        run_ahead=_level(run_ahead(window), spans),
        ops_per_step=issued / len(steps),
        elided_ops_per_step=elided / len(steps),
        elided_share=elided / issued if issued else None,
        runs_per_step=sum(_inside(run.start, spans) for run in window.runs) / len(steps),
        device=_device(window, spans, python, graph, per_step),
        bound_by=_bound_by(parts, python_alone, length(python), length(graph), whole),
        parts_ms={part: parts.part(part) / per_step for part in PARTS},
        lines={
            line: {part: amount / per_step for part, amount in known.items()}
            for line, known in parts.lines.items()
        },
        ops=_ops_by_line(ops, len(steps)),
    )


def _ops_by_line(ops: Iterable[Op], steps: int) -> dict[str, tuple[float, float]]:
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for op in ops:
        counts[op.line][op.elided] += op.ops
    return {line: (issued / steps, elided / steps) for line, (issued, elided) in counts.items()}


def line_parts(slices: Iterable[Slice]) -> LineParts:
    """What the owner thread's time went to, by line; the time of gaps without samples is divided by estimate.

    A sample falls into a piece of the program as often as is its share of the time. So the samples in gaps between two
    lines tell what all gaps between these lines consist of. With too few of them, those in short gaps anywhere tell the
    parts, and the next op's line has them all.
    """
    found = LineParts()
    here: defaultdict[tuple[str, str], Counter[tuple[str, str]]] = defaultdict(Counter)
    anywhere: Counter[str] = Counter()
    unsampled: Counter[tuple[str, tuple[str, str]]] = Counter()
    for one in slices:
        amount = one.end - one.start
        if one.part == PYTHON:
            unsampled[one.line, one.gap] += amount
            continue
        found.add(one.line, one.part, amount)
        if one.samples:
            here[one.gap][one.line, one.part] += one.samples
            if amount < _SHORT:
                anywhere[one.part] += one.samples
    for (line, gap), amount in unsampled.items():
        votes = here[gap]
        if votes.total() < _ENOUGH_HERE:
            enough = anywhere.total() >= _ENOUGH_ANYWHERE
            votes = Counter(
                {(line, part): n for part, n in anywhere.items()} if enough else {(line, guess(gap)): 1}
            )
        for (where, part), count in votes.items():
            found.add(where, part, amount * count / votes.total())
    return found


def guess(gap: tuple[str, str]) -> str:
    """What a gap is, if nothing else is known: between two ops of one line TensorFlow's Python, else the program's."""
    return "library" if gap[0] and gap[0] == gap[1] else "user"


def run_ahead(window: Window) -> list[tuple[int, int]]:
    """Regions that Python was ahead of the graph: time, and how many from then on.

    The distance from the region that Python is in to that of the oldest run that was handed over and is not done; 0
    when all are done.
    """
    # Time, order at the same time, number of the region.
    changes = [(region.start, 1, region.number) for region in window.regions if region.number >= 0]
    for run in window.runs:
        changes.append((min(run.start, run.issued if run.issued is not None else run.start), 2, run.key[1]))
        changes.append((run.end, 0, run.key[1]))
    changes.sort()
    outstanding: Counter[int] = Counter()
    here = None
    levels: list[tuple[int, int]] = []
    for time, order, number in changes:
        if order == 1:
            here = number
        elif order == 2:
            outstanding[number] += 1
        else:
            outstanding[number] -= 1
            if outstanding[number] <= 0:
                del outstanding[number]
        if here is not None:
            ahead = max(0, here - min(outstanding)) if outstanding else 0
            if not levels or levels[-1][1] != ahead:
                levels.append((time, ahead))
    return levels


def _runner_waits(window: Window, spans: list[Span]) -> tuple[list[Span], list[Span]]:
    """When the graph runner waited for a run that brought values from Python, and for one that did not."""
    waits = [run for run in window.runs if run.idle_from is not None]
    feed = [(run.idle_from or 0, run.start) for run in waits if run.feeds]
    path = [(run.idle_from or 0, run.start) for run in waits if not run.feeds]
    return intersection(spans, feed), intersection(spans, path)


def _device(
    window: Window, spans: list[Span], python: list[Span], graph: list[Span], per_step: float
) -> DeviceMetrics | None:
    """Of the GPUs if there are any, else of the threads that ran CPU kernels; over the time they were looked at."""
    whole = length(spans)
    spans = intersection(spans, [(window.devices_from, spans[-1][1])])
    per_step *= length(spans) / whole
    kind = "gpu" if any(lane.kind == "gpu" for lane in window.lanes) else "cpu"
    lanes = {
        lane.name: intersection(spans, [(kernel.start, kernel.end) for kernel in lane.kernels])
        for lane in window.lanes
        if lane.kind == kind
    }
    busy = union(span for lane in lanes.values() for span in lane)
    if not busy:
        return None
    python, graph = intersection(python, spans), intersection(graph, spans)
    idle = subtract(spans, busy)
    inside = length(intersection(idle, graph))
    return DeviceMetrics(
        kind=kind,
        busy_ms=length(busy) / per_step,
        idle_ms=length(idle) / per_step,
        host_wait_ms=(length(idle) - inside) / per_step,
        kernel_wait_ms=inside / per_step,
        overlap=length(intersection(busy, python)) / length(busy),
        lanes={name: length(lane) / per_step for name, lane in lanes.items()},
    )


def _bound_by(parts: LineParts, alone: int, python: int, graph: int, whole: int) -> BoundBy:
    """The largest of what only one side, or the wait for the other, took; both at once bind nothing."""
    fetch, waiting = parts.part(FETCH), parts.part(GRAPH)
    shares = {"python": float(alone), "fetch": fetch, "graph": waiting}
    what = max(shares, key=lambda key: shares[key])
    if max(shares.values()) < 0.05 * whole:
        # Both are busy nearly all the time: the busier one is what has to become shorter.
        what = "python" if python >= graph else "graph"
        shares = {"python": float(python), "graph": float(graph)}
    of = {"fetch": (FETCH,), "graph": (GRAPH,), "python": tuple(p for p in PARTS if p not in WAITS)}[what]
    line = max(parts.lines, key=lambda line: sum(parts.lines[line].get(part, 0.0) for part in of), default="")
    return BoundBy(what, line if what != "graph" else "", shares[what] / whole)


def _level(changes: list[tuple[int, int]], spans: list[Span]) -> Level:
    """Mean over the spans, and maximum in them, of what changes at given times; 0 before the first."""
    weighted, most = 0, 0
    for index, (time, value) in enumerate(changes):
        until = changes[index + 1][0] if index + 1 < len(changes) else spans[-1][1]
        covered = length(intersection(spans, [(time, until)])) if value else 0
        weighted += value * covered
        if covered:
            most = max(most, value)
    return Level(weighted / length(spans), most)


def _inside(time: int, spans: list[Span]) -> bool:
    """Whether a moment lies in one of a few disjoint spans."""
    return any(start <= time < end for start, end in spans)

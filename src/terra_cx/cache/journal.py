"""The journal of one anchor: what it has learned, as it is stored, and how a later process begins with it.

The traces that taught the TraceGraph something are kept as rows, in order. Merging them again gives the same graph,
because a TraceGraph depends on nothing else; what co-execution has added since (how often each way was taken, cuts, how
long Python was busy) is laid over it by the numbers of its nodes. So no invariant of the graph is written down twice,
and a stored trace passes through the same code as a fresh one.

A journal that was read from an entry *waits* for a region of this process to be traced, which tells what the stored
variables are here (`binding`). Then the graph is there, and the next region is co-executed. Traces that mention a
variable which that region did not show are left out, with all after them: the first traces alone give the first nodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from terra_cx.cache import binding
from terra_cx.cache.codes import Codes
from terra_cx.cache.functions import Functions, rows_of
from terra_cx.cache.rows import Handles, Missing, Reader, Tables, Writer
from terra_cx.cache.values import Unstorable
from terra_cx.compile.blocks import Block
from terra_cx.compile.lowering import Prepared
from terra_cx.tf.custom_gradients import has_foreign_gradient
from terra_cx.tf.opdefs import Kind, classify
from terra_cx.trace.records import Trace
from terra_cx.trace.tracegraph import MergeResult, Node, TraceGraph

__all__ = ["Journal", "Malformed", "Misfit", "Warm"]

_MOST_TRACES = 64
_MOST_BYTES = 1 << 26
"""Of rows; a program that needs more learns without end."""
_ATTEMPTS = 2
"""Regions that are laid beside the stored traces before the entry is given up: the first may build variables."""
_HUNDRED = 100
"""How often a way counts as taken at most: what the program does now shall soon weigh more than what it did."""


class Misfit(Exception):
    """What is stored is of another program, or of this one when it did something else; the message says why."""


class Malformed(Exception):
    """What is stored is nothing that this version writes; the message says why."""


@dataclass(slots=True)
class Warm:
    """A TraceGraph made of an entry. ``nodes`` are those of the fresh trace's calls, None where it went its own way."""

    graph: TraceGraph
    nodes: list[Node | None]
    left_out: int
    """How many stored traces could not be used."""


@dataclass(slots=True)
class _Rows:
    """Traces as JSON texts, with what they refer to."""

    tables: Tables = field(default_factory=Tables)
    traces: list[str] = field(default_factory=list)
    rolled: list[int] = field(default_factory=list)


class Journal:
    """See the module's page.

    Args:
        codes: this process's code.
        stored: what `stored` of a process before has given; None to begin anew.
    """

    def __init__(self, codes: Codes, stored: dict[str, Any] | None = None) -> None:
        self._codes = codes
        self._rows = _Rows()
        self._handles = Handles()
        self._writer = Writer(codes, self._rows.tables, self._handles)
        self._bytes = 0
        self._stored = stored
        self._attempts = 0
        self._functions: Functions | None = None
        self.changed = False
        """Whether there is something that no entry has."""
        self.closed: str | None = None
        """Why nothing is kept of this anchor, if so."""

    # -- beginning with an entry ---------------------------------------------------------------------------------
    @property
    def waiting(self) -> bool:
        """Whether there is an entry that waits for a traced region."""
        return self._stored is not None

    @property
    def untried(self) -> bool:
        """Whether no region has been laid beside the stored traces yet."""
        return self._stored is not None and not self._attempts

    def pass_over(self) -> None:
        """A region was traced that cannot be laid beside the stored traces."""
        self._attempts += 1

    def warm(self, trace: Trace, graph: TraceGraph) -> Warm | None:
        """Make the stored TraceGraph one of this process.

        Args:
            trace: a region that was just traced and has not been merged.
            graph: an empty TraceGraph.

        Returns:
            None if the next region should be tried; the one given is of no further use.

        Raises:
            Misfit, Malformed: the entry cannot be used here, and is forgotten.
        """
        stored = self._stored
        assert stored is not None
        self._attempts += 1
        try:
            return self._warmed(stored, trace, graph)
        except Misfit:
            if self._attempts < _ATTEMPTS:
                return None
            self._stored = None
            raise
        except Malformed:
            self._stored = None
            raise
        except (LookupError, TypeError, ValueError, Unstorable) as error:
            self._stored = None
            raise Malformed(f"{type(error).__name__}: {error}") from error

    def _warmed(self, stored: dict[str, Any], trace: Trace, graph: TraceGraph) -> Warm:
        tables = Tables.of(stored["tables"])
        self._codes.prefer(
            {
                id(code): code for call in trace.calls if call.site for code, _ in call.site.path if code
            }.values()
        )
        here = Handles()
        fresh = Writer(self._codes, tables, here).trace(trace)["calls"]
        texts: list[str] = stored["traces"]
        rows = [json.loads(text) for text in texts]
        best, pairs = _closest(rows, fresh, graph.relaxed)
        if not binding.same_gradients(rows[best]["calls"], fresh, pairs):
            raise Misfit("a gradient runs other ops")
        found = binding.bound(rows[best]["calls"], fresh, pairs)
        for other, row in enumerate(rows):
            if other != best:
                others = binding.aligned(row["calls"], fresh, graph.relaxed)
                for one, handle in binding.bound(row["calls"], fresh, others).items():
                    found.setdefault(one, handle)
        handles = [
            here.tensors[found[number]] if number in found else None for number in range(stored["handles"])
        ]
        tables = Tables.of(stored["tables"])  # the others now hold what only the fresh trace has
        reader = Reader(self._codes, tables, handles)
        graph.regions = int(stored["regions"])  # they tell how many shapes there may be
        merged = self._replayed(graph, reader, stored["rolled"], rows)
        if len(merged) <= best:
            raise Misfit("the program has changed, or is told to do something else")
        _lay_over(graph, stored["nodes"])
        nodes: list[Node | None] = [None] * len(fresh)
        for a, b in pairs:
            nodes[b] = merged[best].calls[a].node
        self._stored = None
        self._take(tables, texts[: len(merged)], stored["rolled"], handles)
        self._functions = Functions(stored["blocks"], self._writer, handles, reader.tensors)
        self.changed = len(merged) < len(rows)
        return Warm(graph, nodes, len(rows) - len(merged))

    @staticmethod
    def _replayed(
        graph: TraceGraph, reader: Reader, rolled: Sequence[int], rows: Sequence[dict[str, Any]]
    ) -> list[Trace]:
        """Merge the stored traces, up to the first that needs what is not here."""
        merged: list[Trace] = []
        nodes: list[Node] = []
        try:
            graph.rolled.update([reader.loop(number) for number in rolled])
            for row in rows:
                trace = reader.trace(row, nodes)
                _examine(trace)
                if graph.merge(trace).reset:
                    raise ValueError("its traces do not agree about a loop")
                nodes = list(graph)
                merged.append(trace)
        except Missing:
            pass  # the first traces alone give the first nodes
        return merged

    def _take(
        self, tables: Tables, texts: Sequence[str], rolled: Sequence[int], handles: Sequence[Any]
    ) -> None:
        """Go on with what was stored: new traces are added to it."""
        self._handles = Handles([object() if handle is None else handle for handle in handles])
        self._rows = _Rows(tables, list(texts), list(rolled))
        self._bytes = sum(map(len, texts))
        self._writer = Writer(self._codes, tables, self._handles)

    def prepared(self, block: Block) -> Prepared | None:
        """What the entry has of a block; None if it has to be lowered.

        Raises:
            Cut: the block must be shorter.
        """
        return None if self._functions is None else self._functions.of(block)

    # -- keeping -------------------------------------------------------------------------------------------------
    def noted(self, trace: Trace) -> str | None:
        """The row of a trace that is about to be merged; None if it cannot be kept."""
        if self.closed is not None:
            return None
        try:
            return json.dumps(self._writer.trace(trace), separators=(",", ":"))
        except Unstorable as error:
            self.close(f"it has to do with {error}")
            return None

    def merged(self, row: str | None, result: MergeResult, graph: TraceGraph) -> None:
        """The trace was merged; it is kept if it has taught something."""
        if row is None or result.nothing_new:
            return
        if result.reset:
            self.restart(graph.rolled)
        else:
            self._rows.traces.append(row)
            self._bytes += len(row)
            if len(self._rows.traces) > _MOST_TRACES or self._bytes > _MOST_BYTES:
                self.close("it goes on learning")
        self.changed = True

    def restart(self, rolled: Iterable[int]) -> None:
        """The TraceGraph is learned anew, in another way; it knows of ``rolled`` loops."""
        self._stored = None
        self._rows.traces, self._bytes = [], 0
        self._functions = None
        try:
            self._rows.rolled = [self._writer.loop(loop) for loop in sorted(rolled)]
        except Unstorable as error:
            self.close(str(error))

    def close(self, why: str) -> None:
        """Keep nothing of this anchor."""
        self.closed = why
        self._rows.traces.clear()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to store."""
        return not self._rows.traces

    def stored(self, graph: TraceGraph, blocks: Iterable[Block]) -> dict[str, Any]:
        """What another process needs to begin where this one is."""
        rows = self._rows
        functions = rows_of(blocks, self._writer)  # before the tables, to which it adds
        return {
            "tables": rows.tables.as_dict(),
            "rolled": rows.rolled,
            "handles": len(self._handles.tensors),
            "traces": rows.traces,
            "blocks": functions,
            "nodes": [_overlay(graph.root), *map(_overlay, graph)],
            "regions": graph.regions,
        }


def _closest(
    rows: Sequence[dict[str, Any]], fresh: Sequence[Any], relaxed: bool
) -> tuple[int, list[tuple[int, int]]]:
    """The stored trace that has most in common with a fresh one, and how they correspond."""
    best, pairs = 0, binding.aligned(rows[0]["calls"], fresh, relaxed)
    for index, row in enumerate(rows[1:], start=1):
        if len(pairs) == len(fresh):
            break
        others = binding.aligned(row["calls"], fresh, relaxed)
        if len(others) > len(pairs):
            best, pairs = index, others
    return best, pairs


def _examine(trace: Trace) -> None:
    """What no step validates must at least be what a tracer of this process could have recorded.

    Raises:
        Malformed: a gradient holds an op with effects, or what is stored of an op is none that was recorded.
        Misfit: an op's gradient is not TensorFlow's own here.
    """
    taped = any(call.kind is Kind.GRADIENT for call in trace.calls)
    for call in trace.calls:
        for inner in call.inner:
            if classify(inner.op) not in (Kind.PURE, Kind.READ):
                raise Malformed(f"{inner.op} inside a gradient")
        if taped and call.kind is Kind.PURE and has_foreign_gradient(call.op):
            raise Misfit(f"{call.op} has a gradient of the program's")
        if call.node is None and call.kind not in _kinds(call.op):
            raise Malformed(f"{call.op} is stored as {call.kind.value}")


def _kinds(op: str) -> tuple[Kind, ...]:
    """What a recorder may have taken an op for."""
    if op == "TapeGradient":
        return (Kind.GRADIENT,)
    kind = classify(op)
    if kind is Kind.PURE:
        return (Kind.PURE, Kind.KNOWN, Kind.OWNER)
    return (Kind.DRAW, Kind.OWNER) if kind is Kind.DRAW else (kind,)


def _overlay(node: Node) -> list[Any]:
    most = max(node.succ.values(), default=0)
    scale = min(1.0, _HUNDRED / most) if most else 1.0
    ways = [[other.id, max(1, round(count * scale)) if count else 0] for other, count in node.succ.items()]
    return [node.call.op, ways, node.ends, node.leaves, node.cut_after, node.gap, sorted(node.needed)]


def _lay_over(graph: TraceGraph, rows: Sequence[Any]) -> None:
    nodes = list(graph)
    for node, row in zip([graph.root, *nodes], rows, strict=False):
        op, ways, ends, leaves, cut_after, gap, needed = row
        if op != node.call.op:
            raise ValueError("its traces give another graph")
        for number, count in ways:
            if number < len(nodes) and nodes[number] in node.succ:
                node.succ[nodes[number]] = count
        node.ends, node.leaves, node.cut_after, node.gap = ends, leaves, cut_after, gap
        node.needed.update(needed)  # by gradients whose blocks are not built yet
    graph.traces = max(graph.traces, 2)

"""The TraceGraph: all traces of one anchor merged.

A node is one op call at one place of the user's program. Nodes are found by *key* (op, attributes, dtypes and
shapes, executed location), so traces that part at a branch meet again at its join. Wiring is kept in the
node's rules, which widen when traces disagree (`trace.rules`). Loops with a constant trip count are unrolled
into distinct nodes; a loop whose trip count was seen to vary is *rolled*: its iterations share nodes and its
repetition is a back edge.

The graph also knows where a block must end (*cuts*): after an op whose value Python read, where Python was
busy for long, before an op whose wiring varies, around ops of the owner thread, after a branch that is really
taken both ways.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from terra_cx.tf.opdefs import SEED_ATTRS, Kind
from terra_cx.tf.slots import Spec
from terra_cx.trace.records import Call, Captured, Ext, Known, Local, Resource, TapeEvent, Trace
from terra_cx.trace.rules import Need, Rule, Uses, rule_of, same_known

__all__ = ["GAP_SECONDS", "MergeResult", "Node", "TraceGraph", "freeze"]

_OPAQUE = frozenset({20, 21})  # resource, variant
GAP_SECONDS = 2e-3
"""A block is cut where Python was busy for at least this long in every trace: the graph then runs meanwhile."""


def freeze(value: Any) -> Any:
    """A hashable form of an attribute value."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, float):
        return ("float", value.hex())  # 0.0 and -0.0 differ
    try:
        hash(value)
    except TypeError:
        return repr(value)
    # 1, 1.0 and True are equal keys of a dict and different attributes.
    return (type(value).__name__, value) if isinstance(value, (bool, int)) else value


@dataclass(slots=True, eq=False)
class Node:
    """One op call (or ``tape.gradient`` call) of the program.

    ``rules`` has an entry per flat argument; ``inner_rules`` one list per op inside a gradient. ``succ``
    counts how often each next node followed. ``rev`` grows whenever a rule widens, which retires the blocks
    that hold the node and the gradients whose tape saw it.
    """

    id: int
    call: Call
    rules: list[Rule] = field(default_factory=list)
    inner_rules: list[list[Rule]] = field(default_factory=list)
    results: tuple[Any, ...] = ()
    """For a gradient: per result a rule, None or a triple of rules (IndexedSlices)."""
    signature: Any = None
    succ: dict[Node, int] = field(default_factory=dict)
    cut_before: str | None = None
    cut_after: str | None = None
    ends: int = 0
    leaves: int = 0
    rev: int = 0
    cuts: int = 0
    """Grows whenever a cut is made after the node."""
    gap: float | None = None
    needed: set[int] = field(default_factory=set)
    """Outputs (n) and arguments (-1 - n) that a gradient of another block refers to; the region keeps them."""

    @property
    def kind(self) -> Kind:
        """What the op is to co-execution."""
        return self.call.kind

    @property
    def width(self) -> int:
        """Positions it takes in a region: 1, or the number of ops inside the gradient."""
        return len(self.call.inner) if self.call.kind is Kind.GRADIENT else 1

    def hottest(self) -> Node | None:
        """The most frequent next node."""
        return max(self.succ, key=self.succ.__getitem__) if self.succ else None

    @property
    def line(self) -> str:
        """The user's line, as ``file:line``."""
        site = self.call.site
        return f"{site.filename}:{site.line}" if site is not None else "?"


@dataclass(slots=True)
class MergeResult:
    """What a merge changed: how many nodes and edges are new, how many rules were widened."""

    nodes: int = 0
    edges: int = 0
    widened: int = 0
    reset: bool = False
    """The graph was emptied, because a loop turned out to vary in its trip count; tracing starts anew."""

    @property
    def nothing_new(self) -> bool:
        """Whether the trace was already known."""
        return not (self.reset or self.nodes or self.edges or self.widened)


class TraceGraph:
    """All traces of one anchor, merged; see the module's page."""

    def __init__(self, max_nodes: int = 20000) -> None:
        self.max_nodes = max_nodes
        self.root = self._root()
        self.version = 0
        self.rolled: set[int] = set()
        self.traces = 0
        self._nodes: dict[Any, Node] = {}
        self._order: list[Node] = []
        self._gradients: dict[Any, list[Node]] = {}
        self._trips: dict[tuple[int, Any], int] = {}

    @staticmethod
    def _root() -> Node:
        call = Call("<region>", "R", Kind.OWNER, (), (), (), (), (), None, None, -1)
        return Node(-1, call, cut_after="region")

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._order)

    # -- merging ---------------------------------------------------------------------------------------------
    def merge(self, trace: Trace) -> MergeResult:
        """Add one region's trace.

        Raises:
            MemoryError: never; a graph that outgrows ``max_nodes`` is reported by `overgrown`.
        """
        self.traces += 1
        newly_rolled = self._varying_loops(trace) - self.rolled
        if newly_rolled:
            # Nodes were keyed by the loop's iterations. Tracing anew is cheaper to get right than splitting
            # them: a region that diverged is known by its nodes alone and could not be merged a second time.
            self.rolled |= newly_rolled
            self._clear()
            return MergeResult(reset=True)
        return self._merge(trace)

    @property
    def overgrown(self) -> bool:
        """Whether the graph holds more nodes than it may."""
        return len(self._order) > self.max_nodes

    def _clear(self) -> None:
        self._nodes.clear()
        self._order.clear()
        self._gradients.clear()
        self.root = self._root()
        self.version += 1

    def _varying_loops(self, trace: Trace) -> set[int]:
        """Loops whose trip count differs from what was seen before (or within this trace)."""
        counts: dict[tuple[int, Any], int] = {}
        for call in trace.calls:
            loops = call.site.loops if call.site is not None else ()
            for depth, (loop, iteration) in enumerate(loops):
                key = (loop, loops[:depth])
                counts[key] = max(counts.get(key, 0), iteration + 1)
        varying = set()
        seen: dict[int, int] = {}
        for (loop, outer), count in counts.items():
            if self._trips.setdefault((loop, outer), count) != count or seen.setdefault(loop, count) != count:
                varying.add(loop)
        return varying

    def _key(self, call: Call, occurrences: Counter[Any]) -> Any:
        site = call.site
        attrs = call.attrs
        if call.kind is Kind.DRAW:
            pairs = zip(attrs[::2], attrs[1::2], strict=True)
            attrs = tuple(item for name, value in pairs if name not in SEED_ATTRS for item in (name, value))
        loops = tuple((loop, 0 if loop in self.rolled else n) for loop, n in site.loops)
        free = call.kind in (Kind.OWNER, Kind.SOURCE)
        key = (
            call.op,
            call.form,
            call.kind,
            freeze(attrs),
            call.layout,
            () if free else tuple(None if spec is None else spec.key() for spec in call.input_specs),
            () if free else tuple(id(ref.tensor) for ref in call.inputs if isinstance(ref, Resource)),
            tuple(spec.key() for spec in call.outputs),
            site.path,
            loops,
            site.ordinal,
        )
        exact = (key, site.loops)
        number = occurrences[exact]
        occurrences[exact] += 1
        return (key, number)

    def _merge(self, trace: Trace) -> MergeResult:
        result = MergeResult()
        occurrences: Counter[Any] = Counter()
        produced: dict[int, tuple[Node, int, int]] = {}
        uses: Uses = {}
        turns: Counter[Node] = Counter()
        arguments = Arguments(trace.events)

        def producers(ref: Local) -> tuple[Node, int, int]:
            node, base, turn = produced[ref.position]
            return node, base + ref.out, turn

        path: list[tuple[Node, Call]] = []
        previous = self.root
        for call in trace.calls:
            key = self._key(call, occurrences)
            node = call.node
            if call.kind is Kind.GRADIENT:
                signature = self._signature(path, trace.events, call)
                key = (key, signature)
                if node is None and key not in self._nodes:
                    node = self._renewed(key, call, producers, uses, arguments)
            if node is None:
                node = self._nodes.get(key)
            if node is None:
                node = self._add(key, call, producers, uses, arguments)
                if call.kind is Kind.GRADIENT:
                    node.signature = node.signature or signature
                result.nodes += 1
                if node.kind is Kind.GRADIENT:
                    self._gradients.setdefault(self._loose(key, call), []).append(node)
            elif call.node is None:
                if call.kind is Kind.GRADIENT and not _same_constants(node.call, call):
                    node.signature = ("unmatched", id(call))  # its code decides by something nobody sees
                widened = self._widen(node, call, producers, uses, turns[node])
                result.widened += widened
            else:
                # Validated before the region diverged: its rules hold; only first uses must be known.
                for index, ref in enumerate(call.inputs):
                    if isinstance(ref, Ext):
                        uses.setdefault(ref.number, (node, index, turns[node]))
            if call.kind is Kind.GRADIENT:
                base = 0
                for inner in call.inner:
                    produced[inner.position] = (node, base, turns[node])
                    base += len(inner.outputs)
            else:
                produced[call.position] = (node, 0, turns[node])
                arguments.add(call, node, turns[node])
            turns[node] += 1
            if node not in previous.succ:
                previous.succ[node] = 0
                result.edges += 1
            previous.succ[node] += 1
            self._cuts(trace, call, node, previous)
            path.append((node, call))
            call.node = node
            if call.kind is not Kind.KNOWN:
                call.values = ()  # only a known op's results are needed again
            for inner in call.inner:
                inner.values = ()
            previous = node
        previous.ends += 1
        if not result.nothing_new:
            self.version += 1
        return result

    def _add(self, key: Any, call: Call, producers: Any, uses: Uses, arguments: Arguments) -> Node:
        node = Node(len(self._order), call)
        self._nodes[key] = node
        self._order.append(node)
        node.rules = [
            rule_of(ref, spec, producers, uses, (node, index, 0))
            for index, (ref, spec) in enumerate(zip(call.inputs, call.input_specs, strict=True))
        ]
        for index, raw in call.raws.items():
            node.rules[index].raw = raw
        if call.kind is Kind.OWNER:
            node.cut_before = node.cut_after = "owner"
        if call.kind is Kind.GRADIENT:
            self._add_inner(node, call, producers, uses, arguments)
        return node

    @staticmethod
    def _loose(key: Any, call: Call) -> Any:
        """What two versions of one gradient share: its place, the ops under its tape, and the ops it runs."""
        (place, _), signature = key[0], key[1]
        ids = tuple(node_id for node_id, _ in signature[0]) if signature[0] != "outside" else id(call)
        return (place, ids, tuple(inner.op for inner in call.inner))

    def _renewed(self, key: Any, call: Call, producers: Any, uses: Uses, arguments: Arguments) -> Node | None:
        """A gradient whose tape's ops have widened since: the same node with new wiring, not a new one.

        Otherwise every use of its results would see its wiring vary and cut the block.
        """
        for node in self._gradients.get(self._loose(key, call), ()):
            revisions = {other.id: other.rev for other in self._order}
            if isinstance(node.signature[0], str) or all(
                revisions[node_id] == rev for node_id, rev in node.signature[0]
            ):
                continue  # still valid: the difference is another one
            self._nodes[key] = node
            node.call = call
            node.signature = key[1]
            node.inner_rules = []
            node.rules = [
                rule_of(ref, spec, producers, uses, (node, index, 0))
                for index, (ref, spec) in enumerate(zip(call.inputs, call.input_specs, strict=True))
            ]
            self._add_inner(node, call, producers, uses, arguments)
            node.rev += 1
            self.version += 1
            return node
        return None

    def in_rolled_loop(self, node: Node) -> bool:
        """Whether the node may be executed several times in one region."""
        return any(loop in self.rolled for loop, _ in node.call.site.loops)

    def _add_inner(self, node: Node, call: Call, producers: Any, uses: Uses, arguments: Arguments) -> None:
        start = arguments.tape_start(call)
        bases: dict[int, int] = {}
        base = 0
        for inner in call.inner:
            bases[inner.position] = base
            base += len(inner.outputs)

        rolled = False

        def source(ref: Local) -> tuple[Node, int, int]:
            nonlocal rolled
            if ref.position in bases:
                return node, bases[ref.position] + ref.out, 0
            found: tuple[Node, int, int] = producers(ref)
            rolled = rolled or self.in_rolled_loop(found[0])
            return found

        def rule(ref: Any, spec: Spec | None, use: tuple[Node, int, int]) -> Rule:
            """The rule for something that the gradient mentions.

            What was made before the tape is known by the op under the tape that used it: the signature says nothing
            about how it was made, and another way may have led here. A guarded value is a constant only where an op
            under the tape guards it.
            """
            if isinstance(ref, Known):
                under = arguments.under_tape(ref.origin, start)
                if any(user.rules[index].need is Need.KNOWN for user, index, _ in under):
                    return rule_of(ref, spec, source, uses, use)
                origin = ref.origin
                if (
                    isinstance(origin, Local)
                    and origin.position >= start
                    and source(origin)[0].kind is Kind.KNOWN
                ):
                    return rule_of(ref, spec, source, uses, use)
                ref = origin
            if isinstance(ref, Ext) or (isinstance(ref, Local) and ref.position < start):
                under = arguments.under_tape(ref, start)
                if under:
                    user, index, turn = under[0]
                    nonlocal rolled
                    rolled = rolled or self.in_rolled_loop(user)
                    return Rule(Need.SHARED, spec, share=(user, index), turn=turn)
                # Nothing under the tape used it: how it came about would have to be part of the signature.
                node.signature = ("unmatched", id(call))
            return rule_of(ref, spec, source, uses, use)

        for index, ref in enumerate(call.inputs):
            if not isinstance(ref, Resource):
                before = node.signature
                node.rules[index] = rule(ref, call.input_specs[index], (node, index, 0))
                node.signature = before  # which tensors are asked for is part of the signature

        for ref in call.reads:
            origin = ref.origin if isinstance(ref, Known) else ref
            under = arguments.under_tape(origin, start)
            if not any(user.rules[index].need in (Need.KNOWN, Need.CONST) for user, index, _ in under):
                node.signature = ("unmatched", id(call))  # its code may decide otherwise on another value
        number = len(node.rules)
        for inner in call.inner:
            rules = []
            for ref, spec in zip(inner.inputs, inner.input_specs, strict=True):
                rules.append(rule(ref, spec, (node, number, 0)))
                number += 1
            node.inner_rules.append(rules)

        def result(ref: Any) -> Rule | None:
            nonlocal number
            if ref is None:
                return None
            number += 1
            return rule(ref, None, (node, number, 0))

        node.results = tuple(
            tuple(map(result, ref)) if isinstance(ref, tuple) else result(ref) for ref in call.results
        )
        if rolled:
            # A block knows one execution of a node; what other iterations computed must come in from outside.
            node.cut_before = "gradient of a rolled loop"

    def _widen(self, node: Node, call: Call, producers: Any, uses: Uses, turn: int) -> int:
        if node.kind in (Kind.OWNER, Kind.SOURCE, Kind.GRADIENT):
            return 0  # the owner's ops are free; a gradient is found by its signature
        widened = 0
        for index, (ref, spec) in enumerate(zip(call.inputs, call.input_specs, strict=True)):
            other = rule_of(ref, spec, producers, uses, (node, index, turn))
            if node.rules[index].widen(other):
                widened += 1
        if widened:
            node.rev += 1
            if node.kind is Kind.DRAW and any(r.need not in (Need.KNOWN, Need.CONST) for r in node.rules):
                node.call.kind = Kind.OWNER
                node.cut_before = node.cut_after = "owner"
            if node.kind is Kind.KNOWN and any(r.need not in (Need.KNOWN, Need.CONST) for r in node.rules):
                node.call.kind = Kind.PURE
            if any(rule.need is Need.TENSOR for rule in node.rules):
                node.cut_before = node.cut_before or "wiring varies"
        return widened

    @staticmethod
    def _cuts(trace: Trace, call: Call, node: Node, previous: Node) -> None:
        last = call.position + node.width - 1
        if last in trace.fetches and node.cut_after is None:
            node.cut_after = "fetch"
        gap = trace.gaps.get(call.position)
        if gap is not None:
            previous.gap = gap if previous.gap is None else min(previous.gap, gap)

    def cut(self, node: Node, reason: str) -> None:
        """End blocks after ``node`` from now on."""
        if node.cut_after is None:
            node.cut_after = reason
            node.cuts += 1
            self.version += 1

    # -- gradients -------------------------------------------------------------------------------------------
    def _signature(self, path: list[tuple[Node, Call]], events: list[TapeEvent], call: Call) -> Any:
        """What a gradient depends on: the ops and tape events since its tape was made, and their free wiring."""
        events = events[: call.events]
        first = next((i for i, e in enumerate(events) if e.what == "new" and e.tape == call.attrs[0]), None)
        if first is None:
            return ("outside", id(call))
        events = events[first:]
        start = events[0].position
        ops = [(node, c) for node, c in path if c.position >= start]
        names = ExternalNames(start)
        wiring = []
        for node, c in ops:
            if node.kind in (Kind.OWNER, Kind.SOURCE, Kind.DRAW):
                continue
            for rule, ref in zip(node.rules, c.inputs, strict=True):
                if rule.need is Need.LOCAL:
                    local = ref if isinstance(ref, Local) else getattr(ref, "origin", None)
                    if not isinstance(local, Local) or local.position >= start:
                        continue
                elif rule.need not in (Need.TENSOR, Need.EXTERNAL, Need.SHARED):
                    continue
                wiring.append(names.of_ref(ref))
        seen = tuple(
            (
                e.position - start,
                e.what,
                e.tape - call.attrs[0] if e.tape >= 0 else None,
                names.of_ref(e.ref) if e.what == "watch" else None,
                e.detail,
            )
            for e in events
            if e.what != "access"
        )
        handles = [id(e.ref.tensor) for e in events if e.what == "access" and isinstance(e.ref, Resource)]
        asked = tuple(names.of_ref(ref) for ref in call.inputs if not isinstance(ref, Resource))
        revisions = tuple((node.id, node.rev) for node, _ in ops)
        return (revisions, tuple(wiring), seen, frozenset(Counter(handles).items()), asked)

    # -- reading ---------------------------------------------------------------------------------------------
    def branch_nodes(self) -> int:
        """How many nodes have more than one next node."""
        return sum(len(node.succ) > 1 for node in self._order)


class Arguments:
    """Where each tensor of a trace was used as an argument, in order."""

    def __init__(self, events: list[TapeEvent]) -> None:
        self._events = events
        self._uses: dict[Any, list[tuple[int, Node, int, int]]] = {}

    def add(self, call: Call, node: Node, turn: int) -> None:
        """Note the arguments of an op call that ``node`` stands for."""
        for index, ref in enumerate(call.inputs):
            origin = ref.origin if isinstance(ref, Known) else ref
            if isinstance(origin, (Local, Ext)):
                self._uses.setdefault(origin, []).append((call.position, node, index, turn))

    def under_tape(self, ref: Any, start: int) -> list[tuple[Node, int, int]]:
        """The uses of ``ref`` from position ``start`` on, as (node, argument, execution)."""
        return [
            (node, index, turn)
            for position, node, index, turn in self._uses.get(ref, ())
            if position >= start
        ]

    def tape_start(self, call: Call) -> int:
        """The position at which the tape of a gradient call was made; beyond all if it was made elsewhere."""
        for event in self._events[: call.events]:
            if event.what == "new" and event.tape == call.attrs[0]:
                return event.position
        return sys.maxsize


class ExternalNames:
    """Canonical names for the free wiring under a tape: local ones by relative position, others by first appearance."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._names: dict[Any, int] = {}

    def of_ref(self, ref: Any) -> Any:
        """The name of a trace's reference."""
        while hasattr(ref, "origin"):
            ref = ref.origin
        if isinstance(ref, Local) and ref.position >= self._start:
            return (ref.position - self._start, ref.out)
        return self.of_identity(ref)

    def of_identity(self, thing: Any) -> int:
        """The name of an external thing, compared by equality of ``thing``."""
        key = ("r", id(thing.tensor)) if isinstance(thing, Resource) else thing
        return self._names.setdefault(key, len(self._names))


def _same_constants(one: Call, other: Call) -> bool:
    """Whether two executions of one gradient made the same tensors of their own (if they ran the same ops)."""
    ops = [[inner.op for inner in call.inner] for call in (one, other)]
    if ops[0] != ops[1]:
        return True  # their order may vary
    pairs = zip(
        (ref for inner in one.inner for ref in inner.inputs),
        (ref for inner in other.inner for ref in inner.inputs),
        strict=True,
    )
    return all(
        a.tensor._datatype_enum() in _OPAQUE or same_known(a.tensor, b.tensor)
        for a, b in pairs
        if isinstance(a, Captured) and isinstance(b, Captured)
    )


def spec_text(spec: Spec) -> str:
    """A spec as people read it."""
    return repr(spec)

"""The TraceGraph: all traces of one anchor merged.

A node is one op call at one place of the user's program. Nodes are found by *key* (`trace.keys`: op, attributes, dtypes
and shapes, executed location), so traces that part at a branch meet again at its join. Wiring is kept in the node's
rules, which widen when traces disagree (`trace.rules`). Loops with a constant trip count are unrolled into distinct
nodes; a loop whose trip count was seen to vary is *rolled*: its iterations share nodes and its repetition is a back
edge.

Where shapes go on changing (`trace.keys`), a graph is *relaxed*: a node is one for all sizes of its tensors. Its specs
are patterns that widen as rules do, a dimension that was seen to differ may be any; small ops whose results follow from
shapes are DERIVED once these were seen to differ.

The graph also knows where a block must end (*cuts*): after an op whose value Python read, where Python was
busy for long, around ops of the owner thread, after a branch that is really
taken both ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from terra_cx.tf.opdefs import SHAPE_OPS, Kind
from terra_cx.tf.slots import Spec, fits
from terra_cx.trace.gradients import Gradients, Passage, same_constants, signature_of
from terra_cx.trace.keys import Key, Keys
from terra_cx.trace.records import Call, Ext, Trace
from terra_cx.trace.rules import Need, Rule, rule_of, same_known

__all__ = ["FORMS", "GAP_SECONDS", "HISTORIES", "TIMED", "MergeResult", "Node", "TraceGraph"]

_Spec = TypeVar("_Spec", Spec, Spec | None)
FORMS = 8
"""Shapes of one op at one place that are known each on its own in any case."""
HISTORIES = 24
"""Histories of one gradient that are known each on its own: a step with twenty ways settles, one with millions not."""
_EACH = 8
"""Regions for each shape and history beyond these that there may be: what one costs at first is paid back by then."""
GAP_SECONDS = 2e-3
"""A block is cut where Python was busy for at least this long in every trace: the graph then runs meanwhile."""
TIMED = 8
"""Co-executed regions in which that time is taken again."""


@dataclass(slots=True, eq=False, repr=False)
class Node:
    """One op call (or ``tape.gradient`` call) of the program.

    ``rules`` has an entry per flat argument; ``inner_rules`` one list per op inside a gradient. ``succ``
    counts how often each next node followed. ``rev`` grows whenever a rule widens, which retires the blocks
    that hold the node and the gradients whose tape saw it.
    """

    id: int
    call: Call
    base: Any = None
    """What ops it stands for; nodes of several contexts may have the same (`trace.keys`)."""
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
    """Grows whenever a cut is made after the node, or taken back."""
    gap: float | None = None
    """The shortest time for which Python was busy after it, in seconds."""
    timed: int = 0
    """In how many co-executed regions that time was taken."""
    untold: bool = False
    """Whether the shapes of its results cannot be told from those of its arguments: only the values tell them."""
    needed: set[int] = field(default_factory=set)
    """Outputs (n) and arguments (-1 - n) that a gradient of another block refers to; the region keeps them."""

    def __repr__(self) -> str:
        return f"<Node {self.id} {self.call.op} {self.line}>"  # not its fields: they lead through the whole graph

    def joins(self, nodes: Container[Node]) -> bool:
        """Whether something whose wiring varies may come from one of ``nodes``: they cannot be in one block with it."""
        return any(
            source in nodes and source.kind is not Kind.DERIVED  # which no block computes
            for rule in self.rules
            if rule.need is Need.TENSOR
            for source in rule.sources
        )

    @property
    def lulls(self) -> bool:
        """Whether Python is busy for long after it."""
        return self.gap is not None and self.gap > GAP_SECONDS

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
    newest: Node | None = None
    """The last one that is new, or that was widened."""
    outgrown: Call | None = None
    """An op that has too many shapes: nothing was merged, the graph should be relaxed."""
    endless: Call | None = None
    """A gradient that has so many histories that it had better be taken op by op."""
    reset: bool = False
    """The graph was emptied, because a loop turned out to vary in its trip count; tracing starts anew."""

    @property
    def nothing_new(self) -> bool:
        """Whether the trace was already known."""
        return not (self.reset or self.outgrown or self.nodes or self.edges or self.widened)


class TraceGraph:
    """All traces of one anchor, merged; see the module's page.

    Args:
        max_nodes: how many nodes it may have.
        relaxed: whether a node is one for all sizes of its tensors. Gradients must then be taken op by op.
        folded: whether all depths of a recursion share nodes, as the iterations of a rolled loop do.
    """

    def __init__(self, max_nodes: int = 20000, *, relaxed: bool = False, folded: bool = False) -> None:
        self.max_nodes = max_nodes
        self.relaxed = relaxed
        self.folded = folded
        self.root = self._root()
        self.version = 0
        self.built = 0
        """How many blocks have been made of it."""
        self.rolled: set[int] = set()
        self.traces = 0
        self.regions = 0
        """Those that were traced as a whole, and those that were begun by it."""
        self.asked = 0
        """How often shapes of its ops had to be worked out because sizes were new (`run.true_shapes`)."""
        self._nodes: dict[Any, Node] = {}
        self._order: list[Node] = []
        self.gradients = Gradients(self.rolled)
        self._keys = Keys(self.rolled, relaxed, folded)
        self._histories: Counter[Any] = Counter()
        """By place: how many nodes a gradient has."""
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
        if not trace.calls or trace.calls[0].node is None:
            self.regions += 1
        newly_rolled = self._varying_loops(trace) - self.rolled
        if newly_rolled:
            # Nodes were keyed by the loop's iterations. Tracing anew is cheaper to get right than splitting
            # them: a region that diverged is known by its nodes alone and could not be merged a second time.
            self.rolled |= newly_rolled
            self._clear()
            return MergeResult(reset=True)
        return self._merge(trace)

    @property
    def most_shapes(self) -> int:
        """How many shapes of one op at one place are known each on its own; with a further one, shapes are relaxed.

        More than `FORMS` where new ones have become rare, for blocks of one shape are far faster. (With eight for all,
        texts in six lengths, passed through the model once or twice, with a last smaller batch, were relaxed in the
        100th step: 271 ms a step at the end, and 122 with each on its own.)
        """
        return self._most(FORMS)

    def _most(self, few: int) -> int:
        """How many kinds may be known, given how few may always be: more of them in time, if there is room."""
        return few if 2 * len(self) > self.max_nodes else max(few, min(self.regions // _EACH, 4 * few))

    @property
    def overgrown(self) -> bool:
        """Whether the graph holds more nodes than it may."""
        return len(self._order) > self.max_nodes

    def _clear(self) -> None:
        self._nodes.clear()
        self._order.clear()
        self.gradients.clear()
        self._keys.clear()
        self._histories.clear()
        self.root = self._root()
        self.version += 1

    def _varying_loops(self, trace: Trace) -> set[int]:
        """Loops whose trip count differs from what was seen before, in the same iteration of the loops around them.

        (The stages of a network have different numbers of layers, always the same ones: that varies only where the
        stages themselves share nodes.)
        """
        counts: dict[tuple[int, Any], int] = {}
        for call in trace.calls:
            loops = call.site.loops if call.site is not None else ()
            for depth, (loop, iteration) in enumerate(loops):
                key = (loop, loops[:depth])
                counts[key] = max(counts.get(key, 0), iteration + 1)
        varying = {key[0] for key, count in counts.items() if self._trips.setdefault(key, count) != count}
        rolled = self.rolled | varying
        seen: dict[Any, int] = {}
        for (loop, outer), count in counts.items():
            shared = (loop, tuple((other, 0 if other in rolled else n) for other, n in outer))
            if seen.setdefault(shared, count) != count:
                varying.add(loop)
        return varying

    def _merge(self, trace: Trace) -> MergeResult:
        result = MergeResult()
        keys = self._keys.of(trace.calls, self.most_shapes)
        if self._keys.outgrown is not None:
            return MergeResult(outgrown=self._keys.outgrown)
        passage = Passage(trace.events)
        previous = self.root
        for call, key in zip(trace.calls, keys, strict=True):
            node = call.node
            if node is not None:
                # Validated before the region diverged: its rules hold; only first uses must be known.
                for index, ref in enumerate(call.inputs):
                    if isinstance(ref, Ext):
                        passage.uses.setdefault(ref.number, (node, index, passage.turns[node]))
            elif call.kind is Kind.GRADIENT:
                node = self._gradient(key.base, call, passage, result)
            else:
                node = self._op(previous, key, call, passage, result)
            if node not in previous.succ:
                previous.succ[node] = 0
                result.edges += 1
            previous.succ[node] += 1
            self._cuts(trace, call, node, previous)
            passage.passed(call, node)
            call.node = node
            previous = node
        previous.ends += 1
        self._refresh()
        if not result.nothing_new:
            self.version += 1
        return result

    def _op(self, previous: Node, key: Key, call: Call, passage: Passage, result: MergeResult) -> Node:
        node = self._find(previous, key)
        if node is not None:
            widened = self._widen(node, call, passage)
            if widened:
                result.widened += widened
                result.newest = node
            return node
        if key.variadic:
            call.kind = Kind.OWNER  # no block has parameters whose number varies
        node = self._add(key.base, key.context, call)
        node.rules = [
            rule_of(ref, spec, passage.producer, passage.uses, (node, index, 0))
            for index, (ref, spec) in enumerate(zip(call.inputs, call.input_specs, strict=True))
        ]
        for index, raw in call.raws.items():
            node.rules[index].raw = raw
        self._judge(node)
        result.nodes += 1
        result.newest = node
        return node

    def _gradient(self, place: Any, call: Call, passage: Passage, result: MergeResult) -> Node:
        self._refresh()
        signature = signature_of(passage.path, passage.events, call)
        node = self._nodes.get((place, signature))
        if node is None:
            node = self._add(place, signature, call)
            self.gradients.add(node, place, signature, passage)
            result.nodes += 1
            result.newest = node
            self._histories[call.site.path] += 1
            if self._histories[call.site.path] > self._most(HISTORIES):
                result.endless = call
        elif not same_constants(node.call, call):
            node.signature = ("unmatched", id(call))  # its code decides by something nobody sees
        else:
            for index, rule in enumerate(node.rules):
                if rule.need is Need.TENSOR:
                    use = (node, index, passage.turns[node])
                    given = rule_of(call.inputs[index], rule.spec, passage.producer, passage.uses, use)
                    result.widened += rule.widen(given)
        return node

    def _find(self, previous: Node, key: Key) -> Node | None:
        """The node for a key: the one of its context, or the one to which a way leads already."""
        return self._nodes.get((key.base, key.context)) or next(
            (node for node in previous.succ if node.base == key.base), None
        )

    def _refresh(self) -> None:
        """Have all gradients known by what they depend on under the present rules."""
        for node, place, before in self.gradients.refresh():
            self._nodes.pop((place, before), None)
            self._nodes.setdefault((place, node.signature), node)
            self.version += 1

    def _add(self, base: Any, context: Any, call: Call) -> Node:
        node = Node(len(self._order), call, base)
        self._nodes[base, context] = node
        self._order.append(node)
        if call.kind is Kind.OWNER:
            node.cut_before = node.cut_after = "owner"
        return node

    def _widen(self, node: Node, call: Call, passage: Passage) -> int:
        if node.kind in (Kind.OWNER, Kind.SOURCE):
            return 0  # the owner's ops are free
        widened = self._widen_shapes(node, call) if self.relaxed else 0
        joined = 0
        for index, (ref, spec) in enumerate(zip(call.inputs, call.input_specs, strict=True)):
            use = (node, index, passage.turns[node])
            other = rule_of(ref, spec, passage.producer, passage.uses, use)
            rule = node.rules[index]
            if rule.need is Need.TENSOR:
                joined += rule.widen(other)  # a further source: nothing of the node itself changes
            else:
                widened += rule.widen(other)
        if widened:
            node.rev += 1
            self._judge(node)
        return widened + joined

    def _judge(self, node: Node) -> None:
        """What is known, or drawn beforehand, follows from guarded arguments alone; with others it is another kind."""
        if self.relaxed or all(rule.need in (Need.KNOWN, Need.CONST) for rule in node.rules):
            return
        if node.kind is Kind.DRAW:
            node.call.kind = Kind.OWNER
            node.cut_before = node.cut_after = "owner"
        # Of shape ops only the shape is asked, and that is checked wherever the tensor comes from.
        if node.kind is Kind.KNOWN and node.call.op not in SHAPE_OPS:
            node.call.kind = Kind.PURE

    @staticmethod
    def _widen_shapes(node: Node, call: Call) -> int:
        """Have a node's patterns admit the shapes of a call; how many did not. Results that follow may differ, too."""
        known = node.call
        inputs = [_pattern(*both) for both in zip(known.input_specs, call.input_specs, strict=True)]
        outputs = [_pattern(*both) for both in zip(known.outputs, call.outputs, strict=True)]
        before = (*known.input_specs, *known.outputs)
        widened = sum(new is not old for new, old in zip((*inputs, *outputs), before, strict=True))
        if widened:
            known.input_specs, known.outputs = tuple(inputs), tuple(outputs)
            for rule, spec in zip(node.rules, known.input_specs, strict=True):
                if rule.spec is not None:
                    rule.spec = spec
        if node.kind is Kind.KNOWN and (widened or not all(map(same_known, known.values, call.values))):
            known.kind, known.values = Kind.DERIVED, ()
            widened += 1
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

    def compute(self, node: Node) -> None:
        """What was known of a tensor's shape differs, for only its value tells it: an op of the graph from now on.

        In a relaxed graph sizes differ by themselves; there `_widen_shapes` has it worked out each time.
        """
        if self.relaxed:
            return
        node.call.kind = Kind.PURE
        node.rev += 1
        self.version += 1

    def busy(self, node: Node, seconds: float) -> None:
        """Python was busy for so long after ``node`` in a co-executed region.

        In traces it was busy with the Python of library calls as well. Where these are elided nothing may be left of
        it, and each cut costs as much as some thirty elided ops.
        """
        node.timed += 1
        node.gap = seconds if node.gap is None else min(node.gap, seconds)
        if node.timed == TIMED and not node.lulls:
            node.cuts += 1
            self.version += 1

    # -- reading ---------------------------------------------------------------------------------------------
    def branch_nodes(self) -> int:
        """How many nodes have more than one next node."""
        return sum(len(node.succ) > 1 for node in self._order)


def _pattern(mine: _Spec, yours: Spec | None) -> _Spec:
    """The pattern that admits what ``mine`` does, and another shape of its rank."""
    if mine is None or yours is None or mine.shape is None or yours.shape is None:
        return mine
    if fits(mine.shape, yours.shape):
        return mine
    return Spec(
        mine.dtype,
        tuple(a if a == b else None for a, b in zip(mine.shape, yours.shape, strict=True)),
        mine.device,
    )


def spec_text(spec: Spec) -> str:
    """A spec as people read it."""
    return repr(spec)

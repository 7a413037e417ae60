"""Gradients in the TraceGraph: what makes two of them the same, and how they refer to the ops under their tape.

A gradient's Python does not run while a region is co-executed; its ops are those of a trace. It is known by its
*signature*: the ops and events since its tape was made, and whatever of their wiring the rules leave free. When a rule
under the tape widens, more of the wiring becomes free, and signatures that rested on it are outdated. They are not
traced anew: the *passage* of the trace they come from is kept, and with it they are written again under the wider rules
(`Gradients.refresh`). Otherwise a program with n ways through its step would trace each gradient about n times.

The counterpart for running regions is `run.signature`; equal signatures mean equal tape contents.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from terra_cx.tf.opdefs import SHAPE_OPS, Kind
from terra_cx.tf.slots import Spec
from terra_cx.trace.records import Call, Captured, Const, Ext, Known, Local, Ref, Resource, TapeEvent
from terra_cx.trace.rules import Need, Rule, Uses, rule_of, same_known

if TYPE_CHECKING:
    from terra_cx.trace.tracegraph import Node

__all__ = ["ExternalNames", "Gradients", "Passage", "is_unmatched"]

_OPAQUE = frozenset({20, 21})  # resource, variant
_HELD = (Kind.KNOWN, Kind.DERIVED)
"""Kinds of nodes whose results Python holds: constants of a gradient's block, or its arguments."""


def _origin(ref: Any) -> Any:
    """Where a guarded tensor came from; any other reference as it is."""
    return ref.origin if isinstance(ref, Known) else ref


@dataclass(slots=True)
class Passage:
    """A trace on its way through the TraceGraph: which node stands for which op, and who used what.

    ``path`` has (node, position, inputs) of each call so far, ``produced`` the (node, first output, execution) of each
    position, ``turns`` how often each node was passed.
    """

    events: list[TapeEvent]
    path: list[tuple[Node, int, tuple[Ref, ...]]] = field(default_factory=list)
    produced: dict[int, tuple[Node, int, int]] = field(default_factory=dict)
    uses: Uses = field(default_factory=dict)
    turns: Counter[Node] = field(default_factory=Counter)
    _arguments: dict[Any, list[tuple[int, Node, int, int]]] = field(default_factory=dict)

    def producer(self, ref: Local) -> tuple[Node, int, int]:
        """The node, flat output and execution that made something of this region."""
        node, base, turn = self.produced[ref.position]
        return node, base + ref.out, turn

    def passed(self, call: Call, node: Node) -> None:
        """``node`` stands for ``call``."""
        turn = self.turns[node]
        self.turns[node] += 1
        if call.kind is Kind.GRADIENT:
            base = 0
            for inner in call.inner:
                self.produced[inner.position] = (node, base, turn)
                base += len(inner.outputs)
        else:
            self.produced[call.position] = (node, 0, turn)
            for index, ref in enumerate(call.inputs):
                origin = _origin(ref)
                if isinstance(origin, (Local, Ext)):
                    self._arguments.setdefault(origin, []).append((call.position, node, index, turn))
        # A raw argument may be a whole batch; that there was one is all that is needed of it.
        inputs = tuple(Const(None, None) if isinstance(ref, Const) else ref for ref in call.inputs)
        self.path.append((node, call.position, inputs))

    def under_tape(self, ref: Any, start: int, end: int) -> list[tuple[Node, int, int]]:
        """The uses of ``ref`` by ops at positions from ``start`` to before ``end``, as (node, argument, execution)."""
        return [
            (node, index, turn)
            for position, node, index, turn in self._arguments.get(ref, ())
            if start <= position < end
        ]

    def tape_start(self, call: Call) -> int:
        """The position at which the tape of a gradient call was made; beyond all if it was made elsewhere."""
        for event in self.events[: call.events]:
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


@dataclass(slots=True)
class _Source:
    """Where a gradient's node comes from: its key in the TraceGraph without the signature, and its trace's passage."""

    place: Any
    passage: Passage
    length: int
    """How much of the path had been passed."""


class Gradients:
    """The gradient nodes of a TraceGraph.

    Args:
        rolled: the loops whose iterations share nodes.
    """

    def __init__(self, rolled: Collection[int]) -> None:
        self._rolled = rolled
        self._sources: dict[Node, _Source] = {}
        self._mentions: defaultdict[Node, set[tuple[Node, int]]] = defaultdict(set)
        """The gradients that take something of a node from the forward pass, and what (as in ``Node.needed``)."""

    def clear(self) -> None:
        """The TraceGraph was emptied."""
        self._sources.clear()
        self._mentions.clear()

    def add(self, node: Node, place: Any, signature: Any, passage: Passage) -> None:
        """Write the rules of a new node, as the trace has them."""
        self._sources[node] = _Source(place, passage, len(passage.path))
        self._write(node, passage, signature)

    def _write(self, node: Node, passage: Passage, signature: Any) -> None:
        _Writer(node, passage, self._rolled).write(signature)
        for rule in _flat((node.inner_rules, node.results)):
            if rule is None:
                continue
            if rule.need is Need.LOCAL and rule.node is not None:
                if rule.node.kind not in _HELD:
                    self._mentions[rule.node].add((node, rule.out))
            elif rule.need is Need.SHARED and rule.share is not None:
                user, argument = rule.share
                self._mentions[user].add((node, -1 - argument))

    def keep(self, nodes: Collection[Node]) -> None:
        """Note of the nodes of a block what gradients in other blocks take from them.

        A gradient's own block notes it too, but is built only when the gradient is reached. Where a step went a new way
        (another length of text), its forward pass was over by then, the values gone, and the step fell back once more.
        """
        inside = set(nodes)
        for node in nodes:
            for gradient, what in self._mentions.get(node, ()):
                if gradient not in inside:
                    node.needed.add(what)

    def refresh(self) -> list[tuple[Node, Any, Any]]:
        """Bring all gradients up to date with the rules of the ops under their tapes.

        Returns:
            The nodes whose signature is another one now, with the place, and the signature from before.
        """
        changed = []
        for node, source in self._sources.items():
            before = node.signature
            if is_unmatched(before) or all(other.rev == rev for other, rev in before[0]):
                continue
            passage = source.passage
            rules = node.rules, node.inner_rules, node.results
            signature = signature_of(passage.path[: source.length], passage.events, node.call)
            self._write(node, passage, signature)
            if not _same_rules(rules, (node.rules, node.inner_rules, node.results)):
                node.rev += 1
            changed.append((node, source.place, before))
        return changed


def is_unmatched(signature: Any) -> bool:
    """Whether a signature equals no other: the gradient cannot be taken over."""
    return isinstance(signature[0], str)


def signature_of(path: list[tuple[Node, int, tuple[Ref, ...]]], events: list[TapeEvent], call: Call) -> Any:
    """What a gradient depends on: the ops and tape events since its tape was made, and their free wiring."""
    events = events[: call.events]
    first = next((i for i, e in enumerate(events) if e.what == "new" and e.tape == call.attrs[0]), None)
    if first is None:
        return ("outside", id(call))
    events = events[first:]
    start = events[0].position
    ops = [(node, inputs) for node, position, inputs in path if position >= start]
    names = ExternalNames(start)
    wiring = []
    for node, inputs in ops:
        if node.kind in (Kind.OWNER, Kind.SOURCE, Kind.DRAW):
            continue
        for rule, ref in zip(node.rules, inputs, strict=True):
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
    revisions = tuple((node, node.rev) for node, _ in ops)
    return (revisions, tuple(wiring), seen, frozenset(Counter(handles).items()), asked)


def same_constants(one: Call, other: Call) -> bool:
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


class _Writer:
    """Writes the rules of one gradient node: of what it is asked, of the ops inside it, and of its results."""

    def __init__(self, node: Node, passage: Passage, rolled: Collection[int]) -> None:
        self.node = node
        self.call = call = node.call
        self.passage = passage
        self.start = passage.tape_start(call)
        self._loops = rolled
        self._rolled = False
        self._given: dict[Ref, int] = {}
        """What the gradient is asked with that no op under the tape used (output gradients): its own arguments."""
        self._bases: dict[int, int] = {}
        base = 0
        for inner in call.inner:
            self._bases[inner.position] = base
            base += len(inner.outputs)

    def write(self, signature: Any) -> None:
        """Do it. A gradient that cannot be taken over gets a signature that says so, not the one given."""
        node, call = self.node, self.call
        node.rules = [
            self._argument(ref, spec, index)
            for index, (ref, spec) in enumerate(zip(call.inputs, call.input_specs, strict=True))
        ]
        node.signature = signature  # only now: which tensors are asked for is part of it
        for ref in call.reads:
            origin = _origin(ref)
            guarded = any(
                user.rules[index].need in (Need.KNOWN, Need.CONST) for user, index, _ in self._users(origin)
            )
            if not guarded and not self._is_fixed(origin):
                self._unmatched()  # its code may decide otherwise on another value
        number = len(node.rules)
        node.inner_rules = []
        for inner in call.inner:
            rules = []
            for ref, spec in zip(inner.inputs, inner.input_specs, strict=True):
                rules.append(self._rule(ref, spec, (node, number, 0)))
                number += 1
            node.inner_rules.append(rules)

        def result(ref: Any) -> Rule | None:
            nonlocal number
            if ref is None:
                return None
            number += 1
            return self._rule(ref, None, (node, number, 0))

        node.results = tuple(
            tuple(map(result, ref)) if isinstance(ref, tuple) else result(ref) for ref in call.results
        )
        if self._rolled:
            # A block knows one execution of a node; what other iterations computed must come in from outside.
            node.cut_before = "gradient of a rolled loop"

    def _unmatched(self) -> None:
        self.node.signature = ("unmatched", id(self.call))

    def _users(self, ref: Any) -> list[tuple[Node, int, int]]:
        return self.passage.under_tape(ref, self.start, self.call.position)

    def _is_fixed(self, ref: Ref) -> bool:
        """Whether a gradient under the tape computed it, from nothing that may change: a shape of its own ops, say."""
        if not isinstance(ref, Local) or ref.position < self.start:
            return False
        node, out, _ = self.passage.producer(ref)
        return node.kind is Kind.GRADIENT and _is_constant(node, out)

    def _in_rolled_loop(self, node: Node) -> bool:
        return any(loop in self._loops for loop, _ in node.call.site.loops)

    def _source(self, ref: Local) -> tuple[Node, int, int]:
        if ref.position in self._bases:
            return self.node, self._bases[ref.position] + ref.out, 0
        found = self.passage.producer(ref)
        self._rolled = self._rolled or self._in_rolled_loop(found[0])
        return found

    def _argument(self, ref: Any, spec: Spec | None, index: int) -> Rule:
        """The rule for something that the gradient is asked with: any tensor will do that the tape knows nothing of."""
        origin = _origin(ref)
        if not self._is_from_before(origin) or self._users(origin):
            return self._rule(ref, spec, (self.node, index, 0))
        self._given.setdefault(origin, index)
        made = {self.passage.producer(origin)[0]} if isinstance(origin, Local) else set()
        return Rule(Need.TENSOR, spec, sources=made)

    def _is_from_before(self, ref: Any) -> bool:
        """Whether it comes from outside the region, or was made before the tape was."""
        return isinstance(ref, Ext) or (isinstance(ref, Local) and ref.position < self.start)

    def _rule(self, ref: Any, spec: Spec | None, use: tuple[Node, int, int]) -> Rule:
        """The rule for something that the gradient mentions.

        What was made before the tape is known by the op under the tape that used it: the signature says nothing about
        how it was made, and another way may have led here. A guarded value is a constant only where an op under the
        tape guards it.
        """
        uses = self.passage.uses
        if isinstance(ref, Known):
            if any(user.rules[index].need is Need.KNOWN for user, index, _ in self._users(ref.origin)):
                return rule_of(ref, spec, self._source, uses, use)
            origin = ref.origin
            if (
                isinstance(origin, Local)
                and origin.position >= self.start
                and self._source(origin)[0].kind is Kind.KNOWN
            ):
                return rule_of(ref, spec, self._source, uses, use)
            ref = origin
        if self._is_from_before(ref):
            if ref in self._given:
                return Rule(Need.SHARED, spec, share=(self.node, self._given[ref]))
            under = self._users(ref)
            if under:
                user, index, turn = under[0]
                self._rolled = self._rolled or self._in_rolled_loop(user)
                return Rule(Need.SHARED, spec, share=(user, index), turn=turn)
            self._unmatched()  # nothing under the tape used it: how it came about would have to be in the signature
        return rule_of(ref, spec, self._source, uses, use)


def _is_constant(gradient: Node, out: int) -> bool:
    """Whether an op inside a gradient gives the same in every execution of that gradient."""
    for inner, rules in zip(gradient.call.inner, gradient.inner_rules, strict=True):
        if out < len(inner.outputs):
            return inner.kind is Kind.PURE and (
                inner.op in SHAPE_OPS
                or all(
                    rule.need in (Need.KNOWN, Need.CONST, Need.CAPTURED)
                    or (
                        rule.need is Need.LOCAL and rule.node is gradient and _is_constant(gradient, rule.out)
                    )
                    for rule in rules
                )
            )
        out -= len(inner.outputs)
    return False


_Rules = tuple[list[Rule], list[list[Rule]], tuple[Any, ...]]


def _flat(rules: Any) -> list[Rule | None]:
    """The rules in nested sequences."""
    if isinstance(rules, (list, tuple)):
        return [rule for inner in rules for rule in _flat(inner)]
    return [rules]


def _same_rules(one: _Rules, other: _Rules) -> bool:
    """Whether a gradient refers to everything as before."""

    def same(a: Rule | None, b: Rule | None) -> bool:
        if a is None or b is None:
            return a is b
        return (
            (a.need, a.node, a.out, a.share, a.turn, a.lag, a.dtype)
            == (b.need, b.node, b.out, b.share, b.turn, b.lag, b.dtype)
        ) and a.value is b.value

    before, after = _flat(one), _flat(other)
    return len(before) == len(after) and all(same(a, b) for a, b in zip(before, after, strict=True))

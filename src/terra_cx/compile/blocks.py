"""Blocks: straight runs of nodes between two cuts of the TraceGraph.

A block is what the skeleton validates op by op and what the graph runner executes at once. Its `Step` list is the
skeleton's side (what Python must do next), its `FlatOp` list the graph's side (what is computed, gradients expanded).
Blocks follow the hottest way through the graph, so where Python's branches are stable a block is a superblock; a branch
that is taken both ways becomes a cut after it has been left twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from terra_cx.levels import Level
from terra_cx.tf.opdefs import SHAPE_OPS, Kind, grouped, lasting_attrs
from terra_cx.tf.slots import Spec, fits
from terra_cx.trace.keys import freeze
from terra_cx.trace.rules import Need, Rule
from terra_cx.trace.tracegraph import Node, TraceGraph

__all__ = ["Block", "Check", "Cut", "FlatOp", "Step", "build_block"]

MAX_BLOCK = 3000
"""Steps in one block; longer runs are cut."""

LASTING = 100
"""Runs after which outputs that none of them had to return are given up."""

# Codes of argument checks, in the order in which the skeleton tests them.
LOCAL, PARAM, KNOWN, CONST, RESOURCE, FEED, LIST, HELD, ANY = range(9)
AGAIN = 2
"""Instead of whether it is a parameter's first use: a further one, whose shape is checked too."""
Check = tuple[Any, ...]
"""(LOCAL, flat output) | (PARAM, number, first use or AGAIN, dtype, shape, raw type) | (KNOWN, tensor, raw) |
(CONST, value) | (RESOURCE, tensor) | (FEED, number, dtype, raw type) | (LIST, (checks...)) | (HELD, dtype, type) |
(ANY, dtype)"""


@dataclass(slots=True)
class FlatOp:
    """One op of the block's graph.

    ``inputs`` are ("l", flat output), ("p", parameter), ("k", tensor), ("c", value, dtype) or ("r", handle); its
    outputs are the block's flat outputs ``base`` to ``base + len(specs)``.
    """

    op: str
    form: str
    attrs: tuple[Any, ...]
    layout: tuple[int, ...]
    kind: Kind
    inputs: list[tuple[Any, ...]]
    base: int
    specs: list[Spec]
    name: str | None
    device: str = ""
    """The device scope that it is to run in."""
    fallible: bool = True
    """Whether its kernel may refuse a value; lowering, which knows the shapes, says when not."""
    refusable: bool = False
    """Whether that is a write's kernel, and no op of its own can tell before (`lowering`)."""
    tainted: bool = False
    """Depends on a write of the same block; such an op must not be fallible."""


class Cut(Exception):
    """Raised by lowering: the block would be no transaction if it held ``node``, so it has to end before it."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node
        self.reason = reason


@dataclass(slots=True)
class Step:
    """One thing that Python must do next for the block to go on."""

    node: Node
    op: str
    form: str
    kind: Kind
    width: int
    attrs: tuple[Any, ...]
    checks: tuple[Check, ...]
    base: int
    specs: list[Spec]
    pack: Any
    needed: set[int]
    position: int
    ops: tuple[int, int] = (0, 0)
    """The flat ops of the step, as a range."""
    device: str = ""
    """The device scope that it comes in."""
    frozen: Any = None
    """The attributes that must be equal, in hashable form."""
    types: list[type] = field(default_factory=list)
    """Of the attributes: an array equals a list of one element, and True is 1, and neither is the other."""
    direct: bool = False
    """Whether it arrives by the fast path and comparing it with ``==`` is exact: the common case."""
    computed: bool = False
    """Whether the block computes its outputs (PURE, READ, WRITE): each gets a slot, and nothing else is done."""
    relaxed: bool = False
    """Whether the shapes of its results have to be worked out each time (`run.true_shapes`); ``specs`` are patterns."""
    symbol: Any = None
    """The op of the block's graph, if it has one: its attributes are those of the step."""
    inference: Any = None
    """Asks TensorFlow for shapes (`tf.shape_inference.Inference`)."""
    shapes: dict[Any, Any] = field(default_factory=dict)
    """What has been worked out."""
    values: tuple[Any, ...] = ()
    """For KNOWN: the recorded results."""
    token: tuple[int, str] | None = None
    """What live tapes are told of its place, and when that was made (`tf.backward.step_token`)."""
    inferred: tuple[Any, ...] | None = None
    """The further attributes that a tape is told, once one has been told (`run.live_skeleton`)."""
    results: tuple[Any, ...] = ()
    """For a gradient: per result None, a source, or a triple of sources; a source as in `FlatOp.inputs`."""
    implicit: tuple[tuple[int, Node, int, int], ...] = ()
    """Parameters (number, node, output, execution) that the gradient takes from earlier blocks of the region."""
    given: tuple[int, ...] = ()
    """The flat outputs of the step that are results."""
    named: frozenset[tuple[Node, int, int]] = frozenset()
    """The results that are outputs of ops of earlier blocks: node, output, execution."""
    calls: dict[Any, Any] = field(default_factory=dict)
    """What is known of calls of functions that begin here (`run.function_elider`)."""


@dataclass(slots=True)
class Block:
    """See the module's page. ``dynamic`` are flat outputs whose shape only the value can tell."""

    uid: int
    nodes: tuple[Node, ...]
    steps: list[Step] = field(default_factory=list)
    ops: list[FlatOp] = field(default_factory=list)
    params: list[Spec] = field(default_factory=list)
    flat: int = 0
    owners: list[tuple[Node, int]] = field(default_factory=list)
    """For each flat output, the node and its output number."""
    places: list[tuple[int, int]] = field(default_factory=list)
    """For each flat output, its op's position within the block and its number among that op's outputs."""
    param_rules: list[Rule | None] = field(default_factory=list)
    held: set[int] = field(default_factory=set)
    """Flat outputs of DERIVED ops: Python has their values, the block does not compute them."""
    draws: dict[int, int] = field(default_factory=dict)
    """Flat output of a draw -> the parameter that carries its number."""
    resources: list[Any] = field(default_factory=list)
    reason: str | None = None
    """Why the block ends where it ends."""
    prompt: bool = False
    """Dispatch at once when validated to its end (Python is busy afterwards), rather than at the next event."""
    positions: int = 0
    lowered: Any = None
    """Its graph (`lowering.Lowered`); None as long as nobody needs it, if `prepared` has told the rest."""
    prepared: Any = None
    """What another process has found out about it (`lowering.Prepared`), as long as its function was not compared."""
    variants: dict[frozenset[int], Any] = field(default_factory=dict)
    forms: dict[Level, Any] = field(default_factory=dict)
    """As `lowered`, for the levels above `exact` that were tried."""
    refused: dict[Level, str] = field(default_factory=dict)
    """The levels at which it must not run, with the reason."""
    picked: Level | None = None
    """The level that was measured to be the fastest (`run.contest`)."""
    outputs: frozenset[int] = frozenset()
    """What a run returns (`ask`)."""
    asked: frozenset[int] = frozenset()
    """What the last `agreed` complete runs had to return, all together."""
    agreed: int = 0
    relaxed: bool = False
    """Whether its ops may have tensors of other sizes in each run."""
    sizes: set[Any] = field(default_factory=set)
    """The shapes of its parameters, in runs so far, if it is relaxed (at most so many)."""
    eager: str | None = None
    """Why the block runs op by op for ever (its compiled form differed, or could not be built)."""
    barriers: bool = False
    first_fallible: int | None = None
    """The first flat op that may fail, if any may."""
    dynamic: tuple[tuple[int, Any, int], ...] | None = None
    """Uses of outputs whose shape only the value tells (see `run.signature`), once they were asked for."""
    built_from: tuple[Any, ...] = ()
    """`revisions` when it was built."""
    seconds: float = math.inf
    """What its last execution took; infinite before the first."""

    @property
    def revisions(self) -> tuple[Any, ...]:
        """What the block was built from; a block whose nodes have other revisions is stale."""
        last = self.nodes[-1]
        open_end = self.reason == "region end" and bool(last.succ)
        before: set[Node] = set()
        joined = False
        for node in self.nodes:
            joined = joined or node.joins(before)
            before.add(node)
        return (open_end, joined, *((node.rev, node.cuts, node.cut_before) for node in self.nodes))

    def ask(self, live: frozenset[int]) -> None:
        """A complete run has to return these flat outputs: `outputs` has them from now on.

        It grows at once, and stays, so that few sets are compiled. When `LASTING` runs could have done with a set that
        is compiled already, it is that one: else a step whose activations somebody held once (a summary, a debugger, a
        profiler's glance at a frame) would return them for ever.
        """
        if not live <= self.outputs:
            self.outputs |= live
            self.asked, self.agreed = frozenset(), 0
            return
        if not live <= self.asked:
            self.asked |= live
        self.agreed += 1
        if self.agreed >= LASTING:
            if self.asked != self.outputs:
                fitting = [known for known in list(self.variants) if self.asked <= known < self.outputs]
                self.outputs = min(fitting, key=len, default=self.outputs)
            self.asked, self.agreed = frozenset(), 0

    def ready(self, outputs: frozenset[int] | None) -> bool:
        """Whether a run with these outputs has nothing to compile."""
        function = self.variants.get(outputs) if outputs is not None else None
        return function is not None and not function.due

    @property
    def idle(self) -> bool:
        """Whether the graph runner has nothing to do for it: the owner thread's ops, known results."""
        return not (self.ops or self.draws)

    @property
    def line(self) -> str:
        """The user's line of its first op."""
        return self.nodes[0].line


class _Builder:
    def __init__(self, uid: int) -> None:
        self.block = Block(uid, ())
        self.nodes: list[Node] = []
        self.where: dict[tuple[Node, int], int] = {}
        self.params: dict[Any, int] = {}
        self.arguments: dict[tuple[Node, int], tuple[tuple[Any, ...], Check]] = {}

    # -- parameters ----------------------------------------------------------------------------------------------
    def param(self, key: Any, spec: Spec, rule: Rule | None) -> tuple[int, bool]:
        """The parameter known by ``key``; True if this is its first use."""
        found = self.params.get(key)
        if found is not None:
            return found, False
        number = len(self.block.params)
        self.params[key] = number
        self.block.params.append(spec)
        self.block.param_rules.append(rule)
        return number, True

    def source(self, rule: Rule, use: tuple[Node, int]) -> tuple[tuple[Any, ...], Check]:
        """Where an argument comes from in the graph, and what the skeleton checks."""
        need, spec = rule.need, rule.spec
        if need is Need.LOCAL:
            assert rule.node is not None
            if rule.node.kind is Kind.KNOWN:
                value = rule.node.call.values[rule.out]
                return ("k", value), (KNOWN, value)
            if rule.node.kind is Kind.DERIVED:
                assert spec is not None
                number, _ = self.param(("own", use), spec, rule)
                return ("p", number), (PARAM, number, True, spec.dtype, spec.shape, None)
            flat = self.where.get((rule.node, rule.out))
            if flat is not None and rule.turn == 0:
                draw = self.block.draws.get(flat)
                return (("l", flat) if draw is None else ("p", draw)), (LOCAL, flat)
            key: Any = ("node", rule.node, rule.out, rule.turn)
        elif need is Need.SHARED:
            known = self.arguments.get(rule.share) if rule.share is not None and rule.turn == 0 else None
            if known is not None:
                return known[0], _again(known[1], spec)
            key = ("ext", *(rule.share or use), rule.turn)
        elif need in (Need.EXTERNAL, Need.TENSOR):
            key = ("own", use)
        elif need is Need.CONST:
            return ("c", rule.value, rule.dtype), (CONST, rule.value)
        elif need is Need.KNOWN:
            return ("k", rule.value), (KNOWN, rule.value, rule.raw)
        elif need is Need.RESOURCE:
            return ("r", rule.value), (RESOURCE, rule.value)
        elif need is Need.CAPTURED:
            return ("k", rule.value), (KNOWN, rule.value)
        else:
            assert rule.dtype is not None
            shape = () if rule.raw in (int, float, bool, complex) else None
            number, _ = self.param(("own", use), Spec(rule.dtype, shape), rule)
            return ("p", number), (FEED, number, rule.dtype, rule.raw)
        assert spec is not None
        number, first = self.param(key, spec, rule)
        raw = rule.raw if isinstance(rule.raw, type) or rule.raw is None else type(rule.raw)
        check = (PARAM, number, True, spec.dtype, self.block.params[number].shape, raw)
        return ("p", number), check if first else _again(check, spec)

    # -- nodes ---------------------------------------------------------------------------------------------------
    def add(self, node: Node) -> None:
        """Append ``node``."""
        if node.kind is Kind.GRADIENT:
            self._gradient(node)
        else:
            self._op(node)
        self.nodes.append(node)

    def _op(self, node: Node) -> None:
        call, block = node.call, self.block
        sources: list[tuple[Any, ...]] = []
        checks: list[Check] = []
        free = node.kind in (Kind.OWNER, Kind.SOURCE)  # takes whatever it is given
        if node.kind is Kind.DERIVED:
            checks = [_held(call.op, rule) for rule in node.rules]
        elif not free:
            for index, rule in enumerate(node.rules):
                source, check = self.source(rule, (node, index))
                self.arguments[node, index] = source, check
                sources.append(source)
                checks.append(check)
        base = block.flat
        specs = [Spec(spec.dtype, spec.shape, spec.device) for spec in call.outputs]
        first_op = len(block.ops)
        if node.kind in (Kind.PURE, Kind.READ, Kind.WRITE):
            self._flat_op(call, sources, base, specs)
        elif node.kind is Kind.DRAW:
            for out, spec in enumerate(specs):
                number, _ = self.param(("draw", node, out), spec, None)
                block.draws[base + out] = number
        self._step(node, call, () if free else tuple(_nest(checks, call.layout)), base, specs, first_op)
        if node.kind is Kind.KNOWN:
            block.steps[-1].values = call.values
        if node.kind is Kind.DERIVED:
            block.held.update(range(base, base + len(specs)))
        for out in range(len(specs)):
            self.where[(node, out)] = base + out
            block.owners.append((node, out))
            block.places.append((block.positions - 1, out))
        block.flat += len(specs)

    def _step(
        self, node: Node, call: Any, checks: tuple[Check, ...], base: int, specs: list[Spec], first_op: int
    ) -> None:
        block = self.block
        block.steps.append(
            Step(
                node,
                call.op,
                call.form,
                node.kind,
                len(call.layout) if call.form == "F" else 1,
                call.attrs,
                checks,
                base,
                specs,
                call.pack,
                node.needed,
                block.positions,
                (first_op, len(block.ops)),
                call.device,
            )
        )
        block.steps[-1].frozen = freeze(lasting_attrs(node.kind, call.attrs))
        block.steps[-1].types = [*map(type, call.attrs)]
        plain = all(_is_plain(value) for value in call.attrs[1::2])
        block.steps[-1].direct = plain and call.form == "F" and node.kind is not Kind.DRAW
        block.steps[-1].computed = node.kind in (Kind.PURE, Kind.READ, Kind.WRITE)
        block.positions += node.width

    def _flat_op(self, call: Any, sources: list[tuple[Any, ...]], base: int, specs: list[Spec]) -> None:
        self.block.ops.append(
            FlatOp(
                call.op,
                call.form,
                call.attrs,
                call.layout,
                call.kind,
                sources,
                base,
                specs,
                call.name,
                call.device,
            )
        )
        for handle in (source[1] for source in sources if source[0] == "r"):
            if not any(handle is known for known in self.block.resources):
                self.block.resources.append(handle)

    def _gradient(self, node: Node) -> None:
        call, block = node.call, self.block
        checks = []
        for index, rule in enumerate(node.rules):
            source, check = self.source(rule, (node, index))
            checks.append(check)
            if rule.need is Need.TENSOR:
                self.arguments[node, index] = source, check  # output gradients: the ops inside mention them
        before = len(block.params)
        base = block.flat
        first_op = len(block.ops)
        all_specs: list[Spec] = []
        number = len(node.rules)
        out = 0
        for place, (inner, rules) in enumerate(zip(call.inner, node.inner_rules, strict=True)):
            sources = []
            for rule in rules:
                sources.append(self.source(rule, (node, number))[0])
                number += 1
            specs = [Spec(spec.dtype, spec.shape, spec.device) for spec in inner.outputs]
            self._flat_op(inner, sources, block.flat, specs)
            for index, spec in enumerate(specs):
                self.where[(node, out)] = block.flat
                block.owners.append((node, out))
                block.places.append((block.positions + place, index))
                block.flat += 1
                out += 1
                all_specs.append(spec)
        results = tuple(self._result(item, (node, number + index)) for index, item in enumerate(node.results))
        self._step(node, call, tuple(checks), base, all_specs, first_op)
        step = block.steps[-1]
        step.results = results
        flat = [item for item in _flat(results) if item is not None]
        step.given = tuple(item[1] for item in flat if item[0] == "l")
        step.named = frozenset(item[1:] for item in flat if item[0] == "n")
        implicit = []
        for key, param in self.params.items():
            if param < before:
                continue
            if key[0] == "node":
                implicit.append((param, key[1], key[2], key[3]))
                key[1].needed.add(key[2])
            elif key[0] == "ext":
                _, owner, argument, turn = key
                implicit.append((param, owner, -1 - argument, turn))
                owner.needed.add(-1 - argument)
        step.implicit = tuple(implicit)

    def _result(self, item: Any, use: tuple[Node, int]) -> Any:
        if item is None:
            return None
        if isinstance(item, tuple):
            return tuple(self._result(part, use) for part in item)
        rule: Rule = item
        if rule.need is Need.LOCAL and rule.node is not None and (rule.node, rule.out) not in self.where:
            rule.node.needed.add(rule.out)
            return ("n", rule.node, rule.out, rule.turn)
        if rule.need is Need.SHARED:
            owner, argument = rule.share or use
            if owner is use[0]:
                return self.source(rule, use)[0]  # the gradient gives what it was given
            owner.needed.add(-1 - argument)
            return ("n", owner, -1 - argument, rule.turn)
        if rule.need is Need.KNOWN:
            return ("k", rule.value)
        return self.source(rule, use)[0]


def _flat(results: tuple[Any, ...]) -> Iterator[Any]:
    """The sources among the results of a gradient, triples of them opened."""
    for item in results:
        if item is not None and (isinstance(item[0], tuple) or item[0] is None):
            yield from item
        else:
            yield item


def _held(op: str, rule: Rule) -> Check:
    """The check for an argument of a DERIVED op: its value must be there, or for an op of shapes only its shape."""
    dtype = rule.dtype if rule.spec is None else rule.spec.dtype
    if op in SHAPE_OPS:
        return (ANY, dtype)
    raw = rule.value if rule.need is Need.CONST else rule.raw
    return (HELD, dtype, raw if isinstance(raw, type) or raw is None else type(raw))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return not isinstance(value, (float, complex, np.ndarray, np.generic))


def _again(check: Check, spec: Spec | None) -> Check:
    """The check for a further use of the same argument, by an op that takes it with ``spec``.

    What the first use admits may be wider (a gradient takes a source of any shape if nothing was computed from it), or
    of another branch; then the shape is checked again.
    """
    if check[0] != PARAM:
        return check
    shape = check[4]
    if spec is None or spec.shape is None or (shape is not None and fits(spec.shape, shape)):
        return (PARAM, check[1], False, *check[3:])
    return (PARAM, check[1], AGAIN, spec.dtype, spec.shape, check[5])


def _nest(checks: list[Check], layout: tuple[int, ...]) -> list[Check]:
    return [(LIST, tuple(item)) if isinstance(item, list) else item for item in grouped(checks, layout)]


def build_block(graph: TraceGraph, start: Node, uid: int, lower: Callable[[Block], None]) -> Block:
    """Follow the hottest way from ``start`` to the next cut and make a block of it.

    Args:
        graph: the TraceGraph (for its trace count).
        start: the first node.
        uid: a number for the block, unique in the session.
        lower: builds the block's graph, which also tells which shapes are static, and raises `Cut` where the
            transaction rule ends the block (`compile.lowering`).
    """
    cut: Cut | None = None
    graph.built += 1
    while True:
        block = _follow(graph, start, uid, cut)
        if block.nodes[0].kind is Kind.OWNER:
            return block
        try:
            lower(block)
        except Cut as found:
            cut = found  # known only now: nothing after it was looked at, so the shorter block has no other
        else:
            return block


def _follow(graph: TraceGraph, start: Node, uid: int, cut: Cut | None) -> Block:
    builder = _Builder(uid)
    builder.block.relaxed = graph.relaxed
    node: Node | None = start
    seen: set[Node] = set()
    reason: str | None = None
    while node is not None:
        if node in seen:
            reason = "back edge"
            break
        if builder.nodes and (node.cut_before or node.kind is Kind.OWNER):
            reason = node.cut_before or "owner"
            break
        if node.joins(seen):
            reason = "wiring varies"
            break
        if cut is not None and node is cut.node:
            reason = cut.reason
            break
        if len(builder.block.steps) >= MAX_BLOCK:
            reason = "length"
            break
        builder.add(node)
        seen.add(node)
        if node.cut_after:
            reason = node.cut_after
            break
        if node.lulls and graph.traces > 1:
            reason = "host time"
            builder.block.prompt = True
            break
        node = node.hottest()
    block = builder.block
    block.nodes = tuple(builder.nodes)
    block.reason = reason or "region end"
    block.built_from = block.revisions
    return block

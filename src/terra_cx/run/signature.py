"""What a gradient of a tape depends on, computed from the validated runs.

The counterpart for traces is `trace.gradients.signature_of`; both name ops by (node, revision), free wiring by
canonical names, and tape events by relative position, so that equal signatures mean equal tape contents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from terra_cx.compile.blocks import Block
from terra_cx.run.block_run import BlockRun
from terra_cx.run.checks import bindings
from terra_cx.run.region_log import RegionLog
from terra_cx.tf.opdefs import SHAPELESS, Kind
from terra_cx.tf.slots import Slot
from terra_cx.trace.gradients import ExternalNames
from terra_cx.trace.rules import Need

__all__ = ["signature_of", "unknown_shapes"]

_MOST = 1000
"""Signatures that are remembered; a program with more combinations computes them again."""


def signature_of(known: dict[Any, Any], log: RegionLog, tape: int, asked: list[Any]) -> Any:
    """The signature of a gradient asked of tape number ``tape`` at the present point of the region.

    It follows from the blocks under the tape, how far they were validated, and which of the things bound to their
    parameters are the same; so it is computed once for each combination of these.

    Args:
        known: signatures computed before; updated.
        log: the region so far.
        tape: the tape's number.
        asked: targets, output gradients and sources that are no variables (slots or tensors).
    """
    start = log.created(tape)
    base = next(index for index, event in enumerate(log.events) if event.what == "new" and event.tape == tape)
    events = [event for event in log.events[base:] if event.what != "access"]
    accesses = [id(handle) for event in log.events[base:] if event.what == "access" for handle in event.args]
    runs = [run for run in log.runs if run.position > start]
    numbers = {id(run): number for number, run in enumerate(runs)}
    names: dict[int, int] = {}

    def name(thing: Any) -> Any:
        if type(thing) is Slot and id(thing.run) in numbers:
            return numbers[id(thing.run)], thing.index
        return names.setdefault(id(thing), len(names))

    if any(_dynamic(run, start) for run in runs) or any(
        type(thing) is Slot and thing.spec.shape is None for thing in asked
    ):
        return ("dynamic", object())  # the gradient's ops have shapes of the trace in them: equal to nothing
    key = (
        tuple(
            (
                run.block.uid,
                run.pos,
                run.start - start,
                # Most of what a long block is given is bound after the gradient.
                *[None if thing is None else name(thing) for thing in run.params],
            )
            for run in runs
        ),
        tuple(
            (
                event.position - start,
                event.what,
                event.tape - tape if event.tape >= 0 else None,
                name(event.args) if event.what == "watch" else None,
                event.detail,
            )
            for event in events
        ),
        tuple(accesses),
        tuple(map(name, asked)),
    )
    found = known.get(key)
    if found is None:
        if len(known) >= _MOST:
            known.clear()
        found = known[key] = _compute(log, tape, start, events, accesses, asked)
    return found


def unknown_shapes(log: RegionLog, tape: int) -> list[Slot]:
    """Slots whose shape only their value tells, that an op under the tape took, and whose value is still to come.

    (Not those that were dead when their run was handed over: nobody will ever know their shape.)
    """
    start = log.created(tape)
    return [
        slot
        for run in log.runs
        if run.position > start
        for slot, _ in _dynamic_uses(run, start)
        if slot is not None and slot.value is None and (run.outputs is None or slot.index in run.outputs)
    ]


def _dynamic(run: BlockRun, start: int) -> bool:
    """Whether ops under the tape took something whose shape is not the recorded one, or not known."""
    return any(
        slot is None or slot.value is None or slot.value._shape_tuple() != shape
        for slot, shape in _dynamic_uses(run, start)
    )


def _dynamic_uses(run: BlockRun, start: int) -> list[tuple[Slot | None, tuple[int, ...] | None]]:
    block = run.block
    if block.dynamic is None:
        block.dynamic = tuple(_uses_in(block))
    if not block.dynamic:
        return []
    # The step that is validated next counts as well: it may be the gradient.
    return [
        (run.slots[flat], shape)
        for flat, shape, number in block.dynamic
        if number <= run.pos and run.start + block.steps[number].position >= start
    ]


def _uses_in(block: Block) -> list[tuple[int, tuple[int, ...] | None, int]]:
    """Outputs whose shape only the value tells, and that an op of the block takes: (flat, recorded shape, step)."""
    shapes = {
        step.base + out: step.node.call.outputs[out].shape
        for step in block.steps
        if step.kind in (Kind.PURE, Kind.READ)
        for out, spec in enumerate(step.specs)
        if spec.shape is None
    }
    return [
        (source[1], shapes[source[1]], number)
        for number, step in enumerate(block.steps if shapes else [])
        for op in block.ops[slice(*step.ops)]
        for index, source in enumerate(op.inputs)
        if source[0] == "l" and source[1] in shapes and (op.op, index) not in SHAPELESS
    ]


def _compute(
    log: RegionLog, tape: int, start: int, events: list[Any], accesses: list[int], asked: list[Any]
) -> Any:
    places = _Places(log, start)
    made: dict[Any, list[Any]] = {}
    """The slots of each output of a node, one for each of its executions."""
    turns: Counter[Any] = Counter()
    ops: list[Any] = []
    wiring: list[Any] = []
    for run in log.runs:
        for step in run.block.steps[: run.pos]:
            position = run.start + step.position
            turn = turns[step.node]
            turns[step.node] += 1
            if position >= start:
                ops.append((step.node, step.node.rev))
            if position >= start and step.kind not in (Kind.OWNER, Kind.SOURCE, Kind.DRAW):
                for rule, bound in zip(step.node.rules, bindings(run, step), strict=True):
                    where = places.of(bound)
                    if rule.need is Need.LOCAL and bound is None:
                        continue  # a known result, or one that only the ops of an elided call have
                    if rule.need is Need.LOCAL:
                        if rule.node is not None and rule.node.kind is Kind.KNOWN:
                            continue
                        executions = made.get((rule.node, rule.out), ())
                        if not 0 <= turn - rule.lag < len(executions) or (
                            executions[turn - rule.lag] is not bound
                        ):
                            return ("wiring", object())  # not what the graph knows: equal to nothing
                        if where is None or where[0] >= start:
                            continue
                    elif rule.need not in (Need.TENSOR, Need.EXTERNAL, Need.SHARED, Need.LOCAL):
                        continue
                    wiring.append(places.name(bound))
            for out in range(len(step.specs)):
                made.setdefault((step.node, out), []).append(run.slots[step.base + out])
            if step.kind is Kind.KNOWN:
                places.add(step.values, position)
    seen = tuple(
        (
            e.position - start,
            e.what,
            e.tape - tape if e.tape >= 0 else None,
            places.name(e.args) if e.what == "watch" else None,
            e.detail,
        )
        for e in events
    )
    things = tuple(map(places.name, asked))
    return (tuple(ops), tuple(wiring), seen, frozenset(Counter(accesses).items()), things)


class _Places:
    """Where the tensors of a region come from, and what the signature calls them.

    Args:
        log: the region.
        start: the position at which the tape was made.
    """

    def __init__(self, log: RegionLog, start: int) -> None:
        self._runs = {id(run): run for run in log.runs}
        self._start = start
        self._names = ExternalNames(start)
        self._known: dict[int, tuple[int, int]] = {}

    def add(self, values: Sequence[Any], position: int) -> None:
        """An op whose results are known was issued: Python holds these very tensors."""
        for out, value in enumerate(values):
            self._known[id(value)] = position, out

    def of(self, bound: Any) -> tuple[int, int] | None:
        """The region's position and output number of a slot or a known result, None for anything from outside."""
        if type(bound) is not Slot or bound.run is None or id(bound.run) not in self._runs:
            return self._known.get(id(bound))
        run = self._runs[id(bound.run)]
        position, out = run.block.places[bound.index]
        return run.start + position, out

    def name(self, bound: Any) -> Any:
        """The canonical name: relative position and output, or a number for what the tape has not seen made."""
        where = self.of(bound)
        if where is not None and where[0] >= self._start:
            return (where[0] - self._start, where[1])
        return self._names.of_identity(id(bound))

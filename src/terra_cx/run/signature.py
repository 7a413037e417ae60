"""What a gradient of a tape depends on, computed from the validated runs.

The counterpart for traces is `TraceGraph._signature`; both name ops by (node, revision), free wiring by
canonical names, and tape events by relative position, so that equal signatures mean equal tape contents.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from terra_cx.run.block_run import BlockRun
from terra_cx.run.checks import bindings
from terra_cx.run.region_log import RegionLog
from terra_cx.tf.opdefs import Kind
from terra_cx.tf.slots import Slot
from terra_cx.trace.rules import Need
from terra_cx.trace.tracegraph import ExternalNames

__all__ = ["signature_of"]

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
    events = log.events[base:]
    accesses = [id(handle) for position, handle in log.accesses if position >= start]
    runs = [run for run in log.runs if run.position > start]
    numbers = {id(run): number for number, run in enumerate(runs)}
    names: dict[int, int] = {}

    def name(thing: Any) -> Any:
        if type(thing) is Slot and id(thing.run) in numbers:
            return numbers[id(thing.run)], thing.index
        return names.setdefault(id(thing), len(names))

    key = (
        tuple((run.block.uid, run.pos, run.start - start, *map(name, run.params)) for run in runs),
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


def _compute(
    log: RegionLog, tape: int, start: int, events: list[Any], accesses: list[int], asked: list[Any]
) -> Any:
    names = ExternalNames(start)
    runs = {id(run): run for run in log.runs}
    latest: dict[Any, Any] = {}
    ops: list[Any] = []
    wiring: list[Any] = []
    for run in log.runs:
        for step in run.block.steps[: run.pos]:
            position = run.start + step.position
            if position >= start:
                ops.append((step.node.id, step.node.rev))
            if position >= start and step.kind not in (Kind.OWNER, Kind.SOURCE, Kind.DRAW):
                for rule, bound in zip(step.node.rules, bindings(run, step), strict=True):
                    where = _place(bound, runs, log.number)
                    if rule.need is Need.LOCAL and bound is not None:
                        if rule.node is not None and rule.node.kind is Kind.KNOWN:
                            continue
                        if latest.get((rule.node, rule.out)) is not bound:
                            return ("wiring", object())  # not what the graph knows: equal to nothing
                        if where is None or where[0] >= start:
                            continue
                    elif rule.need not in (Need.TENSOR, Need.EXTERNAL, Need.SHARED, Need.LOCAL):
                        continue
                    wiring.append(_name(names, where, bound, start))
            outs = len(step.specs)
            for out in range(outs):
                slot = run.slots[step.base + out]
                if slot is not None:
                    if slot.spec.shape is None and position >= start:
                        return ("dynamic", object())  # the gradient's ops have shapes of the trace in them
                    latest[step.node, out] = slot
    seen = tuple(
        (
            e.position - start,
            e.what,
            e.tape - tape if e.tape >= 0 else None,
            _name(names, _place(e.args, runs, log.number), e.args, start) if e.what == "watch" else None,
            e.detail,
        )
        for e in events
    )
    things = tuple(_name(names, _place(thing, runs, log.number), thing, start) for thing in asked)
    return (tuple(ops), tuple(wiring), seen, frozenset(Counter(accesses).items()), things)


def _name(names: ExternalNames, where: tuple[int, int] | None, bound: Any, start: int) -> Any:
    if where is not None and where[0] >= start:
        return (where[0] - start, where[1])
    return names.of_identity(id(bound))


def _place(bound: Any, runs: dict[int, BlockRun], region: int) -> tuple[int, int] | None:
    """The region's position and output number of a slot, None for anything from outside the region."""
    if type(bound) is not Slot or bound.run is None or id(bound.run) not in runs:
        return None
    run = runs[id(bound.run)]
    position, out = run.block.places[bound.index]
    return run.start + position, out

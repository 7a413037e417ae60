"""What a gradient of a tape depends on, computed from the validated runs.

The counterpart for traces is `TraceGraph._signature`; both name ops by (node, revision), free wiring by
canonical names, and tape events by relative position, so that equal signatures mean equal tape contents.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from terra_cx.run.block_run import BlockRun
from terra_cx.run.region_log import RegionLog
from terra_cx.tf.opdefs import Kind
from terra_cx.tf.slots import Slot
from terra_cx.trace.rules import Need
from terra_cx.trace.tracegraph import ExternalNames

__all__ = ["signature_of"]


def signature_of(log: RegionLog, run: BlockRun | None, tape: int, asked: list[Any]) -> Any:
    """The signature of a gradient asked of tape number ``tape`` at the present point of the region.

    ``asked`` are its targets, output gradients and sources that are no variables (slots or tensors).

    The common case, a tape that was opened and is asked inside one block, without ``watch``, is answered from
    a cache of the block if all external tensors bound so far are distinct objects.
    """
    start = log.created(tape)
    base = next(index for index, event in enumerate(log.events) if event.what == "new" and event.tape == tape)
    events = log.events[base:]
    accesses = [id(handle) for position, handle in log.accesses if position >= start]
    key = None
    if run is not None and run.start <= start and all(event.what != "watch" for event in events):
        bound = [id(param) for param in run.params if param is not None]
        if len(set(bound)) == len(bound):
            shape = tuple(
                (e.position - start, e.what, e.tape - tape if e.tape >= 0 else None, e.detail) for e in events
            )
            where = {number: index for index, number in enumerate(bound)}
            wanted = tuple(
                ("local", thing.index)
                if type(thing) is Slot and thing.run is run
                else where.get(id(thing), id(thing))
                for thing in asked
            )
            key = (start - run.start, run.pos, shape, tuple(accesses), wanted)
            cached = run.block.signatures.get(key)
            if cached is not None:
                return cached
    signature = _compute(log, tape, start, events, accesses, asked)
    if key is not None and run is not None:
        run.block.signatures[key] = signature
    return signature


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
                for rule, bound in zip(step.node.rules, _bindings(run, step), strict=True):
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


def _bindings(run: BlockRun, step: Any) -> list[Any]:
    """The slot or tensor bound to each argument of a step (None for guarded ones)."""
    bound: list[Any] = []

    def one(check: Any) -> None:
        code = check[0]
        if code == 0:
            bound.append(run.slots[check[1]])
        elif code in (1, 5):
            bound.append(run.params[check[1]])
        elif code == 6:
            for inner in check[1]:
                one(inner)
        else:
            bound.append(None)

    for check in step.checks:
        one(check)
    return bound if step.checks else [None] * len(step.node.rules)

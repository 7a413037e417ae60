"""Recovery: bring the native world to exactly where Python is, then go on eagerly.

Guarantees:

* No effect is applied twice: what the runner has done is not done again, what it has not done is done here,
  in order.
* While a tape can be asked, it is rebuilt: pure ops are executed again natively *with the recorded results*
  of reads, random draws and feeds, reads enter by ``TFE_Py_RecordGradient``, tape events are repeated at
  their places. Slots then hold the tensors that the tape knows (bit-identical to the ones before).
* Executing again only the unfinished block is not enough: the gradient through dispatched blocks would
  silently be None.
"""

from __future__ import annotations

from typing import Any

from terra_cx.compile.blocks import KNOWN, LOCAL, PARAM
from terra_cx.run.block_run import BlockRun, State
from terra_cx.run.checks import flat_checks
from terra_cx.run.eager import (
    OpFailed,
    annotate,
    call_native,
    do_draw,
    feeds_of,
    inputs_of,
    run_eagerly,
    settle,
)
from terra_cx.run.region_log import Event, RegionLog
from terra_cx.run.skeleton import Skeleton
from terra_cx.tf.native import REAL, record_gradient
from terra_cx.tf.opdefs import Kind
from terra_cx.tf.slots import Slot, Spec
from terra_cx.trace.recorder import Recorder
from terra_cx.trace.records import Call, Captured, Known, Local, Ref, Resource, TapeEvent

__all__ = ["prefix", "rebuild", "recover"]

_OPEN, _TAKEN = State.OPEN, State.TAKEN


def recover(skeleton: Skeleton) -> None:
    """Drain the runner, run what is validated but not dispatched, rebuild the tapes that can still be asked.

    Raises:
        BaseException: a kernel error of an op that Python has already issued.
    """
    run = skeleton.run
    if run is not None and run.pos == 0:
        run = skeleton.run = skeleton.step = None
    if run is not None:
        # No call between the test and the claim: another thread may just want the run handed over.
        if run.state is _OPEN:
            run.state = _TAKEN
        else:
            skeleton.dispatch()
            run = None
    skeleton.drain()
    rebuild(skeleton)
    if skeleton.log.tapes and skeleton.log.askable():
        _Replay(skeleton.log, skeleton).go()
    if run is not None:
        if run.state is _TAKEN:
            _run_pending(run, skeleton)
        skeleton.log.position = run.position
        skeleton.previous = skeleton.here()
        skeleton.run = skeleton.step = None


def rebuild(skeleton: Skeleton) -> None:
    """Make the tapes of past regions that can still be asked native; everything handed over must be done."""
    kept, skeleton.kept = skeleton.kept, []
    for log in kept:
        if log.askable():
            _Replay(log, skeleton).go()
        for run in log.runs:
            run.keep = False
            run.region_over()


def _run_pending(run: BlockRun, skeleton: Skeleton) -> None:
    run.keep = True
    try:
        settle(run, run_eagerly(run, feeds_of(run)))
    except OpFailed as failure:
        run.fail(annotate(failure.error, failure.step))
        skeleton.handover.runner.raised = failure.error
        raise failure.error from None
    run.finish(State.DONE)


class _Replay:
    """Repeats a region's log on the owner thread so that the native tapes hold what they would in eager."""

    def __init__(self, log: RegionLog, skeleton: Skeleton) -> None:
        self.log = log
        self.skeleton = skeleton
        self.events = list(log.events)
        self.active: list[Any] = []
        self.stopped = False

    def go(self) -> None:
        """Do it; afterwards the tape set of this thread is as it was."""
        log = self.log
        first = min(log.created(tape) for tape in log.askable())
        for tape in self._active_now():
            REAL["TFE_Py_TapeSetRemove"](tape)
        if REAL["TFE_Py_TapeSetIsStopped"]():
            REAL["TFE_Py_TapeSetRestartOnThread"]()
        for run in log.runs:
            if run.state is _TAKEN or run.position > first:
                self._run(run)
            else:
                self._events_until(run.position)
        self._events_until(None)

    def _active_now(self) -> list[Any]:
        active: list[Any] = []
        for event in self.log.events:
            tape = self.log.tapes[event.tape] if event.tape >= 0 else None
            if event.what in ("new", "add"):
                active.append(tape)
            elif event.what == "remove":
                active = [other for other in active if other is not tape]
        return active

    def _events_until(self, position: int | None) -> None:
        while self.events and (position is None or self.events[0].position <= position):
            self._event(self.events.pop(0))

    def _event(self, event: Event) -> None:
        tape = self.log.tapes[event.tape] if event.tape >= 0 else None
        if event.what in ("new", "add"):
            REAL["TFE_Py_TapeSetAdd"](tape)
        elif event.what == "remove":
            REAL["TFE_Py_TapeSetRemove"](tape)
        elif event.what == "watch" and type(event.args) is Slot:
            REAL["TFE_Py_TapeWatch"](tape, event.args.resolve())
        elif event.what == "stop":
            REAL["TFE_Py_TapeSetStopOnThread"]()
        elif event.what == "restart":
            REAL["TFE_Py_TapeSetRestartOnThread"]()
        elif event.what == "record":
            name, op, outputs, inputs, rest = event.args
            REAL[name](op, [_real(item) for item in outputs], [_real(item) for item in inputs], *rest)

    def _run(self, run: BlockRun) -> None:
        """Repeat one run; a run that was never dispatched really runs here."""
        fresh = run.state is _TAKEN
        block = run.block
        feeds = feeds_of(run)
        values: list[Any] = [None] * block.flat
        run.keep = True
        for step in block.steps[: run.pos]:
            try:
                if step.kind is Kind.DRAW:
                    self._events_until(run.start + step.position)
                    numbers = [block.draws[step.base + index] for index in range(len(step.specs))]
                    drawn = (
                        do_draw(run.draws[step.base])
                        if fresh
                        else self._recorded(run, step.base, len(step.specs))
                    )
                    for index, (number, value) in enumerate(zip(numbers, drawn, strict=True)):
                        feeds[number] = values[step.base + index] = value
                        self._settle(run, step.base + index, value)
                    continue
                self._events_until(run.start + step.position)
                for op in block.ops[step.ops[0] : step.ops[1]]:
                    if fresh or op.kind is Kind.PURE:
                        inputs = inputs_of(op, values, feeds)
                        results = call_native(op, inputs)
                        if op.form == "E" and not REAL["TFE_Py_TapeSetIsEmpty"]():
                            # The fast path tells the tapes itself; on the slow path generated Python code
                            # does.
                            record_gradient(op.op, inputs, op.attrs, results)
                    elif op.kind is Kind.READ:
                        results = self._recorded(run, op.base, len(op.specs))
                        record_gradient(op.op, inputs_of(op, values, feeds), op.attrs, results)
                    else:
                        continue
                    for index, value in enumerate(results):
                        values[op.base + index] = value
                        self._settle(run, op.base + index, value)
            except BaseException as error:
                self._events_until(None)
                run.fail(annotate(error, step))
                self.skeleton.handover.runner.raised = error
                raise
        if fresh:
            run.finish(State.DONE)

    @staticmethod
    def _recorded(run: BlockRun, base: int, count: int) -> list[Any]:
        return [run.slots[base + index].resolve() for index in range(count)]  # type: ignore[union-attr]

    @staticmethod
    def _settle(run: BlockRun, flat: int, value: Any) -> None:
        if flat < len(run.slots):
            slot = run.slots[flat]
            if slot is None:
                # Made inside a gradient: the tape knows it now, and a gradient of higher order will mention it.
                slot = run.slots[flat] = Slot(Spec(value._datatype_enum(), value._shape_tuple()), run, flat)
            slot.value = value


def _real(item: Any) -> Any:
    return item.resolve() if type(item) is Slot else item


def prefix(skeleton: Skeleton, recorder: Recorder) -> None:
    """Give the recorder what the region did before it diverged, so that its trace is whole.

    The calls are those of the TraceGraph's nodes with this region's references; the tensors that Python may
    still hold become known to the recorder by what they stand for.
    """
    log = skeleton.log
    places: dict[int, Local] = {}
    externals: dict[int, Ref] = {}
    for run in log.runs:
        for flat, slot in enumerate(run.slots):
            if slot is not None:
                position, out = run.block.places[flat]
                places[id(slot)] = Local(run.start + position, out)
                if slot.value is not None:
                    recorder.adopt(slot.value, places[id(slot)])

    def ref_of(item: Any) -> Ref:
        local = places.get(id(item))
        if local is not None:
            return local
        found = externals.get(id(item))
        if found is None:
            found = externals[id(item)] = recorder.next_ext()
            recorder.adopt(_real(item), found)
        return found

    def known(item: Any) -> Ref:
        """A guarded tensor; where it came from in the trace that the node is from means nothing here."""
        found = recorder.known(item)
        return found if found is not None else recorder.adopt(item, Known(item, recorder.next_ext()))

    for run in log.runs:
        for step in run.block.steps[: run.pos]:
            recorder.trace.calls.append(_call(run, step, ref_of, known))
            if step.kind is Kind.KNOWN:
                for out, value in enumerate(step.values):
                    recorder.adopt(value, Known(value, Local(run.start + step.position, out)))
    for tape in log.tapes:
        recorder.adopt_tape(tape)
    events = recorder.trace.events
    for event in log.events:
        ref: Ref | None = None
        if event.what == "watch":
            ref = ref_of(event.args)
        elif event.what == "access":
            ref = Resource(event.args)
        events.append(TapeEvent(event.position, event.what, event.tape, ref, event.detail))
    for call in recorder.trace.calls:
        if call.kind is Kind.GRADIENT:
            call.events = sum(event.position <= call.position for event in events)
    recorder.position = log.position


def _call(run: BlockRun, step: Any, ref_of: Any, known: Any) -> Call:
    template: Call = step.node.call
    refs: list[Ref] = []
    for check, recorded in zip(flat_checks(step), template.inputs, strict=False):
        if check[0] == LOCAL and run.slots[check[1]] is not None:
            refs.append(ref_of(run.slots[check[1]]))
        elif check[0] == PARAM:
            refs.append(ref_of(run.params[check[1]]))
        elif check[0] == KNOWN:
            refs.append(known(check[1]))
        else:
            refs.append(recorded)  # raw values; the owner's ops have no checks and no arguments here
    moved = run.start + step.position
    inner = tuple(
        Call(
            c.op,
            c.form,
            c.kind,
            c.attrs,
            c.layout,
            tuple(Captured(None) for _ in c.inputs),
            c.input_specs,
            c.outputs,
            c.pack,
            None,
            moved + index,
            c.name,
        )
        for index, c in enumerate(template.inner)
    )
    return Call(
        template.op,
        template.form,
        template.kind,
        template.attrs,
        template.layout,
        tuple(refs),
        template.input_specs,
        template.outputs,
        template.pack,
        template.site,
        moved,
        template.name,
        inner=inner,
        results=template.results,
        node=step.node,
    )

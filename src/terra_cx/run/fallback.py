"""Recovery: bring the native world to exactly where Python is, then go on eagerly.

Guarantees:

* The graph runner does all that Python has issued, partial blocks included, and does it once. (An owner thread that
  executed the open run itself could be interrupted in its middle, by Ctrl-C, and nobody knew how far it had come.)
* While a tape can be asked, it is rebuilt: pure ops are executed again natively *with the recorded results*
  of reads, random draws and feeds, reads enter by ``TFE_Py_RecordGradient``, tape events are repeated at
  their places. Slots then hold the tensors that the tape knows (bit-identical to the ones before).
* A tape that has given its gradient and cannot be asked again stays out of it. Native code has taken its ops from it;
  if it were active when a tensor dies that one of them made, TensorFlow would abort the process (``tape.h``,
  ``DeleteTrace``).
* A persistent tape whose gradient TensorFlow is computing stays out of it, too, for it would read what changes below
  it; it is told when the gradient is there, of the tensors that are there since (`set_aside`). If it records meanwhile
  it cannot wait: such a tape is asked while the region is co-executed only if all that a rebuild tells it is new to it.
* Executing again only the unfinished block is not enough: the gradient through dispatched blocks would
  silently be None.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from terra_cx.compile.blocks import KNOWN, LOCAL, PARAM, FlatOp
from terra_cx.run.block_run import BlockRun
from terra_cx.run.checks import flat_checks
from terra_cx.run.eager import call_native, feeds_of, inputs_of
from terra_cx.run.region_log import Event, RegionLog
from terra_cx.run.skeleton import Skeleton
from terra_cx.run.uninterrupted import Uninterrupted
from terra_cx.tf.backward import token
from terra_cx.tf.native import REAL, record_gradient, tensor_of, unrecorded
from terra_cx.tf.opdefs import Kind, inferred_attrs
from terra_cx.tf.slots import Slot, Spec
from terra_cx.trace.recorder import Recorder
from terra_cx.trace.records import Call, Captured, Known, Local, Ref, Resource, TapeEvent

__all__ = ["prefix", "rebuild", "recover", "set_aside"]


def recover(skeleton: Skeleton) -> None:
    """Have everything done that Python has issued, then rebuild the tapes that can still be asked.

    The first part waits and can be interrupted; it can then be done again. The second part cannot: no signal handler of
    the program runs in its middle.

    Raises:
        BaseException: a kernel error of an op that Python has already issued; the tapes are rebuilt all the same, for
            the program may catch it under them.
    """
    skeleton.dispatch()
    try:
        skeleton.drain()
    except BaseException as error:
        if error is skeleton.handover.runner.raised:
            _rebuild_all(skeleton)
        raise
    _rebuild_all(skeleton)


def _rebuild_all(skeleton: Skeleton) -> None:
    rebuild(skeleton)
    if skeleton.log.tapes and skeleton.log.askable():
        with Uninterrupted():
            _Replay(skeleton.log, skeleton.live).go()


@contextmanager
def set_aside(log: RegionLog, tape: int) -> Iterator[None]:
    """While TensorFlow computes the gradient of a persistent tape that does not record.

    If the region diverges meanwhile, the tape is told afterwards what the rebuild has told the others.
    """
    log.asking.append(tape)
    try:
        yield
    finally:
        log.asking.remove(tape)
        if log.late is not None and tape not in log.asking:
            with Uninterrupted():
                _tell_late(log, log.late, tape)


def _tell_late(log: RegionLog, late: list[Any], tape: int) -> None:
    stopped = REAL["TFE_Py_TapeSetIsStopped"]()
    others = [log.tapes[number] for number in log.active()]
    for other in others:
        REAL["TFE_Py_TapeSetRemove"](other)
    if stopped:
        REAL["TFE_Py_TapeSetRestartOnThread"]()
    for told in late:
        if type(told) is not Event:
            record_gradient(*told)
        elif told.tape in (tape, -1):
            _tell(log, told)
    for other in others:
        REAL["TFE_Py_TapeSetAdd"](other)
    if stopped is not REAL["TFE_Py_TapeSetIsStopped"]():
        REAL["TFE_Py_TapeSetStopOnThread" if stopped else "TFE_Py_TapeSetRestartOnThread"]()


def rebuild(skeleton: Skeleton) -> None:
    """Make the tapes of past regions that can still be asked native; everything handed over must be done."""
    if not skeleton.kept:
        return
    with Uninterrupted():
        kept, skeleton.kept = skeleton.kept, []
        for log in kept:
            if log.askable():
                _Replay(log, live=False).go()  # no step that is learned has their gradients
            log.release()


class _Replay:
    """Repeats a region's log on the owner thread so that the native tapes hold what they would in eager."""

    def __init__(self, log: RegionLog, live: bool) -> None:
        self.log = log
        self.live = live
        self.events = [event for event in log.events if event.tape not in log.consumed]
        if log.asking:
            log.late = []

    def go(self) -> None:
        """Do it; afterwards the tape set of this thread is as it was."""
        log = self.log
        first = min(log.created(tape) for tape in log.askable())
        for tape in log.active():
            if tape not in log.consumed:
                REAL["TFE_Py_TapeSetRemove"](log.tapes[tape])
        if REAL["TFE_Py_TapeSetIsStopped"]():
            REAL["TFE_Py_TapeSetRestartOnThread"]()
        for run in log.runs:
            if run.position > first:
                self._run(run)
            else:
                self._events_until(run.position)
        self._events_until(None)

    def _events_until(self, position: int | None) -> None:
        while self.events and (position is None or self.events[0].position <= position):
            event = self.events.pop(0)
            if event.tape not in self.log.asking:
                _tell(self.log, event)
            if self.log.late is not None:
                self.log.late.append(event)

    def _run(self, run: BlockRun) -> None:
        """Tell the tapes of one run's ops: pure ones are executed again, effects are not."""
        block = run.block
        feeds = feeds_of(run)
        values: list[Any] = [None] * block.flat
        run.keep = True
        for step in block.steps[: run.pos]:
            self._events_until(run.start + step.position)
            if step.kind is Kind.DRAW:
                for index, value in enumerate(self._recorded(run, step.base, len(step.specs))):
                    feeds[block.draws[step.base + index]] = values[step.base + index] = value
                continue
            for op in block.ops[step.ops[0] : step.ops[1]]:
                inputs = inputs_of(op, values, feeds)
                if op.kind is Kind.PURE:
                    results = self._again(op, inputs, step.node.call.site)
                elif op.kind is Kind.READ:
                    results = self._recorded(run, op.base, len(op.specs))
                    self._told(op, inputs, results, step.node.call.site)
                else:
                    continue
                for index, value in enumerate(results):
                    values[op.base + index] = value
                    self._settle(run, op.base + index, value)

    def _again(self, op: FlatOp, inputs: list[Any], site: Any) -> list[Any]:
        """Execute a pure op again, and tell the tapes of it."""
        if op.form == "F" and not self.live:
            return call_native(op, inputs)  # the fast path tells the tapes itself
        if REAL["TFE_Py_TapeSetIsStopped"]():
            results = call_native(op, inputs)
        else:
            with unrecorded():
                results = call_native(op, inputs)
        self._told(op, inputs, results, site)
        return results

    def _told(self, op: FlatOp, inputs: list[Any], results: list[Any], site: Any) -> None:
        """Tell the tapes, as generated Python code does after an op of the slow path; live ones also of its place."""
        if not self.live:
            record_gradient(op.op, inputs, op.attrs, results)
            return
        inputs, attrs = _tensors(op, inputs), op.attrs
        if op.form == "F":
            attrs = (*attrs, *inferred_attrs(op.op, op.layout, [value._datatype_enum() for value in inputs]))
        told = op.op, inputs, attrs, results, token(site)
        record_gradient(*told)
        if self.log.late is not None:
            self.log.late.append(told)

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
            slot.replace(value)


def _tell(log: RegionLog, event: Event) -> None:
    tape = log.tapes[event.tape] if event.tape >= 0 else None
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
    elif event.what == "gradient":
        op, inputs, attrs, outputs, scope = event.args
        record_gradient(op, [_real(item) for item in inputs], attrs, [_real(item) for item in outputs], scope)


def _tensors(op: FlatOp, inputs: list[Any]) -> list[Any]:
    """The arguments of a flat op as a tape hears of them: never as raw values."""
    return [
        tensor_of(value, source[2]) if source[0] == "c" else value
        for source, value in zip(op.inputs, inputs, strict=True)
    ]


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
            if step.kind is Kind.DERIVED:
                for out, slot in enumerate(run.slots[step.base : step.base + len(step.specs)]):
                    value = slot.value  # type: ignore[union-attr]  # it was made with the step
                    made = Known(value, Local(run.start + step.position, out))
                    externals[id(value)] = recorder.adopt(value, made)
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
        refs: list[Ref | None] = [None]
        if event.what == "watch":
            refs = [ref_of(event.args)]
        elif event.what == "access":
            refs = list(map(Resource, event.args))
        events += [TapeEvent(event.position, event.what, event.tape, ref, event.detail) for ref in refs]
    for call in recorder.trace.calls:
        if call.kind is Kind.GRADIENT:
            call.events = sum(event.position <= call.position for event in events)
    recorder.position = log.position


def _call(run: BlockRun, step: Any, ref_of: Any, known: Any) -> Call:
    template: Call = step.node.call
    refs: list[Ref] = []
    for check, recorded in zip(flat_checks(step), template.inputs, strict=False):
        if check[0] == LOCAL:
            position, out = run.block.places[check[1]]
            refs.append(Local(run.start + position, out))
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
            device=c.device,
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
        device=template.device,
        node=step.node,
    )

"""The skeleton: Python goes on, its ops are checked against the TraceGraph and answered with placeholders.

Guarantees:

* An op is answered only if it is the block's next op: same op, attributes, constants, wiring, dtypes and
  shapes. Anything else is a *leave* (the TraceGraph holds another way on) or a *divergence* (it does not),
  and nothing is lost by either.
* A run is handed over only when all its ops have been issued by Python with those very inputs; there is no
  speculation.
* An op is committed by `advance`, in a stretch of bytecode that nothing can interrupt; all that is written before
  counts for nothing until then. So an exception (Ctrl-C) leaves the run as it was.
* Ops of other threads, and ops that arrive while the skeleton is at work (finalisers, signal handlers), run natively.
  If they may depend on what Python has issued, the open run is *frozen* and handed over first; the op that was being
  validated finds that out when it is to be committed, and is validated anew behind it. Only the owner thread ever
  opens, leaves or replaces a run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

from terra_cx.compile.blocks import LIST, LOCAL, Block, Step
from terra_cx.reasons import Reason
from terra_cx.run.arguments import SEQUENCES, normalised
from terra_cx.run.block_run import BlockRun, Draw, Frozen, State
from terra_cx.run.checks import admits, bindings
from terra_cx.run.differences import Difference, of_op, of_shape
from terra_cx.run.handover import Handover
from terra_cx.run.region_log import Event, RegionLog
from terra_cx.run.taping import Taping
from terra_cx.tf import native
from terra_cx.tf.boundary import EFFECTS
from terra_cx.tf.datasets import Independence
from terra_cx.tf.native import REAL, FallbackException
from terra_cx.tf.opdefs import SHAPE_OPS, Kind, classify, lasting_attrs
from terra_cx.tf.placeholder import Placeholder, new_placeholder, resolve_all
from terra_cx.tf.slots import Slot
from terra_cx.trace.keys import freeze
from terra_cx.trace.tracegraph import Node, TraceGraph

__all__ = ["Diverge", "Skeleton"]

_INTERNAL = (AttributeError, LookupError, AssertionError, NameError)
"""What a mistake of ours looks like; TensorFlow's own refusals have other types."""
_OPEN = State.OPEN
_fast = REAL["TFE_Py_FastPathExecute"]
_execute = REAL["TFE_Py_Execute"]
_accessed = REAL["TFE_Py_TapeVariableAccessed"]
_watched = REAL["TFE_Py_VariableWatcherVariableAccessed"]
_tapes_empty = REAL["TFE_Py_TapeSetIsEmpty"]
_getrefcount = sys.getrefcount

_KEPT = 8
"""Logs of past regions that are kept for tapes nobody has asked yet; beyond that the tapes are made native."""


def _alive(slots: list[Slot | None]) -> list[int]:
    return [index for index, slot in enumerate(slots) if slot is not None and _getrefcount(slot) > _SLOT_BASE]


def _measure_base() -> int:
    slots = [Slot.__new__(Slot)]
    return next(iter([_getrefcount(slot) for index, slot in enumerate(slots)]))


_SLOT_BASE = _measure_base()


class Diverge(Exception):
    """The TraceGraph does not hold what Python does; ``detail`` says it in words, or is the difference."""

    def __init__(self, reason: Reason, detail: str | Difference) -> None:
        super().__init__(str(detail))
        self.reason = reason
        self.detail = detail


class Answer:
    """What a validated op returns to Python."""

    __slots__ = ("answer",)

    def __init__(self, answer: Any) -> None:
        self.answer = answer


class Skeleton(Taping):
    """Boundary handler of a co-executed region.

    Args:
        graph: the anchor's TraceGraph.
        block_for: gives the current block that starts at a node, building it if needed.
        handover: takes the runs to the graph runner.
        diverged: told about a divergence; recovers and returns the handler that goes on with the region (a
            recorder).
        sync_errors: whether an op that may fail is waited for before Python goes on.
    """

    def __init__(
        self,
        graph: TraceGraph,
        block_for: Callable[[Node], Block],
        handover: Handover,
        diverged: Callable[[Diverge], Any],
        *,
        sync_errors: bool = False,
    ) -> None:
        super().__init__(get_ident(), RegionLog(0))
        self.graph = graph
        self.block_for = block_for
        self.handover = handover
        self.diverged = diverged
        self.sync_errors = sync_errors
        self.independent = Independence()
        self.scoped = native.only_device() is None
        """Whether a device scope means anything, because there is a choice."""
        self.rebuild: Callable[[], None] = lambda: None
        """Makes the tapes of kept logs native (`run.fallback.rebuild`), which frees the logs."""
        self.kept: list[RegionLog] = []
        self.previous: Node = graph.root
        self.elider: Any = None
        """Who elides library calls (`run.elider.Elider`), if anybody."""
        self.nowhere = Node(-2, graph.root.call)
        self.risky = BlockRun(Block(-1, ()), self, 0, 0)
        """The youngest run handed over that may fail."""
        self.risky.state = State.DONE

    # -- regions ---------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """A region starts."""
        self.log = RegionLog(self.log.number + 1)
        self.previous = self.graph.root
        self.run = self.step = None

    def end(self) -> None:
        """The region is over: dispatch what is left, respect the run-ahead bound, surface a deferred error.

        Raises:
            BaseException: a kernel error of an earlier op.
        """
        run = self.run
        if run is not None:
            if not run.complete:
                self.graph.cut(self.here(), "region end")
            self.dispatch()
        try:
            if self.handover.region_over() or self.handover.runner.failed is not None:
                self.drain()
        except BaseException as error:
            if error is self.handover.runner.raised:
                self.conclude()
            raise  # Ctrl-C in a wait: the region is not over, and its next op diverges
        self.conclude()

    def conclude(self) -> None:
        """The region is over: keep the logs whose tapes can still be asked, let go of all others."""
        logs = (*self.kept, self.log)
        kept = [log for log in logs if log.tapes and log.askable()]
        following, last, nowhere = RegionLog(self.log.number), self.previous, self.nowhere
        # No call from here to the end of the change: Ctrl-C leaves the region open, or finds it over.
        self.kept = kept
        self.log = following
        self.previous = nowhere
        # Changed.
        last.ends += 1
        for log in logs:
            if log not in kept:
                log.release()
        if len(kept) > _KEPT:
            self.drain()
            self.rebuild()

    def forget(self) -> None:
        """The region diverged and is over: its tapes are native now, nothing of its log is needed."""
        self.log.release()
        self.log = RegionLog(self.log.number)

    def drain(self) -> None:
        """Wait until the runner has done all that was handed over.

        Raises:
            BaseException: a kernel error of an earlier op; ops issued after it never ran, as in eager.
        """
        self.handover.settle()
        error = self.handover.runner.take_error()
        if error is not None:
            run = self.run
            if run is not None and run.state is _OPEN:
                run.fail(error, State.DROPPED)
            self.run = self.step = None
            # What never ran is not part of the region, and must not be repeated should a tape be rebuilt.
            self.log.runs = [other for other in self.log.runs if other.state is not State.DROPPED]
            # If the program catches the error, the rest of the region is nothing that the graph knows.
            self.previous = self.nowhere
            raise error

    # -- dispatch --------------------------------------------------------------------------------------------
    def dispatch(self) -> None:
        """Hand the open run over, as far as it has been validated."""
        run = self.run
        if run is None:
            return
        if run.pos == 0:  # its first op raised in Python's hands: nothing was validated
            self.run = self.step = None
            return
        block = run.block
        if block.idle:
            run.finish(State.DONE)
        else:
            self.plan(run)
            self.handover.issue(run)
            if block.first_fallible is not None:
                self.risky = run
        self.previous = block.steps[run.pos - 1].node
        self.log.position = run.position
        self.run = self.step = None

    def plan(self, run: BlockRun) -> None:
        """Decide which values the run returns; made once, whoever comes first."""
        block = run.block
        log = self.log
        keep = bool(log.tapes and log.askable())
        alive = _alive(run.slots)
        if keep:
            kept = {op.base for op in block.ops if op.kind is Kind.READ} | set(block.draws)
            alive = sorted({*alive, *(flat for flat in kept if run.slots[flat] is not None)})
        live = frozenset(alive) - block.draws.keys()
        if run.complete and not live <= block.outputs:
            block.outputs = block.outputs | live
        outputs = block.outputs
        if run.outputs is None:
            run.keep = keep
            run.outputs = outputs

    def at_risk(self) -> bool:
        """Whether an op that may fail was issued and is not known to have succeeded."""
        if self.busy:
            return False  # whoever asks is none of the region's: a finaliser, a signal handler
        return self.handover.runner.failed is not None or self.risky.state <= State.SENT or self._open_risk()

    def _open_risk(self) -> bool:
        run = self.run
        if run is None or run.pos == 0:
            return False
        first = run.block.first_fallible
        return first is not None and first < run.block.steps[run.pos - 1].ops[1]

    def barrier(self) -> None:
        """Errors of ops issued so far must surface here: wait if any of them can fail.

        Raises:
            BaseException: a kernel error of an earlier op.
        """
        if self._open_risk():
            if self.run is not None and not self.run.complete:
                self.graph.cut(self.here(), "try")
            self.dispatch()
        if self.risky.state <= State.SENT:
            self.handover.flush()
            self.handover.wait(self.risky, "try")
        if self.handover.runner.failed is not None:
            self.drain()

    def fetch(self, slot: Slot) -> None:
        """Python reads a placeholder (see `Slot.resolve`).

        Raises:
            RuntimeError: a finaliser on the graph runner's thread asks for a value that this thread has yet to compute.
        """
        run = slot.run
        if not isinstance(run, BlockRun):
            return
        if self.handover.runner.is_current_thread():
            if run.state <= State.SENT:
                raise RuntimeError(
                    "terra-cx: a finaliser that runs between two blocks reads a value of a later one"
                )
            return
        if not self._mine():
            if run.state <= State.SENT:
                self.publish()
                self.handover.wait(run, "fetch")
            return
        try:
            self.await_run(run)
        except _INTERNAL as error:
            self.diverged(self.failed(error))  # has all done that was issued
        if slot.value is None and self.handover.runner.failed is not None:
            self.drain()

    def await_run(self, run: BlockRun) -> None:
        """Have a run of this thread's executed, and wait for it."""
        if run is self.run:
            if not run.complete:
                self.graph.cut(self.here(), "fetch")
            self.dispatch()
        elif run.state is _OPEN:
            raise RuntimeError(
                "terra-cx: a placeholder of a run that was given up was read; please report this"
            )
        self.handover.flush()
        self.handover.wait(run, "fetch")

    def publish(self) -> None:
        """Have all ops that Python has issued executed, and wait for them; from any thread but the runner's."""
        run = self.run
        if run is None or run.pos == 0 or run.block.idle:
            run = None
        else:
            run.frozen = True
            self.plan(run)
        self.handover.publish(run)

    # -- ops -------------------------------------------------------------------------------------------------
    def fast(self, ctx: Any, op: str, name: Any, *args: Any) -> Any:
        """``TFE_Py_FastPathExecute``: validate and answer with placeholders."""
        if self.busy or get_ident() != self.owner:  # `_mine`, without the call
            return self.foreign(op, lambda a: _fast(ctx, op, name, *a), args)
        if self.scoped and native.context().device_name:
            return self.diverge(Reason.DEVICE_SCOPE, f"{op} is placed by a device scope").fast(
                ctx, op, name, *resolve_all(args)
            )
        step = self.step
        if step is not None and step.direct and step.op == op:
            self.busy = True
            try:
                run = self.run  # there is one wherever a step is expected, which types cannot say
                attrs = args[step.width :]
                if attrs == step.attrs and (
                    not step.lists or all(type(attrs[i]) in SEQUENCES for i in step.lists)
                ):
                    slots = run.slots  # type: ignore[union-attr]
                    for check, arg in zip(step.checks, args, strict=False):
                        if check[0] == LOCAL:  # `admits` without the call: most arguments are of this kind
                            if type(arg) is not Placeholder or arg._slot is not slots[check[1]]:
                                break
                        elif not admits(run, check, arg):
                            break
                    else:
                        return self.commit(run, step, args, name)  # type: ignore[arg-type]
            except Frozen:
                self.dispatch()
            except Diverge as divergence:
                self.busy = False
                return self.diverged(divergence).fast(ctx, op, name, *resolve_all(args))
            except _INTERNAL as error:
                self.busy = False
                return self.diverged(self.failed(error)).fast(ctx, op, name, *resolve_all(args))
            finally:
                self.busy = False
        converted = normalised(op, args)
        if converted is not args:
            # Reading the variables was an op of its own. It may have diverged: whoever is in charge now goes on.
            return native.fast_path(ctx, op, name, *converted)
        step = self.step
        if (
            step is not None
            and step.op == op
            and step.form == "E"
            and not any(c[0] == LIST for c in step.checks)
        ):
            raise FallbackException("terra-cx: the program is known to take the slow path here")
        found = self.validated(op, "F", args, name)
        if isinstance(found, Diverge):
            if found.reason != Reason.INTERNAL_ERROR and any(
                node.call.op == op and node.call.form == "E" for node in self.here().succ
            ):
                raise FallbackException("terra-cx: the program is known to take the slow path here")
            return self.diverged(found).fast(ctx, op, name, *resolve_all(args))
        return found.answer

    def execute(self, handle: Any, device: Any, op: Any, inputs: Any, attrs: Any, outputs: Any) -> Any:
        """``TFE_Py_Execute``: validate and answer with placeholders."""
        text = op.decode() if isinstance(op, bytes) else op
        if not self._mine():
            return self.foreign(
                text, lambda a: _execute(handle, device, op, a[0], attrs, outputs), (list(inputs),)
            )
        if self.scoped and native.context().device_name:
            return self.diverge(Reason.DEVICE_SCOPE, f"{text} is placed by a device scope").execute(
                handle, device, op, resolve_all(list(inputs)), attrs, outputs
            )
        inputs = list(inputs)
        found = self.validated(text, "E", (inputs, tuple(attrs) if attrs else (), outputs), None)
        if isinstance(found, Diverge):
            return self.diverged(found).execute(handle, device, op, resolve_all(inputs), attrs, outputs)
        return found.answer

    def validated(self, op: str, form: str, args: tuple[Any, ...], name: Any) -> Answer | Diverge:
        """Validate an op against the next step, or against the other ways on; its `Answer`, or why it diverges."""
        self.busy = True
        try:
            while True:
                try:
                    step = self.step
                    if step is not None and self.fits(self.run, step, op, form, args):
                        return Answer(self.commit(self.run, step, args, name))  # type: ignore[arg-type]
                    found = self.elsewhere(
                        lambda node: node.call.op == op and node.call.form == form,
                        lambda run, step: self.fits(run, step, op, form, args),
                    )
                    if found is not None:
                        return Answer(self.commit(*found, args, name))
                    return Diverge(*of_op(self, op, form, args))
                except Frozen:
                    self.dispatch()
        except Diverge as divergence:
            return divergence
        except _INTERNAL as error:
            return self.failed(error)
        finally:
            self.busy = False

    def failed(self, error: BaseException) -> Diverge:
        """A failure of ours while validating is a divergence: counted, told, and the program goes on."""
        self.handover.runner.internal("the skeleton", error)
        return Diverge(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")

    def diverge(self, reason: Reason, detail: str | Difference) -> Any:
        """Leave the TraceGraph for the rest of the region; the handler that goes on."""
        return self.diverged(Diverge(reason, detail))

    def fits(self, run: BlockRun | None, step: Step, op: str, form: str, args: tuple[Any, ...]) -> bool:
        """Whether an op is what ``step`` expects; binds the run's parameters as it goes."""
        if step.op != op or step.form != form:
            return False
        if form == "F":
            inputs, attrs = args[: step.width], args[step.width :]
        else:
            inputs, attrs = args[0], args[1]
        if freeze(lasting_attrs(step.kind, attrs)) != step.frozen:
            return False
        if step.kind in (Kind.OWNER, Kind.SOURCE):
            return True
        if len(inputs) != len(step.checks):
            return False
        return all(admits(run, check, arg) for check, arg in zip(step.checks, inputs, strict=True))

    def elsewhere(
        self, wanted: Callable[[Node], bool], fits: Callable[[BlockRun, Step], bool]
    ) -> tuple[BlockRun, Step] | None:
        """Another way on from here that the TraceGraph holds: start its block, leaving the open one if need be.

        Args:
            wanted: whether a next node may be the one; the hottest is tried first.
            fits: whether a run of its block admits what Python asks for.
        """
        run = self.run
        here = self.here()
        inside = run is not None and not run.complete
        for node in sorted(here.succ, key=here.succ.__getitem__, reverse=True):
            if not wanted(node):
                continue
            started = self.begun(node)
            if fits(started, started.block.steps[0]):
                if inside:
                    self.left(here)
                return self.enter(started, here, node)
        return None

    def here(self) -> Node:
        """The node of the last validated op."""
        run = self.run
        return self.previous if run is None or run.pos == 0 else run.block.steps[run.pos - 1].node

    def begun(self, node: Node) -> BlockRun:
        """A run of the block that begins at ``node``; the open run's placeholders count as made before it."""
        run = self.run
        position = self.log.position if run is None else run.position
        return BlockRun(self.block_for(node), self, position, self.log.number)

    def enter(self, started: BlockRun, here: Node, node: Node, pos: int = 0) -> tuple[BlockRun, Step]:
        """Dispatch what was open and go on with ``started``, whose first ``pos`` steps count as validated."""
        self.dispatch()
        here.succ[node] += 1
        steps = started.block.steps
        following = steps[pos] if pos < len(steps) else None
        if pos:
            started.start = self.position()
        self.log.runs.append(started)
        # No call from here: Ctrl-C finds the run open as a whole, or not at all.
        self.run = started
        self.step = following
        started.pos = pos
        if following is None and started.block.prompt:
            self.dispatch()
        return started, steps[0]

    def left(self, node: Node) -> None:
        """The open block was left after ``node``; the second time, a cut is made there."""
        node.leaves += 1
        if node.leaves >= 2:
            self.graph.cut(node, "branch")

    def commit(self, run: BlockRun, step: Step, args: tuple[Any, ...], name: Any) -> Any:
        """The op is what was expected: make its slots, step on, answer.

        Raises:
            Frozen: the run was handed over meanwhile; nothing was committed.
        """
        if not step.computed and step.kind is not Kind.DRAW:
            return self.answered(run, step, args, name)
        slots = run.slots
        base = step.base
        if step.needed:
            self.keep_arguments(run, step)
        if not step.computed:
            run.draws[base] = Draw(step, step.op, step.form, name, resolve_all(args))
        if step.pack == 0:
            slot = slots[base] = Slot(step.specs[0], run, base)
            answer: Any = new_placeholder(slot)
        else:
            made = [Slot(spec, run, base + index) for index, spec in enumerate(step.specs)]
            slots[base : base + len(made)] = made
            answer = _unpack(step.pack, [new_placeholder(slot) for slot in made])
            del made
        if step.needed:
            turn = self.log.turns.get(step.node, 0)
            for out in step.needed:
                if out >= 0:
                    self.log.bound[step.node, out, turn] = slots[base + out]
        self.advance(run, step)
        return answer

    def answered(self, run: BlockRun, step: Step, args: tuple[Any, ...], name: Any) -> Any:
        """Commit an op whose result Python gets at once: known, the next element of an iterator, or the owner's."""
        if step.kind is Kind.KNOWN:
            if step.needed:
                self.keep_arguments(run, step)
            if step.op in SHAPE_OPS and not self.shapes_hold(step, args):
                raise Diverge(Reason.NEW_SHAPE, of_shape(step, args))
            self.advance(run, step)
            return _unpack(step.pack, step.values)
        if step.kind is Kind.OWNER or not self.independent.of((args if step.form == "F" else args[0])[0]):
            return self.on_owner(run, step, args, name)
        result = self.natively(step, args, name)
        while True:
            try:
                self.advance(run, step)
                return result
            except Frozen:  # the element is taken: only the place of the op is sought anew
                here = self.here()
                self.dispatch()
                run, step = self.enter(self.begun(step.node), here, step.node)

    def shapes_hold(self, step: Step, args: tuple[Any, ...]) -> bool:
        """Whether the arguments of a shape op have the recorded shapes; one that only its value tells is fetched."""
        inputs = args[: step.width] if step.form == "F" else args[0]
        flat = [item for arg in inputs for item in (arg if isinstance(arg, (list, tuple)) else (arg,))]
        for item, spec in zip(flat, step.node.call.input_specs, strict=True):
            if type(item) is not Placeholder or item._slot.spec.shape is not None or spec is None:
                continue
            if item._slot.run is self.run or item._shape_tuple() != spec.shape:
                return False
        return True

    def keep_arguments(self, run: BlockRun, step: Step) -> None:
        """Remember arguments that a gradient in a later block refers to.

        Not the arguments as given: a raw value was converted, and the gradient means the tensor.
        """
        wanted = [-1 - out for out in step.needed if out < 0]
        if not wanted:
            return
        turn = self.log.turns.get(step.node, 0)
        bound = bindings(run, step, guarded=True)
        for index in wanted:
            if index < len(bound) and bound[index] is not None:
                self.log.bound[step.node, -1 - index, turn] = bound[index]

    def advance(self, run: BlockRun, step: Step) -> None:
        """Commit: the op at ``step`` is validated. A block that is followed by host time is dispatched at its end.

        Raises:
            Frozen: the run was handed over meanwhile; nothing was committed.
        """
        steps = run.block.steps
        pos = run.pos + 1
        following = steps[pos] if pos < len(steps) else None
        turns, node, turn = self.log.turns, step.node, 0
        if step.needed:
            turn = turns.get(node, 0) + 1
        # No call and no jump backwards from here to the end of the commit: threads, signals and finalisers come in
        # at those only.
        if run.frozen:
            raise Frozen
        run.pos = pos
        self.step = following
        if turn:
            turns[node] = turn
        # Committed.
        if self.sync_errors and any(op.fallible for op in run.block.ops[slice(*step.ops)]):
            # The user wants errors where they happen and pays for it: this op is run before Python goes on.
            self.dispatch()
            self.drain()
        elif following is None and run.block.prompt:
            self.dispatch()

    def advance_over(self, run: BlockRun, pos: int, turns: dict[Node, int]) -> None:
        """Commit several steps at once, up to ``pos``; see `advance`.

        Args:
            run: the open run.
            pos: the number of validated steps afterwards.
            turns: how often nodes that gradients refer to have been executed then.

        Raises:
            Frozen: the run was handed over meanwhile; nothing was committed.
        """
        steps = run.block.steps
        following = steps[pos] if pos < len(steps) else None
        if run.frozen:
            raise Frozen
        run.pos = pos
        self.step = following
        self.log.turns.update(turns)
        if following is None and run.block.prompt:
            self.dispatch()

    def position(self) -> int:
        """The region's position of the next op."""
        return self._position()

    def accessed(self, variables: Sequence[Any]) -> None:
        """A library call that is elided would have told tapes and watchers of these variables."""
        if self.log.tapes:
            position, events = self.position(), self.log.events
            for variable in variables:
                events.append(Event(position, "access", args=variable.handle))
                _accessed(variable)
        for variable in variables:
            _watched(variable)

    def paused(self, pauses: Sequence[tuple[int, str]]) -> None:
        """A library call that is elided would have stopped and restarted recording before some of its ops."""
        position = self.position()
        for op, what in pauses:
            self.log.events.append(Event(position + op, what))

    def library_call(self, entry: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a library (`elide.entries`): elided if everything it depends on is as it was."""
        if self.elider is None or not self._mine():
            return entry.own(*args, **kwargs)
        return self.elider.call(entry, args, kwargs)

    def natively(self, step: Step, args: tuple[Any, ...], name: Any) -> Any:
        """Run an owner's op as in eager."""
        if step.form == "F":
            return _fast(native.context(), step.op, name, *resolve_all(args))
        inputs, attrs, outputs = args
        return _execute(
            native.context()._handle,
            native.context().device_name,
            step.op,
            resolve_all(inputs),
            attrs,
            outputs,
        )

    def on_owner(self, run: BlockRun, step: Step, args: tuple[Any, ...], name: Any) -> Any:
        """An op with outside effects: drain, then run it here, in order."""
        self.advance(run, step)
        if self.run is run and not run.complete:
            self.graph.cut(step.node, "owner")
        self.dispatch()
        self.busy = False
        self.drain()
        self.busy = True  # its host callback, if it has one, is part of it
        try:
            return self.natively(step, args, name)
        finally:
            self.busy = False

    # -- others ----------------------------------------------------------------------------------------------
    def query(self, name: str, *args: Any) -> Any:
        """A native question about tensors that the skeleton cannot answer: under a tape it is a divergence."""
        if self._mine() and (name in EFFECTS or not _tapes_empty()):
            reason = Reason.NATIVE_EFFECT if name in EFFECTS else Reason.TAPE_QUERY
            return self.diverge(reason, name).query(name, *args)
        return REAL[name](*[resolve_all(arg) for arg in args])

    def foreign(self, op: str, call: Callable[[tuple[Any, ...]], Any], args: tuple[Any, ...]) -> Any:
        """An op of another thread, or one that arrived while the skeleton was working: run it natively, now.

        If it reads or writes anything but its arguments, all that Python has issued happens first.
        """
        if classify(op) is not Kind.PURE and not self.handover.runner.is_current_thread():
            self.publish()
        return call(tuple(resolve_all(arg) for arg in args))


def _unpack(pack: Any, values: Any) -> Any:
    if pack is None:
        return None
    if isinstance(pack, int):
        return values[pack]
    return [_unpack(item, values) for item in pack]

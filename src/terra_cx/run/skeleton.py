"""The skeleton: Python goes on, its ops are checked against the TraceGraph and answered with placeholders.

Guarantees:

* An op is answered only if it is the block's next op: same op, attributes, constants, wiring, dtypes and
  shapes. Anything else is a *leave* (the TraceGraph holds another way on) or a *divergence* (it does not),
  and nothing is lost by either.
* A run is handed over only when all its ops have been issued by Python with those very inputs; there is no
  speculation.
* Committing an op is the last thing that validating it does; a failed check leaves the run as it was.
* Ops that arrive while the skeleton itself is working (finalisers, signal handlers) and ops of other threads
  never touch the run: they execute natively, after what they may depend on.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from threading import get_ident
from typing import Any

import numpy as np

from terra_cx.compile.blocks import (
    CONST,
    FEED,
    KNOWN,
    LIST,
    LOCAL,
    PARAM,
    RESOURCE,
    Block,
    Check,
    Step,
    free_attrs,
)
from terra_cx.run.block_run import BlockRun, Draw, State
from terra_cx.run.graph_runner import GraphRunner
from terra_cx.run.region_log import Event, RegionLog
from terra_cx.run.signature import signature_of
from terra_cx.tf import native
from terra_cx.tf.boundary import EFFECTS
from terra_cx.tf.custom_gradients import UNSEEN, gradient_detail
from terra_cx.tf.datasets import Independence
from terra_cx.tf.native import REAL, EagerTensor, FallbackException, IndexedSlices
from terra_cx.tf.opdefs import SHAPE_OPS, Kind, arg_layout
from terra_cx.tf.placeholder import Placeholder, new_placeholder, resolve_all
from terra_cx.tf.slots import Slot
from terra_cx.trace.rules import same_const, same_known
from terra_cx.trace.tracegraph import Node, TraceGraph, freeze

__all__ = ["Diverge", "Skeleton"]

_RAW = (int, float, bool, complex, str, bytes, np.ndarray, np.generic, type(None))
_INTERNAL = (AttributeError, LookupError, AssertionError, NameError)
"""What a mistake of ours looks like; TensorFlow's own refusals have other types."""
_RESOURCE = 20
_SEQUENCES = (list, tuple)
_fast = REAL["TFE_Py_FastPathExecute"]
_execute = REAL["TFE_Py_Execute"]
_tapes_empty = REAL["TFE_Py_TapeSetIsEmpty"]
_getrefcount = sys.getrefcount


_KEPT = 8
"""Logs of past regions that are kept for tapes nobody has asked yet; beyond that the tapes are made native."""
_PATIENCE = 20
"""Milliseconds that another thread waits for the owner thread to reach the boundary."""
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_WORKING = tuple(os.path.join(_PACKAGE, folder) + os.sep for folder in ("run", "tf", "trace", "compile"))


def _in_our_code(frame: Any) -> bool:
    """Whether a thread is inside a function that works on regions (not merely started by the launcher)."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_WORKING):
            return True
        frame = frame.f_back
    return False


def _alive(slots: list[Slot | None]) -> list[int]:
    return [index for index, slot in enumerate(slots) if slot is not None and _getrefcount(slot) > _SLOT_BASE]


def _measure_base() -> int:
    slots = [Slot.__new__(Slot)]
    return next(iter([_getrefcount(slot) for index, slot in enumerate(slots)]))


_SLOT_BASE = _measure_base()


class Diverge(Exception):
    """The TraceGraph does not hold what Python does; ``reason`` is an id, ``detail`` says it in words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Answer:
    """What a validated op returns to Python."""

    __slots__ = ("answer",)

    def __init__(self, answer: Any) -> None:
        self.answer = answer


class Skeleton:
    """Boundary handler of a co-executed region.

    Args:
        graph: the anchor's TraceGraph.
        block_for: gives the current block that starts at a node, building it if needed.
        runner: executes the runs.
        diverged: told about a divergence; recovers and returns the handler that goes on with the region (a
        recorder). lazy: hand runs over only when a value is read, and wait (mode ``lazy``). run_ahead: how
        many regions Python may be ahead of the graph runner.
    """

    def __init__(
        self,
        graph: TraceGraph,
        block_for: Callable[[Node], Block],
        runner: GraphRunner,
        diverged: Callable[[Diverge], Any],
        *,
        lazy: bool,
        run_ahead: int,
        sync_errors: bool = False,
    ) -> None:
        self.graph = graph
        self.block_for = block_for
        self.runner = runner
        self.diverged = diverged
        self.lazy = lazy
        self.run_ahead = run_ahead
        self.sync_errors = sync_errors
        self.independent = Independence()
        self.scoped = native.only_device() is None
        """Whether a device scope means anything, because there is a choice."""
        self.rebuild: Callable[[], None] = lambda: None
        """Makes the tapes of kept logs native (`run.fallback.rebuild`), which frees the logs."""
        self.owner = get_ident()
        self.log = RegionLog(0)
        self.kept: list[RegionLog] = []
        self.run: BlockRun | None = None
        self.step: Step | None = None
        self.previous: Node = graph.root
        self.nowhere = Node(-2, graph.root.call)
        self.busy = False
        self.active = False
        self.waited = 0.0
        self.waits: dict[str, float] = {}
        self.leaves = 0
        self.ops = 0
        self.risky = BlockRun(Block(-1, ()), self, 0, 0)
        """The youngest run handed over that may fail."""
        self.risky.state = State.DONE
        self._held: list[BlockRun] = []
        self._regions_held = 0
        self._ahead: list[BlockRun | None] = []
        self._signatures: dict[Any, Any] = {}

    # -- regions ---------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """A region starts."""
        self.log = RegionLog(self.log.number + 1)
        self.previous = self.graph.root
        self.run = self.step = None
        self.active = True

    def end(self) -> None:
        """The region is over: dispatch what is left, respect the run-ahead bound, surface a deferred error.

        Raises:
            BaseException: a kernel error of an earlier op.
        """
        self.active = False
        run = self.run
        if run is not None:
            if not run.complete:
                self.graph.cut(self.here(), "region end")
                self.leaves += 1
            self.dispatch()
        self.previous.ends += 1
        self.keep_logs()
        if self.lazy:
            self._regions_held += 1
            if self._regions_held > self.run_ahead:  # a program that reads nothing must not pile up work
                self.drain()
            return
        self._ahead.append(self.runner.last_sent)
        if len(self._ahead) > self.run_ahead:
            oldest = self._ahead.pop(0)
            if oldest is not None and oldest.state is State.SENT:
                self.wait(oldest, "run-ahead limit")
        self.check()

    def keep_logs(self) -> None:
        """Keep the logs of regions whose tapes can still be asked, let go of all others."""
        for log in (*self.kept, self.log):
            if not (log.tapes and log.askable()):
                for run in log.runs:
                    run.keep = False
                    run.region_over()
        self.kept = [log for log in (*self.kept, self.log) if log.tapes and log.askable()]
        if len(self.kept) > _KEPT:
            self.drain()
            self.rebuild()

    def forget(self) -> None:
        """The region diverged and is over: its tapes are native now, nothing of its log is needed."""
        for run in self.log.runs:
            run.keep = False
            run.region_over()
        self.log = RegionLog(self.log.number)

    def check(self) -> None:
        """Raise a deferred kernel error, if there is one."""
        if self.runner.failed is not None:
            self.drain()

    def drain(self) -> None:
        """Wait until the runner has done all that was handed over.

        Raises:
            BaseException: a kernel error of an earlier op; ops issued after it never ran, as in eager.
        """
        self.hand_over()
        last = self.runner.last_sent
        if last is not None and last.state <= State.SENT:
            self.wait(last, "drain")
        error = self.runner.take_error()
        if error is not None:
            run = self.run
            if run is not None and run.state is State.OPEN:
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
        block = run.block
        if (
            run.pos == 0
        ):  # its first op raised in Python's hands (an exhausted iterator): nothing was validated
            self.run = self.step = None
            return
        self.previous = block.steps[run.pos - 1].node
        self.log.position = run.position
        self.run = self.step = None
        if block.nodes[0].kind is Kind.OWNER or (not block.ops and not run.draws):
            run.finish(State.DONE)
            return
        run.partial = not run.complete
        run.keep = bool(self.log.tapes and self.log.askable())
        alive = _alive(run.slots)
        if run.keep:
            kept = {op.base for op in block.ops if op.kind is Kind.READ} | set(block.draws)
            alive = sorted(
                {*alive, *(flat for flat in kept if flat < len(run.slots) and run.slots[flat] is not None)}
            )
        live = frozenset(alive) - block.draws.keys()
        if not run.partial:
            if not live <= block.outputs:
                block.outputs = block.outputs | live
            run.outputs = block.outputs
        block.runs += 1
        run.state = State.SENT
        if block.first_fallible is not None:
            self.risky = run
        if self.lazy:
            self._held.append(run)
        else:
            self.runner.send(run)

    def hand_over(self) -> None:
        """Mode lazy: give the runner what has been held back."""
        if self._held:
            held, self._held = self._held, []
            self._regions_held = 0
            for run in held:
                self.runner.send(run)

    def at_risk(self) -> bool:
        """Whether an op that may fail was issued and is not known to have succeeded."""
        if self.busy:
            return False  # whoever asks is none of the region's: a finaliser, a signal handler
        return self.runner.failed is not None or self.risky.state <= State.SENT or self._open_risk()

    def _open_risk(self) -> bool:
        run = self.run
        first = None if run is None or run.pos == 0 else run.block.first_fallible
        return first is not None and first < run.block.steps[run.pos - 1].ops[1]  # type: ignore[union-attr]

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
            self.hand_over()
            self.wait(self.risky, "try")
        self.check()

    def wait(self, run: BlockRun, where: str) -> None:
        """Wait until ``run`` is done; interruptible by signals, watched by the watchdog."""
        if run.state > State.SENT:
            return
        start = time.perf_counter()
        lock = threading.Lock()
        lock.acquire()
        run.waiters.append(lock)
        if run.state <= State.SENT:
            limit = self.runner.watchdog
            if not lock.acquire(timeout=limit):
                self.runner.stalled(f"waiting for the graph ({where}), block at {run.block.line}")
                while run.state <= State.SENT:
                    lock.acquire(timeout=limit)
        spent = time.perf_counter() - start
        self.waited += spent
        self.waits[where] = self.waits.get(where, 0.0) + spent

    def fetch(self, slot: Slot) -> None:
        """Python reads a placeholder (see `Slot.resolve`)."""
        run = slot.run
        if not isinstance(run, BlockRun):
            return
        if run.state is State.OPEN and get_ident() != self.owner:
            self.await_owner(run)
        if run.state is State.OPEN:
            if run is self.run:
                if not run.complete:
                    self.graph.cut(self.here(), "fetch")
                    self.leaves += 1
                self.dispatch()
            else:
                raise RuntimeError(
                    "terra-cx: a placeholder of a run that was given up was read; please report this"
                )
        self.hand_over()
        if run.state <= State.SENT:
            self.wait(run, "fetch")
        if slot.value is None and get_ident() == self.owner and self.runner.failed is not None:
            self.drain()

    def await_owner(self, run: BlockRun) -> None:
        """Another thread reads a value of the open run: give the owner thread time to hand it over by itself.

        The owner may be waiting for this very thread (``join``); then it is in no function of ours, and handing the run
        over from here disturbs nothing.
        """
        for _ in range(_PATIENCE):
            if run.state is not State.OPEN:
                return
            time.sleep(0.001)
        while run.state is State.OPEN and _in_our_code(sys._current_frames().get(self.owner)):
            time.sleep(0.001)

    # -- ops -------------------------------------------------------------------------------------------------
    def fast(self, ctx: Any, op: str, name: Any, *args: Any) -> Any:
        """``TFE_Py_FastPathExecute``: validate and answer with placeholders."""
        if self.busy or get_ident() != self.owner:
            return self.foreign(lambda a: _fast(ctx, op, name, *a), args)
        if self.scoped and native.context().device_name:
            return self.diverged(Diverge("device-scope", f"{op} is placed by a device scope")).fast(
                ctx, op, name, *resolve_all(args)
            )
        step = self.step
        if step is not None and step.op == op and step.form == "F" and step.kind is not Kind.DRAW:
            self.busy = True
            try:
                run = self.run
                attrs = args[step.width :]
                if (
                    step.plain
                    and (not step.lists or all(type(attrs[i]) in _SEQUENCES for i in step.lists))
                    and attrs == step.attrs
                ):
                    for check, arg in zip(step.checks, args, strict=False):
                        if not self.admits(run, check, arg):
                            break
                    else:
                        return self.commit(run, step, args, name)  # type: ignore[arg-type]
            except Diverge as divergence:
                self.busy = False
                return self.diverged(divergence).fast(ctx, op, name, *resolve_all(args))
            except _INTERNAL as error:
                self.busy = False
                return self.diverged(self.failed(error)).fast(ctx, op, name, *resolve_all(args))
            finally:
                self.busy = False
        args = self.normalise(op, args)
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
            if found.reason != "internal-error" and any(
                node.call.op == op and node.call.form == "E" for node in self.here().succ
            ):
                raise FallbackException("terra-cx: the program is known to take the slow path here")
            return self.diverged(found).fast(ctx, op, name, *resolve_all(args))
        return found.answer

    def execute(self, handle: Any, device: Any, op: Any, inputs: Any, attrs: Any, outputs: Any) -> Any:
        """``TFE_Py_Execute``: validate and answer with placeholders."""
        if self.busy or get_ident() != self.owner:
            return self.foreign(lambda a: _execute(handle, device, op, a[0], attrs, outputs), (list(inputs),))
        text = op.decode() if isinstance(op, bytes) else op
        if self.scoped and native.context().device_name:
            return self.diverged(Diverge("device-scope", f"{text} is placed by a device scope")).execute(
                handle, device, op, resolve_all(list(inputs)), attrs, outputs
            )
        inputs = list(inputs)
        found = self.validated(text, "E", (inputs, tuple(attrs) if attrs else (), outputs), None)
        if isinstance(found, Diverge):
            return self.diverged(found).execute(handle, device, op, resolve_all(inputs), attrs, outputs)
        return found.answer

    def validated(self, op: str, form: str, args: tuple[Any, ...], name: Any) -> Any:
        """Validate an op against the next step, or against the other ways on; its `Answer`, or why it diverges."""
        self.busy = True
        try:
            step = self.step
            if step is not None and self.fits(self.run, step, op, form, args):
                return Answer(self.commit(self.run, step, args, name))  # type: ignore[arg-type]
            found = self.elsewhere(op, form, args)
            if found is not None:
                return Answer(self.commit(*found, args, name))
            return Diverge(*self.explain(op, form, args))
        except Diverge as divergence:
            return divergence
        except _INTERNAL as error:
            return self.failed(error)
        finally:
            self.busy = False

    def failed(self, error: BaseException) -> Diverge:
        """A failure of ours while validating is a divergence: counted, told, and the program goes on."""
        self.runner.internal("the skeleton", error)
        return Diverge("internal-error", f"{type(error).__name__}: {error}")

    def normalise(self, op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Do what native code would do first: read variables, refuse objects it does not know.

        Raises:
            FallbackException: an argument must be converted by Python; the op arrives again through
            `execute`.
        """
        width = len(arg_layout(op))
        inputs: list[Any] = []
        changed = False
        for arg in args[:width]:
            items = arg if isinstance(arg, (list, tuple)) else (arg,)
            for item in items:
                kind = type(item)
                if kind is Placeholder or kind is EagerTensor or isinstance(item, (*_RAW, list, tuple)):
                    continue
                if not native.is_variable(item):
                    raise FallbackException("terra-cx: an argument needs conversion")
            if native.is_variable(arg):
                arg = native.convert_variable(arg)
                changed = True
            elif isinstance(arg, (list, tuple)) and any(native.is_variable(item) for item in arg):
                arg = [native.convert_variable(item) if native.is_variable(item) else item for item in arg]
                changed = True
            inputs.append(arg)
        return (*inputs, *args[width:]) if changed else args

    def fits(self, run: BlockRun | None, step: Step, op: str, form: str, args: tuple[Any, ...]) -> bool:
        """Whether an op is what ``step`` expects; binds the run's parameters as it goes."""
        if step.op != op or step.form != form:
            return False
        if form == "F":
            inputs, attrs = args[: step.width], args[step.width :]
        else:
            inputs, attrs = args[0], args[1]
        if step.kind is Kind.DRAW:
            if free_attrs(attrs) != free_attrs(step.attrs):
                return False
        elif freeze(attrs) != step.frozen:
            return False
        if step.kind in (Kind.OWNER, Kind.SOURCE):
            return True
        if len(inputs) != len(step.checks):
            return False
        return all(self.admits(run, check, arg) for check, arg in zip(step.checks, inputs, strict=True))

    def admits(self, run: Any, check: Check, arg: Any) -> bool:
        """Whether an argument is what its check demands."""
        code = check[0]
        if code == LOCAL:
            return type(arg) is Placeholder and arg._slot is run.slots[check[1]]
        if code == PARAM:
            if not check[2]:
                bound = run.params[check[1]]
                return arg is bound or (type(arg) is Placeholder and arg._slot is bound)
            if type(arg) is Placeholder:
                slot = arg._slot
                if slot.run is run or slot.spec.dtype != check[3] or arg._shape_tuple() != check[4]:
                    return False
                run.params[check[1]] = slot
                return True
            if type(arg) is not EagerTensor:
                if check[5] is None or type(arg) is not check[5]:
                    return False
                arg = _as_fed(arg, check[3])
            if arg is None or arg._datatype_enum() != check[3] or arg._shape_tuple() != check[4]:
                return False
            run.params[check[1]] = arg
            return True
        if code == KNOWN:
            if arg is check[1]:
                return True
            if type(arg) is Placeholder:
                if arg._slot.value is None:
                    return False
                arg = arg._slot.value
            if type(arg) is EagerTensor:
                return same_known(arg, check[1])
            raw = check[2] if len(check) > 2 else None
            if raw is None:
                return False
            if type(raw) is not type:
                return same_const(arg, raw)
            arg = _as_fed(arg, check[1]._datatype_enum()) if type(arg) is raw else None
            return arg is not None and same_known(arg, check[1])
        if code == CONST:
            return same_const(arg, check[1])
        if code == RESOURCE:
            return arg is check[1] or (type(arg) is Placeholder and arg._slot.value is check[1])
        if code == FEED:
            tensor = _as_fed(arg, check[2]) if type(arg) is check[3] else None
            if tensor is None or tensor._datatype_enum() != check[2]:
                return False
            run.params[check[1]] = tensor
            return True
        return (
            isinstance(arg, (list, tuple))
            and len(arg) == len(check[1])
            and all(self.admits(run, inner, item) for inner, item in zip(check[1], arg, strict=True))
        )

    def elsewhere(self, op: str, form: str, args: tuple[Any, ...]) -> tuple[BlockRun, Step] | None:
        """Another way on from here that the TraceGraph holds: start its block, leaving the open one if need be."""
        run = self.run
        here = self.here()
        inside = run is not None and not run.complete
        for node in sorted(here.succ, key=here.succ.__getitem__, reverse=True):
            if node.call.op != op or node.call.form != form:
                continue
            started = self.start(node)
            if self.fits(started, started.block.steps[0], op, form, args):
                if inside:
                    self.left(here)
                return self.enter(started, here, node)
        return None

    def here(self) -> Node:
        """The node of the last validated op."""
        run = self.run
        return self.previous if run is None or run.pos == 0 else run.block.steps[run.pos - 1].node

    def start(self, node: Node) -> BlockRun:
        """A run of the block that begins at ``node``; the open run's placeholders count as made before it."""
        run = self.run
        position = self.log.position if run is None else run.position
        return BlockRun(self.block_for(node), self, position, self.log.number)

    def enter(self, started: BlockRun, here: Node, node: Node) -> tuple[BlockRun, Step]:
        """Dispatch what was open and go on with ``started``."""
        self.dispatch()
        here.succ[node] += 1
        self.run = started
        self.step = started.block.steps[0]
        self.log.runs.append(started)
        return started, self.step

    def left(self, node: Node) -> None:
        """The open block was left after ``node``; the second time, a cut is made there."""
        self.leaves += 1
        node.leaves += 1
        if node.leaves >= 2:
            self.graph.cut(node, "branch")

    def commit(self, run: BlockRun, step: Step, args: tuple[Any, ...], name: Any) -> Any:
        """The op is what was expected: make its slots, step on, answer."""
        kind = step.kind
        slots = run.slots
        base = step.base
        if kind is Kind.OWNER:
            return self.on_owner(run, step, args, name)
        if kind is Kind.SOURCE:
            if not self.independent.of((args if step.form == "F" else args[0])[0]):
                return self.on_owner(run, step, args, name)
            result = self.natively(step, args, name)
            slots.extend([None] * len(step.specs))
            self.advance(run)
            return result
        turn = 0
        if step.needed:
            turn = self.turn(step.node)
            self.keep_arguments(step, turn)
        if kind is Kind.KNOWN:
            if step.op in SHAPE_OPS and not self.shapes_hold(step, args):
                raise Diverge("new-shape", f"{step.op} of a tensor whose shape only its value tells")
            slots.extend([None] * len(step.specs))
            self.advance(run)
            return _unpack(step.pack, step.values)
        if kind is Kind.DRAW:
            run.draws.append(Draw(step, step.op, step.form, name, resolve_all(args)))
        if step.pack == 0:
            slot = Slot(step.specs[0], run, base)
            slots.append(slot)
            if 0 in step.needed:
                self.log.bound[step.node, 0, turn] = slot
            self.advance(run)
            return new_placeholder(slot)
        made = [Slot(spec, run, base + index) for index, spec in enumerate(step.specs)]
        slots.extend(made)
        for out in step.needed:
            if out >= 0:
                self.log.bound[step.node, out, turn] = made[out]
        answer = _unpack(step.pack, [new_placeholder(slot) for slot in made])
        del made
        self.advance(run)
        return answer

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

    def turn(self, node: Node) -> int:
        """Which execution of ``node`` in this region is about to be committed."""
        turns = self.log.turns
        turn = turns.get(node, 0)
        turns[node] = turn + 1
        return turn

    def keep_arguments(self, step: Step, turn: int) -> None:
        """Remember arguments that a gradient in a later block refers to."""
        wanted = [-1 - out for out in step.needed if out < 0]
        if not wanted:
            return
        # Not the arguments as given: a raw value was converted, and the gradient means the tensor.
        checks = [inner for check in step.checks for inner in (check[1] if check[0] == LIST else (check,))]
        run = self.run
        assert run is not None
        for index in wanted:
            if index < len(checks):
                check = checks[index]
                if check[0] in (PARAM, FEED):
                    self.log.bound[step.node, -1 - index, turn] = run.params[check[1]]
                elif check[0] == LOCAL:
                    self.log.bound[step.node, -1 - index, turn] = run.slots[check[1]]
                elif check[0] == KNOWN:
                    self.log.bound[step.node, -1 - index, turn] = check[1]

    def advance(self, run: BlockRun) -> None:
        """Step on; a block that is validated to its end and followed by host time is dispatched at once."""
        self.ops += 1
        run.pos += 1
        steps = run.block.steps
        if self.sync_errors and any(op.fallible for op in run.block.ops[slice(*steps[run.pos - 1].ops)]):
            # The user wants errors where they happen and pays for it: this op is run before Python goes on.
            self.dispatch()
            self.drain()
            return
        if run.pos < len(steps):
            self.step = steps[run.pos]
            return
        self.step = None
        if run.block.prompt:
            self.dispatch()

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
        run.slots.extend([None] * len(step.specs))
        self.advance(run)
        if self.run is run and not run.complete:
            self.graph.cut(step.node, "owner")
        self.dispatch()
        self.busy = False
        self.drain()
        return self.natively(step, args, name)

    def explain(self, op: str, form: str, args: tuple[Any, ...]) -> tuple[str, str]:
        """Why an op diverges, by the difference."""
        step = self.step
        if step is None:
            known = sorted({node.call.op for node in self.here().succ}) or ["the region's end"]
            return ("new-arguments" if op in known else "new-op"), f"{op} where {', '.join(known)} is known"
        if step.op != op:
            return "new-op", f"{op} where {step.op} is known"
        inputs, attrs = (args[: step.width], args[step.width :]) if form == "F" else (args[0], args[1])
        if step.form != form:
            return "new-arguments", f"{op} takes another path through TensorFlow's Python code"
        if attrs != step.attrs:
            return "new-attributes", f"{op}: {_attr_difference(attrs, step.attrs)}"
        for number, (check, arg) in enumerate(zip(step.checks, inputs, strict=False)):
            if not self.admits(self.run, check, arg):
                return "new-arguments", f"argument {number} of {op}: {_difference(check, arg)}"
        return "new-arguments", f"{len(inputs)} arguments of {op} where {len(step.checks)} are known"

    # -- tapes -----------------------------------------------------------------------------------------------
    def _event(self, what: str, tape: Any = None, args: Any = None, detail: Any = None) -> None:
        run = self.run
        position = self.log.position if run is None else run.position
        number = self.log.tape_number(tape) if tape is not None else -1
        self.log.events.append(Event(position, what, number, args, detail))

    def tape_new(self, persistent: Any, watch_accessed: Any) -> Any:
        """``TFE_Py_TapeSetNew``: the native tape is made and stays empty unless the region diverges."""
        tape = REAL["TFE_Py_TapeSetNew"](persistent, watch_accessed)
        if get_ident() == self.owner:
            self.log.tapes.append(tape)
            self._event("new", tape, detail=(bool(persistent), bool(watch_accessed)))
        return tape

    def tape_add(self, tape: Any) -> Any:
        """``TFE_Py_TapeSetAdd``."""
        if get_ident() == self.owner:
            self._event("add", tape)
        return REAL["TFE_Py_TapeSetAdd"](tape)

    def tape_remove(self, tape: Any) -> Any:
        """``TFE_Py_TapeSetRemove``."""
        if get_ident() == self.owner:
            self._event("remove", tape)
        return REAL["TFE_Py_TapeSetRemove"](tape)

    def tape_watch(self, tape: Any, tensor: Any) -> Any:
        """``TFE_Py_TapeWatch``: noted; told to the native tape at once unless the tensor is a placeholder."""
        if get_ident() == self.owner:
            self._event("watch", tape, tensor._slot if type(tensor) is Placeholder else tensor)
        if type(tensor) is not Placeholder:
            REAL["TFE_Py_TapeWatch"](tape, tensor)

    def tape_watch_variable(self, tape: Any, variable: Any) -> Any:
        """``TFE_Py_TapeWatchVariable``: the native tape watches it at once."""
        if get_ident() == self.owner:
            self._event("watch_variable", tape, detail=id(variable.handle))
        return REAL["TFE_Py_TapeWatchVariable"](tape, variable)

    def tape_stop(self) -> Any:
        """``TFE_Py_TapeSetStopOnThread``."""
        if get_ident() == self.owner:
            self._event("stop")
        return REAL["TFE_Py_TapeSetStopOnThread"]()

    def tape_restart(self) -> Any:
        """``TFE_Py_TapeSetRestartOnThread``."""
        if get_ident() == self.owner:
            self._event("restart")
        return REAL["TFE_Py_TapeSetRestartOnThread"]()

    def record_operation(self, name: str, op: Any, outputs: Any, inputs: Any, *rest: Any) -> Any:
        """Custom gradients: noted for a rebuild, told to nobody else (the native tape is empty)."""
        if get_ident() == self.owner and (_tapes_empty() or REAL["TFE_Py_TapeSetIsStopped"]()):
            return None  # nobody listens
        if get_ident() != self.owner or self.busy:
            return REAL[name](op, resolve_all(list(outputs)), resolve_all(list(inputs)), *rest)
        detail = gradient_detail(op, outputs, inputs, rest)
        if detail is None or not all(type(t) is Placeholder for t in outputs):
            # Known steps hold no such thing: the recorder says whether it can be known.
            recorder = self.diverged(Diverge("user-gradient", f"{op}: {UNSEEN}"))
            return recorder.record_operation(name, op, outputs, inputs, *rest)
        kept = [[t._slot if type(t) is Placeholder else t for t in group] for group in (outputs, inputs)]
        self._event("record", args=(name, op, kept[0], kept[1], rest), detail=detail)
        return None

    def record_gradient(self, op: Any, inputs: Any, attrs: Any, outputs: Any, *scope: Any) -> Any:
        """``TFE_Py_RecordGradient``: nothing to tell, the op was validated and the native tape is empty."""
        if get_ident() != self.owner or self.busy or not all(isinstance(t, EagerTensor) for t in outputs):
            return REAL["TFE_Py_RecordGradient"](op, resolve_all(inputs), attrs, resolve_all(outputs), *scope)
        return None

    def variable_accessed(self, variable: Any) -> Any:
        """``TFE_Py_TapeVariableAccessed``: the native tape watches the variable, as in eager."""
        if self.log.tapes:
            run = self.run
            self.log.accesses.append((self.log.position if run is None else run.position, variable.handle))
        return REAL["TFE_Py_TapeVariableAccessed"](variable)

    def query(self, name: str, *args: Any) -> Any:
        """A native question about tensors that the skeleton cannot answer: under a tape it is a divergence."""
        if get_ident() == self.owner and (name in EFFECTS or not _tapes_empty()):
            return self.diverged(Diverge("native-effect" if name in EFFECTS else "tape-query", name)).query(
                name, *args
            )
        return REAL[name](*[resolve_all(arg) for arg in args])

    def tape_gradient(
        self, tape: Any, target: Any, sources: Any, output_gradients: Any, sources_raw: Any, unconnected: Any
    ) -> Any:
        """``TFE_Py_TapeGradient``: one validated step, whose ops are known from the tape's history."""
        number = self.log.tape_number(tape)
        if get_ident() != self.owner:
            return REAL["TFE_Py_TapeGradient"](
                tape,
                resolve_all(list(target)),
                resolve_all(list(sources)),
                resolve_all(output_gradients),
                resolve_all(sources_raw),
                unconnected,
            )
        if not all(isinstance(tensor, EagerTensor) for tensor in (*target, *sources)):
            # A graph that is being traced: none of the region's business.
            return REAL["TFE_Py_TapeGradient"](
                tape, target, sources, output_gradients, sources_raw, unconnected
            )
        if number >= 0:
            given = [g for g in output_gradients or () if g is not None]
            present = tuple(g is not None for g in output_gradients) if output_gradients is not None else None
            attrs = (number, len(target), len(sources), present, str(unconnected))
            flat = [*target, *given, *sources]
            found = self._gradient_step(attrs, flat, number)
            if found is not None:
                if not self.log.persistent(number):
                    self.log.consumed.add(number)
                return self._commit_gradient(*found)
        reason = "new-gradient" if number >= 0 else "tape-across-regions"
        recorder = self.diverged(Diverge(reason, "tape.gradient of a tape whose history is new"))
        return recorder.tape_gradient(tape, target, sources, output_gradients, sources_raw, unconnected)

    def _gradient_step(self, attrs: Any, flat: list[Any], tape: int) -> tuple[BlockRun, Step] | None:
        run, step = self.run, self.step
        signature = signature_of(self.log, run, tape, _asked(flat))
        if (
            step is not None
            and step.kind is Kind.GRADIENT
            and self._gradient_fits(run, step, attrs, flat, signature)
        ):
            return run, step  # type: ignore[return-value]
        here = self.here()
        inside = run is not None and not run.complete
        for node in sorted(here.succ, key=here.succ.__getitem__, reverse=True):
            if node.kind is not Kind.GRADIENT or node.signature != signature:
                continue
            started = self.start(node)
            if self._gradient_fits(started, started.block.steps[0], attrs, flat, signature):
                if inside:
                    self.left(here)
                return self.enter(started, here, node)
        return None

    def _gradient_fits(self, run: Any, step: Step, attrs: Any, flat: list[Any], signature: Any) -> bool:
        if step.attrs != attrs or len(flat) != len(step.checks):
            return False
        if step.node.signature is not signature and step.node.signature != signature:
            return False
        if not all(self.admits(run, check, arg) for check, arg in zip(step.checks, flat, strict=True)):
            return False
        for number, node, out, turn in step.implicit:
            bound = self.log.bound.get((node, out, turn))
            if bound is None or (type(bound) is Slot and bound.run is run):
                return False
            run.params[number] = bound
        return all(
            not (isinstance(item, tuple) and item and item[0] == "n") or item[1:] in self.log.bound
            for item in _flat_results(step.results)
        )

    def _commit_gradient(self, run: BlockRun, step: Step) -> Any:
        base = step.base
        run.slots.extend([None] * len(step.specs))

        def slot_of(flat: int) -> Slot:
            slot = run.slots[flat]
            if slot is None:
                slot = run.slots[flat] = Slot(step.specs[flat - base], run, flat)
            return slot

        def answer(item: Any) -> Any:
            if item is None:
                return None
            what = item[0]
            if isinstance(what, tuple) or what is None:
                values, indices, dense = (answer(part) for part in item)
                return IndexedSlices(values, indices, dense)
            if what == "l":
                return new_placeholder(slot_of(item[1]))
            if what == "k" or what == "r":
                return item[1]
            bound = run.params[item[1]] if what == "p" else self.log.bound[item[1:]]
            return new_placeholder(bound) if type(bound) is Slot else bound

        result = [answer(item) for item in step.results]
        turn = self.turn(step.node) if step.needed else 0
        for out in step.needed:
            if out >= 0:
                self.log.bound[step.node, out, turn] = slot_of(base + out)
        for op in run.block.ops[step.ops[0] : step.ops[1]]:
            if op.kind is Kind.READ:
                slot_of(op.base)
        self.advance(run)
        return result

    # -- others ----------------------------------------------------------------------------------------------
    def foreign(self, call: Callable[[tuple[Any, ...]], Any], args: tuple[Any, ...]) -> Any:
        """An op of another thread, or one that arrived while the skeleton was working: run it natively, now."""
        last = self.runner.last_sent
        if last is not None and last.state is State.SENT and not self.lazy and get_ident() != self.owner:
            self.wait(last, "another thread's op")
        return call(tuple(resolve_all(arg) for arg in args))


def _as_fed(value: Any, dtype: int) -> Any:
    """A raw argument as the tensor that eager would make of it, None if that cannot be told."""
    try:
        if isinstance(value, (np.ndarray, list, tuple)):
            return native.as_tensor(value)
        return native.as_tensor(value, native.dtype_of(dtype))
    except (TypeError, ValueError):
        return None


def _asked(flat: list[Any]) -> list[Any]:
    """Targets, output gradients and sources of a gradient that are no variables, as slots or real tensors."""
    asked = []
    for arg in flat:
        if type(arg) is Placeholder:
            if arg._slot.spec.dtype != _RESOURCE:
                asked.append(arg._slot)
        elif arg._datatype_enum() != _RESOURCE:
            asked.append(arg)
    return asked


def _flat_results(results: tuple[Any, ...]) -> list[Any]:
    flat: list[Any] = []
    for item in results:
        if isinstance(item, tuple) and item and (isinstance(item[0], tuple) or item[0] is None):
            flat.extend(item)
        else:
            flat.append(item)
    return flat


def _unpack(pack: Any, values: Any) -> Any:
    if pack is None:
        return None
    if isinstance(pack, int):
        return values[pack]
    return [_unpack(item, values) for item in pack]


def _attr_difference(given: tuple[Any, ...], known: tuple[Any, ...]) -> str:
    for name, new, old in zip(given[::2], given[1::2], known[1::2], strict=False):
        if freeze(new) != freeze(old):
            return f"{name} is {new!r:.60} where {old!r:.60} is known"
    return "other attributes"


def _difference(check: Check, arg: Any) -> str:
    code = check[0]
    if code == PARAM and check[2]:
        if isinstance(arg, EagerTensor):
            given = f"dtype {arg._datatype_enum()} shape {tuple(arg.shape)}"
            return f"{given} where dtype {check[3]} shape {check[4]} is known"
        return f"a {type(arg).__name__} where a tensor is known"
    if code == CONST:
        return f"{arg!r:.60} where {check[1]!r:.60} is known"
    if code == KNOWN:
        return "another value than the guarded one"
    if code == RESOURCE:
        return "another variable"
    return "another tensor"

"""Regions and runs of the skeleton: what is open, what was handed over, and what is waited for.

Guarantees:

* A run is handed over only when all its ops have been issued by Python with those very inputs; there is no
  speculation.
* Only the owner thread ever opens, leaves or replaces a run. Another thread, or an op inside the hook, may have the
  open run *frozen* and handed over (`publish`); it then stays as it is.
* Ctrl-C finds a region open or over, and a run open as a whole or not at all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import get_ident
from typing import Any, TypeVar

from terra_cx.compile.blocks import Block, Step
from terra_cx.reasons import Reason
from terra_cx.run.block_run import BlockRun, State
from terra_cx.run.differences import Difference
from terra_cx.run.divergence import Diverge
from terra_cx.run.handover import Handover
from terra_cx.run.region_log import RegionLog
from terra_cx.tf import native
from terra_cx.tf.native import REAL
from terra_cx.tf.opdefs import Kind
from terra_cx.tf.room import have_room
from terra_cx.tf.slots import Slot
from terra_cx.trace.tracegraph import Node, TraceGraph

__all__ = ["Dispatching"]

T = TypeVar("T")
_INTERNAL = (AttributeError, LookupError, AssertionError, NameError)
"""What a mistake of ours looks like; TensorFlow's own refusals have other types."""
_OPEN = State.OPEN
_getrefcount = sys.getrefcount
_tapes_empty = REAL["TFE_Py_TapeSetIsEmpty"]

_KEPT = 8
"""Logs of past regions that are kept for tapes nobody has asked yet; beyond that the tapes are made native."""


def _alive(slots: list[Slot | None]) -> list[int]:
    return [index for index, slot in enumerate(slots) if slot is not None and _getrefcount(slot) > _SLOT_BASE]


def _measure_base() -> int:
    slots = [Slot.__new__(Slot)]
    return next(iter([_getrefcount(slot) for index, slot in enumerate(slots)]))


_SLOT_BASE = _measure_base()


class Dispatching:
    """The regions of one skeleton.

    ``live`` says whether its tapes are told of each op (`run.live_skeleton`).

    Args:
        graph: the anchor's TraceGraph.
        handover: takes the runs to the graph runner.
        diverged: told about a divergence; recovers and returns the handler that goes on with the region (a
            recorder).
    """

    live = False

    def __init__(self, graph: TraceGraph, handover: Handover, diverged: Callable[[Diverge], Any]) -> None:
        self.graph = graph
        self.handover = handover
        self.diverged = diverged
        self.owner = get_ident()
        """The thread that is co-executed."""
        self.log = RegionLog(0)
        """The region in progress."""
        self.run: BlockRun | None = None
        """The open run."""
        self.step: Step | None = None
        """What the open run expects next."""
        self.busy = False
        """Whether the owner thread is validating, or in an op of its own: what arrives then is not the program's."""
        self.scoped = native.only_device() is None
        """Whether a device scope means anything, because there is a choice."""
        self.rebuild: Callable[[], None] = lambda: None
        """Makes the tapes of kept logs native (`run.fallback.rebuild`), which frees the logs."""
        self.note: Callable[[], Any] = lambda: None
        """Has the rest of the region recorded, so that its library calls are known; the handler that goes on."""
        self.kept: list[RegionLog] = []
        self.previous: Node = graph.root
        self.nowhere = Node(-2, graph.root.call)
        self.risky = BlockRun(Block(-1, ()), self, 0, 0)
        """The youngest run handed over that may fail."""
        self.risky.state = State.DONE

    def _mine(self) -> bool:
        """Whether what arrives is the program's next: not another thread's, a finaliser's, a host callback's."""
        return get_ident() == self.owner and not self.busy

    @staticmethod
    def misplaced(step: Step) -> bool:
        """Whether the device scope is not the one that a step comes in."""
        return native.device_scope() != step.device

    def position(self) -> int:
        """The region's position of the next op."""
        return self.log.position if self.run is None else self.run.position

    # -- regions ---------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """A region starts."""
        self.graph.regions += 1
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
            self.dispatch(last=True)
        try:
            if self._meanwhile_busy(self.handover.region_over) or self.handover.runner.failed is not None:
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
        if self.handover.youngest is not None:
            self._have_done(self.handover.youngest, "drain")
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
    def dispatch(self, last: bool = False) -> None:
        """Hand the open run over, as far as it has been validated.

        Args:
            last: it is the region's last.

        Raises:
            RecursionError: as `_have_done`.
        """
        run = self.run
        if run is None:
            return
        if run.pos == 0:  # its first op raised in Python's hands: nothing was validated
            self.run = self.step = None
            return
        have_room()
        run.frozen = True  # should Ctrl-C leave it open once it is on its way, no op may be added to it
        block = run.block
        if (last or (run.complete and not block.nodes[-1].succ)) and not self.log.askable():
            self.log.bound.clear()  # no gradient follows; else what it could ask for would be results of the graph
        if block.idle:
            run.finish(State.DONE)
        else:
            self.plan(run)
            self._meanwhile_busy(self.handover.issue, run)
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
            alive = sorted({*alive, *self._kept(run)})
        live = frozenset(alive) - block.draws.keys() - block.held
        if run.complete:
            block.ask(live)
        outputs = block.outputs
        if run.outputs is None:
            run.keep = keep
            run.outputs = outputs

    @staticmethod
    def _kept(run: BlockRun) -> list[int]:
        """Flat outputs that a rebuild of the tapes takes as they were: what was read, and what was drawn."""
        slots, block = run.slots, run.block
        done = block.steps[run.pos - 1].ops[1]
        kept = [flat for flat in block.draws if slots[flat] is not None]
        for op in block.ops[:done]:
            if op.kind is Kind.READ:
                for flat, spec in enumerate(op.specs, op.base):
                    if slots[flat] is None:  # of an elided call, of a gradient
                        slots[flat] = Slot(spec, run, flat)
                    kept.append(flat)
        return kept

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
            self._have_done(self.risky, "try")
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
        self._have_done(run, "fetch")

    def _have_done(self, run: BlockRun, where: str) -> None:
        """Have a run executed that was handed over, and wait for it.

        Raises:
            RecursionError: the program's stack is so full that a run might be left half-way; nothing was done.
        """
        have_room()
        handover = self.handover
        if (
            handover.held_are_quick()
            and native.executing_eagerly()
            and _tapes_empty()
            and not native.device_scope()
        ):
            self._meanwhile_busy(handover.execute_held)
        else:
            handover.flush()
        self._meanwhile_busy(handover.wait, run, where)

    def _meanwhile_busy(self, do: Callable[..., T], *args: Any) -> T:
        """Hand over, or wait; the ops of a finaliser that runs meanwhile are none of the region's.

        It may run where the graph runner's lock is held, and an op of the region's would ask for that lock again.
        """
        busy, self.busy = self.busy, True
        try:
            return do(*args)
        finally:
            self.busy = busy

    def publish(self) -> None:
        """Have all ops that Python has issued executed, and wait for them; from any thread but the runner's."""
        run = self.run
        if run is None or run.pos == 0 or run.block.idle:
            run = None
        else:
            run.frozen = True
            self.plan(run)
        self.handover.publish(run)

    def settle(self) -> None:
        """As `publish`; nothing to do where a block is being run by the caller."""
        if not self.handover.runner.is_current_thread():
            self.publish()

    def here(self) -> Node:
        """The node of the last validated op."""
        run = self.run
        return self.previous if run is None or run.pos == 0 else run.block.steps[run.pos - 1].node

    def failed(self, error: BaseException) -> Diverge:
        """A failure of ours while validating is a divergence: counted, told, and the program goes on.

        Raises:
            BaseException: ``error`` itself, if it is of a type of the program's: one of its signal handlers raised it.
        """
        if type(error).__module__ != "builtins":
            raise error
        self.handover.runner.internal("the skeleton", error)
        return Diverge(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")

    def diverge(self, reason: Reason, detail: str | Difference) -> Any:
        """Leave the TraceGraph for the rest of the region; the handler that goes on."""
        return self.diverged(Diverge(reason, detail))

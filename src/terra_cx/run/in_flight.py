"""Runs in flight: the owner thread hands quick runs to TensorFlow's own queue, and no thread of ours is in between.

The graph runner's thread needs the interpreter before and after each run, and takes it from the owner thread; for a
graph that runs for half a millisecond, that and the two wake-ups cost as much as the graph. The queue needs neither.

Guarantees:

* A run is put into the queue only if all before it have been executed or are in the queue, by the owner thread, and
  once: `BlockRun.queued` is filled by the native call that queues it, so an interrupt finds it queued or not.
* Its slots are filled when it has *landed*: when somebody has waited for it, or for one behind it, and it did not fail.
  Until then its results are `Slot.pending`, which only later runs are given.
* The queue is waited for natively, with the interpreter let go and signals late: so only runs that are known to be
  quick are queued, and no more than take `QUICK` together, before it is waited for.
* A run that failed has changed nothing (the transaction rule), and those behind it have not run. The graph runner does
  them again, in order, and finds what eager finds; on its own thread, for the owner's may have a tape open.
* Random draws of a run are queued before its function, each once: a draw that has been made (`Draw.made`) counts,
  whatever becomes of the function.
* All methods are called under the graph runner's lock, and it executes nothing as long as something is flying.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from terra_cx.run.block_run import BlockRun, State
from terra_cx.tf import native
from terra_cx.tf.graphs import CompiledFunction
from terra_cx.tf.native_queue import REFUSED, Before, NativeQueue, op_call, wait_for
from terra_cx.tf.opdefs import PLAIN_DRAWS, Kind
from terra_cx.tf.slots import Slot

__all__ = ["QUICK", "InFlight"]

QUICK = 0.05
"""Seconds for which Ctrl-C may wait."""
_OPAQUE = frozenset({20, 21})
"""Dtypes (resource, variant) of tensors that cannot be waited for."""
_MOST = 1000


class InFlight:
    """See the module's page.

    Args:
        landed: told of each run that has run.
    """

    def __init__(self, landed: Callable[[BlockRun], None]) -> None:
        self.flying: deque[BlockRun] = deque()
        self.held_up = 0.0
        """Seconds that Python has waited because too much was flying."""
        self._landed = landed
        self._queue: NativeQueue | None = None
        self._tokens: dict[tuple[int, frozenset[int]], int | None] = {}

    @property
    def seconds(self) -> float:
        """What all that is flying takes, as measured when each ran by itself."""
        return sum([run.block.seconds for run in self.flying])

    def admits(self, run: BlockRun) -> bool:
        """Whether a run is of the kind that is queued: compiled, quick, its draws plain, with something to wait for."""
        block, outputs = run.block, run.outputs
        function = block.variants.get(outputs) if outputs else None
        return (
            type(function) is CompiledFunction
            and function.settled
            and run.complete
            and not block.relaxed
            and block.eager is None
            and block.seconds < QUICK
            and self._token(run) is not None
        )

    def launch(self, run: BlockRun) -> bool:
        """Queue a run of the calling thread, the owner's, of the kind; False if it cannot be, and nothing was done."""
        if not run.queued and not self._put(run):
            return False
        self.adopt(run)
        return True

    def adopt(self, run: BlockRun) -> None:
        """A run was queued: it is flying, whatever has interrupted `launch`."""
        if run.state > State.SENT:
            return
        if run not in self.flying:
            self.flying.append(run)
        outputs = run.outputs or ()
        for flat, value in zip(sorted(outputs), run.queued[0], strict=True):
            slot = run.slots[flat]
            if slot is not None:
                slot.pending = value
        for base, draw in run.draws.items():
            slot = run.slots[base]
            if slot is not None:
                slot.pending = draw.tensor

    def land(self, last: BlockRun) -> bool:
        """Wait for a flying run, and so for those before it; False if one of them has failed."""
        while self.flying and self.flying[0].state > State.SENT:
            self.flying.popleft()  # an interrupt came when it had landed
        if last.state > State.SENT:
            return True
        self.adopt(last)
        return self._came(last, self._queue if last is self.flying[-1] else None)

    def _came(self, last: BlockRun, queue: NativeQueue | None = None) -> bool:
        """As `land`, by waiting for the ``queue`` in which nothing is behind it, or for the run's own results."""
        try:
            if queue is not None:
                queue.wait()  # a twentieth of what waiting for a tensor takes
            else:
                wait_for(last.queued[0][self._token(last)])
        except REFUSED:  # which of them has failed, and how, is found out by running them again
            return False
        while self.flying:
            run = self.flying[0]
            self._has_landed(run)
            self.flying.popleft()
            if run is last:
                break
        return True

    def clear(self) -> list[BlockRun]:
        """One of them has failed: what has not run, in order; nothing is flying any more."""
        if self._queue is not None:
            self._queue.clear()
        while self.flying:
            if self.flying[0].state > State.SENT:
                self.flying.popleft()
            elif not self._came(self.flying[0]):
                break
        runs = list(self.flying)
        for run in runs:
            run.queued = []
            for slot in run.slots:
                if slot is not None:
                    slot.pending = None
        self.flying.clear()
        return runs

    def close(self) -> None:
        """Nothing is flying, nor will be."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.close()

    def _put(self, run: BlockRun) -> bool:
        block, outputs = run.block, run.outputs
        assert outputs is not None  # it is admitted
        feeds = [_feed(param) if type(param) is Slot else param for param in run.params]
        before = [
            Before(op_call(draw.op, draw.form, draw.name, draw.args), draw, block.draws[base])
            for base, draw in run.draws.items()
        ]
        if sum([feed is None for feed in feeds]) > len(before) or (before and native.device_scope()):
            return False
        if not self._has_room(block.seconds):
            return False
        if self._queue is None:
            self._queue = NativeQueue()
        try:
            self._queue.put(block.variants[outputs], feeds, run.queued, before)
        except REFUSED:  # one before it has failed, or it would itself: the graph runner finds out
            return False
        return True

    def _has_room(self, seconds: float) -> bool:
        """Wait until what is flying takes no more than `QUICK` with so much more; False if something has failed."""
        if not self.flying or self.seconds + seconds <= QUICK:
            return True
        start = time.perf_counter()
        good = True
        while good and self.flying and self.seconds + seconds > QUICK:
            good = self.land(self.flying[0])
        self.held_up += time.perf_counter() - start
        return good

    def _token(self, run: BlockRun) -> Any:
        """The number of the output by which a run is waited for, None if there is none or not all draws are plain."""
        block, outputs = run.block, run.outputs or frozenset()
        key = block.uid, outputs
        if key not in self._tokens:
            if len(self._tokens) >= _MOST:
                self._tokens.clear()
            dtypes = {
                flat: spec.dtype for step in block.steps for flat, spec in enumerate(step.specs, step.base)
            }
            plain = all(
                step.op in PLAIN_DRAWS and not step.device for step in block.steps if step.kind is Kind.DRAW
            )
            tokens = (number for number, flat in enumerate(sorted(outputs)) if dtypes[flat] not in _OPAQUE)
            self._tokens[key] = next(tokens, None) if plain else None
        return self._tokens[key]

    def _has_landed(self, run: BlockRun) -> None:
        """Fill the slots; in this order, so that an interrupt leaves a run that is done or can be landed again."""
        if run.state > State.SENT:
            return
        for slot in run.slots:
            if slot is not None and slot.pending is not None:
                slot.value, slot.pending = slot.pending, None
        run.finish(State.DONE)
        run.queued = []
        self._landed(run)


def _feed(slot: Slot) -> Any:
    """The value, or what is still to come; None if neither is there."""
    return slot.pending if slot.value is None else slot.value

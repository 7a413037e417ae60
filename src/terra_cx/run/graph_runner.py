"""The graph runner: the thread that executes block runs in program order.

Guarantees:

* Runs are executed one at a time, in the order in which they were sent; a run is executed at most once, however often
  it is sent, and whether by the runner's thread or by the owner thread (`execute_here`).
* A failed run changed nothing when its compiled block failed; it is replayed op by op, so that exactly eager's effects,
  values and exception remain. No later run is executed until the owner thread has taken the error.
* A run's slots are filled before its waiter is woken.
* Quick runs may be in flight (`run.in_flight`): TensorFlow's own queue executes them then. Before the runner executes
  anything, all of these have landed.
* The thread is no daemon (a daemon inside TensorFlow crashes the interpreter's exit); `close` ends it, and is also
  registered to run before the interpreter joins its threads.
* An error of our own while a block is compiled is caught: the run was done op by op, the block stays eager. Any other
  comes out in Python, for nobody could say what of the run was done; the thread goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from terra_cx.compile.lowering import function_of, lower
from terra_cx.run.block_run import BlockRun, State
from terra_cx.run.channels import Channel, ChannelError
from terra_cx.run.contest import Contest
from terra_cx.run.eager import OpFailed, annotate, do_draw, feeds_of, run_eagerly, settle
from terra_cx.run.in_flight import InFlight
from terra_cx.run.leveling import Leveling, Trial
from terra_cx.run.uninterrupted import Uninterrupted
from terra_cx.run.verify import Snapshot, is_to_be_verified
from terra_cx.tf.graphs import CompiledFunction

__all__ = ["GraphRunner", "RunnerStatistics"]

T = TypeVar("T")
_INTERRUPTED: AbstractContextManager[None] = nullcontext()


@dataclass(slots=True)
class RunnerStatistics:
    """Counters of the graph runner: runs compiled and op by op, seconds of work and of compiling.

    ``mismatches`` are functions that differed from eager and were dropped, ``unsteady`` those that differed by no more
    than rounding, where eager gave other bits each time as well.
    """

    compiled_runs: int = 0
    eager_runs: int = 0
    variants: int = 0
    mismatches: int = 0
    unsteady: int = 0
    busy: float = 0.0
    compile_seconds: float = 0.0


class GraphRunner:
    """See the module's guarantees. ``path`` is the channel on which runs arrive.

    Args:
        capacity: how many runs may be queued.
        watchdog: seconds after which a wait is told.
        on_stall: told of it, but not that the graph runner itself has nothing to do: Python may be busy with other
            things, or all runs fly.
        level: the name of the level at which blocks are to run, or ``auto`` (`terra_cx.levels`).
    """

    def __init__(
        self, capacity: int, watchdog: float, on_stall: Callable[[str], None], level: str = "exact"
    ) -> None:
        self.leveling = Leveling(level)
        self.path: Channel[BlockRun] = Channel("path", capacity, watchdog, self._sends_late)
        self.watchdog = watchdog
        self.stalled = on_stall
        self.statistics = RunnerStatistics()
        self.failed: BlockRun | None = None
        self.raised: BaseException | None = None
        self.internal: Callable[[str, BaseException], None] = lambda what, error: None
        self.current: BlockRun | None = None
        self.handlers = False
        """Whether signals may have code of the program's run, which must not find a run half launched."""
        self.tap: Callable[[BlockRun, CompiledFunction | Contest | None, list[Any]], None] | None = None
        """Told of every run on the runner's thread: its function (None if it runs op by op) and the feeds."""
        self._thread: threading.Thread | None = None
        self._guests: set[int] = set()
        """The threads that are executing runs in the runner's place, or launching them, or waiting for them to land."""
        self._executing = threading.Lock()
        self._in_flight = InFlight(self._landed)

    # -- other threads -------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the thread, if it is not running; the owner thread does, before it has anything to hand over.

        (Once `send` did: the owner's first and another thread's came together, and two threads took runs out of the
        channel and executed them in whichever order they got the lock.)

        Raises:
            RuntimeError: the system has no more threads to give.
        """
        if self._thread is None:
            thread = threading.Thread(target=self._main, name="terra-cx graph runner", daemon=False)
            with Uninterrupted():
                thread.start()
                self._thread = thread

    def send(self, run: BlockRun) -> None:
        """Hand a run over; blocks while too many are queued."""
        self.path.send(run)

    def could_launch(self, run: BlockRun) -> bool:
        """Whether a run is of the kind that `launch` takes."""
        return self.tap is None and self.failed is None and self._in_flight.admits(run)

    def launch(self, run: BlockRun) -> bool:
        """Have TensorFlow's own queue execute a run of the calling thread's; False if it is to be sent instead.

        It must be of the kind (`could_launch`), and all before it must have been executed, or launched.
        """
        return self._unless_done(run, self._in_flight.launch)

    def land(self, run: BlockRun) -> bool:
        """Wait for a run that was launched; False if it has to be sent, because it or one before it has failed."""
        return self._unless_done(run, self._in_flight.land)

    def _unless_done(self, run: BlockRun, do: Callable[[BlockRun], bool]) -> bool:
        """Do something with a run that may be in flight; True if it is done, another thread's doing perhaps."""
        with Uninterrupted() if self.handlers else _INTERRUPTED, self._executing:
            return run.state > State.SENT or self._as_guest(lambda: do(run))

    def _sends_late(self, where: str) -> None:
        """Somebody waits long at the channel: told if it is not the graph runner, which has nothing to do then."""
        if not self.is_current_thread():
            self.stalled(where)

    def is_current_thread(self) -> bool:
        """Whether the caller runs on the runner's thread, or on one that is executing runs in its place."""
        return threading.current_thread() is self._thread or threading.get_ident() in self._guests

    def execute_here(self, runs: list[BlockRun]) -> None:
        """Execute runs on the calling thread, which would only wait: that saves waking one thread, then the other.

        Signal handlers of the program wait until it is over. What a finaliser does meanwhile counts as on the runner's
        thread. (Garbage collection is not switched off for it: other threads would see that, and their own switching
        be undone.)
        """

        def execute() -> None:
            for run in runs:
                self._execute_once(run)

        with Uninterrupted():
            self._as_guest(execute)

    def _as_guest(self, do: Callable[[], T]) -> T:
        """What a finaliser on this thread does meanwhile counts as on the runner's: it must not wait for the lock."""
        me = threading.get_ident()
        try:
            self._guests.add(me)
            return do()
        finally:
            self._guests.discard(me)

    def close(self) -> None:
        """Execute what is queued, then end the thread and wait for it."""
        flying = self._in_flight.flying
        if flying and not self.land(flying[-1]):
            self.send(flying[-1])
        self.path.close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
            self._thread = None
        self._in_flight.close()

    @property
    def held_up(self) -> float:
        """Seconds that `launch` has waited."""
        return self._in_flight.held_up

    def forked(self) -> None:
        """This process is a forked child: nothing that executes runs has come with it, and nobody waits for them."""
        self._in_flight = InFlight(self._landed)
        self._executing = threading.Lock()

    def take_error(self) -> BaseException | None:
        """The deferred error, once; runs can be executed again afterwards."""
        run, self.failed = self.failed, None
        if run is None:
            return None
        self.raised = run.error
        return run.error

    # -- runner side ---------------------------------------------------------------------------------------------
    def _main(self) -> None:
        while True:
            try:
                self._serve()
                return
            except BaseException as error:  # noqa: BLE001  # somebody raised it in this thread, or memory has run out
                self.internal("the graph runner", error)
                run, self.current = self.current, None
                if run is not None and run.state <= State.SENT:
                    self._fail(run, error)

    def _serve(self) -> None:
        """Execute runs until the path channel is closed."""
        while True:
            try:
                run = self.path.receive()
            except ChannelError:
                return
            self._execute_once(run)
            del run

    def _execute_once(self, run: BlockRun) -> None:
        """Execute a run and what is in flight before it, unless that has been done or an earlier one has failed."""
        with self._executing:
            flight = self._in_flight
            if run.queued:
                flight.adopt(run)
            if flight.flying and not flight.land(flight.flying[-1]):
                for flown in flight.clear():
                    self._execute_now(flown)
            self._execute_now(run)

    def _execute_now(self, run: BlockRun) -> None:
        if run.state > State.SENT:
            return
        start = time.perf_counter()
        self.current = run
        failed = self.failed
        if failed is not None:
            assert failed.error is not None
            run.fail(failed.error, State.DROPPED)
        else:
            self._execute(run)
        self.current = None
        seconds = time.perf_counter() - start
        self.statistics.busy += seconds
        run.block.seconds = seconds

    def _landed(self, run: BlockRun) -> None:
        """A run has been executed elsewhere: how long that took is known from when it was executed here."""
        self.statistics.compiled_runs += 1
        self.statistics.busy += run.block.seconds

    def _fail(self, run: BlockRun, error: BaseException) -> None:
        """Python meets the error, and nothing later runs before."""
        self.failed = run
        run.fail(error)

    def _execute(self, run: BlockRun) -> None:
        try:
            self._compute(run)
        except OpFailed as failure:
            # What follows has not happened.
            run.pos = next(index for index, step in enumerate(run.block.steps) if step is failure.step)
            self._fail(run, annotate(failure.error, failure.step))
            return
        except BaseException as error:  # noqa: BLE001  # reaches the owner thread
            self.internal(f"graph runner, block at {run.block.line}", error)
            self._fail(run, error)
            return
        run.finish(State.DONE)

    def _compute(self, run: BlockRun) -> None:
        block = run.block
        feeds = feeds_of(run)
        if not run.complete or block.eager is not None:
            self.statistics.eager_runs += 1
            self._truth(run, feeds)
            return
        outputs = run.outputs
        assert outputs is not None
        if not block.ready(outputs) or (block.relaxed and is_to_be_verified(block, feeds)):
            self.statistics.eager_runs += 1
            self._first(run, feeds, outputs)
            return
        function = block.variants[outputs]
        for draw in run.draws.values():
            try:
                values = do_draw(draw)
            except BaseException as error:
                raise OpFailed(draw.step, error) from error
            for index, value in enumerate(values):
                flat = draw.step.base + index
                feeds[block.draws[flat]] = value
                slot = run.slots[flat]
                if slot is not None:
                    slot.value = value
        if self.tap is not None:
            self.tap(run, function, feeds)
        try:
            results = function(feeds)
        except Exception:  # noqa: BLE001
            # The block changed nothing. Its draws are made; replay the other ops with them, which raises what eager
            # raises (if it does not raise, the block was wrong to fail and its values are eager's all the same).
            self.statistics.eager_runs += 1
            self._truth(run, feeds, drawn=True)
            return
        self.statistics.compiled_runs += 1
        slots = run.slots
        for flat, value in zip(sorted(outputs), results, strict=True):
            slot = slots[flat]
            if slot is not None:
                slot.value = value

    def _truth(self, run: BlockRun, feeds: list[object], drawn: bool = False) -> list[object]:
        if self.tap is not None:
            self.tap(run, None, feeds)
        values = run_eagerly(run, feeds, drawn)
        settle(run, values)
        return values

    def _first(self, run: BlockRun, feeds: list[object], outputs: frozenset[int]) -> None:
        """Run op by op, make a compiled function, at the level wanted if may be, and compare it with the truth."""
        block = run.block
        start = time.perf_counter()
        try:
            before = Snapshot(block)
        except Exception as error:  # noqa: BLE001
            # An uninitialised variable, a dtype that cannot be read: no comparison, no block.
            block.eager = f"cannot be verified: {type(error).__name__}"
            self._truth(run, feeds)
            return
        values = self._truth(run, feeds)
        after = before.again()
        new = outputs not in block.variants
        trial = Trial(run, feeds, outputs, values, before, after)
        try:
            if not block.relaxed and self.leveling.takes(trial):
                self.statistics.variants += 1
                return
            function = function_of(block, outputs)
            before.restore()
            good = trial.gave(function(feeds))
            if not good and not trial.is_steady() and trial.problem(function) is None:
                good = True
                self.statistics.unsteady += 1
        except Exception as error:  # noqa: BLE001  # whatever graph mode refuses
            block.eager = f"{type(error).__name__}: {str(error)[:200]}"
            self.internal(f"compiling the block at {block.line}", error)
            return
        finally:
            after.restore()
            self.statistics.compile_seconds += time.perf_counter() - start
        self.statistics.variants += new
        prepared, block.prepared = block.prepared, None
        if good:
            if not block.relaxed:
                self.leveling.starts_from(block, outputs, function)
            return
        self.statistics.mismatches += 1
        block.variants.clear()
        if prepared is not None:
            block.barriers = False
            lower(block)  # it came from a cache: made here it may be right
        elif block.barriers:
            block.eager = "its compiled form differs from eager"
        else:
            block.barriers = True
            lower(block)

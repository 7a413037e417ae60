"""Handover: block runs go from the owner thread to the graph runner, in the order in which Python issued them.

Guarantees:

* Runs reach the path channel in program order. A run may reach it twice (below); the runner executes it once.
* `publish` may be called from any thread, and inside any operation of this module that it interrupts (a finaliser,
  a signal handler): it repeats what may have been half done, and never undoes or overtakes it. Only the owner thread
  takes runs out of what is held back.
* In turns, Python and graph alternate: runs are held back until a value is read or ``run_ahead`` regions have
  gathered, and Python waits. That is mode ``lazy``; in mode ``co`` it is chosen where it was measured to be faster,
  which it is where a run costs less than waking the other thread and passing the interpreter back and forth.
  Where the runs held back are known to be quick, the owner thread executes them itself (`execute_held`) rather than
  wait for a thread that would be woken for them.
* All waits are on plain locks, which signals interrupt; one that exceeds the watchdog's limit is told once.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from terra_cx.run.block_run import BlockRun, State
from terra_cx.run.graph_runner import GraphRunner
from terra_cx.run.in_flight import QUICK

__all__ = ["Handover"]

_OPEN, _SENT = State.OPEN, State.SENT
_KEPT_BACK = 8


class Handover:
    """See the module's guarantees.

    Args:
        runner: executes the runs.
        run_ahead: how many regions Python may be ahead of the graph.
    """

    def __init__(self, runner: GraphRunner, run_ahead: int) -> None:
        self.runner = runner
        self.run_ahead = run_ahead
        self.in_turns = False
        self.waited = 0.0
        """Seconds that the owner thread has waited for the graph."""
        self.youngest: BlockRun | None = None
        """The run issued last; when it is done, all are."""
        self._held: list[BlockRun] = []
        self._sent: BlockRun | None = None
        """The run that the owner thread has sent last."""
        self._kept_back = 0
        """Quick runs in a row that were sent because the one before them was not done."""
        self._regions_held = 0
        self._ahead: deque[BlockRun | None] = deque()

    def issue(self, run: BlockRun) -> None:
        """Take a run from the owner thread, whose outputs are decided (`Skeleton.plan`)."""
        if run.state is _OPEN:
            run.state = _SENT
        self.youngest = run
        if self.in_turns:
            self._held.append(run)
        elif not self._launched(run):
            self._sent = run
            self.runner.send(run)

    def _launched(self, run: BlockRun) -> bool:
        """Whether a run was put behind those in flight: not while the graph runner's thread has something to do.

        It always has where Python is faster than the graph; if for some runs nothing else was in the way, it is waited
        for, once.
        """
        if not self.runner.could_launch(run):
            self._kept_back = 0
            return False
        if self._sent is not None and not self._nothing_sent():
            self._kept_back += 1
            if self._kept_back < _KEPT_BACK:
                return False
            self.wait(self._sent, "the runs before it")
            if not self.runner.could_launch(run):
                return False  # one of them has failed
        self._kept_back = 0
        held_up = self.runner.held_up
        done = self.runner.launch(run)
        self.waited += self.runner.held_up - held_up
        return done

    def _nothing_sent(self) -> bool:
        """Whether the graph runner's thread has done all that it was sent."""
        return self._sent is None or self._sent.state > _SENT

    def take_turns(self, in_turns: bool) -> None:
        """Choose how the following regions are handed over."""
        if self._held and not in_turns:
            self.flush()
        self.in_turns = in_turns

    def flush(self) -> None:
        """Give the runner what has been held back."""
        if self._held:
            for run in self._held:
                self.runner.send(run)
            self._sent = self._held[-1]
            self._held = []
            self._regions_held = 0

    def held_are_quick(self) -> bool:
        """Whether waiting for what is held back would take longer than doing it, and nothing is before it."""
        held = self._held
        return (
            bool(held)
            and self._nothing_sent()
            and sum([run.block.seconds for run in held]) < QUICK
            and all(run.complete and run.block.ready(run.outputs) for run in held)
        )

    def execute_held(self) -> None:
        """Execute what is held back on the calling thread, the owner's.

        Raises:
            BaseException: what a signal handler of the program raises; everything has been executed then.
        """
        try:
            self.runner.execute_here(self._held)
        finally:
            self._held = [run for run in self._held if run.state <= _SENT]
            self._regions_held = 0

    def publish(self, run: BlockRun | None) -> None:
        """Have everything that was issued executed now, and wait for it; from any thread but the runner's.

        Args:
            run: the frozen open run, if there is one.
        """
        last = self.youngest if run is None else run
        for held in tuple(self._held):
            self.runner.send(held)
        if run is not None:
            if run.state is _OPEN:
                run.state = _SENT
            if run.state is _SENT:
                self.runner.send(run)
        if last is not None:
            self.wait(last, "an op from elsewhere")

    def region_over(self) -> bool:
        """A region ended: keep Python within its bound; True if everything must be settled for that."""
        if self.in_turns:
            self._regions_held += 1
            return self._regions_held > self.run_ahead  # a program that reads nothing must not pile up work
        self._ahead.append(self.youngest)
        while len(self._ahead) > self.run_ahead:
            oldest = self._ahead.popleft()
            if oldest is not None:
                self.wait(oldest, "run-ahead limit")
        return False

    def wait(self, run: BlockRun, where: str) -> None:
        """Wait until ``run`` is done."""
        if run.state > _SENT:
            return
        start = time.perf_counter()
        if run.queued:
            if self.runner.land(run):
                self.waited += time.perf_counter() - start
                return
            self.runner.send(run)
        lock = threading.Lock()
        lock.acquire()
        run.waiters.append(lock)
        if run.state <= _SENT:
            limit = self.runner.watchdog
            if not lock.acquire(timeout=limit):
                self.runner.stalled(f"waiting for the graph ({where}), block at {run.block.line}")
                while run.state <= _SENT:
                    lock.acquire(timeout=limit)
        self.waited += time.perf_counter() - start

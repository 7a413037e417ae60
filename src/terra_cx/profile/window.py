"""Recording one window: taps on the skeleton, the handover and the graph runner, for as long as it lasts.

Guarantees:

* What is noted is numbers, strings, and nodes and blocks of the TraceGraph; never a tensor, a slot or a frame of the
  program's. So nothing is alive longer, and liveness (which decides what a block returns) is as without.
* Notes are appended by the thread that they are about; lists are taken apart only when the window is over.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from terra_cx.profile.events import FETCH, UNKNOWN, BlockRunSlice, Op, RunKey, Wait, Window
from terra_cx.profile.sampler import Places, Sampler
from terra_cx.profile.taps import Taps
from terra_cx.run.block_run import BlockRun, State
from terra_cx.run.live_skeleton import LiveSkeleton
from terra_cx.tf.slots import Slot
from terra_cx.tf.xspace import DeviceSession

if TYPE_CHECKING:
    from terra_cx.run.conductor import Conductor
    from terra_cx.run.skeleton import Skeleton

__all__ = ["MOST_EVENTS", "WindowRecorder", "clock", "wait_of"]

MOST_EVENTS = 60_000
"""Notes of one window; a window that reaches them ends."""
_NOTED = 6
"""Items of a note of an op."""
_MARKS = 5

clock = time.perf_counter_ns


def key_of(run: BlockRun) -> RunKey:
    """What a run is known by in a profile."""
    return run.block.uid, run.region, run.start


class WindowRecorder:
    """Records one window of one anchor.

    Args:
        conductor: whose regions they are.
        anchor: the anchor's line.
        first: number of the first region.
        places: says which line of the program Python is at.
    """

    def __init__(
        self,
        conductor: Conductor,
        anchor: str,
        first: int,
        places: Places,
    ) -> None:
        self.window = Window(anchor, first)
        self.problem: str | None = None
        """Why there are no device lanes, in words."""
        self.trace: bytes | None = None
        """What TensorFlow's profiler recorded."""
        self.marks: dict[int, int] = {}
        self._conductor = conductor
        self._runner = conductor.runner
        self._tap_before = conductor.runner.tap
        self._owner = threading.get_ident()
        self._owner_taps, self._runner_taps = Taps(), Taps()
        self._tapped: set[int] = set()
        self._ops: list[Any] = []
        """`_NOTED` items an op, one behind the other: tuples that are kept call up the garbage collector."""
        self._elided: list[tuple[int, int, str, str, int, int]] = []
        self._answered: Any = None
        """The call that the elider has just answered."""
        self._depths: list[tuple[int, int]] = []
        self._issued: dict[RunKey, int] = {}
        self._runs: list[tuple[Any, ...]] = []
        self._idle_from: int | None = None
        self._begun = 0
        self._devices: DeviceSession | None = None
        self.watches_devices = False
        """Whether TensorFlow's profiler was asked to record."""
        self._places = places
        self._sampler = Sampler(self._owner, places, clock)
        self._last: BlockRun | None = None
        """The run handed over last."""

    @property
    def events(self) -> int:
        """How many were noted so far."""
        return len(self._ops) // _NOTED + len(self._elided) + len(self._runs) + len(self.window.waits)

    # -- life ----------------------------------------------------------------------------------------------------
    def open(self) -> None:
        """Begin, between two regions."""
        taps, runner = self._runner_taps, self._runner
        taps.put(runner.path, "send", self._around_send)
        taps.put(runner.path, "receive", self._around_receive)
        taps.put(runner, "_execute", self._around_execute)
        before = self._tap_before = runner.tap
        runner.tap = self._begin_work if before is None else _both(before, self._begin_work)
        self._owner_taps.put(self._conductor.handover, "issue", self._around_issue)
        self._sampler.start()

    def watch_devices(self) -> None:
        """Have TensorFlow's profiler record from here on, between two regions."""
        self.watches_devices = True
        try:
            devices = DeviceSession()
            devices.start()
        except Exception as error:  # noqa: BLE001  # a profiler of the program's is open, or there is none
            self.problem = f"no device lanes: TensorFlow's profiler could not be started ({error})"
            return
        self._devices = devices
        self._mark()
        self.window.devices_from = clock()

    def follows(self, skeleton: Skeleton) -> bool:
        """Whether its ops are noted."""
        return id(skeleton) in self._tapped

    def follow(self, skeleton: Skeleton) -> None:
        """Note the ops of this skeleton, which is in charge of the region that has just begun."""
        self._tapped.add(id(skeleton))
        taps = self._owner_taps
        for name in ("fast", "execute"):
            taps.put(skeleton, name, lambda real: self._around_op(skeleton, real))
        if not isinstance(skeleton, LiveSkeleton):  # there its Python runs, and its ops come by themselves
            taps.put(skeleton, "tape_gradient", lambda real: self._around_op(skeleton, real))
        if skeleton.elider is not None:
            taps.put(skeleton.elider, "call", lambda real: self._around_call(skeleton, real))
            taps.put(skeleton.elider, "_elided", self._around_elided)
        if skeleton.functions is not None:
            taps.put(skeleton.functions, "answered", lambda real: self._around_function(skeleton, real))
        self._conductor.boundary.use(skeleton)

    def close(self) -> None:
        """End it for the owner thread, between two regions; the graph runner may still be at work on it."""
        self._owner_taps.take_out()
        self.window.samples = self._sampler.stop()
        if self._sampler.error is not None:
            self.problem = f"where Python was is not known to the end: {self._sampler.error}"
        self._last = self._conductor.handover.youngest

    @property
    def settled(self) -> bool:
        """Whether the graph runner has done, after `close`, all that was handed over before."""
        return self._last is None or self._last.state > State.SENT

    def finish(self) -> Window:
        """End it for the graph runner too; the window, without its device lanes."""
        self._quiet_runner()
        if self._devices is not None:
            self._mark()
            self.trace = self._devices.stop()
            if self.trace is None:
                why = self._devices.error or "the program used TensorFlow's profiler itself"
                self.problem = f"no device lanes: {why}"
        window = self.window
        window.ops = self._assembled_ops()
        window.runs = [self._assembled_run(*run) for run in self._runs]
        window.depths = sorted(self._depths)
        return window

    def abandon(self) -> None:
        """End it at once, whatever state it is in."""
        self._owner_taps.take_out()
        self._quiet_runner()
        self._sampler.stop()
        if self._devices is not None:
            self._devices.give_up()

    def _quiet_runner(self) -> None:
        self._runner_taps.take_out()
        self._runner.tap = self._tap_before

    def _mark(self) -> None:
        assert self._devices is not None
        for _ in range(_MARKS):
            number = clock()
            self.marks[number] = self._devices.mark(number, clock)

    # -- owner thread --------------------------------------------------------------------------------------------
    def _around_op(self, skeleton: Skeleton, real: Callable[..., Any]) -> Callable[..., Any]:
        note, owner, ident = self._ops.extend, self._owner, threading.get_ident

        def tapped(*args: Any) -> Any:
            start = clock()
            try:
                return real(*args)
            finally:
                runs = skeleton.log.runs
                if runs and ident() == owner:
                    run = runs[-1]
                    note((start, clock(), run.block, run.pos, run.start, run.region))

        return tapped

    def _around_call(self, skeleton: Skeleton, real: Callable[..., Any]) -> Callable[..., Any]:
        """Of a library call that was elided, all time is ours; one that was not has ops of its own."""
        note, places = self._elided.append, self._places

        def tapped(entry: Any, args: Any, kwargs: Any) -> Any:
            self._answered = None
            start = clock()
            result = real(entry, args, kwargs)
            call, self._answered = self._answered, None
            if call is not None:
                end, line = clock(), call.line
                if line == UNKNOWN:  # it has no ops, by which lines are known
                    line = places.line(sys._getframe(1))
                note((start, end, call.entry.name, line, skeleton.position(), skeleton.log.number))
            return result

        return tapped

    def _around_elided(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def tapped(call: Any, leaves: Any) -> Any:
            answer = real(call, leaves)
            self._answered = call if answer is not None else None
            return answer

        return tapped

    def _around_function(self, skeleton: Skeleton, real: Callable[..., Any]) -> Callable[..., Any]:
        """Of a function of TensorFlow's that was elided."""
        note = self._elided.append

        def tapped(known: Any, *args: Any) -> Any:
            start = clock()
            answer = real(known, *args)
            if type(answer) is list:
                line = known.steps[0].node.line
                note((start, clock(), known.function.name, line, skeleton.position(), skeleton.log.number))
            return answer

        return tapped

    def _around_issue(self, real: Callable[..., Any]) -> Callable[..., Any]:
        issued = self._issued

        def tapped(run: BlockRun) -> None:
            issued[key_of(run)] = clock()
            real(run)

        return tapped

    def _around_send(self, real: Callable[..., Any]) -> Callable[..., Any]:
        note, path = self._depths.append, self._runner.path

        def tapped(run: BlockRun) -> None:
            real(run)
            note((clock(), path.depth))

        return tapped

    # -- graph runner --------------------------------------------------------------------------------------------
    def _around_receive(self, real: Callable[..., Any]) -> Callable[..., Any]:
        note, path = self._depths.append, self._runner.path

        def tapped() -> Any:
            self._idle_from = clock()
            run = real()
            note((clock(), path.depth))
            return run

        return tapped

    def _begin_work(self, run: BlockRun, function: Any, feeds: Any) -> None:
        self._begun = self._begun or clock()

    def _around_execute(self, real: Callable[..., Any]) -> Callable[..., Any]:
        note, statistics = self._runs.append, self._runner.statistics

        def tapped(run: BlockRun) -> None:
            self._begun = 0
            idle_from, self._idle_from = self._idle_from, None
            # Before it runs: afterwards it may have let go of them.
            feeds = any(param is not None and type(param) is not Slot for param in run.params)
            compiled, compiling = statistics.compiled_runs, statistics.compile_seconds
            start = clock()
            try:
                real(run)
            finally:
                how = (
                    "compiled"
                    if statistics.compiled_runs > compiled
                    else "first"
                    if statistics.compile_seconds > compiling
                    else "op by op"
                )
                begun = self._begun or start
                note((start, begun, clock(), key_of(run), run.block, run.pos, how, idle_from, feeds))

        return tapped

    # -- afterwards ----------------------------------------------------------------------------------------------
    def _assembled_ops(self) -> list[Op]:
        """Ops and elided calls in order; each stands for the positions since the one before it."""
        found = [
            Op(start, end, name, line, elided=True, region=region, position=position)
            for start, end, name, line, position, region in self._elided
        ]
        notes = iter(self._ops)
        for start, end, block, pos, first, region in zip(*[notes] * _NOTED, strict=True):
            if not pos:
                continue  # it raised in Python's hands, or diverged
            node = block.steps[pos - 1].node
            position = first + (block.positions if pos == len(block.steps) else block.steps[pos].position)
            found.append(Op(start, end, node.call.op, node.line, region=region, position=position))
        found.sort(key=lambda op: op.end)
        reached: dict[int, int] = {}
        for op in found:
            before = reached.get(op.region, 0)
            op.ops = max(0, op.position - before)
            reached[op.region] = max(before, op.position)
        found.sort(key=lambda op: (op.start, -op.end))
        return found

    def _assembled_run(
        self,
        start: int,
        begun: int,
        end: int,
        key: RunKey,
        block: Any,
        pos: int,
        how: str,
        idle_from: int | None,
        feeds: bool,
    ) -> BlockRunSlice:
        nodes = block.nodes
        return BlockRunSlice(
            start,
            begun,
            end,
            key,
            nodes[0].line,
            block.steps[pos - 1].node.line if pos else nodes[0].line,
            block.steps[pos - 1].ops[1] if pos else 0,
            how,
            block.reason or "",
            idle_from,
            feeds,
            self._issued.get(key),
        )


def wait_of(start: int, run: BlockRun, where: str, line: str, slot: Slot | None) -> Wait:
    """What is noted of a wait for a run that begins; ``slot`` is what Python reads, if it is a read."""
    wait = Wait(start, start, FETCH if slot is not None else where, line, key_of(run))
    if slot is not None:
        block = run.block
        node, _ = block.owners[slot.index]
        wait.op, wait.op_line = node.call.op, node.line
        wait.position = run.start + block.places[slot.index][0]
    return wait


def _both(one: Callable[..., None], other: Callable[..., None]) -> Callable[..., None]:
    def told(*args: Any) -> None:
        one(*args)
        other(*args)

    return told

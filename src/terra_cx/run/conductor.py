"""The conductor: moves the owner thread between survey, tracing, co-execution and plain eager, region by region.

It is the only place that decides which handler is in charge of the dispatch boundary. All its methods run on the owner
thread, at anchor visits or inside a divergence.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

from terra_cx.cache.warm import WarmStart
from terra_cx.config import Options
from terra_cx.elide.entries import Entries
from terra_cx.elide.functions import Functions
from terra_cx.observe.importer import UserCode
from terra_cx.reasons import NEEDS_LIVE_TAPES, Reason
from terra_cx.run.anchor import ActiveAnchor, Stage
from terra_cx.run.divergence import Diverge
from terra_cx.run.elider import Elider
from terra_cx.run.elisions import Elisions
from terra_cx.run.fallback import prefix, rebuild, recover
from terra_cx.run.function_elider import FunctionElider
from terra_cx.run.graph_runner import GraphRunner
from terra_cx.run.handover import Handover
from terra_cx.run.live_skeleton import LiveSkeleton
from terra_cx.run.pace import Manner
from terra_cx.run.skeleton import Skeleton
from terra_cx.run.switch_interval import SwitchInterval
from terra_cx.run.uninterrupted import Uninterrupted, has_handlers
from terra_cx.run.warming import Warming
from terra_cx.tf import native
from terra_cx.tf.boundary import Boundary
from terra_cx.tf.native import REAL
from terra_cx.trace.library_calls import CallNotes
from terra_cx.trace.recorder import Recorder
from terra_cx.trace.tracegraph import Node, TraceGraph

__all__ = ["Conductor", "Observer"]

_QUEUE = 256
"""Block runs that may be queued; the run-ahead limit in regions bounds them long before."""


class Observer(Protocol):
    """What ties ops to user statements (`observe.statements.StatementObserver`)."""

    def start(self, anchor_frame: int, *, lines: bool = True) -> None:
        """Observe from here on; without ``lines`` only call paths and loops."""

    def stop(self) -> None:
        """Stop observing."""

    def loop_visit(self, anchor_id: int, frame: Any) -> None:
        """A loop inside the region starts an iteration."""

    def loop_visited(self, anchor_id: int, frame_id: int, code: Any) -> None:
        """As `loop_visit`, for a visit noted earlier."""

    def continue_at(self, site: Any) -> None:
        """Observation starts after an op with this site."""

    def locate(self, frame: Any) -> Any:
        """The site of an op issued below ``frame``."""

    def user_mark(self) -> int:
        """Counts calls of user functions."""


class Conductor:
    """See the module's page."""

    def __init__(
        self,
        options: Options,
        boundary: Boundary,
        observer: Observer,
        internal: Callable[[str, BaseException], None],
        user: UserCode | None = None,
        cache: WarmStart | None = None,
    ):
        self.options = options
        self.boundary = boundary
        self.observer = observer
        self.user = user if user is not None else UserCode()
        self.entries = Entries()
        self.functions = Functions()
        self.internal = internal
        self.runner = GraphRunner(_QUEUE, options.watchdog, self._stalled, options.level)
        self.runner.internal = internal
        self.handover = Handover(self.runner, options.run_ahead)
        self.switch = SwitchInterval()
        self.anchors: dict[int, ActiveAnchor] = {}
        self.warming = Warming(cache, self.anchors, internal)
        self.current: ActiveAnchor | None = None
        self.skeleton: Skeleton | None = None
        self.recorder: Recorder | None = None
        self._diverged_at = 0.0
        self._place: tuple[Node, str] | None = None
        """Where and how the region in progress diverged."""
        self.visits: list[tuple[int, int, Any]] = []
        self._fallback: Any = None
        self._uids = itertools.count()
        self._region_start = 0.0
        self._compiling = 0.0
        self._compared = 0
        self._asked = 0
        self._loop = -1
        self._frame = 0
        self._code: Any = None
        """With `_loop` and `_frame`: where the latest region began, by anchor and id."""
        self._skeletons: dict[int, Skeleton] = {}
        self.owner = threading.get_ident()
        self.on_region: Callable[[str], None] | None = None
        """Called with the anchor's line when a region begins."""

    # -- anchors -------------------------------------------------------------------------------------------------
    def activate(self, anchor_id: int, line: str, eager_times: list[float]) -> ActiveAnchor:
        """Make an anchor active; its next regions are traced."""
        anchor = ActiveAnchor(
            anchor_id,
            line,
            TraceGraph(self.options.max_nodes),
            lambda: next(self._uids),
            needed=self.options.warmup,
        )
        if not self.options.no_elide:
            anchor.elisions = Elisions(self.entries, self._tell)
        anchor.eager_times = eager_times
        anchor.pace.eager = median(eager_times) if eager_times else None
        self.warming.activated(anchor)
        self.anchors[anchor_id] = anchor
        return anchor

    def visit(self, anchor: ActiveAnchor, frame: Any) -> None:
        """An active anchor is visited: the region before ends, the next begins.

        Raises:
            BaseException: a deferred kernel error of the program.
        """
        if not REAL["TFE_Py_TapeSetIsEmpty"]():
            return  # a loop under an open tape is no region boundary
        self.end_region()
        self.begin_region(anchor, frame)

    def begin_region(self, anchor: ActiveAnchor, frame: Any) -> None:
        """Start a region of ``anchor`` in the stage that the anchor is in."""
        if self.on_region is not None:
            self.on_region(anchor.line)
        self.current = anchor
        self._asked = anchor.graph.asked
        self.visits.clear()
        self._region_start = time.perf_counter()
        self._loop = anchor.id
        self._frame = id(frame)  # not the frame: it would keep the user's variables alive
        self._code = frame.f_code
        if anchor.stage is not Stage.CO:
            # What follows runs natively: everything handed over must be done first.
            self.drain()
        if anchor.stage is Stage.GIVEN_UP:
            self.boundary.use(self.boundary.passive)
            self.switch.restore()
            return
        notes = anchor.stage is Stage.CO and anchor.elisions is not None and anchor.elisions.due()
        if notes or native.told_of_ops():
            self.drain()
            self._record(anchor)
            return
        if anchor.stage is Stage.CO and self.options.mode in ("co", "lazy"):
            self._compiling = self.runner.statistics.compile_seconds
            self._compared = _compared(anchor)
            manner = self._manner(anchor)
            if manner is Manner.EAGER:
                self.drain()
                self.boundary.use(self.boundary.passive)
                return
            self.handover.take_turns(manner is Manner.TURNS)
            self.runner.handlers = has_handlers()
            skeleton = self._skeleton(anchor)
            self.runner.start()
            self.switch.shorten()
            self.skeleton = skeleton
            skeleton.begin()
            self.boundary.use(skeleton)
            return
        self._record(anchor)

    @property
    def measures(self) -> bool:
        """Whether the manner of a loop's regions is chosen by measurement."""
        return self.options.mode == "co" and self.options.pace == "measured"

    def _manner(self, anchor: ActiveAnchor) -> Manner:
        if self.measures:
            return anchor.pace.manner
        turns = self.options.mode == "lazy" or self.options.pace == "turns"
        return Manner.TURNS if turns else Manner.OVERLAPPED

    def _skeleton(self, anchor: ActiveAnchor) -> Skeleton:
        found = self._skeletons.get(id(anchor))
        if found is None or found.graph is not anchor.graph:
            found = made = (Skeleton if anchor.live_tapes is None else LiveSkeleton)(
                anchor.graph,
                anchor.block_for,
                self.handover,
                lambda divergence: self.on_divergence(made, divergence),
                sync_errors=self.options.sync_errors,
            )
            found.rebuild = lambda: rebuild(made)
            found.note = lambda: self.on_note(made)
            if anchor.elisions is not None:
                found.elider = Elider(found, anchor.elisions)
                found.functions = FunctionElider(found, anchor.elisions)
            self._skeletons[id(anchor)] = found
        return found

    def _record(self, anchor: ActiveAnchor, notes: bool = True) -> Recorder:
        live = anchor.live_tapes is not None
        relaxed = anchor.graph.relaxed
        recorder = Recorder(self.observer.locate, self.observer.user_mark, live_tapes=live, relaxed=relaxed)
        recorder.limit = self.options.max_nodes
        recorder.on_overrun = self._stop_recording
        # Not in the first trace, whose calls may still build what they need.
        if notes and anchor.elisions is not None and anchor.regions["traced"]:
            self.entries.put(self.boundary)
            self.functions.put(self.boundary)
            anchor.elisions.refresh()
            names, refusals = anchor.elisions.names, anchor.elisions.refusals
            recorder.calls = CallNotes(recorder, self.user, self.entries, names, refusals)
        if native.told_of_ops():
            recorder.refuse(
                Reason.NATIVE_EFFECT, "somebody is told of every op (tf.debugging.enable_check_numerics)"
            )
        with Uninterrupted():
            self.recorder = recorder
            # What is only laid beside stored traces need not be known by the line, and is traced in half the time.
            self.observer.start(self._frame, lines=self.skeleton is not None or not anchor.binds)
            self.boundary.watch_reads(recorder.fetched)
            self.boundary.use(recorder)
        return recorder

    # -- the end of a region -------------------------------------------------------------------------------------
    def end_region(self) -> None:
        """End the region in progress, if any.

        Raises:
            BaseException: a deferred kernel error of the program.
        """
        anchor, skeleton, recorder = self.current, self.skeleton, self.recorder
        if anchor is None:
            return
        if recorder is not None:
            with Uninterrupted():
                self._drop_recorder()
                self._merge(anchor, recorder, skeleton, time.perf_counter() - self._region_start)
        elif skeleton is not None:
            try:
                skeleton.end()
            except BaseException as error:
                if error is self.raised:
                    self.boundary.use(self.boundary.passive)  # the program's own; nothing is open any more
                    self._ended(anchor)
                raise  # Ctrl-C: the region is not over
            self._ended(anchor)
        else:
            self.current = None
            anchor.regions["eager"] += 1
            if anchor.stage is Stage.CO:
                self._paced(anchor, time.perf_counter() - self._region_start)

    def _ended(self, anchor: ActiveAnchor) -> None:
        """A co-executed region is over. The skeleton is in charge until the next one begins."""
        self.current = self.skeleton = None
        seconds = time.perf_counter() - self._region_start
        anchor.co_executed(seconds, True)
        self._paced(anchor, seconds)
        self.warming.co_executed(anchor, self._measured(anchor))

    def _paced(self, anchor: ActiveAnchor, seconds: float, learned: bool = False) -> None:
        """A region of a co-executing anchor has ended, whichever way it ran."""
        if self.measures:
            rare = anchor.graph.asked != self._asked or _compared(anchor) != self._compared
            anchor.paced(seconds, learned or self.runner.statistics.compile_seconds > self._compiling, rare)

    def region_runs(self, frame: Any, covers: Callable[[int, int], bool]) -> bool:
        """Whether ``frame`` is below the loop or function in which the latest region began.

        It is so also where that region goes on in eager, because an evaluation within it was too long to be recorded.

        Args:
            frame: the innermost frame.
            covers: tells whether an anchor's loop holds a byte offset (`observe.anchors.AnchorTable.covers`).
        """
        while frame is not None:
            if id(frame) == self._frame and frame.f_code is self._code:
                return covers(self._loop, frame.f_lasti)
            frame = frame.f_back
        return False

    def leave_region(self) -> None:
        """The program is somewhere else for good: what was recorded of the region is no step and is dropped.

        Raises:
            BaseException: a deferred kernel error of the program.
        """
        if self.recorder is not None:
            with Uninterrupted():
                if self.current is not None and self._fallback is not None and self._place is not None:
                    self.current.in_vain.add(self._place)
                self._fallback = self._place = None
                self._drop_recorder()
        self.pause()
        self.current = None
        self._frame = 0
        self.drain()

    def drain(self) -> None:
        """Wait for everything that was handed over.

        Raises:
            BaseException: a deferred kernel error of the program.
        """
        for skeleton in self._skeletons.values():
            skeleton.drain()
            rebuild(skeleton)

    def _stop_recording(self) -> None:
        self.observer.stop()
        self.boundary.watch_reads(None)
        self.boundary.use(self.boundary.passive)

    def _drop_recorder(self) -> None:
        """The recorded region is over: nothing is in progress."""
        self._stop_recording()
        if self.skeleton is not None:
            self.skeleton.forget()
        self.recorder = self.skeleton = self.current = None

    def _merge(
        self, anchor: ActiveAnchor, recorder: Recorder, skeleton: Skeleton | None, seconds: float
    ) -> None:
        diverged = skeleton is not None
        fell_back = self._fallback is not None  # if neither, the rest was recorded for its library calls
        if fell_back:
            self._fallback.seconds += time.perf_counter() - self._diverged_at
            self._fallback = None
        trace = recorder.trace
        if recorder.overrun:
            if fell_back and self._place is not None:
                anchor.in_vain.add(self._place)
                anchor.co_executed(seconds, False)
            elif diverged:
                anchor.regions["traced"] += 1
            else:
                anchor.outgrew()
            return
        if not diverged and self.warming.passed_over(anchor, trace):
            return
        if trace.refused is not None:
            reason, detail = trace.refused
            anchor.regions["traced"] += 1
            if reason in NEEDS_LIVE_TAPES:
                anchor.go_live(reason, detail)
            else:
                anchor.refused(reason, detail, seconds if fell_back else None)
            return
        if not diverged and self.warming.taken_up(anchor, recorder):
            return
        graph = anchor.graph
        if not diverged:
            anchor.longest = max(anchor.longest, len(trace.calls))
        result = self.warming.merged(anchor, trace)
        if result.outgrown is not None:
            anchor.relax(result.outgrown.op, place_of(result.outgrown.site))
        elif result.endless is not None and anchor.live_tapes is None:
            site = result.endless.site
            anchor.go_live(Reason.NEW_GRADIENT, f"the one at {place_of(site)} has too many histories")
        elif result.reset:
            anchor.retrace()
        elif recorder.calls is not None and anchor.elisions is not None:
            anchor.elisions.learn(trace, recorder.calls.found)
        if anchor.graph.overgrown:
            anchor.give_up(Reason.GRAPH_TOO_LARGE, f"more than {anchor.graph.max_nodes} nodes")
        elif diverged:
            if fell_back:
                anchor.co_executed(seconds, False)
            else:
                anchor.regions["traced"] += 1
            if anchor.stage is Stage.CO:
                self._paced(anchor, seconds, not fell_back or not result.nothing_new)
        elif anchor.graph is not graph or result.reset:
            anchor.traced(True, result.newest)  # it has taught how to learn, and nothing of what
        else:
            # Of a folded graph ways meet at every op: there is no end of edges, though all nodes are known.
            new = result.nodes or result.widened if anchor.graph.folded else not result.nothing_new
            anchor.traced(bool(new), result.newest)

    # -- divergence ----------------------------------------------------------------------------------------------
    def on_divergence(self, skeleton: Skeleton, divergence: Diverge) -> Any:
        """The skeleton met something new: recover, and record the rest of the region.

        Returns:
            The handler that goes on.

        Raises:
            BaseException: as `_recovered`.
        """
        start, line = time.perf_counter(), self._user_line(sys._getframe(1))
        self._place = place = skeleton.here(), str(divergence.detail)

        def fall_back(anchor: ActiveAnchor) -> None:
            self._fallback = anchor.fell_back(divergence.reason, line, divergence.detail)

        anchor = self._recovered(skeleton, fall_back)
        if anchor is None:
            return self.boundary.passive
        with Uninterrupted():
            fall_back(anchor)
            if place in anchor.in_vain:
                # A text is sampled, or an evaluation comes behind the loop: recording that, for nothing, took half as
                # long again, each time.
                skeleton.forget()
                self._go_on_eagerly(anchor)
                return self.boundary.passive
            self._diverged_at = start
            return self._record_rest(anchor, skeleton, False)

    def on_note(self, skeleton: Skeleton) -> Any:
        """Library calls of which nothing is noted come again and again: record the rest of the region with them.

        Returns:
            The handler that goes on.

        Raises:
            BaseException: as `_recovered`.
        """
        self._place = self._fallback = None
        anchor = self._recovered(skeleton, lambda anchor: None)
        if anchor is None:
            return self.boundary.passive
        with Uninterrupted():
            return self._record_rest(anchor, skeleton, True)

    def _recovered(self, skeleton: Skeleton, told: Callable[[ActiveAnchor], None]) -> ActiveAnchor | None:
        """Recover; the anchor of the region that goes on, None if there is none.

        Args:
            skeleton: what is open is its.
            told: called with the anchor if an op fails that was issued before.

        Raises:
            BaseException: a kernel error of an op that Python has already issued; or what a signal handler of the
                program raised, and then the skeleton is still in charge and will diverge again.
        """
        anchor = self.current
        try:
            recover(skeleton)
        except BaseException as error:
            if error is self.raised and anchor is not None:
                # The program's own error: the region goes on eagerly, nothing is merged.
                told(anchor)
                self._go_on_eagerly(anchor)
            raise
        if anchor is None or skeleton is not self.skeleton:
            # Between two regions, where a signal handler of the program has left us.
            self.boundary.use(self.boundary.passive)
            return None
        return anchor

    def _go_on_eagerly(self, anchor: ActiveAnchor) -> None:
        """Nothing of the region in progress is learned; it has been recovered."""
        self.boundary.use(self.boundary.passive)
        self._fallback = self.skeleton = self.current = None
        anchor.co_executed(0.0, False)

    def _record_rest(self, anchor: ActiveAnchor, skeleton: Skeleton, notes: bool) -> Recorder:
        recorder = self._record(anchor, notes)
        for anchor_id, frame_id, code in self.visits:
            self.observer.loop_visited(anchor_id, frame_id, code)
        last = skeleton.here().call.site
        if last is not None:
            self.observer.continue_at(last)
        recorder.limit = max(4 * len(anchor.graph) + 1000, 2 * anchor.longest)
        prefix(skeleton, recorder)
        return recorder

    def pause(self) -> None:
        """Run what is pending and wait, because the process is about to fork, say; the region goes on eagerly.

        Raises:
            BaseException: a deferred kernel error of the program.
        """
        if self.skeleton is not None and self.recorder is None:
            recover(self.skeleton)
            self.boundary.use(self.boundary.passive)
            self.skeleton = self.current = None

    def abandon(self) -> None:
        """Go back to plain eager for good, running whatever is validated but not dispatched."""
        for anchor in self.anchors.values():
            if anchor.stage is not Stage.GIVEN_UP:
                anchor.give_up(Reason.INTERNAL_ERROR, "terra-cx failed, see above")
        if self.recorder is not None:
            with Uninterrupted():
                self._drop_recorder()
        try:
            self.pause()
        except (
            Exception
        ):  # not Ctrl-C: then the skeleton stays in charge, and its next op comes here by a divergence
            self.boundary.use(self.boundary.passive)
            self.skeleton = self.current = None
            raise

    def flush(self) -> None:
        """The program pauses or ends: run what is pending and wait for the runner.

        Raises:
            BaseException: a deferred kernel error of the program.
        """
        if self.recorder is not None:
            # The last region runs on past the loop; what follows is no step and is not learned from.
            self.leave_region()
        self.end_region()
        self.drain()
        self.boundary.use(self.boundary.passive)
        self.switch.restore()

    def save(self) -> None:
        """The run ends: write to the cache what is new."""
        self.warming.ended(self._measured)

    def _measured(self, anchor: ActiveAnchor) -> str | None:
        """How the anchor's regions run best, if that was measured."""
        return anchor.pace.chosen.value if self.measures and anchor.pace.chosen is not None else None

    def close(self) -> None:
        """End the graph runner, and give the libraries their methods back."""
        self.entries.take_back()
        self.functions.take_back()
        self.runner.close()
        self.switch.restore()

    @staticmethod
    def _tell(message: str) -> None:
        sys.stderr.write(f"terra-cx: {message}\n")

    @property
    def raised(self) -> BaseException | None:
        """The last deferred error of the program that was raised."""
        return self.runner.raised

    def overlap(self) -> float | None:
        """The part of the graph runner's busy time in which Python was not waiting for it, 0 to 1."""
        busy = self.runner.statistics.busy
        if not busy or self.options.mode != "co":
            return None
        return max(0.0, min(1.0, 1.0 - self.handover.waited / busy))

    def statistics(self) -> dict[str, Any]:
        """Counters of runner and path channel, for the report."""
        runner, path = self.runner.statistics, self.runner.path.statistics()
        return {
            "compiled_runs": runner.compiled_runs,
            "eager_runs": runner.eager_runs,
            "variants": runner.variants,
            "mismatches": runner.mismatches,
            "unsteady": runner.unsteady,
            "busy_seconds": runner.busy,
            "compile_seconds": runner.compile_seconds,
            "waited_seconds": self.handover.waited,
            "sent": path.sent,
            "max_depth": path.max_depth,
        }

    def levels(self) -> dict[str, Any]:
        """At which level blocks run, for the report."""
        blocks = [block for anchor in self.anchors.values() for block in anchor.blocks]
        return self.runner.leveling.as_dict(blocks)

    def at_risk(self) -> bool:
        """Whether a barrier would have to wait, or raise."""
        if self.skeleton is None or self.recorder is not None or threading.get_ident() != self.owner:
            return False  # nothing is in flight
        return any(skeleton.at_risk() for skeleton in self._skeletons.values())

    def barrier(self) -> None:
        """Control enters or leaves a guarded body: errors of ops issued before must surface before.

        Raises:
            BaseException: a kernel error of an earlier op.
        """
        for skeleton in self._skeletons.values():
            skeleton.barrier()

    def _stalled(self, where: str) -> None:
        frame = sys._current_frames().get(self.owner)
        line = self._user_line(frame) if frame is not None else "?"
        run = self.runner.current
        graph = run.block.line if run is not None else "idle"
        sys.stderr.write(
            f"terra-cx: still {where} after {self.options.watchdog:g} s; Python is at {line}, "
            f"the graph at {graph}\n"
        )

    def _user_line(self, frame: Any) -> str:
        """``file:line`` of the innermost frame of the user's code; of all frames' innermost if there is none."""
        at = self.user.innermost(frame) or frame
        return f"{at.f_code.co_filename}:{at.f_lineno}"


def place_of(site: Any) -> str:
    """``file:line`` of a site, without the folder."""
    return f"{os.path.basename(site.filename)}:{site.line}"


def _compared(anchor: ActiveAnchor) -> int:
    """How many of its elided calls have run to be compared."""
    return anchor.elisions.compared if anchor.elisions is not None else 0

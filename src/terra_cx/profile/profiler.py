"""The profiler of a run: counts all regions and waits, and opens windows in which it looks at everything.

Windows begin at growing distances and the last ones of each anchor are kept, so that a long run costs what a short one
does, in time and in memory. The first comes early, for programs that have few steps; later ones not while the pace is
being measured, and not before all windows together, and one more, are a small part of the time that the anchor's steps
have taken: what a window costs is measured.

Steps of a window do not count for the pace. They are slower than others, so steps seemed to differ by themselves, and
plain eager was run many times more often to be sure that it is slower still.

A failure of ours is told in the profile and ends it; the program does not notice.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from terra_cx.observe.importer import UserCode
from terra_cx.profile.device_lanes import device_lanes
from terra_cx.profile.events import CO_EXECUTED, FETCH, Region, Wait, Window
from terra_cx.profile.sampler import Places
from terra_cx.profile.taps import Taps
from terra_cx.profile.window import MOST_EVENTS, WindowRecorder, clock, wait_of
from terra_cx.run.anchor import ActiveAnchor, Stage
from terra_cx.run.block_run import BlockRun, State
from terra_cx.run.uninterrupted import Uninterrupted
from terra_cx.tf.xspace import tracks

if TYPE_CHECKING:
    from terra_cx.run.conductor import Conductor
    from terra_cx.tf.slots import Slot

__all__ = ["AnchorProfile", "Plan", "Profiler", "WaitCount"]

_KEPT = 2
_MOST_ANCHORS = 16
_ENOUGH = 8
"""Steps of a window that may be taken for all."""
_DEVICES_FROM = 0.75
"""The part of a window before devices are looked at: TensorFlow's profiler costs more than all else."""
_PATIENCE = 64
"""Regions that the graph runner may take to come to a window's end."""
_CONTIGUOUS = 1_000_000
"""Nanoseconds between two regions, in which we have done what is between them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """When windows begin and end, and what they see."""

    first: int = 8
    """Co-executed regions of an anchor before its first window."""
    times: int = 4
    """The factor from one window's place to the next."""
    steps: int = 32
    seconds: float = 0.1
    """A window ends when it has so many regions and is so long."""
    first_seconds: float = 0.03
    """The same of the first one, which is for programs that have few steps."""
    most_steps: int = 1000
    most_seconds: float = 5.0
    """Or when it has so many, or is so long."""
    share: float = 0.02
    """The part of the time of all steps that windows may cost."""
    devices: bool = True
    """Whether TensorFlow's profiler is asked what devices do."""

    def progress(self, first: bool, steps: int, seconds: float, events: int) -> float:
        """How much of a window is over: 1 at its end."""
        wanted = self.first_seconds if first else self.seconds
        enough = min(steps / self.steps, seconds / wanted if wanted else 1.0)
        return max(enough, steps / self.most_steps, seconds / self.most_seconds, events / MOST_EVENTS)


@dataclass(slots=True)
class WaitCount:
    """Waits of one kind: how often, nanoseconds."""

    count: int = 0
    nanoseconds: int = 0


@dataclass(slots=True)
class _Kept:
    """A window, with what TensorFlow's profiler recorded until its lanes are made of it."""

    window: Window
    trace: bytes | None
    marks: dict[int, int]
    problem: str | None


@dataclass(slots=True)
class _Spent:
    """What a window took from the program, in nanoseconds: opening and closing it, and its steps, slower than usual."""

    handling: int = 0
    steps: int = 0
    nanoseconds: int = 0
    median: int = 0

    def cost(self, usual: int) -> int:
        """All of it, where a step usually takes so long.

        By the median of its steps: what was compiled in a window is not what it cost.
        """
        return self.handling + self.steps * max(0, self.median - usual)


@dataclass(slots=True)
class AnchorProfile:
    """What was seen of one anchor: its regions by kind, nanoseconds of these, its windows."""

    anchor: ActiveAnchor
    regions: Counter[str] = field(default_factory=Counter)
    nanoseconds: Counter[str] = field(default_factory=Counter)
    waits: defaultdict[tuple[str, str, str, str], WaitCount] = field(
        default_factory=lambda: defaultdict(WaitCount)
    )
    """By line, reason, and for fetches the op whose value was read and its line."""
    windows: deque[_Kept] = field(default_factory=lambda: deque(maxlen=_KEPT))
    next_at: int = 0
    """Co-executed regions after which the next window begins."""
    spent: list[_Spent] = field(default_factory=list)
    """What each of its windows has cost, also of those that are not kept."""
    _after_first: tuple[int, int] = (0, 0)
    """Co-executed regions up to the end of the first window, and their nanoseconds."""

    def charge(self, nanoseconds: int) -> None:
        """Something was done for the last window."""
        self.spent[-1].handling += nanoseconds

    def seen(self, window: Window) -> None:
        """The last window is over."""
        times = [step.end - step.start for step in window.steps()]
        spent = self.spent[-1]
        spent.steps, spent.nanoseconds = len(times), sum(times)
        spent.median = int(median(times)) if times else 0
        if len(self.spent) == 1:
            self._after_first = self.regions[CO_EXECUTED], self.nanoseconds[CO_EXECUTED]

    def affords(self, share: float) -> bool:
        """Whether one more window such as the last would leave all of them within a part of the steps' time.

        How much slower a window has made its steps is known by those outside of windows. In the first ones blocks
        were compiled, so only those after the first window count.
        """
        count, nanoseconds = self._after_first
        later = self.spent[1:]
        count = self.regions[CO_EXECUTED] - count - sum(one.steps for one in later)
        nanoseconds = self.nanoseconds[CO_EXECUTED] - nanoseconds - sum(one.nanoseconds for one in later)
        if count < _ENOUGH:
            return False
        costs = [one.cost(nanoseconds // count) for one in self.spent]
        return sum(costs) + costs[-1] <= share * sum(self.nanoseconds.values())

    def window(self) -> Window | None:
        """The window that metrics are taken of: the last with enough steps, else the one with most."""
        kept = [each.window for each in self.windows if each.window.steps()]
        enough = [window for window in kept if len(window.steps()) >= _ENOUGH]
        return enough[-1] if enough else max(kept, key=lambda window: len(window.steps()), default=None)


class Profiler:
    """See the module's page.

    Args:
        user: tells the program's code.
        plan: of its windows.
    """

    def __init__(self, user: UserCode, plan: Plan | None = None) -> None:
        self.plan = plan if plan is not None else Plan()
        self.anchors: dict[int, AnchorProfile] = {}
        self.problems: list[str] = []
        self.conductor: Conductor | None = None
        self._places = Places(user.owns)
        self._taps = Taps()
        self._owner = threading.get_ident()
        self._reading: tuple[Slot, int] | None = None
        """What Python is reading, and since when."""
        self._waits: list[Wait] = []
        """What Python is waiting for; more than one if a signal's handler waits as well."""
        self._followed: set[int] = set()
        self._open: WindowRecorder | None = None
        self._closing: WindowRecorder | None = None
        self._since = 0
        self._window_anchor: AnchorProfile | None = None
        self._window_from = 0
        self._region: Region | None = None
        self._of: AnchorProfile | None = None
        self._last_end = 0
        self._failed = False

    # -- life ----------------------------------------------------------------------------------------------------
    def attach(self, conductor: Conductor) -> None:
        """Watch this conductor's regions from now on."""
        self.conductor = conductor
        self._taps.put(conductor, "begin_region", self._around_begin)
        self._taps.put(conductor, "end_region", self._around_end)
        self._taps.put(conductor, "_paced", self._around_paced)
        self._taps.put(conductor.handover, "wait", self._around_wait)

    def finish(self) -> None:
        """The run is over and the graph runner has nothing to do: close what is open, make the device lanes."""
        self._guarded(self._finish)
        self._taps.take_out()

    def windows(self) -> list[Window]:
        """The windows that metrics are taken of, one for each anchor that has one."""
        found = [profile.window() for profile in self.anchors.values()]
        return [window for window in found if window is not None]

    def _finish(self) -> None:
        if self._open is not None:
            self._close()
        if self._closing is not None:
            self._keep()
        for profile in self.anchors.values():
            for kept in profile.windows:
                self._make_lanes(kept)

    def _make_lanes(self, kept: _Kept) -> None:
        problem = kept.problem
        if kept.trace is not None:
            try:
                kept.window.lanes = device_lanes(tracks(kept.trace), kept.marks)
            except Exception as error:  # noqa: BLE001  # another release's XSpace, no reader for it
                problem = f"no device lanes: TensorFlow's profile could not be read ({error})"
        kept.trace = None
        if problem is not None and problem not in self.problems:
            self.problems.append(problem)

    # -- regions -------------------------------------------------------------------------------------------------
    def _around_begin(self, real: Callable[..., None]) -> Callable[..., None]:
        def begin_region(anchor: ActiveAnchor, frame: Any) -> None:
            self._guarded(self._before, anchor)
            real(anchor, frame)
            self._guarded(self._begun, anchor)

        return begin_region

    def _around_end(self, real: Callable[..., None]) -> Callable[..., None]:
        def end_region() -> None:
            kind = self._kind()
            try:
                real()
            finally:
                self._guarded(self._over, kind)

        return end_region

    def _around_paced(self, real: Callable[..., None]) -> Callable[..., None]:
        def paced(*args: Any) -> None:
            if self._open is None:
                real(*args)

        return paced

    def _kind(self) -> str:
        conductor = self.conductor
        assert conductor is not None
        if conductor.recorder is not None:
            return "diverged" if conductor.skeleton is not None else "traced"
        return CO_EXECUTED if conductor.skeleton is not None else "eager"

    def _before(self, anchor: ActiveAnchor) -> None:
        """A region is about to begin: windows are opened and closed here, outside of any region."""
        start = clock()
        profile = self.anchors.get(anchor.id)
        if profile is None:
            profile = self.anchors[anchor.id] = AnchorProfile(anchor, next_at=self.plan.first)
        closed = self._open is None and self._closing is None
        nothing = closed and anchor.regions[CO_EXECUTED] < profile.next_at  # to do: so it is nearly always
        if not nothing and self._turn_over(profile):
            self._last_end = clock()
            if self._window_anchor is not None:
                self._window_anchor.charge(self._last_end - start)
        elif start - self._last_end > _CONTIGUOUS:
            self._last_end = clock()
        start = self._last_end
        self._of = profile
        self._region = Region(start, start, "", -1)

    def _turn_over(self, profile: AnchorProfile) -> bool:
        """Close and open windows as it is time; whether anything was done."""
        changed = False
        if self._closing is not None:
            self._since += 1
            if self._closing.settled or self._since > _PATIENCE:
                self._keep()
                changed = True
        if self._open is not None:
            seconds = (clock() - self._window_from) / 1e9
            first = self._window_anchor is not None and not self._window_anchor.windows
            progress = self.plan.progress(first, len(self._open.window.regions), seconds, self._open.events)
            if progress >= 1:
                self._open.window.truncated = self._open.events >= MOST_EVENTS
                self._close()
                changed = True
            elif progress >= _DEVICES_FROM and self.plan.devices and not self._open.watches_devices:
                with Uninterrupted():
                    self._open.watch_devices()
                changed = True
        elif self._closing is None and self._is_time(profile):
            self._begin_window(profile)
            changed = True
        return changed

    def _is_time(self, profile: AnchorProfile) -> bool:
        anchor, conductor = profile.anchor, self.conductor
        assert conductor is not None
        done = anchor.regions[CO_EXECUTED]
        if anchor.stage is not Stage.CO or done < profile.next_at or len(self.anchors) > _MOST_ANCHORS:
            return False
        if not profile.spent:
            return True
        if profile.affords(self.plan.share):
            return not (conductor.measures and anchor.pace.measuring)
        profile.next_at = done + 1 + done // 16  # to ask at each step would cost a little, too
        return False

    def _begin_window(self, profile: AnchorProfile) -> None:
        conductor = self.conductor
        assert conductor is not None
        done = profile.anchor.regions[CO_EXECUTED]
        opened = WindowRecorder(conductor, profile.anchor.line, done, self._places)
        profile.spent.append(_Spent())
        profile.next_at = max(done, 1) * self.plan.times
        with Uninterrupted():
            self._open, self._window_anchor = opened, profile
            opened.open()
        self._window_from = clock()

    def _close(self) -> None:
        assert self._open is not None
        with Uninterrupted():
            self._open.close()
            self._open, self._closing, self._since = None, self._open, 0

    def _keep(self) -> None:
        done, self._closing = self._closing, None
        assert done is not None
        assert self._window_anchor is not None
        with Uninterrupted():
            window = done.finish()
        self._window_anchor.seen(window)
        self._window_anchor.windows.append(_Kept(window, done.trace, done.marks, done.problem))

    def _begun(self, anchor: ActiveAnchor) -> None:
        conductor, region = self.conductor, self._region
        assert conductor is not None
        skeleton = conductor.skeleton
        if skeleton is None or region is None:
            return
        region.number = skeleton.log.number
        region.manner = "in turns" if conductor.handover.in_turns else "overlapped"
        if id(skeleton) not in self._followed:
            self._followed.add(id(skeleton))
            self._taps.put(skeleton, "fetch", self._around_fetch)
        if self._open is not None and self._window_anchor is self._of and not self._open.follows(skeleton):
            with Uninterrupted():
                self._open.follow(skeleton)

    def _over(self, kind: str) -> None:
        conductor, region, profile = self.conductor, self._region, self._of
        assert conductor is not None
        if region is None or profile is None or conductor.current is not None:
            return
        self._region = None
        region.end = self._last_end = clock()
        region.kind = kind
        profile.regions[kind] += 1
        profile.nanoseconds[kind] += region.end - region.start
        if self._open is not None and self._window_anchor is profile:
            self._open.window.regions.append(region)

    # -- waits ---------------------------------------------------------------------------------------------------
    def _around_fetch(self, real: Callable[..., None]) -> Callable[..., None]:
        def fetch(slot: Slot) -> None:
            if threading.get_ident() != self._owner:
                return real(slot)
            self._reading = slot, clock()
            try:
                return real(slot)
            finally:
                self._reading = None

        return fetch

    def _around_wait(self, real: Callable[..., None]) -> Callable[..., None]:
        def wait(run: BlockRun, where: str) -> None:
            if run.state > State.SENT or threading.get_ident() != self._owner:
                return real(run, where)
            # What it is for is worked out before: meanwhile the graph is at work.
            self._guarded(self._waiting, clock(), run, where, sys._getframe(1))
            try:
                return real(run, where)
            finally:
                self._guarded(self._waited)

        return wait

    def _waiting(self, start: int, run: BlockRun, where: str, frame: Any) -> None:
        slot = None
        if self._reading is not None and where == FETCH:
            slot, start = (
                self._reading
            )  # handing over what is read, and losing the interpreter, is part of it
        self._waits.append(wait_of(start, run, where, self._places.line(frame), slot))

    def _waited(self) -> None:
        wait = self._waits.pop()
        wait.end = clock()
        if self._of is not None:
            count = self._of.waits[wait.line, wait.why, wait.op, wait.op_line]
            count.count += 1
            count.nanoseconds += wait.end - wait.start
        if self._open is not None:
            self._open.window.waits.append(wait)

    # -- failures ------------------------------------------------------------------------------------------------
    def _guarded(self, what: Callable[..., None], *args: Any) -> None:
        """Do something of ours; if it fails, there is no more profiling, and the program goes on."""
        if self._failed:
            return
        try:
            what(*args)
        except Exception as error:  # noqa: BLE001
            self._failed = True
            self.problems.append(f"profiling ended early: {type(error).__name__}: {error}")
            self._taps.take_out()
            for recorder in (self._open, self._closing):
                if recorder is not None:
                    recorder.abandon()
            self._open = self._closing = None

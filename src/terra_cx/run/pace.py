"""The pace of an anchor: whether its regions run overlapped, in turns, or in plain eager, as measured.

Overlap pays where a region's graph takes longer than handing it over. Handing over has a price that no setting
removes: each run wakes the graph runner, and each return from a kernel takes the interpreter from the owner thread. A
multi-layer perceptron at batch 32 (0.9 ms of Python, 0.1 ms of graph) took 1.0 ms a step in turns and 1.4 ms
overlapped; a ResNet (190 ms eager) 75 ms in turns and 60 ms overlapped. No figure known beforehand tells the two apart
on another machine, so windows of regions are timed in each manner, alternately, and the faster one is kept. Then a few
regions run in eager: what is not faster than that does not pay and is given up.

What the windows hold is the whole region, the program's own Python included. The least of a manner's windows counts:
what else happens now and then (an evaluation, a checkpoint, another process) only ever adds.

The choice is looked at again, at growing distances. Eager then has its turn only where it could win: eight eager
regions take as long as hundreds of a Keras step whose library calls are elided.

Where regions differ by themselves (trip counts, lengths of texts), the least of the windows is the one that had luck.
Then the mean of all counts, eager is measured as often as the faster manner, and the windows go on until the means are
further apart than chance would have them, or enough were measured.

Windows are compared with each other, so the program has to be the same in all of them. Where regions suddenly take
another time than in all earlier windows of a manner (a replay buffer is full, a head was added to the network), these
are forgotten, and each manner has one window beside the others.

Where the first window of each manner is clearly slower than eager was before, the eager windows come at once: a loop
that gains nothing is given back after some 60 regions instead of 140. Where regions differ by themselves they have to
take half as long again, for that, and windows go on until it is sure as ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from math import hypot
from statistics import fmean, median, quantiles, stdev

__all__ = ["Manner", "Pace"]

SETTLE = 4
"""Regions at the start of a window that are not counted: work of the window before is still in flight."""
COUNTED = 10
ROUNDS = 3
CLEAR, CLEARLY = 3, 1.2
"""An eager window ends early if, after so many regions, eager takes so many times as long as the faster manner."""
HOPELESS = 1.5
"""Where regions differ by themselves, eager has its turn at once if the faster manner takes so many times as long."""
FAR = 2.0
"""Eager that took so many times as long as the faster manner when it was measured is not measured again."""
SPREAD = 0.5
"""Regions differ by themselves if the middle half of them spreads over more than this part of the median."""
MOST = 90
"""Regions in a manner after which means decide, however close."""
MARGIN = 0.97
"""In turns, or eager, is chosen only if it takes less than this part of the other's time."""
RETRIES = 4
"""Windows in which something was compiled are measured again, so often in a row."""
CHANGES = 3
"""How often windows are forgotten in one measurement."""
EXCUSED, EXCUSED_SECONDS = 256, 5.0
"""Regions that do not count because what they took is rare, and their seconds: with more, it is not."""
AGAIN, AT_MOST = 200, 3200
"""Regions from one choice to the next measurement; twice as many each time."""


class Manner(Enum):
    """How a region that could be co-executed runs."""

    OVERLAPPED = "overlapped"
    TURNS = "in turns"
    EAGER = "eager"


@dataclass(slots=True)
class Pace:
    """See the module's page. Told about every region of a co-executing anchor, it says how the next one runs."""

    manner: Manner = Manner.OVERLAPPED
    seconds: dict[Manner, float] = field(default_factory=dict)
    """Seconds per region as measured last."""
    chosen: Manner | None = None
    eager: float | None = None
    """Seconds per region in eager, before anything was co-executed; a hint, which shortens the first measurement."""
    _windows: list[Manner] = field(default_factory=lambda: _plan())
    _number: int = 0
    _regions: int = 0
    _window: list[float] = field(default_factory=list)
    _retries: int = 0
    _changes: int = 0
    _excused: int = 0
    _excused_seconds: float = 0.0
    _rest: int = 0
    _interval: int = AGAIN
    _times: dict[Manner, list[list[float]]] = field(default_factory=dict)
    """Seconds of the regions that count, window by window."""

    def ms(self, manner: Manner) -> float:
        """Milliseconds per region in a manner that was measured."""
        return self.seconds[manner] * 1e3

    @property
    def measuring(self) -> bool:
        """Whether regions are being timed, to choose how later ones run."""
        return bool(self._windows)

    def resume(self, manner: Manner) -> None:
        """Begin with what was chosen in another process; it is measured again when a choice is due."""
        self.manner = self.chosen = manner
        self._windows = []
        self._rest = self._interval

    def ended(self, seconds: float, disturbed: bool, rare: bool = False) -> None:
        """A region ended.

        Args:
            seconds: what it took.
            disturbed: whether something was compiled or learned meanwhile, which will not happen again.
            rare: whether it had work that the next ones hardly have: sizes that no region had before, library calls
                that were compared with the real ones.
        """
        if self.chosen is not None and not self._windows:
            self._rest -= 1
            if self._rest <= 0:
                self._begin(_plan())
            return
        if rare and self._excused < EXCUSED and self._excused_seconds < EXCUSED_SECONDS:
            self._excused += 1
            self._excused_seconds += seconds
            return
        if disturbed and self._retries < RETRIES:
            self._retries += 1
            self._regions, self._window = 0, []
            return
        self._regions += 1
        if self._regions > (1 if self.manner is Manner.EAGER else SETTLE):
            self._window.append(seconds)
            if len(self._window) == COUNTED or (len(self._window) >= CLEAR and self._is_clear()):
                self._window_over()

    def _is_clear(self) -> bool:
        if self.manner is not Manner.EAGER:
            return False
        other = self._cost(self._faster())
        clearly = CLEARLY
        if self._varies():
            # A few regions may be the long ones; not so if those before anything was co-executed took as long.
            clearly = FAR if self.eager is not None and self.eager > FAR * other else 2 * FAR
        return fmean(self._window) > clearly * other

    def _is_slower(self) -> bool:
        """Whether eager takes so much longer than the faster manner that it need not be measured twice."""
        return self._cost(Manner.EAGER) > CLEARLY * self._cost(self._faster())

    def _begin(self, windows: list[Manner]) -> None:
        self._windows, self._number, self._times, self._changes = windows, 0, {}, 0
        self._open()

    def _open(self) -> None:
        self.manner = self._windows[self._number]
        self._regions, self._window, self._retries = 0, [], 0

    def _window_over(self) -> None:
        if self._has_changed():
            self._changes += 1
            self._times, self._number, self.eager = {}, 0, None
            self._windows = [self.manner, *(manner for manner in Manner if manner is not self.manner)]
        self._times.setdefault(self.manner, []).append(self._window)
        self._number += 1
        if self._number == 2 and self._is_hopeless():
            self._windows = self._windows[:2]
        if self._number < len(self._windows):
            self._open()
        elif Manner.EAGER in self._times:
            if not self._is_sure():
                self._go_on(Manner.EAGER, self._faster())
            elif self._changes or self._is_slower() or len(self._times[Manner.EAGER]) > 1:
                self._choose()
            else:
                self._go_on(Manner.EAGER)
        elif self.seconds.get(Manner.EAGER, 0.0) > FAR * self._cost(self._faster()):
            self._times[Manner.EAGER] = [[self.seconds[Manner.EAGER]]]
            self._choose()
        else:
            self._go_on(Manner.EAGER, self._faster())

    def _has_changed(self) -> bool:
        """Whether the program does something else than in all earlier windows of this manner."""
        earlier = [median(window) for window in self._times.get(self.manner, ())]
        if not earlier or self._changes == CHANGES:
            return False
        now = median(self._window)
        return now > FAR * max(earlier) or FAR * now < min(earlier)

    def _go_on(self, *windows: Manner) -> None:
        self._windows = [*self._windows, *windows]
        self._open()

    def _cost(self, manner: Manner) -> float:
        """Seconds per region."""
        windows = self._times[manner]
        return fmean(chain(*windows)) if self._varies() else min(map(fmean, windows))

    def _varies(self) -> bool:
        """Whether regions differ by themselves."""
        for windows in self._times.values():
            times = list(chain(*windows))
            if len(times) >= COUNTED:
                first, median, third = quantiles(times, n=4)
                if third - first > SPREAD * median:
                    return True
        return False

    def _is_sure(self) -> bool:
        """Whether eager and the faster manner are further apart than chance, or were measured often enough."""
        if not self._varies():
            return True
        eager, other = (list(chain(*self._times[manner])) for manner in (Manner.EAGER, self._faster()))
        if min(len(eager), len(other)) >= MOST:
            return True
        error = hypot(stdev(eager) / len(eager) ** 0.5, stdev(other) / len(other) ** 0.5)
        return abs(fmean(eager) - fmean(other)) > (2 if len(eager) >= ROUNDS * COUNTED else 4) * error

    def _is_hopeless(self) -> bool:
        """Whether both manners are clearly slower than eager was, so that eager has its turn at once."""
        if self.chosen is not None or self.eager is None:
            return False
        clearly = HOPELESS if self._varies() else CLEARLY  # what eager took is known of a few regions only
        return min(map(self._cost, self._times)) > clearly * self.eager

    def _faster(self) -> Manner:
        overlapped, turns = self._cost(Manner.OVERLAPPED), self._cost(Manner.TURNS)
        return Manner.TURNS if turns < MARGIN * overlapped else Manner.OVERLAPPED

    def _choose(self) -> None:
        self.seconds = {manner: self._cost(manner) for manner in self._times}
        best = self._faster()
        if self.seconds[Manner.EAGER] < MARGIN * self.seconds[best]:
            best = Manner.EAGER
        self.manner = self.chosen = best
        self._windows = []
        self._rest = self._interval
        self._interval = min(2 * self._interval, AT_MOST)


def _plan() -> list[Manner]:
    return [Manner.OVERLAPPED, Manner.TURNS] * ROUNDS

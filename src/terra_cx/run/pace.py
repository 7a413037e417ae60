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

Where the first window of each manner is clearly slower than eager was before, the eager windows come at once: a loop
that gains nothing is given back after some 60 regions instead of 140.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Manner", "Pace"]

SETTLE = 4
"""Regions at the start of a window that are not counted: work of the window before is still in flight."""
COUNTED = 10
ROUNDS = 3
CLEAR, CLEARLY = 3, 1.2
"""An eager window ends early if, after so many regions, eager takes so many times as long as the faster manner."""
FAR = 2.0
"""Eager that took so many times as long as the faster manner when it was measured is not measured again."""
MARGIN = 0.97
"""In turns, or eager, is chosen only if it takes less than this part of the other's time."""
RETRIES = 4
"""Windows in which something was compiled are measured again, so often in a row."""
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
    _sum: float = 0.0
    _retries: int = 0
    _rest: int = 0
    _interval: int = AGAIN
    _measured: dict[Manner, float] = field(default_factory=dict)

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

    def ended(self, seconds: float, disturbed: bool) -> None:
        """A region ended.

        Args:
            seconds: what it took.
            disturbed: whether something was compiled or learned meanwhile, which will not happen again.
        """
        if self.chosen is not None and not self._windows:
            self._rest -= 1
            if self._rest <= 0:
                self._begin(_plan())
            return
        if disturbed and self._retries < RETRIES:
            self._retries += 1
            self._regions, self._sum = 0, 0.0
            return
        self._regions += 1
        counted = self._regions - (1 if self.manner is Manner.EAGER else SETTLE)
        if counted > 0:
            self._sum += seconds
            mean = self._sum / counted
            if counted == COUNTED or (counted >= CLEAR and self._is_clear(mean)):
                self._window_over(mean)

    def _is_clear(self, mean: float) -> bool:
        return self.manner is Manner.EAGER and mean > CLEARLY * self._measured[self._faster()]

    def _begin(self, windows: list[Manner]) -> None:
        self._windows, self._number, self._measured = windows, 0, {}
        self._open()

    def _open(self) -> None:
        self.manner = self._windows[self._number]
        self._regions, self._sum, self._retries = 0, 0.0, 0

    def _window_over(self, mean: float) -> None:
        self._measured[self.manner] = min(mean, self._measured.get(self.manner, mean))
        self._number += 1
        if self._number == 2 and self._is_hopeless():
            self._windows = [*self._windows[:2], Manner.EAGER, self._faster(), Manner.EAGER]
        if self._number < len(self._windows):
            self._open()
        elif Manner.EAGER in self._measured:
            self._choose()
        elif self.seconds.get(Manner.EAGER, 0.0) > FAR * self._measured[self._faster()]:
            self._measured[Manner.EAGER] = self.seconds[Manner.EAGER]
            self._choose()
        else:
            self._windows = [*self._windows, Manner.EAGER, self._faster(), Manner.EAGER]
            self._open()

    def _is_hopeless(self) -> bool:
        """Whether both manners are clearly slower than eager was, so that no further rounds are spent on them."""
        return (
            self.chosen is None
            and self.eager is not None
            and min(self._measured.values()) > CLEARLY * self.eager
        )

    def _faster(self) -> Manner:
        overlapped, turns = self._measured[Manner.OVERLAPPED], self._measured[Manner.TURNS]
        return Manner.TURNS if turns < MARGIN * overlapped else Manner.OVERLAPPED

    def _choose(self) -> None:
        self.seconds = self._measured
        best = self._faster()
        if self._measured[Manner.EAGER] < MARGIN * self._measured[best]:
            best = Manner.EAGER
        self.manner = self.chosen = best
        self._windows = []
        self._rest = self._interval
        self._interval = min(2 * self._interval, AT_MOST)


def _plan() -> list[Manner]:
    return [Manner.OVERLAPPED, Manner.TURNS] * ROUNDS

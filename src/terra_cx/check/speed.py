"""Steady step times, from the laps of a run's second half."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MIN_LAPS", "Speed", "step_ms"]

WINDOW = 10  # steps
MIN_LAPS = 2 * WINDOW


def step_ms(laps: Sequence[float]) -> float | None:
    """Milliseconds of a step, the median over windows of ten; None if there are not even two windows.

    Windows, because a program that reads a loss every ten steps lets Python run ahead in between, and a single step
    says little. The median, because the end of an epoch or a garbage collection is no part of a step.

    Args:
        laps: seconds of each step, without those in which tracing and compiling happened.
    """
    if len(laps) < MIN_LAPS:
        return None
    whole = len(laps) // WINDOW * WINDOW
    return 1e3 * statistics.median(
        statistics.fmean(laps[index : index + WINDOW]) for index in range(0, whole, WINDOW)
    )


@dataclass(frozen=True, slots=True)
class Speed:
    """Step times of one program in both modes, or why they cannot be told."""

    eager_ms: float | None
    co_ms: float | None
    unknown: str = ""

    @property
    def ratio(self) -> float | None:
        """Co-executed step time over eager step time."""
        return self.co_ms / self.eager_ms if self.co_ms and self.eager_ms else None

    @staticmethod
    def of(eager_laps: Sequence[float], co_laps: Sequence[float]) -> Speed:
        """Compare two runs that were timed at the same place."""
        eager, co = step_ms(eager_laps), step_ms(co_laps)
        if eager is not None and co is not None:
            return Speed(eager, co)
        fewest = min(len(eager_laps), len(co_laps))
        return Speed(None, None, f"{fewest} steps in the second half, {MIN_LAPS} needed")

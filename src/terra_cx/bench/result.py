"""How far a run is from eager: identical, rounding, or wrong.

All values that reached Python are compared by their relative distance (`check.nearness`): a run whose furthest value is
within a hundredth of eager's is said to round. Where there are no two numbers to compare (an output alone, a value more
or less) it is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from terra_cx.check.compare import Difference
from terra_cx.check.nearness import ROUNDING, distance, furthest
from terra_cx.check.runs import Run
from terra_cx.check.stream import read

__all__ = ["result_of"]


def result_of(found: Sequence[Difference], truth: Run, run: Run) -> tuple[str, str]:
    """The word for a run, and what is behind it.

    Args:
        found: its differences from eager, as `check.compare` finds them.
        truth: the eager run.
        run: the other one.
    """
    if not found:
        return "identical", ""
    first = found[0]
    near = distance(*first.pair) if first.pair is not None else None
    if near is None:
        return "wrong", str(first)
    far = near if first.what == "variable" else _furthest(truth, run)
    if far is None or far > ROUNDING:
        return "wrong", str(first) + (f" (and values up to {far:.0%} apart)" if far is not None else "")
    return "rounding", f"first by {near:.0e} of the value, at most by {far:.0e}: {first}"


def _furthest(truth: Run, run: Run) -> float | None:
    """The largest distance of any two values of the streams; None if some cannot be compared."""
    try:
        pairs = zip(read(truth.stream), read(run.stream), strict=True)
        return furthest((left.value, right.value) for left, right in pairs)
    except ValueError:  # one stream is longer
        return None

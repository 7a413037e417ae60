"""How far a run is from eager: identical, rounding, or wrong.

Compilers of whole graphs may reorder arithmetic, so the last bits may differ without anything being wrong. Training
then carries the difference on. So all values that reached Python are compared by their relative distance: a run whose
furthest value is within a hundredth of eager's is said to round. Where there are no two numbers to compare (an output
alone, a value more or less, elements that are not among those that the stream shows) it is wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from terra_cx.check.compare import Difference
from terra_cx.check.runs import Run
from terra_cx.check.stream import Value, read

__all__ = ["ROUNDING", "distance", "result_of"]

ROUNDING = 1e-2

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf|nan)")


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
    largest = 0.0
    try:
        for left, right in zip(read(truth.stream), read(run.stream), strict=True):
            if left.value.same(right.value):
                continue
            apart = distance(left.value, right.value)
            if apart is None:
                return None
            largest = max(largest, apart)
    except ValueError:  # one stream is longer
        return None
    return largest


def distance(one: Value, other: Value) -> float | None:
    """The largest distance of the floating point numbers that are shown, relative to the largest of them.

    None if there is nothing to compare: other types or shapes, NaN, or a difference that is not shown.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape) or "float" not in one.dtype:
        return None
    if one.text == other.text:
        return None
    lefts, rights = ([float(word) for word in _NUMBER.findall(value.text)] for value in (one, other))
    if not lefts or len(lefts) != len(rights) or not all(map(math.isfinite, lefts + rights)):
        return None
    largest = max(map(abs, lefts + rights))
    furthest = max(abs(a - b) for a, b in zip(lefts, rights, strict=True))
    return furthest / largest if largest else 0.0  # zeros of either sign

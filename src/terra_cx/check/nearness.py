"""How far values are from eager's where they need not be equal: at a level above `exact`, or under a compiler.

Compilers of whole graphs reorder arithmetic, so the last bits may differ without anything being wrong, and training
carries the difference on. Values of floating point types are compared by relative distance: of a few numbers, their
largest difference over the largest of them; of many, the length of the difference over that of the value, as the
sketches tell it (`stream.sketch`). Everything else must be equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from terra_cx.check.stream import Value

__all__ = ["ROUNDING", "distance", "furthest", "near_text"]

ROUNDING = 1e-2
"""A run whose furthest value is within this part of eager's is said to round, not to be wrong."""

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf|nan)")
_FRACTION = re.compile(r"[-+]?\d+(?:\.\d*(?:e[-+]?\d+)?|e[-+]?\d+)")


def distance(one: Value, other: Value) -> float | None:
    """The relative distance of two floating point values.

    None if there is nothing to compare: other types or shapes, NaN, or a difference that is not shown.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape) or "float" not in one.dtype:
        return None
    if one.sketch and other.sketch:
        return _of_sketches(one.sketch, other.sketch)
    if one.text == other.text:
        return None
    lefts, rights = ([float(word) for word in _NUMBER.findall(value.text)] for value in (one, other))
    if not lefts or len(lefts) != len(rights) or not all(map(math.isfinite, lefts + rights)):
        return None
    largest = max(map(abs, lefts + rights))
    far = max(abs(a - b) for a, b in zip(lefts, rights, strict=True))
    return far / largest if largest else 0.0  # zeros of either sign


def _of_sketches(one: tuple[float, ...], other: tuple[float, ...]) -> float | None:
    length = max(one[0], other[0])
    if not all(map(math.isfinite, (*one, *other))):
        return None
    squares = [(a - b) ** 2 for a, b in zip(one[1:], other[1:], strict=True)]
    return math.sqrt(sum(squares) / len(squares)) / length if length else 0.0


def furthest(pairs: Iterable[tuple[Value, Value]]) -> float | None:
    """The largest distance of any pair that is not the same; None if one cannot be compared."""
    largest = 0.0
    for left, right in pairs:
        if left.same(right):
            continue
        apart = distance(left, right)
        if apart is None:
            return None
        largest = max(largest, apart)
    return largest


def near_text(one: str, other: str, tolerance: float) -> bool:
    """Whether two lines say the same in words, and in numbers with a point or an exponent almost the same."""
    if _FRACTION.sub("#", one) != _FRACTION.sub("#", other):
        return False
    return all(
        _near(float(a), float(b), tolerance, _unit(a, b))
        for a, b in zip(_FRACTION.findall(one), _FRACTION.findall(other), strict=True)
    )


def _near(a: float, b: float, tolerance: float, unit: float) -> bool:
    return abs(a - b) <= tolerance * max(abs(a), abs(b)) + unit


def _unit(*words: str) -> float:
    """The last place that is printed: a number that was rounded there may be one off."""
    places = []
    for word in words:
        digits, _, exponent = word.partition("e")
        places.append(10.0 ** (int(exponent or 0) - len(digits.partition(".")[2])))
    return max(places) * 1.000001

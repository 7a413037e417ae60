"""How far a block's results at a level are from eager's, and how far they may be.

The measure is of tensors, not of their elements: the largest difference in parts of the largest element. An element
that is small because large ones cancelled has the absolute error of the large ones, at every level and in eager itself.

Where a whole tensor is such a remainder (the gradient of a bias before a batch normalisation is nothing else), even
that measure tells nothing: eager's own result is rounding alone. So a tensor that is further off gets a second opinion.
The block is computed again by eager's own kernels with all its floating point inputs, and the variables that it writes,
moved by one unit in the last place, at random up or down. If that moves the tensor, no order of its sums is worth more,
and a level may be off `levels.SENSITIVITY` times as far.

Dtype, shape, NaN and infinities must agree, integers, booleans and strings bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from terra_cx.levels import SENSITIVITY, TOLERANCE
from terra_cx.run.verify import same_bits
from terra_cx.tf import native

__all__ = ["PROBES", "apart", "moved_by_one", "too_far"]

PROBES = 2
"""How often the inputs are moved for a second opinion."""

Values = list[Any]


def apart(got: Any, truth: Any) -> tuple[float, float]:
    """How far two real tensors are apart.

    Returns:
        The largest difference of two elements, infinite where the tensors cannot be compared by numbers; and the
        largest absolute value among the finite elements of ``truth``.
    """
    if same_bits(got, truth):
        return 0.0, 0.0
    enum = truth._datatype_enum()
    if got._datatype_enum() != enum or got._shape_tuple() != truth._shape_tuple() or enum not in TOLERANCE:
        return math.inf, 0.0
    ours, eagers = (_wide(native.host_value(tensor)) for tensor in (got, truth))
    finite = np.isfinite(eagers)
    if not np.array_equal(finite, np.isfinite(ours)):
        return math.inf, 0.0
    if not np.array_equal(ours[~finite], eagers[~finite], equal_nan=True):
        return math.inf, 0.0
    if not finite.any():
        return 0.0, 0.0
    ours, eagers = ours[finite], eagers[finite]
    return float(np.max(np.abs(ours - eagers))), float(np.max(np.abs(eagers)))


def _wide(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.atleast_1d(array).astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def too_far(got: Values, truth: Values, probe: Callable[[int], Values]) -> str | None:
    """Judge a block's results at a level.

    Args:
        got: its results, real tensors.
        truth: eager's.
        probe: computes eager's results from inputs that are moved by one unit in the last place, given a number from
            0 to `PROBES` - 1.

    Returns:
        None if all are close enough, or what is not, in words.
    """
    doubtful: dict[int, tuple[float, float]] = {}
    for index, (ours, eagers) in enumerate(zip(got, truth, strict=True)):
        difference, scale = apart(ours, eagers)
        if math.isinf(difference):
            return f"{_named(eagers)} cannot be compared with eager's or are not equal"
        allowed = TOLERANCE.get(eagers._datatype_enum(), 0.0) * scale
        if difference > allowed:
            doubtful[index] = difference, allowed
    if not doubtful:
        return None
    moves = dict.fromkeys(doubtful, 0.0)
    for number in range(PROBES):
        moved = probe(number)
        for index in doubtful:
            move, _ = apart(moved[index], truth[index])
            moves[index] = max(moves[index], move if math.isfinite(move) else 0.0)
    for index, (difference, allowed) in doubtful.items():
        most = allowed + SENSITIVITY * moves[index]
        if difference > most:
            return f"{_named(truth[index])} up to {difference:.1e} from eager's, {most:.1e} allowed"
    return None


def _named(tensor: Any) -> str:
    return f"values of type {native.dtype_of(tensor._datatype_enum()).name} and shape {tensor._shape_tuple()}"


def moved_by_one(tensor: Any, rng: np.random.Generator) -> Any:
    """A floating point tensor with each element one unit in the last place up or down; any other tensor as it is.

    Zeros stay zeros: most are no rounded numbers but a mask, a padding, a beginning.
    """
    enum = tensor._datatype_enum()
    if enum not in TOLERANCE:
        return tensor
    array = native.host_value(tensor)
    unit = float(np.finfo(array.real.dtype).eps) if array.dtype.kind in "fc" else 2.0**-7  # bfloat16
    factors = np.where(rng.integers(0, 2, array.shape), 1.0 + unit, 1.0 - unit)
    return native.as_tensor(np.asarray(np.asarray(array * factors).astype(array.dtype)))

"""The first run of every compiled block is compared, bit for bit, with the same ops run one by one.

The one-by-one run is the truth: its values go to Python and its state stays. The compiled function then runs once more
from the same starting state, and its outputs and the variables it wrote are compared. A block that differs is compiled
again with an ``Identity`` on every edge (kernels that oneDNN merged across ops no longer meet); if it still differs it
runs op by op for ever, and the report says so. But where eager's kernels themselves give other bits each time (on GPUs,
unless ``tf.config.experimental.enable_op_determinism`` is called), a block may be off as far as rounding is. A relaxed
block is compared again at sizes that are new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from terra_cx.compile.blocks import Block
from terra_cx.tf import native
from terra_cx.tf.opdefs import Kind

__all__ = ["Snapshot", "is_to_be_verified", "same_bits"]

_MOST_SIZES = 4096
"""Combinations of sizes that are remembered of a block."""
_OPAQUE = frozenset({20, 21})  # resource, variant


def same_bits(a: Any, b: Any) -> bool:
    """Whether two real tensors are equal in dtype, shape and every bit (NaN equals the same NaN)."""
    if a._datatype_enum() != b._datatype_enum() or a._shape_tuple() != b._shape_tuple():
        return False
    if a._datatype_enum() in _OPAQUE:
        return True
    x, y = native.host_value(a), native.host_value(b)
    if x.dtype == object:
        return bool((x == y).all())
    return x.tobytes() == y.tobytes()


def is_to_be_verified(block: Block, feeds: Sequence[Any]) -> bool:
    """Whether a run of a relaxed block is to be compared: its sizes are new, and kernels may choose by sizes.

    Sizes that were not there before are, at falling frequency: the 1st, 2nd, 4th, 8th, ... of a block.

    Args:
        block: the block.
        feeds: its parameters; those of draws may be None.
    """
    sizes = tuple(None if feed is None else feed._shape_tuple() for feed in feeds)
    if sizes in block.sizes or len(block.sizes) >= _MOST_SIZES:
        return False
    block.sizes.add(sizes)
    number = len(block.sizes)
    return number & (number - 1) == 0


class Snapshot:
    """The values of the variables that a block writes."""

    def __init__(self, block: Block) -> None:
        self._handles: dict[int, tuple[Any, Any]] = {}
        for op in block.ops:
            if op.kind is Kind.WRITE:
                for source in op.inputs:
                    if source[0] == "r":
                        self._handles.setdefault(id(source[1]), (source[1], _dtype(source[1])))
        self._values = self._read()

    def _read(self) -> list[Any]:
        # A copy, not the variable's own buffer: an in-place update must not reach the snapshot.
        return [
            native.run_fast(
                "DeepCopy", None, (native.run_fast("ReadVariableOp", None, (handle, "dtype", dtype)),)
            )
            for handle, dtype in self._handles.values()
        ]

    def again(self) -> Snapshot:
        """A further snapshot of the same variables, now."""
        other = object.__new__(Snapshot)
        other._handles = self._handles
        other._values = other._read()
        return other

    def restore(self) -> None:
        """Put the values back."""
        for (handle, dtype), value in zip(self._handles.values(), self._values, strict=True):
            native.run_fast("AssignVariableOp", None, (handle, value, "dtype", dtype))

    def moved(self, move: Callable[[Any], Any]) -> Snapshot:
        """A snapshot of the same variables with other values: what ``move`` makes of each."""
        other = object.__new__(Snapshot)
        other._handles = self._handles
        other._values = [move(value) for value in self._values]
        return other

    @property
    def values(self) -> list[Any]:
        """The values, real tensors."""
        return self._values

    def equals(self, other: Snapshot) -> bool:
        """Whether both snapshots hold the same bits."""
        return all(same_bits(a, b) for a, b in zip(self._values, other._values, strict=True))


def _dtype(handle: Any) -> Any:
    return native.dtype_of(handle._handle_data.shape_and_type[0].dtype)

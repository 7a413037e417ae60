"""Levels of optimization: what TensorFlow may do to a block, and how far its numbers may then be from eager's.

| level | what runs | what is promised of a block's values |
| --- | --- | --- |
| `exact` | the ops as they are, merges across ops prevented | eager's, bit for bit |
| `graph` | with Grappler and the fusions of the kernel libraries, as in `tf.function` | within `TOLERANCE` |
| `xla` | compiled by XLA, ops that may fail excepted | within `TOLERANCE` |

`auto` is no level: it measures the levels of each block and takes the fastest. Integers, booleans and strings are equal
at every level. docs/levels.md tells users, docs/design/levels.md why.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["LADDER", "SENSITIVITY", "TOLERANCE", "Level"]


class Level(StrEnum):
    """A level at which a block can run."""

    EXACT = "exact"
    GRAPH = "graph"
    XLA = "xla"


LADDER: dict[str, tuple[Level, ...]] = {
    "exact": (),
    "graph": (Level.GRAPH,),
    "xla": (Level.XLA, Level.GRAPH),
    "auto": (),
}
"""By the name of a setting: which levels a block is tried at before it stays at `exact`, the best first."""

TOLERANCE: dict[int, float] = {
    1: 2.0**-16,  # float32, 2^-23 from one number to the next
    2: 2.0**-45,  # float64, 2^-52
    8: 2.0**-16,  # complex64
    14: 2.0**-5,  # bfloat16, 2^-7
    18: 2.0**-45,  # complex128
    19: 2.0**-7,  # float16, 2^-10
}
"""By ``DataType`` enum: how far the elements of a tensor may be from eager's, in parts of its largest element.

128 units in the last place for the types in which sums are carried out, 8 and 4 for the short ones, whose kernels carry
sums out in float32 and round once.
"""

SENSITIVITY = 8.0
"""Beyond `TOLERANCE`: how many times as far as eager's own result moves if its inputs move by one unit in the last
place (`run.closeness`). Where a block cancels its leading digits, that is what any order of the same sums is worth."""

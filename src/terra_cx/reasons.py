"""Why something was not co-executed: the ids that reports, messages and `docs/reasons.md` have in common.

`docs/reasons.md` tells the cause and the remedy of each; `tests/test_reasons.py` has a program that meets it.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["NEEDS_LIVE_TAPES", "Reason"]


class Reason(StrEnum):
    """An id. The first group is of single *fallbacks*, the second of loops that were *given up*; some are both.

    The last is of blocks that run at a lower level of optimization than asked for.
    """

    NEW_OP = "new-op"
    """The program issued an op that no step before had there."""
    NEW_ARGUMENTS = "new-arguments"
    """The op is known, but not with such arguments."""
    NEW_ATTRIBUTES = "new-attributes"
    """The op is known, but not with such attributes."""
    NEW_SHAPE = "new-shape"
    """Python asked for the shape of a tensor whose shape only its value tells, and it is a new one."""
    NEW_GRADIENT = "new-gradient"
    """A tape was asked for a gradient of a history that no step before had."""
    TAPE_QUERY = "tape-query"
    """TensorFlow asked a tape something that only one that really recorded can answer."""
    INTERNAL_ERROR = "internal-error"
    """terra-cx failed."""

    USER_GRADIENT = "user-gradient"
    """A gradient runs code of the program, which may decide by anything."""
    GRADIENT_EFFECT = "gradient-effect"
    """An op with effects ran inside a gradient."""
    OPAQUE_UNDER_TAPE = "opaque-under-tape"
    """Something that is not in the graph computed under an open tape."""
    TAPE_ACROSS_REGIONS = "tape-across-regions"
    """A tape was opened in one step and asked in a later one."""
    NATIVE_EFFECT = "native-effect"
    """The step called a function of TensorFlow's core that changes what ops do."""
    UNSETTLED = "unsettled"
    """Every traced step did something new."""
    DIVERGES = "diverges"
    """Most steps fell back."""
    DOES_NOT_PAY = "does-not-pay"
    """The loop was measured to be faster in plain eager."""
    GRAPH_TOO_LARGE = "graph-too-large"
    """The steps have more different ops than `max-nodes` allows."""

    LEVEL_DIFFERS = "level-differs"
    """A block's first run at a level was further from eager's values than the level allows."""
    LEVEL_NOT_COMPILED = "level-not-compiled"
    """A block cannot be compiled, or not be run, at a level."""


NEEDS_LIVE_TAPES = frozenset({Reason.USER_GRADIENT, Reason.GRADIENT_EFFECT, Reason.OPAQUE_UNDER_TAPE})
"""What a gradient that was compiled as a whole would miss; with live tapes (`run.live_skeleton`) it is no hindrance."""

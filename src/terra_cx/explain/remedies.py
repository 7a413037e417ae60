"""What to do about what keeps a step from being co-executed, in a clause; `docs/reasons.md` has more of each."""

from __future__ import annotations

from collections.abc import Mapping

from terra_cx.reasons import Reason
from terra_cx.report.runs import Fallback

__all__ = ["of_fallback", "of_loop"]

_BY_DIFFERENCE: Mapping[str, str] = {
    "shape": "pad or bucket what changes its shape (`drop_remainder=True` for the last batch of an epoch)",
    "value": "pass what changes as a tensor, or let it take few values: each is learned once",
    "branch": "each way is learned once; if the count keeps growing, move what belongs to no step out of the loop",
    "dtype": "keep to one dtype",
    "type": "pass a tensor, or always the same type",
    "variable": "make variables before the loop, and use the same ones in each step",
    "unkept": "nothing is needed: the values are kept from the next step of this kind on",
    "history": "open the tape for less, so that it sees fewer combinations",
}

_BY_REASON: Mapping[str, str] = {
    Reason.NEW_OP: "if the count keeps growing, move what belongs to no step out of the loop",
    Reason.NEW_ARGUMENTS: "pad or bucket what changes; a handful of kinds is fine, each is learned once",
    Reason.NEW_ATTRIBUTES: "a handful of kinds is fine, each is learned once",
    Reason.NEW_SHAPE: "use masks of fixed shape, or take the part whose shapes depend on data out of the step",
    Reason.NEW_GRADIENT: "open the tape for less, so that it sees fewer combinations",
    Reason.TAPE_QUERY: "none is needed; to have gradients elided, call the tf.function before the tape is opened",
    Reason.INTERNAL_ERROR: "please report it, with the message on standard error",
    Reason.USER_GRADIENT: "nothing is needed; a gradient without code of your own would be one piece, and faster",
    Reason.GRADIENT_EFFECT: "let the body of the tf.function be plain Python: it is compiled with the step",
    Reason.OPAQUE_UNDER_TAPE: "call it before the tape is opened, or let the body of the tf.function be plain Python",
    Reason.TAPE_ACROSS_REGIONS: "open and ask a tape within one step",
    Reason.NATIVE_EFFECT: "set seeds outside of the step",
    Reason.UNSETTLED: "make variables before the loop, and bucket shapes, so that steps repeat",
    Reason.DIVERGES: "see the divergences of its lines: something new happens in most steps",
    Reason.DOES_NOT_PAY: "read values less often: keep losses as tensors, and print every tenth",
    Reason.GRAPH_TOO_LARGE: "raise --max-nodes, or look with `terra-cx graph` why steps differ",
    Reason.LEVEL_DIFFERS: "nothing is needed; the block runs at the next lower level",
    Reason.LEVEL_NOT_COMPILED: "nothing is needed; the block runs at the next lower level",
}


def of_fallback(fallback: Fallback) -> str:
    """What to do about a fallback: by what differed most often, or by its reason."""
    most = max(fallback.differences, key=lambda each: each["count"], default=None)
    found = _BY_DIFFERENCE.get(most["what"]) if most is not None else None
    return found or _BY_REASON.get(fallback.reason, "see docs/reasons.md")


def of_loop(why: str) -> str:
    """What to do about a loop that was given up, or whose tapes are live; `why` reads `reason: detail`."""
    return _BY_REASON.get(why.partition(":")[0], "see docs/reasons.md")

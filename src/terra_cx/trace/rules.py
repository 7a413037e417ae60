"""What the TraceGraph demands of each argument of a node, and how demands widen when traces disagree.

A rule starts as narrow as the first trace allows and only ever widens: a constant that changes becomes a feed, a value
guarded by content becomes an external tensor, wiring that changes becomes a parameter. Widening replaces retracing:
the node stays, only its block is compiled again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from terra_cx.tf.native import host_value
from terra_cx.tf.opdefs import Kind
from terra_cx.tf.slots import Spec
from terra_cx.trace.records import Captured, Const, Ext, Known, Local, Ref, Resource

if TYPE_CHECKING:
    from terra_cx.trace.tracegraph import Node

__all__ = ["Need", "Rule", "same_const", "same_known"]


class Need(IntEnum):
    """The kinds of rule, narrow ones first."""

    LOCAL = 0
    """Exactly the output ``out`` of ``node``, as last executed in this region."""
    SHARED = 1
    """The same external tensor as at the first use ``(node, argument)``, or the first use itself."""
    CONST = 2
    """A raw Python value equal to ``value`` in type and bits."""
    KNOWN = 3
    """A host tensor equal to ``value`` in dtype, shape and bits."""
    RESOURCE = 4
    """The very handle ``value``."""
    CAPTURED = 5
    """A constant of a gradient's path; Python never passes it."""
    FEED = 6
    """Any raw Python value, converted to ``dtype`` at the call."""
    EXTERNAL = 7
    """Any tensor of the dtype and shape that no open block makes."""
    TENSOR = 8
    """Any tensor of the dtype and shape that no op of the same block makes; ``sources`` is who made it so far."""


def _same_float(a: float, b: float) -> bool:
    return struct.pack("d", a) == struct.pack("d", b)


def same_const(a: Any, b: Any) -> bool:
    """Whether two raw Python arguments are equal in type and bits (1, 1.0 and True differ; so do 0.0 and -0.0)."""
    if a is b:
        return True
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):  # native code makes no difference
        return len(a) == len(b) and all(same_const(x, y) for x, y in zip(a, b, strict=True))
    if type(a) is not type(b):
        return False
    if type(a) is float:
        return _same_float(a, b)
    if type(a) is complex:
        return _same_float(a.real, b.real) and _same_float(a.imag, b.imag)
    if hasattr(a, "dtype"):  # NumPy scalars and arrays
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    return bool(a == b)


def same_known(a: Any, b: Any) -> bool:
    """Whether two host tensors are equal in dtype, shape and bits."""
    if a is b:
        return True
    if a._datatype_enum() != b._datatype_enum() or a._shape_tuple() != b._shape_tuple():
        return False
    return host_value(a).tobytes() == host_value(b).tobytes()


@dataclass(slots=True)
class Rule:
    """One argument's rule. ``spec`` is the tensor's dtype and shape (None for raw values)."""

    need: Need
    spec: Spec | None = None
    node: Node | None = None
    out: int = 0
    value: Any = None
    dtype: int | None = None
    share: tuple[Node, int] | None = None
    """For SHARED: the first use of the same external tensor, None for the first use itself."""
    raw: Any = None
    """If Python gave a raw value that the boundary converted: the value (KNOWN) or its type."""
    turn: int = 0
    """Inside a gradient: which execution of ``node`` (or of the first use) in the region is meant."""
    lag: int = 0
    """For LOCAL: how many executions of this node lie between the producer's and this one (rolled loops)."""
    origin: Rule | None = None
    """For KNOWN: the rule to widen to."""
    sources: set[Node] = field(default_factory=set)
    """For TENSOR: the nodes of the region that were seen to make it."""

    def widen(self, other: Rule) -> bool:
        """Make this rule admit what ``other`` (the same argument in a new trace) demands; True if it changed."""
        if self.need is Need.TENSOR:
            return self._add_source(other)
        if self.need is other.need:
            if self._agrees(other):
                return False
            if self.need is Need.CONST:
                if (
                    self.dtype is None
                    or self.dtype != other.dtype
                    or type(self.value) is not type(other.value)
                ):
                    return False  # not one feed: the region diverges where the value differs, and says so
                self.need, self.raw = Need.FEED, type(self.value)
                return True
            if self.need is Need.KNOWN and self.origin is not None and other.origin is not None:
                self._become(self.origin)
                self.widen(other.origin)
                return True
            return self._to(Need.EXTERNAL if self.need is Need.SHARED else Need.TENSOR, other)
        if self.need is Need.KNOWN and self.origin is not None:
            self._become(self.origin)
            self.widen(other)
            return True
        if other.need is Need.KNOWN and other.origin is not None:
            return self.widen(other.origin)
        if self.need is Need.FEED:
            return False
        if self.need is Need.EXTERNAL and other.need is Need.SHARED:
            return False
        return self._to(Need.TENSOR, other)

    def _agrees(self, other: Rule) -> bool:
        if self.need is Need.LOCAL:
            return self.node is other.node and self.out == other.out and self.lag == other.lag
        if self.need is Need.SHARED:
            return self.share == other.share
        if self.need is Need.CONST:
            return same_const(self.value, other.value)
        if self.need is Need.KNOWN:
            return same_known(self.value, other.value)
        if self.need in (Need.RESOURCE, Need.CAPTURED):
            return self.value is other.value or self.need is Need.CAPTURED
        return True

    def _to(self, need: Need, other: Rule) -> bool:
        if need is Need.TENSOR:
            self._add_source(self)
            self._add_source(other)
        self.need = need
        self.node = self.share = self.value = None
        return True

    def _add_source(self, other: Rule) -> bool:
        made = other.origin if other.origin is not None else other
        if made.node is None or made.node in self.sources:
            return False
        self.sources.add(made.node)
        return True

    def _become(self, other: Rule) -> None:
        self.need, self.node, self.out = other.need, other.node, other.out
        self.value, self.share, self.origin = other.value, other.share, other.origin
        self.turn, self.lag = other.turn, other.lag


Uses = dict[int, tuple["Node", int, int]]
"""First use of each external tensor of a trace, by its number: node, argument, and which execution of the node."""


def rule_of(ref: Ref, spec: Spec | None, producers: Any, uses: Uses, use: tuple[Node, int, int]) -> Rule:
    """The narrowest rule for an argument.

    Args:
        ref: where the argument came from in the trace.
        spec: its dtype and shape.
        producers: maps a `Local` to (node, flat output, execution).
        uses: updated.
        use: this argument as (node, index, execution).
    """
    if isinstance(ref, Local):
        node, out, turn = producers(ref)
        return Rule(Need.LOCAL, spec, node, out, turn=turn, lag=use[2] - turn)
    if isinstance(ref, Ext):
        first = uses.setdefault(ref.number, use)
        return Rule(Need.SHARED, spec, share=None if first == use else first[:2], turn=first[2])
    if isinstance(ref, Const):
        return Rule(Need.CONST, None, value=ref.value, dtype=ref.dtype)
    if isinstance(ref, Known):
        origin = rule_of(ref.origin, spec, producers, uses, use)
        if origin.node is not None and origin.node.kind is Kind.PURE:
            return origin  # it was known, until its arguments differed: Python is given a placeholder for it
        return Rule(Need.KNOWN, spec, value=ref.tensor, origin=origin)
    if isinstance(ref, Resource):
        return Rule(Need.RESOURCE, spec, value=ref.tensor)
    assert isinstance(ref, Captured)
    return Rule(Need.CAPTURED, spec, value=ref.tensor)

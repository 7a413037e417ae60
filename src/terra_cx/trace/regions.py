"""Which loop is the step.

The candidate is the innermost loop outside any open tape whose iterations write variables or ask for gradients. It is
promoted to the enclosing loop while its own trip count is small and constant, so that gradient accumulation and several
critic updates per generator update are one region, but a loop over the batches of an epoch is not. A function's entry
is a candidate only where no user loop encloses the step (a step function that a library calls).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import FrameType

from terra_cx.observe.anchors import AnchorTable

__all__ = ["Choice", "Survey"]

MAX_INNER_TRIPS = 16
"""An enclosing loop is promoted to only over an inner loop of at most this many iterations: batches, not epochs."""
_ITERATIONS = 2


@dataclass(frozen=True, slots=True)
class Choice:
    """The anchor to co-execute, and why it was chosen."""

    anchor: int
    reason: str


@dataclass(slots=True)
class _Loop:
    """What is known of one anchor over all its visits. Counters ending in ``now`` belong to the current iteration."""

    iterations: int = 0
    worked: int = 0
    """Completed iterations that wrote a variable or asked for a gradient, outside the tapes open at the anchor."""
    ops_now: int = 0
    effects_now: int = 0
    max_ops: int = 0
    under_tape: bool = False
    parent: int | None = None
    trips: list[int] = field(default_factory=list)
    """Completed trip counts: iterations per run of the loop."""


@dataclass(slots=True)
class _Active:
    """A loop that is running: ``frame`` is an id, kept with the nesting depth so that a reused id is noticed."""

    anchor: int
    frame: int
    depth: int
    iterations: int = 1
    partial: bool = False
    """The survey began while the loop was running, so its trip count is not known."""


class Survey:
    """See the module's page.

    Args:
        table: the program's anchors.
        max_ops: bound on the ops of one region.
    """

    def __init__(self, table: AnchorTable, max_ops: int = 5000) -> None:
        self._table = table
        self._max_ops = max_ops
        self._loops: dict[int, _Loop] = {}
        self._active: list[_Active] = []
        self._tapes = 0

    def visit(self, anchor_id: int, frame: FrameType) -> None:
        """A probe was hit."""
        loop = self._loops.setdefault(anchor_id, _Loop())
        depth = _depth(frame)
        active = self._active
        while active:
            top = active[-1]
            if top.frame == id(frame) and top.depth == depth:
                if top.anchor == anchor_id or self._encloses(top.anchor, anchor_id):
                    break
            elif top.depth < depth:
                break
            self._leave(active.pop())
        if active and active[-1].anchor == anchor_id and active[-1].frame == id(frame):
            self._iterate(loop)
            active[-1].iterations += 1
        else:
            if loop.iterations and self._table[anchor_id].kind == "function":
                self._iterate(loop)
            loop.parent = active[-1].anchor if active else None
            active.append(_Active(anchor_id, id(frame), depth, partial=not self._loops or len(self._loops) == 1))
        loop.iterations += 1
        loop.under_tape = loop.under_tape or self._tapes > 0

    def _encloses(self, outer: int, inner: int) -> bool:
        parent = self._table[inner].parent
        while parent is not None:
            if parent == outer:
                return True
            parent = self._table[parent].parent
        return False

    def _iterate(self, loop: _Loop) -> None:
        if loop.effects_now:
            loop.worked += 1
        loop.max_ops = max(loop.max_ops, loop.ops_now)
        loop.ops_now = loop.effects_now = 0

    def _leave(self, gone: _Active) -> None:
        loop = self._loops[gone.anchor]
        if self._table[gone.anchor].kind == "loop":
            self._iterate(loop)
            if not gone.partial:
                # The probe also runs before the attempt that finds the iterator exhausted.
                loop.trips.append(gone.iterations)

    def op(self, effect: bool, tape_depth: int) -> None:
        """An op of the owner thread ran; ``effect`` if it wrote a variable."""
        self._tapes = tape_depth
        for active in self._active:
            loop = self._loops[active.anchor]
            loop.ops_now += 1
            loop.effects_now += effect

    def gradient(self, tape_depth: int) -> None:
        """``tape.gradient`` was called."""
        self._tapes = tape_depth
        for active in self._active:
            self._loops[active.anchor].effects_now += 1

    def choice(self) -> Choice | None:
        """The step's anchor, None if not enough has been seen."""
        ready = {
            anchor: loop
            for anchor, loop in self._loops.items()
            if loop.worked >= _ITERATIONS and not loop.under_tape and 0 < loop.max_ops <= self._max_ops
        }
        loops = {anchor for anchor in ready if self._table[anchor].kind == "loop"}
        running = [active.anchor for active in self._active if active.anchor in self._loops]
        inner = self._innermost(loops)
        if inner is None:
            # A user loop that encloses the work may still be in its first iterations.
            if any(
                self._table[anchor].kind == "loop" and self._loops[anchor].effects_now for anchor in running
            ):
                return None
            functions = [anchor for anchor in running if anchor in ready]
            functions += [anchor for anchor in ready if anchor not in functions]
            if not functions:
                return None
            return Choice(functions[0], "a function that a library calls for each step")
        return self._promoted(inner)

    def _innermost(self, loops: set[int]) -> int | None:
        for anchor in loops:
            if not any(self._within(other, anchor) for other in loops if other != anchor):
                return anchor
        return None

    def _within(self, inner: int, outer: int) -> bool:
        seen = set()
        parent = self._loops[inner].parent
        while parent is not None and parent not in seen:
            if parent == outer:
                return True
            seen.add(parent)
            parent = self._loops[parent].parent if parent in self._loops else None
        return False

    def _promoted(self, anchor: int) -> Choice | None:
        """Climb to enclosing loops while the inner one is a small part of a step."""
        reason = "the innermost loop that writes variables or asks for gradients"
        while True:
            loop = self._loops[anchor]
            outer = self._outer_loop(anchor)
            trips = loop.trips
            if outer is None:
                # The survey may have begun inside the loop: its enclosing loop comes by later, if there is one.
                expected = self._table[anchor].parent
                known = expected is None or self._table[expected].kind != "loop" or loop.iterations > MAX_INNER_TRIPS + 1
                return Choice(anchor, reason) if known else None
            if loop.iterations > MAX_INNER_TRIPS + 1 and not trips:
                return Choice(anchor, reason)
            if len(trips) < 2:
                # Not known yet whether the loop is an inner part of a step: wait, unless it already runs long.
                return None if max([loop.iterations, *trips]) <= MAX_INNER_TRIPS + 1 else Choice(anchor, reason)
            if len(set(trips)) > 1 or trips[0] > MAX_INNER_TRIPS + 1:
                return Choice(anchor, reason)
            parent = self._loops[outer]
            if parent.under_tape or parent.max_ops > self._max_ops or parent.worked < _ITERATIONS:
                return Choice(anchor, reason) if parent.under_tape or parent.max_ops > self._max_ops else None
            anchor, reason = outer, f"encloses an inner loop of always {trips[0] - 1} iterations"

    def _outer_loop(self, anchor: int) -> int | None:
        parent = self._loops[anchor].parent
        while parent is not None and self._table[parent].kind != "loop":
            parent = self._loops[parent].parent if parent in self._loops else None
        return parent


def _depth(frame: FrameType | None) -> int:
    depth = 0
    while frame is not None:
        depth += 1
        frame = frame.f_back
    return depth

"""Anchor probes: calls planted in the user's code where a region may begin.

`instrument` puts two kinds of calls into a code object and everything nested in it:

* a probe, `__terra_probe__(ID)`, at the start of every iteration of a loop (before the iterator is asked,
  before the test is evaluated) and at the entry of every function;
* a barrier, `__terra_barrier__()`, where control leaves, without an exception, a `try` body that has `except`
  clauses. It stands inside the protected range, so that an error which it raises reaches those clauses.

Both are names looked up in `builtins`, never constants: a code object that holds a foreign object cannot be
marshalled, and Keras marshals functions to save Lambda layers.

The user must not be able to tell. Planted instructions carry the position of the instruction they precede, so
tracers, debuggers and coverage see the same events; the instructions that were there keep their positions,
handlers and order. Code for which this cannot be shown (`listing.verify`) is left as it was.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from terra_cx.observe.listing import Handler, Listing, Plant
from terra_cx.observe.loops import Loop, enclosing, find_loops

PROBE = "__terra_probe__"
BARRIER = "__terra_barrier__"

_MAX_UNITS = 100_000
"""Code longer than this (generated tables, mostly) is left alone: finding loops takes time in proportion."""

_COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})
_CO_OPTIMIZED = 0x1


@dataclass(frozen=True, slots=True)
class Anchor:
    """A place in user code where a region may begin."""

    id: int
    kind: Literal["loop", "function"]
    filename: str
    line: int
    qualname: str
    """Qualified name of the function (or module, or class) that the place is in."""
    parent: int | None
    """The enclosing loop of the same code object, else the entry of its function, else None."""


@dataclass(frozen=True, slots=True)
class _Places:
    """The anchors of one instrumented code object."""

    code: types.CodeType
    function: int | None
    loops: tuple[int, ...]


class AnchorTable:
    """All anchors of the program. An anchor's id is its position; ids are never reused."""

    def __init__(self) -> None:
        self.anchors: list[Anchor] = []
        self.skipped: list[tuple[str, str]] = []
        """Code objects that were left as they are: where, and why."""
        self._lock = threading.Lock()
        # By id of the code object, which is kept here: hashing code objects themselves takes microseconds.
        self._places: dict[int, _Places] = {}
        self._extents: dict[int, list[range]] = {}
        self._originals: dict[int, tuple[types.CodeType, types.CodeType]] = {}

    def __getitem__(self, anchor_id: int) -> Anchor:
        return self.anchors[anchor_id]

    def __len__(self) -> int:
        return len(self.anchors)

    def __iter__(self) -> Iterator[Anchor]:
        return iter(self.anchors)

    def add(
        self, kind: Literal["loop", "function"], code: types.CodeType, line: int, parent: int | None = None
    ) -> Anchor:
        """Register a place in `code` and return it with its id. Safe to call from several threads."""
        with self._lock:
            anchor = Anchor(len(self.anchors), kind, code.co_filename, line, code.co_qualname, parent)
            self.anchors.append(anchor)
        return anchor

    def place(self, code: types.CodeType, function: int | None, loops: dict[int, list[range]]) -> None:
        """Note the anchors of instrumented code: its entry, its loops (outer ones first) by byte offsets."""
        self._extents.update(loops)
        self._places[id(code)] = _Places(code, function, tuple(loops))

    def function(self, code: types.CodeType) -> int | None:
        """The anchor at the entry of the function with this (instrumented) code."""
        places = self._places.get(id(code))
        return places.function if places is not None else None

    def loops(self, code: types.CodeType) -> tuple[int, ...]:
        """The loop anchors of instrumented code, enclosing loops first."""
        places = self._places.get(id(code))
        return places.loops if places is not None else ()

    def replaced(self, new: types.CodeType, original: types.CodeType) -> None:
        """Note what an instrumented code object was made from."""
        self._originals[id(new)] = new, original

    def original(self, code: types.CodeType) -> types.CodeType:
        """What an instrumented code object was made from; other code as it is."""
        return self._originals.get(id(code), (code, code))[1]

    def covers(self, anchor_id: int, offset: int) -> bool:
        """Whether a frame of the anchor's code that is at byte `offset` (its `f_lasti`) is in that loop.

        True also for an anchor of which that is not known.
        """
        extents = self._extents.get(anchor_id)
        return extents is None or any(offset in extent for extent in extents)


def instrument(code: types.CodeType, table: AnchorTable) -> types.CodeType:
    """Return `code`, and all code nested in it, with probes and barriers.

    Code that has them already is returned as it is. So is, and nothing is raised for it, code that cannot be
    handled; `table.skipped` tells.
    """
    if PROBE in code.co_names or BARRIER in code.co_names:
        return code
    constants = tuple(
        instrument(constant, table) if isinstance(constant, types.CodeType) else constant
        for constant in code.co_consts
    )
    inside = code
    if any(new is not old for new, old in zip(constants, code.co_consts, strict=True)):
        inside = code.replace(co_consts=constants)
    result = _instrument_one(inside, table)
    if result is not code:
        table.replaced(result, code)
    return result


def _instrument_one(code: types.CodeType, table: AnchorTable) -> types.CodeType:
    if code.co_name in _COMPREHENSIONS:
        return code
    where = f"{code.co_filename}:{code.co_firstlineno} {code.co_qualname}"
    if len(code.co_code) > 2 * _MAX_UNITS:
        table.skipped.append((where, "too long"))
        return code
    try:
        return _Instrumented(code, table).result
    except Exception as error:  # noqa: BLE001
        # Not only ListingError: a bytecode sequence nobody thought of may upset the parser anywhere, and the
        # user's program must run all the same.
        table.skipped.append((where, f"{type(error).__name__}: {error}"))
        return code


class _Instrumented:
    """One code object, without those nested in it."""

    def __init__(self, code: types.CodeType, table: AnchorTable) -> None:
        self._table = table
        self._listing = Listing(code)
        # Before an instruction: barriers come first, then the function's probe, then those of loops, inwards.
        self._plants: dict[int, list[Plant]] = {}
        if code.co_exceptiontable:
            _plan_barriers(self._listing, self._plants)
        function = self._plan_entry() if _is_function(code) else None
        loops = self._plan_loops(function)
        if not self._plants:
            self.result = code
            return
        new, spans = self._listing.assemble(self._plants)
        table.place(new, function, {loop_id: _extents(loop, spans) for loop_id, loop in loops.items()})
        self.result = new

    def _plan_entry(self) -> int:
        code, ops = self._listing.code, self._listing.ops
        anchor = self._table.add("function", code, code.co_firstlineno)
        resume = next(index for index, op in enumerate(ops) if op.name == "RESUME")
        entry = resume + 1
        plant = Plant(PROBE, anchor.id, ops[resume].handler, ops[entry].location)
        self._plants.setdefault(entry, []).append(plant)
        return anchor.id

    def _plan_loops(self, function: int | None) -> dict[int, Loop]:
        loops = find_loops(self._listing)
        ids: dict[Loop, int] = {}
        for loop in loops:
            outer = enclosing(loop, loops)
            parent = ids[outer] if outer is not None else function
            ids[loop] = self._table.add("loop", self._listing.code, loop.line, parent).id
            for site in loop.sites:
                handler, location = self._listing.handler(site), self._listing.ops[site].location
                # An outer loop may have its site at the same instruction; the inner loop's jumps pass it by.
                own = frozenset(loop.back_edges)
                plant = Plant(PROBE, ids[loop], handler, location, jumps=own, other_jumps=True)
                self._plants.setdefault(site, []).append(plant)
        return {ids[loop]: loop for loop in loops}


def _extents(loop: Loop, spans: list[range]) -> list[range]:
    """The byte offsets of a loop, as few ranges."""
    found: list[range] = []
    for index in sorted(loop.members):
        span = spans[index]
        if found and found[-1].stop == span.start:
            found[-1] = range(found[-1].start, span.stop)
        else:
            found.append(span)
    return found


def _is_function(code: types.CodeType) -> bool:
    """Whether it is the body of a `def`, and not of a module, class, lambda or comprehension."""
    return bool(code.co_flags & _CO_OPTIMIZED) and not code.co_name.startswith("<")


# -- barriers ------------------------------------------------------------------------------------------------


def _plan_barriers(listing: Listing, plants: dict[int, list[Plant]]) -> None:
    """Add a barrier for every way, not by an exception, out of a `try` body with `except` clauses."""
    ops = listing.ops
    handlers = [listing.handler(index) for index in range(len(ops))]
    around = {handler: _bodies_around(listing, handler) for handler in set(handlers)}
    bodies = [around[handler] for handler in handlers]
    arrivals: dict[int, list[int]] = {}
    for index, op in enumerate(ops):
        if not bodies[index]:
            continue
        if op.name.startswith("RETURN_") and op.name != "RETURN_GENERATOR":
            _add(plants, index, Plant(BARRIER, None, bodies[index][0], op.location, other_jumps=True))
        for successor in listing.successors(index):
            if _left(bodies[index], bodies[successor]) is not None:
                arrivals.setdefault(successor, []).append(index)
    for index, sources in arrivals.items():
        falling = [source for source in sources if source == index - 1 and ops[source].target != index]
        # The innermost body that the first way leaves. A way that leaves another one gets a barrier of its
        # own, in front of the jump: that costs a call when the jump is not taken, and does not occur in
        # practice.
        handler = _left(bodies[(falling or sources)[0]], bodies[index])
        same = [source for source in sources if _left(bodies[source], bodies[index]) == handler]
        lines = {ops[source].location.lineno for source in same}
        location = ops[same[0]].location if len(lines) == 1 else ops[index].location
        jumps = frozenset(same) - frozenset(falling)
        _add(plants, index, Plant(BARRIER, None, handler, location, falls=bool(falling), jumps=jumps))
        for source in set(sources) - set(same):
            other = _left(bodies[source], bodies[index])
            _add(plants, source, Plant(BARRIER, None, other, ops[source].location, other_jumps=True))


def _add(plants: dict[int, list[Plant]], index: int, plant: Plant) -> None:
    """Plant a barrier; those that only some ways pass come first."""
    here = plants.setdefault(index, [])
    here.insert(0 if not plant.other_jumps else len(here), plant)


def _left(before: list[Handler], after: list[Handler]) -> Handler | None:
    """The innermost of the bodies `before` that is not among those `after`."""
    return next((body for body in before if body not in after), None)


def _bodies_around(listing: Listing, handler: Handler | None) -> list[Handler]:
    """The `try` bodies with `except` clauses that code with this handler is in, innermost first."""
    found = []
    while handler is not None:
        if _has_except(listing, handler.target):
            found.append(handler)
        handler = listing.around(handler)
    return found


def _has_except(listing: Listing, target: int) -> bool:
    """Whether a handler is that of `except` clauses, and not of `finally`, `with` or the compiler's own.

    A bare `except` drops the exception at once. A typed one evaluates an expression and matches; a `finally`
    body that contains a match of its own comes to the end of that inner handler's `try` first.
    """
    ops = listing.ops
    if ops[target].name != "PUSH_EXC_INFO":
        return False
    if ops[target + 1].name == "POP_TOP":
        return True
    for op in ops[target + 1 :]:
        if op.name in ("CHECK_EXC_MATCH", "CHECK_EG_MATCH"):
            return True
        if op.name in ("PUSH_EXC_INFO", "RERAISE", "POP_EXCEPT", "WITH_EXCEPT_START"):
            return False
    return False

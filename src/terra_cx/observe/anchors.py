"""Anchor probes: calls planted in the user's code where a region may begin.

`instrument` puts three kinds of calls into a code object and everything nested in it:

* a probe, `__terra_probe__(ID)`, at the start of every iteration of a loop (before the iterator is asked,
  before the test is evaluated) and at the entry of every function;
* a barrier where control enters or leaves, without an exception, a *guarded body*: that of a `try` with
  `finally` or with `except` clauses that might catch an op's error, `__terra_barrier__()`, or that of a `with`
  statement, `__terra_barrier__(MANAGER)` and `__terra_barrier__(EXIT METHOD)`. The first stands outside of the
  protected range, the last inside, so that an error which it raises reaches what guards the body;
* `__terra_arrival__(EXCEPTION)` where an exception comes to the handler of a guarded body; what it returns is
  handled instead.

All are names looked up in `builtins`, never constants: a code object that holds a foreign object cannot be
marshalled, and Keras marshals functions to save Lambda layers.

The user must not be able to tell. Planted instructions carry the position of the instruction they precede, so
tracers, debuggers and coverage see the same events; the instructions that were there keep their positions,
handlers and order. Code for which this cannot be shown (`listing.verify`) is left as it was.
"""

from __future__ import annotations

import builtins
import itertools
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from terra_cx.observe.listing import Handler, Listing, Plant
from terra_cx.observe.loops import Loop, enclosing, find_loops

PROBE = "__terra_probe__"
BARRIER = "__terra_barrier__"
ARRIVAL = "__terra_arrival__"
PLANTED = (PROBE, BARRIER, ARRIVAL)

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
    """All anchors of one session's program.

    An anchor's id is unique in the process: code keeps its probes when the session that planted them has ended,
    and they must mean nothing to the next one.
    """

    _ids = itertools.count()

    def __init__(self) -> None:
        self._anchors: dict[int, Anchor] = {}
        self.skipped: list[tuple[str, str]] = []
        """Code objects that were left as they are: where, and why."""
        self._lock = threading.Lock()
        # By id of the code object, which is kept here: hashing code objects themselves takes microseconds.
        self._places: dict[int, _Places] = {}
        self._extents: dict[int, list[range]] = {}
        self._originals: dict[int, tuple[types.CodeType, types.CodeType]] = {}

    def __getitem__(self, anchor_id: int) -> Anchor:
        return self._anchors[anchor_id]

    def __contains__(self, anchor_id: object) -> bool:
        return anchor_id in self._anchors

    def __len__(self) -> int:
        return len(self._anchors)

    def __iter__(self) -> Iterator[Anchor]:
        return iter(list(self._anchors.values()))

    def add(
        self, kind: Literal["loop", "function"], code: types.CodeType, line: int, parent: int | None = None
    ) -> Anchor:
        """Register a place in `code` and return it with its id. Safe to call from several threads."""
        with self._lock:
            anchor = Anchor(next(self._ids), kind, code.co_filename, line, code.co_qualname, parent)
            self._anchors[anchor.id] = anchor
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

    def instrumented(self) -> list[types.CodeType]:
        """All code objects that were instrumented, or that hold such code."""
        return [new for new, _ in list(self._originals.values())]

    def code(self, anchor_id: int) -> types.CodeType | None:
        """The instrumented code that an anchor is in; None for one that no probe stands for."""
        for places in list(self._places.values()):
            if places.function == anchor_id or anchor_id in places.loops:
                return places.code
        return None

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
    if not set(PLANTED).isdisjoint(code.co_names):
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

_NOT_OF_OPS = frozenset(
    name
    for name, thing in vars(builtins).items()
    if isinstance(thing, type)
    and issubclass(thing, BaseException)
    and not issubclass(thing, Warning)
    and not issubclass(ValueError, thing)
    and not issubclass(
        thing, (TypeError, ValueError, RuntimeError, MemoryError, SystemError, BaseExceptionGroup)
    )
)
"""Exceptions, by their builtin names, that no op's error is: clauses for these alone guard nothing."""


def _plan_barriers(listing: Listing, plants: dict[int, list[Plant]]) -> None:
    """Add a barrier for every way, not by an exception, into and out of a guarded body, and the arrivals."""
    ops = listing.ops
    handlers = [listing.handler(index) for index in range(len(ops))]
    guards = {handler: _guard(listing, handler.target) for handler in set(handlers) if handler is not None}
    around = {handler: _bodies_around(listing, handler, guards) for handler in set(handlers)}
    bodies = [around[handler] for handler in handlers]
    leaving: dict[int, list[int]] = {}
    entering: dict[int, list[int]] = {}
    for index, op in enumerate(ops):
        if bodies[index] and op.name.startswith("RETURN_") and op.name != "RETURN_GENERATOR":
            _add(plants, index, Plant(BARRIER, None, bodies[index][0], op.location, other_jumps=True))
        if op.name in ("BEFORE_WITH", "BEFORE_ASYNC_WITH"):
            _add(plants, index, Plant(BARRIER, None, op.handler, op.location, other_jumps=True, operand=1))
        for successor in listing.successors(index):
            if _left(bodies[index], bodies[successor]) is not None:
                leaving.setdefault(successor, []).append(index)
            entered = _left(bodies[successor], bodies[index])
            if entered is not None and guards[entered] != "with":
                entering.setdefault(successor, []).append(index)
    for index, sources in leaving.items():
        falling = _falling(listing, index, sources)
        # The innermost body that the first way leaves. A way that leaves another one gets a barrier of its
        # own, in front of the jump: that costs a call when the jump is not taken, and does not occur in
        # practice.
        handler = _left(bodies[(falling or sources)[0]], bodies[index])
        same = [source for source in sources if _left(bodies[source], bodies[index]) == handler]
        lines = {ops[source].location.lineno for source in same}
        location = ops[same[0]].location if len(lines) == 1 else ops[index].location
        jumps = frozenset(same) - frozenset(falling)
        operand = _exit_operand(listing, index) if handler is not None and guards[handler] == "with" else None
        plant = Plant(BARRIER, None, handler, location, bool(falling), jumps, operand=operand)
        _add(plants, index, plant)
        for source in set(sources) - set(same):
            other = _left(bodies[source], bodies[index])
            _add(plants, source, Plant(BARRIER, None, other, ops[source].location, other_jumps=True))
    for index, sources in entering.items():
        falling = _falling(listing, index, sources)
        outermost = next(body for body in reversed(bodies[index]) if body not in bodies[sources[0]])
        outer, location = listing.around(outermost), ops[index].location
        jumps = frozenset(sources) - frozenset(falling)
        if index in leaving:
            # Ways in must not pass a barrier for a way out: it has another handler.
            for source in jumps:
                _add(plants, source, Plant(BARRIER, None, handlers[source], location, other_jumps=True))
            jumps = frozenset()
        if falling or jumps:
            plants.setdefault(index, []).append(Plant(BARRIER, None, outer, location, bool(falling), jumps))
    for handler in {body for around_one in around.values() for body in around_one}:
        plant = Plant(
            ARRIVAL, None, listing.around(handler), ops[handler.target].location, operand=1, arrival=True
        )
        plants.setdefault(handler.target, []).append(plant)


def _falling(listing: Listing, index: int, sources: list[int]) -> list[int]:
    """Of the instructions that come to one, that which falls into it."""
    return [source for source in sources if source == index - 1 and listing.ops[source].target != index]


def _add(plants: dict[int, list[Plant]], index: int, plant: Plant) -> None:
    """Plant a barrier; those that only some ways pass come first."""
    here = plants.setdefault(index, [])
    here.insert(0 if not plant.other_jumps else len(here), plant)


def _left(before: list[Handler], after: list[Handler]) -> Handler | None:
    """The innermost of the bodies `before` that is not among those `after`."""
    return next((body for body in before if body not in after), None)


def _exit_operand(listing: Listing, index: int) -> int | None:
    """Where the exit method is on the stack at the instruction that follows the body of a `with`."""
    ops = listing.ops
    while ops[index].name == "NOP":
        index += 1
    # Where a value is being returned it lies above the method, and the first thing is to exchange the two.
    return {"SWAP": 2, "LOAD_CONST": 1}.get(ops[index].name)


def _bodies_around(
    listing: Listing, handler: Handler | None, guards: dict[Handler, str | None]
) -> list[Handler]:
    """The guarded bodies that code with this handler is in, innermost first."""
    found = []
    while handler is not None:
        if handler not in guards:
            guards[handler] = _guard(listing, handler.target)
        if guards[handler] is not None:
            found.append(handler)
        handler = listing.around(handler)
    return found


def _guard(listing: Listing, target: int) -> str | None:
    """What a handler is: that of "except" clauses, of "finally" or of "with".

    None for the compiler's own, and for `except` clauses that name only what is no error of an op. A bare
    `except` drops the exception at once. A typed one evaluates an expression and matches; a `finally` body
    that contains a match of its own comes to the end of that inner handler's `try` first.
    """
    ops = listing.ops
    if ops[target].name != "PUSH_EXC_INFO":
        return None
    if ops[target + 1].name == "WITH_EXCEPT_START":
        return "with"
    if ops[target + 1].name == "POP_TOP":
        return "except"
    for index in range(target + 1, len(ops)):
        name = ops[index].name
        if name in ("CHECK_EXC_MATCH", "CHECK_EG_MATCH"):
            return None if _catches_nothing_of_ops(listing, target + 1) else "except"
        if name in ("PUSH_EXC_INFO", "RERAISE", "POP_EXCEPT", "WITH_EXCEPT_START"):
            break
    return "finally"


def _catches_nothing_of_ops(listing: Listing, index: int) -> bool:
    """Whether the clauses that are tested from here on name nothing but builtin exceptions that ops never raise."""
    ops, names = listing.ops, listing.code.co_names
    while ops[index].name != "RERAISE":
        while ops[index].name in ("LOAD_GLOBAL", "LOAD_NAME", "BUILD_TUPLE", "NOP"):
            op = ops[index]
            if op.name.startswith("LOAD_"):
                number = op.instr.arg >> 1 if op.name == "LOAD_GLOBAL" else op.instr.arg
                if names[number] not in _NOT_OF_OPS:
                    return False
            index += 1
        following = ops[index + 1].target
        if ops[index].name != "CHECK_EXC_MATCH" or following is None:
            return False
        index = following
    return True

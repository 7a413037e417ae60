"""The loops of a code object, found in its instructions.

`for` and `async for` announce themselves. `while` does not: CPython 3.11 to 3.13 compiles

    while TEST: BODY      to      TEST; skip to end unless true
                            body: BODY
                                  TEST; back to body if true

and sends `continue` to the first copy of the test. So one loop may have two headers, and its iterations pass
through either copy of the test. Both copies carry the same source positions, which is how the second is
found; that every iteration passes exactly one of the two places is then checked on the control flow. Where
the check fails (a one-line loop whose instructions were fused, say) the first instruction of the body is
taken instead, which every iteration passes as well. Without column information (`-X no_debug_ranges`) lines
serve as positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from terra_cx.observe.listing import Listing, Op

_ITERATORS = {"FOR_ITER": "GET_ITER", "GET_ANEXT": "GET_AITER"}
"""Loop headers, and what precedes them in a statement; in a comprehension something else does."""


@dataclass(slots=True, eq=False)
class Loop:
    """One loop of the source."""

    line: int
    sites: list[int]
    """Instructions before which an iteration begins: each attempt at one reaches exactly one of them."""
    back_edges: set[int]
    """Jumping instructions that end an iteration."""
    members: set[int] = field(default_factory=set)
    """Instructions of the loop, with those of loops inside it."""


@dataclass(slots=True, eq=False)
class _While:
    """The bottom jumps of a `while` loop, all to the start of its body."""

    body: int
    jumps: list[int]
    first: range
    """The test's copy before the body; empty where the copies could not be told."""
    second: range

    @property
    def settled(self) -> bool:
        return bool(self.first)


def find_loops(listing: Listing) -> list[Loop]:
    """The loops of statements (not of comprehensions), enclosing ones before those they enclose."""
    flow = _Flow(listing)
    loops = _iterations(flow) + _whiles(flow)
    loops.sort(key=lambda loop: (-len(loop.members), loop.sites[0]))
    return loops


def enclosing(loop: Loop, loops: list[Loop]) -> Loop | None:
    """The innermost of `loops` (in `find_loops` order) around `loop`."""
    around = [outer for outer in loops if outer is not loop and loop.sites[0] in outer.members]
    around = [outer for outer in around if len(outer.members) > len(loop.members)]
    return around[-1] if around else None


class _Flow:
    """Control flow, instruction by instruction, exceptions included."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.ops = listing.ops
        self.after: list[list[int]] = []
        self.before: list[list[int]] = [[] for _ in self.ops]
        for index, op in enumerate(self.ops):
            after = list(listing.successors(index))
            if op.handler is not None:
                after.append(op.handler.target)
            self.after.append(after)
            for successor in after:
                self.before[successor].append(index)

    def is_back_edge(self, source: int) -> bool:
        """Whether the jump ends an iteration: a backward jump to something that every way to the jump passes.

        Other backward jumps exist: exception handlers are laid out behind the code that follows their `try`.
        """
        header = self.ops[source].target
        if header is None or header > source:
            return False
        seen = {header, 0}
        queue = [0] if header != 0 else []
        while queue:
            for successor in self.after[queue.pop()]:
                if successor == source:
                    return False
                if successor not in seen:
                    seen.add(successor)
                    queue.append(successor)
        return True

    def natural(self, header: int, back_edges: Iterable[int]) -> set[int]:
        """The header and everything from which a back edge is reached without passing it."""
        members = {header}
        queue = [source for source in back_edges if source != header]
        members.update(queue)
        while queue:
            for earlier in self.before[queue.pop()]:
                if earlier not in members:
                    members.add(earlier)
                    queue.append(earlier)
        return members


def _iterations(flow: _Flow) -> list[Loop]:
    loops: list[Loop] = []
    comprehension_end = 0
    for index, op in enumerate(flow.ops):
        if op.name not in _ITERATORS:
            continue
        back_edges = {source for source in flow.listing.jumps_to.get(index, ()) if source > index}
        end = op.target if op.target is not None else max(back_edges, default=index) + 1
        if index < comprehension_end:
            continue
        if flow.ops[index - 1].name != _ITERATORS[op.name]:
            comprehension_end = end
            continue
        members = flow.natural(index, back_edges) | set(range(index, end))
        loops.append(Loop(op.location.lineno or 0, [index], back_edges, members))
    return loops


def _start(op: Op) -> tuple[int, int] | None:
    where = op.location
    return None if where.lineno is None else (where.lineno, where.col_offset or 0)


def _whiles(flow: _Flow) -> list[Loop]:
    bottoms: dict[int, list[int]] = {}
    continues: dict[int, list[int]] = {}
    for source, op in enumerate(flow.ops):
        if op.target is None or op.target > source:
            continue
        first = flow.ops[op.target]
        if first.name in _ITERATORS or first.name == "SEND" or not flow.is_back_edge(source):
            continue
        # A bottom jump carries the position of the test (3.11: of the whole statement), which is before the
        # body; a `continue` has a position of its own, after that of the test it jumps to.
        jump, start = _start(op), _start(first)
        bottom = jump is not None and start is not None and jump < start
        (bottoms if bottom else continues).setdefault(op.target, []).append(source)

    found = [_copies(flow, body, jumps) for body, jumps in sorted(bottoms.items())]
    loops = {loop.body: _while_loop(flow, loop) for loop in found}
    others: list[Loop] = []
    for header, sources in sorted(continues.items()):
        owner = _owner(flow, header, found)
        if owner is not None:
            loops[owner.body].back_edges.update(sources)
            loops[owner.body].members |= flow.natural(header, sources)
        else:
            line = flow.ops[header].location.lineno or 0
            members = flow.natural(header, sources) | set(range(header, max(sources) + 1))
            others.append(Loop(line, [header], set(sources), members))
    return [*loops.values(), *others]


def _while_loop(flow: _Flow, loop: _While) -> Loop:
    line = flow.ops[loop.jumps[-1]].location.lineno or 0
    sites = [loop.first.start, loop.second.start] if loop.settled else [loop.body]
    laid_out = {*loop.first, *range(loop.body, max(loop.jumps) + 1)}
    return Loop(line, sites, set(loop.jumps), laid_out | flow.natural(loop.body, loop.jumps))


def _copies(flow: _Flow, body: int, jumps: list[int]) -> _While:
    """Find the two copies of a loop's test, given the start of its body and the jumps back to it.

    Backwards from where they end, the instructions of both copies have the same positions.
    """
    first, second = body, max(jumps) + 1
    copies = zip(_evaluations(flow.ops, body), _evaluations(flow.ops, max(jumps) + 1), strict=False)
    for one, other in copies:
        if flow.ops[one].location != flow.ops[other].location or other <= body:
            break
        first, second = one, other
    loop = _While(body, jumps, range(first, body), range(second, max(jumps) + 1))
    if not _passes_once(flow, loop):
        loop.first = range(0)
    return loop


def _evaluations(ops: list[Op], stop: int) -> Iterator[int]:
    """The instructions before `stop` that evaluate something, last first.

    Not jumps, and not straight code that ends with leaving the test: the exits of a conditional expression or
    a chained comparison, of which the copies have different ones.
    """
    leaving = False
    for index in range(stop - 1, -1, -1):
        op = ops[index]
        if op.target is not None or op.final:
            leaving = op.final
        elif not leaving and op.name != "NOP" and op.location.lineno is not None:
            yield index


def _passes_once(flow: _Flow, loop: _While) -> bool:
    """Whether each entry of the body comes from exactly one start of a copy of the test."""
    for run in (loop.first, loop.second):
        for index in run:
            for source in flow.before[index]:
                if (source in run) == (index == run.start):
                    return False
    return all(source in loop.first or source in loop.jumps for source in flow.before[loop.body]) and all(
        jump in loop.second for jump in loop.jumps
    )


def _owner(flow: _Flow, header: int, found: list[_While]) -> _While | None:
    """The loop among `found` whose `continue` statements jump to `header`."""
    for loop in found:
        if loop.settled and loop.first.start == header:
            return loop
    for loop in found:
        if header <= loop.body and all(flow.ops[index].name == "NOP" for index in range(header, loop.body)):
            return loop
    for loop in found:
        if loop.body > header:
            # The nearest body after the test, if its bottom jump belongs to that very test.
            between = {flow.ops[index].location for index in range(header, loop.body)}
            return loop if flow.ops[loop.jumps[-1]].location in between else None
    return None

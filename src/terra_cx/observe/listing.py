"""A code object as a list of instructions into which calls can be planted.

The `bytecode` package parses, in its concrete form: that form holds exactly the instructions, positions and exception
table that went in. (The abstract form, with labels, does not: over the standard library it changes the instructions of
5 to 15 of 100 functions.) What the concrete form leaves to its user is done here: jumps and exception ranges are held
as references to instructions and become offsets again when the listing is assembled. So only bytes are left to be put
together; having the package do that took a third of the time of an import.

Whatever was assembled is then decoded afresh, without the package, and compared with the original instruction
by instruction. A code object that does not pass is not used.
"""

from __future__ import annotations

import opcode
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bytecode import ConcreteBytecode, ConcreteInstr
from bytecode.instr import InstrLocation

from terra_cx.observe.locations import location_table

_PLANTED_STACK = 3
"""Stack entries that a planted call needs: NULL, the callable, one argument."""

_CACHE = opcode.opmap["CACHE"]
_EXTENDED_ARG = opcode.opmap["EXTENDED_ARG"]
_JUMPS = frozenset(opcode.hasjrel) | frozenset(opcode.hasjabs)


class ListingError(Exception):
    """The assembled code is not the original plus the planted calls."""


class Handler(NamedTuple):
    """Where an exception goes: an entry of the exception table."""

    target: int
    """Index of the handler's first instruction."""
    depth: int
    """Stack entries that are kept."""
    lasti: bool
    """Whether the offset of the raising instruction is pushed."""


@dataclass(slots=True, eq=False)
class Op:
    """One instruction of the original code; `EXTENDED_ARG` and inline caches are part of it."""

    instr: ConcreteInstr
    caches: int
    target: int | None = None
    """Index of the instruction that it may jump to."""
    handler: Handler | None = None

    @property
    def name(self) -> str:
        """The opcode's name."""
        return self.instr.name

    @property
    def arg(self) -> int | None:
        """The opcode's argument, if it takes one."""
        return self.instr.arg if self.instr.require_arg() else None

    @property
    def location(self) -> InstrLocation:
        """Source range; its fields are None for an instruction that belongs to no source text."""
        return self.instr.location or InstrLocation(None, None, None, None)

    @property
    def final(self) -> bool:
        """Whether control never passes to the next instruction."""
        return bool(self.instr.is_final())


@dataclass(slots=True, eq=False)
class Plant:
    """A call of a builtin, to be placed directly before an instruction; its argument is a number or a stack entry.

    Control that falls into the instruction passes through the call if `falls`. A jump to the instruction
    passes through it if the jump is in `jumps`; one that no plant names passes through those with
    `other_jumps`.
    """

    call: str
    argument: int | None
    handler: Handler | None
    location: InstrLocation
    falls: bool = True
    jumps: frozenset[int] = frozenset()
    """Indices of the jumping instructions."""
    other_jumps: bool = False
    operand: int | None = None
    """Which stack entry, 1 for the topmost, is the argument; None for the constant or for none."""
    arrival: bool = False
    """It stands at the start of a handler: exceptions pass through it, and its result takes the operand's place."""


class Assembled(NamedTuple):
    """The new code, and where the old instructions are in it."""

    code: types.CodeType
    spans: list[range]
    """By instruction: byte offsets of it and of what was planted before it."""


@dataclass(slots=True, eq=False)
class _Cell:
    """An instruction of the code being assembled."""

    name: str
    arg: int | None
    location: InstrLocation
    handler: Handler | None
    caches: int
    original: Op | None = None
    goal: _Cell | None = None
    """Where it jumps to."""
    size: int = 1
    """Code units without caches: one, and one per `EXTENDED_ARG`."""
    offset: int = 0
    """Code units from the start of the code to its first unit."""


class Listing:
    """The instructions of one code object; nested code objects are constants like others."""

    def __init__(self, code: types.CodeType) -> None:
        self.code = code
        self.ops: list[Op] = []
        self.jumps_to: dict[int, list[int]] = {}
        """The jumps to an instruction."""
        self._parse()

    def _parse(self) -> None:
        concrete = ConcreteBytecode.from_code(self.code)
        starts: dict[int, int] = {}
        offset = 0
        for instr in concrete:
            assert isinstance(instr, ConcreteInstr)
            if instr.opcode == _CACHE:
                self.ops[-1].caches += 1
                offset += 1
            else:
                starts[offset] = len(self.ops)
                self.ops.append(Op(instr, 0))
                offset += instr.size // 2
        for start, index in starts.items():
            target = self.ops[index].instr.get_jump_target(start)
            if target is not None:
                self.ops[index].target = starts[target]
                self.jumps_to.setdefault(starts[target], []).append(index)
        for entry in concrete.exception_table:
            handler = Handler(starts[entry.target], entry.stack_depth, entry.push_lasti)
            for start in range(entry.start_offset, entry.stop_offset + 1):
                if start in starts:
                    self.ops[starts[start]].handler = handler

    def handler(self, index: int) -> Handler | None:
        """Where an exception would go that a call planted before the instruction raised.

        That is the instruction's handler, if it has one. The compiler leaves some out that cannot raise: a
        `NOP` that marks the begin or the end of a protected range, and from 3.12 on the pair of jumps into
        which it splits a conditional backward jump, and a jump back from code that it has moved to the end (it
        comes after what jumps to it, or alone: then both of its ends tell).
        """
        op = self.ops[index]
        if op.handler is not None or index == 0:
            return op.handler
        before = self.ops[index - 1]
        if op.name == "NOP":
            following = self.handler(index + 1)
            if following is None:
                return None
            sources = [*self.jumps_to.get(index, []), *([] if before.final else [index - 1])]
            inner = [handler for source in sources if (handler := self.ops[source].handler) is not None]
            ends = any(self.around(handler) == following for handler in inner)
            return following if ends else self.around(following)
        if op.name.startswith("POP_JUMP_IF_"):
            return self.handler(index - 1)
        if not op.name.startswith("JUMP_BACKWARD"):
            return None
        if before.final:
            ways = {self.ops[source].handler for source in self.jumps_to.get(index, ())}
            there = self.ops[op.target].handler if op.target is not None else None
            return there if ways == {there} else None
        if op.location.lineno is not None and op.location != before.location:
            return None
        splits = before.target == index + 1
        known = before.handler is not None  # or a NOP before it would ask what follows the NOP
        returns = known and op.target is not None and self.ops[op.target].handler == before.handler
        return self.handler(index - 1) if splits or returns else None

    def around(self, handler: Handler) -> Handler | None:
        """The handler that covers the statement of which `handler` is part."""
        outer = self.ops[handler.target].handler
        while outer is not None and self.ops[outer.target].name == "COPY":
            # The cleanup of a handler's own exception state, which covers every handler's code.
            outer = self.ops[outer.target].handler
        return outer

    def successors(self, index: int) -> Iterator[int]:
        """Instructions that may come next when nothing is raised."""
        op = self.ops[index]
        if not op.final:
            yield index + 1
        if op.target is not None:
            yield op.target

    def assemble(self, plants: dict[int, list[Plant]]) -> Assembled:
        """The code with `plants[k]` executed, in order, before instruction `k`.

        Raises:
            ListingError: The result is not the original plus the plants.
        """
        body = _Body(self, plants)
        new = self.code.replace(
            co_code=body.instructions(),
            co_names=(*self.code.co_names, *body.names),
            co_consts=(*self.code.co_consts, *body.constants),
            co_exceptiontable=body.exception_table(),
            co_linetable=body.location_table(self.code.co_firstlineno),
            co_stacksize=self.code.co_stacksize + _PLANTED_STACK,
        )
        verify(self.code, new, [cell.original is None for cell in body.cells])
        return Assembled(new, body.spans())


@dataclass(slots=True, eq=False)
class _Entries:
    """Where control that comes to one instruction of the original has to arrive in the new code."""

    here: _Cell
    """The instruction itself."""
    first: _Cell
    """For a jump that no plant names."""
    named: dict[int, _Cell] = field(default_factory=dict)
    arrival: _Cell | None = None
    """For an exception, if the instruction starts a handler."""


class _Body:
    """The new code's instructions, with jumps resolved."""

    def __init__(self, listing: Listing, plants: dict[int, list[Plant]]) -> None:
        self.names: list[str] = []
        self.constants: list[object] = []
        self.cells: list[_Cell] = []
        self._known_names = list(listing.code.co_names)
        self._known_constants = len(listing.code.co_consts)
        entries: list[_Entries] = []
        for index, op in enumerate(listing.ops):
            cell = _Cell(op.name, op.arg, op.location, op.handler, op.caches, op, size=op.instr.size // 2)
            entry = _Entries(cell, cell)
            falls = index > 0 and not listing.ops[index - 1].final
            self._plant(plants.get(index, ()), entry, falls)
            self.cells.append(cell)
            entries.append(entry)
        for index, entry in enumerate(entries):
            target = listing.ops[index].target
            if target is not None:
                there = entries[target]
                entry.here.goal = there.named.get(index, there.first)
        self._handlers = [entry.arrival or entry.here for entry in entries]
        self._place()

    def _plant(self, plants: Sequence[Plant], entry: _Entries, falls: bool) -> None:
        """Add the calls that come before one instruction.

        Calls that falling control must not pass are jumped over. They have to come first: the callers plant
        barriers, which only some ways in pass, before probes, which all pass.
        """
        over: list[_Cell] = []
        for plant in plants:
            if falls and not plant.falls:
                over.append(_Cell("JUMP_FORWARD", 0, entry.here.location, entry.here.handler, 0))
                self.cells.append(over[-1])
            call = self._call(plant)
            if plant.falls and over:
                for jump in over:
                    jump.goal = call[0]
                over.clear()
            self.cells += call
            if plant.arrival:
                entry.arrival = call[0]
            for source in plant.jumps:
                entry.named.setdefault(source, call[0])
            if plant.other_jumps and entry.first is entry.here:
                entry.first = call[0]
            falls = True
        for jump in over:
            jump.goal = entry.here

    def _call(self, plant: Plant) -> list[_Cell]:
        if plant.call not in self._known_names:
            self._known_names.append(plant.call)
            self.names.append(plant.call)
        steps: list[tuple[str, int | None]] = [("LOAD_GLOBAL", self._known_names.index(plant.call) << 1 | 1)]
        arguments = 0
        if plant.argument is not None:
            if plant.argument not in self.constants:
                self.constants.append(plant.argument)
            steps.append(("LOAD_CONST", self._known_constants + self.constants.index(plant.argument)))
            arguments = 1
        elif plant.operand is not None:
            steps.append(("COPY", plant.operand + 2))  # above it are now the callable and its NULL
            arguments = 1
        if "PRECALL" in opcode.opmap:
            steps.append(("PRECALL", arguments))
        steps.append(("CALL", arguments))
        if plant.arrival:
            steps.append(("SWAP", 2))
        steps.append(("POP_TOP", None))
        cells = []
        for name, arg in steps:
            instr = ConcreteInstr(name) if arg is None else ConcreteInstr(name, arg)
            size = instr.size // 2
            cells.append(
                _Cell(name, arg, plant.location, plant.handler, instr.use_cache_opcodes(), size=size)
            )
        return cells

    def _place(self) -> None:
        """Give every cell its offset; jumps that grow move others, so until nothing grows."""
        grown = True
        while grown:
            grown = False
            offset = 0
            for cell in self.cells:
                cell.offset = offset
                offset += cell.size + cell.caches
            for cell in self.cells:
                if cell.goal is not None:
                    cell.arg = abs(cell.goal.offset - (cell.offset + cell.size + cell.caches))
                    size = max(1, (cell.arg.bit_length() + 7) // 8)
                    if size > cell.size:
                        cell.size = size
                        grown = True

    def instructions(self) -> bytes:
        code = bytearray()
        for cell in self.cells:
            arg = cell.arg or 0
            for byte in range(cell.size - 1, 0, -1):
                code += bytes((_EXTENDED_ARG, arg >> 8 * byte & 0xFF))
            code += bytes((opcode.opmap[cell.name], arg & 0xFF))
            code += bytes((_CACHE, 0)) * cell.caches
        return bytes(code)

    def spans(self) -> list[range]:
        spans = []
        start = 0
        for cell in self.cells:
            if cell.original is not None:
                end = cell.offset + cell.size + cell.caches
                spans.append(range(2 * start, 2 * end))
                start = end
        return spans

    def location_table(self, first_line: int) -> bytes:
        return location_table(first_line, ((cell.size + cell.caches, cell.location) for cell in self.cells))

    def exception_table(self) -> bytes:
        entries: list[list[int]] = []
        last: Handler | None = None
        for cell in self.cells:
            if cell.handler is not None:
                size = cell.size + cell.caches
                if cell.handler == last:
                    entries[-1][1] += size
                else:
                    target, depth, lasti = cell.handler
                    entries.append([cell.offset, size, self._handlers[target].offset, depth << 1 | lasti])
            last = cell.handler
        table = bytearray()
        for entry in entries:
            begin = len(table)
            for number in entry:
                table += bytes(_varint(number))
            table[begin] |= 0x80
        return bytes(table)


# -- verification --------------------------------------------------------------------------------------------


class _Plain(NamedTuple):
    """An instruction as decoded from the bytes."""

    offset: int
    opcode: int
    arg: int
    after: int
    """Offset of the unit after its caches: what jumps count from."""


def verify(old: types.CodeType, new: types.CodeType, planted: Sequence[bool]) -> None:
    """Check that `new` without the instructions marked in `planted` is `old`.

    Raises:
        ListingError: Opcodes, arguments, jump targets, positions, handlers, names, constants or flags differ.
    """
    before, everything = _decode(old), _decode(new)
    if len(everything) != len(planted):
        raise ListingError("instructions were lost")
    after = [plain for plain, ours in zip(everything, planted, strict=True) if not ours]
    if [(p.opcode, p.arg) for p in before if p.opcode not in _JUMPS] != [
        (p.opcode, p.arg) for p in after if p.opcode not in _JUMPS
    ] or [p.opcode for p in before] != [p.opcode for p in after]:
        raise ListingError("instructions changed")
    positions = [list(code.co_positions()) for code in (old, new)]
    if [positions[0][p.after - 1] for p in before] != [positions[1][p.after - 1] for p in after]:
        raise ListingError("positions changed")
    if [stop for _, stop, _ in new.co_lines()][-1:] != [len(new.co_code)]:
        raise ListingError("the table of positions is longer or shorter than the code")
    if _wiring(old, before, before) != _wiring(new, after, everything, planted):
        raise ListingError("jumps or handlers changed")
    for name in (
        "argcount",
        "posonlyargcount",
        "kwonlyargcount",
        "flags",
        "varnames",
        "freevars",
        "cellvars",
    ):
        if getattr(old, f"co_{name}") != getattr(new, f"co_{name}"):
            raise ListingError(f"co_{name} changed")
    for name in ("names", "consts"):
        kept = getattr(old, f"co_{name}")
        if getattr(new, f"co_{name}")[: len(kept)] != kept:
            raise ListingError(f"co_{name} changed")


def _decode(code: types.CodeType) -> list[_Plain]:
    found: list[_Plain] = []
    data = code.co_code
    start = after = arg = 0
    latest: tuple[int, int, int] | None = None
    for unit, (kind, operand) in enumerate(zip(data[::2], data[1::2], strict=True), start=1):
        if kind == _CACHE:
            start = after = unit
        elif kind == _EXTENDED_ARG:
            arg = (arg | operand) << 8
        else:
            if latest is not None:
                found.append(_Plain(*latest, after))
            latest = start, kind, arg | operand
            start = after = unit
            arg = 0
    if latest is not None:
        found.append(_Plain(*latest, after))
    return found


def _wiring(
    code: types.CodeType, kept: list[_Plain], everything: list[_Plain], planted: Sequence[bool] = ()
) -> list[tuple[int | None, tuple[int, int, bool] | None]]:
    """Jump target and handler of every kept instruction, as numbers of kept instructions.

    Control that arrives at a planted instruction arrives at the kept one after it.
    """
    number: dict[int, int] = {}
    seen = 0
    for index, plain in enumerate(everything):
        number[plain.offset] = seen
        seen += not (planted and planted[index])
    handlers: dict[int, tuple[int, int, bool]] = {}
    numbers = _varints(code.co_exceptiontable)
    for start, length, target, depth in zip(numbers, numbers, numbers, numbers, strict=True):
        for offset in range(start, start + length):
            handlers[offset] = (number[target], depth >> 1, bool(depth & 1))
    found = []
    for plain in kept:
        jump = None
        if plain.opcode in _JUMPS:
            backward = "BACKWARD" in opcode.opname[plain.opcode]
            jump = number[plain.after - plain.arg if backward else plain.after + plain.arg]
        found.append((jump, handlers.get(plain.offset)))
    return found


def _varint(number: int) -> list[int]:
    """A number as `_varints` reads it."""
    found = [number & 63]
    while number := number >> 6:
        found.append(64 | number & 63)
    return found[::-1]


def _varints(table: bytes) -> Iterator[int]:
    """The numbers of an exception table: six bits to a byte, high bits first, 64 marks that more follow."""
    value = 0
    for byte in table:
        value = value << 6 | byte & 63
        if not byte & 64:
            yield value
            value = 0

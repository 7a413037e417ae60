"""The table of source positions of a code object.

Written here because the `bytecode` package (0.19.1 and before) writes a column from 128 to 255 of a one-line entry as
a byte with bit 7 set, by which the interpreter finds where entries begin. `co_positions` reads such a table as it is
meant; the walk by which a trace function's lines are found loses count, and 3.11 then writes behind the end of the
array that it makes: the process dies of a corrupt heap.

Source: CPython, ``Objects/locations.md`` and ``write_location_info_entry`` in ``Python/compile.c``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bytecode.instr import InstrLocation

__all__ = ["location_table"]

_MOST_UNITS = 8
_NO_COLUMNS, _LONG, _NONE = 13, 14, 15


def location_table(first_line: int, spans: Iterable[tuple[int, InstrLocation]]) -> bytes:
    """Encode positions as `co_linetable`.

    Args:
        first_line: the code object's.
        spans: number of code units and their position, in order; equal neighbours share entries.
    """
    table = bytearray()
    line = first_line
    for units, location in _joined(spans):
        while units > 0:
            size = min(units, _MOST_UNITS)
            table += _entry(size, location, line)
            if location.lineno is not None:  # 0 is a line: a module begins there
                line = location.lineno
            units -= size
    return bytes(table)


def _joined(spans: Iterable[tuple[int, InstrLocation]]) -> Iterator[tuple[int, InstrLocation]]:
    total, last = 0, None
    for units, location in spans:
        if last is not None and location != last:
            yield total, last
            total = 0
        total += units
        last = location
    if last is not None:
        yield total, last


def _entry(size: int, location: InstrLocation, line: int) -> bytes:
    start, end = location.lineno, location.end_lineno
    column, end_column = location.col_offset, location.end_col_offset
    if start is None:
        return bytes([_head(_NONE, size)])
    delta = start - line
    if column is None or end_column is None or end is None:
        return bytes([_head(_NO_COLUMNS, size), *_signed(delta)])
    if end == start:
        if delta == 0 and column < 80 and 0 <= end_column - column < 16:
            return bytes([_head(column // 8, size), column % 8 << 4 | end_column - column])
        if 0 <= delta < 3 and column < 128 and end_column < 128:
            return bytes([_head(10 + delta, size), column, end_column])
    numbers = (*_unsigned(end - start), *_unsigned(column + 1), *_unsigned(end_column + 1))
    return bytes([_head(_LONG, size), *_signed(delta), *numbers])


def _head(form: int, size: int) -> int:
    return 0x80 | form << 3 | size - 1


def _unsigned(number: int) -> list[int]:
    """Six bits a byte, the lowest first; bit 6 says that more follow."""
    found = []
    while number >= 64:
        found.append(0x40 | number & 63)
        number >>= 6
    return [*found, number]


def _signed(number: int) -> list[int]:
    return _unsigned(-number << 1 | 1 if number < 0 else number << 1)

"""Tables of positions: what the interpreter reads from them, by both of its ways."""

from __future__ import annotations

import argparse
import ast
import types
from collections.abc import Iterator

import pytest
from bytecode.instr import InstrLocation

from terra_cx.observe.anchors import AnchorTable, instrument
from terra_cx.observe.locations import location_table

WIDE = """
def run(values):
    total = 0
    for value in values:
        total += dict(
            a=1,{spaces}b=value,
            c=lambda: total,{spaces}d=value)["b"]
    return total
"""


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def again(code: types.CodeType) -> types.CodeType:
    """The code with a table of positions made by us."""
    spans = [(1, InstrLocation(*position)) for position in code.co_positions()]
    return code.replace(co_linetable=location_table(code.co_firstlineno, spans))


@pytest.mark.parametrize("module", [argparse, ast])
def test_of_whole_modules(module: types.ModuleType) -> None:
    with open(module.__file__) as file:
        source = file.read()
    for code in codes(compile(source, module.__file__, "exec")):
        made = again(code)
        assert list(made.co_positions()) == list(code.co_positions()), code
        assert lines(made) == lines(code), code


def lines(code: types.CodeType) -> list[int | None]:
    """The line of each code unit, found by the walk that trace functions rest on."""
    return [line for start, stop, line in code.co_lines() for _ in range(start, stop, 2)]


@pytest.mark.parametrize("spaces", [0, 50, 110, 130, 240, 300, 5000])
def test_wide_lines(spaces: int) -> None:
    namespace: dict[str, types.FunctionType] = {}
    exec(compile(WIDE.format(spaces=" " * spaces), "wide", "exec"), namespace)
    code = namespace["run"].__code__
    made = instrument(code, AnchorTable())
    assert made is not code
    assert len(lines(made)) == len(made.co_code) // 2
    assert set(lines(made)) == set(lines(code))


@pytest.mark.parametrize(
    "location",
    [
        (None, None, None, None),
        (7, 7, None, None),
        (7, 7, 79, 94),
        (7, 7, 80, 90),
        (8, 8, 127, 127),
        (8, 8, 128, 129),
        (5, 90, 0, 10_000),
        (100_000, 100_001, 3, 3),
    ],
)
def test_every_form(location: tuple[int | None, ...]) -> None:
    code = compile("pass", "f", "exec")
    units = len(code.co_code) // 2
    table = location_table(7, [(units, InstrLocation(*location))])
    made = code.replace(co_firstlineno=7, co_linetable=table)
    assert list(made.co_positions()) == [location] * units
    assert lines(made) == [location[0]] * units

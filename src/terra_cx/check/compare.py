"""Compares two runs of one program: the first difference of each kind, in the order in which they would be noticed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terra_cx.check.nearness import distance, near_text
from terra_cx.check.runs import Run
from terra_cx.check.stream import Crossing, Value, read, restored

__all__ = ["Difference", "differences", "steady_generators", "step_of"]

_LONGEST = 160  # characters of an output line that are shown


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference of one kind.

    `what` is `value`, `ending`, `output`, `variable` or `generator`; `expected` and `got` are words. `file`, `line` and
    `index` (the number of the value in the stream, from 0) belong to values. `pair` holds the two values, of which
    `expected` and `got` are the words, where there are two.
    """

    what: str
    expected: str
    got: str
    where: str
    file: str | None = None
    line: int | None = None
    index: int | None = None
    step: int | None = None
    pair: tuple[Value, Value] | None = None

    def __str__(self) -> str:
        step = f", step {self.step}" if self.step else ""
        return f"{self.where}{step}: {self.expected} became {self.got}"


def differences(
    expected: Run,
    got: Run,
    masks: Sequence[re.Pattern[str]] = (),
    generators: Collection[str] = (),
    tolerance: float = 0.0,
) -> Iterator[Difference]:
    """Yield the differences between two runs, at most one of each kind.

    Args:
        expected: the run that is right.
        got: the other one.
        masks: what matches one of these in an output line is not compared.
        generators: names of the random generators to compare.
        tolerance: the relative distance (`nearness.distance`) within which values, and numbers in the output, count as
            equal; 0 compares bit for bit.
    """
    value = _values(read(expected.stream), read(got.stream), tolerance)
    if value is not None:
        yield value
    if expected.status != got.status:
        yield Difference("ending", expected.ending, got.ending, "the program's end")
    output = _output(expected.stdout, got.stdout, masks, tolerance)
    if output is not None:
        yield output
    if expected.end is not None and got.end is not None:
        yield from _ends(expected.end, got.end, generators, tolerance)


def steady_generators(one: Run, other: Run) -> set[str]:
    """The random generators that two runs left in the same state: those that the program has seeded."""
    if one.end is None or other.end is None:
        return set()
    states = other.end["generators"]
    return {name for name, state in one.end["generators"].items() if states.get(name) == state}


def step_of(run: Run, index: int) -> int | None:
    """The step in which value number `index` of a run was read, None if nobody counted steps there."""
    found = next(itertools.islice(read(run.stream), index, None), None)
    return found.step if found is not None else None


def _equal(one: Value, other: Value, tolerance: float) -> bool:
    if one.same(other):
        return True
    far = distance(one, other) if tolerance else None
    return far is not None and far <= tolerance


def _values(expected: Iterator[Crossing], got: Iterator[Crossing], tolerance: float) -> Difference | None:
    for index, (left, right) in enumerate(itertools.zip_longest(expected, got)):
        pair = None
        if left is None:
            words = "no further value", f"{right.value} read"
        elif right is None:
            words = f"{left.value} read", "no further value"
        elif (left.file, left.line) != (right.file, right.line):
            words = f"{left.value} read here", f"{right.value} read at {right.place}"
        elif not _equal(left.value, right.value, tolerance):
            words, pair = _pair(left.value, right.value), (left.value, right.value)
        else:
            continue
        place = left or right
        return Difference("value", *words, place.place, place.file, place.line, index, pair=pair)
    return None


def _pair(left: Value, right: Value) -> tuple[str, str]:
    """Two values in words that differ, even where the part of them that is shown does not."""
    if str(left) != str(right):
        return str(left), str(right)
    return f"{left} with bits {left.digest[:12]}", f"{right} with bits {right.digest[:12]}"


def _output(
    expected: Path, got: Path, masks: Sequence[re.Pattern[str]], tolerance: float
) -> Difference | None:
    with (
        expected.open(encoding="utf-8", errors="surrogateescape", newline="") as left_file,
        got.open(encoding="utf-8", errors="surrogateescape", newline="") as right_file,
    ):
        for number, (left, right) in enumerate(itertools.zip_longest(left_file, right_file), start=1):
            if left == right:
                continue
            before, after = _masked(left, masks), _masked(right, masks)
            if before == after or (tolerance and before and after and near_text(before, after, tolerance)):
                continue
            return Difference("output", _shown(left), _shown(right), f"line {number} of its output")
    return None


def _masked(line: str | None, masks: Sequence[re.Pattern[str]]) -> str | None:
    for mask in masks:
        line = mask.sub("", line) if line is not None else None
    return line


def _shown(line: str | None) -> str:
    if line is None:
        return "no line"
    text = repr(line)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _ends(
    expected: dict[str, Any], got: dict[str, Any], generators: Collection[str], tolerance: float
) -> Iterator[Difference]:
    left, right = _variables(expected), _variables(got)
    made = expected["made"], got["made"]
    if made[0] != made[1]:
        yield Difference("variable", f"{made[0]}", f"{made[1]}", "the number of variables made")
    else:
        # One that died early may have been given up in one run only; see tf.crossings.Variables.
        for number in sorted(left.keys() & right.keys()):
            (name, before), (other, after) = left[number], right[number]
            if name == other and (before is after or (before and after and _equal(before, after, tolerance))):
                continue
            words = _pair(before, after) if before and after else (_state(before), _state(after))
            named = f"variable {name!r}" + (f" (now {other!r})" if other != name else "")
            pair = (before, after) if before and after else None
            yield Difference("variable", *words, f"{named}, number {number} in order of creation", pair=pair)
            break
    for name, state in expected["generators"].items():
        if name in generators and got["generators"].get(name) != state:
            yield Difference("generator", "one state", "another", f"the random generator {name}")
            break


def _state(value: Value | None) -> str:
    return str(value) if value is not None else "no value"


def _variables(end: dict[str, Any]) -> dict[int, tuple[str, Value | None]]:
    found = {}
    for number, name, value in end["variables"]:
        if value is not None:
            value = restored(value)
        found[number] = name, value
    return found

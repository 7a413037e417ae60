"""What the variables of a stored trace are in this process: found by laying a fresh trace beside the stored one.

The first region of a process often does more than later ones: layers build their variables, an optimizer its slots.
So the traces are aligned, as `diff` aligns texts: by op, attributes, dtypes, shapes and call path, without the numbers
that what comes in between has shifted. Where two calls correspond, so do the handles that they were given. A handle
that would have to be two at once belongs to none.

A wrong guess costs time and nothing else: handles are compared by identity when a step is validated, so a block that
was bound to another variable never runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from terra_cx.cache.rows import (
    ATTRS,
    FORM,
    IN_SPECS,
    INNER,
    INPUTS,
    KIND,
    LAYOUT,
    LOOPS,
    NODE,
    OP,
    OUTPUTS,
    PATH,
    SITE,
)
from terra_cx.tf.opdefs import Kind

__all__ = ["aligned", "bound", "same_gradients"]

_MOST = 4_000_000
"""Pairs of calls that are compared at most; beyond, only what both traces begin and end with is aligned."""
_RESOURCE, _CAPTURED = 4, 5

Row = list[Any]


def aligned(stored: Sequence[Row], fresh: Sequence[Row], relaxed: bool = False) -> list[tuple[int, int]]:
    """The calls that correspond, as numbers in either trace, ascending.

    Args:
        stored: rows of one trace.
        fresh: rows of another, that refer to the same tables.
        relaxed: whether ranks count in the place of shapes.
    """
    token = _ranked if relaxed else _token
    one, other = [token(row) for row in stored], [token(row) for row in fresh]
    shorter = min(len(one), len(other))
    start = 0
    while start < shorter and one[start] == other[start]:
        start += 1
    end = 0
    while end < shorter - start and one[-1 - end] == other[-1 - end]:
        end += 1
    pairs = [(index, index) for index in range(start)]
    middle = one[start : len(one) - end], other[start : len(other) - end]
    if all(middle) and len(middle[0]) * len(middle[1]) <= _MOST:
        for a, b, size in SequenceMatcher(None, *middle, autojunk=False).get_matching_blocks():
            pairs += [(start + a + index, start + b + index) for index in range(size)]
    pairs += [(len(one) - index, len(other) - index) for index in range(end, 0, -1)]
    return pairs


def bound(stored: Sequence[Row], fresh: Sequence[Row], pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Which fresh handle each stored one is, by number."""
    votes: dict[int, Counter[int]] = {}
    for a, b in pairs:
        for one, other in _handles(stored[a], fresh[b]):
            votes.setdefault(one, Counter())[other] += 1
    found = {one: others.most_common(1)[0][0] for one, others in votes.items() if len(others) == 1}
    owners = Counter(found.values())
    return {one: other for one, other in found.items() if owners[other] == 1}


def same_gradients(stored: Sequence[Row], fresh: Sequence[Row], pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether gradients that correspond ran the same ops, with the same tensors of their own.

    What a gradient does is not validated when a step is co-executed, so it is compared here where it can be. The order
    of its ops may vary between equal calls.
    """
    for a, b in pairs:
        if stored[a][KIND] != Kind.GRADIENT.value or stored[a][NODE] is not None:
            continue
        one, other = stored[a][INNER], fresh[b][INNER]
        if Counter(map(_inner, one)) != Counter(map(_inner, other)):
            return False
    return True


def _token(row: Row) -> str:
    site = row[SITE]
    place = None if site is None else [site[PATH], site[LOOPS]]
    return json.dumps([row[OP], row[FORM], row[ATTRS], row[LAYOUT], row[IN_SPECS], row[OUTPUTS], place])


def _ranked(row: Row) -> str:
    place = None if row[SITE] is None else row[SITE][PATH]
    specs = [[None if spec is None else _rank(spec) for spec in row[which]] for which in (IN_SPECS, OUTPUTS)]
    return json.dumps([row[OP], row[FORM], row[ATTRS], *specs, place])


def _rank(spec: list[Any]) -> list[Any]:
    dtype, shape = spec[:2]
    return [dtype, None if shape is None else len(shape)]


def _inner(row: Row) -> str:
    constants = [ref for ref in row[INPUTS] if ref[0] == _CAPTURED]
    return json.dumps([row[OP], row[FORM], row[ATTRS], row[LAYOUT], row[IN_SPECS], row[OUTPUTS], constants])


def _handles(stored: Row, fresh: Row) -> list[tuple[int, int]]:
    found = [
        (one[1], other[1])
        for one, other in zip(stored[INPUTS], fresh[INPUTS], strict=False)
        if one[0] == other[0] == _RESOURCE and one[1] is not None and other[1] is not None
    ]
    if len(stored[INNER]) == len(fresh[INNER]):
        for one, other in zip(stored[INNER], fresh[INNER], strict=True):
            if _inner(one) != _inner(other):
                break  # its ops come in another order
            found += _handles(one, other)
    return found

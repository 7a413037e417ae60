"""Arithmetic of intervals on the time line: `(start, end)` pairs of integers, half open."""

from __future__ import annotations

from collections.abc import Iterable

from terra_cx.profile.events import Span

__all__ = ["intersection", "length", "subtract", "union"]


def union(spans: Iterable[Span]) -> list[Span]:
    """The same points in order, no two intervals touching."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if end <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def length(spans: Iterable[Span]) -> int:
    """The measure of intervals that do not overlap, as from the other functions."""
    return sum(end - start for start, end in spans)


def intersection(one: Iterable[Span], other: Iterable[Span]) -> list[Span]:
    """The points that are in both."""
    mine, yours = union(one), union(other)
    found: list[Span] = []
    i = j = 0
    while i < len(mine) and j < len(yours):
        start, end = max(mine[i][0], yours[j][0]), min(mine[i][1], yours[j][1])
        if start < end:
            found.append((start, end))
        if mine[i][1] < yours[j][1]:
            i += 1
        else:
            j += 1
    return found


def subtract(one: Iterable[Span], other: Iterable[Span]) -> list[Span]:
    """The points that are in ``one`` and not in ``other``."""
    left: list[Span] = []
    taken = union(other)
    index = 0
    for start, end in union(one):
        while index < len(taken) and taken[index][1] <= start:
            index += 1
        at, position = index, start
        while at < len(taken) and taken[at][0] < end:
            if taken[at][0] > position:
                left.append((position, taken[at][0]))
            position = max(position, taken[at][1])
            at += 1
        if position < end:
            left.append((position, end))
    return left

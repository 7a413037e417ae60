"""The compiled graph alone: the least that a step can cost with this graph on this machine.

While the program is co-executed, the calls of compiled functions that the last regions made are kept, with their feeds.
When the program is over, those of one whole region are made again, in a tight loop with nothing else. Python's part of
the step, waiting, and what the owner thread does (iterators, host callbacks) are not in it; random draws are.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, NamedTuple

from terra_cx.check.speed import MIN_LAPS, step_ms
from terra_cx.run.block_run import BlockRun, Draw
from terra_cx.run.contest import Contest
from terra_cx.run.eager import do_draw
from terra_cx.tf.graphs import CompiledFunction

__all__ = ["Limit"]

_KEPT = 8  # regions
_MOST_SECONDS = 2.0
_MOST_LAPS = 500
_WARM = 5


class _Call(NamedTuple):
    function: CompiledFunction | Contest
    feeds: list[Any]
    draws: list[tuple[Draw, list[int]]]
    """Each random op with the numbers of the parameters that take its results."""


class Limit:
    """Keeps the calls of the last eight regions."""

    def __init__(self) -> None:
        self._regions: dict[int, list[_Call | None]] = {}

    def tap(self, run: BlockRun, function: CompiledFunction | Contest | None, feeds: list[Any]) -> None:
        """A run is being executed, by a compiled function or (None) op by op; called on the runner's thread."""
        calls = self._regions.get(run.region)
        if calls is None:
            calls = self._regions[run.region] = []
            while len(self._regions) > _KEPT:
                del self._regions[next(iter(self._regions))]
        if function is None:
            calls.append(None)
            return
        draws = []
        for draw in run.draws.values():
            numbers = [run.block.draws[draw.step.base + index] for index in range(len(draw.step.specs))]
            draws.append((draw, numbers))
        calls.append(_Call(function, list(feeds), draws))

    def milliseconds(self) -> float | None:
        """Time the graph; None if there was no region that ran compiled from end to end.

        Runs the program's effects many times over: for when nobody needs its variables any more.
        """
        calls = self._whole_region()
        if not calls:
            return None
        for _ in range(_WARM):
            _make(calls)
        laps: list[float] = []
        end = time.perf_counter() + _MOST_SECONDS
        before = time.perf_counter()
        while len(laps) < _MOST_LAPS and (before < end or len(laps) < MIN_LAPS):
            _make(calls)
            now = time.perf_counter()
            laps.append(now - before)
            before = now
        return step_ms(laps)

    def _whole_region(self) -> list[_Call]:
        """The calls of the latest region of the usual length: the last one may have ended with the program."""
        whole = [
            [call for call in calls if call is not None]
            for calls in self._regions.values()
            if None not in calls
        ]
        if not whole:
            return []
        usual = Counter(map(len, whole)).most_common(1)[0][0]
        return next(calls for calls in reversed(whole) if len(calls) == usual)


def _make(calls: list[_Call]) -> None:
    for call in calls:
        for draw, numbers in call.draws:
            for number, value in zip(numbers, do_draw(draw), strict=True):
                call.feeds[number] = value
        call.function(call.feeds)

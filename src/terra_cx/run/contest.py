"""A contest between the levels of one block, in the running program: which of its functions is the fastest.

The block begins at `exact`. When it has run for so long that trying a level costs little beside that (`SHARE`), the
level's function is made and verified in one run, as any first run is (`run.leveling`), and then takes turns with the
fastest function so far. What is compared are pairs of calls that follow each other, A B B A: a machine that slows down
slows down both. A level has to win by `MARGIN` in the median, and most of the pairs; within the noise the more exact
one stays.

Each level is tried once, so the cost is bounded, and a program that ends early pays nothing.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from terra_cx.compile.blocks import Block
from terra_cx.levels import Level
from terra_cx.tf.graphs import CompiledFunction

__all__ = ["Contest"]

SHARE = 0.1
"""Of the time that a block has run for, so much may be spent on trying a level."""
COSTS = {Level.GRAPH: 0.5e-3, Level.XLA: 20e-3}
"""About what it takes to try a level, in seconds per op of the block: the op run by itself, and compiled."""
PAIRS = 15
MARGIN, MOST = 0.95, 0.75
"""A level is picked if it takes less than this part of the other's time in the median of its pairs, and is faster in
that part of them: of fifteen tosses of a coin, so many are heads one time in fifty."""


class Contest:
    """Called as the function of a block's variant; see the module's page.

    Args:
        block: the block; `Block.picked` is set when all levels have been tried.
        exact: its function at level `exact`.
    """

    def __init__(self, block: Block, exact: CompiledFunction) -> None:
        self.ms: float | None = None
        """Milliseconds of a call at `exact`, as measured."""
        self.relative: dict[Level, float] = {}
        """By the levels that were tried: their time over that at `exact`."""
        self._block = block
        self._best = exact
        self._challenger: CompiledFunction | None = None
        self._untried = [Level.GRAPH, Level.XLA]
        self._spent = 0.0
        self._pairs: list[tuple[float, float]] = []
        self._turn = 0
        self._half = 0.0
        """Seconds of the pair's first call."""

    @property
    def level(self) -> Level:
        """The level that is ahead."""
        return self._best.level

    @property
    def due(self) -> bool:
        """Whether the next run is to try another level."""
        if not self._untried or self._challenger is not None:
            return False
        return self._spent * SHARE >= COSTS[self._untried[0]] * len(self._block.ops)

    @property
    def over(self) -> bool:
        """Whether all levels have been tried."""
        return not self._untried and self._challenger is None

    def next_level(self) -> Level:
        """The level to be tried now."""
        return self._untried.pop(0)

    def challenge(self, function: CompiledFunction | None) -> None:
        """The level was tried: its function, or None if it is not to be had."""
        self._challenger = function
        self._pairs, self._turn = [], 0
        if function is None:
            self._end_if_over()

    def __call__(self, feeds: list[Any]) -> list[Any]:
        """Run one of the functions; see `tf.graphs.CompiledFunction`."""
        challenger = self._challenger
        function = self._best if challenger is None or self._turn % 4 in (0, 3) else challenger
        start = time.perf_counter()
        results = function(feeds)
        seconds = time.perf_counter() - start
        self._spent += seconds
        if challenger is not None:
            self._timed(challenger, seconds)
        return results

    def _timed(self, challenger: CompiledFunction, seconds: float) -> None:
        self._turn += 1
        if self._turn % 2:
            self._half = seconds
            return
        # While a function still tries executors, its times are not its own.
        if self._best.settled and challenger.settled:
            self._pairs.append((self._half, seconds) if self._turn % 4 == 2 else (seconds, self._half))
        if len(self._pairs) > PAIRS:
            self._decide(challenger)

    def _decide(self, challenger: CompiledFunction) -> None:
        pairs = self._pairs[1:]  # the first pays for what is cold
        if self.ms is None:
            self.ms = 1e3 * median(best for best, _ in pairs)
        ratio = median(other / best for best, other in pairs)
        self.relative[challenger.level] = ratio * self.relative.get(self._best.level, 1.0)
        if ratio < MARGIN and sum(other < best for best, other in pairs) >= MOST * len(pairs):
            self._best = challenger
        self._challenger = None
        self._pairs = []
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self.over:
            self._block.picked = self.level
            for level in list(self._block.forms):
                if level is not self.level:
                    del self._block.forms[level]

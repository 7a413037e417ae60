"""Leveling: at which level of optimization each block runs, and why not at a higher one.

A function of a level above `exact` is verified in the run in which it is made, as one of level `exact` is, with one
difference: its results may be as far from the truth as the level allows (`run.closeness`). A level that is refused, or
does not compile, is not tried again for the block; it then runs at the next lower one, in the end at `exact`. Nothing
of this is an error of the program's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from terra_cx.compile.blocks import Block
from terra_cx.compile.lowering import function_at
from terra_cx.levels import LADDER, Level
from terra_cx.reasons import Reason
from terra_cx.run.block_run import BlockRun
from terra_cx.run.closeness import moved_by_one, too_far
from terra_cx.run.contest import Contest
from terra_cx.run.eager import recompute
from terra_cx.run.verify import Snapshot, same_bits
from terra_cx.tf.graphs import CompiledFunction

__all__ = ["Leveling", "Refusal", "Trial"]

_MOST_REFUSALS = 100
"""Kinds of refusal that are kept, and blocks whose contest is told."""
_REPEATS = 3
"""How often eager's kernels are asked whether they can do the same again."""


@dataclass(slots=True)
class Trial:
    """What is known of a run that was executed op by op: feeds, values by flat output, variables before and after."""

    run: BlockRun
    feeds: list[Any]
    outputs: frozenset[int]
    values: list[Any]
    before: Snapshot
    after: Snapshot

    def problem(self, function: CompiledFunction) -> str | None:
        """Run a function from the same start; None if its results are as close as its level asks, else what is not.

        Raises:
            Exception: it cannot be compiled or run.
        """
        self.before.restore()
        got = [*function(self.feeds), *self.before.again().values]
        return too_far(got, [*self._of(self.values), *self.after.values], self._probe)

    def is_steady(self) -> bool:
        """Whether eager's own kernels give the same bits when the run is executed by them again."""
        for _ in range(_REPEATS):
            self.before.restore()
            if not self.gave(self._of(recompute(self.run, self.feeds))):
                return False
        return True

    def gave(self, results: list[Any]) -> bool:
        """Whether an execution's results, and the variables as it has left them, have the bits of the truth."""
        same = all(same_bits(*pair) for pair in zip(results, self._of(self.values), strict=True))
        return same and self.after.equals(self.before.again())

    def _of(self, values: list[Any]) -> list[Any]:
        return [values[flat] for flat in sorted(self.outputs)]

    def _probe(self, number: int) -> list[Any]:
        """The truth, had the feeds and the variables that are written been one unit in the last place off."""
        rng = np.random.default_rng(number)
        self.before.moved(lambda value: moved_by_one(value, rng)).restore()
        feeds = [moved_by_one(feed, rng) for feed in self.feeds]
        values = recompute(self.run, feeds)
        return [*self._of(values), *self.before.again().values]


@dataclass(slots=True)
class Refusal:
    """Blocks at one line that do not run at a level: the reason's id, the detail of the first, how many."""

    reason: Reason
    level: Level
    line: str
    detail: str
    count: int = 0


class Leveling:
    """See the module's page.

    Args:
        asked: the setting: a level's name, or ``auto``.
    """

    def __init__(self, asked: str) -> None:
        self.asked = asked
        self.auto = asked == "auto"
        self._ladder = LADDER[asked]
        self._refusals: dict[tuple[Reason, Level, str], Refusal] = {}

    def takes(self, trial: Trial) -> bool:
        """Find the function of a run that has none, or the next one of a contest; the variables' values are not kept.

        Returns:
            Whether the block has a function now; if not, it is to run at level `exact`.
        """
        block = trial.run.block
        if not block.ops:
            return False  # nothing but random draws, which are made before it
        known = block.variants.get(trial.outputs)
        if isinstance(known, Contest):
            known.challenge(self._function(trial, known.next_level()))
            return True
        ladder = self._ladder
        if block.picked is not None and block.picked is not Level.EXACT:
            ladder = (block.picked,)
        for level in ladder:
            function = self._function(trial, level)
            if function is not None:
                block.variants[trial.outputs] = function
                return True
        return False

    def starts_from(self, block: Block, outputs: frozenset[int], exact: CompiledFunction) -> None:
        """A function of level `exact` was made; with ``auto`` a contest begins."""
        if self.auto and block.picked is None and block.ops:
            block.variants[outputs] = Contest(block, exact)

    def _function(self, trial: Trial, level: Level) -> CompiledFunction | None:
        """The verified function of a level, None if the block is not to run at it."""
        block = trial.run.block
        if level in block.refused:
            return None
        try:
            function = function_at(block, trial.outputs, level)
            problem = trial.problem(function)
        except Exception as error:  # noqa: BLE001  # whatever a compiler refuses
            text = str(error).splitlines()[0][:200] if str(error) else ""
            self._refuse(block, level, Reason.LEVEL_NOT_COMPILED, f"{type(error).__name__}: {text}")
            return None
        if problem is None:
            return function
        self._refuse(block, level, Reason.LEVEL_DIFFERS, problem)
        return None

    def _refuse(self, block: Block, level: Level, reason: Reason, detail: str) -> None:
        block.refused[level] = f"{reason}: {detail}"
        block.forms.pop(level, None)
        for outputs, function in list(block.variants.items()):
            if getattr(function, "level", None) is level:
                del block.variants[outputs]  # what is wrong with one set of outputs may be so with another
        key = reason, level, block.line
        if key not in self._refusals and len(self._refusals) < _MOST_REFUSALS:
            self._refusals[key] = Refusal(reason, level, block.line, detail)
        if key in self._refusals:
            self._refusals[key].count += 1

    def as_dict(self, blocks: Iterable[Block]) -> dict[str, Any]:
        """For the report; also while blocks are run on another thread.

        Args:
            blocks: those that are in use.
        """
        counts: Counter[str] = Counter()
        measured: list[dict[str, Any]] = []
        for block in blocks:
            if block.idle or not (block.variants or block.eager):
                continue  # it has not run
            function = block.variants.get(block.outputs) or next(iter([*block.variants.values()]), None)
            level = getattr(function, "level", Level.EXACT)
            counts["op by op" if block.eager is not None else level] += 1
            if isinstance(function, Contest) and function.ms is not None and len(measured) < _MOST_REFUSALS:
                relative = {each.value: round(ratio, 4) for each, ratio in dict(function.relative).items()}
                told = {"line": block.line, "picked": level.value, "over": function.over}
                measured.append({**told, "exact_ms": round(function.ms, 6), "relative": relative})
        return {
            "asked": self.asked,
            "blocks": {str(level): count for level, count in counts.items()},
            "measured": measured,
            "refused": [
                {
                    "reason": each.reason,
                    "level": each.level.value,
                    "line": os.path.basename(each.line),
                    "at": each.line,
                    "detail": each.detail,
                    "count": each.count,
                }
                for each in [*self._refusals.values()]
            ],
        }

"""One active anchor: its TraceGraph, its blocks, and where it stands between first trace and co-execution."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from statistics import median
from typing import Any

from terra_cx.cache.warm import Kept
from terra_cx.compile.blocks import Block, build_block
from terra_cx.compile.lowering import lower, prepare
from terra_cx.reasons import Reason
from terra_cx.run.differences import Difference
from terra_cx.run.elisions import Elisions
from terra_cx.run.pace import Manner, Pace
from terra_cx.tf.opdefs import Kind
from terra_cx.trace.tracegraph import Node, TraceGraph

__all__ = ["ActiveAnchor", "Fallback", "Stage"]

MAX_UNSETTLED = 16
"""Traced regions in a row that each added something, after which the anchor is given up."""
_WINDOW = 20
_PATIENCE = 60
"""Regions before an anchor that keeps diverging is given up: a program with ten ways through its step needs some thirty
to go each of them once."""
_MOST_AT_TAPES = 8
"""Regions in a row that diverged at a tape, after which its gradients are taken op by op: one that is asked about
tensors whose shape only their values tell, or by a `tf.function`, can be known in no other way."""
_MOST_REFUSED = 2
"""Regions in a row that may change what ops do; with the next one it is part of the step."""
_MOST_REPLACED = 4
"""Fallbacks at a variable that was another one, after which the step is learned anew: a model that the program has made
in the place of another would be known beside it for ever, and both be kept alive."""
_AT_TAPES = frozenset({Reason.NEW_GRADIENT, Reason.TAPE_QUERY})
_DIFFERENCES = 8
"""Kinds of difference that are kept of one kind of fallback: shapes that never repeat have no end."""


class Stage(Enum):
    """What the anchor's next region will be."""

    TRACING = "tracing"
    CO = "co-executing"
    GIVEN_UP = "given up"


@dataclass(slots=True)
class Fallback:
    """One kind of fallback: reason id, the user's line, what differed first, how often, how long."""

    reason: Reason
    line: str
    detail: str
    count: int = 0
    seconds: float = 0.0
    differences: Counter[Difference] = field(default_factory=Counter)
    """How often each difference was met; at most `_DIFFERENCES` kinds."""

    def met(self, difference: Difference) -> None:
        """Count a difference."""
        if difference in self.differences or len(self.differences) < _DIFFERENCES:
            self.differences[difference] += 1

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "reason": self.reason,
            "line": os.path.basename(self.line),
            "at": self.line,
            "detail": self.detail,
            "count": self.count,
            "seconds": round(self.seconds, 6),
            "differences": [
                {
                    "what": each.what,
                    "op": each.op,
                    "where": each.where,
                    "new": each.new,
                    "known": each.known,
                    "lines": list(each.lines),
                    "count": count,
                }
                for each, count in self.differences.most_common()
            ],
        }


@dataclass(slots=True)
class ActiveAnchor:
    """See the module's page. Times are in seconds."""

    id: int
    """Its number in the anchor table."""
    line: str
    graph: TraceGraph
    next_uid: Callable[[], int]
    needed: int = 1
    """Traced regions that must add nothing before co-execution starts."""
    stage: Stage = Stage.TRACING
    settled: int = 0
    unsettled: int = 0
    outgrown: int = 0
    """Traced regions in a row that had more ops than may be traced."""
    longest: int = 0
    """Most ops of a region that was traced from its beginning."""
    in_vain: set[tuple[Node, str]] = field(default_factory=set)
    """Divergences (after which node, and how) that led to more ops than may be traced, or out of the loop."""
    elisions: Elisions | None = None
    """The library calls that may be elided in its regions."""
    kept: Kept | None = None
    """What a cache holds of it, if there is one."""
    live_tapes: str | None = None
    """Why the gradients of its regions are taken op by op (`run.live_skeleton`), if they are."""
    relaxed: str | None = None
    """Why its blocks are for tensors of all sizes, if they are."""
    given_up: str | None = None
    regions: Counter[str] = field(default_factory=Counter)
    fallbacks: dict[tuple[Reason, str], Fallback] = field(default_factory=dict)
    eager_times: list[float] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)
    co_times: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    _refused: int = 0
    """Regions in a row that changed what ops do."""
    _replaced: int = 0
    """Fallbacks at other variables since the step was learned."""
    _at_tapes: int = 0
    """Regions in a row that diverged at a tape."""
    _patience: int = _PATIENCE
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _blocks: dict[Node, Block] = field(default_factory=dict)
    _versions: dict[Node, int] = field(default_factory=dict)

    def block_for(self, node: Node) -> Block:
        """The block that starts at ``node``, built anew if the TraceGraph's nodes in it have changed."""
        block = self._blocks.get(node)
        version = self.graph.version
        if block is not None and self._versions[node] == version:
            return block
        if block is None or block.built_from != block.revisions:
            block = self._blocks[node] = build_block(self.graph, node, self.next_uid(), self._lower)
        self._versions[node] = version
        self.graph.gradients.keep(block.nodes)
        return block

    def _lower(self, block: Block) -> None:
        """Lower a block, or take over what a cache has of it.

        Raises:
            Cut: the block must be shorter.
        """
        prepared = None if self.kept is None else self.kept.journal.prepared(block)
        if prepared is None:
            lower(block)
        else:
            prepare(block, prepared)

    @property
    def blocks(self) -> list[Block]:
        """The current blocks."""
        return list(self._blocks.values())

    def forget_blocks(self) -> None:
        """Drop all compiled functions."""
        self.in_vain.clear()
        self._blocks.clear()
        self._versions.clear()

    def traced(self, changed: bool, newest: Node | None) -> None:
        """A traced region was merged; decide whether the graph is stable."""
        self.regions["traced"] += 1
        self.outgrown = self._refused = 0
        if changed:
            self.settled = 0
            self.unsettled += 1
        else:
            self.settled += 1
            self.unsettled = 0
        if self.settled >= self.needed:
            self.stage = Stage.CO
            self._prepare()
        elif self.unsettled >= MAX_UNSETTLED and self._can_go_live():
            self.go_live(
                Reason.UNSETTLED, f"{self.unsettled} steps in a row asked for a gradient of another history"
            )
        elif self.unsettled >= MAX_UNSETTLED:
            last = "" if newest is None else f", the last {newest.call.op} at {os.path.basename(newest.line)}"
            self.give_up(
                Reason.UNSETTLED, f"{self.unsettled} traced regions in a row each did something new{last}"
            )

    def warm_started(self) -> None:
        """The TraceGraph is known from another process; the region that was traced has bound it."""
        self.regions["traced"] += 1
        self.stage = Stage.CO
        assert self.kept is not None
        if self.kept.pace is not None:
            self.pace.resume(Manner(self.kept.pace))
        self._prepare()

    @property
    def binds(self) -> bool:
        """Whether the region that will be traced is meant for nothing else than that."""
        return self.kept is not None and self.kept.journal.untried

    def _can_go_live(self) -> bool:
        """Whether it is the gradients that never settle: taken op by op, there are no more of them than ops."""
        return self.live_tapes is None and any(node.kind is Kind.GRADIENT for node in self.graph)

    def refused(self, reason: Reason, detail: str, seconds: float | None) -> None:
        """A region did what cannot be part of a step. What changes what ops do may belong to what lies between loops.

        (Seeds that are set before each fold of a cross-validation are set in the last region of the fold before.)

        Args:
            reason: what it did.
            detail: the same in words.
            seconds: how long it took, if it was co-executed until then.
        """
        if reason is not Reason.NATIVE_EFFECT or self._refused == _MOST_REFUSED:
            self.fell_back(reason, self.line, detail)
            self.give_up(reason, detail)
            return
        self._refused += 1
        if seconds is not None:
            self.co_executed(seconds, False)  # the fallback was counted where it diverged
        else:
            self.fell_back(reason, self.line, detail)

    def outgrew(self) -> None:
        """A traced region had too many ops. Once may be an evaluation within; twice in a row it is the step."""
        self.regions["traced"] += 1
        self.outgrown += 1
        if self.outgrown == 2:
            self.give_up(Reason.GRAPH_TOO_LARGE, f"more than {self.graph.max_nodes} ops in a step")

    def _prepare(self) -> None:
        """Build the blocks of the hot path now."""
        seen: set[Node] = set()
        node = self.graph.root.hottest()
        while node is not None and node not in seen:
            seen.add(node)
            node = self.block_for(node).nodes[-1].hottest()

    def co_executed(self, seconds: float, whole: bool) -> None:
        """A region of stage CO ended; ``whole`` if it did not diverge."""
        self.regions["co_executed" if whole else "diverged"] += 1
        self._recent.append(whole)
        if whole:
            self.co_times.append(seconds)
            self._at_tapes = self._refused = 0
        elif self._at_tapes >= _MOST_AT_TAPES and self._can_go_live():
            self.go_live(Reason.UNSETTLED, f"{self._at_tapes} steps in a row diverged at their tape")
            return
        if self._replaced >= _MOST_REPLACED:
            patience = self._patience
            self._learn_anew()
            self._patience = patience  # a step that makes variables each time is given up as any other
        tried = self.regions["co_executed"] + self.regions["diverged"]
        if tried >= self._patience and sum(self._recent) < _WINDOW // 2:
            reasons = ", ".join(sorted({f"{f.reason} at {f.line}" for f in self.fallbacks.values()})[:3])
            self.give_up(
                Reason.DIVERGES, f"{_WINDOW - sum(self._recent)} of the last {_WINDOW} regions ({reasons})"
            )

    def paced(self, seconds: float, disturbed: bool, rare: bool) -> None:
        """A region took so long in the manner that `pace` had asked for; give up what does not pay."""
        self.pace.ended(seconds, disturbed, rare)
        if self.pace.chosen is Manner.EAGER:
            eager, co = (
                self.pace.ms(Manner.EAGER),
                min(self.pace.ms(Manner.OVERLAPPED), self.pace.ms(Manner.TURNS)),
            )
            self.give_up(Reason.DOES_NOT_PAY, f"{co:.3g} ms co-executed, {eager:.3g} ms in eager")

    def retrace(self) -> None:
        """The TraceGraph was emptied: learn it again."""
        self.stage = Stage.TRACING
        self.settled = 0
        self.forget_blocks()
        if self.elisions is not None:
            self.elisions.clear()

    def go_live(self, reason: Reason, detail: str) -> None:
        """Learn the step anew, with live tapes."""
        self.live_tapes = f"{reason}: {detail}"
        self._learn_anew()

    def _learn_anew(self) -> None:
        if self.kept is not None:
            self.kept.journal.restart(self.graph.rolled)
        rolled = self.graph.rolled
        self.graph = self.empty_graph()
        self.graph.rolled.update(rolled)
        self.unsettled = self._replaced = 0
        self._patience = self.regions["co_executed"] + self.regions["diverged"] + _PATIENCE
        self.retrace()

    def empty_graph(self) -> TraceGraph:
        """A TraceGraph of the kind in which the step is learned."""
        return TraceGraph(
            self.graph.max_nodes, relaxed=self.relaxed is not None, folded=self.live_tapes is not None
        )

    def relax(self, op: str, line: str) -> None:
        """Learn the step anew, for tensors of all sizes; gradients, which look at sizes, are then taken op by op."""
        self.relaxed = f"{Reason.NEW_SHAPE}: {op} at {line} has more than {self.graph.most_shapes} shapes"
        self.live_tapes = self.live_tapes or self.relaxed
        self._learn_anew()

    def fell_back(self, reason: Reason, line: str, detail: str | Difference) -> Fallback:
        """Count a fallback."""
        self._at_tapes = self._at_tapes + 1 if reason in _AT_TAPES else 0
        found = self.fallbacks.get((reason, line))
        if found is None:
            found = self.fallbacks[reason, line] = Fallback(reason, line, str(detail))
        found.count += 1
        if isinstance(detail, Difference):
            self._replaced += detail.what == "variable"
            found.met(detail.seen_from(line))
        return found

    def give_up(self, reason: Reason, detail: str) -> None:
        """Go back to plain eager for good."""
        self.stage = Stage.GIVEN_UP
        self.given_up = f"{reason}: {detail}"
        self.forget_blocks()

    def step_ms(self) -> tuple[float | None, float | None]:
        """Milliseconds of an eager region, and of a steady co-executed one.

        As measured where the pace was chosen. Before that, the median of co-executed regions; and of the few eager
        ones at the start, which pay first-call costs, the fastest.
        """
        if self.pace.seconds and self.pace.chosen in (Manner.OVERLAPPED, Manner.TURNS):
            return self.pace.ms(Manner.EAGER), self.pace.ms(self.pace.chosen)
        co = list(self.co_times)[5:] or list(self.co_times)
        return (min(self.eager_times) * 1e3 if self.eager_times else None, median(co) * 1e3 if co else None)

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "line": self.line,
            "state": self.stage.value,
            "nodes": len(self.graph),
            "blocks": len(self._blocks),
            "live_tapes": self.live_tapes,
            "relaxed": self.relaxed,
            "elisions": None if self.elisions is None else self.elisions.as_dict(),
            "given_up": self.given_up,
            "warm_start": None if self.kept is None else self.kept.started,
            "manner": self.pace.chosen.value if self.pace.chosen is not None else None,
            "manner_ms": {manner.value: self.pace.ms(manner) for manner in self.pace.seconds},
        }


def now() -> float:
    """Seconds on the clock all times of a report use."""
    return time.perf_counter()

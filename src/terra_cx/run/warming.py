"""Anchors and the cache: what is stored is taken up when a region has bound it, and what is learned is noted and saved.

A mistake of ours here ends the use of the cache, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from terra_cx.cache.journal import Malformed, Misfit
from terra_cx.cache.warm import Kept, WarmStart
from terra_cx.run.anchor import ActiveAnchor, Stage
from terra_cx.trace.recorder import Recorder
from terra_cx.trace.records import Trace
from terra_cx.trace.tracegraph import MergeResult

__all__ = ["Warming"]

T = TypeVar("T")


class Warming:
    """See the module's page.

    Args:
        cache: the session's, None without one.
        anchors: those that are active, by id.
        internal: told of mistakes of ours.
    """

    def __init__(
        self,
        cache: WarmStart | None,
        anchors: Mapping[int, ActiveAnchor],
        internal: Callable[[str, BaseException], None],
    ) -> None:
        self._cache = cache
        self._anchors = anchors
        self._internal = internal

    def activated(self, anchor: ActiveAnchor) -> None:
        """An anchor has become active: look what there is of it."""
        cache = self._cache
        if cache is None:
            return
        anchor.kept = self._guarded(lambda: cache.opened(anchor.id))
        if anchor.kept is not None:
            anchor.live_tapes, anchor.relaxed = anchor.kept.live_tapes, anchor.kept.relaxed
            anchor.graph = anchor.empty_graph()

    def passed_over(self, anchor: ActiveAnchor, trace: Trace) -> bool:
        """Whether a region was only meant to bind what is stored and cannot even be recorded; it is done with then.

        The first region of a process builds what later ones use, and may do so in ways that no step does.
        """
        kept = anchor.kept
        if kept is None or not anchor.binds or trace.refused is None:
            return False
        anchor.regions["traced"] += 1
        kept.journal.pass_over()
        return True

    def taken_up(self, anchor: ActiveAnchor, recorder: Recorder) -> bool:
        """Whether a region that was traced has been laid beside what is stored, and is done with."""
        kept, cache, trace = anchor.kept, self._cache, recorder.trace
        if kept is None or cache is None or not kept.journal.waiting:
            return False
        try:
            warm = self._guarded(lambda: kept.journal.warm(trace, anchor.empty_graph()))
        except Malformed as why:
            cache.unusable(kept, str(why))
            return False
        except Misfit as why:
            # Nothing is wrong: programs are edited, and told to do other things. It will be written anew.
            cache.unfit(kept, str(why))
            return False
        if warm is None:
            anchor.regions["traced"] += 1
            return anchor.kept is not None  # the next region will be tried
        anchor.graph = warm.graph
        for call, node in zip(trace.calls, warm.nodes, strict=True):
            call.node = node
        if anchor.elisions is not None and recorder.calls is None:
            anchor.elisions.soon()
        elif anchor.elisions is not None:
            found = recorder.calls.found
            known = [one for one in found if all(call.node for call in trace.calls[one.first : one.last])]
            anchor.elisions.learn(trace, known)
        more = f", {warm.left_out} traces left out" if warm.left_out else ""
        kept.started = f"{len(warm.graph)} operations known{more}"
        anchor.warm_started()
        return True

    def merged(self, anchor: ActiveAnchor, trace: Trace) -> MergeResult:
        """Merge a trace into the anchor's TraceGraph, and note it if it has taught something."""
        kept = anchor.kept
        if kept is None:
            return anchor.graph.merge(trace)
        row = self._guarded(lambda: kept.journal.noted(trace))
        result = anchor.graph.merge(trace)
        self._guarded(lambda: kept.journal.merged(row, result, anchor.graph))
        return result

    def co_executed(self, anchor: ActiveAnchor, pace: str | None) -> None:
        """A region was co-executed: now and then, what is new is saved."""
        if anchor.kept is not None and anchor.kept.due(anchor.regions["co_executed"]):
            self._save(anchor, anchor.kept, pace)

    def ended(self, pace: Callable[[ActiveAnchor], str | None]) -> None:
        """The run ends: save what is new."""
        for anchor in self._anchors.values():
            if anchor.kept is not None:
                self._save(anchor, anchor.kept, pace(anchor))

    def _save(self, anchor: ActiveAnchor, kept: Kept, pace: str | None) -> None:
        cache = self._cache
        if cache is None or anchor.stage is not Stage.CO:
            return
        about = {
            "line": anchor.line,
            "pace": pace,
            "live_tapes": anchor.live_tapes,
            "relaxed": anchor.relaxed,
        }
        self._guarded(lambda: cache.save(kept, anchor.graph, anchor.blocks, about))

    def _guarded(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except (Malformed, Misfit):
            raise
        except Exception as error:  # noqa: BLE001
            self._internal("the cache", error)
            self._cache = None
            for anchor in self._anchors.values():
                anchor.kept = None
            return None

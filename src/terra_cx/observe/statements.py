"""Ties ops to user statements while a region is traced, by ``sys.settrace``.

The observer counts line events of user frames: a new line event begins a new *statement instance*, in which ops are
numbered. So the same call in two iterations of a loop has the same site, and two ops of one call have different ones.
An existing trace function (a debugger, coverage) is chained, never dropped, and restored exactly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from terra_cx.observe.importer import UserCode

__all__ = ["Site", "StatementObserver"]

Tracer = Callable[[FrameType, str, Any], Any]


@dataclass(frozen=True, slots=True)
class Site:
    """Where in the user's program an op was issued.

    ``path`` are the user frames from the anchor's frame inward, each as (code, offset of the current instruction);
    ``loops`` the active loops as (anchor id, iteration); ``ordinal`` the op's number within the statement instance.
    """

    path: tuple[tuple[CodeType, int], ...]
    loops: tuple[tuple[int, int], ...]
    ordinal: int
    filename: str
    line: int


@dataclass(slots=True)
class _FrameState:
    """What is known of one user frame, found by its ``id`` (frames cannot be referenced weakly)."""

    code: CodeType
    statements: int = 0
    ordinal: int = 0
    loops: list[list[int]] | None = None


class StatementObserver:
    """See the module's page. Used on the owner thread, between `start` and `stop`."""

    def __init__(self, user: UserCode) -> None:
        self._user = user
        self._frames: dict[int, _FrameState] = {}
        self._anchor_id = 0
        self._calls = 0
        self._previous: Any = None
        self._touched: list[tuple[FrameType, Any]] = []
        self._on = False

    def start(self, anchor_frame: int) -> None:
        """Observe from here on; ``anchor_frame`` is the ``id`` of the frame that the region began in."""
        self._frames.clear()
        self._calls = 0
        self._anchor_id = anchor_frame
        self._previous = sys.gettrace()
        self._touched = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if self._user.owns(frame.f_code):
                self._touched.append((frame, frame.f_trace))
                frame.f_trace = self._chain(frame.f_trace)
            frame = frame.f_back
        self._on = True
        sys.settrace(self._global)

    def stop(self) -> None:
        """Stop observing and restore what was there."""
        if not self._on:
            return
        self._on = False
        # A debugger that set its own function meanwhile keeps it.
        if sys.gettrace() == self._global:
            sys.settrace(self._previous)
        for frame, trace in self._touched:
            frame.f_trace = trace
        self._touched = []
        self._previous = None
        self._frames.clear()

    def _global(self, frame: FrameType, event: str, arg: Any) -> Any:
        previous = self._previous
        local = previous(frame, event, arg) if previous is not None else None
        if not self._user.owns(frame.f_code):
            return local
        self._calls += 1
        self._frames.pop(id(frame), None)
        return self._chain(local)

    def _chain(self, inner: Any) -> Tracer:
        chained = inner

        def local(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal chained
            if event == "line":
                state = self._frames.get(id(frame))
                if state is not None and state.code is frame.f_code:
                    state.statements += 1
                    state.ordinal = 0
            elif event == "return":
                self._frames.pop(id(frame), None)
            if chained is not None:
                chained = chained(frame, event, arg)
            return local

        return local

    def _state(self, frame: FrameType) -> _FrameState:
        state = self._frames.get(id(frame))
        if state is None or state.code is not frame.f_code:
            state = self._frames[id(frame)] = _FrameState(frame.f_code)
        return state

    def loop_visit(self, anchor_id: int, frame: FrameType) -> None:
        """A probe inside the region: the loop ``anchor_id`` of ``frame`` starts its next iteration."""
        self.loop_visited(anchor_id, id(frame), frame.f_code)

    def loop_visited(self, anchor_id: int, frame_id: int, code: CodeType) -> None:
        """As `loop_visit`, for a visit that was noted earlier in the region."""
        state = self._frames.get(frame_id)
        if state is None or state.code is not code:
            state = self._frames[frame_id] = _FrameState(code)
        if state.loops is None:
            state.loops = []
        for index, loop in enumerate(state.loops):
            if loop[0] == anchor_id:
                loop[1] += 1
                del state.loops[index + 1 :]
                return
        state.loops.append([anchor_id, 0])

    def locate(self, frame: FrameType | None) -> Site:
        """The site of an op issued below ``frame``."""
        path: list[tuple[CodeType, int]] = []
        loops: list[tuple[int, int]] = []
        inner: FrameType | None = None
        while frame is not None:
            if self._user.owns(frame.f_code):
                inner = inner or frame
                path.append((frame.f_code, frame.f_lasti))
                state = self._frames.get(id(frame))
                if state is not None and state.loops and state.code is frame.f_code:
                    loops[:0] = [(loop[0], loop[1]) for loop in state.loops]
                if id(frame) == self._anchor_id:
                    break
            frame = frame.f_back
        path.reverse()
        if inner is None:
            return Site((), (), self._count_outside(), "?", 0)
        state = self._state(inner)
        ordinal = state.ordinal
        state.ordinal += 1
        return Site(tuple(path), tuple(loops), ordinal, inner.f_code.co_filename, inner.f_lineno)

    def _count_outside(self) -> int:
        state = self._frames.setdefault(0, _FrameState(_NO_CODE))
        state.ordinal += 1
        return state.ordinal - 1

    def continue_at(self, site: Site) -> None:
        """Observation starts in the middle of a statement whose last op had ``site``: number on from there."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if self._user.owns(frame.f_code):
                if site.path and site.path[-1] == (frame.f_code, frame.f_lasti):
                    self._state(frame).ordinal = site.ordinal + 1
                return
            frame = frame.f_back

    def user_mark(self) -> int:
        """A counter of user functions' calls: compare before and after a library call."""
        return self._calls


_NO_CODE = compile("", "<none>", "exec")

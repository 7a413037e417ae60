"""Ties ops to the user statements that issue them, by `sys.settrace`.

It is on in traced regions only, of which it doubles the cost. The tracer itself only notices that a user
frame comes to a line: that begins a new *statement instance*, in which ops are numbered from 0. Everything
else is read from the stack when an op asks where it is. So the same call in two iterations of a loop has the
same site but for the iteration's number, and two ops of one call have different ones.

What was tracing before (a debugger, coverage) goes on: its function is called for every event that it would
have seen, in every frame, and what it does with its return values keeps its meaning. After `stop` nothing of
ours is left on the stack; a generator that is suspended then drops its wrapper when it next runs under a
tracer.

No frame is referenced: that would keep the user's variables alive longer than the program does. Frames are
known by id, and forgotten when they end.
"""

from __future__ import annotations

import opcode
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from terra_cx.observe.anchors import AnchorTable
from terra_cx.observe.importer import UserCode

__all__ = ["Site", "StatementObserver"]

_Tracer = Callable[[FrameType, str, Any], Any]

_YIELD_VALUE = opcode.opmap["YIELD_VALUE"]
_RESUME = opcode.opmap["RESUME"]
_OUTSIDE = 0
"""Stands for a frame's id where no user frame is on the stack."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where in the user's program an op was issued."""

    path: tuple[tuple[CodeType, int], ...]
    """User frames from the one that the region began in (outermost) inwards: code, and byte offset in it."""
    loops: tuple[tuple[int, int], ...]
    """Running loops of those frames, outermost first, without the region's own: anchor, and iteration from 0."""
    ordinal: int
    """How many ops the innermost frame's statement instance has issued before."""
    filename: str
    line: int


@dataclass(slots=True)
class _Frame:
    """What is known of one user frame."""

    code: CodeType | None
    ordinal: int = 0
    rounds: dict[int, int] = field(default_factory=dict)
    """Iterations begun, from 0, by loop anchor."""


class StatementObserver:
    """Says where an op comes from. Used on the owner thread, between `start` and `stop`.

    Args:
        user: tells user code from libraries.
        table: the anchors; with it a loop that has ended is known to have.
    """

    def __init__(self, user: UserCode, table: AnchorTable | None = None) -> None:
        self._user = user
        self._table = table
        self._frames: dict[int, _Frame] = {}
        self._anchor_frame = _OUTSIDE
        self._calls = 0
        self._previous: Any = None
        self._global_tracer: _Tracer = self._on_call
        self.on = False

    # -- tracing ---------------------------------------------------------------------------------------------
    def start(self, anchor_frame: int, *, lines: bool = True) -> None:
        """Observe from here on; `anchor_frame` is the `id` of the frame that the region began in, or 0.

        Without ``lines`` nothing is traced: call paths and loops are known, and the numbers of ops within their
        statement are not, nor how many user functions were called.
        """
        self.stop()
        self._anchor_frame = anchor_frame
        self._calls = 0
        self._previous = sys.gettrace()
        self.on = True
        if not lines:
            return
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if self._user.owns(frame.f_code) and not isinstance(frame.f_trace, _Local):
                frame.f_trace = _Local(self, frame.f_trace)
            frame = frame.f_back
        sys.settrace(self._global_tracer)

    def stop(self) -> None:
        """Stop observing and restore what was there. Does nothing if nothing is being observed."""
        if not self.on:
            return
        self.on = False
        # Not if somebody has begun to trace meanwhile (`breakpoint()`): that stays.
        if sys.gettrace() is self._global_tracer:
            sys.settrace(self._previous)
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if isinstance(frame.f_trace, _Local):
                frame.f_trace = frame.f_trace.inner
            frame = frame.f_back
        self._previous = None
        self._frames.clear()

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        previous = self._previous
        inner = None
        if previous is not None:
            inner = previous(frame, event, arg)
            # Coverage's tracer makes itself the thread's tracer again whenever it is called from Python.
            if self.on and sys.gettrace() is previous:
                sys.settrace(self._global_tracer)
        code = frame.f_code
        if not self.on or not self._user.owns(code):
            return inner
        self._calls += 1
        if not _at_yield(frame):
            # A new frame, at an address that another may have had.
            self._frames.pop(id(frame), None)
        return inner if isinstance(inner, _Local) else _Local(self, inner)

    def on_line(self, frame: FrameType) -> None:
        """A user frame comes to a line."""
        known = self._frames.get(id(frame))
        if known is not None:
            known.ordinal = 0

    def on_return(self, frame: FrameType) -> None:
        """A user frame returns, raises, or yields; only in the last case it will be back."""
        if not _at_yield(frame):
            self._frames.pop(id(frame), None)
            if id(frame) == self._anchor_frame:
                self._anchor_frame = _OUTSIDE

    # -- sites -----------------------------------------------------------------------------------------------
    def loop_visit(self, anchor_id: int, frame: FrameType) -> None:
        """A probe inside the region: a loop of `frame` begins its next iteration."""
        self.loop_visited(anchor_id, id(frame), frame.f_code)

    def loop_visited(self, anchor_id: int, frame_id: int, code: CodeType) -> None:
        """As `loop_visit`, for a visit that was noted earlier in the region."""
        if self._table is not None and self._table[anchor_id].kind == "function":
            self._frames.pop(frame_id, None)  # a new call, at an address that another may have had
            return
        rounds = self._frame(frame_id, code).rounds
        if anchor_id in rounds:
            rounds[anchor_id] += 1
        else:
            rounds[anchor_id] = 0
        # Loops inside it begin anew.
        for inner in [other for other in rounds if other != anchor_id and self._is_inside(other, anchor_id)]:
            del rounds[inner]

    def _is_inside(self, inner: int, outer: int) -> bool:
        parent: int | None = inner
        while self._table is not None and parent is not None and parent != outer:
            parent = self._table[parent].parent
        return parent == outer

    def locate(self, frame: FrameType | None) -> Site:
        """The site of an op issued below `frame`; counts as one op of its statement."""
        path: list[tuple[CodeType, int]] = []
        loops: list[tuple[int, int]] = []
        innermost: FrameType | None = None
        while frame is not None:
            code = frame.f_code
            if self._user.owns(code):
                innermost = innermost or frame
                path.append((code, frame.f_lasti))
                known = self._frames.get(id(frame))
                if known is not None and known.rounds and known.code is code:
                    loops[:0] = self._running(known.rounds, code, frame.f_lasti)
                if id(frame) == self._anchor_frame:
                    break
            frame = frame.f_back
        path.reverse()
        if innermost is None:
            return Site((), (), self._count(_OUTSIDE, None), "?", 0)
        ordinal = self._count(id(innermost), innermost.f_code)
        return Site(tuple(path), tuple(loops), ordinal, innermost.f_code.co_filename, innermost.f_lineno)

    def _running(self, rounds: dict[int, int], code: CodeType, offset: int) -> list[tuple[int, int]]:
        table = self._table
        order = table.loops(code) if table is not None else ()
        if table is None or not order:
            return list(rounds.items())
        known = [loop for loop in order if loop in rounds]
        known += [loop for loop in rounds if loop not in order]
        return [(loop, rounds[loop]) for loop in known if table.covers(loop, offset)]

    def _frame(self, frame_id: int, code: CodeType | None) -> _Frame:
        known = self._frames.get(frame_id)
        if known is None or known.code is not code:
            known = self._frames[frame_id] = _Frame(code)
        return known

    def _count(self, frame_id: int, code: CodeType | None) -> int:
        known = self._frame(frame_id, code)
        known.ordinal += 1
        return known.ordinal - 1

    def continue_at(self, site: Site) -> None:
        """Observation starts in the middle of a statement whose last op had `site`: number on from there."""
        frame = self._user.innermost(sys._getframe(1))
        if frame is not None and site.path and site.path[-1] == (frame.f_code, frame.f_lasti):
            self._frame(id(frame), frame.f_code).ordinal = site.ordinal + 1

    def user_mark(self) -> int:
        """A counter of the calls and resumptions of user functions: compare before and after a library call."""
        return self._calls


def _at_yield(frame: FrameType) -> bool:
    """Whether a frame that is entered or left is entered or left at a `yield` or `await`.

    It then stands at the instruction that yields or, entered or from 3.13 on, at the one where it goes on.
    """
    code, offset = frame.f_code.co_code, frame.f_lasti
    return code[offset] == _YIELD_VALUE or (code[offset] == _RESUME and code[offset + 1] & 3 != 0)


class _Local:
    """The trace function of one user frame: tells the observer, then whoever traced the frame before."""

    __slots__ = ("_observer", "inner")

    def __init__(self, observer: StatementObserver, inner: Any) -> None:
        self._observer = observer
        self.inner = inner

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        observer = self._observer
        if observer.on:
            if event == "line":
                observer.on_line(frame)
            elif event == "return":
                observer.on_return(frame)
        if self.inner is not None:
            # As the interpreter does: None leaves the trace function as it is.
            result = self.inner(frame, event, arg)
            if result is not None:
                self.inner = result
        if observer.on or frame.f_trace is not self:
            return None
        frame.f_trace = self.inner
        return self.inner

"""Which loop (or function) is the step: the choice of the anchor at which regions begin.

While a program is surveyed, every probe visit, op, variable write and gradient of the owner thread is
reported here. Where the frames on the thread's stack stand tells which loops are running (*scopes*, innermost
last); what happens between two visits of a scope is one *round* of it. A round counts when the next visit of
the same scope has come: the last visit of a loop finds nothing more to do. Work is credited to the scopes
that are running at that moment: not to a loop that has ended, nor to one in a generator that waits while its
consumer works.

The rule (`Survey.choice`) starts from the innermost loop, outside every open tape, whose rounds take
gradients of their own, not through a loop inside it. (Where nothing takes gradients, variable writes stand in
for them. Where nothing writes either, a long loop with ops that no loop is around will do: predictions over
batches.) Such a loop may still be a part of the step: micro-batches whose gradients are added up, several
updates of a critic. Then it makes the same small number of rounds each time, and the loop around it does work
of a step's kind itself: it takes a gradient, or writes at least as much as a round of the inner loop does (the
optimizer's update). A loop around of which that is not true counts epochs. Functions are treated as loops are,
where no loop is around the work: a library calls the user's step function.
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType

from terra_cx.observe.anchors import Anchor, AnchorTable

__all__ = ["Choice", "Survey"]

_ROUNDS = 2
"""Complete rounds that a choice rests on."""

_WRITE_ROUNDS = 8
"""The same where nothing takes gradients. More, because variables are also written where they are set up."""

_OP_ROUNDS, _OPS = 200, 4
"""The same where nothing is written either, and the ops of a round that counts: not data that is prepared once."""

_MOST_INNER = 16
"""More rounds of a loop than this within one round around it: batches of an epoch, not parts of a step."""

_MOST_UPDATES = 6
"""The same where each round takes gradients and writes variables, and the one around it goes on. A critic is updated
five times as a rule. (If it is more, or micro-batches add to variables, each is a step, and what is around them a way.)
"""

_MOST_VARIABLES = 1000
"""More rounds than this are no optimizer's that goes through all variables."""

_RARELY = 16
"""Work in one of so many rounds is enough: an agent may act many times for one update."""

_QUIET_VISITS = 32
"""An anchor is looked at so often without an op since its last visit; further such visits are passed over."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The anchor at which regions begin, and why it is this one, in words for the report."""

    anchor: int
    reason: str


@dataclass(slots=True)
class _Tally:
    """What happened, in numbers of calls."""

    ops: int = 0
    recorded: int = 0
    """Ops under an open tape."""
    writes: int = 0
    gradients: int = 0

    def add(self, other: _Tally) -> None:
        self.ops += other.ops
        self.recorded += other.recorded
        self.writes += other.writes
        self.gradients += other.gradients

    def without(self, other: _Tally) -> _Tally:
        return _Tally(
            self.ops - other.ops,
            self.recorded - other.recorded,
            self.writes - other.writes,
            self.gradients - other.gradients,
        )


@dataclass(frozen=True, slots=True)
class _Round:
    """One complete round of a scope."""

    total: _Tally
    own: _Tally
    """Without what happened in rounds of loops inside it."""
    inner: dict[int, int]
    """Complete rounds of scopes inside it, by anchor."""
    work: dict[int, _Tally]
    """What happened in these."""


_Stack = dict[int, tuple[CodeType, int]]
"""A thread's frames, outermost first, by id: code and current offset."""


@dataclass(slots=True, eq=False)
class _Scope:
    """A loop that is running, or a function that is called again and again, with its unfinished round.

    Frames are known by id and code, not by reference: a reference would keep the user's variables alive, and
    frames cannot be referenced weakly. An id that serves another call of the same function is found out by
    that call's own entry visit.
    """

    anchor: Anchor
    frame: int
    """Id of the loop's frame, or of the frame that calls the function; 0 for none."""
    code: CodeType | None
    repeats: bool = True
    """Whether somebody may come back to it. User code that calls a function has loops for that."""
    partial: bool = False
    """The survey began in the middle of this round."""
    total: _Tally = field(default_factory=_Tally)
    inside: _Tally = field(default_factory=_Tally)
    """What happened in rounds of loops inside it."""
    inner: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    work: defaultdict[int, _Tally] = field(default_factory=lambda: defaultdict(_Tally))


@dataclass(slots=True)
class _History:
    """What is known of one anchor."""

    rounds: int = 0
    with_gradients: int = 0
    """Rounds that took gradients of their own."""
    with_writes: int = 0
    with_ops: int = 0
    recent: deque[_Round] = field(default_factory=lambda: deque(maxlen=_ROUNDS))
    around: tuple[tuple[int, bool], ...] = ()
    """The scopes around it at its latest round, innermost first: anchor, and whether the scope repeats."""
    most_inner: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Most rounds of other scopes within one round of this one, finished or not."""
    latest: int = 0
    """When its latest round ended."""


class Survey:
    """Watches a program until its step is known.

    Args:
        table: the anchors whose visits are reported.
        max_ops: most ops of a region that consists of several rounds of an inner loop.
        is_user: tells the files of user code; an anchor in a library (a named adapter's) is nobody's caller.
    """

    def __init__(
        self, table: AnchorTable, max_ops: int = 5000, is_user: Callable[[str], bool] | None = None
    ) -> None:
        self._table = table
        self._is_user = is_user or (lambda _: True)
        self._max_ops = max_ops
        self._scopes: list[_Scope] = []
        self._histories: defaultdict[int, _History] = defaultdict(_History)
        self._taped: set[int] = set()
        """Anchors visited under an open tape; never chosen, their work is that of what is around them."""
        self._tape_depth = 0
        self._seen_gradient = False
        self._clock = 0
        self._reports = 0
        """Of ops and gradients."""
        self._reports_at: dict[int, int] = {}
        """How many there were at the latest visit of an anchor."""
        self._quiet: defaultdict[int, int] = defaultdict(int)
        """Visits of an anchor with no report since the one before."""
        self._frames: set[int] = set()
        """Those of the scopes."""
        self._credited: _Stack | None = None
        """Where these frames stood at the latest report, None if scopes have changed since."""
        self._running: list[_Scope] = []
        """The scopes that were running there."""
        self.ops = 0
        """Ops that were reported."""
        self._files: set[str] = set()
        self._files_of = 0

    # -- reports ---------------------------------------------------------------------------------------------
    def visit(self, anchor_id: int, frame: FrameType, tape_depth: int | None = None) -> bool:
        """The probe of an anchor was passed in `frame`; returns whether that ends a round in which ops were issued.

        `tape_depth` is the number of open tapes; where it is not given, that of the latest op stands in.
        """
        if self._reports_at.get(anchor_id) == self._reports:
            if self._quiet[anchor_id] == _QUIET_VISITS:
                return False  # the loops of a tokenizer: each visit looked at took as long as an op
            self._quiet[anchor_id] += 1
        self._reports_at[anchor_id] = self._reports
        self._credited = None
        anchor = self._table[anchor_id]
        self._clock += 1
        if (self._tape_depth if tape_depth is None else tape_depth) > 0:
            self._taped.add(anchor_id)
        if self._scopes and anchor.kind == "loop":
            innermost = self._scopes[-1]
            if innermost.anchor is anchor and innermost.frame == id(frame) and innermost.code is frame.f_code:
                return self._finish_round()  # the commonest visit by far; the stack need not be looked at
        stack = _stack(frame)
        if anchor.kind == "function":
            # The frame is new: a loop that is known by its id ran in a frame that is gone.
            self._drop(scope for scope in self._scopes if scope.frame == id(frame))
        self._drop(scope for scope in self._scopes if not self._runs(scope, stack))
        self._join(stack)
        visited = self._function(anchor, stack, id(frame)) if anchor.kind == "function" else None
        base = visited.frame if visited is not None else id(frame)
        for position, scope in enumerate(self._scopes):
            if scope.anchor is anchor and scope.frame == base:
                self._drop(self._scopes[position + 1 :])
                return self._finish_round()
        self._scopes.append(visited or _Scope(anchor, base, frame.f_code))
        self._sort(stack)
        return False

    def op(self, effect: bool, tape_depth: int) -> None:
        """An op was executed: whether it writes a variable, and how many tapes are open."""
        self._tape_depth = tape_depth
        self.ops += 1
        self._credit(_Tally(ops=1, recorded=int(tape_depth > 0), writes=int(effect)), sys._getframe(1))

    def gradient(self, tape_depth: int) -> None:
        """A tape was asked for gradients."""
        self._tape_depth = tape_depth
        self._seen_gradient = True
        self._credit(_Tally(gradients=1), sys._getframe(1))

    def _credit(self, what: _Tally, frame: FrameType) -> None:
        self._reports += 1
        if not self._scopes:
            return
        if self._credited is None:
            self._frames = {scope.frame for scope in self._scopes}
        stack = _stack(frame, self._frames)
        if stack != self._credited:  # most ops are issued where the one before was, as far as scopes can tell
            self._credited = stack
            self._running = [scope for scope in self._scopes if self._runs(scope, stack)]
        for scope in self._running:
            scope.total.add(what)

    # -- scopes ----------------------------------------------------------------------------------------------
    def _runs(self, scope: _Scope, stack: _Stack) -> bool:
        if not scope.frame:
            return True
        code, offset = stack.get(scope.frame, (None, 0))
        if code is not scope.code:
            return False
        return scope.anchor.kind == "function" or self._table.covers(scope.anchor.id, offset)

    def _join(self, stack: _Stack) -> None:
        """Add the running scopes that are not known: begun before the survey, or suspended since."""
        known = {(scope.anchor.id, scope.frame) for scope in self._scopes}
        for frame, code, offset, caller, direct in self._calls(stack):
            self._scopes += [
                _Scope(self._table[loop], frame, code, partial=True)
                for loop in self._table.loops(code)
                if (loop, frame) not in known and self._table.covers(loop, offset)
            ]
            function = self._table.function(code)
            if function is not None and (function, caller[0]) not in known:
                repeats = not (direct and caller[0])
                self._scopes.append(_Scope(self._table[function], *caller, repeats, partial=True))
        self._sort(stack)

    def _sort(self, stack: _Stack) -> None:
        """Outer scopes first. A function counts as inside all loops of the frame that called it."""
        depth = {frame: number for number, frame in enumerate(stack, 1)}
        loops = [loop for code, _ in stack.values() for loop in self._table.loops(code)]
        nesting = {loop: number for number, loop in enumerate(loops)}
        self._scopes.sort(
            key=lambda scope: (depth.get(scope.frame, 0), nesting.get(scope.anchor.id, len(loops)))
        )

    def _function(self, anchor: Anchor, stack: _Stack, frame: int) -> _Scope:
        """The scope of a function of which `frame` is a call.

        It is known by the nearest user frame that led to the call, which successive calls have in common.
        """
        caller, direct = next(
            (caller, direct) for call, _, _, caller, direct in self._calls(stack) if call == frame
        )
        return _Scope(anchor, *caller, repeats=not (direct and caller[0]))

    def _calls(self, stack: _Stack) -> Iterator[tuple[int, CodeType, int, tuple[int, CodeType | None], bool]]:
        """The frames of a stack, outermost first, with what called them.

        For each: its id, code and offset, the nearest user frame that led to it, and whether user code called it. In
        one pass: a recursion may be hundreds of frames deep. A lambda, a comprehension and a generator expression lead
        nowhere by themselves: the frame of a lambda that a library calls is another one each time, and nothing tells
        when another call has its id.
        """
        files = self._user_files()
        caller: tuple[int, CodeType | None] = (0, None)
        direct = True
        for frame, (code, offset) in stack.items():
            yield frame, code, offset, caller, direct
            direct = code.co_filename in files
            if direct and (code.co_name == "<module>" or not code.co_name.startswith("<")):
                caller = frame, code

    def _user_files(self) -> set[str]:
        """The files of the program's own code that has anchors."""
        if self._files_of != len(self._table):
            self._files = {anchor.filename for anchor in self._table if self._is_user(anchor.filename)}
            self._files_of = len(self._table)
        return self._files

    def _drop(self, scopes: Iterable[_Scope]) -> None:
        """Scopes have ended, or are suspended below others; their unfinished rounds are none."""
        for scope in list(scopes):
            position = self._scopes.index(scope)
            if position:
                self._scopes[position - 1].inside.add(scope.inside)
            del self._scopes[position]

    def _finish_round(self) -> bool:
        """The innermost scope was visited again; returns whether ops were issued since its last visit."""
        scope = self._scopes[-1]
        if scope.partial:
            self._scopes[-1] = _Scope(scope.anchor, scope.frame, scope.code, scope.repeats)
            return False
        anchor = scope.anchor.id
        outer = self._scopes[-2::-1]
        own = scope.total.without(scope.inside)
        history = self._histories[anchor]
        history.rounds += 1
        history.with_gradients += own.gradients > 0
        history.with_writes += own.writes > 0
        history.with_ops += scope.total.ops >= _OPS
        history.recent.append(_Round(scope.total, own, dict(scope.inner), dict(scope.work)))
        history.around = tuple((s.anchor.id, s.repeats) for s in outer if s.anchor.id not in self._taped)
        history.latest = self._clock
        for around in outer:
            around.inner[anchor] += 1
            around.work[anchor].add(scope.total)
            most = self._histories[around.anchor.id].most_inner
            most[anchor] = max(most[anchor], around.inner[anchor])
        if outer:
            # What is under a tape, or in a function, is the work of the loop around it.
            is_round = scope.anchor.kind == "loop" and anchor not in self._taped
            outer[0].inside.add(scope.total if is_round else scope.inside)
        busy = scope.total.ops > 0 or scope.total.gradients > 0
        scope.total, scope.inside = _Tally(), _Tally()
        scope.inner, scope.work = defaultdict(int), defaultdict(_Tally)
        return busy

    # -- the rule --------------------------------------------------------------------------------------------
    def choice(self, *, last: bool = False) -> Choice | None:
        """The anchor of the step, or None while too little was seen.

        Without gradients a loop around the one at work is waited for, until that one has come round more often than
        there are variables, or for the survey's ``last`` chance: a survey may begin in the middle of a step, in the
        loop in which an optimizer written by hand goes through them.
        """
        if self._seen_gradient:
            start = self._innermost(_ROUNDS, lambda history: history.with_gradients)
            return self._enclosing_step(start, "takes gradients", last) if start is not None else None
        start = self._innermost(_WRITE_ROUNDS, lambda history: history.with_writes)
        if start is not None:
            return self._enclosing_step(start, "writes variables", last)
        return next(
            (Choice(anchor, "a long loop with ops") for anchor in self._histories if self._is_long(anchor)),
            None,
        )

    def _is_long(self, anchor: int) -> bool:
        """Whether it is a long loop with ops that is in no other: one over layers, in batches, is as long."""
        history = self._histories[anchor]
        return (
            history.with_ops >= _OP_ROUNDS
            and anchor not in self._taped
            and self._table[anchor].kind == "loop"
            and not any(self._table[outer].kind == "loop" for outer, _ in history.around)
        )

    def _innermost(self, needed: int, working: Callable[[_History], int]) -> int | None:
        """The innermost scope at work: of loops if there are any, seen last or inside the one seen last."""
        pool = [
            anchor
            for anchor, history in self._histories.items()
            if anchor not in self._taped
            and working(history) >= needed
            and working(history) * _RARELY >= history.rounds
        ]
        loops = [anchor for anchor in pool if self._table[anchor].kind == "loop"]
        pool = loops or [anchor for anchor in pool if self._seen_gradient or not self._in_a_loop(anchor)]
        if not pool:
            return None
        found = max(pool, key=lambda anchor: self._histories[anchor].latest)
        while True:
            pool.remove(found)  # a function that calls itself is inside itself
            latest = self._histories[found].recent[-1]
            inside = [
                anchor
                for anchor in pool
                if latest.inner.get(anchor)
                and any(outer == found for outer, _ in self._histories[anchor].around)
            ]
            if not inside:
                return found
            found = inside[0]

    def _in_a_loop(self, function: int) -> bool:
        """Whether a loop around a function has come round: a layer that updates its statistics, in batches."""
        around = self._histories[function].around
        return any(self._table[a].kind == "loop" and self._histories[a].rounds for a, _ in around)

    def _enclosing_step(self, anchor: int, work: str, last: bool) -> Choice | None:
        """From the innermost scope at work, go outwards as long as it is only a part of the step."""
        reason = f"the innermost {self._table[anchor].kind} that {work}"
        passed: set[int] = set()
        while True:
            passed.add(anchor)
            history = self._histories[anchor]
            around = [(outer, repeats) for outer, repeats in history.around if outer not in passed]
            done = [outer for outer, _ in around if self._histories[outer].rounds]
            if not done:
                waiting = [outer for outer, repeats in around if repeats]
                if not waiting or last:
                    return Choice(anchor, reason)
                certain = self._seen_gradient or not any(self._table[a].kind == "loop" for a in waiting)
                updates = all(each.total.gradients and each.total.writes for each in history.recent)
                most = _MOST_UPDATES if updates else _MOST_INNER
                enough = most if certain else _MOST_VARIABLES
                rounds = self._histories[waiting[0]].most_inner[anchor]
                return Choice(anchor, reason) if rounds > enough else None
            outer = self._histories[done[0]]
            inner = history.recent[-1].total
            if inner.gradients and not inner.recorded:
                # It asks a tape for gradients that was recorded outside it.
                if len(outer.recent) < _ROUNDS:
                    return None
                anchor, reason = done[0], "the loop around one that takes gradients of what it recorded"
                continue
            if outer.most_inner[anchor] > _MOST_INNER:
                return Choice(anchor, f"{reason}, many times per round of the loop around it")
            if not all(_does_step_work(round_, anchor, inner) for round_ in outer.recent):
                return Choice(anchor, f"{reason}; the loop around it does not")
            if len(outer.recent) < _ROUNDS:
                return None
            trips = {round_.inner.get(anchor, 0) for round_ in outer.recent}
            if len(trips) > 1 or max(round_.total.ops for round_ in outer.recent) > self._max_ops:
                return Choice(anchor, f"{reason}; the loop around it varies or is too long")
            times = trips.pop()
            anchor, reason = done[0], f"the loop around one that {work} {times} times in each round"


def _does_step_work(outer: _Round, anchor: int, inner: _Tally) -> bool:
    """Whether a round around the loop ``anchor`` does work of a step's kind itself, outside the loops inside it.

    A generator's update next to those of a critic takes a gradient; the update after several micro-batches
    writes at least as many variables as a micro-batch. What epochs do of their own (reset metrics, set the
    learning rate) is less. Micro-batches that write nothing leave all writing to what is around them, which may
    be a loop over the variables. Where nothing takes gradients, the number of ops decides.
    """
    own = outer.own
    if not inner.gradients:
        return own.ops >= inner.ops
    if not inner.writes:
        own = outer.total.without(outer.work.get(anchor, _Tally()))
    return own.gradients > 0 or own.writes >= max(1, inner.writes)


def _stack(frame: FrameType | None, wanted: Container[int] | None = None) -> _Stack:
    """The frames from `frame` outwards, all or those with a ``wanted`` id."""
    frames = []
    while frame is not None:
        if wanted is None or id(frame) in wanted:
            frames.append((id(frame), (frame.f_code, frame.f_lasti)))
        frame = frame.f_back
    return dict(reversed(frames))

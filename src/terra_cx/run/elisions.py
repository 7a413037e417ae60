"""What is known of the library calls of one loop's steps: taken over from traces, asked by the elider."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from terra_cx.elide.calls import LibraryCall
from terra_cx.elide.entries import Entries
from terra_cx.elide.names import Names
from terra_cx.elide.state import same
from terra_cx.trace.library_calls import ATTEMPTS, Refusal, Refusals
from terra_cx.trace.records import Trace
from terra_cx.trace.tracegraph import Node

__all__ = ["Elisions", "next_comparison", "to_be_compared"]

_MISSES = 3
"""Misses of a call after which the step is traced again."""
_OFTEN = 16
"""Regions with an unnoted call of one kind after which it is noted: to record the rest of a region takes as long as
some four in eager, and to run a call's Python some part of one."""
_APART = 32
"""Regions from one whose rest is recorded for its calls to the next at least; more where that was for nothing."""
_MOST = 4096
"""Receivers and methods, kinds of calls; a program with more makes new ones all the time."""
_EVERY = 8192
"""Calls from one comparison to the next, once it has been compared often."""
_SHOWN = 3
"""Regions after which calls are noted where tracing was not needed. (In the first region it would take several times as
long as there, for that is when layers and optimizers build what they need.)"""
_ALTERNATIVES = 8
"""Kinds of one call that are kept: with ``training`` and without, with a last, smaller batch."""


class Elisions:
    """The calls of one anchor's step that may be elided.

    Args:
        entries: the hooks.
        told: given a message for the user, once for each call that is disabled.
    """

    def __init__(self, entries: Entries, told: Callable[[str], None]) -> None:
        self.entries = entries
        self.told = told
        self.names = Names()
        self.refusals: Refusals = {}
        self.calls: defaultdict[tuple[str, int], dict[Node | None, list[LibraryCall]]] = defaultdict(dict)
        """By entry and receiver, then by the node of the first op (None without ops): a layer may be called often."""
        self.elided = self.shortened = self.compared = self.mismatches = 0
        self._refused = 0
        self._regions = 0
        self._unnoted: dict[Any, tuple[int, int]] = {}
        """Kinds of calls of which nothing is noted: the latest region with one, and in how many there were some."""
        self._next, self._apart = 0, _APART
        """The first region whose rest may be recorded for its calls, and how many there are between two of these."""
        self._latest: list[LibraryCall] = []
        """What was noted last."""
        self._stale = False
        self._wait, self._distance = 0, 1

    def miss(self, call: LibraryCall) -> None:
        """A call is not as it was noted: after a few of these, the step is looked at anew."""
        call.missed += 1
        self._stale = self._stale or call.missed >= _MISSES

    def unnoted(self, entry: str, receiver: object, given: Any = None) -> bool:
        """A call of which nothing is noted, or nothing with such arguments: whether it is to be noted here and now.

        It is in the 16th, 32nd, 64th, ... region with one, with all that follows it; those soon after another that was
        recorded so do not count. While nothing of what was noted is called again, distances double: a program may make
        a new loss in each step.

        (An agent learns only once its memory is filled; texts of each length are others; and the rest of a region that
        diverged is recorded without its calls, for most of that never comes again. To trace a whole step instead, some
        time later, meant one of whatever kind it was: an evaluation after each epoch had steps traced that know nothing
        of it, and of six lengths two were noted.)

        Args:
            entry: its name.
            receiver: the object that is called.
            given: what it is given, as far as it must be the same for a call to be like it.
        """
        refusal = self.refusals.get((entry, id(receiver)))
        if self._regions < self._next or (refusal is not None and refusal.attempts >= ATTEMPTS):
            return False
        kind = entry, id(receiver), given
        region, times = self._unnoted.get(kind, (0, 0))
        if region == self._regions:
            return False
        if len(self._unnoted) > _MOST:
            self._unnoted.clear()
        self._unnoted[kind] = self._regions, times + 1
        turns, rest = divmod(times + 1, _OFTEN)
        if rest or turns & (turns - 1):
            return False
        self._apart = _APART if any(call.runs for call in self._latest) else 2 * self._apart
        self._next = self._regions + self._apart
        return True

    def refuse(self, call: LibraryCall, why: str) -> None:
        """A comparison has shown that a call cannot be elided; the calls inside it may be."""
        key = (call.entry.name, id(call.receiver))
        self.calls[key][call.nodes[0] if call.nodes else None].remove(call)
        self.refusals[key] = Refusal(call.receiver, why, ATTEMPTS, call.line)
        self._stale = True

    def refresh(self) -> None:
        """A region is about to be traced: if names mean something else now, what was noted before is void."""
        if self.names.changed():
            self.clear()

    def due(self) -> bool:
        """Whether the region that begins should be traced, to note calls that are others now. Asked once in a region.

        At growing distances: what changes in every step never stays as it was noted.
        """
        self._regions += 1
        self._wait -= 1
        if not self._stale or self._wait > 0:
            return False
        self._stale = False
        self._wait = self._distance = 2 * self._distance
        return True

    def soon(self) -> None:
        """The TraceGraph is known, no call is: have them noted once a few regions have shown that it holds."""
        self._stale = True
        self._wait = _SHOWN

    def learn(self, trace: Trace, found: Iterable[LibraryCall]) -> None:
        """Take over what a trace has noted; it has been merged."""
        refused = sum(refusal.attempts for refusal in self.refusals.values())
        self._stale = (
            self._stale or refused > self._refused
        )  # it may go better, or the calls inside may be elided
        self._refused = refused
        if len(self.refusals) > _MOST:
            self.refusals.clear()
        self._latest = []
        for call in found:
            if len(self.calls) > _MOST:
                self.calls.clear()
            call.nodes = tuple(one.node for one in trace.calls[call.first : call.last])
            first = call.nodes[0] if call.nodes else None
            known = self.calls[call.entry.name, id(call.receiver)].setdefault(first, [])
            alike = [other for other in known if _of_one_kind(other, call)]
            held = [other for other in alike if other.trusted and other.state.changed() is None]
            if held:  # the new one would have to be compared all over again
                held[-1].missed = 0
                continue
            known[:] = [other for other in known if other not in alike][-_ALTERNATIVES + 1 :]
            known.append(call)
            self._latest.append(call)

    def clear(self) -> None:
        """The TraceGraph was emptied."""
        self.calls.clear()
        self.refusals.clear()
        self.names = Names()

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "elided": self.elided,
            "functions": self.shortened,
            "compared": self.compared,
            "mismatches": self.mismatches,
            "calls": [
                {
                    "call": call.entry.name,
                    "of": type(call.receiver).__name__,
                    "line": call.line,
                    "ops": len(call.nodes),
                    "elided": call.runs,
                    "refused": None,
                }
                for places in self.calls.values()
                for known in places.values()
                for call in known
            ]
            + [
                {
                    "call": name,
                    "of": type(refusal.receiver).__name__,
                    "line": refusal.line,
                    "ops": 0,
                    "elided": 0,
                    "refused": refusal.why,
                }
                for (name, _), refusal in self.refusals.items()
            ],
        }


def to_be_compared(runs: int) -> bool:
    """Whether a call that has been elided so often is to be compared: at 0, 1, 2, 4, ... and then at every so many."""
    return not runs or runs == next_comparison(runs)


def next_comparison(runs: int) -> int:
    """The number of runs, this one (if it is not 0) or a later one, at which a call is to be compared."""
    return 1 << (runs - 1).bit_length() if runs < _EVERY else -(-runs // _EVERY) * _EVERY


def _of_one_kind(one: LibraryCall, other: LibraryCall) -> bool:
    """Whether two calls are noted for the same purpose: the later one takes the place of the earlier."""
    return (
        one.nodes == other.nodes
        and one.structure == other.structure
        and all(map(_alike, one.arguments, other.arguments))
        and one.repeated == other.repeated
        and one.ambient == other.ambient
        and one.taped == other.taped
    )


def _alike(one: Any, other: Any) -> bool:
    """Whether two descriptions of an argument admit the same."""
    if one.spec is None or other.spec is None:
        return one.spec is other.spec and same(one.value, other.value)
    return bool(one.spec.key() == other.spec.key())

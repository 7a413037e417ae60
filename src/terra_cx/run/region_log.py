"""What happened in the region that is being co-executed: its runs, its tapes, and what the tapes were told.

The log is what recovery replays: a divergence under an open tape rebuilds the native tape from it. A finished
region's log is kept only while one of its tapes could still be asked for a gradient.
"""

from __future__ import annotations

import sys
from typing import Any

from terra_cx.run.block_run import BlockRun
from terra_cx.tf.slots import Slot

__all__ = ["Event", "RegionLog"]


class Event:
    """A tape event before the op at ``position``: ``what`` as in `trace.records.TapeEvent`.

    Of accesses, ``args`` are the handles of the variables: one event for all that a call tells.
    """

    __slots__ = ("args", "detail", "position", "tape", "what")

    def __init__(
        self, position: int, what: str, tape: int = -1, args: Any = None, detail: Any = None
    ) -> None:
        self.position = position
        self.what = what
        self.tape = tape
        self.args = args
        self.detail = detail


_OUTPUTS = {"record": 2, "gradient": 3}
"""Where the results stand among the arguments of what tapes are told."""


def _references(tapes: list[Any], index: int) -> int:
    return sys.getrefcount(tapes[index])


_BASE = _references([object()], 0)


class RegionLog:
    """See the module's page.

    ``bound`` maps (node, output, execution) to the slot or tensor that later gradients may ask for. ``asking`` are the
    persistent tapes whose gradient is being computed while they do not record; ``late`` is what such a tape has to be
    told when its gradient is there, if the region diverged meanwhile (`run.fallback`).
    """

    __slots__ = (
        "asking",
        "bound",
        "consumed",
        "events",
        "late",
        "number",
        "position",
        "runs",
        "tapes",
        "turns",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.runs: list[BlockRun] = []
        self.events: list[Event] = []
        self.tapes: list[Any] = []
        self.consumed: set[int] = set()
        self.asking: list[int] = []
        self.late: list[Any] | None = None
        self.bound: dict[tuple[Any, int, int], Any] = {}
        self.turns: dict[Any, int] = {}
        self.position = 0

    def tape_number(self, tape: Any) -> int:
        """The tape's number in order of creation, -1 if the region did not make it."""
        for index, known in enumerate(self.tapes):
            if known is tape:
                return index
        return -1

    def created(self, tape: int) -> int:
        """The position at which the tape was made."""
        return next(e.position for e in self.events if e.what == "new" and e.tape == tape)

    def persistent(self, tape: int) -> bool:
        """Whether the tape may be asked more than once."""
        return bool(next(e.detail[0] for e in self.events if e.what == "new" and e.tape == tape))

    def active(self) -> list[int]:
        """The tapes that record now, in the order in which they began."""
        active: list[int] = []
        for event in self.events:
            if event.what in ("new", "add"):
                active.append(event.tape)
            elif event.what == "remove":
                active = [tape for tape in active if tape != event.tape]
        return active

    def tells_of_tensors(self) -> bool:
        """Whether tapes were told of a real tensor as the result of something."""
        return any(
            type(output) is not Slot
            for event in self.events
            if event.what in ("record", "gradient")
            for output in event.args[_OUTPUTS[event.what]]
        )

    def askable(self) -> list[int]:
        """Tapes that some code can still ask for a gradient: not consumed, and referenced by more than this log."""
        return [
            index
            for index in range(len(self.tapes))
            if index not in self.consumed and _references(self.tapes, index) > _BASE
        ]

    def release(self) -> None:
        """No tape of the region can be asked any more: its runs may let go of what they hold."""
        for run in self.runs:
            run.keep = False
            run.region_over()

    def slots(self) -> list[Slot]:
        """All slots of the region's runs that still exist."""
        return [slot for run in self.runs for slot in run.slots if slot is not None]

"""What a profile is made from: the regions of one window, and what owner thread, graph runner and devices did in them.

All times are nanoseconds on the clock of `time.perf_counter_ns`; lines are ``file:number`` with an absolute file.
Nothing here refers to the program's objects, so a window may be kept for as long as one likes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["CO_EXECUTED", "FETCH", "UNKNOWN", "BlockRunSlice", "DeviceLane", "Kernel", "Op", "Region", "RunKey",
           "Sample", "Span", "Wait", "Window"]  # fmt: skip

Span = tuple[int, int]
"""Start and end."""
RunKey = tuple[int, int, int]
"""One execution of one block: number of the block, of the region, and the region's position of its first op."""

CO_EXECUTED = "co_executed"
UNKNOWN = "?"
"""The line of what no line of the program's is known for."""
FETCH = "fetch"
"""Why Python waits when it reads a value (`Wait.why`); other reasons are in words."""


@dataclass(slots=True)
class Region:
    """One region of the window's anchor; ``kind`` is co_executed, diverged, traced or eager."""

    start: int
    end: int
    kind: str
    number: int
    """The number by which its runs know it; -1 if it had none."""
    manner: str = ""
    """Overlapped or in turns."""


@dataclass(slots=True)
class Op:
    """One thing that Python issued at the boundary: an op, a ``tape.gradient``, or an elided library call."""

    start: int
    end: int
    name: str
    line: str
    ops: int = 1
    """Ops that it stands for: those of a gradient, those of an elided call."""
    elided: bool = False
    region: int = -1
    position: int = 0
    """The region's position after it: what it issued lies before."""


@dataclass(slots=True)
class Wait:
    """The owner thread waited for the graph."""

    start: int
    end: int
    why: str
    line: str
    run: RunKey | None = None
    """The run that it waited for."""
    op: str = ""
    """Whose value was read, for a fetch."""
    op_line: str = UNKNOWN
    position: int = -1
    """The region's position of that op."""


@dataclass(slots=True)
class BlockRunSlice:
    """The graph runner executed a block run."""

    start: int
    begun: int
    """Its inputs were together, and its work began."""
    end: int
    key: RunKey
    line: str
    last_line: str
    ops: int
    how: str
    """``compiled``, ``op by op``, or ``first``: op by op, compiled and compared."""
    ends: str
    """Why the block ends where it ends."""
    idle_from: int | None = None
    """When the runner began to wait for this run, if it waited."""
    feeds: bool = False
    """Whether it brought values from Python."""
    issued: int | None = None
    """When Python handed it over."""


@dataclass(slots=True)
class Sample:
    """Where the owner thread was found; ``part`` is user, host, library, terra or wait."""

    time: int
    part: str
    line: str


@dataclass(slots=True)
class Kernel:
    """Something that a device executed."""

    start: int
    end: int
    name: str


@dataclass(slots=True)
class DeviceLane:
    """A stream of a GPU, or a thread that runs CPU kernels. ``kind`` is ``gpu`` or ``cpu``."""

    name: str
    kind: str
    kernels: list[Kernel] = field(default_factory=list)


@dataclass(slots=True)
class Window:
    """Some consecutive regions of one anchor, looked at in detail."""

    anchor: str
    first: int
    """Number of its first region among the anchor's co-executed ones."""
    regions: list[Region] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    runs: list[BlockRunSlice] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    depths: list[tuple[int, int]] = field(default_factory=list)
    """Depth of the path channel: time, and depth from then on."""
    lanes: list[DeviceLane] = field(default_factory=list)
    devices_from: int = 0
    """Since when devices have been looked at."""
    truncated: bool = False
    """Whether it ended early because there were too many events."""

    def steps(self) -> list[Region]:
        """The regions that were co-executed to their end: what metrics are about."""
        return [region for region in self.regions if region.kind == CO_EXECUTED]

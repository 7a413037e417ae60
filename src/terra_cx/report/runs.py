"""A run as it is read back from the report or the profile that it left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Anchor", "Call", "Fallback", "Fetch", "Line", "Run"]


@dataclass(frozen=True, slots=True)
class Fallback:
    """Divergences of one reason at one line; `line` is absolute if the file tells, `?` if nothing does."""

    reason: str
    line: str
    detail: str
    count: int
    seconds: float
    differences: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Fetch:
    """Values that one line waited for: made by which op, at which line."""

    op: str
    line: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Line:
    """A user line, as a profile has it: times in milliseconds per step of the window, waits of the whole run."""

    line: str
    text: str
    ops: float
    elided_ops: float
    parts: Mapping[str, float]
    waits: int
    wait_seconds: float
    fetches: tuple[Fetch, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A library call that was noted: elided so often, or refused, and why."""

    call: str
    of: str
    line: str
    ops: int
    elided: int
    refused: str | None


@dataclass(frozen=True, slots=True)
class Anchor:
    """A loop whose steps were watched. Numbers are None where the file does not tell."""

    line: str
    text: str
    state: str
    given_up: str | None
    live_tapes: str | None
    manner: str | None
    regions: Mapping[str, int]
    eager_ms: float | None
    co_ms: float | None
    """The median, or as measured where the pace was chosen."""
    fallbacks: tuple[Fallback, ...]
    calls: tuple[Call, ...]
    metrics: Mapping[str, Any] | None = None
    parts: Mapping[str, float] | None = None
    lines: tuple[Line, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """All its regions."""
        return sum(self.regions.values())

    @property
    def step_ms(self) -> float | None:
        """Milliseconds of a co-executed step, the mean of all if the file tells.

        A report has the median only, which says little where one step in ten waits for the nine before it.
        """
        seconds, steps = self.seconds.get("co_executed"), self.regions.get("co_executed")
        return 1000 * seconds / steps if seconds and steps else self.co_ms


@dataclass(frozen=True, slots=True)
class Run:
    """One run; `path` is the file it was read from. `main` is the anchor most steps belong to, None without one."""

    path: Path
    is_profile: bool
    terra_cx: str
    python: str
    tensorflow: str | None
    mode: str
    command: tuple[str, ...]
    seconds: float | None
    regions: Mapping[str, int]
    overlap: float | None
    anchors: tuple[Anchor, ...]
    main: Anchor | None
    internal_errors: int
    totals: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def fallbacks(self) -> Iterator[Fallback]:
        """Those of all anchors."""
        return (fallback for anchor in self.anchors for fallback in anchor.fallbacks)

"""A line now and then while a long run goes on: steps per second, how many co-executed, the overlap.

Guarantees:

* Nothing before ten seconds of steps are over; then lines at doubling distances, a dozen in a day of training.
* Only on a terminal, in the foreground, and only while the program has left `sys.stderr` as it was: a program that has
  put something of its own in its place wants to decide itself what comes there.
* A line of ours is a line of its own, and nothing of the program's is drawn over (docs/design/progress.md says how, and
  what was not done and why).
* It is written between two steps, on the thread that runs them. No thread is started and no stream is wrapped.
* A failure ends the lines, and nothing else.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from terra_cx.report.quantities import duration
from terra_cx.report.record import Record

__all__ = ["FIRST", "Progress", "fits", "fresh_line"]

FIRST = 10.0
"""Seconds before the first line; the next comes when twice the time has passed."""


class Progress:
    """Called with each region that begins (`Session.on_region`); seldom writes.

    Args:
        report: gives the run's record so far.
        stream: where lines go: the stderr that the program got.
        clock: seconds.
    """

    def __init__(
        self, report: Callable[[], Record], stream: TextIO, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._report = report
        self._stream = stream
        self._clock = clock
        self._start = self._last = clock()
        self._distance = FIRST
        self._next = 0.0
        """When there is something to do; the first region sets the time."""
        self._before: dict[str, int] = {"total": 0, "co_executed": 0}

    def __call__(self, line: str) -> None:
        """A region begins; `line` is its anchor's."""
        now = self._clock()
        if now < self._next:
            return
        if not self._next:
            self._last, self._next = now, now + FIRST  # loading and building are no steps
            return
        while self._next <= now:
            self._next += self._distance
            self._distance *= 2
        try:
            text = self._text(now)
            if fits(self._stream):
                _write(self._stream, text)
        except Exception:  # noqa: BLE001  # a closed terminal, a bar that is half gone: never the program's concern
            self._next = float("inf")

    def _text(self, now: float) -> str:
        record = self._report()
        regions = record["regions"]
        steps, co_executed = (regions[name] - self._before[name] for name in self._before)
        seconds = now - self._last
        self._before = {name: regions[name] for name in self._before}
        self._last = now
        words = [f"{steps / seconds:.{0 if steps > 100 * seconds else 1}f} steps/s"]
        if steps:
            words.append(f"{co_executed / steps:.0%} co-executed")
        if record["overlap"] is not None and co_executed:
            words.append(f"overlap {record['overlap']:.0%}")
        return f"terra-cx: {duration(now - self._start)}: {', '.join(words)}"


def fits(stream: TextIO) -> bool:
    """Whether a line may be written to `stream` now."""
    if stream is not sys.stderr or not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return False
    if "textual" in sys.modules or _curses_on():
        return False  # the program owns the whole screen
    return os.tcgetpgrp(stream.fileno()) == os.getpgrp()


def _curses_on() -> bool:
    curses = sys.modules.get("_curses")
    if curses is None:
        return False
    try:
        return not curses.isendwin()
    except curses.error:  # it was imported only
        return False


def fresh_line(columns: int) -> str:
    """What brings the cursor to the start of an empty line, wherever it is, on a terminal of so many columns.

    Blanks for a whole line, and back to the start. If the cursor was there already, they fill this line, and the
    terminal waits with wrapping until one more comes. If it was not, they wrap, and the cursor goes to the start of the
    next line, with what stood before it left as it is. (zsh keeps its prompt from unfinished lines in this way.)
    """
    return " " * columns + "\r"


def _write(stream: TextIO, text: str) -> None:
    bars: Any = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    if bars is not None and len(getattr(bars, "_instances", ())):
        bars.write(text, file=stream)  # takes its bars away, and draws them again below
        return
    columns = os.get_terminal_size(stream.fileno()).columns
    if columns > 0:
        stream.write(f"{fresh_line(columns)}{text[:columns]}\n")
        stream.flush()

"""What commands that run many processes share towards the terminal: progress, being stopped, the place of a table."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Announce", "console_for", "progress", "stoppable"]


def console_for(stream: TextIO) -> Console:
    """Where a table goes; in a file or a log it may be wide."""
    console = Console(file=stream)
    return console if console.is_terminal else Console(file=stream, width=max(console.width, 160))


Announce = Callable[[str, int], None]


class progress:  # noqa: N801  # reads as the function it is used as
    """A progress bar on stderr, if that is a terminal; gives the function that moves it.

    Args:
        total: steps of the bar.
    """

    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total)
        self._done = -1
        self._lock = threading.Lock()

    def __enter__(self) -> Announce:
        self._bar.start()
        return self._announce

    def _announce(self, what: str, steps: int) -> None:
        """Something begins; `steps` is what it will have moved the bar by when the next begins."""
        with self._lock:
            self._done += steps
            self._bar.update(self._task, description=what, completed=max(self._done, 0))

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


class stoppable:  # noqa: N801  # reads as the function it is used as
    """Turns SIGTERM into a KeyboardInterrupt, so that the processes that were started end as well."""

    def __enter__(self) -> None:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

"""Scripted interleavings: threads take their steps in the order of a script, without sleeping and without luck."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable


class Deadlock(AssertionError):
    """The script did not get on; the message says where every thread stands."""


class Aborted(Exception):
    """Another thread of the script failed."""


class Sequencer:
    """Names of steps in the order in which they must happen.

    A thread calls ``at("name")`` where it is about to take that step and waits there until the script has come to it.
    `run` runs one thread per function, and raises what the first failing one raised.
    """

    def __init__(self, *script: str, timeout: float = 20.0) -> None:
        self._script = list(script)
        self._timeout = timeout
        self._turn = threading.Condition()
        self._next = 0
        self._failed: BaseException | None = None

    @property
    def done(self) -> list[str]:
        """The steps taken so far."""
        return self._script[: self._next]

    def at(self, name: str) -> None:
        """Take the step ``name`` when its turn has come."""
        with self._turn:
            if name not in self._script[self._next :]:
                raise AssertionError(f"no further step {name!r} in the script; done: {self.done}")
            if not self._turn.wait_for(
                lambda: self._failed or self._script[self._next] == name, self._timeout
            ):
                raise Deadlock(f"waiting for {name!r}, but the script stands at {self._script[self._next]!r}")
            if self._failed is not None:
                raise Aborted
            self._next += 1
            self._turn.notify_all()

    def run(self, *bodies: Callable[[], object]) -> None:
        """Run ``bodies`` in threads of their own until all have ended.

        Raises:
            Deadlock: a thread did not end, or steps of the script were left over.
            BaseException: what the first thread to fail raised.
        """
        threads = [threading.Thread(target=self._guard, args=(body,), daemon=True) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self._timeout)
        stuck = [thread for thread in threads if thread.is_alive()]
        if self._failed is not None:
            raise self._failed
        if stuck:
            raise Deadlock(f"done: {self.done}\n" + "\n".join(_stack(thread) for thread in stuck))
        if self._next < len(self._script):
            raise Deadlock(f"never happened: {self._script[self._next :]}")

    def _guard(self, body: Callable[[], object]) -> None:
        try:
            body()
        except Aborted:
            pass
        except BaseException as error:
            with self._turn:
                if self._failed is None:
                    self._failed = error
                self._turn.notify_all()


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    lines = traceback.format_stack(frame) if frame is not None else ["(ended)\n"]
    return f"{thread.name}:\n" + "".join(lines[-4:])

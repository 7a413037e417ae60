"""Stretches of the owner thread that no signal handler of the program may end half-way.

Ctrl-C raises wherever Python happens to be. Most of our code may be left at any point: what it has not committed
counts for nothing; merging a trace and rebuilding a tape may not. There the program's handlers run at the end of the
stretch, in the order in which the signals came. Stretches are short and never wait for anything.

(Blocking the signals by a mask does not do: they are the process's, and TensorFlow's threads take them.)
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps in enums, five times as slow
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Uninterrupted", "has_handlers"]

_SIGNALS = tuple(sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})))


_looked: tuple[list[Any], bool] = [], False


def has_handlers() -> bool:
    """Whether a signal would have code of the program's run, and not only Ctrl-C raise."""
    global _looked
    handlers = list(map(_signal.getsignal, _SIGNALS))
    if handlers != _looked[0]:
        own = [handler for handler in handlers if handler is not signal.default_int_handler]
        _looked = handlers, any(map(callable, own))
    return _looked[1]


class Uninterrupted:
    """A context in which handlers that are written in Python wait for its end; they may raise there.

    It costs some 5 microseconds on the main thread, and nothing on others, which run no handlers. It can be nested.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._arrived: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in _SIGNALS:
                handler = _signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    _signal.signal(number, self._arrive)
        except BaseException:  # a signal came before its handler was set aside
            self._put_back()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()
        self._deliver()

    def _deliver(self) -> None:
        if self._arrived:
            number, frame = self._arrived.pop(0)
            try:
                self._handlers[number](number, frame)
            finally:  # it may raise, and the next signal came all the same
                self._deliver()

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append((number, frame))

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            _signal.signal(number, handler)

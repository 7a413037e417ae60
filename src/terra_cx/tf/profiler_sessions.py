"""Sessions of TensorFlow's profiler, the program's or ours, begin and end while no kernel runs.

In eager, whatever was issued before ``tf.profiler.experimental.stop`` has run by then and is part of the profile. Nor
must a session end under a running kernel: threads of the pools hold on to the session's listener while they work, and
TensorFlow frees it with the session (a crash, now and then, on a busy machine).

Source: ``tensorflow/python/profiler/profiler_v2.py``; ``xla/tsl/profiler/backends/cpu/threadpool_listener.cc`` and
``xla/tsl/platform/tracing.h``, ``ScopedRegion`` (2.18 to 2.21).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorflow.python.profiler.internal import _pywrap_profiler

__all__ = ["install", "remove"]

_own: Any = None
_ours: Any = None


class _Session:
    """A session that has everything done before it begins or ends."""

    def __init__(self, session: Any, settle: Callable[[], None]) -> None:
        self._session = session
        self._settle = settle

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._session, name)
        if not callable(found):
            return found

        def settled(*args: Any) -> Any:
            self._settle()
            return found(*args)

        return settled


def install(settle: Callable[[], None]) -> None:
    """Have ``settle`` called before a session begins and ends; it returns when all that was issued has run."""
    global _own, _ours
    remove()
    own = _own = _pywrap_profiler.ProfilerSession
    _ours = _pywrap_profiler.ProfilerSession = lambda *args: _Session(own(*args), settle)


def remove() -> None:
    """Give TensorFlow its own sessions back, unless somebody has put others in place."""
    global _own, _ours
    if _ours is not None and _pywrap_profiler.ProfilerSession is _ours:
        _pywrap_profiler.ProfilerSession = _own
    _own = _ours = None

"""Tracebacks as the user would see them under python: without our frames.

An exception that leaves the program passes through the launcher, and python prints it with the launcher's
frames on top. Printing it ourselves instead was tried on paper and dropped: python's main function also
decides there about SystemExit, about dying by SIGINT, about a failing `sys.excepthook` and about
`sys.last_exc`. So the exception is let through, and a `sys.excepthook` that serves once puts things right
at the last moment: it gives the program's hook back its place, shortens the traceback, and calls that hook.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import TracebackType

from terra_cx.config import TRACEBACK_VARIABLE

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


def wanted_in_full() -> bool:
    """Whether the user asked for our own frames (TERRA_TRACEBACK=full)."""
    return os.environ.get(TRACEBACK_VARIABLE) == "full"


def without_own_frames(traceback: TracebackType | None) -> TracebackType | None:
    """Unlink every frame of this package from a chain of traceback entries and return what is left of it."""
    kept = []
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            kept.append(traceback)
        traceback = traceback.tb_next
    for entry, following in zip(kept, [*kept[1:], None], strict=False):
        entry.tb_next = following
    return kept[0] if kept else None


def clean(error: BaseException) -> None:
    """Take our frames out of the tracebacks of `error`, its causes, its contexts and its group members."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = without_own_frames(one.__traceback__)
        pending += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions


def clean_when_uncaught(error: BaseException, afterwards: Callable[[], None]) -> None:
    """Arrange that `error`, which is about to leave the launcher uncaught, is shown as python would show it.

    Args:
        error: its traceback so far ends at the launcher; what is added from now on is not shown.
        afterwards: called when `sys.excepthook` has returned or raised.
    """
    clean(error)
    shown = error.__traceback__
    hook = getattr(sys, "excepthook", None)

    def once(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if value is error:
            traceback = sys.last_traceback = value.__traceback__ = shown
        try:
            if hook is not None:
                sys.excepthook = hook
                hook(kind, value, traceback)
            else:
                del sys.excepthook
                sys.stderr.write("sys.excepthook is missing\n")
                sys.__excepthook__(kind, value, traceback)
        except BaseException as failure:
            # python prints this one too. A bare raise adds no entry for the frame that it is in, so this
            # frame is gone.
            failure.__traceback__ = without_own_frames(failure.__traceback__)
            raise
        finally:
            afterwards()

    sys.excepthook = once

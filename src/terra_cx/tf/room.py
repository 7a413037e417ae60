"""Room on the interpreter's stack: asked for before something that must not be left half-way.

A program that recurses without end and catches the RecursionError goes on. Where the error is raised is anybody's
frame, ours or TensorFlow's; and TensorFlow's constructor of eager tensors crashes the process if it meets the limit
while it converts a number (2.21, ``ConvertOneFloat`` does not look at Python's error). In eager the frames around it
happen to meet the limit first; with ours among them it has to be made sure of.
"""

from __future__ import annotations

import sys

__all__ = ["have_room"]

_ROOM = 30
"""Frames that executing a run, handing it over, or converting an argument takes at most."""


def have_room() -> None:
    """Have the interpreter raise RecursionError now, if `_ROOM` more frames do not fit.

    Native code between two frames may count as well, which nobody can ask for: only if there are few frames is it
    certain without trying.

    Raises:
        RecursionError: there is no room.
    """
    try:
        sys._getframe(sys.getrecursionlimit() // 4 - _ROOM)
    except ValueError:
        return
    _descend(_ROOM)


def _descend(frames: int) -> None:
    if frames:
        _descend(frames - 1)

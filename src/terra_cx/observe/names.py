"""The two names in ``builtins`` that planted calls look up, and how they outlive the program."""

from __future__ import annotations

import builtins
import gc
from collections.abc import Callable

from terra_cx.observe.anchors import BARRIER, PROBE

__all__ = ["do_nothing", "keep_until_exit", "put"]


def do_nothing(*_: object) -> None:
    """What a planted call does when nobody listens."""


def put(probe: Callable[[int], None], barrier: Callable[[], None] = do_nothing) -> None:
    """Say what planted calls do from now on."""
    setattr(builtins, PROBE, probe)
    setattr(builtins, BARRIER, barrier)


def keep_until_exit() -> None:
    """Make the names survive the end of the interpreter, where the last finalisers still meet them.

    Python restores ``builtins`` from a copy of its first state before it clears modules, so names added later are gone
    while probed code still runs. The copies are found as the dicts that hold the same ``__import__``.
    """
    for holder in gc.get_referrers(builtins.__import__):
        if isinstance(holder, dict) and holder.get("__name__") == "builtins":
            holder[PROBE] = holder[BARRIER] = do_nothing

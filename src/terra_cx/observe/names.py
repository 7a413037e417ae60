"""The names in ``builtins`` that planted calls look up, and how they outlive the program."""

from __future__ import annotations

import builtins
import functools
import gc
from collections.abc import Callable

from terra_cx.observe.anchors import ARRIVAL, BARRIER, PROBE

__all__ = ["keep_until_exit", "put", "put_probe"]


def _do_nothing(*_: object) -> None:
    """A probe or a barrier when nobody listens."""


def _same(error: BaseException) -> BaseException:
    """An arrival then."""
    return error


def put(
    probe: Callable[[int], None] = _do_nothing,
    barrier: Callable[..., None] = _do_nothing,
    arrival: Callable[[BaseException], BaseException] = _same,
) -> None:
    """Say what planted calls do from now on; nothing, without arguments."""
    put_probe(probe)
    setattr(builtins, BARRIER, barrier)
    setattr(builtins, ARRIVAL, arrival)


def put_probe(probe: Callable[[int], None]) -> None:
    """Say what probes alone do from now on."""
    setattr(builtins, PROBE, probe)


@functools.cache  # the copies stay, and to find them all objects are looked through
def keep_until_exit() -> None:
    """Make the names survive the end of the interpreter, where the last finalisers still meet them.

    Python restores ``builtins`` from a copy of its first state before it clears modules, so names added later are gone
    while probed code still runs. The copies are found as the dicts that hold the same ``__import__``.
    """
    for holder in gc.get_referrers(builtins.__import__):
        if isinstance(holder, dict) and holder.get("__name__") == "builtins":
            holder[PROBE] = holder[BARRIER] = _do_nothing
            holder[ARRIVAL] = _same

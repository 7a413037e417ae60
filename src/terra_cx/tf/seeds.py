"""The seeds of stateful random ops in eager: what TensorFlow's Python gives each of them.

An op without a seed of its own is given one from a generator of the context's, which the global seed has started. So
to leave out the Python around a draw, the generator has to be asked in its place, and to give the same again if nothing
comes of it. (It was put back to where it stood. That took back what other threads had drawn since.)

Source: ``tensorflow/python/framework/random_seed.py``, ``Context._internal_operation_seed`` of ``eager/context.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tensorflow.python.framework import random_seed

from terra_cx.tf import native

__all__ = ["are_next", "given_again", "global_seed", "is_global", "next_seeds", "state"]

Seeds = tuple[Any, Any]
"""The attributes ``seed`` and ``seed2`` of an op."""


def global_seed() -> Any:
    """What the program has given to ``tf.random.set_seed``; None if nothing."""
    return native.context()._seed


def is_global(seed: int | None) -> bool:
    """Whether that is the global seed, of the same type: TensorFlow's native code takes no other numbers."""
    found = global_seed()
    return type(found) is type(seed) and bool(found == seed)


def next_seeds() -> Seeds:
    """Those of the next op that has no seed of its own; each call gives others.

    Raises:
        RuntimeError: TensorFlow's, if ops are to be deterministic and there is no global seed.
    """
    seeds: Seeds = random_seed.get_seed(None)
    return seeds


def state() -> Any:
    """Where the context's generator stands; None if there is none, because there never was a global seed."""
    generator = getattr(native.context(), "_rng", None)
    return None if generator is None else generator.getstate()


def are_next(stood: Any, found: Sequence[Seeds]) -> bool:
    """Whether these seeds, and no others, are what the generator has given since it stood there.

    A copy is asked: another thread may draw from the generator meanwhile.
    """
    seed, copy = global_seed(), random.Random()
    if stood is None or type(seed) is not int:
        return False
    copy.setstate(stood)
    expected = [(seed % _MOST, copy.randint(0, _MOST) % _MOST) for _ in found]
    return [*found] == [
        (0, _MOST) if each == (0, 0) else each for each in expected
    ] and copy.getstate() == state()


@contextmanager
def given_again(found: Sequence[Seeds]) -> Iterator[None]:
    """Have the generator give again, first of all, what it has given for nothing.

    It is not put back to where it stood: others may have drawn from it since.
    """
    context = native.context()
    own = getattr(context, "_rng", None)
    again = context._rng = _Again(own, [second for _, second in found])
    try:
        yield
    finally:
        if context._rng is again:  # else there is another global seed
            context._rng = own


class _Again:
    """A generator that begins with numbers it is given."""

    def __init__(self, own: Any, first: list[int]) -> None:
        self._own = own
        self._first = first

    def randint(self, low: int, high: int) -> int:
        number: int = self._first.pop(0) if self._first else self._own.randint(low, high)
        return number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


_MOST: int = random_seed._MAXINT32

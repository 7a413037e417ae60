"""The seeds of stateful random ops in eager: what TensorFlow's Python gives each of them.

An op without a seed of its own is given one from a generator of the context's, which the global seed has started. So
to leave out the Python around a draw, the generator has to be asked in its place, and to be put back if nothing comes
of it.

Source: ``tensorflow/python/framework/random_seed.py``, ``Context._internal_operation_seed`` of ``eager/context.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensorflow.python.framework import random_seed

from terra_cx.tf import native

__all__ = ["are_next", "global_seed", "next_seeds", "restore", "state"]


def global_seed() -> Any:
    """What the program has given to ``tf.random.set_seed``; None if nothing."""
    return native.context()._seed


def next_seeds() -> tuple[Any, Any]:
    """The attributes ``seed`` and ``seed2`` of the next op that has no seed of its own; each call gives others.

    Raises:
        RuntimeError: TensorFlow's, if ops are to be deterministic and there is no global seed.
    """
    seeds: tuple[Any, Any] = random_seed.get_seed(None)
    return seeds


def state() -> Any:
    """Where the context's generator stands; None if there is none, because there never was a global seed."""
    generator = getattr(native.context(), "_rng", None)
    return None if generator is None else generator.getstate()


def restore(stood: Any) -> None:
    """Have the context's generator stand where it stood."""
    if stood is not None:
        native.context()._rng.setstate(stood)


def are_next(stood: Any, seeds: Sequence[tuple[Any, Any]]) -> bool:
    """Whether these seeds, and no others, are what the generator has given since it stood there."""
    now = state()
    restore(stood)
    try:
        return all(next_seeds() == each for each in seeds) and state() == now
    finally:
        restore(now)

"""Taps: functions that are put around methods of single objects, and taken out again.

A method that is looked up on an object is looked for in the object's own dictionary first. So a run that is not
profiled has no branch for it anywhere, and one that is pays only while a tap is in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Taps"]


class Taps:
    """A set of taps that are taken out together. Of one method of one object, there is one tap at a time."""

    def __init__(self) -> None:
        self._places: list[tuple[Any, str]] = []

    def put(self, owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Have ``owner.name`` be what ``around`` makes of it.

        Args:
            owner: an object with a dictionary; others of its class are not touched.
            name: of a method.
            around: given the bound method, returns what is called in its place.

        Raises:
            AttributeError: there is no such method.
            ValueError: it has a tap.
        """
        real = getattr(owner, name)
        if getattr(real, "__self__", None) is not owner:
            raise ValueError(f"{type(owner).__name__}.{name} has a tap")
        # Not by way of `vars`: making the dictionary slows down every later access to the object's attributes.
        setattr(owner, name, around(real))
        self._places.append((owner, name))

    def take_out(self) -> None:
        """Have all be as before."""
        for owner, name in self._places:
            delattr(owner, name)
        self._places.clear()

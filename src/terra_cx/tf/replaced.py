"""Methods of TensorFlow's with one of ours in their place, unless the program has put one of its own there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["Replaced"]


class Replaced:
    """One method of a class.

    Args:
        owner: the class.
        name: the method.
        modules: where TensorFlow's own code of it may stand; anything else is the program's, and stays.
    """

    def __init__(self, owner: type, name: str, *modules: ModuleType) -> None:
        self.own: Callable[..., Any] = getattr(owner, name)
        """The method as it was at first."""
        self.short: Callable[..., Any] | None = None
        """What was put in its place."""
        self._owner = owner
        self._name = name
        self._files = {module.__file__ for module in modules}

    def put(self, short: Callable[..., Any]) -> None:
        """Put ``short`` in place, be it of what an earlier session has left there."""
        self.take_back()
        code = getattr(self.own, "__code__", None)
        if getattr(code, "co_filename", None) in self._files and getattr(self._owner, self._name) is self.own:
            self.short = functools.wraps(self.own)(short)
            setattr(self._owner, self._name, self.short)

    def take_back(self) -> None:
        """Give TensorFlow its method back, unless the program has put one of its own there since.

        Then ours is not forgotten: the program may put it back.
        """
        if self.short is not None and getattr(self._owner, self._name) is self.short:
            setattr(self._owner, self._name, self.own)
            self.short = None

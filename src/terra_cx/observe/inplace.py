"""Anchor probes for functions that exist already, by exchanging their code objects; undone by `InPlace.restore`.

Two uses: the Python interface, which is entered after the user's functions were defined, and the named adapters, which
mark the one place in a library where a step begins (Keras's ``train_step``, so that ``fit(run_eagerly=True)`` has an
anchor although no user loop and no user function is involved). Calls that are running keep their old code.
"""

from __future__ import annotations

import sys
from types import CodeType, FunctionType, ModuleType

from terra_cx.observe.anchors import AnchorTable, instrument
from terra_cx.observe.importer import UserCode

__all__ = ["ADAPTERS", "InPlace"]

ADAPTERS = {"keras.src.backend.tensorflow.trainer": ("TensorFlowTrainer", "train_step")}
"""Library modules, and the class and method in them whose entry is an anchor."""


class InPlace:
    """Plants probes in existing functions and remembers what was there.

    Args:
        table: where the anchors are registered.
        user: tells user code from libraries.
    """

    def __init__(self, table: AnchorTable, user: UserCode) -> None:
        self._table = table
        self._user = user
        self._planted: list[tuple[FunctionType, CodeType, CodeType]] = []
        self._seen: set[int] = set()

    def plant(self, function: FunctionType) -> None:
        """Exchange the function's code for one with probes; a second time does nothing."""
        if id(function.__code__) in self._seen:
            return
        old = function.__code__
        new = instrument(old, self._table)
        self._seen.update((id(old), id(new)))
        if new is not old:
            function.__code__ = new
            self._planted.append((function, old, new))

    def plant_around(self, function: FunctionType) -> None:
        """Plant probes in the user functions that ``function`` can name: its module's, and those in its closure."""
        things = list(function.__globals__.values())
        for cell in function.__closure__ or ():
            try:
                things.append(cell.cell_contents)
            except ValueError:
                continue  # not assigned yet
        for thing in things:
            if isinstance(thing, FunctionType):
                self._plant_users(thing)
            elif isinstance(thing, type) and thing.__module__ == function.__module__:
                for member in vars(thing).values():
                    inner = getattr(member, "__func__", member)
                    if isinstance(inner, FunctionType):
                        self._plant_users(inner)

    def _plant_users(self, function: FunctionType) -> None:
        if self._user.is_user(function.__code__.co_filename):
            self.plant(function)

    def adapt(self) -> None:
        """Apply the adapters: to modules that are loaded now, to the others when they are imported."""
        for name in ADAPTERS:
            module = sys.modules.get(name)
            if module is not None:
                self._adapt(module)
            else:
                self._user.after_import[name] = self._adapt

    def _adapt(self, module: ModuleType) -> None:
        owner, method = ADAPTERS[module.__name__]
        function = getattr(getattr(module, owner, None), method, None)
        if isinstance(function, FunctionType):
            self.plant(function)
        else:
            self._user.failures.append((module.__name__, f"has no {owner}.{method} to mark"))

    def restore(self) -> None:
        """Give every function its own code back, unless somebody else has exchanged it meanwhile."""
        for function, old, new in reversed(self._planted):
            if function.__code__ is new:
                function.__code__ = old
        self._planted.clear()
        self._seen.clear()
        for name in ADAPTERS:
            self._user.after_import.pop(name, None)

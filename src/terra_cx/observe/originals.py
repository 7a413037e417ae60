"""Gives the user's own code to libraries that read code objects, instead of the code with probes.

Two kinds of libraries do: picklers by value (cloudpickle, which joblib, Ray and others bring along, and
dill), whose pickles may be read in a process without probes, where the name of the probe means nothing; and
compilers of Python functions (Numba), to which it means nothing either. Each has one place where it takes a
code object, named here. `marshal` needs no such place for what TensorFlow and Keras do with it: they marshal
lambdas, which have no probes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

from terra_cx.observe.anchors import AnchorTable
from terra_cx.observe.importer import UserCode

__all__ = ["Originals"]

_Undo = Callable[[], None]


def _cloudpickle(module: Any, original: Callable[[CodeType], CodeType]) -> _Undo:
    table = module.CloudPickler._dispatch_table
    reduce = table[CodeType]
    table[CodeType] = lambda code: reduce(original(code))
    return lambda: table.__setitem__(CodeType, reduce)


def _dill(module: Any, original: Callable[[CodeType], CodeType]) -> _Undo:
    table = module.Pickler.dispatch
    save = table[CodeType]
    table[CodeType] = lambda pickler, code: save(pickler, original(code))
    return lambda: table.__setitem__(CodeType, save)


def _numba(module: Any, original: Callable[[CodeType], CodeType]) -> _Undo:
    get = module.get_code_object

    def get_code_object(thing: Any) -> Any:
        code = get(thing)
        return original(code) if isinstance(code, CodeType) else code

    module.get_code_object = get_code_object
    return lambda: setattr(module, "get_code_object", get)


ADAPTERS: dict[str, Callable[[Any, Callable[[CodeType], CodeType]], _Undo]] = {
    "cloudpickle.cloudpickle": _cloudpickle,
    "joblib.externals.cloudpickle.cloudpickle": _cloudpickle,
    "ray.cloudpickle.cloudpickle": _cloudpickle,
    "pyspark.cloudpickle.cloudpickle": _cloudpickle,
    "dill._dill": _dill,
    "numba.core.bytecode": _numba,
}
"""By module: what to do with it; returns how to undo that."""


class Originals:
    """Applies the adapters.

    Args:
        table: knows the original of every instrumented code object.
        user: its import hook tells of modules that are imported later.
    """

    def __init__(self, table: AnchorTable, user: UserCode) -> None:
        self._table = table
        self._user = user
        self._undo: list[_Undo] = []

    def adapt(self) -> None:
        """Adapt the modules that are loaded now, and the others when they are imported."""
        for name in ADAPTERS:
            module = sys.modules.get(name)
            if module is not None:
                self._adapt(module)
            else:
                self._user.after_import[name] = self._adapt

    def _adapt(self, module: ModuleType) -> None:
        try:
            self._undo.append(ADAPTERS[module.__name__](module, self._table.original))
        except (AttributeError, KeyError) as error:
            self._user.failures.append((module.__name__, f"not as expected: {type(error).__name__}: {error}"))

    def restore(self) -> None:
        """Undo what was done."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        for name in ADAPTERS:
            self._user.after_import.pop(name, None)

"""Names: what the code of library calls looks up in modules and classes.

A patched library function, a global setting (``keras.config.set_epsilon``), a method that a subclass was given: each
changes what a name means where the code that ran looks it up. In modules the names are those that the code itself
lists and that stand for functions that ran, or for data; in classes those of the methods that ran, looked up from the
class of their receiver. What they mean is compared by identity. That takes tens of microseconds for the calls of a step
together, so versions are asked first, in each call, whether a module or class was written to at all.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterable, Mapping
from operator import attrgetter, itemgetter
from types import CodeType
from typing import Any

from terra_cx.elide.versions import Versions, of_classes

__all__ = ["Codes", "Methods", "Names", "is_library", "used_names"]

Codes = Mapping[tuple[CodeType, int], dict[str, Any]]
"""The globals of functions that ran, by code and the `id` of the globals (`watch.Watch.codes`)."""
Methods = Mapping[type, Collection[str]]
"""The names of methods that ran, by the class of the receiver (`watch.Watch.methods`)."""
_LIBRARIES = frozenset({"keras", "tensorflow", "tf_keras"})
_CALLERS = ("keras", "tf_keras")
"""Whose code is looked at: what TensorFlow's private modules look up in each other is left to the comparisons."""
_DEPTH = 3
"""``a.b.c`` names modules inside modules."""
_PROTOCOLS = (
    "__call__", "__init__", "__new__", "__enter__", "__exit__", "__getattr__", "__getattribute__", "__setattr__",
    "__bool__", "__len__", "__iter__", "__getitem__", "__contains__", "__eq__", "__hash__", "__add__", "__radd__",
    "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__matmul__", "__rmatmul__",
    "__pow__", "__neg__", "__array__", "__tf_tensor__", "__get__", "__set__",
)  # fmt: skip
"""Methods that are called without being named."""
_HOOKED = "tensorflow.python.pywrap_tfe"
"""The dispatch boundary: its names mean whoever is in charge."""


def is_library(module: Any) -> bool:
    """Whether a module of this name belongs to a library whose calls are elided."""
    return isinstance(module, str) and module.partition(".")[0] in _LIBRARIES


def used_names(codes: Codes) -> set[str]:
    """All names that code mentions, as names or as strings (``getattr(layer, "kernel")``)."""
    used = set(_PROTOCOLS)
    for code, _ in codes:
        used.update(code.co_names)
        for value in code.co_consts:
            items = value if isinstance(value, (tuple, frozenset)) else (value,)
            used.update(item for item in items if isinstance(item, str) and item.isidentifier())
    return used


class Names:
    """What names mean for the calls of one step."""

    def __init__(self) -> None:
        self._wanted: dict[int, tuple[dict[str, Any], set[str]]] = {}
        self._methods: dict[type, set[str]] = {}
        self._seen: set[tuple[CodeType, int]] = set()
        self._getters: list[tuple[Callable[[Any], Any], Any]] = []
        self._meanings: list[Any] = []
        self._lines: list[tuple[type, ...]] = []
        self._written: Versions | None = None
        """Of the modules and classes, once what they say has been compared; None where more were added."""

    def __len__(self) -> int:
        """How many functions' names are known."""
        return len(self._seen)

    def add(self, codes: Codes, methods: Methods) -> list[Any]:
        """Add what these functions look up, and what these methods are.

        Returns:
            What the names stand for and is no code: state of the library's own.
        """
        data: list[Any] = []
        for (code, number), names in codes.items():
            if str(names.get("__name__")).startswith(_CALLERS):
                self._look(names, code.co_names, _DEPTH, codes, data)
                self._seen.add((code, number))
        for cls, called in methods.items():
            if not cls.__module__.startswith("tensorflow.python"):
                self._methods.setdefault(cls, set()).update(called)
        self._compile()
        return data

    def _look(
        self, mapping: dict[str, Any], names: Iterable[str], depth: int, codes: Codes, data: list[Any]
    ) -> None:
        wanted = self._wanted.setdefault(id(mapping), (mapping, set()))[1]
        for name in names:
            value = mapping.get(name, mapping)
            if value is mapping or isinstance(value, type):
                continue
            if isinstance(value, types.ModuleType):
                if depth and is_library(value.__name__) and value.__name__ != _HOOKED:
                    self._look(vars(value), names, depth - 1, codes, data)
            elif isinstance(value, types.FunctionType):
                if (value.__code__, id(value.__globals__)) in codes:
                    wanted.add(name)
            else:
                wanted.add(name)
                if str(mapping.get("__name__")).startswith(_CALLERS):
                    data.append(value)

    def _compile(self) -> None:
        # One name alone would not give a tuple.
        self._getters = [
            *(
                (itemgetter(*sorted(names), next(iter(names))), mapping)
                for mapping, names in self._wanted.values()
                if names
            ),
            *(
                (attrgetter(*sorted(names), next(iter(names))), cls)
                for cls, names in self._methods.items()
                if names
            ),
        ]
        self._meanings = [getter(where) for getter, where in self._getters]
        self._lines = list(map(_line_of, self._methods))
        self._written = None

    def changed(self) -> bool:
        """Whether a name means something else than it did."""
        if self._written is None:
            modules = [mapping for mapping, names in self._wanted.values() if names]
            self._written = Versions(dicts=[*modules, *of_classes(self._methods)])
        stands = self._written.stand()
        # (Comparing a line with itself does not look into it.)
        if stands and list(map(_line_of, self._methods)) == self._lines:
            return False
        try:
            # Compared with ``==``, which takes what is identical for equal: functions, classes and modules are no more.
            if [getter(where) for getter, where in self._getters] != self._meanings:
                return True
        except (AttributeError, KeyError):
            return True
        if stands:  # but a class inherits from others now
            self._compile()
        else:
            self._written.accept()
        return False


_line_of = attrgetter("__mro__")

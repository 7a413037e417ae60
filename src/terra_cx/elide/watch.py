"""What Python code a library call runs, seen by `sys.setprofile` while the call is traced.

The code says which names decide what the call does (`facts`). Some calls show effects that no comparison of objects
would: printing, warnings, the clock, random numbers of Python's own. Such a call is never elided.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, MappingView
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import numpy as np

from terra_cx.elide.names import is_library
from terra_cx.observe.importer import UserCode
from terra_cx.tf.native import EagerTensor

__all__ = ["Watch"]

_OURS = "terra_cx"
_EFFECTS = frozenset(
    {"_warnings", "time", "posix", "nt", "_io", "_random", "_thread", "_socket", "select", "gc", "sys"}
)
"""Modules of C functions, and of the classes of C methods, that reach outside or tell what changes by itself."""
_HARMLESS = frozenset(
    {
        "allocate_lock", "RLock", "acquire", "release", "get_ident", "__enter__", "__exit__", "locked",
        "getrefcount", "intern", "_getframe", "exc_info", "getsizeof", "fspath", "isatty", "gettrace", "settrace",
        "is_finalizing", "audit", "getrecursionlimit", "getprofile", "setprofile",
    }
)  # fmt: skip
_TRANSPARENT = (_OURS, "tensorflow.python.eager.monitoring")
"""Whose calls do not count: TensorFlow measures how long some of its own functions take."""
_PRINTING = frozenset({"print", "input", "open", "breakpoint"})


_COPIES = frozenset({"copy", "__array__", "asarray", "array", "arange", "zeros", "empty", "dtype"})
"""C functions of NumPy's that do not look at the values of an array."""
_UNDERSTOOD = frozenset(
    {
        "keras",
        "tensorflow",
        "tf_keras",
        "numpy",
        "optree",
        "absl",
        "wrapt",
        "ml_dtypes",
        "google",
        "six",
        "typing_extensions",
        _OURS,
    }
)


def _is_understood(module: Any) -> bool:
    """Whether code of a module may run in a call that is elided: its names are looked after, or mean nothing to it."""
    top = str(module).partition(".")[0]
    return top in _UNDERSTOOD or top in sys.stdlib_module_names or top.startswith("namedtuple_")


_OBSERVERS = frozenset({"terra_cx.observe.importer", "terra_cx.observe.statements"})
"""Modules of ours that look at where an op was issued, and run nothing of the call."""


def _is_ours(frame: FrameType | None) -> bool:
    """Whether a function is called for ours: the first op at a file has its path looked at."""
    for _ in range(6):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") in _OBSERVERS:
            return True
        frame = frame.f_back
    return False


def _is_of(frame: FrameType | None, modules: str | tuple[str, ...]) -> bool:
    """Whether a function is one of these modules, named by how they begin."""
    return frame is not None and str(frame.f_globals.get("__name__", "")).startswith(modules)


def _holds_array(values: Iterable[Any]) -> bool:
    """Whether there is an array among these, or in a list, tuple or dict among them; what only iterates may hold any.

    So may a tensor that was made of one, and a number that was taken out of one. Whatever gets at an array's values is
    first given the array itself. (Any call of NumPy's was taken for one: TensorFlow's ``squeeze`` asks
    ``np.isscalar(axis)``, and Keras's ``argmax`` for ``np.finfo``.)
    """
    return any(
        isinstance(value, (np.ndarray, np.generic, EagerTensor, Iterator, MappingView))
        or (isinstance(value, (list, tuple)) and _holds_array(value))
        or (isinstance(value, dict) and _holds_array(value.values()))
        for value in values
    )


@dataclass(frozen=True, slots=True)
class _Met:
    """A function that ran."""

    code: CodeType
    """Kept, so that its `id` stays its own."""
    of_library: bool
    of_numpy: bool


class Watch:
    """Notes Python functions that begin, and the first C function with an effect, between `start` and `stop`.

    Args:
        user: tells the program's code from libraries'.
    """

    def __init__(self, user: UserCode) -> None:
        self._user = user
        self._collects = False
        self.codes: dict[tuple[CodeType, int], dict[str, Any]] = {}
        """The globals of each function that ran, by code and their `id`."""
        self._met: dict[tuple[int, int], _Met] = {}
        """What is known of each, by the `id` of both: code is hashed by all it holds, which takes microseconds."""
        self.methods: dict[type, set[str]] = {}
        """The names of methods that ran, by the class of the receiver."""
        self.computes = False
        """Whether NumPy did more with an array than copy it: then what Python computed may depend on its values."""
        self.effect: str | None = None
        """What was seen that forbids an elision."""

    def start(self) -> bool:
        """Watch from here on; False if somebody else profiles the program, who must see all calls."""
        if sys.getprofile() is not None:
            return False
        # A garbage collection would run finalisers and callbacks in it that are no part of the call.
        self._collects = gc.isenabled()
        gc.disable()
        sys.setprofile(self._on_event)
        return True

    def stop(self) -> None:
        """Watch no longer."""
        if sys.getprofile() == self._on_event:
            sys.setprofile(None)
        if self._collects:
            gc.enable()

    def _on_event(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            code, names = frame.f_code, frame.f_globals
            met = self._met.get((id(code), id(names))) or self._meet(code, names)
            if met.of_library and code.co_argcount and code.co_varnames[0] == "self":
                self._method(type(frame.f_locals["self"]), code.co_name)
            if met.of_numpy and not self.computes and not _is_of(frame.f_back, _OURS):
                self.computes = _holds_array(frame.f_locals.values())
        elif event == "c_call" and self.effect is None:
            name = arg.__name__
            module = arg.__module__
            if module is None:
                module = type(arg.__self__).__module__
            if module == "numpy" and name not in _COPIES and not self.computes and not _is_of(frame, _OURS):
                self.computes = not _is_of(frame, "numpy") or _holds_array(frame.f_locals.values())
            outside = (
                (module in _EFFECTS and name not in _HARMLESS) or name in _PRINTING or "random" in module
            )
            if outside and not _is_of(frame, _TRANSPARENT) and not _is_ours(frame):
                self.effect = f"{module}.{name} is called in it"

    def _meet(self, code: CodeType, names: dict[str, Any]) -> _Met:
        """A function runs for the first time."""
        module = names.get("__name__")
        name = str(module)
        ours = name.startswith(_OURS)
        met = _Met(code, is_library(module), name.startswith("numpy"))
        self._met[id(code), id(names)] = met
        if not ours:
            self.codes[code, id(names)] = names
            if self.effect is None and (self._user.owns(code) or not _is_understood(module)):
                self.effect = f"{code.co_qualname} of {module} runs in it"
        return met

    def _method(self, cls: type, name: str) -> None:
        known = self.methods.setdefault(cls, set())
        if name in known:
            return
        found = getattr(cls, name, None)
        # (A name that gives something new each time is no function or property: a class method, say.)
        lasts = found is not None and found is getattr(cls, name)
        if lasts and not str(getattr(found, "__module__", "")).startswith(_OURS):  # a hook comes and goes
            known.add(name)

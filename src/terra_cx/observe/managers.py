"""Which context managers an op's error may pass by: those that neither swallow it nor care about it.

At a barrier around the body of a `with` statement Python waits for ops that may fail, because the manager may
swallow the error (`contextlib.suppress`, `pytest.raises`) or do something else when it sees one (roll a transaction
back). Most managers do neither: tapes, name scopes, locks, files. They are known by where their class comes from. A
generator that `contextlib.contextmanager` made into one is known by where the generator comes from; one in the
user's code has barriers of its own around its `yield`, so the `with` statement needs none.
"""

from __future__ import annotations

import contextlib
from types import BuiltinMethodType, MethodType, MethodWrapperType
from typing import Any

from terra_cx.observe.anchors import PLANTED

__all__ = ["is_harmless"]

_PACKAGE_NAMES = """
builtins tensorflow keras tf_keras numpy tqdm rich PIL h5py
_thread threading multiprocessing concurrent selectors subprocess
_io io os posix pathlib tempfile shelve dbm zipfile tarfile gzip bz2 lzma _lzma mmap fileinput
socket ssl http urllib ftplib
warnings decimal _decimal cProfile _lsprof
"""
_PACKAGES = frozenset(_PACKAGE_NAMES.split())
"""Top-level packages whose managers are harmless."""
_TESTING = ("test", "testing")
"""Modules named so hold managers that expect errors."""
_HARMLESS = frozenset({"nullcontext", "closing", "aclosing", "_RedirectStream", "chdir"})
"""Those of `contextlib`, by the class that has the method."""
_GENERATORS = (contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager)
_METHODS = (MethodType, BuiltinMethodType, MethodWrapperType)

_known: dict[type, bool] = {}


def is_harmless(thing: Any) -> bool:
    """Whether an error may surface after the body of a `with` as well as inside.

    Args:
        thing: the context manager, or its bound ``__exit__`` method.
    """
    manager: Any = thing.__self__ if isinstance(thing, _METHODS) else thing
    kind: type = type(manager)
    if kind in _GENERATORS:
        return _is_harmless_generator(manager.gen)
    found = _known.get(kind)
    if found is None:
        if len(_known) > 1000:
            _known.clear()  # classes made again and again
        found = _known[kind] = _judge(kind)
    return found


def _judge(kind: type) -> bool:
    for name in ("__exit__", "__aexit__"):
        # Where the method comes from: a user's subclass of a harmless class is one if it leaves that alone.
        owner = next((base for base in kind.__mro__ if name in vars(base)), None)
        if owner is not None:
            module = getattr(owner, "__module__", "")
            return (module == "contextlib" and owner.__name__ in _HARMLESS) or _is_of(module)
    return False


def _is_of(module: Any) -> bool:
    if not isinstance(module, str):
        return False
    parts = module.split(".")
    if any(part in _TESTING or part.startswith("test_") or part.endswith("_test") for part in parts):
        return False
    return parts[0] in _PACKAGES


def _is_harmless_generator(generator: Any) -> bool:
    code = getattr(generator, "gi_code", None) or getattr(generator, "ag_code", None)
    frame = getattr(generator, "gi_frame", None) or getattr(generator, "ag_frame", None)
    if code is None or frame is None:
        return False
    return not set(PLANTED).isdisjoint(code.co_names) or _is_of(frame.f_globals.get("__name__"))

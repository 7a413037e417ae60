"""Which code is the user's, and the import hook that gives it anchor probes.

User code is the script and every module outside site-packages, the standard library and this package. The hook wraps
the source loader of such modules and instruments what the loader compiled, in memory only: byte code caches are read
and written without probes.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import sysconfig
from collections.abc import Callable, Sequence
from types import CodeType, ModuleType
from typing import Any

from terra_cx.observe.anchors import AnchorTable, instrument

__all__ = ["UserCode"]

_IMPORTLIB = "<frozen importlib._bootstrap_external>"
"""The file name whose frames python leaves out of the traceback of a failed import."""
_call: Callable[..., Any] = importlib._bootstrap._call_with_frames_removed  # type: ignore[attr-defined]
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _library_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    paths = {os.path.realpath(path) for name in names if (path := sysconfig.get_path(name))}
    paths |= {sysconfig.get_path(name) for name in names if sysconfig.get_path(name)}
    return tuple(path + os.sep for path in paths)


class UserCode:
    """Tells user code from libraries.

    Args:
        extra_library_prefixes: further folders whose code counts as library code.
    """

    def __init__(self, extra_library_prefixes: Sequence[str] = ()) -> None:
        self._libraries = (*_library_folders(), _HERE + os.sep, *extra_library_prefixes)
        self._known: dict[str, bool] = {}
        self._finder: _Finder | None = None
        self._codes: set[CodeType] = set()
        self.failures: list[tuple[str, str]] = []
        self.after_import: dict[str, Callable[[ModuleType], None]] = {}
        """Called with a module of that name right after it has been executed."""

    def add(self, filename: str) -> None:
        """Count ``filename`` as user code, whatever it is called (the launched program, ``<string>``)."""
        self._known[filename] = True

    def add_code(self, code: CodeType) -> None:
        """Count ``code`` and all code in it as the user's.

        For a program without a file: ``<string>`` is also the name under which the standard library compiles the
        methods of named tuples and dataclasses.
        """
        self._codes.add(code)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self.add_code(constant)

    def owns(self, code: CodeType) -> bool:
        """Whether ``code`` is the user's."""
        if code.co_filename.startswith("<"):
            return code in self._codes
        return self.is_user(code.co_filename)

    def is_user(self, filename: str) -> bool:
        """Whether code of this file is the user's."""
        known = self._known.get(filename)
        if known is None:
            known = self._known[filename] = self._judge(filename)
        return known

    def _judge(self, filename: str) -> bool:
        if filename.startswith("<"):
            return False
        path = os.path.abspath(filename)
        if any(part in ("site-packages", "dist-packages") for part in path.split(os.sep)):
            return False
        if f"{os.sep}python3" in path and ".zip" in path:
            return False  # a zipped standard library
        return not (path.startswith(self._libraries) or os.path.realpath(path).startswith(self._libraries))

    def install(self, table: AnchorTable) -> None:
        """Put the import hook in place."""
        if self._finder is None:
            self._finder = _Finder(self, table)
            sys.meta_path.insert(0, self._finder)

    def remove(self) -> None:
        """Take the import hook away; modules imported so far keep their probes."""
        if self._finder is not None and self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        self._finder = None


class _Finder(importlib.abc.MetaPathFinder):
    """Asks the finders behind it and wraps the loader of user modules."""

    def __init__(self, user: UserCode, table: AnchorTable) -> None:
        self._user = user
        self._table = table

    @staticmethod
    def _tell(loader: Any, hook: Callable[[ModuleType], None]) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            hook(module)

        exec_module.__code__ = exec_module.__code__.replace(co_filename=_IMPORTLIB)
        loader.exec_module = exec_module

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        """The spec that the others find, its loader instrumenting if the module is the user's."""
        for finder in sys.meta_path:
            if finder is self:
                continue
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None else None
            if spec is not None:
                self._wrap(spec)
                return spec
        return None

    def _wrap(self, spec: Any) -> None:
        if spec.name in self._user.after_import and spec.loader is not None:
            self._tell(spec.loader, self._user.after_import[spec.name])
        loader, origin = spec.loader, spec.origin
        if (
            loader is None
            or not spec.has_location
            or not hasattr(loader, "get_code")
            or not self._user.is_user(origin)
        ):
            return
        if isinstance(loader, importlib.machinery.ExtensionFileLoader):
            return
        user, table = self._user, self._table

        def exec_module(module: ModuleType) -> None:
            code: CodeType | None = loader.get_code(module.__name__)
            if code is None:
                raise ImportError(f"cannot load module {module.__name__!r} when get_code() returns None")
            try:
                code = instrument(code, table)
            except Exception as error:  # noqa: BLE001  # the module runs without probes
                user.failures.append((origin, f"{type(error).__name__}: {error}"))
            # As importlib runs it, so that python takes the importing frames out of tracebacks as it does without us.
            _call(exec, code, module.__dict__)

        exec_module.__code__ = exec_module.__code__.replace(co_filename=_IMPORTLIB)
        # The instance's attribute hides the class's method: the loader stays what it is for everybody who looks at it.
        try:
            loader.exec_module = exec_module
        except AttributeError as error:
            user.failures.append((origin, f"its loader takes no attributes: {error}"))

"""Which code is the user's, and the import hook that gives it anchor probes.

User code is the launched program and every module outside the standard library, site-packages, dist-packages
and this package, and not of a distribution that was installed into another folder (``pip install --target``).

The hook asks the finders behind it for a module's spec. If the module is the user's, the loader that they
made gets a `get_code` of its own (an attribute of that one loader, not of its class) which instruments what
the class's `get_code` returns. The loader runs the module as always: byte code caches are read and written as
always, without probes; `__loader__`, `__spec__`, `inspect.getsource`, `importlib.reload`, `runpy` and zip
files work as always. A hook that replaced `exec_module` would bypass the loaders of other import hooks, which
do their work there.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import sysconfig
from collections.abc import Callable, Sequence
from types import CodeType, FrameType, ModuleType
from typing import Any

from terra_cx.observe.anchors import AnchorTable, instrument

__all__ = ["UserCode", "finders_behind", "spec_of", "when_imported"]

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _libraries() -> tuple[str, ...]:
    """Where libraries are: folders (ending in a separator) and the archive of a zipped standard library."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [path for name in names if (path := sysconfig.get_path(name))]
    version = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
    folders += [os.path.join(prefix, sys.platlibdir, version) for prefix in {sys.prefix, sys.base_prefix}]
    folders += [_OURS]
    return tuple({form + os.sep for path in folders for form in (path, os.path.realpath(path))})


def _installed_in(folder: str) -> frozenset[str]:
    """The packages and modules that installed distributions have put into a folder, as its entries are called.

    A project that was only linked (``pip install --editable``) has put none there.
    """
    if not any(entry.endswith(".dist-info") for entry in _entries(folder)):
        return frozenset()
    from importlib.metadata import distributions  # takes a while

    records = (found.read_text("RECORD") or "" for found in distributions(path=[folder]))
    files = (line.partition(",")[0] for record in records for line in record.splitlines())
    return frozenset(file.partition("/")[0] for file in files)


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []  # a zip file, or no longer there


class UserCode:
    """Tells user code from libraries.

    Args:
        extra_library_prefixes: further paths; what begins with one counts as library code.
    """

    def __init__(self, extra_library_prefixes: Sequence[str] = ()) -> None:
        self._libraries = (*_libraries(), *extra_library_prefixes)
        self._known: dict[str, bool] = {}
        self._installed: dict[str, frozenset[str]] = {}
        # By id, because comparing code objects takes microseconds; the objects are kept, so that ids stay
        # theirs.
        self._codes: dict[int, CodeType] = {}
        self._judged: dict[int, tuple[CodeType, bool]] = {}
        """Whose the code of files is."""
        self._finder: _Finder | None = None
        self.failures: list[tuple[str, str]] = []
        """What could not be marked: module or file, and why. It runs plainly."""
        self.after_import: dict[str, Callable[[ModuleType], None]] = {}
        """Called with a module of that name right after it has been executed."""

    # -- whose code ------------------------------------------------------------------------------------------
    def add(self, filename: str) -> None:
        """Count `filename` as user code, whatever it is called (the launched program, `<string>`)."""
        self._known[filename] = True
        self._judged.clear()

    def add_code(self, code: CodeType) -> None:
        """Count `code` and all code in it as the user's.

        For a program without a file: `<string>` is also the name under which the standard library compiles
        the methods of named tuples and dataclasses.
        """
        self._codes[id(code)] = code
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self.add_code(constant)

    def owns(self, code: CodeType) -> bool:
        """Whether `code` is the user's."""
        known = self._judged.get(id(code))
        if known is not None:
            return known[1]
        if code.co_filename.startswith("<"):  # not remembered: it may be made anew in each step
            return id(code) in self._codes
        owned = self.is_user(code.co_filename)
        self._judged[id(code)] = code, owned
        return owned

    def innermost(self, frame: FrameType | None) -> FrameType | None:
        """The first frame, from ``frame`` outwards, that runs the user's code; None if there is none."""
        while frame is not None and not self.owns(frame.f_code):
            frame = frame.f_back
        return frame

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
        if not {"site-packages", "dist-packages"}.isdisjoint(path.split(os.sep)):
            return False
        if path.startswith(self._libraries) or os.path.realpath(path).startswith(self._libraries):
            return False
        return not self._is_installed(path)

    def _is_installed(self, path: str) -> bool:
        """Whether the file is of a distribution that was installed into a folder of `sys.path`."""
        for folder in sys.path:
            root = os.path.join(os.path.abspath(folder), "")
            if path.startswith(root):
                if root not in self._installed:
                    self._installed[root] = _installed_in(root)
                if path[len(root) :].partition(os.sep)[0] in self._installed[root]:
                    return True
        return False

    # -- the import hook -------------------------------------------------------------------------------------
    def install(self, table: AnchorTable) -> None:
        """Put the import hook in place. User modules imported from now on have probes."""
        if self._finder is None:
            self._finder = _Finder(self, table)
            sys.meta_path.insert(0, self._finder)

    def remove(self) -> None:
        """Take the import hook away; modules imported so far keep their probes."""
        if self._finder is not None:
            self._finder.active = False
            if self._finder in sys.meta_path:
                sys.meta_path.remove(self._finder)
            self._finder = None


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself; marks the loaders that the finders behind it make."""

    def __init__(self, user: UserCode, table: AnchorTable) -> None:
        self._user = user
        self._table = table
        self.active = True

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        """The spec that the others find, its loader marked if the module is the user's."""
        spec = spec_of(finders_behind(self), name, path, target)
        if spec is not None:
            self._mark(spec)
        return spec

    def _mark(self, spec: importlib.machinery.ModuleSpec) -> None:
        loader: Any = spec.loader
        hook = self._user.after_import.get(spec.name)
        try:
            if hook is not None and loader is not None:
                loader.exec_module = _telling(loader.exec_module, hook)
            if not spec.has_location or not spec.origin or not self._user.is_user(spec.origin):
                return
            # A loader may serve many modules (that of a zip file): it is marked once.
            get_code = getattr(loader, "get_code", None)
            if get_code is not None and getattr(get_code, "finder", None) is not self:
                loader.get_code = self._instrumenting(get_code)
        except AttributeError as error:
            self._user.failures.append((spec.name, f"its loader takes no attributes: {error}"))

    def _instrumenting(self, get_code: Callable[[str], CodeType | None]) -> Callable[[str], CodeType | None]:
        def get_instrumented_code(name: str) -> CodeType | None:
            try:
                code = get_code(name)
            except BaseException as error:
                _leave_out(error)
                raise
            return self._instrument(name, code) if code is not None and self.active else code

        get_instrumented_code.finder = self  # type: ignore[attr-defined]
        return get_instrumented_code

    def _instrument(self, name: str, code: CodeType) -> CodeType:
        try:
            return instrument(code, self._table)
        except Exception as error:  # noqa: BLE001  # whatever it is, the module runs without probes
            self._user.failures.append((name, f"{type(error).__name__}: {error}"))
            return code


def finders_behind(finder: Any) -> list[Any]:
    """The finders behind ``finder`` on `sys.meta_path`; none if it is not there."""
    finders: list[Any] = list(sys.meta_path)
    return finders[finders.index(finder) + 1 :] if finder in finders else []


def spec_of(finders: list[Any], name: str, path: Any, target: ModuleType | None) -> Any:
    """The spec that the first of ``finders`` that knows the module finds, None if none does."""
    for finder in finders:
        # A finder of the old protocol, without find_spec, is asked by the import system after this one.
        find = getattr(finder, "find_spec", None)
        spec = find(name, path, target) if find is not None else None
        if spec is not None:
            return spec
    return None


def when_imported(name: str, hook: Callable[[ModuleType], None]) -> None:
    """Call `hook` with the module `name` right after its first import has executed it; at once if that has been."""
    if name in sys.modules:
        hook(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Waiting(name, hook))


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds nothing itself; waits for one module, makes its loader tell, and is gone."""

    def __init__(self, name: str, hook: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._hook = hook

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        """The spec that the others find, if it is the module that is waited for."""
        if name != self._name or self not in sys.meta_path:
            return None
        behind = finders_behind(self)
        sys.meta_path.remove(self)
        spec = spec_of(behind, name, path, target)
        if spec is not None:
            spec.loader.exec_module = _telling(spec.loader.exec_module, self._hook)
        return spec


def _telling(
    exec_module: Callable[[ModuleType], None], hook: Callable[[ModuleType], None]
) -> Callable[[ModuleType], None]:
    def exec_module_and_tell(module: ModuleType) -> None:
        try:
            exec_module(module)
        except BaseException as error:
            _leave_out(error)
            raise
        hook(module)

    return exec_module_and_tell


def _leave_out(error: BaseException) -> None:
    """Take the frame that has just caught an exception, and raises it again, out of the traceback.

    Python does not put it back: raising again adds no entry. With a frame of ours between the import system's
    own, it would not recognise them, and the user would see them all.
    """
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next

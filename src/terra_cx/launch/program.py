"""The program that a user launches, in each of the forms that python knows.

What python does in C for `python script.py` is repeated here: which name goes into `sys.argv[0]`, which
directory comes first on `sys.path`, what the fresh `__main__` module holds. For modules, directories and
archives python itself calls `runpy`, so we call the same function: its search, its messages and its lines
in a traceback are then python's own.

A source that does not compile is not reported here but left to python (`CompileError`, `hand_over`):
compiling from memory words some errors differently from compiling a file (a missing encoding declaration, a
NUL byte), and an imitation of all of them would be wrong in the next version.
"""

from __future__ import annotations

import builtins
import importlib
import linecache
import marshal
import os
import pkgutil
import stat
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import BuiltinImporter, SourceFileLoader, SourcelessFileLoader
from importlib.util import MAGIC_NUMBER
from io import open_code
from types import CodeType, ModuleType
from typing import Any, Literal, NoReturn

from terra_cx.errors import TerraError, UsageError

Instrument = Callable[[CodeType], CodeType]

_PYC_HEADER = 16  # bytes before the marshalled code: magic, flags, then mtime and size or a hash


class CompileError(TerraError):
    """The program's source is refused by the compiler; python itself shall say so."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the user asked to run: the form, the script, module or code itself, the arguments."""

    form: Literal["script", "module", "code"]
    name: str
    arguments: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The words behind `python` that start the same program."""
        if self.form == "script":
            # A name that starts with a hyphen was given behind "--", and python needs it there as well.
            return [*(["--"] if self.name.startswith("-") else []), self.name, *self.arguments]
        return ["-m" if self.form == "module" else "-c", self.name, *self.arguments]


@dataclass(frozen=True, slots=True)
class Program:
    """A program ready to run: `enter`, `run`, `leave`, once each.

    Attributes:
        code: the compiled program; None where runpy is to find and compile it.
        module: what runpy is to look for.
        is_container: the program is a directory or archive, and `module` the `__main__` in it.
        argv0: `sys.argv[0]` at the start.
        first_path: the directory that comes first on `sys.path`, unless the path is to be safe.
        names: what `__main__` holds beyond what every `__main__` does.
    """

    arguments: tuple[str, ...]
    argv0: str
    first_path: str
    code: CodeType | None = None
    module: str = ""
    is_container: bool = False
    names: dict[str, object] = field(default_factory=dict)

    def enter(self, safe_path: bool) -> None:
        """Set `sys.argv`, `sys.path` and `sys.modules["__main__"]` as python does before it runs the program.

        Args:
            safe_path: leave the program's own directory out of `sys.path`, as `python -P` does.
        """
        if not sys.flags.safe_path:
            del sys.path[0]  # where python found us: the directory of terra-run, or the working directory
        # A container is itself the program: python adds it even when the path is to be safe.
        if self.is_container or not (safe_path or sys.flags.safe_path):
            sys.path.insert(0, self.first_path)
        sys.argv = [self.argv0, *self.arguments]
        main = ModuleType("__main__")
        main.__dict__.update(__loader__=BuiltinImporter, __annotations__={}, __builtins__=builtins)
        main.__dict__.update(self.names)
        sys.modules["__main__"] = main

    def run(self, instrument: Instrument) -> None:
        """Run the program's code in `__main__`, rewritten by `instrument`; lets its exceptions out."""
        if self.code is None:
            self._run_through_runpy(instrument)
        else:
            exec(instrument(self.code), sys.modules["__main__"].__dict__)

    def _run_through_runpy(self, instrument: Instrument) -> None:
        # Any: the two private names have been the same since Python 3.4; cProfile and pdb use one of them.
        runpy: Any = importlib.import_module("runpy")
        find = runpy._get_module_details

        def find_and_instrument(*arguments: Any) -> tuple[str, object, CodeType]:
            # Back to normal at once: for a package the function calls itself, and the program must not see
            # the change.
            runpy._get_module_details = find
            found, spec, code = find(*arguments)
            return found, spec, instrument(code)

        runpy._get_module_details = find_and_instrument
        try:
            runpy._run_module_as_main(self.module, alter_argv=not self.is_container)
        finally:
            runpy._get_module_details = find

    def leave(self) -> None:
        """Do what python does to `__main__` when the code has ended other than by SystemExit."""
        if "__file__" in self.names:
            # What still runs, atexit handlers for instance, finds these two gone under python too.
            namespace = sys.modules["__main__"].__dict__
            namespace.pop("__file__", None)
            namespace.pop("__cached__", None)


def load(target: Target) -> Program:
    """Read and compile what can be before anything of the program runs.

    Raises:
        UsageError: there is no such script.
        CompileError: its source is not valid.
    """
    if target.form == "code":
        return _load_code(target)
    if target.form == "script":
        return _load_script(target)
    # python leaves "-m" in sys.argv until the module is found; packages imported on the way can see it.
    return Program(target.arguments, argv0="-m", first_path=os.getcwd(), module=target.name)


def _load_code(target: Target) -> Program:
    code = _compiled(target.name, "<string>")
    if sys.version_info >= (3, 13):
        # From here on python keeps the text, so that tracebacks can quote it.
        lines = [line + "\n" for line in target.name.splitlines()]
        linecache.cache["<string>"] = (len(target.name), None, lines, "<string>")
    return Program(target.arguments, argv0="-c", first_path="", code=code)


def _load_script(target: Target) -> Program:
    file = os.path.join(os.getcwd(), target.name)  # joined, not normalised: so does python
    if pkgutil.get_importer(file) is not None:
        return Program(
            target.arguments, argv0=target.name, first_path=file, module="__main__", is_container=True
        )
    try:
        with open_code(file) as stream:
            regular = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
            source = stream.read()
    except OSError as error:
        raise UsageError(f"can't open file {file!r}: [Errno {error.errno}] {error.strerror}") from None
    compiled = source.startswith(MAGIC_NUMBER)
    try:
        code = _unmarshalled(source) if compiled else _compiled(source, file)
    except CompileError as error:
        if regular:
            raise
        # A pipe is empty by now: python could not read it again.
        raise UsageError(f"{error.__cause__}; put the program into a file") from None
    loader = (SourcelessFileLoader if compiled else SourceFileLoader)("__main__", file)
    return Program(
        target.arguments,
        argv0=target.name,
        first_path=os.path.dirname(os.path.realpath(file)),
        code=code,
        names={"__loader__": loader, "__file__": file, "__cached__": None},
    )


def hand_over(target: Target, safe_path: bool) -> NoReturn:
    """Replace this process by plain python running `target`."""
    import subprocess

    # What multiprocessing uses to start its children with the parent's flags; typeshed leaves it out.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    if safe_path and not sys.flags.safe_path:
        flags.append("-P")
    os.execv(sys.executable, [sys.executable, *flags, *target.command])


def _compiled(source: str | bytes, filename: str) -> CodeType:
    # Warnings are kept back until the source is known to be good: otherwise python, when it is handed a bad
    # one, would print them a second time.
    with warnings.catch_warnings(record=True) as caught:
        try:
            code = compile(source, filename, "exec", dont_inherit=True)
        except Exception as error:
            raise CompileError(filename) from error
    for warning in caught:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    return code


def _unmarshalled(data: bytes) -> CodeType:
    try:
        code = marshal.loads(data[_PYC_HEADER:])
    except (EOFError, ValueError, TypeError) as error:
        raise CompileError("not a code object") from error
    if not isinstance(code, CodeType):
        raise CompileError("not a code object")
    return code

"""Which files are programs.

A path to a file is a program, whatever it holds. In a folder, a file is one if it has an
`if __name__ == "__main__"` guard, or if it does something at its top level and no other file of the folder imports
it. So `common.py`, which the others import, is not, nor is a module that only defines. A folder with a `__main__.py` is
itself the program, as for python. Folders within it are not searched.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from terra_cx.errors import UsageError

__all__ = ["NoProgramError", "Program", "find", "listed"]

_NEVER = ("conftest.py", "setup.py", "__init__.py")


class NoProgramError(UsageError):
    """A path leads to no program."""


def find(path: Path) -> list[Path]:
    """The programs that a path stands for, in alphabetical order.

    Raises:
        NoProgramError: there is no such file, or no program in the folder.
    """
    if path.is_file() or (path / "__main__.py").is_file():
        return [path]
    if not path.exists():
        raise NoProgramError(f"{path}: no such file or folder")
    if not path.is_dir():
        raise NoProgramError(f"{path}: neither a file nor a folder")
    try:
        sources = [_Source.of(file) for file in sorted(path.glob("*.py")) if file.is_file()]
    except OSError as error:
        raise NoProgramError(f"{error.filename}: {error.strerror}") from None
    imported = {name for source in sources for name in source.imports}
    found = [
        source.file
        for source in sources
        if source.file.name not in _NEVER
        and not source.file.name.startswith("test_")
        and (source.guard or (source.acts and source.file.stem not in imported))
    ]
    if not found:
        raise NoProgramError(
            f"{path}: no program in this folder (no .py file with an `if __name__ == '__main__'` or with "
            "statements that do something)"
        )
    return found


@dataclass(frozen=True, slots=True)
class Program:
    """A program to be run: what it is called in reports, its file, and why there is none, if so."""

    name: str
    script: Path
    problem: str = ""


def listed(paths: Sequence[Path]) -> list[Program]:
    """The programs that all paths stand for, each once, in the order given; a path without one is listed too."""
    found: dict[Path, Program] = {}
    for path in paths:
        try:
            for script in find(path):
                found.setdefault(script.resolve(), Program(_name(script), script))
        except NoProgramError as error:
            found[path] = Program(str(path), path, str(error))
    return list(found.values())


def _name(script: Path) -> str:
    """Its path relative to the working directory if it is below it."""
    relative = os.path.relpath(script)
    return str(script) if relative.startswith("..") else relative


@dataclass(frozen=True, slots=True)
class _Source:
    """What the source of a file tells: a guard, statements that act, the top-level names that it imports."""

    file: Path
    guard: bool
    acts: bool
    imports: frozenset[str]

    @staticmethod
    def of(file: Path) -> _Source:
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            # Whether it is one cannot be told: running it will say what is wrong.
            return _Source(file, False, True, frozenset())
        imports: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imports.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                if node.module:
                    imports.add(node.module.partition(".")[0])
                elif node.level:
                    imports.update(alias.name for alias in node.names)
        guard = any(isinstance(node, ast.If) and _is_guard(node.test) for node in tree.body)
        return _Source(file, guard, any(_acts(node) for node in tree.body), frozenset(imports))


def _is_guard(test: ast.expr) -> bool:
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return False
    sides = [test.left, test.comparators[0]]
    return any(isinstance(s, ast.Name) and s.id == "__name__" for s in sides) and any(
        isinstance(s, ast.Constant) and s.value == "__main__" for s in sides
    )


def _acts(node: ast.stmt) -> bool:
    """Whether a top-level statement does something: a loop, a `with`, a call whose result nobody keeps."""
    if isinstance(node, ast.For | ast.While | ast.With):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)

"""Decorates the program's step function where it is defined, without a change to any file.

Every `def` of the wanted name, methods and nested functions too, gets one more decorator while its module is compiled:
`__terra_step__`, a name in `builtins`. The tree is changed and not the bytecode, because a decorator is nothing special
in a tree, and every node keeps its position, so tracebacks and the lines in reports stay as they are.
"""

from __future__ import annotations

import ast
import builtins
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

from terra_cx.observe.importer import UserCode, finders_behind, spec_of

__all__ = ["DECORATOR", "Decorating", "decorated"]

DECORATOR = "__terra_step__"

_DESCRIPTORS = frozenset({"staticmethod", "classmethod", "property"})


def decorated(source: bytes | str, filename: str, name: str) -> CodeType | None:
    """Compile a module with every function called `name` decorated; None if it defines none.

    Raises:
        SyntaxError, ValueError: as `compile` does.
    """
    tree = ast.parse(source, filename)
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found:
        return None
    for node in found:
        # Inside staticmethod and its like, which make something that cannot be called in every version; outside of
        # all else, so that what the program's own decorators do is timed with it.
        at = 0
        while at < len(node.decorator_list) and _is_descriptor(node.decorator_list[at]):
            at += 1
        first = node.decorator_list[0] if node.decorator_list else node
        mark = ast.Name(DECORATOR, ast.Load())
        mark.lineno, mark.col_offset = first.lineno, first.col_offset
        mark.end_lineno, mark.end_col_offset = first.lineno, first.col_offset + 1
        node.decorator_list.insert(at, mark)
    return compile(tree, filename, "exec", dont_inherit=True)


def _is_descriptor(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Name) and decorator.id in _DESCRIPTORS


class Decorating(importlib.abc.MetaPathFinder):
    """Decorates the functions of one name in the program's modules.

    Args:
        name: the functions' name.
        decorator: what they are decorated with.
    """

    def __init__(self, name: str, decorator: Callable[[Any], Any]) -> None:
        self._name = name
        self._decorator = decorator
        self._user = UserCode()

    def install(self) -> None:
        """Decorate in modules that are imported from now on."""
        setattr(builtins, DECORATOR, self._decorator)
        sys.meta_path.insert(0, self)

    def main(self, code: CodeType, filename: str) -> CodeType:
        """The code of ``__main__``, decorated if it was compiled from a source."""
        try:
            with open(filename, "rb") as file:
                return decorated(file.read(), filename, self._name) or code
        except (OSError, SyntaxError, ValueError):
            return code  # a compiled file

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        """The spec that the finders behind this one find; a user module's loader gives decorated code."""
        spec = spec_of(finders_behind(self), name, path, target)
        if spec is not None:
            self._mark(spec)
        return spec

    def _mark(self, spec: importlib.machinery.ModuleSpec) -> None:
        loader: Any = spec.loader
        if not isinstance(loader, importlib.machinery.SourceFileLoader) or not spec.origin:
            return
        if self._user.is_user(spec.origin):
            get_code = loader.get_code

            def get_decorated_code(name: str) -> CodeType | None:
                code = get_code(name)
                found = decorated(loader.get_data(loader.path), loader.path, self._name)
                return found if found is not None else code

            setattr(loader, "get_code", get_decorated_code)  # noqa: B010  # mypy knows it as a method

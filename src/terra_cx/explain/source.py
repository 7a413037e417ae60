"""The program's text: lines of files, and the expression of a line that reads a tensor's value."""

from __future__ import annotations

import ast
import os
import tokenize
from collections.abc import Iterator, Mapping
from types import MappingProxyType

__all__ = ["Source", "place", "short"]

_READERS = frozenset(
    {"float", "int", "bool", "complex", "str", "repr", "format", "print", "list", "max", "min", "sum"}
)
_METHODS = frozenset({"numpy", "item", "tolist", "__array__", "result"})
_LONGEST = 60


def place(line: str) -> tuple[str, int]:
    """`FILE:NUMBER` taken apart; 0 where there is no number."""
    name, _, number = line.rpartition(":")
    return (name, int(number)) if number.isdecimal() and name else (line, 0)


def short(line: str) -> str:
    """`train.py:88` of a line with its whole path."""
    return os.path.basename(line)


class Source:
    """Files as they are now, read once each.

    Args:
        known: texts by name, of what no file holds.
    """

    def __init__(self, known: Mapping[str, str] = MappingProxyType({})) -> None:
        self._files: dict[str, list[str] | None] = {name: text.splitlines() for name, text in known.items()}
        self._trees: dict[str, ast.Module] = {}

    def lines(self, name: str) -> list[str] | None:
        """The lines of a file without line ends, None if it cannot be read."""
        if name not in self._files:
            try:
                with tokenize.open(name) as file:  # it looks for an encoding declaration
                    self._files[name] = file.read().splitlines()
            except (OSError, SyntaxError, ValueError):
                self._files[name] = None
        return self._files[name]

    def text(self, line: str) -> str | None:
        """The text of a line without indentation; None if it is not there."""
        name, number = place(line)
        lines = self.lines(name)
        return lines[number - 1].strip() if lines is not None and 0 < number <= len(lines) else None

    def is_as_run(self, line: str, text: str) -> bool:
        """Whether a line still reads as it did in the run."""
        now = self.text(line)
        return now is None or not text or now == text.strip()

    def reader(self, line: str, text: str) -> str | None:
        """The expression on a line that reads a value, `float(loss)` for instance; None unless there is exactly one.

        Args:
            line: where.
            text: what stood there in the run.
        """
        calls = (node for node in self._nodes(line, text) if isinstance(node, ast.Call))
        found = {read for node in calls if (read := _reads(node)) is not None}
        return found.pop() if len(found) == 1 else None

    def decides(self, line: str, text: str) -> bool:
        """Whether Python takes a branch by what stands on a line; arguments as of `reader`."""
        return any(
            isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert) for node in self._nodes(line, text)
        )

    def _nodes(self, line: str, text: str) -> Iterator[ast.AST]:
        """What begins on a line: in the file if it is as it was, or in the text alone."""
        name, number = place(line)
        if self.text(line) is None or not self.is_as_run(line, text):
            yield from ast.walk(_statement(text))
            return
        if name not in self._trees:
            self._trees[name] = _parsed("\n".join(self.lines(name) or ()))
        yield from (node for node in ast.walk(self._trees[name]) if getattr(node, "lineno", 0) == number)


def _parsed(text: str) -> ast.Module:
    """The tree of a text, empty if it cannot be parsed."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module([], [])


def _statement(text: str) -> ast.Module:
    """The tree of a single line, which may be the head of a compound statement."""
    tree = _parsed(text)
    return tree if tree.body else _parsed(f"{text}\n    pass")


def _reads(node: ast.Call) -> str | None:
    """An expression that reads the value of a tensor, as far as one can tell from the text."""
    function = node.func
    named = isinstance(function, ast.Name) and function.id in _READERS
    method = isinstance(function, ast.Attribute) and (
        function.attr in _METHODS
        or (isinstance(function.value, ast.Name) and function.value.id in ("np", "numpy", "onp"))
    )
    if not named and not method:
        return None
    if any(isinstance(inner, ast.Call) and _reads(inner) for inner in ast.walk(node) if inner is not node):
        return None  # the inner one reads, and this gets a number
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= _LONGEST else None

"""The program's code objects, known by a fingerprint that is the same in every process that runs the same source.

The fingerprint is that of the code as the compiler made it, before probes were planted: byte code, constants, names and
lines. An edit anywhere in a function gives it another one, and so does one that only moves it to other lines, because
call paths and messages name lines. Folders are left out: a program that was moved is the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from types import CodeType
from typing import Any

from terra_cx.observe.anchors import AnchorTable

__all__ = ["Codes"]


class Codes:
    """Fingerprints, and the code objects that have them.

    Args:
        table: the anchors, which know the instrumented code of the process.
    """

    def __init__(self, table: AnchorTable) -> None:
        self._table = table
        self._prints: dict[int, tuple[CodeType, str]] = {}
        self._found: dict[str, CodeType] = {}
        self._looked = -1

    def fingerprint(self, code: CodeType) -> str:
        """The fingerprint of a code object, instrumented or not."""
        known = self._prints.get(id(code))
        if known is None:
            known = self._prints[id(code)] = code, _fingerprint(self._table.original(code))
        return known[1]

    def place(self, anchor_id: int, code: CodeType) -> list[Any] | None:
        """Which anchor it is, in a form that lasts: fingerprint, and the number of the loop (-1 for the function).

        None for an anchor that no probe stands for (a user's own mark).
        """
        if self._table.function(code) == anchor_id:
            return [self.fingerprint(code), -1]
        loops = self._table.loops(code)
        return [self.fingerprint(code), loops.index(anchor_id)] if anchor_id in loops else None

    def of_anchor(self, anchor_id: int) -> CodeType | None:
        """The instrumented code that an anchor is in."""
        return self._table.code(anchor_id)

    def anchor(self, code: CodeType, number: int) -> int | None:
        """The loop anchor with this number in the code."""
        loops = self._table.loops(code)
        return loops[number] if 0 <= number < len(loops) else None

    def prefer(self, codes: Iterable[CodeType]) -> None:
        """These have just run: of several with one fingerprint they are meant."""
        for code in codes:
            self._found[self.fingerprint(code)] = code

    def find(self, fingerprint: str) -> CodeType | None:
        """The code object of this process that has the fingerprint."""
        found = self._found.get(fingerprint)
        if found is None and self._looked != len(self._table):
            self._looked = len(self._table)  # modules may have been imported since
            for code in self._table.instrumented():
                self._add(code)
            found = self._found.get(fingerprint)
        return found

    def _add(self, code: CodeType) -> None:
        self._found.setdefault(self.fingerprint(code), code)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._add(constant)


def _fingerprint(code: CodeType) -> str:
    digest = hashlib.blake2b(digest_size=16)
    parts: tuple[Any, ...] = (
        code.co_qualname,
        os.path.basename(code.co_filename),
        code.co_firstlineno,
        code.co_flags,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars),
        tuple(_constant(value) for value in code.co_consts),
    )
    digest.update(repr(parts).encode(errors="surrogatepass"))
    for data in (code.co_code, code.co_exceptiontable, code.co_linetable):
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return ("code", _fingerprint(value))
    if isinstance(value, tuple):
        return tuple(_constant(item) for item in value)
    if isinstance(value, frozenset):
        return ("set", sorted(map(repr, map(_constant, value))))
    return (type(value).__name__, repr(value))

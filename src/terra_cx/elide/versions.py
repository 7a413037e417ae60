"""Versions: whether dicts and objects were written to since they were looked at.

CPython gives a dict another version with each change of it (PEP 509), in its head, where no function tells it. All
versions that a call depends on are read in one pass: `numpy.take` picks a word here and there out of an array that
spans the addresses. So what has been compared once need not be touched again while nobody writes there, and a check of
a model costs a few microseconds; comparing its attributes costs ten times that, most of it for memory that is not in
the cache. (`struct.unpack`, which makes a number of Python's of each word, took ten times as long as well.)

Guarantees:

* Only heads of objects that are kept alive are read, word by word, whatever other threads do. No word is written.
* What a version cannot be trusted to tell is not asked: both kinds are tried out when this module is imported, and
  Python 3.13 fails with attributes (it writes them where the object has room, past the dict). Then `stand` is False
  each time, and everything is compared as it would be without versions.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["Versions", "of_classes"]

_WORD = 8
_VERSION = 24  # behind a dict's reference count, class and length
_CLASS = 8
_MANAGED = 1 << 4
"""The flag of classes (``Py_TPFLAGS_MANAGED_DICT``) whose objects have their dict's address before them."""
_WRITABLE = 1 << 9
"""The flag of classes (``Py_TPFLAGS_HEAPTYPE``) that are written in Python."""
_DICT = -24  # before an object whose class is written in Python; the two words between are the collector's


_Words = tuple[bytes, bytes]
"""Dicts and classes of objects; versions of dicts."""


class Versions:
    """What was seen of some objects and dicts stands for as long as nobody has written there.

    Args:
        objects: whose attributes and class were looked at.
        dicts: whose items were looked at.
    """

    def __init__(self, objects: Sequence[Any] = (), dicts: Iterable[dict[Any, Any]] = ()) -> None:
        self._objects, self._given = objects, tuple(dicts)
        self._told = _TELLS_OF_DICTS and (_TELLS_OF_OBJECTS or not objects)
        self._seen: _Words | None = None
        self._look()

    def stand(self) -> bool:
        """Whether nothing was written since what was read at the last `accept`."""
        self._read = self._places(), self._versions()
        return self._read == self._seen

    def accept(self) -> None:
        """All was compared after the last `stand`, and is as it was: what that has read is what counts from now on."""
        if self._read[0] != self._expected:
            self._look()  # an object has another dict, or class
        elif self._told:
            self._seen = self._read

    def _look(self) -> None:
        """Where the words are."""
        attributes = [value.__dict__ for value in self._objects]
        self._told = self._told and all(map(_has_its_dict, self._objects, attributes))
        self._dicts = (*attributes, *self._given) if self._told else ()
        places = [id(value) + at for value in self._objects for at in (_DICT, _CLASS)] if self._told else []
        self._places = _reader(places)
        self._versions = _reader([id(found) + _VERSION for found in self._dicts])
        self._expected = self._places()
        self._seen = None
        self._read = self._expected, b""


def _reader(addresses: Iterable[int]) -> Callable[[], bytes]:
    """What reads the words at these addresses, in their order in memory."""
    places = sorted(set(addresses))
    if not places:
        return bytes
    span = (ctypes.c_char * (places[-1] - places[0] + _WORD)).from_address(places[0])
    words = np.frombuffer(memoryview(span), np.uint64)  # what lies between the places is never touched
    numbers = (np.array(places) - places[0]) // _WORD
    return lambda: words.take(numbers).tobytes()


def _has_its_dict(value: Any, attributes: dict[str, Any]) -> bool:
    """Whether the word before an object says where its dict is."""
    return bool(type(value).__flags__ & _MANAGED) and _word(id(value) + _DICT) == id(attributes)


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


class _Probe:
    """Has attributes."""

    first: Any
    second: Any


def _store(probe: _Probe) -> None:
    probe.first = object()


_CHANGES: tuple[Callable[[dict[str, Any]], object], ...] = (
    lambda some: some.__setitem__("first", object()),
    lambda some: some.update(first=object()),
    lambda some: some.setdefault("second", 1),
    lambda some: some.pop("second"),
    lambda some: some.__ior__({"second": 2}),
    lambda some: some.popitem(),
    lambda some: some.clear(),
)
"""Of a dict with one item; the next one goes on from there."""


def _tells_of_dicts() -> bool:
    """Whether each change of a dict gives it another version, and reading it none."""
    if struct.calcsize("P") != _WORD:
        return False
    some: dict[str, Any] = {"first": 0}
    return _all_told(some, some, _CHANGES) and not _all_told(some, some, [dict.copy])


def _tells_of_objects() -> bool:
    """Whether each change of an attribute does, also where the interpreter has specialised the store."""
    probe = _Probe()
    _store(probe)
    for _ in range(64):
        _store(_Probe())
    kept = probe.__dict__
    if not _has_its_dict(probe, kept) or _word(id(probe) + _CLASS) != id(_Probe):
        return False
    changes: list[Callable[[_Probe], object]] = [
        *[_store] * 64,
        lambda probe: setattr(probe, "second", 1),
        lambda probe: delattr(probe, "second"),
        *(functools.partial(_of_dict, change) for change in _CHANGES),
        _store,
    ]
    return _all_told(probe, kept, changes)


def _of_dict(change: Callable[[dict[str, Any]], object], probe: _Probe) -> object:
    return change(probe.__dict__)


def _all_told(given: Any, found: dict[str, Any], changes: Iterable[Callable[[Any], object]]) -> bool:
    for change in changes:
        before = _word(id(found) + _VERSION)
        change(given)
        if _word(id(found) + _VERSION) == before:
            return False
    return True


def of_classes(classes: Iterable[type]) -> list[dict[str, Any]]:
    """The dicts of classes and of all that they inherit from, but for those that cannot be written to."""
    lines = {base for cls in classes for base in cls.__mro__ if base.__flags__ & _WRITABLE}
    return [gc.get_referents(vars(base))[0] for base in lines]


_TELLS_OF_DICTS = _tells_of_dicts()
_TELLS_OF_OBJECTS = _TELLS_OF_DICTS and _tells_of_objects()

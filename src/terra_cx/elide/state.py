"""State: the objects that a library call can reach, as they are.

A call is a function of what its code reads: of the attributes of its receiver and of the arguments, of theirs, and so
on, by the names that the code mentions; of the elements of lists and dicts on the way. All of these are compared by
identity, so an edit through ``vars()`` or a replaced element of a list is seen as well as an assignment, at once.
Nothing is hooked for it. (The alternative, an epoch that is bumped at "doors" like ``Layer.__setattr__``, is cheaper by
some microseconds and blind to whatever has no door.)

A number or string may be replaced by an equal one. What keeps its state outside of Python makes a call unfit.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Collection, Iterable
from itertools import chain
from operator import attrgetter, call, eq, is_, itemgetter
from typing import Any

import numpy as np

from terra_cx.elide.names import is_library
from terra_cx.elide.versions import Versions
from terra_cx.tf.native import DType, EagerTensorBase, TensorShape
from terra_cx.tf.placeholder import Placeholder

__all__ = ["State", "Unfit", "same"]

_MOST = 20_000
"""Objects; a call that reaches more is not worth checking."""
_SMALL = 64
"""Elements of an array that is compared by value."""
_PLAIN = (int, float, complex, bool, str, bytes, type(None))
_LEAVES = (
    *_PLAIN, type, types.ModuleType, types.CodeType, property,
    types.MappingProxyType, types.EllipsisType, types.NotImplementedType, range, slice, weakref.ref, enum.Enum,
    re.Pattern, inspect.Signature, inspect.Parameter, np.dtype, np.generic, threading.local, np.ufunc,
    type(threading.Lock()), type(threading.RLock()), types.MemberDescriptorType, types.MethodDescriptorType,
    types.WrapperDescriptorType, types.GetSetDescriptorType, DType, TensorShape,
    EagerTensorBase,
)  # fmt: skip
"""What holds nothing that may change, or is looked after elsewhere; compared by identity where it stands."""
_HOLDERS = (*_PLAIN, tuple, type, types.ModuleType)
"""What a built-in function may be bound to without depending on what that holds."""


class Unfit(Exception):
    """Something that a call depends on cannot be compared; the message says what."""


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same object, or equal numbers or strings of one type."""
    if one is other:
        return True
    if type(one) is not type(other) or not isinstance(one, _PLAIN):
        return False
    return one.hex() == other.hex() if isinstance(one, float) else bool(one == other)


class State:
    """See the module's page.

    Args:
        roots: the receiver, the arguments, objects of the library's own.
        used: the names that the call's code mentions; other attributes are not looked at.
        opaque: attributes that are compared and not looked into.

    Raises:
        Unfit: something cannot be compared.
    """

    def __init__(self, roots: Iterable[Any], used: Collection[str], opaque: frozenset[str]) -> None:
        self._used = used
        self._opaque = opaque
        # Columns rather than records, so that a check is a few passes in C over all of them (`_as_it_was`).
        self._objects: list[Any] = []
        self._classes: list[type] = []
        self._names: list[frozenset[str]] = []
        self._getters: list[Callable[[Any], tuple[Any, ...]]] = []
        self._values: list[Any] = []
        self._lists = _Columns(list.__len__, list.__iter__)
        self._dicts = _Columns(dict.__len__, dict.values)
        self._keys = _Columns(dict.__len__, dict.keys)
        self._sets = _Columns(set.__len__, set.__iter__)
        self._slots: list[Any] = []
        self._slot_getters: list[Callable[[Any], Any]] = []
        self._contents: list[Any] = []
        self._arrays: list[tuple[Any, bytes]] = []
        self._written: Versions | None = None
        """Of objects and dicts, once these have been compared; None where more were added."""
        self.reached: set[int] = set()
        """The `id` of all that was reached, leaves included."""
        self.tensors: set[int] = set()
        """The `id` of the tensors among them, placeholders' of those that they stand for."""
        self.add(roots)

    def add(self, roots: Iterable[Any]) -> None:
        """Reach further objects.

        Raises:
            Unfit: something cannot be compared.
        """
        self._written = None
        stack = list(roots)
        while stack:
            value = stack.pop()
            if id(value) in self.reached:
                continue
            self.reached.add(id(value))
            if len(self.reached) > _MOST:
                raise Unfit(f"it reaches more than {_MOST} objects")
            if isinstance(value, EagerTensorBase):
                self.tensors.add(id(value._slot.value if type(value) is Placeholder else value))
            if not isinstance(value, _LEAVES):
                stack.extend(self._inside(value))

    def __len__(self) -> int:
        """How many objects are compared."""
        kinds = (self._objects, self._lists.all, self._dicts.all, self._sets.all, self._slots, self._arrays)
        return sum(map(len, kinds))

    # -- gathering -----------------------------------------------------------------------------------------------
    def _inside(self, value: Any) -> Iterable[Any]:
        """Note what an object holds, and give it."""
        kind = type(value)  # not its `__class__`, which a proxy borrows
        if kind in (tuple, frozenset):
            return value  # type: ignore[no-any-return]
        if kind is types.MethodType:
            return (value.__self__,)
        if kind is types.FunctionType:
            # What TensorFlow's own functions hold is theirs (dispatchers that are written in C++).
            return () if str(value.__module__).startswith("tensorflow.") else self._closure(value)
        if kind is types.BuiltinFunctionType:
            holder = value.__self__
            if isinstance(holder, _HOLDERS) or type(holder).__name__ == "PyCapsule":
                return ()
            raise Unfit(f"it holds a method of a {type(holder).__name__}")
        if kind is functools._lru_cache_wrapper:
            module = value.__wrapped__.__module__
            if is_library(module) or module.partition(".")[0] in sys.stdlib_module_names:
                return ()
            raise Unfit("it holds a function of the program's whose results are kept")
        if kind is functools.partial:
            parts = (value.func, value.args, value.keywords)
            for name, part in zip(("func", "args", "keywords"), parts, strict=True):
                self._note_slot(value, attrgetter(name), part)
            return parts
        if issubclass(kind, np.ndarray):
            if value.size > _SMALL or value.dtype == object:
                raise Unfit("it holds an array")
            self._arrays.append((value, value.tobytes()))
            return ()
        if hasattr(kind, "__wrapped__"):  # TensorFlow's wrappers of dicts and tuples
            self._note_slot(value, attrgetter("__wrapped__"), value.__wrapped__)
            return (value.__wrapped__,)
        inside: tuple[Any, ...] = ()
        if issubclass(kind, list):
            inside = tuple(list.__iter__(value))
            self._lists.add(value)
        elif issubclass(kind, dict):
            inside = (*dict.values(value), *dict.keys(value))
            self._dicts.add(value)
            self._keys.add(value)
        elif issubclass(kind, (set, weakref.WeakSet)):
            inside = tuple(value)
            self._sets.add(value if issubclass(kind, set) else value.data)
        elif issubclass(kind, (tuple, frozenset)):
            inside = tuple(value)
        return (*inside, *self._attributes(value, kind, required=not issubclass(kind, _CONTAINERS)))

    def _closure(self, function: types.FunctionType) -> list[Any]:
        inside = []
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                continue  # still empty
            self._note_slot(cell, attrgetter("cell_contents"), content)
            inside.append(content)
        return inside

    def _attributes(self, value: Any, kind: type, *, required: bool) -> list[Any]:
        inside: list[Any] = []
        attributes = getattr(value, "__dict__", None)
        if attributes is not None:
            names = [name for name in attributes if name in self._used]
            if names and not self._opaque.issuperset(names):
                getter = itemgetter(*(names if len(names) > 1 else names * 2))
                self._objects.append(value)
                self._classes.append(kind)
                self._names.append(frozenset(attributes))
                self._getters.append(getter)
                self._values += getter(attributes)
                inside += [attributes[name] for name in names if name not in self._opaque]
        found = attributes is not None
        for name in _slots(kind):
            found = True
            if name in self._used:
                item = getattr(value, name, _UNSET)
                self._note_slot(value, functools.partial(_slot, name), item)
                inside.append(item)
        if required and not found:
            raise Unfit(f"it holds a {kind.__module__}.{kind.__qualname__}")
        return inside

    def _note_slot(self, holder: Any, getter: Callable[[Any], Any], content: Any) -> None:
        self._slots.append(holder)
        self._slot_getters.append(getter)
        self._contents.append(content)

    # -- checking ------------------------------------------------------------------------------------------------
    def changed(self) -> str | None:
        """What is not as it was, in words; None if all is."""
        try:
            return None if self._as_it_was() else self._difference()
        except (AttributeError, KeyError, ValueError) as error:  # of an object, a dict, a cell
            return f"{error} is gone"

    def _as_it_was(self) -> bool:
        """Whether all is identical: the common case, without a call of ours per object.

        Compared with ``is``: ``==`` would be faster still, but an object that has come in the place of another may have
        an ``__eq__`` that does something, as a tensor's does.
        """
        if self._written is None:
            self._written = Versions(self._objects, self._dicts.all)
        if not self._written.stand():
            if not (
                self._attributes_are_as_they_were()
                and self._dicts.as_they_were()
                and self._keys.as_they_were()
            ):
                return False
            self._written.accept()
        return (
            self._lists.as_they_were()
            and all(map(is_, map(call, self._slot_getters, self._slots), self._contents))
            and self._sets.as_they_were()
            and not any(map(_is_other_array, self._arrays))
        )

    def _attributes_are_as_they_were(self) -> bool:
        attributes = list(map(_attributes_of, self._objects))
        return (
            all(map(is_, map(type, self._objects), self._classes))
            and all(map(eq, map(dict.keys, attributes), self._names))
            and all(map(is_, chain.from_iterable(map(call, self._getters, attributes)), self._values))
        )

    def _difference(self) -> str | None:
        """As `changed`; what has been replaced by an equal number or string is known from now on."""
        at = 0
        if not all(map(is_, map(type, self._objects), self._classes)):
            return "the class of an object"
        for value, names, getter in zip(self._objects, self._names, self._getters, strict=True):
            attributes = value.__dict__
            now = getter(attributes)
            known = self._values[at : at + len(now)]
            if attributes.keys() != names or not all(map(same, now, known)):
                return _told(value, getter, now, known)
            self._values[at : at + len(now)] = now
            at += len(now)
        if not self._lists.are_alike():
            return "a list"
        if not self._dicts.are_alike() or not self._keys.are_alike():
            return "a dict"
        for index, (holder, get) in enumerate(zip(self._slots, self._slot_getters, strict=True)):
            content = get(holder)
            if not same(content, self._contents[index]):
                return f"an attribute of {type(holder).__name__}"
            self._contents[index] = content
        if not self._sets.are_alike():
            return "a set"
        return "an array" if any(map(_is_other_array, self._arrays)) else None


class _Columns:
    """Lists, dicts or sets, and what they held, in its order.

    Args:
        length, items: of the built-in class itself: subclasses may tell something else.
    """

    def __init__(self, length: Callable[[Any], int], items: Callable[[Any], Iterable[Any]]) -> None:
        self._length, self._iterate = length, items
        self.all: list[Any] = []
        self._lengths: list[int] = []
        self._items: list[Any] = []

    def add(self, value: Any) -> None:
        """Know one more."""
        self.all.append(value)
        self._lengths.append(self._length(value))
        self._items += self._iterate(value)

    def as_they_were(self) -> bool:
        """Whether they hold the same objects."""
        return list(map(self._length, self.all)) == self._lengths and all(
            map(is_, chain.from_iterable(map(self._iterate, self.all)), self._items)
        )

    def are_alike(self) -> bool:
        """Whether they hold the same, or equal numbers and strings; if so, these are known from now on."""
        if list(map(self._length, self.all)) != self._lengths:
            return False
        now = list(chain.from_iterable(map(self._iterate, self.all)))
        alike = all(map(same, now, self._items))
        if alike:
            self._items = now
        return alike


def _is_other_array(known: tuple[Any, bytes]) -> bool:
    value, content = known
    return bool(value.tobytes() != content)


_attributes_of = attrgetter("__dict__")
_CONTAINERS = (list, dict, set, frozenset, tuple, weakref.WeakSet)


def _told(value: Any, getter: Any, now: Iterable[Any], known: Iterable[Any]) -> str:
    names = [name for name, a, b in zip(getter.__reduce__()[1], now, known, strict=True) if not same(a, b)]
    return f"{type(value).__name__}.{names[0]}" if names else f"the attributes of {type(value).__name__}"


_UNSET = "<unset>"


def _slot(name: str, value: Any) -> Any:
    return getattr(value, name, _UNSET)


@functools.cache
def _slots(kind: type) -> tuple[str, ...]:
    """The names of a class's slots, those of its bases included."""
    return tuple(
        name
        for cls in kind.__mro__
        for name, member in vars(cls).items()
        if isinstance(member, types.MemberDescriptorType) and cls.__module__ != "builtins"
    )

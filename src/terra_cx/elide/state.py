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
import threading
import types
import weakref
from collections.abc import Callable, Collection, Iterable
from operator import attrgetter, is_, itemgetter
from typing import Any

import numpy as np

from terra_cx.tf.native import DType, EagerTensorBase, TensorShape

__all__ = ["State", "Unfit", "same"]

_MOST = 20_000
"""Objects; a call that reaches more is not worth checking."""
_SMALL = 64
"""Elements of an array that is compared by value."""
_PLAIN = (int, float, complex, bool, str, bytes, type(None))
_LEAVES = (
    *_PLAIN, type, types.BuiltinFunctionType, types.ModuleType, types.CodeType, property,
    types.MappingProxyType, types.EllipsisType, types.NotImplementedType, range, slice, weakref.ref, enum.Enum,
    re.Pattern, inspect.Signature, inspect.Parameter, np.dtype, np.generic, threading.local, np.ufunc,
    type(threading.Lock()), type(threading.RLock()), types.MemberDescriptorType, types.MethodDescriptorType,
    types.WrapperDescriptorType, types.GetSetDescriptorType, functools._lru_cache_wrapper, DType,
    TensorShape, EagerTensorBase,
)  # fmt: skip
"""What holds nothing that may change, or is looked after elsewhere; compared by identity where it stands."""


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
        self._objects: list[tuple[Any, int, Callable[..., tuple[Any, ...]], tuple[Any, ...]]] = []
        self._lists: list[tuple[Any, tuple[Any, ...]]] = []
        self._dicts: list[tuple[dict[Any, Any], tuple[Any, ...]]] = []
        self._sets: list[tuple[Any, frozenset[int], tuple[Any, ...]]] = []
        self._slots: list[tuple[Any, Callable[[Any], Any], Any]] = []
        self._arrays: list[tuple[Any, bytes]] = []
        self.reached: set[int] = set()
        """The `id` of all that was reached, leaves included."""
        self.add(roots)

    def add(self, roots: Iterable[Any]) -> None:
        """Reach further objects.

        Raises:
            Unfit: something cannot be compared.
        """
        stack = list(roots)
        while stack:
            value = stack.pop()
            if id(value) in self.reached:
                continue
            self.reached.add(id(value))
            if len(self.reached) > _MOST:
                raise Unfit(f"it reaches more than {_MOST} objects")
            if not isinstance(value, _LEAVES):
                stack.extend(self._inside(value))

    def __len__(self) -> int:
        """How many objects are compared."""
        kinds: tuple[list[Any], ...] = (
            self._objects,
            self._lists,
            self._dicts,
            self._sets,
            self._slots,
            self._arrays,
        )
        return sum(len(kind) for kind in kinds)

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
        if kind is functools.partial:
            return (value.func, *value.args, *value.keywords.values())
        if issubclass(kind, np.ndarray):
            if value.size > _SMALL or value.dtype == object:
                raise Unfit("it holds an array")
            self._arrays.append((value, value.tobytes()))
            return ()
        if hasattr(kind, "__wrapped__"):  # TensorFlow's wrappers of dicts and tuples
            self._slots.append((value, attrgetter("__wrapped__"), value.__wrapped__))
            return (value.__wrapped__,)
        known: tuple[Any, ...] = ()
        inside: tuple[Any, ...] = ()
        if issubclass(kind, list):
            known = inside = tuple(list.__iter__(value))
            self._lists.append((value, known))
        elif issubclass(kind, dict):
            known = tuple(dict.values(value))
            inside = (*known, *dict.keys(value))
            self._dicts.append((value, known))
        elif issubclass(kind, (set, weakref.WeakSet)):
            known = inside = tuple(value)
            self._sets.append((value, frozenset(map(id, known)), known))
        elif issubclass(kind, (tuple, frozenset)):
            known = inside = tuple(value)
        return (*inside, *self._attributes(value, kind, required=not issubclass(kind, _CONTAINERS)))

    def _closure(self, function: types.FunctionType) -> list[Any]:
        inside = []
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                continue  # still empty
            self._slots.append((cell, attrgetter("cell_contents"), content))
            inside.append(content)
        return inside

    def _attributes(self, value: Any, kind: type, *, required: bool) -> list[Any]:
        inside: list[Any] = []
        attributes = getattr(value, "__dict__", None)
        if attributes is not None:
            names = [name for name in attributes if name in self._used]
            if names and not self._opaque.issuperset(names):
                getter = itemgetter(*(names if len(names) > 1 else names * 2))
                self._objects.append((value, len(attributes), getter, getter(attributes)))
                inside += [attributes[name] for name in names if name not in self._opaque]
        found = attributes is not None
        for name in _slots(kind):
            found = True
            if name in self._used:
                item = getattr(value, name, _UNSET)
                self._slots.append((value, functools.partial(_slot, name), item))
                inside.append(item)
        if required and not found:
            raise Unfit(f"it holds a {kind.__module__}.{kind.__qualname__}")
        return inside

    # -- checking ------------------------------------------------------------------------------------------------
    def changed(self) -> str | None:
        """What is not as it was, in words; None if all is."""
        try:
            return self._changed()
        except (AttributeError, KeyError) as error:
            return f"{error} is gone"

    def _changed(self) -> str | None:
        # The common case first, without a call of ours per element: all is identical.
        for index, (value, size, getter, known) in enumerate(self._objects):
            attributes = value.__dict__
            if len(attributes) != size or not all(map(is_, getter(attributes), known)):
                now = getter(attributes)
                if len(attributes) != size or not all(map(same, now, known)):
                    return _told(value, getter, now, known)
                self._objects[index] = value, size, getter, now
        for value, known in self._lists:
            as_it_was = len_of_list(value) == len(known) and all(map(is_, list_items(value), known))
            if not as_it_was and not _alike(list(list_items(value)), known):
                return "a list"
        for value, known in self._dicts:
            as_it_was = len_of_dict(value) == len(known) and all(map(is_, dict_values(value), known))
            if not as_it_was and not _alike(list(dict_values(value)), known):
                return "a dict"
        for value, ids, _ in self._sets:
            if len(value) != len(ids) or not ids.issuperset(map(id, value)):
                return "a set"
        for value, get, item in self._slots:
            now = get(value)
            if now is not item and not same(now, item):
                return f"an attribute of {type(value).__name__}"
        for value, content in self._arrays:
            if value.tobytes() != content:
                return "an array"
        return None


def _alike(items: list[Any], known: tuple[Any, ...]) -> bool:
    return len(items) == len(known) and all(map(same, items, known))


# Of the built-in classes themselves: subclasses may tell something else.
len_of_list, list_items = list.__len__, list.__iter__
len_of_dict, dict_values = dict.__len__, dict.values
_CONTAINERS = (list, dict, set, frozenset, tuple, weakref.WeakSet)


def _told(value: Any, getter: Any, now: tuple[Any, ...], known: tuple[Any, ...]) -> str:
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

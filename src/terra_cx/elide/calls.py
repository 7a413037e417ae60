"""Library calls: what one call did when it really ran, as far as that must be known to elide the next one like it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optree

from terra_cx.elide.entries import Entry
from terra_cx.elide.state import State, same
from terra_cx.tf import native
from terra_cx.tf.native import EagerTensor, IndexedSlices
from terra_cx.tf.placeholder import Placeholder
from terra_cx.tf.slots import Spec

__all__ = [
    "TOLD",
    "Argument",
    "LibraryCall",
    "Source",
    "flatten",
    "flatten_arguments",
    "is_bare",
    "is_conversion",
    "is_telling",
    "normal",
    "pauses",
    "repeated",
]

_PLAIN = frozenset({Placeholder, EagerTensor, np.ndarray, bool, int, float, str, type(None)})
"""Types of leaves; a call whose arguments are all of these has no structure to look into."""
_BARE = frozenset({"_tensor_shape", "_keras_mask"})
_ARGUMENTS = "terra-cx arguments"
"""The namespace of optree's in which `flatten_arguments` looks into objects."""
TOLD = ("access", "stop", "restart")
"""What a call that is elided may tell the tapes."""
_LARGEST = 1 << 20
"""Elements of an array that is passed to an elided call."""

Source = tuple[Any, ...]
"""Where a tensor comes from: ("arg", number of the leaf), ("array", number of the leaf that it was made of, dtype),
("in", op of the call, output), ("fixed", tensor or raw); of a result also ("copy", what a write returned)."""


def normal(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments that can be looked at without being used up: a ``zip`` becomes a list."""
    return tuple(list(arg) if type(arg) is zip else arg for arg in args) if zip in map(type, args) else args


def flatten(value: Any, namespace: str = "") -> tuple[list[Any], Any]:
    """The leaves and the structure of lists, tuples and dicts, and of what else optree knows; None is a leaf."""
    return optree.tree_flatten(value, none_is_leaf=True, namespace=namespace)


def flatten_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """The leaves and the structure of a call's arguments, as `flatten`; the plain case is told by their types alone.

    `IndexedSlices`, the gradient of a table that was looked up in, are their tensors here. In a result they are not: a
    call may return the very ones that it was given, and others are not the same.
    """
    given = (*args, *kwargs.values())
    if _PLAIN.issuperset(map(type, given)):
        return list(given), (len(args), *kwargs)
    return flatten((args, kwargs), _ARGUMENTS)


def _parts(slices: Any) -> tuple[tuple[Any, ...], None, None]:
    return (slices.values, slices.indices, slices.dense_shape), None, None


optree.register_pytree_node(
    IndexedSlices, _parts, lambda _, parts: IndexedSlices(*parts), namespace=_ARGUMENTS
)


def pauses(events: Iterable[Any], start: int) -> tuple[tuple[int, str], ...]:
    """Where a call stops recording and restarts it (``stop``, ``restart``): before which of its ops.

    Args:
        events: what it has told the tapes, none but `TOLD`.
        start: the region's position of its first op.
    """
    return tuple((event.position - start, event.what) for event in events if event.what != "access")


def repeated(leaves: list[Any]) -> list[int]:
    """Which leaves are tensors that were there before: they must stay the same, and others may not become so."""
    seen: set[int] = set()
    found = []
    for number, leaf in enumerate(leaves):
        if type(leaf) is Placeholder or type(leaf) is EagerTensor:
            if id(leaf) in seen:
                found.append(number)
            seen.add(id(leaf))
    return found


def is_bare(tensor: Any) -> bool:
    """Whether a tensor carries nothing that Keras reads (a mask, logits), or that the program has put there."""
    # (`getattr` would ask TensorFlow's own `__getattr__`, which puts together what it has to say first.)
    attributes = tensor.__dict__
    return not attributes or (attributes.keys() <= _BARE and attributes.get("_keras_mask") is None)


def is_telling(array: np.ndarray[Any, Any]) -> bool:
    """Whether no constant of a library's own can be taken for the array: it holds more than one value."""
    plain = type(array) is np.ndarray and array.dtype.kind in "fiub" and 1 < array.size <= _LARGEST
    return plain and bool((array != array.flat[0]).any())


def is_conversion(value: Any, tensor: Any) -> bool:
    """Whether a tensor is what TensorFlow makes of an array or a number."""
    if tensor._shape_tuple() != np.shape(value):
        return False
    try:
        other = native.as_tensor(value, native.dtype_of(tensor._datatype_enum()))
    except (TypeError, ValueError):
        return False
    return native.host_value(other).tobytes() == native.host_value(tensor).tobytes()


@dataclass(slots=True)
class Argument:
    """What one leaf of the arguments must be: a tensor or array of a dtype and shape, or what was there."""

    spec: Spec | None
    value: Any = None
    """With a spec, the array's dtype, None for a tensor."""
    array: bytes | None = None
    """What the array held in the trace."""
    seen: Spec | None = None
    """That of the placeholder that was admitted last: the next one often has the very same."""

    def admits(self, given: Any) -> bool:
        """Whether a leaf will do where a tensor or an array is wanted; all else `LibraryCall.admits` compares."""
        spec = self.spec
        assert spec is not None
        if self.value is not None:
            return type(given) is np.ndarray and given.dtype == self.value and given.shape == spec.shape
        if type(given) is Placeholder:
            other = given._slot.spec
            if other is not self.seen:
                if other.dtype != spec.dtype or given._shape_tuple() != spec.shape:
                    return False
                self.seen = None if other.shape is None else other
        elif (
            type(given) is not EagerTensor
            or given._datatype_enum() != spec.dtype
            or given._shape_tuple() != spec.shape
        ):
            return False
        return is_bare(given)


@dataclass(slots=True, eq=False)
class LibraryCall:
    """One call, taken from a trace.

    ``first`` to ``last`` are its ops among the trace's calls; ``wiring`` has a source per flat argument of each op,
    ``results`` one per leaf of what it returned. ``accesses`` are the variables that it told the tapes of.
    """

    entry: Entry
    receiver: Any
    structure: Any
    arguments: Sequence[Argument]
    repeated: list[int]
    taped: tuple[bool, bool]
    """Whether there was a tape, and whether recording was stopped."""
    first: int
    last: int
    wiring: list[tuple[Source, ...]]
    result: Any
    """The structure of what it returned."""
    results: list[Source]
    accesses: list[Any]
    pauses: tuple[tuple[int, str], ...]
    """As `pauses` tells."""
    ambient: Any
    state: State
    line: str = "?"
    nodes: tuple[Any, ...] = ()
    """The TraceGraph's nodes of its ops, once the trace is merged."""
    agreed: bool = False
    """Whether a call of its kind has been compared with what the real one does."""
    trusted: bool = False
    """Whether one with other arrays has."""
    runs: int = 0
    """How often it was elided."""
    failures: int = 0
    """Comparisons that failed before it was trusted."""
    missed: int = 0
    """How often it could not be elided because something was not as noted."""
    plans: dict[Any, Any] = field(default_factory=dict)
    handles: tuple[Any, ...] = ()
    """Of the variables in ``accesses``, which have them for life."""

    _plain: tuple[tuple[int, Any], ...] = ()
    _typed: tuple[tuple[int, Argument], ...] = ()

    def __post_init__(self) -> None:
        self.handles = tuple(variable.handle for variable in self.accesses)
        numbered = tuple(enumerate(self.arguments))
        self._plain = tuple((number, known.value) for number, known in numbered if known.spec is None)
        self._typed = tuple((number, known) for number, known in numbered if known.spec is not None)

    def admits(self, leaves: list[Any]) -> bool:
        """Whether the leaves of a call's arguments will do; there are as many as in the trace."""
        for number, value in self._plain:
            leaf = leaves[number]
            if leaf is not value and not same(leaf, value):
                return False
        typed = self._typed
        for number, known in typed:
            if not known.admits(leaves[number]):
                return False
        if len(typed) < 2:
            return True
        if not self.repeated and len({id(leaves[number]) for number, _ in typed}) == len(typed):
            return True
        return repeated(leaves) == self.repeated

    def has_same_arrays(self, leaves: list[Any]) -> bool:
        """Whether all arrays are those of the trace: then it makes no difference what was made of them."""
        return all(
            known.array is None or known.array == leaf.tobytes()
            for known, leaf in zip(self.arguments, leaves, strict=True)
        )

    def shows_arrays(self, leaves: list[Any]) -> bool:
        """Whether all arrays are others than in the trace, so that a constant could not be taken for one."""
        return all(
            known.array is None or known.array != leaf.tobytes()
            for known, leaf in zip(self.arguments, leaves, strict=True)
        )

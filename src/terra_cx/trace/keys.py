"""By what an op call is known in the TraceGraph: its *key*, and the *context* in which it is that key's node.

The key has all that a node stands for: the place in the program, the op, its attributes, dtypes and shapes, and its
variables. Traces that part meet again where their keys are equal.

That alone would tear steps with changing shapes to pieces. With texts of another length nearly every op has another
key, but not those that read variables, draw keys of random numbers or make scalars, so two traces would meet and part
at each of them, and every block would end there. Hence the context: a place at which ops of several forms (attributes,
dtypes, shapes) were seen tells which way a trace has come. Shortly before another such place a key's node is one for
this way only; elsewhere ways join. A branch of the program has places of its own on each arm and makes no context, so
that k branches still cost on the order of k nodes.

Where shapes go on changing, each would be traced and compiled on its own for ever. So shapes are counted by place, and
with one more of an op than may be (`TraceGraph.most_shapes`) the graph is to be *relaxed* (`Keys.outgrown`): keys then
have ranks in the place of shapes, and the node remembers which of its dimensions were seen to differ
(`trace.tracegraph`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from terra_cx.tf.opdefs import COUNTS, Kind, lasting_attrs
from terra_cx.tf.slots import Spec
from terra_cx.trace.records import Call, Resource

__all__ = ["BACKWARD", "Key", "Keys", "freeze"]

BACKWARD = (None, 0)
"""In a call path: what comes before it asked a tape, what comes after it is the op whose gradient is computed."""
_NEAR = 32
"""Calls. Ways are kept apart where they would part again within so many."""
_COUNTS = 3
"""Numbers of tensors that an op of lists at one place may have, each with a node of its own."""


class Key(NamedTuple):
    """``base`` says which op at which place, ``context`` the way that has led there, None if all ways join here.

    With ``variadic``, the op takes or gives another number of tensors each time.
    """

    base: Any
    context: int | None
    variadic: bool = False


class Keys:
    """The keys of traces' calls.

    Args:
        rolled: the loops whose iterations share nodes.
        relaxed: whether ops are known by their ranks, not by their shapes.
        folded: whether all depths of a recursion share nodes, and all ways meet wherever they can.
    """

    def __init__(self, rolled: Collection[int], relaxed: bool = False, folded: bool = False) -> None:
        self._rolled = rolled
        self._folded = folded
        self._relaxed = relaxed
        self._shapes: defaultdict[Any, set[Any]] = defaultdict(set)
        """By op and place: its shapes."""
        self._counts: defaultdict[Any, set[Any]] = defaultdict(set)
        """By place, in a folded graph: numbers of tensors that the op was given and has given."""
        self.outgrown: Call | None = None
        """An op that has more shapes than are known each on its own."""
        self._forms: defaultdict[Any, dict[Any, int]] = defaultdict(dict)
        """By place: a number for each form of op that was seen there."""
        self._numbers = 0

    def clear(self) -> None:
        """Forget the forms of all places."""
        self._forms.clear()
        self._shapes.clear()
        self._counts.clear()

    def of(self, calls: list[Call], most_shapes: int) -> list[Key]:
        """The keys of one trace.

        Args:
            calls: the trace's.
            most_shapes: how many shapes an op may have at one place.
        """
        places = [self._place(call) for call in calls]
        forms = [_form(call, self._relaxed) for call in calls]
        if not self._relaxed:
            self._count(calls, places, most_shapes)
        for place, form in zip(places, forms, strict=True):
            if form not in self._forms[place]:
                self._forms[place][form] = self._numbers
                self._numbers += 1
        several = [len(self._forms[place]) > 1 and not self._folded for place in places]
        near, distance = [False] * len(calls), _NEAR
        for index in range(len(calls) - 1, -1, -1):
            near[index] = distance < _NEAR
            distance = 0 if several[index] else distance + 1
        keys = []
        occurrences: Counter[Any] = Counter()
        context: int | None = None
        for index, (call, place, form) in enumerate(zip(calls, places, forms, strict=True)):
            variadic = self._folded and self._is_variadic(call, place)
            if variadic:
                exact: Any = (place, ("variadic", freeze(lasting_attrs(Kind.OWNER, call.attrs))), ())
            else:
                exact = (place, form, _resources(call))
            instance = (exact, call.site.loops, call.site.path if self._folded else None)
            number = occurrences[instance]
            occurrences[instance] += 1
            keys.append(Key((*exact, number), context if near[index] else None, variadic))
            if several[index]:
                context = self._forms[place][form]
        return keys

    def _is_variadic(self, call: Call, place: Any) -> bool:
        """Whether an op of lists (a sum over a loop, say) has had so many lengths that each cannot be a node."""
        if all(count < 0 for count in call.layout) and COUNTS.isdisjoint(call.attrs[::2]):
            return False
        known = self._counts[place]
        if len(known) <= _COUNTS:
            known.add((call.layout, len(call.outputs)))
        return len(known) > _COUNTS

    def _count(self, calls: list[Call], places: list[Any], most_shapes: int) -> None:
        for call, place in zip(calls, places, strict=True):
            if call.kind is Kind.GRADIENT or call.node is not None:
                continue
            known = self._shapes[place, _form(call, True), _resources(call)]
            known.add(tuple(None if s is None else s.shape for s in (*call.input_specs, *call.outputs)))
            if len(known) > most_shapes:
                self.outgrown = self.outgrown or call

    def _place(self, call: Call) -> Any:
        site = call.site
        loops = tuple((loop, 0 if loop in self._rolled else n) for loop, n in site.loops)
        path = _folded(site.path) if self._folded else site.path
        return (call.op, call.form, call.kind, path, loops, site.ordinal, call.device)


def _folded(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """A call path without the turns of recursions: of each function the innermost call, and none between two of it."""
    found: list[Any] = []
    first = 0
    for frame in path:
        if frame is BACKWARD:
            first = len(found) + 1
        known = next(
            (index for index, (code, _) in enumerate(found[first:], first) if code is frame[0]), None
        )
        if known is not None:
            del found[known:]
        found.append(frame)
    return tuple(found)


def _form(call: Call, relaxed: bool) -> Any:
    if call.kind is Kind.GRADIENT:  # sources that nothing was computed from are in no op
        given = tuple(None if spec is None else spec.key() for spec in call.input_specs)
        return given, tuple((inner.op, *(spec.key() for spec in inner.outputs)) for inner in call.inner)
    free = call.kind in (Kind.OWNER, Kind.SOURCE)
    told = _rank if relaxed else Spec.key
    return (
        freeze(lasting_attrs(call.kind, call.attrs)),
        call.layout,
        () if free else tuple(None if spec is None else told(spec) for spec in call.input_specs),
        tuple(told(spec) for spec in call.outputs),
    )


def _rank(spec: Spec) -> Any:
    return spec.dtype, None if spec.shape is None else len(spec.shape)


def _resources(call: Call) -> tuple[int, ...]:
    if call.kind in (Kind.OWNER, Kind.SOURCE):
        return ()
    return tuple(id(ref.tensor) for ref in call.inputs if isinstance(ref, Resource))


def freeze(value: Any) -> Any:
    """A hashable form of an attribute value."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, float):
        return ("float", value.hex())  # 0.0 and -0.0 differ
    try:
        hash(value)
    except TypeError:
        return repr(value)
    # 1, 1.0 and True are equal keys of a dict and different attributes.
    return (type(value).__name__, value) if isinstance(value, (bool, int)) else value

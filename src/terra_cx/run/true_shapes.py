"""The true shapes of a relaxed step's results, worked out while Python waits for its placeholders.

A block that is relaxed (`trace.tracegraph`) is compiled for tensors of any size, and yet a placeholder tells its true
shape. It follows from the shapes of the arguments, and of some ops from the values of small integer arguments that
Python holds; TensorFlow's own shape functions tell it (`tf.shape_inference`). What was told once is remembered by step:
a further region of the same sizes looks it up, which costs about a microsecond an op.

Guarantees:

* A shape is told only if the shape function knows all of it. Where it does not, the node is marked (`Node.untold`), its
  blocks are built anew, and placeholders of its results learn their shapes by a fetch, if asked.
* A result that is not as the node's pattern has it is a divergence: the block was compiled for that pattern.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from terra_cx.compile.blocks import Step
from terra_cx.reasons import Reason
from terra_cx.run.checks import flat_inputs
from terra_cx.run.differences import Difference
from terra_cx.run.divergence import Diverge
from terra_cx.tf import native
from terra_cx.tf.native import EagerTensor
from terra_cx.tf.opdefs import SHAPE_OPS, input_dtypes
from terra_cx.tf.placeholder import Placeholder, resolve
from terra_cx.tf.shape_inference import Inference, symbolic
from terra_cx.tf.slots import Slot, Spec
from terra_cx.trace.tracegraph import TraceGraph

__all__ = ["derived", "shape_of", "specs_of"]

_MOST = 4096
"""Combinations of sizes that are remembered of one step."""
_SMALL = 64
"""Elements of an integer argument from whose value a shape may follow."""
_RESOURCE = 20
_INTEGERS = frozenset({3, 9})
"""int32 and int64: what shapes, axes and sizes are made of."""
_ASK = object()
"""What is remembered where shapes alone do not tell: values do."""


def shape_of(arg: Any) -> tuple[int, ...] | None:
    """The shape of an argument, None if only the value will tell it."""
    if type(arg) is Placeholder:
        slot: Slot = arg._slot
        if slot.value is None:
            return slot.spec.shape
        arg = slot.value
    shape: tuple[int, ...] = arg._shape_tuple() if type(arg) is EagerTensor else np.shape(arg)
    return shape


def specs_of(graph: TraceGraph, step: Step, args: tuple[Any, ...]) -> list[Spec]:
    """Dtypes and shapes of the results of an op that is being committed.

    Raises:
        Diverge: they cannot be told, or they are not as the node's pattern has them.
    """
    flat = flat_inputs(step, args)
    key: Any = tuple(map(shape_of, flat))
    found = step.shapes.get(key)
    if found is None:
        graph.asked += 1
        found = _remember(step, key, _told(step, _specs(step, flat)) or _ASK)
    if found is _ASK:
        key = (key, tuple(map(_bits, flat)))
        found = step.shapes.get(key)
        if found is None:
            told = _told(step, _values(step, flat))
            if told is None and step.inference.refused:
                raise Diverge(
                    Reason.NEW_SHAPE, Difference("shape", step.op, "", "shapes that it refuses", "")
                )
            if told is None:
                step.node.untold = True
                step.node.rev += 1
                graph.version += 1
                raise Diverge(
                    Reason.NEW_SHAPE,
                    Difference("shape", step.op, "", "a shape that only the value tells", ""),
                )
            found = _remember(step, key, told)
    for spec, pattern in zip(found, step.specs, strict=True):
        if not pattern.admits(spec.shape):
            new, known = (tuple("any" if n is None else n for n in s.shape or ()) for s in (spec, pattern))
            raise Diverge(Reason.NEW_SHAPE, Difference("shape", step.op, "result", str(new), str(known)))
    specs: list[Spec] = found
    return specs


def derived(step: Step, args: tuple[Any, ...], natively: Any) -> tuple[Any, ...]:
    """The results of a DERIVED op, as real tensors.

    Args:
        step: what it was validated as.
        args: its arguments, as given to the boundary; their values are there, or it is an op of shapes.
        natively: runs the op as in eager, and gives what that returned.

    Raises:
        Diverge: a shape is not known before the graph has run.
    """
    flat = flat_inputs(step, args)
    key: Any
    if step.op in SHAPE_OPS:
        key = tuple(map(shape_of, flat))
        if None in key:
            raise Diverge(
                Reason.NEW_SHAPE, Difference("shape", step.op, "input", "one that only the value tells", "")
            )
    else:
        key = tuple(map(_value, flat))
        if None in key:
            return tuple(_flat(natively()))
    found = step.shapes.get(key)
    if found is None:
        made = _shapes(step, key) if step.op in SHAPE_OPS else _flat(natively())
        found = _remember(step, key, tuple(made))
    answer: tuple[Any, ...] = found
    return answer


def _shapes(step: Step, shapes: Iterable[tuple[int, ...]]) -> list[Any]:
    """What an op of shapes gives; the tapes are not told, as of all that is an integer."""
    made = []
    for spec, shape in zip(step.specs, shapes, strict=True):
        value: Any = shape
        if step.op == "Rank":
            value = len(shape)
        elif step.op == "Size":
            value = int(np.prod(shape, dtype=np.int64))
        made.append(native.as_tensor(np.asarray(value, native.dtype_of(spec.dtype).as_numpy_dtype)))
    return made


def _remember(step: Step, key: Any, found: Any) -> Any:
    if len(step.shapes) >= _MOST:
        step.shapes.clear()
    step.shapes[key] = found
    return found


def _told(step: Step, inputs: list[Any]) -> list[Spec] | None:
    """The specs of the results, None if they cannot be told from such inputs."""
    if step.inference is None:
        step.inference = Inference(_symbol(step, inputs))
    shapes = step.inference.shapes(inputs)
    if shapes is None or len(shapes) != len(step.specs) or None in shapes:
        return None
    return [Spec(spec.dtype, shape, spec.device) for spec, shape in zip(step.specs, shapes, strict=True)]


def _symbol(step: Step, inputs: list[Any]) -> Any:
    """A symbolic op like the step: the block's own, or another one, if that has none or was made of several."""
    if step.symbol is not None and step.symbol.type == step.op:
        return step.symbol
    call = step.node.call
    specs = [
        Spec(given.dtype, None) if isinstance(given, Spec) else Spec(given[1], np.shape(given[0]))
        for given in inputs
    ]
    return symbolic(step.op, step.form, call.attrs, call.layout, specs)


def _specs(step: Step, flat: list[Any]) -> list[Any]:
    """What the inputs are without their values."""
    return [
        (resolve(arg), dtype) if dtype == _RESOURCE else Spec(dtype, shape_of(arg))
        for arg, dtype in zip(flat, _dtypes(step, flat), strict=True)
    ]


def _values(step: Step, flat: list[Any]) -> list[Any]:
    """What the inputs are, with the values of those from which shapes may follow."""
    given: list[Any] = []
    for arg, dtype in zip(flat, _dtypes(step, flat), strict=True):
        if dtype == _RESOURCE:
            given.append((resolve(arg), dtype))
        elif type(arg) is Placeholder:
            given.append(Spec(dtype, shape_of(arg)))
        elif type(arg) is not EagerTensor:
            given.append((np.asarray(arg, native.dtype_of(dtype).as_numpy_dtype), dtype))
        elif _is_telling(arg):
            given.append((native.host_value(arg), dtype))
        else:
            given.append(Spec(dtype, arg._shape_tuple()))
    return given


def _dtypes(step: Step, flat: list[Any]) -> list[int]:
    """The dtype of each flat input, of raw ones what native code makes of them."""
    if all(isinstance(arg, EagerTensor) for arg in flat):
        return [arg._datatype_enum() for arg in flat]
    dtypes = [arg._datatype_enum() if isinstance(arg, EagerTensor) else None for arg in flat]
    recorded = [rule.spec.dtype if rule.spec is not None else rule.dtype for rule in step.node.rules]
    if all(count < 0 for count in step.node.call.layout):
        recorded = [
            known if known is not None else other
            for known, other in zip(
                recorded, input_dtypes(step.op, flat, dtypes, step.node.call.attrs), strict=True
            )
        ]
    return [
        given if given is not None else known if known is not None else native.as_tensor(arg)._datatype_enum()
        for given, known, arg in zip(dtypes, recorded, flat, strict=True)
    ]


def _is_telling(tensor: Any) -> bool:
    return (
        tensor._datatype_enum() in _INTEGERS
        and tensor._num_elements() <= _SMALL
        and len(tensor._shape_tuple()) <= 2
    )


def _bits(arg: Any) -> Any:
    """What an argument is known by, as far as a shape may follow from it: None, or its value."""
    if type(arg) is Placeholder or (type(arg) is EagerTensor and not _is_telling(arg)):
        return None
    return _value(arg)


def _value(arg: Any) -> Any:
    """A value as something to compare; None if it is too large for that."""
    if type(arg) is Placeholder:
        arg = arg._slot.resolve()  # it has one
    if type(arg) is EagerTensor:
        if arg._num_elements() > _SMALL:
            return None
        return arg._datatype_enum(), arg._shape_tuple(), native.host_value(arg).tobytes()
    array = np.asarray(arg)
    return (type(arg), str(array.dtype), array.shape, array.tobytes()) if array.size <= _SMALL else None


def _flat(result: Any) -> list[Any]:
    if isinstance(result, (list, tuple)):
        return [item for inner in result for item in _flat(inner)]
    return [result]

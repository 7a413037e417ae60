"""What was new where a region diverged: the difference from what the TraceGraph holds there, never just "not known".

Asked once for each divergence, after validation has failed; nothing here is on the path of an op that is known. Nothing
here waits for a value either: what only the graph runner could tell is told as that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from terra_cx.compile.blocks import (
    ANY,
    CONST,
    FEED,
    HELD,
    KNOWN,
    LIST,
    LOCAL,
    PARAM,
    RESOURCE,
    Check,
    Step,
)
from terra_cx.reasons import Reason
from terra_cx.run.block_run import BlockRun
from terra_cx.run.checks import admits, flat_inputs
from terra_cx.tf import native
from terra_cx.tf.native import EagerTensor
from terra_cx.tf.opdefs import Kind, lasting_attrs
from terra_cx.tf.placeholder import Placeholder
from terra_cx.tf.slots import Slot
from terra_cx.trace.gradients import is_unmatched
from terra_cx.trace.keys import freeze
from terra_cx.trace.tracegraph import Node

if TYPE_CHECKING:
    from terra_cx.run.skeleton import Skeleton

__all__ = ["Difference", "of_gradient", "of_op", "of_shape"]

_MOST = 80
"""Characters of a value."""
_EVENTS = {
    "new": "another tape",
    "add": "being entered",
    "remove": "being left",
    "watch": "a watch",
    "stop": "a pause",
    "restart": "the end of a pause",
    "record": "a custom gradient",
}
_GRADIENT = "tape.gradient"
_WAYS = 4
"""Known ways on that are named; there may be hundreds."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that was new.

    Attributes:
        what: its kind: `op` (another op at the same line), `branch` (an op of another line), `attribute`, `dtype`,
            `shape`, `value`, `type` (a number where a tensor was), `variable`, `source` (the result of another op),
            `count` (of arguments), `path` (through TensorFlow's Python code), `history` (of a tape), `unkept` (all is
            known, but the step had let go of what its gradient needs: the first of its kind), or `other`.
        op: the op that the program issued.
        where: which argument or attribute; empty where none is meant.
        new: what there was.
        known: what is known there; empty if that is not the point.
        lines: the user's lines (`file:line`) of what is known, if they may be others.
    """

    what: str
    op: str
    where: str
    new: str
    known: str
    lines: tuple[str, ...] = ()

    def seen_from(self, line: str) -> Difference:
        """As it looks from the line that issued the op: what is known at other lines only is a branch."""
        if self.what == "op" and self.lines and line not in self.lines:
            return replace(self, what="branch")
        return self

    def __str__(self) -> str:
        known = f" where {self.known} is known" if self.known else ""
        if not self.where:
            subject = f"{self.op}: " if self.new != self.op else ""
            return f"{subject}{self.new}{known}"
        verb = f"has {self.what}" if self.what == "shape" else "is"
        return f"{self.op}: {self.where} {verb} {self.new}{known}"


def of_op(skeleton: Skeleton, op: str, form: str, args: tuple[Any, ...]) -> tuple[Reason, Difference]:
    """Why an op that was asked for is none of those that may come next.

    Args:
        skeleton: as the op has found it.
        op: its name.
        form: "F" for the fast path, "E" for ``TFE_Py_Execute``.
        args: its arguments, as given to the boundary.
    """
    try:
        return _of_op(skeleton, op, form, args)
    except Exception as error:
        if error is skeleton.handover.runner.raised:
            raise  # the program's own
        return Reason.NEW_ARGUMENTS, _untold(op)


def _untold(op: str) -> Difference:
    """Words are missing, no more: the program diverges all the same."""
    return Difference("other", op, "", "something new", "")


def _of_op(skeleton: Skeleton, op: str, form: str, args: tuple[Any, ...]) -> tuple[Reason, Difference]:
    here, expected = skeleton.here(), skeleton.step
    nodes = [] if expected is None else [expected.node]
    nodes += [node for node in _hottest_first(here) if node not in nodes]
    for node in nodes:
        if node.call.op == op:
            if expected is not None and node is expected.node and skeleton.run is not None:
                found = _of_step(skeleton.run, expected, op, form, args)
            else:
                run = skeleton.begun(node)
                found = _of_step(run, run.block.steps[0], op, form, args)
            if found is not None:
                return found
    words = [_at(node) for node in nodes]
    if here.ends and expected is None:
        words.append("the step's end")
    return Reason.NEW_OP, Difference("op", op, "", op, _listed(words), _lines(nodes))


def of_shape(step: Step, args: tuple[Any, ...]) -> Difference:
    """Why a shape is none that is known; `args` as given to the boundary."""
    try:
        return _of_shape(step, args)
    except Exception:  # noqa: BLE001  # nothing of the program's runs here
        return _untold(step.op)


def _of_shape(step: Step, args: tuple[Any, ...]) -> Difference:
    for item, spec in zip(flat_inputs(step, args), step.node.call.input_specs, strict=True):
        if type(item) is Placeholder and spec is not None:
            value, told = item._slot.value, item._slot.spec.shape
            new = _shape(told if value is None else value._shape_tuple())
            if new != _shape(spec.shape):
                return Difference("shape", step.op, "input", new, _shape(spec.shape))
    return _untold(step.op)


def of_gradient(
    here: Node, expected: Step | None, attrs: tuple[Any, ...], signature: tuple[Any, ...]
) -> Difference:
    """Why a gradient is none that is known.

    Args:
        here: the node of the last op.
        expected: the step that would have been next in the open block.
        attrs: the gradient's: tape, numbers of targets and sources, which gradients of outputs are given, the word for
            unconnected ones, the device scope.
        signature: see `run.signature`.
    """
    try:
        return _of_gradient(here, expected, attrs, signature)
    except Exception:  # noqa: BLE001  # nothing of the program's runs here
        return _untold(_GRADIENT)


def _of_gradient(
    here: Node, expected: Step | None, attrs: tuple[Any, ...], signature: tuple[Any, ...]
) -> Difference:
    op = _GRADIENT
    nodes = [] if expected is None else [expected.node]
    nodes += _hottest_first(here)
    known = [node for node in nodes if node.kind is Kind.GRADIENT]
    if not known:
        return Difference("op", op, "", op, _listed(_at(node) for node in nodes), _lines(nodes))
    if isinstance(signature[0], str):
        return Difference("history", op, "", "shapes under the tape that only values tell", "fixed ones")
    named = {"targets": 1, "sources": 2, "output_gradients": 3, "unconnected_gradients": 4, "device": 5}
    same = [node for node in known if node.call.attrs[1:] == attrs[1:]]
    for where, index in named.items():
        new, old = attrs[index], known[0].call.attrs[index]
        if not same and new != old:
            return Difference("attribute", op, where, _value(new), _value(old), _lines(known[:1]))
    told = [node for node in same if not is_unmatched(node.signature)]
    if not told:
        return Difference("history", op, "", "its Python decides by values of the forward pass", "")
    best, at = max(((node, _common(signature, node.signature)) for node in told), key=lambda pair: pair[1])
    return _of_history(op, at, signature, best)


def _of_history(op: str, at: int, signature: tuple[Any, ...], known: Node) -> Difference:
    mine, yours = signature[0], known.signature[0]
    if at < len(mine) or at < len(yours):
        new, old = (ops[at][0] if at < len(ops) else None for ops in (mine, yours))
        if new is old and new is not None:
            return Difference("history", op, "", f"{_at(new)} with other arguments", "one as traced")
        told = [_at(node) if node is not None else "nothing" for node in (new, old)]
        lines = _lines([old]) if old is not None else ()
        return Difference("history", op, "next under the tape", told[0], told[1], lines)
    events = [each[2] for each in (signature, known.signature)]
    if events[0] != events[1]:
        first = next(
            (n for n, (a, b) in enumerate(zip(*events, strict=False)) if a != b), min(map(len, events))
        )
        told = [_told(each[first] if first < len(each) else None, mine) for each in events]
        return Difference("history", op, "what the tape was told next", told[0], told[1])
    if signature != known.signature:
        return Difference("history", op, "", "ops that take each other's results in another way", "one way")
    return Difference(
        "unkept", op, "", "values of the forward pass, which were not kept in this step, are needed", ""
    )


def _told(event: tuple[Any, ...] | None, ops: Sequence[tuple[Node, int]]) -> str:
    """Something that a tape was told, and before which op."""
    if event is None:
        return "nothing"
    position, what = event[:2]
    place = f"before {_at(ops[position][0])}" if position < len(ops) else "after the last op"
    return f"{_EVENTS.get(what, what)} {place}"


def _common(one: tuple[Any, ...], other: tuple[Any, ...]) -> int:
    """How many ops two histories begin with in common."""
    pairs = zip(one[0], other[0], strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one[0]), len(other[0])))


def _hottest_first(here: Node) -> list[Node]:
    return sorted(here.succ, key=here.succ.__getitem__, reverse=True)


def _of_step(
    run: BlockRun, step: Step, op: str, form: str, args: tuple[Any, ...]
) -> tuple[Reason, Difference] | None:
    """What keeps an op of the right name from being `step`; None if nothing does."""
    if step.form != form:
        path = {"F": "the fast path", "E": "the slow path"}
        return Reason.NEW_ARGUMENTS, Difference("path", op, "", path[form], path.get(step.form, step.form))
    if native.device_scope() != step.device:
        new, known = (device or "none chosen" for device in (native.device_scope(), step.device))
        return Reason.NEW_ATTRIBUTES, Difference("attribute", op, "device", new, known)
    inputs, attrs = (args[: step.width], args[step.width :]) if form == "F" else (args[0], args[1])
    given = lasting_attrs(step.kind, attrs)
    if freeze(given) != step.frozen:
        return Reason.NEW_ATTRIBUTES, _of_attributes(op, given, lasting_attrs(step.kind, step.attrs))
    if len(inputs) != len(step.checks):
        new, known = (f"{number} arguments" for number in (len(inputs), len(step.checks)))
        return Reason.NEW_ARGUMENTS, Difference("count", op, "", new, known)
    for number, (check, arg) in enumerate(zip(step.checks, inputs, strict=True)):
        if not admits(run, check, arg):
            what, new, known = _of_argument(run, check, arg)
            return Reason.NEW_ARGUMENTS, Difference(what, op, _argument(op, number), new, known)
    return None


def _of_attributes(op: str, given: Sequence[Any], known: Sequence[Any]) -> Difference:
    types = _attribute_types(op)
    mine, yours = (dict(zip(each[::2], each[1::2], strict=False)) for each in (given, known))
    for name in [*yours, *mine]:
        new, old = mine.get(name), yours.get(name)
        if freeze(new) != freeze(old):
            text = name.decode() if isinstance(name, bytes) else str(name)
            if types.get(text) == "type":
                return Difference("dtype", op, text, _dtype(new), _dtype(old))
            return Difference("attribute", op, text, _value(new), _value(old))
    return Difference("attribute", op, "", "attributes in another order", "one order")


def _attribute_types(op: str) -> dict[str, str]:
    definition = native.op_def(op)
    return {} if definition is None else {attr.name: attr.type for attr in definition.attr}


def _argument(op: str, number: int) -> str:
    """How an argument is called: by the op's definition if it has one."""
    definition = native.op_def(op)
    if definition is None or number >= len(definition.input_arg):
        return f"argument {number}"
    return str(definition.input_arg[number].name)


def _of_argument(run: BlockRun, check: Check, arg: Any) -> tuple[str, str, str]:
    """Kind of difference, what is new, what is known, for an argument that does not pass its check."""
    code = check[0]
    if code == LIST:
        return _of_list(run, check, arg)
    if code == PARAM and check[2]:
        return _of_tensor(run, arg, check[3], check[4], check[5])
    if code in (LOCAL, PARAM):
        bound = run.slots[check[1]] if code == LOCAL else run.params[check[1]]
        return "source", _source(arg), _source(bound)
    if code == KNOWN:
        return _of_known(arg, check[1])
    if code == CONST:
        return ("value" if type(arg) is type(check[1]) else "type"), _value(arg), _value(check[1])
    if code == RESOURCE:
        return "variable", f"another {_variable(arg)}", f"one {_variable(check[1])}"
    if code in (HELD, ANY):
        return "value", "one that is still to be computed", "one that Python holds"
    if code == FEED:
        return "type", _article(type(arg)), f"{_article(check[3])} ({_dtype(check[2])})"
    return "other", _value(arg), "another"


def _of_list(run: BlockRun, check: Check, arg: Any) -> tuple[str, str, str]:
    if not isinstance(arg, (list, tuple)):
        return "type", _article(type(arg)), f"a list of {len(check[1])}"
    if len(arg) != len(check[1]):
        return "count", f"a list of {len(arg)}", f"one of {len(check[1])}"
    for inner, item in zip(check[1], arg, strict=True):
        if not admits(run, inner, item):
            return _of_argument(run, inner, item)
    return "other", "a list", "another"


def _of_tensor(
    run: BlockRun, arg: Any, dtype: int, shape: tuple[int, ...] | None, raw: type | None
) -> tuple[str, str, str]:
    kind = type(arg)
    if isinstance(arg, np.ndarray) and raw is not None and arg.shape != shape:
        return "shape", _shape(arg.shape), _shape(shape)
    if kind is not Placeholder and kind is not EagerTensor:
        known = f"{'a tensor' if raw is None else _article(raw)} of {_dtype(dtype)} {_shape(shape)}"
        return "type", _article(kind), known
    if arg._datatype_enum() != dtype:
        return "dtype", _dtype(arg._datatype_enum()), _dtype(dtype)
    if kind is EagerTensor:
        return "shape", _shape(arg._shape_tuple()), _shape(shape)
    slot = arg._slot
    if slot.run is run:
        return "source", _source(arg), "a tensor from before"
    given = slot.spec.shape if slot.value is None else slot.value._shape_tuple()
    return "shape", _shape(given), _shape(shape)


def _of_known(arg: Any, known: Any) -> tuple[str, str, str]:
    """A guarded value: its dtype, its shape, or the value itself."""
    if type(arg) is Placeholder:
        if arg._slot.value is None:
            return "source", _source(arg), f"the constant {_tensor(known)}"
        arg = arg._slot.value
    if type(arg) is not EagerTensor:
        return "value", _value(arg), _tensor(known)
    if arg._datatype_enum() != known._datatype_enum():
        return "dtype", _dtype(arg._datatype_enum()), _dtype(known._datatype_enum())
    if arg._shape_tuple() != known._shape_tuple():
        return "shape", _shape(arg._shape_tuple()), _shape(known._shape_tuple())
    return "value", _tensor(arg), _tensor(known)


# -- words -----------------------------------------------------------------------------------------------------------
def _at(node: Node) -> str:
    name, _, number = node.line.rpartition(":")
    return f"{node.call.op} ({os.path.basename(name)}:{number})" if name else node.call.op


def _listed(words: Iterable[str]) -> str:
    every = list(dict.fromkeys(words)) or ["the step's end"]
    shown = every[:_WAYS]
    more = len(every) - len(shown)
    return " or ".join(shown) + (f" or one of {more} others" if more else "")


def _lines(nodes: Iterable[Node]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node.line for node in nodes))[:_WAYS]


def _article(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'aeio' else 'a'} {kind.__name__}"


def _dtype(enum: Any) -> str:
    try:
        return str(native.dtype_of(int(enum)).name)
    except (KeyError, TypeError, ValueError):
        return _value(enum)  # a `tf.DType`, a list, or nothing


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not known before its value" if shape is None else f"({', '.join(map(str, shape))})"


def _value(value: Any) -> str:
    """A Python value. Tensors are told by their dtype: showing one would wait for it."""
    kind = type(value)
    if kind is Placeholder or kind is EagerTensor:
        return f"a tensor of {_dtype(value._datatype_enum())}"
    if isinstance(value, np.ndarray) and value.size > 16:
        return f"an array of {value.dtype} {_shape(value.shape)}"
    if isinstance(value, (list, tuple)) and (len(value) > 16 or not native.is_raw(value)):
        return f"{_article(kind)} of {len(value)}"
    try:
        text = repr(value[:_MOST] if isinstance(value, (str, bytes)) else value)
    except Exception:  # noqa: BLE001  # the program's own class
        return _article(kind)
    return text if len(text) <= _MOST else text[: _MOST - 3] + "..."


def _tensor(tensor: Any) -> str:
    text = " ".join(str(native.host_value(tensor).tolist()).split())
    return text if len(text) <= _MOST else text[: _MOST - 3] + "..."


def _source(thing: Any) -> str:
    """Where a tensor comes from."""
    slot = thing._slot if type(thing) is Placeholder else thing
    if type(slot) is not Slot:
        return "a tensor from outside the step" if type(slot) is EagerTensor else _article(type(slot))
    run = slot.run
    if isinstance(run, BlockRun) and slot.index < len(run.block.owners):
        return f"the result of {_at(run.block.owners[slot.index][0])}"
    return "a tensor of an earlier step"


def _variable(handle: Any) -> str:
    if type(handle) is Placeholder:
        handle = handle._slot.value  # not its data, which would be waited for
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.shape_and_type:
        return "variable"
    first = data.shape_and_type[0]
    return f"variable of {_dtype(first.dtype)} {_shape(tuple(each.size for each in first.shape.dim))}"

"""The shapes of an op's outputs, asked of TensorFlow's shape functions.

The op is put into a graph that never runs, whose inputs have the shapes in question; small integer inputs can be given
by value, since shapes follow from them (the target of a reshape). What the shape function says holds for every kernel
of the op, so it may be told to Python before the kernel has run.

Each op is made by the C interface from the attributes of a symbolic op of its kind: some ten microseconds, where
TensorFlow's own Python takes a millisecond, which a step of a hundred ops at a new length could not afford.

Source: ``tensorflow/python/framework/ops.py``, ``_create_c_op`` (2.18 to 2.21).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from tensorflow.core.framework import attr_value_pb2, tensor_shape_pb2
from tensorflow.python.client import pywrap_tf_session as session
from tensorflow.python.framework import ops, tensor_util

from terra_cx.tf import native
from terra_cx.tf.graphs import GraphBuilder
from terra_cx.tf.opdefs import arg_layout
from terra_cx.tf.slots import Spec

__all__ = ["Inference", "Value", "symbolic"]

_RESOURCE = 20
_MOST = 4000
"""Ops in one graph; then a new one is begun."""
_names = itertools.count()

Value = tuple[Any, int]
"""An array and the dtype of the tensor that is made of it; a variable's handle and the dtype of handles."""
Shape = tuple[int, ...]


class _Graph:
    """The present graph and its inputs."""

    def __init__(self) -> None:
        self.graph = ops.Graph()
        self.inputs: dict[Any, Any] = {}
        self.told: dict[Any, list[Shape | None]] = {}
        """What shape functions have said, by op, attributes and inputs: a step has many ops of a kind."""
        self.ops = 0

    def add(self, op: str, inputs: Sequence[Any], attrs: Sequence[tuple[str, bytes]]) -> list[Any]:
        """Add an op; its outputs."""
        self.ops += 1
        with self.graph._c_graph.get() as graph:
            made = session.TF_NewOperation(graph, op, f"op{next(_names)}")
        for given in inputs:
            if isinstance(given, list):
                session.TF_AddInputList(made, given)
            else:
                session.TF_AddInput(made, given)
        for name, value in attrs:
            session.TF_SetAttrValueProto(made, name, value)
        outputs: list[Any] = ops.Operation._from_c_op(session.TF_FinishOperation(made), self.graph).outputs
        return outputs

    def input(self, key: Any, given: Spec | Value) -> Any:
        """An input of a shape, or with a value; `key` is of `_key`."""
        found = self.inputs.get(key)
        if found is None:
            made = _placeholder(given) if isinstance(given, Spec) else _constant(given)
            (output,) = self.add(*made)
            found = self.inputs[key] = output._as_tf_output()
        return found


def _key(given: Spec | Value) -> Any:
    return given.key() if isinstance(given, Spec) else (given[1], given[0].shape, given[0].tobytes())


def _placeholder(spec: Spec) -> tuple[str, Sequence[Any], Sequence[tuple[str, bytes]]]:
    shape = tensor_shape_pb2.TensorShapeProto(unknown_rank=spec.shape is None)
    for size in spec.shape or ():
        shape.dim.add(size=-1 if size is None else size)
    return "Placeholder", (), (("dtype", _attr(type=spec.dtype)), ("shape", _attr(shape=shape)))


def _constant(value: Value) -> tuple[str, Sequence[Any], Sequence[tuple[str, bytes]]]:
    array, dtype = value
    proto = tensor_util.make_tensor_proto(array, native.dtype_of(dtype))
    return "Const", (), (("dtype", _attr(type=dtype)), ("value", _attr(tensor=proto)))


def _attr(**value: Any) -> bytes:
    data: bytes = attr_value_pb2.AttrValue(**value).SerializeToString()
    return data


_graph: _Graph | None = None


def symbolic(
    op: str,
    form: str,
    attrs: tuple[Any, ...],
    layout: tuple[int, ...],
    inputs: Sequence[Spec],
) -> Any:
    """A symbolic op; the arguments as for `tf.graphs.GraphBuilder.op`, with a dtype and shape per input."""
    builder = GraphBuilder(False)
    return builder.op(op, form, attrs, layout, [builder.feed(spec) for spec in inputs], ())[0]


class Inference:
    """Asks for the shapes of one op, with its attributes and dtypes; used on one thread.

    Args:
        operation: a symbolic op that differs in shapes only.
    """

    def __init__(self, operation: Any) -> None:
        self.refused = False
        """Whether the shape function would not have the inputs that it was asked with last."""
        node = operation.node_def
        self._op: str = node.op
        attrs = {name: value.SerializeToString() for name, value in node.attr.items() if name[0] != "_"}
        self._attrs = tuple(sorted(attrs.items()))
        self._groups: list[int] = []
        """Per argument -1, or how many tensors its list has."""
        for _, length, _, is_list in arg_layout(node.op):
            attr = node.attr[length] if is_list else None
            self._groups.append(-1 if attr is None else int(attr.i) or len(attr.list.type))

    def shapes(self, inputs: Sequence[Spec | Value]) -> list[Shape | None] | None:
        """Shapes of the outputs.

        Args:
            inputs: per flat input its dtype and shape (None: unknown), or its value.

        Returns:
            A shape per output, None where it cannot be told from this; None for all if the op refuses such inputs.
        """
        global _graph
        graph = _graph
        if any(not isinstance(given, Spec) and given[1] == _RESOURCE for given in inputs):
            return self._with_variable(inputs)
        if graph is None or graph.ops >= _MOST:
            graph = _graph = _Graph()
        self.refused = False
        keys = [_key(given) for given in inputs]
        key = (self._op, self._attrs, *keys)
        told = graph.told.get(key)
        if told is None:
            symbols = [graph.input(each, given) for each, given in zip(keys, inputs, strict=True)]
            told = self._in(graph, symbols)
            if told is not None:
                graph.told[key] = told
        return told

    def _in(self, graph: _Graph, symbols: list[Any]) -> list[Shape | None] | None:
        flat = iter(symbols)
        grouped = [next(flat) if count < 0 else [next(flat) for _ in range(count)] for count in self._groups]
        try:
            outputs = graph.add(self._op, grouped, self._attrs)
        except native.OpError:
            self.refused = True
            return None  # eager's kernel will say so in its own words
        return [GraphBuilder.static_shape(symbol) for symbol in outputs]

    def _with_variable(self, inputs: Sequence[Spec | Value]) -> list[Shape | None] | None:
        """As `shapes`, in a graph of its own, which is not kept: it holds the variable's handle."""
        builder = GraphBuilder(False)
        symbols = [
            builder.feed(given)
            if isinstance(given, Spec)
            else builder.capture(given[0])
            if given[1] == _RESOURCE
            else builder.raw(*given)
            for given in inputs
        ]
        graph = _Graph()
        graph.graph = builder.graph
        return self._in(graph, [symbol._as_tf_output() for symbol in symbols])

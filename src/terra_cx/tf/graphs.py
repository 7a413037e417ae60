"""Builds TensorFlow functions from recorded ops: the private graph API in one place.

Graphs are built with ``FuncGraph`` and run by name through ``TFE_Py_Execute``. At level ``exact`` Grappler is switched
off, which is the execution that was shown to equal eager bit for bit. oneDNN still merges some neighbours *inside* a
graph; an ``Identity`` on the edge prevents each of the known merges.

At level ``graph`` the function runs as a ``tf.function`` would. At level ``xla`` all of it is compiled if none of its
ops may fail: XLA's kernels refuse no value (an index that is out of range is clipped). Otherwise the ops that cannot
fail are marked, TensorFlow gathers them into clusters that XLA compiles, and the others keep their kernels and errors.

Source: ``tensorflow/python/framework/func_graph.py``, ``eager/polymorphic_function/atomic_function.py``.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from google.protobuf import message as protobuf
from tensorflow.core.framework import attr_value_pb2, function_pb2
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session
from tensorflow.python.eager.polymorphic_function import atomic_function
from tensorflow.python.framework import (
    constant_op,
    dtypes,
    func_graph,
    op_def_library,
    ops,
    tensor_shape,
    tensor_util,
)
from tensorflow.python.ops import array_ops, gen_array_ops, gen_math_ops

from terra_cx.levels import Level
from terra_cx.tf import native
from terra_cx.tf.opdefs import DISCRETE, SHAPE_OPS, Kind, arg_layout, attr_pairs, classify, grouped
from terra_cx.tf.slots import Spec

__all__ = ["CompiledFunction", "GraphBuilder", "known_to_xla", "loaded_function"]

_names = itertools.count()
_execute = native.REAL["TFE_Py_Execute"]

_FUSED_INPUTS = {
    "BiasAdd": (0,),
    "BiasAddGrad": (0,),
    "BiasAddV1": (0,),
    "Conv2D": (0,),
    "DepthwiseConv2dNative": (0,),
}
"""Inputs that get an Identity: oneDNN merges BiasAdd and Pad with Conv2D, BiasAddGrad with the filter gradient."""


_NOT_FOR_XLA = frozenset(
    {
        *("ArgMax", "ArgMin", "Max", "Maximum", "Min", "Minimum", "TopKV2"),  # do not heed every NaN
        *("MaxPoolGrad", "MaxPoolGradGrad"),  # of several maxima, another one has the gradient
        *("SqrtGrad", "InvGrad", "ReciprocalGrad"),  # NaN where upstream is zero
        *("ClipByValue", "Ndtri", "SeluGrad"),  # an empty range; tiny numbers; at zero
    }
)
"""Ops that XLA on the CPU computes otherwise than TensorFlow's kernels, if seldom, so that a first run may not tell.

Found by comparing all of `opdefs.INFALLIBLE` that compute on zeros, ties, tiny, huge, infinite numbers and NaN.
What differs only for infinite inputs (``ReluGrad`` of an infinite gradient) or subnormal ones is not listed.
"""
_RANDOM = ("Stateless", "Random")
"""Beginnings of the names of random ops: XLA's numbers are not those of the kernels."""


def _config(level: Level) -> bytes:
    """The configuration in which functions of a level run; at `graph` it is the program's own."""
    if level is Level.GRAPH:
        own: bytes = native.context().function_call_options.config_proto_serialized
        return own
    proto = config_pb2.ConfigProto()
    proto.graph_options.rewrite_options.disable_meta_optimizer = True
    data: bytes = proto.SerializeToString()
    return data


_MOST_FOLDED = 1024
"""Elements of what is computed once and kept in the graph."""

EXECUTORS = ("", "SINGLE_THREADED_EXECUTOR")
"""The executors of TensorFlow that can run a block; the first is the default one."""
_TRIALS = 4
"""Calls with each executor before one is chosen; the first pays for making the kernels, the fastest counts."""


class CompiledFunction:
    """A function registered with the eager context; it is removed from the context with this object.

    Two executors can run it. The single-threaded one is cheaper per op, the default one runs independent ops side by
    side; the first calls go to both in turns, and the faster one stays. (The single-threaded one refuses lowered
    control flow, which no block holds, but which XLA's clusters are called by; and each would compile for itself. So at
    level `xla` there is only the default one. And where there are several devices: the other one runs the parts of a
    function on them one after the other, and a part that waits for what a later one sends waits for ever.)
    """

    due = False
    """Nothing is to be compiled before its next call (`run.contest.Contest`)."""

    def __init__(self, atomic: Any, captures: list[Any], outputs: int, level: Level = Level.EXACT) -> None:
        self.level = level
        self._atomic = atomic
        name = atomic.name
        self.name: str = name.decode() if isinstance(name, bytes) else name
        self._captures = captures
        self._outputs = outputs
        self.executor = EXECUTORS[0]
        self._config = _config(level)
        one = level is Level.XLA or native.only_device() is None
        self._trials = [] if one else [*EXECUTORS] * _TRIALS
        self._seconds: dict[str, float] = {}
        self._use(self.executor)

    @property
    def captures(self) -> list[Any]:
        """The tensors that were bound when it was made; its last inputs."""
        return self._captures

    def definition(self) -> bytes:
        """The function as a serialised ``FunctionDef``."""
        data: bytes = native.context().get_function_def(self.name).SerializeToString()
        return data

    def __call__(self, feeds: list[Any]) -> list[Any]:
        """Run the function.

        Args:
            feeds: real tensors, one per parameter of the block.

        Returns:
            The real tensors of the outputs asked for.

        Raises:
            tf.errors.OpError: a kernel refused a value; by the transaction rule nothing has changed then.
        """
        if self._trials:
            return self._try(feeds)
        return self.prepared(feeds)() or []

    def prepared(self, feeds: list[Any]) -> Callable[[], list[Any] | None]:
        """A call that is all native; its executor is as chosen so far."""
        context = native.context()._handle
        return functools.partial(
            _execute, context, None, self.name, feeds + self._captures, self._attrs, self._outputs
        )

    def _try(self, feeds: list[Any]) -> list[Any]:
        self._use(self._trials.pop())
        run = self.prepared(feeds)
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
        self._seconds[self.executor] = min(seconds, self._seconds.get(self.executor, seconds))
        if not self._trials:
            self._use(min(self._seconds, key=self._seconds.__getitem__))
        return result or []

    @property
    def settled(self) -> bool:
        """Whether its executor is chosen."""
        return not self._trials

    def _use(self, executor: str) -> None:
        self.executor = executor
        self._attrs = ("executor_type", executor, "config_proto", self._config)


class _Registered:
    """A function of which only the definition is there; it is removed from the context with this object."""

    def __init__(self, definition: function_pb2.FunctionDef) -> None:
        self.name = definition.signature.name = f"__terra_block_{next(_names)}"
        self._context = native.context()
        self._context.add_function_def(definition)

    def __del__(self) -> None:
        try:
            self._context.remove_function(self.name)
        except (AttributeError, TypeError):
            pass  # the interpreter ends, and TensorFlow's modules are gone


_STRUCTURE = frozenset({"Placeholder", "Identity", "DeepCopy", "Const", "NoOp"})
"""What a block's graph holds beside the program's ops."""


def loaded_function(definition: bytes, captures: list[Any], outputs: int) -> CompiledFunction:
    """A function made of what `CompiledFunction.definition` of another process gave.

    Args:
        definition: that.
        captures: the tensors to bind, in the order of the other's `captures`.
        outputs: how many it returns.

    Raises:
        ValueError: it is no definition, or holds an op that no block holds, with effects outside TensorFlow say.
    """
    try:
        function = function_pb2.FunctionDef.FromString(definition)
    except protobuf.DecodeError as error:
        raise ValueError(f"no function: {error}") from None
    for node in function.node_def:
        if node.op not in _STRUCTURE and classify(node.op) not in (Kind.PURE, Kind.READ, Kind.WRITE):
            raise ValueError(f"a block holds {node.op}")
    if len(function.signature.output_arg) != outputs:
        raise ValueError("a block has other outputs")
    try:
        return CompiledFunction(_Registered(function), captures, outputs)
    except native.OpError as error:
        raise ValueError(f"no function: {error}") from None


class GraphBuilder:
    """Adds recorded ops to a new ``FuncGraph``.

    Args:
        barriers: whether an ``Identity`` stands on every edge.
        level: the level at which the functions will run.
    """

    def __init__(self, barriers: bool, level: Level = Level.EXACT) -> None:
        self.graph = func_graph.FuncGraph(f"terra_block_{next(_names)}")
        self.level = level
        self._barriers = barriers
        self._feeds: list[Any] = []
        self._consts: dict[bytes, Any] = {}
        self._known: set[int] = set()
        """The ids of those that are integers or conditions."""

    def _node(
        self,
        op: str,
        inputs: Sequence[Any],
        attrs: Iterable[tuple[str, attr_value_pb2.AttrValue]] = (),
        control: Sequence[Any] = (),
    ) -> Any:
        """Add an operation natively, on no device and in no scope.

        TensorFlow infers attributes that follow from the inputs, and fills in defaults. (Its Python for the same,
        ``_apply_op_helper`` within scopes of the graph, control edges and the device, took seven times as long.)

        Args:
            op: its name.
            inputs: symbolic tensors of this graph, and lists of such.
            attrs: the others' names and values.
            control: operations that must come first.

        Raises:
            tf.errors.InvalidArgumentError: there is no such operation, or it refuses what it is given.
        """
        graph = self.graph
        with graph._c_graph.get() as native_graph:
            made = pywrap_tf_session.TF_NewOperation(native_graph, op, graph.unique_name(op))
        given: set[Any] = set()
        for value in inputs:
            if isinstance(value, list):
                pywrap_tf_session.TF_AddInputList(made, [item._as_tf_output() for item in value])
                given.update(item.op for item in value)
            else:
                pywrap_tf_session.TF_AddInput(made, value._as_tf_output())
                given.add(value.op)
        for other in dict.fromkeys(control):
            if other not in given:
                pywrap_tf_session.TF_AddControlInput(made, other._c_op)
        for name, value in attrs:
            pywrap_tf_session.TF_SetAttrValueProto(made, name, value.SerializeToString())
        return ops.Operation._from_c_op(pywrap_tf_session.TF_FinishOperation(made), graph)

    def feed(self, spec: Spec) -> Any:
        """A parameter of the given dtype and shape (None: unknown)."""
        dtype = attr_value_pb2.AttrValue(type=spec.dtype)
        shape = attr_value_pb2.AttrValue(shape=tensor_shape.TensorShape(spec.shape).as_proto())
        (symbol,) = self._node("Placeholder", (), [("dtype", dtype), ("shape", shape)]).outputs
        self._feeds.append(symbol)
        return symbol

    def capture(self, tensor: Any) -> Any:
        """A tensor bound once, when the function is made: a resource handle or a float constant."""
        with self.graph.as_default():
            return self.graph.capture(tensor)

    def const(self, tensor: Any) -> Any:
        """A host tensor as a Const node, so that shape inference can see its value."""
        return self._const(native.host_value(tensor), native.dtype_of(tensor._datatype_enum()))

    def raw(self, value: Any, dtype: int | None) -> Any:
        """A raw Python argument as a Const node of the dtype that eager converted it to."""
        return self._const(value, None if dtype is None else native.dtype_of(dtype))

    def _const(self, value: Any, dtype: Any) -> Any:
        """One node for all constants that are equal in dtype, shape and bits."""
        proto = tensor_util.make_tensor_proto(value, dtype)
        content = proto.SerializeToString(deterministic=True)
        known = self._consts.get(content)
        if known is None:
            own, dtyped = attr_value_pb2.AttrValue(tensor=proto), attr_value_pb2.AttrValue(type=proto.dtype)
            (known,) = self._node("Const", (), [("value", own), ("dtype", dtyped)]).outputs
            self._consts[content] = known
            if _is_discrete(known):
                self._known.add(id(known))
        return known

    def op(
        self,
        op: str,
        form: str,
        attrs: tuple[Any, ...],
        layout: tuple[int, ...],
        inputs: Sequence[Any],
        control: Sequence[Any],
        device: str = "",
    ) -> tuple[Any, list[Any]]:
        """Add one op.

        Args:
            op: its name.
            form: "F" or "E", see `trace.records.Call`.
            attrs: alternating names and values as recorded.
            layout: see `trace.records.Call`.
            inputs: symbolic tensors, flat.
            control: operations that must come first.
            device: where it is to run; empty: where TensorFlow puts it, as in eager.

        Returns:
            The operation and its flat outputs.
        """
        given = attr_pairs(attrs)
        arguments = grouped(inputs, layout if form == "F" else _layout(op, given))
        exact = self.level is Level.EXACT
        if exact and op == "AddN" and len(inputs) > 2 and inputs[0].dtype != dtypes.variant:
            return self._sum(inputs, control, device)
        if self._barriers:
            arguments = [self._fence(value) for value in arguments]
        elif exact:
            for position in _FUSED_INPUTS.get(op, ()):
                arguments[position] = self._fence(arguments[position])
        operation = self._node(op, arguments, _told(op, given, arguments), control)
        if device:
            operation._set_device(device)
        return operation, list(operation.outputs)

    def folded(self, operation: Any) -> list[Any]:
        """The outputs of an op: constants where they are known here, the input where it changes nothing."""
        kind, inputs, outputs = operation.type, operation.inputs, list(operation.outputs)
        told = kind in SHAPE_OPS or all(map(self.is_known, inputs))
        if told and outputs and all(_is_discrete(symbol) and _is_small(symbol) for symbol in outputs):
            of_shapes = kind == "ShapeN"  # TensorFlow does not evaluate it
            values = (
                [self.static_shape(each) for each in inputs] if of_shapes else list(map(_value_of, outputs))
            )
            if not any(value is None for value in values):
                return [
                    self._const(value, symbol.dtype) for value, symbol in zip(values, outputs, strict=True)
                ]
        same = (kind == "Sum" and self.is_known(inputs[1]) and self.static_shape(inputs[1]) == (0,)) or (
            kind == "Reshape" and self.static_shape(inputs[0]) == self.static_shape(outputs[0]) is not None
        )
        return [inputs[0]] if same else outputs

    def is_known(self, symbol: Any) -> bool:
        """Whether it is a constant whose value is looked at."""
        return id(symbol) in self._known

    def _sum(self, inputs: Sequence[Any], control: Sequence[Any], device: str) -> tuple[Any, list[Any]]:
        """``AddN`` of three and more, by pairs.

        In a graph oneDNN takes it over and adds in another order than eager's kernel, which goes from left to right,
        two to nine at first and then always eight more (``tensorflow/core/kernels/aggregate_ops.cc``). The last bits
        differ, though not with all values: a first run can miss it.
        """

        def chain(items: Sequence[Any]) -> Any:
            return functools.reduce(gen_math_ops.add_v2, items)

        first = len(inputs) % 8
        first += 8 if first < 2 else 0
        with self.graph.as_default(), ops.control_dependencies(list(control)), ops.device(device or None):
            total = chain(inputs[:first])
            for start in range(first, len(inputs), 8):
                total = gen_math_ops.add_v2(total, chain(inputs[start : start + 8]))
        return total.op, [total]

    def _fence(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._fence(item) for item in value]
        if value.dtype in (dtypes.resource, dtypes.variant):
            return value
        return self._node("Identity", [value]).outputs[0]

    @staticmethod
    def static_shape(symbol: Any) -> tuple[int, ...] | None:
        """The shape that inference found, None if any part of it is unknown."""
        shape = symbol.shape
        return tuple(shape.as_list()) if shape.is_fully_defined() else None

    @staticmethod
    def fixed(handle: Any) -> bool:
        """Whether the variable with this handle can have one shape only."""
        data = getattr(handle, "_handle_data", None)
        if data is None or not data.is_set or len(data.shape_and_type) != 1:
            return False
        shape = data.shape_and_type[0].shape
        return not shape.unknown_rank and all(dim.size >= 0 for dim in shape.dim)

    def bounds(self, handle: Any, indices: Any, nested: bool, device: str = "") -> Any:
        """An operation that fails if rows of a variable are named that it does not have.

        A scatter's kernel asks the same, but when it has written the rows before that one.

        Args:
            handle: the variable's.
            indices: a symbolic tensor of row numbers.
            nested: whether its last axis has a number for each of the variable's first axes.
            device: as for `op`.

        Raises:
            ValueError: the variable can have several shapes, or it is not known how many axes ``indices`` name.
        """
        count = 1 if not nested else indices.shape[-1] if indices.shape.rank else None
        if not self.fixed(handle) or count is None:
            raise ValueError("whether rows are out of bounds cannot be told beforehand")
        sizes = [dim.size for dim in handle._handle_data.shape_and_type[0].shape.dim][:count]
        with self.graph.as_default(), ops.device(device or None):
            limits = constant_op.constant(sizes if nested else sizes[0], indices.dtype)
            outside = gen_math_ops.logical_or(
                gen_math_ops.less(indices, constant_op.constant(0, indices.dtype)),
                gen_math_ops.greater_equal(indices, limits),
            )
            some = gen_math_ops._any(gen_array_ops.reshape(outside, [-1]), [0])
            found = gen_array_ops.gather_v2([0], gen_math_ops.cast(some, dtypes.int32), 0)
        return found.op

    def cluster(self, operation: Any) -> None:
        """Have XLA compile an op of this graph, together with its neighbours."""
        operation._set_attr("_XlaCompile", attr_value_pb2.AttrValue(b=True))

    def finish(self, outputs: Sequence[Any], control: Sequence[Any], whole: bool = False) -> CompiledFunction:
        """Register the function with the given outputs; the graph may be finished again with others.

        Args:
            outputs: symbolic tensors.
            control: operations that must run even if no output needs them.
            whole: whether XLA must compile all of it.
        """
        graph = self.graph
        graph.inputs = [*self._feeds, *graph.internal_captures]
        with graph.as_default():
            graph.outputs = _own(outputs) if not whole else [array_ops.identity(symbol) for symbol in outputs]
        graph.control_outputs = list(control)
        attributes = {"_XlaMustCompile": True} if whole else {}
        atomic = atomic_function.from_func_graph(f"__terra_block_{next(_names)}", graph, attributes)
        return CompiledFunction(atomic, list(graph.external_captures), len(outputs), self.level)


def _own(symbols: Sequence[Any]) -> list[Any]:
    """Results with memory of their own each, as in eager; XLA's have it.

    Folding may have made one of two, or of an op what it was given, or a constant, which is there for all runs.
    """
    seen: set[int] = set()
    results = []
    for symbol in symbols:
        single = id(symbol) not in seen and symbol.op.type not in ("Placeholder", "Const")
        results.append(array_ops.identity(symbol) if single else gen_array_ops.deep_copy(symbol))
        seen.add(id(symbol))
    return results


def _is_discrete(symbol: Any) -> bool:
    """Whether it is of a type that shapes, axes and conditions have."""
    return symbol.dtype.as_datatype_enum in DISCRETE


def _is_small(symbol: Any) -> bool:
    """Whether it is not known to have too many elements for a constant (a long range, a mask)."""
    return (symbol.shape.num_elements() or 0) <= _MOST_FOLDED


def _value_of(symbol: Any) -> Any:
    """The value of what follows from constants and shapes alone, None where TensorFlow cannot tell."""
    return pywrap_tf_session.TF_TryEvaluateConstant_wrapper(symbol.graph._c_graph, symbol._as_tf_output())


def known_to_xla(operation: Any) -> bool:
    """Whether XLA, where it has a kernel for an op of a graph, computes what TensorFlow's kernel does, up to rounding.

    Numbers that an integer type cannot hold are cast otherwise, negative ones to an unsigned type among them.
    """
    if operation.type == "Cast" and operation.outputs[0].dtype.is_integer:
        return not operation.inputs[0].dtype.is_floating
    return operation.type not in _NOT_FOR_XLA and not operation.type.startswith(_RANDOM)


def _layout(op: str, given: dict[str, Any]) -> Iterator[int]:
    """The layout of a call by ``TFE_Py_Execute``, which gives the lengths of lists as attributes."""
    for _, length_attr, _, is_list in arg_layout(op):
        length = given[length_attr] if is_list else -1
        yield len(length) if isinstance(length, (list, tuple)) else int(length)


def _inferred(arg: Any, value: Any) -> list[str]:
    """Attributes that follow from an input; an empty list tells nothing, so its attributes must be given."""
    if isinstance(value, list) and not value:
        return [arg.number_attr] if arg.number_attr else []
    return [name for name in (arg.type_attr, arg.number_attr, arg.type_list_attr) if name]


def _told(
    op: str, given: dict[str, Any], arguments: Sequence[Any]
) -> Iterator[tuple[str, attr_value_pb2.AttrValue]]:
    """The attributes of an op that were given and do not follow from its arguments."""
    definition = native.op_def(op)
    pairs = zip(definition.input_arg, arguments, strict=True)
    inferred = {name for arg, value in pairs for name in _inferred(arg, value)}
    for attr in definition.attr:
        value = given.get(attr.name)
        if value is not None and attr.name not in inferred:
            if attr.type.startswith("list(") and not isinstance(value, (list, tuple)):
                value = [value]
            yield attr.name, op_def_library.value_to_attr_value(value, attr.type, attr.name)

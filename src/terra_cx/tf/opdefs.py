"""Facts about ops: what an op does to the world, and how its arguments are laid out.

The classes below are deliberately pessimistic: an op that is not known to be harmless runs by itself, in
order, on the owner thread, exactly as in eager. ``INFALLIBLE`` lists ops whose kernels have nothing left to
refuse once dtypes and shapes are validated; every other op may fail and is ordered before all effects of its
block.

Source: ``OpDef.is_stateful`` and the op registry of TensorFlow 2.21.
"""

from __future__ import annotations

import functools
from enum import Enum
from typing import Any

import numpy as np

from terra_cx.tf.native import dtype_of, op_def

__all__ = ["INFALLIBLE", "Kind", "arg_layout", "attr_pairs", "classify", "input_dtypes"]


class Kind(Enum):
    """What an op is to co-execution."""

    PURE = "pure"
    """A function of its inputs; goes into a block."""
    READ = "read"
    """Reads a resource variable; goes into a block, ordered with the writes."""
    WRITE = "write"
    """Writes a resource variable and cannot fail; goes into a block."""
    DRAW = "draw"
    """A stateful random op whose inputs Python holds: run by the graph runner as its own eager op just before
    its block,
    which receives the numbers as an input. Eager's kernel keeps eager's stream."""
    OWNER = "owner"
    """Runs on the owner thread as in eager, after all before it: host callbacks, outside effects, the unknown."""
    SOURCE = "source"
    """Runs on the owner thread at once: the next element of an iterator, which no pending op can influence."""
    KNOWN = "known"
    """Its inputs are guarded by value, so the recorded result is the answer."""
    GRADIENT = "gradient"
    """A whole ``tape.gradient`` call: a function of the validated ops and tape events."""


_READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd"})
_WRITES = frozenset(
    {
        "AssignVariableOp",
        "AssignAddVariableOp",
        "AssignSubVariableOp",
        "ResourceApplyGradientDescent",
        "ResourceApplyMomentum",
        "ResourceApplyKerasMomentum",
        "ResourceApplyAdam",
        "ResourceApplyAdamWithAmsgrad",
        "ResourceApplyRMSProp",
        "ResourceApplyAdagradV2",
    }
)
_DRAWS = frozenset(
    {
        "RandomUniform",
        "RandomStandardNormal",
        "TruncatedNormal",
        "RandomUniformInt",
        "RandomGamma",
        "RandomShuffle",
        "Multinomial",
        "RandomPoissonV2",
        "ParameterizedTruncatedNormal",
    }
)
_SOURCES = frozenset({"IteratorGetNext", "IteratorGetNextSync", "IteratorGetNextAsOptional"})
SEED_ATTRS = frozenset({"seed", "seed2"})
"""Attributes that change on every call when only the global seed is set; a draw takes them as they come."""

SHAPE_OPS = frozenset({"Shape", "ShapeN", "Rank", "Size"})
"""Ops whose result follows from the static shape of their inputs."""

_ELEMENTWISE = """
Abs Acos Acosh Add AddN AddV2 Angle Asin Asinh Atan Atan2 Atanh BiasAdd BiasAddGrad BiasAddV1 Cast Ceil
ClipByValue Complex Conj Cos Cosh Digamma Div DivNoNan Elu EluGrad Equal Erf Erfc Erfinv Exp Expm1 Floor
FloorDiv FloorMod Greater GreaterEqual Identity IdentityN Imag Inv InvGrad IsFinite IsInf IsNan LeakyRelu
LeakyReluGrad Less LessEqual Lgamma Log Log1p LogicalAnd LogicalNot LogicalOr Maximum Minimum Mul MulNoNan
Ndtri Neg NextAfter NotEqual OnesLike Polygamma Pow PreventGradient Real RealDiv Reciprocal ReciprocalGrad
Relu Relu6 Relu6Grad ReluGrad Rint Round Rsqrt RsqrtGrad Select SelectV2 Selu SeluGrad Sigmoid SigmoidGrad
Sign Sin Sinh Softplus SoftplusGrad Softsign SoftsignGrad Sqrt SqrtGrad Square SquaredDifference StopGradient
Sub Tan Tanh TanhGrad TruncateDiv Xdivy Xlog1py Xlogy ZerosLike Snapshot
"""
_STRUCTURED = """
All Any ArgMax ArgMin AvgPool AvgPoolGrad BatchMatMul BatchMatMulV2 BatchMatMulV3 BroadcastGradientArgs
BroadcastTo Concat ConcatV2 Const Conv2D Conv2DBackpropFilter Conv2DBackpropInput Conv3D
Conv3DBackpropFilterV2 Conv3DBackpropInputV2 Cumprod Cumsum DepthToSpace DepthwiseConv2dNative
DepthwiseConv2dNativeBackpropFilter DepthwiseConv2dNativeBackpropInput Diag DiagPart Einsum EuclideanNorm
ExpandDims Fill FusedBatchNormGradV3 FusedBatchNormV3 L2Loss LogSoftmax MatMul MatrixBandPart MatrixDiagV3
MatrixDiagPartV3 MatrixSetDiagV3 Max MaxPool MaxPoolGrad MaxPoolGradGrad MaxPoolV2 Mean Min MirrorPad
MirrorPadGrad OneHot Pack Pad PadV2 Prod Rank Range ResizeBilinear ResizeBilinearGrad ResizeNearestNeighbor
ResizeNearestNeighborGrad Reshape ReverseV2 Roll Shape ShapeN Size Slice Softmax SoftmaxCrossEntropyWithLogits
SpaceToDepth Split SplitV Squeeze StridedSlice StridedSliceGrad Sum Tile Transpose Unpack ZerosLike TopKV2
"""
INFALLIBLE = frozenset(_ELEMENTWISE.split()) | frozenset(_STRUCTURED.split())
"""Pure ops that cannot fail once dtypes and *static* shapes are validated (integer division is handled apart)."""

_ARGUMENTS = frozenset(_STRUCTURED.split())
"""Ops some of whose integer inputs are arguments (axes, sizes, offsets) that the kernel may refuse."""
_OUTSIDE = frozenset({"ReadFile", "MatchingFiles", "DecodeProtoV2", "EncodeProto"})
"""Ops that are not marked stateful and yet depend on the world outside."""
_INTEGERS = frozenset({3, 9, 5, 6, 4, 17, 22, 23})

_INTEGER_DIVISION = frozenset(
    {"Div", "FloorDiv", "FloorMod", "TruncateDiv", "Mod", "TruncateMod", "RealDiv", "Pow"}
)


@functools.cache
def classify(op: str) -> Kind:
    """The kind of an op by name, before anything is known about its inputs."""
    if op in _READS:
        return Kind.READ
    if op in _WRITES:
        return Kind.WRITE
    if op in _DRAWS:
        return Kind.DRAW
    if op in _SOURCES:
        return Kind.SOURCE
    if op in _OUTSIDE:
        return Kind.OWNER
    definition = op_def(op)
    if definition is None or definition.is_stateful or definition.is_distributed_communication:
        return Kind.OWNER
    if any(attr.type in ("func", "list(func)") for attr in definition.attr):
        return Kind.OWNER
    if any(arg.is_ref for arg in (*definition.input_arg, *definition.output_arg)):
        return Kind.OWNER
    return Kind.PURE


def fallible(op: str, dtypes: tuple[int, ...], static: bool, guarded: tuple[bool, ...] = ()) -> bool:
    """Whether a pure op's kernel may refuse a value.

    Args:
        op: the op's name.
        dtypes: ``DataType`` enums of its inputs.
        static: whether all its output shapes are known from shape inference (a dynamic reshape may fail).
        guarded: for each input, whether its value is guarded (an axis or offset that may change may be refused).
    """
    if op not in INFALLIBLE or not static:
        return True
    if op in _ARGUMENTS:
        checked = guarded or (False,) * len(dtypes)
        if any(
            not known and dtype in _INTEGERS for dtype, known in zip(dtypes[1:], checked[1:], strict=False)
        ):
            return True
    # Division by zero is an error for integers only.
    return op in _INTEGER_DIVISION and bool(dtypes) and dtype_of(dtypes[0]).is_integer


@functools.cache
def arg_layout(op: str) -> tuple[tuple[str, str, str, bool], ...]:
    """For each input argument of ``op``: type attribute, number attribute, fixed dtype name, whether it is a list."""
    definition = op_def(op)
    rows = []
    for arg in definition.input_arg:
        is_list = bool(arg.number_attr or arg.type_list_attr)
        rows.append((arg.type_attr, arg.number_attr or arg.type_list_attr, int(arg.type), is_list))
    return tuple(rows)  # type: ignore[arg-type]


def attr_pairs(attrs: tuple[Any, ...]) -> dict[str, Any]:
    """Alternating names and values as a dict."""
    return dict(zip(attrs[::2], attrs[1::2], strict=True))


def input_dtypes(
    op: str, values: list[Any], dtypes: list[int | None], attrs: tuple[Any, ...]
) -> list[int | None]:
    """The dtype each *raw* argument of a fast-path call was converted to.

    ``values`` are the arguments as given (one per input argument, lists for list arguments), ``dtypes`` the
    dtypes of those that are tensors (None for raw ones; for lists, the dtype of the first tensor in it). The
    native fast path converts a raw argument to the dtype of a tensor that shares its type attribute, else to
    the attribute's default, else to what the value itself suggests (``pywrap_tfe_src.cc``,
    ``ConvertToTensor``).
    """
    layout = arg_layout(op)
    given = attr_pairs(attrs)
    by_attr: dict[str, int] = {}
    for name, value in given.items():
        enum = getattr(value, "as_datatype_enum", None)
        if enum is not None:
            by_attr[name] = enum
    for (type_attr, _, _, _), dtype in zip(layout, dtypes, strict=True):
        if type_attr and dtype is not None:
            by_attr.setdefault(type_attr, dtype)
    defaults = {
        attr.name: int(attr.default_value.type)
        for attr in op_def(op).attr
        if attr.type == "type" and attr.HasField("default_value")
    }
    answer: list[int | None] = []
    for (type_attr, _, fixed, _), dtype, value in zip(layout, dtypes, values, strict=True):
        if dtype is not None:
            answer.append(dtype)
        elif fixed:
            answer.append(int(fixed))
        elif type_attr in by_attr:
            answer.append(by_attr[type_attr])
        elif type_attr in defaults and not isinstance(value, (float, np.floating)):
            answer.append(defaults[type_attr])
        else:
            answer.append(None)
    return answer

"""Facts about ops: what an op does to the world, and how its arguments are laid out.

The classes below are deliberately pessimistic: an op that is not known to be harmless runs by itself, in
order, on the owner thread, exactly as in eager. ``INFALLIBLE`` lists ops whose kernels have nothing left to
refuse once dtypes and shapes are validated and arguments (axes, sizes, offsets) guarded; every other op may
fail and is ordered before all effects of its block.

Source: ``OpDef.is_stateful`` and the op registry of TensorFlow 2.21.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from terra_cx.tf.native import dtype_of, op_def

__all__ = [
    "DISCRETE",
    "INFALLIBLE",
    "SHAPELESS",
    "Kind",
    "arg_layout",
    "attr_pairs",
    "classify",
    "fallible",
    "grouped",
    "inferred_attrs",
    "input_dtypes",
    "lasting_attrs",
    "row_indices",
    "writes",
]


class Kind(Enum):
    """What an op is to co-execution."""

    PURE = "pure"
    """A function of its inputs; goes into a block."""
    READ = "read"
    """Reads a resource variable; goes into a block, ordered with the writes."""
    WRITE = "write"
    """Writes a resource variable, and refuses no value but a row that it does not have; goes into a block."""
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
    DERIVED = "derived"
    """A small op of shapes, or of values that Python holds, which differ between steps: the owner does it at once."""
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
_INDEXED_NAMES = """
ResourceScatterAdd ResourceScatterMax ResourceScatterMin ResourceScatterMul ResourceScatterSub ResourceScatterUpdate
ResourceScatterNdAdd ResourceScatterNdMax ResourceScatterNdMin ResourceScatterNdSub ResourceScatterNdUpdate
ResourceSparseApplyAdagrad ResourceSparseApplyAdagradV2 ResourceSparseApplyKerasMomentum ResourceSparseApplyMomentum
ResourceSparseApplyRMSProp
"""
_INDEXED = frozenset(_INDEXED_NAMES.split())
"""Writes of some rows: they refuse an index that is out of bounds, when the rows before it are written.

Those that look at other values as well (Ftrl's rate, the divisor of integers) are the owner's.
"""
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
PLAIN_DRAWS = frozenset({"RandomUniform", "RandomStandardNormal", "TruncatedNormal", "RandomUniformInt"})
"""Draws that are given integers alone, sizes and bounds: no tape is told of them."""
_SOURCES = frozenset({"IteratorGetNext", "IteratorGetNextSync", "IteratorGetNextAsOptional"})
COUNTS = frozenset({"N", "num", "num_split"})
"""Attributes that say how many tensors an op takes or gives."""
_SEEDS = frozenset({"seed", "seed2"})
_PASSED_ON = {Kind.DRAW: _SEEDS, Kind.OWNER: _SEEDS | {"token"} | COUNTS}
"""Attributes that change on every call and are passed on as they come: seeds when only the global seed is set (of a
draw, or of one that the owner makes, because it is given tensors), the number under which a host callback is
registered, how many tensors there are."""


def is_seed(value: Any, name: str) -> bool:
    """Whether TensorFlow's fast path takes a value of this attribute, if it is that of a seed."""
    return name not in _SEEDS or value is None or isinstance(value, int)


SHAPE_OPS = frozenset({"Shape", "ShapeN", "Rank", "Size"})
"""Ops whose result follows from the static shape of their inputs."""

SHAPELESS = frozenset({("FusedBatchNormGradV3", 3), ("FusedBatchNormGradV3", 4), ("FusedBatchNormGradV3", 5)})
"""Arguments (op, number) that are passed on between kernels, and whose shape nothing else depends on."""

DISCRETE = frozenset({3, 9, 10, 6, 4, 5, 17, 22, 23})
"""``DataType`` enums of integers and conditions: what shapes, axes and branches are made of, and no tape watches."""

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
_STRUCTURED_OPS = frozenset(_STRUCTURED.split())
INFALLIBLE = frozenset(_ELEMENTWISE.split()) | _STRUCTURED_OPS
"""Pure ops that cannot fail once dtypes and *static* shapes are validated and their arguments guarded (`fallible`)."""

_ANY_VALUE = {"OneHot": frozenset({"indices"}), "Roll": frozenset({"shift"})}
"""Integer inputs of structured ops that are data: no value of them is refused."""
_ALL_ARGUMENTS = frozenset({"Range"})
"""Ops all of whose inputs are arguments, of whatever type (a step of 0.0 is refused)."""
_DIVISIONS = frozenset({"Div", "FloorDiv", "FloorMod", "TruncateDiv", "Mod", "TruncateMod", "RealDiv", "Pow"})
"""Ops that refuse some values of their second input if it is an integer: zero, or for Pow what is below."""
_OUTSIDE_NAMES = """
ReadFile MatchingFiles GenerateVocabRemapping DecodeProtoV2 EncodeProto ImmutableConst GetDeadline GetTpuTaskId
Abort InplaceAdd InplaceSub InplaceUpdate _ParallelConcatUpdate ExtractGlimpse ExtractGlimpseV2 Copy CopyHost
DebugIdentity DebugNanCount DebugNumericSummary CustomAggregator
"""
_OUTSIDE = frozenset(_OUTSIDE_NAMES.split())
"""Ops that are not marked stateful and yet depend on the world outside, change their input, or draw noise."""
_STATE_ATTRS = frozenset({"seed", "seed2", "container", "shared_name", "token"})
"""Attributes of ops that keep something between calls, or call Python, marked stateful or not."""
_RESOURCE, _VARIANT = 20, 21
T = TypeVar("T")


@functools.cache
def classify(op: str) -> Kind:
    """The kind of an op by name, before anything is known about its inputs."""
    if op in _READS:
        return Kind.READ
    if op in _WRITES or op in _INDEXED:
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
    if any(attr.type in ("func", "list(func)") or attr.name in _STATE_ATTRS for attr in definition.attr):
        return Kind.OWNER
    # What a variant holds (a dataset, a list of tensors) can neither be seen through nor compared.
    if any(arg.is_ref or arg.type == _VARIANT for arg in (*definition.input_arg, *definition.output_arg)):
        return Kind.OWNER
    return Kind.PURE


def lasting_attrs(kind: Kind, attrs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The attributes by which an op of a kind is known: without those that change on every call."""
    passed_on = _PASSED_ON.get(kind)
    if passed_on is None or passed_on.isdisjoint(attrs[::2]):
        return attrs
    pairs = zip(attrs[::2], attrs[1::2], strict=True)
    return tuple(item for name, value in pairs if name not in passed_on for item in (name, value))


@functools.cache
def row_indices(op: str) -> int | None:
    """Which input of a write says what rows it writes; None if it writes the whole variable."""
    if op not in _INDEXED:
        return None
    return next(place for place, arg in enumerate(op_def(op).input_arg) if arg.name == "indices")


def writes(op: str) -> bool:
    """Whether an op writes a resource variable, in a block or on the owner thread (an op that is not known)."""
    kind = classify(op)
    return kind is Kind.WRITE or (kind is Kind.OWNER and op.startswith("Resource"))


def fallible(op: str, dtypes: tuple[int, ...], static: bool, guarded: tuple[bool, ...] = ()) -> bool:
    """Whether a pure op's kernel may refuse a value.

    Where dtypes and shapes are what they were, only *arguments* are left to refuse: axes, sizes, offsets, divisors. One
    that is guarded was accepted by this very kernel with these very shapes; one that is not may be anything.

    Args:
        op: the op's name.
        dtypes: ``DataType`` enums of its flat inputs, 0 where not known.
        static: whether all its shapes are known from shape inference (a dynamic reshape may fail).
        guarded: for each flat input, whether its value is guarded.
    """
    if op not in INFALLIBLE or not static:
        return True
    places = _arguments(op)
    if op in _DIVISIONS and not any(enum and not dtype_of(enum).is_integer for enum in dtypes):
        places = (1,)
    return not all(-len(guarded) <= place < len(guarded) and guarded[place] for place in places)


@functools.cache
def _arguments(op: str) -> tuple[int, ...]:
    """The flat inputs of a listed op that are arguments; those after a list of inputs are counted from the end."""
    if op not in _STRUCTURED_OPS:
        return ()
    definition = op_def(op)
    integral = {
        attr.name
        for attr in definition.attr
        if attr.type == "type"
        and attr.HasField("allowed_values")
        and all(dtype_of(enum).is_integer for enum in attr.allowed_values.list.type)
    }
    places = []
    after_list = False
    for index, arg in enumerate(definition.input_arg):
        after_list = after_list or bool(arg.number_attr or arg.type_list_attr)
        integer = arg.type_attr in integral or (arg.type and dtype_of(arg.type).is_integer)
        if op in _ALL_ARGUMENTS or (integer and arg.name not in _ANY_VALUE.get(op, ())):
            places.append(index - len(definition.input_arg) if after_list else index)
    return tuple(places)


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


def inferred_attrs(op: str, layout: tuple[int, ...], dtypes: list[int]) -> tuple[Any, ...]:
    """The attributes that follow from an op's inputs, as the native fast path gives them to the tapes.

    Args:
        op: the op's name.
        layout: per argument -1, or how many tensors its list has.
        dtypes: ``DataType`` enums of the flat inputs.

    Returns:
        Alternating names and values.
    """
    found: dict[str, Any] = {}
    rest = iter(dtypes)
    for arg, count in zip(op_def(op).input_arg, layout, strict=False):
        enums = [next(rest) for _ in range(1 if count < 0 else count)]
        if arg.number_attr:
            found[arg.number_attr] = count
        if arg.type_list_attr:
            found[arg.type_list_attr] = enums
        elif arg.type_attr and enums:
            found[arg.type_attr] = enums[0]
    return tuple(item for pair in found.items() for item in pair)


def grouped(flat: Sequence[T], layout: Iterable[int]) -> list[T | list[T]]:
    """The flat inputs of an op as its arguments, by `trace.records.Call.layout`: those of a list in a list."""
    rest = iter(flat)
    return [next(rest) if count < 0 else list(islice(rest, count)) for count in layout]


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

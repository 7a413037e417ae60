"""Facts about ops: pessimistic where they are not known, and checked against the kernels where they are claimed."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session

from terra_cx.tf import native, opdefs
from terra_cx.tf.opdefs import (
    INFALLIBLE,
    Kind,
    arg_layout,
    attr_pairs,
    classify,
    fallible,
    inferred_attrs,
    input_dtypes,
    lasting_attrs,
)

FLOAT, INT32, INT64, RESOURCE, VARIANT = (
    int(dtype.as_datatype_enum) for dtype in (tf.float32, tf.int32, tf.int64, tf.resource, tf.variant)
)


def registered():
    """Every op of the installed TensorFlow."""
    listed = op_def_pb2.OpList()
    listed.ParseFromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    return {op.name: op for op in listed.op}


OPS = registered()


# -- what an op is ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("MatMul", Kind.PURE),
        ("ReadVariableOp", Kind.READ),
        ("ResourceGather", Kind.READ),
        ("AssignVariableOp", Kind.WRITE),
        ("ResourceApplyAdam", Kind.WRITE),
        ("ResourceScatterNdUpdate", Kind.WRITE),
        ("ResourceSparseApplyFtrl", Kind.OWNER),
        ("RandomUniform", Kind.DRAW),
        ("StatelessRandomUniformV2", Kind.PURE),
        ("IteratorGetNext", Kind.SOURCE),
        ("EagerPyFunc", Kind.OWNER),
        ("PrintV2", Kind.OWNER),
        ("WriteFile", Kind.OWNER),
        ("SaveV2", Kind.OWNER),
        ("ResourceScatterDiv", Kind.OWNER),
        ("LookupTableInsertV2", Kind.OWNER),
        ("RngReadAndSkip", Kind.OWNER),
        ("PartitionedCall", Kind.OWNER),
        ("While", Kind.OWNER),
        ("VarHandleOp", Kind.OWNER),
        ("Assign", Kind.OWNER),
        ("__inference_train_step_1", Kind.OWNER),
        ("NoSuchOp", Kind.OWNER),
    ],
)
def test_kinds(op, kind):
    assert classify(op) is kind


def test_what_is_stateful_and_not_understood_runs_on_the_owner_thread():
    understood = opdefs._READS | opdefs._WRITES | opdefs._INDEXED | opdefs._DRAWS | opdefs._SOURCES
    for name, op in OPS.items():
        if op.is_stateful and name not in understood:
            assert classify(name) is Kind.OWNER, name


def test_what_touches_a_resource_or_holds_a_function_is_never_pure():
    for name, op in OPS.items():
        arguments = [*op.input_arg, *op.output_arg]
        if any(arg.type == RESOURCE or arg.is_ref for arg in arguments):
            assert classify(name) is not Kind.PURE, name
        if any(attr.type in ("func", "list(func)") for attr in op.attr):
            assert classify(name) is not Kind.PURE, name


LOOKS_OUTSIDE = [
    "ReadFile",
    "MatchingFiles",
    "GenerateVocabRemapping",
    "ImmutableConst",
    "Abort",
    "GetElementAtIndex",
    "RegisterDatasetV2",
    "PyFuncStateless",
    "InplaceUpdate",
    "FractionalMaxPool",
    "ExtractGlimpse",
    "Unbatch",
    "DebugIdentity",
]
"""Not marked as stateful, yet they read or change what is outside the graph."""


def test_ops_that_look_outside_the_graph_are_never_pure():
    assert [name for name in LOOKS_OUTSIDE if name not in OPS or classify(name) is Kind.PURE] == []


def test_what_holds_a_variant_is_never_pure():
    for name, op in OPS.items():
        if any(arg.type == VARIANT for arg in (*op.input_arg, *op.output_arg)):
            assert classify(name) is not Kind.PURE, name


@pytest.mark.parametrize(
    "names", ["_READS", "_WRITES", "_INDEXED", "_DRAWS", "_SOURCES", "SHAPE_OPS", "INFALLIBLE"]
)
def test_every_listed_op_exists(names):
    assert set(getattr(opdefs, names)) <= set(OPS)


def test_the_lists_do_not_overlap():
    lists = [opdefs._READS, opdefs._WRITES, opdefs._INDEXED, opdefs._DRAWS, opdefs._SOURCES, INFALLIBLE]
    assert sum(map(len, lists)) == len(frozenset().union(*lists))
    assert opdefs.SHAPE_OPS <= INFALLIBLE


def test_infallible_ops_are_pure():
    assert [name for name in INFALLIBLE if classify(name) is not Kind.PURE] == []


# -- which kernels can refuse a value --------------------------------------------------------------------------------
X = tf.constant(np.arange(12, dtype="float32").reshape(3, 4))


def _raw(op, **arguments):
    return lambda: getattr(tf.raw_ops, op)(**arguments)


REFUSED = {
    "Slice": _raw("Slice", input=X, begin=[9, 0], size=[1, 1]),
    "StridedSlice": _raw("StridedSlice", input=X, begin=[9], end=[10], strides=[1], shrink_axis_mask=1),
    "Cumsum": _raw("Cumsum", x=X, axis=7),
    "Cumprod": _raw("Cumprod", x=X, axis=7),
    "ReverseV2": _raw("ReverseV2", tensor=X, axis=[7]),
    "Roll": _raw("Roll", input=X, shift=[1], axis=[7]),
    "MatrixBandPart": _raw("MatrixBandPart", input=X, num_lower=99, num_upper=0),
    "StridedSliceGrad": _raw(
        "StridedSliceGrad", shape=[2], begin=[9], end=[10], strides=[1], dy=1.0, shrink_axis_mask=1
    ),
    "Sum": _raw("Sum", input=X, axis=7),
    "Split": _raw("Split", axis=7, value=X, num_split=2),
    "ConcatV2": _raw("ConcatV2", values=[X, X], axis=7),
    "Range": _raw("Range", start=tf.constant(0.0), limit=tf.constant(1.0), delta=tf.constant(0.0)),
    "OneHot": _raw("OneHot", indices=[1], depth=-1, on_value=1.0, off_value=0.0),
    "FloorDiv": _raw("FloorDiv", x=[1, 2], y=[0, 1]),
    "FloorMod": _raw("FloorMod", x=[1, 2], y=[0, 1]),
    "TruncateDiv": _raw("TruncateDiv", x=[1, 2], y=[0, 1]),
    "Pow": _raw("Pow", x=[2, 2], y=[-1, 1]),
    "GatherV2": _raw("GatherV2", params=X, indices=[9], axis=0),
    "MatrixInverse": _raw("MatrixInverse", input=[[0.0]]),
    "CheckNumerics": _raw("CheckNumerics", tensor=[np.nan], message=""),
    "SparseSoftmaxCrossEntropyWithLogits": _raw(
        "SparseSoftmaxCrossEntropyWithLogits", features=X, labels=[9, 9, 9]
    ),
    "InvertPermutation": _raw("InvertPermutation", x=[0, 0]),
    "TensorScatterUpdate": _raw("TensorScatterUpdate", tensor=[1.0], indices=[[9]], updates=[1.0]),
}
"""Ops that refuse a value although dtypes and shapes, the output's included, are in order."""
INTEGER_ONLY = {"FloorDiv", "FloorMod", "TruncateDiv", "Pow"}


@pytest.mark.parametrize("op", REFUSED)
def test_an_op_whose_kernel_refuses_a_value_counts_as_fallible(op):
    with pytest.raises(tf.errors.OpError):
        np.asarray(REFUSED[op]())
    assert fallible(op, (INT32,) if op in INTEGER_ONLY else (FLOAT,), static=True)


GUARDED = {
    "Slice": (False, True, True),
    "StridedSliceGrad": (True, True, True, True, False),
    "Sum": (False, True),
    "Split": (True, False),
    "ConcatV2": (False, False, False, True),
    "OneHot": (False, True, False, False),
    "Roll": (False, False, True),
    "FloorDiv": (False, True),
    "Pow": (False, True),
}
"""Arguments that leave nothing to refuse if they are guarded, of all flat inputs."""


@pytest.mark.parametrize("op", GUARDED)
def test_a_guarded_argument_was_accepted_before(op):
    dtypes = (INT32,) * len(GUARDED[op])
    assert not fallible(op, dtypes, static=True, guarded=GUARDED[op])
    assert fallible(op, dtypes, static=False, guarded=GUARDED[op])
    for place, needed in enumerate(GUARDED[op]):
        one_less = tuple(known and index != place for index, known in enumerate(GUARDED[op]))
        assert fallible(op, dtypes, static=True, guarded=one_less) is needed


def test_a_division_of_unknown_dtypes_may_be_one_of_integers():
    assert fallible("FloorDiv", (0, 0), static=True)
    assert fallible("FloorDiv", (0, INT32), static=True)
    assert not fallible("FloorDiv", (0, FLOAT), static=True)


@pytest.mark.parametrize("op", sorted(INTEGER_ONLY - {"Pow"}))
def test_only_integers_refuse_a_division_by_zero(op):
    assert np.asarray(getattr(tf.raw_ops, op)(x=[1.0], y=[0.0])).shape == (1,)
    assert not fallible(op, (FLOAT,), static=True)


@pytest.mark.parametrize("op", ["Add", "MatMul", "Conv2D", "Relu", "Softmax", "Identity"])
def test_arithmetic_is_infallible_once_shapes_are_static(op):
    assert not fallible(op, (FLOAT, FLOAT), static=True)
    assert fallible(op, (FLOAT, FLOAT), static=False)


# -- how arguments are laid out --------------------------------------------------------------------------------------
def test_arg_layout():
    assert arg_layout("MatMul") == (("T", "", 0, False), ("T", "", 0, False))
    assert arg_layout("ConcatV2") == (("T", "N", 0, True), ("Tidx", "", 0, False))
    assert arg_layout("AssignVariableOp") == (("", "", RESOURCE, False), ("dtype", "", 0, False))
    assert arg_layout("IdentityN")[0][3]


def test_attr_pairs():
    assert attr_pairs(("a", 1, "b", [2])) == {"a": 1, "b": [2]}
    with pytest.raises(ValueError, match="shorter"):
        attr_pairs(("a", 1, "b"))


CONVERTED = [
    ("AddV2", [tf.constant([1.0], tf.float64), 2.0], ()),
    ("AddV2", [2, tf.constant([1.0], tf.float16)], ()),
    ("AddV2", [tf.constant([1], tf.int64), 2], ()),
    ("Mul", [tf.constant([1.0]), np.float64(2)], ()),
    ("Mul", [tf.constant([1.0]), 3], ()),
    ("Mul", [tf.constant([1 + 1j]), 3], ()),
    ("Sum", [tf.constant([[1.0]]), 0], ("keep_dims", False)),
    ("Fill", [tf.constant([2, 2]), 1.5], ()),
    ("Fill", [tf.constant([2, 2]), 7], ()),
    ("Range", [0, 5, 1], ()),
    ("ConcatV2", [[tf.constant([1.0]), tf.constant([2.0])], 0], ()),
    ("LeakyRelu", [1.5], ("alpha", 0.2)),
    ("Pack", [[tf.constant(1, tf.int64), 2]], ("axis", 0)),
    ("OneHot", [tf.constant([1]), 3, 1.0, 0.0], ("axis", -1)),
    ("ExpandDims", [tf.constant([1.0]), 0], ()),
    ("SelectV2", [tf.constant([True]), tf.constant([1.0]), 0], ()),
]


@pytest.mark.parametrize(("op", "values", "attrs"), CONVERTED)
def test_a_raw_argument_gets_the_dtype_that_native_code_gives_it(op, values, attrs):
    """Converted beforehand to the dtypes we work out, the call must give the same result in the same dtype."""
    dtypes = []
    for value in values:
        items = value if isinstance(value, (list, tuple)) else [value]
        dtypes.append(next((item._datatype_enum() for item in items if tf.is_tensor(item)), None))
    resolved = input_dtypes(op, values, dtypes, attrs)
    expected = native.run_fast(op, None, [*values, *attrs])
    rows = arg_layout(op)

    def convert(value, dtype):
        return value if tf.is_tensor(value) or dtype is None else tf.constant(value, native.dtype_of(dtype))

    converted = [
        [convert(item, dtype) for item in value] if row[3] else convert(value, dtype)
        for value, dtype, row in zip(values, resolved, rows, strict=True)
    ]
    got = native.run_fast(op, None, [*converted, *attrs])
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def test_a_tensors_own_dtype_stands():
    resolved = input_dtypes("MatMul", [tf.zeros([1, 1]), tf.zeros([1, 1])], [FLOAT, FLOAT], ())
    assert resolved == [FLOAT, FLOAT]
    assert input_dtypes("Sum", [tf.zeros([1]), 0], [FLOAT, None], ("keep_dims", False)) == [FLOAT, INT32]
    assert input_dtypes("ArgMax", [tf.zeros([1]), 0], [FLOAT, None], ("output_type", tf.int64)) == [
        FLOAT,
        INT32,
    ]


def test_lasting_attrs_are_those_that_do_not_change_on_every_call():
    seeds = ("seed", 1, "dtype", tf.float32, "seed2", 7)
    assert lasting_attrs(Kind.DRAW, seeds) == ("dtype", tf.float32)
    assert lasting_attrs(Kind.PURE, seeds) == seeds
    assert lasting_attrs(Kind.OWNER, ("token", b"pyfunc_3", "Tout", [1])) == ("Tout", [1])


@pytest.mark.parametrize(
    ("op", "layout", "dtypes", "attrs"),
    [
        ("MatMul", (-1, -1), [1, 1], ("T", 1)),
        ("Reshape", (-1, -1), [1, 3], ("T", 1, "Tshape", 3)),
        ("ConcatV2", (2, -1), [1, 1, 3], ("N", 2, "T", 1, "Tidx", 3)),
        ("IdentityN", (2,), [1, 9], ("T", [1, 9])),
        ("ReadVariableOp", (-1,), [20], ()),
    ],
)
def test_inferred_attrs(op, layout, dtypes, attrs):
    assert inferred_attrs(op, layout, dtypes) == attrs

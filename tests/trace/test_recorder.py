"""The recorder executes as eager does, and notes where everything came from."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from held import held
from tracing import recording, trace

from terra_cx.tf.native import REAL
from terra_cx.tf.opdefs import Kind
from terra_cx.trace.recorder import MAX_KNOWN, is_guardable, pack_outputs
from terra_cx.trace.records import Captured, Const, Ext, Known, Local, Resource

X = tf.constant([[1.0, 2.0], [3.0, 4.0]])
WIDE = tf.ones([3, 3])


def names(recorded):
    return [call.op for call in recorded.calls]


def sketch(ref):
    """A reference in short."""
    if isinstance(ref, Local):
        return ("local", ref.position, ref.out)
    if isinstance(ref, Ext):
        return ("ext", ref.number)
    if isinstance(ref, Const):
        return ("const", ref.value)
    if isinstance(ref, Known):
        return ("known", ref.tensor.numpy().tolist(), sketch(ref.origin))
    return (type(ref).__name__.lower(),)


def inputs(call):
    return [sketch(ref) for ref in call.inputs]


# -- where arguments come from ---------------------------------------------------------------------------------------
def test_wiring():
    def region():
        y = tf.matmul(X, X)
        return tf.add(y, tf.sin(y))

    recorded = trace(region)
    assert names(recorded) == ["MatMul", "Sin", "AddV2"]
    assert [inputs(call) for call in recorded.calls] == [
        [("ext", 0), ("ext", 0)],
        [("local", 0, 0)],
        [("local", 0, 0), ("local", 1, 0)],
    ]
    np.testing.assert_array_equal(trace.last, tf.matmul(X, X) + tf.sin(tf.matmul(X, X)))


def test_several_outputs_and_their_structure():
    def region():
        a, b = tf.split(X, 2)
        values, indices = tf.math.top_k(a)
        return a - b, values, indices

    recorded = trace(region)
    assert names(recorded) == ["Split", "TopKV2", "Sub"]
    split, top, sub = recorded.calls
    assert split.pack == [0, 1]
    assert len(top.outputs) == 2
    assert inputs(top)[0] == ("local", 0, 0)
    assert inputs(sub) == [("local", 0, 0), ("local", 0, 1)]


def test_external_tensors_are_numbered_by_first_use():
    a, b = tf.constant([1.0]), tf.constant([2.0])
    recorded = trace(lambda: [tf.add(a, b), tf.add(b, a), tf.add(a, tf.constant([3.0]))])
    assert [inputs(call) for call in recorded.calls] == [
        [("ext", 0), ("ext", 1)],
        [("ext", 1), ("ext", 0)],
        [("ext", 0), ("ext", 2)],
    ]


def test_small_integers_and_single_numbers_are_guarded_and_larger_tensors_are_not():
    assert is_guardable(tf.constant([1, 2]))
    assert is_guardable(tf.constant(True))
    assert is_guardable(tf.zeros([MAX_KNOWN], tf.int64))
    assert not is_guardable(tf.zeros([MAX_KNOWN + 1], tf.int64))
    assert is_guardable(tf.constant(1.0))
    assert not is_guardable(tf.constant([1.0]))
    index = tf.constant([1, 0])
    recorded = trace(lambda: tf.gather(X, index))
    assert inputs(recorded.calls[0])[1] == ("known", [1, 0], ("ext", 1))


def test_variables_read_and_written():
    variable = tf.Variable(X)

    def region():
        variable.assign_sub(tf.matmul(variable, X))

    recorded = trace(region)
    assert [(call.op, call.kind) for call in recorded.calls] == [
        ("ReadVariableOp", Kind.READ),
        ("MatMul", Kind.PURE),
        ("AssignSubVariableOp", Kind.WRITE),
    ]
    read, _, write = recorded.calls
    assert isinstance(read.inputs[0], Resource)
    assert read.inputs[0].tensor is write.inputs[0].tensor is variable.handle
    np.testing.assert_array_equal(variable, X - tf.matmul(X, X))


def test_raw_arguments_are_copied():
    recorded = trace(lambda: tf.raw_ops.LeakyRelu(features=X, alpha=0.5))
    assert recorded.calls[0].attrs[:2] == ("alpha", 0.5)
    buffer = np.ones((2, 2), "float32")

    def region():
        y = tf.raw_ops.Add(x=X, y=buffer)
        buffer[:] = -1.0
        return y

    recorded = trace(region)
    ref = recorded.calls[0].inputs[1]
    assert isinstance(ref, Ext)
    assert recorded.calls[0].raws == {1: np.ndarray}
    np.testing.assert_array_equal(trace.last, X + 1.0)


def test_a_raw_number_is_a_constant_outside_a_tape_and_a_guarded_tensor_under_one():
    def region():
        outside = tf.raw_ops.Mul(x=X, y=3.0)
        with tf.GradientTape() as tape:
            tape.watch(X)
            inside = tf.raw_ops.Mul(x=X, y=3.0)
        return outside, inside, tape.gradient(inside, X)

    recorded = trace(region)
    outside, inside = recorded.calls[:2]
    assert inputs(outside)[1] == ("const", 3.0)
    assert sketch(inside.inputs[1]) == ("known", 3.0, ("ext", 1))
    assert inside.raws == {1: 3.0}
    np.testing.assert_array_equal(trace.last[2], tf.fill([2, 2], 3.0))


def test_placeholders_of_an_earlier_region_are_resolved():
    value = held([[1.0, 0.0], [0.0, 1.0]])
    recorded = trace(lambda: [tf.matmul(X, value), tf.concat([value, X], 0)])
    assert names(recorded) == ["MatMul", "ConcatV2"]
    np.testing.assert_array_equal(trace.last[0], X)
    assert sketch(recorded.calls[1].inputs[0]) == ("ext", 1)


# -- known values ----------------------------------------------------------------------------------------------------
def test_shapes_and_what_follows_from_them_are_known():
    def region():
        shape = tf.shape(tf.matmul(X, X))
        rows = shape[0]
        return tf.reshape(tf.sin(X), [rows * 2])

    recorded = trace(region)
    kinds = {call.op: call.kind for call in recorded.calls}
    assert kinds["Shape"] is kinds["StridedSlice"] is kinds["Mul"] is Kind.KNOWN
    assert kinds["MatMul"] is kinds["Reshape"] is Kind.PURE
    shape = next(call for call in recorded.calls if call.op == "Shape")
    assert shape.values[0].numpy().tolist() == [2, 2]


def test_an_integer_that_depends_on_a_computed_value_is_not_known():
    recorded = trace(lambda: tf.argmax(tf.sin(X), 0) + 1)
    assert [call.kind for call in recorded.calls] == [Kind.PURE] * 3


# -- the owner's ops, sources and draws ------------------------------------------------------------------------------
def test_what_the_owner_computes_reaches_the_graph_from_outside():
    def region():
        y = tf.py_function(lambda a: a.numpy() + np.float32(1), [X], tf.float32)
        return tf.sin(y)

    recorded = trace(region)
    assert [call.kind for call in recorded.calls] == [Kind.OWNER, Kind.PURE]
    assert isinstance(recorded.calls[1].inputs[0], Ext)


def test_the_next_element_of_an_iterator_is_a_source():
    iterator = iter(tf.data.Dataset.from_tensors(X).repeat())
    recorded = trace(lambda: tf.sin(next(iterator)))
    assert [call.kind for call in recorded.calls] == [Kind.SOURCE, Kind.PURE]
    assert isinstance(recorded.calls[1].inputs[0], Ext)


def test_a_random_op_is_a_draw():
    recorded = trace(lambda: tf.random.normal([2], seed=1) * 2.0)
    draw = next(call for call in recorded.calls if call.op == "RandomStandardNormal")
    assert draw.kind is Kind.DRAW


# -- reads -----------------------------------------------------------------------------------------------------------
def test_reads_are_noted_after_the_op_that_python_had_reached():
    def region():
        y = tf.sin(X)
        z = tf.cos(y)
        float(y[0, 0])
        return z

    recorded = trace(region)
    assert recorded.fetches == {len(recorded.calls) - 1}
    assert trace(lambda: X.numpy()).fetches == set()  # not made here


# -- tapes -----------------------------------------------------------------------------------------------------------
def test_a_gradient_is_one_call_with_its_ops_inside():
    variable = tf.Variable(X)

    def region():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.matmul(X, variable))
        gradient = tape.gradient(loss, variable)
        variable.assign_sub(gradient)
        return gradient

    recorded = trace(region)
    assert names(recorded)[-2:] == ["TapeGradient", "AssignSubVariableOp"]
    gradient, write = recorded.calls[-2:]
    assert gradient.kind is Kind.GRADIENT
    assert [call.op for call in gradient.inner][-1] == "MatMul"
    (result,) = gradient.results
    inside = range(gradient.position, gradient.position + len(gradient.inner))
    assert isinstance(result, Local)
    assert result.position in inside
    assert sketch(write.inputs[1]) == sketch(result)
    assert write.position == inside.stop
    what = [event.what for event in recorded.events]
    assert what[:2] == ["new", "access"]
    assert what.count("remove") == 1
    np.testing.assert_array_equal(trace.last, tf.matmul(X, tf.ones([2, 2]), transpose_a=True))


def test_a_gradient_refers_to_forward_values_and_not_to_constants():
    variable = tf.Variable(X)
    other = tf.constant([[5.0, 6.0], [7.0, 8.0]])

    def region():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(variable * other))
        return tape.gradient(loss, variable)

    recorded = trace(region)
    gradient = recorded.calls[-1]
    made = {position for call in recorded.calls[:-1] for position in [call.position]}
    refs = [ref for call in gradient.inner for ref in call.inputs]
    assert any(isinstance(ref, Local) and ref.position in made for ref in refs)
    external = next(ref for call in recorded.calls for ref in call.inputs if isinstance(ref, Ext))
    assert external in refs
    captured = [ref.tensor.numpy() for ref in refs if isinstance(ref, Captured)]
    floats = [value for value in captured if value.dtype == np.float32]
    assert floats
    assert all(np.all(value == 1) for value in floats)  # nothing but the ones that a gradient begins with


def test_unconnected_and_sparse_gradients():
    table, other = tf.Variable(X), tf.Variable([1.0])

    def region():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(tf.identity(table), [0, 0]))
            loss += tf.reduce_sum(tf.nn.embedding_lookup(table, [1]))
        return tape.gradient(loss, [table, other])

    recorded = trace(region)
    gradient = recorded.calls[-1]
    assert gradient.results[1] is None
    assert trace.last[1] is None
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.nn.embedding_lookup(table, [1, 1]))
    expected = tape.gradient(loss, table)
    assert isinstance(expected, tf.IndexedSlices)

    def sparse():
        with tf.GradientTape() as inner:
            loss = tf.reduce_sum(tf.nn.embedding_lookup(table, [1, 1]))
        return inner.gradient(loss, table)

    recorded = trace(sparse)
    values, indices, shape = recorded.calls[-1].results[0]
    assert isinstance(trace.last, tf.IndexedSlices)
    np.testing.assert_array_equal(trace.last.values, expected.values)
    np.testing.assert_array_equal(trace.last.indices, expected.indices)
    assert values is not None
    assert indices is not None
    assert (shape is None) == (trace.last.dense_shape is None)


def test_tape_events_in_order():
    def region():
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(X)
            y = tf.sin(X)
            with tape.stop_recording():
                tf.cos(y)
            z = y * y
        tape.gradient(z, X)
        return tape.gradient(y, X)

    recorded = trace(region)
    assert [event.what for event in recorded.events] == ["new", "watch", "remove", "add", "remove"]
    assert recorded.events[0].detail == (True, True)
    assert sketch(recorded.events[1].ref) == ("ext", 0)
    assert [event.position for event in recorded.events][:3] == [0, 0, 1]
    gradients = [call for call in recorded.calls if call.kind is Kind.GRADIENT]
    assert [call.attrs[0] for call in gradients] == [0, 0]
    np.testing.assert_array_equal(trace.last, tf.cos(X))
    assert REAL["TFE_Py_TapeSetIsEmpty"]()


def test_nested_tapes_are_numbered_in_order_of_creation():
    def region():
        with tf.GradientTape() as outer:
            outer.watch(X)
            with tf.GradientTape() as inner:
                inner.watch(X)
                y = tf.reduce_sum(X * X * X)
            first = inner.gradient(y, X)
        return outer.gradient(first, X)

    recorded = trace(region)
    assert [call.attrs[0] for call in recorded.calls if call.kind is Kind.GRADIENT] == [1, 0]
    np.testing.assert_allclose(trace.last, 6 * X)


# -- what cannot be co-executed --------------------------------------------------------------------------------------
def refusal(region):
    with recording() as recorder:
        recorder.observer.start(0)
        region()
    return recorder.trace.refused


def test_user_code_inside_a_gradient_is_refused():
    @tf.custom_gradient
    def mine(x):
        return x * 2.0, lambda upstream: upstream * 5.0

    def region():
        with tf.GradientTape() as tape:
            tape.watch(X)
            y = mine(X)
        np.testing.assert_array_equal(tape.gradient(y, X), tf.fill([2, 2], 5.0))

    assert refusal(region)[0] == "user-gradient"


def test_a_tape_from_before_the_region_is_refused():
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(X)
        y = X * X
    reason, detail = refusal(lambda: np.testing.assert_array_equal(tape.gradient(y, X), 2 * X))
    assert reason == "tape-across-regions"
    assert "test_recorder.py" in detail


def test_an_opaque_op_under_a_tape_is_refused():
    @tf.function
    def double(x):
        return x * 2.0

    def region():
        with tf.GradientTape() as tape:
            tape.watch(X)
            y = double(X)
        np.testing.assert_array_equal(tape.gradient(y, X), tf.fill([2, 2], 2.0))

    assert refusal(region) is not None


def test_an_op_that_fails_is_not_part_of_the_trace():
    def region():
        with pytest.raises(tf.errors.InvalidArgumentError):
            tf.matmul(X, WIDE)
        return tf.sin(X)

    assert names(trace(region)) == ["Sin"]


def test_a_region_far_longer_than_any_before_is_not_kept():
    told = []
    with recording() as recorder:
        recorder.limit = 5
        recorder.on_overrun = lambda: told.append(True)
        recorder.observer.start(0)
        results = [tf.sin(X) for _ in range(12)]
    assert recorder.overrun
    assert told == [True]
    assert recorder.trace.calls == []
    assert len(results) == 12


# -- places ----------------------------------------------------------------------------------------------------------
def test_every_op_knows_its_line():
    def region():
        y = tf.sin(X)
        return helper(y)

    def helper(y):
        return tf.cos(y) + 1.0

    recorded = trace(region)
    first = region.__code__.co_firstlineno
    assert [call.site.line for call in recorded.calls] == [first + 1, first + 5, first + 5]
    assert all(call.site.filename == __file__ for call in recorded.calls)
    assert [call.site.ordinal for call in recorded.calls] == [0, 0, 1]
    assert len(recorded.calls[1].site.path) == len(recorded.calls[0].site.path) + 1


def test_pack_outputs():
    a, b = tf.constant(1), tf.constant(2)
    assert pack_outputs(a) == (0, [a])
    assert pack_outputs([a, b]) == ([0, 1], [a, b])
    assert pack_outputs([[a], [b, a]]) == ([[0], [1, 2]], [a, b, a])
    assert pack_outputs(None) == (None, [])
    assert pack_outputs([]) == ([], [])

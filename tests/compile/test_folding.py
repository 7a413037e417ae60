"""Folding: what is not computed, or not twice, and that nothing else changes."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tracing import before, blocks_of, graph_of, only_block, run_of

from terra_cx.compile.lowering import function_of
from terra_cx.run.eager import feeds_of, run_eagerly
from terra_cx.run.verify import same_bits
from terra_cx.tf.graphs import GraphBuilder

X = tf.constant(np.linspace(-2, 2, 16, dtype="float32").reshape(4, 4))


def counted(block):
    """How many ops of each type the block's outputs and effects need."""
    wanted = {*[symbol.op for symbol in block.lowered.symbols.values()], *block.lowered.control}
    return Counter(operation.type for operation in wanted.union(*map(before, wanted)))


def parameters(block):
    """`X` for each parameter."""
    assert all(spec.shape == X.shape for spec in block.params)
    return [X] * len(block.params)


def assert_computes_what_eager_does(block, variables=()):
    """Every output, and what is written to the variables; returns the outputs."""
    outputs = frozenset(block.lowered.symbols)
    run = run_of(block, parameters(block))
    feeds = feeds_of(run)
    earlier = [variable.numpy() for variable in variables]
    values = run_eagerly(run, feeds)
    after = [variable.numpy() for variable in variables]
    for variable, value in zip(variables, earlier, strict=True):
        variable.assign(value)
    results = function_of(block, outputs)(feeds)
    assert all(map(same_bits, results, [values[flat] for flat in sorted(outputs)]))
    for variable, value in zip(variables, after, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    return results


def test_equal_ops_are_one():
    def region():
        return [tf.sqrt(X * 3.0) + tf.sqrt(X * 3.0), tf.sqrt(X * 2.0)]

    block = only_block(region)
    assert Counter(op.op for op in block.ops) == {"Mul": 3, "Sqrt": 3, "AddV2": 1}
    found = counted(block)
    assert (found["Mul"], found["Sqrt"], found["AddV2"]) == (2, 2, 1)


def test_attributes_and_the_sign_of_zero_tell_ops_apart():
    zeros = [tf.constant(np.asarray(zero, "float32")) for zero in (0.0, -0.0, 0.0)]

    def region():
        return [tf.matmul(X, X), tf.matmul(X, X, transpose_a=True), *[X / zero for zero in zeros]]

    found = counted(only_block(region))
    assert (found["MatMul"], found["RealDiv"]) == (2, 2)


def test_a_variable_is_read_once_between_two_writes():
    weight, other = tf.Variable(X), tf.Variable(X)

    def region():
        first = [tf.sin(weight.read_value()), tf.sin(weight.read_value())]
        other.assign_add(X)
        first.append(tf.sin(weight.read_value()))  # another variable was written to
        weight.assign_add(X)
        return [*first, tf.sin(weight.read_value()), tf.sin(weight.read_value())]

    block = only_block(region)
    found = counted(block)
    assert (found["ReadVariableOp"], found["Sin"]) == (2, 2)
    assert_computes_what_eager_does(block, (weight, other))


def test_what_adam_computes_for_each_variable_is_computed_once():
    steps, weights = tf.Variable(3, dtype=tf.int64), [tf.Variable(X) for _ in range(4)]

    def region():
        for weight in weights:
            step = tf.cast(steps + 1, tf.float32)
            rate = tf.constant(0.01) * tf.sqrt(1.0 - tf.pow(tf.constant(0.999), step))
            weight.assign_sub(rate * weight)
        steps.assign_add(1)

    found = counted(only_block(region))
    assert (found["Pow"], found["Sqrt"], found["Cast"], found["AssignSubVariableOp"]) == (1, 1, 1, 4)


def test_shapes_and_what_follows_from_them_are_constants():
    bias = tf.Variable([1.0, 2.0, 3.0, 4.0])

    def region():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.nn.relu(X + bias) * bias)
        return tape.gradient(loss, bias)

    block = only_block(region)
    assert {"BroadcastGradientArgs", "Shape"} <= {op.op for op in block.ops}
    found = counted(block)
    assert not {"BroadcastGradientArgs", "Shape", "StridedSlice"} & found.keys()
    assert found["Sum"] < sum(op.op == "Sum" for op in block.ops)
    assert not any(op.fallible for op in block.ops), "sizes and axes are constants, which were accepted"
    assert_computes_what_eager_does(block)


def test_each_result_is_a_tensor_of_its_own():
    """Somebody may write into the memory of one by way of NumPy; eager's other one does not change."""

    def region():
        with tf.GradientTape() as tape:  # whose code asks for the shape at run time
            loss = tf.reduce_sum(tf.sin(X + weight))
        return [
            tf.sin(X),
            tf.sin(X),
            tf.reduce_sum(X, axis=tf.constant([], tf.int32)),
            tape.gradient(loss, weight),
        ]

    weight = tf.Variable([1.0, 2.0, 3.0, 4.0])
    block = only_block(region)
    assert any(symbol.op.type == "Const" for symbol in block.lowered.symbols.values())

    makers = {op.base + index: op.op for op in block.ops for index in range(len(op.specs))}
    kernels = [makers[flat] in ("Sin", "Sum", "Shape") for flat in sorted(block.lowered.symbols)]
    values = [X]
    for _ in range(2):
        results = assert_computes_what_eager_does(block)
        values += [value for value in itertools.compress(results, kernels) if value.shape.rank]
    assert len(values) >= 13
    assert len({value._numpy_internal().__array_interface__["data"][0] for value in values}) == len(values)


def test_what_is_large_is_no_constant():
    def region():
        return [tf.raw_ops.Cast(x=tf.range(size), DstT=tf.float32) for size in (10, 100_000)]

    block = only_block(region)
    assert max(symbol.shape.num_elements() for symbol in block.lowered.symbols.values()) == 100_000
    assert all(
        operation.outputs[0].shape.num_elements() <= 1024
        for operation in block.lowered.builder.graph.get_operations()
        if operation.type == "Const"
    )


def test_constants_are_told_apart():
    builder = GraphBuilder(barriers=False)
    values = ["a", "b", 1, 2, 1.0, 2.0, True, [1], [1, 2], [[1, 2]], float("nan")]
    symbols = [builder.raw(value, None) for value in values]
    assert len(set(map(id, symbols))) == len(values)
    assert [builder.raw(value, None) for value in values] == symbols
    numbers = [index for index, symbol in enumerate(symbols) if builder.is_known(symbol)]
    assert [values[index] for index in numbers] == [1, 2, True, [1], [1, 2], [[1, 2]]]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_program_computes_what_eager_does(data):
    """Programs that are full of repetitions."""
    variables = [tf.Variable(X), tf.Variable(X * 0.5)]
    steps = data.draw(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 7)), max_size=14)
    )

    def region():
        values = [X]
        for what, one, other in steps:
            a, b = values[one % len(values)], values[other % len(values)]
            if what == 0:
                values.append(variables[one % 2].read_value())
            elif what == 1:
                variables[one % 2].assign_sub(b * 0.1)
            elif what == 2:
                values.append(a * tf.constant([0.0, -0.0, 1.5][other % 3]))
            elif what == 3:
                values.append(tf.reshape(a, tf.shape(b)))
            elif what == 4:
                values.append(
                    tf.reduce_sum(a, axis=tf.constant([[], [0]][other % 2], tf.int32), keepdims=True) + b
                )
            else:
                values.append(tf.tanh(a - b))
        return values

    for block in blocks_of(graph_of(region)):
        assert_computes_what_eager_does(block, variables)

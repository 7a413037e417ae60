"""Lowering: the control edges that make a block a transaction, and that the graph computes what eager does."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tracing import before, blocks_of, graph_of, only_block, run_of

from terra_cx.compile.lowering import function_of
from terra_cx.run.eager import feeds_of, run_eagerly
from terra_cx.run.verify import same_bits
from terra_cx.tf import graphs, opdefs
from terra_cx.tf.native import op_def
from terra_cx.tf.opdefs import Kind

WRITES = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"}
X = tf.constant(np.linspace(-2, 2, 16, dtype="float32").reshape(4, 4))


def operations(block):
    """The graph's operations that stand for the block's ops, in the program's order."""
    named = {"ReadVariableOp", "GatherV2", "Cholesky", "Sin", "Mul", *WRITES}
    graph = block.lowered.builder.graph
    return [op for op in graph.get_operations() if op.type in named]


def by_type(block, kind):
    return [operation for operation in operations(block) if operation.type == kind]


# -- the transaction -------------------------------------------------------------------------------------------------
def test_every_fallible_op_precedes_every_write_wherever_it_stands():
    a, b = tf.Variable(X), tf.Variable(X)
    index = tf.constant([0, 1])

    def region():
        a.assign_add(X)
        tf.gather(X, index)
        b.assign_sub(X)
        return tf.linalg.cholesky(tf.matmul(X, X, transpose_b=True) + 10.0 * tf.eye(4))

    block = only_block(region)
    fallible = [*by_type(block, "GatherV2"), *by_type(block, "Cholesky")]
    writes = [operation for operation in operations(block) if operation.type in WRITES]
    assert (len(fallible), len(writes)) == (2, 2)
    for write in writes:
        assert set(fallible) <= before(write)


def positive(x):
    """The positive elements: a vector whose length only the values tell."""
    return tf.gather(x, tf.where(x > 0)[:, 0])


def test_a_write_that_may_be_refused_precedes_all_others():
    a, b, three = tf.Variable(X), tf.Variable(X), tf.Variable(tf.zeros([3]))
    values = tf.constant([1.0, -1.0, 2.0, 3.0])

    def region():
        three.assign_add(positive(values))
        a.assign_add(X)
        tf.linalg.cholesky(tf.matmul(X, X, transpose_b=True) + 10.0 * tf.eye(4))
        b.assign_sub(X)

    block = only_block(region)
    (refusable,) = [op for op in block.ops if op.kind is Kind.WRITE and op.fallible]
    first, *others = [operation for operation in operations(block) if operation.type in WRITES]
    assert refusable.op == first.type
    assert set(by_type(block, "Cholesky")) <= before(first)
    for write in others:
        assert first in before(write)


def test_a_write_that_may_be_refused_ends_a_block_that_has_written():
    a, three, six = tf.Variable(X), tf.Variable(tf.zeros([3])), tf.Variable(tf.zeros([3]))
    values = tf.constant([1.0, -1.0, 2.0, 3.0])

    def region():
        a.assign_add(X)
        three.assign_add(positive(values))
        six.assign_add(positive(values))

    first, second, third = blocks_of(graph_of(region))
    assert first.reason == second.reason == "a write that may be refused follows another"
    assert second.ops[0].op == third.ops[0].op == "AssignAddVariableOp"


def test_a_write_to_a_variable_of_any_shape_may_be_refused():
    free = tf.Variable(tf.zeros([3]), shape=tf.TensorShape(None))

    def region():
        free.assign_add(tf.ones([3]))

    block = only_block(region)
    assert [op.fallible for op in block.ops if op.kind is Kind.WRITE] == [True]


def test_an_op_on_a_value_of_unknown_length_may_fail_though_its_result_has_a_known_one():
    values = tf.constant([1.0, -1.0, 2.0, 3.0])
    block = only_block(lambda: positive(values) + tf.ones([3]))
    assert block.steps[-1].specs[0].shape == (3,)
    assert block.ops[-1].fallible


def test_what_cannot_fail_does_not_hold_a_write_up():
    variable = tf.Variable(X)

    def region():
        variable.assign_add(X)
        return tf.sin(X) * 2.0

    block = only_block(region)
    (write,) = [operation for operation in operations(block) if operation.type in WRITES]
    assert {operation.type for operation in before(write)}.isdisjoint({"Sin", "Mul"})


def test_a_fallible_op_runs_even_if_nobody_wants_its_value():
    def region():
        tf.linalg.cholesky(X)
        return tf.sin(X)

    block = only_block(region)
    (cholesky,) = by_type(block, "Cholesky")
    assert cholesky in block.lowered.control


def test_a_write_follows_the_reads_before_it_and_precedes_those_after_it():
    variable, other = tf.Variable(X), tf.Variable(X)

    def region():
        first = variable.read_value()
        untouched = other.read_value()
        variable.assign(first + untouched)
        second = variable.read_value()
        variable.assign_sub(second)
        return first, second, variable.read_value()

    block = only_block(region)
    first, untouched, second, third = by_type(block, "ReadVariableOp")
    write, subtract = [operation for operation in operations(block) if operation.type in WRITES]
    assert first in before(write)
    assert write in before(second)
    assert second in before(subtract)
    assert write in before(subtract)
    assert subtract in before(third)
    assert write not in before(first)
    assert subtract not in before(untouched)


def test_every_write_runs_without_any_output():
    variable, one = tf.Variable(tf.zeros([4, 4])), tf.ones([4, 4])

    def region():
        variable.assign_add(one)
        variable.assign_add(one)

    block = only_block(region)
    assert variable.numpy().max() == 2  # it was recorded
    assert function_of(block, frozenset())(feeds_of(run_of(block, [one]))) == []
    np.testing.assert_array_equal(variable, 4 * one)


def failing_block():
    """A block of two writes around a gather whose index is fed; and its variables."""
    a, b = tf.Variable(X), tf.Variable(X)

    def region(index):
        a.assign_add(X)
        row = tf.gather(X, index)
        b.assign_add(X)
        return row

    block = only_block(region, (tf.constant([0, 1]),), (tf.constant([2, 1]),))
    return block, a, b


@pytest.mark.parametrize("executor", ["", "SINGLE_THREADED_EXECUTOR"])
def test_a_failed_block_changed_nothing(executor, monkeypatch):
    monkeypatch.setattr(graphs, "EXECUTORS", (executor,))
    block, a, b = failing_block()
    outputs = frozenset(flat for flat in range(block.flat) if block.owners[flat][0].kind is Kind.PURE)
    function = function_of(block, outputs)
    good = [tf.constant([3, 3]) if spec.dtype == 3 else X for spec in block.params]
    bad = [tf.constant([0, 99]) if spec.dtype == 3 else X for spec in block.params]
    before_a, before_b = a.numpy(), b.numpy()
    for _ in range(20):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"indices\[1\] = 99"):
            function(bad)
    np.testing.assert_array_equal(a, before_a)
    np.testing.assert_array_equal(b, before_b)
    function(good)
    assert function.executor == executor
    np.testing.assert_array_equal(a, before_a + X)
    np.testing.assert_array_equal(b, before_b + X)


def write_rows(op, variables, rows):
    """Call a write of rows: of the first variable, with the others as its slots."""
    nested = "ScatterNd" in op
    handles = iter(variable.handle for variable in variables)
    given = {
        "indices": tf.stack([rows, [0, 1, 2]], axis=1) if nested else rows,
        "updates": X[1:, 0] if nested else X[1:],
        "grad": X[1:],
    }
    arguments = {
        arg.name: next(handles)
        if arg.type == tf.resource.as_datatype_enum
        else given.get(arg.name, tf.constant(0.1))
        for arg in op_def(op).input_arg
    }
    getattr(tf.raw_ops, op)(**arguments)


@pytest.mark.parametrize("bad", [-1, 4])
@pytest.mark.parametrize("op", sorted(opdefs._INDEXED))
def test_a_write_of_rows_out_of_bounds_writes_none(op, bad):
    variables = [tf.Variable(tf.abs(X) + number) for number in (1, 2, 3)]

    def region(rows):
        variables[2].assign_add(X)
        write_rows(op, variables, rows)

    good = tf.constant([0, 2, 3])
    block = only_block(region, (good,), (tf.constant([3, 2, 1]),))
    assert sum(op.kind is Kind.WRITE for op in block.ops) == 2
    function = function_of(block, frozenset())
    for variable in variables:
        variable.assign(0.1 + tf.random.stateless_uniform([4, 4], [1, 2]))
    start = [variable.numpy().copy() for variable in variables]
    (row_spec,) = [spec for spec in block.params if spec.dtype == 3]
    feeds = [good if spec is row_spec else X for spec in block.params]
    with pytest.raises(tf.errors.InvalidArgumentError):
        function([tf.constant([0, 2, bad]) if spec is row_spec else X for spec in block.params])
    np.testing.assert_array_equal(variables, start)
    function(feeds)
    compiled = [variable.numpy().copy() for variable in variables]
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    region(good)
    np.testing.assert_array_equal(compiled, variables)
    assert not np.array_equal(compiled[0], start[0])


def test_rows_that_a_write_has_made_end_the_block():
    table, rows = tf.Variable(X), tf.Variable([0, 3])

    def region():
        table.assign_add(X)
        rows.assign(3 - rows)
        table.scatter_sub(tf.IndexedSlices(X[:2], rows.read_value()))

    first, second = blocks_of(graph_of(region, (), ()))
    assert first.reason == "an effect's result feeds a fallible op"
    assert [op.op for op in second.ops] == ["ResourceScatterSub"]


def test_several_writes_of_rows_of_one_variable_are_one_block():
    table, slot = tf.Variable(X), tf.Variable(X)

    def region():
        rows = tf.gather(tf.constant([3, 1, 0]), [0, 2])
        slot.assign(slot * 0.9)
        slot.scatter_add(tf.IndexedSlices(X[:2], rows))
        table.scatter_sub(tf.IndexedSlices(X[:2], rows))
        table.scatter_sub(tf.IndexedSlices(X[:2], rows))

    assert sum(op.kind is Kind.WRITE for op in only_block(region).ops) == 4


def test_each_executor_is_tried_and_one_is_kept():
    block, _, _ = failing_block()
    function = function_of(
        block, frozenset(f for f in range(block.flat) if block.owners[f][0].kind is Kind.PURE)
    )
    good = [tf.constant([3, 3]) if spec.dtype == 3 else X for spec in block.params]
    used = []
    for _ in range(20):
        function(good)
        used.append(function.executor)
    assert set(used[:8]) == set(graphs.EXECUTORS)
    assert len(set(used[8:])) == 1


# -- the same numbers ------------------------------------------------------------------------------------------------
def both(block, feeds, variables):
    """The block's values and the variables, op by op and compiled, from the same start."""
    start = [variable.numpy() for variable in variables]
    run = run_of(block, feeds)
    truth = run_eagerly(run, feeds_of(run))
    eager = [variable.numpy() for variable in variables]
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    results = function_of(block, run.outputs)(feeds_of(run_of(block, feeds)))
    compiled = [variable.numpy() for variable in variables]
    flats = sorted(run.outputs)
    return [(truth[flat], result) for flat, result in zip(flats, results, strict=True)], eager, compiled


STATEMENTS = [
    lambda s: s["a"].assign_add(s["x"]),
    lambda s: s["b"].assign_sub(s["x"]),
    lambda s: s["a"].assign(s["b"].read_value()),
    lambda s: s.update(x=tf.sin(s["x"])),
    lambda s: s.update(x=s["a"] * s["x"]),
    lambda s: s.update(x=tf.matmul(s["x"], s["b"])),
    lambda s: s.update(x=tf.gather(s["x"], s["index"])),
    lambda s: s.update(y=tf.reduce_sum(s["x"], 0)),
    lambda s: s.update(x=s["x"] + s["y"]),
    lambda s: s.update(x=tf.nn.softmax(s["x"])),
]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(range(len(STATEMENTS))), min_size=1, max_size=12))
def test_any_program_of_reads_writes_and_fallible_ops(program):
    a, b = tf.Variable(X), tf.Variable(0.5 * X)
    index = tf.constant([3, 2, 1, 0])

    def region():
        state = {"a": a, "b": b, "x": X, "y": tf.reduce_sum(X), "index": index}
        for number in program:
            STATEMENTS[number](state)

    values = [a.numpy(), b.numpy()]
    graph = graph_of(region)
    for variable, value in zip((a, b), values, strict=True):
        variable.assign(value)
    made = {}
    for block in blocks_of(graph):
        assert block.eager is None
        feeds = []
        for rule, spec in zip(block.param_rules, block.params, strict=True):
            if rule is not None and rule.node is not None and (rule.node, rule.out) in made:
                feeds.append(made[rule.node, rule.out])
            else:
                feeds.append(index if spec.dtype == 3 else X)
        pairs, eager, compiled = both(block, feeds, (a, b))
        assert all(same_bits(one, other) for one, other in pairs)
        assert all(np.array_equal(one, other) for one, other in zip(eager, compiled, strict=True))
        writes = [operation for operation in operations(block) if operation.type in WRITES]
        for write in writes:
            assert set(by_type(block, "GatherV2")) <= before(write)
        run = run_of(block, feeds)
        for (node, out), (_, value) in zip(
            [block.owners[flat] for flat in sorted(run.outputs)], pairs, strict=True
        ):
            made[node, out] = value


def test_a_whole_training_step():
    weights, bias = tf.Variable(X), tf.Variable(tf.zeros([4]))

    def region(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.softmax(tf.tanh(tf.matmul(batch, weights) + bias)) ** 2)
        for variable, gradient in zip((weights, bias), tape.gradient(loss, [weights, bias]), strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss

    block = only_block(region, (tf.identity(X),), (tf.identity(X),))
    feeds = [tf.constant(0.5) if spec.shape == () else X for spec in block.params]
    pairs, eager, compiled = both(block, feeds, (weights, bias))
    assert len(pairs) > 10
    assert all(same_bits(one, other) for one, other in pairs)
    assert all(np.array_equal(one, other) for one, other in zip(eager, compiled, strict=True))


def test_outputs_come_in_ascending_order_and_variants_are_kept():
    block = only_block(lambda: tf.cos(tf.sin(X)))
    both_outputs = function_of(block, frozenset({1, 0}))
    assert function_of(block, frozenset({0, 1})) is both_outputs
    sine, cosine = both_outputs([X])
    np.testing.assert_array_equal(sine, tf.sin(X))
    np.testing.assert_array_equal(cosine, tf.cos(tf.sin(X)))
    (only,) = function_of(block, frozenset({1}))([X])
    np.testing.assert_array_equal(only, cosine)
    assert set(block.variants) == {frozenset({0, 1}), frozenset({1})}


def test_a_fed_value_and_a_fed_shape():
    def region(scale, shape):
        return tf.reshape(tf.raw_ops.Mul(x=X, y=scale), shape)

    block = only_block(region, (0.5, tf.constant([2, 8])), (0.25, tf.constant([2, -1])))
    feeds = {1: [X, tf.constant(3.0)], 3: [tf.constant([8, 2])]}
    given_feeds = [feeds[spec.dtype].pop(0) for spec in block.params]
    (result,) = function_of(block, frozenset({block.flat - 1}))(given_feeds)
    np.testing.assert_array_equal(result, tf.reshape(X * 3.0, [8, 2]))

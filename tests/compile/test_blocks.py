"""Blocks: where they begin and end, what Python must do for them, and what the graph computes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tracing import blocks_of, graph_of, ops, trace

from terra_cx.compile.blocks import CONST, FEED, KNOWN, LASTING, LIST, LOCAL, PARAM, RESOURCE, build_block
from terra_cx.compile.lowering import lower
from terra_cx.tf.opdefs import Kind
from terra_cx.trace.tracegraph import GAP_SECONDS, TIMED

X = tf.constant(np.arange(36, dtype="float32").reshape(6, 6))
Y = tf.ones([6, 6])


def codes(step):
    return [check[0] for check in step.checks]


def one_block(function, *arguments):
    (block,) = blocks_of(graph_of(function, *arguments))
    return block


# -- extent ----------------------------------------------------------------------------------------------------------
def test_a_straight_region_is_one_block():
    block = one_block(lambda: tf.exp(tf.matmul(tf.sin(X), Y)), (), ())
    assert ops(block.nodes) == ["Sin", "MatMul", "Exp"]
    assert [step.op for step in block.steps] == ["Sin", "MatMul", "Exp"]
    assert block.reason == "region end"
    assert block.eager is None
    assert (block.flat, block.positions) == (3, 3)
    assert [step.position for step in block.steps] == [0, 1, 2]


def test_a_block_ends_at_a_fetch():
    def region():
        value = tf.reduce_sum(tf.sin(X))
        float(value)
        return tf.cos(X)

    first, second = blocks_of(graph_of(region))
    assert first.reason == "fetch"
    assert (ops(first.nodes)[-1], ops(second.nodes)) == ("Sum", ["Cos"])


def test_an_op_of_the_owner_is_a_block_of_its_own():
    def region():
        value = tf.py_function(lambda a: a.numpy() + 1, [tf.sin(X)], tf.float32)
        return tf.cos(value)

    before, owner, after = blocks_of(graph_of(region))
    assert ops(owner.nodes) == ["EagerPyFunc"]
    assert (before.reason, owner.ops, owner.lowered) == ("owner", [], None)
    assert codes(after.steps[0]) == [PARAM]


def test_a_block_follows_the_hottest_way():
    def region(choice):
        value = tf.abs(X)
        value = tf.sin(value) if choice else tf.cos(value)
        return tf.exp(value)

    graph = graph_of(region, (True,), (False,), (False,))
    first = blocks_of(graph)[0]
    assert ops(first.nodes) == ["Abs", "Cos"]
    assert first.reason == "wiring varies"
    graph.merge(trace(region, True))
    graph.merge(trace(region, True))
    assert ops(blocks_of(graph)[0].nodes) == ["Abs", "Sin"]


@pytest.fixture
def host_time(monkeypatch):
    """The graph of a sine and a cosine, where it counts how long Python is busy between them."""
    monkeypatch.setattr("terra_cx.trace.tracegraph.GAP_SECONDS", GAP_SECONDS)

    def region():
        value = tf.sin(X)
        return tf.cos(value)

    return graph_of(region, (), ())


def test_long_host_time_ends_a_block_and_makes_it_prompt(host_time):
    graph = host_time
    sine, _ = graph
    sine.gap = 2 * GAP_SECONDS
    first, second = blocks_of(graph)
    assert (ops(first.nodes), first.reason, first.prompt) == (["Sin"], "host time", True)
    assert not second.prompt


@pytest.mark.parametrize(("busy", "blocks"), [(GAP_SECONDS / 2, 1), (2 * GAP_SECONDS, 2)])
def test_host_time_that_only_traces_had_cuts_nothing_any_more(busy, blocks, host_time):
    graph = host_time
    sine, _ = graph
    sine.gap = 9 * GAP_SECONDS
    version = graph.version
    for _ in range(TIMED - 1):
        graph.busy(sine, busy)
        assert graph.version == version
    graph.busy(sine, busy)
    assert (graph.version > version) == (blocks == 1)
    assert len(blocks_of(graph)) == blocks


def test_a_fallible_op_does_not_join_the_effect_that_it_depends_on():
    variable = tf.Variable(X)
    index = tf.constant([0, 1])

    def region():
        variable.assign_add(Y)
        value = variable.read_value()
        return tf.gather(value, index)

    first, second = blocks_of(graph_of(region))
    assert first.reason == "an effect's result feeds a fallible op"
    assert ops(second.nodes) == ["GatherV2"]
    assert ops(first.nodes) == ["AssignAddVariableOp", "ReadVariableOp", *ops(first.nodes)[2:]]


def test_a_draw_does_not_follow_an_op_that_may_fail():
    index = tf.constant([0, 1])

    def region():
        value = tf.gather(X, index)
        return value * tf.random.normal([2, 6], seed=3)

    first, second = blocks_of(graph_of(region))
    assert (ops(first.nodes)[-1], first.reason) == ("GatherV2", "a draw follows an op that may fail")
    assert second.draws


def test_a_gradient_does_not_join_the_result_of_an_effect():
    variable, count = tf.Variable(X), tf.Variable(0.0)

    def region():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(tf.matmul(X, variable)))
        count.assign_add(1.0)
        return tape.gradient(loss, variable), count + 1.0

    def reading():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(tf.matmul(X, variable)))
        count.assign_add(1.0)
        return tape.gradient(loss, variable, output_gradients=count + 1.0)

    assert len(blocks_of(graph_of(region))) == 1
    first, second = blocks_of(graph_of(reading))
    assert first.reason == "a gradient follows an effect's result"
    assert second.nodes[0].kind is Kind.GRADIENT


def test_an_infallible_op_may_join_the_effect_that_it_depends_on():
    variable = tf.Variable(X)

    def region():
        variable.assign_add(Y)
        return variable * 2.0

    block = one_block(region)
    assert ops(block.nodes) == ["AssignAddVariableOp", "ReadVariableOp", "Mul"]
    assert [op.tainted for op in block.ops] == [False, True, True]


def test_a_stale_block_is_told_from_its_revisions():
    graph = graph_of(lambda scale: tf.raw_ops.Mul(x=tf.sin(X), y=scale), (0.5,), (0.5,))
    (block,) = blocks_of(graph)
    assert block.revisions == block.built_from
    graph.merge(trace(lambda scale: tf.raw_ops.Mul(x=tf.sin(X), y=scale), 0.5))  # other lines: other nodes
    assert block.nodes[-1].rev == 0
    node = block.nodes[0]
    graph.cut(node, "fetch")
    assert block.revisions != block.built_from


# -- what is checked, and what is computed ---------------------------------------------------------------------------
def test_checks_of_each_kind_of_argument():
    variable = tf.Variable(X)
    index = tf.constant([1, 0])

    def region(scale):
        value = tf.matmul(variable, X)
        value = tf.raw_ops.Mul(x=value, y=scale)
        value = tf.raw_ops.AddV2(x=value, y=7.0)
        value = tf.gather(value, index)
        return tf.concat([value, value], 0)

    block = one_block(region, (0.5,), (0.25,))
    steps = {step.op: step for step in block.steps}
    assert codes(steps["ReadVariableOp"]) == [RESOURCE]
    assert codes(steps["MatMul"]) == [LOCAL, PARAM]
    assert codes(steps["Mul"]) == [LOCAL, FEED]
    assert codes(steps["AddV2"]) == [LOCAL, CONST]
    assert codes(steps["GatherV2"])[:2] == [LOCAL, KNOWN]
    assert codes(steps["ConcatV2"])[0] == LIST
    assert [check[0] for check in steps["ConcatV2"].checks[0][1]] == [LOCAL, LOCAL]
    assert [handle is variable.handle for handle in block.resources] == [True]
    assert len(block.params) == 2  # the batch, and the float that changes


def test_a_tensor_used_twice_is_one_parameter_whose_second_use_is_checked():
    block = one_block(lambda: tf.add(tf.matmul(X, Y), X))
    assert len(block.params) == 2
    first, second = (block.steps[index].checks for index in (0, 1))
    assert first[0][:3] == (PARAM, 0, True)
    assert second[1][:3] == (PARAM, 0, False)


def test_values_of_earlier_blocks_come_in_as_parameters():
    def region():
        value = tf.sin(X)
        total = tf.reduce_sum(value)
        float(total)
        return value * total

    _, second = blocks_of(graph_of(region))
    assert codes(second.steps[0]) == [PARAM, PARAM]
    assert [spec.shape for spec in second.params] == [(6, 6), ()]


def test_known_values_are_answered_and_not_computed():
    block = one_block(lambda: tf.reshape(tf.sin(X), [tf.shape(X)[0] * 6]))
    kinds = {step.op: step.kind for step in block.steps}
    assert kinds["Shape"] is kinds["StridedSlice"] is Kind.KNOWN
    assert [op.op for op in block.ops] == ["Sin", "Reshape"]
    shape = next(step for step in block.steps if step.op == "Shape")
    assert shape.values[0].numpy().tolist() == [6, 6]


def test_a_draw_comes_in_as_a_parameter():
    block = one_block(lambda: tf.random.normal([6], seed=3) * 2.0)
    draw = next(step for step in block.steps if step.kind is Kind.DRAW)
    assert list(block.draws) == [draw.base]
    assert all(op.op != "RandomStandardNormal" for op in block.ops)


def test_a_gradient_is_one_step_and_many_ops():
    variable = tf.Variable(X)

    def region():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(tf.matmul(X, variable)))
        variable.assign_sub(tape.gradient(loss, variable))

    block = one_block(region)
    step = next(step for step in block.steps if step.kind is Kind.GRADIENT)
    assert step.ops[1] - step.ops[0] == len(step.node.call.inner) > 2
    assert [op.op for op in block.ops[slice(*step.ops)]] == [call.op for call in step.node.call.inner]
    assert step.implicit == ()
    assert block.steps[-1].op == "AssignSubVariableOp"
    assert block.steps[-1].position == step.position + step.node.width


def test_a_gradient_in_a_later_block_takes_what_it_needs_from_the_earlier_ones():
    variable = tf.Variable(X)

    def region():
        with tf.GradientTape() as tape:
            value = tf.matmul(X, variable)
            loss = tf.reduce_sum(value * value)
        float(loss)
        return tape.gradient(loss, variable)

    first, second = blocks_of(graph_of(region))
    (step,) = [step for step in second.steps if step.kind is Kind.GRADIENT]
    assert step.implicit
    for number, node, out, *_ in step.implicit:
        assert node in first.nodes
        assert out in node.needed
        assert number < len(second.params)


def test_every_flat_output_has_an_owner_and_a_place():
    block = one_block(lambda: tf.math.top_k(tf.split(X, 2)[0], 2))
    assert len(block.owners) == len(block.places) == block.flat
    assert block.places == [(0, 0), (0, 1), (1, 0), (1, 1)]


# -- shapes ----------------------------------------------------------------------------------------------------------
def test_a_shape_that_only_the_value_tells_is_not_claimed():
    def region():
        return tf.abs(tf.boolean_mask(X, X[:, 0] > 7.0)), tf.sin(X)

    blocks = blocks_of(graph_of(region))
    specs = {step.op: step.specs[0].shape for block in blocks for step in block.steps}
    assert specs["Where"] is specs["Abs"] is None
    assert specs["Sin"] == (6, 6)


def test_a_guarded_shape_is_claimed_and_a_fed_one_is_not():
    def region(shape):
        return tf.reshape(X, shape)

    same = one_block(region, (tf.constant([2, 18]),), (tf.constant([2, 18]),))
    assert same.steps[-1].specs[0].shape == (2, 18)
    graph = graph_of(region, (tf.constant([2, 18]),), (tf.constant([2, -1]),))
    (node,) = graph
    block = build_block(graph, node, 0, lower)
    assert block.steps[0].specs[0].shape is None
    assert block.eager is None


def test_an_op_that_graph_mode_refuses_leaves_the_block_to_run_op_by_op(monkeypatch):
    from terra_cx.tf.graphs import GraphBuilder

    def refuse(*_):
        raise ValueError("no kernel\nmore")

    monkeypatch.setattr(GraphBuilder, "op", refuse)
    block = one_block(lambda: tf.sin(X))
    assert block.eager == "ValueError: no kernel"
    assert block.lowered is None
    assert block.steps[0].specs[0].shape is None  # nothing was inferred, so nothing is claimed


@pytest.mark.parametrize("count", [3, 8])
def test_outputs_are_numbered_in_the_order_of_the_steps(count):
    def region():
        value = X
        for _ in range(count):
            value = tf.sin(value)
        return value

    graph = graph_of(region)
    block = blocks_of(graph)[0]
    assert [step.base for step in block.steps] == list(range(len(block.steps)))


# -- what a run returns ----------------------------------------------------------------------------------------------
def test_outputs_grow_at_once_and_shrink_to_what_is_compiled():
    block = one_block(lambda: tf.exp(tf.sin(X)), (), ())
    small, large, other = frozenset({1}), frozenset({0, 1}), frozenset({0})
    block.ask(small)
    assert block.outputs == small
    block.variants[small] = block.variants[other] = "compiled"
    for _ in range(3):
        block.ask(large)
        assert block.outputs == large
        for _ in range(LASTING - 1):
            block.ask(small)
        assert block.outputs == large
        block.ask(small)
        assert block.outputs == small


def test_outputs_that_are_asked_for_now_and_then_stay():
    block = one_block(lambda: tf.exp(tf.sin(X)), (), ())
    block.variants[frozenset()] = block.variants[frozenset({1})] = "compiled"
    for number in range(5 * LASTING):
        block.ask(frozenset({0, 1} if number % (LASTING // 2) == 0 else {1}))
        assert block.outputs == frozenset({0, 1})


def test_outputs_do_not_shrink_to_what_would_have_to_be_compiled():
    block = one_block(lambda: tf.exp(tf.sin(X)), (), ())
    block.ask(frozenset({0, 1}))
    for _ in range(3 * LASTING):
        block.ask(frozenset({1}))
    assert block.outputs == frozenset({0, 1})

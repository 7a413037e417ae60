"""Relaxed and folded graphs: one node for all sizes, a backward pass like its forward pass, recursions as loops."""

from __future__ import annotations

import tensorflow as tf
from tracing import graph_of, ops, relaxed, trace, visit

from terra_cx.tf.opdefs import Kind
from terra_cx.trace import tracegraph
from terra_cx.trace.keys import BACKWARD
from terra_cx.trace.rules import Need
from terra_cx.trace.tracegraph import TraceGraph

LOOP = 7


def rows(number):
    return tf.ones([number, 3])


def merged(region, *values):
    """A relaxed, folded graph of one region per value, and what the last merge changed."""
    graph = TraceGraph(relaxed=True, folded=True)
    for value in values:
        result = graph.merge(relaxed(region, value))
    return graph, result


def test_the_ninth_shape_of_an_op_is_too_many():
    def region(value):
        return tf.tanh(value)

    graph = graph_of(region, *((rows(number),) for number in range(1, tracegraph.FORMS + 1)))
    assert len(graph) == tracegraph.FORMS
    result = graph.merge(trace(region, rows(30)))
    assert result.outgrown.op == "Tanh"
    assert not result.nothing_new
    assert len(graph) == tracegraph.FORMS  # nothing was merged


def test_there_may_be_more_shapes_where_new_ones_are_rare(monkeypatch):
    def region(value):
        return tf.tanh(value)

    graph = TraceGraph()
    each, few = tracegraph._EACH, tracegraph.FORMS
    for number in range(1, few + 4):
        for _ in range(2 * each):
            assert graph.merge(trace(region, rows(number))).outgrown is None
    assert graph.most_shapes == 2 * (few + 3)
    monkeypatch.setattr(graph, "max_nodes", 2 * len(graph) - 1)  # no room for so many
    assert graph.most_shapes == few
    monkeypatch.undo()
    graph.regions = 100 * each
    assert graph.most_shapes == 4 * few


def test_shapes_that_were_seen_are_not_counted_again():
    def region(value):
        return tf.tanh(value)

    graph = graph_of(region, *((rows(1 + number % 8),) for number in range(24)))
    assert graph.merge(trace(region, rows(8))).nothing_new


def test_a_node_of_a_relaxed_graph_is_one_for_all_sizes():
    def region(value):
        return tf.matmul(value, tf.ones([3, 5]))

    graph, result = merged(region, rows(2), rows(4))
    (node,) = [node for node in graph if node.call.op == "MatMul"]
    assert result.widened
    assert [spec.shape for spec in node.call.outputs] == [(None, 5)]
    assert node.rules[0].spec.shape == (None, 3)
    assert node.rules[1].spec.shape == (3, 5)
    assert graph.merge(relaxed(region, rows(9))).nothing_new
    other_rank = graph.merge(relaxed(lambda value: region(value[0]), rows(9)[tf.newaxis]))
    assert other_rank.nodes


def test_what_follows_from_shapes_is_derived_once_they_differ():
    def region(value):
        return tf.reshape(value, [tf.shape(value)[0] * 3])

    graph, _ = merged(region, rows(2))
    shapes = [node for node in graph if node.kind is Kind.KNOWN]
    assert ops(shapes)[0] == "Shape"
    graph.merge(relaxed(region, rows(4)))
    assert {node.kind for node in shapes} == {Kind.DERIVED}
    (reshape,) = [node for node in graph if node.call.op == "Reshape"]
    assert reshape.rules[1].need is Need.LOCAL
    assert reshape.rules[1].node in shapes
    assert graph.merge(relaxed(region, rows(6))).nothing_new


def test_what_does_not_differ_stays_known():
    def region(value):
        return tf.reduce_sum(value, [tf.constant(2) - 1])

    graph, _ = merged(region, rows(2), rows(4), rows(5))
    assert {node.call.op: node.kind for node in graph} == {
        "Sub": Kind.KNOWN,
        "Pack": Kind.KNOWN,
        "Sum": Kind.PURE,
    }


def test_a_small_batch_is_data_in_a_relaxed_graph():
    def region(value):
        return tf.one_hot(value, 4)

    (call,) = [call for call in relaxed(region, tf.constant([[1, 2], [3, 0]])).calls if call.op == "OneHot"]
    assert type(call.inputs[0]).__name__ == "Ext"
    (call,) = [call for call in trace(region, tf.constant([[1, 2], [3, 0]])).calls if call.op == "OneHot"]
    assert type(call.inputs[0]).__name__ == "Known"


def recurrent(rounds):
    """A loop of so many rounds under a tape."""
    weight = recurrent.weight
    with tf.GradientTape() as tape:
        value = tf.ones([1, 3])
        for _ in range(rounds):
            visit(LOOP)
            value = tf.tanh(tf.matmul(value, weight))
        loss = tf.reduce_sum(value)
    recurrent.gradient = tape.gradient(loss, weight)


recurrent.weight = tf.Variable(tf.ones([3, 3]) * 0.3)


def test_the_backward_pass_of_a_loop_is_a_loop():
    graph = TraceGraph(folded=True)
    graph.rolled.add(LOOP)
    for rounds in (2, 3, 4, 5, 6):
        graph.merge(trace(recurrent, rounds, options={"live_tapes": True}))
    inside = [
        node for node in graph if (LOOP, 1) in node.call.site.loops or (LOOP, 0) in node.call.site.loops
    ]
    backward = [node for node in inside if BACKWARD in node.call.site.path]
    assert ops(backward).count("TanhGrad") == 1
    assert graph.merge(trace(recurrent, 11, options={"live_tapes": True})).nodes == 0


def test_a_recorded_backward_pass_gives_eagers_gradient():
    trace(recurrent, 3)
    expected = recurrent.gradient.numpy().tobytes()
    trace(recurrent, 3, options={"live_tapes": True})
    assert recurrent.gradient.numpy().tobytes() == expected


def test_sums_of_any_length_are_the_owners():
    graph = TraceGraph(folded=True)
    graph.rolled.add(LOOP)
    for rounds in (2, 3, 4, 5, 6, 7):
        graph.merge(trace(recurrent, rounds, options={"live_tapes": True}))
    sums = [node for node in graph if node.call.op == "AddN"]
    assert [node.kind for node in sums].count(Kind.OWNER) == 1
    before = len(graph)
    graph.merge(trace(recurrent, 9, options={"live_tapes": True}))
    assert len(graph) == before


def test_all_depths_of_a_recursion_share_nodes():
    def deep(value, depth):
        return value if depth == 0 else tf.tanh(deep(value, depth - 1))

    graph = TraceGraph(folded=True)
    for depth in (1, 3):
        graph.merge(trace(deep, rows(2), depth))
    assert ops(graph) == ["Tanh"]
    assert graph_of(deep, (rows(2), 3)).merge(trace(deep, rows(2), 3)).nothing_new
    assert len(graph_of(deep, (rows(2), 3))) == 3


def test_histories_of_a_gradient_are_counted(monkeypatch):
    monkeypatch.setattr(tracegraph, "HISTORIES", 2)
    weight = tf.Variable(tf.ones([3, 3]))

    def region(way):
        with tf.GradientTape() as tape:
            value = tf.matmul(rows(2), weight)
            value = [tf.sin, tf.cos, tf.tanh, tf.exp][way](value)
        tape.gradient(value, weight)

    graph = TraceGraph()
    assert [graph.merge(trace(region, way)).endless is not None for way in (0, 1, 0, 1, 2, 3)] == [
        False, False, False, False, True, True,
    ]  # fmt: skip

"""What keeps the ways of different shapes apart, and where they meet."""

from __future__ import annotations

import tensorflow as tf
from tracing import graph_of, ops, trace

from terra_cx.trace.keys import freeze

SHORT, LONG = tf.ones([2, 3]), tf.ones([5, 3])


def test_what_stands_between_ops_of_several_shapes_belongs_to_one_way():
    weights = [tf.Variable(tf.ones([3, 3])) for _ in range(3)]

    def region(value):
        for weight in weights:
            value = tf.tanh(value)
            value = tf.matmul(value, weight)
        return value

    graph = graph_of(region, (SHORT,), (LONG,), (SHORT,), (LONG,))
    assert ops(graph).count("ReadVariableOp") == 6
    assert set(map(len, (node.succ for node in graph))) == {0, 1}  # they part at the region's first op
    assert graph.merge(trace(region, SHORT)).nothing_new
    assert graph.merge(trace(region, LONG)).nothing_new


def test_far_from_ops_of_several_shapes_all_ways_meet():
    counter = tf.Variable(0.0)

    def region(value):
        total = tf.reduce_sum(tf.tanh(value))
        for _ in range(40):
            total = tf.sin(total)
        counter.assign_add(total)

    graph = graph_of(region, (SHORT,), (LONG,), (SHORT,), (LONG,))
    assert ops(graph).count("Tanh") == 2
    assert ops(graph).count("Sin") == 40
    assert ops(graph).count("AssignAddVariableOp") == 1


def test_a_way_that_comes_back_takes_the_nodes_it_has():
    """Nobody knows in the first region which places will have several forms."""
    weight = tf.Variable(tf.ones([3, 3]))

    def region(value):
        return tf.matmul(tf.tanh(value), weight)

    graph = graph_of(region, (SHORT,))
    nodes = list(graph)
    graph.merge(trace(region, LONG))
    assert graph.merge(trace(region, SHORT)).nothing_new
    assert list(graph)[: len(nodes)] == nodes
    assert [node.succ for node in nodes] == [{nodes[1]: 2}, {nodes[2]: 2}, {}]


def test_variables_make_no_forms():
    """One line that goes through the layers is no line of several forms."""
    weights = [tf.Variable(tf.eye(3)) for _ in range(3)]

    def region(number):
        return tf.sin(tf.reduce_sum(weights[number] * 2.0))

    graph = graph_of(region, (0,), (1,), (2,))
    assert ops(graph).count("ReadVariableOp") == 3
    assert ops(graph).count("Sin") == 1


def test_freeze_tells_apart_what_is_equal_and_differs():
    assert freeze([1, [2.0, "a"]]) == freeze((1, (2.0, "a")))
    assert len({freeze(1), freeze(1.0), freeze(True)}) == 3
    assert freeze(0.0) != freeze(-0.0)
    assert hash(freeze(({"a": 1}, [1]))) == hash(freeze(({"a": 1}, [1])))
    assert freeze(tf.float32) == freeze(tf.float32) != freeze(tf.float64)

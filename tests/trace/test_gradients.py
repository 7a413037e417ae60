"""Gradients whose tape's ops widen afterwards."""

from __future__ import annotations

import tensorflow as tf
from tracing import graph_of, ops, trace

from terra_cx.tf.opdefs import Kind
from terra_cx.trace.gradients import is_unmatched
from terra_cx.trace.rules import Need

X = tf.reshape(tf.range(9.0), [3, 3])


def gradients(graph):
    return [node for node in graph if node.kind is Kind.GRADIENT]


def test_a_gradient_is_known_under_wider_rules_without_another_trace():
    weight = tf.Variable(tf.eye(3))

    def region(choice):
        with tf.GradientTape() as tape:
            first, second = tf.sin(X), tf.cos(X)
            loss = tf.reduce_sum(tf.matmul(first if choice else second, weight))
        return tape.gradient(loss, weight)

    graph = graph_of(region, (True,))
    (known,) = gradients(graph)
    before = known.signature
    graph.merge(trace(region, False))
    assert known.signature != before  # the product takes its operand from either now
    assert len(gradients(graph)) == 2
    for choice in (True, False, True):
        assert graph.merge(trace(region, choice)).nothing_new


def test_what_was_made_before_the_tape_makes_no_difference():
    weight = tf.Variable(tf.eye(3))

    def region(choice):
        first, second = tf.sin(X), tf.cos(X)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.matmul(first if choice else second, weight))
        return tape.gradient(loss, weight)

    graph = graph_of(region, (True,), (False,))
    assert len(gradients(graph)) == 1
    for choice in (True, False):
        assert graph.merge(trace(region, choice)).nothing_new


def test_a_constant_of_the_gradient_becomes_an_argument_where_its_guard_is_given_up():
    weight = tf.Variable(tf.eye(3))

    def region(index):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(weight, tf.constant([index]))))
        return tf.convert_to_tensor(tape.gradient(loss, weight))

    graph = graph_of(region, (0,))
    (known,) = gradients(graph)
    graph.merge(trace(region, 1))
    inner = [rule.need for rules in known.inner_rules for rule in rules]
    results = [rule.need for triple in known.results if isinstance(triple, tuple) for rule in triple if rule]
    assert Need.KNOWN not in inner + results or is_unmatched(known.signature)
    for index in (0, 1, 2):
        assert graph.merge(trace(region, index)).nothing_new


def test_what_gradient_code_has_read_is_no_gradient_for_other_values():
    """The gradient of a sum looks at the axis: once that varies, the trace of one axis says nothing of another."""
    weight = tf.Variable(tf.eye(3))

    def region(axis):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.reduce_sum(weight, axis=tf.constant(axis))))
        return tape.gradient(loss, weight)

    graph = graph_of(region, (0,), (1,))
    assert all(is_unmatched(node.signature) for node in gradients(graph))
    assert "Sum" in ops(graph)

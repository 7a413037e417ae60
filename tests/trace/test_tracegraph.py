"""Merging traces: equal ones add nothing, branches join, changed constants widen, varying loops roll."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tracing import graph_of, hot_path, ops, trace, visit

from terra_cx.tf.opdefs import Kind
from terra_cx.trace.rules import Need
from terra_cx.trace.tracegraph import TraceGraph

X = tf.constant(np.arange(36, dtype="float32").reshape(6, 6))


def needs(node):
    return [rule.need for rule in node.rules]


# -- equal traces ----------------------------------------------------------------------------------------------------
def test_an_equal_trace_adds_nothing():
    variable = tf.Variable(X)

    def region(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.matmul(batch, variable)))
        variable.assign_sub(0.001 * tape.gradient(loss, variable))

    graph = TraceGraph()
    first = graph.merge(trace(region, tf.identity(X)))
    assert (first.nodes, first.edges, first.widened) == (len(graph), len(graph), 0)
    version = graph.version
    for _ in range(3):
        again = graph.merge(trace(region, tf.identity(X)))
        assert again.nothing_new
    assert graph.version == version
    assert graph.branch_nodes() == 0
    assert ops(hot_path(graph)) == ops(graph)
    assert hot_path(graph)[-1].ends == 4


def test_the_same_op_at_another_line_is_another_node():
    graph = graph_of(lambda: [tf.sin(X), tf.sin(X)])
    assert ops(graph) == ["Sin", "Sin"]

    def two_lines():
        tf.sin(X)
        tf.sin(X)

    assert ops(graph_of(two_lines)) == ["Sin", "Sin"]


def test_a_call_from_two_places_is_two_nodes():
    def helper(value):
        return tf.sin(value)

    def region():
        helper(X)
        return helper(X)

    graph = graph_of(region, (), ())
    assert ops(graph) == ["Sin", "Sin"]


def test_other_shapes_dtypes_and_attributes_are_other_nodes():
    def region(value, alpha):
        return tf.nn.leaky_relu(value, alpha=alpha)

    graph = graph_of(region, (X, 0.1), (X[:3], 0.1), (tf.cast(X, tf.float64), 0.1), (X, 0.2), (X, 0.1))
    assert ops(graph) == ["LeakyRelu"] * 4


def test_the_sign_of_a_zero_attribute_makes_another_node():
    graph = graph_of(lambda alpha: tf.nn.leaky_relu(X, alpha=alpha), (0.0,), (-0.0,))
    assert len(graph) == 2


def test_another_variable_is_another_node():
    a, b = tf.Variable(X), tf.Variable(X)

    def region(variable):
        variable.assign_add(X)

    assert ops(graph_of(region, (a,), (b,), (a,))) == ["AssignAddVariableOp"] * 2


# -- branches and joins ----------------------------------------------------------------------------------------------
def test_a_branch_joins_again():
    def region(choice):
        value = tf.abs(X)
        value = tf.sin(value) if choice else tf.cos(value)
        return tf.exp(value)

    graph = graph_of(region, (True,), (False,), (True,))
    assert ops(graph) == ["Abs", "Sin", "Exp", "Cos"]
    head, sine, exp, cosine = graph
    assert set(head.succ) == {sine, cosine}
    assert head.hottest() is sine
    assert set(sine.succ) == set(cosine.succ) == {exp}
    assert exp.rules[0].need is Need.TENSOR  # it comes from either
    assert exp.rules[0].sources == {sine, cosine}
    assert exp.joins({sine})
    assert exp.joins({cosine})
    assert not exp.joins({head})
    assert graph.branch_nodes() == 1


def test_k_branches_cost_on_the_order_of_k_nodes():
    count = 6

    def region(*choices):
        value = X
        value = tf.sin(value) if choices[0] else tf.cos(value)
        value = tf.sin(value) if choices[1] else tf.cos(value)
        value = tf.sin(value) if choices[2] else tf.cos(value)
        value = tf.sin(value) if choices[3] else tf.cos(value)
        value = tf.sin(value) if choices[4] else tf.cos(value)
        return tf.sin(value) if choices[5] else tf.cos(value)

    graph = TraceGraph()
    ways = [[bool(number >> bit & 1) for bit in range(count)] for number in range(2**count)]
    results = [graph.merge(trace(region, *way)) for way in ways]
    assert len(graph) == 2 * count
    settled = next(index for index in range(len(results)) if all(r.nothing_new for r in results[index:]))
    assert settled < len(ways)
    assert graph.merge(trace(region, *ways[37])).nothing_new


def test_an_optional_op():
    def region(extra):
        value = tf.abs(X)
        if extra:
            value = tf.sin(value)
        return tf.exp(value)

    graph = graph_of(region, (False,), (True,))
    head, exp, sine = graph
    assert set(head.succ) == {exp, sine}
    assert graph.merge(trace(region, False)).nothing_new
    assert graph.merge(trace(region, True)).nothing_new


# -- widening --------------------------------------------------------------------------------------------------------
def test_a_changed_float_is_widened_and_no_new_node():
    def region(scale):
        return tf.raw_ops.Mul(x=X, y=scale)

    graph = TraceGraph()
    graph.merge(trace(region, 0.5))
    (node,) = graph
    assert needs(node) == [Need.SHARED, Need.CONST]
    result = graph.merge(trace(region, 0.25))
    assert (result.nodes, result.widened) == (0, 1)
    assert needs(node) == [Need.SHARED, Need.FEED]
    assert node.rev == 1
    assert graph.merge(trace(region, 1e30)).nothing_new


def test_a_changed_float_under_a_tape_is_an_external_tensor_from_then_on():
    variable = tf.Variable(X)

    def region(scale):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.raw_ops.Mul(x=variable, y=scale))
        return tape.gradient(loss, variable)

    graph = TraceGraph()
    graph.merge(trace(region, 0.5))
    assert graph.merge(trace(region, 0.5)).nothing_new
    assert graph.merge(trace(region, 0.25)).widened == 1
    for scale in (0.5, 0.25, 4.0):
        assert graph.merge(trace(region, scale)).nothing_new
        np.testing.assert_array_equal(trace.last, tf.fill([6, 6], scale))


def test_a_guarded_index_that_changes():
    def region(index):
        return tf.gather(X, index)

    graph = TraceGraph()
    graph.merge(trace(region, tf.constant([0, 1])))
    node = next(node for node in graph if node.call.op == "GatherV2")
    assert needs(node)[1] is Need.KNOWN
    assert graph.merge(trace(region, tf.constant([0, 1]))).nothing_new
    assert graph.merge(trace(region, tf.constant([2, 1]))).widened == 1
    assert needs(node)[1] is Need.SHARED
    assert graph.merge(trace(region, tf.constant([5, 5]))).nothing_new


def test_a_known_op_whose_input_changes_is_computed_from_then_on():
    def region(number):
        return tf.zeros([3]) + tf.cast(number + 1, tf.float32)

    graph = TraceGraph()
    graph.merge(trace(region, tf.constant(1)))
    add = next(node for node in graph if node.call.op == "AddV2" and node.call.outputs[0].dtype == 3)
    assert add.kind is Kind.KNOWN
    graph.merge(trace(region, tf.constant(2)))
    assert add.kind is Kind.PURE
    graph.merge(trace(region, tf.constant(3)))
    assert graph.merge(trace(region, tf.constant(4))).nothing_new


def test_what_is_made_of_a_result_that_is_no_longer_known():
    """Such a result is a placeholder from then on: what follows it in a new place takes it as that, and is computed."""

    def region(number, twice):
        sum_ = number + 1
        return sum_ * 2 if twice else sum_

    graph = TraceGraph()
    for number in (1, 2):
        graph.merge(trace(region, tf.constant(number), False))
    graph.merge(trace(region, tf.constant(2), True))
    add, product = (next(node for node in graph if node.call.op == op) for op in ("AddV2", "Mul"))
    assert add.kind is product.kind is Kind.PURE
    assert product.rules[0].node is add


def test_a_shape_is_known_whichever_tensor_of_that_shape_it_is():
    def region(number):  # (no branch: Python 3.13 compiles what follows one twice)
        both = tf.tanh(X), tf.exp(X)
        return tf.shape(both[number]) + 1

    graph = TraceGraph()
    for number in (0, 1):
        graph.merge(trace(region, number))
    shape = next(node for node in graph if node.call.op == "Shape")
    assert shape.rules[0].need is Need.TENSOR
    assert shape.kind is Kind.KNOWN
    assert all(node.kind is Kind.KNOWN for node in graph if node.call.op == "AddV2")


def test_sharing_of_external_tensors():
    def region(a, b):
        return tf.add(a, b)

    graph = TraceGraph()
    graph.merge(trace(region, X, X))
    (node,) = graph
    assert node.rules[1].share == (node, 0)
    assert graph.merge(trace(region, X, tf.identity(X))).widened == 1
    assert node.rules[1].need is Need.EXTERNAL
    assert graph.merge(trace(region, X, X)).nothing_new


# -- loops -----------------------------------------------------------------------------------------------------------
LOOP, INNER = 7, 8


def repeated(times):
    value = X
    for _ in range(times):
        visit(LOOP)
        value = tf.sin(value)
        value = tf.abs(value)
    return tf.exp(value)


def test_a_loop_of_constant_length_is_unrolled():
    graph = graph_of(repeated, (3,), (3,))
    assert ops(graph) == ["Sin", "Abs"] * 3 + ["Exp"]
    assert not graph.rolled
    assert hot_path(graph) == list(graph)


def test_a_loop_of_varying_length_is_rolled():
    graph = TraceGraph()
    assert not graph.merge(trace(repeated, 2)).reset
    result = graph.merge(trace(repeated, 4))
    assert result.reset
    assert graph.rolled == {LOOP}
    assert len(graph) == 0
    for times in (2, 4):
        graph.merge(trace(repeated, times))
    sine, absolute, exp = graph
    assert ops(graph) == ["Sin", "Abs", "Exp"]
    assert set(absolute.succ) == {sine, exp}  # the back edge
    assert sine.rules[0].need is Need.TENSOR  # from before the loop, or from the iteration before
    for times in (1, 7, 3):
        assert graph.merge(trace(repeated, times)).nothing_new


def nested(*lengths):
    value = X
    for length in lengths:
        visit(LOOP)
        for _ in range(length):
            visit(INNER)
            value = tf.sin(value)
        value = tf.cos(value)
    return value


def test_a_loop_of_other_lengths_in_other_turns_around_it_is_unrolled():
    graph = graph_of(nested, (2, 3), (2, 3))
    assert ops(graph) == ["Sin", "Sin", "Cos", "Sin", "Sin", "Sin", "Cos"]
    assert not graph.rolled


def test_only_the_loop_that_varies_is_rolled():
    graph = TraceGraph()
    assert not graph.merge(trace(nested, 2, 3)).reset
    assert graph.merge(trace(nested, 3, 3)).reset
    for lengths in ((2, 3), (1, 4), (3, 3), (5, 1)):
        graph.merge(trace(nested, *lengths))
    assert graph.rolled == {INNER}
    assert sorted(ops(graph)) == ["Cos", "Cos", "Sin", "Sin"]
    assert graph.merge(trace(nested, 4, 2)).nothing_new


def test_a_gradient_through_a_rolled_loop_is_found_again_for_each_length():
    variable = tf.Variable(0.1 * tf.eye(6))

    def region(times):
        with tf.GradientTape() as tape:
            value = X
            for _ in range(times):
                visit(LOOP)
                value = tf.tanh(tf.matmul(value, variable))
            loss = tf.reduce_sum(value)
        return tape.gradient(loss, variable)

    graph = graph_of(region, (2,), (3,), (2,), (3,), (2,), (3,))
    assert graph.merge(trace(region, 2)).nothing_new
    assert graph.merge(trace(region, 3)).nothing_new
    assert sum(node.kind is Kind.GRADIENT for node in graph) == 2


# -- cuts ------------------------------------------------------------------------------------------------------------
def test_a_block_ends_where_python_read_a_value():
    def region():
        value = tf.reduce_sum(tf.sin(X))
        float(value)
        return tf.cos(X)

    graph = graph_of(region)
    node = next(node for node in graph if node.call.op == "Sum")
    assert node.cut_after == "fetch"
    assert [other.cut_after for other in graph if other is not node] == [None] * (len(graph) - 1)


def test_the_owners_ops_stand_alone():
    def region():
        value = tf.py_function(lambda a: a.numpy() + 1, [tf.sin(X)], tf.float32)
        return tf.cos(value)

    graph = graph_of(region)
    node = next(node for node in graph if node.kind is Kind.OWNER)
    assert (node.cut_before, node.cut_after) == ("owner", "owner")


def test_a_cut_is_made_once():
    graph = graph_of(lambda: tf.sin(X))
    (node,) = graph
    version = graph.version
    graph.cut(node, "branch")
    assert (node.cut_after, node.cuts, graph.version) == ("branch", 1, version + 1)
    graph.cut(node, "fetch")
    assert (node.cut_after, node.cuts, graph.version) == ("branch", 1, version + 1)


# -- gradients -------------------------------------------------------------------------------------------------------
def gradient_region(variable, *, watch=False, stop=False, persistent=False, unconnected="none"):
    def region(batch):
        with tf.GradientTape(persistent=persistent) as tape:
            if watch:
                tape.watch(batch)
            value = tf.matmul(batch, variable)
            if stop:
                with tape.stop_recording():
                    value = tf.sin(value)
            loss = tf.reduce_sum(value * value)
        return tape.gradient(loss, variable, unconnected_gradients=unconnected)

    return region


def test_a_gradient_is_one_node_whose_results_are_found_again():
    variable = tf.Variable(X)
    graph = graph_of(gradient_region(variable), (tf.identity(X),), (tf.identity(X),))
    (gradient,) = [node for node in graph if node.kind is Kind.GRADIENT]
    assert gradient.width == len(gradient.call.inner) > 1
    assert hot_path(graph)[-1] is gradient


def test_a_gradient_whose_own_constants_change_is_not_known():
    """Library code that reads a global when the gradient is taken: nothing else shows it."""
    variable, state = tf.Variable(X), [2.0]
    namespace = {"__name__": "tensorflow.made_up", "state": state, "tf": tf}
    backward = eval("lambda upstream: upstream * tf.constant(state[0])", namespace)
    scaled = tf.custom_gradient(lambda x: (x * 1.0, backward))

    def region():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(scaled(tf.matmul(X, variable)))
        return tape.gradient(loss, variable)

    graph = graph_of(region, (), ())
    (gradient,) = [node for node in graph if node.kind is Kind.GRADIENT]
    assert gradient.signature[0] != "unmatched"
    state[0] = 3.0
    graph.merge(trace(region))
    assert gradient.signature[0] == "unmatched"


def test_the_same_external_tensor_twice_is_another_gradient_than_two_tensors():
    """Where a tensor is used twice its gradient is a sum: what two equal tensors would give is half of it."""

    def region(a, b):
        with tf.GradientTape() as tape:
            tape.watch(a)
            loss = tf.reduce_sum(tf.add(a, b))
        return tape.gradient(loss, a)

    graph = TraceGraph()
    graph.merge(trace(region, X, tf.identity(X)))
    graph.merge(trace(region, X, X))
    graph.merge(trace(region, X, tf.identity(X)))
    gradients = [node for node in graph if node.kind is Kind.GRADIENT]
    assert len({len(node.call.inner) for node in gradients}) > 1 or len(gradients) > 1
    for a, b in ((X, X), (X, tf.identity(X))):
        before = len(graph)
        graph.merge(trace(region, a, b))
        assert len(graph) == before


# -- limits ----------------------------------------------------------------------------------------------------------
def test_a_graph_that_outgrows_its_limit_says_so():
    graph = TraceGraph(max_nodes=2)
    graph.merge(trace(lambda: tf.sin(tf.cos(X))))
    assert not graph.overgrown
    graph.merge(trace(lambda: tf.exp(X)))
    assert graph.overgrown


# -- any program -----------------------------------------------------------------------------------------------------
UNARY = [tf.sin, tf.cos, tf.abs, tf.tanh]


@settings(max_examples=25)
@given(st.lists(st.lists(st.sampled_from(range(4)), min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_trace_that_was_merged_adds_nothing_when_it_comes_again(programs):
    def region(choices):
        value = X
        for choice in choices:
            if choice == 0:
                value = tf.sin(value)
            elif choice == 1:
                value = tf.cos(value)
            elif choice == 2:
                value = tf.add(value, X)
            else:
                value = tf.abs(value)
        return value

    graph = TraceGraph()
    for choices in programs:
        graph.merge(trace(region, choices))
    for choices in programs:
        graph.merge(trace(region, choices))
    version = graph.version
    for choices in programs:
        assert graph.merge(trace(region, choices)).nothing_new
    assert graph.version == version
    for node in graph:
        assert all(after in list(graph) for after in node.succ)

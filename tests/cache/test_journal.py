"""Journals: what one process has learned is another's TraceGraph, with the other's variables."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import tensorflow as tf
from tracing import blocks_of, hot_path, ops, trace

from terra_cx.cache.codes import Codes
from terra_cx.cache.journal import Journal, Malformed, Misfit
from terra_cx.compile.lowering import function_of
from terra_cx.observe.anchors import AnchorTable
from terra_cx.tf.graphs import loaded_function
from terra_cx.trace.rules import Need
from terra_cx.trace.tracegraph import TraceGraph


@pytest.fixture
def codes():
    return Codes(AnchorTable())


class Program:
    """A step with two variables, one of which is made late."""

    def __init__(self):
        self.weight = tf.Variable([[1.0, 2.0], [3.0, 4.0]])
        self.late = None
        self.seen = tf.Variable(0.0)

    def step(self, scale=2.0, *, count=False, other=False):
        with tf.GradientTape() as tape:
            product = tf.matmul(tf.ones([2, 2]), self.weight)
            loss = tf.reduce_sum(product * scale) if not other else tf.reduce_max(product)
        gradient = tape.gradient(loss, self.weight)
        if self.late is None:
            self.late = tf.Variable(tf.zeros([2, 2]))
        self.late.assign_add(gradient)
        self.weight.assign_sub(self.late * 0.1)
        if count:
            self.seen.assign_add(1.0)


def learned(codes, traces):
    """The journal and the graph of traces."""
    journal, graph = Journal(codes), TraceGraph()
    for one in traces:
        row = journal.noted(one)
        journal.merged(row, graph.merge(one), graph)
    return journal, graph


def stored(journal, graph):
    return json.loads(json.dumps(journal.stored(graph, blocks_of(graph))))


def handles(graph):
    return {id(r.value) for node in graph for r in node.rules if r.need is Need.RESOURCE}


def test_another_process_has_the_graph_after_one_region(codes):
    one, other = Program(), Program()
    one.step()
    journal, graph = learned(codes, [trace(one.step)])
    assert journal.changed
    entry = stored(journal, graph)
    fresh = trace(other.step)
    assert len(fresh.calls) > len(hot_path(graph)), "the first region makes a variable, or this shows nothing"
    waiting = Journal(codes, entry)
    assert waiting.waiting
    assert waiting.untried
    warm = waiting.warm(fresh, TraceGraph())
    assert not waiting.waiting
    assert not waiting.changed
    assert ops(hot_path(warm.graph)) == ops(hot_path(graph))
    assert warm.left_out == 0
    assert handles(warm.graph) == {id(other.weight.handle), id(other.late.handle)}
    known = {node for node in warm.nodes if node is not None}
    assert known == set(warm.graph)
    assert warm.graph.merge(trace(other.step)).nothing_new
    assert stored(waiting, warm.graph)["tables"] == entry["tables"]


def test_a_way_whose_variables_have_not_been_seen_is_left_out(codes):
    one, other = Program(), Program()
    one.step()
    journal, graph = learned(codes, [trace(one.step), trace(one.step, count=True)])
    waiting = Journal(codes, stored(journal, graph))
    warm = waiting.warm(trace(other.step), TraceGraph())
    assert warm.left_out == 1
    assert waiting.changed
    assert warm.graph.merge(trace(other.step)).nothing_new
    result = warm.graph.merge(trace(other.step, count=True))
    assert result.nodes == 1


def test_ways_that_were_learned_are_known(codes):
    one, other = Program(), Program()
    one.step()

    journal, graph = learned(codes, [trace(one.step), trace(one.step, other=True)])
    other.step()
    waiting = Journal(codes, stored(journal, graph))
    warm = waiting.warm(trace(other.step, other=True), TraceGraph())
    assert len(warm.graph) == len(graph)
    for way in (False, True):
        assert warm.graph.merge(trace(other.step, other=way)).nothing_new


def test_constants_that_changed_are_feeds_in_the_next_process(codes):
    one, other = Program(), Program()
    one.step()
    journal, graph = learned(codes, [trace(one.step, 2.0), trace(one.step, 3.0)])
    other.step()
    warm = Journal(codes, stored(journal, graph)).warm(trace(other.step, 5.0), TraceGraph())
    assert warm.graph.merge(trace(other.step, 6.0)).nothing_new


def test_tries_two_regions_then_learns_anew(codes):
    one = Program()
    one.step()
    journal, graph = learned(codes, [trace(one.step)])
    waiting = Journal(codes, stored(journal, graph))
    nothing = trace(lambda: tf.ones([2]) + 1.0)
    assert waiting.warm(nothing, TraceGraph()) is None
    assert not waiting.untried
    with pytest.raises(Misfit):
        waiting.warm(nothing, TraceGraph())
    assert not waiting.waiting
    assert waiting.empty


def changed_gradient(entry):
    rows = [json.loads(text) for text in entry["traces"]]
    gradient = next(call for call in rows[0]["calls"] if call[0] == "TapeGradient")
    gradient[13].pop()
    entry["traces"] = [json.dumps(row) for row in rows]


def effect_in_a_gradient(entry):
    rows = [json.loads(text) for text in entry["traces"]]
    call = next(call for call in rows[0]["calls"] if call[0] == "Fill")
    call[13].append(["WriteFile", *call[1:5], [], [], [], None, None, *call[10:13], [], *call[14:]])
    entry["traces"] = [json.dumps(row) for row in rows]


def other_kind(entry):
    entry["traces"] = [
        text.replace('"AssignSubVariableOp","F","write"', '"AssignSubVariableOp","F","pure"')
        for text in entry["traces"]
    ]


def no_rows(entry):
    entry["traces"] = ["{}" for _ in entry["traces"]]


def other_nodes(entry):
    entry["nodes"][1][0] = "Elu"


def unknown_code(entry):
    entry["tables"]["codes"] = ["0" * 32 for _ in entry["tables"]["codes"]]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (changed_gradient, Misfit),
        (unknown_code, Misfit),
        (effect_in_a_gradient, Malformed),
        (other_kind, Malformed),
        (no_rows, Malformed),
        (other_nodes, Malformed),
    ],
)
def test_what_does_not_fit_is_not_used(codes, damage, why):
    one, other = Program(), Program()
    one.step()
    other.step()
    journal, graph = learned(codes, [trace(one.step)])
    entry = stored(journal, graph)
    before = json.dumps(entry)
    damage(entry)
    assert json.dumps(entry) != before, "nothing was damaged"
    waiting = Journal(codes, entry)
    fresh = trace(other.step)
    if why is Misfit:
        assert waiting.warm(fresh, TraceGraph()) is None
    with pytest.raises(why):
        waiting.warm(fresh, TraceGraph())
    assert not waiting.waiting


def test_what_has_no_form_is_not_kept(codes):
    journal, graph = Journal(codes), TraceGraph()
    one = Program()
    one.step()
    region = trace(one.step)
    region.calls[0].attrs = (*region.calls[0].attrs, "what", SimpleNamespace())
    assert journal.noted(region) is None
    journal.merged(None, graph.merge(region), graph)
    assert journal.empty
    assert "SimpleNamespace" in journal.closed
    assert journal.noted(trace(one.step)) is None


def test_blocks_come_with_their_functions(codes):
    one, other = Program(), Program()
    one.step()
    other.step()
    journal, graph = learned(codes, [trace(one.step)])
    blocks = blocks_of(graph)
    for block in blocks:
        block.outputs = frozenset()
        function_of(block, block.outputs)
    entry = json.loads(json.dumps(journal.stored(graph, blocks)))
    assert len(entry["blocks"]) == len(blocks) > 0
    waiting = Journal(codes, entry)
    warm = waiting.warm(trace(other.step), TraceGraph())
    (again,) = blocks_of(warm.graph)
    prepared = waiting.prepared(again)
    assert prepared is not None
    assert prepared.fallible == tuple(op.fallible for op in again.ops)
    function = prepared.load()
    assert {id(tensor) for tensor in function.captures} >= {id(other.weight.handle), id(other.late.handle)}
    before = one.weight.numpy().tolist()
    values = other.weight.numpy(), other.late.numpy()
    function([tf.ones(spec.shape, tf.as_dtype(spec.dtype)) for spec in again.params])
    assert other.late.numpy().tolist() == (values[1] + 4.0).tolist()  # `scale` is guarded
    assert other.weight.numpy().tolist() != values[0].tolist()
    assert one.weight.numpy().tolist() == before
    again.ops[0].attrs = (*again.ops[0].attrs, "more", 1)
    assert waiting.prepared(again) is None, "it is another block"


def test_rows_of_blocks_that_are_none(codes):
    one, other = Program(), Program()
    one.step()
    other.step()
    journal, graph = learned(codes, [trace(one.step)])
    blocks = blocks_of(graph)
    for block in blocks:
        function_of(block, block.outputs)
    for key, value in (("function", "%"), ("captures", [["k", 10**6]]), ("digest", None), ("outputs", 3)):
        entry = json.loads(json.dumps(journal.stored(graph, blocks)))
        entry["blocks"][0][key] = value
        waiting = Journal(codes, entry)
        warm = waiting.warm(trace(other.step), TraceGraph())
        (block,) = blocks_of(warm.graph)
        assert waiting.prepared(block) is None


def test_functions_that_are_none():
    with pytest.raises(ValueError, match="no function"):
        loaded_function(b"no protobuf", [], 0)

    @tf.function
    def write():
        tf.io.write_file("a", "b")

    writer = write.get_concrete_function()
    with pytest.raises(ValueError, match="WriteFile"):
        loaded_function(writer.function_def.SerializeToString(), [], 0)

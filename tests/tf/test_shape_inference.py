"""The shapes of outputs, asked of TensorFlow's shape functions."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from terra_cx.tf import shape_inference
from terra_cx.tf.shape_inference import Inference, symbolic
from terra_cx.tf.slots import Spec

FLOAT, INT, RESOURCE = 1, 3, 20


def asked(op, inputs, attrs=(), layout=None):
    """The shapes for inputs given as `Inference.shapes` takes them."""
    specs = [given if isinstance(given, Spec) else Spec(given[1], np.shape(given[0])) for given in inputs]
    made = Inference(symbolic(op, "F", attrs, layout or (-1,) * len(inputs), specs))
    return made.shapes(inputs), made


def ints(*values):
    """A value as an input."""
    return np.array(values, np.int32), INT


CASES = {
    "of shapes": ("MatMul", [Spec(FLOAT, (3, 4)), Spec(FLOAT, (4, 5))], (), None, [(3, 5)]),
    "broadcast": ("AddV2", [Spec(FLOAT, (3, 1)), Spec(FLOAT, (7,))], (), None, [(3, 7)]),
    "of a value": ("Reshape", [Spec(FLOAT, (6, 4)), ints(-1, 8)], (), None, [(3, 8)]),
    "value unknown": ("Reshape", [Spec(FLOAT, (6, 4)), Spec(INT, (2,))], (), None, [None]),
    "of a list": ("ConcatV2", [Spec(FLOAT, (2, 4)), Spec(FLOAT, (5, 4)), ints(0)], (), (2, -1), [(7, 4)]),
    "several": ("Unpack", [Spec(FLOAT, (2, 4))], ("num", 2, "axis", 0), None, [(4,), (4,)]),
    "data": ("Where", [Spec(10, (5,))], (), None, [None]),
    "refused": ("MatMul", [Spec(FLOAT, (3, 4)), Spec(FLOAT, (5, 5))], (), None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_shapes(case):
    op, inputs, attrs, layout, expected = CASES[case]
    if op == "ConcatV2":
        inputs = [*inputs[:2], (np.array(0, np.int32), INT)]
    if expected is not None:
        assert asked(op, inputs, attrs, layout)[0] == expected
        return
    good = Inference(symbolic(op, "F", attrs, (-1, -1), [Spec(FLOAT, None), Spec(FLOAT, None)]))
    assert good.shapes(inputs) is None
    assert good.refused
    assert good.shapes([Spec(FLOAT, (3, 5)), Spec(FLOAT, (5, 2))]) == [(3, 2)]
    assert not good.refused


def test_of_a_variable():
    handle = tf.Variable(tf.zeros([9, 4])).handle
    attrs = ("batch_dims", 0, "validate_indices", True, "dtype", tf.float32)
    made = Inference(lookup(handle, attrs))
    assert made.shapes([(handle, RESOURCE), Spec(INT, (2, 3))]) == [(2, 3, 4)]


def lookup(handle, attrs):
    """A symbolic ResourceGather."""
    from terra_cx.tf.graphs import GraphBuilder

    builder = GraphBuilder(False)
    inputs = [builder.capture(handle), builder.feed(Spec(INT, (7,)))]
    return builder.op("ResourceGather", "F", attrs, (-1, -1), inputs, ())[0]


def test_a_question_is_asked_once(monkeypatch):
    monkeypatch.setattr(shape_inference, "_graph", None)
    made = Inference(symbolic("Tanh", "F", (), (-1,), [Spec(FLOAT, None)]))
    assert made.shapes([Spec(FLOAT, (11, 2))]) == [(11, 2)]
    before = shape_inference._graph.ops
    assert made.shapes([Spec(FLOAT, (11, 2))]) == [(11, 2)]
    assert shape_inference._graph.ops == before
    assert made.shapes([Spec(FLOAT, (12, 2))]) == [(12, 2)]
    assert shape_inference._graph.ops == before + 2  # the input, and the op


def test_the_graph_is_begun_anew(monkeypatch):
    monkeypatch.setattr(shape_inference, "_graph", None)
    monkeypatch.setattr(shape_inference, "_MOST", 4)
    made = Inference(symbolic("Tanh", "F", (), (-1,), [Spec(FLOAT, None)]))
    for size in range(20):
        assert made.shapes([Spec(FLOAT, (size,))]) == [(size,)]
        assert shape_inference._graph.ops <= 6

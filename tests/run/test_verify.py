"""The first run of a compiled block is compared with the truth; a wrong one is found out and the truth stays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
from tracing import blocks_of, graph_of, run_of

from terra_cx.run import graph_runner, leveling
from terra_cx.run.block_run import State
from terra_cx.run.graph_runner import GraphRunner
from terra_cx.run.verify import Snapshot, same_bits
from terra_cx.tf.graphs import CompiledFunction

X = tf.constant(np.linspace(-2, 2, 16, dtype="float32").reshape(4, 4))


# -- bits ------------------------------------------------------------------------------------------------------------
NAN, OTHER_NAN = (np.array([bits], "uint32").view("float32") for bits in (0x7FC00000, 0x7FC00001))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([0.0], [-0.0], False),
        (NAN, NAN, True),
        (NAN, OTHER_NAN, False),
        ([1.0], [np.nextafter(np.float32(1), np.float32(2))], False),
        (np.zeros([2, 0]), np.zeros([2, 0]), True),
        (np.zeros([2, 0]), np.zeros([0, 2]), False),
        (np.zeros(1, "int32"), np.zeros(1, "float32"), False),
        ([b"a", b"b"], [b"a", b"b"], True),
        ([b"a"], [b"b"], False),
        ([True], [True], True),
        ([True], [False], False),
    ],
)
def test_same_bits(a, b, same):
    assert same_bits(tf.constant(a), tf.constant(b)) is same
    assert same_bits(tf.constant(b), tf.constant(a)) is same


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex64", "int8", "uint16", "int64"])
def test_same_bits_of_other_types(dtype):
    a, b = (tf.cast(tf.constant([0.0, value]), dtype) for value in (3.0, 4.0))
    assert same_bits(a, tf.identity(a))
    assert not same_bits(a, b)


# -- snapshots -------------------------------------------------------------------------------------------------------
def writing_block(*variables):
    def region():
        for variable in variables:
            variable.assign_add(tf.ones_like(variable))
        return tf.sin(X)

    (block,) = blocks_of(graph_of(region))
    return block


def test_a_snapshot_holds_and_restores_what_the_block_writes():
    a, b, other = tf.Variable(X), tf.Variable([1, 2]), tf.Variable(7.0)
    block = writing_block(a, b)
    before_a, before_b = a.numpy(), b.numpy()
    snapshot = Snapshot(block)
    assert snapshot.equals(snapshot.again())
    a.assign_add(X)
    other.assign(8.0)
    assert not snapshot.equals(snapshot.again())
    b.assign_add([5, 5])
    snapshot.restore()
    np.testing.assert_array_equal(a, before_a)
    np.testing.assert_array_equal(b, before_b)
    assert other.numpy() == 8.0  # not the block's
    assert snapshot.equals(snapshot.again())


def test_a_snapshot_is_a_copy():
    a = tf.Variable(X)
    block = writing_block(a)
    start = a.numpy()
    snapshot = Snapshot(block)
    for _ in range(3):
        a.assign_add(X)  # in place, where TensorFlow can
    snapshot.restore()
    np.testing.assert_array_equal(a, start)
    a.assign_add(X)  # and the restored variable does not share the snapshot's memory
    snapshot.restore()
    np.testing.assert_array_equal(a, start)


def test_a_snapshot_tells_negative_zero():
    a = tf.Variable([0.0])
    block = writing_block(a)
    a.assign([0.0])
    snapshot = Snapshot(block)
    a.assign([-0.0])
    assert not snapshot.equals(snapshot.again())
    snapshot.restore()
    assert not np.signbit(a.numpy()[0])


# -- first runs ------------------------------------------------------------------------------------------------------
class Case:
    """A block of a write and a value, and a graph runner that executes its runs in this thread."""

    def __init__(self):
        self.variable = tf.Variable(tf.zeros([4, 4]))

        def region():
            self.variable.assign_add(X)
            return tf.sin(X)

        (self.block,) = blocks_of(graph_of(region))
        self.variable.assign(tf.zeros([4, 4]))
        self.told = []
        self.runner = GraphRunner(4, 60.0, lambda where: None)
        self.runner.internal = lambda what, error: self.told.append((what, error))

    def step(self):
        run = run_of(self.block, [X])
        run.state = State.SENT
        self.runner._execute(run)
        return run

    def right_after(self, run, steps):
        """Whether ``run`` and the variable are as ``steps`` eager steps leave them."""
        assert run.state is State.DONE
        np.testing.assert_array_equal(self.variable, sum([X.numpy()] * steps))
        (flat,) = run.outputs
        np.testing.assert_array_equal(run.slots[flat].value, tf.sin(X))


@pytest.fixture
def case():
    return Case()


def lying(monkeypatch, lie):
    """Functions are compiled as always, and then ``lie(function)`` is run instead."""
    honest = graph_runner.function_of
    made = []

    def function_of(block, outputs):
        made.append(lie(honest(block, outputs)))
        block.variants[outputs] = made[-1]
        return made[-1]

    monkeypatch.setattr(graph_runner, "function_of", function_of)
    return made


def test_an_honest_block_is_compiled_in_its_first_run_and_used_from_then_on(case):
    for step in range(1, 5):
        case.right_after(case.step(), step)
    figures = case.runner.statistics
    assert (figures.variants, figures.mismatches) == (1, 0)
    assert (figures.eager_runs, figures.compiled_runs) == (1, 3)
    assert case.told == []


WRONG = {
    "value": lambda function: lambda feeds: [result + 1e-7 for result in function(feeds)],
    "sign": lambda function: lambda feeds: [-result for result in function(feeds)],
    "dtype": lambda function: lambda feeds: [tf.cast(result, tf.float64) for result in function(feeds)],
    "shape": lambda function: lambda feeds: [result[None] for result in function(feeds)],
}


@pytest.mark.parametrize("lie", WRONG)
def test_a_wrong_value_is_found_out_and_the_truth_stays(case, monkeypatch, lie):
    lying(monkeypatch, WRONG[lie])
    for step in range(1, 5):
        case.right_after(case.step(), step)
    figures = case.runner.statistics
    assert figures.mismatches == 2  # as it is, and with a barrier on every edge
    assert figures.compiled_runs == 0
    assert case.block.barriers
    assert case.block.eager == "its compiled form differs from eager"


def as_on_a_gpu(monkeypatch):
    """Eager's kernels give other last bits each time."""
    honest, calls = leveling.recompute, itertools.count(1)

    def recompute(run, feeds):
        return [value if value is None else value * (1 + next(calls) * 1e-7) for value in honest(run, feeds)]

    monkeypatch.setattr(leveling, "recompute", recompute)


@pytest.mark.parametrize(("lie", "accepted"), [("value", True), ("sign", False), ("dtype", False)])
def test_a_block_is_held_to_no_more_than_what_eager_itself_repeats(case, monkeypatch, lie, accepted):
    as_on_a_gpu(monkeypatch)
    honest = CompiledFunction.__call__
    monkeypatch.setattr(
        CompiledFunction,
        "__call__",
        lambda function, feeds: WRONG[lie](lambda feeds: honest(function, feeds))(feeds),
    )
    for _ in range(4):
        run = case.step()
    np.testing.assert_array_equal(case.variable, 4 * X.numpy())
    (flat,) = run.outputs
    np.testing.assert_allclose(run.slots[flat].value, tf.sin(X), rtol=0, atol=1e-6)
    figures = case.runner.statistics
    assert (figures.unsteady, figures.mismatches) == ((1, 0) if accepted else (0, 2))
    assert figures.compiled_runs == (3 if accepted else 0)


def test_a_wrong_effect_is_found_out_and_the_truth_stays(case, monkeypatch):
    def lie(function):
        def run(feeds):
            results = function(feeds)
            case.variable.assign_add(tf.fill([4, 4], 1e-6))
            return results

        return run

    lying(monkeypatch, lie)
    for step in range(1, 5):
        case.right_after(case.step(), step)
    assert case.block.eager == "its compiled form differs from eager"


def test_a_lost_effect_is_found_out(case, monkeypatch):
    lying(monkeypatch, lambda function: lambda feeds: [tf.sin(X)])
    for step in range(1, 4):
        case.right_after(case.step(), step)
    assert case.runner.statistics.mismatches == 2


def test_barriers_may_be_enough(case, monkeypatch):
    honest = graph_runner.function_of

    def function_of(block, outputs):
        function = honest(block, outputs)
        if not block.barriers:
            function = WRONG["value"](function)
            block.variants[outputs] = function
        return function

    monkeypatch.setattr(graph_runner, "function_of", function_of)
    for step in range(1, 5):
        case.right_after(case.step(), step)
    figures = case.runner.statistics
    assert (figures.mismatches, figures.variants) == (1, 2)
    assert figures.compiled_runs == 2
    assert case.block.eager is None


def test_a_function_that_cannot_be_made_leaves_the_block_eager_and_is_told(case, monkeypatch):
    def refuse(block, outputs):
        raise ValueError("no such kernel in a graph")

    monkeypatch.setattr(graph_runner, "function_of", refuse)
    for step in range(1, 4):
        case.right_after(case.step(), step)
    assert case.block.eager == "ValueError: no such kernel in a graph"
    assert [type(error) for _, error in case.told] == [ValueError]


def test_a_function_that_fails_in_its_first_run_changed_nothing(case, monkeypatch):
    def lie(function):
        def run(feeds):
            case.variable.assign_add(X)
            raise tf.errors.InternalError(None, None, "broken")

        return run

    lying(monkeypatch, lie)
    for step in range(1, 4):
        case.right_after(case.step(), step)
    assert case.block.eager.startswith("InternalError")


def test_a_variable_without_a_value_is_not_compared(monkeypatch):
    case = Case()
    monkeypatch.setattr(graph_runner, "Snapshot", lambda block: (_ for _ in ()).throw(ValueError("no value")))
    for step in range(1, 4):
        case.right_after(case.step(), step)
    assert case.block.eager == "cannot be verified: ValueError"
    assert case.told == []


def test_another_set_of_outputs_is_verified_for_itself(case, monkeypatch):
    made = lying(monkeypatch, lambda function: function)
    case.right_after(case.step(), 1)
    run = run_of(case.block, [X])
    run.outputs = frozenset()
    run.state = State.SENT
    case.runner._execute(run)
    assert run.state is State.DONE
    case.right_after(case.step(), 3)
    assert len(made) == 2
    assert case.runner.statistics.variants == 2

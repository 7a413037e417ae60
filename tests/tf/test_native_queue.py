"""TensorFlow's own queue: it is waited for natively, and how a failure is told must not block another thread."""

from __future__ import annotations

import linecache
from types import SimpleNamespace

import pytest
import tensorflow as tf
from tensorflow.python.eager import context
from tracing import only_block

from terra_cx.compile.lowering import function_of
from terra_cx.run.block_run import Draw
from terra_cx.run.eager import do_draw
from terra_cx.tf import native
from terra_cx.tf.native_queue import Before, NativeQueue, op_call, wait_for
from terra_cx.tf.opdefs import Kind

X = tf.eye(4)
WAYS = {"for all": lambda queue, tensor: queue.wait(), "for one": lambda queue, tensor: wait_for(tensor)}


@pytest.fixture
def gather():
    """A settled function of a vector of two rows of `X`, and its feeds."""
    block = only_block(lambda index: tf.gather(X, index), (tf.constant([0, 1]),), (tf.constant([2, 1]),))
    pure = [flat for flat in range(block.flat) if block.owners[flat][0].kind is Kind.PURE]
    function = function_of(block, frozenset(pure))

    def feeds(rows):
        return [tf.constant(rows) if spec.dtype == 3 else X for spec in block.params]

    for _ in range(100):
        if function.settled:
            break
        function(feeds([0, 1]))
    return function, feeds


@pytest.fixture
def queue():
    made = NativeQueue()
    yield made
    made.close()


@pytest.mark.parametrize("way", WAYS)
def test_what_was_put_in_is_waited_for(gather, queue, way):
    function, feeds = gather
    made = []
    queue.put(function, feeds([3, 0]), made)
    WAYS[way](queue, made[0][0])
    assert made[0][0].numpy().tolist() == [X[3].numpy().tolist(), X[0].numpy().tolist()]


def test_a_queue_made_while_an_element_is_taken(gather):
    """TensorFlow's iterators run each `IteratorGetNext` in an executor of its own, which they delete."""
    function, feeds = gather
    with context.execution_mode(context.SYNC):
        queue = NativeQueue()
        inside = []
        queue.put(function, feeds([3, 0]), inside)
    gone = [tf.constant(float(number)) for number in range(100)]  # memory is used again
    for _ in range(50):
        made = []
        queue.put(function, feeds([1, 2]), made)
        queue.wait()
        assert made[0][0].numpy()[0].tolist() == X[1].numpy().tolist()
        own = context.context().executor
        assert not own.is_async()
    assert inside[0][0].numpy()[1].tolist() == X[0].numpy().tolist()
    queue.close()
    del gone


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_is_told_without_reading_source_lines(gather, queue, way, monkeypatch):
    """TensorFlow reads them with a lock held, and lets the interpreter go; who meets an error then waits for ever."""
    read = []
    monkeypatch.setattr(linecache, "getline", lambda *place: read.append(place) or "")
    function, feeds = gather
    made = []
    queue.put(function, feeds([0, 99]), made)
    with pytest.raises((native.OpError, native.NotOkStatus), match="99 is not in"):
        WAYS[way](queue, made[0][0])
    queue.clear()
    assert not read


@pytest.mark.parametrize("fails", [False, True], ids=["made", "not made"])
def test_a_draw_is_made_once(gather, queue, fails):
    """Whether what stands before it in the queue fails or not: the numbers are those that come next."""
    function, feeds = gather
    bound = {"minval": 0, "maxval": 4, "dtype": tf.int32, "seed": 27}
    tf.random.set_seed(1)
    expected = [tf.random.uniform([2], **bound).numpy().tolist() for _ in range(3)]
    tf.random.set_seed(1)
    first = tf.random.uniform([2], **bound).numpy().tolist()
    seeds = ("seed", 1, "seed2", 27)
    args = (tf.constant([2]), tf.constant(0), tf.constant(4), *seeds)
    draw = Draw(SimpleNamespace(device=""), "RandomUniformInt", "F", None, args)
    rows = next(number for number, feed in enumerate(feeds([0, 0])) if feed.dtype == tf.int32)
    made = []
    if fails:
        queue.put(function, feeds([0, 99]), [])
    before = Before(op_call(draw.op, draw.form, draw.name, draw.args), draw, rows)
    try:
        queue.put(function, feeds([0, 0]), made, [before])
    except (native.OpError, native.NotOkStatus):
        assert fails  # the failure was known already
    if fails:
        queue.clear()
    else:
        queue.wait()
        assert made[0][0].numpy().tolist() == X.numpy()[expected[1]].tolist()
    assert [first, do_draw(draw)[0].numpy().tolist()] == expected[:2]
    assert do_draw(draw)[0].numpy().tolist() == expected[1 if not fails else 2]


def test_it_works_where_the_programs_ops_are_queued_too(gather, queue):
    function, feeds = gather
    tf.config.experimental.set_synchronous_execution(False)
    try:
        made = []
        queue.put(function, feeds([0, 99]), made)
        with pytest.raises((native.OpError, native.NotOkStatus), match="99 is not in"):
            wait_for(made[0][0])
        queue.clear()
        assert (X + X).numpy()[0, 0] == 2.0
    finally:
        tf.config.experimental.set_synchronous_execution(True)

"""Traces of small functions, and blocks made of them, without a session."""

from __future__ import annotations

import itertools
import sys
from contextlib import contextmanager

from terra_cx.compile.blocks import build_block
from terra_cx.compile.lowering import lower
from terra_cx.observe.importer import UserCode
from terra_cx.observe.statements import StatementObserver
from terra_cx.run.block_run import BlockRun
from terra_cx.tf.boundary import Boundary
from terra_cx.tf.opdefs import Kind
from terra_cx.tf.slots import Slot
from terra_cx.trace.recorder import Recorder
from terra_cx.trace.tracegraph import TraceGraph

_uids = itertools.count()
_observers = []


@contextmanager
def recording(**options):
    """The recorder and the observer of a region that is recorded inside; ``options`` are the recorder's."""
    boundary, observer = Boundary(), StatementObserver(UserCode())
    recorder = Recorder(observer.locate, observer.user_mark, **options)
    recorder.observer = observer
    boundary.install()
    _observers.append(observer)
    try:
        boundary.watch_reads(recorder.fetched)
        boundary.use(recorder)
        yield recorder
    finally:
        _observers.pop().stop()
        boundary.remove()


def trace(function, *args, options=None, **kwargs):
    """Record ``function(*args, **kwargs)`` as a region; its trace. The result is kept in ``trace.last``.

    How long Python was busy between ops is forgotten: it depends on the machine, and blocks are cut by it.
    """
    with recording(**(options or {})) as recorder:
        recorder.observer.start(id(sys._getframe()))
        trace.last = function(*args, **kwargs)
    assert recorder.trace.refused is None, recorder.trace.refused
    recorder.trace.gaps.clear()
    return recorder.trace


def visit(loop):
    """What an anchor probe does in the loop whose iteration begins here, while a region is recorded."""
    _observers[-1].loop_visit(loop, sys._getframe(1))


def graph_of(function, *arguments):
    """A TraceGraph of one region per tuple of arguments."""
    graph = TraceGraph()
    for args in arguments or [()]:
        graph.merge(trace(function, *args))
    return graph


def relaxed(function, *args):
    """As `trace`, as it is done for a graph that is relaxed and folded (docs/design/shapes.md)."""
    return trace(function, *args, options={"live_tapes": True, "relaxed": True})


def ops(nodes):
    """The names of nodes' ops."""
    return [node.call.op for node in nodes]


def hot_path(graph):
    """The nodes on the hottest way."""
    nodes, node = [], graph.root.hottest()
    while node is not None and node not in nodes:
        nodes.append(node)
        node = node.hottest()
    return nodes


def blocks_of(graph):
    """The lowered blocks on the hottest way, in order."""
    blocks, node = [], graph.root.hottest()
    while node is not None and all(node not in block.nodes for block in blocks):
        blocks.append(build_block(graph, node, next(_uids), lower))
        node = blocks[-1].nodes[-1].hottest()
    return blocks


def only_block(region, *arguments):
    """The block of a region that is one."""
    (block,) = blocks_of(graph_of(region, *arguments))
    assert block.eager is None
    return block


def before(operation):
    """Everything that must have run before ``operation``, by data or control edges."""
    seen, todo = set(), [operation]
    while todo:
        for earlier in (*todo[-1].control_inputs, *[tensor.op for tensor in todo.pop().inputs]):
            if earlier not in seen:
                seen.add(earlier)
                todo.append(earlier)
    return seen


class NoFetcher:
    """Nobody fills the slots of these runs on demand."""

    def fetch(self, slot):
        raise AssertionError("a slot was asked for")


def run_of(block, feeds=()):
    """A completely validated run of ``block`` whose slots are all alive."""
    run = BlockRun(block, NoFetcher(), 0, 1)
    run.params = list(feeds)
    for step in block.steps:
        for index, spec in enumerate(step.specs):
            run.slots[step.base + index] = Slot(spec, run, step.base + index)
        run.pos += 1
    run.outputs = frozenset(
        flat for flat in range(block.flat) if block.owners[flat][0].kind not in (Kind.KNOWN, Kind.DRAW)
    )
    return run

"""A contest tries each level once, when that costs little, and picks what is clearly faster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from terra_cx.levels import Level
from terra_cx.run import contest
from terra_cx.run.contest import COSTS, PAIRS, SHARE, Contest


class Timed:
    """A function that takes so many seconds on a clock that only it moves."""

    def __init__(self, clock, level, seconds, settled=True):
        self.clock, self.level, self.seconds, self.settled = clock, level, seconds, settled
        self.calls = 0

    def __call__(self, feeds):
        self.calls += 1
        self.clock.now += self.seconds
        return [feeds, self.level]


@pytest.fixture
def clock(monkeypatch):
    made = SimpleNamespace(now=0.0)
    made.perf_counter = lambda: made.now
    monkeypatch.setattr(contest, "time", made)
    return made


def begin(clock, seconds=1e-3, ops=10):
    block = SimpleNamespace(ops=[None] * ops, picked=None, forms={Level.GRAPH: "graph", Level.XLA: "xla"})
    return block, Contest(block, Timed(clock, Level.EXACT, seconds))


def call_until_due(made):
    calls = 0
    while not made.due:
        made([])
        calls += 1
        assert calls < 100_000
    return calls


def play(clock, made, *challengers):
    for function in challengers:
        call_until_due(made)
        assert made.next_level() is function.level
        made.challenge(function)
        for _ in range(2 * (PAIRS + 1)):
            made([])


def test_a_level_is_tried_when_the_block_has_run_for_long_enough(clock):
    block, made = begin(clock)
    calls = call_until_due(made)
    assert calls == pytest.approx(COSTS[Level.GRAPH] * len(block.ops) / SHARE / 1e-3, abs=1)
    assert not made.over
    assert made.level is Level.EXACT


def test_the_fastest_is_picked_and_each_is_tried_once(clock):
    block, made = begin(clock)
    play(clock, made, Timed(clock, Level.GRAPH, 0.7e-3), Timed(clock, Level.XLA, 0.5e-3))
    assert made.over
    assert (block.picked, made.level) == (Level.XLA, Level.XLA)
    assert block.forms == {Level.XLA: "xla"}  # the others are needed no more
    assert made.ms == pytest.approx(1.0)
    assert made.relative == pytest.approx({Level.GRAPH: 0.7, Level.XLA: 0.5})
    for _ in range(1000):
        assert made("feeds") == ["feeds", Level.XLA]
        assert not made.due


def test_within_the_noise_exact_stays(clock):
    block, made = begin(clock)
    play(clock, made, Timed(clock, Level.GRAPH, 0.97e-3), Timed(clock, Level.XLA, 2e-3))
    assert block.picked is Level.EXACT


def test_pairs_are_compared_and_not_sums(clock):
    """The machine slows down for the second half: each is faster in its own pairs, or is not."""
    _, made = begin(clock)
    exact, graph = made._best, Timed(clock, Level.GRAPH, 0.9e-3)
    call_until_due(made)
    made.next_level()
    made.challenge(graph)
    for number in range(2 * (PAIRS + 1)):
        exact.seconds, graph.seconds = ((1e-3, 0.9e-3), (5e-3, 4.5e-3))[number > PAIRS]
        made([])
    assert made.level is Level.GRAPH


def test_a_level_has_to_win_most_pairs(clock):
    """Faster in the median alone may be chance."""
    _, made = begin(clock)
    graph = Timed(clock, Level.GRAPH, 0.5e-3)
    call_until_due(made)
    made.next_level()
    made.challenge(graph)
    for number in range(2 * (PAIRS + 1)):
        graph.seconds = 0.5e-3 if number % 10 < 6 else 2e-3
        made([])
    assert made.relative[Level.GRAPH] == pytest.approx(0.5)
    assert made.level is Level.EXACT


def test_a_level_that_is_not_to_be_had(clock):
    block, made = begin(clock)
    for _ in range(2):
        call_until_due(made)
        made.next_level()
        made.challenge(None)
    assert made.over
    assert block.picked is Level.EXACT
    assert made.ms is None


def test_nothing_counts_before_the_executors_are_chosen(clock):
    _, made = begin(clock)
    graph = Timed(clock, Level.GRAPH, 0.1e-3, settled=False)
    call_until_due(made)
    made.next_level()
    made.challenge(graph)
    for _ in range(100):
        made([])
    assert made.level is Level.EXACT
    assert graph.calls == 50
    graph.settled = True
    for _ in range(2 * (PAIRS + 1)):
        made([])
    assert made.level is Level.GRAPH


def test_a_function_that_fails_is_not_timed(clock):
    _, made = begin(clock)

    class Failing(Timed):
        def __call__(self, feeds):
            raise ZeroDivisionError

    call_until_due(made)
    made.next_level()
    made.challenge(Failing(clock, Level.GRAPH, 0.0))
    made([])
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            made([])
    assert made.level is Level.EXACT

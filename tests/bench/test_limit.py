"""Which calls are made again to time the graph alone."""

from types import SimpleNamespace

import pytest

from terra_cx.bench import limit
from terra_cx.bench.limit import Limit


class Function:
    """A compiled function that notes what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, feeds):
        self.calls.append(list(feeds))
        return []


def run(region, draws=()):
    block = SimpleNamespace(draws={10: 1, 11: 2})
    return SimpleNamespace(region=region, block=block, draws=dict(enumerate(draws)))


@pytest.fixture
def made():
    return Limit()


def test_the_latest_whole_region_of_the_usual_length(made):
    functions = [Function() for _ in range(6)]
    for region in range(4):
        made.tap(run(region), functions[region], [region])
        made.tap(run(region), functions[region], [region])
    made.tap(run(4), functions[4], [4])  # ended with the program
    made.tap(run(5), functions[5], [5])
    made.tap(run(5), None, [5])  # ran op by op
    assert made.milliseconds() > 0
    assert [bool(function.calls) for function in functions] == [False, False, False, True, False, False]
    assert functions[3].calls[0] == [3]


def test_no_compiled_region(made):
    assert made.milliseconds() is None
    made.tap(run(0), None, [])
    assert made.milliseconds() is None


def test_only_the_last_regions_are_kept(made):
    for region in range(50):
        made.tap(run(region), Function(), [])
    assert list(made._regions) == list(range(42, 50))


def test_draws_are_made_again_each_time(made, monkeypatch):
    numbers = iter(range(1000))
    monkeypatch.setattr(limit, "do_draw", lambda draw: [next(numbers), next(numbers)])
    monkeypatch.setattr(limit, "_MOST_LAPS", 20)
    function = Function()
    draw = SimpleNamespace(step=SimpleNamespace(base=10, specs=[None, None]))
    made.tap(run(0, [draw]), function, ["x", None, None])
    assert made.milliseconds() > 0
    assert function.calls[:2] == [["x", 0, 1], ["x", 2, 3]]


def test_feeds_are_copied(made):
    feeds = [1]
    function = Function()
    made.tap(run(0), function, feeds)
    feeds[0] = 2
    made.milliseconds()
    assert function.calls[0] == [1]

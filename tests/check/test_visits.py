"""Visits of an anchor in a program that is not co-executed."""

import threading

import pytest

from terra_cx.check.visits import Clock, Probes
from terra_cx.observe import names

SOURCE = """
for outer in range(3):
    for inner in range(4):
        pass
def step(): return 1
for _ in range(5): step()
"""


@pytest.fixture
def visits():
    def visits(anchor, run=None):
        clock = Clock()
        probes = Probes(anchor, clock)
        code = probes.instrument(compile(SOURCE, "program", "exec"))
        names.put(probes._probe)
        (run or (lambda work: work()))(lambda: exec(code, {}))
        return clock.count

    yield visits
    names.put()


@pytest.mark.parametrize(
    ("anchor", "count"),
    [
        ("program:2", 4),
        ("program:3", 15),
        ("program:5", 5),
        ("program:6", 6),
        ("program:4", 0),
        ("other:2", 0),
    ],
)
def test_only_the_anchor_is_counted(anchor, count, visits):
    assert visits(anchor) == count


def test_other_threads_are_not_counted(visits):
    def elsewhere(work):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    assert visits("program:2", elsewhere) == 0

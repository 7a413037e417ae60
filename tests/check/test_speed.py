"""Steady step times."""

import pytest

from terra_cx.check.speed import MIN_LAPS, Speed, step_ms
from terra_cx.check.visits import Clock


def test_what_ran_ahead_is_averaged():
    # Nine steps that only queued work and one that waited for all of it: a step took 3 ms.
    assert step_ms(([0.0] * 9 + [0.03]) * 4) == pytest.approx(3.0)


def test_a_pause_does_not_count():
    assert step_ms([0.002] * 25 + [5.0] + [0.002] * 34) == pytest.approx(2.0)


def test_too_few_steps():
    assert step_ms([0.002] * (MIN_LAPS - 1)) is None
    assert step_ms([0.002] * MIN_LAPS) == pytest.approx(2.0)
    speed = Speed.of([0.002] * 100, [0.001] * 5)
    assert (speed.ratio, speed.unknown) == (None, "5 steps in the second half, 20 needed")


def test_ratio():
    assert Speed.of([0.002] * 20, [0.001] * 20).ratio == pytest.approx(0.5)


@pytest.mark.parametrize(("visits", "laps"), [(0, 0), (1, 0), (2, 0), (3, 1), (100, 49), (20_000, 4095)])
def test_clock_gives_the_laps_of_the_second_half(visits, laps):
    clock = Clock()
    for _ in range(visits):
        clock.visit()
    assert clock.count == visits
    assert len(clock.laps()) == laps

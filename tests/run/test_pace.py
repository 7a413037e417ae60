"""The choice between overlapped, in turns and eager rests on what was measured, and on nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from terra_cx.run.pace import AGAIN, COUNTED, MOST, Manner, Pace

OVERLAPPED, TURNS, EAGER = Manner.OVERLAPPED, Manner.TURNS, Manner.EAGER


def live(pace, seconds, regions=1000, disturbed=lambda number: False):
    """Regions that take ``seconds[manner]`` (a number, or a function of the region's number)."""
    ran = []
    for number in range(regions):
        if pace.chosen is EAGER:
            break
        manner = pace.manner
        cost = seconds[manner]
        ran.append(manner)
        pace.ended(cost(number) if callable(cost) else cost, disturbed(number))
    return ran


@pytest.mark.parametrize(
    ("overlapped", "turns", "eager", "best"),
    [
        (1.0, 2.0, 3.0, OVERLAPPED),
        (2.0, 1.0, 3.0, TURNS),
        (2.0, 3.0, 1.0, EAGER),
        (1.0, 0.99, 3.0, OVERLAPPED),  # not worth a change
        (1.0, 2.0, 0.99, OVERLAPPED),
    ],
)
def test_the_fastest_is_chosen(overlapped, turns, eager, best):
    pace = Pace()
    live(pace, {OVERLAPPED: overlapped, TURNS: turns, EAGER: eager}, 200)
    assert pace.chosen is best
    assert pace.ms(OVERLAPPED) == pytest.approx(1000 * overlapped)
    assert pace.ms(EAGER) == pytest.approx(1000 * eager)


@pytest.mark.parametrize(("hint", "regions"), [(None, 140), (1.0, 65), (9.0, 140)])
def test_what_is_slower_than_eager_was_is_not_measured_for_long(hint, regions):
    pace = Pace(eager=hint)
    ran = live(pace, {OVERLAPPED: 3.0, TURNS: 2.0, EAGER: 1.0})
    assert pace.chosen is EAGER
    assert regions - 30 < len(ran) <= regions


@pytest.mark.parametrize(("early", "best"), [(1.0, EAGER), (0.2, OVERLAPPED)])
def test_regions_that_differ_and_are_far_slower_than_eager_was(early, best):
    """They are given back soon, but not if they were slow at first only."""
    rng = np.random.default_rng(2)

    def cost(mean, first=1.0):
        return lambda number: mean * rng.lognormal(-0.125, 0.5) * (1 if number < 40 else first)

    pace = Pace(eager=1.0)
    ran = live(pace, {OVERLAPPED: cost(2.5, early), TURNS: cost(2.5, early), EAGER: cost(1.0)})
    assert (pace.chosen is EAGER) is (best is EAGER)
    assert best is not EAGER or len(ran) < 80


def test_a_hint_decides_nothing():
    pace = Pace(eager=0.1)
    live(pace, {OVERLAPPED: 1.0, TURNS: 2.0, EAGER: 3.0}, 200)
    assert pace.chosen is OVERLAPPED


@pytest.mark.parametrize("manner", [OVERLAPPED, TURNS])
def test_what_another_process_has_measured_holds_until_a_choice_is_due(manner):
    pace = Pace()
    pace.resume(manner)
    assert not pace.measuring
    seconds = {OVERLAPPED: 1.0, TURNS: 2.0, EAGER: 9.0}
    assert set(live(pace, seconds, AGAIN)) == {manner}
    live(pace, seconds, 200)
    assert pace.chosen is OVERLAPPED
    assert pace.ms(TURNS) == pytest.approx(2000.0)


@pytest.mark.parametrize(
    ("overlapped", "turns", "eager", "best"),
    [(1.0, 1.3, 1.4, OVERLAPPED), (1.4, 1.2, 1.0, EAGER), (1.3, 1.0, 1.5, TURNS), (1.0, 1.0, 0.75, EAGER)],
)
def test_regions_that_differ_by_themselves(overlapped, turns, eager, best):
    """Trip counts from 1 to 100: the least of the windows would be the one that had luck."""
    chosen = Counter()
    for seed in range(10):
        lengths = np.random.default_rng(seed).integers(1, 101, 2000)
        seconds = {
            manner: lambda number, cost=cost, lengths=lengths: cost * lengths[number]
            for manner, cost in ((OVERLAPPED, overlapped), (TURNS, turns), (EAGER, eager))
        }
        pace = Pace(eager=50.0)
        ran = live(pace, seconds, AGAIN * 2)
        assert Counter(ran)[EAGER] <= MOST + 20
        chosen[pace.chosen] += 1
    assert chosen[best] >= 8, chosen


def test_what_happens_now_and_then_does_not_decide():
    """A long evaluation falls into the windows of the faster manner."""
    pace = Pace()
    seconds = {OVERLAPPED: lambda number: 1.0 + 50.0 * (number in (6, 35)), TURNS: 1.5, EAGER: 9.0}
    live(pace, seconds, 200)
    assert pace.chosen is OVERLAPPED
    assert pace.ms(OVERLAPPED) == pytest.approx(1000.0)


def test_eager_that_was_far_slower_is_not_measured_again_until_it_could_win():
    pace = Pace()
    seconds = {OVERLAPPED: 1.0, TURNS: 2.0, EAGER: 9.0}
    first = Counter(live(pace, seconds, 300))
    later = Counter(live(pace, seconds, 20 * AGAIN))
    assert first[EAGER] > 0
    assert later[EAGER] == 0 < later[TURNS]
    assert pace.ms(EAGER) == pytest.approx(9000.0)
    slow = {OVERLAPPED: 7.0, TURNS: 8.0, EAGER: 6.0}
    assert Counter(live(pace, slow, 20 * AGAIN))[EAGER] > 0
    assert pace.chosen is EAGER


def test_eager_costs_few_regions_where_it_is_clearly_slower():
    ran = Counter(live(Pace(), {OVERLAPPED: 1.0, TURNS: 1.0, EAGER: 10.0}, AGAIN))
    assert 0 < ran[EAGER] < COUNTED


def test_close_calls_get_whole_windows():
    ran = Counter(live(Pace(), {OVERLAPPED: 1.0, TURNS: 1.0, EAGER: 1.1}, AGAIN))
    assert ran[EAGER] > 2 * COUNTED


def test_windows_in_which_something_was_compiled_do_not_count():
    pace = Pace()
    seconds = {OVERLAPPED: lambda number: 30.0 if number < 12 else 1.0, TURNS: 1.5, EAGER: 9.0}
    live(pace, seconds, 300, disturbed=lambda number: number in (3, 11))
    assert pace.chosen is OVERLAPPED


def test_a_program_that_compiles_for_ever_is_judged_all_the_same():
    pace = Pace()
    live(pace, {OVERLAPPED: 5.0, TURNS: 5.0, EAGER: 1.0}, 1000, disturbed=lambda number: True)
    assert pace.chosen is EAGER


@pytest.mark.parametrize(("when", "costs"), [(25, (100.0, 90.0)), (45, (100.0, 90.0)), (80, (90.0, 100.0))])
def test_a_program_that_becomes_another_while_it_is_measured(when, costs):
    """What was quick before the change tells nothing about what comes after it."""
    overlapped, turns = (
        lambda number, cost=cost: 2.0 if number < when else cost + number % 3 for cost in costs
    )
    ran = live(pace := Pace(eager=4.0), {OVERLAPPED: overlapped, TURNS: turns, EAGER: 50.0}, 1000)
    assert pace.chosen is EAGER
    assert len(ran) < when + 60


def test_a_program_that_becomes_another_all_the_time_is_judged_all_the_same():
    pace = Pace()
    live(pace, {OVERLAPPED: lambda n: 10.0 ** (n // 10 % 4), TURNS: 1000.0, EAGER: 0.5}, 1000)
    assert pace.chosen is EAGER


def rare(pace, seconds, regions, cost):
    for number in range(regions):
        pace.ended(cost if number % 2 else seconds[pace.manner], False, rare=number % 2 > 0)


def test_what_is_rare_does_not_count():
    rare(pace := Pace(), {OVERLAPPED: 1.0, TURNS: 2.0, EAGER: 3.0}, 400, cost=0.01)
    assert pace.chosen is OVERLAPPED
    assert pace.ms(OVERLAPPED) == pytest.approx(1000)


def test_what_is_rare_counts_where_it_is_not_rare():
    pace = Pace()
    for _ in range(300):
        pace.ended(
            {OVERLAPPED: 0.1, TURNS: 0.1, EAGER: 0.05}[pace.manner], False, rare=pace.manner is not EAGER
        )
    assert pace.chosen is EAGER


def test_the_choice_is_made_again_when_the_program_changes():
    pace = Pace()
    seconds = {OVERLAPPED: lambda number: 1.0 if number < 150 else 4.0, TURNS: 2.0, EAGER: 9.0}
    live(pace, seconds, 150)
    assert pace.chosen is OVERLAPPED
    live(pace, {OVERLAPPED: 4.0, TURNS: 2.0, EAGER: 9.0}, 2 * AGAIN)
    assert pace.chosen is TURNS


def test_measuring_grows_rare():
    ran = live(pace := Pace(), {OVERLAPPED: 1.0, TURNS: 1.5, EAGER: 9.0}, 10_000)
    assert pace.chosen is OVERLAPPED
    assert ran.count(OVERLAPPED) > 0.95 * len(ran)

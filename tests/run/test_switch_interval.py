"""The interpreter's switch interval: short while two threads of ours take turns, the user's own to the user."""

from __future__ import annotations

import sys

import pytest

from terra_cx.run.switch_interval import SECONDS, SwitchInterval

get, put = sys.getswitchinterval, sys.setswitchinterval


@pytest.fixture
def switch():
    before = get()
    made = SwitchInterval()
    put(0.005)
    try:
        yield made
    finally:
        sys.getswitchinterval, sys.setswitchinterval = get, put
        put(before)


def test_it_is_short_and_looks_like_the_users(switch):
    switch.shorten()
    assert get() == pytest.approx(SECONDS)
    assert sys.getswitchinterval() == pytest.approx(0.005)


def test_it_is_restored_with_the_functions(switch):
    switch.shorten()
    switch.restore()
    assert get() == pytest.approx(0.005)
    assert (sys.getswitchinterval, sys.setswitchinterval) == (get, put)


def test_both_ways_may_be_taken_twice(switch):
    switch.shorten()
    switch.shorten()
    assert sys.getswitchinterval() == pytest.approx(0.005)
    switch.restore()
    switch.restore()
    assert get() == pytest.approx(0.005)
    switch.shorten()
    switch.restore()
    assert (get(), sys.getswitchinterval) == (pytest.approx(0.005), get)


def test_what_the_user_sets_meanwhile_is_seen_and_honoured_afterwards(switch):
    switch.shorten()
    sys.setswitchinterval(0.02)
    assert sys.getswitchinterval() == pytest.approx(0.02)
    assert get() == pytest.approx(SECONDS)
    switch.restore()
    assert get() == pytest.approx(0.02)


def test_an_even_shorter_interval_of_the_user_is_kept(switch):
    put(SECONDS / 10)
    switch.shorten()
    assert get() == pytest.approx(SECONDS / 10)
    sys.setswitchinterval(SECONDS / 20)
    assert get() == pytest.approx(SECONDS / 20)
    switch.restore()
    assert get() == pytest.approx(SECONDS / 20)


@pytest.mark.parametrize("interval", [0, -1.0, "long", None])
def test_what_python_refuses_is_refused_with_its_words(switch, interval):
    with pytest.raises((TypeError, ValueError)) as plain:
        put(interval)
    switch.shorten()
    with pytest.raises(type(plain.value)) as ours:
        sys.setswitchinterval(interval)
    assert str(ours.value) == str(plain.value)
    assert sys.getswitchinterval() == pytest.approx(0.005)


def test_integers_are_taken_as_python_takes_them(switch):
    switch.shorten()
    sys.setswitchinterval(1)
    assert sys.getswitchinterval() == 1.0
    switch.restore()
    assert get() == pytest.approx(1.0)

import pytest

from terra_cx.profile.taps import Taps


class Bell:
    def __init__(self):
        self.rung = 0

    def ring(self, times):
        self.rung += times


def doubled(real):
    return lambda times: real(2 * times)


def test_a_tap_is_around_one_object_and_can_be_taken_out():
    bell, other, taps = Bell(), Bell(), Taps()
    taps.put(bell, "ring", doubled)
    bell.ring(1)
    other.ring(1)
    assert (bell.rung, other.rung) == (2, 1)
    taps.take_out()
    bell.ring(1)
    assert bell.rung == 3
    assert "ring" not in vars(bell)


def test_a_second_tap_is_refused():
    bell, taps = Bell(), Taps()
    taps.put(bell, "ring", doubled)
    with pytest.raises(ValueError, match=r"Bell\.ring has a tap"):
        taps.put(bell, "ring", doubled)


def test_a_method_that_does_not_exist_is_refused():
    with pytest.raises(AttributeError):
        Taps().put(Bell(), "rign", doubled)

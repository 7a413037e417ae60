"""The sequencer must order threads, and must notice when it cannot."""

from __future__ import annotations

import pytest
from sequencer import Deadlock, Sequencer


def test_steps_happen_in_the_scripts_order():
    taken = []

    def body(*names):
        def run():
            for name in names:
                sequence.at(name)
                taken.append(name)

        return run

    for script in (["a", "b", "c", "d"], ["c", "a", "d", "b"], ["a", "c", "b", "d"]):
        taken.clear()
        sequence = Sequencer(*script)
        sequence.run(body(*[n for n in script if n in "ab"]), body(*[n for n in script if n in "cd"]))
        assert sequence.done == script
        assert sorted(taken) == sorted(script)


def test_a_script_that_cannot_get_on_is_a_deadlock():
    sequence = Sequencer("never", "late", timeout=0.05)
    with pytest.raises(Deadlock, match="late"):
        sequence.run(lambda: sequence.at("late"))


def test_a_step_left_over_is_a_deadlock():
    sequence = Sequencer("a", "b", timeout=0.05)
    with pytest.raises(Deadlock, match="never happened"):
        sequence.run(lambda: sequence.at("a"))


def test_the_first_error_is_raised_and_the_others_end():
    sequence = Sequencer("first", "second")

    def fails():
        sequence.at("first")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sequence.run(fails, lambda: [sequence.at("second"), sequence.at("second")])


def test_a_step_that_is_not_in_the_script():
    sequence = Sequencer("a")
    with pytest.raises(AssertionError, match="no further step 'b'"):
        sequence.run(lambda: sequence.at("b"))

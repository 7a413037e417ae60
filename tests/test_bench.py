"""What `make bench` and `make demo` conclude from two runs."""

import pytest
from bench import Run, first_difference, summarise


def finished(laps, output="loss 1.0\n", report=None):
    return Run(output, "", laps, report)


def test_step_time_leaves_out_the_first_half():
    assert finished([1.0] * 20 + [0.002] * 20).step_ms() == pytest.approx(2.0)


def test_step_time_averages_what_ran_ahead():
    # Nine steps that only queued work and one that waited for all of it: a step took 3 ms.
    assert finished([0.0] * 40 + ([0.0] * 9 + [0.03]) * 4).step_ms() == pytest.approx(3.0)


def test_step_time_of_a_short_run():
    assert finished([1.0, 0.004]).step_ms() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("got", "difference"),
    [
        ("a\nb\n", None),
        ("a\nc\n", "line 2: 'b' became 'c'"),
        ("a\nb\nc\n", "2 lines became 3"),
        ("a\nb", "2 lines became 2, with other line ends"),
    ],
)
def test_first_difference(got, difference):
    assert first_difference("a\nb\n", got) == difference


def test_summary_sees_a_difference_in_any_round():
    laps = [0.004] * 4
    report = {"regions": {"total": 4, "co_executed": 3}}
    co = [finished([0.002] * 4, report=report), finished([0.002] * 4, "loss 2.0\n", report)]
    modes = summarise("mlp", {"eager": [finished(laps), finished(laps)], "co": co})["modes"]
    assert modes["eager"]["differs"] is None
    assert modes["co"]["differs"] == "line 1: 'loss 1.0' became 'loss 2.0'"
    assert modes["co"]["speedup"] == pytest.approx(2.0)
    assert modes["co"]["co_executed"] == 0.75

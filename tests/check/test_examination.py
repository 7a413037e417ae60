"""Three runs of a program, and the verdict on it."""

import re
from pathlib import Path

import pytest
from fake import ANCHOR, FakeRunner, fallback, record

from terra_cx.check.examination import Examination
from terra_cx.check.verdict import Gates, Outcome, exit_status

SCRIPT = Path("train.py")
CO = {"report": record(), "lap": 0.005}


@pytest.fixture
def examine(tmp_path):
    def examine(*runs, gates=None, baseline=None, masks=(), tolerance=0.0):
        runner = FakeRunner(*runs)
        examination = Examination(
            runner, ("--steps", "60"), {"run_ahead": 2}, masks, gates or Gates(), baseline or {}, tolerance
        )
        examine.modes = []
        verdict = examination.of("train.py", SCRIPT, tmp_path, examine.modes.append)
        examine.jobs = runner.jobs
        return verdict

    return examine


def test_identical(examine):
    verdict = examine({}, CO, {"stepped": True})
    assert (verdict.outcome, verdict.detail) == (Outcome.IDENTICAL, "")
    assert (verdict.crossings["compared"], verdict.variables, verdict.seconds) == (2, 1, 3.0)
    assert verdict.speed.ratio == pytest.approx(0.5)
    assert examine.modes == ["eager", "co", "eager-again"]
    eager, co, again = examine.jobs
    assert (eager.settings, eager.anchor) == ({"mode": "eager"}, "")
    assert (co.settings, co.anchor) == ({"mode": "co", "run_ahead": 2}, "")
    assert (again.settings, again.anchor) == ({"mode": "eager"}, ANCHOR)
    assert {job.arguments for job in examine.jobs} == {("--steps", "60")}


def test_failed_in_eager_is_not_run_again(examine):
    verdict = examine({"status": 1, "stderr": "Traceback\nValueError: no"})
    assert (verdict.outcome, verdict.detail) == (Outcome.FAILED, "exit status 1: ValueError: no")
    assert verdict.stderr == "Traceback\nValueError: no"
    assert len(examine.jobs) == 1


def test_different(examine):
    verdict = examine({}, {**CO, "values": (1.0, 2.5)}, {"stepped": True})
    assert verdict.outcome is Outcome.DIFFERENT
    assert verdict.detail == "/p/train.py:9, step 2: 2.0 (float32) became 2.5 (float32)"


def test_within_tolerance(examine):
    verdict = examine({}, {**CO, "values": (1.0, 2.002)}, {"stepped": True}, tolerance=1e-2)
    assert (verdict.outcome, verdict.outcome.code) == (Outcome.WITHIN, 0)
    assert verdict.detail.startswith("the values read at most 1e-03 of eager's away, 0.01 allowed")
    assert all(job.more == {"sketched": True} for job in examine.jobs)


def test_equal_values_are_identical_whatever_is_allowed(examine):
    assert examine({}, CO, {"stepped": True}, tolerance=1e-2).outcome is Outcome.IDENTICAL


def test_beyond_the_tolerance(examine):
    verdict = examine({}, {**CO, "values": (1.0, 2.5)}, {"stepped": True}, tolerance=1e-2)
    assert verdict.outcome is Outcome.DIFFERENT


def test_eager_runs_are_compared_bit_for_bit_all_the_same(examine):
    verdict = examine({}, CO, {"values": (1.0, 2.002)}, tolerance=1e-2)
    assert verdict.outcome is Outcome.NONDETERMINISTIC


def test_within_tolerance_but_not_co_executed(examine):
    run = {**CO, "values": (1.0, 2.002), "report": None}
    assert examine({}, run, {"stepped": True}, tolerance=1e-2).outcome is Outcome.NOT_CO_EXECUTED


def test_co_executed_crash_is_a_difference_with_its_last_words(examine):
    verdict = examine({}, {**CO, "status": -6, "stderr": "malloc(): invalid size", "report": None}, {})
    assert verdict.outcome is Outcome.DIFFERENT
    assert (
        verdict.detail == "the program's end: exit status 0 became killed by SIGABRT: malloc(): invalid size"
    )
    assert verdict.stderr == "malloc(): invalid size"


def test_nondeterministic_is_neither_blamed_nor_passed(examine):
    verdict = examine({"output": "0.1\n"}, {**CO, "output": "0.3\n"}, {"output": "0.2\n"})
    assert verdict.outcome is Outcome.NONDETERMINISTIC
    assert verdict.detail == r"two eager runs: line 1 of its output: '0.1\n' became '0.2\n'"


def test_nondeterministic_even_if_the_co_executed_run_agrees(examine):
    assert examine({}, CO, {"values": (1.0, 3.0)}).outcome is Outcome.NONDETERMINISTIC


def test_masked_output_is_neither(examine):
    runs = {"output": "0.1 s\n"}, {**CO, "output": "0.3 s\n"}, {"output": "0.2 s\n"}
    assert examine(*runs, masks=[re.compile(r"[\d.]+ s")]).outcome is Outcome.IDENTICAL


def test_generators_that_nobody_seeded_do_not_count(examine):
    verdict = examine(
        {"generators": {"random": "a"}},
        {**CO, "generators": {"random": "b"}},
        {"generators": {"random": "c"}},
    )
    assert verdict.outcome is Outcome.IDENTICAL


def test_generators_that_the_program_seeded_count(examine):
    assert examine({}, {**CO, "generators": {"random": "b"}}, {}).outcome is Outcome.DIFFERENT


@pytest.mark.parametrize(
    ("report", "why"),
    [
        ({"regions": {"total": 0, "co_executed": 0}, "anchors": []}, "no training step was found"),
        ({"regions": {"total": 4, "co_executed": 0}}, "only 4 steps, which are needed to trace it"),
        (
            {
                "regions": {"total": 40, "co_executed": 0},
                "anchors": [{"line": ANCHOR, "given_up": "user-gradient: f"}],
            },
            f"given up, {ANCHOR}: user-gradient: f",
        ),
        (
            {"regions": {"total": 0, "co_executed": 0}, "anchors": [], "tensorflow": None},
            "the program did not use TensorFlow",
        ),
        (
            {"regions": {"total": 0, "co_executed": 0}, "anchors": [], "internal_errors": 1},
            "terra-cx itself failed; see its standard error",
        ),
    ],
)
def test_not_co_executed(report, why, examine):
    verdict = examine({}, {"report": record(**report)}, {})
    assert (verdict.outcome, verdict.detail) == (Outcome.NOT_CO_EXECUTED, why)


def test_no_record_is_not_co_executed(examine):
    verdict = examine({}, {"report": None, "ended": False}, {})
    assert verdict.outcome is Outcome.NOT_CO_EXECUTED
    assert verdict.speed.unknown == "no training step was found"


@pytest.mark.parametrize(
    ("report", "why"),
    [
        ({"fallbacks": [fallback(1, "new-shape"), fallback(3)]}, "new-op at train.py:9, 3 times, and 1 more"),
        ({"anchors": [{"line": ANCHOR, "given_up": "diverges: f"}]}, f"given up, {ANCHOR}: diverges: f"),
        ({"internal_errors": 2}, "terra-cx itself failed"),
    ],
)
def test_fallbacks_fail_only_where_asked(report, why, examine, tmp_path):
    runs = {}, {**CO, "report": record(**report)}, {}
    verdict = examine(*runs, gates=Gates(no_fallback=True))
    assert (verdict.outcome, verdict.detail) == (Outcome.FALLBACK, why)


def test_fallbacks_are_told_where_not_asked(examine):
    report = record(fallbacks=[fallback()], anchors=[{"line": ANCHOR, "given_up": "diverges: f"}])
    verdict = examine({}, {**CO, "report": report}, {})
    assert verdict.outcome is Outcome.IDENTICAL
    assert verdict.notes == [f"given up, {ANCHOR}: diverges: f"]


@pytest.mark.parametrize(
    ("gates", "baseline", "outcome", "detail"),
    [
        (Gates(least_speedup=2.0), {}, Outcome.IDENTICAL, ""),
        (Gates(least_speedup=2.1), {}, Outcome.SLOWER, "2.00x eager's speed, 2.1x wanted"),
        (Gates(max_regression=0.1), {"train.py": 0.46}, Outcome.IDENTICAL, ""),
        (
            Gates(max_regression=0.1),
            {"train.py": 0.5 / 1.3},
            Outcome.SLOWER,
            "30% slower than the baseline (0.385 of eager's step time there, 0.500 now), 10% allowed",
        ),
        (Gates(max_regression=0.1), {"train.py": 0.9}, Outcome.IDENTICAL, ""),
        (Gates(), {"train.py": 0.1}, Outcome.IDENTICAL, ""),
    ],
)
def test_speed(gates, baseline, outcome, detail, examine):
    verdict = examine({}, CO, {}, gates=gates, baseline=baseline)
    assert (verdict.outcome, verdict.detail) == (outcome, detail)


@pytest.mark.parametrize(
    ("gates", "baseline"),
    [(Gates(least_speedup=0.1), {}), (Gates(max_regression=5.0), {"train.py": 1.0})],
)
def test_a_speed_that_cannot_be_told_does_not_pass_a_gate(gates, baseline, examine):
    verdict = examine({}, {**CO, "laps": 19}, {"laps": 60}, gates=gates, baseline=baseline)
    assert verdict.outcome is Outcome.SLOWER
    assert verdict.detail == "its speed cannot be told (19 steps in the second half, 20 needed)"


def test_a_program_that_the_baseline_lacks_is_told(examine):
    verdict = examine({}, CO, {}, gates=Gates(max_regression=0.1), baseline={"other.py": 0.5})
    assert verdict.outcome is Outcome.IDENTICAL
    assert verdict.notes == ["not in the baseline"]


def test_values_that_could_not_be_recorded_do_not_pass(examine):
    verdict = examine({}, {**CO, "failure": "KeyError: 3"}, {})
    assert (verdict.outcome, verdict.detail) == (Outcome.FAILED, "it could not be observed: KeyError: 3")


def test_what_is_not_observed_is_told(examine):
    assert examine({}, {**CO, "problems": ["some"]}, {}).notes == ["some"]


@pytest.mark.parametrize(
    ("outcomes", "unreadable", "unwritable", "status"),
    [
        ([], False, False, 0),
        ([Outcome.IDENTICAL, Outcome.SLOWER], False, False, 6),
        ([Outcome.SLOWER, Outcome.FALLBACK], False, False, 7),
        ([Outcome.FALLBACK, Outcome.NOT_CO_EXECUTED], False, False, 4),
        ([Outcome.NOT_CO_EXECUTED, Outcome.NONDETERMINISTIC], False, False, 3),
        ([Outcome.NONDETERMINISTIC], True, False, 8),
        ([Outcome.UNREADABLE, Outcome.FAILED], False, False, 5),
        ([Outcome.FAILED, Outcome.DIFFERENT], True, True, 1),
        ([Outcome.IDENTICAL], False, True, 9),
        ([Outcome.SLOWER], False, True, 6),
    ],
)
def test_exit_status(outcomes, unreadable, unwritable, status):
    assert exit_status(outcomes, unreadable, unwritable) == status

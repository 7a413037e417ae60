"""The first difference of each kind between two runs."""

import re

import pytest
from fake import leave

from terra_cx.check.compare import differences, steady_generators, step_of


@pytest.fixture
def compare(tmp_path):
    def compare(before, after, masks=(), generators=(), tolerance=0.0):
        runs = leave(tmp_path / "before", **before), leave(tmp_path / "after", **after)
        found = differences(*runs, masks, generators, tolerance)
        return [(each.what, str(each)) for each in found]

    return compare


def test_equal_runs(compare):
    assert compare({}, {}) == []


@pytest.mark.parametrize(
    ("before", "after", "what", "words"),
    [
        ({}, {"values": (1.0, 2.5)}, "value", "/p/train.py:9: 2.0 (float32) became 2.5 (float32)"),
        ({}, {"values": (1.0,)}, "value", "/p/train.py:9: 2.0 (float32) read became no further value"),
        ({}, {"values": (1, 2, 3)}, "value", "/p/train.py:9: no further value became 3.0 (float32) read"),
        (
            {},
            {"lines": (9, 12)},
            "value",
            "/p/train.py:9: 2.0 (float32) read here became 2.0 (float32) read at /p/train.py:12",
        ),
        (
            {"stderr": "x"},
            {"status": -11, "stderr": "a\nb\n"},
            "ending",
            "the program's end: exit status 0 became killed by SIGSEGV: b",
        ),
        ({}, {"status": None}, "ending", "the program's end: exit status 0 became did not end within 1 s"),
        (
            {},
            {"output": "loss 1.5\n"},
            "output",
            r"line 1 of its output: 'loss 1.0\n' became 'loss 1.5\n'",
        ),
        ({}, {"output": ""}, "output", r"line 1 of its output: 'loss 1.0\n' became no line"),
        (
            {},
            {"output": "loss 1.0\r\n"},
            "output",
            r"line 1 of its output: 'loss 1.0\n' became 'loss 1.0\r\n'",
        ),
        (
            {},
            {"variables": (("w:0", 4.0),)},
            "variable",
            "variable 'w:0', number 0 in order of creation: 3.0 (float32) became 4.0 (float32)",
        ),
        (
            {},
            {"variables": (("v:0", 3.0),)},
            "variable",
            "variable 'w:0' (now 'v:0'), number 0 in order of creation: 3.0 (float32) with bits",
        ),
        (
            {},
            {"variables": (("w:0", None),)},
            "variable",
            "variable 'w:0', number 0 in order of creation: 3.0 (float32) became no value",
        ),
        ({}, {"made": 2}, "variable", "the number of variables made: 1 became 2"),
    ],
)
def test_each_kind(before, after, what, words, compare):
    [(found, text)] = compare(before, after)
    assert found == what
    assert text.startswith(words)


def test_zeros_of_either_sign_look_different(compare):
    [(_, text)] = compare({"values": (0.0,)}, {"values": (-0.0,)})
    assert text == "/p/train.py:9: 0.0 (float32) became -0.0 (float32)"


def test_values_that_look_equal_show_their_bits(compare):
    [(_, text)] = compare({"values": (float("nan"),)}, {"values": (-float("nan"),)})
    assert re.fullmatch(r".*: nan \(float32\) with bits \w{12} became nan \(float32\) with bits \w{12}", text)


def test_one_of_each_kind_in_order(compare):
    after = {"values": (1.5, 2.5), "output": "no", "variables": (("w:0", 4.0),), "status": 3}
    assert [what for what, _ in compare({}, after)] == ["value", "ending", "output", "variable"]


def test_a_variable_given_up_early_in_one_run_is_not_compared(compare):
    assert compare({"variables": (("a", 1.0), ("b", 2.0))}, {"variables": (("a", 1.0),), "made": 2}) == []


def test_without_an_end_the_rest_is_compared(compare):
    assert compare({}, {"ended": False}) == []


def test_masks(compare):
    before, after = {"output": "took 1.5 s, loss 3\n"}, {"output": "took 22 s, loss 3\n"}
    assert compare(before, after, [re.compile(r"[\d.]+ s")]) == []


def test_masks_hide_only_what_they_match(tmp_path, compare):
    before, after = {"output": "took 1.5 s, loss 3\n"}, {"output": "took 22 s, loss 4\n"}
    assert [what for what, _ in compare(before, after, [re.compile(r"[\d.]+ s")])] == ["output"]


def test_generators_are_compared_where_they_are_steady(tmp_path, compare):
    one, other, third = (
        leave(tmp_path / name, generators={"random": name, "numpy.random": "same"}) for name in "abc"
    )
    assert steady_generators(one, other) == {"numpy.random"}
    assert [*differences(one, third, (), {"numpy.random"})] == []
    [found] = differences(one, third, (), {"random"})
    assert str(found) == "the random generator random: one state became another"


def test_the_step_is_looked_up_in_the_run_that_counted(tmp_path):
    counted = leave(tmp_path / "a", stepped=True)
    assert step_of(counted, 1) == 2
    assert step_of(counted, 5) is None
    assert step_of(leave(tmp_path / "b"), 1) is None


# -- with a tolerance --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("after", "what"),
    [
        ({"values": (1.0, 2.005)}, None),
        ({"values": (1.0, 2.05)}, "value"),
        ({"values": (1.0, 2.005), "lines": (9, 12)}, "value"),
        ({"values": (1.0, 2.0, 3.0)}, "value"),
        ({"output": "loss 1.003\n"}, None),
        ({"output": "loss 2.003\n"}, "output"),
        ({"output": "loss 1.0\nand more 1.0\n"}, "output"),
        ({"variables": (("w:0", 3.003),)}, None),
        ({"variables": (("w:0", 3.3),)}, "variable"),
        ({"variables": (("v:0", 3.0),)}, "variable"),
        ({"status": 1}, "ending"),
    ],
)
def test_within_a_tolerance(compare, after, what):
    assert [each for each, _ in compare({}, after, tolerance=1e-2)] == ([what] if what else [])


def test_a_tolerance_goes_with_masks(compare):
    before, after = {"output": "12 s, loss 1.0\n"}, {"output": "15 s, loss 1.003\n"}
    assert compare(before, after, [re.compile(r"\d+ s")], tolerance=1e-2) == []

"""Identical, rounding or wrong."""

import json
from dataclasses import astuple

import numpy as np
import pytest

from terra_cx.bench.result import result_of
from terra_cx.check.compare import Difference, differences
from terra_cx.check.runs import Run
from terra_cx.check.stream import describe


@pytest.fixture
def result(tmp_path):
    def leave(name, values, output):
        folder = tmp_path / name
        folder.mkdir()
        items = [["/p/a.py", 3, None, *astuple(describe(np.float32(value)))] for value in values]
        (folder / "stream.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        (folder / "stdout").write_text(output)
        return Run(folder, 0, 1.0, "", None, None)

    def result(one, other, output="same"):
        truth, run = leave("truth", one, "same"), leave("run", other, output)
        return result_of(list(differences(truth, run)), truth, run)

    return result


def test_identical(result):
    assert result([1, 2], [1, 2]) == ("identical", "")


def test_rounding_that_training_carries_on(result):
    word, detail = result([1, 2, 3], [1, 2 + 2e-6, 3.003])
    assert word == "rounding"
    assert detail.startswith(
        "first by 1e-06 of the value, at most by 1e-03: /p/a.py:3: 2.0 (float32) became 2.00000"
    )


def test_rounding_at_first_that_hides_nothing(result):
    word, detail = result([1, 2, 3], [1, 2 + 2e-6, 5])
    assert word == "wrong"
    assert detail.endswith("(and values up to 40% apart)")


@pytest.mark.parametrize(
    ("one", "other"), [([1, 2], [1]), ([1], [1, 2]), ([1, 2], [1 + 1e-6]), ([1, 2], [1 + 1e-6, float("nan")])]
)
def test_values_that_have_no_counterpart_are_wrong(one, other, result):
    assert result(one, other)[0] == "wrong"


def test_an_output_alone_is_wrong_and_follows_values_otherwise(result):
    assert result([1], [1], "other")[0] == "wrong"


def test_an_output_follows_the_values(result):
    assert result([1], [1 + 1e-6], "other")[0] == "rounding"


@pytest.mark.parametrize(("after", "word"), [(1 + 1e-6, "rounding"), (1.5, "wrong")])
def test_variables_where_no_value_was_read(after, word):
    pair = describe(np.float32(1)), describe(np.float32(after))
    found = Difference("variable", str(pair[0]), str(pair[1]), "variable w", pair=pair)
    assert result_of([found], None, None)[0] == word

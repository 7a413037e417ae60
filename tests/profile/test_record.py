import json
import re
from pathlib import Path

import pytest
from profiles import Run
from windows import at, two_steps

from terra_cx.profile.record import build
from terra_cx.report.record import blank

PAGE = Path(__file__).parents[2] / "docs" / "design" / "profile.md"


def documented(title):
    """The keys of a table of the page that describes the format."""
    text = PAGE.read_text()
    table = text[text.index(title) :].split("\n\n")[1]
    return {key for row in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_a_profile_has_the_documented_keys():
    profile = Run(two_steps()).profile()
    (anchor,) = profile["anchors"]
    assert set(profile) == documented("A reader must refuse")
    assert set(profile["totals"]) == documented("`totals`:")
    assert set(anchor) == documented("An anchor:")
    assert set(anchor["metrics"]) == documented("`metrics`, all per step")
    assert set(anchor["parts_ms"]) == documented("`parts_ms`:")
    for line in anchor["lines"]:
        assert set(line) == documented("A line:")


def test_what_is_recorded_is_in_the_profile():
    profile = Run(two_steps()).profile()
    (anchor,) = profile["anchors"]
    assert profile["main"] == 0
    assert anchor["regions"] == {"co_executed": 812, "diverged": 1, "traced": 3, "eager": 5}
    assert anchor["seconds"]["co_executed"] == 8.12
    assert anchor["window"]["steps"] == 2
    assert profile["totals"]["fetch_waits"] == 812
    assert profile["totals"]["other_wait_seconds"] == pytest.approx(0.05)
    assert profile["totals"]["path_wait_seconds"] == 4.0
    lines = {line["line"]: line for line in anchor["lines"]}
    assert lines[at(30)]["waits"] == 812
    assert lines[at(30)]["fetches"] == [{"op": "Mean", "line": at(20), "count": 812, "seconds": 1.1}]
    assert lines[at(10)]["fetches"] == []
    assert lines[at(20)]["fallbacks"][0]["reason"] == "new-op"
    assert anchor["lines"][0]["line"] == at(12)  # 4 ms per step, more than any other
    assert anchor["runs"][0]["per_step"] == 1


def test_the_parts_of_the_step_and_of_the_lines_add_up():
    (anchor,) = Run(two_steps()).profile()["anchors"]
    assert sum(anchor["parts_ms"].values()) == pytest.approx(anchor["metrics"]["step_ms"])
    spent = sum(sum(line["parts_ms"].values()) for line in anchor["lines"])
    assert spent == pytest.approx(anchor["metrics"]["step_ms"])


def test_a_program_without_steps_has_a_profile_that_says_so():
    profile = build(blank("co"), None, {"processor": "", "cpus": 1, "gpus": []}, 0.1)
    assert profile["anchors"] == []
    assert profile["main"] is None
    assert "no training step" in profile["problems"][0]
    assert set(profile["totals"]) == documented("`totals`:")


def test_a_profile_without_windows_has_no_metrics():
    profile = Run().profile()
    (anchor,) = profile["anchors"]
    assert (anchor["window"], anchor["metrics"], anchor["parts_ms"], anchor["runs"]) == (None, None, None, [])
    assert {line["line"] for line in anchor["lines"]} == {at(30), at(10), at(20)}
    assert "too few steps" in profile["problems"][0]


def test_a_profile_is_json():
    profile = Run(two_steps()).profile()
    assert json.loads(json.dumps(profile, allow_nan=False)) == profile


def test_the_example_is_a_profile():
    example = Path(__file__).with_name("example.json")
    profile = json.loads(example.read_text())
    assert set(profile) == documented("A reader must refuse")
    for anchor in profile["anchors"]:
        assert set(anchor) == documented("An anchor:")

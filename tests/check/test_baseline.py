"""Baselines: written, read, refused."""

import json

import pytest

from terra_cx.check import baseline
from terra_cx.check.baseline import BaselineError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "baseline.json"


def test_written_and_read_again(path):
    path.write_text(baseline.text({"b.py": 0.51234567, "a.py": 1.5}, ("--steps", "60")))
    assert baseline.read(path, ("--steps", "60")) == {"a.py": 1.5, "b.py": 0.5123}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "not a baseline"),
        ('{"version": 1}', "not a baseline"),
        (
            '{"version": 2, "programs": {}, "arguments": []}',
            "of version 2, but this terra-cx reads version 1",
        ),
        (
            '{"version": 1, "programs": {}, "arguments": ["--steps", "9"]}',
            "made with --steps 9, but the programs",
        ),
        ('{"version": 1, "programs": {}}', "made with no arguments, but"),
        ('{"version": 1, "programs": {"a": {"ratio": 0}}, "arguments": []}', "no ratio above 0 for a"),
        ('{"version": 1, "programs": {"a": {"ratio": "x"}}, "arguments": []}', "no ratio above 0 for a"),
        ('{"version": 1, "programs": {"a": 0.5}, "arguments": []}', "no ratio above 0 for a"),
    ],
)
def test_refused(text, message, path):
    path.write_text(text)
    with pytest.raises(BaselineError, match=message):
        baseline.read(path, ())


def test_missing(path):
    with pytest.raises(BaselineError, match=r"No such file or directory; make one with --write-baseline"):
        baseline.read(path, ())


def test_version_is_in_the_file(path):
    assert json.loads(baseline.text({}, ()))["version"] == baseline.VERSION

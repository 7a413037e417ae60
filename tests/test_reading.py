"""Files that runs have left, and files that only look so."""

import json
from pathlib import Path

import pytest

from terra_cx.errors import UsageError
from terra_cx.report.reading import FileError, read
from terra_cx.report.record import blank

EXAMPLE = Path(__file__).parent / "explain" / "constructed.json"


@pytest.fixture
def written(tmp_path):
    """Write a file; a dictionary as JSON."""

    def write(content, name="run.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def profile(**changes):
    return {**json.loads(EXAMPLE.read_text()), **changes}


def report(**changes):
    anchor = {
        "line": "/home/me/train.py:80", "state": "co-executing", "nodes": 3, "blocks": 1, "live_tapes": None,
        "elisions": {"elided": 1, "compared": 1, "mismatches": 0, "calls": [
            {"call": "Layer.__call__", "of": "Mine", "line": "?", "ops": 0, "elided": 0, "refused": "it prints"},
        ]},
        "given_up": None, "manner": None, "manner_ms": {},
    }  # fmt: skip
    fallback = {
        "reason": "new-op",
        "line": "train.py:84",
        "detail": "Sin where Cos is known",
        "count": 2,
        "seconds": 0.1,
    }
    return {
        **blank("co"),
        "regions": {"total": 100, "co_executed": 90, "traced": 4, "eager": 6},
        "step_ms": {"eager": 4.0, "co": 2.0},
        "overlap": 0.4,
        "anchors": [anchor],
        "fallbacks": [fallback],
        "runner": {"compiled_runs": 90, "busy_seconds": 0.4},
        **changes,
    }


def test_a_profile(written, tmp_path):
    run = read(EXAMPLE)
    assert run.is_profile
    assert (run.seconds, run.overlap, run.regions["total"], run.main) == (12.5, 0.5, 821, run.anchors[0])
    assert run.main.metrics["bound_by"]["line"] == "/home/me/train.py:83"
    assert [line.text for line in run.main.lines][-1] == "losses.append(float(loss))"
    assert run.main.lines[-1].fetches[0].op == "Mean"
    written(profile(), "profile.json")
    assert read(tmp_path).seconds == 12.5


def test_a_report(written):
    run = read(written(report()))
    assert not run.is_profile
    assert (run.seconds, run.overlap, run.main.co_ms, run.main.metrics) == (None, 0.4, 2.0, None)
    assert [(each.line, each.count) for each in run.fallbacks] == [("train.py:84", 2)]
    assert run.main.regions == {"co_executed": 90, "traced": 4, "eager": 6}
    assert [call.refused for call in run.main.calls] == ["it prints"]
    assert run.totals["compiled_runs"] == 90


def test_a_fallback_with_its_whole_path(written):
    changed = report()
    changed["fallbacks"][0].update(
        at="/home/me/train.py:84",
        differences=[
            {"what": "op", "new": "Sin", "known": "Cos", "count": 2, "op": "Sin", "where": "", "lines": []}
        ],
    )
    (fallback,) = read(written(changed)).fallbacks
    assert fallback.line == "/home/me/train.py:84"
    assert fallback.differences[0]["known"] == "Cos"


def test_a_run_without_tensorflow(written):
    run = read(written(blank("co")))
    assert (run.main, run.anchors, list(run.fallbacks)) == (None, (), [])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty: the run did not end, or its disk was full"),
        ("  \n", "is empty"),
        (EXAMPLE.read_text()[:2000], "ends in the middle (line"),
        ("{", "ends in the middle"),
        ("hello there", "is not JSON (line 1: Expecting value)"),
        ("[" * 100_000, "no JSON of terra-cx"),
        ("[1, 2]", "neither a report nor a profile of terra-cx"),
        ("3", "neither a report nor a profile"),
        ({"version": 1}, "neither a report nor a profile"),
        ({"kind": "something", "version": 1}, "neither a report nor a profile"),
        ({"version": 1, "programs": []}, "is what terra-cx check or terra-cx bench wrote"),
        (profile(version=2, terra_cx="7.0"), "a profile of version 2, written by terra-cx 7.0; this is 0.1.0, which"),
        (profile(version=0), "version 0, which is no longer read"),
        (profile(version="1"), "version should be a whole number, not '1'"),
        (profile(version=True), "version should be a whole number"),
        (report(version=3), "a report of version 3"),
        (profile(seconds=None), "seconds should be a number, not None"),
        (profile(seconds=float("nan")), "seconds should be a number, not nan"),
        (profile(anchors={}), "anchors should be a list, not {}"),
        (profile(anchors=[3]), "anchors[0] should be an object, not 3"),
        (profile(main=5), "main should be the number of an anchor, not 5"),
        (profile(command="train.py"), "command should be a list"),
        (report(regions={"total": 0.5}), "regions.total should be a whole number, not 0.5"),
        (report(fallbacks=[{"reason": 4}]), "should be a text"),
        (report(overlap="much"), "overlap should be a number, not 'much'"),
    ],
)  # fmt: skip
def test_what_is_no_run(written, content, words):
    path = written(content)
    with pytest.raises(FileError) as caught:
        read(path)
    text = str(caught.value)
    assert words in text
    assert str(path) in text
    assert "\n" not in text
    assert isinstance(caught.value, UsageError)
    assert caught.value.exit_code == 2


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(
        FileError, match=r"cannot read .*missing.json: No such file or directory; name a file"
    ):
        read(tmp_path / "missing.json")
    with pytest.raises(FileError, match=r"is a folder without a profile\.json"):
        read(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match="is no text"):
        read(tmp_path / "binary.json")

"""The summary on the terminal, made from a record, and the files that are written whole or not at all."""

import io
import json
import os
import stat

import pytest

from terra_cx.errors import UsageError
from terra_cx.report import files
from terra_cx.report.record import VERSION, blank
from terra_cx.report.summary import MOST_FALLBACKS, render


def summary(**changes):
    record = {**blank("co"), "tensorflow": "2.21.0", **changes}
    return render(record, io.StringIO()).splitlines()


def fallback(**changes):
    return {
        "reason": "new-path",
        "line": "train.py:41",
        "count": 1,
        "seconds": 0.25,
        "detail": "Relu instead of Elu",
        **changes,
    }


def test_blank_record_is_json_with_every_key():
    record = json.loads(files.as_json(blank("trace")))
    assert (record["version"], record["mode"]) == (VERSION, "trace")
    assert set(record) == {
        "version", "terra_cx", "python", "tensorflow", "mode", "command", "regions", "step_ms", "overlap",
        "fallbacks", "anchors", "levels", "internal_errors",
    }  # fmt: skip


def test_no_tensorflow():
    assert summary(tensorflow=None) == ["terra-cx  the program did not use TensorFlow"]


def test_no_step():
    assert summary() == ["terra-cx  no training step found; everything ran in plain eager"]


def levels(asked="auto", **changes):
    return {"asked": asked, "blocks": {"graph": 2, "op by op": 1}, "measured": [], "refused": [], **changes}


def test_levels():
    measured = {
        "line": "/p/a.py:5",
        "picked": "graph",
        "over": False,
        "exact_ms": 0.5,
        "relative": {"graph": 0.8},
    }
    refused = {"reason": "level-differs", "level": "xla", "line": "a.py:7", "detail": "too far", "count": 1}
    assert summary(levels=levels(measured=[measured], refused=[refused]))[1:] == [
        "levels    auto: blocks run 2 at graph, 1 op by op",
        "          a.py:5  graph is ahead: exact 0.5 ms, graph 0.80 of that",
        "level     a.py:7  not at xla, level-differs: too far",
    ]
    assert summary(levels=levels(asked="graph", blocks={}))[1:] == ["levels    graph: no block was compiled"]
    assert len(summary(levels=levels(asked="exact"))) == 1
    many = summary(levels=levels(measured=[measured] * 9, refused=[refused] * 9))
    assert "          and 4 more blocks; --report lists them" in many
    assert many[-1] == "          and 4 more; --report lists them"


def test_all_facts():
    lines = summary(
        regions={"total": 200, "co_executed": 188, "traced": 9, "eager": 3},
        step_ms={"eager": 16.0, "co": 0.21},
        overlap=0.634,
        fallbacks=[fallback(), fallback(line="train.py:50", seconds=0, count=3, detail="")],
        anchors=[
            {"line": "a.py:88", "state": "given up", "nodes": 3, "blocks": 0, "given_up": "never settles"},
            {"line": "train.py:40", "state": "stable", "nodes": 30, "blocks": 2, "given_up": None},
        ],
        internal_errors=1,
    )  # fmt: skip
    assert lines == [
        "terra-cx  188 of 200 regions co-executed (9 traced, 3 eager)",
        "          step 0.21 ms, eager 16 ms (76x), overlap 63%",
        "fallback  train.py:41  new-path, 1 time, 250 ms: Relu instead of Elu",
        "fallback  train.py:50  new-path, 3 times",
        "given up  a.py:88  never settles",
        "internal  1 error inside terra-cx; the program went on in plain eager",
    ]


def test_one_region_without_times():
    assert summary(regions={"total": 1, "co_executed": 0, "traced": 1, "eager": 0}) == [
        "terra-cx  0 of 1 region co-executed (1 traced)"
    ]


@pytest.mark.parametrize(
    ("step", "text"),
    [
        ({"eager": 3.0, "co": 1.5}, "step 1.5 ms, eager 3 ms (2.0x)"),
        ({"eager": 1.0, "co": 1.25}, "step 1.25 ms, eager 1 ms (0.8x)"),
        ({"eager": 20000.0, "co": 1234.5}, "step 1234 ms, eager 20.0 s (16x)"),
        ({"eager": 3.0, "co": None}, "eager step 3 ms"),
    ],
)
def test_step_times(step, text):
    assert (
        summary(regions={"total": 9, "co_executed": 9, "traced": 0, "eager": 0}, step_ms=step)[1].strip()
        == text
    )


def test_many_fallbacks_are_cut_to_the_dearest():
    many = [fallback(line=f"train.py:{n}", seconds=n) for n in range(9)]
    lines = summary(fallbacks=many)
    assert [line.split()[1] for line in lines[1 : 1 + MOST_FALLBACKS]] == [
        f"train.py:{n}" for n in (8, 7, 6, 5, 4)
    ]
    assert lines[-1].strip() == "and 4 more kinds of fallback; --report lists them"


def test_other_differences_are_counted():
    (line,) = [x for x in summary(fallbacks=[fallback(differences=[{}, {}, {}])]) if x.startswith("fallback")]
    assert line.endswith(": Relu instead of Elu (and 2 other differences)")


def test_text_of_the_user_is_no_markup_and_is_not_wrapped():
    detail = "[bold]x[/bold] [0, 1] :smile:" + " long" * 100
    assert summary(fallbacks=[fallback(detail=detail)])[1].endswith(detail)


def test_colour_only_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    record = {**blank("co"), "tensorflow": "2.21.0"}
    assert "\x1b[1m" in render(record, Terminal())
    assert "\x1b" not in render(record, io.StringIO())


# --- files -----------------------------------------------------------------------------------------------


def test_written_whole(tmp_path):
    path = files.claim(tmp_path / "r.json")
    assert os.listdir(tmp_path) == []
    files.write_text(path, "first")
    files.write_text(path, "second é")
    assert path.read_text(encoding="utf-8") == "second é"
    assert os.listdir(tmp_path) == ["r.json"]


def test_permissions_are_the_users(tmp_path):
    (tmp_path / "ordinary").touch()
    files.write_text(tmp_path / "r.json", "x")
    assert stat.S_IMODE((tmp_path / "r.json").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "ordinary").stat().st_mode
    )


def test_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.json"]


def test_claim_refuses(tmp_path):
    with pytest.raises(UsageError, match="not a regular file; name another one"):
        files.claim(tmp_path)
    with pytest.raises(UsageError, match=r"cannot write .*: No such file or directory; name another file"):
        files.claim(tmp_path / "missing" / "r.json")


def test_nan_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        files.as_json({**blank("co"), "overlap": float("nan")})

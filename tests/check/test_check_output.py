"""What a check writes: JUnit XML, the JSON record, the table."""

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake import ANCHOR, fallback, record
from rich.console import Console

from terra_cx.check import junit, output
from terra_cx.check.compare import Difference
from terra_cx.check.speed import Speed
from terra_cx.check.verdict import Outcome, Verdict

DIFFERENCE = Difference("value", "1.0 (float32)", "2.0 (float32)", "a.py:3", "/p/a.py", 3, 7, 12)


@pytest.fixture
def verdicts():
    good = Verdict(
        "good.py",
        Path("good.py"),
        speed=Speed(10.0, 5.0),
        before=0.4,
        report=record(fallbacks=[fallback(count) for count in (3, 1, 1, 1)]),
        crossings={"compared": 12},
        variables=4,
        seconds=2.5,
        notes=["a remark"],
    )
    bad = Verdict("bad.py", Path("bad.py"), differences=[DIFFERENCE], stderr="line\x00\x1b[1m <&>")
    bad.blame(Outcome.DIFFERENT, str(DIFFERENCE))
    failed = Verdict("failed.py", Path("failed.py")).blame(Outcome.FAILED, "exit status 1: ValueError: <no>")
    missing = Verdict("missing.py", Path("missing.py")).blame(Outcome.UNREADABLE, "no such file")
    return [good, bad, failed, missing]


def test_junit(verdicts):
    root = ElementTree.fromstring(junit.text(verdicts))
    [suite] = root
    assert suite.attrib == {
        "name": "terra-cx check",
        "tests": "4",
        "failures": "1",
        "errors": "2",
        "skipped": "0",
        "time": "2.500",
    }
    good, bad, failed, missing = suite
    assert good.attrib == {
        "classname": "terra-cx.check",
        "name": "good.py",
        "file": "good.py",
        "time": "2.500",
    }
    assert [child.tag for child in good] == ["system-out"]
    assert "step: 5.000 ms co-executed, 10.000 ms in eager, 2.00x" in good[0].text
    assert "fallback, train.py:9: new-op, 3 times" in good[0].text
    assert bad[0].tag == "failure"
    assert bad[0].attrib == {"type": "different", "message": str(DIFFERENCE)}
    assert bad[0].text == f"value: {DIFFERENCE}\nline\ufffd\ufffd[1m <&>"
    assert [failed[0].tag, failed[0].get("message")] == ["error", "exit status 1: ValueError: <no>"]
    assert [missing[0].tag, missing[0].get("type")] == ["error", "cannot be read"]


def test_record(verdicts):
    made = json.loads(
        json.dumps(output.record(verdicts, ("--steps", "60"), 1, ["a problem"]), allow_nan=False)
    )
    assert made["version"] == 1
    assert (made["exit_status"], made["arguments"], made["problems"]) == (1, ["--steps", "60"], ["a problem"])
    assert made["tensorflow"] == "2.21.0"
    good, bad, *_ = made["programs"]
    assert (good["ratio"], good["speedup"], good["baseline_ratio"]) == (0.5, 2.0, 0.4)
    assert good["anchors"][0]["line"] == ANCHOR
    assert bad["regions"] is None
    assert bad["differences"] == [
        {
            "what": "value",
            "where": "a.py:3",
            "file": "/p/a.py",
            "line": 3,
            "step": 12,
            "eager": "1.0 (float32)",
            "other": "2.0 (float32)",
        }
    ]


def test_every_key_of_the_record_is_described(verdicts):
    made = output.record(verdicts, (), 0, [])
    for key in {*made, *made["programs"][0]}:
        assert f"`{key}`" in output.__doc__


def test_table(verdicts):
    stream = io.StringIO()
    output.show(Console(file=stream, width=160), verdicts, ["cannot write x"])
    text = stream.getvalue()
    heads, good, bad, failed, *lines = [line.rstrip() for line in text.splitlines()]
    assert heads.split()[:3] == ["program", "result", "values"]
    assert good.split() == [
        "good.py",
        "identical",
        "12",
        "4",
        "60",
        "50",
        "6",
        "10.00",
        "5.00",
        "2.00x",
        "2.50x",
    ]
    assert bad.split() == ["bad.py", "different", "-", "-", "-", "-", "-", "n/a", "n/a", "n/a", "-"]
    assert failed.split()[:2] == ["failed.py", "failed"]
    assert "bad.py: different, a.py:3, step 12: 1.0 (float32) became 2.0 (float32)" in lines
    assert "good.py: fallback and 1 more kinds; --json lists them" in lines
    assert "good.py: note, a remark" in lines
    assert "missing.py: cannot be read, no such file" in lines
    assert lines[-1] == "terra-cx check: cannot write x"

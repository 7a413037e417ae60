"""What a bench writes: table, JSON record, chart."""

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from terra_cx.bench import output, plot
from terra_cx.bench.measure import Figures, Measurement
from terra_cx.errors import UsageError
from terra_cx.report.machine import cpus


@pytest.fixture
def measured():
    good = Measurement("good.py", Path("good.py"), timed_at="train_step")
    good.figures = {
        "eager": Figures("eager", rounds_ms=[10.0, 12.0], laps=[0.01] * 40, first_seconds=2.0, peak_mb=600.0),
        "function": Figures("function", "fails", "exit status 1: AttributeError: numpy"),
        "xla": Figures("xla", "wrong", "a.py:3: 1.0 became 2.0", rounds_ms=[2.2]),
        "co": Figures("co", rounds_ms=[4.0, 7.0], limits_ms=[1.5], co_executed=0.95, warmup_seconds=0.5),
    }
    broken = Measurement("broken.py", Path("broken.py"), failure="exit status 1: KeyError: 3")
    return [good, broken]


def test_table(measured):
    stream = io.StringIO()
    output.show(Console(file=stream, width=160), measured, ["cannot write x"], "the conditions")
    head, titles, eager, function, xla, co, *rest = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert head == "the conditions"
    assert titles.split()[:4] == ["program", "mode", "step", "ms"]
    assert eager.split() == [
        "good.py",
        "eager",
        "11.00",
        "10.00-10.00",
        "1.00x",
        "2.0",
        "n/a",
        "600",
        "identical",
    ]
    assert function.split() == ["function", "-", "-", "-", "-", "-", "-", "fails"]
    assert xla.split() == ["xla", "2.20", "-", "5.00x", "n/a", "n/a", "n/a", "wrong"]
    assert co.split() == ["co", "5.50", "-", "2.00x", "1.50", "95%", "n/a", "0.5", "n/a", "identical"]
    assert rest[-4:] == [
        "good.py function: fails, exit status 1: AttributeError: numpy",
        "good.py xla: wrong, a.py:3: 1.0 became 2.0",
        "broken.py: exit status 1: KeyError: 3",
        "terra-cx bench: cannot write x",
    ]


def test_record(measured):
    settings = {"threads": 2, "arguments": [], "rounds": 2, "step": "train_step"}
    made = json.loads(json.dumps(output.record(measured, settings, 5, []), allow_nan=False))
    good, broken = made["programs"]
    assert (made["exit_status"], made["threads"], broken["modes"]) == (5, 2, [])
    co = good["modes"][-1]
    assert (co["mode"], co["step_ms"], co["rounds_ms"], co["speedup"]) == ("co", 5.5, [4.0, 7.0], 2.0)
    assert (co["limit_ms"], co["quartiles_ms"]) == (1.5, None)
    for key in {*made, *good, *co}:
        assert f"`{key}`" in output.__doc__ or key in output.__doc__


def test_conditions_name_what_matters():
    line = output.conditions(4, 1, ("--steps", "60"))
    assert "TensorFlow threads 4 within and 4 between ops, 1 round, arguments --steps 60" in line
    assert f"{cpus()} CPUs" in line


def test_chart(measured):
    text = plot.svg(measured, "the conditions")
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    comments = [part.partition("-->")[0].strip() for part in text.split("<!--")[1:]]
    for words in ("good.py", "2.00x  5.5 ms", "5.00x  2.2 ms  wrong", "function: fails", "the conditions"):
        assert words in comments
    assert "broken.py" not in comments


def test_chart_without_figures(measured):
    assert "<svg" in plot.svg(measured[1:], "the conditions")


def test_a_chart_needs_matplotlib(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'terra-cx\[plot\]'"):
        plot.require()

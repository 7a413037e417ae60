"""What is advised, and that each bound is what follows from the measured times."""

import dataclasses
from pathlib import Path

import pytest

from terra_cx.explain.advice import advise, gain_text
from terra_cx.explain.remedies import of_loop
from terra_cx.explain.source import Source
from terra_cx.reasons import Reason
from terra_cx.report.reading import read
from terra_cx.report.runs import Fallback, Fetch, Line

EXAMPLE = read(Path(__file__).with_name("constructed.json"))
HERE = "/home/me/train.py"


def run(lines=(), *, fallbacks=(), metrics=None, **changes):
    """The example with other lines, and other times of a step."""
    known = {"step_ms": 10.0, "python_busy_ms": 6.0, "graph_busy_ms": 5.0, "bound_by": None}
    anchor = dataclasses.replace(
        EXAMPLE.main, lines=tuple(lines), fallbacks=tuple(fallbacks), metrics={**known, **(metrics or {})}, **changes
    )  # fmt: skip
    return dataclasses.replace(EXAMPLE, anchors=(anchor,), main=anchor)


def line(number=88, text="print(float(loss))", waits=812, fetches=(), **parts):
    return Line(f"{HERE}:{number}", text, 0.0, 0.0, parts, waits, waits / 1000, tuple(fetches))


def advised(*args, **changes):
    return advise(run(*args, **changes), Source())


def test_the_example():
    found = advise(EXAMPLE, Source())
    assert [(each.kind, each.line) for each in found] == [
        ("host", f"{HERE}:83"), ("fetch", f"{HERE}:88"), ("library", f"{HERE}:84"),
    ]  # fmt: skip
    host, fetch, _ = found
    assert host.step_ms == pytest.approx(min(1.9, 4.1 - max(2.6, 2.7 - 1.9)))
    assert fetch.step_ms == pytest.approx(0.9 * 1.3)
    assert fetch.seconds == pytest.approx(0.9 * 1.3 * 812 / 1000)
    assert fetch.what == "`float(loss)` at train.py:88 waited 1.1 s in 812 steps for Mean of line 84"
    assert fetch.remedy == "reading it every 10 steps would let Python run ahead"
    assert gain_text(fetch, EXAMPLE) == "at most 950 ms, 8% of the run, 1.17 ms a step"


@pytest.mark.parametrize(
    ("fetch", "metrics", "gain"),
    [
        (3.0, {}, 2.7),
        (5.0, {}, 4.0),  # Python is busy for 6 of the 10 ms
        (3.0, {"graph_busy_ms": 9.5}, 0.5),  # the graph is the limit
    ],
)
def test_a_wait_gains_no_more_than_what_neither_side_needs(fetch, metrics, gain):
    (found,) = advised([line(fetch=fetch)], metrics=metrics)
    assert found.step_ms == pytest.approx(gain)


@pytest.mark.parametrize(
    ("host", "metrics", "gain"),
    [
        (2.0, {}, 2.0),
        (5.5, {}, 5.0),  # then the graph takes 5 of the 10 ms
        (5.5, {"graph_busy_ms": 9.5}, 0.5),
    ],
)
def test_python_gains_no_more_than_itself_and_the_graphs_rest(host, metrics, gain):
    (found,) = advised([line(text="x = f(y)", waits=0, host=host)], metrics=metrics)
    assert (found.kind, found.step_ms) == ("host", pytest.approx(gain))


def test_what_gains_nothing_is_not_told():
    assert advised([line(fetch=3.0)], metrics={"graph_busy_ms": 10.0}) == []
    assert advised([line(fetch=0.1)]) == []
    assert advised([line(80, "for batch in data:", graph=3.0)]) == []  # the run-ahead limit
    assert (
        advised([line(graph=3.0)], metrics={"bound_by": {"what": "graph", "line": None, "share": 0.9}}) == []
    )


def test_the_remedy_fits_the_line():
    seldom = line(waits=40, fetches=[Fetch("Mean", f"{HERE}:3", 40, 1.0)], fetch=2.0)
    (found,) = advised([seldom])
    assert found.remedy.startswith("it is read seldom already")
    assert found.step_ms == pytest.approx(2.0)
    (found,) = advised([line(text="if float(loss) < best:", fetch=2.0)])
    assert found.remedy.startswith("Python decides by it")
    assert found.what.startswith("`float(loss)` at")
    (found,) = advised([line(text="while loss.numpy() > 1 and float(x) < 2:", fetch=2.0)])
    assert found.what.startswith("`while loss.numpy() > 1 and float(x) < 2:` at")
    (found,) = advised([line(text="x = f(y)", waits=0, user=2.0, host=1.0)])
    assert found.remedy.startswith("move what does not change")
    (found,) = advised([line(text="tf.print(x)", graph=2.0)])
    assert (found.kind, found.step_ms) == ("wait", pytest.approx(2.0))


def test_fallbacks():
    known = Fallback("new-op", f"{HERE}:84", "Sin where Cos is known", 1, 0.5)
    assert advised(fallbacks=[known]) == []  # a way through the step, learned
    many = dataclasses.replace(known, count=100, seconds=2.0, reason="new-arguments")
    (found,) = advised(fallbacks=[many])
    assert found.what == "train.py:84 diverged in 100 of 821 steps: Sin where Cos is known"
    assert found.seconds == pytest.approx(2.0 - 100 * 3.4 / 812)
    assert found.remedy.startswith("pad or bucket what changes")
    shape = {"what": "shape", "new": "(7,)", "known": "(8,)", "count": 90}
    (found,) = advised(fallbacks=[dataclasses.replace(many, differences=(shape,))])
    assert "drop_remainder" in found.remedy


def test_loops_that_are_not_co_executed_come_first():
    found = advised([line(fetch=3.0)], given_up="unsettled: 16 in a row", seconds={})
    assert [each.kind for each in found] == ["given-up", "fetch"]
    assert found[0].what == "the loop at train.py:80 runs in plain eager: unsettled: 16 in a row"
    assert gain_text(found[0], EXAMPLE) == "gain not known"
    (found,) = advised(live_tapes="user-gradient: f")
    assert found.kind == "live-tapes"


def test_every_reason_has_a_remedy():
    assert all(of_loop(f"{reason}: x") != of_loop("nonsense") for reason in Reason)

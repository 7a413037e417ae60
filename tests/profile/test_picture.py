"""The timeline as a picture: what was drawn is where it was measured."""

from xml.etree import ElementTree

import pytest

from terra_cx.profile.events import BlockRunSlice, DeviceLane, Kernel, Op, Region, Sample, Wait, Window
from terra_cx.profile.picture import STEPS, svg

MS = 1_000_000
NAMESPACE = "{http://www.w3.org/2000/svg}"


def window(steps=3):
    """Steps of 10 ms: 2 ms validating, 4 ms of NumPy, 4 ms waiting for a block that began at 3 ms."""
    made = Window("/a/train.py:3", 0)
    for number in range(steps):
        start = 10 * MS * number
        made.regions.append(Region(start, start + 10 * MS, "co_executed", number))
        made.ops.append(Op(start, start + 2 * MS, "MatMul <&>", "/a/train.py:5"))
        made.samples.append(Sample(start + 4 * MS, "host", "/a/train.py:6"))
        made.waits.append(Wait(start + 6 * MS, start + 10 * MS, "fetch", "/a/train.py:7"))
        made.runs.append(
            BlockRunSlice(start + 3 * MS, start + 3 * MS, start + 10 * MS, (0, number, 0), "/a/train.py:5",
                          "/a/train.py:5", 1, "compiled", "fetch")
        )  # fmt: skip
    made.lanes.append(DeviceLane("GPU stream", "gpu", [Kernel(4 * MS, 9 * MS, "gemm")]))
    return made


def parts(text):
    """Rectangles with a title, as (title, x, width); and all texts."""
    root = ElementTree.fromstring(text)
    bars = [
        (rect.findtext(f"{NAMESPACE}title"), float(rect.get("x")), float(rect.get("width")))
        for rect in root.iter(f"{NAMESPACE}rect")
        if rect.find(f"{NAMESPACE}title") is not None
    ]
    return bars, [element.text for element in root.iter(f"{NAMESPACE}text")]


def test_bars_are_as_long_as_what_they_stand_for():
    bars, texts = parts(svg(window()))
    widths = {title.partition(",")[0]: width for title, _, width in bars}
    step = widths["block at train.py:5"] / 0.7
    assert widths["MatMul <&>"] == pytest.approx(0.2 * step, abs=0.2)
    assert widths["train.py:6"] == pytest.approx(0.4 * step, abs=0.2)
    assert widths["wait: fetch"] == pytest.approx(0.4 * step, abs=0.2)
    assert {"Python", "graph", "waiting for a value", "kernel", "NumPy and others", "10 ms"} <= set(texts)


def test_only_the_last_steps_are_shown():
    bars, texts = parts(svg(window(20)))
    assert sum(title.startswith("block at") for title, _, _ in bars) == STEPS
    assert texts.count("10 ms") == STEPS
    assert "kernel" not in texts  # it was earlier


def test_nothing_to_show():
    assert svg(Window("/a/train.py:3", 0)) is None


def test_it_stands_in_any_page():
    text = svg(window())
    assert "<style" not in text
    assert " id=" not in text
    assert "currentColor" in text
    assert len(text) < 20_000


def test_many_bars():
    made = window(1)
    made.ops = [Op(n * 500, n * 500 + 400, "Add", "/a/train.py:5") for n in range(20_000)]
    assert len(svg(made)) < 1_000_000

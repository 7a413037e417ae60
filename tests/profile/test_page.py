"""The page as text; `test_page_in_browser` looks at it as people do."""

import json
import re
from html.parser import HTMLParser

import pytest
from profiles import Run
from windows import Made, at, two_steps

from terra_cx.profile.page import MOST_BARS, render, verdict


def rendered(window, change=lambda profile: None):
    profile = Run(window).profile()
    change(profile)
    return render(profile, [window])


def data(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


VOID = {"meta", "link", "br", "col", "img", "input", "hr"}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing():
    page = rendered(two_steps())
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.links == ["data:,"]
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in re.sub(r"http://www\.w3\.org", "", page)


def test_the_page_says_what_was_found():
    page = rendered(two_steps())
    assert "train.py --epochs 3" in page
    assert "10 ms" in page
    assert "Waited <b>812</b> times, 1.1 s in all, 1.35 ms each, for the value of <code>Mean</code>" in page
    assert "Fell back 1 times (new-op), 10 ms: AddV2 where MatMul is known" in page


def test_nothing_of_the_programs_becomes_part_of_the_page():
    evil = '</script><b onclick="x">&'

    def change(profile):
        profile["command"] = [evil]
        for line in profile["anchors"][0]["lines"]:
            line["text"] = evil

    page = rendered(two_steps(), change)
    assert evil not in page
    assert evil in data(page)["texts"].values()


def test_the_timeline_has_what_was_recorded_in_microseconds():
    found = data(rendered(two_steps()))
    (timeline,) = found["timelines"]
    python, graph = timeline["lanes"]
    assert python["name"] == "Python"
    start, length, what, _name, line = python["bars"][0]
    assert (start, length, found["whats"][what], found["lines"][line]) == (0, 4000, "host", at(12))
    assert [found["whats"][bar[2]] for bar in graph["bars"]] == ["feed wait", "compiled"] * 2
    assert timeline["arrows"][0] == [4000, 6000, pytest.approx(10_000, abs=0.01)]
    assert timeline["steps"] == [[0, 10_000, 100], [10_000, 20_000, 101]]


def test_a_long_window_is_shown_in_part():
    made = Made()
    for number in range(100):
        made.step(number, number + 1)
        for index in range(300):
            made.op(number + index / 300, number + (index + 0.5) / 300, 20, region=number + 1)
    page = rendered(made.window)
    (timeline,) = data(page)["timelines"]
    assert sum(len(lane["bars"]) for lane in timeline["lanes"]) <= MOST_BARS
    assert 10 < len(timeline["steps"]) < 100
    assert timeline["steps"][0][0] == 0
    assert timeline["steps"][-1][2] == 199  # the last ones, in which devices were looked at
    assert "trace.json has all 100" in page


def test_without_a_window_the_page_says_why():
    profile = Run().profile()
    page = render(profile, [])
    assert "has no timeline" in page
    assert data(page)["timelines"] == [None]


def test_without_a_step_there_is_still_a_page():
    profile = Run().profile() | {"anchors": [], "main": None, "problems": ["no training step was found"]}
    page = render(profile, [])
    assert "no training step was found" in page


def test_the_verdict_names_the_line_that_waits():
    window = Made().step(0, 10).op(0, 1, 20).run(1, 10).fetch(2, 10, 30, run=(1, 1, 0)).window
    (anchor,) = Run(window).profile()["anchors"]
    assert "bound by a <b>read</b>: for 80 % of it Python waits at train.py:30" in verdict(anchor)

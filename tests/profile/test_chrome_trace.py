"""The trace is checked by the rules of its readers: Perfetto's own processor has to be downloaded when it is used."""

import json

from hypothesis import given
from hypothesis import strategies as st
from windows import MS, Made, ns, two_steps

from terra_cx.profile.chrome_trace import Bar, arrows, build, nested
from terra_cx.profile.events import DeviceLane, Kernel

PROFILE = {"terra_cx": "0.1.0", "tensorflow": "2.21.0", "command": ["train.py"]}


def check_trace(trace):
    """What Perfetto and chrome://tracing ask of a trace; returns its events."""
    events = json.loads(json.dumps(trace, allow_nan=False))["traceEvents"]
    lanes, named, flows = {}, set(), {}
    for event in events:
        assert event["ph"] in "XMCstf"
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        assert event["ts"] >= 0
        lane = (event["pid"], event["tid"])
        if event["ph"] == "X":
            assert event["dur"] >= 0
            lanes.setdefault(lane, []).append(event)
        elif event["ph"] == "M":
            named.add(lane)
        elif event["ph"] in "stf":
            flows.setdefault(event["id"], []).append(event)
        else:
            assert all(isinstance(value, int | float) for value in event["args"].values())
    assert set(lanes) <= named
    for slices in lanes.values():
        assert_nested(slices)
    for steps in flows.values():
        assert [step["ph"] for step in steps] in (["s", "f"], ["s", "t", "f"])
        assert [step["ts"] for step in steps] == sorted(step["ts"] for step in steps)
        for step in steps:  # an arrow is tied to the slice that it begins or ends in
            assert any(
                s["ts"] <= step["ts"] <= s["ts"] + s["dur"] for s in lanes[step["pid"], step["tid"]]
            ), step
    return events


def assert_nested(slices):
    around = []
    for one in slices:  # in order of their start, outer ones first
        start, end = round(1000 * one["ts"]), round(1000 * (one["ts"] + one["dur"]))
        while around and around[-1][1] <= start:
            around.pop()
        if around:
            assert around[-1][0] <= start
            assert end <= around[-1][1], one
        around.append((start, end))


def of(events, **wanted):
    return [event for event in events if all(event.get(key) == value for key, value in wanted.items())]


def test_a_trace_has_the_lanes_and_what_happened_in_them():
    window = two_steps()
    window.lanes.append(DeviceLane("GPU 0 Stream #7", "gpu", [Kernel(ns(6), ns(8), "gemm")]))
    events = check_trace(build([window], PROFILE))
    names = {e["args"]["name"] for e in of(events, ph="M", name="thread_name")}
    assert names == {"Python (skeleton)", "graph runner", "GPU 0 Stream #7"}
    steps = of(events, cat="step")
    assert [(e["ts"], e["dur"], e["name"]) for e in steps] == [
        (0, 10_000, "step 100"),
        (10_000, 10_000, "step 101"),
    ]
    assert len(of(events, cat="compiled")) == 2
    assert len(of(events, cat="feed wait")) == 2
    assert [e["ts"] for e in of(events, cat="fetch")] == [7000]
    assert [e["args"]["line"].rpartition(":")[2] for e in of(events, cat="host")] == ["12", "12"]
    assert of(events, cat="kernel")[0]["dur"] == 2000


def test_an_arrow_leads_from_the_call_site_to_its_block_to_the_wait():
    found = [(a.op / MS, a.run / MS, a.wait and round(a.wait / MS, 3)) for a in arrows(two_steps())]
    assert found == [(4, 6, 10), (14, 16, None)]


def test_an_arrow_for_an_elided_op_leads_from_its_call():
    window = two_steps()
    window.waits[0].position = 8  # of the call at line 21, which stands for positions 4 to 13
    assert arrows(window)[0].op == 5 * MS


def test_counters_are_there():
    events = check_trace(build([two_steps()], PROFILE))
    assert [e["args"]["runs"] for e in of(events, name="queue depth")] == [1, 0, 1, 0]
    assert of(events, name="run-ahead")


def test_a_run_from_before_the_window_is_in_the_trace():
    made = Made().step(10, 20).run(8, 12, idle_from=7)
    events = check_trace(build([made.window], PROFILE))
    assert [(e["ts"], e["dur"]) for e in of(events, cat="step")] == [(3000, 10_000)]
    assert [(e["ts"], e["dur"]) for e in of(events, cat="path wait")] == [(0, 1000)]


def test_a_run_of_which_nothing_is_known_makes_an_empty_trace():
    assert check_trace(build([], PROFILE))


bars = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)))


@given(bars)
def test_whatever_clocks_say_bars_nest(spans):
    found = list(nested(Bar(start, start + length, "x", "kernel") for start, length in spans))
    assert len(found) == len(spans)
    assert_nested([{"ts": b.start / 1000, "dur": (b.end - b.start) / 1000} for b in found])


@given(bars, bars, bars)
def test_whatever_was_noted_the_trace_is_well_formed(ops, waits, runs):
    made = Made().step(0, 60).step(60, 100)
    for start, length in sorted(ops):
        made.op(start, start + length, 20, position=start + 1)
    for start, length in sorted(waits):
        made.fetch(start, start + length, 30, run=(1, 1, start), position=start)
    for start, length in sorted(runs):
        made.run(start, start + length, first=start, idle_from=max(0, start - 3), issued=start)
    check_trace(build([made.window], PROFILE))

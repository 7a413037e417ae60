"""A profile of a run that was made by hand, and what it takes to make one."""

from collections import Counter, defaultdict
from types import SimpleNamespace

from windows import FILE, at

from terra_cx.profile.profiler import AnchorProfile, WaitCount, _Kept
from terra_cx.profile.record import build
from terra_cx.reasons import Reason
from terra_cx.report.record import blank
from terra_cx.run.anchor import ActiveAnchor
from terra_cx.run.channels import Statistics
from terra_cx.run.graph_runner import RunnerStatistics
from terra_cx.trace.tracegraph import TraceGraph


class Run:
    """A program of one loop, with these windows: as the profiler of its session would have left it."""

    def __init__(self, *windows):
        anchor = ActiveAnchor(1, at(10), TraceGraph(), lambda: 0)
        anchor.regions.update(co_executed=812, traced=3, eager=5)
        anchor.fell_back(Reason.NEW_OP, at(20), "AddV2 where MatMul is known").seconds = 0.01
        anchor.eager_times = [0.02]
        profile = AnchorProfile(
            anchor,
            Counter(co_executed=812, diverged=1, traced=3, eager=5),
            Counter(co_executed=8_120_000_000, diverged=30_000_000, traced=61_000_000, eager=100_000_000),
        )
        profile.waits = defaultdict(WaitCount)
        profile.waits[at(30), "fetch", "Mean", at(20)] = WaitCount(812, 1_100_000_000)
        profile.waits[at(10), "run-ahead limit", "", "?"] = WaitCount(12, 50_000_000)
        for window in windows:
            profile.windows.append(_Kept(window, None, {}, None))
        path = Statistics("path", 256, 812, 812, 0, 3, 0.0, 4.0, True)
        runner = SimpleNamespace(
            statistics=RunnerStatistics(810, 2, 1, 0, 3.0, 0.4), path=SimpleNamespace(statistics=lambda: path)
        )
        self.profiler = SimpleNamespace(
            anchors={1: profile}, problems=[], conductor=SimpleNamespace(runner=runner)
        )
        self.report = blank("co") | {"command": [FILE, "--epochs", "3"], "tensorflow": "2.21.0"}

    def profile(self):
        machine = {"processor": "A processor", "cpus": 2, "gpus": []}
        return build(self.report, self.profiler, machine, 12.5)

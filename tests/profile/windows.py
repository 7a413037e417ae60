"""Windows made by hand, in milliseconds, so that every metric can be computed on paper."""

from terra_cx.profile.events import (
    BlockRunSlice,
    DeviceLane,
    Kernel,
    Op,
    Region,
    Sample,
    Wait,
    Window,
)

MS = 1_000_000
FILE = "/home/me/train.py"


def at(number):
    """A line of the program."""
    return f"{FILE}:{number}"


def ns(ms):
    return round(ms * MS)


class Made:
    """A window that is put together step by step; all methods return it."""

    def __init__(self):
        self.window = Window(at(10), 100)

    def step(self, start, end, number=None, kind="co_executed"):
        number = len(self.window.regions) + 1 if number is None else number
        self.window.regions.append(Region(ns(start), ns(end), kind, number, "overlapped"))
        return self

    def op(self, start, end, line, *, ops=1, elided=False, name="MatMul", region=1, position=1):
        self.window.ops.append(Op(ns(start), ns(end), name, at(line), ops, elided, region, position))
        return self

    def fetch(self, start, end, line, run=None, position=0):
        self.window.waits.append(Wait(ns(start), ns(end), "fetch", at(line), run, "Mean", at(20), position))
        return self

    def wait(self, start, end, line, why="run-ahead limit"):
        self.window.waits.append(Wait(ns(start), ns(end), why, at(line)))
        return self

    def run(self, start, end, *, region=1, first=0, idle_from=None, feeds=False, issued=None, how="compiled"):
        self.window.runs.append(
            BlockRunSlice(
                ns(start),
                ns(start),
                ns(end),
                (1, region, first),
                at(20),
                at(22),
                24,
                how,
                "fetch",
                None if idle_from is None else ns(idle_from),
                feeds,
                None if issued is None else ns(issued),
            )
        )
        return self

    def sample(self, time, part, line):
        self.window.samples.append(Sample(ns(time), part, at(line)))
        return self

    def depth(self, time, value):
        self.window.depths.append((ns(time), value))
        return self

    def lane(self, name, kind, *kernels):
        self.window.lanes.append(
            DeviceLane(name, kind, [Kernel(ns(start), ns(end), word) for start, end, word in kernels])
        )
        return self


def two_steps():
    """Two steps of 10 ms, as a person would draw them.

    Step 1 (0 to 10): 4 ms of NumPy at line 12, then ops at line 20 (4 to 5), an elided call of 10 ops at line 21 (5 to
    6), a wait for the value at line 30 (7 to 10). The graph waits from 0 for the feeds, and runs from 6 to 10.

    Step 2 (10 to 20): 4 ms of NumPy, ops and an elided call as before, no read: 2 ms of the program's own (16 to 18),
    then the run-ahead limit (18 to 20). The graph waits from 10, and runs from 16 to 20.
    """
    made = Made().step(0, 10).step(10, 20)
    for start, region in ((0, 1), (10, 2)):
        made.sample(start + 1, "host", 12).sample(start + 3, "host", 12)
        made.op(start + 4, start + 5, 20, ops=4, region=region, position=4)
        made.op(
            start + 5, start + 6, 21, ops=10, elided=True, name="Dense.__call__", region=region, position=14
        )
        made.run(start + 6, start + 10, region=region, idle_from=start, feeds=True, issued=start + 6 - 0.5)
        made.depth(start + 5.5, 1).depth(start + 6, 0)
    made.sample(6.5, "user", 22).fetch(7, 10, 30, run=(1, 1, 0), position=2)
    made.sample(17, "user", 23).wait(18, 20, 10)
    return made.window

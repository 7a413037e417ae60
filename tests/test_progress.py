"""Lines on a terminal while a run goes on: what they say, and that they never touch what the program writes."""

import fcntl
import io
import os
import pty
import struct
import sys
import termios
from types import SimpleNamespace
from unittest.mock import patch

import pyte
import pytest

from terra_cx.report.progress import FIRST, Progress, fresh_line
from terra_cx.report.record import blank

COLUMNS, ROWS = 60, 24


class Terminal:
    """The two ends of a pseudo terminal, and the screen that a person would see."""

    def __init__(self):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.stream = os.fdopen(os.dup(self.slave), "w")

    def close(self):
        self.stream.close()
        os.close(self.slave)
        os.close(self.master)

    def lines(self):
        """What stands on the screen; everything was written before."""
        os.write(self.slave, b"\0")  # ends what there is to be read
        data = b""
        while not data.endswith(b"\0"):
            data += os.read(self.master, 65536)
        return shown(data)


def shown(data):
    screen = pyte.Screen(COLUMNS, ROWS)
    pyte.ByteStream(screen).feed(data)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


@pytest.fixture
def terminal(monkeypatch):
    made = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())  # a test has no terminal that controls it
    yield made
    made.close()


class Run:
    """A run with a clock of its own, a hundred steps a second, nine of ten co-executed."""

    def __init__(self, stream):
        self.now, self.stream = 0.0, stream
        self.record = {**blank("co"), "overlap": 0.714}
        self.progress = Progress(self.report, stream, lambda: self.now)
        self.progress("train.py:3")  # the first step

    def report(self):
        steps = round(100 * self.now)
        self.record["regions"] = {"total": steps, "co_executed": steps - steps // 10, "traced": 0, "eager": 0}
        return self.record

    def step_at(self, now, stderr=None):
        self.now = now
        with patch.object(sys, "stderr", stderr or self.stream):
            self.progress("train.py:3")


TOLD = "terra-cx: 10 s: 100.0 steps/s, 90% co-executed, overlap 71%"


def test_lines_come_at_doubling_distances(terminal):
    run = Run(terminal.stream)
    for now in range(200):
        run.step_at(float(now))
    assert terminal.lines() == [
        TOLD,
        "terra-cx: 20 s: 100.0 steps/s, 90% co-executed, overlap 71%",
        "terra-cx: 40 s: 100.0 steps/s, 90% co-executed, overlap 71%",
        "terra-cx: 1 min 20 s: 100.0 steps/s, 90% co-executed, overla",
        "terra-cx: 2 min 40 s: 100.0 steps/s, 90% co-executed, overla",
    ]


def test_what_comes_before_the_steps_is_no_time_of_theirs(terminal):
    run = Run(terminal.stream)
    record = {**run.record, "regions": {"total": 500, "co_executed": 450}}
    run.progress = Progress(lambda: record, terminal.stream, lambda: run.now)
    run.step_at(90.0)
    assert terminal.lines() == []
    run.step_at(100.0)
    assert terminal.lines()[0].startswith("terra-cx: 1 min 40 s: 50.0 steps/s, 90% co-executed")


def test_after_a_long_step_there_is_one_line(terminal):
    run = Run(terminal.stream)
    run.step_at(FIRST - 0.1)
    run.step_at(5000.0)
    run.step_at(5001.0)
    assert terminal.lines() == ["terra-cx: 1 h 23 min: 100.0 steps/s, 90% co-executed, overla"]


@pytest.mark.parametrize(
    "before", ["", "x", "loss:", "x" * (COLUMNS - 1), "x" * COLUMNS, "x" * (COLUMNS + 1)]
)
def test_an_unfinished_line_stays_as_it_is(terminal, before):
    terminal.stream.write(f"first\n{before}")
    terminal.stream.flush()
    Run(terminal.stream).step_at(FIRST)
    terminal.stream.write("after\n")
    terminal.stream.flush()
    unfinished = [before[at : at + COLUMNS] for at in range(0, len(before), COLUMNS)]
    assert terminal.lines() == ["first", *unfinished, TOLD, "after"]


def test_a_bar_that_ends_in_a_return_gives_way(terminal):
    for number in range(3):
        terminal.stream.write(f"[{'#' * number:<5}] {number}/5 and a long text behind it\r")
    terminal.stream.flush()
    Run(terminal.stream).step_at(FIRST)
    terminal.stream.write("[###  ] 3/5\r")
    terminal.stream.flush()
    assert terminal.lines() == [TOLD, "[###  ] 3/5"]


def test_a_bar_that_begins_with_a_return_goes_on_below(terminal):
    terminal.stream.write("\r\b\b\b[##   ] 2/5")
    terminal.stream.flush()
    Run(terminal.stream).step_at(FIRST)
    terminal.stream.write("\b\b\b\r[###  ] 3/5\n")
    terminal.stream.flush()
    assert terminal.lines() == ["[##   ] 2/5", TOLD, "[###  ] 3/5"]


def test_tqdm_draws_its_bars_again(terminal):
    tqdm = pytest.importorskip("tqdm").tqdm
    options = {
        "file": terminal.stream,
        "ncols": 40,
        "mininterval": 0,
        "miniters": 1,
        "bar_format": "{desc}{n}/{total}",
    }
    with tqdm(total=5, desc="epoch ", **options) as outer, tqdm(total=9, desc="batch ", **options) as inner:
        inner.update(3)
        Run(terminal.stream).step_at(FIRST)
        assert terminal.lines() == [TOLD, "epoch 0/5", "batch 3/9"]
        outer.update(1)


def test_silent_where_a_line_has_no_place(terminal):
    Run(terminal.stream).step_at(FIRST, stderr=io.StringIO())
    with patch.dict(os.environ, TERM="dumb"):
        Run(terminal.stream).step_at(FIRST)
    with patch.object(os, "tcgetpgrp", lambda _: os.getpgrp() + 1):
        Run(terminal.stream).step_at(FIRST)
    with patch.dict(sys.modules, _curses=SimpleNamespace(isendwin=lambda: False, error=OSError)):
        Run(terminal.stream).step_at(FIRST)
    assert terminal.lines() == []


def test_a_failure_ends_the_lines_only(terminal):
    run = Run(terminal.stream)
    run.record["overlap"] = "no number"
    run.step_at(FIRST)
    run.record["overlap"] = 0.5
    run.step_at(1000.0)
    assert terminal.lines() == []


def test_the_fresh_line_leaves_no_trace():
    assert shown(fresh_line(COLUMNS).encode() + b"text") == ["text"]


PROGRAM = """
import sys, time
import tensorflow as tf
w = tf.Variable(tf.ones([3]))
clock = [0.0]
for step in range(200):
    w.assign_sub(0.1 * tf.tanh(w))
    if step == 150:
        sys.stdout.write("half a line")
        sys.stdout.flush()
"""


def test_a_program_on_a_terminal(tmp_path):
    """The real thing, with a shorter first wait; the terminal is the one that controls the process."""
    (tmp_path / "train.py").write_text(PROGRAM)
    starter = "import sys; from terra_cx import launcher; from terra_cx.report import progress; progress.FIRST = 0.02; "

    def screen(*options):
        child, master = pty.fork()
        if not child:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
            os.environ.update(TERM="xterm", TF_CPP_MIN_LOG_LEVEL="3", TERRA_PACE="overlapped")
            code = starter + f"sys.exit(launcher.main([*{options!r}, {str(tmp_path / 'train.py')!r}]))"
            os.execv(sys.executable, [sys.executable, "-c", code])
        data = b""
        try:
            while piece := os.read(master, 65536):
                data += piece
        except OSError:
            pass  # the other end is closed
        os.close(master)
        assert os.waitpid(child, 0)[1] == 0, data
        return [line for line in shown(data) if "oneDNN" not in line]

    lines = screen()
    told = [line for line in lines if line.startswith("terra-cx: ")]
    assert told, lines
    assert all("steps/s" in line for line in told)
    assert "half a line" in "".join(lines)
    assert not any("terra-cx: " in line[1:] for line in lines)
    assert not any("terra-cx" in line for line in screen("-q"))

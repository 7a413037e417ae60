"""Faults at every boundary between the owner thread and the graph runner: Ctrl-C, failures of ours, the thread's death.

The program keeps a mirror of its state in NumPy. After an interrupt the state must be that before or after the op in
flight, nothing between and nothing older; the program then goes on, and at its end state and mirror are equal. A hang
is ended by the suite's timeout.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf

import terra_cx
from terra_cx.run import block_run, conductor, graph_runner, handover, in_flight, skeleton
from terra_cx.run.channels import Channel
from terra_cx.tf.graphs import CompiledFunction
from terra_cx.tf.native_queue import NativeQueue

ROUNDS, STEPS, SICK = 3, 30, 24
"""Loops of the program, steps in each, and the step of the second loop from which on a fault is due."""

OWNER = [
    (conductor.Conductor, "end_region"),
    (conductor.Conductor, "begin_region"),
    (conductor.Conductor, "drain"),
    (skeleton.Skeleton, "begin"),
    (skeleton.Skeleton, "end"),
    (skeleton.Skeleton, "conclude"),
    (skeleton.Skeleton, "dispatch"),
    (skeleton.Skeleton, "plan"),
    (skeleton.Skeleton, "await_run"),
    (skeleton.Skeleton, "advance"),
    (skeleton.Skeleton, "barrier"),
    (handover.Handover, "issue"),
    (handover.Handover, "flush"),
    (handover.Handover, "wait"),
    (handover.Handover, "region_over"),
    (graph_runner.GraphRunner, "send"),
    (graph_runner.GraphRunner, "launch"),
    (graph_runner.GraphRunner, "land"),
    (in_flight.InFlight, "adopt"),
    (in_flight.InFlight, "land"),
    (NativeQueue, "put"),
    (Channel, "send"),
]
RUNNER = [
    (Channel, "receive"),
    (graph_runner.GraphRunner, "_execute"),
    (graph_runner.GraphRunner, "_compute"),
    (CompiledFunction, "__call__"),
    (block_run.BlockRun, "finish"),
]


@dataclass
class Fault:
    """Raises once, before or after the ``nth`` call of a method on one thread, counted from when it is armed."""

    error: BaseException
    after: bool
    nth: int
    thread: int | None = None
    """The owner's, or None for any other."""
    armed: bool = False
    raised: bool = False
    calls: int = 0

    def put(self, monkeypatch, cls, name):
        """Wrap the method."""
        method = getattr(cls, name)
        me = threading.get_ident()

        def faulty(*args, **kwargs):
            if not self.armed or self.raised or (threading.get_ident() == me) is not (self.thread == me):
                return method(*args, **kwargs)
            self.calls += 1
            if self.calls < self.nth:
                return method(*args, **kwargs)
            self.raised = True
            if self.after:
                method(*args, **kwargs)
            raise self.error

        monkeypatch.setattr(cls, name, faulty)


def mirrored(fault, caught, states=()):
    """The program; returns what differs from what may be.

    Args:
        fault: armed for a while in the second loop.
        caught: gets the errors that the program met.
        states: if it is a list, the state after an error may be any that there was, for the graph lags behind.
    """
    rng = np.random.default_rng(5)
    w = tf.Variable(np.ones((2, 3), np.float32))
    mirror = w.numpy()
    wrong = []
    for turn in range(ROUNDS):
        following = mirror
        try:
            for step in range(STEPS):
                fault.armed = turn == 1 and step >= SICK
                x = rng.normal(size=(2, 3)).astype(np.float32)
                following = mirror * np.float32(0.9) + x
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(w * x)
                    if turn == 1 and step == STEPS - 2:
                        loss = loss * 1.0  # it diverges
                w.assign(w * 0.9 + tape.gradient(loss, w))
                mirror = following
                if isinstance(states, list):
                    states.append(mirror)
                if step % 3 == 0 and not np.isfinite(float(loss)):
                    wrong.append(("loss", turn, step))
        except type(fault.error) as error:
            fault.armed = False
            caught.append(error)
            if not any(np.array_equal(w.numpy(), state) for state in (mirror, following, *states)):
                wrong.append((turn, step))
            mirror = w.numpy()
        fault.armed = False
    if not np.array_equal(w.numpy(), mirror):
        wrong.append("the end")
    return wrong


@pytest.fixture
def nothing_in_flight(monkeypatch):
    """The graph runner's thread executes all runs, as it does with those that are not quick."""
    monkeypatch.setattr(graph_runner.GraphRunner, "launch", lambda self, run: False)


@pytest.mark.parametrize("pace", ["overlapped", "turns"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("cls", "name"), OWNER, ids=lambda value: getattr(value, "__name__", value))
def test_ctrl_c_on_the_owner_thread(monkeypatch, cls, name, after, pace):
    for nth in (1, 2, 5):
        fault = Fault(KeyboardInterrupt("injected"), after, nth, threading.get_ident())
        with monkeypatch.context() as patched:
            fault.put(patched, cls, name)
            caught = []
            run = terra_cx.co_execute(quiet=True, pace=pace)(mirrored)
            assert run(fault, caught) == []
        report = run.last_session.report()
        assert report["regions"]["co_executed"] >= 15
        assert report["internal_errors"] == 0
        assert not fault.raised or caught == [fault.error]


@pytest.mark.parametrize("pace", ["overlapped", "turns"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("cls", "name"), OWNER, ids=lambda value: getattr(value, "__name__", value))
def test_a_failure_of_ours_on_the_owner_thread(monkeypatch, capfd, cls, name, after, pace):
    """The program never sees it: it goes on in plain eager, with all that it has issued done."""
    fault = Fault(AttributeError("injected"), after, 2, threading.get_ident())
    fault.put(monkeypatch, cls, name)
    caught = []
    run = terra_cx.co_execute(quiet=True, pace=pace)(mirrored)
    assert run(fault, caught) == []
    assert caught == []
    assert run.last_session.report()["internal_errors"] == int(fault.raised)
    assert ("injected" in capfd.readouterr().err) is fault.raised


@pytest.mark.usefixtures("nothing_in_flight")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("cls", "name"), RUNNER, ids=lambda value: getattr(value, "__name__", value))
def test_a_failure_on_the_runners_thread(monkeypatch, cls, name, after):
    """It comes out as an error, as a kernel's would; the thread lives on."""
    if name == "receive" and after:
        pytest.skip(
            "a message that was taken and lost is nobody's; the watchdog tells (only an asynchronous exception)"
        )
    fault = Fault(SystemExit("injected"), after, 2)
    fault.put(monkeypatch, cls, name)
    caught, states = [], []
    run = terra_cx.co_execute(quiet=True, pace="overlapped")(mirrored)
    assert run(fault, caught, states) == []
    assert fault.raised
    assert len(caught) <= 1
    assert run.last_session.report()["regions"]["co_executed"] >= 15


# -- at any moment ---------------------------------------------------------------------------------------------------
PACKAGE = os.path.dirname(terra_cx.__file__)
PLACES = int(os.environ.get("FUZZ_PLACES", "12"))
_TAPE_SET = {"tape_new", "tape_add", "tape_remove", "tape_stop", "tape_restart"}
"""Where an interrupt leaves a tape in TensorFlow's set, or takes it out of it for good; so it does in eager."""


class Anywhere:
    """A profile function that sends SIGINT at the ``nth`` place in this package at which Python looks for signals.

    These are the beginnings of functions and the returns of native ones (and jumps backwards, of which a profile
    function does not hear).
    """

    def __init__(self, nth):
        self.nth = nth
        self.places = 0
        self.error = KeyboardInterrupt()
        self._armed = False

    @property
    def armed(self):
        return self._armed

    @armed.setter
    def armed(self, value):
        if value is not self._armed:
            self._armed = value
            sys.setprofile(self if value else None)

    def __call__(self, frame, event, argument):
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        outer = frame
        for _ in range(12):
            if outer is None:
                break
            if outer.f_code.co_name in _TAPE_SET:
                return
            outer = outer.f_back
        self.places += 1
        if self.places == self.nth:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("pace", ["overlapped", "turns", "by thread"])
def test_ctrl_c_at_any_moment(request, pace):
    if pace == "by thread":
        request.getfixturevalue("nothing_in_flight")
        pace = "overlapped"
    run = terra_cx.co_execute(quiet=True, pace=pace)
    counters = Anywhere(0), Anywhere(0)  # a first run has places that later ones lack
    for counter in counters:
        assert run(mirrored)(counter, []) == []
    places = min(counter.places for counter in counters)
    assert places > 1000
    chosen = random.Random(PLACES).sample(range(1, places + 1), min(PLACES, places))
    raised = 0
    for nth in chosen:
        fault, caught = Anywhere(nth), []
        function = terra_cx.co_execute(quiet=True, pace=pace)(mirrored)
        assert function(fault, caught) == [], nth
        assert function.last_session.report()["internal_errors"] == 0, nth
        raised += len(caught)
    assert raised >= 0.8 * len(chosen)  # the places of one run are not quite those of another

"""Runs that the owner thread executes itself, because it would only wait for them."""

from __future__ import annotations

import signal
import sys
import threading
from concurrent import futures

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

from terra_cx.compile.blocks import Block
from terra_cx.run import graph_runner, handover, in_flight
from terra_cx.run.block_run import BlockRun, State
from terra_cx.run.graph_runner import GraphRunner


class Nobody:
    def fetch(self, slot):
        raise AssertionError("nothing is read")


def sent():
    run = BlockRun(Block(-1, ()), Nobody(), 0, 0)
    run.state = State.SENT
    return run


@pytest.fixture
def runner():
    made = GraphRunner(8, 60.0, lambda text: None)
    made.start()
    yield made
    made.close()


def training(see, *, at=lambda number: None):
    rng = np.random.default_rng(2)
    w = tf.Variable(tf.eye(3))
    for number in range(60):
        x = tf.constant(rng.normal(size=(4, 3)).astype("float32"))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.tanh(x @ w)))
        w.assign_sub(0.1 * tape.gradient(loss, w))
        at(number)
        see(loss)
    return w


def test_quick_runs_do_not_reach_the_runners_thread():
    report = both_ways(training, pace="turns", co_executed=40)
    assert report["runner"]["sent"] < 10 < report["runner"]["compiled_runs"]


def test_others_do(monkeypatch):
    monkeypatch.setattr(handover, "QUICK", 0.0)
    report = both_ways(training, pace="turns", co_executed=40)
    assert report["runner"]["sent"] >= 40


def test_overlapped_ones_that_are_not_quick_do(monkeypatch):
    monkeypatch.setattr(in_flight, "QUICK", 0.0)
    report = both_ways(training, pace="overlapped", co_executed=40)
    assert report["runner"]["sent"] >= 40


def test_not_under_an_open_tape():
    """The owner's tapes would record what TensorFlow runs there."""

    def program(see):
        w = tf.Variable(tf.eye(3))
        for _ in range(50):
            with tf.GradientTape() as tape:
                y = tf.tanh(tf.ones((2, 3)) @ w)
                see(y)
                loss = tf.reduce_sum(y)
            w.assign_sub(0.1 * tape.gradient(loss, w))
        return w

    report = both_ways(program, pace="turns", co_executed=30)
    assert report["runner"]["sent"] >= 30


def test_a_signal_waits_until_it_is_done(monkeypatch):
    """Handlers run behind the runs, and what they raise finds all of them done."""
    execute = GraphRunner._execute
    inside = []

    def interrupted(runner, run):
        if runner._guests:
            signal.raise_signal(signal.SIGUSR1)
            inside.append(len(seen))
        execute(runner, run)

    def handler(number, frame):
        seen.append(number)

    seen = []
    before = signal.signal(signal.SIGUSR1, handler)
    monkeypatch.setattr(GraphRunner, "_execute", interrupted)
    monkeypatch.setattr(handover, "QUICK", 1000.0)  # on any machine
    try:
        both_ways(training, pace="turns", co_executed=40)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(seen) == len(inside) >= 30
    assert inside == list(range(len(inside)))  # none had come before the run was over


def test_ctrl_c_leaves_nothing_half_done(monkeypatch):
    execute = GraphRunner._execute
    armed = []

    def interrupted(runner, run):
        if runner._guests and armed:
            armed.pop()
            signal.raise_signal(signal.SIGINT)
        execute(runner, run)

    def program(see):
        w, count = tf.Variable(tf.eye(3)), 0
        for number in range(60):
            try:
                armed[:] = [number] if number % 3 == 0 else []
                w.assign_sub(0.1 * tf.tanh(w))
                value = w.numpy()
            except KeyboardInterrupt:
                count += 1
                value = w.numpy()
            armed.clear()
            see(value)
        counts.append(count)
        return w

    counts = []
    monkeypatch.setattr(GraphRunner, "_execute", interrupted)
    both_ways(program, pace="turns", co_executed=20)
    assert counts[0] == 0 < counts[1]


def test_an_error_surfaces_as_in_eager():
    def program(see):
        w = tf.Variable(tf.eye(3))
        for number in range(50):
            w.assign_add(tf.ones((3, 3)) * 0.1)
            try:
                see(tf.gather(w, [0, 7 if number % 7 == 6 else 1]))
            except tf.errors.InvalidArgumentError as error:
                see(type(error).__name__)
        return w

    both_ways(program, pace="turns", co_executed=20)


def test_a_run_is_executed_once_whoever_is_first(runner, monkeypatch):
    """Another thread has had it sent: the runner's thread is in the midst of it when the owner comes."""
    executed, started, go = [], threading.Event(), threading.Event()

    def execute(self, run):
        executed.append((run, threading.get_ident()))
        started.set()
        assert go.wait(20)
        run.finish(State.DONE)

    monkeypatch.setattr(GraphRunner, "_execute", execute)
    first, second = sent(), sent()
    runner.send(first)
    assert started.wait(20)
    owner = threading.Thread(target=runner.execute_here, args=([first, second],))
    owner.start()
    go.set()
    owner.join(20)
    assert [run for run, _ in executed] == [first, second]
    assert executed[0][1] != executed[1][1]


def test_the_first_run_comes_from_two_threads_at_once(monkeypatch):
    """There is one graph runner, however many hand over the first run: two would execute runs in any order."""
    senders, both = [], threading.Event()

    def send(self, run):
        senders.append(threading.get_ident())
        if len(set(senders)) == 2:
            both.set()
        return own(self, run)

    class Made(threading.Thread):
        def __init__(self, *args, **kwargs):
            if senders and kwargs.get("name") == "terra-cx graph runner":
                assert both.wait(20)  # the other thread is at the same place by then
            super().__init__(*args, **kwargs)

    def program(see):
        w = tf.Variable(tf.eye(3))
        with futures.ThreadPoolExecutor(1) as pool:
            for number in range(30):
                loss = tf.reduce_sum(w * float(number))
                waiting = pool.submit(float, loss)
                w.assign_add(w * 0.01)
                see(waiting.result())
        runners.append(sum(thread.name == "terra-cx graph runner" for thread in threading.enumerate()))
        return w

    own, runners = GraphRunner.send, []
    monkeypatch.setattr(GraphRunner, "send", send)
    monkeypatch.setattr(graph_runner.threading, "Thread", Made)
    both_ways(program, co_executed=10)
    assert runners == [0, 1]
    assert both.is_set()


def test_meanwhile_the_thread_counts_as_the_runners(runner, monkeypatch):
    found = []

    def execute(self, run):
        found.append(self.is_current_thread())
        run.finish(State.DONE)

    monkeypatch.setattr(GraphRunner, "_execute", execute)
    assert not runner.is_current_thread()
    runner.execute_here([sent()])
    assert found == [True]
    assert not runner.is_current_thread()


@pytest.mark.parametrize("pace", ["turns", "overlapped"])
def test_reading_a_value_where_the_stack_is_nearly_full(pace):
    """RecursionError comes before anything is done, or not at all; nothing is lost, nobody waits for ever."""

    def down(depth, tensor):
        return down(depth - 1, tensor) if depth else float(tensor)

    def room():
        frame, depth = sys._getframe(), 0
        while frame is not None:
            frame, depth = frame.f_back, depth + 1
        return depth

    def program(see):
        v, limit = tf.Variable(0.0), sys.getrecursionlimit()
        for number in range(80):
            v.assign_add(1.0)
            z = v * 2.0
            if number >= 30:
                sys.setrecursionlimit(room() + 45 + 2 * (number - 25))
                try:
                    down(45, z)
                except RecursionError:
                    pass
                finally:
                    sys.setrecursionlimit(limit)
            see(z)
        return v

    both_ways(program, pace=pace, co_executed=20)

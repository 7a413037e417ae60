"""Runs in flight: queued natively in order, each once, landed before anybody sees a value; errors are eager's."""

from __future__ import annotations

import gc
import signal
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

import terra_cx
from terra_cx.run import in_flight
from terra_cx.run.block_run import State
from terra_cx.run.in_flight import InFlight
from terra_cx.tf.native_queue import NativeQueue

STEPS = 80


@pytest.fixture
def flown(monkeypatch):
    """What was launched: (region, position) of each run, and how long all took that was in flight then."""
    noted = []
    launch = InFlight.launch
    monkeypatch.setattr(in_flight, "QUICK", 1.0)  # it shall not depend on the machine what flies

    def noting(self, run):
        done = launch(self, run)
        if done:
            noted.append((run.region, run.start, self.seconds))
        return done

    monkeypatch.setattr(InFlight, "launch", noting)
    return noted


def step(w, x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.tanh(tf.matmul(x, w)))
    w.assign_sub(0.1 * tape.gradient(loss, w))
    return loss


def data(number):
    return tf.constant(np.random.default_rng(number).normal(size=(4, 4)).astype("float32"))


def train(see, every):
    """Steps whose loss is read every so often."""
    w = tf.Variable(tf.eye(4))
    for number in range(STEPS):
        loss = step(w, data(number))
        if number % every == 0:
            see(loss)
    return w


@pytest.mark.parametrize("every", [1, 7, 1000])
def test_quick_runs_fly_in_order_and_once(flown, every):
    both_ways(lambda see: train(see, every), co_executed=STEPS - 30)
    places = [place[:2] for place in flown]
    assert len(places) > STEPS // 2
    assert places == sorted(set(places))
    assert all(seconds <= in_flight.QUICK for _, _, seconds in flown)


def test_what_is_not_quick_does_not_fly(flown, monkeypatch):
    monkeypatch.setattr(in_flight, "QUICK", 0.0)

    def program(see):
        w = tf.Variable(tf.eye(4))
        for number in range(STEPS):
            see(step(w, data(number)))

    both_ways(program, co_executed=STEPS - 30)
    assert flown == []


@pytest.mark.parametrize("seed", [None, 7], ids=["one kernel each", "one kernel"])
def test_draws_are_made_once_before_the_function(flown, seed):
    def program(see):
        w = tf.Variable(tf.eye(4))
        for number in range(STEPS):
            noise = tf.random.normal([4, 4], seed=seed)
            w.assign_add(noise * tf.random.uniform([], seed=seed))
            if number % 5 == 0:
                see(tf.reduce_sum(w), noise)
        return w

    both_ways(program, co_executed=STEPS - 30)
    assert len(flown) > STEPS // 3


def test_draws_that_are_given_more_than_integers_do_not_fly(flown, monkeypatch):
    """A tape of the owner thread's would be told of them there."""
    before = []
    put = NativeQueue.put

    def noting(self, function, feeds, made, draws=()):
        before.extend(draws)
        put(self, function, feeds, made, draws)

    monkeypatch.setattr(NativeQueue, "put", noting)

    def program(see):
        w = tf.Variable(tf.ones([4]))
        for _ in range(STEPS):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(w * w + tf.random.gamma([], tf.abs(w) + 1.0, seed=3))
            w.assign_sub(0.01 * tape.gradient(loss, w))
        return w

    both_ways(program, co_executed=STEPS - 30)
    assert flown
    assert before == []


@pytest.fixture
def failed(monkeypatch):
    """The regions of the runs that had not run when one of them had failed in flight."""
    noted = []
    clear = InFlight.clear

    def noting(self):
        runs = clear(self)
        noted.extend(run.region for run in runs)
        return runs

    monkeypatch.setattr(InFlight, "clear", noting)
    return noted


@pytest.mark.parametrize("early", [True, False], ids=["drawn before", "drawn behind"])
def test_draws_of_a_run_that_fails_in_flight_are_not_made_again(flown, failed, early):
    """Nor those of the runs behind it, which were not made; the numbers that follow are eager's."""

    def program(see):
        w = tf.Variable(tf.ones([4]))
        for turn in range(3):
            try:
                for number in range(STEPS):
                    row = tf.constant([9 if (turn, number) == (0, 70) else number % 3])
                    noise = tf.random.normal([1], seed=7) if early else 1.0
                    with tf.GradientTape() as tape:
                        loss = tf.reduce_sum(w * tf.tile(tf.gather(w, row) * noise, [4]))
                    w.assign_sub(1e-3 * tape.gradient(loss, w))
                    if not early:
                        w.assign_add(tf.random.normal([4], seed=7))
                    total = tf.reduce_sum(w)
                    if number % 8 == 7:
                        see(total)
            except tf.errors.InvalidArgumentError:
                see(turn, w)
            see(tf.random.normal([2], seed=7))
        return w

    both_ways(program, co_executed=STEPS - 30, pace="overlapped")
    assert len(flown) > STEPS // 3
    assert failed


@pytest.mark.parametrize("late", [0, 3], ids=["read at once", "read later"])
@pytest.mark.parametrize("bad", [50, 77])
def test_an_op_that_fails_in_flight_fails_as_in_eager(flown, failed, bad, late):
    """What was issued before it has happened, it and what comes after it has not; the program goes on."""

    def program(see):
        w, u = tf.Variable(tf.eye(4)), tf.Variable(0.0)
        for turn in range(3):
            try:
                for number in range(STEPS):
                    u.assign_add(1.0)
                    with tf.GradientTape() as tape:
                        row = tf.constant([9 if (turn, number) == (0, bad) else number % 3])
                        loss = tf.reduce_sum(w * tf.tile(tf.gather(w, row), [4, 1]))
                    w.assign_sub(1e-3 * tape.gradient(loss, w))
                    u.assign_add(0.5)
                    if number % 4 == late:
                        see(u, w)
            except tf.errors.InvalidArgumentError as error:
                see(str(error)[:30], turn, number >= bad)
        return w

    both_ways(program, co_executed=20, pace="overlapped")
    assert len(flown) > 20
    assert failed


def test_an_interrupt_after_it_was_queued(monkeypatch):
    """It is not run a second time."""
    adopt, count = InFlight.adopt, [0]

    def interrupted(self, run):
        count[0] += run.state is State.SENT and threading.current_thread() is threading.main_thread()
        if count[0] in (10, 25):
            count[0] += 1
            raise KeyboardInterrupt
        adopt(self, run)

    monkeypatch.setattr(InFlight, "adopt", interrupted)
    monkeypatch.setattr(in_flight, "QUICK", 1.0)
    caught = []

    @terra_cx.co_execute(quiet=True)
    def train():
        total = tf.Variable(0.0)
        for _ in range(6):
            step, before = 0, total.numpy()
            try:
                for step in range(STEPS):  # noqa: B007
                    seen = total * 1.0
                    total.assign_add(1.0)
                assert float(seen) == float(total) - 1.0
            except KeyboardInterrupt as error:
                caught.append((error, step + int(total.numpy() - before == step + 1)))
        return float(total)

    end = train()
    assert len(caught) == 2
    # Nothing was done twice: after an interrupt the count is that of the loop's steps, and all other loops are whole.
    assert end == 4 * STEPS + sum(done for _, done in caught)
    assert train.last_session.report()["internal_errors"] == 0


def test_a_signal_handler_reads_what_is_in_flight(monkeypatch, flown):
    adopt, latest, read, reading = InFlight.adopt, [], [], []

    def signalled(self, run):
        if not reading:  # or the handler's own reads would call it
            signal.raise_signal(signal.SIGUSR1)
        adopt(self, run)

    def handler(number, frame):
        reading.append(number)
        read.append([float(loss) for loss in latest])
        reading.pop()

    monkeypatch.setattr(InFlight, "adopt", signalled)

    def program(see):
        latest.clear()
        w = tf.Variable(tf.eye(4))
        for number in range(STEPS):
            loss = step(w, data(number))
            if len(flown) % 10 == 9:
                latest.append(loss)
        return w

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        both_ways(program, co_executed=20)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert max(map(len, read)) > 2
    longest = max(read, key=len)
    assert all(values == longest[: len(values)] for values in read)


def test_another_thread_and_a_finaliser_read_what_is_in_flight(flown):
    def program(see):
        class Box:
            pass

        w = tf.Variable(tf.eye(4))
        found = []
        for number in range(STEPS):
            loss = step(w, data(number))
            if number % 10 == 5:
                thread = threading.Thread(target=lambda value=loss: found.append(value.numpy()))
                thread.start()
                thread.join()
            if number % 10 == 8:
                box = Box()
                weakref.finalize(box, lambda value=loss: found.append(float(value + 1.0)))
                box.me = box
                del box
                gc.collect()
        for value in found:
            see(value)
        return w

    both_ways(program, co_executed=10)
    assert len(flown) > 10


def test_the_report_counts_them(flown):
    @terra_cx.co_execute(quiet=True)
    def train():
        w = tf.Variable(tf.eye(4))
        for number in range(STEPS):
            loss = step(w, data(number))
        return loss

    train()
    runner = train.last_session.report()["runner"]
    assert flown
    assert runner["compiled_runs"] >= len(flown)
    assert runner["sent"] + len(flown) >= STEPS - 30
    assert runner["busy_seconds"] > 0


@pytest.mark.parametrize("where", ["put", "land"])
def test_a_finaliser_issues_ops_while_a_run_is_launched_or_lands(flown, monkeypatch, where):
    """It runs where the graph runner's lock is held: were its ops the region's, they would wait for that lock."""
    ran = []
    kind = NativeQueue if where == "put" else InFlight
    own = getattr(kind, where)

    def meanwhile(self, *args):
        ran.append(float((tf.zeros([1]) + 1.0)[0]))
        return own(self, *args)

    monkeypatch.setattr(kind, where, meanwhile)

    both_ways(lambda see: train(see, every=7), co_executed=STEPS // 2)
    assert flown
    assert set(ran) == {1.0}

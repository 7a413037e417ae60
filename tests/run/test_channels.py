"""Channels: bounded, blocking, closable, with named errors; every interleaving here is scripted."""

from __future__ import annotations

import inspect
import itertools
import signal
import sys
import threading
from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sequencer import Sequencer

from terra_cx.errors import TerraError
from terra_cx.run import channels
from terra_cx.run.channels import Broken, Channel, ChannelError, Closed, WouldBlock


class Scripted(Channel):
    """A channel that tells a sequencer when a thread is about to wait: its ticket is queued by then."""

    def __init__(self, capacity, sequence, **more):
        super().__init__("path", capacity, **more)
        self.sequence = sequence

    def _wait(self, ticket, queue, what):
        self.sequence.at(f"{threading.current_thread().name} waits")
        return super()._wait(ticket, queue, what)


def named(name, body):
    """A body whose thread has a name."""

    def run():
        threading.current_thread().name = name
        body()

    return run


# -- order and bounds ------------------------------------------------------------------------------------------------
def test_items_come_out_in_order():
    channel = Channel("feed", 3)
    for item in "abc":
        channel.send(item)
    assert [channel.receive() for _ in range(3)] == ["a", "b", "c"]


def test_a_full_and_an_empty_channel_would_block():
    channel = Channel("feed", 2)
    with pytest.raises(WouldBlock, match="channel 'feed' is empty"):
        channel.receive(block=False)
    channel.send(1)
    channel.send(2)
    with pytest.raises(WouldBlock, match=r"channel 'feed' is full \(2\)"):
        channel.send(3, block=False)
    assert channel.receive(block=False) == 1
    channel.send(3, block=False)
    assert [channel.receive(), channel.receive()] == [2, 3]


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_channel_needs_room_for_one_item(capacity):
    with pytest.raises(ValueError, match="channel 'path': capacity must be at least 1"):
        Channel("path", capacity)


def test_none_is_an_item_like_any_other():
    channel = Channel("feed", 1)
    channel.send(None)
    assert channel.receive() is None


def test_errors_are_terra_errors():
    assert issubclass(ChannelError, TerraError)
    assert all(issubclass(kind, ChannelError) for kind in (Closed, Broken, WouldBlock))
    assert not issubclass(Broken, Closed)


# -- blocking --------------------------------------------------------------------------------------------------------
def test_a_sender_waits_while_the_channel_is_full():
    sequence = Sequencer("sender waits", "take", "sent")
    channel = Scripted(1, sequence)

    def sender():
        channel.send(1)
        channel.send(2)
        sequence.at("sent")

    def receiver():
        sequence.at("take")
        assert channel.receive() == 1

    sequence.run(named("sender", sender), receiver)
    assert channel.receive() == 2


def test_a_receiver_waits_while_the_channel_is_empty():
    sequence = Sequencer("receiver waits", "give", "got")
    channel = Scripted(1, sequence)

    def receiver():
        assert channel.receive() == "x"
        sequence.at("got")

    def sender():
        sequence.at("give")
        channel.send("x")

    sequence.run(named("receiver", receiver), sender)


def test_waiting_receivers_are_served_in_the_order_in_which_they_came():
    sequence = Sequencer("a waits", "b waits", "give", "a has", "give again", "b has")
    channel = Scripted(2, sequence)

    def receiver(name, item):
        def body():
            assert channel.receive() == item
            sequence.at(f"{name} has")

        return named(name, body)

    def sender():
        sequence.at("give")
        channel.send(1)
        sequence.at("give again")
        channel.send(2)

    sequence.run(receiver("a", 1), receiver("b", 2), sender)


def test_a_woken_receiver_waits_again_if_another_was_quicker():
    sequence = Sequencer("slow waits", "steal", "slow waits", "give")
    channel = Scripted(1, sequence)

    def slow():
        assert channel.receive() == "second"

    def quick():
        sequence.at("steal")
        with channel._lock:  # nobody else gets in between: the item is gone when the woken receiver looks
            channel._items.append("first")
            channel._receivers.wake()
            assert channel._items.popleft() == "first"
        sequence.at("give")
        channel.send("second")

    sequence.run(named("slow", slow), quick)


@pytest.mark.parametrize(
    ("senders", "receivers", "capacity"), [(1, 1, 1), (1, 1, 3), (3, 1, 2), (1, 3, 2), (3, 3, 1)]
)
def test_nothing_is_lost_or_doubled_between_many_threads(senders, receivers, capacity):
    channel = Channel("feed", capacity)
    count = 300
    received = [[] for _ in range(receivers)]

    def sender(number):
        def body():
            for index in range(count):
                channel.send((number, index))

        return body

    def receiver(into):
        def body():
            try:
                while True:
                    into.append(channel.receive())
            except Closed:
                pass

        return body

    sending = [threading.Thread(target=sender(number)) for number in range(senders)]
    sequence = Sequencer()
    for thread in sending:
        thread.start()

    def closer():
        for thread in sending:
            thread.join()
        channel.close()

    sequence.run(closer, *[receiver(into) for into in received])
    together = list(itertools.chain(*received))
    assert sorted(together) == [(number, index) for number in range(senders) for index in range(count)]
    for into in received:  # each receiver sees each sender's items in order
        for number in range(senders):
            mine = [index for sender, index in into if sender == number]
            assert mine == sorted(mine)
    assert channel.statistics().max_depth <= capacity


# -- ends ------------------------------------------------------------------------------------------------------------
def test_what_was_sent_before_a_close_is_still_delivered():
    channel = Channel("path", 2)
    channel.send(1)
    channel.send(2)
    channel.close()
    assert [channel.receive(), channel.receive()] == [1, 2]
    with pytest.raises(Closed, match="channel 'path' is closed"):
        channel.receive()
    with pytest.raises(Closed, match="channel 'path' is closed"):
        channel.send(3)


def test_a_broken_channel_delivers_nothing_more():
    channel = Channel("path", 2)
    channel.send(1)
    cause = KeyError("kernel")
    channel.break_(cause)
    for call in (channel.receive, lambda: channel.receive(block=False), lambda: channel.send(2)):
        with pytest.raises(Broken, match="channel 'path' is broken") as caught:
            call()
        assert caught.value.__cause__ is cause


@pytest.mark.parametrize("first", ["close", "break_"])
def test_broken_outweighs_closed(first):
    channel = Channel("path", 1)
    second = "break_" if first == "close" else "close"
    getattr(channel, first)()
    getattr(channel, second)()
    with pytest.raises(Broken):
        channel.receive()


@pytest.mark.parametrize(("end", "error"), [("close", Closed), ("break_", Broken)])
def test_an_end_wakes_every_waiting_sender(end, error):
    sequence = Sequencer("a waits", "b waits", "end")
    channel = Scripted(1, sequence)
    channel.send(0)

    def sender():
        with pytest.raises(error):
            channel.send(1)

    def ender():
        sequence.at("end")
        getattr(channel, end)()

    sequence.run(named("a", sender), named("b", sender), ender)


@pytest.mark.parametrize(("end", "error"), [("close", Closed), ("break_", Broken)])
def test_an_end_wakes_every_waiting_receiver(end, error):
    sequence = Sequencer("a waits", "b waits", "end")
    channel = Scripted(1, sequence)

    def receiver():
        with pytest.raises(error):
            channel.receive()

    def ender():
        sequence.at("end")
        getattr(channel, end)()

    sequence.run(named("a", receiver), named("b", receiver), ender)


# -- Ctrl-C while waiting --------------------------------------------------------------------------------------------
class Interrupted(BaseException):
    """Stands for what a signal handler raises."""


def interrupting(channel_box, before=lambda channel: None):
    """For ``on_stall``: raise in the wait, once, after doing ``before``."""
    armed = [True]

    def on_stall(_):
        if armed and threading.current_thread().name == "victim":
            armed.clear()
            before(channel_box[0])
            raise Interrupted

    return on_stall


def test_an_interrupted_receiver_does_not_take_a_later_wake_up_with_it():
    sequence = Sequencer("victim waits", "other waits", "give")
    box = []
    channel = Scripted(1, sequence, watchdog=0.0, on_stall=interrupting(box))
    box.append(channel)

    def victim():
        with pytest.raises(Interrupted):
            channel.receive()

    def other():
        assert channel.receive() == "mine"

    def sender():
        sequence.at("give")
        channel.send("mine")

    sequence.run(named("victim", victim), named("other", other), sender)


def test_an_interrupted_receiver_passes_on_a_wake_up_that_was_already_its_own():
    sequence = Sequencer("victim waits", "other waits", "interrupt")
    box = []

    def before(channel):
        sequence.at("interrupt")  # the other waits too by now
        channel.send("for whoever still wants it")

    channel = Scripted(1, sequence, watchdog=0.0, on_stall=interrupting(box, before))
    box.append(channel)

    def victim():
        with pytest.raises(Interrupted):
            channel.receive()

    def other():
        assert channel.receive() == "for whoever still wants it"

    sequence.run(named("victim", victim), named("other", other))


def test_an_interrupted_sender_passes_on_its_wake_up():
    sequence = Sequencer("victim waits", "other waits", "interrupt")
    box = []

    def before(channel):
        sequence.at("interrupt")
        assert channel.receive() == 0

    channel = Scripted(1, sequence, watchdog=0.0, on_stall=interrupting(box, before))
    box.append(channel)
    channel.send(0)

    def victim():
        with pytest.raises(Interrupted):
            channel.send("victim's")

    sequence.run(named("victim", victim), named("other", lambda: channel.send("other's")))
    assert channel.receive() == "other's"
    assert channel.statistics().depth == 0


def test_a_signal_interrupts_the_main_thread_in_its_wait():
    channel = Channel("path", 1)
    main = threading.main_thread().ident

    lines, first = inspect.getsourcelines(Channel._wait)
    waiting = [first + number for number, line in enumerate(lines) if "ticket.acquire(" in line]

    def press():
        while True:  # until the main thread stands in the wait itself
            frame = sys._current_frames()[main]
            if frame.f_code is Channel._wait.__code__ and frame.f_lineno in waiting:
                break
        signal.pthread_kill(main, signal.SIGINT)
        # The interpreter itself may miss a signal that comes just before the lock blocks: press again, as a user would.
        while not interrupted.wait(5):
            signal.pthread_kill(main, signal.SIGINT)

    interrupted = threading.Event()
    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        channel.receive()
    interrupted.set()
    thread.join()
    assert not channel._receivers
    channel.send(1)
    assert channel.receive() == 1


# -- the watchdog and the figures ------------------------------------------------------------------------------------
def test_the_watchdog_is_called_once_and_the_wait_goes_on():
    told = []

    def on_stall(where):
        told.append(where)
        channel.send("late")  # the lock is not held while it is called

    channel = Channel("path", 1, watchdog=0.0, on_stall=on_stall)
    assert channel.receive() == "late"
    assert told == ["receive from channel 'path'"]


def test_the_watchdog_names_the_side_that_waits():
    told = []

    def on_stall(where):
        told.append(where)
        channel.receive()

    channel = Channel("path", 1, watchdog=0.0, on_stall=on_stall)
    channel.send(1)
    channel.send(2)
    assert told == ["send to channel 'path'"]


def test_a_watchdog_without_a_callback_only_waits():
    sequence = Sequencer("receiver waits", "give")
    channel = Scripted(1, sequence, watchdog=0.0)

    def sender():
        sequence.at("give")
        channel.send(5)

    sequence.run(named("receiver", lambda: channel.receive()), sender)
    assert channel.statistics().received == 1


def test_statistics_count_messages_depth_and_waits(monkeypatch):
    clock = itertools.count(0, 10)
    monkeypatch.setattr(channels.time, "perf_counter", lambda: next(clock))
    channel = Channel("fetch", 2, watchdog=0.0, on_stall=lambda where: channel.send("x"))
    before = channel.statistics()
    assert (before.name, before.capacity, before.sent, before.received, before.depth) == ("fetch", 2, 0, 0, 0)
    assert channel.receive() == "x"  # waits once: ten ticks of the clock
    channel.send(1)
    channel.send(2)
    now = channel.statistics()
    assert (now.sent, now.received, now.depth, now.max_depth, now.closed) == (3, 1, 2, 2, False)
    assert (now.receive_wait, now.send_wait) == (10, 0.0)
    assert before.sent == 0  # a snapshot
    channel.receive()
    channel.close()
    end = channel.statistics()
    assert (end.depth, end.max_depth, end.closed) == (1, 2, True)


# -- against a model -------------------------------------------------------------------------------------------------
class Model(RuleBasedStateMachine):
    """Any sequence of calls that do not wait, against a deque."""

    def __init__(self):
        super().__init__()
        self.capacity = 3
        self.channel = Channel("model", self.capacity)
        self.items = deque()
        self.end = None
        self.sent = self.received = 0

    @rule(item=st.integers())
    def send(self, item):
        if self.end is not None:
            with pytest.raises(self.end):
                self.channel.send(item, block=False)
        elif len(self.items) == self.capacity:
            with pytest.raises(WouldBlock):
                self.channel.send(item, block=False)
        else:
            self.channel.send(item, block=False)
            self.items.append(item)
            self.sent += 1

    @rule()
    def receive(self):
        if self.items and self.end is not Broken:
            assert self.channel.receive(block=False) == self.items.popleft()
            self.received += 1
        else:
            with pytest.raises(self.end or WouldBlock):
                self.channel.receive(block=False)

    @precondition(lambda self: self.sent > 2)
    @rule()
    def close(self):
        self.channel.close()
        self.end = self.end or Closed

    @precondition(lambda self: self.sent > 4)
    @rule()
    def break_(self):
        self.channel.break_()
        self.end = Broken

    @invariant()
    def figures(self):
        figures = self.channel.statistics()
        assert (figures.sent, figures.received) == (self.sent, self.received)
        assert figures.depth == len(self.items) <= figures.max_depth <= self.capacity
        assert figures.closed is (self.end is not None)


TestModel = Model.TestCase

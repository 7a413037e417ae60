"""Liveness is judged on slots: whatever Python can still reach counts, and nothing else does."""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
import threading
import weakref

import pytest
import tensorflow as tf

from terra_cx.run.dispatching import _alive
from terra_cx.tf.placeholder import new_placeholder
from terra_cx.tf.slots import Slot, Spec

SPEC = Spec(1, (2,))


class Region:
    """A run's slots, and the placeholders that Python got for them."""

    def __init__(self, count=3):
        self.slots = [Slot(SPEC, None, index) for index in range(count)]

    def give(self, index=1):
        """A placeholder as the skeleton answers with."""
        return new_placeholder(self.slots[index])

    @property
    def alive(self):
        return _alive(self.slots)


@pytest.fixture
def region():
    return Region()


def test_slots_that_only_the_runtime_holds_are_dead(region):
    assert region.alive == []
    region.give()
    assert region.alive == []
    assert _alive([None, Slot(SPEC, None, 0), None]) == []


@pytest.mark.parametrize(
    "keep",
    [
        lambda x: x,
        lambda x: [x],
        lambda x: {"loss": [x]},
        lambda x: {"key": (x,)},
        lambda x: functools.partial(print, x),
        lambda x: lambda: x,
        lambda x: lambda y=x: y,
        lambda x: type("Owner", (), {"loss": x}),
        lambda x: tf.nest.map_structure(lambda y: y, {"a": x}),
        lambda x: iter([x]),
        lambda x: zip([x], [1], strict=True),
        lambda x: ValueError(x),
        lambda x: x.__repr__,  # a bound method
        lambda x: {"ref": x.ref()},
    ],
)
def test_whatever_holds_the_placeholder_keeps_its_slot_alive(region, keep):
    kept = keep(region.give())
    assert region.alive == [1]
    del kept
    gc.collect()
    assert region.alive == []


def test_a_local_of_a_running_function(region):
    def user():
        loss = region.give()
        return runtime(), loss

    def runtime():
        return region.alive

    assert user()[0] == [1]
    assert region.alive == []


def test_an_argument_that_is_only_on_the_interpreters_stack(region):
    assert (lambda placeholder, alive: alive)(region.give(), region.alive) == [1]


def test_a_generators_local(region):
    def generator():
        loss = region.give()
        yield
        yield loss

    running = generator()
    next(running)
    assert region.alive == [1]
    running.close()
    assert region.alive == []


def test_a_coroutines_local(region):
    async def coroutine():
        loss = region.give()
        await asyncio.sleep(0)
        return loss

    running = coroutine()
    running.send(None)
    assert region.alive == [1]
    running.close()
    assert region.alive == []


def test_a_closure_and_a_default(region):
    def make():
        loss = region.give()

        def closure():
            return loss

        return closure

    closure = make()
    assert region.alive == [1]
    del closure
    assert region.alive == []


def test_the_frames_of_a_traceback(region):
    def fails():
        loss = region.give()
        raise KeyError(id(loss))

    try:
        fails()
    except KeyError as error:
        caught = error
    assert region.alive == [1]
    caught.__traceback__ = None
    assert region.alive == []


def test_a_cycle_keeps_it_until_it_is_collected(region):
    class Node:
        pass

    node = Node()
    node.me, node.loss = node, region.give()
    gc.disable()
    try:
        del node
        assert region.alive == [1]  # conservative: nobody can reach it, which only costs an output
        gc.collect()
        assert region.alive == []
    finally:
        gc.enable()


def test_another_threads_argument(region):
    running, done, alive = threading.Event(), threading.Event(), []

    def worker(placeholder):
        running.set()
        done.wait()
        return placeholder

    thread = threading.Thread(target=worker, args=(region.give(),))
    thread.start()
    running.wait()
    alive.append(region.alive)
    done.set()
    thread.join()
    del thread
    alive.append(region.alive)
    assert alive == [[1], []]


def test_a_weak_reference_neither_keeps_nor_revives_it(region):
    placeholder = region.give()
    reference = weakref.ref(placeholder)
    finalised = []
    weakref.finalize(placeholder, finalised.append, True)
    del placeholder
    assert region.alive == []
    assert reference() is None
    assert finalised == [True]


def test_a_finaliser_that_revives_its_owner_keeps_the_slot(region):
    revived = []

    class Phoenix:
        def __init__(self, placeholder):
            self.placeholder = placeholder

        def __del__(self):
            revived.append(self.placeholder)

    Phoenix(region.give())
    assert region.alive == [1]
    revived.clear()
    assert region.alive == []


def test_each_slot_is_judged_by_itself():
    region = Region(5)
    kept = [region.give(3), region.give(0)]
    assert region.alive == [0, 3]
    kept.pop()
    assert region.alive == [3]
    again = region.give(3)  # two placeholders of one slot
    kept.clear()
    assert region.alive == [3]
    del again
    assert region.alive == []


def test_judging_leaves_no_reference_behind(region):
    counts = [sys.getrefcount(slot) for slot in region.slots]
    for _ in range(10):
        region.alive  # noqa: B018
    assert [sys.getrefcount(slot) for slot in region.slots] == counts


def test_a_record_that_holds_slots_keeps_them(region):
    """What is passed on to a later run is held by it as a slot: it must come out of this one."""
    params = [region.slots[2]]
    assert region.alive == [2]
    params.clear()
    assert region.alive == []


# -- values and errors -----------------------------------------------------------------------------------------------
def test_a_slot_with_a_value_answers_at_once():
    class Never:
        def fetch(self, slot):
            raise AssertionError("it has a value")

    slot = Slot(SPEC, Never(), 0)
    slot.value = tf.constant([1.0, 2.0])
    assert slot.resolve() is slot.value


def test_a_slot_asks_its_run_once_and_then_has_the_value():
    class Run:
        asked = 0

        def fetch(self, slot):
            self.asked += 1
            slot.value = tf.constant([1.0, 2.0])

    run = Run()
    slot = Slot(SPEC, run, 0)
    assert slot.resolve() is slot.resolve()
    assert run.asked == 1


def test_a_slot_with_an_error_raises_it_without_asking():
    class Never:
        def fetch(self, slot):
            raise AssertionError("it has an error")

    slot = Slot(SPEC, Never(), 0)
    slot.error = KeyError("kernel")
    for _ in range(2):
        with pytest.raises(KeyError, match="kernel"):
            slot.resolve()


def test_a_slot_whose_run_finds_an_error():
    class Run:
        def fetch(self, slot):
            slot.error = KeyError("kernel")

    with pytest.raises(KeyError, match="kernel"):
        Slot(SPEC, Run(), 0).resolve()


def test_specs():
    assert SPEC.key() == (1, (2,))
    assert repr(SPEC) == "Spec(1, (2,))"
    assert Spec(1, None).key() != Spec(1, ()).key()

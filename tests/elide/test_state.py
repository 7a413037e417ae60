"""State: everything that a call can reach and names is compared; what it does not name is not."""

from __future__ import annotations

import functools
import weakref

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from terra_cx.elide.state import State, Unfit, same


class Thing:
    def __init__(self, **attributes):
        vars(self).update(attributes)


class Other(Thing):
    pass


class Slotted:
    __slots__ = ("other", "value")

    def __init__(self, value):
        self.value = value


class Everything:
    """All names count."""

    def __contains__(self, name):
        return True


def state(*roots, used=None, opaque=()):
    return State(roots, Everything() if used is None else used, frozenset(opaque))


def changes():
    """An object, and something that changes it."""
    inner = Thing(rate=0.5, sizes=[1, 2], table={"a": 1}, group={1, 2}, pair=(Thing(deep=1), 2))
    thing = Thing(inner=inner, weights=np.zeros(3), partial=functools.partial(min, [3]), slot=Slotted(1))
    box = [1]
    thing.function = lambda: box
    return thing, {
        "an attribute": lambda: setattr(inner, "rate", 0.25),
        "an attribute behind the back": lambda: vars(inner).update(rate=0.75),
        "a new attribute": lambda: setattr(inner, "more", 1),
        "a deleted attribute": lambda: delattr(inner, "rate"),
        "its class": lambda: setattr(inner, "__class__", Other),
        "its dict": lambda: setattr(inner, "__dict__", vars(inner) | {"rate": 0.25}),
        "an element": lambda: inner.sizes.__setitem__(0, 5),
        "a longer list": lambda: inner.sizes.append(3),
        "an entry": lambda: inner.table.update(a=2),
        "another entry": lambda: inner.table.update(b=1),
        "a key": lambda: inner.table.update(b=inner.table.pop("a")),
        "a set": lambda: inner.group.add(7),
        "inside a tuple": lambda: setattr(inner.pair[0], "deep", 2),
        "an array": lambda: thing.weights.__setitem__(1, 1.0),
        "inside a partial": lambda: thing.partial.args[0].append(1),
        "a slot": lambda: setattr(thing.slot, "value", 2),
        "what a closure holds": lambda: box.append(2),
    }


@pytest.mark.parametrize("which", changes()[1])
def test_what_is_changed_is_seen(which):
    thing, doors = changes()
    known = state(thing)
    assert known.changed() is None
    doors[which]()
    assert known.changed() is not None


def test_an_equal_dict_in_its_place_is_watched_like_the_first():
    thing = Thing(rate=0.5)
    known = state(thing)
    for _ in range(3):
        assert known.changed() is None
        thing.__dict__ = dict(vars(thing))
    thing.rate = 0.25
    assert known.changed() == "Thing.rate"


def test_what_no_name_leads_to_is_not_compared():
    thing = Thing(rate=0.5, count=0)
    known = state(thing, used={"rate"})
    thing.count = 1
    assert known.changed() is None
    thing.rate = 1.0
    assert known.changed() == "Thing.rate"


def test_opaque_attributes_are_compared_and_not_looked_into():
    thing = Thing(parent=Thing(rate=1.0), rate=2.0)
    known = state(thing, opaque={"parent"})
    thing.parent.rate = 3.0
    assert known.changed() is None
    thing.parent = Thing()
    assert known.changed() is not None


def test_equal_numbers_and_strings_may_be_new_objects():
    thing = Thing(rate=float("0.1"), name="".join(["a", "b"]), sizes=[int("1000")])
    known = state(thing)
    thing.rate, thing.name, thing.sizes[0] = float("0.1"), "".join(["a", "b"]), int("1000")
    assert known.changed() is None


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), (0.0, -0.0), (float("nan"), 1.0), ("1", b"1"), (1000, 1001)]
)
def test_values_that_compute_otherwise_are_others(one, other):
    assert not same(one, other)


def test_the_same_bits_are_the_same():
    assert same(float("nan"), float("nan"))
    assert same(2.5, float("2.5"))


def test_cycles_and_many_references():
    thing = Thing()
    thing.me = [thing, {"me": thing}]
    known = state(thing)
    assert known.changed() is None
    thing.me.append(thing)
    assert known.changed() is not None


def test_tensors_are_told_apart_by_identity():
    thing = Thing(tensor=tf.constant([1.0]), nothing=None)
    known = state(thing)
    thing.tensor = tf.constant([1.0])
    assert known.changed() is not None


def test_what_holds_its_state_elsewhere_is_unfit():
    with pytest.raises(Unfit, match="iterator"):
        state(Thing(more=iter([1])))
    with pytest.raises(Unfit, match="array"):
        state(Thing(data=np.zeros(1000)))


def test_it_keeps_what_it_compares_with():
    """Identity means nothing for an object that is gone: its address may be another's."""
    thing = Thing(inner=Thing())
    known = state(thing)
    reference = weakref.ref(thing.inner)
    thing.inner = None
    assert reference() is not None
    assert known.changed() is not None


@given(
    st.recursive(
        st.integers() | st.text(max_size=2), lambda inner: st.lists(inner, max_size=3), max_leaves=8
    ),
    st.data(),
)
def test_any_change_of_a_nested_list_is_seen(value, data):
    known = state(Thing(value=value))
    assert known.changed() is None
    lists = [value] if isinstance(value, list) else []
    for one in lists:
        lists += [item for item in one if isinstance(item, list)]
    if lists:
        data.draw(st.sampled_from(lists)).append("another")
        assert known.changed() is not None

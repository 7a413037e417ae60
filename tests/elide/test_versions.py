"""Versions: a write is always noticed; and what nobody wrote to stands, where this Python tells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terra_cx.elide import versions
from terra_cx.elide.versions import Versions, of_classes

told = pytest.mark.skipif(
    not versions._TELLS_OF_OBJECTS, reason="this Python writes attributes past the dict that has the version"
)


class Thing:
    def __init__(self):
        self.first = 1


class Other(Thing):
    pass


class Whole(tuple):
    """Its dict's address is not before it."""


class Slotted:
    __slots__ = ("__dict__", "value")


def store(thing):
    thing.first = object()


def accepted(**looked_at):
    made = Versions(**looked_at)
    made.stand()
    made.accept()
    return made


WRITES = {
    "a store": store,
    "setattr": lambda thing: setattr(thing, "first", 2),
    "a new attribute": lambda thing: setattr(thing, "second", 2),
    "a deleted attribute": lambda thing: delattr(thing, "first"),
    "through vars": lambda thing: vars(thing).update(first=3),
    "an item of its dict": lambda thing: vars(thing).__setitem__("first", 4),
    "popped": lambda thing: vars(thing).pop("first"),
    "cleared": lambda thing: vars(thing).clear(),
    "another dict": lambda thing: setattr(thing, "__dict__", {"first": 1}),
    "another class": lambda thing: setattr(thing, "__class__", Other),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_an_object_that_was_written_to_does_not_stand(write):
    for _ in range(100):
        store(Thing())  # until the interpreter takes the short way
    thing = Thing()
    known = accepted(objects=[Thing(), thing])
    write(thing)
    assert not known.stand()


@told
def test_what_was_only_read_stands():
    thing, table = Thing(), {"a": 1}
    known = accepted(objects=[thing], dicts=[table])
    assert known.stand()
    assert [*table.items(), *vars(thing).items(), thing.first, table.copy()]
    assert known.stand()
    store(thing)
    assert not known.stand()
    assert not known.stand()
    known.accept()
    assert known.stand()


@told
@pytest.mark.parametrize("write", ["another dict", "another class"])
def test_what_takes_its_place_is_watched(write):
    thing = Thing()
    known = accepted(objects=[thing])
    WRITES[write](thing)
    for _ in range(2):  # where its words are is looked up anew, and then it is compared once more
        assert not known.stand()
        known.accept()
    assert known.stand()
    store(thing)
    assert not known.stand()


@pytest.mark.parametrize("kind", [Whole, Slotted])
def test_an_object_of_another_make_never_wrongly_stands(kind):
    thing = kind()
    thing.first = 1
    known = accepted(objects=[thing])
    store(thing)
    assert not known.stand()


def test_a_class_and_what_it_inherits():
    class Base:
        pass

    class Derived(Base, dict):
        pass

    known = accepted(dicts=of_classes([Derived]))
    assert known.stand()
    Base.method = len
    assert not known.stand()
    known.accept()
    assert known.stand()
    Derived.method = max
    assert not known.stand()


def test_nothing_to_look_at_stands():
    assert accepted().stand()


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["read", "write", "delete", "accept"]))))
def test_any_order(steps):
    """Never does something stand that was written to since it was accepted."""
    things = [Thing(), Thing(), {"first": 0}]
    known = accepted(objects=things[:2], dicts=things[2:])
    clean = True
    for which, what in steps:
        thing = things[which]
        table = thing if which == 2 else vars(thing)
        if what == "read":
            assert "first" not in table or table["first"] is not None
        elif what == "write" and which < 2:
            store(thing)
        elif what == "write":
            table["first"] = object()
        elif what == "delete":
            table.pop("first", None)
            table["second"] = object()
        if what == "accept":
            known.stand()
            known.accept()
            clean = True
        elif what != "read":
            clean = False
        assert clean or not known.stand()

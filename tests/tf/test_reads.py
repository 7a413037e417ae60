"""Reads of values are noted, and who else watches them is left alone."""

from __future__ import annotations

import threading

import pytest
import tensorflow as tf

from terra_cx.tf.native import EagerTensorBase
from terra_cx.tf.placeholder import new_placeholder, spec_of
from terra_cx.tf.reads import noting_reads
from terra_cx.tf.slots import Slot


def test_reads_of_this_thread_are_noted():
    before = EagerTensorBase._numpy, Slot.resolve
    tensor = tf.constant([1.0, 2.0])
    slot = Slot(spec_of(tensor), None, 0)
    slot.value = tensor
    seen = []
    with noting_reads(seen):
        assert tensor.numpy().tolist() == [1.0, 2.0]
        assert new_placeholder(slot).numpy().tolist() == [1.0, 2.0]
        other = threading.Thread(target=tensor.numpy)
        other.start()
        other.join()
    assert [id(thing) for thing in seen] == [id(tensor), id(slot)]
    tensor.numpy()
    assert len(seen) == 2
    assert (EagerTensorBase._numpy, Slot.resolve) == before


def test_it_ends_where_an_error_leaves_it():
    before = EagerTensorBase._numpy, Slot.resolve
    with pytest.raises(KeyError), noting_reads([]):
        raise KeyError
    assert (EagerTensorBase._numpy, Slot.resolve) == before


def test_who_begins_to_watch_meanwhile_goes_on(boundary):
    """A call that diverges while it is learned: from there on the recorder watches, to the region's end."""
    seen, tensor = [], tf.constant(1.0)
    with noting_reads([]):
        boundary.watch_reads(seen.append)
    tensor.numpy()
    assert [id(thing) for thing in seen] == [id(tensor)]
    slot = Slot(spec_of(tensor), None, 0)
    slot.value = tensor
    assert float(new_placeholder(slot)) == 1.0  # one from before is read
    assert [id(thing) for thing in seen] == [id(tensor)] * 2
    boundary.watch_reads(None)
    assert float(new_placeholder(slot)) == float(tensor)
    assert len(seen) == 2

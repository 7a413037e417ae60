"""Placeholders for tests: with a value, with an error, never filled, or filled when somebody asks."""

from __future__ import annotations

import tensorflow as tf

from terra_cx.tf.placeholder import new_placeholder, spec_of
from terra_cx.tf.slots import Slot, Spec


class Asked:
    """Who fills a slot: gives it ``value`` when it is asked for, and counts how often it was."""

    def __init__(self, value=None):
        self.value = value
        self.times = 0

    def fetch(self, slot):
        self.times += 1
        slot.value = self.value


def held(value):
    """A placeholder whose slot holds ``value`` (anything `tf.constant` takes)."""
    real = value if tf.is_tensor(value) else tf.constant(value)
    slot = Slot(spec_of(real), None, 0)
    slot.value = real
    return new_placeholder(slot)


def failed(error, spec=None):
    """A placeholder whose op failed."""
    slot = Slot(spec or Spec(1, (2,)), None, 0)
    slot.error = error
    return new_placeholder(slot)


def unfilled(spec=None):
    """A placeholder that nobody will ever fill."""
    return new_placeholder(Slot(spec or Spec(1, (2,)), None, 0))


def pending(value, shape_known=True):
    """A placeholder that is filled with ``value`` when it is read, and the `Asked` that does it."""
    real = tf.constant(value)
    spec = spec_of(real)
    asked = Asked(real)
    return new_placeholder(Slot(spec if shape_known else Spec(spec.dtype, None), asked, 0)), asked

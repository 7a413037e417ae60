"""Rules of arguments: equality of constants to the last bit, and a lattice that only ever widens."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from terra_cx.tf.opdefs import Kind
from terra_cx.tf.slots import Spec
from terra_cx.trace.records import Captured, Const, Ext, Known, Local, Resource
from terra_cx.trace.rules import Need, Rule, rule_of, same_const, same_known

NAN = float("nan")


# -- equality of raw constants ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1),
        (0.5, 0.5),
        (True, True),
        (None, None),
        ("a", "a"),
        (b"a", b"a"),
        (-0.0, -0.0),
        ([1, 2.0], [1, 2.0]),
        ([1, 2], (1, 2)),  # native code makes no difference
        ([[1], [2]], ([1], (2,))),
        (np.float32(2), np.float32(2)),
        (np.array([1.0, NAN]), np.array([1.0, NAN])),
        (np.zeros((2, 0)), np.zeros((2, 0))),
    ],
)
def test_equal_constants(a, b):
    assert same_const(a, b)
    assert same_const(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 2),
        (1, 1.0),
        (1, True),
        (0, False),
        (1.0, True),
        (0.0, -0.0),
        ([0.0], [-0.0]),
        (0.1, 0.1 + 1e-17 + 1e-16),
        ("a", b"a"),
        (1, None),
        ([1], [1, 1]),
        ([1], 1),
        ([1, [2]], [1, [3]]),
        ([], [[]]),
        (np.float32(2), np.float64(2)),
        (np.float32(2), 2.0),
        (np.array([0.0]), np.array([-0.0])),
        (np.array([1, 2]), np.array([[1, 2]])),
        (np.array([1, 2]), [1, 2]),
        (np.array([1], "int32"), np.array([1], "int64")),
    ],
)
def test_different_constants(a, b):
    assert not same_const(a, b)
    assert not same_const(b, a)


def test_nan_is_itself_and_never_another_nan_by_mistake():
    assert same_const(NAN, NAN)
    assert same_const(NAN, float("nan")), "made anew in each step"
    assert not same_const(NAN, -NAN)
    assert not same_const(NAN, 1.0)
    assert not same_const(1.0, NAN)


def test_the_signs_of_a_complex_zero_count():
    assert not same_const(complex(0.0, 0.0), complex(0.0, -0.0))
    assert not same_const(complex(-0.0, 1.0), complex(0.0, 1.0))


atoms = st.one_of(
    st.integers(-3, 3),
    st.booleans(),
    st.floats(allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0, "1", b"1", None]),
    st.sampled_from([np.float32(1), np.int64(1), np.zeros(2), np.ones(2, "int32")]),
)
constants = st.recursive(
    atoms, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner), max_leaves=6
)


def bits(value):
    """What native code would make of a constant: type and bits, lists and tuples alike."""
    if isinstance(value, (list, tuple)):
        return ("list", *[bits(item) for item in value])
    if hasattr(value, "dtype"):
        return (type(value).__name__, str(value.dtype), value.shape, value.tobytes())
    return (type(value).__name__, value.hex() if isinstance(value, float) else value)


@given(constants, constants)
def test_equal_means_equal_bits(a, b):
    assert same_const(a, b) == (bits(a) == bits(b))


@given(constants)
def test_a_copy_is_equal(a):
    assert same_const(a, copy.deepcopy(a))


def test_guarded_tensors():
    a = tf.constant([1, 2])
    assert same_known(a, a)
    assert same_known(a, tf.constant([1, 2]))
    assert not same_known(a, tf.constant([1, 3]))
    assert not same_known(a, tf.constant([[1, 2]]))
    assert not same_known(a, tf.constant([1, 2], tf.int64))
    assert not same_known(tf.constant(True), tf.constant(1, tf.uint8))
    assert not same_known(tf.constant([0.0]), tf.constant([-0.0]))
    assert same_known(tf.constant([NAN]), tf.constant([NAN]))
    assert same_known(tf.zeros([0], tf.int32), tf.zeros([0], tf.int32))


# -- the narrowest rule of an argument -------------------------------------------------------------------------------
SPEC = Spec(3, (2,))


class Made:
    """What rules ask of a node."""

    def __init__(self, kind):
        self.kind = kind


NODES = [Made(Kind.KNOWN) for _ in range(3)]


def narrow(ref, uses=None, use=(NODES[0], 0, 0)):
    return rule_of(
        ref, SPEC, lambda local: (NODES[local.position], local.out, 0), {} if uses is None else uses, use
    )


def test_rule_of_each_kind_of_reference():
    tensor = tf.constant([1, 2])
    local = narrow(Local(1, 2))
    assert (local.need, local.node, local.out, local.spec) == (Need.LOCAL, NODES[1], 2, SPEC)
    const = narrow(Const(0.5, 1))
    assert (const.need, const.value, const.dtype, const.spec) == (Need.CONST, 0.5, 1, None)
    known = narrow(Known(tensor, Local(1, 0)))
    assert (known.need, known.value, known.origin.need) == (
        Need.KNOWN,
        tensor,
        Need.LOCAL,
    ) or known.value is tensor
    placeholder = Made(Kind.PURE)  # its arguments have differed since
    found = rule_of(Known(tensor, Local(1, 0)), SPEC, lambda ref: (placeholder, 0, 0), {}, (NODES[0], 0, 0))
    assert (found.need, found.node) == (Need.LOCAL, placeholder)
    assert narrow(Resource(tensor)).need is Need.RESOURCE
    assert narrow(Captured(tensor)).need is Need.CAPTURED


def test_an_external_tensor_is_first_used_and_then_shared():
    uses = {}
    first = narrow(Ext(5), uses, (NODES[0], 1, 0))
    second = narrow(Ext(5), uses, (NODES[2], 0, 0))
    other = narrow(Ext(6), uses, (NODES[2], 1, 0))
    again = narrow(Ext(5), uses, (NODES[0], 1, 0))
    assert (first.need, first.share) == (Need.SHARED, None)
    assert second.share == (NODES[0], 1)
    assert other.share is None
    assert again.share is None  # the first use itself, in a later trace


# -- the lattice -----------------------------------------------------------------------------------------------------
HANDLES = [tf.Variable(1.0).handle for _ in range(2)]
TENSORS = [tf.constant(value) for value in ([1, 2], [1, 3])] + [tf.constant([1, 2])]

locals_ = st.builds(
    lambda node, out: Rule(Need.LOCAL, SPEC, node, out), st.sampled_from(NODES), st.integers(0, 1)
)
shared = st.builds(
    lambda share: Rule(Need.SHARED, SPEC, share=share),
    st.one_of(st.none(), st.tuples(st.sampled_from(NODES), st.integers(0, 1))),
)


def known_from(origin):
    return st.builds(
        lambda tensor: Rule(Need.KNOWN, SPEC, value=tensor, origin=copy.copy(origin)),
        st.sampled_from(TENSORS),
    )


def arguments():
    """What traces may demand of one argument: its key fixes whether it is a raw value, a handle or a tensor."""
    raw = st.builds(
        lambda value, dtype: Rule(Need.CONST, None, value=value, dtype=dtype),
        atoms,
        st.sampled_from([1, 1, None]),
    )
    handle = st.builds(lambda value: Rule(Need.RESOURCE, SPEC, value=value), st.sampled_from(HANDLES))
    # A guarded value comes from one place; where it came from is what it widens to.
    place = st.one_of(locals_, shared)
    guarded = place.flatmap(lambda origin: st.lists(known_from(origin), min_size=1, max_size=6))
    mixed = place.flatmap(
        lambda origin: st.lists(st.one_of(locals_, shared, known_from(origin)), min_size=1, max_size=8)
    )
    return st.one_of(
        st.lists(raw, min_size=1, max_size=8), st.lists(handle, min_size=1, max_size=4), guarded, mixed
    )


def state(rule):
    if rule is None:
        return None
    return (
        rule.need, id(rule.node), rule.out, id(rule.value), rule.dtype, rule.share, state(rule.origin),
        set(rule.sources),
    )  # fmt: skip


@given(arguments())
def test_what_was_admitted_once_is_admitted_ever_after(demands):
    rule = copy.copy(demands[0])
    for index, demand in enumerate(demands):
        rule.widen(copy.copy(demand))
        for earlier in demands[: index + 1]:
            before = state(rule)
            assert rule.widen(copy.copy(earlier)) is False
            assert state(rule) == before


@given(arguments())
def test_widening_tells_whether_it_changed_anything_and_ends(demands):
    rule = copy.copy(demands[0])
    changes = 0
    for demand in demands * 3:
        before = state(rule)
        changed = rule.widen(copy.copy(demand))
        assert changed == (state(rule) != before)
        changes += changed
    assert changes <= 3  # known, its origin, any tensor


@given(arguments())
def test_widening_never_changes_what_it_is_compared_with(demands):
    rule = copy.copy(demands[0])
    for demand in demands:
        before = state(demand)
        rule.widen(demand)
        assert state(demand) == before


def test_a_constant_that_changes_becomes_a_feed_of_the_recorded_dtype():
    rule = Rule(Need.CONST, value=0.5, dtype=1)
    assert rule.widen(Rule(Need.CONST, value=0.25, dtype=1))
    assert (rule.need, rule.dtype) == (Need.FEED, 1)
    assert not rule.widen(Rule(Need.CONST, value=NAN, dtype=1))
    assert rule.raw is float


def test_constants_that_are_no_one_feed_stay_as_they_are():
    for other in (Rule(Need.CONST, value=2, dtype=3), Rule(Need.CONST, value=2.0, dtype=None)):
        rule = Rule(Need.CONST, value=1.0, dtype=1)
        assert not rule.widen(other)
        assert (rule.need, rule.value) == (Need.CONST, 1.0)


def test_a_guarded_value_that_changes_falls_back_to_where_it_came_from():
    origin = Rule(Need.LOCAL, SPEC, NODES[0], 1)
    rule = Rule(Need.KNOWN, SPEC, value=TENSORS[0], origin=origin)
    assert not rule.widen(Rule(Need.KNOWN, SPEC, value=TENSORS[2], origin=copy.copy(origin)))  # equal bits
    assert rule.widen(Rule(Need.KNOWN, SPEC, value=TENSORS[1], origin=copy.copy(origin)))
    assert (rule.need, rule.node, rule.out, rule.value) == (Need.LOCAL, NODES[0], 1, None)


def test_wiring_that_changes_becomes_any_tensor():
    rule = Rule(Need.LOCAL, SPEC, NODES[0], 0)
    assert rule.widen(Rule(Need.LOCAL, SPEC, NODES[0], 1))
    assert rule.need is Need.TENSOR
    assert not rule.widen(Rule(Need.SHARED, SPEC))


def test_sharing_that_changes_becomes_any_external_tensor():
    rule = Rule(Need.SHARED, SPEC, share=(NODES[0], 0))
    assert rule.widen(Rule(Need.SHARED, SPEC, share=None))
    assert rule.need is Need.EXTERNAL
    assert not rule.widen(Rule(Need.SHARED, SPEC, share=(NODES[1], 0)))
    assert rule.widen(Rule(Need.LOCAL, SPEC, NODES[0], 0))
    assert rule.need is Need.TENSOR


def test_another_variable_is_not_admitted_as_the_same():
    rule = Rule(Need.RESOURCE, SPEC, value=HANDLES[0])
    assert not rule.widen(Rule(Need.RESOURCE, SPEC, value=HANDLES[0]))
    assert rule.widen(Rule(Need.RESOURCE, SPEC, value=HANDLES[1]))
    assert rule.need is Need.TENSOR

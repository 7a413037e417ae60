"""The dispatch boundary: complete, restorable, and no placeholder gets past it into native code."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import tensorflow as tf
from held import failed, held, pending
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import cancellation, context
from tensorflow.python.eager import record as tape_lib
from tensorflow.python.ops.unconnected_gradients import UnconnectedGradients

from terra_cx.tf.boundary import _DLPACK, HARMLESS, OPS, TAPES, TENSORS, Boundary, Passive
from terra_cx.tf.native import REAL, EagerTensorBase, HostCallbacks, call_host

WRAPPED = (*OPS, *TAPES, *TENSORS, *_DLPACK)
ABSENT_SOMEWHERE = {"TFE_DlpackDevice"}
"""Functions that some supported TensorFlow does not have."""


# -- completeness ----------------------------------------------------------------------------------------------------
def test_every_native_function_is_known():
    installed = {name for name in dir(pywrap_tfe) if name.startswith("TFE_Py_")}
    assert len(installed) > 40  # the prefix has not changed
    assert installed - {*WRAPPED, *HARMLESS} == set()


def test_every_name_exists_and_is_listed_once():
    listed = [*OPS, *TAPES, *TENSORS, *HARMLESS, *_DLPACK]
    assert len(listed) == len(set(listed))
    assert {name for name in listed if not hasattr(pywrap_tfe, name)} <= ABSENT_SOMEWHERE


# -- installing ------------------------------------------------------------------------------------------------------
def test_install_and_remove():
    # An earlier session of this process leaves its hooks behind, passive: placeholders may still be about.
    before = {name: REAL.get(name, getattr(pywrap_tfe, name)) for name in dir(pywrap_tfe)}
    reader = EagerTensorBase._numpy
    boundary = Boundary()
    boundary.install()
    try:
        assert all(getattr(pywrap_tfe, name) is not REAL[name] for name in WRAPPED if name in REAL)
        assert all(getattr(pywrap_tfe, name) is before[name] for name in HARMLESS)
        boundary.install()  # a second time changes nothing
        boundary.watch_reads(lambda tensor: None)
    finally:
        boundary.remove()
    assert {name: getattr(pywrap_tfe, name) for name in dir(pywrap_tfe)} == before
    assert EagerTensorBase._numpy is reader
    assert HostCallbacks.__call__ is call_host
    boundary.remove()
    assert pywrap_tfe.TFE_Py_Execute is before["TFE_Py_Execute"]


def test_the_hooks_hold_the_functions_of_before_any_hook(boundary):
    assert REAL["TFE_Py_FastPathExecute"] is not pywrap_tfe.TFE_Py_FastPathExecute
    assert "built-in" in repr(REAL["TFE_Py_FastPathExecute"])


def test_the_handler_in_charge_gets_every_op(boundary):
    class Noting(Passive):
        def __init__(self):
            self.ops = []

        def fast(self, ctx, op, name, *args):
            self.ops.append(op)
            return super().fast(ctx, op, name, *args)

    noting = Noting()
    boundary.use(noting)
    x = tf.constant([1.0, 2.0])
    tf.sin(x) + 1.0
    boundary.use(boundary.passive)
    tf.cos(x)
    assert noting.ops == ["Sin", "AddV2"]


def test_reads_of_real_tensors_are_told(boundary):
    read = []
    boundary.watch_reads(read.append)
    x, y = tf.constant(1.0), tf.constant([1.0])
    float(x)
    y.numpy()
    bool(x)
    boundary.watch_reads(None)
    float(x)
    assert [tensor is x for tensor in read] == [True, False, True]


# -- no placeholder gets past it -------------------------------------------------------------------------------------
X = [[1.0, 2.0], [3.0, 4.0]]
FLOAT = ("T", int(tf.float32.as_datatype_enum))


def _ctx():
    return context.context()


@contextmanager
def _tape(watch_variables=True):
    tape = pywrap_tfe.TFE_Py_TapeSetNew(True, watch_variables)
    try:
        yield tape
    finally:
        pywrap_tfe.TFE_Py_TapeSetRemove(tape)


def _gradient(tape, target, source, upstream=None):
    upstream = None if upstream is None else [upstream]
    return pywrap_tfe.TFE_Py_TapeGradient(
        tape, [target], [source], upstream, [source], UnconnectedGradients.NONE.value
    )[0]


def _custom(function):
    """Record ``y <- x`` with a gradient of 7, and take it."""

    def recipe(x):
        with _tape() as tape:
            pywrap_tfe.TFE_Py_TapeWatch(tape, x)
            with tape_lib.stop_recording():
                y = tf.identity(x)
            forward = () if function.endswith("Backprop") else (None,)
            getattr(pywrap_tfe, function)("Mine", [y], [x], lambda upstream: [7.0 * upstream], *forward)
        return _gradient(tape, y, x)

    return recipe


def _custom_forward(x):
    """Tell an accumulator alone about ``y <- x`` with a gradient of 7."""
    y = tf.constant(X)
    with tf.autodiff.ForwardAccumulator(x, tf.ones([2, 2])) as accumulator:
        pywrap_tfe.TFE_Py_TapeSetRecordOperationForwardprop(
            "Mine", [y], [x], lambda upstream: [7.0 * upstream], None
        )
    return accumulator.jvp(y)


def _slow(x):
    """The slow path: execute, then tell the tape."""
    with _tape() as tape:
        pywrap_tfe.TFE_Py_TapeWatch(tape, x)
        (y,) = pywrap_tfe.TFE_Py_Execute(_ctx()._handle, None, "Square", [x], FLOAT, 1)
        pywrap_tfe.TFE_Py_RecordGradient("Square", (x,), FLOAT, [y], "")
    return _gradient(tape, y, x)


def _watched(x):
    with _tape() as tape:
        pywrap_tfe.TFE_Py_TapeWatch(tape, x)
        y = x * x
    return _gradient(tape, y, x)


def _target(x):
    """Target, source and upstream gradient are given as they are."""
    with _tape() as tape:
        pywrap_tfe.TFE_Py_TapeWatch(tape, x)
    return _gradient(tape, x, x, upstream=x)


def _asked(name):
    def recipe(x):
        with _tape() as tape:
            pywrap_tfe.TFE_Py_TapeWatch(tape, x)
            return int(getattr(pywrap_tfe, name)([x]))

    return recipe


def _jvp(x):
    with tf.autodiff.ForwardAccumulator(x, x) as accumulator:
        y = x * x
    return accumulator.jvp(y)


def _packed(x):
    with tf.autodiff.ForwardAccumulator(x, x):
        return pywrap_tfe.TFE_Py_PackJVPs([x])


def _dlpack(x):
    return tf.experimental.dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(x))


def _watched_variable(x):
    variable = tf.Variable(x)
    with _tape(watch_variables=False) as tape:
        pywrap_tfe.TFE_Py_TapeWatchVariable(tape, variable)
        y = variable * x
    return _gradient(tape, y, variable.handle)


def _cancelable(x):
    manager = cancellation.CancellationManager()
    return pywrap_tfe.TFE_Py_ExecuteCancelable(_ctx()._handle, None, "Square", [x], FLOAT, manager._impl, 1)


RECIPES = {
    "TFE_Py_FastPathExecute": lambda x: pywrap_tfe.TFE_Py_FastPathExecute(_ctx(), "AddN", None, [x, x]),
    "TFE_Py_Execute": lambda x: pywrap_tfe.TFE_Py_Execute(_ctx()._handle, None, "Square", [x], FLOAT, 1),
    "TFE_Py_ExecuteCancelable": _cancelable,
    "TFE_Py_TapeWatch": _watched,
    "TFE_Py_TapeWatchVariable": _watched_variable,
    "TFE_Py_TapeGradient": _target,
    "TFE_Py_RecordGradient": _slow,
    "TFE_Py_TapeSetRecordOperation": _custom("TFE_Py_TapeSetRecordOperation"),
    "TFE_Py_TapeSetRecordOperationBackprop": _custom("TFE_Py_TapeSetRecordOperationBackprop"),
    "TFE_Py_TapeSetRecordOperationForwardprop": _custom_forward,
    "TFE_Py_TapeSetShouldRecordBackprop": _asked("TFE_Py_TapeSetShouldRecordBackprop"),
    "TFE_Py_TapeSetPossibleGradientTypes": _asked("TFE_Py_TapeSetPossibleGradientTypes"),
    "TFE_Py_PackJVPs": _packed,
    "TFE_Py_ForwardAccumulatorNew": _jvp,
    "TFE_Py_ForwardAccumulatorSetAdd": _jvp,
    "TFE_Py_ForwardAccumulatorJVP": _jvp,
    "TFE_Py_ForwardAccumulatorWatch": _jvp,
    "TFE_Py_TensorShapeSlice": lambda x: pywrap_tfe.TFE_Py_TensorShapeSlice([x], 0),
    "TFE_Py_TensorShapeOnDevice": lambda x: pywrap_tfe.TFE_Py_TensorShapeOnDevice(x, 0),
    "TFE_Py_PackEagerTensors": lambda x: pywrap_tfe.TFE_Py_PackEagerTensors(_ctx()._handle, [x]).is_packed,
    "TFE_ToDlpackCapsule": _dlpack,
    "TFE_DlpackDevice": lambda x: x.__dlpack_device__(),
}
TAKE_NO_TENSOR = {
    "TFE_Py_TapeSetNew",
    "TFE_Py_TapeSetAdd",
    "TFE_Py_TapeSetRemove",
    "TFE_Py_TapeSetStopOnThread",
    "TFE_Py_TapeSetRestartOnThread",
    "TFE_Py_TapeVariableAccessed",
}


def plain(value):
    """A comparable form of what native code returned."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.numpy().tolist() if tf.is_tensor(value) else value


def test_every_wrapped_function_is_tried_with_a_placeholder():
    assert set(WRAPPED) - TAKE_NO_TENSOR == set(RECIPES)


@pytest.mark.parametrize("name", [name for name in RECIPES if name in REAL])
def test_a_placeholder_is_resolved_on_its_way_in(boundary, name):
    recipe = RECIPES[name]
    expected = plain(recipe(tf.constant(X)))
    assert expected is not None
    assert plain(recipe(held(X))) == expected


@pytest.mark.parametrize("name", [name for name in RECIPES if name in REAL])
def test_a_placeholder_that_is_still_being_computed_is_waited_for(boundary, name):
    x, asked = pending(X)
    assert plain(RECIPES[name](x)) == plain(RECIPES[name](tf.constant(X)))
    assert asked.times == 1


@pytest.mark.parametrize("name", [name for name in RECIPES if name in REAL])
def test_a_placeholder_whose_op_failed_raises_that_error(boundary, name):
    error = tf.errors.InvalidArgumentError(None, None, "the kernel's own words")
    with pytest.raises(tf.errors.InvalidArgumentError, match="the kernel's own words"):
        RECIPES[name](failed(error))
    assert pywrap_tfe.TFE_Py_TapeSetIsEmpty()


def test_native_code_alone_accepts_what_only_looks_like_a_tensor():
    """Why the tests above are needed: without the hooks a tape forgets a placeholder without a word."""
    x, asked = pending(X)
    with _tape() as tape:
        pywrap_tfe.TFE_Py_TapeWatch(tape, x)
        y = asked.value * asked.value
    assert asked.times == 0
    assert _gradient(tape, y, asked.value) is None


# -- lists -----------------------------------------------------------------------------------------------------------
def test_lists_and_tuples_of_placeholders(boundary):
    x, y = held(X), tf.constant(X)
    for group in ([x, y], (x, y), [y, x], [x, x]):
        assert tf.concat(group, 0).shape == (4, 2)
        assert tf.stack(group).shape == (2, 2, 2)
        np.testing.assert_array_equal(tf.add_n(group), 2 * np.array(X))


def test_an_op_that_fails_is_not_run_a_second_time(boundary):
    """Passive ops are tried with placeholders first; a kernel's refusal must not look like one of those."""
    count = tf.Variable(0)

    def effect(value):
        count.assign_add(1)
        raise ValueError("mine")

    with pytest.raises(tf.errors.InvalidArgumentError, match="mine"):
        tf.py_function(effect, [held(X)], tf.float32)
    assert count.numpy() == 1


def test_eager_errors_are_the_same_through_the_boundary(boundary):
    boundary.remove()
    with pytest.raises(tf.errors.InvalidArgumentError) as eager:
        tf.matmul(tf.constant(X), tf.zeros([3, 3]))
    boundary.install()
    with pytest.raises(tf.errors.InvalidArgumentError) as hooked:
        tf.matmul(held(X), tf.zeros([3, 3]))
    assert str(hooked.value) == str(eager.value)

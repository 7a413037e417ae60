"""TensorFlow's private names, gathered once.

Every other module takes the names it needs from here, so that a rename in a TensorFlow release is mended in one
place. ``REAL`` holds the functions of ``pywrap_tfe`` as they were before any hook of ours was installed.

Source: ``tensorflow/python/pywrap_tfe.py``, ``tensorflow/python/framework/ops.py`` (TensorFlow 2.18 to 2.21).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tensorflow.core.config import flags
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context as _context
from tensorflow.python.eager import core as _core
from tensorflow.python.framework import (
    constant_op,
    dtypes,
    errors,
    op_def_registry,
    ops,
    tensor_shape,
)
from tensorflow.python.ops import resource_variable_ops, script_ops
from tensorflow.python.util import _pywrap_determinism

__all__ = [
    "REAL",
    "DType",
    "EagerTensor",
    "EagerTensorBase",
    "FallbackException",
    "HostCallbacks",
    "IndexedSlices",
    "NotOkStatus",
    "OpError",
    "ResourceVariable",
    "TensorShape",
    "as_tensor",
    "call_host",
    "context",
    "convert_variable",
    "device_of",
    "device_scope",
    "dtype_of",
    "executing_eagerly",
    "fast_path",
    "host_value",
    "is_plain_variable",
    "is_raw",
    "is_variable",
    "on_host",
    "only_device",
    "op_def",
    "pywrap_tfe",
    "raise_not_ok",
    "read_variables",
    "record_gradient",
    "run_execute",
    "run_fast",
    "strategy",
    "surroundings",
    "tell_of_access",
    "tensor_of",
    "tensor_shape",
    "twin",
    "unrecorded",
    "wait_for_all",
]

REAL: dict[str, Callable[..., Any]] = {
    name: getattr(pywrap_tfe, name) for name in dir(pywrap_tfe) if name.startswith("TFE_")
}
"""The unhooked functions of ``pywrap_tfe`` by name, and the method by which somebody asks to be told of every op."""
REAL["Context.add_op_callback"] = _context.Context.add_op_callback

EagerTensor: Any = ops.EagerTensor
EagerTensorBase: Any = ops._EagerTensorBase
FallbackException: type[BaseException] = _core._FallbackException
NotOkStatus: type[BaseException] = _core._NotOkStatusException
OpError: type[Exception] = errors.OpError
HostCallbacks: Any = script_ops.FuncRegistry
"""What native code calls for every host callback (``py_function``), with its token; it takes what that returns."""
call_host: Callable[..., Any] = HostCallbacks.__call__
"""That call, as it was before any hook."""
ResourceVariable: type = resource_variable_ops.BaseResourceVariable
_PLAIN_VARIABLES = (resource_variable_ops.ResourceVariable, resource_variable_ops._UnreadVariable)
DType: type = dtypes.DType
TensorShape: type = tensor_shape.TensorShape

_fast = REAL["TFE_Py_FastPathExecute"]
_execute = REAL["TFE_Py_Execute"]


def _indexed_slices() -> Any:
    from tensorflow.python.framework import indexed_slices

    return indexed_slices.IndexedSlices


IndexedSlices: Any = _indexed_slices()


def context() -> Any:
    """The eager context of this process, initialised."""
    ctx = _context.context()
    ctx.ensure_initialized()
    return ctx


def executing_eagerly() -> bool:
    """``tf.executing_eagerly``, in one call instead of three."""
    known = _context._context
    return bool(_context.executing_eagerly() if known is None else known._thread_local_data.is_eager)


def strategy() -> Any:
    """What stands for the distribution strategy of this thread, to be compared by identity; None for the default one.

    As ``distribute_lib.get_strategy``, in half the calls: every elided call asks.
    """
    stack = getattr(ops.get_default_graph()._thread_local, "_distribution_strategy_stack", None)
    return stack[-1].strategy if stack else None


def tell_of_access(variable: Any) -> None:
    """Tell tapes and watchers that a plain variable is accessed.

    As ``resource_variable_ops.variable_accessed``, in a quarter of the calls where no strategy has a say.
    """
    graph = ops.get_default_graph()
    strategies = getattr(graph._thread_local, "_distribution_strategy_stack", None)
    if strategies or hasattr(graph, "watch_variable"):
        resource_variable_ops.variable_accessed(variable)
    elif variable.trainable:
        pywrap_tfe.TFE_Py_TapeVariableAccessed(variable)
        pywrap_tfe.TFE_Py_VariableWatcherVariableAccessed(variable)


_tapes_empty = REAL["TFE_Py_TapeSetIsEmpty"]
_tapes_stopped = REAL["TFE_Py_TapeSetIsStopped"]
_is_deterministic = _pywrap_determinism.is_enabled
_are_shapes_long = flags.config().tf_shape_default_int64.value


def surroundings() -> tuple[Any, ...]:
    """What functions depend on besides their arguments, as a value to compare.

    First whether this thread executes eagerly, then tapes, then TensorFlow's switches that its functions' Python asks;
    at last the `device_scope`.

    Source: ``nn_ops.py``, ``math_ops.py``, ``array_ops.py``, ``weak_tensor_ops.py``, ``override_binary_operator.py``.
    """
    known = _context._context
    return (
        known is not None and known._thread_local_data.is_eager,
        _tapes_empty(),
        _tapes_stopped(),
        ops._dtype_conversion_mode,
        _is_deterministic(),
        _are_shapes_long(),
        device_scope(),
    )


def told_of_ops() -> bool:
    """Whether somebody is told of every op of this thread."""
    return bool(context().op_callbacks)


@functools.cache
def only_device() -> str | None:
    """The name of the only device that can hold a tensor, None if there is a choice."""
    devices = [name for name in context().devices() if "XLA" not in name]
    return str(devices[0]) if len(devices) == 1 else None


def device_scope() -> str:
    """Where the program wants this thread's ops (``tf.device``); empty if it does not say, or there is no choice."""
    return "" if only_device() is not None else context().device_name or ""


def device_of(tensor: Any) -> str | None:
    """The device of an ``EagerTensor``; None if there is no choice."""
    return None if only_device() is not None else tensor.device


def dtype_of(enum: int) -> Any:
    """The ``tf.DType`` of a ``DataType`` enum value."""
    return dtypes._INTERN_TABLE[enum]


def op_def(name: str) -> Any:
    """The ``OpDef`` of a registered op, or None for a function or an op of another library."""
    return op_def_registry.get(name)


def wait_for_all() -> None:
    """Wait until every op of TensorFlow's own asynchronous eager mode has run.

    Raises:
        tf.errors.OpError: one of them failed.
    """
    _context.async_wait()


def is_variable(value: object) -> bool:
    """Whether the native fast path would read ``value`` as a resource variable."""
    return isinstance(value, ResourceVariable)


def is_plain_variable(value: object) -> bool:
    """Whether ``value`` is a resource variable of TensorFlow's own kind: reading one of a subclass may run its code."""
    return type(value) in _PLAIN_VARIABLES


def fast_path(ctx: Any, op: str, name: str | None, *args: Any) -> Any:
    """``TFE_Py_FastPathExecute`` as the program calls it: through whoever is in charge of the dispatch boundary."""
    return pywrap_tfe.TFE_Py_FastPathExecute(ctx, op, name, *args)


def convert_variable(value: Any) -> Any:
    """Read a resource variable given as an op's argument, as the native fast path would.

    The read passes the dispatch boundary as an op of its own (``ReadVariableOp``) and tells the open tapes about the
    access, exactly what C++ does for it (``pywrap_tfe_src.cc``, ``ReadVariableOp``).
    """
    return value._read_variable_op()


def read_variables(value: Any) -> Any:
    """An op's argument, one or a list, with the resource variables in it read; ``value`` itself if it has none."""
    if is_variable(value):
        return convert_variable(value)
    if isinstance(value, (list, tuple)) and any(is_variable(item) for item in value):
        return [convert_variable(item) if is_variable(item) else item for item in value]
    return value


_RAW = (int, float, bool, complex, str, bytes, np.ndarray, np.generic)


def is_raw(value: object) -> bool:
    """Whether ``value`` is a plain Python or NumPy value (or a list of such) that native code converts itself."""
    if isinstance(value, (list, tuple)):
        return all(is_raw(item) for item in value)
    return isinstance(value, _RAW)


def as_tensor(value: object, dtype: Any = None) -> Any:
    """Convert a Python or NumPy value to an ``EagerTensor`` now (the data is copied).

    An array takes the way that ``convert_to_tensor`` finds for it in the end; to find it costs as much as to copy a
    batch, and a step has a few.
    """
    if type(value) is np.ndarray and executing_eagerly():
        return constant_op.convert_to_eager_tensor(value, _context.context(), dtype)
    return ops.convert_to_tensor(value, dtype=dtype)


def tensor_of(value: object, enum: int | None) -> Any:
    """`as_tensor`, the dtype given as a ``DataType`` enum value; None for the one that the value has by itself."""
    return as_tensor(value, None if enum is None else dtype_of(enum))


def host_value(tensor: Any) -> np.ndarray[Any, Any]:
    """The value of an ``EagerTensor`` as an array, without a copy where TensorFlow allows it."""
    return np.asarray(tensor._numpy_internal())


def twin(tensor: Any) -> Any:
    """Another ``EagerTensor`` with the same buffer, where that is: to a tape, one of its own."""
    return tensor._copy_to_device(tensor.backing_device)


def on_host(tensor: Any) -> bool:
    """Whether the value of an ``EagerTensor`` can be looked at without waiting for a device."""
    return "CPU:" in tensor.backing_device


def raise_not_ok(error: Any, name: str | None) -> None:
    """Raise the ``tf.errors`` exception that eager raises for a native status, with its message."""
    ops.raise_from_not_ok_status(error, name)


def run_fast(op: str, name: str | None, args: Sequence[Any], device: str = "") -> Any:
    """Execute one op eagerly by the fast path, in the given device scope (or none), and raise eager's exceptions."""
    try:
        if device_scope() != device:
            with context().device(device or None):
                return _fast(context(), op, name, *args)
        return _fast(context(), op, name, *args)
    except NotOkStatus as error:
        raise_not_ok(error, name)


def run_execute(op: Any, inputs: Sequence[Any], attrs: Any, outputs: int, device: str = "") -> Any:
    """As `run_fast`, one op or function by ``TFE_Py_Execute``."""
    try:
        return _execute(context()._handle, device or None, op, list(inputs), attrs, outputs)
    except NotOkStatus as error:
        raise _core._status_to_exception(error) from None


def record_gradient(
    op: str, inputs: Sequence[Any], attrs: Any, outputs: Sequence[Any], scope: str = ""
) -> None:
    """Tell the open tapes about an op, as generated op code does after one that ran by the slow path.

    ``scope`` is given to its gradient function (`tf.backward`).
    """
    REAL["TFE_Py_RecordGradient"](op, inputs, attrs, outputs, scope)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Ops that run meanwhile are told to no tape."""
    REAL["TFE_Py_TapeSetStopOnThread"]()
    try:
        yield
    finally:
        REAL["TFE_Py_TapeSetRestartOnThread"]()

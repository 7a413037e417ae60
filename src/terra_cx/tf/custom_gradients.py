"""What a custom gradient depends on: whose code will run when the tape is asked, and over what it is closed.

A gradient's ops are taken from its trace, so its Python must not decide anything that the trace does not show. For a
registered gradient of TensorFlow's own that is known. A custom gradient (``tf.custom_gradient``, a copy between
devices) is a function handed to the tape: it is looked through here. Only functions of TensorFlow, TensorFlow
Probability (every GPflow parameter has one) and Keras, closed over tensors, variables and plain values, are understood;
whatever else is there (a user's function, a partial, a method, a compiled function) may read anything when it runs.

Source: ``tensorflow/python/ops/custom_gradient.py`` (``_eager_mode_decorator``), ``eager/record.py``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from types import FunctionType
from typing import Any

from tensorflow.python.framework import dtypes, ops, tensor_shape

from terra_cx.tf import strided_slice
from terra_cx.tf.native import EagerTensor, is_variable

__all__ = ["UNSEEN", "gradient_detail", "has_foreign_gradient"]

_LIBRARIES = frozenset({"tensorflow", "keras", "tf_keras", "tensorflow_probability"})
_PLAIN = (bool, int, str, bytes, type(None))
_DEPTH = 12
"""How many closures inside closures are looked through."""
UNSEEN = "its gradient is computed by code that is not TensorFlow's own"


class _Opaque(Exception):
    """Something is there that is not understood."""


def gradient_detail(
    op: Any, outputs: Sequence[Any], inputs: Sequence[Any], functions: Sequence[Any]
) -> Hashable | None:
    """What makes two recorded operations the same as far as their gradients go.

    Args:
        op: the name under which the operation is recorded.
        outputs: its tensors.
        inputs: its tensors.
        functions: what the tape will call, as given to ``TFE_Py_TapeSetRecordOperation``.

    Returns:
        A value to compare; the tensors that the functions are closed over are not part of it (they show in the
        gradient's ops). None if the functions could do anything.
    """
    try:
        return (str(op), len(outputs), len(inputs), tuple(_seen(function, _DEPTH) for function in functions))
    except _Opaque:
        return None


def _library(function: FunctionType) -> bool:
    module = function.__globals__.get("__name__")
    return isinstance(module, str) and module.partition(".")[0] in _LIBRARIES


def _seen(value: Any, depth: int) -> Hashable:
    """A value that a function is closed over, in a form that can be compared.

    Raises:
        _Opaque: it is not understood.
    """
    if isinstance(value, _PLAIN):
        return (type(value).__name__, value)
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, EagerTensor):
        return "tensor"
    if is_variable(value):
        return ("variable", id(value.handle))
    if isinstance(value, (dtypes.DType, tensor_shape.TensorShape)):
        return repr(value)
    if depth == 0:
        raise _Opaque
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *[_seen(item, depth - 1) for item in value])
    if isinstance(value, dict):
        return ("dict", *[(_seen(key, depth - 1), _seen(item, depth - 1)) for key, item in value.items()])
    if not isinstance(value, FunctionType) or not _library(value):
        raise _Opaque
    code = value.__code__
    parts: list[Hashable] = [code.co_filename, code.co_qualname, code.co_firstlineno]
    try:
        parts += [_seen(cell.cell_contents, depth - 1) for cell in value.__closure__ or ()]
    except ValueError:
        raise _Opaque from None  # a cell that is still empty
    parts += [_seen(item, depth - 1) for item in value.__defaults__ or ()]
    parts += [_seen(item, depth - 1) for item in (value.__kwdefaults__ or {}).values()]
    return tuple(parts)


def has_foreign_gradient(op: str) -> bool:
    """Whether a gradient that is registered for an op is not TensorFlow's own."""
    try:
        function = ops.gradient_registry.lookup(op)
    except LookupError:
        return False  # none is registered: asking for it is an error
    if function is None or function is strided_slice.gradient:
        return False
    return not (isinstance(function, FunctionType) and _library(function))

"""The gradient of StridedSlice, without looking at the values of its arguments.

TensorFlow's own makes constants of begin, end and strides where it can, to know shapes while a graph is built. In eager
execution that changes nothing: the same op gets the same values. But a gradient whose Python has looked at a value is
only known for that value, so a step with ``x[:, t]`` or ``features[image]`` in a loop would be new each time.

Source: ``tensorflow/python/ops/array_grad.py``, ``_StridedSliceGrad`` (2.18 to 2.21).
"""

from __future__ import annotations

from typing import Any

from tensorflow.python.eager import context
from tensorflow.python.framework import ops
from tensorflow.python.ops import array_grad, array_ops

__all__ = ["gradient", "install", "remove"]

_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
_registered: dict[str, Any] = ops._gradient_registry._registry["StridedSlice"]
_own = _registered["type"]


def gradient(op: Any, grad: Any) -> Any:
    """The gradients for the op's four inputs; ``op`` has ``inputs`` and ``get_attr``."""
    if not context.executing_eagerly():
        return _own(op, grad)
    begin, end, strides = op.inputs[1:4]
    shape = array_ops.shape(op.inputs[0], out_type=begin.dtype)
    masks = {name: op.get_attr(name) for name in _MASKS}
    return array_ops.strided_slice_grad(shape, begin, end, strides, grad, **masks), None, None, None


def install() -> None:
    """Put it in the place of TensorFlow's own, unless the program has put another one there."""
    if _own is array_grad._StridedSliceGrad:
        _registered["type"] = gradient


def remove() -> None:
    """Put TensorFlow's own back."""
    _registered["type"] = _own

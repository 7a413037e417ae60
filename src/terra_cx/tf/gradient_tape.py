"""``GradientTape.gradient`` without the Python that the plain case does not need.

While a region is co-executed the gradient's ops are known, and most of what the method still costs is flattening,
composite tensors and dtypes that it would complain about in a log (a seventh of a small step). In the plain case, one
floating tensor as target and a list or tuple of floating resource variables as sources, none of that can make a
difference; anything else goes to TensorFlow's own method.

Source: ``tensorflow/python/eager/backprop.py``, ``GradientTape.gradient``; ``imperative_grad.py`` (2.18 to 2.21).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorflow.python.eager import backprop, imperative_grad
from tensorflow.python.ops import resource_variable_ops
from tensorflow.python.ops.unconnected_gradients import UnconnectedGradients

from terra_cx.tf.native import pywrap_tfe
from terra_cx.tf.placeholder import Placeholder

__all__ = ["install", "remove"]

_own = backprop.GradientTape.gradient
_imperative_grad = imperative_grad.imperative_grad
_is_variable = resource_variable_ops.is_resource_variable
_FLOATING = frozenset({1, 2, 14, 19})
"""``DataType`` enums of `_DTYPES`."""
_DTYPES = frozenset({"float32", "float64", "bfloat16", "float16"})


def _handles(sources: Any) -> list[Any] | None:
    """The handles of a flat list or tuple of floating resource variables, None for anything else."""
    if type(sources) is not list and type(sources) is not tuple:
        return None
    handles = []
    for source in sources:
        if not _is_variable(source):
            return None
        dtype = source.dtype  # a string for a variable of Keras
        if getattr(dtype, "name", dtype) not in _DTYPES or source.handle.is_packed:
            return None
        handles.append(source.handle)
    return handles


def install(applies: Callable[[], bool]) -> None:
    """Put the short way in place; it is taken while ``applies`` says that a region is co-executed by this thread."""

    def gradient(
        self: Any,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: Any = UnconnectedGradients.NONE,
    ) -> Any:
        if (
            output_gradients is not None
            or type(target) is not Placeholder
            or type(self) is not backprop.GradientTape
            or self._tape is None
            or self._persistent
            or target._datatype_enum() not in _FLOATING
            or type(unconnected_gradients) is not UnconnectedGradients
            or imperative_grad.imperative_grad is not _imperative_grad
            or not applies()
        ):
            return _own(self, target, sources, output_gradients, unconnected_gradients)
        handles = _handles(sources)
        if handles is None:
            return _own(self, target, sources, output_gradients, unconnected_gradients)
        if self._recording:
            self._pop_tape()
        found = pywrap_tfe.TFE_Py_TapeGradient(
            self._tape._tape, [target], handles, None, list(sources), unconnected_gradients.value
        )
        self._watched_variables = self._tape.watched_variables()
        self._tape = None
        return type(sources)(found)

    gradient.__doc__ = _own.__doc__
    gradient.__name__, gradient.__qualname__, gradient.__module__ = (
        _own.__name__,
        _own.__qualname__,
        _own.__module__,
    )
    if backprop.GradientTape.gradient is _own:  # a program's own method stays
        backprop.GradientTape.gradient = gradient


def remove() -> None:
    """Give TensorFlow its method back, unless the program has put one of its own there."""
    if backprop.GradientTape.gradient.__code__.co_filename == __file__:
        backprop.GradientTape.gradient = _own

"""``GradientTape.gradient`` without the Python that the plain case does not need.

While a region is co-executed the gradient's ops are known, and most of what the method still costs is flattening,
composite tensors and dtypes that it would complain about in a log (a seventh of a small step). In the plain case the
target is one floating tensor, and the source a floating resource variable or a list or tuple of them; none of that can
make a difference then. Anything else goes to TensorFlow's own method.

Source: ``tensorflow/python/eager/backprop.py``, ``GradientTape.gradient``; ``imperative_grad.py`` (2.18 to 2.21).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from tensorflow.python.eager import backprop, imperative_grad
from tensorflow.python.ops import resource_variable_ops
from tensorflow.python.ops.unconnected_gradients import UnconnectedGradients

from terra_cx.tf.native import pywrap_tfe
from terra_cx.tf.placeholder import Placeholder
from terra_cx.tf.replaced import Replaced

__all__ = ["install", "remove"]

_method = Replaced(backprop.GradientTape, "gradient", backprop)
_imperative_grad = imperative_grad.imperative_grad
_is_variable = resource_variable_ops.is_resource_variable
_ResourceVariable = resource_variable_ops.ResourceVariable
_plain: dict[int, weakref.ref[Any]] = {}
"""Handles that were looked at, by `id`: floating and not packed. A variable has its handle for life, and its value is
freed with it."""
_MOST = 10_000
_DTYPES = frozenset({"float32", "float64", "bfloat16", "float16"})


class _Keras:
    """Keras's variables: what they hold, without the properties and scopes that lead there (ten calls for each)."""

    def __init__(self) -> None:
        self._state: Any = None
        self._class: Any = None
        self._properties: tuple[Any, ...] = ()

    def variable(self) -> Any:
        """Their class, if its ``handle`` is that of ``_value`` at present; None otherwise, or without Keras 3."""
        if self._state is None:
            keras: Any = sys.modules.get("keras")
            if not hasattr(keras, "Variable") or keras.backend.backend() != "tensorflow":
                return None
            self._state = sys.modules["keras.src.backend.common.global_state"]
            self._class = keras.Variable
            self._properties = keras.Variable.handle, keras.Variable.value
        scopes = vars(self._state.GLOBAL_STATE_TRACKER)
        plain = scopes.get("stateless_scope") is None and scopes.get("autocast_scope") is None
        return self._class if plain and self._properties == (self._class.handle, self._class.value) else None


_keras = _Keras()


def _handles(sources: list[Any] | tuple[Any, ...]) -> list[Any] | None:
    """The handles of floating resource variables, None if one is anything else."""
    handles = []
    keras = _keras.variable()
    for source in sources:
        held = source._value if type(source) is keras else source
        if type(held) is _ResourceVariable:
            handle = held._handle
        elif _is_variable(source):
            handle = source.handle
        else:
            return None
        known = _plain.get(id(handle))
        if known is None or known() is not handle:
            dtype = source.dtype  # a string for a variable of Keras
            if getattr(dtype, "name", dtype) not in _DTYPES or handle.is_packed:
                return None
            if len(_plain) > _MOST:
                _plain.clear()
            _plain[id(handle)] = weakref.ref(handle)
        handles.append(handle)
    return handles


def install(applies: Callable[[], bool]) -> None:
    """Put the short way in place; it is taken while ``applies`` says that this thread is traced or co-executed.

    A method that the program has put there, before or after, stays.
    """

    def gradient(
        self: Any,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: Any = UnconnectedGradients.NONE,
    ) -> Any:
        plain = (
            output_gradients is None
            and type(target) is Placeholder
            and type(self) is backprop.GradientTape
            and self._tape is not None
            and not self._persistent
            and target.dtype.name in _DTYPES
            and type(unconnected_gradients) is UnconnectedGradients
            and imperative_grad.imperative_grad is _imperative_grad
            and applies()
        )
        one = type(sources) is not list and type(sources) is not tuple
        flat = [sources] if one else sources
        handles = _handles(flat) if plain else None
        if handles is None:
            return _method.own(self, target, sources, output_gradients, unconnected_gradients)
        if self._recording:
            self._pop_tape()
        found = pywrap_tfe.TFE_Py_TapeGradient(
            self._tape._tape, [target], handles, None, list(flat), unconnected_gradients.value
        )
        self._watched_variables = self._tape.watched_variables()
        self._tape = None
        return found[0] if one else type(sources)(found)

    _method.put(gradient)


def remove() -> None:
    """Give TensorFlow its method back, unless the program has put one of its own there."""
    _method.take_back()

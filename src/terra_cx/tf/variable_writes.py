"""``assign``, ``assign_add`` and ``assign_sub`` of a variable without the Python that the plain case does not need.

In the plain case, a resource variable that is nobody's subclass is given an eager tensor of its dtype. There is nothing
to convert then, and no graph to enter; what remains is one op, one note to the tapes, and the object that is returned,
a variable of its own kind. Its constructor is two fifths of the whole call, and fills a dictionary that is the same for
every write. Anything else goes to TensorFlow's own method.

The short way is taken in traced and in co-executed regions alike. The constructor stops and restarts the recording of
tapes around nothing; were it left out in the one and not in the other, no tape's history would ever be known again.

Source: ``tensorflow/python/ops/resource_variable_ops.py``, ``BaseResourceVariable`` and ``_UnreadVariable``;
``weak_tensor_ops.py``, which wraps the methods of ``ResourceVariable`` (2.18 to 2.21).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorflow.python.framework import ops
from tensorflow.python.ops import gen_resource_variable_ops, resource_variable_ops, weak_tensor_ops

from terra_cx.tf.native import EagerTensor, executing_eagerly, tell_of_access
from terra_cx.tf.placeholder import Placeholder
from terra_cx.tf.replaced import Replaced

__all__ = ["install", "is_written", "remove", "written_again"]

_Plain = resource_variable_ops.ResourceVariable
_Unread = resource_variable_ops._UnreadVariable
_TENSORS = (Placeholder, EagerTensor)
_methods = {
    name: Replaced(_Plain, name, resource_variable_ops, weak_tensor_ops)
    for name in ("assign", "assign_add", "assign_sub")
}


def is_written(value: Any) -> bool:
    """Whether ``value`` is what a write of a variable has returned."""
    return type(value) is _Unread


def written_again(value: Any) -> Any:
    """As ``value``, which a write has returned, for another write of the same variable."""
    made = _Unread.__new__(_Unread)
    made.__dict__.update(value.__dict__)
    return made


class _Results:
    """Makes what a write returns by copying what TensorFlow's constructor has made once.

    The first two are made by the constructor. If they differ in more than what is the variable's own, all others are.
    """

    def __init__(self) -> None:
        self._pattern: dict[str, Any] | None = None
        self._holds: bool | None = None

    def of(self, variable: Any) -> Any:
        """As ``_UnreadVariable(...)`` in ``BaseResourceVariable._lazy_read``, in eager execution."""
        own = {
            "_handle": variable._handle,
            "_shape": variable._shape,
            "_dtype": variable._dtype,
            "_unique_id": variable._unique_id,
        }
        if self._holds:
            made = _Unread.__new__(_Unread)
            made.__dict__.update(self._pattern)
            made.__dict__.update(own)
            return made
        made = _Unread(
            handle=variable._handle,
            dtype=variable._dtype,
            shape=variable._shape,
            in_graph_mode=variable._in_graph_mode,
            parent_op=None,
            unique_id=variable._unique_id,
        )
        if self._pattern is None:
            self._pattern = dict(made.__dict__)
        elif self._holds is None:
            self._holds = made.__dict__ == self._pattern | own
        return made


def install(applies: Callable[[], bool]) -> None:
    """Put the short ways in place; they are taken while ``applies`` says that this thread is traced or co-executed.

    Methods that the program has put there, before or after, stay.
    """
    results = _Results()

    def plain(variable: Any, value: Any) -> bool:
        return (
            type(variable) is _Plain
            and type(value) in _TENSORS
            and value.dtype is variable._dtype
            and not variable._in_graph_mode
            and variable._cached_value is None
            and executing_eagerly()
            and not ops.is_auto_dtype_conversion_enabled()
            and applies()
        )

    def result(variable: Any) -> Any:
        tell_of_access(variable)
        return results.of(variable)

    def assign(
        self: Any, value: Any, use_locking: Any = None, name: Any = None, read_value: bool = True
    ) -> Any:
        if not plain(self, value) or value.shape != self._shape:
            return _methods["assign"].own(self, value, use_locking, name, read_value)
        gen_resource_variable_ops.assign_variable_op(
            self._handle, value, validate_shape=self._validate_shape, name=name
        )
        return result(self) if read_value else None

    def updating(method: str) -> Callable[..., Any]:
        own, op = _methods[method].own, f"{method}_variable_op"

        def update(
            self: Any, delta: Any, use_locking: Any = None, name: Any = None, read_value: bool = True
        ) -> Any:
            if not plain(self, delta):
                return own(self, delta, use_locking, name, read_value)
            getattr(gen_resource_variable_ops, op)(self._handle, delta, name=name)
            return result(self) if read_value else None

        return update

    _methods["assign"].put(assign)
    for method in ("assign_add", "assign_sub"):
        _methods[method].put(updating(method))


def remove() -> None:
    """Give TensorFlow its methods back, unless the program has put some of its own there."""
    for method in _methods.values():
        method.take_back()

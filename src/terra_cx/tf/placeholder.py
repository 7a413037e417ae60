"""The tensor that the skeleton gets from a validated op: dtype and shape now, value later.

A placeholder is an instance of TensorFlow's own eager base class whose native members are answered from the slot it
shares with the runtime. Asking for anything that needs the value resolves the slot, which waits for the graph runner;
a placeholder resolves or raises, it never yields garbage.

Limits that are documented for users: ``type(t)`` is not ``EagerTensor`` (``isinstance`` and ``__class__`` are), and
``memoryview(t)`` works from Python 3.12 on only (PEP 688).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tensorflow.python.eager import core as _core
from tensorflow.python.framework import ops

from terra_cx.tf.native import REAL, EagerTensor, only_device, tensor_shape
from terra_cx.tf.slots import Slot, Spec

__all__ = ["Placeholder", "new_placeholder", "resolve", "resolve_all"]

_uid = REAL["TFE_Py_UID"]
_new = object.__new__


class Placeholder(ops._EagerTensorBase):
    """A ``tf.Tensor`` whose value is still being computed; see the module's page for what it promises."""

    __slots__ = ("_slot",)

    _slot: Slot

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return EagerTensor  # type: ignore[no-any-return]

    # What the native class supplies and needs no value.
    def _datatype_enum(self) -> int:
        return self._slot.spec.dtype

    def _shape_tuple(self) -> tuple[int, ...]:
        shape = self._slot.spec.shape
        return shape if shape is not None else self._slot.resolve()._shape_tuple()

    def _rank(self) -> int:
        return len(self._shape_tuple())

    def _num_elements(self) -> int:
        return int(np.prod(self._shape_tuple(), dtype=np.int64))

    @property
    def _tensor_shape(self) -> Any:
        spec = self._slot.spec
        if spec.tensor_shape is None:
            shape = tensor_shape.TensorShape(self._shape_tuple())
            if spec.shape is None:
                return shape
            spec.tensor_shape = shape
        return spec.tensor_shape

    @_tensor_shape.setter
    def _tensor_shape(self, value: Any) -> None:
        """TensorFlow caches the shape here; ours lives in the spec."""

    @property
    def _id(self) -> int:
        # Tapes know tensors by this number. Once told, it stays, although the value that comes later has its own.
        slot = self._slot
        if slot.uid is None:
            slot.uid = int(_uid() if slot.value is None else slot.value._id)
        return slot.uid

    @property
    def _handle_data(self) -> Any:
        return self._slot.resolve()._handle_data if self._slot.spec.dtype == 20 else None

    @_handle_data.setter
    def _handle_data(self, value: Any) -> None:
        if (
            value is not None or self._slot.spec.dtype == 20
        ):  # `tf.identity` passes on what its argument has: None
            self._slot.resolve()._handle_data = value

    @property
    def device(self) -> Any:
        """The device of the op that made the value; known without waiting where the op was seen before."""
        return only_device() or self._slot.spec.device or self._slot.resolve().device

    @property
    def backing_device(self) -> Any:
        """The device that holds the value; known without waiting where there is only one."""
        return only_device() or self._slot.resolve().backing_device

    @property
    def is_packed(self) -> bool:
        """A placeholder never stands for a packed tensor."""
        return False

    def _prefer_custom_summarizer(self) -> Any:
        return self._slot.resolve()._prefer_custom_summarizer()

    def _summarize_value(self) -> Any:
        return self._slot.resolve()._summarize_value()

    # What needs the value.
    def _numpy_internal(self) -> Any:
        return self._slot.resolve()._numpy_internal()

    def _copy_to_device(self, device_name: Any) -> Any:
        return self._slot.resolve()._copy_to_device(device_name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        # NumPy asks the real tensor, so that flags (read-only view) and `copy` are those of a plain eager tensor.
        real = self._slot.resolve()
        if copy is None:
            return np.asarray(real, dtype)
        return np.array(real, dtype, copy=copy)

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self._slot.resolve())

    def __reduce__(self) -> Any:
        return self._slot.resolve().__reduce__()

    def _numpy(self) -> Any:
        try:
            return self._slot.resolve()._numpy_internal()
        except _core._NotOkStatusException as error:
            raise _core._status_to_exception(error) from None


# `type(t)` differs from EagerTensor's, its printed name need not.
Placeholder.__name__ = EagerTensor.__name__
Placeholder.__qualname__ = EagerTensor.__qualname__
Placeholder.__module__ = EagerTensor.__module__


def new_placeholder(slot: Slot) -> Placeholder:
    """Make the placeholder of ``slot`` without running the class's ``__init__`` (it is on the path of every op)."""
    made: Placeholder = _new(Placeholder)
    made._slot = slot
    return made


def resolve(value: Any) -> Any:
    """The real tensor behind a placeholder, anything else unchanged; waits for the graph runner if need be."""
    return value._slot.resolve() if type(value) is Placeholder else value


def resolve_all(value: Any) -> Any:
    """`resolve` through lists and tuples (what the dispatch boundary's functions take)."""
    kind = type(value)
    if kind is Placeholder:
        return value._slot.resolve()
    if kind is list or kind is tuple:
        return kind([resolve_all(item) for item in value])
    return value


def spec_of(tensor: Any) -> Spec:
    """The dtype and shape of a real eager tensor."""
    return Spec(tensor._datatype_enum(), tensor._shape_tuple())

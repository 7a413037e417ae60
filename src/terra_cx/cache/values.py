"""Python values and small tensors as JSON, exactly, and nothing that could run code.

Numbers, texts, booleans and None stand for themselves; everything else is a dictionary with one key that tells its
type. A value of any other type makes what it belongs to impossible to store; that is learned anew in each process.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from terra_cx.tf import native
from terra_cx.tf.native import DType, EagerTensor, TensorShape

__all__ = [
    "Unstorable",
    "packed",
    "packed_tensor",
    "packed_type",
    "unpacked",
    "unpacked_tensor",
    "unpacked_type",
]

_TYPES = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, list, tuple, np.ndarray, TensorShape)
}
_MOST = 1 << 20
"""Bytes of an array or tensor. What is larger is data of the program's, not a constant."""
_NUMERIC = "biufcV"
"""Kinds of NumPy dtypes whose bytes are their value; V are those of ml_dtypes (bfloat16)."""


class Unstorable(Exception):
    """Something that cannot be kept beyond the process; the message says what."""


def packed(value: Any) -> Any:
    """A value in JSON.

    Raises:
        Unstorable: a type that has no form here.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is tuple:
        return {"t": [packed(item) for item in value]}
    if kind is list:
        return [packed(item) for item in value]
    if kind is bytes:
        return {"b": base64.b64encode(value).decode()}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if kind is DType:
        return {"d": value.as_datatype_enum}
    if kind is TensorShape:
        return {"s": value.as_list() if value.rank is not None else None}
    if kind is np.ndarray or isinstance(value, np.generic):
        return {"a" if kind is np.ndarray else "g": _packed_array(np.asarray(value))}
    raise Unstorable(f"a {kind.__module__}.{kind.__qualname__}")


def unpacked(value: Any) -> Any:
    """The value that `packed` was given.

    Raises:
        LookupError, TypeError, ValueError: it is no packed value.
    """
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "t":
        return tuple(unpacked(item) for item in content)
    if kind == "b":
        return base64.b64decode(content, validate=True)
    if kind == "c":
        return complex(*content)
    if kind == "d":
        return native.dtype_of(content)
    if kind == "s":
        return TensorShape(content)
    if kind == "a":
        return _unpacked_array(content)
    if kind == "g":
        return _unpacked_array(content)[()]
    raise ValueError(f"no packed value: {kind}")


def packed_type(kind: type) -> str:
    """A built-in type, or one of NumPy's scalars, by name.

    Raises:
        Unstorable: another type.
    """
    if _TYPES.get(kind.__name__) is kind:
        return kind.__name__
    if issubclass(kind, np.generic) and np.dtype(kind).type is kind:
        return "numpy:" + np.dtype(kind).name
    raise Unstorable(f"the type {kind.__module__}.{kind.__qualname__}")


def unpacked_type(name: str) -> type:
    """The type that `packed_type` was given.

    Raises:
        LookupError, TypeError: there is none of this name.
    """
    prefix, _, scalar = name.partition(":")
    return np.dtype(scalar).type if prefix == "numpy" else _TYPES[name]


def packed_tensor(tensor: Any) -> list[Any]:
    """A host tensor: dtype, shape, bytes.

    Raises:
        Unstorable: no tensor, or one whose bytes are not its value.
    """
    if not isinstance(tensor, EagerTensor) or tensor._datatype_enum() in (20, 21):  # resource, variant
        raise Unstorable("a tensor that is no array")
    return [tensor._datatype_enum(), *_packed_array(native.host_value(tensor))[1:]]


def unpacked_tensor(content: Any) -> Any:
    """The tensor that `packed_tensor` was given."""
    enum, shape, data = content
    dtype = native.dtype_of(enum)
    array = np.frombuffer(base64.b64decode(data, validate=True), dtype.as_numpy_dtype).reshape(shape)
    return native.as_tensor(array, dtype)


def _packed_array(array: np.ndarray[Any, Any]) -> list[Any]:
    if array.dtype.kind not in _NUMERIC or array.dtype.hasobject or array.dtype.fields is not None:
        raise Unstorable(f"an array of {array.dtype}")
    if array.nbytes > _MOST:
        raise Unstorable("a large array")
    name = array.dtype.name if array.dtype.kind == "V" else array.dtype.str  # the latter tells the byte order
    return [name, list(array.shape), base64.b64encode(array.tobytes()).decode()]


def _unpacked_array(content: Any) -> np.ndarray[Any, Any]:
    name, shape, data = content
    return np.frombuffer(base64.b64decode(data, validate=True), np.dtype(name)).reshape(shape).copy()

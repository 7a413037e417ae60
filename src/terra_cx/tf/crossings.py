"""Where the value of a tensor crosses to Python, and what a program leaves behind: what `terra-cx check` looks at.

`Crossings` reports every such crossing, of real eager tensors and of placeholders alike, so the same hook sees plain
eager execution and co-execution. There are three doors:

* ``_numpy``, through which ``numpy()``, ``float()``, ``if t:``, printing, formatting and pickling go;
* the buffer protocol, through which NumPy (``np.asarray(t)``, ``np.argmax(t)``) and ``memoryview`` read a real
  tensor without calling any Python. Its function is exchanged in the C type; a placeholder has no buffer of its own
  and asks NumPy to read the real tensor, so it passes here too;
* ``TFE_ToDlpackCapsule``.

`Variables` keeps a handle of every variable that the program makes, `generators` describes random generators. Both
are read when the program is over. Nothing here runs an op before that, and nothing is kept of a tensor.

Source: ``tensorflow/python/framework/ops.py``, ``tensorflow/python/eager/pywrap_tensor.cc`` (TensorFlow 2.18 to 2.21);
CPython's ``Include/cpython/object.h`` for the place of ``tp_as_buffer``.
"""

from __future__ import annotations

import ctypes
import functools
import random
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from terra_cx.tf import native
from terra_cx.tf.native import REAL, EagerTensor, EagerTensorBase, ResourceVariable, pywrap_tfe
from terra_cx.tf.placeholder import Placeholder, resolve

__all__ = ["Crossings", "Variables", "generators"]

Seen = Callable[[Any, FrameType], None]

_DLPACK = "TFE_ToDlpackCapsule"
_AS_BUFFER = 160
"""Offset of ``tp_as_buffer`` in a type object of 64-bit CPython; it has not moved from 3.11 to 3.13."""
_KEPT_BYTES = 1 << 28
"""Values of dead variables, in bytes, that are kept for the end."""

_GET_BUFFER = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)


class Crossings:
    """Reports the crossings of this process; installed once, before a dispatch boundary is, and for good.

    Args:
        seen: called with the value (a NumPy array or scalar, or bytes) and the innermost Python frame that asked.
            It must not raise.
    """

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._kept: list[Any] = []  # C callbacks that must outlive the hooks

    def install(self) -> bool:
        """Put the hooks in place.

        Returns:
            Whether reads through the buffer protocol are seen. They are not where the type object does not look as
            expected.
        """
        for owner in (EagerTensorBase, Placeholder):
            owner._numpy = self._reporting(owner._numpy)  # type: ignore[method-assign]
        to_dlpack = REAL[_DLPACK]

        @functools.wraps(to_dlpack)
        def capsule(tensor: Any) -> Any:
            tensor = resolve(tensor)
            made = to_dlpack(tensor)
            self._seen(tensor._numpy_internal(), sys._getframe(1))
            return made

        # The boundary's own function calls what stands in REAL.
        REAL[_DLPACK] = capsule
        setattr(pywrap_tfe, _DLPACK, capsule)
        return self._hook_buffer()

    def _reporting(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        seen = self._seen

        @functools.wraps(original)
        def _numpy(tensor: Any) -> Any:
            value = original(tensor)
            seen(value, sys._getframe(1))
            return value

        return _numpy

    def _hook_buffer(self) -> bool:
        place = _buffer_slot(EagerTensor)
        if place is None:
            return False
        original = _GET_BUFFER(place.value or 0)
        seen = self._seen

        def get_buffer(tensor: Any, view: int, flags: int) -> int:
            try:
                status = original(tensor, view, flags)
            except BaseException:  # noqa: BLE001
                # A ctypes callback cannot pass an exception on. NumPy then asks `__array__`, which raises the right
                # one; `memoryview(t)` of a resource becomes a SystemError instead of an InvalidArgumentError.
                return -1
            seen(tensor._numpy_internal(), sys._getframe(1))
            return int(status)

        callback = _GET_BUFFER(get_buffer)
        self._kept += [callback, original]
        place.value = ctypes.cast(callback, ctypes.c_void_p).value
        return True


def _buffer_slot(kind: type) -> ctypes.c_void_p | None:
    """The place that holds a type's ``bf_getbuffer``; None if the type object is not laid out as expected."""
    if ctypes.sizeof(ctypes.c_void_p) != 8 or sys.implementation.name != "cpython":
        return None

    def buffers(of: type) -> int | None:
        return ctypes.c_void_p.from_address(id(of) + _AS_BUFFER).value

    if buffers(int) or buffers(object) or not buffers(bytes):
        return None
    found = buffers(kind)
    place = ctypes.c_void_p.from_address(found) if found else None
    return place if place is not None and place.value else None


@dataclass(slots=True)
class _Entry:
    name: str
    handle: Any
    dtype: Any
    size: int
    death: Any


class Variables:
    """Every resource variable that the program makes from now on, in the order of creation.

    The handle of a variable is kept, not the variable, so that objects die when they would; the value lives as long
    as the handle. Handles of dead variables are given up, oldest first, when their values take more than 256 MiB.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self.made = 0
        """How many there have been."""
        self._handles: set[int] = set()
        self._dead: deque[int] = deque()
        self._dead_bytes = 0

    def install(self) -> None:
        """Hear of variables from now on."""
        original: Callable[..., None] = ResourceVariable.__init__  # type: ignore[misc]

        @functools.wraps(original)
        def init(variable: Any, *args: Any, **kwargs: Any) -> None:
            original(variable, *args, **kwargs)
            self._add(variable)

        ResourceVariable.__init__ = init  # type: ignore[misc]

    def _add(self, variable: Any) -> None:
        handle = resolve(variable._handle)
        if type(handle) is not EagerTensor or id(handle) in self._handles:
            # Made while a graph is being built: it has no value of its own. Or a view: `assign` returns a new object
            # on the same handle.
            return
        number = self.made
        self.made += 1
        shape = variable.shape
        elements = shape.num_elements() if shape.is_fully_defined() else 0
        death = weakref.ref(variable, lambda _: self._died(number))
        size = int(elements or 0) * int(variable.dtype.size)
        self._handles.add(id(handle))
        self._entries[number] = _Entry(variable.name, handle, variable.dtype, size, death)

    def _died(self, number: int) -> None:
        self._dead.append(number)
        self._dead_bytes += self._entries[number].size
        while self._dead_bytes > _KEPT_BYTES:
            lost = self._entries.pop(self._dead.popleft())
            self._handles.discard(id(lost.handle))
            self._dead_bytes -= lost.size

    def values(self) -> Iterator[tuple[int, str, Any]]:
        """Yield number, name and value of each variable; the value is None if there is none.

        To be called when no op of the program is in flight.
        """
        for number, entry in list(self._entries.items()):
            arguments = (entry.handle, "dtype", entry.dtype)
            try:
                value = native.host_value(native.run_fast("ReadVariableOp", None, arguments))
            except native.OpError:
                value = None
            yield number, entry.name, value


def generators() -> dict[str, str]:
    """The states of the random generators that programs share, in words that are equal for equal states.

    TensorFlow's is the one from which ops without a seed of their own get theirs under a global seed. What the
    kernels of seeded ops have drawn cannot be asked.
    """
    states = {"random": repr(random.getstate()), "numpy.random": repr(_listed(np.random.get_state()))}
    rng = getattr(native.context(), "_rng", None)
    if rng is not None:
        states["tf.random"] = repr(rng.getstate())
    return states


def _listed(state: Any) -> list[Any]:
    return [part.tolist() if isinstance(part, np.ndarray) else part for part in state]

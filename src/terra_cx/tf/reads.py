"""Notes when the value of a tensor is read, be it a placeholder or a real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from terra_cx.tf.native import EagerTensorBase
from terra_cx.tf.slots import Slot

__all__ = ["noting_reads"]


@contextmanager
def noting_reads(seen: list[Any]) -> Iterator[None]:
    """Append to ``seen`` each tensor or slot whose value this thread reads meanwhile.

    The value of a real tensor that NumPy takes through the buffer protocol is not seen; TensorFlow's own Python code
    reads values by ``numpy()``.
    """
    thread = get_ident()
    numpy, resolve = EagerTensorBase._numpy, Slot.resolve

    def noted_numpy(tensor: Any) -> Any:
        if get_ident() == thread:
            seen.append(tensor)
        return numpy(tensor)

    def noted_resolve(slot: Slot) -> Any:
        if get_ident() == thread:
            seen.append(slot)
        return resolve(slot)

    EagerTensorBase._numpy = noted_numpy
    Slot.resolve = noted_resolve  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        EagerTensorBase._numpy = numpy
        Slot.resolve = resolve  # type: ignore[method-assign]

"""Notes when the value of a tensor is read, be it a placeholder or a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from terra_cx.tf.native import EagerTensorBase
from terra_cx.tf.slots import Slot

__all__ = ["noting_reads", "telling"]


def telling(read: Callable[[Any], Any], seen: Callable[[Any], None]) -> Callable[[Any], Any]:
    """A method that tells ``seen`` of what it is asked for, and does what ``read`` does."""

    def told(thing: Any) -> Any:
        seen(thing)
        return read(thing)

    return told


@contextmanager
def noting_reads(seen: list[Any]) -> Iterator[None]:
    """Append to ``seen`` each tensor or slot whose value this thread reads meanwhile.

    What NumPy takes of a real tensor through the buffer protocol is not seen, and TensorFlow's own Python does that in
    places (``tf.nn.atrous_conv2d``). Who begins to watch reads meanwhile (a recorder, after a divergence) goes on doing
    so: only what still stands there is taken back.
    """
    thread = get_ident()

    def mine(thing: Any) -> None:
        if get_ident() == thread:
            seen.append(thing)

    numpy, resolve = EagerTensorBase._numpy, Slot.resolve
    EagerTensorBase._numpy = noted = telling(numpy, mine)
    Slot.resolve = telling(resolve, mine)  # type: ignore[method-assign, assignment]  # nobody else's place
    try:
        yield
    finally:
        if EagerTensorBase._numpy is noted:
            EagerTensorBase._numpy = numpy
        Slot.resolve = resolve  # type: ignore[method-assign]

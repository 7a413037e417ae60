"""Whether the next element of a ``tf.data`` iterator can depend on what the step does.

An iterator whose pipeline captures no resource and calls no Python is independent of all pending ops, and its next
element is taken at once, while the graph runner works. For any other iterator everything before is done first.

Source: ``tensorflow/python/data/ops/iterator_ops.py`` (``OwnedIterator``), ``dataset_ops.py``.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from tensorflow.python.framework import dtypes

__all__ = ["Independence"]

_PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
_FRAMES = 8
"""How far up the stack the iterator's own ``__next__`` is looked for."""


def _depends(dataset: Any) -> bool:
    """Whether the pipeline reads state, calls Python, or cannot be seen through."""
    try:
        if any(_depends(source) for source in dataset._inputs()):
            return True
        for wrapper in dataset._functions():
            function = wrapper.function
            if any(tensor.dtype == dtypes.resource for tensor in function.captured_inputs):
                return True
            if any(op.type in _PYTHON for op in function.graph.get_operations()):
                return True
    except AttributeError:
        return True
    return False


class Independence:
    """Remembers per iterator whether it is independent of the step."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, bool]] = {}

    def of(self, resource: Any) -> bool:
        """Whether the iterator with this resource handle is independent; called below its ``__next__``."""
        found = self._known.get(id(resource))
        if found is not None and found[0] is resource:
            return found[1]
        answer = self._judge(resource)
        if len(self._known) > 64:
            self._known.clear()  # iterators come and go with the epochs
        self._known[id(resource)] = (resource, answer)
        return answer

    @staticmethod
    def _judge(resource: Any) -> bool:
        frame: FrameType | None = sys._getframe(2)
        for _ in range(_FRAMES):
            if frame is None:
                return False
            iterator = frame.f_locals.get("self")
            if getattr(iterator, "_iterator_resource", None) is resource:
                dataset = getattr(iterator, "_dataset", None)
                return dataset is not None and not _depends(dataset)
            frame = frame.f_back
        return False

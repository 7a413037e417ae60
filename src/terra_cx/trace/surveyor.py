"""Looks at a program that just became warm, to find its step: counts ops, writes, gradients and open tapes per loop.

The surveyor is the boundary's handler for a few iterations before anything is traced. It executes everything as eager
does and feeds the region choice (`trace.regions`).
"""

from __future__ import annotations

from threading import get_ident
from time import perf_counter
from typing import Any

from terra_cx.tf.boundary import Passive
from terra_cx.tf.opdefs import writes
from terra_cx.trace.regions import Survey

__all__ = ["Surveyor"]


class Surveyor(Passive):
    """Boundary handler of the survey."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.owner = get_ident()
        self.tapes = 0
        self.seconds = 0.0
        """What the survey has cost the program."""

    def _op(self, op: str) -> None:
        start = perf_counter()
        self.survey.op(writes(op), self.tapes)
        self.seconds += perf_counter() - start

    def fast(self, ctx: Any, op: str, name: Any, *args: Any) -> Any:
        """``TFE_Py_FastPathExecute``."""
        if get_ident() == self.owner:
            self._op(op)
        return super().fast(ctx, op, name, *args)

    def execute(self, handle: Any, device: Any, op: Any, inputs: Any, attrs: Any, outputs: Any) -> Any:
        """``TFE_Py_Execute``."""
        if get_ident() == self.owner:
            self._op(op.decode() if isinstance(op, bytes) else op)
        return super().execute(handle, device, op, inputs, attrs, outputs)

    def tape_new(self, *args: Any) -> Any:
        """``TFE_Py_TapeSetNew``."""
        if get_ident() == self.owner:
            self.tapes += 1
        return super().tape_new(*args)

    def tape_add(self, tape: Any) -> Any:
        """``TFE_Py_TapeSetAdd``."""
        if get_ident() == self.owner:
            self.tapes += 1
        return super().tape_add(tape)

    def tape_remove(self, tape: Any) -> Any:
        """``TFE_Py_TapeSetRemove``."""
        if get_ident() == self.owner:
            self.tapes -= 1
        return super().tape_remove(tape)

    def tape_gradient(self, *args: Any) -> Any:
        """``TFE_Py_TapeGradient``."""
        if get_ident() == self.owner:
            self.survey.gradient(self.tapes)
        return super().tape_gradient(*args)

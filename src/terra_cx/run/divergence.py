"""Divergence: Python does something that the TraceGraph does not hold."""

from __future__ import annotations

from terra_cx.reasons import Reason
from terra_cx.run.differences import Difference

__all__ = ["Diverge"]


class Diverge(Exception):
    """The TraceGraph does not hold what Python does; ``detail`` says it in words, or is the difference."""

    def __init__(self, reason: Reason, detail: str | Difference) -> None:
        super().__init__(str(detail))
        self.reason = reason
        self.detail = detail

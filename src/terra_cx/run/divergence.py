"""Divergence: Python does something that the TraceGraph does not hold."""

from __future__ import annotations

from terra_cx.reasons import Reason

__all__ = ["Diverge"]


class Diverge(Exception):
    """The TraceGraph does not hold what Python does; ``detail`` says it in words."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

"""Quantities as people read them: a few digits, the unit that fits."""

from __future__ import annotations

__all__ = ["count", "duration", "milliseconds", "number", "share"]


def milliseconds(value: float) -> str:
    """A number of milliseconds: `0.21 ms`, `1234 ms`, `12.3 s`."""
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def duration(seconds: float) -> str:
    """A number of seconds: `12 ms`, `1.1 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 1:
        return milliseconds(1000 * seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole:02} s"


def count(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def number(value: float) -> str:
    """A number that need not be whole, in three digits if it is small: `0.254`, `16.5`, `1204`."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def share(value: float) -> str:
    """A part of one: `34 %` as people write it in running text."""
    return f"{value:.0%}" if value >= 0.01 or value == 0 else f"{value:.1%}"

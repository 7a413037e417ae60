"""The timeline as a picture: a few steps of a window as SVG, for notebooks and other places without scripts.

It can stand in a page of any colours: text has the page's colour, and nothing in it reaches out (no styles, no ids).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

from terra_cx.profile.chrome_trace import Bar, nested, owner_bars, runner_bars, short
from terra_cx.profile.events import Region, Window
from terra_cx.profile.slices import owner_slices
from terra_cx.report.quantities import milliseconds

__all__ = ["svg"]

STEPS = 6
_MOST_BARS = 3000
_WIDTH, _LEFT, _LANE, _GAP, _TOP = 960, 96, 26, 10, 22
_KINDS = {
    "user": ("your Python", "#3f7ae8"),
    "host": ("NumPy and others", "#e3912b"),
    "library": ("TensorFlow's and Keras's Python", "#8f6ad6"),
    "python": ("Python between two ops", "#8aa0c8"),
    "terra": ("terra-cx", "#2d9d8c"),
    "elided": ("elided calls", "#86cfc0"),
    "fetch": ("waiting for a value", "#d8414e"),
    "graph": ("waiting for the graph", "#ee9aa4"),
    "compiled": ("compiled block", "#33915a"),
    "first": ("block compiled and compared", "#b89b2e"),
    "op by op": ("block op by op", "#7d8f36"),
    "dispatch": ("inputs put together", "#8fcfa6"),
    "kernel": ("kernel", "#54708f"),
}


def svg(window: Window, steps: int = STEPS) -> str | None:
    """The last co-executed steps of a window; None if it has none.

    Args:
        window: what was looked at in detail.
        steps: how many to show.
    """
    shown = window.steps()[-steps:]
    if not shown:
        return None
    start, end = shown[0].start, max(shown[-1].end, shown[0].start + 1)
    lanes = [("Python", list(owner_bars(owner_slices(window)))), ("graph", list(runner_bars(window.runs)))]
    for lane in window.lanes:
        kernels = [Bar(kernel.start, kernel.end, kernel.name, "kernel") for kernel in lane.kernels]
        lanes.append((lane.name, kernels))
    drawn = [(name, _within(bars, start, end)) for name, bars in lanes]
    drawn = [(name, bars) for name, bars in drawn if bars]
    scale = (_WIDTH - _LEFT - 8) / (end - start)
    height = _TOP + len(drawn) * (_LANE + _GAP)
    body = [_step(region, start, scale, height) for region in shown]
    for number, (name, bars) in enumerate(drawn):
        top = _TOP + number * (_LANE + _GAP)
        body.append(_text(_LEFT - 8, top + _LANE / 2 + 4, name[:14], "end"))
        body += [_bar(bar, start, scale, top) for bar in _thinned(bars, scale)]
    kinds = [kind for kind in _KINDS if any(bar.what == kind for _, bars in drawn for bar in bars)]
    legend, below = _legend(kinds, height + 6)
    mean = (end - start) / len(shown) / 1e6
    words = f"{len(shown)} steps at {short(window.anchor)}, {milliseconds(mean)} each"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {below:.0f}" width="100%" '
        f'style="max-width: {_WIDTH}px; font: 12px system-ui, sans-serif" role="img" aria-label="{_quoted(words)}">'
        f"<title>{escape(words)}</title>{''.join(body)}{legend}</svg>"
    )


def _within(bars: Iterable[Bar], start: int, end: int) -> list[Bar]:
    inside = (bar for bar in bars if bar.end > start and bar.start < end and bar.what in _KINDS)
    cut = (
        Bar(max(bar.start, start), min(bar.end, end), bar.name, bar.what, bar.line, bar.more)
        for bar in inside
    )
    return list(nested(cut))


def _thinned(bars: Sequence[Bar], scale: float) -> list[Bar]:
    """The bars that can be seen, the longest if there are too many."""
    seen = [bar for bar in bars if (bar.end - bar.start) * scale >= 0.15]
    if len(seen) > _MOST_BARS:
        shortest = sorted(bar.end - bar.start for bar in seen)[-_MOST_BARS]
        seen = [bar for bar in seen if bar.end - bar.start >= shortest]
    return seen


def _step(region: Region, start: int, scale: float, height: float) -> str:
    x = _LEFT + (region.start - start) * scale
    line = f'<path d="M{x:.1f} {_TOP - 6}V{height - _GAP + 4}" stroke="currentColor" opacity=".25"/>'
    return line + _text(x + 3, _TOP - 9, milliseconds((region.end - region.start) / 1e6), "start")


def _bar(bar: Bar, start: int, scale: float, top: float) -> str:
    x, width = _LEFT + (bar.start - start) * scale, max(0.4, (bar.end - bar.start) * scale)
    told = f"{bar.name}, {milliseconds((bar.end - bar.start) / 1e6)}"
    if bar.line and short(bar.line) not in told:
        told += f", {short(bar.line)}"
    return (
        f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_LANE}" fill="{_KINDS[bar.what][1]}">'
        f"<title>{escape(told)}</title></rect>"
    )


def _legend(kinds: Sequence[str], top: float) -> tuple[str, float]:
    """The legend, and where it ends."""
    found, x = [], float(_LEFT)
    for kind in kinds:
        name, colour = _KINDS[kind]
        width = 26 + 6.6 * len(name)
        if x + width > _WIDTH:
            x, top = float(_LEFT), top + 18
        found.append(f'<rect x="{x:.0f}" y="{top:.0f}" width="10" height="10" fill="{colour}"/>')
        found.append(_text(x + 15, top + 9, name, "start"))
        x += width
    return "".join(found), top + 16


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(words)}</text>'


def _quoted(words: str) -> str:
    return escape(words, {'"': "&quot;"})

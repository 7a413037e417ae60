"""The figures as a bar chart: how much faster than eager each mode is, one group of bars a program.

Speed and not time is drawn, because programs of a millisecond and of a second then fit one axis; the times stand beside
the bars. Needs matplotlib (the extra `plot`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from terra_cx.bench.measure import Figures, Measurement
from terra_cx.errors import UsageError

__all__ = ["require", "svg"]

# Told apart by people with any kind of colour vision, and from each other in grey (Okabe and Ito, 2008).
_COLOURS = {
    "eager": "#999999",
    "function": "#56B4E9",
    "xla": "#0072B2",
    "async": "#F0E442",
    "lazy": "#E69F00",
    "co": "#D55E00",
    "co-graph": "#009E73",
    "co-xla": "#CC79A7",
    "co-auto": "#000000",
}
_BAR = 0.8
_SHORT = {"not applicable": "n/a", "fails": "fails", "nondeterministic": "nondeterministic"}


def require() -> None:
    """Find out before anything is run whether a chart can be drawn.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'terra-cx[plot]'") from None


def svg(measured: Sequence[Measurement], head: str) -> str:
    """Draw the chart.

    Args:
        measured: the programs; those without figures are left out.
        head: one line on how they were measured.
    """
    # Not pyplot: it looks for a screen and keeps every figure.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    drawn = [one for one in measured if one.figures]
    modes = list(dict.fromkeys(mode for one in drawn for mode in one.figures))
    rows = sum(len(one.figures) + 1 for one in drawn)
    figure = Figure(figsize=(9, 1.5 + 0.26 * max(rows, 3)), layout="constrained")
    axes = figure.add_subplot()
    place, centres, most = 0.0, [], 1.0
    for one in drawn:
        start = place
        for mode, figures in one.figures.items():
            speedup = one.speedup(mode) if figures.result in ("identical", "rounding", "wrong") else None
            _bar(axes, place, mode, figures, speedup)
            most = max(most, speedup or 0.0)
            if figures.limit_ms and one.figures["eager"].step_ms:
                limit = one.figures["eager"].step_ms / figures.limit_ms
                axes.plot([limit] * 2, [place - _BAR / 2, place + _BAR / 2], color="black", linewidth=2)
                most = max(most, limit)
            place += 1
        centres.append((start + place - 1) / 2)
        place += 1
    axes.axvline(1.0, color="#666666", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xlim(0, most * 1.32)
    axes.set_ylim(max(place - 1, 1) - 0.2, -0.8)
    axes.set_yticks(centres, [one.name for one in drawn])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        "times as fast as eager (steady steps); black line: the compiled graph alone; hatched: wrong values"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [axes.barh([-9], [0], color=_COLOURS.get(mode, "#444444"), label=mode) for mode in modes]
    figure.legend(handles=handles, ncols=len(modes), loc="outside upper center", frameon=False)
    figure.supxlabel(head, fontsize=7, color="#666666")
    stream = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(stream, metadata={"Date": None, "Title": "Step times relative to eager"})
    return stream.getvalue()


def _bar(axes: Any, place: float, mode: str, figures: Figures, speedup: float | None) -> None:
    """One bar with its label; a mode without a speed gets the label alone."""
    if speedup is None:
        words = _SHORT.get(figures.result, "n/a")
        axes.text(0.01, place, f" {mode}: {words}", va="center", fontsize=8, color="#666666")
        return
    hatch = "////" if figures.result == "wrong" else None
    axes.barh(
        place, speedup, _BAR, color=_COLOURS.get(mode, "#444444"), hatch=hatch, edgecolor="white", linewidth=0
    )
    words = f"{speedup:.2f}x  {figures.step_ms:.3g} ms" + ("  wrong" if hatch else "")
    axes.annotate(
        words,
        (speedup, place),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        annotation_clip=False,
    )

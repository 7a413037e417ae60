"""The page: a profile as HTML that needs nothing else, neither files nor a network.

The template makes what is text and tables; the timeline is drawn by `page.js` from the numbers that stand in the page
as JSON. They are columns of small numbers, because a timeline has thousands of bars.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from terra_cx.profile.chrome_trace import Arrow, Bar, arrows, nested, owner_bars, runner_bars, short
from terra_cx.profile.events import Window
from terra_cx.profile.metrics import run_ahead
from terra_cx.profile.slices import PARTS, WAITS, owner_slices

__all__ = ["render", "verdict"]

MOST_BARS = 12_000
"""Bars of one timeline; trace.json has all."""

_WORDS = {
    "user": "your Python",
    "host": "what it calls: NumPy and others",
    "library": "TensorFlow's and Keras's Python",
    "terra": "terra-cx: checks and handover",
    "elided": "terra-cx: elided library calls",
    "fetch": "waiting for a value",
    "graph": "waiting for the graph",
    "python": "Python between two ops",
    "compiled": "compiled block",
    "first": "block run op by op, compiled, compared",
    "op by op": "block run op by op",
    "dispatch": "inputs put together",
    "feed wait": "graph waits for values of Python's",
    "path wait": "graph waits to be told the way",
    "kernel": "kernel on a device",
}
_COLOURS = {"op by op": "by-op", "feed wait": "feed", "path wait": "path"}
"""Names of style variables, where they are others."""


def render(profile: Mapping[str, Any], windows: Sequence[Window]) -> str:
    """The page of a profile.

    Args:
        profile: as `record.build` makes it.
        windows: those that its metrics were taken of; others of its anchors have no timeline.
    """
    import jinja2
    from markupsafe import Markup

    by_anchor = {window.anchor: window for window in windows}
    packer = _Packer(profile)
    sections = [
        _section(profile, index, anchor, by_anchor.get(anchor["line"]), packer)
        for index, anchor in enumerate(profile["anchors"])
    ]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "ms": _ms,
        "seconds": lambda seconds: _ms(1000 * seconds),
        "percent": _percent,
        "number": _number,
        "short": short,
        "python_ms": lambda parts: sum(ms for part, ms in parts.items() if part not in WAITS),
    }
    template = environment.from_string(_file("page.html.j2"))
    return template.render(
        title=" ".join([short(word) if "/" in word else word for word in profile["command"]]) or "profile",
        profile=profile,
        sections=sections,
        part_names=PARTS,
        words=_WORDS,
        regions=_regions(profile),
        css=Markup(_file("page.css")),
        js=Markup(_file("page.js")),
        data=Markup(_script_json(packer.data())),
    )


def verdict(anchor: Mapping[str, Any]) -> str:
    """What a person should know first about a loop, in two or three sentences (HTML)."""
    from markupsafe import Markup

    line, metrics = short(anchor["line"]), anchor["metrics"]
    if metrics is None:
        why = anchor["given_up"] or "too few of its steps were co-executed to be looked at in detail"
        return Markup("The loop at <code>{}</code> has no timeline: {}.").format(line, why)
    step, eager, bound = metrics["step_ms"], metrics["eager_step_ms"], metrics["bound_by"]
    text = Markup("A step of <code>{}</code> takes <b>{}</b>").format(line, _ms(step))
    if eager:
        faster = f"{eager / step:.2g} times as fast as" if eager >= step else "slower than"
        text += Markup(", {} in eager ({})").format(faster, _ms(eager))
    share, where = _percent(bound["share"]), short(bound["line"])
    code = next((each["text"] for each in anchor["lines"] if each["line"] == bound["line"]), "")
    if bound["what"] == "python":
        text += Markup(
            ". It is bound by <b>Python</b>: for {} of it the graph has nothing to do. Most goes to {} <code>{}</code>."
        ).format(share, where, code)
    elif bound["what"] == "fetch":
        text += Markup(
            ". It is bound by a <b>read</b>: for {} of it Python waits at {} <code>{}</code>."
        ).format(share, where, code)
    else:
        text += Markup(". It is bound by the <b>graph</b>: for {} of it Python can only wait for it.").format(
            share
        )
    return text


class _Packer:
    """Timelines as numbers, with tables of the words, names and lines that they refer to."""

    def __init__(self, profile: Mapping[str, Any]) -> None:
        self._names: dict[str, int] = {}
        self._lines: dict[str, int] = {"": 0}
        self._whats: dict[str, int] = {}
        self._timelines: list[Any] = []
        self._texts = {
            line["line"]: line["text"] for anchor in profile["anchors"] for line in anchor["lines"]
        }

    def add(self, window: Window | None) -> tuple[int, list[str]]:
        """Add a window's timeline; how many of its regions are shown, and what kinds of bars there are."""
        if window is None:
            self._timelines.append(None)
            return 0, []
        lanes: list[tuple[str, bool, list[Bar]]] = [
            ("Python", False, list(owner_bars(owner_slices(window)))),
            ("Graph runner", False, list(nested(runner_bars(window.runs)))),
        ]
        for lane in window.lanes:
            kernels = nested(Bar(k.start, k.end, k.name, "kernel") for k in lane.kernels)
            lanes.append((lane.name, lane.kind == "cpu", list(kernels)))
        shown = _shown(window, [bars for _, _, bars in lanes])
        hidden = len(window.regions) - shown
        zero, until = window.regions[hidden].start, window.regions[-1].end
        kinds: dict[str, None] = {}
        packed = []
        for name, thin, bars in lanes:
            here = [bar for bar in bars if zero <= bar.start < until]
            kinds |= dict.fromkeys(bar.what for bar in here)
            if here:
                packed.append({"name": name, "thin": thin, "bars": [self._bar(bar, zero) for bar in here]})
        self._timelines.append(
            {
                "lanes": packed,
                "steps": [
                    [(region.start - zero) / 1000, (region.end - zero) / 1000, window.first + hidden + index]
                    for index, region in enumerate(window.regions[hidden:])
                ],
                "devices": max(0, (window.devices_from - zero) / 1000),
                "arrows": [_arrow(arrow, zero) for arrow in arrows(window) if zero <= arrow.op < until],
                "counters": [
                    _counter("Runs in the channel", window.depths, zero, until),
                    _counter("Regions Python is ahead", run_ahead(window), zero, until),
                ],
            }
        )
        return shown, list(kinds)

    def _bar(self, bar: Bar, zero: int) -> list[float]:
        return [
            (bar.start - zero) / 1000,
            (bar.end - bar.start) / 1000,
            self._whats.setdefault(bar.what, len(self._whats)),
            self._names.setdefault(bar.name, len(self._names)),
            self._lines.setdefault(bar.line, len(self._lines)),
        ]

    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {
            "timelines": self._timelines,
            "names": list(self._names),
            "lines": list(self._lines),
            "whats": list(self._whats),
            "texts": self._texts,
            "words": _WORDS,
            "colours": {what: _COLOURS.get(what, what) for what in self._whats},
        }


def _section(
    profile: Mapping[str, Any], index: int, anchor: Mapping[str, Any], window: Window | None, packer: _Packer
) -> dict[str, Any]:
    metrics = anchor["metrics"]
    shown, kinds = packer.add(window if metrics is not None else None)
    widest = max(metrics["step_ms"], metrics["eager_step_ms"] or 0.0) if metrics is not None else 1.0
    text = ""
    if window is not None and metrics is not None:
        last = window.first + len(window.regions) - 1
        first = last - shown + 1
        text = f"Steps {first} to {last} of the co-executed ones, on one clock."
        if window.lanes and window.devices_from > window.regions[-shown].start:
            text += " Devices were looked at in the last of them only, because that costs more."
        if shown < len(window.regions):
            text += f" trace.json has all {len(window.regions)} that were looked at."
    return {
        "main": index == profile["main"],
        "anchor": anchor,
        "verdict": verdict(anchor),
        "shown": text,
        "kinds": [
            {"colour": _COLOURS.get(kind, kind), "words": _WORDS[kind]} for kind in _WORDS if kind in kinds
        ],
        "step_width": round(100 * metrics["step_ms"] / widest, 3) if metrics is not None else 0,
        "eager_width": round(100 * (metrics["eager_step_ms"] or 0.0) / widest, 3)
        if metrics is not None
        else 0,
        "longest": max([sum(line["parts_ms"].values()) for line in anchor["lines"]], default=0.0) or 1.0,
    }


def _shown(window: Window, lanes: Iterable[Sequence[Bar]]) -> int:
    """How many regions, the last ones, have no more bars together than may be shown."""
    starts = sorted(bar.start for bars in lanes for bar in bars)
    if len(starts) <= MOST_BARS:
        return len(window.regions)
    limit = starts[-MOST_BARS]
    return max(1, sum(region.start > limit for region in window.regions))


def _arrow(arrow: Arrow, zero: int) -> list[float | None]:
    wait = None if arrow.wait is None else (arrow.wait - zero) / 1000
    return [(arrow.op - zero) / 1000, (arrow.run - zero) / 1000, wait]


def _counter(name: str, levels: Sequence[tuple[int, int]], zero: int, until: int) -> dict[str, Any]:
    here = [[(time - zero) / 1000, value] for time, value in levels if zero <= time < until]
    return {"name": name, "levels": here, "max": max([1, *(int(value) for _, value in here)])}


def _regions(profile: Mapping[str, Any]) -> str:
    counts = [anchor["regions"] for anchor in profile["anchors"]]
    total = sum(sum(count.values()) for count in counts)
    return f"{sum(count['co_executed'] for count in counts)} of {total} regions co-executed"


def _script_json(data: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _file(name: str) -> str:
    return resources.files("terra_cx.profile").joinpath(name).read_text(encoding="utf-8")


def _ms(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "n/a"
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s" if milliseconds < 1e6 else f"{milliseconds / 1000:.0f} s"
    if milliseconds >= 1:
        return f"{milliseconds:.3g} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"
    return f"{1000 * milliseconds:.0f} µs" if milliseconds else "0"


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.0f} %"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")

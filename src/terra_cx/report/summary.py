"""The few lines on the terminal when a run is over, made from its record alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.text import Text

from terra_cx.report.quantities import count, milliseconds
from terra_cx.report.record import Record

MOST_FALLBACKS = 5  # shown in full; the rest is counted, and --report has them all


def render(record: Record, stream: TextIO) -> str:
    """The summary of `record`, one fact a line, never wrapped; in colour if `stream` is a terminal."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    with console.capture() as capture:
        for label, style, text in facts(record):
            console.print(Text.assemble((f"{label:<10}", style), text))
    return capture.get()


def facts(record: Record) -> Iterator[tuple[str, str, str]]:
    """Yield the summary's lines, each as label, rich style of the label, text."""
    yield "terra-cx", "bold", _regions(record)
    speed = _speed(record)
    if speed:
        yield "", "", speed
    fallbacks = sorted(record["fallbacks"], key=lambda f: (f["seconds"] or 0, f["count"]), reverse=True)
    for fallback in fallbacks[:MOST_FALLBACKS]:
        yield "fallback", "yellow", _fallback(fallback)
    if len(fallbacks) > MOST_FALLBACKS:
        yield "", "", f"and {len(fallbacks) - MOST_FALLBACKS} more kinds of fallback; --report lists them"
    for anchor in record["anchors"]:
        if anchor["given_up"]:
            yield "given up", "yellow", f"{anchor['line']}  {anchor['given_up']}"
    if record["levels"] and record["levels"]["asked"] != "exact":
        yield from _levels(record["levels"])
    if record["internal_errors"]:
        errors = count(record["internal_errors"], "error")
        yield "internal", "red", f"{errors} inside terra-cx; the program went on in plain eager"


def _regions(record: Record) -> str:
    regions = record["regions"]
    if record["tensorflow"] is None:
        return "the program did not use TensorFlow"
    if not regions["total"]:
        return "no training step found; everything ran in plain eager"
    text = f"{regions['co_executed']} of {count(regions['total'], 'region')} co-executed"
    others = [f"{regions[kind]} {kind}" for kind in ("traced", "eager") if regions[kind]]
    return text + (f" ({', '.join(others)})" if others else "")


def _levels(levels: Record) -> Iterator[tuple[str, str, str]]:
    blocks = levels["blocks"]
    at = [
        f"{number} at {level}" if level != "op by op" else f"{number} op by op"
        for level, number in blocks.items()
    ]
    blocks_run = f"blocks run {', '.join(at)}" if at else "no block was compiled"
    yield "levels", "", f"{levels['asked']}: {blocks_run}"
    measured = sorted(levels["measured"], key=lambda each: -each["exact_ms"])
    for each in measured[:MOST_FALLBACKS]:
        times = ", ".join(f"{level} {ratio:.2f} of that" for level, ratio in each["relative"].items())
        picked = each["picked"] + " is ahead" * (not each["over"])
        line = os.path.basename(each["line"])
        yield "", "", f"{line}  {picked}: exact {milliseconds(each['exact_ms'])}, {times}"
    if len(measured) > MOST_FALLBACKS:
        yield "", "", f"and {len(measured) - MOST_FALLBACKS} more blocks; --report lists them"
    for each in levels["refused"][:MOST_FALLBACKS]:
        yield "level", "yellow", f"{each['line']}  not at {each['level']}, {each['reason']}: {each['detail']}"
    if len(levels["refused"]) > MOST_FALLBACKS:
        yield "", "", f"and {len(levels['refused']) - MOST_FALLBACKS} more; --report lists them"


def _speed(record: Record) -> str:
    eager, co = record["step_ms"]["eager"], record["step_ms"]["co"]
    parts = []
    if co and eager:
        parts.append(
            f"step {milliseconds(co)}, eager {milliseconds(eager)} ({eager / co:.{1 if eager < 10 * co else 0}f}x)"
        )
    elif eager:
        parts.append(f"eager step {milliseconds(eager)}")
    if record["overlap"] is not None:
        parts.append(f"overlap {record['overlap']:.0%}")
    return ", ".join(parts)


def _fallback(fallback: Record) -> str:
    text = f"{fallback['line']}  {fallback['reason']}, {count(fallback['count'], 'time')}"
    if fallback["seconds"]:
        text += f", {milliseconds(1000 * fallback['seconds'])}"
    if fallback["detail"]:
        text += f": {fallback['detail']}"
    others = len(fallback.get("differences", ())) - 1
    return text + (f" (and {count(others, 'other difference')})" if others > 0 else "")

"""Two runs side by side.

*Measures* say whether something got slower: the step time, what was spent on tracing and compiling, what fallbacks
took. Only they are judged. *Causes* say why: lines that take more, waits, divergences, parts of a step. Lines are
matched by what stands there, not by their number, which shifts when a program is edited.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from terra_cx.explain.annotate import PYTHON, WAITING
from terra_cx.explain.source import place, short
from terra_cx.report.quantities import count, duration, milliseconds, share
from terra_cx.report.runs import Anchor, Fallback, Line, Run

__all__ = ["Cause", "Comparison", "Measure", "compare"]

_NOTABLE = 0.01
"""Part of a step, or of a run, below which nothing is a cause, and no cost at the start is judged."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A quantity of both runs.

    Attributes:
        name: what it is.
        before, after: in `unit`; None where a run does not tell.
        unit: `ms`, `s`, or `share` (0 to 1).
        judged: whether the comparison fails if it grew too much.
        floor: growth in `unit` below which it is noise.
    """

    name: str
    before: float | None
    after: float | None
    unit: str
    judged: bool = False
    floor: float = 0.0

    @property
    def change(self) -> float | None:
        """By what part it grew; None if that cannot be told."""
        if self.before is None or self.after is None or self.before <= 0:
            return None
        return self.after / self.before - 1

    def is_slower(self, threshold: float) -> bool:
        """Whether it is judged, and grew by more than `threshold` (0.1: ten per cent) of what it was."""
        if not self.judged or self.before is None or self.after is None:
            return False
        grown = self.after - self.before
        return grown > self.floor and grown > threshold * self.before


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that takes more than it did; `step_ms` is how much more in a step, None where it is not per step."""

    line: str
    what: str
    step_ms: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that was found; `notes` are differences of the two runs' circumstances."""

    measures: tuple[Measure, ...]
    causes: tuple[Cause, ...]
    notes: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether a step of the one can be held against a step of the other."""
        return any(
            measure.unit == "ms" and measure.judged and None not in (measure.before, measure.after)
            for measure in self.measures
        )

    def slower(self, threshold: float) -> list[Measure]:
        """What got slower by more than a threshold."""
        return [measure for measure in self.measures if measure.is_slower(threshold)]


def compare(before: Run, after: Run) -> Comparison:
    """Compare the run from before a change with the one after it."""
    pairs = list(_paired(before, after))
    measures = [measure for old, new in pairs for measure in _of_loops(old, new, len(pairs) > 1)]
    measures += _of_runs(before, after)
    causes = [cause for old, new in pairs for cause in _causes(old, new)]
    causes.sort(key=lambda cause: cause.seconds, reverse=True)
    notes = [*_circumstances(before, after), *_verdicts(pairs, before, after)]
    return Comparison(tuple(measures), tuple(causes), tuple(notes))


def _paired(before: Run, after: Run) -> Iterator[tuple[Anchor, Anchor]]:
    """Loops of both runs that are the same: by their text and file; else the main ones."""
    rest = list(after.anchors)
    found = []
    for old in before.anchors:
        new = next((each for each in rest if _name(each) == _name(old)), None)
        if new is not None:
            rest.remove(new)
            found.append((old, new))
    if not found and before.main is not None and after.main is not None:
        found.append((before.main, after.main))
    return iter(found)


def _name(anchor: Anchor) -> tuple[str, str]:
    file, number = place(anchor.line)
    return os.path.basename(file), anchor.text or str(number)


def _of_loops(old: Anchor, new: Anchor, several: bool) -> Iterator[Measure]:
    where = f" at {short(new.line)}" if several else ""
    yield Measure(f"step{where}", old.step_ms, new.step_ms, "ms", judged=True)
    yield Measure(f"eager step{where}", old.eager_ms, new.eager_ms, "ms")
    for key, name in (("elided_share", "elided share"), ("overlap", "overlap")):
        before, after = ((each.metrics or {}).get(key) for each in (old, new))
        yield Measure(f"{name}{where}", before, after, "share")


def _of_runs(before: Run, after: Run) -> Iterator[Measure]:
    yield Measure("co-executed", _co_executed(before), _co_executed(after), "share")
    floor = _NOTABLE * (before.seconds or 0.0)
    for key, name in (
        ("trace_seconds", "tracing"),
        ("compile_seconds", "compiling"),
        ("fallback_seconds", "fallbacks"),
    ):
        # Of a report nothing tells how long the run took: there these are shown, and not judged.
        yield Measure(name, _total(before, key), _total(after, key), "s", judged=bool(floor), floor=floor)
    key = "fetch_wait_seconds"
    yield Measure("waiting for values", _total(before, key), _total(after, key), "s")


def _total(run: Run, key: str) -> float | None:
    if key == "fallback_seconds":
        return sum(fallback.seconds for fallback in run.fallbacks)
    return run.totals.get(key)


def _co_executed(run: Run) -> float | None:
    total = run.regions.get("total", 0)
    return run.regions.get("co_executed", 0) / total if total else None


def _causes(old: Anchor, new: Anchor) -> Iterator[Cause]:
    steps = new.regions.get("co_executed", 0)
    least = _NOTABLE * (new.step_ms or 0.0)
    for cause in (*_parts(old, new, steps), *_lines(old, new, steps)):
        if cause.step_ms is not None and cause.step_ms > least:
            yield cause
    yield from _fallbacks(old, new)


def _parts(old: Anchor, new: Anchor, steps: int) -> Iterator[Cause]:
    """Parts of a step that grew where no line tells more: all lines together are never more than this."""
    if old.parts is None or new.parts is None or (old.lines and new.lines):
        return
    for part in new.parts:
        grown = new.parts[part] - old.parts.get(part, 0.0)
        what = (
            f"{part}: {milliseconds(old.parts.get(part, 0.0))} became {milliseconds(new.parts[part])} a step"
        )
        yield Cause(new.line, what, grown, grown * steps / 1000)


def _lines(old: Anchor, new: Anchor, steps: int) -> Iterator[Cause]:
    known = _by_text(old)
    for key, line in _by_text(new).items():
        former = known.get(key)
        for parts, verb in ((PYTHON, "takes {} of Python in a step"), (WAITING, "waits {} a step")):
            mine = sum(line.parts.get(part, 0.0) for part in parts)
            theirs = sum(former.parts.get(part, 0.0) for part in parts) if former is not None else 0.0
            if mine <= theirs:
                continue
            what = f"`{line.text}` " + verb.format(milliseconds(mine))
            what += f", {milliseconds(theirs)} before" if former is not None else ", and is new"
            if former is not None and parts is PYTHON and line.elided_ops + 0.5 < former.elided_ops:
                what += f"; {round(former.elided_ops - line.elided_ops)} ops less are elided"
            yield Cause(line.line, what, mine - theirs, (mine - theirs) * steps / 1000)


def _by_text(anchor: Anchor) -> dict[tuple[str, str, int], Line]:
    """Lines by file, text, and how many of that text came before."""
    seen: Counter[tuple[str, str]] = Counter()
    found = {}
    for line in sorted(anchor.lines, key=lambda line: place(line.line)):
        key = (os.path.basename(place(line.line)[0]), line.text or line.line)
        found[*key, seen[key]] = line
        seen[key] += 1
    return found


def _fallbacks(old: Anchor, new: Anchor) -> Iterator[Cause]:
    known = _by_reason(old)
    for key, fallbacks in _by_reason(new).items():
        former = known.get(key, [])
        times, before = (sum(each.count for each in some) for some in (fallbacks, former))
        seconds = sum(each.seconds for each in fallbacks) - sum(each.seconds for each in former)
        # Longer runs fall back more often: what counts is how often in a step.
        if seconds <= 0 or times * max(old.steps, 1) <= before * max(new.steps, 1):
            continue
        first = max(fallbacks, key=lambda each: each.seconds)
        what = f"diverged {count(times, 'time')}, {before or 'never'} before ({first.reason})"
        yield Cause(first.line, what + (f": {first.detail}" if first.detail else ""), None, seconds)


def _by_reason(anchor: Anchor) -> dict[tuple[str, str, str], list[Fallback]]:
    """Fallbacks by reason, file, and the text of the line, or its number where nobody knows the text."""
    texts = {line.line: line.text for line in anchor.lines}
    found: dict[tuple[str, str, str], list[Fallback]] = defaultdict(list)
    for each in anchor.fallbacks:
        file, number = place(each.line)
        found[each.reason, os.path.basename(file), texts.get(each.line) or str(number)].append(each)
    return found


def _circumstances(before: Run, after: Run) -> Iterator[str]:
    """What else was different, so that the program need not be to blame."""
    for name in ("terra_cx", "python", "tensorflow", "mode"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield f"{name.replace('_', '-')}: {old} before, {new} after"
    arguments = [" ".join(run.command[1:]) or "none" for run in (before, after)]
    if arguments[0] != arguments[1]:
        yield f"arguments: {arguments[0]} before, {arguments[1]} after"
    if before.is_profile != after.is_profile:
        yield "one is a report, without times of lines, and the other a profile, which costs some of a step"


def _verdicts(pairs: list[tuple[Anchor, Anchor]], before: Run, after: Run) -> Iterator[str]:
    if not pairs and (before.anchors or after.anchors):
        yield "the two runs have no loop in common"
    for old, new in pairs:
        if new.given_up and not old.given_up:
            yield f"the loop at {short(new.line)} runs in plain eager now: {new.given_up}"
        if old.given_up and not new.given_up:
            yield f"the loop at {short(new.line)} is co-executed now"
        eager = Measure("", old.eager_ms, new.eager_ms, "ms").change
        if eager is not None and abs(eager) > 0.2:
            yield (
                f"an eager step takes {share(abs(eager))} {'more' if eager > 0 else 'less'} as well: the machine was "
                f"{'busier' if eager > 0 else 'less busy'}, or the program does {'more' if eager > 0 else 'less'}"
            )
        refused = {(call.of, call.call, call.refused or "") for call in old.calls}
        for call in new.calls:
            key = (call.of, call.call, call.refused or "")
            if call.refused and key not in refused:
                refused.add(key)
                yield f"{call.of}.{call.call.rpartition('.')[2]} is not elided: {call.refused}"


def told(value: float | None, unit: str) -> str:
    """A value of a measure in words."""
    if value is None:
        return "-"
    return milliseconds(value) if unit == "ms" else duration(value) if unit == "s" else share(value)

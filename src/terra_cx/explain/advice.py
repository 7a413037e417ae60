"""What to change, ranked by what it can gain at most.

Each bound is computed from what was measured, and is a bound, not a promise:

* A step cannot be shorter than Python's busy time, nor than the graph's: what waiting can be saved is at most
  ``step - max(python, graph)``, and at most the wait.
* Python that is taken away saves at most itself, and at most ``step - max(graph, python - itself)``.
* A step that fell back costs its seconds; were it co-executed, it would still cost a co-executed step.

What gains less than three hundredths of a step is not told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from terra_cx.explain.remedies import of_fallback, of_loop
from terra_cx.explain.source import Source, short
from terra_cx.report.quantities import count, duration, milliseconds, number, share
from terra_cx.report.runs import Anchor, Fallback, Line, Run

__all__ = ["EVERY", "Advice", "advise", "gain_text"]

EVERY = 10
"""How seldom a value is proposed to be read, in steps."""
_LONGEST = 60
"""Characters of a line that are quoted."""
_LEAST = 0.03
"""Part of a step below which a change is not worth being told."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to change.

    Attributes:
        kind: `fetch`, `host`, `library`, `wait`, `fallback`, `given-up` or `live-tapes`.
        line: where, with the whole path; `?` if that is not known.
        what: what was measured there, a sentence.
        remedy: what to change.
        step_ms: milliseconds that a co-executed step can gain at most; None where the bound is not per step.
        seconds: seconds that the whole run can gain at most; None if there is no bound.
    """

    kind: str
    line: str
    what: str
    remedy: str
    step_ms: float | None
    seconds: float | None


def advise(run: Run, source: Source) -> list[Advice]:
    """What to change in a program, most first; loops that are not co-executed at all before everything else."""
    found = [advice for anchor in run.anchors for advice in _of_anchor(anchor, source)]
    return sorted(
        found, key=lambda each: float("inf") if each.seconds is None else each.seconds, reverse=True
    )


def _of_anchor(anchor: Anchor, source: Source) -> Iterator[Advice]:
    if anchor.given_up is not None:
        yield _given_up(anchor)
    elif anchor.live_tapes is not None:
        what = f"the gradients of the loop at {short(anchor.line)} are taken op by op ({anchor.live_tapes})"
        yield Advice("live-tapes", anchor.line, what, of_loop(anchor.live_tapes), None, None)
    for fallback in anchor.fallbacks:
        advice = _fallback(fallback, anchor)
        if advice is not None:
            yield advice
    step = _Step.of(anchor)
    if step is not None:
        for line in anchor.lines:
            yield from step.of_line(line, source)


def _given_up(anchor: Anchor) -> Advice:
    spent = anchor.seconds.get("eager")
    what = f"the loop at {short(anchor.line)} runs in plain eager"
    if spent:
        what += f", {count(anchor.regions.get('eager', 0), 'step')} in {duration(spent)}"
    return Advice(
        "given-up",
        anchor.line,
        f"{what}: {anchor.given_up}",
        of_loop(anchor.given_up or ""),
        None,
        spent or None,
    )


def _fallback(fallback: Fallback, anchor: Anchor) -> Advice | None:
    lost = max(0.0, fallback.seconds - fallback.count * (anchor.step_ms or 0.0) / 1000)
    if fallback.count < 3 and fallback.count < _LEAST * anchor.steps:
        return None  # a way through the step that was learned
    what = f"{short(fallback.line)} diverged in {fallback.count} of {count(anchor.steps, 'step')}"
    if fallback.detail:
        what += f": {fallback.detail}"
    return Advice("fallback", fallback.line, what, of_fallback(fallback), None, lost)


@dataclass(frozen=True, slots=True)
class _Step:
    """A co-executed step as it was measured: milliseconds, and how many there were."""

    line: str
    """Where it begins: Python waits there for the run-ahead limit, which is to be so."""
    ms: float
    python: float
    graph: float
    steps: int
    graph_bound: bool
    refused: bool
    """Whether there are library calls that are not elided."""

    @staticmethod
    def of(anchor: Anchor) -> _Step | None:
        metrics, steps = anchor.metrics, anchor.regions.get("co_executed", 0)
        if metrics is None or not steps:
            return None
        try:
            ms, python, graph = (metrics[key] for key in ("step_ms", "python_busy_ms", "graph_busy_ms"))
        except KeyError:
            return None
        bound = metrics.get("bound_by")
        graph_bound = bound is not None and bound["what"] == "graph"
        return _Step(
            anchor.line, ms, python, graph, steps, graph_bound, any(call.refused for call in anchor.calls)
        )

    def of_line(self, line: Line, source: Source) -> Iterator[Advice]:
        """What to change about one line."""
        for made in (self._fetch(line, source), self._wait(line), *self._python(line)):
            if made is not None and made.step_ms is not None and made.step_ms >= _LEAST * self.ms:
                yield made

    def _made(self, kind: str, line: Line, what: str, remedy: str, gain: float) -> Advice:
        gain = max(0.0, gain)
        return Advice(kind, line.line, what, remedy, gain, gain * self.steps / 1000)

    def _waiting(self, waited: float) -> float:
        """What a wait can gain."""
        return min(waited, self.ms - max(self.python, self.graph))

    def _fetch(self, line: Line, source: Source) -> Advice | None:
        waited = line.parts.get("fetch", 0.0)
        if not waited:
            return None
        times = sum(each.count for each in line.fetches) or line.waits
        seconds = sum(each.seconds for each in line.fetches) or line.wait_seconds
        what = f"{_quoted(line, source.reader(line.line, line.text))} waited {duration(seconds)} in {self.steps} steps"
        makers = sorted({f"{each.op} of line {each.line.rpartition(':')[2]}" for each in line.fetches})
        if makers:
            what += f" for {' and '.join(makers[:2])}{' and others' if len(makers) > 2 else ''}"
        saved = waited * (1 - 1 / EVERY)
        if times * EVERY <= self.steps:
            saved = waited
            remedy = "it is read seldom already: read it after the next step, or at the end of the epoch"
        elif source.decides(line.line, line.text):
            remedy = f"Python decides by it: decide every {EVERY} steps, or choose with TensorFlow (tf.where)"
        else:
            remedy = f"reading it every {EVERY} steps would let Python run ahead"
        return self._made("fetch", line, what, remedy, self._waiting(saved))

    def _wait(self, line: Line) -> Advice | None:
        waited = line.parts.get("graph", 0.0)
        if not waited or self.graph_bound or line.line == self.line:
            return None  # it is the graph that takes the time
        what = f"{_quoted(line)} waits {milliseconds(waited)} a step for all before it"
        remedy = "a `try`, a tf.print, a py_function or a save does so: move it out of the step"
        return self._made("wait", line, what, remedy, self._waiting(waited))

    def _python(self, line: Line) -> Iterator[Advice]:
        user, host, library = (line.parts.get(part, 0.0) for part in ("user", "host", "library"))
        of_a_step = f"of the {milliseconds(self.ms)} of a step"
        if host + user:
            what = f"{_quoted(line)} takes {milliseconds(host + user)} {of_a_step} in Python"
            if host > user:
                remedy = "prepare it ahead, in a tf.data pipeline or on another thread, or compute it with TensorFlow"
            else:
                remedy = "move what does not change out of the loop, or compute it with TensorFlow"
            yield self._made("host", line, what, remedy, self._less_python(host + user))
        if library:
            what = f"{_quoted(line)} takes {milliseconds(library)} {of_a_step} in TensorFlow's and Keras's Python"
            if line.ops:
                what += f", for {number(line.ops)} ops that are issued one by one"
            remedy = "calls of Keras's own layers, losses and optimizers are elided" + (
                "; below is why others are not" if self.refused else ", and fewer, larger ops cost less"
            )
            yield self._made("library", line, what, remedy, self._less_python(library))

    def _less_python(self, taken: float) -> float:
        """What Python that is not run can gain."""
        return min(taken, self.ms - max(self.graph, self.python - taken))


def gain_text(advice: Advice, run: Run) -> str:
    """The bound in words."""
    if advice.seconds is None:
        return "gain not known"
    words = [f"at most {duration(advice.seconds)}"]
    if run.seconds:
        words.append(f"{share(min(1.0, advice.seconds / run.seconds))} of the run")
    if advice.step_ms is not None:
        words.append(f"{milliseconds(advice.step_ms)} a step")
    return ", ".join(words)


def _quoted(line: Line, expression: str | None = None) -> str:
    """What stands at a line, and where that is."""
    text = expression or line.text
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3] + "..."
    return f"`{text}` at {short(line.line)}" if text else f"line {short(line.line)}"

"""The verdict on one program, and the exit status of a check.

A program gets one outcome, the first of `Outcome` that applies; the check exits with the status of the first that any
program got. First comes the wrong number, then what could not be judged, then what was judged and found wanting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from terra_cx.check.compare import Difference
from terra_cx.check.runs import Run
from terra_cx.check.speed import Speed

__all__ = ["Gates", "Outcome", "Verdict", "exit_status", "judge"]

UNWRITABLE = 9


class Outcome(Enum):
    """What is said of a program; `code` is the exit status, `word` how it is written."""

    DIFFERENT = 1, "different"
    FAILED = 5, "failed"
    UNREADABLE = 8, "cannot be read"
    NONDETERMINISTIC = 3, "nondeterministic"
    NOT_CO_EXECUTED = 4, "not co-executed"
    FALLBACK = 7, "fell back"
    SLOWER = 6, "too slow"
    WITHIN = 0, "within tolerance"
    IDENTICAL = 0, "identical"

    def __init__(self, code: int, word: str) -> None:
        self.code = code
        self.word = word


@dataclass(frozen=True, slots=True)
class Gates:
    """What is asked of a program beside being identical and co-executed.

    `max_regression` is a share: 0.1 lets the ratio of step times grow by a tenth over the baseline's.
    """

    least_speedup: float | None = None
    max_regression: float | None = None
    no_fallback: bool = False


@dataclass(slots=True)
class Verdict:
    """All that is told about one program."""

    name: str
    script: Path
    outcome: Outcome = Outcome.IDENTICAL
    detail: str = ""
    differences: list[Difference] = field(default_factory=list)
    speed: Speed = field(default_factory=lambda: Speed(None, None, "not measured"))
    before: float | None = None
    """The baseline's ratio of step times."""
    report: dict[str, Any] | None = None
    """The co-executed run's record."""
    crossings: dict[str, int] = field(default_factory=dict)
    variables: int = 0
    seconds: float = 0.0
    stderr: str = ""
    """The end of the standard error of the run that failed."""
    notes: list[str] = field(default_factory=list)

    def blame(self, outcome: Outcome, detail: str) -> Verdict:
        """Set what is wrong."""
        self.outcome, self.detail = outcome, detail
        return self

    @property
    def regions(self) -> dict[str, int]:
        """How the program's regions ran."""
        return dict((self.report or {}).get("regions", {}))

    @property
    def fallbacks(self) -> list[dict[str, Any]]:
        """The kinds of fallback, with their counts."""
        return list((self.report or {}).get("fallbacks", []))


def judge(verdict: Verdict, co: Run, gates: Gates) -> Verdict:
    """Judge a program whose eager runs agree; `verdict` holds its differences, speeds and report."""
    if verdict.differences:
        return verdict.blame(Outcome.DIFFERENT, str(verdict.differences[0]))
    problems = (co.end or {}).get("problems", [])
    verdict.notes += problems
    record = verdict.report
    if record is None:
        how = "it left no record, as after os._exit"
        return verdict.blame(Outcome.NOT_CO_EXECUTED, how)
    if record["internal_errors"]:
        verdict.notes.append(
            f"{record['internal_errors']} internal errors of terra-cx; see its standard error"
        )
    if not record["regions"]["co_executed"]:
        return verdict.blame(Outcome.NOT_CO_EXECUTED, _why_not(record))
    given_up = [
        f"{anchor['line']}: {anchor['given_up']}" for anchor in record["anchors"] if anchor["given_up"]
    ]
    if gates.no_fallback and (verdict.fallbacks or given_up or record["internal_errors"]):
        return verdict.blame(Outcome.FALLBACK, _why_back(verdict, given_up))
    verdict.notes += [f"given up, {text}" for text in given_up]
    return _judge_speed(verdict, gates)


def _judge_speed(verdict: Verdict, gates: Gates) -> Verdict:
    ratio, before = verdict.speed.ratio, verdict.before
    if gates.least_speedup is not None:
        if ratio is None:
            return verdict.blame(Outcome.SLOWER, f"its speed cannot be told ({verdict.speed.unknown})")
        if 1 / ratio < gates.least_speedup:
            return verdict.blame(
                Outcome.SLOWER, f"{1 / ratio:.2f}x eager's speed, {gates.least_speedup:g}x wanted"
            )
    if gates.max_regression is not None and before is not None:
        if ratio is None:
            return verdict.blame(Outcome.SLOWER, f"its speed cannot be told ({verdict.speed.unknown})")
        growth = ratio / before - 1
        if growth > gates.max_regression:
            return verdict.blame(
                Outcome.SLOWER,
                f"{growth:.0%} slower than the baseline ({before:.3f} of eager's step time there, {ratio:.3f} now), "
                f"{gates.max_regression:.0%} allowed",
            )
    return verdict


def _why_not(record: dict[str, Any]) -> str:
    given_up = [
        f"{anchor['line']}: {anchor['given_up']}" for anchor in record["anchors"] if anchor["given_up"]
    ]
    if given_up:
        return f"given up, {given_up[0]}"
    if record["tensorflow"] is None:
        return "the program did not use TensorFlow"
    if record["internal_errors"]:
        return "terra-cx itself failed; see its standard error"
    if record["regions"]["total"]:
        return f"only {record['regions']['total']} steps, which are needed to trace it"
    return "no training step was found"


def _why_back(verdict: Verdict, given_up: list[str]) -> str:
    if verdict.fallbacks:
        first = max(verdict.fallbacks, key=lambda fallback: fallback["count"])
        more = len(verdict.fallbacks) - 1
        return f"{first['reason']} at {first['line']}, {first['count']} times" + (
            f", and {more} more" * bool(more)
        )
    return f"given up, {given_up[0]}" if given_up else "terra-cx itself failed"


def exit_status(outcomes: Iterable[Outcome], unreadable: bool = False, unwritable: bool = False) -> int:
    """The exit status of a check.

    Args:
        outcomes: one per program.
        unreadable: a path, or the baseline, could not be used.
        unwritable: a file could not be written.
    """
    found = set(outcomes) | ({Outcome.UNREADABLE} if unreadable else set())
    for outcome in Outcome:  # in the order of their weight
        if outcome in found and outcome.code:
            return outcome.code
    return UNWRITABLE if unwritable else 0

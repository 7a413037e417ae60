"""The unit of truth: run a function eager and co-executed, compare everything bit for bit.

`both_ways(program)` calls ``program(see)`` twice, each time from the same seeds. ``see(*values)`` records what reached
Python (tensors by their bits). What the program returns (variables, tensors, containers of them, anything comparable)
is compared too, and so are the random number generators' next draws. It fails if nothing was co-executed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

import terra_cx


@dataclass
class Outcome:
    """What one run of a program did."""

    seen: list[Any] = field(default_factory=list)
    result: Any = None
    error: tuple[str, str] | None = None
    draws: Any = None
    report: dict[str, Any] = field(default_factory=dict)


def bits(value: Any) -> Any:
    """A comparable form that keeps every bit."""
    if isinstance(value, (tf.Variable,)) or tf.is_tensor(value) or hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, np.generic):
        return ("scalar", str(value.dtype), value.tobytes())
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


def run_once(program: Callable[[Callable[..., None]], Any], settings: dict[str, Any] | None) -> Outcome:
    """Run ``program`` from fixed seeds; co-executed if ``settings`` is not None."""
    tf.keras.utils.set_random_seed(20)
    outcome = Outcome()

    def see(*values: Any) -> None:
        outcome.seen.append([bits(value) for value in values])

    runner = program if settings is None else terra_cx.co_execute(quiet=True, **settings)(program)
    try:
        outcome.result = bits(runner(see))
    except Exception as error:  # compared with the other run's
        outcome.error = (type(error).__name__, str(error))
    if settings is not None:
        outcome.report = runner.last_session.report()
    outcome.draws = bits(
        [tf.random.uniform([3]), tf.random.normal([2], seed=5), np.random.rand(2), random.random()]
    )
    return outcome


def both_ways(
    program: Callable[[Callable[..., None]], Any],
    *,
    co_executed: int = 5,
    fallbacks: int | None = None,
    failures: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Compare a program with itself.

    Args:
        program: called with ``see``; contains its own step loop.
        co_executed: how many regions must have been co-executed at least.
        fallbacks: how many fallbacks are expected at most; None: any number.
        failures: whether terra-cx itself is made to fail.
        settings: for `terra_cx.co_execute`.

    Returns:
        The co-executed run's report.
    """
    eager = run_once(program, None)
    co = run_once(program, settings)
    report = co.report
    assert bool(report["internal_errors"]) is failures, report
    assert co.error == eager.error, (co.error, eager.error)
    for step, (a, b) in enumerate(zip(eager.seen, co.seen, strict=False)):
        assert a == b, f"value {step} differs: {a} and {b}; {_which(program, eager, co)}; {report['regions']}"
    assert len(co.seen) == len(eager.seen)
    assert co.result == eager.result
    assert co.draws == eager.draws
    assert report["regions"]["co_executed"] >= co_executed, report
    if fallbacks is not None:
        assert sum(f["count"] for f in report["fallbacks"]) <= fallbacks, report["fallbacks"]
    return report


def _which(program: Callable[[Callable[..., None]], Any], eager: Outcome, co: Outcome) -> str:
    """Whom another eager run agrees with: a rare difference may be eager's own."""
    again = run_once(program, None)
    agrees = [name for name, run in (("eager", eager), ("co-executed", co)) if run.seen == again.seen]
    return f"eager again is as {agrees[0]}" if agrees else "eager again is as neither"

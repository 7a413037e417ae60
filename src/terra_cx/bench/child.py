"""One timed run of a program, in a process of its own: `check.child` with a decorated step function.

What `check.child` leaves is left here too, so that any two runs can be compared; `end.json` has one more key, `bench`:

| key | value |
| --- | --- |
| `calls` | how often the step function was called (calls within calls are not counted) |
| `head` | `{steps, seconds}` of the first half, from the first call on; null without calls |
| `laps` | seconds from return to return in the second half |
| `first_seconds` | from the start of the process to the first return; null without calls |
| `peak_mb` | the most memory that the process held, in MiB |
| `threads` | `[intra, inter]` as TensorFlow has them; null if the program did not use it |
| `limit_ms` | of the compiled graph alone; null if not known |
| `endless` | whether the run was ended because it called the step function more often than the job's `most` |
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from terra_cx import config
from terra_cx.bench.decorate import Decorating
from terra_cx.bench.limit import Limit
from terra_cx.check import child
from terra_cx.check.visits import Clock
from terra_cx.launch.program import Program

__all__ = ["main"]

_MOST_STEPS = 1_000_000
_ASYNC_WAIT = 10  # steps


class Step:
    """The decorator of the step function: it wraps and times.

    Args:
        wrap: `function` or `xla`, or empty for the function as it is.
        asynchronous: whether TensorFlow executes asynchronously: then everything is waited for after each ten steps, as
            otherwise a program that reads nothing would only be timed in issuing ops.
        most: calls after which the program is ended, 0 for none. A loop that goes on until a counter of the step's
            is full never ends where the counter only counts traces.
    """

    def __init__(self, wrap: str, asynchronous: bool, most: int = 0) -> None:
        self.clock = Clock(times=deque(maxlen=_MOST_STEPS))
        self.begin: float | None = None
        self.endless = False
        self._most = most
        self._wrap = wrap
        self._asynchronous = asynchronous
        self._depth = 0
        self._thread = threading.get_ident()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate one function."""
        wrapped: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def step(*args: Any, **kwargs: Any) -> Any:
            # Only now: where the function is defined, TensorFlow need not be imported yet.
            if not wrapped:
                wrapped.append(self._wrapped(function))
            call = wrapped[0]
            if self._depth or threading.get_ident() != self._thread:
                return call(*args, **kwargs)
            if self.clock.count == self._most > 0:
                self.endless = True
                raise SystemExit(0)
            self._depth = 1
            if self.begin is None:
                self.begin = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._depth = 0
                if self._asynchronous and self.clock.count % _ASYNC_WAIT == _ASYNC_WAIT - 1:
                    sys.modules["terra_cx.tf.native"].wait_for_all()
                self.clock.visit()

        return step

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self._wrap:
            return function
        made: Callable[..., Any] = sys.modules["tensorflow"].function(
            function, jit_compile=True if self._wrap == "xla" else None
        )
        return made

    def head(self) -> dict[str, float] | None:
        """The first half: how many steps, and how long it took."""
        half = self.clock.count // 2
        if self.begin is None or not half or self.clock.count > _MOST_STEPS:
            return None
        return {"steps": half, "seconds": self.clock.times[half - 1] - self.begin}


class Benched(child.Observed):
    """A launch that is timed. Of the job, `name` is the step function's, `mode` a `modes.Mode` as a dictionary."""

    def __init__(
        self, program: Program, command: list[str], options: config.Options, folder: Path, job: dict[str, Any]
    ) -> None:
        super().__init__(program, command, options, folder, job)
        self._mode = job["mode"]
        self._threads = job["threads"]
        self._begin = job["begin"]
        self._file = str(program.names.get("__file__", ""))
        self._step = Step(self._mode["wrap"], self._mode["asynchronous"], job["most"])
        self._decorating = Decorating(job["name"], self._step)
        self._limit: Limit | None = None

    def start_session(self) -> None:
        """Decorate first: a session's probes belong into the decorated code."""
        self._decorating.install()
        super().start_session()

    def _instrument(self, code: CodeType) -> CodeType:
        return super()._instrument(self._decorating.main(code, self._file))

    def _watch(self, module: ModuleType) -> None:
        super()._watch(module)
        tensorflow: Any = module
        try:
            tensorflow.config.threading.set_intra_op_parallelism_threads(self._threads)
            tensorflow.config.threading.set_inter_op_parallelism_threads(self._threads)
            if self._mode["asynchronous"]:
                tensorflow.config.experimental.set_synchronous_execution(False)
        except Exception as error:  # noqa: BLE001  # whatever it is, the program's import must not fail
            self._failure = f"{type(error).__name__}: {error}"

    def _region(self, line: str) -> None:
        super()._region(line)
        conductor = self._session.conductor if self._session is not None else None
        if self._limit is None and conductor is not None:
            self._limit = Limit()
            conductor.runner.tap = self._limit.tap

    def _end(self) -> dict[str, Any]:
        end = super()._end()
        tensorflow: Any = sys.modules.get("tensorflow")
        threads = None
        if tensorflow is not None:
            threading_ = tensorflow.config.threading
            threads = [
                threading_.get_intra_op_parallelism_threads(),
                threading_.get_inter_op_parallelism_threads(),
            ]
        first = self._step.clock.times[0] - self._begin if self._step.begin is not None else None
        end["bench"] = {
            "calls": self._step.clock.count,
            "head": self._step.head(),
            "laps": self._step.clock.laps(),
            "first_seconds": first,
            "peak_mb": _peak_mb(),
            "threads": threads,
            "endless": self._step.endless,
            # Last: it runs the program's effects again.
            "limit_ms": self._limit.milliseconds() if self._limit is not None else None,
        }
        return end


def _peak_mb() -> float | None:
    """The peak of resident memory. Not from `getrusage`, where the peak of the parent is inherited."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            found = next((line for line in status if line.startswith("VmHWM:")), None)
    except OSError:
        return None
    return int(found.split()[1]) / 1024 if found is not None else None


def main() -> None:
    """Run the job in the folder that the first word names."""
    child.main(Benched)

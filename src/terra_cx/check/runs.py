"""Starts observed runs as processes, and collects what they left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Job", "Run", "Runner"]

_BOOT = "import sys; sys.path[0] = sys.argv[1]; from {} import main; main()"
"""For `python -c`, with the job's folder and the program's words behind it. The folder takes the place of the working
directory on `sys.path`, where a `random.py` of the user's would be imported for the standard library's."""
_TAIL = 15  # lines of stderr


@dataclass(frozen=True, slots=True)
class Job:
    """What to run: a script with its arguments, settings for the run, and what the child is to do beside.

    `anchor` is where an eager run is to be timed (`file:line`), empty for no timing. `more` is added to what the
    child reads.
    """

    script: str
    arguments: tuple[str, ...]
    settings: dict[str, Any]
    anchor: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One finished process.

    `status` is its exit status, negative for a signal, None if it was killed because it took too long. `end` and
    `report` are what `child` wrote, None if it did not come to that.
    """

    folder: Path
    status: int | None
    seconds: float
    stderr: str
    end: dict[str, Any] | None
    report: dict[str, Any] | None

    @property
    def stdout(self) -> Path:
        """The file with its standard output."""
        return self.folder / "stdout"

    @property
    def stream(self) -> Path:
        """The file with the values that crossed."""
        return self.folder / "stream.jsonl"

    @property
    def ending(self) -> str:
        """How it ended, in words, with the last line of its standard error if it failed."""
        if self.status == 0:
            return "exit status 0"
        if self.status is None:
            return f"did not end within {self.seconds:.0f} s"
        if self.status < 0:
            try:
                how = f"killed by {signal.Signals(-self.status).name}"
            except ValueError:
                how = f"killed by signal {-self.status}"
        else:
            how = f"exit status {self.status}"
        last = self.stderr.strip().rpartition("\n")[2].strip()
        return f"{how}: {last}" if last else how


class Runner:
    """Starts processes and waits for them; may be used from several threads.

    Args:
        timeout: seconds after which a run is killed.
        child: the module whose `main` runs the job. It is named, not imported: it may load TensorFlow.
        environment: what to add to the environment.
    """

    def __init__(
        self,
        timeout: float,
        child: str = "terra_cx.check.child",
        environment: dict[str, str] | None = None,
    ) -> None:
        self._timeout = timeout
        self._boot = _BOOT.format(child)
        # The order of sets of strings differs from process to process unless this is set; that would make many a
        # program nondeterministic that its author never saw so.
        self._environment = {"PYTHONHASHSEED": "0", **os.environ, **(environment or {})}
        self._live: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, job: Job, folder: Path) -> Run:
        """Run `job` to its end, with `folder`, which is made here, for its files.

        Raises:
            OSError: the process could not be started.
        """
        folder.mkdir(parents=True)
        # The report is named in every mode: a name from the environment would be written over by each run.
        settings = {"quiet": True, "report": str(folder / "report.json"), **job.settings}
        begin = time.perf_counter()
        work = {"settings": settings, "anchor": job.anchor, "begin": begin, **job.more}
        (folder / "job.json").write_text(json.dumps(work), encoding="utf-8")
        command = [sys.executable, "-c", self._boot, str(folder), job.script, *job.arguments]
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            status = self._wait(command, out, err)
        seconds = time.perf_counter() - begin
        text = (folder / "stderr").read_text(encoding="utf-8", errors="replace")
        tail = "\n".join(text.splitlines()[-_TAIL:])
        return Run(folder, status, seconds, tail, _json(folder / "end.json"), _json(folder / "report.json"))

    def stop(self) -> None:
        """Kill what runs, and start nothing any more."""
        with self._lock:
            self._stopped = True
            for process in self._live:
                _kill(process)

    def _wait(self, command: Sequence[str], out: Any, err: Any) -> int | None:
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            # A session of its own, so that what the program starts can be killed with it.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._environment,
                start_new_session=True,
            )
            self._live.add(process)
        try:
            return process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill(process)
            process.wait()
            with self._lock:
                self._live.discard(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started; also what it left behind when it ended."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nobody is left


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None  # the program ended by os._exit or a signal, or never started
    return found

"""One observed run of a program, in a process of its own; what was seen is left in a folder.

The program starts as terra-run starts it, in mode eager (no session, plain TensorFlow) or another. Beside it

* the hooks of `tf.crossings` are installed the moment the program has imported TensorFlow, in every mode the same;
* steps are timed at the anchor: by the conductor where there is one, by `visits.Probes` in an eager run that is told
  which line to listen to;
* when the body has ended, and everything in flight with it, variables and random generators are read.

The folder then holds `stream.jsonl`, `end.json` (see `Observed._end`) and, of a session, `report.json`.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import sys
from dataclasses import astuple
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from terra_cx import config
from terra_cx.check.readers import Readers
from terra_cx.check.stream import Recorder, describe
from terra_cx.check.visits import Clock, Probes
from terra_cx.errors import UsageError
from terra_cx.launch.program import CompileError, Program, Target, hand_over, load
from terra_cx.launcher import Launch
from terra_cx.observe.importer import UserCode, when_imported
from terra_cx.report import files

if TYPE_CHECKING:
    from terra_cx.tf.crossings import Variables

__all__ = ["Observed", "main"]


class Observed(Launch):
    """A launch that is watched.

    Args:
        program: what runs.
        command: the words that started it.
        options: the settings.
        folder: where to leave what was seen.
        job: what `runs.Runner` wrote for us: `anchor` is where to time a run without a session, `sketched` (optional)
            whether values are described so that how far they are apart can be told.
    """

    def __init__(
        self, program: Program, command: list[str], options: config.Options, folder: Path, job: dict[str, Any]
    ) -> None:
        super().__init__(program, command, options, options.report)
        self._folder = folder
        user = UserCode()
        if "__file__" in program.names:
            user.add(str(program.names["__file__"]))
        self._sketched = bool(job.get("sketched"))
        self._clocks: dict[str, Clock] = {}
        clock = Clock()  # stays at 0 unless probes count with it
        self._recorder = Recorder(folder / "stream.jsonl", Readers(user), clock, self._sketched)
        self._probes: Probes | None = None
        anchor = job["anchor"]
        if anchor:
            self._clocks[anchor] = clock
            self._probes = Probes(anchor, clock)
        self._variables: Variables | None = None
        self._problems: list[str] = []
        self._failure: str | None = None

    def start_session(self) -> None:
        """Start the session, or the probes, and wait for TensorFlow to be imported."""
        atexit.register(self._recorder.close)
        super().start_session()
        if self._session is not None:
            self._session.on_region = self._region
        elif self._probes is not None:
            self._probes.install()
        when_imported("tensorflow", self._watch)

    def _region(self, line: str) -> None:
        clock = self._clocks.get(line)
        if clock is None:
            clock = self._clocks[line] = Clock()
        clock.visit()

    def _watch(self, _: ModuleType) -> None:
        try:
            from terra_cx.tf.crossings import Crossings, Variables

            if not Crossings(self._recorder.seen).install():
                self._problems.append("reads by NumPy and memoryview of plain tensors are not seen here")
            self._variables = Variables()
            self._variables.install()
        except Exception as error:  # noqa: BLE001  # whatever it is, the program's import must not fail
            self._failure = f"{type(error).__name__}: {error}"

    def _instrument(self, code: CodeType) -> CodeType:
        return self._probes.instrument(code) if self._probes is not None else super()._instrument(code)

    def _finish(self, error: BaseException | None) -> BaseException | None:
        error = super()._finish(error)
        self._attempt("could not describe how the program ended", self._write_end)
        return error

    def _write_end(self) -> None:
        files.write_text(self._folder / "end.json", json.dumps(self._end()))

    def _end(self) -> dict[str, Any]:
        """What is left when the body has ended.

        | key | value |
        | --- | --- |
        | `made` | how many variables were made |
        | `variables` | list of `[number, name, value]`; the value is a `stream.Value` as a list, or null |
        | `generators` | digest of the state, by name |
        | `clocks` | `{count, laps}` by anchor: visits, and seconds of each step in the second half |
        | `crossings` | how many reads were compared, were the library's, or other threads' |
        | `problems` | what is not observed here, in words |
        | `failure` | an error of ours because of which values are missing, or null |
        """
        variables: list[Any] = []
        generators: dict[str, str] = {}
        if self._variables is not None:
            from terra_cx.tf.crossings import generators as states

            for number, name, value in self._variables.values():
                variables.append(
                    (number, name, None if value is None else astuple(describe(value, self._sketched)))
                )
            for name, state in states().items():
                generators[name] = hashlib.blake2b(state.encode(), digest_size=16).hexdigest()
        return {
            "made": self._variables.made if self._variables is not None else 0,
            "variables": variables,
            "generators": generators,
            "clocks": {
                line: {"count": clock.count, "laps": clock.laps()} for line, clock in self._clocks.items()
            },
            "crossings": self._recorder.counts,
            "problems": self._problems,
            "failure": self._failure or self._recorder.failure,
        }


def main(kind: type[Observed] = Observed) -> None:
    """Run the job in the folder that the first word names; the other words are the program's.

    Args:
        kind: how it is launched.
    """
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    target = Target("script", words[0], tuple(words[1:]))
    try:
        options = config.load(job["settings"])
        program = load(target)
        launch = kind(program, target.command, options, folder, job)
        launch.start_session()
    except CompileError:
        hand_over(target, False)
    except UsageError as error:
        sys.stderr.write(f"terra-cx check: {error}\n")
        sys.exit(error.exit_code)
    launch.run(False)

"""`terra-run`: start a program as python would, co-execute it, and tell at the end what happened.

The order of things, which the rest of this module keeps:

1. command line, settings, report file, the program's source: what is wrong here ends with one line and
   status 2, and nothing has been started or written. A source that does not compile is left to python;
2. our atexit handler is registered, before any of the program's, so that it runs after all of them;
3. the session starts; if it cannot, the program runs in plain eager;
4. the program's body runs; then the session finishes what is in flight, which may raise the program's own
   deferred error; then the session closes;
5. the body's exception, if any, leaves for python to deal with: `sys.excepthook`, exit status, SIGINT;
6. threads are joined and atexit handlers run, ours last: the report file, then the summary.

Nothing here writes on stdout once the program has been started. On a terminal, a long run is told on stderr how it goes
(`report.progress`).
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, TypeVar

from terra_cx import __version__, config
from terra_cx.errors import InternalError, TerraError, UsageError
from terra_cx.launch import tracebacks
from terra_cx.launch.commandline import CommandLine, Option, help_text, parse
from terra_cx.launch.program import CompileError, Program, hand_over, load
from terra_cx.report import files
from terra_cx.report.record import Record, blank

if TYPE_CHECKING:
    from terra_cx.profile.output import Claim
    from terra_cx.session import Session


T = TypeVar("T")
AfterBody = Callable[["Session"], None]
Prepare = Callable[[CommandLine], AfterBody]


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of `terra-run`; `words` is the command line without the command, the process's if None.

    Returns the exit status unless the program ends by an exception, which is let out.
    """
    return start(sys.argv[1:] if words is None else words, "terra-run")


def start(
    words: Sequence[str], command: str, extra: Sequence[Option] = (), prepare: Prepare | None = None
) -> int:
    """Run the program that a command line names.

    Args:
        words: the command line without the command.
        command: the command's name, for messages.
        extra: options of this command beside those of terra-run.
        prepare: called before the program starts; it may change the command line's settings and refuse by a
            UsageError. What it returns is called with the session when the program's body has ended.
    """
    try:
        line = parse(words, command, extra)
        target = line.target
        if target is None:
            sys.stdout.write(help_text(command, extra) if line.help else f"terra-cx {__version__}\n")
            return 0
        after = prepare(line) if prepare else None
        options = config.load(line.settings)
        report = None
        if options.report is not None and not options.disable:
            report = files.claim(options.report)
        try:
            program = load(target)
        except CompileError:
            hand_over(target, line.safe_path)
        profile = None
        # Asked for elsewhere than here, it is not meant for runs in eager.
        asked = options.mode != "eager" or "profile" in line.settings
        if options.profile is not None and asked and not options.disable:
            from terra_cx.profile.output import claim

            profile = claim(options.profile, options.mode)
        launch = Launch(program, target.command, options, report, profile, after)
        launch.start_session()
    except UsageError as error:
        sys.stderr.write(f"{command}: {error}\n")
        return error.exit_code
    launch.run(line.safe_path)
    return 0


class Launch:
    """One program being run, with its session if there is one."""

    def __init__(
        self,
        program: Program,
        command: list[str],
        options: config.Options,
        report: Path | None,
        profile: Claim | None = None,
        after: AfterBody | None = None,
    ) -> None:
        self._program = program
        self._command = command
        self._options = options
        self._report = report
        self._after = after
        self._session: Session | None = None
        self._internal_errors = 0
        self._report_text: str | None = None
        self._profile = profile
        self._profile_texts: dict[str, str] | None = None
        self._summary_text: str | None = None
        self._process = os.getpid()
        self._stderr = sys.stderr  # the program may put something else in its place

    def start_session(self) -> None:
        """Start the session that the options ask for; if it fails, the program will run without.

        Raises:
            UsageError: terra-cx refuses this environment.
        """
        wanted = not (self._options.disable or self._options.mode == "eager")
        if wanted or self._report is not None:
            atexit.register(self._conclude)
        if not wanted:
            return
        try:
            # Imported here so that a run without it never needs it, and before sys.path is the program's.
            from terra_cx.session import Session

            session = Session(self._options)
            session.start()
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the program can run without us
            self._failed("could not start", error)
        else:
            self._session = session
            self._attempt("could not prepare to tell how the run goes on", self._follow)

    def _follow(self) -> None:
        """Have a line written now and then if somebody watches the run on a terminal."""
        stderr = self._stderr
        if self._session is not None and not self._options.quiet and stderr is not None and stderr.isatty():
            from terra_cx.report.progress import Progress

            self._session.on_region = Progress(self._session.report, stderr)

    def run(self, safe_path: bool) -> None:
        """Run the program; an exception that leaves its body, SystemExit included, leaves here too."""
        self._program.enter(safe_path)
        error = self._run_body()
        if os.getpid() == self._process:  # a forked child that gets here has neither session nor report
            error = self._finish(error)
            self._prepare_conclusion()
        if error is None:
            self._program.leave()
            return
        if not isinstance(error, SystemExit) and not tracebacks.wanted_in_full():
            tracebacks.clean_when_uncaught(error, self._program.leave)
        try:
            raise error
        finally:
            # Or this frame and the exception would keep each other, and all of the program's locals, alive.
            del error

    def _run_body(self) -> BaseException | None:
        try:
            self._program.run(self._instrument)
        except BaseException as error:  # noqa: BLE001  # raised again when the session has finished
            return error
        return None

    def _instrument(self, code: CodeType) -> CodeType:
        if self._session is None:
            return code
        session = self._session
        probed = self._attempt("could not plant probes in the program", lambda: session.instrument(code))
        return probed or code

    def _finish(self, error: BaseException | None) -> BaseException | None:
        """Finish the session after a body that ended with `error`; return what the program ends with."""
        session = self._session
        if session is None:
            return error
        try:
            session.finish()
        except InternalError as failure:
            self._failed("could not finish", failure)
        except BaseException as late:  # noqa: BLE001  # the program's own, deferred; it leaves by run()
            # Under eager execution it would have come first, and the body would not have got as far as its
            # own exception. Only Ctrl-C stays what it is: the process has to die of it.
            if not isinstance(error, KeyboardInterrupt):
                if error is not None and not isinstance(error, SystemExit):
                    late.__context__ = error
                error = late
        try:
            if self._after is not None:
                after = self._after
                self._attempt("could not show the graph", lambda: after(session))
            self._attempt("could not close", session.close)
        except KeyboardInterrupt as interrupt:
            error = interrupt
        return error

    def _prepare_conclusion(self) -> None:
        """Make the texts of the report and the summary.

        Not left to the atexit handler: python notes that it has to die of Ctrl-C in a flag that any `exec` of
        a string clears, and importing a library with dataclasses is enough for that.
        """
        if self._session is None and self._report is None and not self._internal_errors:
            return
        record = blank(self._options.mode)
        if self._session is not None:
            record.update(self._attempt("could not make its report", self._session.report) or {})
        record["command"] = self._command
        record["internal_errors"] += self._internal_errors
        if self._report is not None:
            self._report_text = self._attempt("could not make its report", lambda: files.as_json(record))
        if self._profile is not None and self._session is not None:
            self._profile_texts = self._attempt(
                "could not make its profile", lambda: self._made_profile(record)
            )
        if not self._options.quiet and (self._session is not None or self._internal_errors):
            self._summary_text = self._attempt("could not make its summary", lambda: self._summary(record))

    def _summary(self, record: Record) -> str:
        from terra_cx.report.summary import render  # takes 50 ms, which a quiet run does not pay

        return render(record, self._stderr)

    def _made_profile(self, record: Record) -> dict[str, str]:
        from terra_cx.profile.output import texts

        assert self._session is not None
        return texts(self._session, record)

    def _conclude(self) -> None:
        """Write the report and the summary; runs when everything of the program is over."""
        if os.getpid() != self._process:
            return
        path, text = self._report, self._report_text
        if path is not None and text is not None:
            self._attempt(f"could not write {path}", lambda: files.write_text(path, text))
        profile, texts = self._profile, self._profile_texts
        if profile is not None and texts is not None:
            self._attempt("could not write its profile", lambda: profile.write(texts))
        try:
            # python flushes stdout after the atexit handlers. Where both go to one file, the program's last
            # words should stand before ours.
            sys.stdout.flush()
        except (AttributeError, OSError, ValueError):
            pass  # none, broken, closed: python meets it again in a moment and reports it as it always does
        self._tell(self._summary_text or "")

    def _attempt(self, what: str, action: Callable[[], T]) -> T | None:
        """Do something of our own that must not touch the program: a failure is counted and told."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001
            self._failed(what, error)
            return None

    def _failed(self, what: str, error: Exception) -> None:
        """Count and tell a failure of terra-cx itself. Each kind happens at most once in a run."""
        self._internal_errors += 1
        if tracebacks.wanted_in_full():
            import traceback

            self._tell("".join(traceback.format_exception(error)))
        reason = str(error) if isinstance(error, TerraError) else f"{type(error).__name__}: {error}"
        self._tell(f"terra-cx: {what} ({reason.splitlines()[0]}); the program is not affected\n")

    def _tell(self, text: str) -> None:
        try:
            self._stderr.write(text)
        except (AttributeError, OSError, ValueError):
            pass  # stderr is missing, broken or closed: nobody is there to tell; the report counts failures

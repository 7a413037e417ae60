"""A session: what ties observation, tracing and co-execution together for one run of one program.

The only singleton of the package. It owns the anchor table, the import hook, the probes in ``builtins``, and,
once the program has imported TensorFlow and became warm, the conductor.

Guarantees:

* Until a loop is warm nothing of TensorFlow is touched; a probe then costs about 0.1 microseconds.
* One thread, the owner, is co-executed: the one that `start` was called on. Probes of other threads do
  nothing.
* Probes that an earlier session planted are none of this one's.
* An error of our own never reaches the program: what was validated is executed, the program goes on in plain
  eager, stderr says so once, and the report counts it.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from terra_cx.config import Options
from terra_cx.errors import TerraError
from terra_cx.observe import names
from terra_cx.observe.anchors import Anchor, AnchorTable, instrument
from terra_cx.observe.importer import UserCode
from terra_cx.observe.inplace import InPlace
from terra_cx.observe.managers import is_harmless
from terra_cx.observe.originals import Originals
from terra_cx.report.record import Record, blank

if TYPE_CHECKING:
    from terra_cx.cache.warm import WarmStart
    from terra_cx.profile.profiler import Profiler
    from terra_cx.run.conductor import Conductor
    from terra_cx.trace.surveyor import Surveyor

__all__ = ["Session", "current"]

_WARM = 2
"""Visits of one anchor after which the program is surveyed."""
_BARREN_VISITS, _MOST_BARREN_VISITS = 200, 20_000
"""Probe visits with no op between them, after which a survey that has seen no op at all waits for one, and one that has
seen some ends: the program works in pure Python, be it before its steps or between them."""
_SURVEY_VISITS, _MOST_SURVEY_VISITS = 20_000, 160_000
"""Other probe visits in a survey, in the first one and in any; each further one has twice as many."""
_SURVEY_GRACE, _SURVEY_SHARE = 0.5, 0.05
"""Surveys that find no step may cost so many seconds, and that part of the time that has passed.
(Time and not visits: a preparation in pure Python visits its loops more often than any training ever will. And what
they take of it, not how long they last: data may be loaded for minutes between two visits.)
"""
_FOREIGN = 50
"""Visits of another anchor, in a region that has left what is known, after which the program is surveyed again."""
_MARKS = 8
_MOST_VISITS = 10_000
"""Loop visits inside one region that are remembered for a trace that begins in its middle."""

_current: Session | None = None


def current() -> Session | None:
    """The session of this process, if one is started."""
    return _current


@functools.cache
def _follow_process() -> None:
    """Have the session of the moment hear of forks and of the interpreter's end.

    Once and for all: what is registered there stays for ever, and must not keep every session alive that ever was.
    """

    def tell(what: Callable[[Session], None]) -> Callable[[], None]:
        return lambda: what(_current) if _current is not None else None

    os.register_at_fork(before=tell(Session.before_fork), after_in_child=tell(Session.after_fork))
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(tell(Session.at_exit))


class Session:
    """See the module's guarantees.

    Args:
        options: the run's settings.
    """

    def __init__(self, options: Options) -> None:
        if getattr(sys, "_is_gil_enabled", lambda: True)() is False:
            raise TerraError(
                "free-threaded Python is not supported, because liveness is judged by reference counts; "
                "use a build with the GIL"
            )
        self.options = options
        self.table = AnchorTable()
        self.user = UserCode()
        self.inplace = InPlace(self.table, self.user)
        self.originals = Originals(self.table, self.user)
        self.owner = threading.get_ident()
        self.internal_errors = 0
        self.conductor: Conductor | None = None
        self.profiled = options.profile is not None
        """Whether the run is to be watched; to be set before the program runs."""
        self.profiler: Profiler | None = None
        """What watches the run, if a profile was asked for and the program got as far as a loop."""
        self._ended = 0.0
        self.on_region: Callable[[str], None] | None = None
        """Called with the anchor's line when a region begins; to be set before the program runs."""
        self._surveyor: Surveyor | None = None
        self._surveyed = self._barren = 0
        self._survey_visits = _SURVEY_VISITS
        self._fruitless = 0.0
        self._next_survey = self._begun = time.perf_counter()
        self._counts: defaultdict[int, int] = defaultdict(int)
        self._marks: defaultdict[int, list[float]] = defaultdict(list)
        self._total = 0
        self._foreign: defaultdict[int, int] = defaultdict(int)
        self._patience = _FOREIGN
        self._started = False
        self._broken = False
        self._told = False
        self._inside = False
        """Whether a probe is being answered: one that comes meanwhile, from a profiler say, is ignored."""
        self._marked: dict[tuple[CodeType, int], int] = {}
        self._record: Record | None = None
        self._cache: WarmStart | None = None
        if options.cache is not None and options.mode in ("co", "lazy"):
            from terra_cx.cache.warm import WarmStart

            self._cache = WarmStart(options, self.table, self._tell)

    # -- life ------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Put the import hook and the probes in place.

        Raises:
            TerraError: another session of this process is started.
        """
        global _current
        if _current is not None:
            raise TerraError("a session is started already; end it first (sessions do not nest)")
        _current = self
        self._started = True
        names.keep_until_exit()
        names.put(self._idle_probe)
        self.user.install(self.table)
        self.inplace.adapt()
        self.originals.adapt()
        _follow_process()

    @property
    def started(self) -> bool:
        """Whether probes are answered: after `start`, until `close`."""
        return self._started

    def instrument(self, code: CodeType) -> CodeType:
        """The code of ``__main__`` with anchor probes; its file counts as user code from now on."""
        self.user.add(code.co_filename)
        probed = instrument(code, self.table)
        self.user.add_code(probed)
        return probed

    def finish(self) -> None:
        """The program's body has ended: run what is pending and wait for the graph runner.

        Raises:
            BaseException: the program's own deferred error.
        """
        if self.conductor is not None and not self._broken:
            self._guarded(self.conductor.flush)

    def close(self) -> None:
        """Stop the graph runner and remove all hooks. Placeholders that still exist keep their values."""
        global _current
        if not self._started:
            return
        self._started = False
        if _current is self:
            _current = None
        if self.conductor is not None and not self._broken:
            self.conductor.save()
        self._record = self.report()
        names.put()
        self.inplace.restore()
        self.originals.restore()
        self.user.remove()
        if self.conductor is not None:
            self.conductor.close()
            # The hooks stay, passive: placeholders that the program still holds must be resolved on their way
            # in.
            self.conductor.boundary.use(self.conductor.boundary.passive)
        self._ended = time.perf_counter()
        if self.profiler is not None:
            self.profiler.finish()

    @property
    def seconds(self) -> float:
        """From its making to `close`, or to now."""
        return (self._ended or time.perf_counter()) - self._begun

    def at_exit(self) -> None:
        """The interpreter ends; its threads are about to be joined."""
        if self.conductor is not None:
            self.conductor.close()

    def before_fork(self) -> None:
        """The process is about to fork, on whichever thread."""
        if (
            self._started
            and self.conductor is not None
            and threading.get_ident() == self.owner
            and not self._broken
        ):
            self.conductor.pause()

    def after_fork(self) -> None:
        """This process is a forked child."""
        # A forked child has no graph runner: it goes on in plain eager.
        if self._started:
            self._broken = True
            names.put()
            if self.conductor is not None:
                self.conductor.runner.forked()
                self.conductor.boundary.use(self.conductor.boundary.passive)

    # -- probes ----------------------------------------------------------------------------------------------
    def _idle_probe(self, anchor_id: int) -> None:
        """Nothing is hot yet: count."""
        counts = self._counts
        counts[anchor_id] += 1
        if self._cache is not None and self._is_cached(anchor_id, sys._getframe(1)):
            return
        if counts[anchor_id] < _WARM or anchor_id not in self.table:
            return
        if (
            time.perf_counter() >= self._next_survey
            and threading.get_ident() == self.owner
            and not self._inside
            and _tensorflow_ready()
        ):
            self._guarded(self._begin_survey, anchor_id, sys._getframe(1))

    def _begin_survey(self, anchor_id: int, frame: FrameType) -> None:
        from terra_cx.tf.native import REAL
        from terra_cx.trace.regions import Survey
        from terra_cx.trace.surveyor import Surveyor

        if not REAL["TFE_Py_TapeSetIsEmpty"]():
            return  # tapes opened before would be missed; the next visit will do
        conductor = self._installed()
        self._surveyor = Surveyor(Survey(self.table, is_user=self.user.is_user))
        self._surveyed = self._barren = 0
        conductor.boundary.use(self._surveyor)
        names.put_probe(self._survey_probe)
        self._survey(anchor_id, frame)

    def _installed(self) -> Conductor:
        """The conductor, its hooks in place."""
        from terra_cx.observe.statements import StatementObserver
        from terra_cx.run.conductor import Conductor
        from terra_cx.tf.boundary import Boundary

        if self.conductor is None:
            observer = StatementObserver(self.user, self.table)
            self.conductor = Conductor(
                self.options, Boundary(), observer, self._internal, self.user, self._cache
            )
            self.conductor.on_region = self.on_region
            if self.profiled:
                self._watch(self.conductor)
        self.conductor.boundary.install()
        return self.conductor

    def _is_cached(self, anchor_id: int, frame: FrameType) -> bool:
        """Whether the cache knows an anchor that is visited; then it is active from here on."""
        if threading.get_ident() != self.owner or self._inside or self._broken or not _tensorflow_ready():
            return False
        before = self.conductor.anchors.keys() if self.conductor is not None else ()
        if anchor_id in before or anchor_id not in self.table:
            return False
        self._guarded(self._take_up, anchor_id, frame)
        return self.conductor is not None and anchor_id in self.conductor.anchors

    def _take_up(self, anchor_id: int, frame: FrameType) -> None:
        if self._cache is not None and self._cache.knows(anchor_id, frame.f_code):
            self._begin_at(anchor_id, frame)

    def _begin_at(self, anchor_id: int, frame: FrameType) -> None:
        """An anchor that need not be looked for becomes active."""
        from terra_cx.tf.native import REAL

        if not REAL["TFE_Py_TapeSetIsEmpty"]():
            return  # tapes opened before would be missed; the next visit will do
        self._installed()
        self._activate(anchor_id, frame)

    def _watch(self, conductor: Conductor) -> None:
        """Profile what this conductor does; if that fails, there will be no profile."""
        try:
            from terra_cx.profile.profiler import Profiler

            self.profiler = Profiler(self.user)
            self.profiler.attach(conductor)
        except Exception as error:  # noqa: BLE001
            self._internal("profiling", error)

    def _survey_probe(self, anchor_id: int) -> None:
        if threading.get_ident() != self.owner or anchor_id not in self.table or self._inside:
            return
        if self.conductor is not None and anchor_id in self.conductor.anchors:
            # Back at a known step, after a survey of what came between.
            self._surveyor = None
            names.put_probe(self._active_probe)
            self._guarded(self.conductor.visit, self.conductor.anchors[anchor_id], sys._getframe(1))
            return
        if self._cache is not None and self._is_cached(anchor_id, sys._getframe(1)):
            return
        self._guarded(self._survey, anchor_id, sys._getframe(1))

    def _survey_again(self, anchor_id: int, frame: FrameType) -> None:
        """The known step's loop seems to be over: look for the next one."""
        assert self.conductor is not None
        self._foreign.clear()
        self.conductor.leave_region()
        self._begin_survey(anchor_id, frame)

    def _survey(self, anchor_id: int, frame: FrameType) -> None:
        surveyor = self._surveyor
        assert surveyor is not None
        start = time.perf_counter()
        marks = self._marks[anchor_id]
        marks.append(start - surveyor.seconds)  # eager's steps are without the survey
        del marks[:-_MARKS]
        if self._barren >= _BARREN_VISITS and not surveyor.survey.ops:
            return
        if surveyor.survey.visit(anchor_id, frame, surveyor.tapes):
            self._surveyed += 1
            self._barren = 0
        else:
            self._barren += 1
        spent = max(self._surveyed / self._survey_visits, self._barren / _MOST_BARREN_VISITS)
        surveyor.seconds += time.perf_counter() - start
        if not self._barren or spent > 1:  # a round without ops changes no choice
            choice = surveyor.survey.choice(last=spent > 1) if surveyor.tapes == 0 else None
            if choice is not None and choice.anchor == anchor_id:
                self._activate(anchor_id, frame)
            elif spent > (1 if choice is None else 2):  # what is chosen begins at its next visit
                self._end_survey()

    def _end_survey(self) -> None:
        """Nothing was found: let some time go by before the next survey."""
        surveyor, self._surveyor = self._surveyor, None
        assert surveyor is not None
        assert self.conductor is not None
        self._patience *= 10
        for anchor in self.conductor.anchors.values():
            anchor.in_vain.clear()  # what led out of its loop may be long enough now to be learned
        if surveyor.survey.ops:
            self._survey_visits = min(2 * self._survey_visits, _MOST_SURVEY_VISITS)
        self._fruitless += surveyor.seconds
        self._next_survey = self._begun + (self._fruitless - _SURVEY_GRACE) / _SURVEY_SHARE
        self.conductor.boundary.use(self.conductor.boundary.passive)
        names.put_probe(self._active_probe if self.conductor.anchors else self._idle_probe)

    def _activate(self, anchor_id: int, frame: FrameType) -> None:
        conductor = self.conductor
        assert conductor is not None
        anchor = self.table[anchor_id]
        marks = self._marks[anchor_id]
        times = [b - a for a, b in itertools.pairwise(marks)]
        self._surveyor = None
        active = conductor.activate(anchor_id, _line(anchor), times)
        active.regions["eager"] += max(len(marks) - 1, 0)
        names.put(self._active_probe, self._barrier, self._arrival)
        conductor.visit(active, frame)

    def _active_probe(self, anchor_id: int) -> None:
        conductor = self.conductor
        if conductor is None or threading.get_ident() != self.owner or self._inside:
            return
        anchor = conductor.anchors.get(anchor_id)
        if anchor is None and anchor_id not in self.table:
            return
        frame = sys._getframe(1)
        if anchor is not None:
            self._foreign.clear()
            self._guarded(conductor.visit, anchor, frame)
        elif self._cache is not None and self._is_cached(anchor_id, frame):
            self._foreign.clear()
        elif conductor.recorder is None and conductor.skeleton is not None:
            if len(conductor.visits) < _MOST_VISITS:
                conductor.visits.append((anchor_id, id(frame), frame.f_code))
        else:
            if conductor.recorder is not None:
                conductor.observer.loop_visit(anchor_id, frame)
            self._foreign[anchor_id] += 1
            if self._foreign[anchor_id] > self._patience:
                if conductor.region_runs(frame, self.table.covers):
                    self._foreign.clear()  # a loop inside the step
                else:
                    self._guarded(self._survey_again, anchor_id, frame)

    def _barrier(self, *manager: Any) -> None:
        """Control enters or leaves a guarded body; ``manager`` is that of a ``with`` statement, or its exit method."""
        conductor = self.conductor
        if conductor is None or self._broken or not conductor.at_risk():
            return
        if (manager and is_harmless(manager[0])) or _in_finaliser(sys._getframe(1)):
            return
        self._guarded(conductor.barrier)

    def _arrival(self, error: BaseException) -> BaseException:
        """An exception comes to a handler; returns the one that eager would have brought there.

        An op that failed before it was raised would have raised first. Not so where nobody waits for ops: Ctrl-C, a
        generator that is closed.
        """
        conductor = self.conductor
        if conductor is None or self._broken or not conductor.at_risk():
            return error
        frame = sys._getframe(1)
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)) or _in_finaliser(frame):
            return error
        try:
            self._guarded(conductor.barrier)
        except BaseException as late:  # noqa: BLE001  # the program's own, or Ctrl-C meanwhile: it is handled instead
            place = error.__traceback__
            if place is None or place.tb_frame is not frame:
                return late
            # Raised where `error` was, as far as this frame is concerned.
            entry = TracebackType(late.__traceback__, frame, place.tb_lasti, place.tb_lineno)
            return late.with_traceback(entry)
        return error

    def region(self, frame: FrameType) -> None:
        """A user's own mark: the code at ``frame`` begins a region each time it comes by (`terra_cx.region`)."""
        key = (frame.f_code, frame.f_lasti)
        anchor_id = self._marked.get(key)
        if anchor_id is None:
            anchor_id = self._marked[key] = self.table.add("loop", frame.f_code, frame.f_lineno).id
            self._marks[anchor_id].append(time.perf_counter())
            return
        if self._broken or threading.get_ident() != self.owner or not _tensorflow_ready():
            return
        conductor = self.conductor
        if conductor is None or anchor_id not in conductor.anchors:
            marks = self._marks[anchor_id]
            marks.append(time.perf_counter())
            if len(marks) > 3:
                self._guarded(self._begin_at, anchor_id, frame)
            return
        self._guarded(conductor.visit, conductor.anchors[anchor_id], frame)

    # -- failures of our own ---------------------------------------------------------------------------------
    def _guarded(self, function: Any, *args: Any) -> None:
        """Call ``function``; the program's own deferred errors pass, ours end co-execution."""
        self._inside = True
        try:
            function(*args)
        except BaseException as error:
            if self.conductor is not None and error is self.conductor.raised:
                raise
            if not isinstance(error, Exception):
                raise  # Ctrl-C while waiting
            self._internal("co-execution", error)
            self._retreat()
        finally:
            self._inside = False

    def _retreat(self) -> None:
        self._broken = True
        names.put()
        if self.conductor is not None:
            self.conductor.abandon()

    @staticmethod
    def _tell(line: str) -> None:
        sys.stderr.write(f"terra-cx: {line}\n")

    def _internal(self, what: str, error: BaseException) -> None:
        """Count a failure of ours and say so once."""
        self.internal_errors += 1
        if os.environ.get("TERRA_TRACEBACK") == "full":
            traceback.print_exception(error, file=sys.stderr)
        if not self._told:
            self._told = True
            text = str(error).splitlines()[0] if str(error) else ""
            sys.stderr.write(
                f"terra-cx: {what} failed ({type(error).__name__}: {text[:200]}); "
                "the program goes on in plain eager there\n"
            )

    # -- telling ---------------------------------------------------------------------------------------------
    def report(self) -> Record:
        """The run's record (see `report.record`)."""
        if self._record is not None:
            return self._record
        record = blank(self.options.mode)
        record["internal_errors"] = self.internal_errors
        conductor = self.conductor
        if conductor is None:
            return record
        regions = record["regions"]
        for anchor in conductor.anchors.values():
            for key in ("co_executed", "traced", "eager"):
                regions[key] += anchor.regions[key]
            regions["total"] += sum(anchor.regions.values())
            record["anchors"].append(anchor.as_dict())
            record["fallbacks"].extend(fallback.as_dict() for fallback in anchor.fallbacks.values())
        main = max(conductor.anchors.values(), key=lambda a: sum(a.regions.values()), default=None)
        if main is not None:
            eager, co = main.step_ms()
            record["step_ms"] = {"eager": eager, "co": co}
        if self._cache is not None:
            record["cache"] = self._cache.as_dict()
        record["overlap"] = conductor.overlap()
        record["runner"] = conductor.statistics()
        record["levels"] = conductor.levels()
        return record

    def graph_text(self) -> str:
        """The TraceGraphs, readable, with source lines."""
        from terra_cx.report.graph import text

        return (
            "\n".join(text(a) for a in self._anchors())
            or "no region was found: no loop with a gradient or a variable write ran twice"
        )

    def graph_dot(self) -> str:
        """The TraceGraphs as Graphviz dot."""
        from terra_cx.report.graph import dot

        return dot(self._anchors())

    def _anchors(self) -> list[Any]:
        return list(self.conductor.anchors.values()) if self.conductor is not None else []


def _in_finaliser(frame: FrameType | None) -> bool:
    """Whether a ``__del__`` is running: Python would swallow an error there."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _tensorflow_ready() -> bool:
    module = sys.modules.get("tensorflow")
    return module is not None and hasattr(module, "Variable")


def _line(anchor: Anchor) -> str:
    return f"{anchor.filename}:{anchor.line}"

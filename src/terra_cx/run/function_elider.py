"""The function elider: calls of TensorFlow's public functions and operators whose Python is not run.

Such a call is a function of its arguments' dtypes, shapes and Python values. So where one was seen to issue the next
ops of a block, another one at the same place with such arguments issues them again: its ops are checked where they
depend on tensors that are passed, and committed at once. Traces note nothing of it. What a call does is learned from
the skeleton itself, the first time it runs at a place.

Guarantees:

* A call is learned only if all its ops lie in one run, the open one or one that it begins, and each of their
  arguments is a tensor or variable that was passed, what an array that was passed is converted to, an output of an
  earlier op of the call, or a constant that the call made of what is guarded by value; if no tensor's value was read in
  it, nothing written, nothing told to the tapes but accesses and pauses; and if it returns those ops' outputs.
* Random ops of such a call are given the seeds that TensorFlow's Python would give them: fixed ones, or the next of its
  generator, which is asked once the call is sure to be elided. If the run is handed over just then, the call runs, and
  is given them again.
* The second call at a place is compared with the first, later ones at falling frequency. A difference ends it for this
  function at this place, is counted and told.
* Nothing is committed before everything has been checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from terra_cx.compile.blocks import Step
from terra_cx.elide.calls import TOLD, pauses
from terra_cx.elide.functions import Function
from terra_cx.run.block_run import BlockRun, Frozen
from terra_cx.run.call_code import DUE, answering
from terra_cx.run.elisions import Elisions, next_comparison
from terra_cx.run.function_calls import Drawing, FunctionCall, Notes, Unfit, is_drawn, learned
from terra_cx.tf import native, seeds
from terra_cx.tf.reads import noting_reads
from terra_cx.tf.room import have_room
from terra_cx.trace.tracegraph import Node

if TYPE_CHECKING:
    from terra_cx.run.skeleton import Skeleton

__all__ = ["FunctionElider"]

_ATTEMPTS = 3
"""Calls of a function at one place that cannot be learned before it is left alone there."""
_ALTERNATIVES = 4
"""Kinds of calls that are known at one place."""
_INTERNAL = (AttributeError, LookupError, AssertionError, NameError)


@dataclass(slots=True)
class _Place:
    """The calls of one function that begin at one step, or, where no run is open, behind one node."""

    known: list[FunctionCall] = field(default_factory=list)
    failures: int = 0


class FunctionElider:
    """Elides calls of functions in the regions of one skeleton.

    Args:
        skeleton: whose ops they are.
        elisions: counts them.
    """

    def __init__(self, skeleton: Skeleton, elisions: Elisions) -> None:
        self._skeleton = skeleton
        self._elisions = elisions
        self._inside = False
        self._again: tuple[Any, ...] = ()
        """Seeds that were drawn for a call that was not elided in the end."""
        self._beginnings: dict[tuple[Node, Function], _Place] = {}

    def call(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call, elided or run."""
        skeleton = self._skeleton
        step, run = skeleton.step, skeleton.run
        have_room()
        if self._inside:
            return function.own(*args, **kwargs)
        around = native.surroundings()
        if not around[0]:
            return function.own(*args, **kwargs)
        if step is not None:
            place = step.calls.get(function)
            if place is None:
                place = step.calls[function] = _Place()
        else:
            place = self._beginning(function)
        for known in place.known:
            answer = self.answered(
                known, run if step is not None else self._begun(known), args, kwargs, around
            )
            if type(answer) is list:
                return answer[0]
            if skeleton.step is not step or skeleton.run is not run or self._again:
                # A signal handler has issued ops, or the run was handed over.
                again, self._again = self._again, ()
                with seeds.given_again(again) if again else nullcontext():
                    return function.own(*args, **kwargs)
            if answer is DUE:
                return self._run(function, place, known, args, kwargs, around)
        if place.failures >= _ATTEMPTS or len(place.known) >= _ALTERNATIVES:
            return function.own(*args, **kwargs)
        return self._run(function, place, None, args, kwargs, around)

    def _beginning(self, function: Function) -> _Place:
        """The calls that begin here, where no run is open: a region begins, or a block has come to its end."""
        skeleton = self._skeleton
        where = skeleton.here(), function
        place = self._beginnings.get(where)
        if place is None:
            place = self._beginnings[where] = _Place()
        for known in [*place.known]:
            if skeleton.block_for(known.steps[0].node).steps[0] is not known.steps[0]:
                place.known.remove(known)  # its block was built anew
        return place

    def _begun(self, known: FunctionCall) -> BlockRun:
        """The run that a call would begin."""
        return self._skeleton.begun(known.steps[0].node)

    def answered(
        self, known: FunctionCall, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any], around: Any
    ) -> Any:
        """As the code of a known call (`run.call_code.Answer`) says."""
        skeleton = self._skeleton
        events, before, opened = len(skeleton.log.events), run.pos, skeleton.run
        try:
            if known.built != skeleton.graph.built:  # gradients may refer to other outputs than before
                known.answer, known.built = answering(known, run.block.steps, before), skeleton.graph.built
            answer = known.answer(skeleton, run, args, kwargs, around)
        except Frozen as frozen:
            self._again = frozen.args
            del skeleton.log.events[events:]
            skeleton.dispatch()
            return None
        except _INTERNAL as error:
            skeleton.failed(error)
            skeleton.functions = None
            if run.pos != before or skeleton.run is not opened:
                raise  # half of the call is done: neither can it be run nor answered
            return None
        finally:
            skeleton.busy = False
        if type(answer) is list:
            known.runs += 1
            self._elisions.shortened += 1
            if skeleton.sync_errors:
                skeleton.barrier()
        return answer

    # -- learning and comparing ----------------------------------------------------------------------------------
    def _run(
        self,
        function: Function,
        place: _Place,
        compared: FunctionCall | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        around: tuple[Any, ...],
    ) -> Any:
        """Run a call, and see what it does."""
        skeleton = self._skeleton
        log, opened, begins = skeleton.log, skeleton.run, skeleton.step is None
        first = opened.pos if opened is not None and not begins else 0
        events, position = len(log.events), skeleton.position()
        self._inside = True
        try:
            with self._noting() as notes:
                result = function.own(*args, **kwargs)
        finally:
            self._inside = False
        if skeleton.log is not log or not skeleton.in_charge():
            return result  # it diverged
        try:
            run = skeleton.run
            if run is None or (run is opened) is begins or len(notes.commits) != run.pos - first:
                raise Unfit  # a block ends in it, or nothing has begun one
            told = log.events[events:]
            if any(event.what not in TOLD for event in told) or notes.reads:
                raise Unfit
            notes.pauses = pauses(told, position)
            numbers_too = bool(place.known) if compared is None else compared.converts_numbers
            found = learned(function, run, (args, kwargs), around, notes, result, numbers_too)
        except Unfit:
            found = None
        except _INTERNAL as error:
            skeleton.failed(error)
            place.known.clear()
            place.failures = _ATTEMPTS
            return result
        if compared is not None:
            self._compare(place, compared, found, notes)
        elif found is None:
            place.failures += 1
        else:
            place.known.insert(0, found)
        return result

    def _compare(self, place: _Place, known: FunctionCall, found: FunctionCall | None, notes: Notes) -> None:
        """A call that might have been elided was run: it must have done what would have been done for it."""
        elisions = self._elisions
        elisions.compared += 1
        if found is not None and found.is_like(known):
            known.runs += 1
            known.due = next_comparison(known.runs)
            return
        if found is not None and found.steps[0] is not known.steps[0]:
            # Of two blocks that admit it, this is the hotter one now.
            place.known[place.known.index(known)] = found
            return
        place.known.remove(known)
        place.failures = _ATTEMPTS
        other = [step.op for step, _ in notes.commits] != [step.op for step in known.steps]
        if known.runs and (other or found is not None):
            elisions.mismatches += 1
            elisions.told(
                f"calls of {known.function.name} at {known.steps[0].node.line} were elided, and one that was compared "
                "did something else; they run from now on. Please report this"
            )

    @contextmanager
    def _noting(self) -> Iterator[Notes]:
        """Note commits, draws, accesses of variables and reads of values."""
        notes, skeleton = Notes(stood=seeds.state()), self._skeleton
        commit, accessed = skeleton.commit, skeleton.variable_accessed

        def noted(run: BlockRun, step: Step, args: tuple[Any, ...], name: Any) -> Any:
            answer = commit(run, step, args, name)
            notes.commits.append((step, args))
            if is_drawn(step):
                notes.draws.append(Drawing(step, name, run.draws[step.base].args))
            return answer

        def told(variable: Any) -> Any:
            notes.accesses.append(variable)
            return accessed(variable)

        with noting_reads(notes.reads):
            skeleton.commit = noted  # type: ignore[method-assign]  # for this object, in front of the method
            skeleton.variable_accessed = told  # type: ignore[method-assign]
            try:
                yield notes
            finally:
                del skeleton.commit, skeleton.variable_accessed

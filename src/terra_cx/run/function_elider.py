"""The function elider: calls of TensorFlow's public functions and operators whose Python is not run.

Such a call is a function of its arguments' dtypes, shapes and Python values. So where one was seen to issue the next
ops of a block, another one at the same place with such arguments issues them again: its ops are checked where they
depend on tensors that are passed, and committed at once. Traces note nothing of it. What a call does is learned from
the skeleton itself, the first time it runs at a place.

Guarantees:

* A call is learned only if all its ops lie in the open run and each of their arguments is a tensor or variable that was
  passed, what an array that was passed is converted to, an output of an earlier op of the call, or a constant that the
  call made of what is guarded by value; if no tensor's value was read in it, no random number drawn, nothing written,
  nothing but accesses told to the tapes; and if it returns those ops' outputs.
* The second call at a place is compared with the first, later ones at falling frequency. A difference ends it for this
  function at this place, is counted and told.
* Nothing is committed before everything has been checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from terra_cx.compile.blocks import LOCAL, Step
from terra_cx.elide.functions import Function
from terra_cx.run.block_run import BlockRun, Frozen
from terra_cx.run.checks import admits
from terra_cx.run.elisions import Elisions, to_be_compared
from terra_cx.run.function_calls import (
    FunctionCall,
    Notes,
    Unfit,
    ambient,
    as_tensor,
    flat,
    form_of,
    is_same,
    learned,
    spec_of,
)
from terra_cx.tf import native
from terra_cx.tf.native import EagerTensor
from terra_cx.tf.placeholder import Placeholder, new_placeholder
from terra_cx.tf.reads import noting_reads
from terra_cx.tf.slots import Slot
from terra_cx.trace.rules import same_const, same_known

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
    """The calls of one function that begin at one step."""

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

    def call(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call, elided or run."""
        skeleton = self._skeleton
        step = skeleton.step
        if (
            step is None
            or self._inside
            or (skeleton.scoped and skeleton.placed())
            or not native.executing_eagerly()
        ):
            return function.own(*args, **kwargs)
        place = step.calls.get(function)
        if place is None:
            place = step.calls[function] = _Place()
        compared = None
        for known in place.known:
            leaves = self._leaves(known, args, kwargs)
            if leaves is None:
                continue
            if skeleton.step is not step:  # a signal handler has issued ops
                return function.own(*args, **kwargs)
            if to_be_compared(known.runs):
                compared = known
                break
            answer = self._elided(known, leaves)
            if answer is not None:
                return answer[0]
            if skeleton.step is not step:  # the run was handed over meanwhile
                return function.own(*args, **kwargs)
        if compared is None and (place.failures >= _ATTEMPTS or len(place.known) >= _ALTERNATIVES):
            return function.own(*args, **kwargs)
        return self._run(function, place, compared, args, kwargs)

    # -- eliding -------------------------------------------------------------------------------------------------
    @staticmethod
    def _leaves(known: FunctionCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments of a call, flat, if it is one like ``known`` as far as they alone can tell."""
        if type(known.structure) is int:  # no keyword, no list: the common case
            if kwargs or len(args) != known.structure:
                return None
            leaves: Any = args
        else:
            leaves, structure = flat(args, kwargs)
            if structure != known.structure:
                return None
        for number, value, trainable in known.same:
            if leaves[number] is not value or value.trainable is not trainable:
                return None
        for number, value in known.equal:
            leaf = leaves[number]
            if leaf is not value and (type(leaf) is not type(value) or not same_const(leaf, value)):
                return None
        for number, earlier in known.again:
            if not is_same(leaves[number], leaves[earlier]):
                return None
        return leaves

    def _elided(self, known: FunctionCall, leaves: Any) -> list[Any] | None:
        """Commit the ops of a call; its result in a list, None if one does not fit."""
        skeleton = self._skeleton
        run, events = skeleton.run, len(skeleton.log.events)
        assert run is not None
        before = run.pos
        skeleton.busy = True
        try:
            if known.ambient != ambient():
                return None
            slots = run.slots
            for number, checks, spec in known.checked:
                leaf = leaves[number]
                for check in checks:
                    if check[0] == LOCAL:  # `admits` without the call
                        if type(leaf) is not Placeholder or leaf._slot is not slots[check[1]]:
                            return None
                    elif not admits(run, check, leaf):
                        return None
                if not checks and spec_of(leaf) != spec:
                    return None
            for number, value in known.valued:
                leaf = leaves[number]
                if type(leaf) is not EagerTensor or not same_known(leaf, value):
                    return None
            for number, checks, form, dtype in known.converted:
                if form_of(leaves[number]) != form:
                    return None
                leaf = as_tensor(leaves[number], dtype)
                if leaf is None or not all(admits(run, check, leaf) for check in checks):
                    return None
            for check, value in known.fixed:
                if not admits(run, check, value):
                    return None
            turns: dict[Any, int] = {}
            for step in known.steps:
                if step.computed:
                    for index, out in enumerate(step.specs, step.base):
                        slots[index] = Slot(out, run, index)
                if step.needed:
                    turns[step.node] = skeleton.log.turns.get(step.node, 0) + 1
                    skeleton.keep_arguments(run, step)
                    if step.computed:
                        skeleton.keep_outputs(run, step)
            if known.accesses:
                skeleton.accessed(known.accesses, known.handles)
            answer = [
                new_placeholder(slots[what]) if type(what) is int else what  # type: ignore[arg-type]
                for what in known.results
            ]
            skeleton.advance_over(run, run.pos + len(known.steps), turns)
        except Frozen:
            del skeleton.log.events[events:]
            skeleton.dispatch()
            return None
        except _INTERNAL as error:
            skeleton.failed(error)
            skeleton.functions = None
            if skeleton.run is not run or run.pos != before:
                raise  # half of the call is done: neither can it be run nor answered
            return None
        finally:
            skeleton.busy = False
        known.runs += 1
        self._elisions.shortened += 1
        if skeleton.sync_errors and run.block.first_fallible is not None:
            skeleton.dispatch()
            skeleton.drain()
        return answer if known.pack is None else [known.pack(answer)]

    # -- learning and comparing ----------------------------------------------------------------------------------
    def _run(
        self,
        function: Function,
        place: _Place,
        compared: FunctionCall | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a call, and see what it does."""
        skeleton = self._skeleton
        run, log, around = skeleton.run, skeleton.log, ambient()
        assert run is not None
        first, events = run.pos, len(log.events)
        self._inside = True
        try:
            with self._noting() as notes:
                result = function.own(*args, **kwargs)
        finally:
            self._inside = False
        if skeleton.log is not log or not skeleton.in_charge():
            return result  # it diverged
        try:
            if skeleton.run is not run or len(notes.commits) != run.pos - first:
                raise Unfit  # a block ends in it
            if any(event.what != "access" for event in log.events[events:]) or notes.reads:
                raise Unfit
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
        if found is not None and found.key() == known.key():
            known.runs += 1
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
        """Note commits, accesses of variables and reads of values."""
        notes, skeleton = Notes(), self._skeleton
        commit, accessed = skeleton.commit, skeleton.variable_accessed

        def noted(run: BlockRun, step: Step, args: tuple[Any, ...], name: Any) -> Any:
            answer = commit(run, step, args, name)
            notes.commits.append((step, args))
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

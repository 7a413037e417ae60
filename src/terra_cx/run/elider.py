"""The elider: library calls of a co-executed region whose Python is not run.

A call is elided if one like it was noted in a trace (`elide.calls`), and all that it depends on is as it was: the
structure of its arguments, the dtypes and shapes of tensors, all other arguments, the objects it reaches
(`elide.state`), what its names mean (`elide.names`), settings of the thread, whether tapes record. Then its ops are
committed together, with the arguments that Python gave, and its result is put together from their placeholders.

Guarantees:

* The first call of a kind runs, is compared op by op with what was noted, and must leave the objects as it found them;
  only then are calls elided. Later ones are compared at falling frequency. A difference disables the call for good, is
  counted and told.
* Nothing is committed before everything has been checked. What is not elided runs as it is, in the skeleton.
* Several stretches of ops, where a block ends inside a call, are committed one after the other. Only the first can be
  part of a run that another thread may freeze; the others are complete when their runs are opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from terra_cx.compile.blocks import FEED, KNOWN, LOCAL, PARAM, Block, Check, Step
from terra_cx.elide.calls import LibraryCall, flatten, flatten_arguments, normal
from terra_cx.elide.entries import Entry
from terra_cx.run.block_run import BlockRun, Frozen
from terra_cx.run.checks import admits, flat_checks
from terra_cx.run.elisions import Elisions, to_be_compared
from terra_cx.tf import native
from terra_cx.tf.native import REAL
from terra_cx.tf.opdefs import SHAPE_OPS, Kind
from terra_cx.tf.placeholder import Placeholder, new_placeholder
from terra_cx.tf.slots import Slot, Spec
from terra_cx.tf.variable_writes import is_written, written_again
from terra_cx.trace.tracegraph import Node

if TYPE_CHECKING:
    from terra_cx.run.skeleton import Skeleton

__all__ = ["Elider"]

_ATTEMPTS = 3
"""Comparisons that may fail before a call was ever trusted: the state may still be settling."""
_INTERNAL = (AttributeError, LookupError, AssertionError, NameError, TypeError, ValueError)
"""What a mistake of ours looks like; nothing else runs here."""
_tapes_empty = REAL["TFE_Py_TapeSetIsEmpty"]
_tapes_stopped = REAL["TFE_Py_TapeSetIsStopped"]
_computed = (Kind.PURE, Kind.READ, Kind.WRITE)


@dataclass(slots=True)
class _Stretch:
    """The ops of a call that lie in one block."""

    block: Block
    pos: int
    count: int
    given: list[tuple[Check, int, int | None]] = field(default_factory=list)
    """Checks of arguments: by number of the leaf, with the dtype that an array is converted to."""
    fixed: list[tuple[Check, Any]] = field(default_factory=list)
    """Checks of what is as it was in the trace; once they have passed, the parameters that they bind are `bound`."""
    bound: list[tuple[int, Any]] = field(default_factory=list)
    again: list[tuple[Check, Any]] = field(default_factory=list)
    """Checks of what is as it was in the trace, and has to be what an earlier op binds a parameter to each time."""
    crossing: list[tuple[int, tuple[int, int]]] = field(default_factory=list)
    """Parameters that are outputs of the call's earlier ops: (op, output)."""
    slots: list[tuple[int, Spec, tuple[int, int]]] = field(default_factory=list)
    """Flat outputs that somebody will ask for, and which op's they are."""
    turns: list[Node] = field(default_factory=list)
    """Nodes whose executions are counted, because gradients of other blocks refer to them."""
    kept: list[tuple[Node, int, int, Any]] = field(default_factory=list)
    """What they refer to: output, or argument as -1 and below; what it is (LOCAL, PARAM, KNOWN), and which."""
    values: list[tuple[tuple[int, int], Any]] = field(default_factory=list)
    """Known results that somebody will ask for."""
    built: int = 0
    """How many blocks the graph had built when this was made: a later one may need more outputs of this."""


class Elider:
    """Elides calls in the regions of one skeleton.

    Args:
        skeleton: whose ops they are.
        elisions: what is known.
    """

    def __init__(self, skeleton: Skeleton, elisions: Elisions) -> None:
        self._skeleton = skeleton
        self._elisions = elisions
        self._comparing = False

    def call(self, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One library call, elided or run."""
        known = self._elisions.calls.get((entry.name, id(args[0])))
        if self._comparing or not native.executing_eagerly():
            return entry.own(*args, **kwargs)
        if not known:
            return self._unnoted(entry, args, kwargs)
        args = normal(args)
        leaves, structure = flatten_arguments(args[1:], kwargs)
        skeleton = self._skeleton
        before = skeleton.run, skeleton.step, len(skeleton.log.runs)
        unlike = False
        try:
            found, missed = self._found(known, structure, leaves)
            if missed is not None:
                self._elisions.miss(missed)
            unlike = found is missed is None
            if (
                found is not None
                and not to_be_compared(found.runs)
                and (found.trusted or (found.agreed and found.has_same_arrays(leaves)))
            ):
                answer = self._elided(found, leaves)
                if answer is not None:
                    return answer[0]
                found = None
        except _INTERNAL as error:
            skeleton.failed(error)
            self._elisions.calls.clear()
            if (skeleton.run, skeleton.step, len(skeleton.log.runs)) != before:
                raise  # half of the call is done: neither can it be run nor answered
            found = None
        if found is not None:
            return self._compared(found, args, kwargs, leaves)
        if unlike and not skeleton.graph.relaxed:
            return self._unnoted(entry, args, kwargs, leaves)
        return entry.own(*args, **kwargs)

    def _unnoted(
        self, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any] | None = None
    ) -> Any:
        """Run a call of which nothing is noted, or nothing with such arguments; now and then it is noted."""
        given = None if leaves is None else (_tapes_empty(), *map(_told, leaves))
        if self._elisions.unnoted(entry.name, args[0], given):
            return self._skeleton.note().library_call(entry, args, kwargs)
        return entry.own(*args, **kwargs)

    def _found(
        self, known: dict[Node | None, list[LibraryCall]], structure: Any, leaves: list[Any]
    ) -> tuple[LibraryCall | None, LibraryCall | None]:
        """The noted call that this one is like, if all is as it was then; else one for which something is not."""
        step = self._skeleton.step
        following = (step.node,) if step is not None else self._skeleton.here().succ
        missed = None
        for node in (None, *following):
            for call in reversed(known.get(node, ())):
                if self._is_like(call, structure, leaves):
                    if self._holds(call):
                        return call, None
                    missed = call
        return None, missed

    def _is_like(self, call: LibraryCall, structure: Any, leaves: list[Any]) -> bool:
        """Whether the call was one with such arguments."""
        return (
            structure == call.structure
            and call.taped == (not _tapes_empty(), bool(_tapes_stopped()))
            and call.admits(leaves)
        )

    def _holds(self, call: LibraryCall) -> bool:
        return (
            not self._elisions.names.changed()
            and call.ambient == self._elisions.entries.ambient()
            and call.state.changed() is None
        )

    # -- eliding -------------------------------------------------------------------------------------------------
    def _elided(self, call: LibraryCall, leaves: list[Any]) -> list[Any] | None:
        """Commit the call's ops; its result in a list, None if that cannot be done."""
        skeleton = self._skeleton
        events = len(skeleton.log.events)
        skeleton.busy = True
        try:
            plan = self._plan(call, leaves)
            if plan is None:
                return None
            made: dict[tuple[int, int], Any] = {}
            if call.accesses:
                skeleton.accessed(call.accesses, call.handles, skeleton.position())
            skeleton.paused(call.pauses)
            self._commit(call, plan, made)
        except Frozen:
            del skeleton.log.events[events:]
            skeleton.dispatch()
            return None
        finally:
            skeleton.busy = False
        call.runs += 1
        self._elisions.elided += 1
        if skeleton.sync_errors:
            skeleton.barrier()
        return [self._result(call, leaves, made)]

    def _plan(self, call: LibraryCall, leaves: list[Any]) -> list[tuple[BlockRun, _Stretch]] | None:
        """The stretches of a call with the runs that they are part of, arguments bound; None if one does not fit."""
        skeleton = self._skeleton
        plan: list[tuple[BlockRun, _Stretch]] = []
        converted: dict[tuple[int, int], Any] = {}
        """Arrays as tensors: what several ops are given must be one."""
        index = 0
        run, pos = skeleton.run, skeleton.run.pos if skeleton.run is not None else 0
        while index < len(call.nodes):
            node = call.nodes[index]
            if index or skeleton.step is None or run is None:
                run, pos = skeleton.begun(node), 0
            stretch = self._stretch(call, index, run.block, pos)
            if stretch is None:
                return None
            index += stretch.count
            if index < len(call.nodes) and pos + stretch.count < len(run.block.steps):
                return None  # the block goes on another way
            while stretch.fixed:
                check, value = stretch.fixed[-1]
                if not admits(run, check, value):
                    return None
                stretch.bound.append((check[1], run.params[check[1]]))
                stretch.fixed.pop()
            for number, value in stretch.bound:
                run.params[number] = value
            slots = run.slots
            for check, number, dtype in stretch.given:
                leaf = leaves[number]
                if dtype is not None:
                    array, leaf = leaf, converted.get((number, dtype))
                    if leaf is None:
                        leaf = converted[number, dtype] = native.as_tensor(array, native.dtype_of(dtype))
                if check[0] == LOCAL:  # `admits` without the call: most arguments are of this kind
                    if type(leaf) is not Placeholder or leaf._slot is not slots[check[1]]:
                        return None
                elif not admits(run, check, leaf):
                    return None
            for check, value in stretch.again:
                if not admits(run, check, value):
                    return None
            plan.append((run, stretch))
        return plan

    def _stretch(self, call: LibraryCall, index: int, block: Block, pos: int) -> _Stretch | None:
        found: _Stretch | None = call.plans.get((index, block.uid, pos))
        if found is not None and found.block is block and found.built == self._skeleton.graph.built:
            return found
        made = self._made(call, index, block, pos)
        if made is not None:
            if len(call.plans) > 64:
                call.plans.clear()
            call.plans[index, block.uid, pos] = made
        return made

    def _made(self, call: LibraryCall, index: int, block: Block, pos: int) -> _Stretch | None:
        steps = block.steps
        count = 0
        while (
            index + count < len(call.nodes)
            and pos + count < len(steps)
            and steps[pos + count].node is call.nodes[index + count]
        ):
            count += 1
        if not count:
            return None
        stretch = _Stretch(block, pos, count, built=self._skeleton.graph.built)
        wanted = _wanted(call, index, count)
        for number in range(count):
            step = steps[pos + number]
            if step.kind not in _computed and step.kind is not Kind.KNOWN:
                return None
            if step.relaxed or (block.relaxed and step.op in SHAPE_OPS):
                return None  # its shapes have to be worked out
            sources = call.wiring[index + number]
            for check, source in zip(flat_checks(step), sources, strict=False):
                if not self._wire(stretch, check, source, index, steps):
                    return None
            flats = {(index + number, out): step.base + out for out in range(len(step.specs))}
            for key, flat in flats.items():
                if step.kind is Kind.KNOWN:
                    stretch.values.append((key, step.values[key[1]]))
                elif key in wanted or key[1] in step.needed:
                    stretch.slots.append((flat, step.specs[key[1]], key))
            if step.needed:
                stretch.turns.append(step.node)
                stretch.kept += _kept(step)
                stretch.slots += self._arguments(step, steps, index, pos, stretch)
        return stretch

    @staticmethod
    def _wire(stretch: _Stretch, check: Check, source: Any, index: int, steps: list[Step]) -> bool:
        code = check[0]
        if source[0] in ("arg", "array"):
            stretch.given.append((check, source[1], source[2] if len(source) > 2 else None))
        elif source[0] == "fixed":
            if code == FEED or (code == PARAM and check[2] is True):
                stretch.fixed.append((check, source[1]))
            elif code == PARAM:
                stretch.again.append((check, source[1]))
            return bool(code != LOCAL)
        elif code == PARAM:
            stretch.crossing.append((check[1], (source[1], source[2])))
        elif code == LOCAL:
            if source[1] < index:
                return False
            return bool(steps[stretch.pos + source[1] - index].base + source[2] == check[1])
        elif code != KNOWN:
            return False
        return True

    @staticmethod
    def _arguments(
        step: Step, steps: list[Step], index: int, pos: int, stretch: _Stretch
    ) -> list[tuple[int, Spec, tuple[int, int]]]:
        """Slots for the outputs of the call's own ops that a gradient wants as arguments of this step."""
        places = {
            other.base + out: (index + number, out)
            for number, other in enumerate(steps[pos : pos + stretch.count])
            for out in range(len(other.specs))
        }
        known = {flat for flat, _, _ in stretch.slots}
        found = []
        checks = list(flat_checks(step))
        for out in step.needed:
            if out < 0 and -1 - out < len(checks):
                check = checks[-1 - out]
                if check[0] == LOCAL and check[1] in places and check[1] not in known:
                    key = places[check[1]]
                    found.append((check[1], steps[pos + key[0] - index].specs[key[1]], key))
        return found

    def _commit(
        self, call: LibraryCall, plan: list[tuple[BlockRun, _Stretch]], made: dict[tuple[int, int], Any]
    ) -> None:
        """Commit the stretches.

        Raises:
            Frozen: the open run was handed over meanwhile; nothing was committed.
        """
        skeleton = self._skeleton
        log = skeleton.log
        index = 0
        for run, stretch in plan:
            slots = run.slots
            for number, key in stretch.crossing:
                run.params[number] = made[key]
            for flat, spec, key in stretch.slots:
                slots[flat] = made[key] = Slot(spec, run, flat)
            params, bound, turn = run.params, log.bound, log.turns.get
            for node, what, kind, which in stretch.kept:
                thing = slots[which] if kind == LOCAL else which if kind == KNOWN else params[which]
                if thing is not None or what >= 0:
                    bound[node, what, turn(node, 0)] = thing
            turns = {node: turn(node, 0) + 1 for node in stretch.turns}
            made.update(stretch.values)
            if run is skeleton.run:
                skeleton.advance_over(run, stretch.pos + stretch.count, turns)
            else:
                log.turns.update(turns)
                skeleton.enter(run, skeleton.here(), call.nodes[index], stretch.count)
            index += stretch.count

    @staticmethod
    def _result(call: LibraryCall, leaves: list[Any], made: dict[tuple[int, int], Any]) -> Any:
        answer: list[Any] = []
        given: dict[tuple[int, int], Any] = {}
        """A tensor that is returned twice is one object."""
        for source in call.results:
            if source[0] == "arg":
                answer.append(leaves[source[1]])
            elif source[0] == "fixed":
                answer.append(source[1])
            elif source[0] == "copy":
                answer.append(written_again(source[1]))
            else:
                key = source[1], source[2]
                if key not in given:
                    thing = made[key]
                    given[key] = new_placeholder(thing) if type(thing) is Slot else thing
                answer.append(given[key])
        return answer[0] if call.result is None else call.result.unflatten(answer)

    # -- comparing -----------------------------------------------------------------------------------------------
    def _compared(
        self, call: LibraryCall, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any]
    ) -> Any:
        """Run the call, and see whether it does what would have been done for it."""
        skeleton, elisions = self._skeleton, self._elisions
        log, start, runs = skeleton.log, skeleton.position(), len(skeleton.log.runs)
        functions, skeleton.functions = skeleton.functions, None  # all of it shall run
        self._comparing = True
        try:
            result = call.entry.own(*args, **kwargs)
        finally:
            self._comparing = False
            skeleton.functions = functions
        call.runs += 1
        if skeleton.log is not log or not skeleton.in_charge():
            return result  # the region diverged, and is being learned anew
        elisions.compared += 1
        try:
            steps = self._steps(start, max(runs - 1, 0))
            why = self._difference(call, steps, result, leaves)
            if why is None and tuple(step.node for _, step in steps) == call.nodes:
                call.agreed = True
                call.trusted = call.trusted or call.shows_arrays(leaves)
        except _INTERNAL as error:
            skeleton.failed(error)
            elisions.refuse(call, "it could not be compared")
            return result
        if why is not None and call.trusted:
            elisions.refuse(call, why)
            elisions.mismatches += 1
            elisions.told(
                f"a call of {call.entry.name} of {type(call.receiver).__name__} at {call.line} was elided, and {why} "
                "when it was compared; it runs from now on. Please report this"
            )
        elif why is not None:
            call.failures += 1
            if call.failures == _ATTEMPTS:
                elisions.refuse(call, why)
        return result

    def _difference(
        self, call: LibraryCall, steps: list[tuple[BlockRun, Step]], result: Any, leaves: list[Any]
    ) -> str | None:
        """In words, what the real call did otherwise; None if nothing."""
        if [_work(step.node) for _, step in steps] != [_work(node) for node in call.nodes]:
            return "it issued other ops"
        if tuple(step.node for _, step in steps) != call.nodes:
            return None  # the same ops, by another way through the graph: no more can be said
        if not self._same_wiring(call, steps, leaves):
            return "its ops had other arguments"
        if not self._same_result(call, result, leaves):
            return "it returned something else"
        changed = call.state.changed()
        if changed is None and call.ambient != self._elisions.entries.ambient():
            changed = "a setting of the thread"
        return None if changed is None else f"it changed {changed}"

    def _steps(self, start: int, first: int) -> list[tuple[BlockRun, Step]]:
        """What was validated since a position, with the runs that it is part of."""
        return [
            (run, step)
            for run in self._skeleton.log.runs[first:]
            for step in run.block.steps[: run.pos]
            if run.start + step.position >= start
        ]

    @staticmethod
    def _same_wiring(call: LibraryCall, steps: list[tuple[BlockRun, Step]], leaves: list[Any]) -> bool:
        """Whether the parameters of the call's ops are what would have been bound to them."""
        for (run, step), sources in zip(steps, call.wiring, strict=True):
            for check, source in zip(flat_checks(step), sources, strict=False):
                if check[0] not in (PARAM, FEED) or source[0] == "in":
                    continue
                bound = run.params[check[1]]
                if source[0] == "arg":
                    leaf = leaves[source[1]]
                    right = bound is (leaf._slot if type(leaf) is Placeholder else leaf)
                elif type(bound) is Slot:
                    right = False
                else:
                    wanted = leaves[source[1]] if source[0] == "array" else source[1]
                    right = bound is wanted or _same_value(bound, wanted)
                if not right:
                    return False
        return True

    def _same_result(self, call: LibraryCall, result: Any, leaves: list[Any]) -> bool:
        given, structure = ([result], None) if call.result is None else flatten(result)
        if structure != call.result or len(given) != len(call.results):
            return False
        for leaf, source in zip(given, call.results, strict=True):
            if source[0] == "arg":
                right = leaf is leaves[source[1]]
            elif source[0] == "fixed":
                right = leaf is source[1] or (type(leaf) is type(source[1]) and _equal(leaf, source[1]))
            elif source[0] == "copy":
                right = is_written(leaf) and leaf.handle is source[1].handle
            elif type(leaf) is Placeholder:
                slot = leaf._slot
                run = slot.run
                right = isinstance(run, BlockRun) and run.block.owners[slot.index] == (
                    call.nodes[source[1]],
                    source[2],
                )
            else:
                values: tuple[Any, ...] = call.nodes[source[1]].call.values
                right = source[2] < len(values) and leaf is values[source[2]]
            if not right:
                return False
        return True


def _told(leaf: Any) -> Any:
    """What of an argument must be the same for calls to be alike, as far as that can be hashed."""
    if type(leaf) is Placeholder:
        return leaf._slot.spec.key()
    if isinstance(leaf, native.EagerTensor):
        return leaf._datatype_enum(), leaf._shape_tuple()
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.char, leaf.shape
    return type(leaf), leaf if type(leaf) in (bool, int, str) else None  # no code of the program's is asked


def _kept(step: Step) -> Iterator[tuple[Node, int, int, Any]]:
    """What gradients of other blocks refer to of a step (`_Stretch.kept`)."""
    checks = list(flat_checks(step))
    for what in step.needed:
        if what >= 0:
            yield step.node, what, LOCAL, step.base + what
        elif -1 - what < len(checks):
            code, which = checks[-1 - what][:2]
            if code in (LOCAL, KNOWN, PARAM, FEED):
                yield step.node, what, PARAM if code == FEED else code, which


def _work(node: Node) -> Any:
    """What a node does, wherever it stands: op, attributes, dtypes and shapes, variables."""
    _, form, variables, _ = node.base
    return node.call.op, form, variables


def _same_value(tensor: Any, value: Any) -> bool:
    """Whether a tensor holds what a tensor, an array or a number would be converted to."""
    other = native.as_tensor(value, native.dtype_of(tensor._datatype_enum()))
    mine, yours = native.host_value(tensor), native.host_value(other)
    return mine.shape == yours.shape and mine.tobytes() == yours.tobytes()


def _equal(one: Any, other: Any) -> bool:
    return isinstance(one, (int, float, str, bool)) and bool(one == other)


def _wanted(call: LibraryCall, index: int, count: int) -> set[tuple[int, int]]:
    """The outputs of the ops of a stretch that its results or later stretches mention."""
    wanted = {(source[1], source[2]) for source in call.results if source[0] == "in"}
    wanted |= {
        (source[1], source[2])
        for sources in call.wiring[index + count :]
        for source in sources
        if source[0] == "in"
    }
    return wanted

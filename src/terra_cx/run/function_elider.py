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

import numpy as np

from terra_cx.compile.blocks import FEED, LIST, LOCAL, PARAM, RESOURCE, Check, Step
from terra_cx.elide.calls import is_conversion, is_telling
from terra_cx.elide.functions import Function
from terra_cx.run.block_run import BlockRun, Frozen
from terra_cx.run.checks import admits, flat_checks
from terra_cx.run.elisions import Elisions, to_be_compared
from terra_cx.tf import native
from terra_cx.tf.native import REAL, DType, EagerTensor, TensorShape
from terra_cx.tf.opdefs import SHAPE_OPS, Kind
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
_KINDS = (Kind.PURE, Kind.READ, Kind.KNOWN)
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, DType, TensorShape, type(Ellipsis)})
"""Python values that decide by what they are equal to; NumPy's scalars likewise."""
_SEQUENCES = (list, tuple)
_MOST_VALUES = 256
"""Elements of a tensor that is compared by value."""
_tapes_empty = REAL["TFE_Py_TapeSetIsEmpty"]
_tapes_stopped = REAL["TFE_Py_TapeSetIsStopped"]


@dataclass(slots=True, eq=False)
class _Known:
    """What a call at one place does.

    Arguments are numbered as `_flat` lists them. ``checked`` are tensors with the checks that they must pass, or with
    the dtype and shape that they must have; ``valued`` real ones that no op takes, so that their values may decide;
    ``converted`` arrays and numbers that are made tensors first; ``equal`` is what an argument must be equal to,
    ``same`` which variable it must be, ``again`` which earlier argument. ``fixed`` are the call's own constants with
    their checks. ``results`` are flat outputs of the run, or tensors that are known.
    """

    function: Function
    structure: Any
    ambient: tuple[Any, ...]
    """Of `_ambient`."""
    checked: tuple[tuple[int, tuple[Check, ...], tuple[int, Any]], ...]
    converted: tuple[tuple[int, tuple[Check, ...], Any, Any], ...]
    """(number, checks, `_form`, dtype of the tensor)"""
    fixed: tuple[tuple[Check, Any], ...]
    valued: tuple[tuple[int, Any], ...]
    equal: tuple[tuple[int, Any], ...]
    same: tuple[tuple[int, Any, bool], ...]
    """(number, variable, whether it is trainable)"""
    again: tuple[tuple[int, int], ...]
    steps: tuple[Step, ...]
    accesses: tuple[Any, ...]
    pack: type | None
    results: tuple[Any, ...]
    runs: int = 0

    @property
    def converts_numbers(self) -> bool:
        """Whether numbers may differ from call to call."""
        return any(form is float for _, _, form, _ in self.converted)

    def key(self) -> Any:
        """What must be the same when it is learned again."""
        plain = tuple(result if isinstance(result, int) else id(result) for result in self.results)
        checks = [(number, *map(id, found)) for number, found, _ in self.checked]
        checks += [(number, *map(id, found)) for number, found, _, _ in self.converted]
        fixed = tuple((id(check), _bits(value)) for check, value in self.fixed)
        return (
            tuple(map(id, self.steps)),
            plain,
            self.pack,
            checks,
            fixed,
            self.again,
            tuple(map(id, self.accesses)),
        )


@dataclass(slots=True)
class _Place:
    """The calls of one function that begin at one step."""

    known: list[_Known] = field(default_factory=list)
    failures: int = 0


@dataclass(slots=True)
class _Notes:
    """What happened while a call ran."""

    commits: list[tuple[Step, tuple[Any, ...]]] = field(default_factory=list)
    accesses: list[Any] = field(default_factory=list)
    reads: list[Any] = field(default_factory=list)


class _Unfit(Exception):
    """A call cannot be elided, and why."""


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
        if step is None or self._inside or skeleton.placed() or not native.executing_eagerly():
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
    def _leaves(known: _Known, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments of a call, flat, if it is one like ``known`` as far as they alone can tell."""
        if type(known.structure) is int:  # no keyword, no list: the common case
            if kwargs or len(args) != known.structure:
                return None
            leaves: Any = args
        else:
            leaves, structure = _flat(args, kwargs)
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
            if not _is_same(leaves[number], leaves[earlier]):
                return None
        return leaves

    def _elided(self, known: _Known, leaves: Any) -> list[Any] | None:
        """Commit the ops of a call; its result in a list, None if one does not fit."""
        skeleton = self._skeleton
        run, before, events = skeleton.run, skeleton.position(), len(skeleton.log.events)
        assert run is not None
        skeleton.busy = True
        try:
            if known.ambient != _ambient():
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
                if not checks and _spec(leaf) != spec:
                    return None
            for number, value in known.valued:
                leaf = leaves[number]
                if type(leaf) is not EagerTensor or not same_known(leaf, value):
                    return None
            for number, checks, form, dtype in known.converted:
                if _form(leaves[number]) != form:
                    return None
                leaf = _as_tensor(leaves[number], dtype)
                if leaf is None or not all(admits(run, check, leaf) for check in checks):
                    return None
            for check, value in known.fixed:
                if not admits(run, check, value):
                    return None
            turns: dict[Any, int] = {}
            for step in known.steps:
                if step.needed:
                    skeleton.keep_arguments(run, step)
                if step.computed:
                    base = step.base
                    for index, out in enumerate(step.specs, base):
                        slots[index] = Slot(out, run, index)
                    if step.needed:
                        skeleton.keep_outputs(run, step)
                if step.needed:
                    turns[step.node] = skeleton.log.turns.get(step.node, 0) + 1
            if known.accesses:
                skeleton.accessed(known.accesses)
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
            if skeleton.position() != before:
                raise  # half of the call is done: neither can it be run nor answered
            return None
        finally:
            skeleton.busy = False
        known.runs += 1
        self._elisions.shortened += 1
        if skeleton.sync_errors and any(op.fallible for op in run.block.ops):
            skeleton.dispatch()
            skeleton.drain()
        return answer if known.pack is None else [known.pack(answer)]

    # -- learning and comparing ----------------------------------------------------------------------------------
    def _run(
        self,
        function: Function,
        place: _Place,
        compared: _Known | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a call, and see what it does."""
        skeleton = self._skeleton
        run, log, ambient = skeleton.run, skeleton.log, _ambient()
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
                raise _Unfit  # a block ends in it
            if any(event.what != "access" for event in log.events[events:]) or notes.reads:
                raise _Unfit
            numbers_too = bool(place.known) if compared is None else compared.converts_numbers
            found = _learned(function, run, (args, kwargs), ambient, notes, result, numbers_too)
        except _Unfit:
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

    def _compare(self, place: _Place, known: _Known, found: _Known | None, notes: _Notes) -> None:
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
    def _noting(self) -> Iterator[_Notes]:
        """Note commits, accesses of variables and reads of values."""
        notes, skeleton = _Notes(), self._skeleton
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


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """Arguments in order, lists and slices opened, and what else there is to them."""
    leaves: list[Any] = []
    lists: list[Any] = []
    for arg in (*args, *kwargs.values()):
        _open(arg, leaves, lists)
    if not lists and not kwargs:
        return leaves, len(leaves)
    return leaves, (len(args), tuple(kwargs), tuple(lists), len(leaves))


def _open(arg: Any, leaves: list[Any], lists: list[Any]) -> None:
    if type(arg) in _SEQUENCES:
        lists.append((len(leaves), type(arg), len(arg)))
        for item in arg:
            _open(item, leaves, lists)
    elif type(arg) is slice:
        lists.append((len(leaves), slice, 3))
        leaves += (arg.start, arg.stop, arg.step)
    else:
        leaves.append(arg)


def _ambient() -> tuple[Any, ...]:
    """What functions depend on besides their arguments: tapes, and TensorFlow's switches."""
    return _tapes_empty(), _tapes_stopped(), *native.settings()


def _as_tensor(value: Any, dtype: Any) -> Any:
    """A number or an array as the tensor that TensorFlow makes of it; None if it makes none."""
    try:
        return native.as_tensor(value, dtype)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_same(one: Any, other: Any) -> bool:
    """Whether two arguments are one tensor."""
    return one is other or (
        type(one) is Placeholder and type(other) is Placeholder and one._slot is other._slot
    )


def _spec(tensor: Any) -> tuple[int, Any] | None:
    """Dtype and shape of a tensor whose shape is known."""
    if type(tensor) is Placeholder:
        return tensor._slot.spec.key()
    return (tensor._datatype_enum(), tensor._shape_tuple()) if type(tensor) is EagerTensor else None


def _form(value: Any) -> Any:
    """What must be the same of an argument that is converted: all that its tensor's dtype and shape follow from."""
    return (np.ndarray, value.dtype, value.shape) if type(value) is np.ndarray else type(value)


def _bits(value: Any) -> Any:
    """What a constant is equal by."""
    if type(value) is EagerTensor:
        return value._datatype_enum(), value._shape_tuple(), native.host_value(value).tobytes()
    return type(value), repr(value)


class _Arguments:
    """The arguments of a call that is learned.

    Args:
        leaves: as `_flat` lists them.
        numbers_too: whether numbers are converted, and not compared.

    Raises:
        _Unfit: one of them may decide in a way that cannot be checked.
    """

    def __init__(self, leaves: list[Any], numbers_too: bool) -> None:
        self.checks: dict[int, list[Check]] = {}
        self.equal: list[tuple[int, Any]] = []
        self.same: list[tuple[int, Any, bool]] = []
        self.again: list[tuple[int, int]] = []
        self.arrays: dict[int, Any] = {}
        """Arguments that are converted."""
        self.handles: set[int] = set()
        self._numbers: dict[int, int] = {}
        for number, leaf in enumerate(leaves):
            kind = type(leaf)
            if kind is Placeholder or kind is EagerTensor:
                self._tensor(number, leaf)
            elif native.is_variable(leaf):
                self.same.append((number, leaf, leaf.trainable))
                self.handles.add(id(leaf.handle))
            elif (kind is np.ndarray and is_telling(leaf)) or (kind is float and numbers_too):
                self.arrays[number] = leaf
            elif kind in _PLAIN or isinstance(leaf, np.generic):
                self.equal.append((number, leaf))
            else:
                raise _Unfit

    def _tensor(self, number: int, leaf: Any) -> None:
        spec = _spec(leaf)
        if spec is None or spec[1] is None:
            raise _Unfit
        thing = _thing(leaf)
        if thing in self._numbers:
            self.again.append((number, self._numbers[thing]))
        else:
            self._numbers[thing] = number
            self.checks[number] = []

    def number(self, arg: Any) -> int | None:
        """Which argument an op was given, None if it was none of them."""
        kind = type(arg)
        return self._numbers.get(_thing(arg)) if kind is Placeholder or kind is EagerTensor else None

    def valued(self, leaves: list[Any]) -> tuple[tuple[int, Any], ...]:
        """Real tensors that no op takes: NumPy reads values without being noticed (``tf.nn.atrous_conv2d``'s rate)."""
        found = [
            (n, leaves[n])
            for n, checks in self.checks.items()
            if not checks and type(leaves[n]) is EagerTensor
        ]
        if any(np.prod(tensor._shape_tuple()) > _MOST_VALUES for _, tensor in found):
            raise _Unfit
        return tuple(found)

    def converted(
        self, inside: dict[int, tuple[Any, list[Check]]]
    ) -> tuple[tuple[int, tuple[Check, ...], Any, Any], ...]:
        """Find the arrays in what the call has made; what is found is taken out.

        Args:
            inside: the tensors that the ops were given and that nobody passed, by `id`, with their checks.
        """
        found = []
        for number, value in self.arrays.items():
            fitting = [key for key, (tensor, _) in inside.items() if is_conversion(value, tensor)]
            if len(fitting) != 1:
                raise _Unfit
            tensor, checks = inside.pop(fitting[0])
            found.append((number, tuple(checks), _form(value), native.dtype_of(tensor._datatype_enum())))
        return tuple(found)


def _thing(tensor: Any) -> int:
    return id(tensor._slot) if type(tensor) is Placeholder else id(tensor)


def _learned(
    function: Function,
    run: BlockRun,
    given: tuple[tuple[Any, ...], dict[str, Any]],
    ambient: tuple[Any, ...],
    notes: _Notes,
    result: Any,
    numbers_too: bool,
) -> _Known:
    """What a call has done, for the next one.

    Args:
        function: what was called.
        run: the open run, of which its ops are part.
        given: its arguments.
        ambient: what it depended on besides (`_ambient`).
        notes: what happened meanwhile.
        result: what it returned.
        numbers_too: whether numbers may differ each time, because another call with another one was learned before.

    Raises:
        _Unfit: it cannot be elided.
    """
    leaves, structure = _flat(*given)
    arguments = _Arguments(leaves, numbers_too and function.is_operator)
    made: set[int] = set()
    """Flat outputs of the call's ops."""
    inside: dict[int, tuple[Any, list[Check]]] = {}
    raw: list[tuple[Check, Any]] = []
    if not notes.commits:
        raise _Unfit
    for step, args in notes.commits:
        if step.kind not in _KINDS or (step.kind is not Kind.KNOWN and not step.computed):
            raise _Unfit
        if step.op in SHAPE_OPS and any(
            spec is None or spec.shape is None for spec in step.node.call.input_specs
        ):
            raise _Unfit
        for check, arg in zip(flat_checks(step), _flat_inputs(step, args), strict=True):
            number = arguments.number(arg)
            if number is not None:
                arguments.checks[number].append(check)
            elif check[0] == LOCAL:
                if check[1] not in made:
                    raise _Unfit
            elif check[0] == RESOURCE:
                if id(check[1]) not in arguments.handles:
                    raise _Unfit
            elif type(arg) is EagerTensor:
                inside.setdefault(id(arg), (arg, []))[1].append(check)
            elif type(arg) is Placeholder:
                raise _Unfit
            else:
                raw.append((check, arg))
        if step.computed:
            made.update(range(step.base, step.base + len(step.specs)))
    converted = arguments.converted(inside)
    valued = arguments.valued(leaves)
    fixed = [(check, tensor) for tensor, checks in inside.values() for check in checks] + raw
    pack = type(result) if type(result) in _SEQUENCES else None
    known = {id(value): value for step, _ in notes.commits for value in step.values}
    return _Known(
        function=function,
        structure=structure,
        ambient=ambient,
        checked=tuple((n, tuple(found), _spec(leaves[n])) for n, found in arguments.checks.items()),  # type: ignore[misc]
        valued=valued,
        converted=converted,
        fixed=tuple((check, value) for check, value in fixed if check[0] in (PARAM, FEED)),
        equal=tuple(arguments.equal),
        same=tuple(arguments.same),
        again=tuple(arguments.again),
        steps=tuple(step for step, _ in notes.commits),
        accesses=tuple(notes.accesses),
        pack=pack,
        results=tuple(_result(item, run, made, known) for item in (result if pack else (result,))),
    )


def _result(item: Any, run: BlockRun, made: set[int], known: dict[int, Any]) -> Any:
    if type(item) is Placeholder and item._slot.run is run and item._slot.index in made:
        if vars(item):
            raise _Unfit  # a slice of a variable can be assigned to
        return item._slot.index
    if id(item) in known:
        return item
    raise _Unfit


def _flat_inputs(step: Step, given: tuple[Any, ...]) -> list[Any]:
    """The inputs of an op as it was called, lists opened as `flat_checks` opens them."""
    inputs = given[: step.width] if step.form == "F" else given[0]
    flat: list[Any] = []
    for check, arg in zip(step.checks, inputs, strict=True):
        if check[0] == LIST:
            flat.extend(arg)
        else:
            flat.append(arg)
    return flat

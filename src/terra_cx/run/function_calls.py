"""A call of a function of TensorFlow's, as it was seen to run: what it depends on, and what it does.

`learned` takes it from the steps that the skeleton committed while the call ran (`run.function_elider`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from terra_cx.compile.blocks import CONST, FEED, KNOWN, LOCAL, PARAM, RESOURCE, Check, Step
from terra_cx.elide.calls import is_conversion, is_telling
from terra_cx.elide.functions import Function
from terra_cx.run.block_run import BlockRun
from terra_cx.run.checks import flat_checks, flat_inputs
from terra_cx.tf import native, seeds
from terra_cx.tf.native import DType, EagerTensor, TensorShape
from terra_cx.tf.opdefs import PLAIN_DRAWS, SHAPE_OPS, Kind
from terra_cx.tf.placeholder import Placeholder

__all__ = [
    "Drawing",
    "FunctionCall",
    "Notes",
    "Unfit",
    "as_tensor",
    "flat",
    "form_of",
    "is_drawn",
    "is_same",
    "learned",
    "spec_of",
]

_KINDS = (Kind.PURE, Kind.READ, Kind.KNOWN)
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, DType, TensorShape, type(Ellipsis)})
"""Python values that decide by what they are equal to; NumPy's scalars likewise."""
_SEQUENCES = (list, tuple)
_MOST_VALUES = 256
"""Elements of a tensor that is compared by value."""


@dataclass(slots=True, eq=False)
class Drawing:
    """A stateful random op of a call: its step, its name, the arguments that it was given."""

    step: Step
    name: Any
    args: tuple[Any, ...]
    seeded: bool = True
    """Whether its seeds are the same each time, and not the next that TensorFlow gives (`tf.seeds.next_seeds`)."""
    places: tuple[int, int] = (0, 0)
    """Where among the arguments its seeds are."""

    def __post_init__(self) -> None:
        width = self.step.width
        names = self.args[width::2]
        self.places = (width + 1 + 2 * names.index("seed"), width + 1 + 2 * names.index("seed2"))

    @property
    def seeds(self) -> tuple[Any, Any]:
        """Those that it was given."""
        first, second = self.places
        return self.args[first], self.args[second]

    def key(self) -> Any:
        """What must be the same when the call is learned again."""
        free = () if self.seeded else self.places
        bits = [None if place in free else _bits(arg) for place, arg in enumerate(self.args)]
        return id(self.step), self.name, self.seeded, bits


@dataclass(slots=True, eq=False)
class FunctionCall:
    """What a call at one place does.

    Arguments are numbered as `flat` lists them. ``checked`` are tensors with the checks that they must pass, or with
    the dtype and shape that they must have; ``valued`` real ones that no op takes, so that their values may decide;
    ``converted`` arrays and numbers that are made tensors first; ``equal`` is what an argument must be equal to,
    ``same`` which variable it must be, ``again`` which earlier argument. ``fixed`` are the call's own constants with
    their checks. ``results`` are flat outputs of the run, or what is known; ``pack`` says how they are returned.
    """

    function: Function
    structure: Any
    ambient: tuple[Any, ...]
    """Of `tf.native.surroundings`."""
    checked: tuple[tuple[int, tuple[Check, ...], tuple[int, Any]], ...]
    converted: tuple[tuple[int, tuple[Check, ...], Any, Any], ...]
    """(number, checks, `form_of`, dtype of the tensor)"""
    fixed: tuple[tuple[Check, Any], ...]
    valued: tuple[tuple[int, Any], ...]
    equal: tuple[tuple[int, Any], ...]
    same: tuple[tuple[int, Any, bool], ...]
    """(number, variable, whether it is trainable)"""
    again: tuple[tuple[int, int], ...]
    steps: tuple[Step, ...]
    accesses: tuple[Any, ...]
    pauses: tuple[tuple[int, str], ...]
    """As `Notes.pauses`."""
    pack: Any
    """The number of a result, or the type of a list and the packs in it."""
    results: tuple[Any, ...]
    draws: tuple[Drawing, ...] = ()
    seed: Any = None
    """If it draws, the global seed that there was."""
    handles: tuple[Any, ...] = ()
    """Of the variables in ``accesses``, which have them for life."""
    runs: int = 0
    due: int = 0
    """How many runs there are when the call is to be compared again."""
    answer: Any = None
    """Its code (`run.call_code`), as of the time at which so many blocks were ``built``."""
    built: int = -1

    def __post_init__(self) -> None:
        self.handles = tuple(variable.handle for variable in self.accesses)

    @property
    def converts_numbers(self) -> bool:
        """Whether numbers may differ from call to call."""
        return any(form is float for _, _, form, _ in self.converted)

    def is_like(self, other: FunctionCall) -> bool:
        """Whether the call did the same, when it was learned again.

        Two arguments may be one tensor in one of them, and two in the other, where the ops take both. Then it is not
        asked which argument each op was given, for that is counted otherwise; the ops' own checks tell.
        """
        checks = self.again == other.again
        return bool(self._key(checks) == other._key(checks))

    def _key(self, checks: bool) -> Any:
        plain = tuple(result if isinstance(result, int) else id(result) for result in self.results)
        taken = [(number, *map(id, found)) for number, found, _ in self.checked]
        taken += [(number, *map(id, found)) for number, found, _, _ in self.converted]
        fixed = tuple((id(check), _bits(value)) for check, value in self.fixed)
        return (
            tuple(map(id, self.steps)),
            plain,
            self.pack,
            taken if checks else None,
            fixed,
            tuple(map(id, self.accesses)),
            self.pauses,
            [draw.key() for draw in self.draws],
            self.seed,
        )


@dataclass(slots=True)
class Notes:
    """What happened while a call ran."""

    commits: list[tuple[Step, tuple[Any, ...]]] = field(default_factory=list)
    accesses: list[Any] = field(default_factory=list)
    reads: list[Any] = field(default_factory=list)
    pauses: tuple[tuple[int, str], ...] = ()
    """As `elide.calls.pauses` tells."""
    draws: list[Drawing] = field(default_factory=list)
    stood: Any = None
    """Where TensorFlow's generator of seeds stood before the call."""


class Unfit(Exception):
    """A call cannot be elided, and why."""


def is_drawn(step: Step) -> bool:
    """Whether a step is a random op that may be part of such a call."""
    return step.kind is Kind.DRAW and step.op in PLAIN_DRAWS and step.form == "F"


def flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
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


def as_tensor(value: Any, dtype: Any) -> Any:
    """A number or an array as the tensor that TensorFlow makes of it; None if it makes none."""
    try:
        return native.as_tensor(value, dtype)
    except (TypeError, ValueError, OverflowError):
        return None


def is_same(one: Any, other: Any) -> bool:
    """Whether two arguments are one tensor."""
    return one is other or (
        type(one) is Placeholder and type(other) is Placeholder and one._slot is other._slot
    )


def spec_of(tensor: Any) -> tuple[int, Any] | None:
    """Dtype and shape of a tensor whose shape is known."""
    if type(tensor) is Placeholder:
        return tensor._slot.spec.key()
    return (tensor._datatype_enum(), tensor._shape_tuple()) if type(tensor) is EagerTensor else None


def form_of(value: Any) -> Any:
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
        leaves: as `flat` lists them.
        numbers_too: whether numbers are converted, and not compared.

    Raises:
        Unfit: one of them may decide in a way that cannot be checked.
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
            elif native.is_plain_variable(leaf):
                self.same.append((number, leaf, leaf.trainable))
                self.handles.add(id(leaf.handle))
            elif (kind is np.ndarray and is_telling(leaf)) or (kind is float and numbers_too):
                self.arrays[number] = leaf
            elif kind in _PLAIN or isinstance(leaf, np.generic):
                self.equal.append((number, leaf))
            else:
                raise Unfit

    def _tensor(self, number: int, leaf: Any) -> None:
        spec = spec_of(leaf)
        if spec is None or spec[1] is None:
            raise Unfit
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
            raise Unfit
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
                raise Unfit
            tensor, checks = inside.pop(fitting[0])
            found.append((number, tuple(checks), form_of(value), native.dtype_of(tensor._datatype_enum())))
        return tuple(found)


def _thing(tensor: Any) -> int:
    return id(tensor._slot) if type(tensor) is Placeholder else id(tensor)


def learned(
    function: Function,
    run: BlockRun,
    given: tuple[tuple[Any, ...], dict[str, Any]],
    around: tuple[Any, ...],
    notes: Notes,
    result: Any,
    numbers_too: bool,
) -> FunctionCall:
    """What a call has done, for the next one.

    Args:
        function: what was called.
        run: the open run, of which its ops are part.
        given: its arguments.
        around: what it depended on besides (`tf.native.surroundings`).
        notes: what happened meanwhile.
        result: what it returned.
        numbers_too: whether numbers may differ each time, because another call with another one was learned before.

    Raises:
        Unfit: it cannot be elided.
    """
    leaves, structure = flat(*given)
    arguments = _Arguments(leaves, numbers_too and function.is_operator)
    made: set[int] = set()
    """Flat outputs of the call's ops."""
    inside: dict[int, tuple[Any, list[Check]]] = {}
    raw: list[tuple[Check, Any]] = []
    if not notes.commits or (notes.pauses and notes.accesses):  # was it told while recording was stopped?
        raise Unfit
    for step, args in notes.commits:
        draws = is_drawn(step)
        if not draws and (step.kind not in _KINDS or (step.kind is not Kind.KNOWN and not step.computed)):
            raise Unfit
        if draws and not all(check[0] in (KNOWN, CONST) for check in flat_checks(step)):
            raise Unfit  # bounds and sizes that may be others each time (of a relaxed graph)
        if step.device != around[-1]:
            raise Unfit  # it opens a device scope of its own, which may be that of an argument
        if step.relaxed or (run.block.relaxed and step.op in SHAPE_OPS):
            raise Unfit
        if step.op in SHAPE_OPS and any(
            spec is None or spec.shape is None for spec in step.node.call.input_specs
        ):
            raise Unfit
        for check, arg in zip(flat_checks(step), flat_inputs(step, args), strict=True):
            number = arguments.number(arg)
            if number is not None:
                arguments.checks[number].append(check)
            elif check[0] == LOCAL:
                if check[1] not in made:
                    raise Unfit
            elif check[0] == RESOURCE:
                if id(check[1]) not in arguments.handles:
                    raise Unfit
            elif type(arg) is EagerTensor:
                inside.setdefault(id(arg), (arg, []))[1].append(check)
            elif type(arg) is Placeholder:
                raise Unfit
            else:
                raw.append((check, arg))
        if step.kind is not Kind.KNOWN:
            made.update(range(step.base, step.base + len(step.specs)))
    converted = arguments.converted(inside)
    valued = arguments.valued(leaves)
    fixed = [(check, tensor) for tensor, checks in inside.values() for check in checks] + raw
    _tell_seeds(notes)
    results: list[Any] = []
    pack = _packed(result, results)
    known = {id(value): value for step, _ in notes.commits for value in step.values}
    return FunctionCall(
        function=function,
        structure=structure,
        ambient=around,
        checked=tuple((n, tuple(found), spec_of(leaves[n])) for n, found in arguments.checks.items()),  # type: ignore[misc]
        valued=valued,
        converted=converted,
        fixed=tuple((check, value) for check, value in fixed if check[0] in (PARAM, FEED)),
        equal=tuple(arguments.equal),
        same=tuple(arguments.same),
        again=tuple(arguments.again),
        steps=tuple(step for step, _ in notes.commits),
        accesses=tuple(notes.accesses),
        pauses=notes.pauses,
        draws=tuple(notes.draws),
        seed=seeds.global_seed() if notes.draws else None,
        pack=pack,
        results=tuple(_result(item, run, made, known) for item in results),
    )


def _tell_seeds(notes: Notes) -> None:
    """Tell draws whose seeds are their own from those that were given the next ones; all of a call are alike.

    Raises:
        Unfit: they are not; or the generator was asked by something that is no draw.
    """
    if notes.draws and type(seeds.global_seed()) not in (int, type(None)):
        raise Unfit
    if seeds.state() == notes.stood:
        return
    if not notes.draws or not seeds.are_next(notes.stood, [draw.seeds for draw in notes.draws]):
        raise Unfit
    for draw in notes.draws:
        draw.seeded = False


def _packed(value: Any, results: list[Any]) -> Any:
    """How a result is put together of what is added to ``results``."""
    if type(value) in _SEQUENCES:
        return type(value), [_packed(item, results) for item in value]
    results.append(value)
    return len(results) - 1


def _result(item: Any, run: BlockRun, made: set[int], known: dict[int, Any]) -> Any:
    if type(item) is Placeholder and item._slot.run is run and item._slot.index in made:
        if vars(item):
            raise Unfit  # a slice of a variable can be assigned to
        return item._slot.index
    if item is None or id(item) in known:
        return item
    raise Unfit

"""From a block's flat ops to a TensorFlow function, with the order that makes the block a transaction.

Order inside a block, by control edges:

* every op that may fail comes before every variable write, so a failed block changed nothing;
* a write that may itself be refused comes before all other writes, for the same reason;
* whether a write of rows names one that is out of bounds is asked by an op of its own (`GraphBuilder.bounds`), which
  may fail: the write itself would fail when the rows before that one are written;
* a write follows all earlier reads and writes of its variable; a read follows the last write of its variable.

Where that order contradicts the program's (an op that may fail depends on a write, a second write may be refused) or
that of the random draws, which are made before the block, the block has to end (`blocks.Cut`).

In a relaxed block (`trace.tracegraph`) inference knows patterns only. There the skeleton works out the shapes of each
run (`run.true_shapes`), holds them against the nodes' patterns, and diverges where they are others. So the graph is
told the patterns, and what inference cannot tell about sizes makes no op fallible: they were validated.

Shape inference on the graph, with guarded values as constants, decides which output shapes a placeholder may claim,
and with the guards which ops may fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from terra_cx.compile.blocks import Block, Cut, FlatOp, Step
from terra_cx.compile.folding import Folding
from terra_cx.levels import Level
from terra_cx.tf.graphs import CompiledFunction, GraphBuilder, known_to_xla
from terra_cx.tf.opdefs import DISCRETE, Kind, fallible, row_indices

__all__ = ["CUTS", "Lowered", "Prepared", "function_at", "function_of", "lower", "prepare"]

_LATE_DRAW = "a draw follows an op that may fail"
_LATE_GRADIENT = "a gradient follows an effect's result"
_LATE_WRITE = "a write that may be refused follows another"
_TAINTED = "an effect's result feeds a fallible op"
CUTS = frozenset({_LATE_DRAW, _LATE_GRADIENT, _LATE_WRITE, _TAINTED})
"""Why lowering ends a block."""


class Lowered:
    """A block's graph: a symbol per flat output, and the operations that must run even if nothing reads them."""

    def __init__(
        self, builder: GraphBuilder, symbols: dict[int, Any], control: list[Any], whole: bool
    ) -> None:
        self.builder = builder
        self.symbols = symbols
        self.control = control
        self.whole = whole
        """Whether XLA is to compile all of it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What lowering has told of a block in another process.

    ``unknown`` are the flat outputs whose shape only the value tells, ``fallible`` has an entry per flat op. ``load``
    makes the function that returns ``outputs``; it raises ValueError if that is not possible.
    """

    unknown: frozenset[int]
    fallible: tuple[bool, ...]
    barriers: bool
    outputs: frozenset[int]
    load: Callable[[], CompiledFunction]


def prepare(block: Block, prepared: Prepared) -> None:
    """As `lower`, by what is known; the graph itself is built when it is needed."""
    for step in block.steps:
        for index, spec in enumerate(step.specs):
            if step.base + index in prepared.unknown:
                spec.shape = None
    for op, may_fail in zip(block.ops, prepared.fallible, strict=True):
        op.fallible = may_fail
    block.barriers, block.outputs, block.prepared = prepared.barriers, prepared.outputs, prepared
    block.first_fallible = next((index for index, op in enumerate(block.ops) if op.fallible), None)


def lower(block: Block) -> None:
    """Build the block's graph; set ``block.lowered``, the shapes that its steps may claim, and which ops may fail.

    A shape that inference cannot tell becomes None in the step's spec: the placeholder learns it by a fetch, if asked.
    A block that cannot be lowered is marked ``eager`` with the reason and runs op by op.

    Raises:
        Cut: the block must be shorter.
    """
    try:
        lowered = _lower(block)
        _claim_shapes(block, lowered)
        block.lowered = lowered
    except Cut:
        raise
    except Exception as error:  # noqa: BLE001  # any op that graph mode refuses: the block still runs, op by op, and says why
        block.eager = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        for op in block.ops:
            op.fallible = op.op != "ReadVariableOp"  # no shape is known
        for step in block.steps:
            step.relaxed = False
            for spec in step.specs:
                if step.kind in (Kind.PURE, Kind.READ, Kind.GRADIENT) or spec.open:
                    spec.shape = None
    block.first_fallible = next((index for index, op in enumerate(block.ops) if op.fallible), None)


def _lower(block: Block, level: Level = Level.EXACT) -> Lowered:
    builder = GraphBuilder(block.barriers and level is Level.EXACT, level)
    for_xla = []
    feeds = [builder.feed(spec) for spec in block.params]
    symbols: dict[int, Any] = {}
    for flat, param in block.draws.items():
        symbols[flat] = feeds[param]
    order = _Order()
    folding = Folding(builder)
    validated = {id(symbol) for symbol in feeds}
    """Symbols whose shape is known whenever the block runs, though not here."""
    for step in block.steps:
        if block.relaxed and step.kind is Kind.DRAW:
            step.relaxed = any(spec.open for spec in step.specs) and not step.node.untold
            if step.node.untold:
                for spec in step.specs:
                    spec.shape = None
        try:
            if step.kind is Kind.DRAW:
                order.draw()
            elif step.kind is Kind.GRADIENT:
                order.gradient()
            for op in block.ops[slice(*step.ops)]:
                inputs = [_input(builder, source, symbols, feeds) for source in op.inputs]
                rows = row_indices(op.op)
                if rows is not None:
                    nested = "ScatterNd" in op.op
                    order.check(
                        op.inputs[rows], builder.bounds(op.inputs[0][1], inputs[rows], nested, op.device)
                    )
                after = order.before(op)
                operation, outputs, again = folding.op(op, inputs, after)
                for index, symbol in enumerate(outputs):
                    symbols[op.base + index] = symbol
                if level is Level.EXACT:
                    step.symbol = operation
                    told = block.relaxed and _relax(step, op, inputs, outputs, validated)
                    may_fail = _may_fail(op, inputs, outputs, builder, told)
                    op.fallible = may_fail or rows is not None
                    op.refusable = may_fail and op.kind is Kind.WRITE
                if level is Level.XLA and not op.fallible and not op.device and known_to_xla(operation):
                    for_xla.append(operation)
                order.add(op, operation, again)
        except _Contradiction as why:
            raise _cut(block, step, str(why)) from None
    if level is Level.XLA and not for_xla:
        raise ValueError("none of its ops can be compiled")
    whole = len(for_xla) == len(block.ops)
    for operation in () if whole else for_xla:
        builder.cluster(operation)
    return Lowered(builder, symbols, order.finish(), whole)


class _Contradiction(Exception):
    """The transaction's order contradicts the program's."""


def _cut(block: Block, step: Step, reason: str) -> Exception:
    # A gradient that contradicts itself cannot be divided.
    return Cut(step.node, reason) if step is not block.steps[0] else ValueError(f"{step.op}: {reason}")


class _Order:
    """The control edges of the ops added so far."""

    def __init__(self) -> None:
        self._writes: list[Any] = []
        self._fallible: list[Any] = []
        self._refusable: Any = None
        """The first write, if it may be refused."""
        self._last_write: dict[int, Any] = {}
        self._reads: dict[int, list[Any]] = {}
        self._tainted: set[int] = set()
        """Flat outputs that depend on a write."""

    @staticmethod
    def _handles(op: FlatOp) -> set[int]:
        return {id(source[1]) for source in op.inputs if source[0] == "r"}

    def before(self, op: FlatOp) -> list[Any]:
        """What must come before ``op`` whether it may fail or not."""
        after: list[Any] = []
        for handle in self._handles(op):
            if handle in self._last_write:
                after.append(self._last_write[handle])
            if op.kind is Kind.WRITE:
                after.extend(self._reads.get(handle, ()))
        if op.kind is Kind.WRITE and self._refusable is not None:
            after.append(self._refusable)
        return after

    def draw(self) -> None:
        """A random draw: made before the block, so an op that fails before it would have drawn too much."""
        if self._fallible or self._refusable is not None:
            raise _Contradiction(_LATE_DRAW)

    def gradient(self) -> None:
        """A gradient: it would be allowed where none of its ops that may fail depends on an effect.

        That was tried: a GAN's two updates became one block, whose set of outputs went on growing (40 variants in 150
        steps instead of 16, each compiled and verified).
        """
        if self._tainted:
            raise _Contradiction(_LATE_GRADIENT)

    def check(self, source: tuple[Any, ...], operation: Any) -> None:
        """An op that may fail, if what is in ``source`` is not as the next write wants it."""
        if source[0] == "l" and source[1] in self._tainted:
            raise _Contradiction(_TAINTED)
        self._fallible.append(operation)

    def add(self, op: FlatOp, operation: Any, again: bool) -> None:
        """Note an op that has been put into the graph, by itself or ``again`` as one that is there (`Folding`)."""
        handles = self._handles(op)
        if op.kind is Kind.WRITE:
            if op.refusable:
                if self._writes:
                    raise _Contradiction(_LATE_WRITE)
                self._refusable = operation
            self._writes.append(operation)
            for handle in handles:
                self._last_write[handle] = operation
                self._reads[handle] = []
            return
        op.tainted = any(s[0] == "l" and s[1] in self._tainted for s in op.inputs) or any(
            handle in self._last_write for handle in handles
        )
        if op.tainted:
            if op.fallible:
                raise _Contradiction(_TAINTED)
            self._tainted.update(range(op.base, op.base + len(op.specs)))
        if again:
            return
        for handle in handles:
            self._reads.setdefault(handle, []).append(operation)
        if op.fallible:
            self._fallible.append(operation)

    def finish(self) -> list[Any]:
        """Order the writes after all that may fail; what must run even if nobody reads it."""
        for write in self._writes:
            write._add_control_inputs([op for op in self._fallible if op not in write.control_inputs])
        return [*self._writes, *self._fallible]


def _relax(step: Step, op: FlatOp, inputs: list[Any], outputs: list[Any], validated: set[int]) -> bool:
    """Whether the shapes of an op of a relaxed block are validated in each run; if so, tell the graph what is known."""
    static = [GraphBuilder.static_shape(symbol) for symbol in (*inputs, *outputs)]
    if None not in static and static[len(inputs) :] == [spec.shape for spec in op.specs]:
        return True
    if op.kind is Kind.WRITE or op.op == "ReadVariableOp" or step.node.untold:
        return False
    if not all(
        shape is not None or id(symbol) in validated for symbol, shape in zip(inputs, static, strict=False)
    ):
        return False
    if not all(
        symbol.shape.is_compatible_with(spec.shape) for symbol, spec in zip(outputs, op.specs, strict=True)
    ):
        return False  # the kernel gives another shape than inference (FusedBatchNormGradV3)
    for symbol, spec in zip(outputs, op.specs, strict=True):
        symbol.set_shape(spec.shape)
    step.relaxed = True
    validated.update(map(id, outputs))
    return True


def _may_fail(
    op: FlatOp, inputs: list[Any], outputs: list[Any], builder: GraphBuilder, told: bool = False
) -> bool:
    if op.op == "ReadVariableOp":
        return False
    # The inputs' shapes too: a vector of unknown length added to one of three has three elements, if it is not refused.
    static = told or all(builder.static_shape(symbol) is not None for symbol in (*inputs, *outputs))
    if op.kind is Kind.WRITE:
        # Writes compare the value's shape with the variable's, which is fixed if it was given in full.
        return not static or not all(builder.fixed(source[1]) for source in op.inputs if source[0] == "r")
    guarded = tuple(
        source[0] in ("k", "c") or builder.is_known(symbol)
        for source, symbol in zip(op.inputs, inputs, strict=True)
    )
    return fallible(op.op, tuple(symbol.dtype.as_datatype_enum for symbol in inputs), static, guarded)


def _input(builder: GraphBuilder, source: tuple[Any, ...], symbols: dict[int, Any], feeds: list[Any]) -> Any:
    what = source[0]
    if what == "l":
        return symbols[source[1]]
    if what == "p":
        return feeds[source[1]]
    if what == "k":
        tensor = source[1]
        if tensor._datatype_enum() in DISCRETE or tensor._shape_tuple() == ():
            return builder.const(tensor)
        return builder.capture(tensor)
    if what == "r":
        return builder.capture(source[1])
    return builder.raw(source[1], source[2])


def _claim_shapes(block: Block, lowered: Lowered) -> None:
    builder, symbols = lowered.builder, lowered.symbols
    for step in block.steps:
        if step.kind not in (Kind.PURE, Kind.READ, Kind.GRADIENT):
            continue
        for index, spec in enumerate(step.specs):
            symbol = symbols.get(step.base + index)
            if symbol is None or step.relaxed:
                continue
            if builder.static_shape(symbol) != spec.shape:
                # Not known; or not what the kernel gives, as with the empty outputs of FusedBatchNormGradV3.
                spec.shape = None


def function_of(block: Block, outputs: frozenset[int]) -> CompiledFunction:
    """The compiled function of ``block`` that returns ``outputs`` (flat, in ascending order), made on first use."""
    made: CompiledFunction | None = block.variants.get(outputs)
    prepared: Prepared | None = block.prepared
    if made is None and prepared is not None and prepared.outputs == outputs:
        try:
            made = block.variants[outputs] = prepared.load()
        except ValueError:
            block.prepared = None  # it is made here
    if made is None:
        if block.lowered is None:
            block.lowered = _lower(block)
        lowered: Lowered = block.lowered
        symbols = [lowered.symbols[flat] for flat in sorted(outputs)]
        made = lowered.builder.finish(symbols, lowered.control)
        block.variants[outputs] = made
    return made


def function_at(block: Block, outputs: frozenset[int], level: Level) -> CompiledFunction:
    """As `function_of`, at a level above `exact`; it is made anew and not kept among the variants.

    Raises:
        ValueError: none of the ops can be compiled at that level.
        Exception: whatever TensorFlow refuses while the graph is made.
    """
    form = block.forms.get(level)
    if form is None:
        form = block.forms[level] = _lower(block, level)
    made: CompiledFunction = form.builder.finish(
        [form.symbols[flat] for flat in sorted(outputs)], form.control, form.whole
    )
    return made

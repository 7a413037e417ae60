"""From a block's flat ops to a TensorFlow function, with the order that makes the block a transaction.

Order inside a block, by control edges:

* every op that may fail comes before every variable write (through one ``NoOp``), so a failed block changed nothing;
* a write follows all earlier reads and writes of its variable; a read follows the last write of its variable.

Shape inference on the graph, with guarded values as constants, decides which output shapes a placeholder may claim.
"""

from __future__ import annotations

from typing import Any

from terra_cx.compile.blocks import Block, FlatOp
from terra_cx.tf.graphs import CompiledFunction, GraphBuilder
from terra_cx.tf.opdefs import Kind

__all__ = ["Lowered", "function_of", "lower"]

_INTEGERS = frozenset({3, 9, 10, 6, 4, 5, 17, 22, 23})


class Lowered:
    """A block's graph: a symbol per flat output, and the operations that must run even if nothing reads them."""

    def __init__(self, builder: GraphBuilder, symbols: dict[int, Any], control: list[Any]) -> None:
        self.builder = builder
        self.symbols = symbols
        self.control = control


def lower(block: Block) -> None:
    """Build the block's graph; set ``block.lowered`` and the shapes that its steps may claim.

    A shape that inference cannot tell becomes None in the step's spec: the placeholder learns it by a fetch, if asked.
    A block that cannot be lowered is marked ``eager`` with the reason and runs op by op.
    """
    try:
        lowered = _lower(block)
        _claim_shapes(block, lowered)
        block.lowered = lowered
    except Exception as error:  # noqa: BLE001  # any op that graph mode refuses: the block still runs, op by op, and says why
        block.eager = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        for step in block.steps:
            if step.kind in (Kind.PURE, Kind.READ, Kind.GRADIENT):
                for spec in step.specs:
                    spec.shape = None


def _lower(block: Block) -> Lowered:
    builder = GraphBuilder(block.barriers)
    feeds = [builder.feed(spec) for spec in block.params]
    symbols: dict[int, Any] = {}
    for flat, param in block.draws.items():
        symbols[flat] = feeds[param]
    control: list[Any] = []
    last_write: dict[int, Any] = {}
    reads: dict[int, list[Any]] = {}
    fallible: list[Any] = []
    writes = [op for op in block.ops if op.kind is Kind.WRITE]
    operations: dict[int, Any] = {}
    # Writes are added in program order with the others; edges from *later* fallible ops are added below.
    for op in block.ops:
        inputs = [_input(builder, source, symbols, feeds) for source in op.inputs]
        handles = {id(source[1]) for source in op.inputs if source[0] == "r"}
        after: list[Any] = []
        for handle in handles:
            if handle in last_write:
                after.append(last_write[handle])
            if op.kind is Kind.WRITE:
                after.extend(reads.get(handle, ()))
        operation, outputs = builder.op(op.op, op.form, op.attrs, op.layout, inputs, after)
        operations[id(op)] = operation
        for index, symbol in enumerate(outputs):
            symbols[op.base + index] = symbol
        for handle in handles:
            if op.kind is Kind.WRITE:
                last_write[handle] = operation
                reads[handle] = []
            else:
                reads.setdefault(handle, []).append(operation)
        if op.kind is Kind.WRITE:
            control.append(operation)
        elif _may_fail(op, outputs, builder):
            if op.tainted:
                raise ValueError(f"{op.op} may fail and depends on a write of its own block")
            fallible.append(operation)
    if fallible:
        for op in writes:
            target = operations[id(op)]
            missing = [f for f in fallible if f not in target.control_inputs]
            target._add_control_inputs(missing)
        if not writes:
            control.extend(fallible)
    return Lowered(builder, symbols, [*control, *(f for f in fallible if f not in control)])


def _may_fail(op: FlatOp, outputs: list[Any], builder: GraphBuilder) -> bool:
    if op.kind is Kind.WRITE or op.op == "ReadVariableOp":
        return False
    static = all(builder.static_shape(symbol) is not None for symbol in outputs)
    return op.fallible or not static


def _input(builder: GraphBuilder, source: tuple[Any, ...], symbols: dict[int, Any], feeds: list[Any]) -> Any:
    what = source[0]
    if what == "l":
        return symbols[source[1]]
    if what == "p":
        return feeds[source[1]]
    if what == "k":
        tensor = source[1]
        return builder.const(tensor) if tensor._datatype_enum() in _INTEGERS else builder.capture(tensor)
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
            if symbol is None:
                continue
            static = builder.static_shape(symbol)
            if static is None:
                spec.shape = None
            elif static != spec.shape:
                raise ValueError(f"{step.op}: shape inferred {static}, recorded {spec.shape}")


def function_of(block: Block, outputs: frozenset[int]) -> CompiledFunction:
    """The compiled function of ``block`` that returns ``outputs`` (flat, in ascending order), made on first use."""
    made: CompiledFunction | None = block.variants.get(outputs)
    if made is None:
        lowered: Lowered = block.lowered
        symbols = [lowered.symbols[flat] for flat in sorted(outputs)]
        made = lowered.builder.finish(symbols, lowered.control, single_threaded=False)
        block.variants[outputs] = made
    return made

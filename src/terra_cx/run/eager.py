"""Runs validated ops one by one, natively, from their records: the ground truth that compiled blocks are held to.

Used by the graph runner for a run that is partial, not compiled yet, or failed (its block changed nothing), and by the
owner thread when a region diverges. The ops, their arguments and their order are those that Python issued, so values,
state, exception types and messages are eager's.
"""

from __future__ import annotations

from typing import Any

from terra_cx.compile.blocks import Block, FlatOp, Step
from terra_cx.run.block_run import BlockRun, Draw
from terra_cx.tf import native
from terra_cx.tf.native_queue import REFUSED, wait_for
from terra_cx.tf.opdefs import Kind, grouped
from terra_cx.tf.slots import Slot
from terra_cx.trace.recorder import pack_outputs

__all__ = [
    "OpFailed",
    "annotate",
    "call_native",
    "do_draw",
    "feeds_of",
    "inputs_of",
    "recompute",
    "run_eagerly",
    "settle",
]


class OpFailed(Exception):
    """An op of a run raised; ``step`` tells where in the user's program, ``error`` is eager's own exception."""

    def __init__(self, step: Step, error: BaseException) -> None:
        super().__init__(str(error))
        self.step = step
        self.error = error


def annotate(error: BaseException, step: Step) -> BaseException:
    """Add the user's line to an exception that surfaces later than eager would have raised it."""
    note = f"terra-cx: raised by {step.op}, called at {step.node.line}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
    return error


def feeds_of(run: BlockRun) -> list[Any]:
    """The real tensors of the run's parameters; draws' parameters are None until `do_draw`."""
    return [param.resolve() if type(param) is Slot else param for param in run.params]


def do_draw(draw: Draw) -> list[Any]:
    """Run a stateful random op as eager would, unless that has been done in flight."""
    if draw.made is not None:
        try:
            wait_for(draw.tensor)
            return [draw.tensor]
        except REFUSED:  # something before it in the queue has failed: it has not been run
            draw.made = None
    if draw.form == "F":
        result = native.run_fast(draw.op, draw.name, draw.args, draw.step.device)
    else:
        inputs, attrs, outputs = draw.args
        result = native.run_execute(draw.op, inputs, attrs, outputs, draw.step.device)
    return pack_outputs(result)[1]


def inputs_of(op: FlatOp, values: list[Any], feeds: list[Any]) -> list[Any]:
    """The arguments of a flat op: real tensors or raw Python values."""
    inputs = []
    for source in op.inputs:
        what = source[0]
        if what == "l":
            inputs.append(values[source[1]])
        elif what == "p":
            inputs.append(feeds[source[1]])
        else:
            inputs.append(source[1])
    return inputs


def call_native(op: FlatOp, inputs: list[Any]) -> list[Any]:
    """Execute one flat op natively and return its flat outputs."""
    if op.form == "F":
        result = native.run_fast(op.op, op.name, [*grouped(inputs, op.layout), *op.attrs], op.device)
    else:
        result = native.run_execute(op.op, inputs, op.attrs, len(op.specs), op.device)
    return pack_outputs(result)[1]


def run_eagerly(run: BlockRun, feeds: list[Any], drawn: bool = False) -> list[Any]:
    """Execute the run's validated steps.

    Args:
        run: a run; only its first ``pos`` steps are executed.
        feeds: real tensors per parameter, as from `feeds_of`; draws are done here, in order, and entered.
        drawn: the draws were made already and stand in ``feeds``.

    Returns:
        A value per flat output (None for the outputs of steps that Python got directly).

    Raises:
        OpFailed: an op raised; slots before it were filled.
    """
    block: Block = run.block
    values: list[Any] = [None] * block.flat
    for step in block.steps[: run.pos]:
        try:
            if step.kind is Kind.DRAW:
                numbers = [block.draws[step.base + index] for index in range(len(step.specs))]
                if not drawn:
                    for number, value in zip(numbers, do_draw(run.draws[step.base]), strict=True):
                        feeds[number] = value
                for index, number in enumerate(numbers):
                    values[step.base + index] = feeds[number]
            else:
                for op in block.ops[step.ops[0] : step.ops[1]]:
                    for index, value in enumerate(call_native(op, inputs_of(op, values, feeds))):
                        values[op.base + index] = value
        except BaseException as error:
            settle(run, values)
            raise OpFailed(step, error) from error
    return values


def recompute(run: BlockRun, feeds: list[Any]) -> list[Any]:
    """Execute the ops of a whole run once more, its random draws excepted, and tell nobody.

    Args:
        run: a run that has been executed.
        feeds: real tensors per parameter, those of draws included.

    Returns:
        A value per flat output (None for the outputs of steps that Python got directly).

    Raises:
        Exception: an op raised; the variables written before it hold what they were given.
    """
    values: list[Any] = [None] * run.block.flat
    for flat, number in run.block.draws.items():
        values[flat] = feeds[number]
    for op in run.block.ops:
        for index, value in enumerate(call_native(op, inputs_of(op, values, feeds))):
            values[op.base + index] = value
    return values


def settle(run: BlockRun, values: list[Any]) -> None:
    """Give the run's slots their values."""
    for slot, value in zip(run.slots, values, strict=False):
        if slot is not None and value is not None:
            slot.value = value

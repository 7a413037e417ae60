"""Folding: what of a block's graph need not be computed, or not twice, with the same bits.

* An op with the inputs and attributes of an earlier one is that one. TensorFlow's runtime merges pure ops as well, but
  not reads of variables, for it does not know what is written in between; and with the reads it misses all that hangs
  on them: Adam reads its step count, and raises two decay rates to it, once per variable.
* Shapes that are known here are constants, and so is what follows from them about broadcasting.
* A sum over no axis, and a reshape to the same shape, is its input. (Eager's gradients do not ask whether there is
  anything to sum up.)

Nothing else is folded: the other simplifications that are usual (products with one, powers, reciprocals) may change the
last bit, or NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from terra_cx.compile.blocks import FlatOp
from terra_cx.tf.graphs import GraphBuilder
from terra_cx.tf.opdefs import Kind
from terra_cx.trace.keys import freeze

__all__ = ["Folding"]


class Folding:
    """Of one graph that is being built.

    Args:
        builder: builds it.
    """

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._made: dict[Any, tuple[Any, list[Any]]] = {}

    def op(self, op: FlatOp, inputs: Sequence[Any], after: Sequence[Any]) -> tuple[Any, list[Any], bool]:
        """Add an op to the graph, if it has to be.

        Args:
            op: the op.
            inputs: symbolic tensors, flat.
            after: operations that must come before it.

        Returns:
            An operation that has its attributes; its outputs; and whether it was there before.
        """
        if op.kind is Kind.WRITE:
            return *self._builder.op(op.op, op.form, op.attrs, op.layout, inputs, after, op.device), False
        what = (op.op, op.form, freeze(op.attrs), op.layout, op.device)
        key = (what, tuple(map(id, inputs)), tuple(map(id, after)))
        found = self._made.get(key)
        if found is not None:
            return *found, True
        operation, _ = self._builder.op(op.op, op.form, op.attrs, op.layout, inputs, after, op.device)
        made = self._made[key] = operation, self._builder.folded(operation)
        return *made, False

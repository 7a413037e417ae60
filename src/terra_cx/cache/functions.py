"""Compiled blocks as rows of JSON: the function that a block ended up with, and what lowering had told of the block.

A block is the same as a stored one if it consists of the same nodes and its ops get their inputs from the same places,
constants included. Its function is still compared with eager at its first run in each process, as one that was made
there; only the building of the graph is saved, which takes longer than anything else between trace and co-execution.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from terra_cx.cache.rows import Writer
from terra_cx.cache.values import Unstorable, packed
from terra_cx.compile.blocks import Block, Cut
from terra_cx.compile.lowering import CUTS, Prepared
from terra_cx.levels import Level
from terra_cx.tf.graphs import CompiledFunction, loaded_function

__all__ = ["Functions", "rows_of"]


def rows_of(blocks: Iterable[Block], writer: Writer) -> list[dict[str, Any]]:
    """Rows of all blocks that are up to date and have been compiled and compared."""
    rows = []
    for block in blocks:
        function = block.variants.get(block.outputs)
        if block.eager is not None or block.built_from != block.revisions:
            continue
        if block.relaxed:
            continue  # lowering it tells of each step how its shapes are worked out: more than a row has
        if not isinstance(function, CompiledFunction) or function.level is not Level.EXACT:
            continue  # at other levels it is not compared bit for bit, so it is made where it runs
        try:
            rows.append(_row(block, function, writer))
        except Unstorable:
            continue  # it is made anew in each process
    return rows


def _row(block: Block, function: CompiledFunction, writer: Writer) -> dict[str, Any]:
    unknown = [
        step.base + index
        for step in block.steps
        for index, spec in enumerate(step.specs)
        if spec.shape is None
    ]
    return {
        "nodes": [node.id for node in block.nodes],
        "digest": _digest(block, writer),
        "reason": block.reason,
        "unknown": unknown,
        "fallible": [index for index, op in enumerate(block.ops) if op.fallible],
        "barriers": block.barriers,
        "outputs": sorted(block.outputs),
        "captures": [_capture(tensor, writer) for tensor in function.captures],
        "function": base64.b64encode(function.definition()).decode(),
    }


def _capture(tensor: Any, writer: Writer) -> list[Any]:
    handle = writer.handle(tensor)
    return ["k", writer.tensor(tensor)] if handle is None else ["r", handle]


def _digest(block: Block, writer: Writer) -> str:
    """What the ops of a block are and where their inputs come from.

    Raises:
        Unstorable: something has no form outside of this process.
    """

    def source(given: tuple[Any, ...]) -> list[Any]:
        what = given[0]
        if what == "k":
            return ["k", writer.tensor(given[1])]
        if what == "r":
            return ["r", writer.handle(given[1])]
        return [what, packed(given[1]), given[2]] if what == "c" else [what, given[1]]

    ops = []
    for op in block.ops:
        attrs, inputs = [packed(value) for value in op.attrs], [source(given) for given in op.inputs]
        ops.append([op.op, op.form, attrs, list(op.layout), op.kind.value, inputs, op.base, op.device])
    params = [[spec.dtype, spec.shape] for spec in block.params]
    text = json.dumps([ops, params, sorted(block.draws.items())])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Functions:
    """What an entry has of blocks.

    Args:
        rows: of `rows_of`.
        writer: numbers handles and tensors as the entry does.
        handles: the handle that each number stands for, None where it is not known.
        tensors: the tensor that each number stands for.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], writer: Writer, handles: Sequence[Any], tensors: Sequence[Any]
    ) -> None:
        self._rows: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            self._rows.setdefault(row["nodes"][0], []).append(row)
        self._writer = writer
        self._handles = handles
        self._tensors = tensors

    def of(self, block: Block) -> Prepared | None:
        """What is known of a block that was just made; None if it has to be lowered.

        Raises:
            Cut: lowering has found that the block must be shorter.
        """
        try:
            return self._found(block)
        except (LookupError, TypeError, ValueError):
            self._rows.clear()  # they are no rows of ours; blocks are lowered as always
            return None

    def _found(self, block: Block) -> Prepared | None:
        nodes = [node.id for node in block.nodes]
        for row in self._rows.get(nodes[0], ()):
            stored = row["nodes"]
            if nodes == stored and self._digest(block) == row["digest"]:
                return self._prepared(block, row)
            if len(nodes) > len(stored) and nodes[: len(stored)] == stored and row["reason"] in CUTS:
                raise Cut(block.nodes[len(stored)], row["reason"])
        return None

    def _digest(self, block: Block) -> str | None:
        try:
            return _digest(block, self._writer)
        except Unstorable:
            return None

    def _prepared(self, block: Block, row: dict[str, Any]) -> Prepared | None:
        captures = [
            (self._handles if what == "r" else self._tensors)[number] for what, number in row["captures"]
        ]
        if any(tensor is None for tensor in captures):
            return None
        fallible = frozenset(row["fallible"])
        outputs = frozenset(row["outputs"])
        definition = base64.b64decode(row["function"], validate=True)
        return Prepared(
            frozenset(row["unknown"]),
            tuple(index in fallible for index in range(len(block.ops))),
            row["barriers"],
            outputs,
            functools.partial(loaded_function, definition, captures, len(outputs)),
        )

"""The shapes of an op's outputs, asked of TensorFlow's shape functions.

The op is put into a graph of its own kind, never run, whose inputs have the shapes in question; small integer inputs can
be given by value, since shapes follow from them (the target of a reshape). What the shape function says holds for every
kernel of the op, so it may be told to Python before the kernel has run.

Source: ``tensorflow/python/framework/ops.py`` (2.21): an operation's outputs have the inferred shapes once it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from terra_cx.tf.graphs import GraphBuilder
from terra_cx.tf.slots import Spec

__all__ = ["Value", "infer"]

_RESOURCE = 20
_MOST = 2000
"""Ops in one graph; then a new one is begun."""

Value = tuple[Any, int | None]
"""A value and the dtype of the tensor that is made of it; a variable's handle and the dtype of handles."""


class _Graph:
    """The present graph and its inputs."""

    def __init__(self) -> None:
        self.builder = GraphBuilder(False)
        self.inputs: dict[Any, Any] = {}
        self.ops = 0

    def input(self, spec: Spec) -> Any:
        found = self.inputs.get(spec.key())
        if found is None:
            found = self.inputs[spec.key()] = self.builder.feed(spec)
        return found


_graph: _Graph | None = None


def infer(
    op: str,
    form: str,
    attrs: tuple[Any, ...],
    layout: tuple[int, ...],
    inputs: Sequence[Spec | Value],
) -> list[tuple[int, ...] | None] | None:
    """Shapes of the outputs of an op; called on one thread.

    Args:
        op: its name.
        form: "F" or "E", see `trace.records.Call`.
        attrs: alternating names and values as recorded.
        layout: see `trace.records.Call`.
        inputs: per flat input its dtype and shape (None: unknown), or its value.

    Returns:
        A shape per output, None where it cannot be told from this; None for all if the op refuses such inputs.
    """
    global _graph
    graph = _graph
    if any(not isinstance(given, Spec) and given[1] == _RESOURCE for given in inputs):
        graph = _Graph()  # of its own: it holds the variable's handle
    elif graph is None or graph.ops >= _MOST:
        graph = _graph = _Graph()
    graph.ops += 1
    builder = graph.builder
    try:
        symbols = [
            graph.input(given)
            if isinstance(given, Spec)
            else builder.capture(given[0])
            if given[1] == _RESOURCE
            else builder.raw(*given)
            for given in inputs
        ]
        _, outputs = builder.op(op, form, attrs, layout, symbols, ())
    except (ValueError, TypeError):
        return None  # eager's kernel will say so in its own words
    return [builder.static_shape(symbol) for symbol in outputs]

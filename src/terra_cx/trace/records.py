"""What one traced region did: op calls, tape events, feeds and fetches, with the user's source lines.

A trace is a list of `Call`. Values are referred to by *position*: every op of the region has a number, the
ops inside a ``tape.gradient`` call included, in the order they ran. `Ref` says where an argument came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from terra_cx.reasons import Reason
from terra_cx.tf.opdefs import Kind
from terra_cx.tf.slots import Spec

__all__ = ["Call", "Captured", "Const", "Ext", "Known", "Local", "Ref", "Resource", "TapeEvent", "Trace"]


@dataclass(slots=True, frozen=True)
class Local:
    """Output ``out`` of the op at ``position`` of the same region."""

    position: int
    out: int


@dataclass(slots=True, frozen=True)
class Ext:
    """A tensor from outside the region; ``number`` counts distinct tensors in order of first use."""

    number: int


@dataclass(slots=True, frozen=True, eq=False)
class Const:
    """A raw Python argument, with the dtype that the native code converted it to (None: by the value itself)."""

    value: Any
    dtype: int | None


@dataclass(slots=True, frozen=True, eq=False)
class Known:
    """A small host tensor guarded by value; ``origin`` says where it came from should the guard be given up."""

    tensor: Any
    origin: Local | Ext


@dataclass(slots=True, frozen=True, eq=False)
class Resource:
    """A resource handle, guarded by identity."""

    tensor: Any


@dataclass(slots=True, frozen=True, eq=False)
class Captured:
    """A tensor that TensorFlow's own gradient code made (ones, zeros, axes): a constant of the gradient's path."""

    tensor: Any


Ref = Local | Ext | Const | Known | Resource | Captured


@dataclass(slots=True)
class Call:
    """One op call, or one ``tape.gradient`` call with the ops it ran in ``inner``.

    ``form`` is "F" for the fast path (inputs as given, then attributes) and "E" for ``TFE_Py_Execute``.
    ``layout`` has an entry per argument: -1 for a single tensor, n for a list of n. ``pack`` rebuilds the
    returned structure: an int is an output's number, None is None, a list is a list.
    """

    op: str
    form: str
    kind: Kind
    attrs: tuple[Any, ...]
    layout: tuple[int, ...]
    inputs: tuple[Ref, ...]
    input_specs: tuple[Spec | None, ...]
    outputs: tuple[Spec, ...]
    pack: Any
    site: Any
    position: int
    name: str | None = None
    values: tuple[Any, ...] = ()
    inner: tuple[Call, ...] = ()
    results: tuple[Any, ...] = ()
    """For a gradient: per result a `Local`/`Ref`, None, or a tuple (IndexedSlices: values, indices, dense shape)."""
    raws: dict[int, Any] = field(default_factory=dict)
    """Arguments that Python gave as raw values and the boundary converted: their values (arrays: their type)."""
    reads: tuple[Ref, ...] = ()
    """For a gradient: values of the forward pass that its Python code read."""
    events: int = 0
    """For a gradient: how many tape events came before it."""
    device: str = ""
    """The device scope that the op ran in (`tf.native.device_scope`)."""
    node: Any = None
    """The TraceGraph node, for the calls of a region that were validated before it diverged."""


@dataclass(slots=True, frozen=True)
class TapeEvent:
    """Something that happened to the tapes before the op at ``position``.

    ``what`` is new, add, remove, watch, watch_variable, access, stop, restart or record.
    """

    position: int
    what: str
    tape: int = -1
    ref: Ref | None = None
    detail: Any = None


@dataclass(slots=True)
class Trace:
    """One region. ``fetches`` and ``gaps`` hold positions after which Python read a value, or was busy for long."""

    calls: list[Call] = field(default_factory=list)
    events: list[TapeEvent] = field(default_factory=list)
    fetches: set[int] = field(default_factory=set)
    gaps: dict[int, float] = field(default_factory=dict)
    refused: tuple[Reason, str] | None = None
    """(reason, user line) when the region did something that cannot be co-executed."""

"""Traces as rows of JSON: what a region did, with everything that is this process's own replaced by a number.

Code objects are known by fingerprints (`codes`), loops by their code and their number in it, resource handles (the
variables) by the order in which they were met. What a variable's number means in another process is found out by
`binding`. Rows refer to `Tables`, which hold what occurs again and again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from terra_cx.cache.codes import Codes
from terra_cx.cache.values import (
    Unstorable,
    packed,
    packed_tensor,
    packed_type,
    unpacked,
    unpacked_tensor,
    unpacked_type,
)
from terra_cx.observe.statements import Site
from terra_cx.tf.opdefs import Kind
from terra_cx.tf.slots import Spec
from terra_cx.trace.keys import BACKWARD
from terra_cx.trace.records import Call, Captured, Const, Ext, Known, Local, Resource, TapeEvent, Trace
from terra_cx.trace.tracegraph import Node

__all__ = ["Handles", "Missing", "Reader", "Tables", "Writer"]

_LOCAL, _EXT, _CONST, _KNOWN, _RESOURCE, _CAPTURED = range(6)
_FREE = (Kind.OWNER, Kind.SOURCE)
"""Whose arguments no node depends on."""

# The columns of a call's row.
OP, FORM, KIND, ATTRS, LAYOUT, INPUTS, IN_SPECS, OUTPUTS, PACK, SITE = range(10)
POSITION, NAME, VALUES, INNER, RESULTS, RAWS, READS, EVENTS, NODE, DEVICE = range(10, 20)
# The columns of a site.
PATH, LOOPS, ORDINAL, LINE = range(4)


class Missing(Exception):
    """A row needs something that this process does not have, or not yet; the message says what."""


class Handles:
    """The resource handles of a process in the order in which they were met; they are kept alive."""

    def __init__(self, tensors: Sequence[Any] = ()) -> None:
        self.tensors: list[Any] = []
        self._numbers: dict[int, int] = {}
        for tensor in tensors:
            self.number(tensor)

    def number(self, tensor: Any) -> int:
        """The number of a handle; a new one gets the next."""
        found = self._numbers.get(id(tensor))
        if found is None:
            found = self._numbers[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        return found

    def of_id(self, number: int) -> int | None:
        """The number of the handle with this `id`, if it was met."""
        return self._numbers.get(number)


_BACKWARD = [-1, 0]
"""As a frame, in the place of `trace.keys.BACKWARD`."""
_TABLES = ("codes", "loops", "paths", "attrs", "tensors")


@dataclass(slots=True)
class Tables:
    """What rows refer to by number. All entries are JSON."""

    codes: list[str] = field(default_factory=list)
    """Fingerprints."""
    loops: list[list[int]] = field(default_factory=list)
    """Code, and the loop's number in it."""
    paths: list[list[list[int]]] = field(default_factory=list)
    """User frames, outermost first: code and byte offset; `_BACKWARD` between asking a tape and the op it is about."""
    attrs: list[list[Any]] = field(default_factory=list)
    tensors: list[list[Any]] = field(default_factory=list)
    _numbers: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: dict[str, list[Any]]) -> Tables:
        """Tables with copies of these rows."""
        made = cls()
        for name in _TABLES:
            getattr(made, name).extend(tables[name])
        return made

    def number(self, table: str, item: Any) -> int:
        """The number of ``item`` in the table of this name; added if it is new."""
        known = self._numbers.get(table)
        rows = getattr(self, table)
        if known is None:
            known = self._numbers[table] = {json.dumps(row): index for index, row in enumerate(rows)}
        text = json.dumps(item)
        found = known.get(text)
        if found is None:
            found = known[text] = len(rows)
            rows.append(item)
        return found

    def as_dict(self) -> dict[str, Any]:
        """The tables alone."""
        return {name: getattr(self, name) for name in _TABLES}


class Writer:
    """Makes rows of traces.

    Args:
        codes: this process's code.
        tables: extended as needed.
        handles: extended as needed.
    """

    def __init__(self, codes: Codes, tables: Tables, handles: Handles) -> None:
        self._codes = codes
        self._tables = tables
        self._handles = handles
        self._paths: dict[Any, int] = {}
        self._loops: dict[int, int] = {}
        self._tensors: dict[int, tuple[Any, int]] = {}

    def trace(self, trace: Trace) -> dict[str, Any]:
        """The row of a trace that has not been merged yet.

        Raises:
            Unstorable: something in it has no form outside of this process.
        """
        calls = [self._call(call) for call in trace.calls]
        return {
            "calls": calls,
            "events": [self._event(event) for event in trace.events],
            "fetches": sorted(trace.fetches),
            "gaps": [[position, seconds] for position, seconds in trace.gaps.items()],
        }

    def loop(self, anchor_id: int) -> int:
        """The number of a loop.

        Raises:
            Unstorable: no probe stands for it.
        """
        found = self._loops.get(anchor_id)
        if found is None:
            code = self._codes.of_anchor(anchor_id)
            place = self._codes.place(anchor_id, code) if code is not None else None
            if place is None:
                raise Unstorable("a loop without a probe")
            item = [self._tables.number("codes", place[0]), place[1]]
            found = self._loops[anchor_id] = self._tables.number("loops", item)
        return found

    def handle(self, tensor: Any) -> int | None:
        """The number of a resource handle that a trace has mentioned."""
        return self._handles.of_id(id(tensor))

    def _site(self, site: Any) -> Any:
        if site is None:
            return None
        key = tuple((id(code), offset) for code, offset in site.path)
        path = self._paths.get(key)
        if path is None:
            frames = [
                _BACKWARD
                if frame is BACKWARD
                else [self._tables.number("codes", self._codes.fingerprint(frame[0])), frame[1]]
                for frame in site.path
            ]
            path = self._paths[key] = self._tables.number("paths", frames)
        return [
            path,
            [[self.loop(loop), iteration] for loop, iteration in site.loops],
            site.ordinal,
            site.line,
        ]

    def _call(self, call: Call) -> list[Any]:
        free = call.kind in _FREE
        return [
            call.op,
            call.form,
            call.kind.value,
            self._tables.number("attrs", [packed(value) for value in call.attrs]),
            list(call.layout),
            [self._ref(ref, free=free) for ref in call.inputs],
            [_spec(spec) for spec in call.input_specs],
            [[*_spec(spec), spec.device] for spec in call.outputs],
            call.pack,
            self._site(call.site),
            call.position,
            call.name,
            [self.tensor(tensor) for tensor in call.values],
            [self._call(inner) for inner in call.inner],
            [self._result(result) for result in call.results] if call.node is None else [],
            [
                [index, {"y": packed_type(raw)} if isinstance(raw, type) else packed(raw)]
                for index, raw in call.raws.items()
            ],
            [self._ref(ref) for ref in call.reads],
            call.events,
            None if call.node is None else call.node.id,
            call.device,
        ]

    def _result(self, result: Any) -> Any:
        if isinstance(result, tuple):
            return {"t": [None if part is None else self._ref(part) for part in result]}
        return None if result is None else self._ref(result)

    def _ref(self, ref: Any, *, free: bool = False) -> list[Any]:
        if isinstance(ref, Local):
            return [_LOCAL, ref.position, ref.out]
        if isinstance(ref, Ext):
            return [_EXT, ref.number]
        if isinstance(ref, Const):
            return [_CONST, None if free else packed(ref.value), ref.dtype]
        if isinstance(ref, Known):
            return [_KNOWN, self.tensor(ref.tensor), self._ref(ref.origin)]
        if isinstance(ref, Resource):
            return [_RESOURCE, None if free else self._handles.number(ref.tensor)]
        assert isinstance(ref, Captured)
        return [_CAPTURED, None if ref.tensor is None else self.tensor(ref.tensor)]

    def tensor(self, tensor: Any) -> int:
        """The number of a host tensor.

        Raises:
            Unstorable: it is too large, or no array.
        """
        found = self._tensors.get(id(tensor))
        if found is None:
            number = self._tables.number("tensors", packed_tensor(tensor))
            found = self._tensors[id(tensor)] = tensor, number  # kept, so that the id stays its own
        return found[1]

    def _event(self, event: TapeEvent) -> list[Any]:
        ref = None if event.ref is None else self._ref(event.ref)
        return [event.position, event.what, event.tape, ref, self._detail(event.what, event.detail)]

    def _detail(self, what: str, detail: Any) -> Any:
        if what == "watch_variable":
            return self._variable(detail)
        if isinstance(detail, tuple):
            if len(detail) == 2 and detail[0] == "variable":
                return self._variable(detail[1])
            return {"t": [self._detail("", item) for item in detail]}
        return packed(detail)

    def _variable(self, number: int) -> dict[str, int]:
        found = self._handles.of_id(number)
        if found is None:
            raise Unstorable("a tape that watches a variable which no op uses")
        return {"v": found}


class Reader:
    """Makes traces of rows.

    Args:
        codes: this process's code.
        tables: what the rows refer to.
        handles: the handle that each number stands for; None where it is not known.

    A malformed row raises LookupError, TypeError or ValueError, one that needs what is not there `Missing`.
    """

    def __init__(self, codes: Codes, tables: Tables, handles: Sequence[Any]) -> None:
        self._tables = tables
        self._handles = handles
        self._codes = [codes.find(text) for text in tables.codes]
        owners = [(self._codes[code], number) for code, number in tables.loops]
        self._loops = [None if code is None else codes.anchor(code, number) for code, number in owners]
        self._paths = [
            tuple(BACKWARD if frame == _BACKWARD else (self._codes[frame[0]], frame[1]) for frame in path)
            for path in tables.paths
        ]
        self._attrs = [tuple(unpacked(value) for value in row) for row in tables.attrs]
        self._tensors = [unpacked_tensor(row) for row in tables.tensors]

    def loop(self, number: int) -> int:
        """The anchor of a loop."""
        anchor = self._loops[number]
        if anchor is None:
            raise Missing("a loop of the program")
        return anchor

    @property
    def tensors(self) -> list[Any]:
        """The tensors that rows refer to."""
        return self._tensors

    def trace(self, row: dict[str, Any], nodes: Sequence[Node]) -> Trace:
        """A trace that can be merged.

        Args:
            row: see `Writer.trace`.
            nodes: those of the TraceGraph that the traces before it have been merged into.
        """
        return Trace(
            calls=[self._call(call, nodes) for call in row["calls"]],
            events=[self._event(event) for event in row["events"]],
            fetches=set(row["fetches"]),
            gaps=dict(row["gaps"]),
        )

    def _call(self, row: list[Any], nodes: Sequence[Node]) -> Call:
        return Call(
            op=row[OP],
            form=row[FORM],
            kind=Kind(row[KIND]),
            attrs=self._attrs[row[ATTRS]],
            layout=tuple(row[LAYOUT]),
            inputs=tuple(self._ref(ref) for ref in row[INPUTS]),
            input_specs=tuple(_unpacked_spec(spec) for spec in row[IN_SPECS]),
            outputs=tuple(
                Spec(enum, None if shape is None else tuple(shape), device)
                for enum, shape, device in row[OUTPUTS]
            ),
            pack=row[PACK],
            site=self._site(row[SITE]),
            position=row[POSITION],
            name=row[NAME],
            values=tuple(self._tensors[number] for number in row[VALUES]),
            inner=tuple(self._call(inner, nodes) for inner in row[INNER]),
            results=tuple(self._result(result) for result in row[RESULTS]),
            raws={
                index: unpacked_type(raw["y"]) if isinstance(raw, dict) and "y" in raw else unpacked(raw)
                for index, raw in row[RAWS]
            },
            reads=tuple(self._ref(ref) for ref in row[READS]),
            events=row[EVENTS],
            device=row[DEVICE],
            node=None if row[NODE] is None else nodes[row[NODE]],
        )

    def _site(self, row: Any) -> Site | None:
        if row is None:
            return None
        path = self._paths[row[PATH]]
        if any(frame[0] is None and frame is not BACKWARD for frame in path):
            raise Missing("a function of the program")
        issued = list(takewhile(lambda frame: frame is not BACKWARD, path))
        return Site(
            path,
            tuple((self.loop(loop), iteration) for loop, iteration in row[LOOPS]),
            row[ORDINAL],
            issued[-1][0].co_filename if issued else "?",
            row[LINE],
        )

    def _ref(self, row: list[Any]) -> Any:
        what = row[0]
        if what == _LOCAL:
            return Local(row[1], row[2])
        if what == _EXT:
            return Ext(row[1])
        if what == _CONST:
            return Const(unpacked(row[1]), row[2])
        if what == _KNOWN:
            return Known(self._tensors[row[1]], self._ref(row[2]))
        if what == _RESOURCE:
            return Resource(object() if row[1] is None else self._handle(row[1]))
        if what == _CAPTURED:
            return Captured(None if row[1] is None else self._tensors[row[1]])
        raise ValueError(f"no reference: {what}")

    def _result(self, row: Any) -> Any:
        if isinstance(row, dict):
            return tuple(None if part is None else self._ref(part) for part in row["t"])
        return None if row is None else self._ref(row)

    def _handle(self, number: int) -> Any:
        handle = self._handles[number]
        if handle is None:
            raise Missing("a variable of the program")
        return handle

    def _event(self, row: list[Any]) -> TapeEvent:
        position, what, tape, ref, detail = row
        return TapeEvent(
            position, what, tape, None if ref is None else self._ref(ref), self._detail(what, detail)
        )

    def _detail(self, what: str, row: Any) -> Any:
        if isinstance(row, dict) and "v" in row:
            number = id(self._handle(row["v"]))
            return number if what == "watch_variable" else ("variable", number)
        if isinstance(row, dict) and "t" in row:
            return tuple(self._detail("", item) for item in row["t"])
        return unpacked(row)


def _spec(spec: Spec | None) -> Any:
    return None if spec is None else [spec.dtype, None if spec.shape is None else list(spec.shape)]


def _unpacked_spec(row: Any) -> Spec | None:
    return None if row is None else Spec(row[0], None if row[1] is None else tuple(row[1]))

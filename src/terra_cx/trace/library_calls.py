"""Notes library calls in a traced region: which ops they issued, from what, and on what their Python depends.

Only outermost calls are noted. One that cannot be elided is remembered; the next trace looks at the calls inside it.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from terra_cx.elide.calls import (
    TOLD,
    Argument,
    LibraryCall,
    Source,
    flatten,
    flatten_arguments,
    is_bare,
    is_conversion,
    is_telling,
    normal,
    pauses,
    repeated,
)
from terra_cx.elide.entries import OPAQUE, Entries, Entry
from terra_cx.elide.names import Names, is_library, used_names
from terra_cx.elide.state import State, Unfit
from terra_cx.elide.watch import Watch
from terra_cx.observe.importer import UserCode
from terra_cx.tf import native
from terra_cx.tf.native import REAL, EagerTensor
from terra_cx.tf.opdefs import Kind
from terra_cx.tf.placeholder import resolve_all
from terra_cx.tf.slots import Spec
from terra_cx.tf.variable_writes import is_written
from terra_cx.trace.records import Call, Const, Ext, Known, Local, Resource

if TYPE_CHECKING:
    from terra_cx.trace.recorder import Recorder

__all__ = ["ATTEMPTS", "CallNotes", "Refusal", "Refusals"]


class Refusal(NamedTuple):
    """A call that is not elided: on what, why, how often that was found, the user's line (`?` if not known)."""

    receiver: Any
    why: str
    attempts: int
    line: str = "?"


Refusals = dict[tuple[str, int], Refusal]
"""By entry and the receiver's `id`."""
ATTEMPTS = 2
"""Traces in which a call is looked at before it is refused for good: the first one may build its variables."""
_INTERNAL = (AttributeError, LookupError, AssertionError, NameError, TypeError, ValueError)
_COMPUTED = (Kind.PURE, Kind.READ, Kind.WRITE, Kind.KNOWN)
_tapes_empty = REAL["TFE_Py_TapeSetIsEmpty"]
_tapes_stopped = REAL["TFE_Py_TapeSetIsStopped"]


class CallNotes:
    """The library calls of one traced region.

    Args:
        recorder: records its ops.
        user: tells the program's code from libraries'.
        entries: whose settings of the thread matter.
        names: what the calls' code looks up; added to.
        refusals: what earlier traces found; added to.
    """

    def __init__(
        self, recorder: Recorder, user: UserCode, entries: Entries, names: Names, refusals: Refusals
    ) -> None:
        self.found: list[LibraryCall] = []
        self._recorder = recorder
        self._user = user
        self._entries = entries
        self._names = names
        self._refusals = refusals
        self._inside = False

    def call(self, entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call, and note it if it can be elided."""
        key = (entry.name, id(args[0]))
        known = self._refusals.get(key)
        attempts = known.attempts if known is not None else 0
        if self._inside or attempts == ATTEMPTS or not native.executing_eagerly():
            return entry.own(*args, **kwargs)
        cls = type(args[0])
        if entry.runs_receiver and not is_library(cls.__module__):
            first = len(self._recorder.trace.calls)
            result = entry.own(*args, **kwargs)
            why = f"{cls.__qualname__} is not a library's"
            self._refusals[key] = Refusal(args[0], why, ATTEMPTS, _line(self._recorder.trace.calls[first:]))
            return result
        args = normal(args)
        watch = Watch(self._user)
        if not watch.start():
            return entry.own(*args, **kwargs)
        self._inside = True
        recorder = self._recorder
        recorder.kept = {}
        trace, first, events = recorder.trace, len(recorder.trace.calls), len(recorder.trace.events)
        accesses, reads = len(recorder.accessed), len(recorder.read)
        taped = (not _tapes_empty(), bool(_tapes_stopped()))
        ambient = self._entries.ambient()
        moved = self._names.changed()
        born, draws = REAL["TFE_Py_UID"](), _numpys_state()
        try:
            result = entry.own(*args, **kwargs)
        finally:
            watch.stop()
            kept, recorder.kept = recorder.kept, None
            self._inside = False
        if recorder.trace is not trace:
            return result
        try:
            if watch.effect is not None:
                attempts = ATTEMPTS - 1  # that will not change
                raise Unfit(watch.effect)
            if any(event.what not in TOLD for event in trace.events[events:]):
                raise Unfit("it has to do with tapes")
            if any(call.kind not in _COMPUTED for call in trace.calls[first:]):
                raise Unfit("an op in it is not the graph's")
            if _numpys_state() != draws:
                raise Unfit("it draws random numbers of NumPy's")
            if self._entries.ambient() != ambient:
                raise Unfit("it changes a setting of the thread")
            if moved or self._names.changed():
                # What is known of other calls, of this step and of others, holds for what the names meant before.
                raise Unfit("a name that library code looks up changes its meaning within a step")
            self.found.append(
                _Noted(recorder, args, kwargs, born, kept).noted(
                    entry, watch, self._names, result, (first, reads, accesses, events), taped, ambient
                )
            )
        except Unfit as error:
            self._refusals[key] = Refusal(args[0], str(error), attempts + 1, _line(trace.calls[first:]))
        except _INTERNAL as error:
            # A mistake of ours, which must not be the program's: the call has run, and is never elided.
            why = f"it could not be looked at: {type(error).__name__}: {error}"
            self._refusals[key] = Refusal(args[0], why, ATTEMPTS, _line(trace.calls[first:]))
        else:
            self._refusals.pop(key, None)
        return result


class _Noted:
    """Makes one record."""

    def __init__(
        self,
        recorder: Recorder,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        born: int,
        kept: dict[int, Any],
    ) -> None:
        self._recorder = recorder
        self._kept = kept
        self._args = args
        self._born = born
        self._leaves, self._structure = flatten_arguments(args[1:], kwargs)
        self._held: set[int] = set()
        """The `id` of the tensors that are passed."""
        self._numbers: dict[Any, int] = {}
        """The number of each leaf of the arguments, by `id`, and by what the trace knows a tensor as."""
        for number, leaf in enumerate(self._leaves):
            self._numbers.setdefault(id(leaf), number)
            if isinstance(leaf, EagerTensor):
                held = resolve_all(leaf)  # a placeholder of what came before: ops are given its tensor
                self._numbers.setdefault(id(held), number)
                self._held.add(id(held))
                ref = recorder.known_as(held)
                if ref is not None:
                    self._numbers.setdefault(ref.origin if isinstance(ref, Known) else ref, number)
        self._reached: set[int] = set()
        self._arrays: dict[int, np.ndarray[Any, Any]] = {}
        self._start = 0

    def noted(
        self,
        entry: Entry,
        watch: Watch,
        names: Names,
        result: Any,
        marks: tuple[int, int, int, int],
        taped: tuple[bool, bool],
        ambient: Any,
    ) -> LibraryCall:
        """The record.

        Raises:
            Unfit: the call cannot be elided.
        """
        first, reads, accesses, events = marks
        recorder = self._recorder
        calls = recorder.trace.calls[first:]
        self._start = calls[0].position if calls else recorder.position
        if any(call.device != native.device_scope() for call in calls):
            raise Unfit("it opens a device scope of its own")  # which may be that of an argument
        used = used_names(watch.codes)
        objects = [leaf for leaf in self._leaves if not isinstance(leaf, (EagerTensor, np.ndarray))]
        self._arrays = {
            number: leaf for number, leaf in enumerate(self._leaves) if isinstance(leaf, np.ndarray)
        }
        if self._arrays and watch.computes:
            raise Unfit("it computes with an array that is passed to it")
        if len({(array.shape, array.astype(float).tobytes()) for array in self._arrays.values()}) < len(
            self._arrays
        ):
            raise Unfit("equal arrays are passed to it")
        if any(not is_telling(array) for array in self._arrays.values()):
            raise Unfit("an array is passed to it that may be taken for a constant")
        state = State([self._args[0], *objects], used, OPAQUE)
        data = names.add(watch.codes, watch.methods)
        state.add(data)
        self._reached = state.reached
        if not self._held.isdisjoint(state.tensors):
            raise Unfit("a tensor is passed to it that it holds as well")
        for tensor, ref in recorder.read[reads:]:
            if id(tensor) in self._numbers or isinstance(ref, Local):
                raise Unfit("it reads the value of a tensor")
        wiring = [tuple(map(self._source, call.inputs)) for call in calls]
        leaves, structure = ([result], None) if id(result) in self._reached else flatten(result)
        return LibraryCall(
            entry=entry,
            receiver=self._args[0],
            structure=self._structure,
            arguments=[_argument(leaf) for leaf in self._leaves],
            repeated=repeated(self._leaves),
            taped=taped,
            first=first,
            last=first + len(calls),
            wiring=wiring,
            result=structure,
            results=[self._result(leaf) for leaf in leaves],
            accesses=recorder.accessed[accesses:],
            pauses=pauses(recorder.trace.events[events:], self._start),
            ambient=ambient,
            state=state,
            line=_line(calls),
        )

    def _source(self, ref: Any) -> Source:
        if isinstance(ref, Const):
            return ("fixed", ref.value)
        if isinstance(ref, Resource):
            return ("fixed", ref.tensor)
        if isinstance(ref, Known):
            inner = self._inner(ref.origin)
            return inner if inner is not None else self._outer(ref.tensor)
        inner = self._inner(ref)
        if inner is not None:
            return inner
        if ref in self._numbers:
            return ("arg", self._numbers[ref])
        tensor = self._kept.get(ref.number) if isinstance(ref, Ext) else None
        if tensor is None:
            raise Unfit("it uses a tensor that comes from elsewhere")
        return self._outer(tensor)

    def _inner(self, ref: Any) -> Source | None:
        if isinstance(ref, Local) and ref.position >= self._start:
            return ("in", ref.position - self._start, ref.out)
        return None

    def _outer(self, tensor: Any) -> Source:
        number = self._numbers.get(id(tensor))
        if number is not None:
            return ("arg", number)
        if tensor._id > self._born:
            return self._converted(tensor)
        if id(tensor) in self._reached:
            return ("fixed", tensor)
        raise Unfit("it uses a tensor that comes from elsewhere")

    def _converted(self, tensor: Any) -> Source:
        """What a tensor is that the call made: of an array that was passed to it, or a constant."""
        shape, dtype = tensor._shape_tuple(), tensor._datatype_enum()
        for number, array in self._arrays.items():
            if array.shape == shape:
                if not is_conversion(array, tensor):
                    raise Unfit("it changes an array that is passed to it")
                return ("array", number, dtype)
        return ("fixed", tensor)

    def _result(self, leaf: Any) -> Source:
        if isinstance(leaf, EagerTensor):
            if not is_bare(leaf):
                raise Unfit("it returns a tensor with attributes")
            ref = self._recorder.known_as(leaf)
            source = self._source(ref) if isinstance(ref, (Local, Known, Ext)) else self._outer(leaf)
            if source[0] == "array":
                raise Unfit("it returns the tensor that it has made of an array")
            return source
        if id(leaf) in self._numbers:
            return ("arg", self._numbers[id(leaf)])
        if id(leaf) in self._reached or isinstance(leaf, (int, float, str, bool, type(None))):
            return ("fixed", leaf)
        if is_written(leaf):
            return ("copy", leaf)
        raise Unfit(f"it returns a new {type(leaf).__name__}")


def _line(calls: Sequence[Call]) -> str:
    """The user's line that issued the first of these ops."""
    site = calls[0].site if calls else None
    return "?" if site is None else f"{site.filename}:{site.line}"


def _argument(leaf: Any) -> Argument:
    if isinstance(leaf, EagerTensor):
        if not is_bare(leaf):
            raise Unfit("a tensor with attributes (a mask, logits) is passed to it")
        return Argument(Spec(leaf._datatype_enum(), leaf._shape_tuple()))
    if isinstance(leaf, np.ndarray):
        return Argument(Spec(native.as_tensor(leaf)._datatype_enum(), leaf.shape), leaf.dtype, leaf.tobytes())
    return Argument(None, leaf)


def _numpys_state() -> bytes:
    """Where NumPy's own generator stands: its methods are not seen by a profiler."""
    state = np.random.get_state(legacy=False)
    return pickle.dumps(state)

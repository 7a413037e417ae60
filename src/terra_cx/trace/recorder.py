"""Records one region at the dispatch boundary while its ops really execute.

The recorder is the boundary's handler in traced regions. It executes every op exactly as eager would and notes what
co-execution needs: where each argument came from, what was read by Python, how long Python took between ops, what the
tapes were told, and where in the user's program it happened.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from threading import get_ident
from typing import Any

import numpy as np

from terra_cx.reasons import NEEDS_LIVE_TAPES, Reason
from terra_cx.tf import backward, native
from terra_cx.tf.boundary import EFFECTS
from terra_cx.tf.custom_gradients import UNSEEN, gradient_detail, has_foreign_gradient
from terra_cx.tf.native import REAL, EagerTensor, IndexedSlices, on_host
from terra_cx.tf.opdefs import DISCRETE, SHAPE_OPS, Kind, arg_layout, classify, inferred_attrs, input_dtypes
from terra_cx.tf.placeholder import resolve_all
from terra_cx.tf.room import have_room
from terra_cx.tf.slots import Spec
from terra_cx.trace.keys import BACKWARD
from terra_cx.trace.records import Call, Captured, Const, Ext, Known, Local, Ref, Resource, TapeEvent, Trace

__all__ = ["MAX_KNOWN", "Recorder", "is_guardable", "pack_outputs"]

MAX_KNOWN = 32
"""Host tensors of at most this many elements are guarded by value."""

_MOST_SIZES = 4096
_RESOURCE = 20
_VARIANT = 21
_FLOATS = frozenset({1, 2, 14, 19, 8, 18})

_fast = REAL["TFE_Py_FastPathExecute"]
_execute = REAL["TFE_Py_Execute"]
_gradient = REAL["TFE_Py_TapeGradient"]


def is_guardable(tensor: Any) -> bool:
    """Whether a tensor from outside is guarded by value: shapes, axes, conditions; rates and other single numbers.

    An optimizer turns its decay rates into tensors anew for each variable. Fed, they would be as many inputs of the
    graph, and what is computed from them would be computed as often. A number that does change becomes a feed.
    """
    if tensor._datatype_enum() in _FLOATS:
        return tensor._shape_tuple() == () and on_host(tensor)
    return _is_answerable(tensor)


def _is_answerable(tensor: Any) -> bool:
    """Whether a result that follows from guarded values is recorded: small, and nothing that a tape could watch."""
    return tensor._datatype_enum() in DISCRETE and tensor._num_elements() <= MAX_KNOWN


def _is_list(tensor: Any) -> bool:
    """Whether it is a list of integers or conditions, as long as texts and pictures are in any direction."""
    return (
        tensor._datatype_enum() in DISCRETE
        and len(tensor._shape_tuple()) == 1
        and tensor._num_elements() <= _MOST_SIZES
    )


def pack_outputs(result: Any) -> tuple[Any, list[Any]]:
    """Split what the boundary returned into a template (see `Call.pack`) and the flat list of tensors."""
    flat: list[Any] = []
    return _packed(result, flat), flat


def _packed(value: Any, flat: list[Any]) -> Any:
    # No closure that calls itself: it is a cycle, and would keep every tensor of the program until the next collection.
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [_packed(item, flat) for item in value]
    flat.append(value)
    return len(flat) - 1


def _natural(value: Any) -> int | None:
    """The dtype that native code gives a raw argument where nothing else decides it."""
    if not native.is_raw(value):
        return None
    try:
        dtype: int = native.as_tensor(value)._datatype_enum()
    except (TypeError, ValueError):
        return None
    return dtype


def _copied(value: Any) -> Any:
    """A value that the program cannot change under our hands: what is guarded must stay what it was."""
    if isinstance(value, (list, tuple)):
        return type(value)([_copied(item) for item in value]) if type(value) in (list, tuple) else list(value)
    return value.copy() if isinstance(value, np.ndarray) else value


class _Seen(weakref.ref[Any]):
    """A tensor of the region; when it dies, its address means nothing any more."""

    __slots__ = ("address", "recorder")

    address: int
    recorder: weakref.ref[Recorder]
    """Weak, or recorder and tensors' references would be a cycle."""


def _died(seen: Any) -> None:
    recorder = seen.recorder()
    if recorder is not None:
        recorder.forget(seen)


class Recorder:
    """Boundary handler of a traced region; `trace` is complete when the region ends.

    Args:
        locate: gives the site of an op issued below a frame.
        user_mark: counts calls of user functions.
        live_tapes: whether the ops of a gradient are noted one by one, as all others, not as one composite call.
        relaxed: whether shapes go on changing: then what has two dimensions is data, and no shape or axis, however
            small it is; and what follows from shapes alone is known, however many sizes there are.
    """

    def __init__(
        self,
        locate: Callable[[Any], Any],
        user_mark: Callable[[], int],
        *,
        live_tapes: bool = False,
        relaxed: bool = False,
    ) -> None:
        self.trace = Trace()
        self.relaxed = relaxed
        if live_tapes:
            backward.follow(lambda: self.position)
        self.live_tapes = live_tapes
        self.position = 0
        self._locate = locate
        self._user_mark = user_mark
        self._refs: dict[int, tuple[_Seen, Ref]] = {}
        self._self = weakref.ref(self)
        self._exts = 0
        self._tapes: list[Any] = []
        self._inner: list[Call] | None = None
        self._first = 0
        self._reads: list[Ref] = []
        self._owner = get_ident()
        self.accessed: list[Any] = []
        """The variables that tapes were told of, in order."""
        self.kept: dict[int, Any] | None = None
        """While a library call is noted: the tensors from outside that its ops were the first to use, by number."""
        self.read: list[tuple[Any, Ref | None]] = []
        """The tensors whose values were read in library calls, and what they stand for."""
        self.calls: Any = None
        """Who notes library calls (`trace.library_calls.CallNotes`), if anybody."""
        self.executed: Any = None
        """The result of the first op, where it was executed before the region diverged at it."""
        self._inside = False
        """Whether an op of the owner's is running: what arrives then comes from its host callback."""
        self._last = time.perf_counter()
        self.limit: int | None = None
        self.overrun = False
        self.on_overrun: Callable[[], None] = lambda: None

    # -- where tensors come from ---------------------------------------------------------------------------------
    def adopt(self, tensor: Any, ref: Ref) -> Ref:
        """Note that ``tensor`` is what ``ref`` stands for; returns that.

        It is forgotten when it dies, since another may get its address. (To keep all tensors of a region alive instead
        took gigabytes where a region went over into an evaluation.)
        """
        seen = _Seen(tensor, _died)
        seen.address, seen.recorder = id(tensor), self._self
        self._refs[seen.address] = seen, ref
        return ref

    def forget(self, seen: _Seen) -> None:
        """A tensor died."""
        found = self._refs.get(seen.address)
        if found is not None and found[0] is seen:
            del self._refs[seen.address]

    def known_as(self, tensor: Any) -> Ref | None:
        """What a tensor stands for, if the region has seen it."""
        found = self._refs.get(id(tensor))
        return found[1] if found is not None else None

    def known(self, tensor: Any) -> Known | None:
        """What a guarded tensor is, if it is known as one."""
        found = self.known_as(tensor)
        return found if isinstance(found, Known) else None

    def adopt_tape(self, tape: Any) -> None:
        """Number a native tape in order of creation."""
        self._tapes.append(tape)

    def next_ext(self) -> Ext:
        """The reference of a further tensor from outside the region."""
        self._exts += 1
        return Ext(self._exts - 1)

    def ref(self, tensor: Any) -> Ref:
        """Where a real tensor came from; a tensor not seen before is an external one (or a gradient's constant)."""
        found = self.known_as(tensor)
        if found is not None:
            return found
        made: Ref
        if tensor._datatype_enum() == _RESOURCE:
            made = Resource(tensor)
        elif self._inner is not None:
            made = Captured(tensor)
        else:
            made = self.next_ext()
            if self.kept is not None:
                self.kept[made.number] = tensor
            if is_guardable(tensor) and not (self.relaxed and len(tensor._shape_tuple()) > 1):
                made = Known(tensor, made)
        self.adopt(tensor, made)
        return made

    # -- ops -----------------------------------------------------------------------------------------------------
    def fast(self, ctx: Any, op: str, name: Any, *args: Any) -> Any:
        """``TFE_Py_FastPathExecute``."""
        if not self._mine():
            return _fast(ctx, op, name, *resolve_all(args))
        width = len(arg_layout(op))
        values = [self._real(value) for value in args[:width]]
        attrs = args[width:]
        dtypes: list[int | None] = []
        layout: list[int] = []
        for index, value in enumerate(values):
            if isinstance(value, (list, tuple)) and arg_layout(op)[index][3]:
                layout.append(len(value))
                dtypes.append(next((v._datatype_enum() for v in value if isinstance(v, EagerTensor)), None))
            else:
                layout.append(-1)
                dtypes.append(value._datatype_enum() if isinstance(value, EagerTensor) else None)
        resolved = input_dtypes(op, values, dtypes, attrs)
        raws: dict[int, Any] = {}
        flat: list[Any] = []
        consts: list[int | None] = []
        taped = self._recording()
        for index, (value, count, dtype) in enumerate(zip(values, layout, resolved, strict=True)):
            items = list(value) if count >= 0 else [value]
            for item in items:
                flat.append(self._converted(item, dtype, taped, raws, len(flat)))
                consts.append(dtype)
            if count >= 0:
                values[index] = flat[-count:] if count else []
            else:
                values[index] = flat[-1]
        start = time.perf_counter()
        if taped and self.live_tapes and self._tells(op, flat):
            with native.unrecorded():
                result = self._done(_fast, ctx, op, name, *values, *attrs)
            self._note(op, "F", attrs, tuple(layout), flat, consts, result, name, start, raws)
            inferred = inferred_attrs(op, tuple(layout), [tensor._datatype_enum() for tensor in flat])
            native.record_gradient(op, flat, (*attrs, *inferred), pack_outputs(result)[1], self._token())
            return result
        self._inside = classify(op) is Kind.OWNER
        try:
            result = self._done(_fast, ctx, op, name, *values, *attrs)
        finally:
            self._inside = False
        self._note(op, "F", attrs, tuple(layout), flat, consts, result, name, start, raws)
        return result

    def _done(self, call: Callable[..., Any], *args: Any) -> Any:
        """The result of an op: of one that was executed before the recorder was there, or of ``call``."""
        executed, self.executed = self.executed, None
        return call(*args) if executed is None else executed

    @staticmethod
    def _tells(op: str, flat: list[Any]) -> bool:
        """Whether the tapes are told of an op here, with its place, and not by native code.

        A host callback may use tapes of its own.
        """
        return classify(op) is not Kind.OWNER and all(isinstance(tensor, EagerTensor) for tensor in flat)

    def _token(self) -> str:
        """What tapes are told of the last op's place."""
        last = self.trace.calls[-1] if self.trace.calls else None
        return "" if last is None or last.position != self.position - 1 else backward.token(last.site)

    @staticmethod
    def _converted(item: Any, dtype: int | None, taped: bool, raws: dict[int, Any], index: int) -> Any:
        """A raw argument as a tensor, if a gradient might refer to it or it is an array.

        Native code would convert it and give the tape a tensor that nobody else knows; a gradient that mentions it
        would then look like a constant.
        """
        array = isinstance(item, np.ndarray)
        if not (array or taped) or not native.is_raw(item):
            return item
        try:
            tensor = native.tensor_of(item, None if array else dtype)
        except (TypeError, ValueError):
            return item  # native code raises what eager raises
        if dtype is not None and tensor._datatype_enum() != dtype:
            return item
        raws[index] = type(item) if array else _copied(item)
        return tensor

    def execute(self, handle: Any, device: Any, op: Any, inputs: Any, attrs: Any, outputs: Any) -> Any:
        """``TFE_Py_Execute``; ``op`` may be the name of a function."""
        if not self._mine():
            return _execute(handle, device, op, resolve_all(list(inputs)), attrs, outputs)
        flat = [self._real(value) for value in inputs]
        op = op.decode() if isinstance(op, bytes) else op
        start = time.perf_counter()
        self._inside = classify(op) is Kind.OWNER
        try:
            result = self._done(_execute, handle, device, op, flat, attrs, outputs)
        finally:
            self._inside = False
        attrs = tuple(attrs) if attrs else ()
        self._note(op, "E", attrs, tuple([-1] * len(flat)), flat, [None] * len(flat), result, None, start)
        return result

    def _real(self, value: Any) -> Any:
        return native.read_variables(resolve_all(value))

    def _note(
        self,
        op: str,
        form: str,
        attrs: tuple[Any, ...],
        layout: tuple[int, ...],
        flat: list[Any],
        consts: list[int | None],
        result: Any,
        name: Any,
        start: float,
        raws: dict[int, Any] | None = None,
    ) -> None:
        refs: list[Ref] = []
        specs: list[Spec | None] = []
        for value, dtype in zip(flat, consts, strict=True):
            if isinstance(value, EagerTensor):
                refs.append(self.ref(value))
                specs.append(Spec(value._datatype_enum(), value._shape_tuple()))
            else:
                refs.append(Const(_copied(value), _natural(value) if dtype is None else dtype))
                specs.append(None)
        pack, outputs = pack_outputs(result)
        kind = self._kind(op, refs, outputs)
        call = Call(
            op=op,
            form=form,
            kind=kind,
            attrs=tuple(_copied(value) for value in attrs),
            layout=layout,
            inputs=tuple(refs),
            input_specs=tuple(specs),
            outputs=tuple(
                Spec(out._datatype_enum(), out._shape_tuple(), native.device_of(out)) for out in outputs
            ),
            pack=pack,
            site=None,
            position=self.position,
            name=name,
            values=tuple(outputs) if kind is Kind.KNOWN else (),
            raws=raws or {},
            device=native.device_scope(),
        )
        if kind not in (
            Kind.OWNER,
            Kind.SOURCE,
        ):  # what the owner thread computes reaches the graph as a feed
            for index, out in enumerate(outputs):
                local = Local(self.position, index)
                self.adopt(out, Known(out, local) if kind is Kind.KNOWN else local)
        self.position += 1
        if self._inner is not None:
            self._inner.append(call)
            if kind in (Kind.DRAW, Kind.OWNER, Kind.SOURCE):
                self.refuse(Reason.GRADIENT_EFFECT, f"{op} ran inside tape.gradient")
            return
        if self.overrun:
            return
        if self.limit is not None and len(self.trace.calls) > self.limit:
            # Far more ops than a region has: the loop is over and this is the rest of the program.
            self.overrun = True
            self.trace = Trace()
            self._refs.clear()
            self.on_overrun()
            return
        call.site = self._placed(self._locate(sys._getframe(2)))
        gap = start - self._last
        if gap > 0.0 and self.trace.calls and self.kept is None:  # a call that is watched takes its time
            self.trace.gaps[self.position - 1] = gap
        self.trace.calls.append(call)
        if kind is Kind.PURE and self._recording() and has_foreign_gradient(op):
            self.refuse(Reason.USER_GRADIENT, f"{op}: {UNSEEN}", call.site)
        differentiable = kind is Kind.OWNER and classify(op) is not Kind.DRAW
        if differentiable and self._recording() and any(s.dtype in _FLOATS for s in call.outputs):
            self.refuse(Reason.OPAQUE_UNDER_TAPE, f"{op} computes under an open tape", call.site)
        self._last = time.perf_counter()

    def _placed(self, site: Any) -> Any:
        """An op of a backward pass is where the op is whose gradient it computes."""
        found = backward.place(self.position - 1)
        if found is None or site is None:
            return site
        forward, ordinal = found
        return replace(
            site,
            path=(*site.path, BACKWARD, *forward.path),
            loops=(*site.loops, *forward.loops),
            ordinal=ordinal,
        )

    def _kind(self, op: str, refs: list[Ref], outputs: list[Any]) -> Kind:
        kind = classify(op)
        if kind is Kind.DRAW and not all(isinstance(ref, (Const, Known)) for ref in refs):
            return (
                Kind.OWNER
            )  # its numbers depend on a tensor: the graph runner could not draw them beforehand
        if kind is Kind.PURE and any(out._datatype_enum() in (_RESOURCE, _VARIANT) for out in outputs):
            return Kind.OWNER  # another name for something whose reads and writes are ordered by its name
        if kind is not Kind.PURE or self._inner is not None or not outputs:
            return kind
        if not all(_is_answerable(out) or (self.relaxed and _is_list(out)) for out in outputs):
            return kind
        if self.relaxed and any(len(out._shape_tuple()) > 1 for out in outputs):
            return kind
        if op in SHAPE_OPS or all(isinstance(ref, (Const, Known)) for ref in refs):
            return Kind.KNOWN
        return kind

    def refuse(self, reason: Reason, detail: str, site: Any = None) -> None:
        """Note why the region cannot be co-executed; the first reason stands."""
        if self.live_tapes and reason in NEEDS_LIVE_TAPES:
            return
        if self.trace.refused is None:
            line = f"{site.filename}:{site.line}" if site is not None else ""
            self.trace.refused = (reason, f"{detail} ({line})" if line else detail)

    def fetched(self, tensor: Any) -> None:
        """Python read the value of a real tensor."""
        if not self._mine():
            return
        ref = self.known_as(tensor)
        if self.kept is not None:
            self.read.append((tensor, ref))
        if self._inner is not None:
            # Gradient code, which co-execution never runs: what it reads must be guarded where the op got it.
            if isinstance(ref, (Known, Ext)) or (isinstance(ref, Local) and ref.position < self._first):
                self._reads.append(ref)
        elif isinstance(ref, Local):
            self.trace.fetches.add(self.position - 1)

    # -- tapes ---------------------------------------------------------------------------------------------------
    def _mine(self) -> bool:
        return get_ident() == self._owner and not self._inside

    def _recording(self) -> bool:
        return not REAL["TFE_Py_TapeSetIsEmpty"]() and not REAL["TFE_Py_TapeSetIsStopped"]()

    def _tape_event(self, what: str, tape: Any = None, ref: Ref | None = None, detail: Any = None) -> None:
        if not self._mine():
            return
        number = next((i for i, known in enumerate(self._tapes) if known is tape), -1)
        self.trace.events.append(TapeEvent(self.position, what, number, ref, detail))

    def tape_new(self, persistent: Any, watch_accessed: Any) -> Any:
        """``TFE_Py_TapeSetNew``."""
        tape = REAL["TFE_Py_TapeSetNew"](persistent, watch_accessed)
        if self._mine():
            self._tapes.append(tape)
        self._tape_event("new", tape, detail=(bool(persistent), bool(watch_accessed)))
        return tape

    def tape_add(self, tape: Any) -> Any:
        """``TFE_Py_TapeSetAdd``."""
        self._tape_event("add", tape)
        return REAL["TFE_Py_TapeSetAdd"](tape)

    def tape_remove(self, tape: Any) -> Any:
        """``TFE_Py_TapeSetRemove``."""
        self._tape_event("remove", tape)
        return REAL["TFE_Py_TapeSetRemove"](tape)

    def tape_watch(self, tape: Any, tensor: Any) -> Any:
        """``TFE_Py_TapeWatch``."""
        tensor = resolve_all(tensor)
        if isinstance(tensor, EagerTensor):
            self._tape_event("watch", tape, self.ref(tensor))
        return REAL["TFE_Py_TapeWatch"](tape, tensor)

    def tape_watch_variable(self, tape: Any, variable: Any) -> Any:
        """``TFE_Py_TapeWatchVariable``."""
        self._tape_event("watch_variable", tape, detail=id(variable.handle))
        return REAL["TFE_Py_TapeWatchVariable"](tape, variable)

    def tape_stop(self) -> Any:
        """``TFE_Py_TapeSetStopOnThread``."""
        self._tape_event("stop")
        return REAL["TFE_Py_TapeSetStopOnThread"]()

    def tape_restart(self) -> Any:
        """``TFE_Py_TapeSetRestartOnThread``."""
        self._tape_event("restart")
        return REAL["TFE_Py_TapeSetRestartOnThread"]()

    def record_operation(self, name: str, op: Any, outputs: Any, inputs: Any, *rest: Any) -> Any:
        """The three ``TFE_Py_TapeSetRecordOperation*`` functions (custom gradients, calls of ``tf.function``)."""
        outputs, inputs = resolve_all(list(outputs)), resolve_all(list(inputs))
        if self._mine() and self._recording():
            detail = gradient_detail(op, outputs, inputs, rest)
            if any(id(out) not in self._refs and out._datatype_enum() in _FLOATS for out in outputs):
                self.refuse(
                    Reason.OPAQUE_UNDER_TAPE, f"{op} made a tensor under an open tape that no op made"
                )
            elif detail is None:
                self.refuse(Reason.USER_GRADIENT, f"{op}: {UNSEEN}")
            elif self._inner is None:
                self._tape_event("record", detail=detail)
        return REAL[name](op, outputs, inputs, *rest)

    def record_gradient(self, op: Any, inputs: Any, attrs: Any, outputs: Any, *scope: Any) -> Any:
        """``TFE_Py_RecordGradient``: follows every op of the slow path while a tape is open."""
        if self.live_tapes and self._mine():
            scope = (self._token(),)
        return REAL["TFE_Py_RecordGradient"](op, resolve_all(inputs), attrs, resolve_all(outputs), *scope)

    def variable_accessed(self, variable: Any) -> Any:
        """``TFE_Py_TapeVariableAccessed``."""
        self._tape_event("access", ref=Resource(variable.handle))
        self.accessed.append(variable)
        return REAL["TFE_Py_TapeVariableAccessed"](variable)

    def follows(self) -> bool:
        """Whether the calling thread's ops are traced."""
        return self._mine()

    def settle(self) -> None:
        """Nothing is under way: ops run as they are issued."""

    def library_call(self, entry: Any, args: Any, kwargs: Any) -> Any:
        """A call of a library (`elide.entries`): it runs, and what it does is noted."""
        if self.calls is None or not self._mine() or self._inner is not None or self.overrun:
            return entry.own(*args, **kwargs)
        return self.calls.call(entry, args, kwargs)

    def function_call(self, function: Any, args: Any, kwargs: Any) -> Any:
        """A call of a function of TensorFlow's (`elide.functions`): as it is."""
        have_room()
        return function.own(*args, **kwargs)

    def query(self, name: str, *args: Any) -> Any:
        """Any other function of the boundary that takes tensors: resolved, then asked natively."""
        if name in EFFECTS:
            self.refuse(Reason.NATIVE_EFFECT, f"{name} was called in the step")
        return REAL[name](*[resolve_all(arg) for arg in args])

    def tape_gradient(
        self, tape: Any, target: Any, sources: Any, output_gradients: Any, sources_raw: Any, unconnected: Any
    ) -> Any:
        """``TFE_Py_TapeGradient``: run it, and keep the ops it issued as one composite call."""
        target, sources = resolve_all(list(target)), resolve_all(list(sources))
        output_gradients = resolve_all(output_gradients)
        given = [g for g in output_gradients or () if g is not None]
        flat = [*target, *given, *sources]
        eager = native.executing_eagerly() and all(isinstance(tensor, EagerTensor) for tensor in flat)
        if not self._mine() or not eager:
            # Another thread, or a graph that is being traced: none of the region's business.
            return _gradient(tape, target, sources, output_gradients, resolve_all(sources_raw), unconnected)
        number = next((i for i, known in enumerate(self._tapes) if known is tape), -1)
        if self.live_tapes and number >= 0:
            with backward.asked():
                return _gradient(
                    tape, target, sources, output_gradients, resolve_all(sources_raw), unconnected
                )
        refs = tuple(self.ref(tensor) for tensor in flat)
        specs = tuple(Spec(t._datatype_enum(), t._shape_tuple()) for t in flat)
        present = tuple(g is not None for g in output_gradients) if output_gradients is not None else None
        site = self._locate(sys._getframe(1))
        outer, self._inner = self._inner, []
        if outer is None:
            self._first, self._reads = self.position, []
        first = self.position
        events = len(self.trace.events)
        mark = self._user_mark()
        try:
            result = _gradient(tape, target, sources, output_gradients, resolve_all(sources_raw), unconnected)
            inner = tuple(self._inner)
            results = tuple(self._result(item) for item in result)
        finally:
            self._inner = outer
        if outer is not None:
            outer.extend(inner)
            return result
        if self._user_mark() != mark:
            self.refuse(Reason.USER_GRADIENT, "user code ran inside tape.gradient", site)
        if number < 0:
            self.refuse(Reason.TAPE_ACROSS_REGIONS, "the tape was opened before the region", site)
        self.trace.calls.append(
            Call(
                op="TapeGradient",
                form="G",
                kind=Kind.GRADIENT,
                attrs=(number, len(target), len(sources), present, str(unconnected), native.device_scope()),
                layout=(len(target), len(given), len(sources)),
                inputs=refs,
                input_specs=specs,
                outputs=(),
                pack=None,
                site=site,
                position=first,
                inner=inner,
                results=results,
                events=events,
                reads=tuple(self._reads),
            )
        )
        self._last = time.perf_counter()
        return result

    def _result(self, item: Any) -> Any:
        if item is None:
            return None
        if isinstance(item, IndexedSlices):
            dense = item.dense_shape
            return (self.ref(item.values), self.ref(item.indices), None if dense is None else self.ref(dense))
        return self.ref(item)

"""The dispatch boundary: the functions of ``pywrap_tfe`` that eager ops, tape calls and reads go through.

The boundary replaces attributes of the ``pywrap_tfe`` module (generated ops look them up at call time) by
methods of the *handler* in charge: passive (nothing is co-executed, placeholders are resolved), a surveyor, a
recorder, or the skeleton. ``OPS``, ``TAPES``, ``TENSORS`` and ``HARMLESS`` together name every ``TFE_Py_*``
function; a test compares them with the installed TensorFlow, so that a new release cannot add one unseen (C++
accepts anything that has an ``_id`` silently).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tensorflow.python.eager import context as _context

from terra_cx.tf import (
    backward,
    gradient_tape,
    native,
    profiler_sessions,
    strided_slice,
    variable_writes,
)
from terra_cx.tf.native import REAL, EagerTensorBase, HostCallbacks, NotOkStatus, pywrap_tfe
from terra_cx.tf.placeholder import Placeholder, resolve, resolve_all
from terra_cx.tf.reads import telling
from terra_cx.tf.replaced import Replaced

__all__ = ["EFFECTS", "HARMLESS", "OPS", "TAPES", "TENSORS", "Boundary", "Handler", "Passive"]

OPS = ("TFE_Py_FastPathExecute", "TFE_Py_Execute", "TFE_Py_ExecuteCancelable")
TAPES = (
    "TFE_Py_TapeSetNew",
    "TFE_Py_TapeSetAdd",
    "TFE_Py_TapeSetRemove",
    "TFE_Py_TapeSetStopOnThread",
    "TFE_Py_TapeSetRestartOnThread",
    "TFE_Py_TapeWatch",
    "TFE_Py_TapeWatchVariable",
    "TFE_Py_TapeVariableAccessed",
    "TFE_Py_TapeGradient",
    "TFE_Py_RecordGradient",
    "TFE_Py_TapeSetRecordOperation",
    "TFE_Py_TapeSetRecordOperationBackprop",
    "TFE_Py_TapeSetRecordOperationForwardprop",
)
TENSORS = (
    "TFE_Py_TapeSetShouldRecordBackprop",
    "TFE_Py_TapeSetPossibleGradientTypes",
    "TFE_Py_PackJVPs",
    "TFE_Py_ForwardAccumulatorNew",
    "TFE_Py_ForwardAccumulatorSetAdd",
    "TFE_Py_ForwardAccumulatorJVP",
    "TFE_Py_ForwardAccumulatorWatch",
    "TFE_Py_TensorShapeSlice",
    "TFE_Py_TensorShapeOnDevice",
    "TFE_Py_PackEagerTensors",
)
HARMLESS = frozenset(
    {
        "TFE_Py_EnableInteractivePythonLogging",
        "TFE_Py_ForwardAccumulatorPopState",
        "TFE_Py_ForwardAccumulatorPushState",
        "TFE_Py_ForwardAccumulatorSetRemove",
        "TFE_Py_InitEagerTensor",
        "TFE_Py_IsCustomDevice",
        "TFE_Py_RegisterCustomDevice",
        "TFE_Py_RegisterExceptionClass",
        "TFE_Py_RegisterFallbackExceptionClass",
        "TFE_Py_RegisterGradientFunction",
        "TFE_Py_RegisterJVPFunction",
        "TFE_Py_RegisterVSpace",
        "TFE_Py_SetCEagerContext",
        "TFE_Py_SetEagerContext",
        "TFE_Py_SetEagerTensorProfiler",
        "TFE_Py_TapeSetDeleteTrace",
        "TFE_Py_TapeSetIsEmpty",
        "TFE_Py_TapeSetIsStopped",
        "TFE_Py_TapeWatchedVariables",
        "TFE_Py_UID",
        "TFE_Py_VariableWatcherNew",
        "TFE_Py_VariableWatcherRemove",
        "TFE_Py_VariableWatcherVariableAccessed",
        "TFE_Py_VariableWatcherWatchedVariables",
    }
)
"""Functions that take no tensor, or that the native tape set answers rightly (tapes are really pushed and popped)."""

_DLPACK = ("TFE_ToDlpackCapsule", "TFE_DlpackDevice")
EFFECTS = frozenset(
    {
        "TFE_Py_ExecuteCancelable",
        "TFE_ContextClearCaches",
        "Context.add_op_callback",
        "TFE_Py_ForwardAccumulatorNew",
        "TFE_Py_ForwardAccumulatorSetAdd",
        "TFE_Py_ForwardAccumulatorJVP",
        "TFE_Py_ForwardAccumulatorWatch",
    }
)
"""Functions that run ops, or that change what ops do: a step that calls them is not co-executed."""
_callbacks = Replaced(_context.Context, "add_op_callback", _context)
_VALUES = frozenset(
    {"TFE_Py_TensorShapeSlice", "TFE_Py_TensorShapeOnDevice", "TFE_Py_PackEagerTensors", *_DLPACK}
)
"""Functions that only want values: they are asked natively with resolved tensors, in every state."""


class Handler(Protocol):
    """Who answers at the boundary. Methods carry the arguments of the native functions they stand for."""

    def fast(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def tape_new(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def tape_add(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def tape_remove(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def tape_watch(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def tape_watch_variable(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def tape_stop(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def tape_restart(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def tape_gradient(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def variable_accessed(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def record_operation(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def record_gradient(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def query(self, *args: Any, **kwargs: Any) -> Any:
        """See the native function of that name."""

    def follows(self) -> bool:
        """Whether the calling thread's ops are traced or co-executed."""

    def settle(self) -> None:
        """Return when everything that Python has issued has run."""

    def library_call(self, entry: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a library whose Python may be elided (`elide.entries`)."""

    def function_call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a function of TensorFlow's whose Python may be elided (`elide.functions`)."""


def _holds_placeholder(value: Any) -> bool:
    if type(value) is Placeholder:
        return True
    return isinstance(value, (list, tuple)) and any(_holds_placeholder(item) for item in value)


class Passive:
    """Eager execution as it is; only placeholders of earlier regions are resolved on their way in.

    Ops go to native code at once: it refuses a placeholder loudly *before* executing, and only then is the
    call repeated with resolved arguments. So plain eager code pays for one Python call per op.
    """

    _fast = staticmethod(REAL["TFE_Py_FastPathExecute"])
    _execute = staticmethod(REAL["TFE_Py_Execute"])

    def fast(self, ctx: Any, op: str, name: Any, *args: Any) -> Any:
        """``TFE_Py_FastPathExecute``."""
        try:
            return self._fast(ctx, op, name, *args)
        except NotOkStatus:
            raise
        except BaseException:
            if not _holds_placeholder(args):
                raise
        return self._fast(ctx, op, name, *resolve_all(args))

    def execute(self, handle: Any, device: Any, op: Any, inputs: Any, attrs: Any, outputs: Any) -> Any:
        """``TFE_Py_Execute``."""
        return self._execute(handle, device, op, resolve_all(list(inputs)), attrs, outputs)

    def tape_new(self, *args: Any) -> Any:
        """``TFE_Py_TapeSetNew``."""
        return REAL["TFE_Py_TapeSetNew"](*args)

    def tape_add(self, tape: Any) -> Any:
        """``TFE_Py_TapeSetAdd``."""
        return REAL["TFE_Py_TapeSetAdd"](tape)

    def tape_remove(self, tape: Any) -> Any:
        """``TFE_Py_TapeSetRemove``."""
        return REAL["TFE_Py_TapeSetRemove"](tape)

    def tape_watch(self, tape: Any, tensor: Any) -> Any:
        """``TFE_Py_TapeWatch``."""
        return REAL["TFE_Py_TapeWatch"](tape, resolve_all(tensor))

    def tape_watch_variable(self, tape: Any, variable: Any) -> Any:
        """``TFE_Py_TapeWatchVariable``."""
        return REAL["TFE_Py_TapeWatchVariable"](tape, variable)

    def tape_stop(self) -> Any:
        """``TFE_Py_TapeSetStopOnThread``."""
        return REAL["TFE_Py_TapeSetStopOnThread"]()

    def tape_restart(self) -> Any:
        """``TFE_Py_TapeSetRestartOnThread``."""
        return REAL["TFE_Py_TapeSetRestartOnThread"]()

    def variable_accessed(self, variable: Any) -> Any:
        """``TFE_Py_TapeVariableAccessed``."""
        return REAL["TFE_Py_TapeVariableAccessed"](variable)

    def record_operation(self, name: str, op: Any, outputs: Any, inputs: Any, *rest: Any) -> Any:
        """The three ``TFE_Py_TapeSetRecordOperation*`` functions."""
        return REAL[name](op, resolve_all(list(outputs)), resolve_all(list(inputs)), *rest)

    def record_gradient(self, op: Any, inputs: Any, attrs: Any, outputs: Any, *scope: Any) -> Any:
        """``TFE_Py_RecordGradient``: generated code tells the tapes about an op of the slow path."""
        return REAL["TFE_Py_RecordGradient"](op, resolve_all(inputs), attrs, resolve_all(outputs), *scope)

    def tape_gradient(
        self, tape: Any, target: Any, sources: Any, gradients: Any, raw: Any, unconnected: Any
    ) -> Any:
        """``TFE_Py_TapeGradient``."""
        return REAL["TFE_Py_TapeGradient"](
            tape,
            resolve_all(list(target)),
            resolve_all(list(sources)),
            resolve_all(gradients),
            resolve_all(raw),
            unconnected,
        )

    def follows(self) -> bool:
        """Nothing is traced."""
        return False

    def settle(self) -> None:
        """Nothing is under way."""

    def library_call(self, entry: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As it is."""
        return entry.own(*args, **kwargs)

    def function_call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As it is."""
        return function.own(*args, **kwargs)

    def query(self, name: str, *args: Any) -> Any:
        """Any other function that takes tensors."""
        return REAL[name](*[resolve_all(arg) for arg in args])


class Boundary:
    """Installs and removes the hooks; ``handler`` is in charge while installed."""

    def __init__(self) -> None:
        self.passive = Passive()
        self.handler: Handler = self.passive
        self.installed = False
        self._numpy: Callable[[Any], Any] = EagerTensorBase._numpy
        self._behind: Callable[[Any], Any] = Placeholder._numpy

    def install(self) -> None:
        """Put the hooks in place, passive at first."""
        if self.installed:
            return
        self.installed = True
        tapes = self.of_tapes
        setters: dict[str, Callable[..., Any]] = {
            "TFE_Py_TapeSetNew": lambda *a: tapes().tape_new(*a),
            "TFE_Py_TapeSetAdd": lambda tape: tapes().tape_add(tape),
            "TFE_Py_TapeSetRemove": lambda tape: tapes().tape_remove(tape),
            "TFE_Py_TapeSetStopOnThread": lambda: tapes().tape_stop(),
            "TFE_Py_TapeSetRestartOnThread": lambda: tapes().tape_restart(),
            "TFE_Py_TapeWatch": lambda tape, tensor: tapes().tape_watch(tape, tensor),
            "TFE_Py_TapeWatchVariable": lambda tape, variable: tapes().tape_watch_variable(tape, variable),
            "TFE_Py_TapeVariableAccessed": lambda variable: tapes().variable_accessed(variable),
            "TFE_Py_TapeGradient": lambda *a: self.handler.tape_gradient(*a),
            "TFE_Py_RecordGradient": lambda *a: tapes().record_gradient(*a),
            "TFE_ContextClearCaches": lambda *a: self.handler.query("TFE_ContextClearCaches", *a),
            "TFE_Py_ExecuteCancelable": lambda *a: self.handler.query("TFE_Py_ExecuteCancelable", *a),
        }
        for name in TAPES:
            if "RecordOperation" in name:
                setters[name] = lambda *a, _name=name: tapes().record_operation(_name, *a)
        for name in (*TENSORS, *_DLPACK):
            if name in _VALUES:
                setters[name] = lambda *a, _name=name: REAL[_name](*[resolve_all(arg) for arg in a])
            else:
                setters[name] = lambda *a, _name=name: tapes().query(_name, *a)
        for name, function in setters.items():
            if name in REAL:
                setattr(pywrap_tfe, name, function)
        _callbacks.put(lambda *a: self.handler.query("Context.add_op_callback", *a))
        strided_slice.install()
        backward.install()
        gradient_tape.install(lambda: self.handler.follows())
        variable_writes.install(lambda: self.handler.follows())
        profiler_sessions.install(lambda: self.handler.settle())
        HostCallbacks.__call__ = lambda *a: resolve_all(native.call_host(*a))
        self.use(self.passive)

    def remove(self) -> None:
        """Restore TensorFlow's own functions. Native code refuses placeholders again."""
        if not self.installed:
            return
        self.installed = False
        for name in (*OPS, *TAPES, *TENSORS, *_DLPACK, "TFE_ContextClearCaches"):
            if name in REAL:
                setattr(pywrap_tfe, name, REAL[name])
        _callbacks.take_back()
        strided_slice.remove()
        backward.remove()
        gradient_tape.remove()
        variable_writes.remove()
        profiler_sessions.remove()
        HostCallbacks.__call__ = native.call_host
        self.watch_reads(None)

    def use(self, handler: Handler) -> None:
        """Put ``handler`` in charge; ops go to its methods directly (they are the hot path)."""
        self.handler = handler
        pywrap_tfe.TFE_Py_FastPathExecute = handler.fast
        pywrap_tfe.TFE_Py_Execute = handler.execute

    def of_tapes(self) -> Handler:
        """Who hears of tapes: the handler in charge, but nobody while the graph of a function is being built.

        Its tensors are symbols and its tapes its own; to take them for the region's would lose their gradients.
        """
        return self.handler if native.executing_eagerly() else self.passive

    def watch_reads(self, seen: Callable[[Any], None] | None) -> None:
        """Call ``seen`` whenever Python reads a value, with the real eager tensor that has it; None stops it."""
        real, behind = self._numpy, self._behind
        if seen is not None:
            real = telling(real, seen)
            behind = telling(behind, lambda placeholder: seen(resolve(placeholder)))
        EagerTensorBase._numpy = real
        # In the class, as what a placeholder reads of its tensor goes past the method of real ones.
        Placeholder._numpy = behind  # type: ignore[method-assign, assignment]


def ready() -> bool:
    """Whether the eager context exists, so that hooks make sense."""
    return native.context() is not None

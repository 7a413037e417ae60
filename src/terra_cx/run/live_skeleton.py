"""The skeleton with live tapes: the native tapes are told of each validated op, and ``tape.gradient`` really runs.

Where a gradient runs code of the program (``tf.custom_gradient``, ``tf.recompute_grad``), or something that is in no
graph computed under the tape (a ``tf.function``, ``tf.py_function``, a copy to a device), the gradient cannot be one
step whose Python is skipped. Then its Python runs, and the ops that it issues are validated like all others.

Guarantees:

* A tape is told what eager would tell it, in the same order: so gradients are summed in eager's order, bit for bit.
* A tape knows tensors by number. That of a placeholder is its slot's, and does not change when the value comes.
* A tape knows tensors by identity, so known results are others each time.
* What an op of the owner's gave (a real tensor) is also noted in the log: a rebuild (`run.fallback`), in which tensors
  get new numbers, tells the tapes of it again.

Source: ``pywrap_tfe_src.cc``, ``RecordGradient`` and ``TFE_Py_TapeGradient``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from terra_cx.compile.blocks import Step
from terra_cx.reasons import Reason
from terra_cx.run.block_run import BlockRun
from terra_cx.run.checks import bindings, flat_inputs
from terra_cx.run.fallback import set_aside
from terra_cx.run.skeleton import Skeleton
from terra_cx.tf import backward, native
from terra_cx.tf.boundary import EFFECTS
from terra_cx.tf.native import REAL, EagerTensor
from terra_cx.tf.opdefs import Kind, inferred_attrs
from terra_cx.tf.placeholder import Placeholder

__all__ = ["LiveSkeleton"]

_record = REAL["TFE_Py_RecordGradient"]
_tapes_empty = REAL["TFE_Py_TapeSetIsEmpty"]
_tapes_stopped = REAL["TFE_Py_TapeSetIsStopped"]


class LiveSkeleton(Skeleton):
    """See the module's page."""

    live = True

    def begin(self) -> None:
        """A region starts."""
        super().begin()
        backward.follow(self.position)

    def commit(self, run: BlockRun, step: Step, args: tuple[Any, ...], name: Any) -> Any:
        """As `Skeleton.commit`; then the tapes are told, as native code does on the fast path."""
        answer = super().commit(run, step, args, name)
        if step.form == "F" and not _tapes_empty() and not _tapes_stopped():
            outputs = list(_flat(answer))
            if outputs:
                inputs = _inputs(run, step, args)
                if step.inferred is None or step.kind is Kind.OWNER:  # which may be given more, or less
                    dtypes = [tensor._datatype_enum() for tensor in inputs]
                    step.inferred = inferred_attrs(step.op, _layout(step, args), dtypes)
                scope = backward.step_token(step)
                self._tell(step.op, inputs, (*args[step.width :], *step.inferred), outputs, scope)
        return answer

    def known(self, step: Step) -> Sequence[Any]:
        """Under a tape, tensors of their own, as eager's would be.

        The same ones each time would be, to a tape, the results of the last of the ops that gave them, and what came
        before would hang on what came after it: in a loop under an outer tape, ``Invalid tape state``.
        """
        if _tapes_empty() or _tapes_stopped():
            return step.values
        return [native.twin(value) for value in step.values]

    def library_call(self, entry: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Elided only where no tape has to be told of its ops."""
        if not _tapes_empty():
            return entry.own(*args, **kwargs)
        return super().library_call(entry, args, kwargs)

    def function_call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As `library_call`."""
        if not _tapes_empty():
            return function.own(*args, **kwargs)
        return super().function_call(function, args, kwargs)

    def _tell(self, op: Any, inputs: list[Any], attrs: Any, outputs: list[Any], scope: str) -> None:
        _record(op, inputs, attrs, outputs, scope)
        if not all(type(tensor) is Placeholder for tensor in outputs):
            # A rebuild executes validated ops again, and tells the tapes of them; this one it would not.
            self._event("gradient", args=(op, _kept(inputs), attrs, _kept(outputs), scope))

    def tape_watch(self, tape: Any, tensor: Any) -> Any:
        """``TFE_Py_TapeWatch``: noted, and told."""
        if not self._mine():
            return super().tape_watch(tape, tensor)
        self._event("watch", tape, tensor._slot if type(tensor) is Placeholder else tensor)
        return REAL["TFE_Py_TapeWatch"](tape, tensor)

    def record_operation(self, name: str, op: Any, outputs: Any, inputs: Any, *rest: Any) -> Any:
        """Custom gradients and calls of ``tf.function``: noted, and told."""
        if not self._mine() or _tapes_empty() or _tapes_stopped():
            return super().record_operation(name, op, outputs, inputs, *rest)
        outputs, inputs = list(outputs), list(inputs)
        self._event("record", args=(name, op, _kept(outputs), _kept(inputs), rest))
        return REAL[name](op, outputs, inputs, *rest)

    def record_gradient(self, op: Any, inputs: Any, attrs: Any, outputs: Any, *scope: Any) -> Any:
        """``TFE_Py_RecordGradient``: generated code tells the tapes about an op of the slow path."""
        tensors = all(isinstance(tensor, EagerTensor) for tensor in outputs)
        if not self._mine() or not tensors:
            return super().record_gradient(op, inputs, attrs, outputs, *scope)
        return self._tell(op, list(inputs), attrs, list(outputs), backward.token(self.here().call.site))

    def query(self, name: str, *args: Any) -> Any:
        """A native question about tensors; the tapes know the answer."""
        if not self._mine() or name in EFFECTS:
            return super().query(name, *args)
        return REAL[name](*args)

    def tape_gradient(
        self, tape: Any, target: Any, sources: Any, output_gradients: Any, sources_raw: Any, unconnected: Any
    ) -> Any:
        """``TFE_Py_TapeGradient``: the tape is asked, and the gradients' Python comes back here with its ops."""
        number = self.log.tape_number(tape)
        eager = all(isinstance(tensor, EagerTensor) for tensor in (*target, *sources))
        if number < 0 or not eager or not self._mine():
            return super().tape_gradient(tape, target, sources, output_gradients, sources_raw, unconnected)
        log = self.log
        persistent = log.persistent(number)
        recording = persistent and number in log.active()
        if recording and log.tells_of_tensors():
            recorder = self.diverge(
                Reason.OPAQUE_UNDER_TAPE,
                "a persistent tape is asked in its own context after such a computation",
            )
            return recorder.tape_gradient(tape, target, sources, output_gradients, sources_raw, unconnected)
        if not persistent:
            log.consumed.add(number)  # now: a divergence on the way must not rebuild it
        apart = set_aside(log, number) if persistent and not recording else nullcontext()
        with backward.asked(), apart:
            return REAL["TFE_Py_TapeGradient"](
                tape, target, sources, output_gradients, sources_raw, unconnected
            )


def _flat(answer: Any) -> Iterator[Any]:
    if isinstance(answer, list):
        for item in answer:
            yield from _flat(item)
    elif answer is not None:
        yield answer


def _kept(tensors: list[Any]) -> list[Any]:
    """The tensors without the placeholders: the log holds slots."""
    return [tensor._slot if type(tensor) is Placeholder else tensor for tensor in tensors]


def _inputs(run: BlockRun, step: Step, args: tuple[Any, ...]) -> list[Any]:
    """The flat inputs of a fast-path op as tensors: a tape never hears of raw values."""
    flat = flat_inputs(step, args)
    if all(isinstance(arg, EagerTensor) for arg in flat):
        return flat
    bound = bindings(run, step, guarded=True)
    dtypes = [rule.dtype for rule in step.node.rules] or [None] * len(flat)
    for index, arg in enumerate(flat):
        if not isinstance(arg, EagerTensor):
            known = bound[index] if index < len(bound) else None
            flat[index] = known if isinstance(known, EagerTensor) else native.tensor_of(arg, dtypes[index])
    return flat


def _layout(step: Step, args: tuple[Any, ...]) -> tuple[int, ...]:
    """The layout of an op's arguments, as `trace.records.Call` has it."""
    layout: tuple[int, ...] = step.node.call.layout
    return tuple(len(arg) if count >= 0 else -1 for arg, count in zip(args, layout, strict=False))

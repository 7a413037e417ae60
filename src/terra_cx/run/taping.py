"""What the tapes are told while a region is co-executed, and ``tape.gradient`` as one validated step.

Native tapes are made, pushed and popped as the program asks, but no op is recorded on them: the region's log notes each
event with its position, so that a divergence can rebuild the tape (`run.fallback`). A gradient is answered with
placeholders if what the tape saw has a signature that the TraceGraph knows (`run.signature`); its Python never runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import get_ident
from typing import Any

from terra_cx.compile.blocks import Step
from terra_cx.reasons import Reason
from terra_cx.run.block_run import BlockRun, Frozen
from terra_cx.run.checks import admits
from terra_cx.run.differences import of_gradient
from terra_cx.run.dispatching import Dispatching
from terra_cx.run.divergence import Diverge
from terra_cx.run.handover import Handover
from terra_cx.run.region_log import Event
from terra_cx.run.signature import signature_of, unknown_shapes
from terra_cx.tf import native
from terra_cx.tf.boundary import Passive
from terra_cx.tf.custom_gradients import UNSEEN, gradient_detail
from terra_cx.tf.native import REAL, EagerTensor, IndexedSlices
from terra_cx.tf.opdefs import Kind
from terra_cx.tf.placeholder import Placeholder, new_placeholder, resolve_all
from terra_cx.tf.slots import Slot
from terra_cx.trace.tracegraph import Node, TraceGraph

__all__ = ["Taping"]

_RESOURCE = 20
_passive = Passive()
_tapes_empty = REAL["TFE_Py_TapeSetIsEmpty"]


class Taping(Dispatching, ABC):
    """The tape calls of the dispatch boundary, each under the name by which `tf.boundary.Handler` knows it.

    Args: those of `Dispatching`.
    """

    def __init__(self, graph: TraceGraph, handover: Handover, diverged: Callable[[Diverge], Any]) -> None:
        super().__init__(graph, handover, diverged)
        self._signatures: dict[Any, Any] = {}

    @abstractmethod
    def elsewhere(
        self, wanted: Callable[[Node], bool], fits: Callable[[BlockRun, Step], bool]
    ) -> tuple[BlockRun, Step] | None:
        """Another way on from here that the TraceGraph holds, entered."""

    @abstractmethod
    def advance(self, run: BlockRun, step: Step) -> None:
        """Commit a validated step."""

    def _event(self, what: str, tape: Any = None, args: Any = None, detail: Any = None) -> None:
        log = self.log
        number = log.tape_number(tape) if tape is not None else -1
        log.events.append(Event(self.position(), what, number, args, detail))

    # -- what the tapes are told ---------------------------------------------------------------------------------
    def tape_new(self, persistent: Any, watch_accessed: Any) -> Any:
        """``TFE_Py_TapeSetNew``: the native tape is made and stays empty unless the region diverges."""
        tape = REAL["TFE_Py_TapeSetNew"](persistent, watch_accessed)
        if self._mine():
            self.log.tapes.append(tape)
            self._event("new", tape, detail=(bool(persistent), bool(watch_accessed)))
        return tape

    def tape_add(self, tape: Any) -> Any:
        """``TFE_Py_TapeSetAdd``."""
        if self._mine():
            self._event("add", tape)
        return REAL["TFE_Py_TapeSetAdd"](tape)

    def tape_remove(self, tape: Any) -> Any:
        """``TFE_Py_TapeSetRemove``."""
        if self._mine():
            self._event("remove", tape)
        return REAL["TFE_Py_TapeSetRemove"](tape)

    def tape_watch(self, tape: Any, tensor: Any) -> Any:
        """``TFE_Py_TapeWatch``: noted; told to the native tape at once unless the tensor is a placeholder."""
        if not self._mine():
            return REAL["TFE_Py_TapeWatch"](tape, resolve_all(tensor))
        self._event("watch", tape, tensor._slot if type(tensor) is Placeholder else tensor)
        return None if type(tensor) is Placeholder else REAL["TFE_Py_TapeWatch"](tape, tensor)

    def tape_watch_variable(self, tape: Any, variable: Any) -> Any:
        """``TFE_Py_TapeWatchVariable``: the native tape watches it at once."""
        if self._mine():
            self._event("watch_variable", tape, detail=id(variable.handle))
        return REAL["TFE_Py_TapeWatchVariable"](tape, variable)

    def tape_stop(self) -> Any:
        """``TFE_Py_TapeSetStopOnThread``."""
        if self._mine():
            self._event("stop")
        return REAL["TFE_Py_TapeSetStopOnThread"]()

    def tape_restart(self) -> Any:
        """``TFE_Py_TapeSetRestartOnThread``."""
        if self._mine():
            self._event("restart")
        return REAL["TFE_Py_TapeSetRestartOnThread"]()

    def record_operation(self, name: str, op: Any, outputs: Any, inputs: Any, *rest: Any) -> Any:
        """Custom gradients: noted for a rebuild, told to nobody else (the native tape is empty)."""
        if self._mine() and (_tapes_empty() or REAL["TFE_Py_TapeSetIsStopped"]()):
            return None  # nobody listens
        if not self._mine():
            return REAL[name](op, resolve_all(list(outputs)), resolve_all(list(inputs)), *rest)
        detail = gradient_detail(op, outputs, inputs, rest)
        if detail is None or not all(type(t) is Placeholder for t in outputs):
            # Known steps hold no such thing: the recorder says whether it can be known.
            recorder = self.diverge(Reason.USER_GRADIENT, f"{op}: {UNSEEN}")
            return recorder.record_operation(name, op, outputs, inputs, *rest)
        kept = [[t._slot if type(t) is Placeholder else t for t in group] for group in (outputs, inputs)]
        self._event("record", args=(name, op, kept[0], kept[1], rest), detail=detail)
        return None

    def record_gradient(self, op: Any, inputs: Any, attrs: Any, outputs: Any, *scope: Any) -> Any:
        """``TFE_Py_RecordGradient``: nothing to tell, the op was validated and the native tape is empty."""
        if not self._mine() or not all(isinstance(t, EagerTensor) for t in outputs):
            return REAL["TFE_Py_RecordGradient"](op, resolve_all(inputs), attrs, resolve_all(outputs), *scope)
        return None

    def variable_accessed(self, variable: Any) -> Any:
        """``TFE_Py_TapeVariableAccessed``: the native tape watches the variable, as in eager."""
        if not self.busy and get_ident() == self.owner and self.log.tapes:  # often: `_mine`, without the call
            self.log.events.append(Event(self.position(), "access", args=(variable.handle,)))
        return REAL["TFE_Py_TapeVariableAccessed"](variable)

    # -- gradients -----------------------------------------------------------------------------------------------
    def follows(self) -> bool:
        """Whether the calling thread's ops are co-executed."""
        return get_ident() == self.owner and not self.busy  # `_mine`, without the call: every write asks

    def tape_gradient(
        self, tape: Any, target: Any, sources: Any, output_gradients: Any, sources_raw: Any, unconnected: Any
    ) -> Any:
        """``TFE_Py_TapeGradient``: one validated step, whose ops are known from the tape's history."""
        if not self._mine() or not all(isinstance(tensor, EagerTensor) for tensor in (*target, *sources)):
            # Another thread's, or a graph's that is being traced: none of the region's business.
            return _passive.tape_gradient(tape, target, sources, output_gradients, sources_raw, unconnected)
        log = self.log
        number = log.tape_number(tape)
        if number >= 0:
            given = [g for g in output_gradients or () if g is not None]
            present = tuple(g is not None for g in output_gradients) if output_gradients is not None else None
            scope = native.device_scope()
            attrs = (number, len(target), len(sources), present, str(unconnected), scope)
            for slot in unknown_shapes(log, number):
                slot.resolve()
            answer = self._validated(attrs, [*target, *given, *sources], number)
            if answer is not None:
                if not log.persistent(number):
                    log.consumed.add(number)
                return answer
            signature = signature_of(self._signatures, log, number, _asked([*target, *given, *sources]))
            difference = of_gradient(self.here(), self.step, attrs, signature)
            recorder = self.diverge(Reason.NEW_GRADIENT, difference)
        else:
            recorder = self.diverge(Reason.TAPE_ACROSS_REGIONS, "the tape was opened in an earlier step")
        return recorder.tape_gradient(tape, target, sources, output_gradients, sources_raw, unconnected)

    def _validated(self, attrs: Any, flat: list[Any], tape: int) -> list[Any] | None:
        self.busy = True
        try:
            while True:
                found = self._step(attrs, flat, tape)
                if found is None:
                    return None
                try:
                    return self._commit(*found)
                except Frozen:
                    self.dispatch()
        finally:
            self.busy = False

    def _step(self, attrs: Any, flat: list[Any], tape: int) -> tuple[BlockRun, Step] | None:
        signature = signature_of(self._signatures, self.log, tape, _asked(flat))
        run, step = self.run, self.step
        if (
            run is not None
            and step is not None
            and step.kind is Kind.GRADIENT
            and self._fits(run, step, attrs, flat, signature)
        ):
            return run, step
        return self.elsewhere(
            lambda node: node.kind is Kind.GRADIENT and node.signature == signature,
            lambda run, step: self._fits(run, step, attrs, flat, signature),
        )

    def _fits(self, run: BlockRun, step: Step, attrs: Any, flat: list[Any], signature: Any) -> bool:
        if step.attrs != attrs or len(flat) != len(step.checks):
            return False
        if step.node.signature is not signature and step.node.signature != signature:
            return False
        if not all(admits(run, check, arg) for check, arg in zip(step.checks, flat, strict=True)):
            return False
        known = self.log.bound
        for number, node, out, turn in step.implicit:
            bound = known.get((node, out, turn))
            if bound is None or (type(bound) is Slot and bound.run is run):
                return False
            unknown = type(bound) is Slot and bound.spec.shape is None
            if unknown and bound.resolve()._shape_tuple() != run.block.params[number].shape:
                return False
            run.params[number] = bound
        return step.named <= known.keys()

    def _commit(self, run: BlockRun, step: Step) -> list[Any]:
        base, slots = step.base, run.slots
        log = self.log
        needed = [base + out for out in step.needed if out >= 0]
        for flat in (*step.given, *needed):
            if slots[flat] is None:
                slots[flat] = Slot(step.specs[flat - base], run, flat)
        for flat in needed:
            log.bound[step.node, flat - base, log.turns.get(step.node, 0)] = slots[flat]
        result = [_answer(item, run, log.bound) for item in step.results]
        self.advance(run, step)
        return result


def _answer(item: Any, run: BlockRun, bound: dict[Any, Any]) -> Any:
    """One result of a gradient, as Python gets it."""
    if item is None:
        return None
    what = item[0]
    if isinstance(what, tuple) or what is None:
        values, indices, dense = (_answer(part, run, bound) for part in item)
        return IndexedSlices(values, indices, dense)
    if what == "k" or what == "r":
        return item[1]
    thing = run.slots[item[1]] if what == "l" else run.params[item[1]] if what == "p" else bound[item[1:]]
    return new_placeholder(thing) if type(thing) is Slot else thing


def _asked(flat: list[Any]) -> list[Any]:
    """Targets, output gradients and sources of a gradient that are no variables, as slots or real tensors."""
    asked = []
    for arg in flat:
        if type(arg) is Placeholder:
            if arg._slot.spec.dtype != _RESOURCE:
                asked.append(arg._slot)
        elif arg._datatype_enum() != _RESOURCE:
            asked.append(arg)
    return asked

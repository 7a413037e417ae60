"""The skeleton: Python goes on, its ops are checked against the TraceGraph and answered with placeholders.

Guarantees:

* An op is answered only if it is the block's next op: same op, attributes, constants, wiring, dtypes and
  shapes. Anything else is a *leave* (the TraceGraph holds another way on) or a *divergence* (it does not),
  and nothing is lost by either.
* What was issued and not handed over, and who may wait for it: see `run.dispatching`.
* An op is committed by `advance`, in a stretch of bytecode that nothing can interrupt; all that is written before
  counts for nothing until then. So an exception (Ctrl-C) leaves the run as it was.
* Ops of other threads, and ops that arrive while the skeleton is at work (finalisers, signal handlers), run natively.
  If they may depend on what Python has issued, the open run is *frozen* and handed over first; the op that was being
  validated finds that out when it is to be committed, and is validated anew behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sys import gettrace
from threading import get_ident
from time import perf_counter
from typing import Any

from terra_cx.compile.blocks import LIST, LOCAL, Block, Step
from terra_cx.reasons import Reason
from terra_cx.run.arguments import normalised
from terra_cx.run.block_run import BlockRun, Draw, Frozen
from terra_cx.run.checks import admits, bindings, flat_inputs
from terra_cx.run.differences import of_op, of_shape
from terra_cx.run.divergence import Diverge
from terra_cx.run.handover import Handover
from terra_cx.run.region_log import Event
from terra_cx.run.taping import Taping
from terra_cx.run.true_shapes import derived, shape_of, specs_of
from terra_cx.tf import native
from terra_cx.tf.boundary import EFFECTS, Passive
from terra_cx.tf.datasets import Independence
from terra_cx.tf.native import REAL, FallbackException
from terra_cx.tf.opdefs import SHAPE_OPS, Kind, classify, is_seed, lasting_attrs
from terra_cx.tf.placeholder import Placeholder, new_placeholder, resolve_all
from terra_cx.tf.slots import Slot
from terra_cx.trace.keys import freeze
from terra_cx.trace.recorder import Recorder
from terra_cx.trace.rules import Need
from terra_cx.trace.tracegraph import TIMED, Node, TraceGraph

__all__ = ["Skeleton"]

_INTERNAL = (AttributeError, LookupError, AssertionError, NameError)
"""What a mistake of ours looks like; TensorFlow's own refusals have other types."""
_fast = REAL["TFE_Py_FastPathExecute"]
_execute = REAL["TFE_Py_Execute"]
_accessed = REAL["TFE_Py_TapeVariableAccessed"]
_watched = REAL["TFE_Py_VariableWatcherVariableAccessed"]
_tapes_empty = REAL["TFE_Py_TapeSetIsEmpty"]


class Answer:
    """What a validated op returns to Python."""

    __slots__ = ("answer",)

    def __init__(self, answer: Any) -> None:
        self.answer = answer


class Skeleton(Taping):
    """Boundary handler of a co-executed region.

    Args:
        graph: the anchor's TraceGraph.
        block_for: gives the current block that starts at a node, building it if needed.
        handover: takes the runs to the graph runner.
        diverged: as in `Dispatching`.
        sync_errors: whether an op that may fail is waited for before Python goes on.
    """

    def __init__(
        self,
        graph: TraceGraph,
        block_for: Callable[[Node], Block],
        handover: Handover,
        diverged: Callable[[Diverge], Any],
        *,
        sync_errors: bool = False,
    ) -> None:
        super().__init__(graph, handover, diverged)
        self.block_for = block_for
        self.sync_errors = sync_errors
        self.independent = Independence()
        self.elider: Any = None
        """Who elides library calls (`run.elider.Elider`), if anybody."""
        self.functions: Any = None
        """Who elides calls of TensorFlow's functions (`run.function_elider.FunctionElider`), if anybody."""
        self.since: tuple[Node, float] | None = None
        """After which node Python may be busy for long, and since when."""

    # -- ops -------------------------------------------------------------------------------------------------
    def fast(self, ctx: Any, op: str, name: Any, *args: Any) -> Any:
        """``TFE_Py_FastPathExecute``: validate and answer with placeholders."""
        if self.busy or get_ident() != self.owner:  # `_mine`, without the call
            return self.foreign(op, lambda a: _fast(ctx, op, name, *a), args)
        step = self.step
        if step is not None and step.direct and step.op == op and not (self.scoped and self.misplaced(step)):
            self.busy = True
            try:
                run = self.run  # there is one wherever a step is expected, which types cannot say
                attrs = args[step.width :]
                if attrs == step.attrs and [*map(type, attrs)] == step.types:
                    slots = run.slots  # type: ignore[union-attr]
                    for check, arg in zip(step.checks, args, strict=False):
                        if check[0] == LOCAL:  # `admits` without the call: most arguments are of this kind
                            if type(arg) is not Placeholder or arg._slot is not slots[check[1]]:
                                break
                        elif not admits(run, check, arg):
                            break
                    else:
                        return self.commit(run, step, args, name)  # type: ignore[arg-type]
            except Frozen:
                self.dispatch()
            except Diverge as divergence:
                self.busy = False
                return self.diverged(divergence).fast(ctx, op, name, *resolve_all(args))
            except _INTERNAL as error:
                self.busy = False
                return self.diverged(self.failed(error)).fast(ctx, op, name, *resolve_all(args))
            finally:
                self.busy = False
        converted = normalised(op, args)
        if converted is not args:
            # Reading the variables was an op of its own. It may have diverged: whoever is in charge now goes on.
            return native.fast_path(ctx, op, name, *converted)
        step = self.step
        if (
            step is not None
            and step.op == op
            and step.form == "E"
            and not any(c[0] == LIST for c in step.checks)
        ):
            raise FallbackException("terra-cx: the program is known to take the slow path here")
        found = self.validated(op, "F", args, name)
        if isinstance(found, Diverge):
            if found.reason != Reason.INTERNAL_ERROR and any(
                node.call.op == op and node.call.form == "E" for node in self.here().succ
            ):
                raise FallbackException("terra-cx: the program is known to take the slow path here")
            return self.unknown(op, found, lambda by: by.fast(ctx, op, name, *resolve_all(args)))
        return found.answer

    def execute(self, handle: Any, device: Any, op: Any, inputs: Any, attrs: Any, outputs: Any) -> Any:
        """``TFE_Py_Execute``: validate and answer with placeholders."""
        text = op.decode() if isinstance(op, bytes) else op
        if not self._mine():
            return self.foreign(
                text, lambda a: _execute(handle, device, op, a[0], attrs, outputs), (list(inputs),)
            )
        inputs = list(inputs)
        found = self.validated(text, "E", (inputs, tuple(attrs) if attrs else (), outputs), None)
        if isinstance(found, Diverge):
            return self.unknown(
                text,
                found,
                lambda by: by.execute(handle, device, op, resolve_all(inputs), attrs, outputs),
            )
        return found.answer

    def unknown(self, op: str, divergence: Diverge, do: Callable[[Any], Any]) -> Any:
        """An op that the TraceGraph does not have here: the region diverges, if it is not the end of an iterator.

        A next element is mostly asked for to find out that there is none, and an op that fails is in no trace: the loop
        over a validation set ended in a fallback each time. So it is asked for first, when what was issued before has
        happened, as in eager.

        Args:
            op: its name.
            divergence: what it is then.
            do: has a handler of the boundary execute it.
        """
        if classify(op) is not Kind.SOURCE:
            return do(self.diverged(divergence))
        run = self.run
        if run is not None and run.pos and not run.complete:
            self.graph.cut(self.here(), "an iterator's end")
        self.busy = True
        try:
            self.dispatch()
        finally:
            self.busy = False
        self.drain()
        element = do(Passive())
        handler = self.diverged(divergence)
        if isinstance(handler, Recorder):
            handler.executed = element
            return do(handler)
        return element

    def validated(self, op: str, form: str, args: tuple[Any, ...], name: Any) -> Answer | Diverge:
        """Validate an op against the next step, or against the other ways on; its `Answer`, or why it diverges."""
        self.busy = True
        try:
            while True:
                try:
                    step = self.step
                    if step is not None and self.fits(self.run, step, op, form, args):
                        return Answer(self.commit(self.run, step, args, name))  # type: ignore[arg-type]
                    found = self.elsewhere(
                        lambda node: (
                            node.call.op == op and node.call.form == form and _may_have(node, form, args)
                        ),
                        lambda run, step: self.fits(run, step, op, form, args),
                    )
                    if found is not None:
                        return Answer(self.commit(*found, args, name))
                    return Diverge(*of_op(self, op, form, args))
                except Frozen:
                    self.dispatch()
        except Diverge as divergence:
            return divergence
        except _INTERNAL as error:
            return self.failed(error)
        finally:
            self.busy = False

    def fits(self, run: BlockRun | None, step: Step, op: str, form: str, args: tuple[Any, ...]) -> bool:
        """Whether an op is what ``step`` expects; binds the run's parameters as it goes."""
        if step.op != op or step.form != form or (self.scoped and self.misplaced(step)):
            return False
        if form == "F":
            inputs, attrs = args[: step.width], args[step.width :]
        else:
            inputs, attrs = args[0], args[1]
        if freeze(lasting_attrs(step.kind, attrs)) != step.frozen:
            return False
        if step.kind in (Kind.OWNER, Kind.SOURCE):
            return True
        if step.kind is Kind.DRAW and form == "F" and not all(map(is_seed, attrs[1::2], attrs[::2])):
            return False  # in eager native code refuses a seed of NumPy's, and the op goes the slow way
        if len(inputs) != len(step.checks):
            return False
        return all(admits(run, check, arg) for check, arg in zip(step.checks, inputs, strict=True))

    def elsewhere(
        self, wanted: Callable[[Node], bool], fits: Callable[[BlockRun, Step], bool]
    ) -> tuple[BlockRun, Step] | None:
        """Another way on from here that the TraceGraph holds: start its block, leaving the open one if need be.

        Args:
            wanted: whether a next node may be the one; the hottest is tried first.
            fits: whether a run of its block admits what Python asks for.
        """
        run = self.run
        here = self.here()
        inside = run is not None and not run.complete
        for node in sorted(here.succ, key=here.succ.__getitem__, reverse=True):
            if not wanted(node):
                continue
            started = self.begun(node)
            if fits(started, started.block.steps[0]):
                if inside:
                    self.left(here)
                return self.enter(started, here, node)
        return None

    def begun(self, node: Node) -> BlockRun:
        """A run of the block that begins at ``node``; the open run's placeholders count as made before it."""
        run = self.run
        position = self.log.position if run is None else run.position
        return BlockRun(self.block_for(node), self, position, self.log.number)

    def enter(self, started: BlockRun, here: Node, node: Node, pos: int = 0) -> tuple[BlockRun, Step]:
        """Dispatch what was open and go on with ``started``, whose first ``pos`` steps count as validated."""
        if self.since is not None:
            (last, start), self.since = self.since, None
            if last is here:
                self.graph.busy(here, perf_counter() - start)
        self.dispatch()
        here.succ[node] += 1
        steps = started.block.steps
        following = steps[pos] if pos < len(steps) else None
        if pos:
            started.start = self.position()
        self.log.runs.append(started)
        # No call from here: Ctrl-C finds the run open as a whole, or not at all.
        self.run = started
        self.step = following
        started.pos = pos
        if following is None and started.block.prompt:
            self.lull(started)
        return started, steps[0]

    def begin_with(self, started: BlockRun) -> None:
        """Go on with a run that was `begun` here.

        Raises:
            Frozen: a signal handler has issued ops since.
        """
        if self.position() != started.start:
            raise Frozen
        self.enter(started, self.here(), started.block.steps[0].node)

    def left(self, node: Node) -> None:
        """The open block was left after ``node``; the second time, a cut is made there."""
        node.leaves += 1
        if node.leaves >= 2:
            self.graph.cut(node, "branch")

    def commit(self, run: BlockRun, step: Step, args: tuple[Any, ...], name: Any) -> Any:
        """The op is what was expected: make its slots, step on, answer.

        Raises:
            Frozen: the run was handed over meanwhile; nothing was committed.
        """
        if not step.computed and step.kind is not Kind.DRAW:
            return self.answered(run, step, args, name)
        slots = run.slots
        base = step.base
        if step.needed:
            self.keep_arguments(run, step)
        if not step.computed:
            run.draws[base] = Draw(step, step.op, step.form, name, resolve_all(args))
        specs = specs_of(self.graph, step, args) if step.relaxed else step.specs
        if step.pack == 0:
            slot = slots[base] = Slot(specs[0], run, base)
            answer: Any = new_placeholder(slot)
        else:
            made = [Slot(spec, run, base + index) for index, spec in enumerate(specs)]
            slots[base : base + len(made)] = made
            answer = _unpack(step.pack, [new_placeholder(slot) for slot in made])
            del made
        if step.needed:
            self.keep_outputs(run, step)
        self.advance(run, step)
        return answer

    def answered(self, run: BlockRun, step: Step, args: tuple[Any, ...], name: Any) -> Any:
        """Commit an op whose result Python gets at once: known, the next element of an iterator, or the owner's."""
        if step.kind is Kind.KNOWN:
            if step.needed:
                self.keep_arguments(run, step)
            if step.op in SHAPE_OPS and not self.shapes_hold(step, args):
                self.graph.compute(step.node)
                raise Diverge(Reason.NEW_SHAPE, of_shape(step, args))
            self.advance(run, step)
            return _unpack(step.pack, self.known(step))
        if step.kind is Kind.DERIVED:
            values = derived(step, args, lambda: self.natively(step, args, name))
            for flat, value in enumerate(values, step.base):
                run.slots[flat] = held = Slot(step.specs[flat - step.base], run, flat)
                held.value = value
            self.advance(run, step)
            return _unpack(step.pack, values)
        if step.kind is Kind.OWNER or not self.independent.of((args if step.form == "F" else args[0])[0]):
            return self.on_owner(run, step, args, name)
        result = self.natively(step, args, name)
        while True:
            try:
                self.advance(run, step)
                return result
            except Frozen:  # the element is taken: only the place of the op is sought anew
                here = self.here()
                self.dispatch()
                run, step = self.enter(self.begun(step.node), here, step.node)

    def known(self, step: Step) -> Sequence[Any]:
        """The results of a step that are known."""
        return step.values

    def shapes_hold(self, step: Step, args: tuple[Any, ...]) -> bool:
        """Whether the arguments of a shape op have the recorded shapes; one that only its value tells is fetched."""
        flat = flat_inputs(step, args)
        if self.graph.relaxed:
            specs = step.node.call.input_specs
            return all(
                spec is None or shape_of(arg) == spec.shape for arg, spec in zip(flat, specs, strict=True)
            )
        for item, spec in zip(flat, step.node.call.input_specs, strict=True):
            if type(item) is not Placeholder or item._slot.spec.shape is not None or spec is None:
                continue
            if item._slot.run is self.run or item._shape_tuple() != spec.shape:
                return False
        return True

    def keep_arguments(self, run: BlockRun, step: Step) -> None:
        """Remember arguments that a gradient in a later block refers to.

        Not the arguments as given: a raw value was converted, and the gradient means the tensor.
        """
        wanted = [-1 - out for out in step.needed if out < 0]
        if not wanted:
            return
        turn = self.log.turns.get(step.node, 0)
        bound = bindings(run, step, guarded=True)
        for index in wanted:
            if index < len(bound) and bound[index] is not None:
                self.log.bound[step.node, -1 - index, turn] = bound[index]

    def keep_outputs(self, run: BlockRun, step: Step) -> None:
        """Remember outputs that a gradient in a later block refers to."""
        turn = self.log.turns.get(step.node, 0)
        for out in step.needed:
            if out >= 0:
                self.log.bound[step.node, out, turn] = run.slots[step.base + out]

    def advance(self, run: BlockRun, step: Step) -> None:
        """Commit: the op at ``step`` is validated. A block that is followed by host time is dispatched at its end.

        Raises:
            Frozen: the run was handed over meanwhile; nothing was committed.
        """
        steps = run.block.steps
        pos = run.pos + 1
        following = steps[pos] if pos < len(steps) else None
        turns, node, turn = self.log.turns, step.node, 0
        if step.needed:
            turn = turns.get(node, 0) + 1
        # No call and no jump backwards from here to the end of the commit: threads, signals and finalisers come in
        # at those only.
        if run.frozen:
            raise Frozen
        run.pos = pos
        self.step = following
        if turn:
            turns[node] = turn
        # Committed.
        if self.sync_errors:
            self.barrier()  # the user wants errors where they happen and pays for it
        if following is None and run.block.prompt and self.run is run:
            self.lull(run)

    def advance_over(self, run: BlockRun, pos: int, turns: dict[Node, int]) -> None:
        """Commit several steps at once, up to ``pos``; see `advance`.

        Args:
            run: the open run.
            pos: the number of validated steps afterwards.
            turns: how often nodes that gradients refer to have been executed then.

        Raises:
            Frozen: the run was handed over meanwhile; nothing was committed.
        """
        steps = run.block.steps
        following = steps[pos] if pos < len(steps) else None
        if run.frozen:
            raise Frozen
        run.pos = pos
        self.step = following
        self.log.turns.update(turns)
        if following is None and run.block.prompt:
            self.lull(run)

    def lull(self, run: BlockRun) -> None:
        """The block ends where Python is busy for long: have the graph run meanwhile, and see how long it is."""
        node = run.block.nodes[-1]
        self.dispatch()
        if node.timed < TIMED:
            self.since = node, perf_counter()

    def accessed(self, variables: Sequence[Any], handles: tuple[Any, ...], position: int) -> None:
        """A call that is elided would have told tapes and watchers of these variables.

        Args:
            variables: what the call accesses.
            handles: theirs.
            position: the region's position of the next op.
        """
        if self.log.tapes:
            self.log.events.append(Event(position, "access", args=handles))
            for variable in variables:
                _accessed(variable)
        for variable in variables:
            _watched(variable)

    def paused(self, pauses: Sequence[tuple[int, str]]) -> None:
        """A library call that is elided would have stopped and restarted recording before some of its ops."""
        if pauses:
            position = self.position()
            self.log.events += [Event(position + op, what) for op, what in pauses]

    def library_call(self, entry: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a library (`elide.entries`): elided if everything it depends on is as it was.

        Not while the program traces itself (a debugger, coverage): it is to see all frames.
        """
        if self.elider is None or not self._mine() or gettrace() is not None:
            return entry.own(*args, **kwargs)
        return self.elider.call(entry, args, kwargs)

    def function_call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a function of TensorFlow's (`elide.functions`), as `library_call`."""
        if self.functions is None or self.busy or get_ident() != self.owner or gettrace() is not None:
            return function.own(*args, **kwargs)
        return self.functions.call(function, args, kwargs)

    def in_charge(self) -> bool:
        """Whether ops still come here: the region has not diverged."""
        return bool(native.pywrap_tfe.TFE_Py_Execute == self.execute)

    def natively(self, step: Step, args: tuple[Any, ...], name: Any) -> Any:
        """Run an owner's op as in eager."""
        if step.form == "F":
            return _fast(native.context(), step.op, name, *resolve_all(args))
        inputs, attrs, outputs = args
        return _execute(
            native.context()._handle,
            native.context().device_name,
            step.op,
            resolve_all(inputs),
            attrs,
            outputs,
        )

    def on_owner(self, run: BlockRun, step: Step, args: tuple[Any, ...], name: Any) -> Any:
        """An op with outside effects: drain, then run it here, in order."""
        self.advance(run, step)
        if self.run is run and not run.complete:
            self.graph.cut(step.node, "owner")
        self.dispatch()
        self.busy = False
        self.drain()
        self.busy = True  # its host callback, if it has one, is part of it
        try:
            return self.natively(step, args, name)
        finally:
            self.busy = False

    # -- others ----------------------------------------------------------------------------------------------
    def query(self, name: str, *args: Any) -> Any:
        """A native question about tensors that the skeleton cannot answer: under a tape it is a divergence."""
        if self._mine() and (name in EFFECTS or not _tapes_empty()):
            reason = Reason.NATIVE_EFFECT if name in EFFECTS else Reason.TAPE_QUERY
            return self.diverge(reason, name).query(name, *args)
        return REAL[name](*[resolve_all(arg) for arg in args])

    def foreign(self, op: str, call: Callable[[tuple[Any, ...]], Any], args: tuple[Any, ...]) -> Any:
        """An op of another thread, or one that arrived while the skeleton was working: run it natively, now.

        If it reads or writes anything but its arguments, all that Python has issued happens first.
        """
        if classify(op) is not Kind.PURE and not self.handover.runner.is_current_thread():
            self.publish()
        return call(tuple(resolve_all(arg) for arg in args))


def _may_have(node: Node, form: str, args: tuple[Any, ...]) -> bool:
    """Whether the first argument may be the node's: if that is a variable, it is known by identity.

    Asked before a run is begun for the node; where many ways meet, most differ in this.
    """
    rule = node.rules[0] if node.rules else None
    if rule is None or rule.need is not Need.RESOURCE or node.kind in (Kind.OWNER, Kind.SOURCE):
        return True  # those take whatever they are given
    inputs = args if form == "F" else args[0]
    return bool(inputs) and (inputs[0] is rule.value or type(inputs[0]) is Placeholder)


def _unpack(pack: Any, values: Any) -> Any:
    if pack is None:
        return None
    if isinstance(pack, int):
        return values[pack]
    return [_unpack(item, values) for item in pack]

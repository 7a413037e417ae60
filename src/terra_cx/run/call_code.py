"""Code for a known call of a function: Python made for it, which checks such a call and commits its ops.

What a call at one place depends on and does is known once it was learned, so nothing need be looped over when it comes
again: its checks, its slots and its result are written out as statements. Calls of one shape (as many arguments and
ops, checked in the same ways) have the same text, which is compiled once; they differ in the constants that it closes
over. (Were these global, each call would have a dictionary of its own, and the interpreter remembers where it found a
global name for one dictionary only.)

Guarantees, as for all that commits (`run.skeleton`):

* Nothing is committed before everything has been checked, and then in a stretch that nothing can interrupt.
* Only such outputs get a slot as Python is given, a gradient refers to, or whose shape only the value can tell. Nobody
  can ask for any other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from terra_cx.compile.blocks import LOCAL, Check, Step
from terra_cx.run.block_run import BlockRun, Draw, Frozen
from terra_cx.run.checks import admits, flat_checks
from terra_cx.run.function_calls import Drawing, FunctionCall, as_tensor, flat, form_of, is_same, spec_of
from terra_cx.tf import seeds
from terra_cx.tf.native import EagerTensor
from terra_cx.tf.opdefs import Kind
from terra_cx.tf.placeholder import Placeholder
from terra_cx.tf.slots import Slot, Spec
from terra_cx.trace.rules import same_const, same_known

__all__ = ["DUE", "Answer", "answering"]

DUE = "to be compared"
Answer = Callable[[Any, BlockRun, tuple[Any, ...], dict[str, Any], tuple[Any, ...]], Any]
"""The code of a call, given the skeleton, the run, the arguments, and `tf.native.surroundings`.

The run is the open one, or one that is opened if the call fits.

It returns the result in a list, or `DUE` if the call is to be run this time, or None if it does not fit; and then it
has done nothing.

Raises:
    Frozen: the run was handed over meanwhile; nothing was committed. Its arguments are the seeds that were drawn.
"""
_IN_TEXT = (  # names of this module in the text, which a linter does not see
    Draw, EagerTensor, Frozen, Placeholder, Slot, admits, as_tensor, flat, form_of, is_same, same_const, same_known,
    seeds, spec_of,
)  # fmt: skip
_new = object.__new__


def answering(call: FunctionCall, steps: Sequence[Step], first: int) -> Answer:
    """The code for a call whose ops are the steps of a block from number ``first`` on."""
    text = _Text()
    _match(text, call)
    _check(text, call)
    _commit(text, call, steps, first)
    return text.made()


class _Text:
    """Statements, and the constants that they name."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._constants: list[Any] = []

    def add(self, *lines: str) -> None:
        self._lines += lines

    def unless(self, condition: str) -> None:
        """The call fits only if the condition holds."""
        self._lines.append(f"if not ({condition}): return None")

    def const(self, value: Any) -> str:
        """A name for a value."""
        self._constants.append(value)
        return f"k{len(self._constants) - 1}"

    def made(self) -> Answer:
        names = ", ".join(f"k{number}" for number in range(len(self._constants)))
        body = "\n  ".join(self._lines)
        source = f"def make({names}):\n def answer(skeleton, run, args, kwargs, around):\n  {body}\n return answer\n"
        return _compiled(source)(*self._constants)


@functools.lru_cache(1024)  # a program whose calls have ever new shapes must not fill the memory
def _compiled(source: str) -> Callable[..., Answer]:
    names: dict[str, Any] = {}
    exec(compile(source, "<terra-cx: a known call>", "exec", dont_inherit=True), globals(), names)
    made: Callable[..., Answer] = names["make"]
    return made


def _match(text: _Text, call: FunctionCall) -> None:
    """Is it such a call, as far as the arguments alone can tell?"""
    if type(call.structure) is int:  # no keyword, no list: the common case
        text.unless(f"not kwargs and len(args) == {call.structure}")
        leaves, count = "args", call.structure
    else:
        text.add("leaves, structure = flat(args, kwargs)")
        text.unless(f"structure == {text.const(call.structure)}")
        leaves, count = "leaves", call.structure[-1]
    if count:
        text.add(f"{' '.join(f'a{number},' for number in range(count))} = {leaves}")
    for number, variable, trainable in call.same:
        known = text.const(variable)
        text.unless(f"a{number} is {known} and {known}.trainable is {text.const(trainable)}")
    for number, value in call.equal:
        known = text.const(value)
        text.unless(
            f"a{number} is {known} or type(a{number}) is type({known}) and same_const(a{number}, {known})"
        )
    for number, earlier in call.again:
        text.unless(f"is_same(a{number}, a{earlier})")
    text.unless(f"around == {text.const(call.ambient)}")
    if call.draws:
        text.unless(f"seeds.is_global({text.const(call.seed)})")


def _check(text: _Text, call: FunctionCall) -> None:
    """Are its ops what the block expects?"""
    text.add("skeleton.busy = True", "slots = run.slots")
    for number, checks, spec in call.checked:
        for check in checks:
            text.unless(_admits(text, check, f"a{number}"))
        if not checks:
            text.unless(f"spec_of(a{number}) == {text.const(spec)}")
    for number, value in call.valued:
        text.unless(f"type(a{number}) is EagerTensor and same_known(a{number}, {text.const(value)})")
    for number, checks, form, dtype in call.converted:
        text.unless(f"form_of(a{number}) == {text.const(form)}")
        text.add(f"c = as_tensor(a{number}, {text.const(dtype)})")
        text.unless(" and ".join(["c is not None", *(_admits(text, check, "c") for check in checks)]))
    for check, value in call.fixed:
        text.unless(_admits(text, check, text.const(value)))
    known = text.const(call)  # not before: a call that is of another kind is compared with none of these
    text.add(
        f"if {known}.runs == {known}.due: return DUE", "if skeleton.run is not run: skeleton.begin_with(run)"
    )


def _admits(text: _Text, check: Check, arg: str) -> str:
    """The condition that an argument is what its check demands."""
    if check[0] == LOCAL:  # `admits` without the call
        return f"type({arg}) is Placeholder and {arg}._slot is slots[{text.const(check[1])}]"
    return f"admits(run, {text.const(check)}, {arg})"


def _commit(text: _Text, call: FunctionCall, steps: Sequence[Step], first: int) -> None:
    """Make its slots and what it returns, step on."""
    slots = _slots(call)
    for flat_output, spec in slots.items():
        index, slot = text.const(flat_output), f"s{flat_output - call.steps[0].base}"
        text.add(  # `Slot(spec, run, index)` without the call
            f"{slot} = _new(Slot)",
            f"{slot}.spec, {slot}.run, {slot}.index = {text.const(spec)}, run, {index}",
            f"{slot}.value = {slot}.pending = {slot}.error = {slot}.uid = None",
            f"slots[{index}] = {slot}",
        )
    needed = [step for step in call.steps if step.needed]
    if needed:
        text.add("turns = skeleton.log.turns")
    turns = []
    for number, step in enumerate(needed):
        known, node = text.const(step), text.const(step.node)
        text.add(f"skeleton.keep_arguments(run, {known})")
        if step.kind is not Kind.KNOWN:
            text.add(f"skeleton.keep_outputs(run, {known})")
        text.add(f"t{number} = turns.get({node}, 0) + 1")
        turns.append(f"turns[{node}] = t{number}")
    if call.accesses:
        where = f"run.start + {text.const(steps[first].position)}"
        text.add(f"skeleton.accessed({text.const(call.accesses)}, {text.const(call.handles)}, {where})")
    if call.pauses:
        text.add(f"skeleton.paused({text.const(call.pauses)})")
    answers: list[str] = []
    placeholders: dict[int, str] = {}
    """By flat output: a tensor that is returned twice is one object."""
    for number, result in enumerate(call.results):
        if type(result) is not int:
            answers.append(text.const(result))
            continue
        if result not in placeholders:
            made = placeholders[result] = f"r{number}"
            text.add(f"{made} = _new(Placeholder)", f"{made}._slot = s{result - call.steps[0].base}")
        answers.append(placeholders[result])
    text.add(f"answer = [{_packed(text, call.pack, answers)}]")
    drawn = [seeds for number, draw in enumerate(call.draws) for seeds in _draw(text, number, draw)]
    last = first + len(call.steps)
    following = steps[last] if last < len(steps) else None
    position, expected = text.const(last), text.const(following)
    # No call and no jump backwards from here to the end of the commit, see `Skeleton.advance`.
    text.add(
        f"if run.frozen or run.pos != {text.const(first)}: raise Frozen({', '.join(drawn)})",
        f"run.pos = {position}",
        f"skeleton.step = {expected}",
        *turns,
    )
    if following is None:
        text.add("if run.block.prompt: skeleton.lull(run)")
    text.add("return answer")


def _packed(text: _Text, pack: Any, answers: list[str]) -> str:
    if type(pack) is int:
        return answers[pack]
    kind, items = pack
    return f"{text.const(kind)}([{', '.join(_packed(text, item, answers) for item in items)}])"


def _draw(text: _Text, number: int, draw: Drawing) -> list[str]:
    """Note a random op for the graph runner; the name of the seeds that are drawn for it, if any are."""
    args = [text.const(arg) for arg in draw.args]
    drawn = []
    if not draw.seeded:
        drawn.append(f"q{number}")
        text.add(f"q{number} = seeds.next_seeds()")
        for part, place in enumerate(draw.places):
            args[place] = f"q{number}[{part}]"
    step, base = text.const(draw.step), text.const(draw.step.base)
    text.add(
        f"run.draws[{base}] = Draw({step}, {step}.op, 'F', {text.const(draw.name)}, ({', '.join(args)},))"
    )
    return drawn


def _slots(call: FunctionCall) -> dict[int, Spec]:
    """The flat outputs that get a slot, in order."""
    made = {
        step.base + out: spec
        for step in call.steps
        if step.kind is not Kind.KNOWN
        for out, spec in enumerate(step.specs)
    }
    wanted = {result for result in call.results if type(result) is int}
    wanted |= {draw.step.base for draw in call.draws}  # a tape that is rebuilt asks for them
    wanted |= {number for number, spec in made.items() if spec.shape is None}
    for step in call.steps:
        wanted |= {step.base + out for out in step.needed if out >= 0}
        arguments = list(flat_checks(step)) if step.needed else []
        for index in (-1 - out for out in step.needed if out < 0):
            if index < len(arguments) and arguments[index][0] == LOCAL:
                wanted.add(arguments[index][1])
    return {number: spec for number, spec in made.items() if number in wanted}

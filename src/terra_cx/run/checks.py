"""The checks of a block's arguments: whether Python passes what a step demands (`differences` says why not).

A check is a tuple whose first item is a code of `compile.blocks`. Binding a parameter is part of checking it; what a
failed or repeated check has bound is bound anew by the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from terra_cx.compile.blocks import (
    AGAIN,
    ANY,
    CONST,
    FEED,
    HELD,
    KNOWN,
    LIST,
    LOCAL,
    PARAM,
    RESOURCE,
    Check,
    Step,
)
from terra_cx.run.block_run import BlockRun
from terra_cx.tf import native
from terra_cx.tf.native import EagerTensor
from terra_cx.tf.placeholder import Placeholder
from terra_cx.tf.slots import fits
from terra_cx.trace.rules import same_const, same_known

__all__ = ["admits", "bindings", "flat_checks", "flat_inputs"]


def admits(run: Any, check: Check, arg: Any) -> bool:
    """Whether an argument is what its check demands; a parameter's first use binds it in ``run``."""
    code = check[0]
    if code == LOCAL:
        return type(arg) is Placeholder and arg._slot is run.slots[check[1]]
    if code == PARAM:
        if check[2] is not True:
            bound = run.params[check[1]]
            if arg is not bound and (type(arg) is not Placeholder or arg._slot is not bound):
                return False
            return check[2] != AGAIN or arg._shape_tuple() == check[4] or _fits(check[4], arg._shape_tuple())
        if type(arg) is Placeholder:
            slot = arg._slot
            if slot.run is run or slot.spec.dtype != check[3]:
                return False
            shape = arg._shape_tuple()
            if shape != check[4] and not _fits(check[4], shape):
                return False
            run.params[check[1]] = slot
            return True
        if type(arg) is not EagerTensor:
            if check[5] is None or type(arg) is not check[5]:
                return False
            arg = _as_fed(arg, check[3])
        if arg is None or arg._datatype_enum() != check[3]:
            return False
        shape = arg._shape_tuple()
        if shape != check[4] and not _fits(check[4], shape):
            return False
        run.params[check[1]] = arg
        return True
    if code == KNOWN:
        return arg is check[1] or _is_known(check, arg)
    if code == CONST:
        return same_const(arg, check[1])
    if code == RESOURCE:
        return arg is check[1] or (type(arg) is Placeholder and arg._slot.value is check[1])
    if code == FEED:
        tensor = _as_fed(arg, check[2]) if type(arg) is check[3] else None
        if tensor is None or tensor._datatype_enum() != check[2]:
            return False
        run.params[check[1]] = tensor
        return True
    if code == HELD:
        if type(arg) is EagerTensor:
            return bool(arg._datatype_enum() == check[1])
        if type(arg) is Placeholder:
            return arg._slot.value is not None and arg._slot.spec.dtype == check[1]
        return type(arg) is check[2]
    if code == ANY:
        return isinstance(arg, EagerTensor) and bool(arg._datatype_enum() == check[1])
    return (
        isinstance(arg, (list, tuple))
        and len(arg) == len(check[1])
        and all(admits(run, inner, item) for inner, item in zip(check[1], arg, strict=True))
    )


def _fits(pattern: tuple[Any, ...] | None, shape: tuple[int, ...]) -> bool:
    """Whether a shape is as in a pattern (`Spec`) that is not this very shape."""
    return pattern is not None and None in pattern and fits(pattern, shape)


def _is_known(check: Check, arg: Any) -> bool:
    if type(arg) is Placeholder:
        if arg._slot.value is None:
            return False
        arg = arg._slot.value
    if type(arg) is EagerTensor:
        return same_known(arg, check[1])
    raw = check[2] if len(check) > 2 else None
    if raw is None:
        return False
    if type(raw) is not type:
        return same_const(arg, raw)
    arg = _as_fed(arg, check[1]._datatype_enum()) if type(arg) is raw else None
    return arg is not None and same_known(arg, check[1])


def _as_fed(value: Any, dtype: int) -> Any:
    """A raw argument as the tensor that eager would make of it, None if that cannot be told."""
    try:
        if isinstance(value, np.ndarray):
            return native.as_tensor(value)
        return native.as_tensor(value, native.dtype_of(dtype))
    except (TypeError, ValueError):
        return None


def flat_checks(step: Step) -> Iterator[Check]:
    """The step's checks, lists opened: one per flat argument."""
    for check in step.checks:
        if check[0] == LIST:
            yield from check[1]
        else:
            yield check


def flat_inputs(step: Step, args: tuple[Any, ...]) -> list[Any]:
    """The inputs of an op as it was called, lists opened.

    Args:
        step: what it was validated as.
        args: as given to the boundary, see `run.skeleton`.
    """
    if step.form != "F":
        return list(args[0])
    flat: list[Any] = []
    for arg, count in zip(args[: step.width], step.node.call.layout, strict=True):
        if count < 0:
            flat.append(arg)
        else:
            flat.extend(arg)
    return flat


def bindings(run: BlockRun, step: Step, *, guarded: bool = False) -> list[Any]:
    """The slot or tensor bound to each flat argument of a step; None where a value is guarded.

    With ``guarded``, guarded tensors are given too.
    """
    if not step.checks:
        return [None] * len(step.node.rules)
    bound: list[Any] = []
    for check in flat_checks(step):
        if check[0] == LOCAL:
            bound.append(run.slots[check[1]])
        elif check[0] in (PARAM, FEED):
            bound.append(run.params[check[1]])
        elif guarded and check[0] == KNOWN:
            bound.append(check[1])
        else:
            bound.append(None)
    return bound

"""The arguments of an op as native code takes them: variables are read, and what Python must convert is refused.

Source: ``pywrap_tfe_src.cc``, ``TFE_Py_FastPathExecute_C``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from terra_cx.tf import native
from terra_cx.tf.native import EagerTensor, FallbackException
from terra_cx.tf.opdefs import arg_layout
from terra_cx.tf.placeholder import Placeholder

__all__ = ["normalised"]

_SEQUENCES = (list, tuple)
_RAW = (int, float, bool, complex, str, bytes, np.ndarray, np.generic, type(None))


def normalised(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Do what native code would do first: read variables, refuse objects it does not know.

    Raises:
        FallbackException: an argument must be converted by Python; the op arrives again through
        `execute`.
    """
    rows = arg_layout(op)
    width = len(rows)
    inputs: list[Any] = []
    changed = False
    for arg, (_, _, _, many) in zip(args, rows, strict=False):
        one = not isinstance(arg, _SEQUENCES)
        for item in (arg,) if one else arg:
            kind = type(item)
            if kind is Placeholder or kind is EagerTensor:
                if one or many:
                    continue
                raise FallbackException("terra-cx: tensors in a list are packed by an op of their own")
            if isinstance(item, _SEQUENCES):
                if _holds_tensor(item):
                    raise FallbackException("terra-cx: tensors in a list are packed by an op of their own")
            elif not isinstance(item, _RAW) and not native.is_variable(item):
                raise FallbackException("terra-cx: an argument needs conversion")
        read = native.read_variables(arg)
        changed = changed or read is not arg
        inputs.append(read)
    return (*inputs, *args[width:]) if changed else args


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, _SEQUENCES):
        return any(_holds_tensor(item) for item in value)
    return isinstance(value, EagerTensor)

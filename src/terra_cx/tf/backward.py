"""Which op's gradient is being computed while a tape is asked: where an op of the backward pass belongs.

All ops of a backward pass are issued below one line of the program, ``tape.gradient``, in an order that follows from
the whole forward pass. Numbered by that order they would be other ops whenever a loop made another round or a branch
went the other way. So each is placed where the op is whose gradient it computes: the backward pass of a loop is a loop
then, and that of a branch a branch.

A tape is told a name scope with each op, and gives it to the gradient function of that op. What we tell it is a
*token*, which stands for the op's site; TensorFlow's own function gets the empty scope that an op of eager has.

Source: ``tensorflow/python/eager/backprop.py``, ``_gradient_function``; ``pywrap_tfe_src.cc``, ``RecordGradient``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tensorflow.python.eager import backprop

from terra_cx.tf.native import REAL

__all__ = ["asked", "follow", "install", "place", "remove", "step_token", "token"]

_PREFIX = "terra-cx:"
_MOST = 100_000
"""Sites that tokens stand for; then they are given anew, and what an old tape tells is not known any more."""
_own = backprop._gradient_function
_register = REAL["TFE_Py_RegisterGradientFunction"]
_generation = 0
"""How often tokens have been given anew."""
_tokens: dict[Any, str] = {}
_sites: dict[str, Any] = {}


_now: list[tuple[Any, int] | None] = []
"""For each tape that is being asked, the innermost last: the site of the op whose gradient is being computed, and the
position in the region at which that began. None if it is not known."""


def _nowhere() -> int:
    return 0


_position: Callable[[], int] = _nowhere


def follow(position: Callable[[], int]) -> None:
    """From now on ``position`` tells the position of the region's next op."""
    global _position
    _position = position


def step_token(step: Any) -> str:
    """`token` of a step's site, remembered in the step: to look it up takes as long as telling the tape."""
    if step.token is None or step.token[0] != _generation:
        made = token(step.node.call.site)  # which may begin a new generation
        step.token = _generation, made
    told: str = step.token[1]
    return told


def token(site: Any) -> str:
    """What a tape is told with an op that was issued at ``site``."""
    found = _tokens.get(site)
    if found is None:
        if len(_tokens) >= _MOST:
            _forget()
        found = _tokens[site] = f"{_PREFIX}{_generation}.{len(_tokens)}"
        _sites[found] = site
    return found


def _forget() -> None:
    global _generation
    _generation += 1
    _tokens.clear()
    _sites.clear()


def place(position: int) -> tuple[Any, int] | None:
    """The site of the op whose gradient is being computed, and the number of the op at ``position`` among those for it.

    None if no tape is being asked, or if the op is not known. What is issued between two gradients (sums of what
    several ops have contributed) counts for the one before.
    """
    now = _now[-1] if _now else None
    return None if now is None else (now[0], position - now[1])


@contextmanager
def asked() -> Iterator[None]:
    """While a tape is being asked for gradients."""
    _now.append(None)
    try:
        yield
    finally:
        _now.pop()


def _gradient_function(
    op_name: Any,
    attr_tuple: Any,
    num_inputs: Any,
    inputs: Any,
    outputs: Any,
    out_grads: Any,
    skip_input_indices: Any,
    forward_pass_name_scope: Any,
) -> Any:
    scope = forward_pass_name_scope
    if scope and scope.startswith(_PREFIX):
        site = _sites.get(scope)
        if _now:
            _now[-1] = None if site is None else (site, _position())
        scope = ""
    elif _now:
        _now[-1] = None
    return _own(op_name, attr_tuple, num_inputs, inputs, outputs, out_grads, skip_input_indices, scope)


def install() -> None:
    """Have gradient functions called through here."""
    _register(_gradient_function)


def remove() -> None:
    """Give TensorFlow its own function back."""
    _register(_own)
    follow(_nowhere)
    _forget()

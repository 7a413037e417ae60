"""Functions: TensorFlow's public functions and operators whose Python may be elided, and how their calls are seen.

A public function is a wrapper with ``*args, **kwargs`` around the one that TensorFlow wrote (dispatch, tracebacks, weak
tensors). While a session lasts, the wrapper's *code object* is exchanged for one that asks the handler in charge of the
dispatch boundary, so that all who have the function get it, under whatever name, and the function itself stays the
very same object: programs compare functions (``activation is tf.nn.relu``), keep them in dicts, and patch them.

(Hooks in the modules, as `elide.entries` has them in classes, were no good for that: a function taken before the
session is another object than the same function taken after.)
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from terra_cx.tf.boundary import Boundary

__all__ = ["Function", "Functions"]

_MODULES = frozenset(
    f"tensorflow.python.ops.{name}"
    for name in (
        "array_ops", "array_ops_stack", "clip_ops", "embedding_ops", "gen_array_ops", "gen_linalg_ops",
        "gen_math_ops", "gen_nn_ops", "linalg.linalg_impl", "linalg_ops", "manip_ops", "math_ops", "nn_impl", "nn_ops",
        "random_ops", "sort_ops", "special_math_ops", "stateless_random_ops",
    )
)  # fmt: skip
"""Where functions are that depend on nothing but their arguments' dtypes, shapes and Python values, and on switches
(`tf.native.surroundings`), and on the next seeds (`tf.seeds`). A function that writes or calls the program back is told
from these by what it does."""
_OPERATORS = tuple(
    f"__{name}__"
    for name in (
        "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod",
        "pow", "rpow", "matmul", "rmatmul", "neg", "abs", "invert", "and", "rand", "or", "ror", "xor", "rxor",
        "lt", "le", "gt", "ge", "eq", "ne", "getitem",
    )
)  # fmt: skip
_VARIADIC = 0x04 | 0x08
"""``CO_VARARGS`` and ``CO_VARKEYWORDS``."""


class Function:
    """One function of TensorFlow's, and what it is without us.

    Args:
        function: the function object, whose code is exchanged.
        name: under which it is reported.
    """

    def __init__(self, function: FunctionType, name: str) -> None:
        self.name = name
        self.is_operator = "__" in name
        """Whether it converts a number that is passed, whatever it is."""
        self._function = function
        self._was = function.__code__
        self._hook: CodeType | None = None
        self.own: Any = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        """Runs what runs without us."""
        self.own.__kwdefaults__ = function.__kwdefaults__

    def put(self, boundary: Boundary) -> None:
        """Exchange the code, unless somebody else has."""
        if self._function.__code__ is not self._was:
            return
        self._hook = _asking(boundary, self, self._was)
        self._function.__code__ = self._hook

    def take_back(self) -> None:
        """Give the function its code back."""
        if self._hook is not None and self._function.__code__ is self._hook:
            self._function.__code__ = self._was
        self._hook = None


class Functions:
    """The functions of the TensorFlow that the program has imported."""

    def __init__(self) -> None:
        self._functions: list[Function] = []

    def put(self, boundary: Boundary) -> None:
        """Exchange their code, once."""
        if not self._functions and "tensorflow" in sys.modules:
            self._functions = [Function(function, name) for function, name in _of_tensorflow()]
            for function in self._functions:
                function.put(boundary)

    def take_back(self) -> None:
        """Restore TensorFlow."""
        for function in self._functions:
            function.take_back()
        self._functions = []


def _of_tensorflow() -> Iterator[tuple[FunctionType, str]]:
    tf = sys.modules["tensorflow"]
    found: set[int] = set()
    places = [("tf", tf), *((f"tf.{name}", getattr(tf, name)) for name in ("math", "nn", "linalg", "random"))]
    for prefix, module in places:
        for name, function in vars(module).items():
            if _is_wrapper(function) and function.__module__ in _MODULES and id(function) not in found:
                found.add(id(function))
                yield function, f"{prefix}.{name}"
    for cls in (tf.Tensor, tf.Variable):
        for name in _OPERATORS:
            operator: Any = getattr(cls, name, None)
            if _is_wrapper(operator) and id(operator) not in found:
                found.add(id(operator))
                yield operator, f"tf.{cls.__name__}.{name}"


def _is_wrapper(function: Any) -> bool:
    """Whether the code takes whatever it is given, so that exchanging it changes no signature."""
    if type(function) is not FunctionType:
        return False
    code = function.__code__
    return code.co_flags & _VARIADIC == _VARIADIC and code.co_argcount <= 1 and not code.co_kwonlyargcount


def _asking(boundary: Boundary, function: Function, code: CodeType) -> CodeType:
    """Code that asks the handler in charge, and fits a function that had ``code``."""
    hook = _hook(bool(code.co_argcount), code.co_freevars)
    meant = {"<boundary>": boundary, "<function>": function}
    return hook.replace(
        co_consts=tuple(meant.get(const, const) for const in hook.co_consts),
        co_filename=code.co_filename,
        co_name=code.co_name,
        co_qualname=code.co_qualname,
        co_firstlineno=code.co_firstlineno,
    )


@functools.cache  # the hundreds of functions have a handful of forms
def _hook(has_first: bool, free_variables: tuple[str, ...]) -> CodeType:
    """The code of all functions with a named first argument, or without, and with the same free variables."""
    first, given = ("first, ", "(first, *args)") if has_first else ("", "args")
    free = ", ".join(free_variables)
    # The two strings are exchanged for what they name. What stands behind the return never runs, but makes the code
    # have the free variables that the function has cells for.
    source = (
        f"def make({free}):\n"
        f" def hook({first}*args, **kwargs):\n"
        f"  return '<boundary>'.handler.function_call('<function>', {given}, kwargs)\n"
        f"  ({free})\n"
        f" return hook\n"
    )
    names: dict[str, Any] = {}
    exec(compile(source, "<terra-cx: a function that asks>", "exec", dont_inherit=True), names)
    hook: CodeType = names["make"](*(None for _ in free_variables)).__code__
    return hook

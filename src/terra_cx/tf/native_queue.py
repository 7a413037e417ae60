"""TensorFlow's own queue: functions put into it run one after the other on a thread that needs no interpreter.

Putting a function there returns at once with tensors that are still to come. A function that fails makes the queue
refuse all that comes after it until `clear`, and what was queued behind it does not run.

Source: ``tensorflow/python/eager/executor.py``; ``tensorflow/core/common_runtime/eager/eager_executor.cc``.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from operator import call
from typing import Any, NamedTuple, Protocol

from terra_cx.tf import native
from terra_cx.tf.graphs import CompiledFunction
from terra_cx.tf.native import pywrap_tfe

__all__ = ["REFUSED", "Before", "NativeQueue", "op_call", "wait_for"]

_execute = native.REAL["TFE_Py_Execute"]
_fast = native.REAL["TFE_Py_FastPathExecute"]

REFUSED = (native.NotOkStatus, native.OpError)
"""How it is told that something cannot be queued, or will never come."""


class Holder(Protocol):
    """Keeps what an op returned, and tells the tensor in it."""

    made: Any

    @property
    def tensor(self) -> Any:
        """The op's one result."""


class Before(NamedTuple):
    """An op with one result that runs just before a function, and which of the function's feeds that is."""

    call: Callable[[], Any]
    holder: Holder
    feed: int


def op_call(op: str, form: str, name: str | None, args: Any) -> Callable[[], Any]:
    """A call of an op, that is all native; as `trace.records.Call` tells ``form`` and ``args``."""
    context = native.context()
    if form == "F":
        return partial(_fast, context, op, name, *args)
    inputs, attrs, outputs = args
    return partial(_execute, context._handle, None, op, list(inputs), attrs, outputs)


class NativeQueue:
    """One queue; only the thread that made it puts something in.

    It is the bare handle of an executor, for TensorFlow's own object ends the executor's thread when it dies, which a
    forked child would wait for in vain.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._queue = pywrap_tfe.TFE_NewExecutor(True, True, 0)  # asynchronous, with no limit of its own
        self._context = native.context()._handle
        self._use = partial(pywrap_tfe.TFE_ContextSetExecutorForThread, self._context)
        """Have the thread's ops run in a queue."""

    def put(
        self, function: CompiledFunction, feeds: list[Any], made: list[Any], before: Sequence[Before] = ()
    ) -> None:
        """Have a function run.

        Args:
            function: its executor is chosen (`CompiledFunction.settled`).
            feeds: a tensor per parameter; they may be still to come.
            made: an empty list; its first item is the list of results then. It gets it if and only if the function was
                queued, whatever interrupts: nothing between is Python.
            before: ops that are queued first. Of each it is known in the same way, by its holder, whether it was.

        Raises:
            NotOkStatus: it was not queued.
        """
        # Asked for each time: TensorFlow's iterators have one of their own for each element, which is gone soon after.
        own = pywrap_tfe.TFE_ContextGetExecutorForThread(self._context)
        leave = partial(self._use, own)
        try:
            self._use(self._queue)
            if before:
                _make(before, feeds)
            calls: tuple[Callable[[], Any], ...] = (function.prepared(feeds), leave)
            made.extend(map(call, calls))
        except BaseException:  # Ctrl-C as well: the thread's own ops must not go there
            leave()
            raise
        finally:
            pywrap_tfe.TFE_DeleteExecutor(own)  # the name, not what it is a name of

    def wait(self) -> None:
        """Wait until all that was put in is over; other threads go on meanwhile.

        Raises:
            OpError: something has failed.
        """
        pywrap_tfe.TFE_ExecutorWaitForAllPendingNodes(self._queue)

    def clear(self) -> None:
        """Accept functions again after one has failed; waits until what was queued is over."""
        try:
            self.wait()
        except REFUSED:
            pass  # known: it is why this is called
        pywrap_tfe.TFE_ExecutorClearError(self._queue)

    def close(self) -> None:
        """End its thread, after what was queued; it cannot be used any more."""
        if os.getpid() == self._process:
            self.clear()
            pywrap_tfe.TFE_DeleteExecutor(self._queue)


def _make(before: Sequence[Before], feeds: list[Any]) -> None:
    """Run ops, unless their holders have what they return already, and enter it among the feeds."""
    new = [item for item in before if item.holder.made is None]
    holders, calls = [item.holder for item in new], [item.call for item in new]
    deque(map(setattr, holders, repeat("made"), map(call, calls)), maxlen=0)
    for item in before:
        feeds[item.feed] = item.holder.tensor


def wait_for(tensor: Any) -> None:
    """Wait until a tensor that is still to come is there; other threads go on meanwhile.

    By an op that takes it. Asking for its array would be quicker, but where the tensor never comes, TensorFlow tells
    the lines that put the function into the queue, and reads their files with a lock of its own and without the
    interpreter's: another thread that meets an error then waits for that lock, holding the interpreter, for ever
    (``MaybeRaiseExceptionFromTFStatus``, ``tensorflow/python/eager/pywrap_tfe_src.cc``).

    Raises:
        OpError: it will never come.
    """
    own = pywrap_tfe.TFE_ContextGetExecutorForThread(native.context()._handle)
    waits = pywrap_tfe.TFE_ExecutorIsAsync(own)
    pywrap_tfe.TFE_DeleteExecutor(own)
    if waits:  # the program's ops are queued as well, and would all fail after this one
        tensor._numpy_internal()
    else:
        _execute(native.context()._handle, None, "Identity", [tensor], ("T", tensor._datatype_enum()), 1)

"""TensorFlow's own queue: functions put into it run one after the other on a thread that needs no interpreter.

Putting a function there returns at once with tensors that are still to come. A function that fails makes the queue
refuse all that comes after it until `clear`, and what was queued behind it does not run.

Source: ``tensorflow/python/eager/executor.py``; ``tensorflow/core/common_runtime/eager/eager_executor.cc``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from operator import call
from typing import Any

from terra_cx.tf import native
from terra_cx.tf.graphs import CompiledFunction
from terra_cx.tf.native import pywrap_tfe

__all__ = ["NativeQueue", "wait_for"]

_execute = native.REAL["TFE_Py_Execute"]


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

    def put(self, function: CompiledFunction, feeds: list[Any], made: list[Any]) -> None:
        """Have a function run.

        Args:
            function: its executor is chosen (`CompiledFunction.settled`).
            feeds: a tensor per parameter; they may be still to come.
            made: an empty list; its first item is the list of results then. It gets it if and only if the function was
                queued, whatever interrupts: nothing between is Python.

        Raises:
            NotOkStatus: it was not queued.
        """
        # Asked for each time: TensorFlow's iterators have one of their own for each element, which is gone soon after.
        own = pywrap_tfe.TFE_ContextGetExecutorForThread(self._context)
        leave = partial(self._use, own)
        calls: tuple[Callable[[], Any], ...] = (function.prepared(feeds), leave)
        try:
            self._use(self._queue)
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
        except (native.NotOkStatus, native.OpError):
            pass  # known: it is why this is called
        pywrap_tfe.TFE_ExecutorClearError(self._queue)

    def close(self) -> None:
        """End its thread, after what was queued; it cannot be used any more."""
        if os.getpid() == self._process:
            self.clear()
            pywrap_tfe.TFE_DeleteExecutor(self._queue)


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

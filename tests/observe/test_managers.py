"""Which context managers an error may pass by."""

from __future__ import annotations

import builtins
import contextlib
import io
import sqlite3
import tempfile
import threading
import unittest
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import test_util

from terra_cx.observe.anchors import ARRIVAL, BARRIER, PROBE, AnchorTable, instrument
from terra_cx.observe.managers import is_harmless


class Mine:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *args: Any) -> None:
        pass


class MyLock(type(threading.RLock())):  # type: ignore[misc]
    """Leaves alone how it is left."""


class MyTape(tf.GradientTape):
    def __exit__(self, *args: Any) -> bool:  # type: ignore[override]
        super().__exit__(*args)
        return True


class Streamed:
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def mine():
    yield


HARMLESS = {
    "a tape": lambda: tf.GradientTape(),
    "a pause of a tape": lambda: tf.GradientTape().stop_recording(),
    "a name scope": lambda: tf.name_scope("x"),
    "a device scope": lambda: tf.device("CPU:0"),
    "a strategy's scope": lambda: tf.distribute.get_strategy().scope(),
    "a lock": threading.Lock,
    "a reentrant lock": threading.RLock,
    "a condition": threading.Condition,
    "text in memory": io.StringIO,
    "a file": tempfile.TemporaryFile,
    "a folder": tempfile.TemporaryDirectory,
    "threads": lambda: ThreadPoolExecutor(1),
    "numpy's error state": np.errstate,
    "warnings": warnings.catch_warnings,
    "nothing": contextlib.nullcontext,
    "closing": lambda: contextlib.closing(io.StringIO()),
    "redirected output": lambda: contextlib.redirect_stdout(io.StringIO()),
    "a view of memory": lambda: memoryview(b"abc"),
    "a subclass": MyLock,
}
GUARDS = {
    "suppress": lambda: contextlib.suppress(ValueError),
    "pytest.raises": lambda: pytest.raises(ValueError, match="x"),
    "assertRaises": lambda: unittest.TestCase().assertRaises(ValueError),  # noqa: PT027
    "TensorFlow's own for tests": lambda: test_util.TensorFlowTestCase().assertRaisesOpError("x"),
    "a stack of managers": contextlib.ExitStack,
    "a transaction": lambda: sqlite3.connect(":memory:"),
    "a class of the user's": Mine,
    "a subclass that is left differently": MyTape,
    "an asynchronous one": Streamed,
    "a generator of unknown code": mine,
    "an object that is none": object,
}


@pytest.mark.parametrize("what", HARMLESS)
def test_harmless(what: str) -> None:
    manager = HARMLESS[what]()
    assert is_harmless(manager)
    assert is_harmless(manager.__exit__)


@pytest.mark.parametrize("what", GUARDS)
def test_guards(what: str) -> None:
    manager = GUARDS[what]()
    assert not is_harmless(manager)
    leave = getattr(manager, "__exit__", None) or getattr(manager, "__aexit__", manager)
    assert not is_harmless(leave)


def test_a_generator_with_barriers_of_its_own_needs_none_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PROBE, BARRIER):
        monkeypatch.setattr(builtins, name, lambda *_: None, raising=False)
    monkeypatch.setattr(builtins, ARRIVAL, lambda error: error, raising=False)
    namespace: dict[str, Any] = {"contextlib": contextlib}
    source = (
        "@contextlib.contextmanager\ndef managed():\n    try:\n        yield\n    finally:\n        pass\n"
    )
    exec(instrument(compile(source, "managed.py", "exec"), AnchorTable()), namespace)
    manager = namespace["managed"]()
    assert is_harmless(manager)
    with manager:
        assert is_harmless(manager.__exit__)


def test_classes_made_again_and_again_are_not_kept() -> None:
    from terra_cx.observe import managers

    for _ in range(1500):
        assert not is_harmless(type("Made", (Mine,), {})())
    assert len(managers._known) <= 1001

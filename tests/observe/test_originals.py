"""Libraries that read code objects get the user's, without probes."""

from __future__ import annotations

import builtins
import importlib
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from terra_cx.observe.anchors import ARRIVAL, BARRIER, PROBE, AnchorTable, instrument
from terra_cx.observe.importer import UserCode
from terra_cx.observe.originals import ADAPTERS, Originals

SOURCE = """
def f(n):
    def inner(x):
        try:
            return x + 1
        except ValueError:
            return 0
    total = 0
    for i in range(n):
        total += inner(i)
    return total
"""


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    visits: list[int] = []
    monkeypatch.setattr(builtins, PROBE, visits.append, raising=False)
    monkeypatch.setattr(builtins, BARRIER, lambda *_: None, raising=False)
    monkeypatch.setattr(builtins, ARRIVAL, lambda error: error, raising=False)
    table, user = AnchorTable(), UserCode()
    plain = compile(SOURCE, "user.py", "exec")
    # In a module that no other process can import: picklers must take it by value.
    module = types.ModuleType("__main__")
    exec(instrument(plain, table), module.__dict__)
    user.install(table)
    originals = Originals(table, user)
    yield types.SimpleNamespace(
        table=table, user=user, originals=originals, plain=plain, f=module.f, visits=visits
    )
    originals.restore()
    user.remove()


def test_table_knows_originals(session: types.SimpleNamespace) -> None:
    plain = next(constant for constant in session.plain.co_consts if isinstance(constant, types.CodeType))
    assert session.f.__code__ is not plain
    assert session.table.original(session.f.__code__) is plain
    assert session.table.original(plain) is plain
    assert session.table.original(instrument(session.plain, AnchorTable())) is not session.plain


def fake(name: str) -> tuple[types.ModuleType, Callable[[Any], Any]]:
    """A module as the adapter for `name` expects it, and how that module takes a function's code."""
    module: Any = types.ModuleType(name)
    if name.endswith("cloudpickle"):
        module.CloudPickler = type(
            "CloudPickler", (), {"_dispatch_table": {types.CodeType: lambda code: code}}
        )
        return module, lambda f: module.CloudPickler._dispatch_table[types.CodeType](f.__code__)
    if name.startswith("dill"):
        module.Pickler = type("Pickler", (), {"dispatch": {types.CodeType: lambda pickler, code: code}})
        return module, lambda f: module.Pickler.dispatch[types.CodeType](None, f.__code__)
    module.get_code_object = lambda thing: getattr(thing, "__code__", None)
    return module, lambda f: module.get_code_object(f)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name: str, session: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    module, read = fake(name)
    monkeypatch.setitem(sys.modules, name, module)
    assert read(session.f) is session.f.__code__
    session.originals.adapt()
    assert read(session.f) is session.table.original(session.f.__code__)
    assert read(test_adapters) is test_adapters.__code__
    session.originals.restore()
    assert read(session.f) is session.f.__code__
    assert session.user.failures == []


def test_numba_asks_for_the_code_of_anything(session: types.SimpleNamespace) -> None:
    module, read = fake("numba.core.bytecode")
    session.originals._adapt(module)
    assert read(3) is None


def test_a_module_that_is_not_as_expected(
    session: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dill._dill", types.ModuleType("dill._dill"))
    session.originals.adapt()
    assert [name for name, _ in session.user.failures] == ["dill._dill"]


@pytest.mark.parametrize("name", ["cloudpickle", "dill"])
def test_pickled_functions_run_elsewhere(name: str, session: types.SimpleNamespace) -> None:
    pytest.importorskip(name)
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == name]:
        del sys.modules[loaded]
    session.originals.adapt()
    data = importlib.import_module(name).dumps(session.f, **({"recurse": True} if name == "dill" else {}))
    script = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(4))"
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True)
    assert done.stdout == b"10\n", done.stderr
    assert session.f(4) == 10
    assert len(session.visits) == 1 + 5 + 4


def test_numba_compiles(session: types.SimpleNamespace) -> None:
    pytest.importorskip("numba")
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == "numba"]:
        del sys.modules[loaded]
    session.originals.adapt()
    names: dict[str, Any] = {"__name__": "user"}
    source = "def f(n):\n    t = 0\n    for i in range(n):\n        t += i\n    return t\n"
    exec(instrument(compile(source, "user.py", "exec"), session.table), names)
    assert importlib.import_module("numba").njit(names["f"])(5) == 10

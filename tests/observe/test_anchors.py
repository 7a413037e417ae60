"""Instrumented code does what the original does, and passes its probes where the source says."""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import dis
import functools
import importlib.util
import itertools
import linecache
import marshal
import re
import subprocess
import sys
import textwrap
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terra_cx.observe import anchors, listing
from terra_cx.observe.anchors import ARRIVAL, BARRIER, PROBE, AnchorTable, instrument
from terra_cx.observe.listing import ListingError, verify

NAMES = itertools.count()
LOOPS = ast.For | ast.AsyncFor | ast.While


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the probes, barriers and arrivals report."""
    seen: list[Any] = []
    report(seen.append, seen.append, monkeypatch)
    return seen


def report(probe: Callable[[int], Any], other: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell ``probe`` the numbers of probes, ``other`` of the rest; exceptions stay what they are."""

    def arrival(error: BaseException) -> BaseException:
        other("arrival")
        return error

    monkeypatch.setattr(builtins, PROBE, probe, raising=False)
    monkeypatch.setattr(builtins, BARRIER, lambda *_: other("barrier"), raising=False)
    monkeypatch.setattr(builtins, ARRIVAL, arrival, raising=False)


def compiled(source: str) -> types.CodeType:
    """Source under a file name of its own that tracebacks can quote."""
    source = textwrap.dedent(source)
    name = f"<program {next(NAMES)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    return compile(source, name, "exec", dont_inherit=True)


def planted(source: str) -> tuple[dict[str, Any], AnchorTable]:
    """The namespace of an instrumented program, and its anchors."""
    table = AnchorTable()
    namespace: dict[str, Any] = {"__name__": "program"}
    code = instrument(compiled(source), table)
    assert not table.skipped
    exec(marshal.loads(marshal.dumps(code)), namespace)
    return namespace, table


def lines(visits: list[Any], table: AnchorTable) -> list[Any]:
    """Visits as "line" of a loop, "name" of a function, "barrier", "arrival"."""
    found: list[Any] = []
    for visit in visits:
        if isinstance(visit, str):
            found.append(visit)
        else:
            anchor = table[visit]
            found.append(anchor.line if anchor.kind == "loop" else anchor.qualname)
    return found


# -- where probes are -----------------------------------------------------------------------------------


def run(source: str, visits: list[Any]) -> list[Any]:
    _, table = planted(source)
    return lines(visits, table)


def test_for_asks_before_each_next(visits: list[Any]) -> None:
    assert run("for x in range(3):\n    pass", visits) == [1, 1, 1, 1]


def test_for_probe_comes_before_the_iterator(visits: list[Any]) -> None:
    source = """
    def items():
        mark("first"); yield 1
        mark("second"); yield 2
    for x in items():
        mark(x)
    """
    namespace: dict[str, Any] = {"mark": visits.append}
    table = AnchorTable()
    exec(instrument(compiled(source), table), namespace)
    loop = next(anchor.id for anchor in table if anchor.kind == "loop")
    function = next(anchor.id for anchor in table if anchor.kind == "function")
    assert visits == [loop, function, "first", 1, loop, "second", 2, loop]


@pytest.mark.parametrize(
    "test",
    [
        *(
            "n < 3",
            "not n >= 3",
            "0 <= n < 3",
            "n < 3 and n > -1",
            "n > 5 or n < 3",
            "(n < 3) if n else True",
        ),
        *("(m := n) < 3", "[n for _ in '12'][0] < 3", "any(n < 3 for _ in '1')", "not (n > 2 and n > 1)"),
    ],
)
@pytest.mark.parametrize("extra", ["", "if n == 1: continue", "for _ in '': pass", "n = n if n else 0"])
def test_while_visits_before_each_test(test: str, extra: str, visits: list[Any]) -> None:
    seen = run(f"def f(n=0):\n  while {test}:\n    n += 1\n    {extra}\nf()", visits)
    assert [visit for visit in seen if visit != 4] == ["f", 2, 2, 2, 2]


def test_while_probe_comes_before_the_test(visits: list[Any]) -> None:
    source = """
    def f():
        n = 0
        while test(n):
            n += 1
            body(n)
            if n == 2:
                continue
            end(n)
    """
    namespace, table = planted(source)
    for name in ("test", "body", "end"):
        namespace[name] = functools.partial(lambda name, n: visits.append((name, n)) or n < 3, name)
    namespace["f"]()
    loop = next(anchor.id for anchor in table if anchor.kind == "loop")
    rounds: list[Any] = [(loop, ("test", n), ("body", n + 1), ("end", n + 1)) for n in range(3)]
    expected = [step for steps in rounds for step in steps if step != ("end", 2)] + [loop, ("test", 3)]
    assert visits[1:] == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("n = 3\nwhile True:\n  n -= 1\n  if not n: break", [2] * 3),
        ("n = 3\nwhile True:\n  n -= 1\n  if n: continue\n  break", [2] * 3),
        (
            "n = 3\nwhile 1:\n  while True:\n    n -= 1\n    if n: break\n  if not n - 1: break",
            [2, 3, 2, 3, 2, 3][:4],
        ),
        ("n = 2\nwhile n:\n  n -= 1\nelse:\n  n = 5", [2] * 3),
        ("for a in 'ab':\n  for b in 'cd':\n    if b: break\nelse: pass", [1, 2, 1, 2, 1]),
        ("x = [i for i in range(3)]\ny = {i: [j for j in '12'] for i in x}\nz = sum(i for i in x)", []),
        ("class A:\n  for x in '12':\n    pass", [2] * 3),
        ("f = lambda: [x for x in '12']\nf()", []),
    ],
)
def test_loops(source: str, expected: list[Any], visits: list[Any]) -> None:
    assert run(source, visits) == expected


def test_retry_loop_whose_only_way_back_is_a_handler(visits: list[Any]) -> None:
    source = """
    def f(results):
        while True:
            try:
                return next(results)()
            except Exception:
                pass
    f(iter([lambda: 1 / 0, lambda: 1 / 0, lambda: 7]))
    """
    _, table = planted(source)
    seen = lines(visits, table)
    assert [visit for visit in seen if isinstance(visit, int)] == [3] * 3
    assert seen.count("barrier") == 4  # in each time, out once
    assert seen.count("arrival") == 2
    assert seen[-1] == "barrier"


def test_a_jump_back_behind_a_nop() -> None:
    source = """
    def f():
        for i in items:
            log(0)
            while bit():
                if not bit(): break
                log(0)
            else:
                pass
        for i in items:
            log(0)
            while True:
                try:
                    if not bit(): return
                    log(0)
                except ValueError: pass
                if not bit(): break
    """
    table = AnchorTable()
    instrument(compiled(source), table)
    assert not table.skipped


def test_async_loops_and_functions(visits: list[Any]) -> None:
    source = """
    import asyncio
    async def numbers():
        for n in range(2):
            yield n
            await asyncio.sleep(0)
    async def main():
        async for n in numbers():
            pass
        return [n async for n in numbers()]
    """
    namespace, table = planted(source)
    assert asyncio.run(namespace["main"]()) == [0, 1]
    seen = lines(visits, table)
    assert seen == ["main", 8, "numbers", 4, 8, 4, 8, 4, "numbers", 4, 4, 4]


def test_function_entry_of_generators_and_closures(visits: list[Any]) -> None:
    source = """
    def outer(a, *args, k=1, **kwargs):
        cell = a
        def inner():
            nonlocal cell
            cell += 1
            return cell
        yield inner()
        yield inner()
    """
    namespace, table = planted(source)
    generator = namespace["outer"](1, 2, k=3, z=4)
    assert visits == []
    assert list(generator) == [2, 3]
    assert lines(visits, table) == ["outer", "outer.<locals>.inner", "outer.<locals>.inner"]


def test_parents_and_lines() -> None:
    source = """
    for epoch in range(2):
        while epoch:
            pass
    def f():
        '''doc'''
        for a in x:
            if a:
                pass
            else:
                while b: pass
        return lambda: 0
    """
    table = AnchorTable()
    instrument(compiled(source), table)
    by_line = {anchor.line: anchor for anchor in table}
    parents = {
        line: None if anchor.parent is None else table[anchor.parent].line for line, anchor in by_line.items()
    }
    assert parents == {2: None, 3: 2, 5: None, 7: 5, 11: 7}
    assert by_line[5].kind == "function"
    assert by_line[5].qualname == "f"
    ids = [anchor.id for anchor in table]
    assert sorted(set(ids)) == ids
    assert all(table[number].id == number for number in ids)


def test_an_id_belongs_to_one_table() -> None:
    first, second = AnchorTable(), AnchorTable()
    for table in (first, second):
        instrument(compiled("for x in '12': pass"), table)
    (one,), (other,) = first, second
    assert one.id in first
    assert one.id not in second
    assert other.id not in first


# -- barriers -------------------------------------------------------------------------------------------


IN, OUT, ARRIVED = "barrier", "barrier", "arrival"
GUARDED = [
    ("try:\n    go()\nexcept ValueError:\n    pass", [IN, OUT]),
    ("try:\n    go()\nexcept:\n    pass\nelse:\n    visit('else')", [IN, OUT, "else"]),
    ("try:\n    go()\nfinally:\n    visit('finally')", [IN, OUT, "finally"]),
    ("with manager():\n    go()", [IN, OUT]),
    ("with manager() as m, manager():\n    return go()", [IN, IN, OUT, OUT]),
    ("for x in '12':\n    with manager():\n        if x > '1': break", [IN, OUT] * 2),
    ("with manager():\n    for x in '12':\n        return x", [IN, OUT]),
    ("with manager():\n    pass", [IN, OUT]),
    (
        "with manager():\n    try:\n        return go()\n    finally:\n        visit('f')",
        [IN, IN, OUT, "f", OUT],
    ),
    ("with manager():\n    raise OSError", [IN, ARRIVED]),
    ("with manager():\n    with manager():\n        raise OSError\n    go()", [IN, IN, ARRIVED, OUT]),
    ("async with amanager():\n    await nap()\n    go()", [IN, OUT]),
    ("async with amanager():\n    return await nap()", [IN, OUT]),
    ("try:\n    go()\nexcept* ValueError:\n    pass", [IN, OUT]),
    ("try:\n    return go()\nexcept ValueError:\n    pass", [IN, OUT]),
    ("try:\n    go(); return 1\nexcept (ValueError, KeyError) as e:\n    pass", [IN, OUT]),
    ("for x in '12':\n    try:\n        go(); break\n    except ValueError:\n        pass", [IN, OUT]),
    ("for x in '12':\n    try:\n        go(); continue\n    except ValueError:\n        pass", [IN, OUT] * 2),
    ("try:\n    for x in '123':\n        go()\nexcept Exception:\n    pass", [IN, OUT]),
    ("try:\n    n = 3\n    while n:\n        n -= 1\nexcept Exception:\n    pass", [IN, OUT]),
    ("n = 3\ntry:\n    while n:\n        n -= 1\nexcept Exception:\n    pass", [IN, OUT]),
    (
        "try:\n    try:\n        go()\n    finally:\n        visit('f')\nexcept ValueError:\n    pass",
        [IN, IN, OUT, "f", OUT],
    ),
    ("try:\n    with manager():\n        return go()\nexcept ValueError:\n    pass", [IN, IN, OUT, OUT]),
    (
        "try:\n    if n:\n        async for x in agen(): go()\n    for x in '12': go()\nexcept ValueError: pass",
        [IN, OUT],
    ),
    ("try:\n    raise ValueError\nexcept ValueError:\n    visit('handled')", [IN, ARRIVED, "handled"]),
    ("try:\n    raise KeyError\nexcept (error, KeyError):\n    visit('handled')", [IN, ARRIVED, "handled"]),
    ("try:\n    raise ValueError\nfinally:\n    visit('f')\n    return", [IN, ARRIVED, "f"]),
    (
        "try:\n    try:\n        raise ValueError\n    finally:\n        go()\nexcept ValueError: pass",
        [IN, IN, ARRIVED, ARRIVED],
    ),
    (
        "try:\n    go()\nfinally:\n    try:\n        go()\n    except ValueError:\n        pass",
        [IN, OUT, IN, OUT],
    ),
    (
        "with manager():\n    while n:\n        n -= 1\n        x = [i async for i in agen()]\n    go()",
        [IN, OUT],
    ),
    # Clauses that no op's error can come to guard nothing.
    ("try:\n    go()\nexcept StopIteration:\n    pass", []),
    (
        "try:\n    raise KeyError\nexcept (OSError, KeyError) as e:\n    pass\nexcept IndexError:\n    raise",
        [],
    ),
    ("try:\n    go()\nexcept StopIteration:\n    pass\nexcept module.Error:\n    pass", [IN, OUT]),
    ("try:\n    go()\nexcept StopIteration:\n    pass\nexcept:\n    pass", [IN, OUT]),
    ("try:\n    go()\nexcept StopIteration:\n    pass\nfinally:\n    visit('f')", [IN, OUT, "f"]),
]


@pytest.mark.parametrize(("body", "expected"), GUARDED)
def test_barriers_where_a_guarded_body_is_entered_and_left(
    body: str, expected: list[str], visits: list[Any]
) -> None:
    class Manager:
        def __enter__(self) -> None:
            pass

        def __exit__(self, kind: Any, *args: Any) -> bool:
            return kind is OSError

    class AsyncManager:
        async def __aenter__(self) -> None:
            await asyncio.sleep(0)

        async def __aexit__(self, *args: Any) -> None:
            await asyncio.sleep(0)

    async def agen() -> Any:
        yield 1

    kind = "async " if "async" in body else ""
    namespace, _ = planted(f"{kind}def f(n=1):\n" + textwrap.indent(body, "    "))
    namespace.update(go=lambda: 1, visit=visits.append, agen=agen, nap=lambda: asyncio.sleep(0))
    namespace.update(manager=Manager, amanager=AsyncManager, error=LookupError)
    if kind:
        asyncio.run(namespace["f"]())
    else:
        namespace["f"]()
    assert [visit for visit in visits if not isinstance(visit, int)] == expected


@pytest.mark.parametrize("leave", ["pass", "return 1", "return go()", "break", "continue"])
def test_a_barrier_is_told_the_manager_and_its_exit_method(
    leave: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(builtins, PROBE, lambda anchor: None, raising=False)
    monkeypatch.setattr(builtins, BARRIER, told.append, raising=False)
    monkeypatch.setattr(builtins, ARRIVAL, lambda error: error, raising=False)
    first, second = threading.Lock(), threading.RLock()
    source = f"""
    def f():
        for x in '1':
            with first as a, second:
                for y in '1':
                    {leave}
    """
    namespace, _ = planted(source)
    namespace.update(first=first, second=second, go=lambda: 1)
    namespace["f"]()
    assert told == [first, second, second.__exit__, first.__exit__]


@pytest.mark.parametrize("leave", ["pass", "return 1", "break", "continue", "return go()"])
@pytest.mark.parametrize("guard", ["except", "with", "finally"])
def test_an_error_raised_by_the_barrier_on_the_way_out_comes_to_the_guard(
    leave: str, guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def fail(*_: Any) -> None:
        calls.append(None)
        if len(calls) % 2 == 0:
            raise ValueError("late")

    class Catching:
        def __enter__(self) -> None:
            pass

        def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
            caught.append(str(error))
            return True

    caught: list[str] = []
    monkeypatch.setattr(builtins, PROBE, lambda anchor: None, raising=False)
    monkeypatch.setattr(builtins, BARRIER, fail, raising=False)
    monkeypatch.setattr(builtins, ARRIVAL, lambda error: error, raising=False)
    head, tail = {
        "except": ("try:", "except ValueError as error: caught.append(str(error))"),
        "with": ("with Catching():", "pass"),
        "finally": ("try:", "finally: caught.append(str(sys.exc_info()[1]))"),
    }[guard]
    source = f"""
    def f():
        for x in '12':
            {head}
                go()
                {leave}
            {tail}
        return caught
    """
    namespace, _ = planted(source)
    namespace.update(go=lambda: 1, caught=caught, Catching=Catching, sys=sys)
    if guard == "finally":
        with pytest.raises(ValueError, match="late"):
            namespace["f"]()
        assert caught == ["late"]
    else:
        assert namespace["f"]() == ["late", "late"]


@pytest.mark.parametrize(
    "body", ["try:\n        go()\n    except:\n        return 'caught'", "with m:\n        go()"]
)
def test_an_error_raised_by_the_barrier_on_the_way_in_passes_the_guard(
    body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("early")

    monkeypatch.setattr(builtins, PROBE, lambda anchor: None, raising=False)
    monkeypatch.setattr(builtins, BARRIER, fail, raising=False)
    monkeypatch.setattr(builtins, ARRIVAL, lambda error: error, raising=False)
    namespace, _ = planted(f"def f():\n    {body}\n")
    namespace["m"] = contextlib.suppress(ValueError)
    with pytest.raises(ValueError, match="early"):
        namespace["f"]()


def test_what_the_arrival_returns_is_handled_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, PROBE, lambda anchor: None, raising=False)
    monkeypatch.setattr(builtins, BARRIER, lambda *_: None, raising=False)

    def other(error: BaseException) -> BaseException:
        # With a traceback: a `with` statement hands it on without asking whether there is one.
        return ValueError(repr(error)).with_traceback(error.__traceback__)

    monkeypatch.setattr(builtins, ARRIVAL, other, raising=False)
    source = """
    def typed():
        try:
            raise KeyError(1)
        except KeyError:
            return "key"
        except ValueError as error:
            return error, sys.exc_info()[1]
    def final():
        try:
            raise KeyError(1)
        finally:
            seen.append(sys.exc_info()[1])
    def managed():
        with suppress(ValueError):
            raise KeyError(1)
        return "suppressed"
    """
    namespace, _ = planted(source)
    seen: list[Any] = []
    namespace.update(sys=sys, seen=seen, suppress=contextlib.suppress)
    one, other = namespace["typed"]()
    assert one is other
    assert str(one) == "KeyError(1)"
    with pytest.raises(ValueError, match="KeyError") as raised:
        namespace["final"]()
    assert seen == [raised.value]
    assert raised.value.__context__ is None
    assert namespace["managed"]() == "suppressed"


# -- nothing else changes -------------------------------------------------------------------------------

LEAVES = ["log({n})", "x = log({n})", "if bit(): raise ValueError({n})", "if bit():\n    log({n})", "pass"]
LEAVES += ["y = [log(i) for i in range(2) if bit()]", "z = (lambda k={n}: log(k))()", "log(*range(2), a={n})"]
LEAVES += ["match log({n}):\n    case int(v) if bit():\n        log(v)\n    case _:\n        log(0)"]
LEAVES += ["del [log({n})][0]", "assert not bit(), {n}", "x = log(1) if bit() and bit() else log(2)"]
RETURNS = ["return log({n})", "return", "return {n}"]
JUMPS = {"plain": RETURNS, "generator": RETURNS, "async": RETURNS, "asyncgen": ["return"]}
LOOP_JUMPS = [
    "break",
    "continue",
    "if bit(): break",
    "if bit(): continue",
    "if bit():\n    continue\nelse:\n    log({n})",
]
YIELDS = ["yield log({n})", "x = yield", "yield from items({n})"]
AWAITS = ["await nap({n})", "x = [i async for i in agen()]", "x = await nap(await nap({n}))"]
TESTS = ["bit()", "not bit()", "bit() and bit()", "bit() or bit() and bit()", "not (bit() or bit())", "True"]
TESTS += ["(k := bit())", "0 < log(bit()) < 5", "bit() if bit() else bit()", "any([bit() for _ in '12'])"]


@st.composite
def blocks(draw: st.DrawFn, kind: str, depth: int, in_loop: bool) -> list[str]:
    """Statements of a random function body, as lines."""
    found = [f"log({draw(st.integers(0, 99))})"]
    for _ in range(draw(st.integers(1, 3))):
        found += draw(statements(kind, depth, in_loop))
    return found


def indented(body: list[str]) -> list[str]:
    return ["    " + line for line in body]


@st.composite
def statements(draw: st.DrawFn, kind: str, depth: int, in_loop: bool) -> list[str]:
    """One statement, of a function of the given kind."""
    simple = LEAVES + (LOOP_JUMPS if in_loop else []) + JUMPS.get(kind, [])
    simple += YIELDS[: {"generator": 3, "asyncgen": 2}.get(kind, 0)] + (
        AWAITS if kind.startswith("async") else []
    )
    compound = ["for", "while", "try", "with", "if", "def", "retry"] if depth else []
    what = draw(st.sampled_from(compound + ["simple"] * 2))
    body = functools.partial(blocks, kind, depth - 1)

    def part(head: str, in_loop: bool = in_loop) -> list[str]:
        return [head, *indented(draw(body(in_loop)))]

    if what == "simple":
        return draw(st.sampled_from(simple)).format(n=draw(st.integers(0, 99))).split("\n")
    if what == "for":
        asynchronous = kind.startswith("async") and draw(st.booleans())
        found = part("async for i in agen():" if asynchronous else "for i in items(2):", True)
        return found + (part("else:") if draw(st.booleans()) else [])
    if what == "while":
        test = draw(st.sampled_from(TESTS))
        found = part(f"while {test}:", True)
        found.insert(1, "    if not bit(): break")
        return found + (part("else:") if draw(st.booleans()) else [])
    if what == "retry":
        leave = "break" if kind == "module" else "return"
        inner = ["try:", f"    if not bit(): {leave}", *indented(draw(body(True))), "except ValueError: pass"]
        return ["while True:", *indented(inner), "    if not bit(): break"]
    if what == "try":
        found = part("try:")
        handlers = draw(
            st.sampled_from(["finally", "typed", "bare", "named", "both", "star", "else", "never"])
        )
        if handlers in ("typed", "both", "else"):
            found += part("except (ValueError, KeyError):")
        if handlers == "bare":
            found += part("except:")
        if handlers == "never":
            found += part("except (KeyError, OSError):") + part("except StopIteration:")
        if handlers == "named":
            found += part("except ValueError as e:") + part("except Exception as e:")
        if handlers == "star":
            found += ["except* ValueError:", "    log(1)"]
        if handlers == "else":
            found += part("else:")
        if handlers in ("finally", "both"):
            # No jump or return: that would swallow the exception, which newer Pythons warn of.
            found += ["finally:", "    log(2)"]
        return found
    if what == "with":
        return part(draw(st.sampled_from(["with manager():", "with manager() as m, manager():"])))
    if what == "if":
        return part("if bit():") + (part("else:") if draw(st.booleans()) else [])
    name = f"inner{draw(st.integers(0, 9))}"
    return [f"def {name}(a=log(1), *b):", *indented(draw(blocks("plain", depth - 1, False))), f"{name}()"]


@st.composite
def programs(draw: st.DrawFn) -> tuple[str, str, int]:
    """A module with a function `f` of some kind, and a seed for its decisions."""
    kind = draw(st.sampled_from(["plain", "plain", "generator", "async", "asyncgen", "module"]))
    body = draw(blocks(kind, 3, False))
    if kind == "module":
        return "\n".join(body) + "\n", kind, draw(st.integers(0, 2**64 - 1))
    head = "async def f():" if kind.startswith("async") else "def f():"
    tail = ["    yield 1"] if kind in ("generator", "asyncgen") else []
    return "\n".join([head, *indented(body), *tail]) + "\n", kind, draw(st.integers(0, 2**64 - 1))


class World:
    """What a generated program may use, and the log of what it did with it."""

    def __init__(self, seed: int) -> None:
        self.bits = seed
        self.log: list[Any] = []

    def names(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("bit", "items", "nap", "agen", "manager")} | {
            "log": self.note,
            "__name__": "program",
        }

    def bit(self) -> bool:
        """The next decision; False for ever once the seed is used up, so that every loop ends."""
        self.bits, answer = divmod(self.bits, 2)
        self.log.append(bool(answer))
        return bool(answer)

    def note(self, *values: Any, **named: Any) -> int:
        self.log.append((values, tuple(named.items())))
        return 1

    def items(self, count: int) -> Iterator[int]:
        return iter(range(min(count, 3)))

    async def nap(self, value: int) -> int:
        await asyncio.sleep(0)
        return value

    async def agen(self) -> Any:
        for n in range(2):
            yield n
            await asyncio.sleep(0)

    class manager:  # noqa: N801
        def __enter__(self) -> None:
            pass

        def __exit__(self, kind: Any, *args: Any) -> bool:
            return kind is KeyError


def drive(
    code: types.CodeType, kind: str, world: World, names: dict[str, Any], trace: bool
) -> tuple[Any, ...]:
    """Run a program; return its outcome, its traceback and what a tracer saw of it."""
    events: list[Any] = []

    def tracer(frame: types.FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != code.co_filename:
            return None
        events.append((event, frame.f_code.co_name, frame.f_lineno))
        return tracer

    async def consume() -> list[Any]:
        return [item async for item in names["f"]()]

    outcome: Any = None
    text = ""
    sys.settrace(tracer if trace else None)
    try:
        exec(code, names)
        if kind == "plain":
            outcome = names["f"]()
        elif kind == "generator":
            outcome = list(names["f"]())
        elif kind == "async":
            outcome = asyncio.run(names["f"]())
        elif kind == "asyncgen":
            outcome = asyncio.run(consume())
    except Exception as error:
        text = "".join(traceback.format_exception(error))
    finally:
        sys.settrace(None)
    return outcome, text, events, world.log


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), st.booleans())
def test_a_program_cannot_tell(program: tuple[str, str, int], trace: bool) -> None:
    source, kind, seed = program
    code = compiled(source)
    plain, ours = World(seed), World(seed)
    expected = drive(code, kind, plain, plain.names(), trace)
    table = AnchorTable()
    new = marshal.loads(marshal.dumps(instrument(code, table)))
    assert not table.skipped
    with pytest.MonkeyPatch.context() as patch:
        report(lambda _: None, lambda _: None, patch)
        found = drive(new, kind, ours, ours.names(), trace)
    assert found == expected


class _Oracle(ast.NodeTransformer):
    """Says in the source what the probes and barriers must say."""

    def visit_FunctionDef(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body.insert(0, _call(f"visit({node.name!r})"))
        return node

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_For(self, node: ast.For) -> Any:
        self.generic_visit(node)
        node.iter = _expr(f"watched({node.lineno})", node.iter)
        return node

    def visit_AsyncFor(self, node: ast.AsyncFor) -> Any:
        self.generic_visit(node)
        node.iter = _expr(f"awatched({node.lineno})", node.iter)
        return node

    def visit_While(self, node: ast.While) -> Any:
        self.generic_visit(node)
        visit = _call(f"visit({node.lineno})").value
        node.test = ast.Subscript(ast.Tuple([visit, node.test], ast.Load()), ast.Constant(1), ast.Load())
        return node

    def visit_Try(self, node: Any) -> Any:
        self.generic_visit(node)
        guards = isinstance(node, ast.TryStar) or any(
            not set(re.findall(r"\w+", ast.unparse(handler.type) if handler.type else "all"))
            <= {"KeyError", "OSError", "StopIteration"}
            for handler in node.handlers
        )
        if guards:
            node.body = _guarded(node.body)
        if node.finalbody and node.handlers:
            inner = type(node)(node.body, node.handlers, node.orelse, [])
            inside: list[Any] = [_call("entered()"), inner] if guards else [inner]
            node = ast.Try(inside, [], [], node.finalbody)
        if node.finalbody:
            node.body = _guarded(node.body)
            guards = True
        return [_call("entered()"), node] if guards else node

    visit_TryStar = visit_Try  # noqa: N815

    def visit_With(self, node: ast.With) -> Any:
        self.generic_visit(node)
        for item in reversed(node.items):
            item.context_expr = _expr("entered", item.context_expr)
            node = ast.With([item], _guarded(node.body if item is node.items[-1] else [node]))
        return node


def _guarded(body: list[Any]) -> list[Any]:
    return [ast.With([ast.withitem(_call("left").value)], body)]


def _call(text: str) -> Any:
    return ast.parse(text).body[0]


def _expr(function: str, argument: ast.expr) -> ast.expr:
    return ast.Call(_call(function).value, [argument], [])


class Watch:
    """Instruments of the oracle. One visit may fail, as a probe does that Ctrl-C meets."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.seen: list[Any] = []
        self.left = fail_at or 0
        self.ignored: set[Any] = set()

    def visit(self, place: Any) -> None:
        if place not in self.ignored:
            self.seen.append(place)
            self.left -= 1
            if self.left == 0:
                raise ValueError("Ctrl-C")

    def watched(self, line: int) -> Callable[[Any], Any]:
        def watch(items: Any) -> Iterator[Any]:
            iterator = iter(items)
            while True:
                self.visit(line)
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                yield item

        return watch

    def awatched(self, line: int) -> Callable[[Any], Any]:
        async def watch(items: Any) -> Any:
            iterator = aiter(items)
            while True:
                self.visit(line)
                try:
                    item = await anext(iterator)
                except StopAsyncIteration:
                    return
                yield item

        return watch

    def entered(self, manager: Any = None) -> Any:
        self.seen.append("barrier")
        return manager

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, *args: Any) -> None:
        self.seen.append("barrier" if kind is None else "arrival")


def _breaks(body: list[ast.stmt]) -> bool:
    """Whether a loop's body leaves that loop by `break`."""
    for node in body:
        if isinstance(node, ast.Break):
            return True
        for name in ("orelse",) if isinstance(node, LOOPS) else ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(node, ast.FunctionDef) and _breaks(getattr(node, name, [])):
                return True
    return False


def _completes(body: list[ast.stmt]) -> bool:
    """Whether control can come to the end of a block."""
    for node in body:
        if isinstance(node, ast.Return | ast.Raise | ast.Break | ast.Continue):
            return False
        parts: list[list[ast.stmt]] = []
        if isinstance(node, ast.If):
            parts = [node.body, node.orelse]
        if isinstance(node, ast.Try | ast.TryStar):
            parts = [node.body + node.orelse, *(handler.body for handler in node.handlers)]
        if isinstance(node, LOOPS) and not _breaks(node.body):
            endless = isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and node.test.value
            parts = [[ast.Break()]] if endless else [node.orelse]
        if parts and not any(_completes(part) for part in parts):
            return False
    return True


def single_rounds(source: str) -> set[int]:
    """Lines of `while` statements that cannot run their body twice: CPython compiles them as `if`."""
    loops = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.While)]
    return {node.lineno for node in loops if not _completes(node.body)}


def collapsed(visits: list[Any]) -> list[Any]:
    """Without repeated barriers: entering or leaving two `try` bodies at once takes one."""
    return [
        visit
        for visit, before in zip(visits, [None, *visits], strict=False)
        if visit != "barrier" or before != visit
    ]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), st.none() | st.integers(1, 20))
def test_probes_are_where_the_source_says(program: tuple[str, str, int], fail_at: int | None) -> None:
    source, kind, seed = program
    tree = ast.fix_missing_locations(_Oracle().visit(ast.parse(source)))
    watch, plain = Watch(fail_at), World(seed)
    names = plain.names() | {"visit": watch.visit, "left": watch, "entered": watch.entered}
    names |= {"watched": watch.watched, "awatched": watch.awatched}
    table = AnchorTable()
    code = instrument(compiled(source), table)
    watch.ignored = single_rounds(source) - {anchor.line for anchor in table}
    expected = drive(compile(tree, "<oracle>", "exec"), kind, plain, names, False)

    ours, visits = World(seed), Watch(fail_at)

    def probe(anchor_id: int) -> None:
        anchor = table[anchor_id]
        visits.visit(anchor.line if anchor.kind == "loop" else anchor.qualname.rpartition(".")[2])

    with pytest.MonkeyPatch.context() as patch:
        report(probe, visits.seen.append, patch)
        found = drive(code, kind, ours, ours.names(), False)
    assert (found[0], found[3]) == (expected[0], expected[3])
    assert collapsed(visits.seen) == collapsed(watch.seen)


@pytest.mark.parametrize(
    "module",
    [
        *(
            "argparse",
            "ast",
            "asyncio.base_events",
            "bdb",
            "collections",
            "configparser",
            "contextlib",
            "csv",
        ),
        *("dataclasses", "decimal", "difflib", "email.message", "fractions", "gzip", "heapq", "http.client"),
        *(
            "inspect",
            "json.decoder",
            "logging",
            "pathlib",
            "pickle",
            "pprint",
            "random",
            "shlex",
            "statistics",
        ),
        *(
            "subprocess",
            "tarfile",
            "tempfile",
            "threading",
            "tokenize",
            "typing",
            "urllib.request",
            "zipfile",
        ),
    ],
)
def test_standard_library_module(module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    code = spec.loader.get_code(module)  # type: ignore[union-attr]
    table = AnchorTable()
    new = instrument(code, table)
    assert table.skipped == []
    assert marshal.loads(marshal.dumps(new)) == new
    for old, changed in zip(nested(code), nested(new), strict=True):
        assert changed.co_names[: len(old.co_names)] == old.co_names
        assert old.co_stacksize <= changed.co_stacksize <= old.co_stacksize + 3
        lines = {line for _, line in dis.findlinestarts(changed)}
        assert lines == {line for _, line in dis.findlinestarts(old)}


def nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from nested(constant)


def test_instrumented_module_works(visits: list[Any]) -> None:
    names = {"__name__": "json_decoder", "__package__": "json"}
    table = AnchorTable()
    code = importlib.util.find_spec("json.decoder").loader.get_code("json.decoder")  # type: ignore[union-attr]
    exec(instrument(code, table), names)
    decoder: Any = names["JSONDecoder"]
    assert decoder().decode('{"a": [1, 2.5, null, "x\\n"], "b": {}}') == {"a": [1, 2.5, None, "x\n"], "b": {}}
    with pytest.raises(ValueError, match="line 1 column 2"):
        decoder().decode("{,}")
    assert len(visits) > 3


# -- what cannot be handled -----------------------------------------------------------------------------


def test_code_that_does_not_verify_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ListingError("jumps or handlers changed")

    code = compiled("def f():\n    for x in '12': pass")
    monkeypatch.setattr(listing, "verify", refuse)
    table = AnchorTable()
    assert instrument(code, table) is code
    assert [reason for _, reason in table.skipped] == ["ListingError: jumps or handlers changed"]


def test_instrumenting_twice_changes_nothing() -> None:
    table = AnchorTable()
    code = instrument(
        compiled("def f():\n    for x in '12': pass\ntry:\n    f()\nexcept OSError: pass"), table
    )
    count = len(table)
    assert instrument(code, table) is code
    assert len(table) == count


def test_long_code_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors, "_MAX_UNITS", 5)
    table = AnchorTable()
    code = compiled("for x in '12': pass")
    assert instrument(code, table) is code
    assert [reason for _, reason in table.skipped] == ["too long"]


@pytest.mark.parametrize("change", ["arguments", "jump", "handler", "position", "name", "flags"])
def test_verification_sees(change: str) -> None:
    code = compiled("def f(a):\n    try:\n        a(1) if a else a(2)\n    except E: pass").co_consts[0]
    other = {
        "arguments": code.replace(co_consts=(None, 3, *code.co_consts[2:])),
        "jump": code.replace(co_code=code.co_code.replace(*_first_jump(code))),
        "handler": code.replace(co_exceptiontable=b""),
        "position": code.replace(co_firstlineno=7),
        "name": code.replace(co_names=("B",)),
        "flags": code.replace(co_flags=code.co_flags ^ 0x1000000),
    }[change]
    planted = [False] * sum(1 for _ in dis.get_instructions(code))
    verify(code, code, planted)
    with pytest.raises(ListingError):
        verify(code, other, planted)


def _first_jump(code: types.CodeType) -> tuple[bytes, bytes]:
    jump = next(i for i in dis.get_instructions(code) if i.opname.startswith("POP_JUMP"))
    return bytes([jump.opcode, jump.arg or 0]), bytes([jump.opcode, (jump.arg or 0) + 2])


def test_positions_without_columns() -> None:
    source = """
    def f(n):
        while n and n < 9:
            n -= 1
            if n == 3:
                continue
            while True:
                break
        for x in [n]:
            pass
    """
    code = f"marshal.dumps(compile({textwrap.dedent(source)!r}, 'x', 'exec'))"
    script = f"import sys, marshal; sys.stdout.buffer.write({code})"
    command = [sys.executable, "-X", "no_debug_ranges", "-c", script]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    table = AnchorTable()
    instrument(marshal.loads(data), table)
    assert table.skipped == []
    assert [anchor.line for anchor in table if anchor.kind == "loop"] == [3, 9]


def test_where_a_frame_is() -> None:
    table = AnchorTable()
    seen: list[list[int]] = []

    def where() -> None:
        frame = sys._getframe(1)
        loops = table.loops(frame.f_code)
        seen.append([table[loop].line for loop in loops if table.covers(loop, frame.f_lasti)])

    source = """
    def f():
        where()
        for x in '1':
            where()
            while x:
                where()
                x = None
            where()
        where()
    """
    namespace: dict[str, Any] = {"where": where}
    exec(instrument(compiled(source), table), namespace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, PROBE, lambda anchor: None, raising=False)
        namespace["f"]()
    assert seen == [[], [4], [4, 6], [4], []]
    function = table.function(namespace["f"].__code__)
    assert function is not None
    assert (table[function].kind, table[function].qualname) == ("function", "f")
    assert table.function(compiled("")) is None
    assert table.loops(compiled("")) == ()

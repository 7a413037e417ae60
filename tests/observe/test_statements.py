"""Ops find their statements, in every kind of frame and loop, and whoever traced before does not notice."""

from __future__ import annotations

import bdb
import builtins
import gc
import itertools
import os
import sys
import textwrap
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from terra_cx.observe.anchors import ARRIVAL, BARRIER, PROBE, AnchorTable, instrument
from terra_cx.observe.importer import UserCode
from terra_cx.observe.statements import Site, StatementObserver


def only_programs() -> UserCode:
    """To the programs, everything else is a library: these tests, and pytest."""
    user = UserCode(extra_library_prefixes=(os.path.dirname(__file__),))
    user.add("user.py")
    return user


def library_map(function: Callable[[Any], Any], items: Any) -> list[Any]:
    """Calls user code from library code (this file is a library to the programs here)."""
    return [function(item) for item in items]


class Program:
    """A user program, instrumented; regions begin at the loop that is marked `# region`."""

    def __init__(self, source: str) -> None:
        self.table = AnchorTable()
        self.user = only_programs()
        self.observer = StatementObserver(self.user, self.table)
        self.regions: list[list[tuple[Any, Site]]] = []
        self.marks: list[int] = []
        source = textwrap.dedent(source)
        line = next((n for n, text in enumerate(source.split("\n"), 1) if "# region" in text), 0)
        self.code = instrument(compile(source, "user.py", "exec"), self.table)
        self.anchor = next((a.id for a in self.table if a.line == line and a.kind == "loop"), -1)
        self.names: dict[str, Any] = {"__name__": "user", "op": self.op, "library_map": library_map}

    def run(self, **names: Any) -> list[list[tuple[Any, Site]]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builtins, PROBE, self.probe, raising=False)
            patch.setattr(builtins, BARRIER, lambda *_: None, raising=False)
            patch.setattr(builtins, ARRIVAL, lambda error: error, raising=False)
            try:
                exec(self.code, self.names | names)
            finally:
                self.observer.stop()
        return self.regions

    def probe(self, anchor_id: int) -> None:
        frame = sys._getframe(1)
        if anchor_id == self.anchor:
            self.observer.start(id(frame))
            self.regions.append([])
        elif self.observer.on:
            self.observer.loop_visit(anchor_id, frame)

    def op(self, name: Any = None) -> Any:
        if self.regions:
            self.regions[-1].append((name, self.observer.locate(sys._getframe(1))))
            self.marks.append(self.observer.user_mark())
        return name

    def short(self, region: int = 0) -> list[tuple[Any, ...]]:
        """Ops of a region as: name, lines of the path, loops as (line, iteration), ordinal."""
        return [
            (
                name,
                [code.co_name for code, _ in site.path],
                [(self.table[loop].line, number) for loop, number in site.loops],
                site.ordinal,
                site.line,
            )
            for name, site in self.regions[region]
        ]


def test_statements_number_their_ops() -> None:
    program = Program("""
        for step in range(3):  # region
            op(1) ; op(2)
            op(op(3))
            x = [op(4),
                 op(5)]
            op(6)
    """)
    program.run()
    assert len(program.regions) == 4
    assert [(name, ordinal, line) for name, _, _, ordinal, line in program.short()] == [
        *((1, 0, 3), (2, 1, 3), (3, 0, 4), (3, 1, 4)),
        *((4, 0, 5), (5, 0, 6), (6, 0, 7)),
    ]
    assert program.short(0) == program.short(1) == program.short(2)
    assert [site for _, site in program.regions[0]] == [site for _, site in program.regions[1]]
    assert program.regions[0][0][1].filename == "user.py"
    assert len({site for _, site in program.regions[0]}) == 7


def test_one_line_loop() -> None:
    program = Program("for step in range(3): op(1); op(2)  # region")
    program.run()
    assert [(name, ordinal) for name, _, _, ordinal, _ in program.short(1)] == [(1, 0), (2, 1)]
    assert program.short(0) == program.short(1)


def test_one_line_inner_loops() -> None:
    program = Program("""
        for step in range(3):  # region
            for x in 'ab': op(x); op(1)
            while step < 2: op('w'); step += 1
            y = [op(i) for i in range(2)]
    """)
    program.run()
    found = [(name, loops, ordinal) for name, _, loops, ordinal, _ in program.short(0)]
    assert found[:4] == [("a", [(3, 0)], 0), (1, [(3, 0)], 1), ("b", [(3, 1)], 0), (1, [(3, 1)], 1)]
    assert found[4:6] == [("w", [(4, 0)], 0), ("w", [(4, 1)], 0)]
    assert [(name, loops) for name, loops, _ in found[6:]] == [(0, []), (1, [])]
    assert found[6:] == [(name, loops, ordinal) for name, _, loops, ordinal, _ in program.short(1)][-2:]


def test_loops_end() -> None:
    program = Program("""
        for step in range(3):  # region
            op(1)
            for x in 'ab':
                op(2)
                for y in 'c':
                    op(3)
                op(4)
            op(5)
            while step >= 0:
                step -= 3
                op(6)
            op(7)
    """)
    program.run()
    assert [(name, loops) for name, _, loops, _, _ in program.short()] == [
        (1, []),
        *((2, [(4, 0)]), (3, [(4, 0), (6, 0)]), (4, [(4, 0)])),
        *((2, [(4, 1)]), (3, [(4, 1), (6, 0)]), (4, [(4, 1)])),
        (5, []),
        (6, [(10, 0)]),
        (7, []),
    ]


def test_without_a_table_loops_are_those_visited() -> None:
    program = Program("""
        for step in range(3):  # region
            for x in 'ab':
                op(2)
    """)
    program.observer = StatementObserver(program.user)
    program.run()
    assert [(name, loops) for name, _, loops, _, _ in program.short()] == [(2, [(3, 0)]), (2, [(3, 1)])]


def test_user_functions_and_their_loops() -> None:
    program = Program("""
        def layer(x):
            for i in range(2):
                op(x)
            return op("end")
        def recurse(n):
            op(n)
            if n:
                recurse(n - 1)
            op(-n)
        def main():
            for step in range(2):  # region
                for x in "ab":
                    layer(x)
                recurse(2)
        main()
    """)
    program.run()
    short = program.short()
    assert short[:3] == [
        ("a", ["main", "layer"], [(13, 0), (3, 0)], 0, 4),
        ("a", ["main", "layer"], [(13, 0), (3, 1)], 0, 4),
        ("end", ["main", "layer"], [(13, 0)], 0, 5),
    ]
    assert [(name, path) for name, path, *_ in short[6:]] == [
        (2, ["main", "recurse"]),
        (1, ["main", "recurse", "recurse"]),
        (0, ["main", "recurse", "recurse", "recurse"]),
        (0, ["main", "recurse", "recurse", "recurse"]),
        (-1, ["main", "recurse", "recurse"]),
        (-2, ["main", "recurse"]),
    ]
    assert program.short(1) == short
    assert len({site for _, site in program.regions[0]}) == len(short)


def test_user_function_called_by_a_library() -> None:
    program = Program("""
        def inner(x):
            op(x)
            op(x)
        for step in range(2):  # region
            op(0)
            library_map(inner, "ab")
            library_map(op, "cd")
            op(0)
    """)
    program.run()
    assert [(name, path, ordinal) for name, path, _, ordinal, _ in program.short()] == [
        (0, ["<module>"], 0),
        *(("a", ["<module>", "inner"], 0), ("a", ["<module>", "inner"], 0)),
        *(("b", ["<module>", "inner"], 0), ("b", ["<module>", "inner"], 0)),
        *(("c", ["<module>"], 0), ("d", ["<module>"], 1)),
        (0, ["<module>"], 0),
    ]
    marks = program.marks[: len(program.regions[0])]
    assert [b - a for a, b in itertools.pairwise(marks)] == [1, 0, 1, 0, 0, 0, 0]


def test_frames_outside_the_region_are_left_out() -> None:
    program = Program("""
        def train():
            for step in range(2):  # region
                op(1)
        def main():
            train()
            op(2)
        main()
    """)
    program.run()
    assert [path for _, path, *_ in program.short()] == [["train"]]
    # The frame that the region began in has ended; the op after it is still the region's.
    assert [path for _, path, *_ in program.short(2)] == [["<module>", "main"]]


def test_generators() -> None:
    program = Program("""
        def batches(name):
            for i in range(4):
                op(name)
                yield i
                op(name)
        def outer():
            yield from batches("o")
        for step in range(2):  # region
            for x in batches("g"):
                op(x)
            g = outer()
            next(g)
            op("m")
            next(g)
    """)
    program.run()
    short = [(name, path, loops) for name, path, loops, *_ in program.short()]
    assert short[:5] == [
        ("g", ["<module>", "batches"], [(10, 0), (3, 0)]),
        (0, ["<module>"], [(10, 0)]),
        ("g", ["<module>", "batches"], [(10, 1), (3, 0)]),
        ("g", ["<module>", "batches"], [(10, 1), (3, 1)]),
        (1, ["<module>"], [(10, 1)]),
    ]
    assert short[-4:] == [
        ("o", ["<module>", "outer", "batches"], [(3, 0)]),
        ("m", ["<module>"], []),
        ("o", ["<module>", "outer", "batches"], [(3, 0)]),
        ("o", ["<module>", "outer", "batches"], [(3, 1)]),
    ]


def test_coroutines() -> None:
    program = Program("""
        import asyncio
        async def work(n):
            for i in range(2):
                await asyncio.sleep(0)
                op(n)
        async def main():
            for step in range(2):  # region
                await asyncio.gather(work(1), work(2))
        asyncio.run(main())
    """)
    program.run()
    found = [(name, path, loops) for name, path, loops, *_ in program.short()]
    assert found == [(n, ["<module>", "work"], [(4, i)]) for i in range(2) for n in (1, 2)]


def test_exceptions_and_finally() -> None:
    program = Program("""
        def fail():
            op(1)
            raise ValueError
        for step in range(2):  # region
            try:
                fail()
            except ValueError:
                op(2)
            finally:
                op(3)
    """)
    program.run()
    assert [(name, ordinal, line) for name, _, _, ordinal, line in program.short()] == [
        *((1, 0, 3), (2, 0, 9), (3, 0, 11)),
    ]


def test_without_lines_paths_are_known_and_nothing_is_traced() -> None:
    observer = StatementObserver(only_programs())
    observer.start(0, lines=False)
    try:
        assert sys.gettrace() is None
        assert observer.locate(sys._getframe()).path == ()
    finally:
        observer.stop()
    assert not observer.on


def test_no_user_frame() -> None:
    observer = StatementObserver(only_programs())
    observer.start(0)
    try:
        sites = [observer.locate(sys._getframe()) for _ in range(2)]
    finally:
        observer.stop()
    assert sites == [Site((), (), 0, "?", 0), Site((), (), 1, "?", 0)]
    assert observer.locate(None).path == ()


def test_continue_in_the_middle_of_a_statement() -> None:
    program = Program("""
        for step in range(2):  # region
            both(op(1), again(), op(2), op(3))
            op(4)
    """)
    observer = program.observer

    def again() -> None:
        last = program.regions[-1][-1][1]
        observer.stop()
        observer.start(observer_frame())
        frame = sys._getframe(1)
        here = (frame.f_code, frame.f_lasti)
        observer.continue_at(
            Site((*last.path[:-1], here), last.loops, last.ordinal, last.filename, last.line)
        )

    def observer_frame() -> int:
        return id(sys._getframe(2))

    program.run(again=again, both=lambda *args: None)
    assert [(name, ordinal) for name, _, _, ordinal, _ in program.short()] == [(1, 0), (2, 1), (3, 2), (4, 0)]


# -- whoever traced before -----------------------------------------------------------------------------------------

TRACED = """
    def helper(n):
        total = 0
        for i in range(n):
            total += op(i)
        return total
    def items():
        yield 1
        yield 2
    def main():
        for step in range(3):  # region
            helper(2)
            library_map(helper, [1])
            for x in items():
                op(x)
            try:
                raise ValueError
            except ValueError:
                op(0)
    main()
    op(1)
"""


class Events:
    """A Python tracer that keeps every event of the program and of this file's library function."""

    def __init__(self, local_only: bool = False) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.local_only = local_only

    def __call__(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_name
        if frame.f_code.co_filename == "user.py" or name == "library_map":
            self.seen.append((event, name, frame.f_lineno))
            return self.local
        return None

    def local(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        self.seen.append((event, frame.f_code.co_name, frame.f_lineno))
        return self.local if event != "line" else None


class Reinstalling(Events):
    """Makes itself the thread's tracer again when it is called, as coverage's does."""

    def __call__(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        sys.settrace(self)
        return super().__call__(frame, event, arg)


@pytest.mark.parametrize("kind", [Events, Reinstalling])
def test_a_tracer_sees_what_it_saw(kind: type[Events]) -> None:
    def traced(observed: bool) -> tuple[list[Any], list[Any]]:
        program = Program(TRACED)
        if not observed:
            program.observer.start = lambda frame: None  # type: ignore[method-assign]
        tracer = kind()
        sys.settrace(tracer)
        try:
            program.run()
            assert sys.gettrace() is tracer
        finally:
            sys.settrace(None)
        return tracer.seen, program.regions

    plain, _ = traced(False)
    seen, regions = traced(True)
    assert len(plain) > 60
    assert seen == plain
    assert len({site for _, site in regions[0]}) == len(regions[0]) > 5


def test_nothing_is_left_behind() -> None:
    program = Program(TRACED)
    before = sys.gettrace()
    frame = sys._getframe()
    program.run()
    assert sys.gettrace() is before
    assert frame.f_trace is None


def test_frame_trace_functions_are_kept() -> None:
    seen: list[str] = []

    def local(frame: types.FrameType, event: str, arg: Any) -> Any:
        seen.append(event)
        return local

    program = Program("""
        set_local()
        for step in range(2):  # region
            op(1)
        check_local()
    """)

    def set_local() -> None:
        sys._getframe(1).f_trace = local
        sys.settrace(lambda *args: None)

    def check_local() -> None:
        program.observer.stop()
        assert sys._getframe(1).f_trace is local
        sys.settrace(None)

    program.run(set_local=set_local, check_local=check_local)
    assert seen.count("line") == 6


def test_a_debugger_that_starts_meanwhile_stays() -> None:
    class Debugger(bdb.Bdb):
        lines: list[int] = []  # noqa: RUF012

        def user_line(self, frame: types.FrameType) -> None:
            if frame.f_code.co_filename == "user.py":
                self.lines.append(frame.f_lineno)

    program = Program("""
        for step in range(3):  # region
            op(1)
            if step == 1:
                breakpoint()
            op(2)
        op(3)
    """)
    debugger = Debugger()
    program.names["breakpoint"] = lambda: debugger.set_trace(sys._getframe(1))
    try:
        program.run()
        installed = sys.gettrace()
    finally:
        sys.settrace(None)
    assert installed == debugger.trace_dispatch
    assert debugger.lines[:4] == [6, 2, 3, 4]
    assert [name for name, *_ in program.short(2)] == [1, 2]


def test_a_suspended_generator_drops_the_wrapper() -> None:
    tracer = Events()
    program = Program("""
        def items():
            while True:
                yield op(1)
        g = items()
        for step in range(2):  # region
            next(g)
        stop()
        next(g)
        look(g)
    """)

    def look(generator: Any) -> None:
        assert generator.gi_frame.f_trace == tracer.local

    sys.settrace(tracer)
    try:
        program.run(stop=program.observer.stop, look=look)
    finally:
        sys.settrace(None)
    assert ("line", "items", 4) in tracer.seen


def test_an_error_of_the_tracer_is_the_tracers() -> None:
    def tracer(frame: types.FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename == "user.py" and event == "line" and frame.f_lineno == 3:
            raise bdb.BdbQuit
        return tracer

    program = Program("for step in range(3):  # region\n    op(1)\n    op(2)")
    sys.settrace(tracer)
    try:
        with pytest.raises(bdb.BdbQuit):
            program.run()
    finally:
        sys.settrace(None)


def test_no_frame_is_kept_alive() -> None:
    class Thing:
        pass

    things: list[weakref.ref[Any]] = []

    def new() -> Thing:
        thing = Thing()
        things.append(weakref.ref(thing))
        return thing

    program = Program("""
        def use():
            thing = new()
            op(1)
        def train():
            mine = new()
            for step in range(2):  # region
                use()
                op(2)
                assert alive() == 1
        train()
        assert alive() == 0
    """)
    gc.disable()
    try:
        program.run(new=new, alive=lambda: sum(thing() is not None for thing in things))
    finally:
        gc.enable()
    assert len(things) == 3
    assert program.observer._frames == {}


def test_stop_without_start_and_start_twice() -> None:
    observer = StatementObserver(only_programs())
    observer.stop()
    observer.start(0)
    observer.start(0)
    observer.stop()
    assert sys.gettrace() is None


@pytest.fixture(autouse=True)
def _untraced() -> Iterator[None]:
    """The tests count on being alone: a tracer of the test runner's is put aside."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


def test_noted_visits_of_a_second_call_at_the_same_address() -> None:
    program = Program("""
        def layers():
            for layer in range(2):
                op(layer)
    """)
    code = next(constant for constant in program.code.co_consts if hasattr(constant, "co_code"))
    loop = next(anchor.id for anchor in program.table if anchor.kind == "loop")
    call = next(anchor.id for anchor in program.table if anchor.kind == "function")
    for anchor in (call, loop, loop, loop, call, loop, loop):
        program.observer.loop_visited(anchor, 1, code)
    assert program.observer._frames[1].rounds == {loop: 1}

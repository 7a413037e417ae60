"""The step function is decorated where it is defined, and nothing else changes."""

import builtins
import sys
import textwrap
import traceback

import pytest

from terra_cx.bench.decorate import DECORATOR, Decorating, decorated

SOURCE = textwrap.dedent(
    '''
    """Docs."""
    from __future__ import annotations
    import functools

    def outer(function):
        LOG.append("outer " + type(function).__name__)
        return function

    @outer
    def train_step(x: NoSuchName) -> int:
        """Step."""
        return x + 1

    class Trainer:
        def train_step(self, x):
            return self, x

        @staticmethod
        def other(x):
            return x

    class Static:
        @staticmethod
        @outer
        def train_step(x):
            return x

    class OfClass:
        @classmethod
        def train_step(cls, x):
            return cls, x

    def make():
        def train_step(x):
            raise KeyError(x)
        return train_step

    async def later():
        async def train_step():
            return 1
    '''
)


@pytest.fixture
def log(monkeypatch):
    """What was decorated and called, in order."""
    log = []

    def decorator(function):
        log.append(f"mark {function.__qualname__}")

        def marked(*args):
            log.append(f"call {function.__qualname__}")
            return function(*args)

        return marked

    monkeypatch.setattr(builtins, DECORATOR, decorator, raising=False)
    return log


@pytest.fixture
def module(log):
    namespace = {"LOG": log, "__name__": "module"}
    exec(decorated(SOURCE, "program.py", "train_step"), namespace)
    return namespace


def test_functions_and_methods(module, log):
    assert module["train_step"](1) == 2
    trainer = module["Trainer"]()
    assert trainer.train_step(3) == (trainer, 3)
    assert trainer.other(4) == 4
    assert log[-2:] == ["call train_step", "call Trainer.train_step"]


def test_static_and_class_methods(module, log):
    assert module["Static"].train_step(5) == 5
    assert module["OfClass"]().train_step(6) == (module["OfClass"], 6)
    assert log[-2:] == ["call Static.train_step", "call OfClass.train_step"]


def test_outside_of_the_programs_own_decorators(module, log):
    assert log[:2] == ["outer function", "mark train_step"]
    assert log[3:5] == ["outer function", "mark Static.train_step"]


def test_nested_functions_keep_their_lines(module):
    with pytest.raises(KeyError) as caught:
        module["make"]()(3)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.name) == ("program.py", "train_step")
    assert "raise KeyError(x)" in SOURCE.splitlines()[last.lineno - 1]


def test_the_future_is_kept(module):
    assert module["make"]().__name__ == "marked"  # and annotations were not evaluated


def test_all_other_code_has_its_positions():
    plain = compile(SOURCE, "program.py", "exec")
    made = decorated(SOURCE, "program.py", "train_step")
    assert made.co_consts[0] == plain.co_consts[0] == "Docs."
    ours = {
        code.co_qualname: list(code.co_positions()) for code in made.co_consts if hasattr(code, "co_code")
    }
    for code in plain.co_consts:
        if hasattr(code, "co_code") and code.co_qualname in ("outer", "train_step"):
            assert ours[code.co_qualname] == list(code.co_positions())


def test_nothing_of_that_name():
    assert decorated(SOURCE, "program.py", "step") is None
    assert decorated("async def step(): pass", "program.py", "step") is None


# --- modules ---------------------------------------------------------------------------------------------


@pytest.fixture
def decorating(log, tmp_path, monkeypatch):
    made = Decorating("train_step", getattr(builtins, DECORATOR))
    finders = list(sys.meta_path)
    monkeypatch.syspath_prepend(tmp_path)
    made.install()
    yield made
    sys.meta_path[:] = finders
    for name in ("stepping", "resting"):
        sys.modules.pop(name, None)


def test_modules_that_are_imported(decorating, log, tmp_path):
    (tmp_path / "stepping.py").write_text("def train_step(x):\n    return x\n")
    (tmp_path / "resting.py").write_text("def step(x):\n    return x\n")
    import resting
    import stepping

    assert stepping.train_step(2) == resting.step(2) == 2
    assert log == ["mark train_step", "call train_step"]


def test_the_program_itself(decorating, log, tmp_path):
    path = tmp_path / "program.py"
    path.write_text("def train_step(x):\n    return x\ntrain_step(1)\n")
    exec(decorating.main(compile("1", "x", "exec"), str(path)), {})
    assert log == ["mark train_step", "call train_step"]


@pytest.mark.parametrize("content", [None, b"\xff\x00", b"def f(:"])
def test_a_program_without_a_source_runs_as_it_is(content, decorating, tmp_path):
    path = tmp_path / "program.pyc"
    if content is not None:
        path.write_bytes(content)
    code = compile("1", "x", "exec")
    assert decorating.main(code, str(path)) is code

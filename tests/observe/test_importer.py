"""Whose code is whose, and imports of user modules: with probes, and otherwise as always."""

from __future__ import annotations

import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import marshal
import os
import runpy
import subprocess
import sys
import sysconfig
import textwrap
import traceback
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import terra_cx
from terra_cx.observe import importer
from terra_cx.observe.anchors import ARRIVAL, BARRIER, PROBE, AnchorTable
from terra_cx.observe.importer import UserCode, when_imported

MODULE = '''
"""Module."""
def twice(x):
    """Doc."""
    total = 0
    for _ in range(2):
        total += x
    return total
def fail():
    return 1 / 0
'''


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """An installed hook, a folder on sys.path, and the visits of probes."""
    visits: list[int] = []
    monkeypatch.setattr(builtins, PROBE, visits.append, raising=False)
    monkeypatch.setattr(builtins, BARRIER, lambda *_: None, raising=False)
    monkeypatch.setattr(builtins, ARRIVAL, lambda error: error, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    user, table = UserCode(), AnchorTable()
    user.install(table)
    yield types.SimpleNamespace(user=user, table=table, visits=visits, folder=tmp_path)
    user.remove()
    for name in set(sys.modules) - known:
        del sys.modules[name]


def write(folder: Path, name: str, text: str = MODULE) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    importlib.invalidate_caches()
    return path


# -- whose code ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "filename",
    [
        os.__file__,
        json.__file__,
        pytest.__file__,
        terra_cx.__file__,
        importer.__file__,
        "<frozen importlib._bootstrap>",
        "<string>",
        "<__array_function__ internals>",
        "/anywhere/lib/python3/dist-packages/thing.py",
        os.path.join(sys.base_prefix, sys.platlibdir, "python{}{}.zip".format(*sys.version_info), "abc.py"),
        os.path.join(str(sysconfig.get_path("stdlib")), "lib-dynload", "x.so"),
    ],
)
def test_libraries(filename: str) -> None:
    assert not UserCode().is_user(filename)


@pytest.mark.parametrize(
    "name", ["train.py", "pkg/model.py", "python3-app/app.zip/thing.py", "my-site-packages/a.py"]
)
def test_users(name: str, tmp_path: Path) -> None:
    assert UserCode().is_user(str(tmp_path / name))


def test_relative_names_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert UserCode().is_user("train.py")
    (tmp_path / "link").symlink_to(Path(json.__file__).parent)
    assert not UserCode().is_user(str(tmp_path / "link" / "decoder.py"))


def test_what_is_installed_into_a_folder_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by ``pip install --target``, or in an image whose PYTHONPATH names such a folder."""
    monkeypatch.syspath_prepend(tmp_path / "deps")
    monkeypatch.syspath_prepend(tmp_path / "gone")
    information = tmp_path / "deps" / "thing-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "RECORD").write_text("thing/__init__.py,sha256=x,0\nother.py,,\n../bin/thing,,\n")
    (tmp_path / "deps" / "linked-1.0.dist-info").mkdir()
    user = UserCode()
    assert not user.is_user(str(tmp_path / "deps" / "thing" / "parts" / "a.py"))
    assert not user.is_user(str(tmp_path / "deps" / "other.py"))
    assert user.is_user(str(tmp_path / "deps" / "train.py"))
    assert user.is_user(str(tmp_path / "deps" / "linked" / "a.py"))
    assert user.is_user(str(tmp_path / "thing" / "a.py"))


def test_added_names_and_prefixes(tmp_path: Path) -> None:
    user = UserCode(extra_library_prefixes=(str(tmp_path / "vendored") + os.sep,))
    assert not user.is_user(str(tmp_path / "vendored" / "a.py"))
    assert user.is_user(str(tmp_path / "vendored_not" / "a.py"))
    user.add("<string>")
    assert user.is_user("<string>")


def test_code_without_a_file() -> None:
    user = UserCode()
    program = compile("def f():\n  def g(): pass", "<string>", "exec")
    other = compile("def f():\n  def g(): pass", "<string>", "exec")
    user.add_code(program)
    function = next(c for c in program.co_consts if isinstance(c, types.CodeType))
    assert user.owns(program)
    assert user.owns(function)
    assert not user.owns(other)
    assert user.owns(test_code_without_a_file.__code__)


# -- imports ---------------------------------------------------------------------------------------------------------


def test_a_user_module_has_probes(hook: types.SimpleNamespace) -> None:
    path = write(hook.folder, "usermod.py")
    module = importlib.import_module("usermod")
    assert module.twice(4) == 8
    assert [(hook.table[v].kind, hook.table[v].line) for v in hook.visits] == [
        ("function", 3),
        *[("loop", 6)] * 3,
    ]
    assert module.__file__ == str(path)
    assert module.__spec__.loader is module.__loader__
    assert type(module.__loader__) is importlib.machinery.SourceFileLoader
    assert inspect.getsource(module.twice).startswith("def twice(x):")
    assert inspect.getdoc(module.twice) == "Doc."
    assert hook.user.failures == []


def test_byte_code_caches_stay_plain(hook: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write(hook.folder, "cached.py")
    module = importlib.import_module("cached")
    cache = Path(module.__cached__)
    code = marshal.loads(cache.read_bytes()[16:])
    assert PROBE not in str([c.co_names for c in code.co_consts if isinstance(c, types.CodeType)])
    script = "import cached, sys; print(cached.twice(3), hasattr(__builtins__, '__terra_probe__'))"
    done = subprocess.run([sys.executable, "-c", script], cwd=hook.folder, capture_output=True, text=True)
    assert done.stdout == "6 False\n", done.stderr
    # And the other way round: a plain cache is read, and the module still has probes.
    del sys.modules["cached"]
    importlib.import_module("cached").twice(1)
    assert hook.visits


def test_reload(hook: types.SimpleNamespace) -> None:
    path = write(hook.folder, "again.py")
    module = importlib.import_module("again")
    path.write_text("def twice(x):\n    return [y for y in [x, x]]  # changed\n")
    importlib.invalidate_caches()
    assert importlib.reload(module) is module
    assert module.twice(1) == [1, 1]
    assert len(hook.visits) == 1


def test_packages_and_relative_imports(hook: types.SimpleNamespace) -> None:
    write(hook.folder, "package/__init__.py", "from .inner import twice\n")
    write(hook.folder, "package/inner.py")
    write(hook.folder, "package/data.txt", "text")
    package = importlib.import_module("package")
    assert package.twice(1) == 2
    assert len(hook.visits) == 4
    assert package.__path__ == [str(hook.folder / "package")]
    assert importlib.resources.files("package").joinpath("data.txt").read_text() == "text"


def test_namespace_packages(hook: types.SimpleNamespace) -> None:
    write(hook.folder, "space/inner.py")
    assert importlib.import_module("space.inner").twice(1) == 2
    assert len(hook.visits) == 4
    assert importlib.import_module("space").__file__ is None


def test_zip_files(hook: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = hook.folder / "app.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped.py", MODULE)
        file.writestr("zipped2.py", MODULE)
    monkeypatch.syspath_prepend(str(archive))
    for name in ("zipped", "zipped2"):
        hook.visits.clear()
        module = importlib.import_module(name)
        assert module.twice(1) == 2
        assert len(hook.visits) == 4
        assert "zipimporter" in type(module.__loader__).__name__
        assert inspect.getsource(module.twice).startswith("def twice(x):")


def test_runpy(hook: types.SimpleNamespace) -> None:
    write(hook.folder, "main_module.py", MODULE + "result = twice(2)\n")
    assert runpy.run_module("main_module")["result"] == 4
    assert len(hook.visits) == 4


def test_libraries_have_no_probes(hook: types.SimpleNamespace) -> None:
    sys.modules.pop("this", None)
    sys.modules.pop("colorsys", None)
    importlib.import_module("colorsys").rgb_to_hsv(0.1, 0.2, 0.3)
    assert len(hook.table) == 0


def test_after_removal_modules_are_plain(
    hook: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = hook.folder / "later.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("early.py", MODULE)
        file.writestr("late.py", MODULE)
    monkeypatch.syspath_prepend(str(archive))
    finders = list(sys.meta_path)
    importlib.import_module("early")
    hook.user.remove()
    hook.user.remove()
    assert sys.meta_path == finders[1:]
    write(hook.folder, "plain.py")
    for name in ("late", "plain"):
        importlib.import_module(name).twice(1)
    assert hook.visits == []


def test_other_hooks_keep_working(hook: types.SimpleNamespace) -> None:
    log: list[str] = []

    class Loader(importlib.machinery.SourceFileLoader):
        def exec_module(self, module: types.ModuleType) -> None:
            log.append(module.__name__)
            super().exec_module(module)

    class Finder(importlib.abc.MetaPathFinder):
        def __init__(self, finds: str) -> None:
            self.finds = finds

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            log.append(f"{self.finds} asked for {name}")
            if name != self.finds:
                return None
            file = str(hook.folder / "special.py")
            return importlib.util.spec_from_file_location(name, file, loader=Loader(name, file))

    write(hook.folder, "special.py")
    last, first = Finder("special"), Finder("nothing")
    sys.meta_path.append(last)
    sys.meta_path.insert(0, first)
    sys.path_importer_cache.pop(str(hook.folder), None)
    sys.path.remove(str(hook.folder))
    try:
        assert importlib.import_module("special").twice(1) == 2
    finally:
        sys.meta_path.remove(last)
        sys.meta_path.remove(first)
    assert log == ["nothing asked for special", "special asked for special", "special"]
    assert len(hook.visits) == 4


def test_lazy_loading(hook: types.SimpleNamespace) -> None:
    write(hook.folder, "lazy.py")
    spec = importlib.util.find_spec("lazy")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["lazy"] = module
    spec.loader.exec_module(module)
    assert hook.visits == []
    assert module.twice(1) == 2
    assert len(hook.visits) == 4


def test_a_loader_that_takes_no_attributes(hook: types.SimpleNamespace) -> None:
    class Loader:
        __slots__ = ()

        def create_module(self, spec: Any) -> None:
            return None

        def get_code(self, name: str) -> types.CodeType:
            return compile(MODULE, "user.py", "exec")

        def exec_module(self, module: types.ModuleType) -> None:
            exec(self.get_code(module.__name__), module.__dict__)

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            if name != "fixed":
                return None
            return importlib.util.spec_from_file_location(
                name, str(hook.folder / "fixed.py"), loader=Loader()
            )

    finder = Finder()
    sys.meta_path.append(finder)
    try:
        assert importlib.import_module("fixed").twice(1) == 2
    finally:
        sys.meta_path.remove(finder)
    assert hook.visits == []
    assert [name for name, _ in hook.user.failures] == ["fixed"]


def test_a_module_that_cannot_be_instrumented_runs_plainly(
    hook: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(code: types.CodeType, table: AnchorTable) -> types.CodeType:
        raise RuntimeError("no")

    monkeypatch.setattr(importer, "instrument", fail)
    write(hook.folder, "unlucky.py")
    assert importlib.import_module("unlucky").twice(1) == 2
    assert hook.user.failures == [("unlucky", "RuntimeError: no")]


@pytest.mark.parametrize(
    "text",
    ["1 / 0", "def f(:", "import missing_module_xyz", "from json import nothing", "raise SystemExit(3)"],
)
@pytest.mark.parametrize("statement", ["import broken", "importlib.import_module('broken')"])
def test_failing_imports_look_the_same(hook: types.SimpleNamespace, text: str, statement: str) -> None:
    write(hook.folder, "broken.py", f"x = 1\n{text}\n")

    def attempt() -> str:
        try:
            exec(statement, {"importlib": importlib})
        except BaseException as error:
            found = "".join(traceback.format_exception(error))
        assert "broken" not in sys.modules
        return found

    ours = attempt()
    hook.user.remove()
    assert attempt() == ours
    assert ("<frozen importlib" in ours) == statement.startswith("importlib")


def test_missing_modules(hook: types.SimpleNamespace) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module_xyz"):
        importlib.import_module("no_such_module_xyz")
    assert importlib.util.find_spec("no_such_module_xyz") is None


def test_told_after_import(hook: types.SimpleNamespace) -> None:
    told: list[Any] = []
    hook.user.after_import["colorsys"] = lambda module: told.append(module.rgb_to_hsv)
    sys.modules.pop("colorsys", None)
    module = importlib.import_module("colorsys")
    assert told == [module.rgb_to_hsv]


def test_a_failing_import_is_not_told(hook: types.SimpleNamespace) -> None:
    hook.user.after_import["unfit"] = lambda module: pytest.fail("told")
    write(hook.folder, "unfit.py", "1 / 0")
    with pytest.raises(ZeroDivisionError) as caught:
        exec("import unfit", {})
    assert [Path(str(entry.path)).name for entry in caught.traceback][1:] == ["<string>", "unfit.py"]


def test_nothing_of_tensorflow_is_imported() -> None:
    script = (
        "import sys, terra_cx.observe.importer, terra_cx.observe.statements, terra_cx.trace.regions;"
        "print([m for m in sys.modules if m.startswith(('tensorflow', 'numpy'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- waiting for one module ------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "awaited.py").write_text("VALUE = 3\n")
    (tmp_path / "failing.py").write_text("raise KeyError('here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield "awaited"
    sys.modules.pop("awaited", None)
    sys.meta_path[:] = finders


def test_it_is_told_once_when_the_module_has_run(module: str) -> None:
    told: list[Any] = []
    finders = list(sys.meta_path)
    when_imported(module, lambda found: told.append(found.VALUE))
    import json.decoder  # noqa: F401  # others pass by

    assert told == []
    importlib.import_module(module)
    assert told == [3]
    assert sys.meta_path == finders
    importlib.reload(sys.modules[module])


def test_a_module_that_is_loaded_is_told_at_once(module: str) -> None:
    importlib.import_module(module)
    told: list[Any] = []
    when_imported(module, told.append)
    assert told == [sys.modules[module]]


def test_a_module_that_fails_or_is_missing_is_not_told(module: str) -> None:
    told: list[Any] = []
    when_imported("failing", told.append)
    with pytest.raises(KeyError) as caught:
        importlib.import_module("failing")
    assert importer.__file__ not in {
        frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)
    }
    when_imported("no_such_module", told.append)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module")
    assert told == []

"""A program must not be able to tell terra-run from python: the tests run it under both and compare."""

import compileall
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

LAUNCHED = Path(__file__).parent / "launched"
PYTHON = [sys.executable]
TERRA = [sys.executable, "-m", "terra_cx", "run"]
FAKE = [sys.executable, str(LAUNCHED / "drive.py"), "terra-run"]


@pytest.fixture(scope="module", autouse=True)
def no_settings_from_outside():
    """The tests decide what TERRA_* says; PYTHONPATH must lead to the package from any directory."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("TERRA_", "PYTHON"))]:
            if name != "PYTHONPATH":
                patch.delenv(name)
        yield


def run(words, cwd, *, env=None, **options):
    options.setdefault("capture_output", True)
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def outcome(done):
    return done.returncode, done.stdout, re.sub(r" at 0x[0-9a-f]+", "", done.stderr)


PLAIN = ["--mode", "eager"]
WITH_SESSION = ["-q"]


def both(words, cwd, ways=(PLAIN, WITH_SESSION), **options):
    """The outcome under python, after comparing it with terra-run's in each of `ways`."""
    commands = [PYTHON, *([*TERRA, *ours] for ours in ways)]
    with ThreadPoolExecutor(2) as pool:
        expected, *actual = pool.map(lambda command: run([*command, *words], cwd, **options), commands)
    for done in actual:
        assert outcome(done) == outcome(expected)
    return expected


# --- the environment of every launch form
# ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory with the environment program in every form that can be launched."""
    root = tmp_path_factory.mktemp("site")
    source = (LAUNCHED / "environment.py").read_text()
    for name in (
        "script.py",
        "elsewhere/script.py",
        "folder/__main__.py",
        "pkg/__main__.py",
        "pkg/module.py",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(source)
    # A package can see what sys.argv holds while it is being imported on the way to its module. A spawned
    # child prints nothing: whether its line gets out before the pool ends it is a matter of luck.
    (root / "pkg/__init__.py").write_text(
        "import multiprocessing, sys\n"
        "if multiprocessing.current_process().name == 'MainProcess':\n    print(__name__, sys.argv)\n"
    )
    (root / "away").mkdir()
    (root / "away/link.py").symlink_to("../elsewhere/script.py")
    (root / "chain.py").symlink_to("away/link.py")
    with zipfile.ZipFile(root / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", source)
    compileall.compile_file(root / "script.py", quiet=2, legacy=True)
    (root / "script.pyc").rename(root / "compiled.pyc")
    shutil.rmtree(root / "__pycache__", ignore_errors=True)
    return root


FORMS = {
    "script": ["script.py", "-x", "--", "--mode", "y"],
    "dotted": ["./elsewhere/../script.py"],
    "other directory": ["elsewhere/script.py"],
    "link": ["away/link.py"],
    "link to a link": ["chain.py"],
    "compiled": ["compiled.pyc"],
    "module": ["-m", "pkg.module", "-m", "z"],
    "package": ["-m", "pkg", "z"],
    "attached module": ["-mpkg.module", "z"],
    "directory": ["folder", "z"],
    "archive": ["archive.zip", "z"],
    "code": ["-c", (LAUNCHED / "environment.py").read_text(), "-c", "z"],
    "behind --": ["--", "script.py", "--", "z"],
}


@pytest.mark.parametrize("form", FORMS)
def test_environment_is_pythons(site, form):
    # Starting children takes longest, so only the forms that tell them in different ways where main is do it.
    spawn = form in ("script", "compiled", "module")
    done = both(FORMS[form], site, env={"SPAWN": "1"} if spawn else {})
    assert done.returncode == 1
    seen = json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])
    assert seen["main_is_here"]
    assert "ValueError: a message" in done.stderr
    if spawn:
        assert seen["spawned"]["name"] == "__mp_main__"
        assert seen["spawned"]["terra_cx"] == []  # a child starts as plain python
        assert seen["spawned_thing"] == 4


def test_absolute_script_from_another_directory(site, tmp_path):
    both([site / "script.py"], tmp_path)


@pytest.mark.parametrize("form", ["script", "link", "module", "directory", "archive", "code"])
def test_environment_with_a_safe_path(site, form):
    # PYTHONPATH, so that the modules of the module form are found without the working directory.
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": path}
    from_variable = both(FORMS[form], site, env=env)
    # The same by our own -P: python's flag itself cannot be set by then, the rest is the same.
    by_option = run([*TERRA, "--mode", "eager", "-P", *FORMS[form]], site, env={"PYTHONPATH": path})
    assert by_option.returncode == 1

    def seen(done):
        return json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])

    expected, actual = seen(from_variable), seen(by_option)
    for either in (expected, actual):
        assert either.pop("flags")
    assert actual == expected


def test_interpreter_flags_are_kept(site):
    flags = ["-O", "-W", "error", "-X", "dev", "-P"]
    expected = run([sys.executable, *flags, "script.py"], site)
    actual = run([sys.executable, *flags, *TERRA[1:], "--mode", "eager", "script.py"], site)
    assert outcome(actual) == outcome(expected)


def test_console_script(site):
    command = Path(sys.executable).with_name("terra-run")
    if not command.exists():
        pytest.skip("the package is not installed beside this interpreter")
    interpreter = (
        command.read_text().splitlines()[0].removeprefix("#!")
    )  # may have another name than this one
    expected = run([interpreter, "script.py", "a"], site)
    for words in (["--mode", "eager"], ["-q"]):
        actual = run([command, *words, "script.py", "a"], site)
        assert (actual.returncode, actual.stdout) == (expected.returncode, expected.stdout)


def test_disabled(site):
    expected = run([*PYTHON, "script.py"], site)
    actual = run([*FAKE, "--report", "r.json", "script.py"], site, env={"TERRA_DISABLE": "1"})
    assert outcome(actual) == outcome(expected)
    assert not (site / "r.json").exists()


# --- how programs end
# -----------------------------------------------------------------------------------------------

ENDINGS = dict(
    program.split("\n", 1) for program in (LAUNCHED / "endings.txt").read_text().split("\n### ")[1:]
)


# What a session still changes; each is to go.
@pytest.mark.parametrize("name", ENDINGS)
def test_ends_as_under_python(tmp_path, name):
    (tmp_path / "script.py").write_text(ENDINGS[name])
    both(["script.py"], tmp_path, [PLAIN, WITH_SESSION])


@pytest.mark.parametrize("name", ["exception", "exit text", "interrupt raised", "hook fails", "atexit names"])
@pytest.mark.parametrize("form", ["module", "code", "directory"])
def test_other_forms_end_as_under_python(tmp_path, form, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "__main__.py").write_text(ENDINGS[name])
    words = {"module": ["-m", "folder"], "code": ["-c", ENDINGS[name]], "directory": ["folder"]}
    both(words[form], tmp_path)


@pytest.mark.parametrize("command", [PYTHON, TERRA])
def test_interrupted_from_outside(tmp_path, command):
    (tmp_path / "script.py").write_text(
        "import atexit, time\natexit.register(print, 'atexit')\nprint('ready', flush=True)\ntime.sleep(30)"
    )
    child = subprocess.Popen(
        [*command, *([] if command is PYTHON else ["--mode", "eager"]), "script.py"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.1)  # python must be inside the sleep: a signal during print would show another line
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (-signal.SIGINT, "atexit\n")
    script = tmp_path / "script.py"
    assert err.startswith(f'Traceback (most recent call last):\n  File "{script}", line 4, in <module>\n')
    assert err.endswith("KeyboardInterrupt\n")


def test_broken_pipe(tmp_path):
    (tmp_path / "script.py").write_text("for i in range(100000): print(i)")
    outcomes = []
    for command in (PYTHON, [*TERRA, "--mode", "eager"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = run(
            [*command, "script.py"], tmp_path, capture_output=False, stdout=writer, stderr=subprocess.PIPE
        )
        os.close(writer)
        outcomes.append((done.returncode, done.stderr))
    assert outcomes[0] == outcomes[1]
    assert "BrokenPipeError" in outcomes[0][1]


def test_own_frames_on_request(tmp_path):
    (tmp_path / "script.py").write_text("1 / 0")
    done = run([*TERRA, "--mode", "eager", "script.py"], tmp_path, env={"TERRA_TRACEBACK": "full"})
    assert "launcher.py" in done.stderr
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


# --- sources
# --------------------------------------------------------------------------------------------------------

SOURCES = {
    "syntax error": b"x = 1\nif True print(x)\n",
    "unclosed": b"print('a'\n",
    "indentation": b"if True:\nprint(1)\n",
    "tabs": b"if True:\n        x = 1\n\ty = 2\n",
    "return outside": b"import warnings\nreturn 1\n",
    "unterminated": b"s = '''abc\n",
    "escape warning, then error": b"s = '\\d'\nx x\n",
    "no encoding declared": b"s = '\xe9'\n",
    "unknown encoding": b"# coding: no-such-encoding\nprint(1)\n",
    "wrong for its encoding": b"# coding: ascii\ns = '\xc3\xa9'\n",
    "nul": b"print(1)\0\n",
    "latin-1": b"# -*- coding: latin-1 -*-\nprint(ascii('\xe9'))\n",
    "bom": b"\xef\xbb\xbfprint(ascii('\xc3\xa9'))\n",
    "windows lines": b"print(1)\r\ns = '''a\r\nb'''\r\nprint(repr(s))\r\n",
    "no last newline": b"print(1)\nif 1:\n    print(2)",
    "future is not inherited": b"def f(x: undefined): pass\n",
    "future": b"from __future__ import annotations\ndef f(x: undefined): pass\nprint(f.__annotations__)\n",
    "docstring": b"'''About.'''\nprint(__doc__, __annotations__)\nx: int = 1\nprint(__annotations__)\n",
    "empty": b"",
    "bad magic": b"\xa7\r\r\n" + bytes(20),
}


@pytest.mark.parametrize("name", SOURCES)
def test_source_is_read_as_python_does(tmp_path, name):
    (tmp_path / "script.py").write_bytes(SOURCES[name])
    both(["script.py"], tmp_path)


def test_bad_compiled_file(tmp_path):
    (tmp_path / "script.pyc").write_bytes(b"nothing that was compiled")
    both(["script.pyc"], tmp_path)


@pytest.mark.parametrize("code", ["x x", "'\\d'; x x", "s = '\udce9'", "print(1"])
def test_bad_code(tmp_path, code):
    both(["-c", code, "argument"], tmp_path)


def test_bad_source_keeps_the_flags(tmp_path):
    (tmp_path / "script.py").write_text("x x")
    words = ["-X", "dev", "-W", "error"]
    expected = run([sys.executable, *words, "-P", "script.py"], tmp_path)
    actual = run([sys.executable, *words, *TERRA[1:], "-P", "script.py"], tmp_path)
    assert outcome(actual) == outcome(expected)


def test_bad_source_from_a_pipe(tmp_path):
    done = run(["bash", "-c", f"{sys.executable} -m terra_cx run <(echo 'x x')"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("terra-cx run: invalid syntax (")
    assert done.stderr.count("\n") == 1


# --- programs that are not there
# ------------------------------------------------------------------------------------


def test_missing_script(tmp_path):
    (tmp_path / "unreadable").mkdir()
    for name in ("missing.py", "unreadable/missing.py"):
        done = run([*TERRA, "--report", "r.json", name], tmp_path)
        expected = run([*PYTHON, name], tmp_path)
        assert outcome(done) == (2, "", expected.stderr.replace(sys.executable, "terra-cx run", 1))
    assert os.listdir(tmp_path) == ["unreadable"]


@pytest.mark.parametrize("words", [["-m", "missing"], ["-m", "missing.module"], ["-m", "json"], ["-m", "sys"],
                                   ["-m", "script.py"], ["-m", ".x"], ["folder"]])  # fmt: skip
def test_missing_module(tmp_path, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "script.py").touch()
    both(words, tmp_path)


def test_module_called_main(tmp_path):
    (tmp_path / "__main__.py").write_text("import sys\nprint(sys.argv, sys.path[0], __spec__.name)")
    both(["-m", "__main__", "x"], tmp_path)


def test_module_in_a_package_that_fails(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/__init__.py").write_text("1 / 0")
    both(["-m", "broken.module"], tmp_path, [PLAIN])


def test_syntax_error_in_a_module(tmp_path):
    (tmp_path / "broken.py").write_text("x x")
    both(["-m", "broken"], tmp_path)


# --- with a session
# -------------------------------------------------------------------------------------------------


def fake(words, cwd, wrong="", **options):
    return run([*FAKE, *words], cwd, env={"FAKE": wrong, **options.pop("env", {})}, **options)


SUMMARY = (
    "terra-cx  7 of 10 regions co-executed (2 traced, 1 eager)\n          step 1.5 ms, eager 3 ms (2.0x)\n"
)


def test_order_of_things(tmp_path):
    (tmp_path / "script.py").write_text(
        "import atexit, sys\natexit.register(lambda: sys.stderr.write('atexit\\n'))\n"
        "print('as written')\nsys.stderr.write('body\\n')"
    )
    done = fake(["script.py", "x"], tmp_path)
    assert done.returncode == 0
    assert done.stdout == "rewritten\n"
    assert done.stderr == (
        "session: start mode=co argv=['terra-run', 'script.py', 'x']\n"
        "session: instrument script.py <module>\n"
        "body\nsession: finish\nsession: close\nsession: report\natexit\n" + SUMMARY
    )


@pytest.mark.parametrize(
    "words", [["-m", "mod"], ["-m", "pkg"], ["pkg"], ["a.zip"], ["-c", "print('as written')"]]
)
def test_every_form_is_instrumented(tmp_path, words):
    (tmp_path / "pkg").mkdir()
    for name in ("mod.py", "pkg/__main__.py"):
        (tmp_path / name).write_text("import runpy; print('as written', runpy._get_module_details.__name__)")
    (tmp_path / "pkg/__init__.py").write_text("print('package')")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("__main__.py", "print('as written')")
    done = fake(["-q", *words], tmp_path)
    assert done.returncode == 0
    assert "rewritten" in done.stdout
    assert done.stdout.endswith(("rewritten\n", "rewritten _get_module_details\n"))


@pytest.mark.parametrize("ending", ["exception", "exit number", "interrupt raised", "ctrl-c", "hook"])
def test_ends_alike_with_a_session(tmp_path, ending):
    (tmp_path / "script.py").write_text(ENDINGS[ending])
    expected = run([*PYTHON, "script.py"], tmp_path)
    done = fake(["script.py", "--report", "no"], tmp_path)
    assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)
    assert done.stderr.partition("session: report\n")[2] == expected.stderr + SUMMARY


def test_deferred_error_is_the_programs(tmp_path):
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "def hook(t, v, b): print(t.__name__, v, v.__context__ and type(v.__context__).__name__)\n"
        "sys.excepthook = hook\n"
        "if len(sys.argv) > 1: exec(sys.argv[1])"
    )
    for words, printed in (
        ([], "ArithmeticError deferred None\n"),
        (["1 / 0"], "ArithmeticError deferred ZeroDivisionError\n"),
        (["sys.exit(0)"], "ArithmeticError deferred None\n"),
    ):
        done = fake(["script.py", *words], tmp_path, "deferred")
        assert (done.returncode, done.stdout) == (1, printed)
        assert done.stderr.endswith(SUMMARY)


def test_interrupt_is_stronger_than_a_deferred_error(tmp_path):
    done = fake(["-c", "raise KeyboardInterrupt"], tmp_path, "deferred")
    assert done.returncode == -signal.SIGINT


def test_deferred_error_text(tmp_path):
    done = fake(["-q", "-c", "pass"], tmp_path, "deferred")
    after = done.stderr.partition("session: report\n")[2].splitlines()
    assert after[0] == "Traceback (most recent call last):"
    assert ", in finish" in after[1]  # the fake's own frame: it is not part of the package
    assert after[-1] == "ArithmeticError: deferred"
    assert len(after) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("start", "terra-cx: could not start (RuntimeError: no start); the program is not affected\n"),
        (
            "instrument",
            "terra-cx: could not plant probes in the program (RuntimeError: no probes); the program",
        ),
        ("internal", "terra-cx: could not finish (bad state); the program is not affected\n"),
        ("close", "terra-cx: could not close (RuntimeError: no close); the program is not affected\n"),
        (
            "report",
            "terra-cx: could not make its report (RuntimeError: no report); the program is not affected\n",
        ),
    ],
)
def test_own_failures_do_not_touch_the_program(tmp_path, wrong, message):
    done = fake(
        ["--report", "r.json", "-c", "print('fine'); raise SystemExit(4)"], tmp_path, f"{wrong},counted"
    )
    assert (done.returncode, done.stdout) == (4, "fine\n")
    assert done.stderr.count(message) == 1
    counted = 0 if wrong in ("start", "report") else 1  # by the session, where its own count can be asked for
    assert json.loads((tmp_path / "r.json").read_text())["internal_errors"] == 1 + counted
    assert "inside terra-cx; the program went on in plain eager" in done.stderr


def test_refusal_ends_before_the_program(tmp_path):
    done = fake(["-c", "print('never')"], tmp_path, "refuse")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("terra-run: this interpreter is not supported\n")


def test_forked_child_leaves_the_session_alone(tmp_path):
    (tmp_path / "script.py").write_text("import os\nif os.fork(): os.wait()")
    done = fake(["--report", "r.json", "script.py"], tmp_path)
    for once in ("finish", "close", "report"):
        assert done.stderr.count(f"session: {once}\n") == 1
    assert done.stderr.endswith(SUMMARY)


def test_report_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/target.json").write_text("old")
    (tmp_path / "link.json").symlink_to("deep/target.json")
    done = fake(["-q", "--report", "link.json", "-m", "json.tool", "--help"], tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "link.json").is_symlink()
    record = json.loads((tmp_path / "deep/target.json").read_text())
    assert record["command"] == ["-m", "json.tool", "--help"]
    assert record["version"] == 1
    assert record["regions"]["co_executed"] == 7
    assert record["fallbacks"] == []  # the session told nothing of these, yet every key is there
    assert os.listdir(tmp_path / "deep") == ["target.json"]
    assert "regions" not in done.stderr


def test_report_is_written_where_it_was_asked_for(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    done = fake(["--report=r.json", "-c", "import os; os.chdir('elsewhere'); 1/0"], tmp_path)
    assert done.returncode == 1
    assert json.loads((tmp_path / "r.json").read_text())["mode"] == "co"


def test_report_of_a_plain_run(tmp_path):
    done = run([*TERRA, "--mode=eager", "--report", "r.json", "-c", "pass"], tmp_path)
    assert outcome(done) == (0, "", "")
    assert json.loads((tmp_path / "r.json").read_text())["regions"]["total"] == 0


@pytest.mark.parametrize("where", ["missing/r.json", "folder", "/dev/null", "script.py/r.json"])
def test_report_that_cannot_be_written(tmp_path, where):
    (tmp_path / "folder").mkdir()
    (tmp_path / "script.py").write_text("print('started')")
    done = fake(["--report", where, "script.py"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"terra-run: cannot write {where}: ")
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["folder", "script.py"]


def test_report_directory_that_goes_away(tmp_path):
    (tmp_path / "folder").mkdir()
    done = fake(["-q", "--report", "folder/r.json", "-c", "import os; os.rmdir('folder')"], tmp_path)
    assert done.returncode == 0
    assert "terra-cx: could not write" in done.stderr


def test_summary_comes_after_the_programs_output(tmp_path):
    done = fake(["-c", "print('last words')"], tmp_path, capture_output=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert done.stdout.endswith("\nlast words\n" + SUMMARY)


def test_closed_stderr_does_no_harm(tmp_path):
    done = fake(["-c", "import sys; sys.stderr.close(); sys.stderr = None; print('out')"], tmp_path)
    assert done.stdout == "out\n"


def test_nothing_heavy_is_imported(tmp_path):
    heavy = "print({'tensorflow', 'keras', 'numpy', 'rich', 'argparse', 'bytecode'} & set(sys.modules))"
    done = run([sys.executable, "-c", f"import sys, terra_cx.launcher\n{heavy}"], tmp_path)
    assert done.stdout == "set()\n"

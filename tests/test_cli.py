"""The command lines of terra-run and terra-cx."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import terra_cx
from terra_cx import cli, launcher
from terra_cx.errors import UsageError
from terra_cx.launch.commandline import Option, help_text, parse
from terra_cx.launch.program import Target

DRIVE = [sys.executable, str(Path(__file__).parent / "launched" / "drive.py")]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for name in list(os.environ):
        if name.startswith("TERRA_"):
            monkeypatch.delenv(name)


def run(words, cwd):
    return subprocess.run([*DRIVE, *words], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


# --- taking a command line apart -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "target", "settings"),
    [
        ("s.py", Target("script", "s.py"), {}),
        ("s.py -q --mode x -- y", Target("script", "s.py", ("-q", "--mode", "x", "--", "y")), {}),
        ("-q s.py", Target("script", "s.py"), {"quiet": True}),
        ("--no-quiet s.py", Target("script", "s.py"), {"quiet": False}),
        ("-q -- -s.py --", Target("script", "-s.py", ("--",)), {"quiet": True}),
        ("-- -m x", Target("script", "-m", ("x",)), {}),
        ("--mode lazy s.py", Target("script", "s.py"), {"mode": "lazy"}),
        ("--mode=lazy --report=a=b s.py", Target("script", "s.py"), {"mode": "lazy", "report": "a=b"}),
        (
            "--run-ahead 8 --sync-errors s.py",
            Target("script", "s.py"),
            {"run_ahead": "8", "sync_errors": True},
        ),
        ("-m pkg -m -q", Target("module", "pkg", ("-m", "-q")), {}),
        ("-mpkg x", Target("module", "pkg", ("x",)), {}),
        ("-qm pkg -- x", Target("module", "pkg", ("--", "x")), {"quiet": True}),
        ("-cpass -c", Target("code", "pass", ("-c",)), {}),
        ("-c -q", Target("code", "-q"), {}),
    ],
)
def test_parse(words, target, settings):
    line = parse(words.split())
    assert (line.target, line.settings) == (target, settings)
    assert not line.safe_path


def test_parse_safe_path():
    assert parse(["-P", "s.py"]).safe_path
    assert parse(["-qP", "s.py"]).safe_path
    assert parse(["--safe-path", "-m", "x"]).safe_path


def test_parse_extra_option():
    line = parse(["--dot", "g.dot", "s.py"], "x", [Option("dot", "", "FILE")])
    assert line.others == {"dot": "g.dot"}
    assert line.settings == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no program given; terra-run script.py, or see terra-run --help"),
        ("-q", "no program given; terra-run script.py, or see terra-run --help"),
        ("--", "no program given; terra-run script.py, or see terra-run --help"),
        ("-m", "-m needs a value; see terra-run --help"),
        ("-c", "-c needs a value; see terra-run --help"),
        ("--mode", "--mode needs a value; see terra-run --help"),
        ("--mod lazy s.py", "unknown option --mod; did you mean --mode?"),
        ("--no-mode s.py", "unknown option --no-mode; did you mean --mode?"),
        ("--quiet=1 s.py", "unknown option --quiet=1; did you mean --quiet?"),
        ("--xyzzy s.py", "unknown option --xyzzy; see terra-run --help"),
        ("-x s.py", "unknown option -x; see terra-run --help"),
        ("-qx s.py", "unknown option -x; see terra-run --help"),
        ("--disable s.py", "unknown option --disable; see terra-run --help"),
        ("-", "a program on the standard input cannot be run; put it into a file"),
    ],
)
def test_parse_refuses(words, message):
    with pytest.raises(UsageError) as caught:
        parse(words.split())
    assert str(caught.value) == message


def test_help_names_every_option():
    text = help_text()
    for name in (
        "--mode MODE",
        "-q, --quiet",
        "--report FILE",
        "--run-ahead N",
        "--sync-errors",
        "-P, --safe-path",
    ):
        assert name in text
    assert "(default: 4)" in text
    assert "--disable" not in text
    assert all(len(line) <= 110 for line in text.splitlines())


# --- terra-run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["--xyzzy", "s.py"], [], ["--mode", "fast", "s.py"], ["--warmup", "0", "s.py"], ["missing.py"], ["-"]],
)
def test_usage_errors_are_one_line(words, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.py").write_text("print('started')")
    assert launcher.main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("terra-run: ")
    assert err.count("\n") == 1


def test_bad_configuration(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.terra-cx]\nspeed = 'high'\n")
    assert launcher.main(["-c", "print(1)"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(
        f"terra-run: unknown key 'speed' in [tool.terra-cx] of {tmp_path}/pyproject.toml; known: mode"
    )


def test_help_and_version(capfd):
    assert launcher.main(["--help"]) == 0
    assert capfd.readouterr().out.startswith("usage: terra-run [options] script.py")
    assert launcher.main(["-V", "s.py"]) == 0
    assert capfd.readouterr().out == f"terra-cx {terra_cx.__version__}\n"


# --- terra-cx --------------------------------------------------------------------------------------------


def test_version(capfd):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capfd.readouterr().out == f"terra-cx {terra_cx.__version__}\n"


def test_commands_in_help(capfd):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capfd.readouterr().out
    for name in cli.COMMANDS:
        assert name in text


@pytest.mark.parametrize("words", [[], ["walk"], ["--mode", "co", "run"]])
def test_no_such_command(words, capfd):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert "terra-cx: error: " in capfd.readouterr().err


def test_command_keeps_its_own_words(capfd):
    assert cli.main(["run", "--help"]) == 0
    assert capfd.readouterr().out.startswith("usage: terra-cx run [options] script.py")
    assert cli.main(["run", "--xyzzy"]) == 2
    assert capfd.readouterr().err == "terra-cx run: unknown option --xyzzy; see terra-cx run --help\n"


def test_graph(tmp_path):
    (tmp_path / "s.py").write_text("import sys\nprint(sys.argv)\nsys.exit(3)")
    done = run(["terra-cx", "graph", "--dot", "g.dot", "-q", "s.py", "--dot", "x"], tmp_path)
    assert done.returncode == 3
    assert done.stdout == "['s.py', '--dot', 'x']\nthe graph\n"
    assert "session: start mode=trace" in done.stderr
    assert (tmp_path / "g.dot").read_text() == "digraph {}\n"
    assert sorted(os.listdir(tmp_path)) == ["g.dot", "s.py"]


def test_graph_needs_mode_trace(tmp_path):
    done = run(["terra-cx", "graph", "--mode", "co", "s.py"], tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "terra-cx graph: a graph is what mode trace records; leave --mode out\n",
    )


def test_graph_that_cannot_be_written(tmp_path):
    (tmp_path / "s.py").write_text("print('started')")
    done = run(["terra-cx", "graph", "--dot", "missing/g.dot", "s.py"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "terra-cx graph: cannot write missing/g.dot: No such file or directory; name another file\n"
    )


def test_graph_when_disabled(tmp_path, monkeypatch):
    monkeypatch.setenv("TERRA_DISABLE", "1")
    done = run(["terra-cx", "graph", "-c", "print('started')"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "terra-cx graph: terra-cx is turned off here, so there is nothing to show; unset TERRA_DISABLE\n"
    )

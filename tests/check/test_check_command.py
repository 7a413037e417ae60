"""`terra-cx check` as processes: what it finds, what it says, how it exits."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from terra_cx import cli
from terra_cx.check.compare import differences
from terra_cx.check.examination import main_anchor
from terra_cx.check.runs import Job, Runner
from terra_cx.check.stream import read

HERE = Path(__file__).parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("TERRA_")},
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

LOOP = """
import sys
import tensorflow as tf
weights = tf.Variable(tf.ones([6, 3]))
if "--fast" not in sys.argv:
    sys.exit("no --fast")
for step in range(60):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(tf.matmul(tf.ones([4, 6]) * 0.1, weights)))
    weights.assign_sub(0.1 * tape.gradient(loss, weights))
    if step == 40 and "terra_cx.session" in sys.modules and {wrong}:
        weights.assign(weights * (1 + 2.0**-23))
    if step % 10 == 5:
        print(f"{{float(loss):.3f}}")
"""


def check(*words, cwd, **options):
    command = [sys.executable, "-m", "terra_cx", "check", *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False, **options
    )


# --- programs without TensorFlow: nothing is co-executed, all else is as always --------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One check of a folder in which every program is wrong in its own way."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "programs").mkdir()
    sources = {
        "helper": "print('imported')\n",
        "arguments": "import helper, sys\nprint(sys.argv[1:], sys.path[0], __name__)\n",
        "crash": "print(1)\nraise ValueError('no')\n",
        "dies": "import os, sys\nif 'terra_cx.session' in sys.modules: os.kill(os.getpid(), 11)\nprint(1)",
        "late": "import sys\nif 'terra_cx.session' in sys.modules: sys.exit(3)\nprint(1)",
        "masked": "import time\nprint('took', time.perf_counter(), 's')\n",
        "quits": "import os\nprint(1, flush=True)\nos._exit(0)",
        "syntax": "def f(:\n",
        "unsteady": "import time\nprint(time.perf_counter())\n",
        "words": "import sys\nprint('terra_cx.session' in sys.modules)\n",
    }
    for name, source in sources.items():
        (folder / "programs" / f"{name}.py").write_text(source)
    (folder / "old.json").write_text('{"version": 0, "programs": {}}')
    options = ["--jobs", "2", "--json", "out.json", "--junit", "missing/out.xml", "--baseline", "old.json"]
    words = [*options, "--mask", r"took [\d.]+", "--steps", "7", "programs", "nowhere", "--", "--", "-x"]
    done = check(*words, cwd=folder)
    record = json.loads((folder / "out.json").read_text())
    return done, record, {each["program"]: each for each in record["programs"]}


@pytest.mark.parametrize(
    ("program", "outcome", "detail"),
    [
        ("programs/arguments.py", "not co-executed", "the program did not use TensorFlow"),
        ("programs/crash.py", "failed", "exit status 1: ValueError: no"),
        ("programs/dies.py", "different", "the program's end: exit status 0 became killed by SIGSEGV"),
        ("programs/late.py", "different", "the program's end: exit status 0 became exit status 3"),
        ("programs/masked.py", "not co-executed", "the program did not use TensorFlow"),
        ("programs/quits.py", "not co-executed", "it left no record, as after os._exit"),
        ("programs/syntax.py", "failed", "exit status 1: SyntaxError: invalid syntax"),
        ("programs/unsteady.py", "nondeterministic", "two eager runs: line 1 of its output: "),
        ("programs/words.py", "different", r"line 1 of its output: 'False\n' became 'True\n'"),
        ("nowhere", "cannot be read", "nowhere: no such file or folder"),
    ],
)
def test_verdicts(program, outcome, detail, plain):
    found = plain[2][program]
    assert found["outcome"] == outcome
    assert found["detail"].startswith(detail)


def test_helpers_are_no_programs(plain):
    assert "programs/helper.py" not in plain[2]
    assert len(plain[2]) == 10


def test_the_worst_is_the_exit_status(plain):
    assert plain[0].returncode == plain[1]["exit_status"] == 1


def test_bad_files_are_told_and_the_programs_are_judged(plain):
    baseline, place = plain[1]["problems"]
    assert baseline.startswith("cannot write missing/out.xml: No such file or directory")
    assert place.startswith("baseline old.json: of version 0, but this terra-cx reads version 1")
    for problem in plain[1]["problems"]:
        assert f"terra-cx check: {problem}" in plain[0].stdout


def test_nothing_on_stderr_where_that_is_no_terminal(plain):
    assert plain[0].stderr == ""


def test_programs_get_the_arguments_and_their_folder(tmp_path):
    (tmp_path / "a.py").write_text(
        "import sys\nopen('seen', 'a').write(repr((sys.argv, sys.path[0])) + '\\n')"
    )
    done = check("a.py", "--steps", "7", "--", "--", "x y", cwd=tmp_path)
    assert done.returncode == 4, done.stdout
    assert set((tmp_path / "seen").read_text().splitlines()) == {
        repr((["a.py", "--steps", "7", "--", "x y"], str(tmp_path)))
    }


@pytest.mark.parametrize(
    ("source", "status"),
    [("raise SystemExit(3)", 5), ("print(__import__('time').perf_counter())", 3), ("print(1)", 4)],
)
def test_exit_status(source, status, tmp_path):
    (tmp_path / "a.py").write_text(source)
    assert check("a.py", cwd=tmp_path).returncode == status


def test_a_module_in_the_working_directory_is_not_taken_for_pythons(tmp_path):
    (tmp_path / "json.py").write_text("raise ImportError('the wrong json')")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("print(1)")
    runner = Runner(60, environment=ENVIRONMENT)
    done = runner.run(Job(str(tmp_path / "sub" / "a.py"), (), {"mode": "eager"}), tmp_path / "run")
    assert (done.status, done.stdout.read_text()) == (0, "1\n"), done.stderr


def test_a_run_that_hangs_is_killed(tmp_path):
    (tmp_path / "a.py").write_text("import time\ntime.sleep(100)")
    done = check("--timeout", "2", "a.py", cwd=tmp_path)
    assert done.returncode == 5
    assert "a.py: failed, did not end within 2 s" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("before", [[], ["a.py"]])
def test_interrupted_it_leaves_no_process_behind_and_shows_what_it_has(number, before, tmp_path):
    (tmp_path / "a.py").write_text("print(1)")
    (tmp_path / "b.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(100)"
    )
    command = [sys.executable, "-m", "terra_cx", "check", *before, "b.py"]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=-1, stderr=-1, text=True)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    told = f"terra-cx check: interrupted, {len(before)} of {len(before) + 1} programs were examined\n"
    assert (process.returncode, err) == (130, told)
    assert ("a.py" in out) if before else (out == "")
    assert "b.py" not in out
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


# --- the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: PATH"),
        (["--", "a.py"], "the following arguments are required: PATH"),
        (["a.py", "--stepz", "3"], "unrecognized arguments: --stepz"),
        (["a.py", "--steps", "0"], "a whole number of at least 1, not '0'"),
        (["a.py", "--max-regression", "10%"], "--max-regression needs a --baseline"),
        (["a.py", "--max-regression", "0.1", "--baseline", "b"], "a share such as 10%, not '0.1'"),
        (["a.py", "--fail-under-speedup", "fast"], "a number above 0, not 'fast'"),
        (["a.py", "--fail-on", "nothing"], "invalid choice: 'nothing'"),
        (["a.py", "--mask", "("], "'(' is no regular expression"),
        (["a.py", "--jobs", "2", "--write-baseline", "b"], "programs that run side by side cannot be timed"),
        (
            ["a.py", "--jobs", "2", "--fail-under-speedup", "1"],
            "programs that run side by side cannot be timed",
        ),
    ],
)
def test_wrong_usage(words, message, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["check", *words])
    assert end.value.code == 2
    out, err = capfd.readouterr()
    assert message in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TERRA_DISABLE", "1", "unset TERRA_DISABLE"),
        ("TERRA_SPEED", "9", "unknown environment variable TERRA_SPEED"),
    ],
)
def test_settings_that_make_no_sense(name, value, message, capfd, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        cli.main(["check", "a.py"])
    assert end.value.code == 2
    assert message in capfd.readouterr().err


def test_help_tells_the_exit_status(capfd):
    with pytest.raises(SystemExit):
        cli.main(["check", "--help"])
    assert "3 nondeterministic" in " ".join(capfd.readouterr().out.replace("\n", " ").split())


# --- programs with TensorFlow ----------------------------------------------------------------------------


@pytest.mark.slow
def test_every_read_is_seen_in_both_modes(tmp_path):
    runner = Runner(120, environment=ENVIRONMENT)
    script = HERE / "reads.py"
    eager = runner.run(Job(str(script), (), {"mode": "eager"}), tmp_path / "eager")
    co = runner.run(Job(str(script), (), {"mode": "co"}), tmp_path / "co")
    assert (eager.status, co.status) == (0, 0), (eager.stderr, co.stderr)
    assert (eager.end["problems"], eager.end["failure"]) == ([], None)
    assert [str(each) for each in differences(eager, co, (), {"tf.random", "numpy.random", "random"})] == []
    assert co.report["regions"]["co_executed"] > 20, co.report
    assert main_anchor(co) == f"{script}:{line_of(script, 'for _ in range')}"
    seen = [crossing.line for crossing in read(eager.stream)]
    reads = [number for number, text in enumerate(script.read_text().splitlines(), 1) if "lambda t" in text]
    expected = [
        line for line in reads if sys.version_info >= (3, 12) or "memoryview" not in text_of(script, line)
    ]
    assert {line: seen.count(line) // 30 > 0 for line in expected} == dict.fromkeys(expected, True)
    names = [name for _, name, _ in eager.end["variables"]]
    assert len(names) == eager.end["made"]
    assert names[0].startswith("Variable:0")


def line_of(script, text):
    return next(n for n, line in enumerate(script.read_text().splitlines(), 1) if line.startswith(text))


def text_of(script, line):
    return script.read_text().splitlines()[line - 1]


@pytest.mark.slow
def test_good_wrong_and_slower_programs(tmp_path):
    (tmp_path / "good.py").write_text(LOOP.format(wrong=False))
    (tmp_path / "wrong.py").write_text(LOOP.format(wrong=True))
    baseline = {"version": 1, "arguments": ["--fast"], "programs": {"good.py": {"ratio": 1e-6}}}
    (tmp_path / "baseline.json").write_text(json.dumps(baseline))
    files = ["--json", "out.json", "--junit", "out.xml"]
    done = check("good.py", "wrong.py", *files, "--", "--fast", cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    good, wrong = json.loads((tmp_path / "out.json").read_text())["programs"]
    assert (good["outcome"], good["detail"], good["values"], good["variables"]) == ("identical", "", 6, 1)
    assert good["regions"]["co_executed"] > 40
    assert good["ratio"] > 0
    assert wrong["outcome"] == "different"
    [value, variable] = wrong["differences"]
    assert (value["what"], value["step"], value["where"]) == ("value", 46, "wrong.py:14")
    assert float(value["eager"].split()[0]) != float(value["other"].split()[0])
    assert variable["what"] == "variable"  # the output is rounded and shows nothing
    [failure] = ElementTree.parse(tmp_path / "out.xml").iter("failure")
    assert failure.get("type") == "different"

    slower = ["--baseline", "baseline.json", "--max-regression", "30%"]
    done = check("good.py", *slower, "--fail-on", "fallback", "--", "--fast", cwd=tmp_path)
    assert done.returncode == 6, done.stdout
    assert "slower than the baseline" in done.stdout


@pytest.mark.slow
def test_never_co_executed(tmp_path):
    script = """
        import tensorflow as tf
        weights = tf.Variable(tf.ones([3]))
        for step in range(40):
            weights.assign_sub(0.1 * tf.Variable(weights * weights))
        print(weights.numpy())
    """
    (tmp_path / "a.py").write_text(textwrap.dedent(script))
    done = check("a.py", cwd=tmp_path)
    assert done.returncode == 4, done.stdout
    assert "a.py: not co-executed, given up, " in done.stdout
    assert "unsettled" in done.stdout

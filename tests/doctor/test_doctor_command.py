"""`terra-cx doctor` as processes: where all is well, where TensorFlow is missing, broken or deadly."""

import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from terra_cx.doctor import child, findings
from terra_cx.doctor.findings import State


def doctor(*words, cwd, tensorflow=None):
    """Run the command; ``tensorflow`` is the source of what is to be found in TensorFlow's place."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TERRA_")}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(cwd / "fake"), *filter(None, [environment.get("PYTHONPATH")])]
    )
    if tensorflow is not None:
        (cwd / "fake").mkdir()
        (cwd / "fake" / "tensorflow.py").write_text(tensorflow)
    command = [sys.executable, "-P", "-m", "terra_cx", "doctor", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_all_is_well(tmp_path):
    # Neither may the user's folder get in the way of the test, nor its settings.
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "pyproject.toml").write_text("[tool.terra-cx]\nmode = 'trace'\n")
    done = doctor("--json", "out.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "terra-cx works here" in done.stdout
    assert "mode = trace" in done.stdout
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["version"], record["exit_status"], record["problems"]) == (1, 0, [])
    test = record["tensorflow"]["self_test"]
    assert test["co_executed"] > child.STEPS / 2
    assert (test["different"], test["values"]) == (0, child.STEPS + 2)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "raise ModuleNotFoundError(\"No module named 'tensorflow'\", name='tensorflow')",
            "is not installed",
        ),
        ("raise ImportError('libx.so: cannot open [it]')", "ImportError: libx.so: cannot open [it]"),
        ("import os; os.kill(os.getpid(), 4)", "killed by SIGILL"),
        ("", "AttributeError"),
    ],
)
def test_tensorflow_is_wrong(tmp_path, source, text):
    done = doctor(cwd=tmp_path, tensorflow=source)
    assert done.returncode == 1
    assert text in done.stdout
    assert "remedy: " in done.stdout
    assert "1 problem found" in done.stdout


def test_words(tmp_path):
    assert doctor("--jsn", "x", cwd=tmp_path).returncode == 2
    done = doctor("--json", "missing/out.json", cwd=tmp_path, tensorflow="raise ImportError")
    assert done.returncode == 1
    assert "cannot write missing/out.json" in done.stdout


def test_nothing_co_executed_is_a_problem(monkeypatch):
    monkeypatch.setenv("TERRA_DISABLE", "1")
    found = child._self_test(tf)
    assert (found["co_executed"], found["different"]) == (0, 0)
    assert findings._self_test(found, "").state is State.PROBLEM

"""`terra-cx bench` as processes."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from terra_cx import cli

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("TERRA_")},
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

PROGRAM = """
    import sys
    import tensorflow as tf
    tf.random.set_seed(1)

    class Trainer:
        def __init__(self):
            self.weights = tf.Variable(tf.ones([6, 3]))
            self.steps = 0

        def train_step(self, x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(tf.matmul(x, self.weights))) * (1.0 + 0.1 * self.steps)
            self.weights.assign_sub(0.1 * tape.gradient(loss, self.weights))
            self.steps += 1
            return loss

    trainer = Trainer()
    for step in range(60):
        loss = trainer.train_step(tf.random.normal([4, 6]))
        if step % 10 == 0:
            print(float(loss))
"""


def bench(*words, cwd):
    command = [sys.executable, "-m", "terra_cx", "bench", *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: PATH"),
        (
            ["a.py", "--modes", "eager,jax"],
            "unknown mode 'jax'; known are eager, function, xla, async, lazy, co",
        ),
        (["a.py", "--rounds", "0"], "a whole number of at least 1"),
        (["a.py", "--threads", "none"], "a whole number of at least 1"),
    ],
)
def test_wrong_usage(words, message, capfd):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", *words])
    assert end.value.code == 2
    assert message in capfd.readouterr().err


def test_turned_off(capfd, monkeypatch):
    monkeypatch.setenv("TERRA_DISABLE", "1")
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "a.py"])
    assert end.value.code == 2
    assert "unset TERRA_DISABLE" in capfd.readouterr().err


def test_programs_that_cannot_be_timed(tmp_path):
    (tmp_path / "crash.py").write_text("raise KeyError(3)")
    done = bench("crash.py", "nowhere.py", "--json", "missing/x.json", cwd=tmp_path)
    assert done.returncode == 5
    assert "crash.py: exit status 1: KeyError: 3" in done.stdout
    assert "nowhere.py: nowhere.py: no such file or folder" in done.stdout
    assert "terra-cx bench: cannot write missing/x.json: No such file or directory" in done.stdout


@pytest.mark.parametrize(
    ("words", "status"), [(["nowhere.py"], 8), (["a.py", "--json", "no/x"], 9), (["a.py"], 0)]
)
def test_exit_status(words, status, tmp_path):
    (tmp_path / "a.py").write_text("def train_step(): pass\nfor _ in range(60): train_step()\n")
    done = bench(*words, "--modes", "eager", "--rounds", "1", cwd=tmp_path)
    assert done.returncode == status, done.stdout + done.stderr


@pytest.mark.slow
def test_every_mode(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(PROGRAM))
    files = ["--json", "out.json", "--plot", "out.svg"]
    done = bench("train.py", "--rounds", "1", "--threads", "1", *files, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    [program] = record["programs"]
    assert (program["timed_at"], program["failure"], program["notes"]) == ("train_step", "", [])
    modes = {figures["mode"]: figures for figures in program["modes"]}
    assert list(modes) == ["eager", "function", "xla", "async", "lazy", "co"]
    # The Python counter stands still in a graph.
    assert {mode: figures["result"] for mode, figures in modes.items()} == {
        **dict.fromkeys(["eager", "async", "lazy", "co"], "identical"),
        **dict.fromkeys(["function", "xla"], "wrong"),
    }
    assert modes["function"]["detail"].startswith("train.py:22: ")
    for figures in modes.values():
        assert figures["step_ms"] > 0
        assert figures["first_seconds"] > 0
        assert figures["peak_mb"] > 100
        assert figures["threads"] == [1, 1]
    assert modes["co"]["co_executed"] > 0.5
    assert [mode for mode, figures in modes.items() if figures["limit_ms"]] == ["lazy", "co"]
    assert (tmp_path / "out.svg").read_text().count("<svg") == 1

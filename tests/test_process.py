"""Whole processes under terra-run with TensorFlow: how they end, with work in flight, and when we ourselves fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

LOOP = """
import sys
import numpy as np, tensorflow as tf
weights = tf.Variable(tf.ones([6, 3]))
table = tf.Variable(tf.ones([6, 3]))
def step(index):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(tf.matmul(tf.ones([4, 6]) * 0.1, weights)))
    weights.assign_sub(0.1 * tape.gradient(loss, weights))
    return loss
"""


def terra(script, tmp_path, *options, env=None, **kwargs):
    """Run a script under terra-run; its report is the second result."""
    path = tmp_path / "script.py"
    path.write_text(LOOP + textwrap.dedent(script))
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "terra_cx", "run", *options, "--report", str(report), str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(env or {})},
        check=False,
        **kwargs,
    )
    return done, json.loads(report.read_text()) if report.exists() else None


def test_ends_with_work_in_flight(tmp_path):
    done, report = terra(
        """
        for index in range(60):
            step(index)
        print("end", flush=True)
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
    assert report["regions"]["co_executed"] > 40
    assert "regions co-executed" in done.stderr


@pytest.mark.parametrize(
    ("ending", "code"), [("sys.exit(7)", 7), ("sys.exit('bye')", 1), ("raise KeyError(3)", 1)]
)
def test_ends_in_the_middle_of_a_step(tmp_path, ending, code):
    done, report = terra(
        f"""
        import atexit
        atexit.register(lambda: print(float(weights[0, 0]) < 1.0))
        for index in range(60):
            weights.assign_sub(0.001 * weights)
            if index == 50:
                {ending}
            step(index)
        """,
        tmp_path,
        "-q",
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == "True\n"
    assert report["regions"]["co_executed"] > 30


def test_kernel_error_that_nobody_catches(tmp_path):
    done, report = terra(
        """
        for index in range(60):
            step(index)
            row = tf.gather(table, 99 if index == 50 else index % 6)
            table.assign_sub(0.1 * (table - row))
        """,
        tmp_path,
        "-q",
    )
    assert done.returncode == 1
    assert "InvalidArgumentError" in done.stderr
    assert "terra-cx: raised by" in done.stderr
    assert "script.py:14" in done.stderr
    assert report["regions"]["co_executed"] > 30


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_level(tmp_path, how):
    done, report = terra(
        """
        for index in range(60):
            loss = step(index)
        try:
            tf.gather(table, [9])
        except tf.errors.InvalidArgumentError as error:
            print("caught", "indices[0] = 9" in str(error))
        print(weights.numpy().sum() < 18.0)
        """,
        tmp_path,
        *(["--level", "xla"] if how == "option" else []),
        env={"TERRA_LEVEL": "graph"},
    )
    assert done.stdout == "caught True\nTrue\n"
    assert done.returncode == 0
    level = "xla" if how == "option" else "graph"
    assert f"levels    {level}: blocks run " in done.stderr
    assert (report["levels"]["asked"], report["levels"]["refused"]) == (level, [])
    assert report["levels"]["blocks"].keys() == {level}


def test_a_level_that_does_not_exist(tmp_path):
    done, report = terra("", tmp_path, "--level", "fast")
    assert (done.returncode, report) == (2, None)
    assert "--level must be one of exact, graph, xla, auto, not 'fast'" in done.stderr


def test_interrupt_with_work_in_flight(tmp_path):
    done, _ = terra(
        """
        import os, signal
        for index in range(200):
            step(index)
            if index == 80:
                os.kill(os.getpid(), signal.SIGINT)
        """,
        tmp_path,
        "-q",
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


def test_a_failure_of_ours_does_not_kill_the_program(tmp_path):
    script = """
        import terra_cx.session
        def break_us():
            import terra_cx.run.skeleton as skeleton
            def broken(self, *args):
                raise LookupError("seeded")
            skeleton.Skeleton.commit = broken
        total = 0.0
        for index in range(60):
            if index == 30:
                break_us()
            total += float(step(index))
        print(repr(total), repr(weights.numpy().tolist()))
        """
    done, report = terra(script, tmp_path)
    plain, _ = terra(script, tmp_path, "--mode", "eager")
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain.stdout
    assert done.stderr.count("the program goes on in plain eager") == 1
    assert report["internal_errors"] > 0


def test_the_watchdog_names_both_positions(tmp_path):
    done, report = terra(
        """
        import time
        import terra_cx.session
        def slow_runner():
            import terra_cx.run.graph_runner as runner
            real = runner.GraphRunner._compute
            def compute(self, run):
                time.sleep(1.0)
                runner.GraphRunner._compute = real
                return real(self, run)
            runner.GraphRunner._compute = compute
            runner.GraphRunner.launch = lambda self, run: False  # what flies is quick
        for index in range(40):
            if index == 30:
                time.sleep(0.7)  # the graph has nothing to do meanwhile, which is no stall
            if index == 35:
                slow_runner()
            total = float(step(index))
        """,
        tmp_path,
        "--watchdog",
        "0.3",
    )
    assert done.returncode == 0, done.stderr
    assert "terra-cx: still waiting for the graph" in done.stderr
    assert done.stderr.count("terra-cx: still") == 1
    assert "Python is at" in done.stderr
    assert report["regions"]["co_executed"] > 10


def test_fork_in_the_loop(tmp_path):
    done, report = terra(
        """
        import os
        for index in range(60):
            step(index)
            if index == 50:
                pid = os.fork()
                if pid == 0:
                    os._exit(3)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print(float(step(0)) > 0)
        """,
        tmp_path,
        "-q",
    )
    assert (done.returncode, done.stdout) == (0, "3\nTrue\n"), done.stderr
    assert report["regions"]["co_executed"] > 40


def test_switch_interval_is_not_visibly_changed(tmp_path):
    done, report = terra(
        """
        for index in range(60):
            step(index)
            assert sys.getswitchinterval() == (0.005 if index < 50 else 0.02)
            if index == 49:
                sys.setswitchinterval(0.02)
        """,
        tmp_path,
        "-q",
    )
    assert done.returncode == 0, done.stderr
    assert report["regions"]["co_executed"] > 40


def test_graph_command(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(
        LOOP
        + "for index in range(20):\n    loss = step(index)\n    if index % 2:\n        weights.assign_add(weights)\n"
    )
    dot = tmp_path / "graph.dot"
    done = subprocess.run(
        [sys.executable, "-m", "terra_cx", "graph", "--dot", str(dot), str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "MatMul" in done.stdout
    assert "branch:" in done.stdout
    assert "script.py:8: loss = tf.reduce_mean" in done.stdout
    assert dot.read_text().startswith("digraph")


def test_memory_does_not_grow_with_the_number_of_steps(tmp_path):
    done, report = terra(
        """
        import gc, resource
        losses = []
        def used():
            gc.collect()
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize() / 2**20
        for index in range(3000):
            loss = step(index)
            if index % 50 == 0:
                losses.append(float(loss))
            if index == 1000:
                before = used()
        print(used() - before < 20, used() - before, file=sys.stderr)
        sys.exit(0 if used() - before < 20 else 5)
        """,
        tmp_path,
        "-q",
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert report["regions"]["co_executed"] > 2900

"""A program that keeps changing, for very many steps (`make soak`): nothing of ours may grow with their number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

STEPS = int(os.environ.get("SOAK_STEPS", "1500"))

PROGRAM = """
import gc, json, os, resource, sys
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

steps = int(sys.argv[1])
rng = np.random.default_rng(1)
w = tf.Variable(tf.eye(6))
b = tf.Variable(tf.zeros([6]))
kept, counts, failed = [], [0, 0], 0


def measure():
    gc.collect()
    with open("/proc/self/statm") as file:
        megabytes = int(file.read().split()[1]) * resource.getpagesize() / 2**20
    return {
        "MiB": megabytes,
        "files": len(os.listdir("/proc/self/fd")),
        "functions": len(context.context().list_function_names()),
        "tensors": sum("Tensor" in type(thing).__name__ for thing in gc.get_objects()),
        "objects": len(gc.get_objects()),
    }


measured = []
for step in range(steps):
    x = rng.normal(size=(int(rng.choice([3, 4, 5])), 6)).astype("float32")
    with tf.GradientTape() as tape:
        y = tf.nn.relu(x @ w + b)
        if rng.random() < 0.3:
            y = tf.tanh(y)
        for _ in range(step % 3):
            y = y * 0.9
        loss = tf.reduce_mean(tf.square(y - 0.1 * float(step % 100)))
    gradients = tape.gradient(loss, [w, b])
    for variable, gradient in zip([w, b], gradients):
        variable.assign_sub(0.001 * tf.clip_by_norm(gradient, 1.0))
    kept.append(loss)
    if len(kept) > 10:
        counts[float(kept.pop(0)) > 0.5] += 1
    try:
        tf.gather(b, int(rng.integers(0, 200)) // 30)
    except tf.errors.InvalidArgumentError:
        failed += 1
    if step % 1000 == 999:
        w.assign(tf.eye(6))
    if step in (steps // 3, steps - 1):
        measured.append(measure())
print(json.dumps({"measured": measured, "counts": counts, "failed": failed, "w": w.numpy().tolist()}))
"""


def test_nothing_grows(tmp_path):
    script = tmp_path / "soak.py"
    script.write_text(textwrap.dedent(PROGRAM))
    report = tmp_path / "report.json"
    found = []
    for words in (["-m", "terra_cx", "run", "-q", "--report", str(report)], []):
        command = [sys.executable, *words, str(script), str(STEPS)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-800:]
        found.append(json.loads(done.stdout))
    co, eager = found
    for key in ("counts", "failed", "w"):
        assert co[key] == eager[key], key
    regions = json.loads(report.read_text())["regions"]
    assert regions["co_executed"] > 0.8 * STEPS, regions
    early, late = co["measured"]
    print(early, late, regions)
    assert late["files"] == early["files"]
    assert late["functions"] <= early["functions"] + 20, (early, late)
    assert late["tensors"] <= early["tensors"] + 50, (early, late)
    assert late["MiB"] < early["MiB"] + 40, (early, late)

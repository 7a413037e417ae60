"""What a step costs whose NumPy augmentation takes as long as its graph: the longer of the two, or their sum.

Prints, for one thread within and between ops and for TensorFlow's own choice, the augmentation alone, the graph alone
(the step in `tf.function`, on the same batch), and a step of both in eager, in `tf.function` and co-executed, the modes
in turns in one process. `make overlap` runs it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import numpy as np
from rich.console import Console
from rich.table import Table

BATCH, SIZE, CHANNELS = 32, 24, 24
WARM, COUNTED, ROUNDS = 120, 80, 3


def parameters(tf):
    shapes = [(3, 3, 3, CHANNELS), (3, 3, CHANNELS, CHANNELS), (3, 3, CHANNELS, CHANNELS), (CHANNELS, 10)]
    return [tf.Variable(tf.random.normal(shape, stddev=0.1)) for shape in shapes]


def train_step(tf, weights, images, labels):
    with tf.GradientTape() as tape:
        x = images
        for kernel in weights[:-1]:
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"))
        logits = tf.matmul(tf.reduce_mean(x, axis=[1, 2]), weights[-1])
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
        weight.assign_sub(0.01 * gradient)
    return loss


def augment(rng, images, times):
    """Flips, shifts, contrast and noise, as often as it takes."""
    for _ in range(times):
        moved = np.roll(images, rng.integers(-2, 3, size=2), axis=(1, 2))
        flip = rng.random(len(images)) < 0.5
        moved[flip] = moved[flip, :, ::-1]
        contrast = rng.uniform(0.8, 1.2, size=(len(images), 1, 1, 1)).astype("float32")
        moved = np.clip((moved - moved.mean(axis=(1, 2), keepdims=True)) * contrast + 0.5, 0.0, 1.0)
        moved += rng.normal(scale=0.02, size=moved.shape).astype("float32")
    return moved


def seconds(body, times):
    """The median of so many calls, after as many that are not counted."""
    laps = []
    for _ in range(2 * times):
        start = time.perf_counter()
        body()
        laps.append(time.perf_counter() - start)
    return statistics.median(laps[times:])


def measure(threads):
    """One line of the table: everything in milliseconds."""
    import tensorflow as tf

    import terra_cx

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    rng = np.random.default_rng(0)
    images = rng.random((BATCH, SIZE, SIZE, 3), dtype="float32")
    labels = rng.integers(0, 10, BATCH)
    weights = parameters(tf)
    compiled = tf.function(lambda x, y: train_step(tf, weights, x, y))
    batch = tf.constant(images), tf.constant(labels)

    def loop(step):
        laps = []
        for number in range(WARM + COUNTED):
            start = time.perf_counter()
            loss = step(tf.constant(augment(rng, images, times)), tf.constant(labels))
            if number % 10 == 0:
                float(loss)
            laps.append(time.perf_counter() - start)
        return statistics.median(laps[WARM:])

    graph = seconds(lambda: float(compiled(*batch)), 40)
    times = max(1, round(graph / seconds(lambda: augment(rng, images, 1), 40)))
    co = terra_cx.co_execute(quiet=True)(loop)
    modes = {
        "eager": lambda: loop(lambda x, y: train_step(tf, weights, x, y)),
        "tf.function": lambda: loop(compiled),
        "co-executed": lambda: co(lambda x, y: train_step(tf, weights, x, y)),
    }
    found = {name: [] for name in modes}
    alone, graphs = [], []
    for _ in range(ROUNDS):
        for name, run in modes.items():
            found[name].append(run())
        graphs.append(seconds(lambda: float(compiled(*batch)), 20))
        alone.append(seconds(lambda: augment(rng, images, times), 20))
    manner = co.last_session.report()["anchors"][0]["manner"]
    longer = max(statistics.median(alone), statistics.median(graphs))
    cells = [statistics.median(laps) for laps in (alone, graphs, *found.values())]
    shown = [f"{cell * 1e3:.2f}" for cell in cells] + [f"{cells[at] / longer:.2f}" for at in (-1, -2)]
    print("\t".join([*shown, str(manner)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="measure with so many; 0: as TensorFlow chooses")
    args = parser.parse_args()
    if args.threads is not None:
        measure(args.threads)
        return
    table = Table("threads", "augmentation ms", "graph ms", "eager ms", "tf.function ms", "co-executed ms",
                  "co / longer", "function / longer", "pace")  # fmt: skip
    for threads in (1, 0):
        done = subprocess.run(
            [sys.executable, __file__, "--threads", str(threads)],
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        table.add_row(str(threads or "default"), *done.stdout.strip().splitlines()[-1].split("\t"))
    Console().print(table)


if __name__ == "__main__":
    main()

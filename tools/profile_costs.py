"""What profiling costs a step: one program, in one process, without a profiler, with one, in a window, with devices.

The four alternate in short turns, so that whatever else the machine does falls on all of them alike. Printed are
medians of the step times, and of the CPU time of all threads in a step, with how much more they are than without.

Then what a profile costs a whole run of 6,000 steps (600 if they are long), from its first step on.
"""

import argparse
import statistics
import time
from functools import partial

import keras
import numpy as np
import tensorflow as tf

import terra_cx
from terra_cx.profile.profiler import Plan, Profiler

NEVER = 1 << 40
TURN, SETTLE = 60, 10
"""Steps of a turn, and those of its beginning that are not counted."""


def perceptron(inputs, hidden, rows):
    """A step of a perceptron in raw TensorFlow."""
    weights = [
        tf.Variable(tf.random.normal([inputs, hidden])),
        tf.Variable(tf.random.normal([hidden, inputs])),
    ]
    batch = np.ones((rows, inputs), "f4")

    def step():
        with tf.GradientTape() as tape:
            units = tf.nn.relu(tf.matmul(batch, weights[0]))
            loss = tf.reduce_mean((tf.matmul(units, weights[1]) - batch) ** 2)
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(1e-4 * gradient)
        return loss

    return step


def keras_step():
    """A small Keras model with Adam: most ops come by elided calls."""
    model = keras.Sequential([keras.layers.Input((64,)), *[keras.layers.Dense(64, "relu") for _ in range(3)]])
    optimizer = keras.optimizers.Adam()
    batch = np.ones((32, 64), "f4")

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(batch) - 1.0) ** 2)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def measure(step, rounds, read_every):
    times = {"off": [], "attached": [], "window": [], "devices": []}
    profiler = None
    mode = "off"
    with terra_cx.co_execute(pace="overlapped") as session:
        for number in range(100 + rounds * len(times) * TURN):
            terra_cx.region()
            if number >= 100 and (number - 100) % TURN == 0:
                profiler, mode = turn(session, profiler, list(times)[(number - 100) // TURN % len(times)])
            start, used = time.perf_counter(), time.process_time()
            loss = step()
            if number % read_every == 0:
                float(loss)
            if number >= 100 and (number - 100) % TURN >= SETTLE:
                times[mode].append((time.perf_counter() - start, time.process_time() - used))
    return times


def turn(session, profiler, mode):
    """Between two steps, the anchor's region being open: what is attached takes effect with the next one."""
    if mode == "off":
        if profiler is not None:
            profiler.finish()
        return None, mode
    if mode == "attached":
        plan = Plan(first=NEVER, first_seconds=NEVER, most_seconds=NEVER, most_steps=NEVER, devices=False)
        profiler = Profiler(session.user, plan)
        profiler.attach(session.conductor)
    elif mode == "window":
        for profile in profiler.anchors.values():
            profile.next_at = 1
    else:
        profiler._open.watch_devices()
    return profiler, mode


def whole(make, steps, rounds, read_every):
    """Seconds and CPU seconds of runs of so many steps, without a profile, and with one; each learns its step anew."""
    used = {"off": [], "on": []}
    for turn in range(-1, 2 * rounds):
        mode = ("off", "on", "on", "off")[turn % 4]
        step, profiler = make(), None
        with terra_cx.co_execute(quiet=True) as session:
            start, cpu = time.perf_counter(), time.process_time()
            for number in range(steps if turn >= 0 else 200):
                terra_cx.region()
                loss = step()
                if number % read_every == 0:
                    float(loss)
                if mode == "on" and profiler is None and session.conductor is not None:
                    profiler = Profiler(session.user)
                    profiler.attach(session.conductor)
            if turn >= 0:
                used[mode].append((time.perf_counter() - start, time.process_time() - cpu))
            if profiler is not None:
                profiler.finish()
                assert profiler.windows(), "no window was looked at"
    return used


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="turns of each kind of the first part")
    parser.add_argument("--runs", type=int, default=8, help="pairs of runs of the second part")
    args = parser.parse_args()
    small = partial(perceptron, 64, 128, 32)
    large = partial(perceptron, 512, 1024, 256)  # whose kernels take a few milliseconds: bound by the graph
    for name, make, read_every in (
        ("raw", small, 1),
        ("raw, read every 10", small, 10),
        ("keras", keras_step, 10),
        ("big", large, 1),
    ):
        times = measure(make(), args.rounds, read_every)
        for what, index in (("step", 0), ("CPU", 1)):
            medians = {
                mode: 1e3 * statistics.median(v[index] for v in values) for mode, values in times.items()
            }
            text = ", ".join(
                f"{mode} {ms:.3f} ms ({100 * (ms / medians['off'] - 1):+.1f} %)"
                for mode, ms in medians.items()
            )
            print(f"{name:20} {what:5} {text}", flush=True)
    for name, make, steps, read_every in (
        ("raw", small, 6000, 10),
        ("keras", keras_step, 6000, 10),
        ("big", large, 600, 1),
    ):
        used = whole(make, steps, args.runs, read_every)
        for what, index in (("wall", 0), ("CPU", 1)):
            off, on = (statistics.median(turn[index] for turn in used[mode]) for mode in ("off", "on"))
            ratios = sorted(b[index] / a[index] for a, b in zip(used["off"], used["on"], strict=True))
            print(
                f"{name:20} {what:5} {steps} steps {off:.2f} s, with a profile {on:.2f} s "
                f"({100 * (on / off - 1):+.1f} %); by pairs {100 * (statistics.median(ratios) - 1):+.1f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()

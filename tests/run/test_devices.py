"""Several devices and `tf.device`: two logical CPUs, in a process of their own, since they must be made first of all.

Their kernels are the same, so that values alone would not tell where an op ran: the programs show the devices too.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    CPU = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)

from truth import both_ways

STEPS = 60


def shown(*tensors):
    """The tensors, and where they are."""
    return [*tensors, *((t.device, t.backing_device) for t in tensors)]


def steps(step, shape=(6, 3), number=STEPS):
    """A program that calls ``step(number, w, x)`` with a variable and data."""

    def program(see):
        w = tf.Variable(tf.random.normal(shape, seed=1))
        for index in range(number):
            see(*shown(*step(index, w, tf.random.stateless_normal((4, 6), (index, 1)))))
        see(w.numpy())

    return program


def clipped(index, w, x):
    """Clipping by the global norm goes, by a device scope, where each gradient is."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(x @ w))
    (gradient,), norm = tf.clip_by_global_norm([tape.gradient(loss, w)], 0.5)
    w.assign_sub(0.1 * gradient)
    return loss, norm


def a_part_elsewhere(index, w, x):
    with tf.GradientTape() as tape:
        h = x @ w
        with tf.device("CPU:1"):
            h = tf.tanh(h) + 1
        loss = tf.reduce_mean(h)
    gradient = tape.gradient(loss, w)
    w.assign_sub(gradient)
    return h, loss, gradient


def all_elsewhere(index, w, x):
    with tf.device("CPU:1"):
        return a_part_elsewhere(index, w, x)


def in_turns(index, w, x):
    with tf.device(f"CPU:{index // 4 % 2}"):
        return a_part_elsewhere(index, w, x)


def a_gradient_elsewhere(index, w, x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.tanh(x @ w))
    with tf.device(f"CPU:{index % 2}"):
        gradient = tape.gradient(loss, w)
    w.assign_sub(gradient)
    return loss, gradient


def draws(index, w, x):
    """An op with a seed of its own has a generator per device."""
    drawn = []
    for device in ("CPU:0", "CPU:1", "CPU:0", None)[index % 2 :]:
        with tf.device(device):
            drawn.append(tf.random.normal((2,), seed=7) * 2)
    w.assign_add(w * tf.add_n(drawn)[0])
    return drawn


def an_array(index, w, x):
    """The argument is Python's, so nothing but the scope says where the op runs."""
    with tf.device(f"CPU:{index // 10 % 2}"):
        h = tf.nn.relu(x.numpy()) + tf.constant(1.0)
    w.assign_add(tf.matmul(h, h @ w, transpose_a=True))
    return h, h @ w


@tf.function
def compiled(x, w):
    return tf.nn.softmax(x @ w)


def a_function(index, w, x):
    with tf.device("CPU:1"):
        h = compiled(x, w)
    w.assign_add(w * tf.reduce_sum(h))
    return h, w[0]


@tf.custom_gradient
def halved(x):
    return x * 2, lambda upstream: upstream * 0.5


def live_tapes(index, w, x):
    with tf.GradientTape() as tape:
        h = x @ w
        with tf.device("CPU:1"):
            h = halved(h)
        loss = tf.reduce_mean(h)
    w.assign_sub(tape.gradient(loss, w))
    return h, loss


def variables(see):
    """A variable's reads and writes run where it is, whatever the scope says."""
    here = tf.Variable(tf.random.normal((6, 3), seed=1))
    with tf.device("CPU:1"):
        there = tf.Variable(tf.random.normal((3, 6), seed=2))
        count = tf.Variable(0)
    for index in range(STEPS):
        x = tf.random.stateless_normal((4, 6), (index, 1))
        with tf.GradientTape() as tape:
            h = x @ here @ there
            with tf.device("CPU:0"):
                loss = tf.reduce_mean(tf.square(h)) + tf.reduce_mean(there)
        of_here, of_there = tape.gradient(loss, [here, there])
        with tf.device("CPU:1"):
            here.assign_sub(0.1 * of_here)
        there.assign_sub(0.1 * of_there)
        count.assign_add(1)
        see(*shown(h, loss, of_here, of_there, there.read_value(), count + 0))
    see(here.numpy(), there.numpy(), here.device, there.device)


def layers(see):
    tf.keras.utils.set_random_seed(3)
    model = tf.keras.Sequential([tf.keras.layers.Dense(5, "relu"), tf.keras.layers.Dense(2)])
    model.build((None, 6))
    optimizer, loss_of = tf.keras.optimizers.Adam(0.1), tf.keras.losses.MeanSquaredError()
    for index in range(80):
        x = tf.random.stateless_normal((4, 6), (index, 1))
        with tf.device("CPU:1" if index > 60 else None):
            with tf.GradientTape() as tape:
                loss = loss_of(tf.ones((4, 2)), model(x, training=True))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        see(*shown(loss))
    see(model.get_weights())


def new_sizes(index, w, x):
    with tf.device("CPU:1"):
        h = tf.concat([x] * (1 + index % 13), 0) @ w
    w.assign_add(w * h[0])
    return h, h + 1


PROGRAMS = {
    "clipped": steps(clipped),
    "a part elsewhere": steps(a_part_elsewhere),
    "all elsewhere": steps(all_elsewhere),
    "in turns": steps(in_turns),
    "a gradient elsewhere": steps(a_gradient_elsewhere),
    "draws": steps(draws),
    "an array": steps(an_array),
    "a function": steps(a_function),
    "live tapes": steps(live_tapes),
    "new sizes": steps(new_sizes, number=80),
    "variables": variables,
    "layers": layers,
}


@functools.cache
def findings():
    done = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_does_what_it_does_in_eager(name):
    found = findings()[name]
    assert found["difference"] is None
    assert found["co_executed"] > STEPS / 4, found
    assert found["compiled"] > STEPS / 4, found


def test_calls_are_elided_in_a_scope():
    assert findings()["layers"]["elided"] > 20


def test_a_change_of_devices_is_explained():
    assert any("device is /job" in detail for detail in findings()["layers"]["fallbacks"])


def finding(program):
    try:
        report = both_ways(program)
    except AssertionError as error:
        return {"difference": str(error), "co_executed": None}
    elisions = [anchor["elisions"] for anchor in report["anchors"] if anchor["elisions"]]
    return {
        "difference": None,
        "co_executed": report["regions"]["co_executed"],
        "compiled": report["runner"]["compiled_runs"],
        "elided": sum(each["elided"] for each in elisions),
        "fallbacks": [fallback["detail"] for fallback in report["fallbacks"]],
    }


if __name__ == "__main__":
    print(json.dumps({name: finding(program) for name, program in PROGRAMS.items()}))

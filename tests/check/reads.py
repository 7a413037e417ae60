"""A training loop that reads tensors in every way, each on a line of its own: the first word names it."""

import math
import pickle
import sys

import numpy as np
import tensorflow as tf

tf.keras.utils.set_random_seed(1)
weights = tf.Variable(tf.random.normal([6, 3]))
counter = tf.Variable(0)
mean = tf.keras.metrics.Mean()
optimizer = tf.keras.optimizers.SGD(0.1)

# t is a vector of two, s a scalar, k an integer; all are placeholders when they are read.
READS = {
    "numpy": lambda t, s, k: t.numpy(),
    "asarray": lambda t, s, k: np.asarray(t),
    "array": lambda t, s, k: np.array(t, dtype="float64"),
    "nested": lambda t, s, k: np.array([[t, t], [t, t]]),
    "argmax": lambda t, s, k: np.argmax(t),
    "ufunc": lambda t, s, k: np.add(t, np.ones(2)),
    "stack": lambda t, s, k: np.stack([t, t]),
    "element": lambda t, s, k: np.zeros(2).__setitem__(0, s),
    "float": lambda t, s, k: float(s),
    "int": lambda t, s, k: int(k),
    "bool": lambda t, s, k: 1 if k > 0 else 0,
    "index": lambda t, s, k: list(range(100))[k],
    "range": lambda t, s, k: range(k),
    "complex": lambda t, s, k: complex(s),
    "math": lambda t, s, k: math.sqrt(abs(s)),
    "str": lambda t, s, k: str(t),
    "repr": lambda t, s, k: repr(s),
    "format": lambda t, s, k: f"{s:.3f}",
    "percent": lambda t, s, k: "%.3f" % s,  # noqa: UP031
    "iterate": lambda t, s, k: [float(each) for each in t],
    "sort": lambda t, s, k: max(t[0], t[1]),
    "pickle": lambda t, s, k: pickle.dumps(t),
    "dlpack": lambda t, s, k: np.from_dlpack(t),
    "capsule": lambda t, s, k: tf.experimental.dlpack.to_dlpack(t),
    "static": lambda t, s, k: tf.get_static_value(t),
    "strings": lambda t, s, k: tf.strings.as_string(t).numpy(),
    "ragged": lambda t, s, k: tf.RaggedTensor.from_row_splits(t, [0, 1, 2]).to_list(),
    "variable": lambda t, s, k: weights.numpy(),
    "variable_float": lambda t, s, k: float(counter),
    "variable_array": lambda t, s, k: np.asarray(weights),
    "variable_str": lambda t, s, k: str(counter),
    "metric": lambda t, s, k: float(mean.result()),
    "keras_variable": lambda t, s, k: optimizer.iterations.numpy(),
    "keras_ops": lambda t, s, k: tf.keras.ops.convert_to_numpy(t),
}
if sys.version_info >= (3, 12):
    READS["memoryview"] = lambda t, s, k: bytes(memoryview(t))

for _ in range(30):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(tf.matmul(tf.random.normal([4, 6]), weights) - 1.0))
    optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
    counter.assign_add(1)
    mean.update_state(loss)
    vector = loss * tf.constant([1.0, 2.0])
    number = counter + 1
    for read in READS.values():
        read(vector, loss, number)

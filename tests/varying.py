"""Programs whose shapes, trip counts or ways change with every step: used by tests and by `tools/vary.py`.

Each is called with ``see``, which is given what reaches Python, and with how many steps to make. Inputs are made by
NumPy from a fixed seed; no random numbers are drawn in TensorFlow.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

WIDTH = 16
WORDS = 40


def weights(number, *shape):
    """A variable with small values, the same ones for each number."""
    values = np.random.default_rng(number).normal(size=shape) * 0.3
    return tf.Variable(values.astype("float32"))


def lengths_of(steps, distinct):
    """So many lengths, in passes of another order each."""
    rng = np.random.default_rng(1)
    passes = [rng.permutation(distinct) + 3 for _ in range(-(-steps // distinct))]
    return np.concatenate(passes)[:steps]


class Translator:
    """Texts to texts of half the length: embeddings, attention by hand, and momentum by hand."""

    def __init__(self):
        self.words = weights(1, WORDS, WIDTH)
        self.maps = [weights(2 + number, WIDTH, WIDTH) for number in range(6)]
        self.out, self.bias = weights(8, WIDTH, WORDS), tf.Variable(tf.zeros([WORDS]))
        self.variables = [self.words, *self.maps, self.out, self.bias]
        self.momenta = [tf.Variable(tf.zeros_like(variable)) for variable in self.variables]

    def attend(self, maps, to, over):
        """What ``to`` takes of ``over``: (batch, length, width)."""
        scores = tf.matmul(tf.matmul(to, maps[0]), tf.matmul(over, maps[1]), transpose_b=True) / WIDTH**0.5
        return to + tf.matmul(tf.nn.softmax(scores), tf.matmul(over, maps[2]))

    def loss(self, source, target):
        """Cross-entropy of (batch, length) words, a scalar."""
        read = tf.nn.embedding_lookup(self.words, source)
        places = tf.cast(tf.range(tf.shape(read)[1]), tf.float32) / 100.0
        read = read + places[:, tf.newaxis]
        read = self.attend(self.maps[:3], read, read)
        written = self.attend(self.maps[3:], tf.nn.embedding_lookup(self.words, target), read)
        logits = tf.reshape(written, [-1, WIDTH]) @ self.out + self.bias
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.reshape(target, [-1]), logits=logits
        )
        return tf.reduce_mean(losses)

    def train(self, source, target):
        """One step; the loss."""
        with tf.GradientTape() as tape:
            loss = self.loss(source, target)
        gradients = tape.gradient(loss, self.variables)
        for variable, momentum, gradient in zip(self.variables, self.momenta, gradients, strict=True):
            momentum.assign(0.9 * momentum + 0.1 * tf.convert_to_tensor(gradient))
            variable.assign_sub(0.05 * momentum)
        return loss


def translation(see, steps, distinct=200, wrap=None):
    """A `Translator` on texts of so many distinct lengths; ``wrap`` may make something else of its step."""
    rng = np.random.default_rng(0)
    model = Translator()
    train = model.train if wrap is None else wrap(model.train)
    for length in lengths_of(steps, distinct):
        source = tf.constant(rng.integers(0, WORDS, (4, length)))
        target = tf.constant(rng.integers(0, WORDS, (4, length // 2 + 1)))
        see(train(source, target))
    return model.variables


def recurrence(see, steps, distinct=100):
    """A recurrent network by a Python loop over time, under the tape; so many distinct numbers of time steps."""
    rng = np.random.default_rng(0)
    variables = [weights(1, 8, WIDTH), weights(2, WIDTH, WIDTH), weights(3, WIDTH), weights(4, WIDTH, 1)]
    into, again, bias, out = variables
    for length in lengths_of(steps, distinct) - 2:
        x = tf.constant(rng.normal(size=(length, 4, 8)).astype("float32"))
        with tf.GradientTape() as tape:
            h = tf.zeros([4, WIDTH])
            for t in range(length):
                h = tf.tanh(x[t] @ into + h @ again + bias)
            loss = tf.reduce_mean(tf.square(h @ out - 1.0))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.05 * gradient)
        see(loss)
    return variables


def depth(see, steps, layers=24):
    """Stochastic depth: of so many layers each is left out or not, so that there are ``2 ** layers`` ways."""
    rng = np.random.default_rng(0)
    variables = [weights(number, WIDTH, WIDTH) for number in range(layers)]
    for _ in range(steps):
        h = tf.constant(rng.normal(size=(8, WIDTH)).astype("float32"))
        kept = rng.random(layers) < 0.7
        with tf.GradientTape() as tape:
            for number in range(layers):
                if kept[number]:
                    h = h + tf.tanh(h @ variables[number])
            loss = tf.reduce_mean(tf.square(h))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            if gradient is not None:
                variable.assign_sub(0.01 * gradient)
        see(loss)
    return variables


def treebank(see, steps, trees=100, leaves=16):
    """A recursive network over so many random trees of up to so many leaves."""
    rng = np.random.default_rng(0)
    variables = [
        weights(1, 20, WIDTH),
        weights(2, WIDTH, WIDTH),
        weights(3, WIDTH, WIDTH),
        weights(4, WIDTH, 2),
    ]
    words, left, right, out = variables

    def grown(size):
        if size == 1:
            return int(rng.integers(20))
        cut = int(rng.integers(1, size))
        return grown(cut), grown(size - cut)

    def vector(tree):
        if isinstance(tree, int):
            return tf.nn.embedding_lookup(words, tf.constant([tree]))
        return tf.tanh(vector(tree[0]) @ left + vector(tree[1]) @ right)

    bank = [grown(int(rng.integers(2, leaves))) for _ in range(trees)]
    for _ in range(steps):
        number = int(rng.integers(trees))
        with tf.GradientTape() as tape:
            logits = vector(bank[number]) @ out
            labels = tf.constant([number % 2])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            loss = tf.reduce_mean(losses)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            if gradient is not None:
                variable.assign_sub(0.05 * tf.convert_to_tensor(gradient))
        see(loss)
    return variables

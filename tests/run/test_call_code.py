"""The code that is made for known calls."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from truth import both_ways

from terra_cx.run import call_code


def texts_of(program, monkeypatch):
    """The texts that a program's calls have, one for each call, and the report."""
    texts = []
    made = call_code._compiled

    def noted(source):
        texts.append(source)
        return made(source)

    monkeypatch.setattr(call_code, "_compiled", noted)
    return texts, both_ways(program)


def test_calls_of_one_shape_share_their_text(monkeypatch):
    def program(see):
        w, count = tf.Variable(tf.eye(3)), tf.Variable(0)
        for _ in range(40):
            count.assign_add(1)
            x = tf.square(tf.sin(tf.tanh(w + 1.0)))
            x = tf.sigmoid(tf.cos(tf.abs(x)))
            w.assign(x)
            see(x)

    texts, report = texts_of(program, monkeypatch)
    assert report["anchors"][0]["elisions"]["functions"] > 50
    assert len(texts) >= 6
    assert len(set(texts)) <= len(texts) - 4


def test_outputs_that_only_the_call_takes_have_no_slot(monkeypatch):
    """``tf.nn.softmax_cross_entropy_with_logits`` is a dozen ops, of which Python is given one."""

    def program(see):
        rng = np.random.default_rng(1)
        labels, count = tf.one_hot([0, 1, 2], 3), tf.Variable(0)
        for _ in range(40):
            count.assign_add(1)
            logits = tf.constant(rng.normal(size=(3, 3)).astype("f4"))
            see(tf.nn.softmax_cross_entropy_with_logits(labels, logits * 2.0))

    texts, report = texts_of(program, monkeypatch)
    assert report["anchors"][0]["elisions"]["functions"] > 20
    assert all(text.count("_new(Slot)") == text.count("_new(Placeholder)") == 1 for text in texts)


def test_a_gradient_that_comes_late_finds_what_it_refers_to():
    """Blocks built later refer to outputs inside of calls whose code was made before."""

    def program(see):
        w = tf.Variable(tf.eye(3))
        for step in range(60):
            x = tf.ones((3, 3)) * float(step % 7)
            with tf.GradientTape() as tape:
                y = tf.nn.softmax(tf.nn.leaky_relu(tf.matmul(x, w) - 1.0))
                see(y)  # a block ends here
                loss = tf.reduce_mean(y * y)
            if step > 30:
                w.assign_sub(0.1 * tape.gradient(loss, w))
            else:
                w.assign_sub(tf.ones((3, 3)) * 0.01)
        return w

    both_ways(program, co_executed=20)

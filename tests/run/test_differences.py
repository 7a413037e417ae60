"""A divergence is told by what was new: one program for each kind of difference."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

from terra_cx.reasons import Reason
from terra_cx.run import differences
from terra_cx.run.anchor import Fallback
from terra_cx.run.differences import Difference, _tensor, _value

LATE = 30
SECOND = [tf.Variable(tf.eye(4)), tf.Variable(tf.eye(4))]


def loop(step):
    def program(see):
        rng = np.random.default_rng(5)
        w = tf.Variable(tf.eye(4))
        for number in range(40):
            see(step(number == LATE, w, tf.constant(rng.normal(size=(4, 4)).astype("float32"))))
            w.assign_sub(0.01 * tf.tanh(w))
        return w

    return program


def another_branch(late, w, x):
    if late:
        return tf.sin(w @ x)
    return tf.cos(w @ x)


def another_op_in_the_line(late, w, x):
    return (tf.sin if late else tf.cos)(w @ x)


def another_dtype(late, w, x):
    return tf.reduce_sum(tf.cast(x, tf.float64 if late else tf.float16))


def another_shape(late, w, x):
    return tf.reduce_sum(tf.constant(np.ones([7 if late else 32, 4], "float32")) @ w)


def another_shape_of_an_array(late, w, x):
    return tf.reduce_sum(tf.matmul(np.ones([7 if late else 32, 4], "float32"), w))


def another_attribute(late, w, x):
    return tf.reduce_sum(w @ x, axis=0, keepdims=late)


def another_value(late, w, x):
    return tf.reduce_sum(w @ x, axis=1 if late else 0)


def another_type(late, w, x):
    return tf.reduce_sum(w @ x, axis=[0, 1] if late else 0)


def another_number(late, w, x):
    return tf.reduce_sum(tf.concat([x] * (3 if late else 2), 0))


def another_variable(late, w, x):
    return SECOND[late] + 1.0


def another_source(late, w, x):
    some, other = tf.sin(x), tf.cos(x)
    return tf.add(some, other if late else some)


def another_history(late, w, x):
    with tf.GradientTape() as tape:
        if late:
            tape.watch(x)
        y = tf.reduce_sum(w @ x)
    return tape.gradient(y, [w])


def other_sources(late, w, x):
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(w @ x)
    return tape.gradient(y, [w, w] if late else [w])


BRANCH = another_branch.__code__.co_firstlineno + 3
HISTORY = another_history.__code__.co_firstlineno + 4
SOURCE = another_source.__code__.co_firstlineno + 1


@pytest.mark.parametrize(
    ("step", "what", "text"),
    [
        (another_branch, "branch", f"Sin where Cos (test_differences.py:{BRANCH}) is known"),
        (another_op_in_the_line, "op", f"Sin where Cos (test_differences.py:{BRANCH + 4}) is known"),
        (
            another_source,
            "source",
            f"AddV2: y is the result of Cos (test_differences.py:{SOURCE}) "
            f"where the result of Sin (test_differences.py:{SOURCE}) is known",
        ),
        (another_dtype, "dtype", "Cast: DstT is float64 where float16 is known"),
        (another_shape, "shape", "MatMul: a has shape (7, 4) where (32, 4) is known"),
        (another_shape_of_an_array, "shape", "MatMul: a has shape (7, 4) where (32, 4) is known"),
        (another_attribute, "attribute", "Sum: keep_dims is True where False is known"),
        (another_value, "value", "Sum: reduction_indices is 1 where 0 is known"),
        (another_type, "type", "Sum: reduction_indices is [0, 1] where 0 is known"),
        (another_number, "count", "ConcatV2: values is a list of 3 where one of 2 is known"),
        (
            another_variable,
            "variable",
            "ReadVariableOp: resource is another variable of float32 (4, 4) "
            "where one variable of float32 (4, 4) is known",
        ),
        (
            another_history,
            "history",
            "tape.gradient: what the tape was told next is a watch before ReadVariableOp "
            f"(test_differences.py:{HISTORY}) where being left after the last op is known",
        ),
        (other_sources, "attribute", "tape.gradient: sources is 2 where 1 is known"),
    ],
)
def test_what_was_new(step, what, text):
    (fallback,) = both_ways(loop(step))["fallbacks"]
    assert fallback["detail"] == text
    assert [(each["what"], each["count"]) for each in fallback["differences"]] == [(what, 1)]
    assert fallback["at"].endswith("/" + fallback["line"])


def test_a_branch_names_the_lines_that_are_known():
    (fallback,) = both_ways(loop(another_branch))["fallbacks"]
    (difference,) = fallback["differences"]
    assert difference["lines"] == [f"{__file__}:{BRANCH}"]
    assert (difference["op"], difference["new"]) == ("Sin", "Sin")


def test_kinds_are_bounded():
    fallback = Fallback(Reason.NEW_ARGUMENTS, "/a/train.py:3", "the first")
    for number in 2 * list(range(20)):
        fallback.met(Difference("value", "Fill", "dims", f"[{number}]", "[3]"))
    told = fallback.as_dict()
    assert (told["line"], told["at"]) == ("train.py:3", "/a/train.py:3")
    assert [each["count"] for each in told["differences"]] == [2] * 8


def a_shape_of_the_data(late, w, x):
    return tf.shape(tf.boolean_mask(w @ x, x[:, 0] > 0.0))


@pytest.mark.parametrize(
    ("what", "step", "op"),
    [
        ("_of_op", another_branch, "Sin"),
        ("_of_gradient", another_history, "tape.gradient"),
        ("_of_shape", a_shape_of_the_data, "Shape"),
    ],
)
def test_missing_words_are_no_failure(monkeypatch, what, step, op):
    monkeypatch.setattr(differences, what, lambda *_: 1 / 0)
    report = both_ways(loop(step), co_executed=0)
    assert report["fallbacks"][0]["detail"] == f"{op}: something new"


def test_a_gradient_that_decides_by_values():
    """Its Python reads the axis, so it can never be taken over, and says so."""

    def step(late, w, x):
        with tf.GradientTape() as tape:
            axis = tf.cast(tf.reduce_sum(x) > 0.0, tf.int32)
            y = tf.reduce_sum(tf.reduce_prod(w @ x, axis=axis))
        return tape.gradient(y, w)

    report = both_ways(loop(step), co_executed=0)
    assert any("decides by values of the forward pass" in each["detail"] for each in report["fallbacks"]), (
        report
    )


class Shy:
    def __repr__(self):
        raise RuntimeError("no")


def test_values_are_bounded():
    assert _value(Shy()) == "a Shy"
    assert _value([1] * 100) == "a list of 100"
    assert _value([tf.ones([2])]) == "a list of 1"
    assert _value(tf.ones([2])) == "a tensor of float32"
    assert _value([1, 2.5]) == "[1, 2.5]"
    assert _value("b" * 5000).endswith("bbb...")
    assert _value(np.ones([100, 100])) == "an array of float64 (100, 100)"
    assert len(_tensor(tf.ones([32]))) <= 80

"""Watch: what code a call runs, and the effects that forbid an elision."""

from __future__ import annotations

import functools
import os
import random
import sys
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from terra_cx.elide.watch import Watch
from terra_cx.observe.importer import UserCode


def watched(call):
    watch = Watch(UserCode())
    assert watch.start()
    try:
        call()
    finally:
        watch.stop()
    assert sys.getprofile() is None
    return watch


def of_keras(function):
    """The function as if it were Keras's: the program's own would be an effect already."""
    names = {**globals(), "__name__": "keras.test"}
    code = function.__code__.replace(co_filename="/site-packages/keras/test.py")
    return type(function)(code, names)


@pytest.mark.parametrize(
    "call",
    [
        lambda: print(end=""),
        lambda: time.time(),
        lambda: random.random(),
        lambda: os.getpid(),
        lambda: warnings.warn("x", stacklevel=1),
    ],
    ids=["print", "time", "random", "os", "warning"],
)
def test_effects(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert watched(of_keras(call)).effect is not None


def test_code_of_the_programs():
    def mine():
        return 1

    assert "mine" in watched(mine).effect


def test_code_of_another_library():
    other = of_keras(lambda: 1)
    other.__globals__["__name__"] = "sonnet.src.base"
    assert "sonnet" in watched(other).effect


ARRAY = np.arange(6.0)


@pytest.mark.parametrize(
    ("call", "computes"),
    [
        (lambda: np.isscalar([0]), False),
        (lambda: np.finfo("float32").max, False),
        (lambda: np.asarray(ARRAY), False),
        (lambda: np.max(ARRAY), True),
        (lambda: ARRAY.sum(), True),
        (lambda: (np.isscalar(3), np.isscalar([ARRAY])), True),
        (lambda: np.stack([*{"a": ARRAY}.values()]), True),
        (lambda: np.fromiter(iter(ARRAY), float), True),
        (lambda: np.max(tf.constant(ARRAY)), True),
        (lambda: np.isscalar(ARRAY[0]), True),
        (lambda: np.add.reduce(ARRAY), True),
    ],
)
def test_what_computes_with_an_array(call, computes):
    """A call of NumPy's that is given none does not."""
    assert watched(of_keras(call)).computes is computes


def test_a_layer():
    layer = keras.layers.Dense(2)
    layer(tf.ones([1, 2]))
    watch = watched(of_keras_call(layer))
    assert watch.effect is None
    assert "call" in watch.methods[keras.layers.Dense]
    assert any(code.co_name == "call" for code, _ in watch.codes)


def of_keras_call(layer):
    import functools

    return functools.partial(layer, tf.ones([1, 2]))


def test_not_beside_another_profiler():
    sys.setprofile(lambda *_: None)
    try:
        assert not Watch(UserCode()).start()
    finally:
        sys.setprofile(None)


def test_looking_at_where_an_op_was_issued_is_no_effect():
    user = UserCode()
    look = of_keras(lambda user: user.is_user("/somewhere/new.py"))
    assert watched(functools.partial(look, user)).effect is None
    assert watched(of_keras(lambda: os.path.realpath("/somewhere/new.py"))).effect is not None

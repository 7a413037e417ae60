"""TensorFlow's functions with their code exchanged: the same objects, and asked about by whoever has them."""

from __future__ import annotations

import inspect
import pickle

import pytest
import tensorflow as tf

from terra_cx.elide.functions import Functions
from terra_cx.tf.boundary import Passive

early = tf.matmul
X = tf.constant([[1.0, 2.0], [3.0, 4.0]])
V = tf.Variable(X)


class Noting(Passive):
    """Runs everything, and notes what was called."""

    def __init__(self):
        self.names = []

    def function_call(self, function, args, kwargs):
        self.names.append(function.name)
        return function.own(*args, **kwargs)


class Place:
    """What the hooks know of a boundary."""

    def __init__(self, handler):
        self.handler = handler


@pytest.fixture
def handler():
    functions, handler = Functions(), Noting()
    functions.put(Place(handler))
    yield handler
    functions.take_back()


CALLS = {
    "tf.matmul": lambda: tf.matmul(X, X),
    "tf.concat": lambda: tf.concat([X, X], axis=1),
    "tf.nn.softmax": lambda: tf.nn.softmax(X),
    "tf.reduce_mean": lambda: tf.reduce_mean(X, axis=0, keepdims=True),
    "tf.Tensor.__add__": lambda: X + X,
    "tf.Tensor.__rmul__": lambda: 2.0 * X,
    "tf.Tensor.__getitem__": lambda: X[0, 1:],
    "tf.Variable.__mul__": lambda: V * X,
    "tf.Variable.__rsub__": lambda: 1.0 - V,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_handler_is_asked_and_nothing_else_changes(handler, name):
    hooked = CALLS[name]()
    assert handler.names[0].rpartition(".")[2] == name.rpartition(".")[2]
    del handler.names[:]
    functions = Functions()  # what another one would find: nothing is hooked twice
    functions.put(Place(Noting()))
    functions.take_back()
    assert CALLS[name]().numpy().tobytes() == hooked.numpy().tobytes()
    assert handler.names


def test_whoever_has_the_function_gets_the_hook(handler):
    early(X, X)
    assert handler.names == ["tf.matmul"]


def test_the_function_is_the_same_object():
    before = [tf.matmul, tf.nn.softmax, tf.Tensor.__add__, tf.Variable.__mul__]
    signatures = [inspect.signature(function) for function in before]
    codes = [function.__code__ for function in before]
    functions = Functions()
    functions.put(Place(Noting()))
    now = [tf.matmul, tf.nn.softmax, tf.Tensor.__add__, tf.Variable.__mul__]
    assert all(map(lambda a, b: a is b, before, now))
    assert [inspect.signature(function) for function in now] == signatures
    assert [function.__code__ for function in now] != codes
    assert inspect.getsource(tf.matmul)
    assert pickle.loads(pickle.dumps(tf.matmul)) is tf.matmul
    functions.take_back()
    assert all(map(lambda function, code: function.__code__ is code, now, codes))


def test_errors_are_tensorflows_own(handler):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Matrix size-incompatible"):
        tf.matmul(X, tf.ones((3, 3)))
    with pytest.raises(TypeError, match=r"[Mm]issing"):
        tf.matmul(X)


def test_code_that_the_program_has_exchanged_stays():
    own = tf.concat.__code__

    def around(fn):
        def mine(*args, **kwargs):
            return fn

        return mine

    functions = Functions()
    try:
        functions.put(Place(Noting()))
        tf.concat.__code__ = mine = around(None).__code__
        functions.take_back()
        assert tf.concat.__code__ is mine
        again = Functions()
        again.put(Place(Noting()))  # it takes what it finds for what is TensorFlow's
        again.take_back()
        assert tf.concat.__code__ is mine
    finally:
        tf.concat.__code__ = own

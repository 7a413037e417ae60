"""A placeholder behaves as the eager tensor it stands for, resolves or raises, and never yields garbage."""

from __future__ import annotations

import copy
import functools
import gc
import operator
import pickle
import sys
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf
from held import failed, held, pending, unfilled
from tensorflow.python.framework import ops

from terra_cx.tf.placeholder import Placeholder, new_placeholder, resolve, resolve_all
from terra_cx.tf.slots import Slot, Spec

pytestmark = pytest.mark.usefixtures("boundary")

VECTOR = [1.5, -2.0, 0.25]
MATRIX = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def outcome(function, *args):
    """What a call did: its value in a comparable form, or its exception's type and message."""
    try:
        value = function(*args)
    except Exception as error:
        # A native type prints its module with its name, a Python class does not.
        return type(error), str(error).replace("tensorflow.python.framework.ops.EagerTensor", "EagerTensor")
    return shown(value)


def shown(value):
    if tf.is_tensor(value):
        return "tensor", value.dtype, tuple(value.shape), shown(value.numpy())
    if isinstance(value, np.ndarray):
        data = value.tolist() if value.dtype == object else value.tobytes()
        return "array", value.dtype, value.shape, data
    if isinstance(value, (list, tuple)):
        return type(value), [shown(item) for item in value]
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    return type(value), value


def alike(function, value=VECTOR):
    """``function`` does the same with a placeholder as with a real tensor; returns what it does."""
    real = outcome(function, tf.constant(value))
    assert outcome(function, held(value)) == real
    return real


# -- what it is ------------------------------------------------------------------------------------------------------
def test_type_checks():
    x = held(VECTOR)
    assert isinstance(x, tf.Tensor)
    assert isinstance(x, ops.EagerTensor)
    assert isinstance(x, (int, tf.Tensor))
    assert not isinstance(x, (tf.Variable, np.ndarray))
    assert issubclass(x.__class__, tf.Tensor)
    assert tf.is_tensor(x)
    assert not tf.is_symbolic_tensor(x)
    assert not tf.nest.is_nested(x)
    assert type(x) is Placeholder


def test_the_printed_type_is_that_of_a_tensor():
    x, real = held(VECTOR), tf.constant(VECTOR)
    assert str(type(x)) == str(type(real))
    assert type(x).__name__ == type(real).__name__
    assert type(x).__module__ == type(real).__module__


ATTRIBUTES = [
    *(
        "shape",
        "dtype",
        "ndim",
        "name",
        "device",
        "backing_device",
        "is_packed",
        "graph",
        "op",
        "value_index",
    ),
    *(
        "_rank",
        "_shape_tuple",
        "_num_elements",
        "_datatype_enum",
        "_prefer_custom_summarizer",
        "_handle_data",
    ),
    *(
        "_summarize_value",
        "_shape_as_list",
        "consumers",
        "get_shape",
        "__len__",
        "__tf_tensor__",
        "__array_priority__",
    ),
    *("itemsize", "size", "nbytes", "T", "no_such_attribute"),
]


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_attributes(attribute):
    def read(tensor):
        found = getattr(tensor, attribute)
        return found() if callable(found) else found

    alike(read)
    alike(read, MATRIX)


def test_every_public_name_of_a_tensor_is_there():
    real = tf.constant(VECTOR)
    assert set(dir(real)) - set(dir(held(VECTOR))) <= {"_matmul", "__pydantic_validate_core_schema__"}


@pytest.mark.parametrize("function", [str, repr, format, "{:}".format, "%s".__mod__, "{!r:>80}".format])
def test_texts(function):
    alike(function)
    alike(function, 3.0)
    alike(function, [b"text"])


def test_format_with_a_specification():
    alike(lambda x: f"{x:.3f}", 2.0)
    alike(lambda x: f"{x:.3f}")  # refused alike


# -- where code keeps it ---------------------------------------------------------------------------------------------
def test_nest():
    structure = {"a": [held(1.0), held(2.0)], "b": (held(VECTOR),)}
    assert [float(tf.reduce_sum(x)) for x in tf.nest.flatten(structure)] == [1.0, 2.0, -0.25]
    doubled = tf.nest.map_structure(lambda x: x * 2, structure)
    assert float(doubled["a"][1]) == 4.0
    tf.nest.assert_same_structure(structure, doubled)


def test_identity_hash_and_references():
    x = held(VECTOR)
    assert outcome(hash, x)[0] is outcome(hash, tf.constant(VECTOR))[0] is TypeError
    assert x.ref() == x.ref()
    assert x.ref() != held(VECTOR).ref()
    assert {x.ref(): 1}[x.ref()] == 1
    assert x.ref().deref() is x
    assert [x].index(x) == 0


def test_the_native_number_stays_until_the_value_is_replaced():
    """Tapes know tensors by it: it must be nobody else's, and that of a tensor that a rebuilt tape has seen."""
    x, asked = pending(VECTOR)
    early = x._id
    assert x._id == early
    assert early not in {unfilled()._id, asked.value._id, tf.constant(1.0)._id}
    x.numpy()
    assert x._id == early
    again = tf.identity(asked.value)
    x._slot.replace(again)
    assert x._id == again._id
    late = held(VECTOR)
    assert late._id == late._slot.value._id


def test_equality_and_membership():
    alike(lambda x: x == x)
    alike(lambda x: x == VECTOR)
    alike(lambda x: x != tf.constant([1.5, 0.0, 0.0]))
    alike(lambda x: x in [1.0, 2.0], 2.0)
    alike(lambda x: x in [0.0])  # more than one element: refused alike


def test_weak_references():
    x = held(VECTOR)
    reference = weakref.ref(x)
    assert reference() is x
    del x
    assert reference() is None


def test_a_placeholder_keeps_its_slot_and_nothing_else_keeps_the_placeholder():
    x = held(VECTOR)
    slot = weakref.ref(x)
    table = [x._slot]
    del x
    gc.collect()
    assert slot() is None
    assert table[0].value is not None


def test_pickle_and_copies():
    x = held(MATRIX)
    for other in (
        pickle.loads(pickle.dumps(x)),
        copy.deepcopy(x),
        copy.copy(x),
        copy.deepcopy({"k": [x]})["k"][0],
    ):
        assert shown(other) == shown(tf.constant(MATRIX))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert shown(pickle.loads(pickle.dumps([x], protocol))[0]) == shown(tf.constant(MATRIX))


def test_single_dispatch():
    @functools.singledispatch
    def kind(value):
        return "other"

    @kind.register
    def _(value: tf.Tensor):
        return "tensor"

    assert kind(held(1.0)) == kind(tf.constant(1.0)) == "tensor"


# -- numpy -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "function", [np.asarray, np.array, np.asanyarray, np.atleast_2d, np.ascontiguousarray]
)
def test_to_numpy(function):
    alike(function)

    def flags(x):
        made = function(x)
        return made.flags.writeable, made.flags.c_contiguous, made.flags.owndata

    alike(flags)


def test_to_numpy_with_a_dtype_and_copy():
    alike(lambda x: np.asarray(x, dtype=np.float64))
    alike(lambda x: np.asarray(x, dtype=np.int32))
    alike(lambda x: np.array(x, copy=True))
    alike(lambda x: np.array(x, copy=None) if int(np.__version__[0]) > 1 else None)
    alike(lambda x: x.numpy().flags.writeable)


@pytest.mark.filterwarnings("error")
def test_to_numpy_without_a_warning():
    alike(np.asarray)
    alike(lambda x: np.array(x, copy=False) if int(np.__version__[0]) > 1 else None)


def test_an_array_made_of_it_is_not_the_tensors_own_memory():
    x = held(VECTOR)
    x.numpy()[0] = 99.0
    assert x.numpy().tolist() == VECTOR
    made = np.array(x)
    made[0] = 99.0
    assert x.numpy().tolist() == VECTOR
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(x)[0] = 99.0


@pytest.mark.parametrize(
    "function",
    [
        np.linalg.norm,
        np.sum,
        np.mean,
        np.sort,
        np.argmax,
        np.isnan,
        np.shape,
        np.ndim,
        np.size,
        np.exp,
        np.cumsum,
    ],
)
def test_numpy_functions(function):
    alike(function)


def test_numpy_functions_of_several():
    alike(lambda x: np.concatenate([x, x]))
    alike(lambda x: np.stack([x, np.zeros(3, "float32")]))
    alike(lambda x: np.where(x > 0, x, 0))
    alike(lambda x: np.allclose(x, VECTOR))
    alike(lambda x: np.zeros(3)[np.asarray(x) > 0])


NUMBERS = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    operator.pow,
]


@pytest.mark.parametrize("function", NUMBERS)
@pytest.mark.parametrize(
    "other", [np.float32(2.0), np.ones(3, "float32"), 2.0, 2, [1.0, 2.0, 3.0], tf.ones(3)]
)
def test_operators_on_either_side(function, other):
    alike(lambda x: function(x, other))
    alike(lambda x: function(other, x))


def test_more_operators():
    alike(lambda x: -x)
    alike(abs)
    alike(lambda x: x @ tf.transpose(x), MATRIX)
    alike(lambda x: np.ones((2, 2), "float32") @ x, MATRIX)
    alike(lambda x: x > 0)
    alike(lambda x: x >= np.zeros(3, "float32"))
    alike(lambda x: np.zeros(3, "float32") < x)
    alike(lambda x: ~(x > 0))
    alike(lambda x: (x > 0) & (x < 1))
    alike(lambda x: divmod(x, 2.0))

    def grows(x):
        x += 1.0
        return x

    alike(grows)


# -- as a Python value -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "function", [bool, int, float, complex, operator.index, len, round, list, tuple, iter, hash]
)
@pytest.mark.parametrize("value", [3, 2.5, True, 0.0, [7], VECTOR, MATRIX])
def test_python_conversions(function, value):
    def call(x):
        made = function(x)
        return list(made) if function is iter else made

    alike(call, value)


def test_control_flow():
    alike(lambda x: "yes" if x else "no", True)
    alike(lambda x: "yes" if x > 1 else "no", 0.5)
    alike(lambda x: [item for item in x if item > 0])
    alike(lambda x: list(range(x)), 3)
    alike(lambda x: "abcdef"[x], 2)
    alike(lambda x: [*x])
    alike(lambda x: max(x))


def test_indexing():
    alike(lambda x: x[0], MATRIX)
    alike(lambda x: x[-1, 1:], MATRIX)
    alike(lambda x: x[..., 0], MATRIX)
    alike(lambda x: x[:, tf.newaxis], MATRIX)
    alike(lambda x: x[::2], MATRIX)
    alike(lambda x: tf.constant(MATRIX)[x], 1)
    alike(lambda x: tf.constant(MATRIX)[:x], 1)
    alike(lambda x: np.array(MATRIX)[x], 1)
    alike(lambda x: x[5], MATRIX)  # refused alike

    def assign(x):
        x[0] = 1.0

    alike(assign)


def test_dlpack():
    alike(lambda x: tf.experimental.dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(x)))
    alike(lambda x: x.__dlpack_device__())
    alike(lambda x: np.from_dlpack(x))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python classes export buffers from 3.12 on (PEP 688)")
def test_memoryview():
    alike(lambda x: memoryview(x).tolist())
    alike(lambda x: bytes(memoryview(x)))


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the limit that is declared for Python before 3.12")
def test_memoryview_is_refused_rather_than_wrong():
    with pytest.raises(TypeError, match="bytes-like object is required"):
        memoryview(held(VECTOR))


# -- TensorFlow ------------------------------------------------------------------------------------------------------
def test_conversions_and_constants():
    alike(tf.convert_to_tensor)
    alike(lambda x: tf.convert_to_tensor(x, tf.float64))  # refused alike
    alike(tf.identity)
    alike(tf.constant)
    alike(lambda x: tf.constant([x, x], tf.float32), 1.0)
    alike(lambda x: tf.zeros([x, 2]), 3)
    alike(lambda x: tf.reshape(tf.range(6), [x, -1]), 2)
    alike(lambda x: tf.cast(x, tf.int32))
    alike(tf.get_static_value)
    alike(tf.make_tensor_proto)
    x = held(VECTOR)
    assert tf.convert_to_tensor(x) is x


def test_variables():
    alike(lambda x: tf.Variable(x).numpy())
    alike(lambda x: tf.Variable(tf.zeros(3)).assign(x).numpy())
    alike(lambda x: tf.Variable(tf.ones(3)).assign_add(x).numpy())
    alike(lambda x: tf.Variable(lambda: x).numpy())
    alike(lambda x: tf.keras.Variable(x).numpy())


def test_composite_tensors():
    alike(lambda x: tf.RaggedTensor.from_row_lengths(x, [1, 2]).to_list())
    alike(lambda x: tf.RaggedTensor.from_row_splits(tf.range(5), x).to_list(), [0, 2, 5])
    alike(lambda x: tf.sparse.to_dense(tf.SparseTensor([[0], [2], [4]], x, [6])))
    alike(lambda x: tf.convert_to_tensor(tf.IndexedSlices(x, tf.constant([2, 0, 1]), tf.constant([3]))))
    alike(lambda x: tf.reduce_sum(tf.ragged.stack([x, x[:1]]), 1))


def test_control_flow_functions():
    alike(lambda x: tf.cond(x > 0, lambda: 1, lambda: 2), 1.0)
    alike(lambda x: tf.map_fn(lambda item: item * 2, x))
    alike(lambda x: tf.while_loop(lambda i: i < 5, lambda i: [i + 1], [x]), 1)
    alike(lambda x: tf.TensorArray(tf.float32, 2).write(0, x).write(1, x).stack())
    alike(lambda x: tf.switch_case(x, [lambda: 10, lambda: 20]), 1)
    alike(lambda x: tf.scan(lambda a, b: a + b, x))


def test_checks():
    alike(lambda x: tf.debugging.assert_shapes([(x, (3,))]))
    alike(lambda x: tf.debugging.assert_positive(x))  # refused alike
    alike(lambda x: tf.debugging.assert_type(x, tf.float32))
    alike(lambda x: tf.debugging.check_numerics(x, "fine"))
    alike(lambda x: tf.ensure_shape(x, [None]))
    alike(lambda x: x.set_shape([3]))
    alike(lambda x: x.set_shape([4]))  # refused alike


def test_tf_print(capfd):
    tf.print(tf.constant(VECTOR), "and")
    tf.print(held(VECTOR), "and")
    first, second = capfd.readouterr().err.splitlines()
    assert first == second


def test_datasets():
    alike(lambda x: list(tf.data.Dataset.from_tensors(x)), MATRIX)
    alike(lambda x: list(tf.data.Dataset.from_tensor_slices(x)), MATRIX)
    alike(lambda x: list(tf.data.Dataset.from_tensor_slices({"a": x, "b": [1, 2]}))[1]["a"], MATRIX)
    alike(lambda x: list(tf.data.Dataset.range(4).batch(x)), tf.constant(3, tf.int64))
    alike(lambda x: list(tf.data.Dataset.range(2).map(lambda i: tf.cast(i, tf.float32) * x)), 3.0)


def test_host_callbacks():
    alike(lambda x: tf.py_function(lambda y: y * 2, [x], tf.float32))
    alike(lambda x: tf.numpy_function(lambda y: y + np.float32(1), [x], tf.float32))
    alike(lambda x: tf.numpy_function(lambda: x, [], tf.float32))


def test_a_host_callback_returns_a_placeholder():
    alike(lambda x: tf.py_function(lambda: x, [], tf.float32))
    alike(lambda x: tf.py_function(lambda: [x, x], [], [tf.float32, tf.float32]))


def test_tf_function_without_a_retrace():
    traces = []

    @tf.function
    def double(x, scale=2.0):
        traces.append(x)
        return x * scale

    assert outcome(double, held(VECTOR)) == outcome(double, tf.constant(VECTOR))
    assert len(traces) == 1
    assert double.experimental_get_tracing_count() == 1
    assert shown(double(held(VECTOR), scale=held(2.0))) == shown(
        double(tf.constant(VECTOR), scale=tf.constant(2.0))
    )
    assert len(traces) == 2
    concrete = double.get_concrete_function(tf.TensorSpec([3], tf.float32))
    assert shown(concrete(held(VECTOR))) == shown(concrete(tf.constant(VECTOR)))


def test_tf_function_with_a_signature_structures_and_captures():
    captured, large = held(VECTOR), held(np.arange(200, dtype="float32"))

    @tf.function(input_signature=[{"a": tf.TensorSpec([3], tf.float32)}])
    def f(structure):
        return structure["a"] + captured + tf.reduce_sum(large)

    assert shown(f({"a": held(VECTOR)})) == shown(f({"a": tf.constant(VECTOR)}))
    np.testing.assert_allclose(f({"a": held(VECTOR)}), 2 * np.array(VECTOR) + 19900.0)


def test_functions_made_while_a_placeholder_is_pending():
    x, asked = pending(VECTOR)
    assert shown(tf.function(lambda y: y * 2)(x)) == shown(tf.constant(VECTOR) * 2)
    assert asked.times == 1


def test_gradients_with_passive_hooks():
    def gradients(x):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = tf.reduce_sum(x * x * 3.0)
        return tape.gradient(y, x), tape.gradient(y, [x], output_gradients=tf.constant(2.0))[0]

    alike(gradients)
    alike(lambda x: tf.autodiff.ForwardAccumulator(x, x) and None)


def test_a_gradient_of_a_placeholder_that_was_resolved_on_the_way():
    x, _ = pending(VECTOR)
    with tf.GradientTape() as tape:
        tape.watch(x)
        x.numpy()
        y = x * x
    np.testing.assert_array_equal(tape.gradient(y, x), 2 * np.array(VECTOR))


def test_strings_and_other_types():
    for value in (
        [b"a", b"bc"],
        [True, False],
        [1 + 2j],
        np.array([1], "uint8"),
        np.zeros([0, 3]),
        b"scalar",
    ):
        alike(lambda x: x, value)
        alike(lambda x: x.numpy(), value)
        alike(repr, value)
    alike(lambda x: tf.strings.join([x, "!"]), [b"a"])
    alike(lambda x: x, tf.constant([1.5], tf.bfloat16))


# -- shapes that only the value can tell -----------------------------------------------------------------------------
def test_an_unknown_shape_is_asked_for_only_when_needed():
    x, asked = pending(MATRIX, shape_known=False)
    assert x.dtype == tf.float32
    assert asked.times == 0
    assert x.shape == (2, 3)
    assert asked.times == 1
    assert (x.ndim, len(x), x._num_elements()) == (2, 2, 6)


def test_a_known_shape_needs_no_value():
    x, asked = pending(MATRIX)
    assert x.shape == (2, 3)
    assert (x.shape.rank, x.ndim, len(x), x._num_elements()) == (2, 2, 2, 6)
    assert x.dtype == tf.float32
    assert x.device == tf.constant(0).device
    assert isinstance(x, tf.Tensor)
    assert x.ref() is not None
    assert tf.nest.flatten([x])[0] is x
    assert asked.times == 0


def test_shapes_are_shared_between_placeholders_of_one_spec_but_not_changed_by_one():
    spec = Spec(1, (2, 3))
    a, b = (new_placeholder(Slot(spec, None, 0)) for _ in range(2))
    assert a.shape == b.shape == (2, 3)
    a.shape.assert_is_compatible_with([2, None])


# -- slots that fail, and slots that nobody fills --------------------------------------------------------------------
READS = {
    "numpy": lambda x: x.numpy(),
    "float": float,
    "bool": bool,
    "asarray": np.asarray,
    "repr": repr,
    "str": str,
    "op": lambda x: x + 1.0,
    "slow op": lambda x: tf.concat([x, x], 0),
    "pickle": pickle.dumps,
    "iter": lambda x: list(x),
    "index": lambda x: x[0],
    "dlpack": tf.experimental.dlpack.to_dlpack,
    "function": lambda x: tf.function(lambda y: y)(x),
    "variable": tf.Variable,
    "dataset": tf.data.Dataset.from_tensors,
    "resolve": resolve,
}


@pytest.mark.parametrize("read", READS)
def test_the_error_of_its_op_is_raised_each_time(read):
    error = tf.errors.NotFoundError(None, None, "the op's own words")
    x = failed(error)
    for _ in range(2):
        with pytest.raises(tf.errors.NotFoundError, match="the op's own words"):
            READS[read](x)


@pytest.mark.parametrize("read", READS)
def test_a_slot_that_is_never_filled_raises_and_does_not_hang(read):
    with pytest.raises(RuntimeError, match="terra-cx: a slot was judged dead and then read"):
        READS[read](unfilled())


def test_a_filler_that_fills_nothing_is_an_error_and_not_a_loop():
    class Idle:
        def fetch(self, slot):
            pass

    with pytest.raises(RuntimeError, match="judged dead"):
        new_placeholder(Slot(Spec(1, ()), Idle(), 0)).numpy()


def test_metadata_of_a_failed_placeholder_needs_no_value():
    x = failed(ValueError("late"))
    assert (x.shape, x.dtype) == ((2,), tf.float32)
    assert isinstance(x, tf.Tensor)


def test_read_in_another_thread():
    x, asked = pending(VECTOR)
    read = []
    thread = threading.Thread(target=lambda: read.append(x.numpy()))
    thread.start()
    thread.join()
    assert read[0].tolist() == VECTOR
    assert asked.times == 1


# -- resolving -------------------------------------------------------------------------------------------------------
def test_resolve():
    x = held(VECTOR)
    assert resolve(x) is x._slot.value
    assert resolve("other") == "other"


def test_resolve_all_goes_through_lists_and_tuples():
    x, y = held(1.0), tf.constant(2.0)
    assert resolve_all([x, (y, [x, None])]) == [x._slot.value, (y, [x._slot.value, None])]
    assert resolve_all({"kept": x})["kept"] is x

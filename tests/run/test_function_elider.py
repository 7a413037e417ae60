"""Elided functions of TensorFlow's: what changes what a call does takes effect in the very step, as in eager."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

from terra_cx import co_execute
from terra_cx.run import call_code, elisions, function_elider, skeleton
from terra_cx.tf import native, seeds
from terra_cx.trace import tracegraph

LATE = 30
STEPS = 50


def shortened(report):
    return sum(anchor["elisions"]["functions"] for anchor in report["anchors"])


def batches(*shape, steps=STEPS):
    rng = np.random.default_rng(3)
    return [tf.constant(rng.normal(size=shape).astype("float32")) for _ in range(steps)]


class State(dict):
    """The variables of a program, and what else it keeps; ``count`` is written in each step, which makes it one."""

    def __init__(self):
        super().__init__(w=tf.Variable(tf.reshape(tf.range(9.0), (3, 3)) / 9.0), b=tf.Variable(tf.ones(3)))
        self.count = tf.Variable(0)
        self.scalar, self.other = tf.Variable(1.5), tf.Variable(tf.fill([3], 5.0))


def compare(step, *, least=20, start=None, change=None, shape=(4, 3), steps=STEPS, **settings):
    """``step(x, state, late)`` in a loop, both ways; so many calls of functions must have been elided.

    ``start()`` is called before each of the two runs, ``change(state)`` before step ``LATE``.
    """

    def program(see):
        if start is not None:
            start()
        state = State()
        for number, x in enumerate(batches(*shape, steps=steps)):
            if number == LATE and change is not None:
                change(state)
            state.count.assign_add(1)
            see(step(x, state, number >= LATE))
        return [state["w"], state["b"], state.count]

    report = both_ways(program, **settings)
    assert shortened(report) >= least, report["anchors"][0]["elisions"]
    assert sum(anchor["elisions"]["mismatches"] for anchor in report["anchors"]) == 0
    return report


@pytest.fixture
def answers(monkeypatch):
    """The known calls that were elided, in order."""
    found = []
    call = function_elider.FunctionElider.answered

    def answered(self, known, *args):
        answer = call(self, known, *args)
        if type(answer) is list:
            found.append(known)
        return answer

    monkeypatch.setattr(function_elider.FunctionElider, "answered", answered)
    return found


def names(calls):
    return {call.function.name for call in calls}


def train(x, state, late, **more):
    with tf.GradientTape() as tape:
        y = tf.nn.relu(tf.matmul(x, state["w"]) + state["b"])
        loss = tf.reduce_mean(tf.square(y), **more)
    for variable, gradient in zip(state.values(), tape.gradient(loss, [*state.values()]), strict=True):
        variable.assign_sub(0.1 * gradient)
    return loss


def test_a_training_step():
    report = compare(train, least=120, co_executed=30)
    assert report["anchors"][0]["elisions"]["compared"] > 10


def normalised(x, state, late):
    """``tf.nn.moments`` stops recording inside; late there is a gradient for which a fallback tells a tape all that."""
    with tf.GradientTape(persistent=True) as tape:
        hidden = tf.matmul(x, state["w"])
        mean, variance = tf.nn.moments(hidden, axes=[-1], keepdims=True)
        loss = tf.reduce_sum(tf.square((hidden - mean) * tf.math.rsqrt(variance + 0.1) + state["b"]))
    gradients = tape.gradient(loss, [*state.values()])
    state["b"].assign_sub(0.1 * gradients[1])
    state["w"].assign_sub(0.1 * gradients[0])
    return loss, gradients, tape.gradient(variance, hidden) if late else None


@pytest.mark.parametrize("late", [False, True])
def test_a_function_that_stops_recording(late):
    compare(lambda x, state, is_late: normalised(x, state, late and is_late), least=100, co_executed=20)


def test_moments_are_elided(answers):
    compare(lambda x, state, late: normalised(x, state, False), least=100)
    assert "tf.nn.moments" in names(answers)


def test_in_turns_overlapped_and_with_errors_in_place():
    for pace in ("turns", "overlapped"):
        compare(train, least=60, pace=pace)
    compare(train, least=60, sync_errors=True)


def drawing(draw):
    def step(x, state, late):
        noise = draw(late)
        with tf.GradientTape() as tape:
            y = tf.nn.dropout(tf.matmul(x, state["w"]) + state["b"], 0.3)
            loss = tf.reduce_mean(tf.square(y)) + tf.reduce_sum(noise * state["b"])
        gradient = tape.gradient(loss, state["w"])
        state["w"].assign_sub(0.1 * gradient)
        return loss, noise, tape.watched_variables()

    return step


def set_seed_late(late):
    if late:
        tf.random.set_seed(7)
    return tf.random.normal([3])


# What is drawn, and which functions of ``tf.random`` are elided.
DRAWS = {
    "uniform": (lambda late: tf.random.uniform([3], -1.0, 2.0), ["uniform"]),
    "normal": (lambda late: tf.random.normal([3], 1.0, 0.5), ["normal"]),
    "truncated": (lambda late: tf.random.truncated_normal([3]), ["truncated_normal"]),
    "integers": (lambda late: tf.cast(tf.random.uniform([3], 2, 9, tf.int32), tf.float32), ["uniform"]),
    "two in one call": (lambda late: tf.nn.dropout(tf.nn.dropout(tf.ones([3]), 0.4), 0.2), []),
    "a seed of its own": (lambda late: tf.random.uniform([3], seed=4), ["uniform"]),
    "another seed": (lambda late: tf.random.uniform([3], seed=4 + late), ["uniform"]),
    "a seed, and then none": (lambda late: tf.random.normal([3], seed=None if late else 1), ["normal"]),
    "another rate": (lambda late: tf.nn.dropout(tf.ones([3]), 0.6 if late else 0.5), []),
    "drawn from drawn": (
        lambda late: tf.random.normal([3]) * tf.random.uniform([3]) + tf.random.normal([1]),
        ["normal", "uniform"],
    ),
    "others in between": (
        lambda late: tf.random.normal([3]) * tf.reduce_sum(tf.random.shuffle(tf.range(3.0))[: 1 + late]),
        [],
    ),
}


@pytest.mark.parametrize(("draw", "elided"), DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("pace", ["turns", "overlapped"])
def test_random_numbers_are_drawn_as_without_us(answers, draw, elided, pace):
    compare(drawing(draw), pace=pace, co_executed=20)
    drawing_ones = names(call for call in answers if call.draws)
    assert {"tf.nn.dropout", *(f"tf.random.{name}" for name in elided)} <= drawing_ones, drawing_ones


@pytest.mark.parametrize("last", [None, 1.0])
def test_lists_that_are_returned_in_others(answers, last):
    """``tf.clip_by_global_norm`` returns a list, which may have None in it, and a tensor."""

    def step(x, state, late):
        clipped, norm = tf.clip_by_global_norm([x, x * 2.0, last and tf.reduce_sum(x)], 1.0)
        return clipped[0], clipped[1], clipped[2] is None, norm, tf.linalg.global_norm(clipped)

    compare(step)
    assert "tf.clip_by_global_norm" in names(answers), names(answers)


def test_without_a_global_seed(monkeypatch):
    """TensorFlow has no generator of seeds then: ops have none, and each draws other numbers."""
    context, seen = native.context(), []
    monkeypatch.setattr(context, "_seed", None)
    monkeypatch.delattr(context, "_rng")

    def program():
        w = tf.Variable(tf.ones([8]))
        for number in range(STEPS):
            w.assign_add(0.1 * tf.random.normal([8]))
            if number == 45:
                tf.random.set_seed(4)
            seen.append(tf.nn.dropout(w, 0.5).numpy().tobytes())

    run = co_execute(quiet=True)(program)
    run()
    report = run.last_session.report()
    assert shortened(report) > 40
    assert len(set(seen)) == STEPS
    assert not report["internal_errors"]


def test_a_global_seed_that_changes():
    def step(x, state, late):
        if late and int(state.count) % 3 == 0:
            tf.random.set_seed(int(state.count))
        return tf.nn.dropout(x, 0.5), tf.random.normal([2]), tf.random.normal([2], seed=3)

    compare(step, co_executed=10, least=10)


@pytest.mark.parametrize("seed", [np.int64(5), 5.0, 5], ids=repr)
@pytest.mark.parametrize("of", ["all", "one"])
def test_seeds_of_other_types(seed, of):
    """TensorFlow's fast path takes none of NumPy's: the op goes the slow way then."""

    def step(x, state, late):
        if late and int(state.count) == LATE + 3 and of == "all":
            tf.random.set_seed(seed)
        return tf.random.normal([2], seed=seed if late and of == "one" else 5) + tf.random.uniform(
            [2]
        ), x + 1.0

    compare(step, co_executed=10, least=10)


def test_bounds_that_change_where_shapes_do(monkeypatch):
    """In a relaxed graph what was a constant may become an argument of the draw."""
    monkeypatch.setattr(tracegraph, "FORMS", 1)
    sizes = [2 + number % 7 for number in range(90)]

    def program(see):
        v, bound = tf.Variable(0.0), tf.constant(20)
        for number, size in enumerate(sizes):
            v.assign_add(1.0)
            if number in (60, 75):
                bound = tf.constant(number // 20)
            start = tf.random.uniform([], 0, bound, tf.int32)
            see(tf.tanh(tf.ones([size]) * v), start)

    both_ways(program, co_executed=20)


def test_seeds_are_given_again_if_the_run_is_handed_over_just_then(monkeypatch):
    """A signal handler writes a variable when the seeds are drawn and nothing is committed: the call runs as it is."""
    other, fired = tf.Variable(0.0), []
    next_seeds = seeds.next_seeds

    def interrupted():
        found = next_seeds()
        if sys._getframe(1).f_code.co_name == "answer" and len(fired) < 3:
            fired.append(other.assign_add(1.0))
        return found

    monkeypatch.setattr(seeds, "next_seeds", interrupted)
    compare(lambda x, state, late: tf.nn.dropout(x * 2.0, 0.5) + tf.nn.dropout(x, 0.2))
    assert len(fired) == 3


def test_off():
    def program(see):
        state = State()
        for x in batches(4, 3):
            see(train(x, state, False))

    report = both_ways(program, no_elide=True)
    assert report["anchors"][0].get("elisions") is None


def number_each_time(x, state, late):
    state.number = getattr(state, "number", 0) + 1
    return tf.matmul(x, state["w"]) * (1.0 / state.number)


def zeros(x, state, late):
    y = tf.matmul(x, state["w"])
    return 1.0 / (y * (-0.0 if late else 0.0))


def other_axis(x, state, late):
    y = tf.matmul(x, state["w"])
    return tf.reduce_sum(y, axis=0 if late else 1)


def other_keyword(x, state, late):
    y = tf.matmul(x, state["w"])
    return tf.reduce_sum(y, keepdims=late)


def other_order(x, state, late):
    y = tf.matmul(x, state["w"])
    z = tf.tanh(y)
    a, b = (z, y) if late else (y, z)
    return tf.subtract(a, b) + a / b


def one_tensor_twice(x, state, late):
    y = tf.matmul(x, state["w"])
    z = tf.tanh(y)
    return tf.subtract(y, y if late else z) + tf.concat([z, z if late else y], 0)[:4]


def longer_list(x, state, late):
    y = tf.matmul(x, state["w"])
    return tf.add_n([y, y, y] if late else [y, y]) + tf.stack([y, y])[0]


def other_variable(x, state, late):
    y = tf.matmul(x, state["w"])
    return y + (state["w"][0] if late else state["b"])


def other_variable_itself(x, state, late):
    return tf.matmul(x, state["w"]) + (state.other if late else state["b"])


def other_dtype(x, state, late):
    y = tf.matmul(x, state["w"])
    z = tf.cast(y, tf.float64 if late else tf.float32)
    return tf.exp(z) * 0.5


def other_shape(x, state, late):
    x = x[:3] if late else x
    y = tf.matmul(x, state["w"])
    return tf.reduce_mean(y) * tf.cast(tf.shape(y)[0], tf.float32)


def other_slice(x, state, late):
    y = tf.matmul(x, state["w"])
    return y[1:, None, 0] if late else y[:-1, None, 1]


def array_each_time(x, state, late):
    rng = np.random.default_rng(int(late))
    array = rng.normal(size=(3, 2 + late)).astype("float32")
    return tf.matmul(tf.matmul(x, state["w"]), array)


def array_edited(x, state, late):
    array = state.setdefault("array", np.ones((3, 3), "float32"))
    array[0, 1] += 1.0
    return tf.matmul(tf.matmul(x, state["w"]), array)


def equal_array(x, state, late):
    """All zeros, which the call might have made itself."""
    return tf.matmul(x, state["w"]) + np.full((3,), 1.0 if late else 0.0, "float32")


def value_that_decides(x, state, late):
    """``tf.reshape`` and ``tf.one_hot`` take tensors whose values TensorFlow's Python may look at."""
    y = tf.matmul(x, state["w"])
    rows = tf.constant([3, 4] if late else [4, 3])
    return tf.reshape(y, rows) + 0.0


def tape_around(x, state, late):
    y = tf.matmul(x, state["w"])
    if not late:
        return tf.nn.swish(y) + y
    with tf.GradientTape() as tape:
        z = tf.nn.swish(tf.matmul(x, state["w"]))
        loss = tf.reduce_sum(z)
    return tape.gradient(loss, state["w"])


def dropout(x, state, late):
    return tf.nn.dropout(tf.matmul(x, state["w"]), 0.5, seed=None if late else 3)


def scalar_variable(x, state, late):
    state.scalar.assign_add(0.25)
    return state.scalar * tf.matmul(x, state["w"]) / state.scalar


def integers(x, state, late):
    y = tf.cast(tf.matmul(x, state["w"]) * 10, tf.int32)
    return y // 3 + y % (5 if late else 4)


def indexed(x, state, late):
    return (
        tf.gather(tf.matmul(x, state["w"]), [2, 0] if late else [0, 1], axis=1)
        + tf.nn.embedding_lookup(state["w"], [1, 1, 2, 0])[:, :2]
    )


def value_that_numpy_reads(x, state, late):
    """The rate is broadcast by NumPy, through the buffer protocol."""
    y = tf.matmul(x, state["w"])
    kernel = state["w"][..., None, None]
    return tf.nn.atrous_conv2d(y[None, ..., None], kernel, rate=tf.constant(2 if late else 1), padding="SAME")


def float_in_a_slice(x, state, late):
    y = tf.matmul(x, state["w"])
    try:
        z = y[0 : (2.0 if late else 2)]
    except TypeError as error:
        return str(error)[:20]
    state["b"].assign_add(tf.ones(3))
    return z


def bool_in_a_slice(x, state, late):
    y = tf.matmul(x, state["w"])
    try:
        return y[(True if late else 1) :]
    except (TypeError, tf.errors.OpError) as error:
        return type(error).__name__


def tensor_in_a_slice(x, state, late):
    y = tf.matmul(x, state["w"])
    return y[0 : (tf.constant(2) if late else 2), :1]


def array_in_a_slice(x, state, late):
    y = tf.matmul(x, state["w"])
    try:
        return y[(np.array([1, 2]) if late else 1) :]
    except TypeError as error:
        return str(error)[:20]


def variable_no_longer_trainable(x, state, late):
    state["w"]._trainable = not late
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(tf.matmul(x, state["w"]))
    gradient = tape.gradient(y, state["w"])
    return 0.0 if gradient is None else gradient


STEPS_THAT_CHANGE = [
    value_that_numpy_reads, float_in_a_slice, bool_in_a_slice, tensor_in_a_slice, array_in_a_slice,
    variable_no_longer_trainable,
    number_each_time, zeros, other_axis, other_keyword, other_order, one_tensor_twice, longer_list, other_variable,
    other_variable_itself, other_dtype, other_shape, other_slice, array_each_time, array_edited, equal_array,
    value_that_decides, tape_around, dropout, scalar_variable, integers, indexed,
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS_THAT_CHANGE, ids=lambda step: step.__name__)
def test_a_change_takes_effect_at_once(step):
    compare(step, least=10, co_executed=10)


class Doubling:
    """Stands in for a function that a program has patched."""

    def __init__(self, own):
        self.own = own

    def __call__(self, *args, **kwargs):
        return self.own(*args, **kwargs) * 2.0


def test_a_public_function_is_patched():
    own = tf.matmul

    def step(x, state, late):
        tf.matmul = Doubling(own) if late else own
        return tf.matmul(x, state["w"]) + state["b"]

    try:
        compare(step, least=10)
    finally:
        tf.matmul = own


def test_an_operator_is_patched():
    own = tf.Tensor.__add__

    def put_back():
        tf.Tensor.__add__ = own

    def patch(state):
        tf.Tensor.__add__ = lambda a, b: tf.subtract(a, b)

    def step(x, state, late):
        return tf.matmul(x, state["w"]) + state["b"] + x

    try:
        compare(step, least=11, start=put_back, change=patch)
    finally:
        put_back()


def test_checks_of_numerics_are_switched_on():
    def step(x, state, late):
        y = tf.matmul(x, state["w"])
        try:
            return tf.math.log(y * 0.0 - 1.0) + y
        except tf.errors.InvalidArgumentError as error:
            return type(error).__name__

    off = tf.debugging.disable_check_numerics
    try:
        compare(step, least=11, start=off, change=lambda state: tf.debugging.enable_check_numerics())
    finally:
        off()


SWITCHES = """
import sys
sys.path[:0] = {path!r}
import numpy as np, tensorflow as tf
from truth import run_once

def program(see):
    w, count = tf.Variable(tf.eye(3)), tf.Variable(0)
    labels = tf.constant([0, 1, 2, 1])
    for number in range(50):
        if number == 30:
            {switch}
        count.assign_add(1)
        with tf.GradientTape() as tape:
            y = tf.matmul(tf.ones((4, 3)) * float(number), w)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, y))
        z = y + np.array([1.5, 2.5, 0.1])
        see(loss, tape.gradient(loss, w), z, z.dtype.name)

outcome = run_once(program, {settings})
print(outcome.seen, outcome.error)
if outcome.report:
    assert outcome.report["anchors"][0]["elisions"]["functions"] > 20, outcome.report
"""


@pytest.mark.parametrize(
    "switch",
    [
        "tf.experimental.numpy.experimental_enable_numpy_behavior()",
        "tf.config.experimental.enable_op_determinism()",
    ],
)
def test_a_switch_that_functions_ask(switch):
    """In interpreters of their own: there is no way back."""
    found = [
        subprocess.run(
            [sys.executable, "-c", SWITCHES.format(path=sys.path, switch=switch, settings=settings)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for settings in ("None", "{}")
    ]
    assert found[0] == found[1]
    assert "None" in found[0]


def test_an_exception_of_a_signal_handler_is_the_programs(monkeypatch):
    """Even one of a type that a mistake of ours could have."""

    class Timeout(LookupError):
        pass

    def handler(number, frame):
        raise Timeout("late")

    def raising(*args):
        if armed and armed.pop():
            signal.raise_signal(signal.SIGUSR1)
        return admits(*args)

    def program(see):
        state, caught = State(), 0
        for number, x in enumerate(batches(4, 3)):
            armed[:] = [True] if number == LATE else []
            try:
                state.count.assign_add(1)
                y = tf.matmul(x, state["w"]) + state["b"]
            except Timeout:
                caught += 1
                y = x
            armed.clear()
            see(y if number != LATE else 0)
        counts.append(caught)
        return state["w"]

    armed, counts = [], []
    admits = call_code.admits
    monkeypatch.setattr(call_code, "admits", raising)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        both_ways(program, co_executed=20)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert counts == [0, 1]


def beginnings(program, **settings):
    """Both ways; how many calls came where no run was open, and how many were elided in all."""
    came = []
    own = function_elider.FunctionElider._beginning

    def noted(self, function):
        came.append(function)
        return own(self, function)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function_elider.FunctionElider, "_beginning", noted)
        report = both_ways(program, **settings)
    assert sum(anchor["elisions"]["mismatches"] for anchor in report["anchors"]) == 0
    return len(came), shortened(report)


def test_a_call_that_begins_a_step():
    """One with an array and one with a tensor: nothing else is a function here."""

    def program(see):
        w = tf.Variable(tf.eye(3))
        for number, x in enumerate(batches(4, 3)):
            y = tf.matmul(x.numpy() if number % 2 else x, w)
            w.assign_add(tf.matmul(x, y, transpose_a=True) * 0.01)
            see(w)

    came, elided = beginnings(program, co_executed=30)
    assert came > 20
    assert elided > 3 * 20, (came, elided)


@pytest.mark.parametrize("pace", ["turns", "overlapped"])
def test_a_call_behind_a_read(pace):
    """A block ends at each read, and the call that comes then begins the next one."""

    def program(see):
        w = tf.Variable(tf.eye(3))
        for x in batches(4, 3):
            w.assign_add(tf.ones([3, 3]))
            total = 0.0
            for _ in range(3):
                total += float(tf.reduce_sum(tf.matmul(x, w)))
            see(total)

    came, elided = beginnings(program, pace=pace, co_executed=30)
    assert came > 80
    assert elided > 2 * 3 * 20, (came, elided)


@pytest.mark.parametrize("every", [2, 3])
def test_a_call_that_begins_one_of_two_blocks(every):
    """One function, one place, two ways on: what is passed decides."""

    def program(see):
        w, b = tf.Variable(tf.eye(3)), tf.Variable(tf.ones([3, 3]))
        for number, x in enumerate(batches(4, 3, steps=80)):
            w.assign_add(tf.ones([3, 3]))
            see(float(tf.reduce_sum(w)))
            y = tf.matmul(x, b) - 1.0 if number % every else tf.matmul(x, w) * 2.0
            b.assign_sub(tf.fill([3, 3], 0.01))
            see(y)

    came, elided = beginnings(program, co_executed=50)
    assert elided > 150, (came, elided)


def test_a_call_that_begins_a_block_is_changed():
    """Dtype, shape, value of an array, number, variable: a step that begins otherwise is another step."""

    def program(see):
        w, other = tf.Variable(tf.eye(3)), tf.Variable(3.0 * tf.eye(3))
        for number, x in enumerate(batches(4, 3, steps=70)):
            if number % 11 == 7:
                x = tf.concat([x, x], 0)
            y = tf.matmul(x, other if number % 13 == 9 else w)
            see(tf.reduce_sum(y) * (2.0 if number % 17 == 8 else 3.0))
            w.assign_add(0.1 * tf.ones([3, 3]))

    came, elided = beginnings(program, co_executed=30)
    assert elided > 100, (came, elided)


@pytest.mark.parametrize("when", ["before its run is made", "before its run is opened"])
def test_a_signal_handler_has_ops_where_a_call_begins_a_block(monkeypatch, when):
    """They are before those of the call, and what was prepared for it is given up."""
    armed, fired = [], []

    def fire():
        if armed:
            armed.clear()
            signal.raise_signal(signal.SIGUSR1)

    def program(see):
        w, total = tf.Variable(tf.eye(3)), tf.Variable(0.0)
        before = signal.signal(signal.SIGUSR1, lambda *_: total.assign_add(tf.reduce_sum(w)))
        try:
            for number, x in enumerate(batches(4, 3)):
                armed[:] = [True] if number in (25, LATE, 40) else []
                see(tf.matmul(x, w))
                fire()
                w.assign_add(0.1 * tf.ones([3, 3]))
                see(total)
        finally:
            signal.signal(signal.SIGUSR1, before)

    def interrupted(self, *args):
        fired.extend(armed)
        fire()
        return own(self, *args)

    owner, name = {
        "before its run is made": (function_elider.FunctionElider, "_begun"),
        "before its run is opened": (skeleton.Skeleton, "begin_with"),
    }[when]
    own = getattr(owner, name)
    monkeypatch.setattr(owner, name, interrupted)
    both_ways(program, co_executed=20)
    assert fired


def test_a_debugger_sees_all_frames():
    """While the program traces itself nothing is elided."""

    def program(see):
        names = []

        def trace(frame, event, arg):
            names.append(frame.f_code.co_name)

        w, count = tf.Variable(tf.eye(3)), tf.Variable(0)
        for number, x in enumerate(batches(4, 3)):
            count.assign_add(1)
            if number == LATE:
                sys.settrace(trace)
            y = tf.matmul(x, w) + 1.0
            if number == LATE:
                sys.settrace(None)
                see(names.count("matmul"))
            see(y)

    assert shortened(both_ways(program)) > 10


@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_call_of_another_kind_is_compared_with_none(every):
    """Now and then a variable is passed where a tensor was: that call is read first, and its comparison no mismatch."""

    def step(x, state, late):
        state["turn"] = state.get("turn", 0) + 1
        square = tf.square(x)
        held = state["b"] if state["turn"] % every == 0 else state.get("held", x)
        state["held"] = tf.tanh(held)
        return square + tf.reduce_sum(state["held"])

    compare(step)


@pytest.mark.parametrize("every", [3, 5, 7])
def test_arguments_that_are_now_one_tensor_and_now_two_are_no_mismatch(every):
    def step(x, state, late):
        one, other = state.get("held", (x, tf.cos(x)))
        total = tf.add_n([one, other, one])
        state["turn"] = state.get("turn", 0) + 1
        one = tf.sin(x)
        state["held"] = one, one if state["turn"] % every == 0 else tf.cos(x)
        return total

    compare(step)


def test_a_difference_is_found_and_told(monkeypatch, capsys):
    """A private function is patched, which nothing but a comparison can see."""
    from tensorflow.python.ops import gen_math_ops, math_ops

    monkeypatch.setattr(elisions, "_EVERY", 8)
    own = gen_math_ops.mat_mul

    def program(see):
        w, count = tf.Variable(tf.eye(3)), tf.Variable(0)
        for number, x in enumerate(batches(4, 3, steps=90)):
            count.assign_add(1)
            monkeypatch.setattr(
                gen_math_ops, "mat_mul", own if number < 40 else lambda a, b, *_, **__: a - b[:1]
            )
            y = tf.tanh(x)
            see(tf.matmul(y, w) if number < 40 or number > 60 else 0)

    assert math_ops.gen_math_ops is gen_math_ops
    eager, co = [], []
    import terra_cx

    program(lambda value: eager.append(np.asarray(value)))
    terra_cx.co_execute(quiet=True, sync_errors=False)(program)(lambda value: co.append(np.asarray(value)))
    differing = [
        number for number, (a, b) in enumerate(zip(eager, co, strict=True)) if not np.array_equal(a, b)
    ]
    assert all(61 <= number < 61 + 8 for number in differing), differing
    assert "calls of tf.matmul" in capsys.readouterr().err or not differing


def test_a_failure_of_ours_is_not_the_programs(monkeypatch):
    def broken(*args):
        raise LookupError("ours")

    monkeypatch.setattr(function_elider, "learned", broken)

    def program(see):
        state = State()
        for x in batches(4, 3):
            see(train(x, state, False))

    assert shortened(both_ways(program, failures=True)) == 0

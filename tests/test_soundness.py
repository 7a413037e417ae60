"""Programs that were written to be computed wrongly: each found a hole, or guards a place where one would be.

A program here is right if co-execution gives eager's values, variables, errors and random numbers; where giving up is
the answer, nothing need be co-executed (``co_executed=0``). What is still wrong is marked, with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import traceback

import numpy as np
import pytest
import tensorflow as tf
from truth import both_ways

import terra_cx
from terra_cx.run.conductor import Conductor
from terra_cx.run.graph_runner import GraphRunner
from terra_cx.run.handover import Handover
from terra_cx.run.skeleton import Skeleton

STEPS, LATE = 30, 24
"""Steps of a program, and the step at which something happens that was never seen before."""


def batches(size=6, width=6):
    return np.random.default_rng(3).normal(size=(STEPS, size, width)).astype("float32")


def weights(*shape):
    return tf.Variable(tf.random.normal(shape or [6, 6]))


def right(program, co_executed=3, **settings):
    """``program`` does as in eager, and at least a few regions of it were really co-executed."""
    return both_ways(program, co_executed=co_executed, **settings)


# -- numbers that were constants ------------------------------------------------------------------------------------
NUMBERS = {
    "a number": lambda late: 0.5 if late else 2.0,
    "the sign of a zero": lambda late: -0.0 if late else 0.0,
    "no number any more": lambda late: float("nan") if late else 1.0,
    "another type": lambda late: np.float64(0.25) if late else 0.25,
}


@pytest.mark.parametrize(
    "given", [lambda value: value, lambda value: tf.constant(np.asarray(value, "float32"))]
)
@pytest.mark.parametrize("what", NUMBERS)
@pytest.mark.parametrize("taped", [False, True])
def test_a_number_that_was_the_same_in_every_step_changes(what, given, taped):
    """It is a constant of the graph until then, and a feed afterwards."""

    def program(see):
        variable = weights()
        for step, x in enumerate(batches()):
            with tf.GradientTape() if taped else contextlib.nullcontext() as tape:
                number = given(NUMBERS[what](step >= LATE))
                loss = tf.reduce_sum(
                    tf.math.xdivy(tf.tanh(tf.matmul(x, variable)), number) + 1.0 / (number + 3.0)
                )
            see(loss)
            if taped:
                see(tape.gradient(loss, variable))
            variable.assign_sub(0.001 * x)
        return variable

    report = right(program, co_executed=8)
    assert sum(fallback["count"] for fallback in report["fallbacks"]) <= 2


def test_a_nan_that_is_made_anew_in_each_step():
    def program(see):
        variable = weights()
        for x in batches():
            with tf.GradientTape() as tape:
                hidden = tf.matmul(x, variable)
                loss = tf.reduce_sum(
                    tf.where(hidden > 0.0, hidden, tf.math.multiply_no_nan(hidden * float("nan"), 0.0))
                )
            variable.assign_sub(0.001 * tape.gradient(loss, variable))
            see(loss)
        return variable

    right(program, co_executed=10, fallbacks=0)


def test_a_watched_number_has_a_gradient():
    """It is guarded by value, and a tape is asked for its gradient all the same, of the second order too."""

    def program(see):
        variable = weights()
        for step, x in enumerate(batches()):
            rate = tf.constant(0.1 if step < LATE else 0.2)
            with tf.GradientTape() as outer, tf.GradientTape() as tape:
                outer.watch(rate)
                tape.watch(rate)
                loss = tf.reduce_sum(tf.sin(rate * tf.matmul(x, variable)))
                first = tape.gradient(loss, rate)
            see(first, outer.gradient(first, rate))
            variable.assign_sub(rate * x)
        return variable

    right(program, co_executed=8)


# -- what gradient code reads ----------------------------------------------------------------------------------------
GRADIENTS = {
    "axis of a sum": lambda h, k, s: tf.reduce_sum(h, axis=s % 2) * k[0],
    "axis of a product": lambda h, k, s: tf.reduce_prod(h, axis=s % 2) * k[0],
    "axis of a concatenation": lambda h, k, s: tf.concat([h, h * 2.0], s % 2)[:6, :6] * k,
    "axis of a gather": lambda h, k, s: tf.gather(h, [5, 4, 3, 2, 1, 0], axis=s % 2) * k,
    "bounds of a slice": lambda h, k, s: h[s % 4 : s % 4 + 2] * k[:2],
    "an index": lambda h, k, s: h[s % 4] * k[2],
    "tf.slice": lambda h, k, s: tf.slice(h, [s % 4, 0], [2, 6]) * k[:2],
    "a permutation": lambda h, k, s: tf.transpose(h, [s % 2, 1 - s % 2]) * k,
    "segments": lambda h, k, s: tf.math.segment_sum(h, [0, 0, 1, 1, 1 + s % 2, 1 + s % 2]) ** 2,
    "a power": lambda h, k, s: tf.pow(h, 1 + s % 3) * k,
    "a function with a parameter": lambda h, k, s: tf.nn.silu(h, beta=1.0 + s % 3) * k,
}


@pytest.mark.parametrize("what", GRADIENTS)
def test_gradient_code_reads_a_value_that_changes(what):
    def program(see):
        variable, k = weights(), tf.constant(np.arange(36, dtype="float32").reshape(6, 6))
        for step, x in enumerate(batches()):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(GRADIENTS[what](tf.matmul(x, variable), k, step))
            gradient = tape.gradient(loss, variable)
            variable.assign_sub(0.001 * gradient)
            see(gradient)
        return variable

    right(program, co_executed=0)


@pytest.mark.parametrize("power", [2, 3.0])
def test_a_raw_operand_of_an_earlier_block_in_a_gradient(power):
    def program(see):
        variable = weights()
        for x in batches():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.matmul(x, variable) ** power)
            see(loss.numpy())  # the gradient is another block
            variable.assign_sub(0.001 * tape.gradient(loss, variable))
        return variable

    right(program)


def test_a_raw_operand_after_a_branch_in_a_gradient():
    def program(see):
        variable, k = weights(), tf.ones([6, 6])
        for step, x in enumerate(batches()):
            with tf.GradientTape() as tape:
                h = tf.matmul(x, variable)
                row = h[:1] if step % 2 else h[:1] * 1.0
                loss = tf.reduce_sum(tf.broadcast_to(row, [6, 6]) * k * 2)
            gradient = tape.gradient(loss, variable)
            variable.assign_sub(0.001 * gradient)
            see(gradient)
        return variable

    right(program)


@pytest.mark.parametrize("begin", [0, LATE - 4])
def test_a_copy_to_a_device_under_a_tape(begin):
    def program(see):
        variable = weights()
        for step, x in enumerate(batches()):
            with tf.GradientTape() as tape:
                h = tf.matmul(x, variable)
                if step >= begin:
                    h = h.cpu()
                loss = tf.reduce_sum(h * h)
            gradient = tape.gradient(loss, variable)
            variable.assign_sub(0.001 * gradient)
            see(gradient)
        return variable

    right(program, co_executed=0)


class Times:
    """A gradient function that is an object, and reads what the object holds."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, upstream):
        return upstream * self.scale[0]


FROM_TEXT = eval("lambda scale: lambda upstream: upstream * scale[0]")
BACKWARD = {
    "a partial of a library function": lambda scale: functools.partial(tf.multiply, scale[0]),
    "an object": Times,
    "a method": lambda scale: Times(scale).__call__,
    "made from text": FROM_TEXT,
}


@pytest.mark.parametrize("begin", [0, LATE - 4])
@pytest.mark.parametrize("what", BACKWARD)
def test_a_custom_gradient_that_is(what, begin):
    def program(see):
        variable, scale = weights(), [None]

        @tf.custom_gradient
        def scaled(x):
            return tf.identity(x), BACKWARD[what](scale)

        for step, x in enumerate(batches()):
            scale[0] = tf.constant(float(step))
            with tf.GradientTape() as tape:
                h = tf.matmul(x, variable)
                loss = tf.reduce_sum(scaled(h) if step >= begin else h)
            gradient = tape.gradient(loss, variable)
            variable.assign_sub(0.001 * gradient)
            see(gradient)
        return variable

    right(program, co_executed=0)


def test_a_custom_gradient_of_the_same_name_and_ops():
    """TensorFlow's own ``silu`` gives way to a function that looks like it and has another gradient."""

    def program(see):
        variable = weights()

        @tf.custom_gradient
        def swish_impl(features, beta):
            return features * tf.sigmoid(beta * features), lambda upstream: (upstream * 3.0, None)

        for step, x in enumerate(batches()):
            with tf.GradientTape() as tape:
                h = tf.matmul(x, variable)
                beta = tf.constant(1.0)
                loss = tf.reduce_sum(tf.nn.silu(h, beta) if step < LATE else swish_impl(h, beta))
            gradient = tape.gradient(loss, variable)
            variable.assign_sub(0.001 * gradient)
            see(gradient)
        return variable

    right(program)


def test_loops_of_varying_length_with_slices_under_a_tape():
    def program(see):
        w, u = tf.Variable(0.3 * tf.random.normal([6, 6])), tf.Variable(0.3 * tf.random.normal([6, 6]))
        for step, x in enumerate(batches()):
            x = tf.constant(x)
            with tf.GradientTape() as tape:
                h, loss = tf.zeros([1, 6]), 0.0
                for i in range(2 + step % 3):
                    h = tf.tanh(tf.matmul(h, w) + tf.matmul(x[i : i + 1], u))
                    loss += tf.reduce_sum(h) if i % 2 else tf.reduce_sum(h * h)
            gradients = tape.gradient(loss, [w, u])
            w.assign_sub(0.01 * gradients[0])
            u.assign_sub(0.01 * gradients[1])
            see(loss, *gradients)
        return w, u

    right(program, co_executed=0)


# -- tapes -----------------------------------------------------------------------------------------------------------
def test_tapes_asked_many_steps_later():
    def program(see):
        variable, tapes = weights(), []
        for step, x in enumerate(batches()):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.matmul(x, variable) ** 2)
            tapes = [*tapes[-11:], (tape, loss)]
            variable.assign_sub(0.001 * tf.matmul(x, variable))
            if step == LATE:
                see([old.gradient(value, variable) for old, value in tapes])
        return variable

    right(program)


def test_a_tape_asked_after_the_loop():
    def program(see):
        variable = weights()
        for x in batches():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.matmul(x, variable) ** 2)
            variable.assign_sub(0.001 * tf.matmul(x, variable))
        see(tape.gradient(loss, variable))
        return variable

    right(program)


def test_a_tape_asked_after_the_session():
    def program():
        tf.keras.utils.set_random_seed(1)
        variable = weights()
        for x in batches():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.matmul(x, variable) ** 2)
            variable.assign_sub(0.001 * tf.matmul(x, variable))
        return tape, loss, variable

    results = []
    for run in (program, terra_cx.co_execute(quiet=True)(program)):
        tape, loss, variable = run()
        results.append(tape.gradient(loss, variable).numpy())
    np.testing.assert_array_equal(*results)


def test_a_tape_asked_after_its_anchor_was_given_up():
    def program(see):
        variable, kept = weights(), None
        for step, x in enumerate(np.concatenate([batches(), batches()])):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.matmul(x, variable) ** 2)
            variable.assign_sub(0.001 * tf.matmul(x, variable))
            if step == 21:
                kept = tape, loss
            if step > 23:  # never the same again
                see(tf.zeros([step, 2]) + tf.reduce_sum(variable))
        tape, loss = kept
        see(tape.gradient(loss, variable))
        return variable

    right(program)


def test_a_tape_of_one_loop_asked_in_another():
    def program(see):
        variable, total = weights(), tf.Variable(0.0)
        for epoch in range(6):
            for x in batches()[:14]:
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(tf.matmul(x, variable) ** 2)
                variable.assign_sub(0.001 * tf.matmul(x, variable))
            for index, x in enumerate(batches()[14:24]):
                total.assign_add(tf.reduce_sum(tf.matmul(x, variable)))
                if index == 0 and epoch == 5:
                    see(tape.gradient(loss, variable))
            see(total)
        return variable

    right(program)


def test_forward_mode():
    def program(see):
        variable = weights()
        for x in batches():
            x = tf.constant(x)
            with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
                y = tf.matmul(x, variable) * 2.0
            see(accumulator.jvp(y))
            variable.assign_sub(0.001 * y)
        return variable

    right(program, co_executed=0)


def test_a_function_with_a_tape_inside_is_traced_in_the_step():
    def program(see):
        variable = tf.Variable(tf.random.normal([3, 3]))
        for x in batches(3, 3)[:12]:
            with tf.GradientTape(persistent=True) as tape:
                y = tf.sin(tf.matmul(x, variable))
            jacobian = tape.jacobian(y, variable)
            see(jacobian)
            variable.assign_sub(0.001 * tf.reduce_sum(jacobian, [0, 1]))
        return variable

    right(program, co_executed=0)


def test_a_tf_function_is_traced_anew_in_a_late_step():
    def program(see):
        variable = weights()

        @tf.function
        def step_of(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.matmul(x, variable) ** 2)
            variable.assign_sub(0.001 * tape.gradient(loss, variable))
            return loss

        for step, x in enumerate(batches()):
            variable.assign_sub(0.001 * tf.sin(variable))
            see(step_of(x[: 4 if step == LATE else 6]))
        return variable

    right(program)


# -- random numbers --------------------------------------------------------------------------------------------------
def test_a_draw_of_another_shape():
    def program(see):
        variable = weights()
        for step, x in enumerate(batches()):
            noise = tf.random.normal([5 if step >= LATE else 4, 6])
            see(tuple(noise.shape), tf.reduce_sum(noise))
            variable.assign_sub(0.01 * tf.matmul(x, variable))
        return variable

    right(program)


@pytest.mark.parametrize("how", ["categorical", "shuffle"])
def test_a_draw_from_a_computed_tensor(how):
    def program(see):
        variable = weights()
        for x in batches():
            y = tf.matmul(x, variable)
            drawn = (
                tf.cast(tf.random.categorical(y, 6), tf.float32)
                if how == "categorical"
                else tf.random.shuffle(y, seed=3)
            )
            variable.assign_sub(0.001 * drawn)
            see(drawn)
        return variable

    right(program, co_executed=0 if how == "categorical" else 3)


def test_a_draw_from_a_buffer_that_is_used_again():
    def program(see):
        variable, buffer = weights(), np.zeros([6, 6], "float32")
        for x in batches():
            buffer[:] = x
            drawn = tf.random.shuffle(buffer, seed=3)
            buffer[:] = -1
            variable.assign_sub(0.01 * drawn)
            see(drawn)
        return variable

    right(program)


def test_seeds_set_again_between_draws():
    def program(see):
        variable, drawn = weights(), []
        for _ in range(STEPS):
            tf.random.set_seed(20)
            drawn.append(tf.random.normal([6, 6], seed=4))
            tf.random.set_seed(20)
            drawn.append(tf.random.normal([6, 6], seed=4))
            variable.assign_sub(0.01 * drawn[-1])
        see(drawn)
        return variable

    right(program, co_executed=0)


def test_a_draw_that_fails():
    def program(see):
        variable, count = weights(), tf.Variable(0.0)
        for step, x in enumerate(batches()):
            try:
                count.assign_add(1.0)
                see(tf.random.uniform([3], 0, 0 if step == LATE else 10, dtype=tf.int32))
                variable.assign_sub(0.01 * tf.matmul(x, variable))
            except tf.errors.InvalidArgumentError:
                see("caught")
            see(count.numpy())
        return variable

    right(program)


# -- errors ----------------------------------------------------------------------------------------------------------
REFUSED = {
    "an index": lambda y, i: y[i],
    "tf.slice": lambda y, i: tf.slice(y, [i, 0], [1, 3]),
    "a gather": lambda y, i: tf.gather(y, i),
    "an axis": lambda y, i: tf.cumsum(y, axis=i % 2 if i < 9 else i),
    "a reversal": lambda y, i: tf.reverse(y, [i % 2 if i < 9 else i]),
    "a reshape": lambda y, i: tf.reshape(y, tf.constant([6, 6] if i % 2 else [-1, 9] if i < 9 else [7, 2])),
    "an integer division": lambda y, i: tf.constant(7) // tf.constant(0 if i > 9 else i + 1),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_value_undoes_no_effect_and_repeats_none(what):
    def program(see):
        variable, count = weights(), tf.Variable(0.0)
        for step, x in enumerate(batches()):
            try:
                count.assign_add(1.0)
                made = REFUSED[what](tf.matmul(x, variable), 99 if step == LATE else step % 5)
                variable.assign_sub(0.001 * tf.matmul(x, variable))
                see(made)
            except (tf.errors.InvalidArgumentError, IndexError) as error:
                see("caught", type(error).__name__)
            see(count.numpy())
        return variable

    right(program)


def test_a_write_that_is_refused():
    def program(see):
        variable, three, count = weights(), tf.Variable(tf.zeros([3])), tf.Variable(0.0)
        for step, x in enumerate(batches()):
            mask = np.roll(np.arange(6) < (2 if step == LATE else 3), step).astype("int64")
            y = tf.matmul(x, variable)[:, 0]
            try:
                count.assign_add(1.0)
                three.assign_add(tf.gather(y, tf.where(tf.constant(mask))[:, 0]))
            except tf.errors.InvalidArgumentError:
                see("caught")
            see(count.numpy(), three.numpy())
        return variable

    right(program)


def failing_step(bad, leave):
    """A gather that fails in step ``bad``, and the way in which the program meets it."""

    def program(see):
        variable, count = weights(6, 3), tf.Variable(0)

        def step_of(step):
            count.assign_add(1)
            row = tf.gather(variable, tf.constant(99 if step == bad else step % 6))
            variable.assign_sub(0.1 * (variable - row))

        leave(see, step_of)
        see(count.numpy(), variable.numpy())
        return variable

    return program


def try_around_the_loop(see, step_of):
    try:
        for step in range(STEPS):
            step_of(step)
    except tf.errors.InvalidArgumentError:
        see("caught")


@pytest.mark.parametrize("bad", [LATE, STEPS - 1])
def test_a_try_around_the_loop(bad):
    right(failing_step(bad, try_around_the_loop))


def test_an_error_that_is_suppressed():
    def leave(see, step_of):
        for step in range(STEPS):
            with contextlib.suppress(tf.errors.InvalidArgumentError):
                step_of(step)

    right(failing_step(LATE, leave))


def test_the_first_error_decides_which_handler_runs():
    def leave(see, step_of):
        for step in range(STEPS):
            try:
                step_of(step)
                if step % 4 == 0:
                    raise KeyError(step)
            except KeyError:
                see("key")
            except tf.errors.InvalidArgumentError:
                see("kernel")

    assert LATE % 4 == 0
    right(failing_step(LATE, leave))


class Swallows:
    """A context manager of the user's that swallows kernel errors and notes what it saw."""

    def __init__(self, see):
        self.see = see

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.see("exit", kind.__name__ if kind else None)
        return kind is not None and issubclass(kind, tf.errors.OpError)


@contextlib.contextmanager
def swallowing(see):
    try:
        yield
        see("commit")
    except tf.errors.InvalidArgumentError:
        see("roll back")


@contextlib.contextmanager
def tidying(see, count):
    try:
        yield
    finally:
        count.assign_add(100)
        see("tidy")


def managed(see, step_of, step, count):
    with Swallows(see):
        step_of(step)


def managed_by_a_generator(see, step_of, step, count):
    with swallowing(see):
        step_of(step)


def finally_counts(see, step_of, step, count):
    with contextlib.suppress(tf.errors.InvalidArgumentError):
        try:
            step_of(step)
        finally:
            count.assign_add(10)


def tidied_by_a_generator(see, step_of, step, count):
    with contextlib.suppress(tf.errors.InvalidArgumentError), tidying(see, count):
        step_of(step)


def raises_of_its_own(see, step_of, step, count):
    """In every fourth step, the bad one too, an exception of the program's own follows the op."""
    try:
        with contextlib.suppress(KeyError):
            step_of(step)
            if step % 4 == 0:
                raise KeyError(step)
        see("not suppressed")
    except tf.errors.InvalidArgumentError as error:
        see("kernel", traceback.extract_tb(error.__traceback__)[0].name)


def expected_by_a_library(see, step_of, step, count):
    if step == LATE:
        with pytest.raises(tf.errors.InvalidArgumentError):
            step_of(step)
    else:
        step_of(step)


def caught_where_a_step_before_failed(see, step_of, step, count):
    """What surrounds the op catches its error; a `try` that comes later does not."""
    try:
        step_of(step)
    except tf.errors.InvalidArgumentError:
        see("the right one")
    try:
        see(count.numpy())
    except tf.errors.InvalidArgumentError:
        see("the wrong one")


def from_a_returning_function(see, step_of, step, count):
    def inner():
        try:
            return step_of(step)
        except tf.errors.InvalidArgumentError:
            return "caught"

    see(inner() == "caught")


LEAVES = [
    managed,
    managed_by_a_generator,
    finally_counts,
    tidied_by_a_generator,
    raises_of_its_own,
    expected_by_a_library,
    caught_where_a_step_before_failed,
    from_a_returning_function,
]


@pytest.mark.parametrize("mode", ["co", "lazy"])
@pytest.mark.parametrize("leave", LEAVES, ids=lambda function: function.__name__)
def test_an_error_meets_what_guards_its_op(leave, mode):
    def program(see):
        variable, count = weights(6, 3), tf.Variable(0)

        def step_of(step):
            count.assign_add(1)
            row = tf.gather(variable, tf.constant(99 if step == LATE else step % 6))
            variable.assign_sub(0.1 * (variable - row))

        for step in range(STEPS):
            leave(see, step_of, step, count)
        see(count.numpy(), variable.numpy())
        return variable

    right(program, mode=mode)


def passed_by_a_try(see, count):
    try:
        see("try", count.numpy())
    except tf.errors.InvalidArgumentError:
        see("the wrong one")


def passed_by_a_finally(see, count):
    try:
        see("try", count.numpy())
    finally:
        count.assign_add(1000)


def passed_by_a_manager(see, count):
    with Swallows(see):
        see(count.numpy())


def passed_by_a_generator(see, count):
    with swallowing(see):
        see(count.numpy())


@pytest.mark.parametrize(
    "guard", [passed_by_a_try, passed_by_a_finally, passed_by_a_manager, passed_by_a_generator]
)
def test_an_error_passes_what_begins_after_its_op(guard):
    """The error surfaces where a value is read, inside a guarded body that began after the op had failed."""
    left = []

    def program(see):
        variable, count = weights(6, 3), tf.Variable(0)
        left.append(count)
        for step in range(STEPS):
            row = tf.gather(variable, tf.constant(99 if step == LATE else step % 6))
            variable.assign_sub(0.1 * (variable - row))
            count.assign_add(1)
            guard(see, count)
        return variable

    right(program)
    assert left[0].numpy() == left[1].numpy()


def test_what_cannot_catch_an_ops_error_does_not_wait(monkeypatch):
    """`next` in a `try`, tapes and locks in the step: none of them is a barrier, though a gather is in flight."""
    lock, waits, wait = threading.Lock(), [], Handover.wait
    monkeypatch.setattr(
        Handover, "wait", lambda self, run, where: (waits.append(where), wait(self, run, where))
    )

    def program(see):
        variable, rows = weights(6, 3), iter(range(STEPS))
        while True:
            try:
                row = next(rows)
            except StopIteration:
                break
            with lock, tf.GradientTape() as tape, tf.name_scope("step"):
                loss = tf.reduce_sum(tf.gather(variable, [row % 6]) ** 2)
            variable.assign_sub(0.1 * tf.convert_to_tensor(tape.gradient(loss, variable)))
        return variable

    function = terra_cx.co_execute(quiet=True)(program)
    function(None)
    session = function.last_session
    assert session.report()["regions"]["co_executed"] >= 5
    assert waits
    assert "try" not in waits
    right(program)


def test_a_finaliser_swallows_no_error_of_the_programs():
    class Closes:
        def __del__(self):
            try:
                self.closed = True
            except Exception:
                raise AssertionError from None

    right(failing_step(LATE, lambda see, step_of: [(step_of(step), Closes()) for step in range(STEPS)]))


def test_errors_at_once_if_asked_for():
    def program(see):
        variable, done = weights(6, 3), []
        try:
            for step in range(STEPS):
                row = tf.gather(tf.sin(variable), tf.constant(99 if step == LATE else step % 6))
                done.append(step)
                variable.assign_sub(0.1 * (variable - row))
        except tf.errors.InvalidArgumentError:
            see("caught")
        see(done)
        return variable

    right(program, sync_errors=True)


# -- variables that others read --------------------------------------------------------------------------------------
def test_a_thread_reads_what_was_just_written():
    def program(see):
        variable, seen = weights(), []
        for x in batches():
            variable.assign_sub(0.001 * tf.matmul(x, variable))
            thread = threading.Thread(target=lambda: seen.append(variable.numpy()))
            thread.start()
            thread.join()
        see(seen)
        return variable

    right(program)


def test_a_thread_takes_a_gradient_of_a_placeholder():
    def program(see):
        variable, seen = weights(), []

        def work(y):
            with tf.GradientTape() as tape:
                tape.watch(y)
                z = y * y
            seen.append(tape.gradient(z, y))

        for x in batches():
            y = tf.matmul(x, variable)
            variable.assign_sub(0.001 * y)
            thread = threading.Thread(target=work, args=(y,))
            thread.start()
            thread.join()
        see(seen)
        return variable

    right(program)


def test_a_thread_reads_a_placeholder_of_the_open_block():
    def program(see):
        variable, count = weights(), tf.Variable(0.0)
        for x in batches():
            y, seen = tf.matmul(x, variable), []
            thread = threading.Thread(target=lambda y=y, seen=seen: seen.append(y.numpy()))
            thread.start()
            thread.join()
            count.assign_add(1.0)
            variable.assign_sub(0.001 * y)
            see(seen)
        return variable, count

    right(program)


def test_a_function_reads_what_was_just_written():
    def program(see):
        variable = weights()
        total = tf.function(lambda: tf.reduce_sum(variable))
        for x in batches():
            variable.assign_sub(0.001 * tf.matmul(x, variable))
            see(total())
        return variable

    right(program)


def test_a_file_that_is_written_again(tmp_path):
    path = str(tmp_path / "step")

    def program(see):
        variable, texts = weights(), []
        for step in range(STEPS):
            tf.io.write_file(path, str(step))
            texts.append(tf.io.read_file(path))
            with open(path, "w") as file:
                file.write("something else")
            variable.assign_sub(0.01 * variable)
        see(texts)
        return variable

    right(program)


# -- equal is not the same -------------------------------------------------------------------------------------------
def test_the_sign_of_a_zero_attribute():
    def program(see):
        variable = weights()
        for step, x in enumerate(batches()):
            see(tf.nn.leaky_relu(tf.matmul(x, variable), alpha=-0.0 if step >= LATE else 0.0))
            variable.assign_sub(0.001 * tf.matmul(x, variable))
        return variable

    right(program)


def test_a_variable_that_is_an_argument_for_the_first_time():
    def program(see):
        variable = weights()
        for step, x in enumerate(batches()):
            variable.assign_sub(0.001 * tf.matmul(x, variable))
            if step >= LATE:
                see(tf.reshape(variable, [36]))
        return variable

    right(program)


def test_tensors_that_become_one_and_one_that_becomes_two():
    for late in (True, False):

        def program(see, late=late):
            variable = weights()
            for step, x in enumerate(batches()):
                a = tf.constant(x)
                b = a if (step >= LATE) is late else tf.constant(x * 2)
                with tf.GradientTape() as tape:
                    tape.watch(a)
                    loss = tf.reduce_sum(a * b * tf.matmul(a, variable))
                gradient, of_a = tape.gradient(loss, [variable, a])
                variable.assign_sub(0.001 * gradient)
                see(of_a)
            return variable

        right(program)


def test_variables_that_change_places():
    def program(see):
        a, b = weights(), weights()
        for step, x in enumerate(batches()):
            if step % 7 == 3:
                a, b = b, a
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.matmul(x, a) * tf.matmul(x, b) * 2.0)
            of_a, of_b = tape.gradient(loss, [a, b])
            a.assign_sub(0.001 * of_a)
            b.assign_sub(0.002 * of_b)
            see(loss)
        return a, b

    right(program)


def test_reads_between_writes():
    def program(see):
        variable, seen = weights(), []
        for x in batches():
            seen.append(variable.read_value())
            variable.assign_add(x)
            seen.append(variable.read_value())
            variable.assign(variable * 0.9)
            seen.append(variable + 0.0)
        see(seen)
        return variable

    right(program)


# -- ops that arrive inside the hook ---------------------------------------------------------------------------------
@contextlib.contextmanager
def whenever_an_op_is_committed(effect):
    """Run ``effect`` in the middle of the skeleton's work, as a finaliser or a signal handler may."""

    def profile(frame, event, arg):
        if event == "call" and frame.f_code is Skeleton.advance.__code__:
            sys.setprofile(None)
            try:
                effect()
            finally:
                sys.setprofile(profile)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_a_finaliser_uses_a_placeholder_of_the_open_block():
    def program(see):
        variable, count = weights(), tf.Variable(0.0)
        for x in batches():
            y = tf.matmul(x, variable)
            with whenever_an_op_is_committed(lambda y=y: y + 1.0):
                z = tf.sin(y) * 2.0
                count.assign_add(1.0)
                z = tf.cos(z) + 1.0
                count.assign_add(1.0)
            variable.assign_sub(0.001 * (z * z + z))
        return variable, count

    right(program)


def test_a_finaliser_reads_what_was_just_written():
    def program(see):
        variable, count, seen = weights(), tf.Variable(0), []
        for issued, x in enumerate(batches(), 1):
            count.assign_add(1)
            with whenever_an_op_is_committed(lambda issued=issued: seen.append(int(count.numpy()) == issued)):
                y = tf.sin(tf.matmul(x, variable))
            variable.assign_sub(0.001 * y)
        see(all(seen))
        return variable, count

    right(program)


def test_an_interrupt_in_the_middle_of_an_op():
    """The op was not answered, so the program asks again; nothing is lost or done twice by that."""

    class Interrupt(BaseException):
        pass

    def program(see):
        variable, count, armed = weights(), tf.Variable(0.0), []

        def interrupt():
            if armed:
                armed.pop()
                raise Interrupt

        def again(function, *args):
            while True:
                try:
                    return function(*args)
                except Interrupt:
                    pass

        for step, x in enumerate(batches()):
            with whenever_an_op_is_committed(interrupt):
                y = again(tf.matmul, x, variable.read_value())
                if step > 20:
                    armed.append(True)
                y = again(tf.sin, y)
                y = again(tf.add, y, x)
                armed.clear()
                count.assign_add(1.0)
            see(y)
            variable.assign_sub(0.001 * y)
        return variable, count

    right(program)


def test_a_finaliser_runs_an_op_on_the_graph_runners_thread(monkeypatch):
    def deadlock(self, where):
        raise AssertionError(f"a deadlock: {where}")

    compute = GraphRunner._compute
    made = []

    def finalising(self, run):
        made.append(tf.ones([2]) + 1.0)
        compute(self, run)

    monkeypatch.setattr(Conductor, "_stalled", deadlock)
    monkeypatch.setattr(GraphRunner, "_compute", finalising)

    def program(see):
        variable = weights()
        for x in batches():
            variable.assign_sub(0.001 * tf.matmul(x, variable))
        return variable

    right(program, watchdog=0.5)
    assert made

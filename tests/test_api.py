"""The Python interface: decorator, context manager with `region`, settings, and what it leaves behind."""

from __future__ import annotations

import builtins
import gc
import inspect
import sys
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context

import terra_cx
from terra_cx import session as sessions
from terra_cx.errors import ConfigError, TerraError
from terra_cx.observe.anchors import BARRIER

STEPS = 50


def train(steps=STEPS, see=lambda loss: None):
    variable = tf.Variable(tf.ones([3, 3]))
    for step in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.matmul(variable, tf.fill([3, 3], 0.1 * step))))
        variable.assign_sub(0.01 * tape.gradient(loss, variable))
        see(loss)
    return variable


def marked(steps=STEPS):
    """As `train`, but it runs already when the session begins: the step is marked by hand."""
    variable = tf.Variable(tf.ones([3, 3]))
    for step in range(steps):
        terra_cx.region()
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.matmul(variable, tf.fill([3, 3], 0.1 * step))))
        variable.assign_sub(0.01 * tape.gradient(loss, variable))
    return variable


@pytest.fixture(scope="module")
def expected():
    return train().numpy()


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    interval, functions = sys.getswitchinterval(), (sys.getswitchinterval, sys.setswitchinterval)
    finders, threads = list(sys.meta_path), set(threading.enumerate())
    yield
    assert sessions.current() is None
    assert sys.getswitchinterval() == interval
    assert (sys.getswitchinterval, sys.setswitchinterval) == functions
    assert sys.meta_path == finders
    assert set(threading.enumerate()) <= threads
    assert sys.gettrace() is None or "terra" not in repr(sys.gettrace())
    assert pywrap_tfe.TFE_Py_TapeSetIsEmpty()


# -- the decorator ---------------------------------------------------------------------------------------------------
def test_decorated(expected):
    function = terra_cx.co_execute()(train)
    np.testing.assert_array_equal(function(), expected)
    report = function.last_session.report()
    assert report["regions"]["co_executed"] > STEPS // 2
    assert report["internal_errors"] == 0
    assert report["mode"] == "co"


def test_each_call_is_a_session_of_its_own(expected):
    function = terra_cx.co_execute()(train)
    function()
    first = function.last_session
    np.testing.assert_array_equal(function(), expected)
    assert function.last_session is not first
    assert function.last_session.report()["regions"]["co_executed"] > STEPS // 2


def test_the_decorated_function_looks_like_the_function():
    def documented(a, b: int = 2, *, c=3):
        """Words."""

    decorated = terra_cx.co_execute()(documented)
    assert decorated.__name__ == "documented"
    assert decorated.__doc__ == "Words."
    assert decorated.__wrapped__ is documented
    assert inspect.signature(decorated) == inspect.signature(documented)


def test_arguments_defaults_keywords_and_closures():
    base = 100

    @terra_cx.co_execute()
    def function(a, b=2, *rest, c=3, **more):
        nonlocal base
        base += 1
        return a, b, rest, c, more, base

    assert function(1) == (1, 2, (), 3, {}, 101)
    assert function(1, 5, 6, c=7, d=8) == (1, 5, (6,), 7, {"d": 8}, 102)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        function()


def test_methods_and_super():
    class Base:
        def scale(self):
            return 2.0

    class Trainer(Base):
        def __init__(self):
            self.calls = 0
            self.variable = tf.Variable(tf.ones([2]))

        @terra_cx.co_execute()
        def fit(self):
            for _ in range(STEPS):
                self.calls += 1
                self.variable.assign_add(tf.fill([2], super().scale()))
            return self.variable.numpy().tolist()

    trainer = Trainer()
    assert trainer.fit() == [1.0 + 2.0 * STEPS] * 2
    assert trainer.calls == STEPS


def test_functions_defined_inside_and_in_the_module_are_found(expected):
    @terra_cx.co_execute()
    def inside():
        def loop():
            return train.__code__ and train()

        return loop()

    np.testing.assert_array_equal(inside(), expected)
    assert inside.last_session.report()["regions"]["co_executed"] > STEPS // 2


def test_what_it_raises_passes_and_the_session_ends():
    @terra_cx.co_execute()
    def fails():
        train(12)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fails()
    with pytest.raises(KeyError, match="mine"):
        fails()


def test_an_error_of_the_last_step_is_raised_by_the_call():
    @terra_cx.co_execute()
    def fails():
        variable = tf.Variable(tf.ones([3]))
        for step in range(STEPS):
            variable.assign_add(tf.gather(tf.ones([3, 3]), tf.constant(9 if step == STEPS - 1 else 0)))

    with pytest.raises(tf.errors.InvalidArgumentError, match="9 is not in"):
        fails()


@pytest.mark.parametrize(
    "thing", [train.__name__, print, STEPS, type("Callable", (), {"__call__": lambda self: 1})()]
)
def test_only_functions_can_be_decorated(thing):
    with pytest.raises(TypeError, match="co_execute decorates functions, not"):
        terra_cx.co_execute()(thing)


def test_what_it_returned_is_usable_afterwards(expected):
    losses = []
    variable = terra_cx.co_execute()(train)(see=losses.append)
    gc.collect()
    assert len(losses) == STEPS
    values = [float(loss) for loss in losses]
    plain = []
    train(see=plain.append)
    assert values == [float(loss) for loss in plain]
    np.testing.assert_array_equal(variable + losses[-1] * 0.0, expected)
    assert tf.concat([losses[0][None], tf.ones([1])], 0).shape == (2,)


# -- the context manager ---------------------------------------------------------------------------------------------
def test_region_marks_a_step(expected):
    with terra_cx.co_execute() as session:
        variable = marked()
        assert sessions.current() is session
    np.testing.assert_array_equal(variable, expected)
    report = session.report()
    assert report["regions"]["co_executed"] > STEPS // 2
    assert report["regions"]["total"] == STEPS
    assert "test_api.py" in report["anchors"][0]["line"]


def test_region_without_a_session_does_nothing(expected):
    assert terra_cx.region() is None
    np.testing.assert_array_equal(marked(), expected)


def test_region_in_another_thread_does_nothing(expected):
    results = []
    with terra_cx.co_execute() as session:
        thread = threading.Thread(target=lambda: results.append(marked().numpy()))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(results[0], expected)
    assert session.report()["regions"]["co_executed"] == 0


def test_two_marks_are_two_steps():
    a, b = tf.Variable(0.0), tf.Variable(0.0)
    with terra_cx.co_execute() as session:
        for _ in range(20):
            terra_cx.region()
            a.assign_add(tf.sin(a) + 1.0)
        for _ in range(20):
            terra_cx.region()
            b.assign_add(tf.cos(b) + 1.0)
    plain_a, plain_b = tf.Variable(0.0), tf.Variable(0.0)
    for _ in range(20):
        plain_a.assign_add(tf.sin(plain_a) + 1.0)
        plain_b.assign_add(tf.cos(plain_b) + 1.0)
    assert (a.numpy(), b.numpy()) == (plain_a.numpy(), plain_b.numpy())
    assert len({anchor["line"] for anchor in session.report()["anchors"]}) == 2


def test_an_exception_inside_passes_and_the_session_ends():
    def fails():
        with terra_cx.co_execute():
            marked(12)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fails()


def test_an_error_is_caught_where_it_happens_though_no_code_has_probes():
    def steps():
        table, counted, caught = tf.Variable(tf.ones([3])), tf.Variable(0), []
        for step in range(STEPS):
            terra_cx.region()
            try:
                counted.assign_add(1)
                table.assign_add(tf.fill([3], tf.gather(table, tf.constant(9 if step == 40 else step % 3))))
                counted.assign_add(1)
            except tf.errors.InvalidArgumentError:
                caught.append(step)
        return table.numpy().tolist(), counted.numpy(), caught

    with terra_cx.co_execute() as session:
        found = steps()
    assert found == steps()
    assert found[2] == [40]
    assert session.report()["regions"]["co_executed"] > STEPS // 2


def test_what_lies_between_two_ops_that_may_fail_is_compiled():
    def steps():
        table = tf.Variable(tf.random.stateless_normal([3, 2], (1, 2)))
        for step in range(STEPS):
            terra_cx.region()
            row = tf.sin(tf.gather(table, tf.constant(step % 3)))
            column = tf.cos(tf.gather(table, tf.constant(step % 2), axis=1))
            table.assign_sub(0.1 * tf.tensordot(column, row, 0))
        return table.numpy().tolist()

    with terra_cx.co_execute() as session:
        found = steps()
    assert found == steps()
    runner = session.report()["runner"]
    # Pieces that were no block ran op by op, for ever.
    assert runner["compiled_runs"] > 2 * runner["eager_runs"]


def test_values_made_inside_are_usable_outside():
    with terra_cx.co_execute():
        variable = tf.Variable(tf.ones([2]))
        for _ in range(STEPS):
            terra_cx.region()
            last = tf.sin(variable)
            variable.assign_add(last)
    np.testing.assert_array_equal(last * 1.0, last.numpy())
    assert isinstance(last, tf.Tensor)


def test_the_report_stays_readable_and_is_of_the_past():
    with terra_cx.co_execute() as session:
        marked()
    first = session.report()
    marked()
    assert session.report() == first


# -- settings --------------------------------------------------------------------------------------------------------
def test_an_unknown_setting_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match="warmpu"), terra_cx.co_execute(warmpu=3):
        pass
    with pytest.raises(ConfigError, match="warmpu"):
        terra_cx.co_execute(warmpu=3)(train)()


BAD = [("mode", "fast"), ("run_ahead", 0), ("run_ahead", "many"), ("watchdog", -1), ("max_nodes", 0)]


@pytest.mark.parametrize(("setting", "value"), BAD)
def test_a_bad_value_is_an_error_that_names_the_setting(setting, value):
    with pytest.raises(ConfigError, match=setting.replace("_", ".")), terra_cx.co_execute(**{setting: value}):
        pass


@pytest.mark.parametrize("settings", [{"mode": "eager"}, {"disable": True}])
def test_switched_off(settings, expected):
    codes = {thing: thing.__code__ for thing in globals().values() if inspect.isfunction(thing)}
    try:
        function = terra_cx.co_execute(**settings)(train)
        np.testing.assert_array_equal(function(), expected)
        assert function.last_session.report()["regions"]["total"] == 0
        assert all(thing.__code__ is code for thing, code in codes.items())
    finally:
        for thing, code in codes.items():
            thing.__code__ = code


@pytest.mark.parametrize("mode", ["trace", "lazy", "co"])
def test_modes(mode, expected):
    function = terra_cx.co_execute(mode=mode)(train)
    np.testing.assert_array_equal(function(), expected)
    regions = function.last_session.report()["regions"]
    assert (regions["co_executed"] > 0) == (mode != "trace")
    assert regions["traced"] > 0


# -- one at a time ---------------------------------------------------------------------------------------------------
def test_sessions_do_not_nest():
    with terra_cx.co_execute() as session:
        with pytest.raises(TerraError, match="a session is started already"), terra_cx.co_execute():
            pass
        with pytest.raises(TerraError, match="a session is started already"):
            terra_cx.co_execute()(train)()
        assert sessions.current() is session
    with terra_cx.co_execute():
        pass


def outlives_its_session():
    """A function that was defined, and so given probes, inside a decorated one."""

    @terra_cx.co_execute()
    def makes():
        def loop():
            variable = tf.Variable(0.0)
            for _ in range(STEPS):
                variable.assign_add(1.0)
            return variable.numpy()

        assert loop() == STEPS
        return loop

    return makes()


def test_probes_of_a_finished_session_do_nothing():
    loop = outlives_its_session()
    assert loop() == STEPS
    assert getattr(builtins, BARRIER)() is None


def test_probes_of_an_earlier_session_are_none_of_a_later_ones():
    loop = outlives_its_session()
    with terra_cx.co_execute() as session:
        assert loop() == STEPS
    assert session.report()["internal_errors"] == 0


def test_a_session_that_is_over_is_freed_and_so_are_its_graphs():
    """A notebook has many sessions in one process."""

    def functions():
        """Not those that TensorFlow makes of eager ops."""
        return {name for name in context.context().list_function_names() if "__wrapped__" not in name}

    before = functions()
    with terra_cx.co_execute(quiet=True) as session:
        variable = marked()
    assert session.report()["regions"]["co_executed"] > 0
    assert functions() - before
    ended = weakref.ref(session)
    del session
    gc.collect()
    assert ended() is None
    assert functions() <= before
    assert np.isfinite(variable.numpy()).all()

"""Sessions of TensorFlow's profiler see what was issued before they begin and end as done."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.profiler.internal import _pywrap_profiler

import terra_cx
from terra_cx.tf import native, profiler_sessions

STEPS = 60


@pytest.mark.parametrize("pace", ["overlapped", "turns"])
def test_all_that_was_issued_has_run(monkeypatch, pace):
    variable = tf.Variable(np.zeros([300, 300], "float32"))
    seen = []

    class Session:
        """Looks at the variable behind everybody's back."""

        def look(self, *args):
            value = native.run_fast("ReadVariableOp", None, [variable.handle, "dtype", tf.float32])
            seen.append(float(value[0, 0]))

        start = stop = export_to_tb = look

    monkeypatch.setattr(_pywrap_profiler, "ProfilerSession", Session)

    @terra_cx.co_execute(pace=pace)
    def program():
        ones = tf.ones([300, 300])
        for step in range(STEPS):
            if step in (30, 40):
                tf.profiler.experimental.start("nowhere")
            variable.assign_add(tf.matmul(ones, ones) / 300.0)
            if step in (32, 44):
                tf.profiler.experimental.stop()

    program()
    assert seen == [30.0, 33.0, 40.0, 45.0]
    assert program.last_session.report()["regions"]["co_executed"] > STEPS / 2


def test_what_the_program_has_put_in_place_stays(monkeypatch):
    monkeypatch.setattr(_pywrap_profiler, "ProfilerSession", object)
    profiler_sessions.install(lambda: None)
    _pywrap_profiler.ProfilerSession = dict
    profiler_sessions.remove()
    assert _pywrap_profiler.ProfilerSession is dict

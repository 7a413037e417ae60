"""The stream of values: what makes two equal, and who is heard."""

import os
import struct
import sys
import threading

import numpy as np
import pytest

from terra_cx.check.readers import Readers
from terra_cx.check.stream import Crossing, Recorder, Value, describe, read
from terra_cx.check.visits import Clock
from terra_cx.observe.importer import UserCode

ml_dtypes = pytest.importorskip("ml_dtypes", reason="it comes with TensorFlow, whose bfloat16 it is")


def nan(bits):
    return np.frombuffer(struct.pack("<I", bits), np.float32)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.float32(1), np.float64(1)),
        (np.float32(1), np.array([1], np.float32)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.float32(0.0), np.float32(-0.0)),
        (nan(0x7FC00000), nan(0x7FC00001)),
        (np.arange(1000), np.where(np.arange(1000) == 999, 0, np.arange(1000))),
        (np.array([b"a", b"bc"], object), np.array([b"ab", b"c"], object)),
        (b"a", np.array([b"a"], object)),
        (np.zeros(3, ml_dtypes.bfloat16), np.zeros(3, np.float16)),
        (np.zeros((0, 3)), np.zeros((0, 4))),
    ],
)
def test_what_differs(one, other):
    assert not describe(one).same(describe(other))


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.array(True),
        np.arange(12).reshape(3, 4),
        nan(0x7FC00001),
        np.array([1 + 2j], np.complex64),
        np.ones(2, ml_dtypes.bfloat16),
        np.zeros((0, 3)),
        b"text",
        np.array([[b"a"], [b""]], object),
    ],
)
def test_a_copy_is_the_same(value):
    copy = value.copy() if isinstance(value, np.ndarray) else value
    assert describe(value).same(describe(copy))


def test_layout_in_memory_does_not_matter():
    matrix = np.arange(12.0).reshape(3, 4)
    assert describe(matrix.T).same(describe(np.ascontiguousarray(matrix.T)))
    assert describe(matrix[:, ::2]).same(describe(matrix[:, ::2].copy()))


def test_small_values_are_shown_whole():
    assert str(describe(np.float32(0.1))) == "0.10000000149011612 (float32)"
    assert str(describe(np.array([[1, 2]]))) == "[1, 2] (int64[1x2])"
    assert describe(np.arange(100)).text == "[0, 1, 2, 3, 4, 5, ...]"
    assert len(describe(b"x" * 1000).text) < 300


# --- recording -------------------------------------------------------------------------------------------


@pytest.fixture
def recorder(tmp_path):
    user = UserCode()
    user.add(__file__)
    made = Recorder(tmp_path / "stream", Readers(user), Clock())
    yield made
    made.close()


def test_written_and_read_again(recorder, tmp_path):
    line = sys._getframe().f_lineno + 1
    recorder.seen(np.float32(2), sys._getframe())
    recorder.close()
    assert list(read(tmp_path / "stream")) == [Crossing(__file__, line, None, describe(np.float32(2)))]
    assert recorder.counts == {"compared": 1, "library": 0, "other threads": 0}


def test_steps_are_the_clocks(recorder, tmp_path):
    recorder._clock.visit()
    recorder._clock.visit()
    recorder.seen(np.float32(2), sys._getframe())
    recorder.close()
    assert [crossing.step for crossing in read(tmp_path / "stream")] == [2]


def test_other_threads_and_children_are_not_heard(recorder, tmp_path):
    thread = threading.Thread(target=lambda: recorder.seen(np.float32(1), sys._getframe()))
    thread.start()
    thread.join()
    child = os.fork()
    if child == 0:
        recorder.seen(np.float32(1), sys._getframe())
        recorder.close()
        os._exit(0)
    os.waitpid(child, 0)
    recorder.close()
    assert list(read(tmp_path / "stream")) == []
    assert recorder.counts["other threads"] == 1


def test_a_failure_is_kept_and_not_raised(recorder, monkeypatch):
    monkeypatch.setattr("terra_cx.check.stream.describe", lambda *_: 1 / 0)
    recorder.seen(np.float32(1), sys._getframe())
    assert recorder.failure == "ZeroDivisionError: division by zero"


def test_after_the_end_nothing_is_recorded(recorder):
    recorder.close()
    recorder.seen(np.float32(1), sys._getframe())
    assert recorder.counts["compared"] == 0


def test_a_line_that_was_cut_off_is_left_out(recorder, tmp_path):
    recorder.seen(np.float32(2), sys._getframe())
    recorder.seen(np.float32(3), sys._getframe())
    recorder.close()
    text = (tmp_path / "stream").read_text()
    (tmp_path / "stream").write_text(text[:-3])
    assert len(list(read(tmp_path / "stream"))) == 1


def test_place_is_relative_where_it_can_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = Value("float32", (), "", "1.0")
    assert Crossing(str(tmp_path / "a.py"), 3, None, value).place == "a.py:3"
    assert Crossing("/elsewhere/a.py", 3, None, value).place == "/elsewhere/a.py:3"

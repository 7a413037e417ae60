"""Signal handlers wait for the end of a stretch, run in order, and may raise there."""

from __future__ import annotations

import _signal
import signal
import threading

import pytest

from terra_cx.run.uninterrupted import Uninterrupted, has_handlers

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def seen():
    """What handlers of the program's own saw."""
    seen = []
    before = [signal.signal(number, lambda number, frame: seen.append(number)) for number in SIGNALS]
    yield seen
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_handlers_run_at_the_end_in_order_and_are_put_back(seen):
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with Uninterrupted():
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
        assert seen == []
    assert seen == [signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2]
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_whether_the_program_has_handlers():
    before = [(number, signal.signal(number, signal.SIG_DFL)) for number in (*SIGNALS, signal.SIGALRM)]
    try:
        assert not has_handlers()  # Ctrl-C raises, and that is all
        signal.signal(signal.SIGUSR2, lambda number, frame: None)
        assert has_handlers()
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        assert not has_handlers()
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def test_ctrl_c_is_raised_at_the_end(seen):
    reached = []

    def stretch():
        with Uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGUSR1)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        stretch()
    assert reached
    assert seen == [signal.SIGUSR1]  # the one that raised has not swallowed the other
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_they_can_be_nested(seen):
    with Uninterrupted():
        with Uninterrupted():
            signal.raise_signal(signal.SIGUSR1)
        assert seen == []
    assert seen == [signal.SIGUSR1]


def test_an_error_passes(seen):
    def stretch():
        with Uninterrupted():
            signal.raise_signal(signal.SIGUSR1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stretch()
    assert seen == [signal.SIGUSR1]


def test_other_threads_have_no_handlers_to_keep_waiting(seen):
    def body():
        with Uninterrupted():
            before.append(signal.getsignal(signal.SIGUSR1))

    before = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert before == [signal.getsignal(signal.SIGUSR1)]


def test_a_signal_that_comes_while_handlers_are_set_aside(monkeypatch):
    """Nothing is left of the stretch that was not entered."""
    before = signal.getsignal(signal.SIGINT)
    own = _signal.signal

    def interrupted(number, handler):
        result = own(number, handler)
        if handler is not before and number == signal.SIGINT:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(_signal, "signal", interrupted)
    with pytest.raises(KeyboardInterrupt), Uninterrupted():
        raise AssertionError("entered")
    assert signal.getsignal(signal.SIGINT) is before

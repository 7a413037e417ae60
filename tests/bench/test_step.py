"""The decorator that times the step function."""

import threading

import pytest

from terra_cx.bench.child import Step, _peak_mb


@pytest.fixture
def step():
    return Step("", False)


def test_one_visit_a_call(step):
    @step
    def train_step(x, *, y=1):
        """Docs."""
        return x + y

    assert [train_step(1), train_step(1, y=2)] == [2, 3]
    assert step.clock.count == 2
    assert (train_step.__name__, train_step.__doc__) == ("train_step", "Docs.")


def test_a_call_within_a_call_is_part_of_it(step):
    @step
    def train_step(depth):
        return depth and train_step(depth - 1)

    train_step(5)
    assert step.clock.count == 1


def test_methods_are_bound(step):
    class Trainer:
        @step
        def train_step(self, x):
            return self, x

    trainer = Trainer()
    assert trainer.train_step(3) == (trainer, 3)


def test_a_step_that_raises_is_a_step(step):
    @step
    def train_step():
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            train_step()
    assert step.clock.count == 2


def test_other_threads_are_not_timed(step):
    train_step = step(lambda: None)
    thread = threading.Thread(target=train_step)
    thread.start()
    thread.join()
    assert step.clock.count == 0


def test_first_half(step):
    train_step = step(lambda: None)
    assert step.head() is None
    train_step()
    assert step.head() is None
    for _ in range(9):
        train_step()
    head = step.head()
    assert head["steps"] == 5
    assert head["seconds"] == step.clock.times[4] - step.begin


def test_peak_of_memory():
    assert 10 < _peak_mb() < 1e6


def test_a_loop_that_does_not_end_is_ended():
    """It counts steps in an attribute that `tf.function` sets once."""
    step = Step("", False, most=3)
    train_step = step(lambda: None)
    for _ in range(3):
        train_step()
    with pytest.raises(SystemExit) as ended:
        train_step()
    assert ended.value.code == 0
    assert step.endless
    assert step.clock.count == 3

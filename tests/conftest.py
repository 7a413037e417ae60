"""What all tests share: a quiet TensorFlow, stacks on a crash, the same seeds and the same examples on every run."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys

# Read when TensorFlow is first imported, so before any test module is.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What is co-executed must not depend on how fast the machine is; tests/run/test_pace.py tests the choice itself.
os.environ["TERRA_PACE"] = "overlapped"
if not faulthandler.is_enabled():
    faulthandler.enable()

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Whoever starts the tests in the background may have had it ignored, which is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: nothing here asserts a time. No database: an example found once belongs into a test, not into a folder.
settings.register_profile(
    "terra",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("terra")


@pytest.fixture(autouse=True)
def same_seeds():
    """Every test starts from the same seeds; TensorFlow's only if something has imported it."""
    random.seed(20)
    np.random.seed(20)
    tensorflow = sys.modules.get("tensorflow")
    if hasattr(tensorflow, "random"):
        tensorflow.random.set_seed(20)


@pytest.fixture(autouse=True)
def surveys_take_what_they_take(monkeypatch):
    """Nor must it depend on the machine whether a step is found: surveys have all the time they want."""
    monkeypatch.setattr("terra_cx.session._SURVEY_GRACE", 1000.0)


@pytest.fixture(autouse=True)
def python_is_never_busy_for_long(monkeypatch):
    """Nor where blocks end, and how often they are compiled; tests of that say how long is long."""
    if "tensorflow" in sys.modules:
        monkeypatch.setattr("terra_cx.trace.tracegraph.GAP_SECONDS", 1000.0)


@pytest.fixture
def boundary():
    """An installed, passive dispatch boundary; TensorFlow's own functions are back afterwards."""
    from terra_cx.tf.boundary import Boundary

    made = Boundary()
    made.install()
    try:
        yield made
    finally:
        made.remove()

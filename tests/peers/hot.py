"""A pytest plugin that makes the body of each unittest method hot: it is run again and again, in eager or co-executed.

`PEERS_MODE` is `eager` or `co`; `PEERS_TIMES` how often a body is run; `PEERS_RESULT` names the file that gets
``{test: [outcome, detail, co-executed, times]}``, where outcome is passed, failed or skipped, the third is the number
of regions that were co-executed, the last how often the body was run: fewer times where it takes long, and as often in
both modes (`PEERS_EAGER` names eager's file). Bodies that pass once and fail when they are repeated (they count calls,
or create what must be new) do so in eager too, so it takes both modes to say anything.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import terra_cx

_MODE = os.environ["PEERS_MODE"]
_TIMES = int(os.environ["PEERS_TIMES"])
_LEAST, _SECONDS = 4, 6.0
"""How often a body is run at least, and what its runs may take in eager beyond that."""
_eager_file = Path(os.environ["PEERS_EAGER"])
_eager: dict[str, list[Any]] = (
    json.loads(_eager_file.read_text()) if _MODE == "co" and _eager_file.exists() else {}
)
"""Nothing if eager crashed: that is told only if this mode goes on without it."""
_results: dict[str, list[Any]] = {}


def _name(path: Path, node: str) -> str:
    """What a test is called; outside of the root folder pytest's own name lacks the file."""
    return f"{path.stem}::{node.partition('::')[2]}"


def repeated(body: Callable[[], Any], entry: list[Any], times: int | None) -> Callable[[], None]:
    """A method that runs ``body`` several times; ``entry`` is its result.

    Args:
        body: the test.
        entry: told the number of co-executed regions, and of runs.
        times: how often; None: as often as fits.
    """

    def run() -> None:
        random.seed(5)
        np.random.seed(
            5
        )  # suites draw shapes and inputs from NumPy: the two modes must be given the same ones
        tf.random.set_seed(5)
        manager = terra_cx.co_execute(quiet=True) if _MODE == "co" else nullcontext()
        try:
            with manager as session:
                least, most = (_LEAST, _TIMES) if times is None else (times, times)
                start = time.perf_counter()
                while entry[3] < least or (entry[3] < most and time.perf_counter() - start < _SECONDS):
                    entry[3] += 1
                    terra_cx.region()
                    body()
        finally:
            if _MODE == "co":
                entry[2] = session.report()["regions"]["co_executed"]

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Just before the body is run, after setUp was prepared."""
    if isinstance(item, pytest.Function) and getattr(item, "instance", None) is not None:
        name = _name(item.path, item.nodeid)
        entry = _results.setdefault(name, ["passed", "", 0, 0])
        item.obj = repeated(item.obj, entry, _eager[name][3] if name in _eager else None)
    return (yield)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported must not pass for one without tests."""
    if report.failed:
        reason = str(report.longrepr).strip().splitlines()[-1][:300]
        _results[f"{Path(report.fspath).stem}::the whole file"] = ["failed", reason, 0, 0]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The worst of setup, call and teardown counts."""
    entry = _results.setdefault(_name(Path(report.fspath), report.nodeid), ["passed", "", 0, 0])
    if report.outcome != "passed":
        entry[0] = report.outcome
        entry[1] = str(report.longrepr).strip().splitlines()[-1][:300]


def pytest_sessionfinish() -> None:
    """Write what was found."""
    Path(os.environ["PEERS_RESULT"]).write_text(json.dumps(_results, indent=1))

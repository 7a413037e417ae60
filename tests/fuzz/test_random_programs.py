"""Random programs, eager and co-executed, compared bit for bit: `make fuzz` for many, a few with every test run."""

from __future__ import annotations

import os
import types
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from fuzz.programs import STEPS, programs
from hypothesis import given, note, settings
from truth import both_ways

from terra_cx.compile import blocks
from terra_cx.run import conductor, elisions
from terra_cx.run.anchor import ActiveAnchor
from terra_cx.trace import tracegraph

MANY = int(os.environ.get("FUZZ_PROGRAMS", "0"))
"""Other programs on each run, so many of all kinds together; 0: always the same few."""
FEW = {"plain": 24, "live tapes": 8, "layers": 14, "without end": 12}
"""The few, by kind; of the many each kind has the same share."""


def loaded(source):
    """The function of a program's source."""
    found = {"keras": keras, "np": np, "tf": tf, "types": types}
    exec(compile(source, "<program>", "exec"), found)
    return found["program"]


def compare(kind, layers=False):
    """Compare random programs with themselves; how many library calls were elided."""
    regions, elided = [], []

    examples = round(MANY * FEW[kind] / sum(FEW.values())) if MANY else FEW[kind]

    @settings(max_examples=examples, derandomize=not MANY, print_blob=bool(MANY))
    @given(programs(layers))
    def is_eagers(source):
        note(source)
        try:
            report = both_ways(loaded(source), co_executed=0)
        except Exception:
            if MANY:  # to make it shorter may take long
                print(f"a program fails, and is being made shorter:\n{source}", flush=True)
            raise
        finally:
            keras.config.set_epsilon(1e-7)
        regions.append(report["regions"]["co_executed"])
        if MANY and len(regions) % 100 == 0:
            print(f"{kind}: {len(regions)} programs do what they do in eager", flush=True)
        elided.append(sum(a["elisions"]["elided"] for a in report["anchors"] if a["elisions"]))
        assert not any(a["elisions"]["mismatches"] for a in report["anchors"] if a["elisions"])

    is_eagers()
    # A comparison of eager with eager would prove nothing.
    assert sum(regions) >= STEPS / 4 * len(regions)
    return sum(elided)


def test_random_programs_do_what_they_do_in_eager():
    compare("plain")


def test_random_programs_with_live_tapes(monkeypatch):
    monkeypatch.setattr(conductor, "ActiveAnchor", partial(ActiveAnchor, live_tapes="always, in this test"))
    compare("live tapes")


def test_random_programs_with_layers(monkeypatch):
    monkeypatch.setattr(elisions, "_OFTEN", 2)  # calls are noted in mid-step as often as the few steps allow
    monkeypatch.setattr(elisions, "_APART", 3)
    assert compare("layers", layers=True) > 14


def test_random_programs_whose_shapes_and_histories_have_no_end(monkeypatch):
    monkeypatch.setattr(tracegraph, "FORMS", 1)
    monkeypatch.setattr(tracegraph, "HISTORIES", 2)
    monkeypatch.setattr(blocks, "LASTING", 4)  # what runs return changes more often than in any program
    compare("without end")

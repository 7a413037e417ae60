"""Programs whose shapes, trip counts or ways never repeat: eager and co-executed, and what it took to learn them.

    python tools/vary.py [translation|recurrence|depth|treebank ...] [--steps N] [--pace turns]

For each program: whether all values and variables are eager's to the last bit; how many steps were co-executed, in all
and in the last third, after how many fallbacks, with how many compiled functions; milliseconds a step (medians of
quarters of the run). For the translator the same step under `tf.function`, with how often it was traced; its numbers
are its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
import tensorflow as tf
import varying

import terra_cx

PROGRAMS = {
    "translation": varying.translation,
    "recurrence": varying.recurrence,
    "depth": varying.depth,
    "treebank": varying.treebank,
}


def timed(program, steps, after=lambda step: None, **options):
    """The bits that reached Python and those of the variables, and the seconds of each step.

    ``after`` is called with the number of each step that is over.
    """
    seen, seconds = [], []
    last = time.perf_counter()

    def see(loss):
        nonlocal last
        seen.append(loss.numpy().tobytes())
        now = time.perf_counter()
        seconds.append(now - last)
        after(len(seen))
        last = time.perf_counter()

    variables = program(see, steps, **options)
    return seen, [variable.numpy().tobytes() for variable in variables], seconds


def quarters(seconds):
    """Medians in milliseconds, as text."""
    return " ".join(f"{np.median(part) * 1e3:7.2f}" for part in np.array_split(seconds, 4))


def compare(name, steps, pace):
    """Run one program both ways and print what came of it."""
    program = PROGRAMS[name]
    eager = timed(program, steps)
    runner = terra_cx.co_execute(quiet=True, pace=pace)(
        program
    )  # itself: the loops of what it calls are not seen
    before = [0]

    def count(step):
        if step == steps * 2 // 3:
            before[0] = runner.last_session.report()["regions"]["co_executed"]

    co = timed(runner, steps, count)
    report = runner.last_session.report()
    same = "identical" if co[:2] == eager[:2] else "DIFFERENT"
    regions, anchor = report["regions"], max(report["anchors"], key=lambda each: each["nodes"])
    fallbacks = sum(each["count"] for each in report["fallbacks"])
    print(
        f"{name}: {same}; {regions['co_executed']} of {steps} steps co-executed "
        f"({min(1.0, (regions['co_executed'] - before[0]) / (steps - steps * 2 // 3)):.0%} of the last third), "
        f"{fallbacks} fallbacks, ",
        end="",
    )
    print(
        f"{report['runner']['variants']} compiled functions, {anchor['nodes']} nodes, {anchor['blocks']} blocks"
    )
    print(f"  {anchor['state']}{': ' + anchor['given_up'] if anchor['given_up'] else ''}")
    print(f"  eager        {quarters(eager[2])} ms")
    print(f"  co-executed  {quarters(co[2])} ms")
    if name == "translation":
        traces = 0

        def wrap(step):
            def traced(*args):
                nonlocal traces
                traces += 1
                return step(*args)

            return tf.function(traced, reduce_retracing=True)

        graph = timed(program, steps, wrap=wrap)
        print(f"  tf.function  {quarters(graph[2])} ms, {traces} traces", end="")
        print("" if graph[:2] == eager[:2] else ", other numbers than eager's")
    return co[:2] == eager[:2]


def main():
    """Compare the programs that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("programs", nargs="*", choices=[*PROGRAMS, []], help="which ones; all unless given")
    parser.add_argument("--steps", type=int, default=600, help="steps of each (default: %(default)s)")
    parser.add_argument("--pace", default="measured", choices=("measured", "overlapped", "turns"))
    args = parser.parse_args()
    results = [compare(name, args.steps, args.pace) for name in args.programs or PROGRAMS]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()

"""One program under terra-run and in plain Python: both step times, and whether the output is the same."""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
TENSORFLOW_LOG = re.compile(
    r"[IWEF]\d{4} |WARNING: All log messages before absl|To enable the following instr|\d{4}-\d\d-\d\d \d\d:"
)
WINDOW = 10  # steps: a program that reads a loss every ten steps lets Python run ahead in between


def step_ms(laps):
    """Milliseconds of a step in the second half; the first contains tracing and compiling."""
    steady = laps[len(laps) // 2 :]
    windows = [steady[i : i + WINDOW] for i in range(0, len(steady) - WINDOW + 1, WINDOW)] or [steady]
    return 1000 * statistics.median(statistics.fmean(window) for window in windows)


def run(console, command, words):
    """Runs one process and shows its standard error. Returns its output and its laps, or None if it failed."""
    console.print("$", Path(command[0]).name, *words, style="bold", markup=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        timings = Path(folder, "timings.json")
        done = subprocess.run(
            [*command, *words, "--timings", str(timings)], cwd=ROOT, capture_output=True, text=True
        )
        for line in done.stderr.splitlines():
            if not TENSORFLOW_LOG.match(line):
                console.print(f"  {line}", markup=False, soft_wrap=True)
        if done.returncode:
            console.print(f"exit code {done.returncode}", style="red")
            return None
        return done.stdout, json.loads(timings.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "program", nargs="?", default="dcgan", help="a name in programs/ (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--scale", choices=("tiny", "small", "paper"), default="tiny")
    args = parser.parse_args()
    script = Path("programs", f"{args.program}.py")
    if not (ROOT / script).is_file():
        parser.error(f"there is no {script}")

    console = Console(highlight=False)
    words = [str(script), "--steps", str(args.steps), "--scale", args.scale]
    co = run(console, [str(Path(sys.executable).with_name("terra-run"))], words)
    eager = run(console, [sys.executable], words) if co else None
    if eager is None:
        return 1
    before, after = step_ms(eager[1]), step_ms(co[1])
    console.print(f"plain eager   {before:8.2f} ms a step")
    console.print(f"co-executed   {after:8.2f} ms a step, {before / after:.2f}x")
    if eager[0] != co[0]:
        console.print(f"the output differs; `terra-cx check {script}` tells where", style="red", markup=False)
        return 1
    console.print(f"every loss of {len(eager[1])} steps and every final variable: bit-identical")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One program under terra-run and in plain Python: both step times, and whether the numbers are the same."""

import argparse
import re
import sys
from pathlib import Path

from bench import PROGRAMS, ProgramFailedError, command_line, first_difference, launch
from rich.console import Console

TENSORFLOW_LOG = re.compile(
    r"[IWEF]\d{4} |WARNING: All log messages before absl|To enable the following instr|\d{4}-\d\d-\d\d \d\d:"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", nargs="?", choices=PROGRAMS, default="dcgan")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--scale", choices=("tiny", "small", "paper"), default="tiny")
    args = parser.parse_args()

    console = Console(highlight=False)
    options = ["--steps", str(args.steps), "--scale", args.scale]
    runs = {}
    for mode in ("co", "eager"):
        command, *rest = command_line(args.program, mode, options, "report.json")
        console.print("$", Path(command).name, *rest, style="bold", markup=False, soft_wrap=True)
        try:
            runs[mode] = launch(args.program, mode, options)
        except ProgramFailedError as error:
            console.print(str(error), style="red", markup=False)
            return 1
        for line in runs[mode].stderr.splitlines():
            if not TENSORFLOW_LOG.match(line):
                console.print(f"  {line}", markup=False, soft_wrap=True)

    eager, co = runs["eager"], runs["co"]
    difference = first_difference(eager.output, co.output)
    console.print(f"plain eager   {eager.step_ms():8.2f} ms a step")
    console.print(f"co-executed   {co.step_ms():8.2f} ms a step, {eager.step_ms() / co.step_ms():.2f}x")
    console.print(f"regions       {co.co_executed():8.0%} co-executed")
    if difference:
        console.print(f"the output differs, {difference}", style="red", markup=False)
    else:
        console.print(f"every loss of {len(eager.laps)} steps and every final variable: bit-identical")
    if not co.co_executed():
        console.print("nothing was co-executed, so this compared eager with eager", style="red")
    return int(difference is not None or not co.co_executed())


if __name__ == "__main__":
    sys.exit(main())

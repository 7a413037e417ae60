"""Step times of the example programs, plain and under terra-run, taken in turns.

Each run is a process of its own, and the modes take turns within a round, so that a machine that slows
down for a while slows all of them. A step time is the median over windows of ten steps in the second half.
Windows, because a program that reads a loss every ten steps lets Python run ahead in between, and a single
step says little; the second half, because the first contains tracing and compiling.
`regions` in the table is the smallest share of co-executed regions in any run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = (
    "mlp", "dropblock", "dcgan", "resnet50", "sdpoint", "yolov3", "faster_rcnn",
    "gpt2", "bert_qa", "bert_cls", "music_transformer",
)  # fmt: skip
MODES = ("eager", "lazy", "co")
WINDOW = 10  # steps


@dataclass(frozen=True)
class Run:
    """One finished process."""

    output: str
    stderr: str
    laps: list[float]  # seconds of each step
    report: dict[str, object] | None  # what terra-run reported; None for a plain run

    def step_ms(self) -> float:
        """Milliseconds of a steady step."""
        steady = self.laps[len(self.laps) // 2 :]
        windows = [steady[i : i + WINDOW] for i in range(0, len(steady) - WINDOW + 1, WINDOW)] or [steady]
        return 1000 * statistics.median(statistics.fmean(window) for window in windows)

    def co_executed(self) -> float:
        """The share of co-executed regions, 0 to 1."""
        regions = (self.report or {}).get("regions", {})
        return regions["co_executed"] / regions["total"] if regions.get("total") else 0.0


class ProgramFailedError(Exception):
    """A run ended with an exit code other than 0; the message holds the command and the end of its stderr."""


def command_line(program, mode, options, report):
    """The command for a program of `programs/`; mode eager means plain Python, without terra-run."""
    script = [str(Path("programs", f"{program}.py")), *options]
    if mode == "eager":
        return [sys.executable, *script]
    return [
        str(Path(sys.executable).with_name("terra-run")),
        "--mode",
        mode,
        "--report",
        str(report),
        *script,
    ]


def launch(program, mode, options):
    """Runs a program to its end and returns its Run. Raises ProgramFailedError."""
    with tempfile.TemporaryDirectory() as folder:
        timings, report = Path(folder, "timings.json"), Path(folder, "report.json")
        command = command_line(program, mode, [*options, "--timings", str(timings)], report)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            tail = "\n".join(done.stderr.splitlines()[-15:])
            raise ProgramFailedError(f"exit code {done.returncode} from {' '.join(command)}\n{tail}")
        laps = json.loads(timings.read_text())
        return Run(
            done.stdout, done.stderr, laps, None if mode == "eager" else json.loads(report.read_text())
        )


def first_difference(expected, got):
    """Says where two outputs differ first; None if they are equal."""
    if expected == got:
        return None
    expected, got = expected.splitlines(), got.splitlines()
    for number, (left, right) in enumerate(zip(expected, got, strict=False), start=1):
        if left != right:
            return f"line {number}: {left!r} became {right!r}"
    ends = ", with other line ends" if len(expected) == len(got) else ""
    return f"{len(expected)} lines became {len(got)}{ends}"


def measure(console, program, modes, rounds, options):
    """Runs every mode `rounds` times, in turns. Returns {mode: [Run, ...]}."""
    runs = {mode: [] for mode in modes}
    for number in range(rounds):
        for mode in modes:
            with console.status(f"{program} {mode}, round {number + 1} of {rounds}"):
                runs[mode].append(launch(program, mode, options))
    return runs


def summarise(program, runs):
    """One program's figures for JSON; `differs` says where an output is not the first eager one."""
    result = {"program": program, "modes": {}}
    for mode, own in runs.items():
        step_ms = [run.step_ms() for run in own]
        differences = [first_difference(runs["eager"][0].output, run.output) for run in own]
        result["modes"][mode] = {
            "step_ms": statistics.median(step_ms),
            "rounds_ms": step_ms,
            "differs": next(filter(None, differences), None),
            "co_executed": None if mode == "eager" else min(run.co_executed() for run in own),
        }
    for figures in result["modes"].values():
        figures["speedup"] = result["modes"]["eager"]["step_ms"] / figures["step_ms"]
    return result


def table_of(results, modes, title):
    table = Table(title=title, box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column("program", no_wrap=True)
    for mode in modes:
        table.add_column(f"{mode} ms", justify="right")
    for mode in modes[1:]:
        table.add_column(f"gain {mode}", justify="right")
    table.add_column("regions", justify="right")
    table.add_column("output", no_wrap=True)
    for result in results:
        figures = [result["modes"][mode] for mode in modes]
        differs = any(each["differs"] for each in figures)
        table.add_row(
            result["program"],
            *(f"{each['step_ms']:.2f}" for each in figures),
            *(f"{each['speedup']:.2f}x" for each in figures[1:]),
            f"{min((each['co_executed'] for each in figures[1:]), default=0.0):.0%}",
            "[red]differs[/red]" if differs else "identical",
        )
    return table


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "programs", nargs="*", metavar="program", help=f"of {', '.join(PROGRAMS)}; default all"
    )
    parser.add_argument("--scale", choices=("tiny", "small", "paper"), default="small")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--modes", default="lazy,co", help="beside eager, with commas between (%(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every figure")
    args = parser.parse_args()
    args.modes = ("eager", *(mode for mode in args.modes.split(",") if mode != "eager"))
    for what, chosen, known in (("program", args.programs, PROGRAMS), ("mode", args.modes, MODES)):
        for name in chosen:
            if name not in known:
                parser.error(f"unknown {what} {name!r}; known are {', '.join(known)}")
    if args.steps < 2 or args.rounds < 1:
        parser.error("--steps must be at least 2 and --rounds at least 1")
    return args


def main():
    args = parse_arguments()
    console = Console()
    options = ["--scale", args.scale, "--steps", str(args.steps), "--seed", str(args.seed)]
    results = []
    for program in args.programs or PROGRAMS:
        try:
            runs = measure(console, program, args.modes, args.rounds, options)
        except ProgramFailedError as error:
            console.print(f"{program}: {error}", style="red", markup=False)
            return 1
        results.append(summarise(program, runs))
    console.print(table_of(results, args.modes, f"{args.scale}, {args.steps} steps, {args.rounds} rounds"))
    for result in results:
        for mode, figures in result["modes"].items():
            if figures["differs"]:
                console.print(f"{result['program']} {mode}: {figures['differs']}", markup=False)
    if args.json:
        settings = {"scale": args.scale, "steps": args.steps, "rounds": args.rounds, "seed": args.seed}
        args.json.write_text(json.dumps({"settings": settings, "results": results}, indent=2) + "\n")
    return int(any(figures["differs"] for result in results for figures in result["modes"].values()))


if __name__ == "__main__":
    sys.exit(main())

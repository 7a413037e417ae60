"""The command `terra-cx doctor`: its words, what it shows, its file, its exit status.

Keys of what `--json` writes, version 1:

| key | value |
| --- | --- |
| `version` | 1; raised when a key changes its meaning or goes away |
| `exit_status`, `problems` | of the command; what could not be written |
| `findings` | list of `{name, state, text, remedy}`; the state is `ok`, `note` or `problem` |
| `facts` | the fields of `doctor.facts.Facts` |
| `tensorflow` | what `doctor.child` found, null if it found nothing; `stderr` holds its last words |
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from terra_cx.check.runs import Job, Run, Runner
from terra_cx.check.terminal import console_for, progress, stoppable
from terra_cx.check.words import whole
from terra_cx.doctor.facts import Facts, gather
from terra_cx.doctor.findings import Finding, State, examine
from terra_cx.report import files

__all__ = ["main"]

VERSION = 1

_EPILOG = "exit status: 0 all is well; 1 a problem was found; 2 wrong usage; 9 a file cannot be written."
_STYLES = {State.OK: "green", State.NOTE: "yellow", State.PROBLEM: "bold red"}


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(list(words))
    claims = files.Claims({"json": options.json})
    facts = gather()
    runner = Runner(options.timeout, "terra_cx.doctor.child")
    try:
        with stoppable(), tempfile.TemporaryDirectory(prefix="terra-cx-doctor-") as folder:
            run = _examined(runner, Path(folder) / "run")
    except KeyboardInterrupt:
        runner.stop()
        sys.stderr.write("terra-cx doctor: interrupted\n")
        return 128 + signal.SIGINT
    findings = examine(facts, run.end, run.ending)
    status = int(any(finding.state is State.PROBLEM for finding in findings))
    claims.write("json", lambda: files.as_json(_record(status, claims.problems, findings, facts, run)))
    _show(console_for(sys.stdout), findings, claims.problems)
    return status or (9 if claims.failed else 0)


def _examined(runner: Runner, folder: Path) -> Run:
    with progress(1) as announce:
        announce("importing TensorFlow, testing", 0)
        return runner.run(Job("self-test", (), {}), folder)


def _record(
    status: int, problems: Sequence[str], findings: Sequence[Finding], facts: Facts, run: Run
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "exit_status": status,
        "problems": list(problems),
        "findings": [{**asdict(finding), "state": finding.state.value} for finding in findings],
        "facts": asdict(facts),
        "tensorflow": None if run.end is None else {**run.end, "stderr": run.stderr},
    }


def _show(console: Console, findings: Sequence[Finding], problems: Sequence[str]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\n{'remedy: ' if finding.state is State.PROBLEM else ''}{finding.remedy}", "bold")
        table.add_row(Text(finding.state.value, _STYLES[finding.state]), finding.name, text)
    console.print(table)
    wrong = sum(finding.state is State.PROBLEM for finding in findings)
    if wrong:
        console.print(Text(f"{wrong} problem{'s' * (wrong != 1)} found", "bold red"))
    else:
        console.print(Text("terra-cx works here", "bold green"))
    for problem in problems:
        console.print(Text.assemble(("terra-cx doctor: ", "bold"), problem), soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="terra-cx doctor",
        description="Says which Python, TensorFlow, processors, GPUs and threads there are, and whether terra-cx "
        "works with them: a small training step is co-executed in a process of its own and compared with eager.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    parser.add_argument(
        "--timeout",
        type=whole,
        default=300,
        metavar="SECONDS",
        help="kill the self-test if it takes longer (default: 300)",
    )
    return parser

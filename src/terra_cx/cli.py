"""`terra-cx`: the commands around a run.

`terra-cx run` is terra-run, `terra-cx graph` shows what was traced, `terra-cx check` compares with plain eager,
`terra-cx bench` times, `terra-cx explain` says what holds a program back, `terra-cx diff` what got slower, `terra-cx
doctor` whether terra-cx works here, `terra-cx cache` what is kept for later runs.

A command is a function that takes the words behind its name and returns an exit status, and an entry in
`COMMANDS`. argparse sees the command's name only: the rest is the command's, which may hand most of it on
to a user's program.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from terra_cx import __version__, config, launcher
from terra_cx.errors import UsageError
from terra_cx.launch.commandline import CommandLine, Option
from terra_cx.report import files

if TYPE_CHECKING:
    from terra_cx.session import Session


class Command(NamedTuple):
    """A sub-command: what runs it, and its line in the help."""

    run: Callable[[Sequence[str]], int]
    help: str


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of `terra-cx`; returns the exit status unless a launched program ends by an exception."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(
        prog="terra-cx",
        description="Runs unmodified eager TensorFlow programs as Python plus a compiled graph.",
        epilog="`terra-cx COMMAND --help` shows the options of a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", "-V", action="version", version=f"terra-cx {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    chosen = parser.parse_args(words[:1]).command
    return COMMANDS[chosen].run(words[1:])


def run(words: Sequence[str]) -> int:
    """`terra-cx run`: the same as terra-run."""
    return launcher.start(words, "terra-cx run")


def graph(words: Sequence[str]) -> int:
    """`terra-cx graph`: run a program in mode trace and print its TraceGraph; --dot writes it too."""
    dot = Option("dot", "also write the graph to FILE for Graphviz", "FILE")
    return launcher.start(words, "terra-cx graph", [dot], _show_graph)


def _show_graph(line: CommandLine) -> launcher.AfterBody:
    if line.settings.setdefault("mode", "trace") != "trace":
        raise UsageError("a graph is what mode trace records; leave --mode out")
    if config.load(line.settings).disable:
        raise UsageError("terra-cx is turned off here, so there is nothing to show; unset TERRA_DISABLE")
    dot = files.claim(Path(line.others["dot"])) if "dot" in line.others else None

    def show(session: Session) -> None:
        sys.stdout.write(session.graph_text().rstrip("\n") + "\n")
        if dot is not None:
            files.write_text(dot, session.graph_dot().rstrip("\n") + "\n")

    return show


def check(words: Sequence[str]) -> int:
    """`terra-cx check`: run programs eager and co-executed, and compare all they did."""
    from terra_cx.check import command

    return command.main(words)


def bench(words: Sequence[str]) -> int:
    """`terra-cx bench`: time programs in several modes."""
    from terra_cx.bench import command

    return command.main(words)


def explain(words: Sequence[str]) -> int:
    """`terra-cx explain`: a program's lines with what they cost, and what to change."""
    from terra_cx.explain import command

    return command.main(words)


def diff(words: Sequence[str]) -> int:
    """`terra-cx diff`: two runs compared, what got slower and why."""
    from terra_cx.diff import command

    return command.main(words)


def doctor(words: Sequence[str]) -> int:
    """`terra-cx doctor`: what there is here, and whether terra-cx works with it."""
    from terra_cx.doctor import command

    return command.main(words)


def cache(words: Sequence[str]) -> int:
    """`terra-cx cache`: what is kept for later runs, and emptying it."""
    from terra_cx.cache import command

    return command.main(words)


COMMANDS = {
    "run": Command(run, "run a program co-executed; the same as terra-run"),
    "graph": Command(graph, "run a program and print the graph of what it did"),
    "check": Command(check, "run programs eager and co-executed, and compare all they did"),
    "bench": Command(bench, "time programs in eager, tf.function, XLA, lazily and co-executed"),
    "explain": Command(explain, "which line holds a program back, and what to change"),
    "diff": Command(diff, "compare two runs: what got slower, and why"),
    "cache": Command(cache, "what is kept for later runs: show it, or empty it"),
    "doctor": Command(doctor, "versions, processors, threads, and a self-test: does terra-cx work here?"),
}

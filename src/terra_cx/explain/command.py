"""The command `terra-cx explain`: its words, the run that it starts if a program is named, its exit status."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

import terra_cx
from terra_cx import config
from terra_cx.errors import UsageError
from terra_cx.explain.advice import advise
from terra_cx.explain.annotate import pages
from terra_cx.explain.output import record, show
from terra_cx.explain.source import Source
from terra_cx.launch.program import Target
from terra_cx.report import files
from terra_cx.report.reading import PROFILE_NAME, FileError, read
from terra_cx.report.runs import Run

__all__ = ["main", "profiled"]

_EPILOG = """
A name that ends in .json, or a folder with a profile.json, is read; anything else is run with --profile, and what it
writes on the standard output goes to the standard error. exit status: 0 explained; 1 the program failed, or left
nothing to explain; 2 wrong usage, or a file that is not what a run left; 9 a file cannot be written.
"""
_BOOT = "import sys; sys.path[0] = sys.argv.pop(1); from terra_cx.launcher import main; sys.exit(main())"
"""For `python -c`, with the folder of this package behind it: the working directory must not be looked into for modules
of ours. terra-run then puts in its place what python would."""


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    words = list(words)
    at = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:at])
    named: Target = options.target or options.module or options.code
    target = replace(named, arguments=tuple(words[at + 1 :]))
    claims = files.Claims({"json": options.json})
    status = 0
    try:
        if target.form == "script" and _is_file_of_a_run(Path(target.name)):
            run = read(Path(target.name))
        else:
            status, run = profiled(target)
    except UsageError as error:
        sys.stderr.write(f"terra-cx explain: {error}\n")
        return error.exit_code
    source = Source({"<string>": target.name} if target.form == "code" else {})
    advice, shown = advise(run, source), pages(run, source)
    claims.write("json", lambda: files.as_json(record(run, advice, shown)))
    show(Console(width=options.width), run, advice, shown)
    for problem in claims.problems:
        sys.stderr.write(f"terra-cx explain: {problem}\n")
    if status:
        sys.stderr.write(
            f"terra-cx explain: the program ended with status {status}; explained is what it did before\n"
        )
    return 1 if status else 9 if claims.failed else 0


def profiled(target: Target) -> tuple[int, Run]:
    """Run a program under `terra-run --profile`, and read the profile.

    Returns:
        The program's exit status, and what it left.

    Raises:
        UsageError: there is no such script, terra-cx is turned off, or nothing was left.
    """
    if target.form == "script" and not Path(target.name).exists():
        raise UsageError(f"{target.name}: no such file; name a script, or the JSON file that a run has left")
    if config.load().disable:
        raise UsageError("terra-cx is turned off here, so there is nothing to explain; unset TERRA_DISABLE")
    with tempfile.TemporaryDirectory(prefix="terra-cx-explain-") as folder:
        status = _run(target, Path(folder))
        if not (Path(folder) / PROFILE_NAME).is_file():
            name = "the code" if target.form == "code" else target.name
            raise _NothingError(f"{name} left no profile (exit status {status}); see what it says above")
        try:
            return status, read(Path(folder) / PROFILE_NAME)
        except FileError as error:
            raise _NothingError(str(error)) from None


class _NothingError(UsageError):
    """A program was run, and there is nothing to explain."""

    exit_code = 1


def _run(target: Target, folder: Path) -> int:
    package = str(Path(terra_cx.__file__).parents[1])
    ours = ["--quiet", "--profile", str(folder)]
    command = [sys.executable, "-c", _BOOT, package, *ours, *target.command]
    process = subprocess.Popen(command, stdout=_stderr())
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            continue  # the program got it as well, and leaves what it has
        return 128 - status if status < 0 else status


def _stderr() -> int | None:
    """Where the program's standard output goes: ours is the explanation's."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return subprocess.DEVNULL


def _is_file_of_a_run(path: Path) -> bool:
    return path.suffix == ".json" or (path.is_dir() and not (path / "__main__.py").is_file())


def _width(word: str) -> int:
    if not word.isdecimal() or int(word) < 40:
        raise argparse.ArgumentTypeError(f"a number of columns, at least 40, not {word!r}")
    return int(word)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="terra-cx explain",
        usage="terra-cx explain [options] SCRIPT|FILE|-m MODULE|-c CODE [-- ARGUMENTS]",
        description="Says of every line of a program how many ops it issues, what Python takes there, what it waits "
        "for and where it diverges, and ranks what to change by what it can gain. ARGUMENTS go to the program.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "target",
        type=partial(Target, "script"),
        nargs="?",
        metavar="SCRIPT|FILE",
        help="a script, or the file that a run has left",
    )
    what.add_argument(
        "-m", dest="module", type=partial(Target, "module"), metavar="MODULE", help="a module, as python -m"
    )
    what.add_argument(
        "-c",
        dest="code",
        type=partial(Target, "code"),
        metavar="CODE",
        help="a program as text, as python -c",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the explanation as JSON")
    parser.add_argument(
        "--width",
        type=_width,
        metavar="N",
        help="columns (default: the terminal's, or 80 where there is none)",
    )
    return parser

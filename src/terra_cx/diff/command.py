"""The command `terra-cx diff`: its words, its exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from terra_cx.check.words import percent
from terra_cx.diff.compare import compare
from terra_cx.diff.output import record, show
from terra_cx.errors import UsageError
from terra_cx.report import files
from terra_cx.report.reading import read

__all__ = ["main"]

SLOWER, BAD_INPUT, UNWRITABLE = 1, 2, 9

_EPILOG = """
exit status: 0 nothing got slower by more than the threshold; 1 something did; 2 wrong usage, a file that is not what a
run left, or nothing that could be compared; 9 a file cannot be written.
"""


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(list(words))
    claims = files.Claims({"json": options.json})
    try:
        before, after = read(options.before), read(options.after)
        found = compare(before, after)
        if not found.comparable:
            names = f"{options.before} and {options.after}"
            raise UsageError(f"{names} have no co-executed step in common; name two runs of one program")
    except UsageError as error:
        sys.stderr.write(f"terra-cx diff: {error}\n")
        return BAD_INPUT
    status = SLOWER if found.slower(options.threshold) else 0
    claims.write("json", lambda: files.as_json(record(found, before, after, options.threshold, status)))
    show(Console(), found, options.threshold)
    for problem in claims.problems:
        sys.stderr.write(f"terra-cx diff: {problem}\n")
    return status or (UNWRITABLE if claims.failed else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="terra-cx diff",
        description="Compares two runs by what they have left (terra-run --profile DIR, or --report FILE): what got "
        "slower, and which lines, waits and divergences are behind it.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "before", type=Path, metavar="BEFORE", help="a profile or a report, or a --profile folder"
    )
    parser.add_argument("after", type=Path, metavar="AFTER", help="another one, of the same program")
    parser.add_argument(
        "--threshold",
        type=percent,
        default=0.1,
        metavar="P%",
        help="how much slower something may get (default: 10%%)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    return parser

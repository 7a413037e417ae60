"""The words of a command line that holds programs and their arguments, and the values that argparse reads from it.

The readers raise `argparse.ArgumentTypeError` with what is wanted instead.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from terra_cx import config
from terra_cx.errors import UsageError

__all__ = ["common", "factor", "parse", "pattern", "percent", "whole"]


def common(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of a command that runs programs, with the options that all such commands have."""
    parser = argparse.ArgumentParser(
        prog=f"terra-cx {name}",
        usage=f"terra-cx {name} [options] PATH... [-- ARGUMENTS]",
        description=f"{description} ARGUMENTS go to every program.",
        epilog=epilog,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH", help="a script, or a folder of scripts")
    add("--steps", type=whole, metavar="N", help="give --steps N to every program")
    add("--json", type=Path, metavar="FILE", help="write all that was found")
    add(
        "--mask",
        action="append",
        default=[],
        type=pattern,
        metavar="REGEX",
        help="what matches in the standard output is not compared (a time, a date)",
    )
    add(
        "--timeout",
        type=whole,
        default=3600,
        metavar="SECONDS",
        help="kill a run that takes longer (default: 3600)",
    )
    return parser


def parse(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """The options, and the programs' arguments: the words behind the first `--`, with `--steps` before them.

    Ends the process with status 2 where the words or the settings are wrong, or terra-cx is turned off.
    """
    words = list(words)
    at = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:at])
    arguments = tuple(words[at + 1 :])
    if options.steps is not None:
        arguments = ("--steps", str(options.steps), *arguments)
    try:
        disabled = config.load().disable
    except UsageError as error:
        parser.error(str(error))
    if disabled:
        parser.error("terra-cx is turned off here, so there is nothing to run; unset TERRA_DISABLE")
    return options, arguments


def whole(word: str) -> int:
    """A whole number of at least 1."""
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {word!r}")
    return int(word)


def factor(word: str) -> float:
    """A number above 0, `1.5` or `1.5x`."""
    try:
        number = float(word.removesuffix("x"))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"a number above 0, not {word!r}")
    return number


def percent(word: str) -> float:
    """A share, `10%` as 0.1. The sign is required: `0.1` would leave open which is meant."""
    try:
        number = float(word.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not word.endswith("%") or not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"a share such as 10%, not {word!r}")
    return number / 100


def pattern(word: str) -> re.Pattern[str]:
    """A regular expression."""
    try:
        return re.compile(word)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{word!r} is no regular expression: {error}") from None

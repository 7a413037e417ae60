"""The words of a command line that holds programs and their arguments, and the values that argparse reads from it.

The readers raise `argparse.ArgumentTypeError` with what is wanted instead.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

__all__ = ["factor", "pattern", "percent", "split_words", "whole"]


def split_words(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Our words, and those behind the first `--`, which are the programs'."""
    if "--" not in words:
        return list(words), ()
    at = list(words).index("--")
    return list(words[:at]), tuple(words[at + 1 :])


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

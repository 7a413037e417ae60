"""The command `terra-cx cache`: what is in a cache, and emptying it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from terra_cx import config
from terra_cx.cache.store import Entry, Unreadable, describe, entries, remove
from terra_cx.errors import TerraError, UsageError
from terra_cx.report.quantities import count

__all__ = ["main"]

_EPILOG = (
    "DIR is that of the setting cache (TERRA_CACHE, or cache in pyproject.toml) if it is not given. "
    "exit status: 0 done; 1 something could not be removed; 2 wrong usage."
)


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    given = _parser().parse_args(list(words))
    try:
        folder = _folder(given.folder)
        return _info(folder) if given.action == "info" else _clear(folder)
    except TerraError as error:
        sys.stderr.write(f"terra-cx cache: {error}\n")
        return error.exit_code


def _folder(given: Path | None) -> Path:
    folder = given or config.load().cache
    if folder is None:
        raise UsageError("which cache? name its directory, or set TERRA_CACHE")
    if not folder.is_dir():
        raise UsageError(f"{folder} is no directory; name that of a cache")
    return folder


def _info(folder: Path) -> int:
    found = sorted(entries(folder), key=lambda entry: entry.used, reverse=True)
    for entry in found:
        sys.stdout.write(f"{_size(entry.size):>9}  {_when(entry)}  {_told(entry)}\n")
    total = _size(sum(entry.size for entry in found))
    sys.stdout.write(f"{count(len(found), 'loop')} in {folder}, {total}\n")
    return 0


def _clear(folder: Path) -> int:
    found = entries(folder)
    failed = [entry.path for entry in found if not remove(entry.path)]
    sys.stdout.write(f"{count(len(found) - len(failed), 'loop')} removed from {folder}\n")
    for path in failed:
        sys.stderr.write(f"terra-cx cache: cannot remove {path}; who may write to {folder} can\n")
    return 1 if failed else 0


def _told(entry: Entry) -> str:
    try:
        described = describe(entry.path)
    except Unreadable as why:
        return f"{entry.path.name}: not used, {why}"
    return f"{described['line']}  TensorFlow {described['tensorflow']}, {count(described['traces'], 'trace')}"


def _when(entry: Entry) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="terra-cx cache",
        description="Shows or empties a cache of what terra-cx has learned of programs' steps.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=("info", "clear"), help="what to do")
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="the cache")
    return parser

"""Files that are written at the end of a run, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from terra_cx.errors import UsageError
from terra_cx.report.record import Record


def claim(path: Path) -> Path:
    """Find out, before the program starts, whether `path` can be written at its end; leaves nothing behind.

    Returns:
        The absolute path to give to `write_text` later, wherever the program will have changed to. A
        symbolic link is followed, so that the link stays.

    Raises:
        UsageError: the file could not be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        # Also a device: the final rename would put a file in its place.
        raise UsageError(f"cannot write {path}: not a regular file; name another one")
    draft = _draft(target)
    try:
        draft.touch(exist_ok=False)
        draft.unlink()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; name another file") from None
    return target


def write_text(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename it, so that a reader finds the old file or the new one.

    Raises:
        OSError: nothing has been written.
    """
    draft = _draft(path)
    try:
        with draft.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


class Claims:
    """The files that a command writes at its end. What cannot be written is told, and keeps nothing else from it.

    Args:
        wanted: by a name of the caller's; None for a file that nobody asked for.
    """

    def __init__(self, wanted: Mapping[str, Path | None]) -> None:
        self.problems: list[str] = []
        self.failed = False
        self._places = {name: place for name, path in wanted.items() if path and (place := self._claim(path))}

    def _claim(self, path: Path) -> Path | None:
        try:
            return claim(path)
        except UsageError as error:
            self._fail(str(error))
            return None

    def write(self, name: str, make: Callable[[], str]) -> None:
        """Write what `make` returns, if the file was asked for and can be written."""
        place = self._places.get(name)
        if place is None:
            return
        try:
            write_text(place, make())
        except OSError as error:
            self._fail(f"cannot write {place}: {error.strerror}; name another file")

    def _fail(self, problem: str) -> None:
        self.failed = True
        self.problems.append(problem)


def as_json(record: Record) -> str:
    """The text of a run's JSON file.

    Raises:
        TypeError, ValueError: the record holds what JSON cannot, NaN for instance.
    """
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def _draft(path: Path) -> Path:
    # In the same directory, because a rename works only within a file system. Not tempfile: its files are
    # readable by their owner alone, and a report should get the permissions that any file of the user gets.
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")

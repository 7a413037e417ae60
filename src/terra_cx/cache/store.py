"""The files of a cache: one entry a file, written whole or not at all, and no code in any of them.

An entry is ``NAME.terra``: a line that says what it is and in which version, the SHA-256 of the rest, and zlib-packed
text. The name tells what it is for (`keys`). Whatever is wrong with a file or with the folder, the run goes on: the
first such thing is told, all are counted.

Guarantees:

* An entry is written to a file of another name and renamed, so that a reader finds the old entry or the new one,
  however the writer ends, and several processes may read and write at once: the last one wins.
* An entry that is cut short, changed, of another program or of another version of this format is not used.
* The folder is kept below its limit: the entries that were used longest ago go first.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["VERSION", "Entry", "Store", "Unreadable", "describe", "entries", "remove"]

VERSION = 4
"""Of the format. An entry of another one is not read; raised whenever old entries would be misunderstood."""
SUFFIX = ".terra"
_MAGIC = b"terra-cx cache "
_HEADER = _MAGIC + str(VERSION).encode() + b"\n"
_DIGEST = hashlib.sha256().digest_size
_MOST = 1 << 28
"""Bytes of an entry once unpacked: more is no entry of ours."""
_LEFTOVER = 3600.0
"""Seconds after which a file that a writer has left half-written is removed."""


class Unreadable(Exception):
    """A file that is not used; the message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a cache: where it is, its size in bytes, when it was used last (seconds since 1970)."""

    path: Path
    size: int
    used: float


class Store:
    """The entries in one folder.

    Args:
        folder: where they are; made if it is missing.
        limit: how many bytes they may take together.
        readonly: whether nothing may be written, changed or removed.
        tell: given a line for the user, once.
    """

    def __init__(self, folder: Path, limit: int, readonly: bool, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.limit = limit
        self.readonly = readonly
        self.problems = 0
        """How often something was wrong with a file or with the folder."""
        self._tell = tell
        self._names = self._listed()
        if not readonly:
            self._claim()

    def _listed(self) -> set[str]:
        try:
            return {name[: -len(SUFFIX)] for name in os.listdir(self.folder) if name.endswith(SUFFIX)}
        except (FileNotFoundError, NotADirectoryError):
            if self.readonly:
                self._problem(f"there is no folder {self.folder} to read")
        except OSError as error:
            self._problem(f"{self.folder} cannot be read ({error.strerror})")
        return set()

    def _claim(self) -> None:
        """Find out whether entries can be written."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = self._draft("claim")
            draft.touch(exist_ok=False)
            draft.unlink()
        except OSError as error:
            self.readonly = True
            self._problem(f"{self.folder} cannot be written ({error.strerror}), so nothing new is kept there")

    def has(self, name: str) -> bool:
        """Whether there was an entry of this name when the store was opened."""
        return name in self._names

    def load(self, name: str) -> bytes | None:
        """The content of an entry; None if there is none that can be used."""
        path = self._path(name)
        try:
            content = _content(path)
        except FileNotFoundError:
            return None  # another process has removed it meanwhile
        except OSError as error:
            self._problem(f"{path} cannot be read ({error.strerror})")
            return None
        except Unreadable as why:
            self.unusable(name, str(why))
            return None
        if not self.readonly:
            try:
                os.utime(path)
            except OSError:
                pass  # removed meanwhile, or another user's: it only counts as used earlier
        return content

    def unusable(self, name: str, why: str) -> None:
        """An entry turned out to be of no use: say so, and do not look at it again in this process."""
        self._names.discard(name)
        self._problem(f"{self._path(name)} is not used: {why}")

    def save(self, name: str, content: bytes) -> bool:
        """Write an entry; whether that was done."""
        if self.readonly:
            return False
        packed = zlib.compress(content, 1)
        data = b"".join((_HEADER, hashlib.sha256(packed).digest(), packed))
        if len(data) > self.limit:
            self._problem(f"what was learned takes {len(data)} bytes, more than the cache may (cache-limit)")
            return False
        draft = self._draft(name)
        try:
            with draft.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path(name))
        except OSError as error:
            self._problem(f"{self._path(name)} cannot be written ({error.strerror})")
            try:
                draft.unlink(missing_ok=True)
            except OSError:
                pass  # told already; a later run removes it
            return False
        self._evict(name)
        return True

    def _evict(self, kept: str) -> None:
        found = sorted(entries(self.folder), key=lambda entry: entry.used)
        total = sum(entry.size for entry in found)
        for entry in found:
            if total <= self.limit:
                return
            if entry.path.stem != kept:
                remove(entry.path)
                total -= entry.size

    def _path(self, name: str) -> Path:
        return self.folder / (name + SUFFIX)

    def _draft(self, name: str) -> Path:
        return self.folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"

    def _problem(self, text: str) -> None:
        self.problems += 1
        if self.problems == 1:
            self._tell(f"cache: {text}; the run goes on")


def entries(folder: Path) -> list[Entry]:
    """The entries of a folder, none if it cannot be read. Files that writers left half-written long ago are removed."""
    found = []
    try:
        with os.scandir(folder) as scan:
            for item in scan:
                try:
                    status = item.stat(follow_symlinks=False)
                except OSError:
                    continue  # removed meanwhile
                if item.name.endswith(SUFFIX):
                    found.append(Entry(Path(item.path), status.st_size, status.st_mtime))
                elif _is_draft(item.name) and time.time() - status.st_mtime > _LEFTOVER:
                    remove(Path(item.path))
    except OSError:
        return []
    return found


def _is_draft(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def remove(path: Path) -> bool:
    """Remove a file; whether it is gone."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False  # a read-only folder, or another user's file: it stays
    return True


def describe(path: Path) -> dict[str, Any]:
    """What an entry is about: `line`, `tensorflow` (version), `traces` (how many).

    Raises:
        Unreadable: it is no entry that can be used.
    """
    try:
        entry = json.loads(_content(path))
        return {
            "line": str(entry["line"]),
            "tensorflow": str(entry["environment"]["tensorflow"][0]),
            "traces": len(entry["journal"]["traces"]),
        }
    except OSError as error:
        raise Unreadable(f"it cannot be read ({error.strerror})") from None
    except (LookupError, TypeError, ValueError):
        raise Unreadable("it is damaged") from None


def _content(path: Path) -> bytes:
    """What an entry holds.

    Raises:
        OSError: the file cannot be read.
        Unreadable: it is no entry, damaged, or of another version.
    """
    with path.open("rb") as file:
        data = file.read(_MOST)
    if not data.startswith(_MAGIC):
        raise Unreadable("it is no file of terra-cx's" if data else "it is empty")
    if not data.startswith(_HEADER):
        raise Unreadable("another version of terra-cx has written it")
    digest, packed = data[len(_HEADER) : len(_HEADER) + _DIGEST], data[len(_HEADER) + _DIGEST :]
    if hashlib.sha256(packed).digest() != digest:
        raise Unreadable("it is damaged")
    inflate = zlib.decompressobj()
    try:
        content = inflate.decompress(packed, _MOST)
    except zlib.error as error:
        raise Unreadable("it is damaged") from error
    if not inflate.eof:
        raise Unreadable("it is too large")
    return content

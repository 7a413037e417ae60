"""What was seen of one run, as files: the stream of values that crossed to Python, and what was left at the end.

A stream is a text file with a JSON list a line, written while the program runs and read one line at a time, so that
neither side holds it in memory. A value is described by dtype, shape and a digest of all its bits; where it is small
enough to be shown, by its text as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from terra_cx.check.readers import Readers
from terra_cx.check.visits import Clock

__all__ = ["Crossing", "Recorder", "Value", "describe", "read", "restored", "sketch"]

_SHOWN = 6  # elements
_MOST_TEXT = 200  # characters
_SUMS = 8


@dataclass(frozen=True, slots=True)
class Value:
    """The bits of a value.

    `text` shows it (its first elements if there are many); it is not compared, `digest` is. `sketch` is that of a
    floating point array with more elements than are shown, if it was asked for.
    """

    dtype: str
    shape: tuple[int, ...]
    digest: str
    text: str
    sketch: tuple[float, ...] = ()

    def same(self, other: Value) -> bool:
        """Whether dtype, shape and all bits are equal."""
        return (self.dtype, self.shape, self.digest) == (other.dtype, other.shape, other.digest)

    def __str__(self) -> str:
        kind = f"{self.dtype}[{'x'.join(map(str, self.shape))}]" if self.shape else self.dtype
        return f"{self.text} ({kind})"


@dataclass(frozen=True, slots=True)
class Crossing:
    """One value that reached Python: where in the program, in which step (None if not known), and which."""

    file: str
    line: int
    step: int | None
    value: Value

    @property
    def place(self) -> str:
        """`train.py:12`, the file relative to the working directory where it is below it."""
        below = os.path.relpath(self.file)
        return f"{self.file if below.startswith('..') else below}:{self.line}"


def sketch(array: np.ndarray[Any, Any]) -> tuple[float, ...]:
    """The length of an array, and sums of its elements with signs drawn at random, always the same.

    The mean square of what such a sum of two arrays differs by is the square of the length of their difference,
    whatever that is. So the relative distance of two arrays can be told without keeping them, to a factor of two or so.
    """
    flat = array.reshape(-1).astype(np.float64)
    total = flat.sum()
    rng = np.random.Generator(np.random.PCG64(flat.size))
    sums = []
    for _ in range(_SUMS):
        signs = np.unpackbits(np.frombuffer(rng.bytes(flat.size // 8 + 1), np.uint8), count=flat.size)
        sums.append(float(2.0 * flat[signs.view(bool)].sum() - total))
    return float(np.linalg.norm(flat)), *sums


def describe(value: Any, sketched: bool = False) -> Value:
    """Describe a NumPy array or scalar, or bytes, as native code hands them out.

    Args:
        value: the value.
        sketched: whether a long floating point array is to have a sketch.
    """
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind in "SU":
        return _describe_strings(value)
    flat = array.reshape(-1)
    text = _text([flat[index].item() for index in range(min(flat.size, _SHOWN))], flat.size, array.shape)
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    digest = hashlib.blake2b(bits, digest_size=16).hexdigest()
    long = sketched and flat.size > _SHOWN and "float" in array.dtype.name
    return Value(array.dtype.name, array.shape, digest, text, sketch(array) if long else ())


def _describe_strings(value: Any) -> Value:
    """Strings are `bytes` in an object array, or one `bytes`; each enters the digest with its length."""
    items = [value] if isinstance(value, bytes) else list(np.asarray(value, object).reshape(-1))
    shape = () if isinstance(value, bytes) else np.asarray(value, object).shape
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        data = item if isinstance(item, bytes) else repr(item).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return Value("string", shape, digest.hexdigest(), _text(items[:_SHOWN], len(items), shape))


def _text(items: list[Any], size: int, shape: tuple[int, ...]) -> str:
    if not shape:
        text = repr(items[0])
    else:
        text = "[" + ", ".join(map(repr, items)) + (", ..." if size > len(items) else "") + "]"
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "..."


class Recorder:
    """Writes the stream of this process.

    Only the thread that made it is heard: what others read, and in which order, is not the same in any two runs. Nor
    does a forked child write. A failure of ours is counted and never reaches the program.

    Args:
        path: the file to write.
        readers: says which reads count.
        clock: knows the number of the program's step, from 1; 0 where nobody tells it.
        sketched: whether long values are to have a sketch.
    """

    def __init__(self, path: Path, readers: Readers, clock: Clock, sketched: bool = False) -> None:
        self._sketched = sketched
        self._file = path.open("w", encoding="utf-8")
        self._readers = readers
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._clock = clock
        self.counts = {"compared": 0, "library": 0, "other threads": 0}
        self.failure: str | None = None

    def seen(self, value: Any, frame: FrameType) -> None:
        """A value has reached Python below `frame`."""
        if threading.get_ident() != self._thread:
            self.counts["other threads"] += 1
            return
        if os.getpid() != self._process or self._file.closed:
            return
        try:
            place = self._readers.line(frame)
            if place is None:
                self.counts["library"] += 1
                return
            self.counts["compared"] += 1
            item = (*place, self._clock.count or None, *astuple(describe(value, self._sketched)))
            self._file.write(json.dumps(item) + "\n")
        except Exception as error:  # noqa: BLE001  # this runs inside the program's own statement
            self.failure = self.failure or f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """Write what is buffered; nothing is recorded any more."""
        if os.getpid() == self._process:
            self._file.close()


def restored(parts: list[Any]) -> Value:
    """The value whose fields JSON has held."""
    dtype, shape, digest, text, *rest = parts
    return Value(dtype, tuple(shape), digest, text, tuple(rest[0]) if rest else ())


def read(path: Path) -> Iterator[Crossing]:
    """Yield the crossings of a stream; one that a dying process cut off in the middle is left out."""
    with path.open(encoding="utf-8") as stream:
        for text in stream:
            if not text.endswith("\n"):
                return
            file, line, step, *value = json.loads(text)
            yield Crossing(file, line, step, restored(value))

"""Reads back what a run has left: the report of `--report`, or the profile of `--profile`.

Both become a `Run`, in which what the file does not tell is None or empty, so that whoever explains or compares runs
need not know which of the two it was. Nothing in a file is believed: it may be truncated, something else, or of a
version to come, and each of these is told with the name of the file and what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from terra_cx import __version__
from terra_cx.errors import UsageError
from terra_cx.report.record import VERSION
from terra_cx.report.runs import Anchor, Call, Fallback, Fetch, Line, Run

__all__ = ["PROFILE_NAME", "FileError", "read"]

PROFILE_KIND, PROFILE_VERSION = "terra-cx profile", 1
"""What docs/design/profile.md says of the file."""
PROFILE_NAME = "profile.json"

_MOST_BYTES = 1 << 28


class FileError(UsageError):
    """A file is not what a run left, or cannot be read; the message names it and the remedy."""


def read(path: Path) -> Run:
    """Read a report, a profile, or the folder that `--profile` has filled.

    Raises:
        FileError: it cannot be read, or is something else.
    """
    if path.is_dir():
        inner = path / PROFILE_NAME
        if not inner.is_file():
            raise FileError(
                f"{path} is a folder without a {PROFILE_NAME}; name a folder that terra-run --profile filled"
            )
        path = inner
    data = _load(path)
    root = _Node(data, path, "")
    if not isinstance(data, dict):
        raise root.foreign()
    if "kind" in data:
        if data["kind"] != PROFILE_KIND:
            raise root.foreign()
        _check_version(root, PROFILE_VERSION, "profile")
        return _profile(root)
    if "programs" in data and "regions" not in data:
        raise FileError(
            f"{path} is what terra-cx check or terra-cx bench wrote, of many runs; "
            "name the report or profile of one (terra-run --report FILE, --profile DIR)"
        )
    if not {"version", "regions", "anchors", "fallbacks"} <= data.keys():
        raise root.foreign()
    _check_version(root, VERSION, "report")
    return _report(root)


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise FileError(f"{path} is too large for a report or profile ({path.stat().st_size >> 20} MiB)")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(
            f"cannot read {path}: {error.strerror}; name a file that terra-run --report wrote, or a --profile folder"
        ) from None
    except UnicodeDecodeError:
        raise FileError(f"{path} is no text; name the JSON file of a run") from None
    if not text.strip():
        raise FileError(f"{path} is empty: the run did not end, or its disk was full; run it again")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) - 5 or error.msg.startswith("Unterminated string"):
            raise FileError(
                f"{path} ends in the middle (line {error.lineno}): it was cut off; copy it or run terra-run again"
            ) from None
        raise FileError(
            f"{path} is not JSON (line {error.lineno}: {error.msg}); name the file of a run"
        ) from None
    except (RecursionError, ValueError):
        raise FileError(f"{path} is no JSON of terra-cx; name the report or profile of a run") from None


def _check_version(root: _Node, known: int, what: str) -> None:
    version = root["version"].whole()
    if version > known:
        writer = root["terra_cx"].text()
        raise FileError(
            f"{root.path} is a {what} of version {version}, written by terra-cx {writer}; this is {__version__}, which "
            f"reads version {known}: update terra-cx"
        )
    if version < known:
        raise FileError(
            f"{root.path} is a {what} of version {version}, which is no longer read; run it again"
        )


class _Node:
    """A value in a file, with the way to it for messages."""

    __slots__ = ("path", "value", "where")

    def __init__(self, value: Any, path: Path, where: str) -> None:
        self.value = value
        self.path = path
        self.where = where

    def foreign(self) -> FileError:
        return FileError(
            f"{self.path} is JSON, but neither a report nor a profile of terra-cx; "
            "name a file that terra-run --report wrote, or a --profile folder"
        )

    def _wrong(self, wanted: str) -> FileError:
        shown = f"{self.value!r:.40}"
        return FileError(
            f"{self.path} is damaged: {self.where or 'it'} should be {wanted}, not {shown}; run terra-run again"
        )

    def __getitem__(self, key: str) -> _Node:
        """A member; null if it is not there."""
        if not isinstance(self.value, dict):
            raise self._wrong("an object")
        return _Node(self.value.get(key), self.path, f"{self.where}.{key}".lstrip("."))

    def each(self) -> Iterator[_Node]:
        """The elements of a list; none of null."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            raise self._wrong("a list")
        for number, value in enumerate(self.value):
            yield _Node(value, self.path, f"{self.where}[{number}]")

    def members(self) -> dict[str, _Node]:
        """The members of an object; none of null."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self._wrong("an object")
        return {key: self[key] for key in self.value}

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self._wrong("a text")
        return self.value

    def text_or_none(self) -> str | None:
        return None if self.value is None else self.text()

    def number(self) -> float:
        if (
            isinstance(self.value, bool)
            or not isinstance(self.value, int | float)
            or not math.isfinite(self.value)
        ):
            raise self._wrong("a number")
        return self.value

    def number_or_none(self) -> float | None:
        return None if self.value is None else self.number()

    def whole(self) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self._wrong("a whole number")
        return self.value

    def numbers(self) -> dict[str, float]:
        """An object of numbers; what is null is left out."""
        return {key: node.number() for key, node in self.members().items() if node.value is not None}

    def counts(self) -> dict[str, int]:
        return {key: node.whole() for key, node in self.members().items()}


def _profile(root: _Node) -> Run:
    anchors = tuple(_anchor(node, ()) for node in root["anchors"].each())
    main = root["main"].value
    if main is not None and not 0 <= root["main"].whole() < len(anchors):
        raise root["main"]._wrong("the number of an anchor")
    chosen = anchors[main] if main is not None else None
    regions: dict[str, int] = {}
    for anchor in anchors:
        for key, number in anchor.regions.items():
            regions[key] = regions.get(key, 0) + number
    return Run(
        anchors=anchors,
        main=chosen,
        regions={"total": sum(regions.values()), **regions},
        overlap=chosen.metrics.get("overlap") if chosen is not None and chosen.metrics is not None else None,
        seconds=root["seconds"].number(),
        totals={
            key: node.number()
            for key, node in root["totals"].members().items()
            if not isinstance(node.value, dict) and node.value is not None
        },
        problems=tuple(node.text() for node in root["problems"].each()),
        is_profile=True,
        **_head(root),
    )


def _report(root: _Node) -> Run:
    regions = root["regions"].counts()
    step = root["step_ms"]
    fallbacks = tuple(_fallback(node) for node in root["fallbacks"].each())
    anchors = [_anchor(node, ()) for node in root["anchors"].each()]
    main = None
    if anchors:
        # A report tells regions, step times and fallbacks of all anchors together.
        counted = {key: number for key, number in regions.items() if key != "total"}
        first = _anchor(next(root["anchors"].each()), fallbacks, counted, step)
        anchors[0] = main = first
    return Run(
        anchors=tuple(anchors),
        main=main,
        regions=regions,
        overlap=root["overlap"].number_or_none(),
        seconds=None,
        totals={
            key: node.number()
            for key, node in root["runner"].members().items()
            if isinstance(node.value, int | float)
        },
        is_profile=False,
        **_head(root),
    )


def _head(root: _Node) -> dict[str, Any]:
    return {
        "path": root.path,
        "terra_cx": root["terra_cx"].text(),
        "python": root["python"].text(),
        "tensorflow": root["tensorflow"].text_or_none(),
        "mode": root["mode"].text(),
        "command": tuple(node.text() for node in root["command"].each()),
        "internal_errors": root["internal_errors"].whole(),
    }


def _anchor(
    node: _Node,
    fallbacks: tuple[Fallback, ...],
    regions: dict[str, int] | None = None,
    step: _Node | None = None,
) -> Anchor:
    lines = tuple(_line(each) for each in node["lines"].each())
    own = tuple(_fallback(each) for each in node["fallbacks"].each())
    step = node["step_ms"] if step is None else step
    times = step.members()
    metrics = node["metrics"]
    return Anchor(
        line=node["line"].text(),
        text=node["text"].text_or_none() or "",
        state=node["state"].text(),
        given_up=node["given_up"].text_or_none(),
        live_tapes=node["live_tapes"].text_or_none(),
        manner=node["manner"].text_or_none(),
        regions=node["regions"].counts() if regions is None else regions,
        eager_ms=times["eager"].number_or_none() if "eager" in times else None,
        co_ms=times["co"].number_or_none() if "co" in times else None,
        fallbacks=own or fallbacks,
        calls=tuple(_call(each) for each in node["elisions"]["calls"].each())
        if node["elisions"].value
        else (),
        metrics=None if metrics.value is None else _metrics(metrics),
        parts=node["parts_ms"].numbers() if node["parts_ms"].value is not None else None,
        lines=lines,
        seconds=node["seconds"].numbers(),
    )


def _metrics(node: _Node) -> dict[str, Any]:
    """The metrics: numbers as numbers; `bound_by` with its three members checked."""
    found: dict[str, Any] = {
        key: inner.number()
        for key, inner in node.members().items()
        if not isinstance(inner.value, dict) and inner.value is not None
    }
    bound = node["bound_by"]
    if bound.value is not None:
        found["bound_by"] = {
            "what": bound["what"].text(),
            "line": bound["line"].text_or_none(),
            "share": bound["share"].number_or_none(),
        }
    return found


def _line(node: _Node) -> Line:
    return Line(
        line=node["line"].text(),
        text=node["text"].text_or_none() or "",
        ops=node["ops"].number_or_none() or 0.0,
        elided_ops=node["elided_ops"].number_or_none() or 0.0,
        parts=node["parts_ms"].numbers(),
        waits=node["waits"].whole(),
        wait_seconds=node["wait_seconds"].number(),
        fetches=tuple(
            Fetch(each["op"].text(), each["line"].text(), each["count"].whole(), each["seconds"].number())
            for each in node["fetches"].each()
        ),
    )


def _fallback(node: _Node) -> Fallback:
    return Fallback(
        reason=node["reason"].text(),
        line=node["at"].text_or_none() or node["line"].text(),
        detail=node["detail"].text_or_none() or "",
        count=node["count"].whole(),
        seconds=node["seconds"].number_or_none() or 0.0,
        differences=tuple(
            {
                "what": each["what"].text(),
                "new": each["new"].text(),
                "known": each["known"].text(),
                "count": each["count"].whole(),
            }
            for each in node["differences"].each()
        ),
    )


def _call(node: _Node) -> Call:
    return Call(
        call=node["call"].text(),
        of=node["of"].text(),
        line=node["line"].text_or_none() or "?",
        ops=node["ops"].whole(),
        elided=node["elided"].whole(),
        refused=node["refused"].text_or_none(),
    )

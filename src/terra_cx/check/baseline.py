"""The ratios of step times that a later check is held against.

Ratios and not times: another machine is another time, but how much faster than eager a program is stays much the same.
A baseline belongs to the arguments that the programs got; with others the ratios are others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import terra_cx
from terra_cx.errors import UsageError
from terra_cx.report import files

__all__ = ["VERSION", "BaselineError", "read", "text"]

VERSION = 1


class BaselineError(UsageError):
    """A baseline cannot be used."""


def read(path: Path, arguments: Sequence[str]) -> dict[str, float]:
    """The ratio of each program's co-executed to its eager step time, by name.

    Args:
        path: a file that `text` made.
        arguments: what the programs get now.

    Raises:
        BaselineError: there is no such file, or it is none, or of another version or other arguments.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BaselineError(f"baseline {path}: {error.strerror}; make one with --write-baseline") from None
    except ValueError:
        raise BaselineError(f"baseline {path}: not JSON; make one with --write-baseline") from None
    if not isinstance(found, dict) or "version" not in found or not isinstance(found.get("programs"), dict):
        raise BaselineError(f"baseline {path}: not a baseline; make one with --write-baseline")
    if found["version"] != VERSION:
        raise BaselineError(
            f"baseline {path}: of version {found['version']}, but this terra-cx reads version {VERSION}; "
            "make a new one with --write-baseline"
        )
    if list(arguments) != found.get("arguments"):
        made = " ".join(found.get("arguments") or []) or "no arguments"
        raise BaselineError(
            f"baseline {path}: made with {made}, but the programs get {' '.join(arguments) or 'no arguments'} now"
        )
    ratios = {}
    for name, figures in found["programs"].items():
        ratio = figures.get("ratio") if isinstance(figures, dict) else None
        if not isinstance(ratio, int | float) or not ratio > 0:
            raise BaselineError(f"baseline {path}: no ratio above 0 for {name}; make a new one")
        ratios[name] = float(ratio)
    return ratios


def text(ratios: Mapping[str, float], arguments: Sequence[str]) -> str:
    """A baseline's text."""
    record: dict[str, Any] = {
        "version": VERSION,
        "terra_cx": terra_cx.__version__,
        "arguments": list(arguments),
        "programs": {name: {"ratio": round(ratio, 4)} for name, ratio in sorted(ratios.items())},
    }
    return files.as_json(record)

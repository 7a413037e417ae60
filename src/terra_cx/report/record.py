"""The record of one run: a dictionary that JSON can hold, the only thing that reports are made from.

Keys of version 1:

| key | value |
| --- | --- |
| `version` | 1; raised when a key changes its meaning or goes away |
| `terra_cx`, `python`, `tensorflow` | versions; `tensorflow` is null if the program never imported it |
| `mode` | the mode of the run |
| `command` | the words that started the program, its arguments included |
| `regions` | `{total, co_executed, traced, eager}`: counts |
| `step_ms` | `{eager, co}`: milliseconds of a region, in eager and co-executed; null if none |
| `overlap` | the part of the graph's time, 0 to 1, in which Python was running too; null if unknown |
| `fallbacks` | list of `{reason, line, at, count, seconds, detail, differences}`; `line` reads `train.py:12`, `at` |
| | has the whole path; `detail` says what was new when it happened first |
| `differences` | list of `{what, op, where, new, known, lines, count}`: up to eight kinds (`run.differences`) |
| `anchors` | list of `{line, state, nodes, blocks, given_up, manner, manner_ms, warm_start}`; `given_up` is the |
| | reason or null; `warm_start` how an entry of the cache was taken up, or null; |
| | `manner` is how its regions run as measured, overlapped or in turns, null before; `manner_ms` the measurements |
| `cache` | `{folder, readonly, loaded, saved, problems}`: entries taken up and written, and how often something |
| | was wrong with a file or the folder; only if there is one |
| `levels` | `{asked, blocks, measured, refused}`: the level asked for; how many blocks run at which, or op by op; |
| | with `auto`, list of `{line, picked, over, exact_ms, relative}`; list of |
| | `{reason, level, line, at, detail, count}`, why blocks run lower than asked for; null if no step was found |
| `internal_errors` | how often terra-cx itself failed and the program went on in eager |
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from terra_cx import __version__

VERSION = 1

Record = dict[str, Any]


def blank(mode: str) -> Record:
    """A record in which nothing has been observed yet; every key is there."""
    tensorflow = sys.modules.get("tensorflow")
    return {
        "version": VERSION,
        "terra_cx": __version__,
        "python": platform.python_version(),
        "tensorflow": getattr(tensorflow, "__version__", None),
        "mode": mode,
        "command": [],
        "regions": {"total": 0, "co_executed": 0, "traced": 0, "eager": 0},
        "step_ms": {"eager": None, "co": None},
        "overlap": None,
        "fallbacks": [],
        "anchors": [],
        "levels": None,
        "internal_errors": 0,
    }

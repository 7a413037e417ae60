"""What an entry is for: the program's code at the anchor, and what is around it and decides which ops a step issues.

Other code of the program (functions the step calls, other modules) is part of the entry itself: each code object in a
stored call path is known by its fingerprint and has to be found in this process (`codes`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import zlib
from pathlib import Path
from typing import Any

from terra_cx import __version__, machine
from terra_cx.config import Options

__all__ = ["environment", "name_of", "pace_key"]

_LIBRARIES = ("keras", "tf_keras", "numpy", "optree", "ml_dtypes", "bytecode")
_VARIABLES = ("TF_", "XLA_", "CUDA_VISIBLE_DEVICES", "KERAS_BACKEND", "NVIDIA_TF32_OVERRIDE", "ONEDNN_")
"""How the names of environment variables begin that change ops or kernels."""
_SILENT = frozenset(
    {"TF_CPP_MIN_LOG_LEVEL", "TF_CPP_MAX_VLOG_LEVEL", "TF_CPP_VMODULE", "TF_CPP_LOG_THREAD_ID"}
)


def environment(options: Options) -> dict[str, Any]:
    """Versions, devices and settings; an entry that was made with others is not used. TensorFlow must be imported."""
    tensorflow = sys.modules["tensorflow"]
    return {
        "terra_cx": __version__,
        "build": _build(),
        "python": sys.version,
        "machine": platform.machine(),
        "tensorflow": [tensorflow.__version__, str(tensorflow.version.GIT_VERSION)],
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "devices": sorted(device.name for device in tensorflow.config.list_physical_devices()),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_VARIABLES) and name not in _SILENT
        },
        "max_nodes": options.max_nodes,
    }


def pace_key(options: Options) -> list[Any]:
    """What a measured pace depends on beside the environment."""
    return [
        options.mode,
        options.pace,
        options.level,
        options.run_ahead,
        options.no_elide,
        machine.processor(),
        machine.cpus(),
    ]


def name_of(around: dict[str, Any], place: list[Any]) -> str:
    """The name of the entry for an anchor.

    Args:
        around: the `environment`.
        place: the fingerprint of the anchor's code, and which of its anchors it is.
    """
    text = json.dumps([around, place], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _build() -> int:
    """A checksum of this package's own code: a working copy changes without its version."""
    total = 0
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        total = zlib.crc32(path.read_bytes(), total)
    return total

"""What can be known of this environment without importing TensorFlow."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import terra_cx
from terra_cx import config, machine
from terra_cx.errors import ConfigError

__all__ = ["Facts", "gather"]

_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "KMP_AFFINITY",
    "OMP_NUM_THREADS",
    "TF_DETERMINISTIC_OPS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_USE_LEGACY_KERAS",
    "XLA_FLAGS",
)
"""Variables of the environment that change which kernels TensorFlow runs, or on how many threads."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is, unjudged.

    `quota` is in processors, None without one. `settings` holds those that are not the default, and `setting_error`
    why they cannot be read.
    """

    terra_cx: str
    place: str
    python: tuple[int, int, int]
    implementation: str
    free_threaded: bool
    executable: str
    system: str
    machine: str
    processor: str
    cpus: int
    quota: float | None
    nvidia: bool
    variables: dict[str, str]
    settings: dict[str, Any]
    setting_error: str | None


def gather() -> Facts:
    """The facts about this process and machine."""
    settings: dict[str, Any] = {}
    error = None
    try:
        plain = asdict(config.Options())
        settings = {name: value for name, value in asdict(config.load()).items() if value != plain[name]}
    except ConfigError as problem:
        error = str(problem)
    return Facts(
        terra_cx=terra_cx.__version__,
        place=str(Path(terra_cx.__file__).parent),
        python=sys.version_info[:3],
        implementation=platform.python_implementation(),
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        executable=sys.executable,
        system=platform.system(),
        machine=platform.machine(),
        processor=machine.processor(),
        cpus=machine.cpus(),
        quota=machine.cpu_quota(),
        nvidia=machine.has_nvidia_gpu(),
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        settings={name: str(value) for name, value in settings.items()},
        setting_error=error,
    )

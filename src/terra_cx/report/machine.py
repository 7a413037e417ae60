"""What a program ran on."""

from __future__ import annotations

import os
import platform

__all__ = ["cpus", "processor"]


def processor() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line for line in file if line.startswith("model name")), "")
    except OSError:
        name = ""
    return name.partition(":")[2].strip() or platform.machine()


def cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))

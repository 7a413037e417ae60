"""What this machine is: the processor, and how much of it this process gets."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["cpu_quota", "cpus", "has_nvidia_gpu", "processor"]


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


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The processors' worth of time that the control group allows, None without a limit.

    A container is often given a share of all processors instead of a few of them. `cpus` then counts all, and so does
    TensorFlow, which starts a thread for each.

    Args:
        root: where control groups (version 2, or version 1) are mounted.
    """
    try:
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    if not quota.isdecimal() or not period.isdecimal() or not int(period):
        return None  # "max", or -1
    return int(quota) / int(period)


def has_nvidia_gpu() -> bool:
    """Whether the kernel has a driver for an NVIDIA GPU loaded, whatever TensorFlow makes of it."""
    return os.path.exists("/proc/driver/nvidia/version")

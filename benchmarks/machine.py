"""This process and this machine in figures, from /proc: so it needs Linux."""

# ruff: noqa: INP001

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

PAGE = os.sysconf("SC_PAGESIZE")


def rss() -> int:
    """Return the bytes of RAM this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def high_water() -> int:
    """Return the most bytes of RAM it ever had. Not ru_maxrss: that one is inherited from whoever started it."""
    return int(_field("/proc/self/status", "VmHWM").split()[0]) * 1024


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 (one is the listing's own)


def allow_open_files() -> int:
    """Allow as many open files as the system lets us, and return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def facts(directory: Path) -> dict[str, str]:
    """Return the facts that figures depend on."""
    return {
        "cpu": f"{os.cpu_count()} x {_field('/proc/cpuinfo', 'model name')}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "file system": _file_system(directory),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _field(file: str, name: str) -> str:
    """Return what stands after `name:` in a file of such lines; on some machines it is not there."""
    lines = Path(file).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "unknown")


def _file_system(directory: Path) -> str:
    inside = [mount for mount in _mounts() if directory.resolve().is_relative_to(mount[0])]
    return max(inside, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]


def _mounts() -> Iterator[tuple[str, str]]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, point, kind, *_ = line.split()
        yield point, f"{kind} on {device}"

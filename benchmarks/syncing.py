"""Three ways to make many open files survive power loss, each file with half a second of fresh audio in it."""

# ruff: noqa: INP001

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from speech import TICKS_PER_SECOND, ticks

THREADS = 8
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What it took to sync all files once."""

    wall_ms: float
    cpu_ms: float


def one_by_one(files: Sequence[int]) -> None:
    for file in files:
        os.fdatasync(file)


def on_threads(files: Sequence[int]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(os.fdatasync, files))


def whole_system(files: Sequence[int]) -> None:
    """Sync the file system that they are on, with whatever others have written there."""
    if LIBC.syncfs(files[0]) != 0:
        raise OSError(ctypes.get_errno(), "syncfs")


WAYS: dict[str, Callable[[Sequence[int]], None]] = {
    "fdatasync, one by one": one_by_one,
    f"fdatasync, {THREADS} threads": on_threads,
    "one syncfs": whole_system,
}


def compare(room: Path, *, files: int, repeats: int) -> dict[str, Round]:
    """Return the median round of each way; the ways take turns, so that other work on the disk meets all of them."""
    descriptors = [os.open(room / str(number), os.O_WRONLY | os.O_CREAT, 0o600) for number in range(files)]
    audio = b"".join(ticks(1)[: TICKS_PER_SECOND // 2])
    rounds: dict[str, list[Round]] = {name: [] for name in WAYS}
    whole_system(descriptors)  # the files themselves, which are new only once
    for _ in range(repeats):
        for name, way in WAYS.items():
            for descriptor in descriptors:
                os.write(descriptor, audio)
            rounds[name].append(_timed(way, descriptors))
    for descriptor in descriptors:
        os.close(descriptor)
    return {name: _median(found) for name, found in rounds.items()}


def _timed(way: Callable[[Sequence[int]], None], files: Sequence[int]) -> Round:
    wall, cpu = time.perf_counter(), time.process_time()
    way(files)
    return Round(wall_ms=(time.perf_counter() - wall) * 1000, cpu_ms=(time.process_time() - cpu) * 1000)


def _median(rounds: Sequence[Round]) -> Round:
    return Round(wall_ms=median(each.wall_ms for each in rounds), cpu_ms=median(each.cpu_ms for each in rounds))

"""Disks that refuse: the n-th call of an operation fails, and what is left of files and descriptors is counted."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_recorder import model
from edge_recorder.wav import Samples, Tag

STARTED = 1_790_000_000_000_000
RATE = 8000
WRITER = "abcdef123456-01234567"
# Whatever a call does to its disk goes through one of these.
OPERATIONS = ("open", "mkdir", "write", "pwrite", "ftruncate", "fdatasync", "fsync", "rename")


def noise(frames: int, seed: int = 1) -> Samples:
    """Return samples of which none is silence."""
    return np.random.default_rng(seed).integers(1, 9000, frames, np.int16)


def new_tag(rate: int = RATE, *, track: str = "user", first_sample: int = 0) -> Tag:
    call_id = model.new_call_id(STARTED)
    return Tag(
        call_id=call_id,
        started_at=STARTED,
        track=track,
        seq=1,
        first_sample=first_sample,
        rate=rate,
        writer=WRITER,
    )


def refusal(number: int = errno.EIO) -> OSError:
    return OSError(number, os.strerror(number))


def open_files() -> list[str]:
    """Return what the descriptors of this process are open on."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(each.readlink()))
        except FileNotFoundError:  # the one that this listing had
            continue
    return sorted(found)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextmanager
def failing(name: str, when: Callable[[int], bool], number: int = errno.EIO) -> Iterator[list[int]]:
    """Let those calls of `os.<name>` fail that `when` picks by their count, from 1. Yields the failed ones."""
    real = getattr(os, name)
    count, failed = [0], []

    def call(*args: object, **kwargs: object) -> object:
        count[0] += 1
        if when(count[0]):
            failed.append(count[0])
            raise refusal(number)
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, call)
        yield failed

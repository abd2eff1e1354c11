"""Which fault tests run when, and where a speaker keeps its data."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gate
import pytest

MEMORY = Path("/dev/shm")  # no disk that others share delays what is timed here; SIGKILL does not care
ROOM = 64 * 2**20  # bytes


@pytest.fixture(scope="session")
def gated() -> None:
    """Skip where no gate can be put before a process's disk."""
    reason = gate.reason_against()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory in memory, where the machine has one."""
    fits = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM
    directory = Path(tempfile.mkdtemp(prefix="edge-recorder-faults-", dir=MEMORY if fits else None))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def dice() -> random.Random:
    """The session's dice, which its seed throws again; in CI the change fails, and not the dice."""
    return random.Random(0 if os.environ.get("CI") else random.random())

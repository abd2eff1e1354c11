"""Audio that is too much for RAM while it waits: in a file without a name, which goes with its call's recorder."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from edge_recorder import durable
from edge_recorder.wav import SAMPLE_BYTES, Samples


@dataclass(frozen=True, slots=True)
class Stored:
    """Samples that are in a spill."""

    spill: Spill
    first: int
    frames: int

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, part: slice, /) -> Stored:
        within = range(self.frames)[part]
        return Stored(self.spill, self.first + within.start, len(within))

    def load(self) -> Samples:
        """Return the samples.

        Raises:
            OSError: The disk does not give them back.
        """
        return self.spill.read(self.first, self.frames)


class Spill:
    """A file without a name in `directory`, or above it while that is not made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: FileIO | None = None
        self._end = 0

    def store(self, samples: Samples) -> Stored | None:
        """Keep `samples` here; None where the disk refuses."""
        try:
            self._file = self._file or self._open()
            durable.write_all(self._file.fileno(), samples.data, at=self._end * SAMPLE_BYTES)
        except OSError:
            return None
        self._end += len(samples)
        return Stored(self, self._end - len(samples), len(samples))

    def read(self, first: int, frames: int) -> Samples:
        """Return what was stored as the samples from `first` on.

        Raises:
            OSError: The disk does not give it back.
        """
        if self._file is None:
            raise OSError(errno.EBADF, "the spill is closed")
        data = os.pread(self._file.fileno(), frames * SAMPLE_BYTES, first * SAMPLE_BYTES)
        if len(data) < frames * SAMPLE_BYTES:
            raise OSError(errno.EIO, "the spill is shorter than what was put into it")
        return np.frombuffer(data, "<i2")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _open(self) -> FileIO:
        there = next(path for path in (self._directory, *self._directory.parents) if path.is_dir())
        return tempfile.TemporaryFile(dir=there, buffering=0)

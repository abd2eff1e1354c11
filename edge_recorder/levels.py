"""What is measured of a segment's samples when it is sealed."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

import numpy as np

from edge_recorder.wav import Samples

WAVEFORM_RATE = 20  # (min, max) pairs a second
FULL_SCALE = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The hash and the levels of a stretch of audio, as the segment's row carries them."""

    pcm_sha256: str
    peak_dbfs: float | None
    rms_dbfs: float | None
    clipped: int
    waveform: str


def measure(samples: Samples, rate: int) -> Levels:
    """Measure `samples` (int16 mono) at `rate` Hz; levels are None for digital silence."""
    peak = int(np.abs(samples.astype(np.int32)).max(initial=0))
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    return Levels(
        pcm_sha256=hashlib.sha256(samples.astype("<i2", copy=False).tobytes()).hexdigest(),
        peak_dbfs=_dbfs(peak / FULL_SCALE),
        rms_dbfs=_dbfs(power**0.5 / FULL_SCALE),
        clipped=int(np.count_nonzero((samples == FULL_SCALE - 1) | (samples == -FULL_SCALE))),
        waveform=base64.b64encode(_waveform(samples, rate)).decode(),
    )


def _dbfs(ratio: float) -> float | None:
    return round(20 * float(np.log10(ratio)), 2) if ratio else None


def _waveform(samples: Samples, rate: int) -> bytes:
    """Return int8 (min, max) pairs, one for each started 1/20 s."""
    step = max(1, rate // WAVEFORM_RATE)
    if not len(samples):
        return b""
    starts = np.arange(0, len(samples), step)
    pairs = np.stack((np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)), axis=1)
    return (pairs >> 8).astype(np.int8).tobytes()

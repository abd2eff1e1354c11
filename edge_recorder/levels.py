"""What is measured of a segment's samples when it is sealed."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

import numpy as np

from edge_recorder.wav import Samples

WAVEFORM_RATE = 20  # (min, max) pairs a second
FULL_SCALE = 32768
BLOCK = 8192  # samples whose squares are summed at once: they stay in the cache, and BLAS starts no threads for them


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
    pcm = np.ascontiguousarray(samples, "<i2")
    low, high = _extremes(pcm, max(1, rate // WAVEFORM_RATE))
    peak = max(-int(low.min(initial=0)), int(high.max(initial=0)))
    return Levels(
        pcm_sha256=hashlib.sha256(pcm.data).hexdigest(),
        peak_dbfs=_dbfs(peak / FULL_SCALE),
        rms_dbfs=_dbfs(_power(pcm) ** 0.5 / FULL_SCALE),
        clipped=_clipped(pcm) if peak >= FULL_SCALE - 1 else 0,
        waveform=base64.b64encode(_waveform(low, high)).decode(),
    )


def _extremes(pcm: Samples, step: int) -> tuple[Samples, Samples]:
    """Return the lowest and the highest sample of each started `step`."""
    starts = np.arange(0, len(pcm), step)
    return np.minimum.reduceat(pcm, starts), np.maximum.reduceat(pcm, starts)


def _power(pcm: Samples) -> float:
    """Return the mean square. Every sum on the way is a whole number below 2^53: exact, in any order of adding."""
    blocks = (pcm[start : start + BLOCK].astype(np.float64) for start in range(0, len(pcm), BLOCK))
    return sum(float(block @ block) for block in blocks) / max(1, len(pcm))


def _clipped(pcm: Samples) -> int:
    return int(np.count_nonzero((pcm == FULL_SCALE - 1) | (pcm == -FULL_SCALE)))


def _dbfs(ratio: float) -> float | None:
    return round(20 * float(np.log10(ratio)), 2) if ratio else None


def _waveform(low: Samples, high: Samples) -> bytes:
    """Return int8 (min, max) pairs, one for each started 1/20 s."""
    return (np.stack((low, high), axis=1) >> 8).astype(np.int8).tobytes()

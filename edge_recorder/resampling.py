"""
From one rate to another, chunk by chunk. Pure: the same audio gives the same samples, however it is cut into chunks.

All of it is done in float32: soxr dithers integers, and audio resampled again must be the same audio.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from edge_recorder.wav import Samples

QUALITY = "HQ"
LOWEST, HIGHEST = -32768, 32767


class Resampler:
    """
    Audio of one voice that comes in another rate than its track has.

    What it gives out begins with the first sample fed, and is held back by 20 to 180 ms (from 8 kHz up): the filter
    looks ahead. So a stretch that ends has to be finished, or its end is lost.
    """

    def __init__(self, own: int, rate: int) -> None:
        self._rates = own, rate
        self._stream = self._begun()

    def feed(self, samples: Samples) -> Samples:
        """Return what is certain after `samples`, which may be nothing yet."""
        return _rounded(self._stream.resample_chunk(samples.astype(np.float32)))

    def finish(self) -> Samples:
        """Return the rest of the stretch, which is then as long as what was fed. What is fed next begins another."""
        ended, self._stream = self._stream, self._begun()
        return _rounded(ended.resample_chunk(np.empty(0, np.float32), last=True))

    def _begun(self) -> Any:
        return soxr.ResampleStream(*self._rates, 1, "float32", QUALITY)


def resampled(samples: Samples, own: int, rate: int) -> Samples:
    """Return all of a stretch at `rate` Hz."""
    return _rounded(soxr.resample(samples.astype(np.float32), own, rate, quality=QUALITY))


def _rounded(floats: NDArray[np.float32]) -> Samples:
    """Round `floats` in place. Resampling overshoots at full scale: that is held there, and never wraps."""
    whole = np.rint(floats, out=floats)
    return np.minimum(np.maximum(whole, LOWEST, out=whole), HIGHEST, out=whole).astype(np.int16)

"""
Resampling and mixing. Pure: the same audio gives the same mix, whenever it is made again.

Each stretch is resampled with a second of its neighbours on both sides, from whole second to whole second, where the
grids of all rates meet: so no stretch depends on how the one before was made, and no seam can be heard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import soxr
from numpy.typing import NDArray

from edge_recorder.wav import Samples, padded

CONTEXT = 1  # seconds of neighbouring audio on each side of what is resampled
FULL_SCALE = 32767
KNEE = 29204  # -1 dBFS: up to here the mix is the plain sum, above it bends instead of clipping

Reader = Callable[[str, int, int], Samples]  # (track, first sample, frames): silence where there is nothing


def mix(tracks: Mapping[str, int], *, rate: int, first: int, frames: int, read: Reader) -> Samples:
    """Return `frames` samples of the mix from sample `first` at `rate` Hz; `tracks` is name -> rate in Hz."""
    return add([stretch(name, own, rate=rate, first=first, frames=frames, read=read) for name, own in tracks.items()])


def stretch(name: str, own: int, *, rate: int, first: int, frames: int, read: Reader) -> Samples:
    """Return a stretch of one track, resampled from its `own` rate to `rate`."""
    if own == rate:
        return read(name, first, frames)
    start = max(0, first // rate - CONTEXT)
    seconds = -(-(first + frames) // rate) + CONTEXT - start
    # As float: soxr dithers integers, and a mix made again must be the same mix.
    resampled = soxr.resample(read(name, start * own, seconds * own).astype(np.float32), own, rate, quality="HQ")
    wanted = np.clip(np.rint(resampled[first - start * rate :][:frames]), -FULL_SCALE - 1, FULL_SCALE).astype(np.int16)
    return padded(wanted, frames)


def add(parts: list[Samples]) -> Samples:
    """Return the sum of equally long `parts`, bent softly above -1 dBFS so that it never clips."""
    if len(parts) == 1:
        return parts[0]
    total: NDArray[np.int32] = np.sum(np.stack(parts), axis=0, dtype=np.int32)
    loud = np.abs(total) > KNEE
    if loud.any():
        room = FULL_SCALE - KNEE
        over = np.abs(total[loud]) - KNEE
        total[loud] = np.sign(total[loud]) * (KNEE + np.rint(room * np.tanh(over / room))).astype(np.int32)
    mixed: Samples = total.astype(np.int16)
    return mixed

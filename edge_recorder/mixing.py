"""
Resampling and mixing. Pure: the same audio gives the same mix, whenever it is made again.

Each stretch is resampled with a second of its neighbours on both sides, from whole second to whole second, where the
grids of all rates meet: so no stretch depends on how the one before was made, and no seam can be heard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_recorder.resampling import resampled
from edge_recorder.wav import Samples, padded, silence

CONTEXT = 1  # seconds of neighbouring audio on each side of what is resampled
FULL_SCALE = 32766  # one below the greatest sample, so that no level counts a bent one as clipped
KNEE = 29204  # -1 dBFS: up to here the mix is the plain sum, above it bends instead of clipping
BLOCK = 16384  # samples that are summed plainly, or looked at one by one, together

Reader = Callable[[str, int, int], Samples]  # (track, first sample, frames): silence where there is nothing


def mix(tracks: Mapping[str, int], *, rate: int, first: int, frames: int, read: Reader) -> Samples:
    """Return `frames` samples of the mix from sample `first` at `rate` Hz; `tracks` is name -> rate in Hz."""
    if not tracks:
        return silence(frames)
    return add([stretch(name, own, rate=rate, first=first, frames=frames, read=read) for name, own in tracks.items()])


def stretch(name: str, own: int, *, rate: int, first: int, frames: int, read: Reader) -> Samples:
    """Return a stretch of one track, resampled from its `own` rate to `rate`."""
    if own == rate:
        return read(name, first, frames)
    start = max(0, first // rate - CONTEXT)
    seconds = -(-(first + frames) // rate) + CONTEXT - start
    wide = resampled(read(name, start * own, seconds * own), own, rate)
    return padded(wide[first - start * rate :][:frames], frames)


def add(parts: list[Samples]) -> Samples:
    """Return the sum of equally long `parts`, bent softly above -1 dBFS so that it never clips."""
    if len(parts) == 1:
        return parts[0]
    mixed = parts[0].copy()
    for part in parts[1:]:
        mixed += part  # wraps where it is too loud, which is made again
    loud = _loud(parts)
    mixed[loud] = _bent(_sum([part[loud] for part in parts]))
    return mixed


def _loud(parts: list[Samples]) -> NDArray[np.intp]:
    """Return where the sum is above the knee, looking only into those blocks that can reach it."""
    starts = np.arange(0, len(parts[0]), BLOCK)
    reach = np.sum([_peaks(part, starts) for part in parts], axis=0)
    found = [_above_knee(parts, start) for start in starts[reach > KNEE].tolist()]
    return np.concatenate(found) if found else np.empty(0, np.intp)


def _peaks(samples: Samples, starts: NDArray[np.intp]) -> NDArray[np.int32]:
    """Return how far each block reaches from zero."""
    low = np.minimum.reduceat(samples, starts).astype(np.int32)
    return np.maximum(np.maximum.reduceat(samples, starts), -low)


def _above_knee(parts: list[Samples], start: int) -> NDArray[np.intp]:
    total = _sum([part[start : start + BLOCK] for part in parts])
    return np.flatnonzero(np.abs(total) > KNEE) + start


def _sum(parts: list[Samples]) -> NDArray[np.int32]:
    total = parts[0].astype(np.int32)
    for part in parts[1:]:
        total += part
    return total


def _bent(total: NDArray[np.int32]) -> Samples:
    """Return sums above the knee, the louder the closer to full scale."""
    room = FULL_SCALE - KNEE
    over = np.abs(total) - KNEE
    bent: Samples = (np.sign(total) * (KNEE + np.rint(room * np.tanh(over / room)))).astype(np.int16)
    return bent

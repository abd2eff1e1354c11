"""
From the segments of a track to one stream that can be read from anywhere.

    segments   sorted by their first sample; where two overlap, one is silent, so they are summed
    holes      silence, of their true length
    the end    the call's, though the track may have fallen silent before it

Where the samples of a segment come from is the reader's business: the spool's file here, the store elsewhere. Only the
segments under the block that is read are held in memory.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from edge_recorder import mixing, spool, wav
from edge_recorder.errors import IntegrityMismatch
from edge_recorder.model import Segment
from edge_recorder.wav import Samples, padded

BLOCK = 65_536  # samples read at once when all of a stream is wanted

Reader = Callable[[Segment], Samples]


class Playback:
    """One track's timeline of `frames` samples, from the call's start."""

    def __init__(self, segments: Iterable[Segment], *, read: Reader, frames: int) -> None:
        self.frames = frames
        self._segments = sorted(segments, key=lambda each: (each.first_sample, each.seq))
        self._starts = [each.first_sample for each in self._segments]
        # The latest end so far only grows, so that whatever ended before a place is found by bisection.
        self._ends = list(accumulate((each.first_sample + each.frames for each in self._segments), max))
        self._read = read
        self._held: dict[str, Samples] = {}

    @property
    def rate(self) -> int:
        return self._segments[0].rate

    def read(self, start: int, frames: int) -> Samples:
        """Return `frames` samples from `start` on; fewer where the timeline ends."""
        stop = min(start + frames, self.frames)
        under = self._under(start, stop)
        self._held = {each.segment_id: self._samples(each) for each in under}
        block = np.zeros(max(0, stop - start), np.int32)
        for each in under:
            first, last = max(start, each.first_sample), min(stop, each.first_sample + each.frames)
            piece = self._held[each.segment_id][first - each.first_sample : last - each.first_sample]
            block[first - start : last - start] += piece
        return np.clip(block, -32768, 32767).astype(np.int16)

    def __iter__(self) -> Iterator[Samples]:
        for start in range(0, self.frames, BLOCK):
            yield self.read(start, BLOCK)

    def _under(self, start: int, stop: int) -> list[Segment]:
        """Return the segments that have samples between `start` and `stop`."""
        near = self._segments[bisect_right(self._ends, start) : bisect_left(self._starts, stop)]
        return [each for each in near if each.first_sample + each.frames > start]

    def _samples(self, segment: Segment) -> Samples:
        held = self._held.get(segment.segment_id)
        return self._read(segment) if held is None else held


def timeline(segments: Sequence[Segment], duration_s: float | None) -> int:
    """Return the samples of a track of a call: to the call's end where that is known, and never less than it has."""
    recorded = max((each.first_sample + each.frames for each in segments), default=0)
    if duration_s is None or not segments:
        return recorded
    return max(recorded, round(duration_s * 1e9) * segments[0].rate // 10**9)


class Stereo:
    """Two tracks as the left and right channel, at the higher of their rates and as long as the longer of them."""

    def __init__(self, left: Playback, right: Playback) -> None:
        self.rate = max(left.rate, right.rate)
        self.frames = max(-(-each.frames * self.rate // each.rate) for each in (left, right))
        self._channels = (left, right)

    def read(self, start: int, frames: int) -> Samples:
        """Return `frames` pairs of samples from `start` on, as an (n, 2) array; fewer where the longer track ends."""
        count = max(0, min(frames, self.frames - start))
        return np.column_stack([self._channel(each, start, count) for each in self._channels])

    def __iter__(self) -> Iterator[Samples]:
        for start in range(0, self.frames, BLOCK):
            yield self.read(start, BLOCK)

    def _channel(self, voice: Playback, start: int, frames: int) -> Samples:
        def read(_: str, first: int, count: int) -> Samples:
            return padded(voice.read(first, count), count)

        return mixing.stretch("", voice.rate, rate=self.rate, first=start, frames=frames, read=read)


def from_spool(directory: Path, *, elsewhere: Mapping[str, str]) -> Reader:
    """Return a reader of the files in a call's `directory`. `elsewhere` says where else a segment is, by its id."""

    def read(segment: Segment) -> Samples:
        path = spool.segment_path(directory, segment.track, segment.seq)
        there = elsewhere.get(segment.segment_id)
        fix = f"The store holds it as {there}" if there else "`edge-recorder verify` says which copies are good"
        try:
            _, samples = wav.read_file(path)
        except OSError as error:
            raise IntegrityMismatch(f"cannot read {path}: {error.strerror}", fix=fix) from None
        except IntegrityMismatch as error:
            raise IntegrityMismatch(f"{path}: {error.message}", fix=fix) from None
        if hashlib.sha256(samples.tobytes()).hexdigest() != segment.pcm_sha256:
            raise IntegrityMismatch(f"{path} does not hold the samples that were sealed", fix=fix)
        return samples

    return read

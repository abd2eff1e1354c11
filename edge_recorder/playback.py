"""
From the segments of a call to one stream that can be read from anywhere.

    a track    its segments, sorted by their first sample; where two overlap, one is silent, so they are summed
    holes      silence, of their true length
    the end    the call's, though the track may have fallen silent before it: all streams of a call are equally long
    mixed      the voices, mixed anew: its own segments may overlap, leave a turn out, or be older than late audio
    kept       a stream without the times that are to be skipped

Where the samples of a segment come from is the reader's business: the spool's file here, the store elsewhere. Only what
is under the block that is read is held in memory.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from edge_recorder import mixing, spool, wav
from edge_recorder.errors import IntegrityMismatch
from edge_recorder.model import MIXED, Segment
from edge_recorder.timeline import NANOSECONDS, instant_of, sample_at
from edge_recorder.wav import Samples, padded

BLOCK = 65_536  # samples read at once when all of a stream is wanted
STRETCH = 30  # seconds brought to another rate at once, where no mixed segment says how many
FADE = 0.005  # seconds on each side of a cut, so that it does not click

Reader = Callable[[Segment], Samples]
Range = tuple[float, float]  # seconds from the call's start


class Stream(ABC):
    """Samples from the call's start, `frames` of them: (n,) of one channel, (n, 2) of two."""

    rate: int
    frames: int

    @abstractmethod
    def read(self, start: int, frames: int) -> Samples:
        """Return `frames` samples from `start` on; fewer where the stream ends."""

    def __iter__(self) -> Iterator[Samples]:
        for start in range(0, self.frames, BLOCK):
            yield self.read(start, BLOCK)


class Playback(Stream):
    """One track's timeline of `frames` samples."""

    def __init__(self, segments: Iterable[Segment], *, read: Reader, frames: int) -> None:
        self._segments = sorted(segments, key=lambda each: (each.first_sample, each.seq))
        self._starts = [each.first_sample for each in self._segments]
        # The latest end so far only grows, so that whatever ended before a place is found by bisection.
        self._ends = list(accumulate((each.first_sample + each.frames for each in self._segments), max))
        self._read = read
        self._held: dict[str, Samples] = {}
        self.rate = self._segments[0].rate
        self.frames = frames
        self.begin = self._starts[0]  # the first sample that was recorded

    def read(self, start: int, frames: int) -> Samples:
        stop = min(start + frames, self.frames)
        under = self._under(start, stop)
        self._held = {each.segment_id: self._samples(each) for each in under}
        block = np.zeros(max(0, stop - start), np.int32)
        for each in under:
            first, last = max(start, each.first_sample), min(stop, each.first_sample + each.frames)
            piece = self._held[each.segment_id][first - each.first_sample : last - each.first_sample]
            block[first - start : last - start] += piece
        return np.clip(block, -32768, 32767).astype(np.int16)

    def _under(self, start: int, stop: int) -> list[Segment]:
        """Return the segments that have samples between `start` and `stop`."""
        near = self._segments[bisect_right(self._ends, start) : bisect_left(self._starts, stop)]
        return [each for each in near if each.first_sample + each.frames > start]

    def _samples(self, segment: Segment) -> Samples:
        held = self._held.get(segment.segment_id)
        return self._read(segment) if held is None else held


class _Stretched(Stream):
    """Voices at one rate. A stretch is made whole, so that a sample is the same wherever a read begins."""

    def __init__(self, voices: Mapping[str, Playback], *, rate: int, frames: int, made: Sequence[Segment] = ()) -> None:
        self.rate = rate
        self.frames = frames
        self._voices = voices
        self._cuts = _cuts(made, rate=rate, frames=frames)
        self._held: dict[int, Samples] = {}

    def read(self, start: int, frames: int) -> Samples:
        stop = min(start + frames, self.frames)
        under = range(bisect_right(self._cuts, start) - 1, bisect_left(self._cuts, stop)) if start < stop else range(0)
        self._held = {each: self._stretch(each) for each in under}
        parts = [made[max(0, start - self._cuts[n]) : stop - self._cuts[n]] for n, made in self._held.items()]
        return np.concatenate(parts) if parts else self._make(0, 0)

    def _stretch(self, n: int) -> Samples:
        held = self._held.get(n)
        first, end = self._cuts[n], self._cuts[n + 1]
        return self._make(first, end - first) if held is None else held

    def _voice(self, name: str, first: int, frames: int) -> Samples:
        return padded(self._voices[name].read(first, frames), frames)

    @abstractmethod
    def _make(self, first: int, frames: int) -> Samples: ...


class Mixed(_Stretched):
    """
    The voices of a call as one.

    Made in the stretches of the mixed segments that were `made` of it, it equals these bit for bit where they cover the
    call once. A voice counts from its first segment on, as it did when they were mixed.
    """

    def _make(self, first: int, frames: int) -> Samples:
        end = first + frames
        begun = {name: each.rate for name, each in self._voices.items() if each.begin * self.rate < end * each.rate}
        return mixing.mix(begun, rate=self.rate, first=first, frames=frames, read=self._voice)


class Stereo(_Stretched):
    """Two voices, the first on the left and the second on the right."""

    def _make(self, first: int, frames: int) -> Samples:
        channels = [
            mixing.stretch(name, each.rate, rate=self.rate, first=first, frames=frames, read=self._voice)
            for name, each in self._voices.items()
        ]
        return np.column_stack(channels)


def _cuts(made: Sequence[Segment], *, rate: int, frames: int) -> list[int]:
    """Return where stretches begin, and where the last ends: at the edges of the segments `made`, none within one."""
    edges = {edge for each in made for edge in (each.first_sample, each.first_sample + each.frames)}
    longest = max([STRETCH * rate, *(each.frames for each in made)])
    bounds = sorted({0, frames} | {edge for edge in edges if edge < frames})
    return [*(cut for first, end in pairwise(bounds) for cut in range(first, end, longest)), frames]


class Kept(Stream):
    """What is left of a `stream` without the `skipped` ranges, which are `merged`. A few ms fade at each cut."""

    def __init__(self, stream: Stream, skipped: Sequence[Range], *, end: float) -> None:
        """`end` is where the stream ends, in seconds."""
        self.rate = stream.rate
        self._stream = stream
        self._pieces = list(_pieces(skipped, end=end, rate=stream.rate, frames=stream.frames))
        *self._begins, self.frames = accumulate((last - first for first, last in self._pieces), initial=0)

    def read(self, start: int, frames: int) -> Samples:
        stop = min(start + frames, self.frames)
        parts = [self._stream.read(0, 0)]
        while start < stop:
            n = bisect_right(self._begins, start) - 1
            first, last = self._pieces[n]
            offset = start - self._begins[n]
            parts.append(self._faded(first + offset, min(last, first + offset + stop - start), first, last))
            start += len(parts[-1])
        return np.concatenate(parts)

    def _faded(self, start: int, stop: int, first: int, last: int) -> Samples:
        """Return the samples from `start` to `stop` of the piece from `first` to `last`."""
        samples = self._stream.read(start, stop - start)
        length = max(1, round(FADE * self.rate))
        fades_in = first > 0 and start < first + length
        fades_out = last < self._stream.frames and stop > last - length
        if not (fades_in or fades_out):
            return samples
        place = np.arange(start, stop).reshape(-1, *[1] * (samples.ndim - 1))
        rising = (place - first + 0.5) / length if fades_in else 1.0
        falling = (last - place - 0.5) / length if fades_out else 1.0
        gain = np.minimum(1.0, np.minimum(rising, falling))
        return np.rint(samples * gain).astype(np.int16)


def _pieces(skipped: Sequence[Range], *, end: float, rate: int, frames: int) -> Iterator[tuple[int, int]]:
    """Yield what is kept, as (first sample, sample after the last)."""
    left_out = 0.0
    kept = 0
    for start, stop in (*skipped, (end, end)):
        # Each length follows from the time kept so far, and none from the one before: so the exports of tracks of
        # different rates stay in step, however often is cut.
        until = _sample(start - left_out, rate)
        last = min(frames, _sample(start, rate))
        if until > kept:
            yield max(0, last - (until - kept)), last
        left_out += stop - start
        kept = max(kept, until)


def _sample(seconds: float, rate: int) -> int:
    # What was said in samples comes back as those samples, whatever its seconds lost as a float.
    return math.floor(seconds * rate + 1e-4)


def merged(ranges: Iterable[Range], *, end: float) -> list[Range]:
    """Return `ranges` in order, those that overlap or touch as one, up to `end`."""
    result: list[Range] = []
    for start, stop in sorted((max(0.0, start), min(end, stop)) for start, stop in ranges):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        elif start < stop:
            result.append((start, stop))
    return result


class Tracks:
    """The streams that a call's segments can be played as. All are equally long, to within one sample."""

    def __init__(self, segments: Iterable[Segment], *, read: Reader, duration_s: float | None) -> None:
        """`duration_s` is how long the call was, None while that is not known; nothing recorded is left out for it."""
        self._of: dict[str, list[Segment]] = {}
        for each in segments:
            self._of.setdefault(each.track, []).append(each)
        self._read = read
        ends = (instant_of(each.first_sample + each.frames, each.rate) for own in self._of.values() for each in own)
        self._end = max([round((duration_s or 0) * NANOSECONDS), *ends])

    @property
    def end(self) -> float:
        """The call's end, in seconds from its start."""
        return self._end / NANOSECONDS

    def track(self, name: str) -> Playback:
        """Return one track. It must have a segment."""
        segments = self._of[name]
        return Playback(segments, read=self._read, frames=sample_at(self._end, segments[0].rate))

    def mixed(self) -> Stream:
        """Return the mix, at the rate of its own segments or else the highest. A call without voices plays those."""
        voices = {name: self.track(name) for name in sorted(self._of) if name != MIXED}
        if not voices:
            return self.track(MIXED)
        made = self._of.get(MIXED, [])
        rate = made[0].rate if made else max(each.rate for each in voices.values())
        return Mixed(voices, rate=rate, frames=sample_at(self._end, rate), made=made)

    def stereo(self, left: str, right: str) -> Stereo:
        """Return two tracks as two channels, at the higher of their rates."""
        voices = {left: self.track(left), right: self.track(right)}
        rate = max(each.rate for each in voices.values())
        return Stereo(voices, rate=rate, frames=sample_at(self._end, rate))


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

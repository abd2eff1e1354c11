"""
Where each sample of a track belongs. Pure: it knows samples and instants, and reads no clock.

Audio that is *heard* (a microphone, a network stream) comes with its place, or its arrival tells it; audio that is
*played* (handed to a speaker) is queued behind what still plays. Both wait here until their time has come, so that what
is taken back before it is heard was never written. What nobody puts anywhere is silence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edge_recorder.wav import Samples

JITTER = 0.040  # seconds that an `at` may be off the track's end and still be appended
SILENCE = 0.100  # seconds that a track must be behind its arrivals before the difference is silence
AHEAD = 0.5  # seconds that heard audio may be ahead of time
NANOSECONDS = 1_000_000_000


def sample_at(nanoseconds: int, rate: int) -> int:
    """Return the sample that plays at an instant of the call: the one rule for all cuts, never accumulated."""
    return nanoseconds * rate // NANOSECONDS


def instant_of(sample: int, rate: int) -> int:
    """Return the first nanosecond of the call at which `sample` plays; `sample_at` of it is `sample` again."""
    return -(-sample * NANOSECONDS // rate)


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples and the place of the first of them on their track."""

    start: int
    samples: Samples

    @property
    def end(self) -> int:
        return self.start + len(self.samples)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Heard audio as it was handed over."""

    samples: Samples
    at: float | None  # seconds from the call's start, where the source knows
    arrived: int  # nanoseconds from the call's start


class Timeline:
    """The timeline of one track at `rate` Hz.

    `hear` and `play` take audio in; `release` gives out what is to be written by an instant. Samples go in once: what
    comes for a place already taken, or before `closed_until`, is returned as late.
    """

    def __init__(self, rate: int, *, live: bool, start: int = 0) -> None:
        self.rate = rate
        self.closed_until = start  # samples before this one are sealed
        self._live = live
        self._end = start  # after the last sample placed
        self._taken: list[tuple[int, int]] = []  # ranges with audio, in order, apart, none sealed
        self._heard: deque[Piece] = deque()  # placed, but ahead of time
        self._playing: deque[Piece] = deque()

    @property
    def end(self) -> int:
        """The sample after the last one that was heard, written or not."""
        return self._end

    @property
    def waiting_bytes(self) -> int:
        return sum(piece.samples.nbytes for queue in (self._heard, self._playing) for piece in queue)

    def hear(self, chunks: list[Chunk]) -> list[tuple[int, int]]:
        """Place `chunks`, in the order they arrived. Returns the ranges (first, end) that came too late."""
        late: list[tuple[int, int]] = []
        for run in _runs(chunks, self.rate):
            start = self._place_of(run)
            for chunk in run:
                late += self._take(Piece(start, chunk.samples))
                start += len(chunk.samples)
        return late

    def skip(self, frames: int) -> int:
        """Leave `frames` samples empty at the track's end, and return the first of them."""
        start, self._end = self._end, self._end + frames
        return start

    def play(self, samples: Samples, *, arrived: int) -> None:
        """Queue `samples` behind what still plays; with nothing playing they start when they were handed over."""
        queued = self._playing[-1].end if self._playing else self._end
        start = max(queued, sample_at(arrived, self.rate)) if self._live else queued
        self._playing.append(Piece(start, samples))

    def release(self, now: int) -> tuple[list[Piece], list[tuple[int, int]]]:
        """Return what is to be written at `now` (nanoseconds from the start), in no particular order.

        And the ranges of played audio whose places were taken by then: they are late.
        """
        if self._live:
            heard = _until(self._heard, sample_at(now + int(AHEAD * NANOSECONDS), self.rate))
            played = _until(self._playing, sample_at(now, self.rate))
        else:
            heard, played = _all(self._heard), _all(self._playing)
        late: list[tuple[int, int]] = []
        for piece in played:
            kept, refused = self._settle(piece)
            heard += kept
            late += refused
        return heard, late

    def release_heard(self) -> list[Piece]:
        """Return all heard audio, ahead of time or not: the call is at its end."""
        return _all(self._heard)

    def drop_unplayed(self) -> list[tuple[int, int]]:
        """Forget what was queued for the speaker, and return its ranges: the call ended before it was heard."""
        return [(piece.start, piece.end) for piece in _all(self._playing)]

    def close_until(self, sample: int) -> None:
        """Let nothing be placed before `sample` any more."""
        self.closed_until = max(self.closed_until, sample)
        self._taken = [(max(first, sample), end) for first, end in self._taken if end > sample]

    def _place_of(self, run: list[Chunk]) -> int:
        """Return where a run of chunks that arrived together starts."""
        if run[0].at is not None:
            start = round(run[0].at * self.rate)
            return self._end if abs(start - self._end) <= JITTER * self.rate else start
        frames = sum(len(chunk.samples) for chunk in run)
        arrival = sample_at(run[-1].arrived, self.rate)
        if not self._live or arrival - (self._end + frames) <= SILENCE * self.rate:
            return self._end
        return arrival - frames

    def _take(self, piece: Piece) -> list[tuple[int, int]]:
        """Keep what of heard `piece` falls on free places, and return the ranges that do not."""
        kept, late = self._settle(piece)
        self._heard += kept
        return late

    def _settle(self, piece: Piece) -> tuple[list[Piece], list[tuple[int, int]]]:
        """Take the free places under `piece`: its parts there, and the ranges where it came late."""
        free, late = self._free(piece.start, piece.end)
        for first, end in free:
            self._occupy(first, end)
        self._end = max(self._end, piece.end)
        return [Piece(first, piece.samples[first - piece.start : end - piece.start]) for first, end in free], late

    def _free(self, start: int, end: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Split a range into the parts that are free and the parts that are taken or closed."""
        free: list[tuple[int, int]] = []
        taken: list[tuple[int, int]] = []
        at = start
        for first, last in [(min(start, 0), self.closed_until), *self._taken]:
            if first >= end:
                break
            if last <= at:
                continue
            if first > at:
                free.append((at, first))
            taken.append((max(first, at), min(last, end)))
            at = min(last, end)
        if at < end:
            free.append((at, end))
        return free, taken

    def _occupy(self, first: int, end: int) -> None:
        """Mark a free range as taken, joined to its neighbours: a steady stream stays one range."""
        if self._taken and self._taken[-1][1] == first:
            self._taken[-1] = (self._taken[-1][0], end)
            return
        self._taken.append((first, end))
        self._taken.sort()
        self._taken = joined(self._taken)


def _runs(chunks: list[Chunk], rate: int) -> list[list[Chunk]]:
    """Group chunks that arrived together: since the first, faster than they play. One with `at` stands alone."""
    runs: list[list[Chunk]] = []
    frames = 0
    for chunk in chunks:
        together = (
            bool(runs)
            and chunk.at is None
            and runs[-1][0].at is None
            and sample_at(chunk.arrived - runs[-1][0].arrived, rate) < frames
        )
        if together:
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
            frames = 0
        frames += len(chunk.samples)
    return runs


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ordered `ranges` with those that touch made one."""
    whole: list[tuple[int, int]] = []
    for first, end in ranges:
        if whole and whole[-1][1] >= first:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((first, end))
    return whole


def _all(queue: deque[Piece]) -> list[Piece]:
    pieces = list(queue)
    queue.clear()
    return pieces


def _until(queue: deque[Piece], sample: int) -> list[Piece]:
    """Take from `queue` what lies before `sample`, splitting the piece across it."""
    taken: list[Piece] = []
    for _ in range(len(queue)):
        piece = queue.popleft()
        here = max(0, min(len(piece.samples), sample - piece.start))
        if here:
            taken.append(Piece(piece.start, piece.samples[:here]))
        if here < len(piece.samples):
            queue.append(Piece(piece.start + here, piece.samples[here:]))
    return taken

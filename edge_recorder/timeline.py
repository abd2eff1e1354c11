"""
Where each sample of a track belongs. Pure: it knows samples and instants, and reads no clock.

Audio that is *heard* (a microphone, a network stream) comes with its place, or its arrival tells it; audio that is
*played* (handed to a speaker) is queued behind what still plays. Both wait here until their time has come, so that what
is taken back before it is heard was never written. What nobody puts anywhere is silence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from edge_recorder.drift import Drift
from edge_recorder.places import FOREVER, Places, Range, joined
from edge_recorder.speaker import Audio, Blank, Speaker, Storing, Waiting, shrunk, until
from edge_recorder.wav import SAMPLE_BYTES, Samples

__all__ = [
    "FOREVER",
    "Audio",
    "Blank",
    "Due",
    "Heard",
    "Piece",
    "Range",
    "Timeline",
    "Waiting",
    "instant_of",
    "joined",
    "sample_at",
]

NANOSECONDS = 1_000_000_000

JITTER = 0.040  # seconds that an `at` may be off the track's end and still be appended
SILENCE = 0.100  # seconds that a track must be behind its arrivals before the difference is silence
AHEAD = 0.5  # seconds that heard audio may be ahead of time
BURST = 0.050  # seconds after which nothing more belongs to a burst
HELD = 1.0  # seconds that a burst is held back at most

_AHEAD_NS, _BURST_NS, _HELD_NS = (int(each * NANOSECONDS) for each in (AHEAD, BURST, HELD))


def sample_at(nanoseconds: int, rate: int) -> int:
    """Return the sample that plays at an instant of the call: the one rule for all cuts, never accumulated."""
    return nanoseconds * rate // NANOSECONDS


def instant_of(sample: int, rate: int) -> int:
    """Return the first nanosecond of the call at which `sample` plays; `sample_at` of it is `sample` again."""
    return -(-sample * NANOSECONDS // rate)


class Heard(NamedTuple):
    """Heard audio as it was handed over, mono; a timeline takes int16 little-endian at its own rate."""

    pcm: bytes
    arrived: int  # nanoseconds from the call's start
    at: float | None = None  # seconds from the call's start, where the source knows

    @property
    def frames(self) -> int:
        return len(self.pcm) // SAMPLE_BYTES


class Piece(NamedTuple):
    """Samples and the place of the first of them on their track."""

    start: int
    samples: Samples

    @property
    def end(self) -> int:
        return self.start + len(self.samples)


class Due(NamedTuple):
    """What `release` gives out."""

    pieces: list[Waiting]  # to be written, on places that were free and are now taken
    late: list[Range]  # their places were taken before


class Timeline:
    """The timeline of one track at `rate` Hz.

    `hear` and `play` take audio in; `release` gives out what is to be written by an instant. Samples go in once: what
    comes for a place already taken is returned as late.
    """

    def __init__(self, rate: int, *, live: bool, start: int = 0) -> None:
        self.rate = rate
        self._live = live
        self._end = start  # after the last sample placed
        self._last = start  # after the latest chunk placed: as `_end`, but where that one came late
        self._places = Places()
        self._muted: list[Range] = []
        self._arriving: list[Heard] = []  # a burst that may go on
        self._heard: deque[Waiting] = deque()  # placed, but ahead of time; in order
        self._speaker = Speaker(int(SILENCE * rate) if live else FOREVER)  # a shorter wait: it had that in time
        self._drift = Drift(rate)

    @property
    def end(self) -> int:
        """The sample after the last one that was heard, written or not."""
        return self._end

    @property
    def is_arriving(self) -> bool:
        """Whether a burst is held back, as more of it may come."""
        return bool(self._arriving)

    @property
    def is_waiting(self) -> bool:
        """Whether anything is there to be released, now or later."""
        return bool(self._heard or self._speaker.queue)

    @property
    def waiting(self) -> int:
        """Frames that wait for their time."""
        return sum(len(each.audio) for queue in (self._heard, self._speaker.queue) for each in queue)

    # Heard audio.

    def hear(self, chunks: Sequence[Heard], *, now: int) -> list[Range]:
        """Place `chunks`, in the order they arrived up to `now`. Returns the ranges that came too late."""
        late: list[Range] = []
        chunks, self._arriving = [*self._arriving, *chunks], []
        n = 0
        while n < len(chunks):
            n, start, parts = self._stretch(chunks, n, now)
            if not parts:
                break
            late += self._keep(start, parts, chunks[n - 1])
        return late

    def insert(self, start: int, audio: Samples) -> Due:
        """Take the free places under `audio` at once: its parts there, and the ranges where it came late."""
        kept, late = self._settle(Waiting(start, cast("Audio", audio)))
        return Due(self._unmuted(kept), late)

    def skip(self, frames: int) -> int:
        """Leave `frames` samples empty at the track's end, and return the first of them."""
        start = self._end
        self._end = self._last = start + frames
        return start

    # Played audio.

    def play(self, audio: Audio, *, arrived: int) -> Range:
        """Queue `audio` behind what still plays; with nothing playing, from when it was handed over. Returns where."""
        return self._speaker.play(audio, end=self._end, clock=sample_at(arrived, self.rate))

    def start_utterance(self) -> None:
        """From here on, `interrupt(played=)` counts anew; nothing but `end_utterance` ends what is said."""
        self._speaker.start_turn()

    def end_utterance(self) -> None:
        self._speaker.end_turn()

    def halt(self, instant: int) -> None:
        """Let playback stand still from `instant` (nanoseconds) on. Where audio moves time nothing stands still."""
        if self._live:
            self._speaker.halt(sample_at(instant, self.rate))

    def go_on(self, instant: int) -> None:
        """Let playback go on at `instant` (nanoseconds): what is queued moves by as long as it stood still."""
        self._speaker.go_on(sample_at(instant, self.rate))

    def interrupt(self, *, at: int, played: float | None = None) -> tuple[list[Range], list[Range]]:
        """Take back what is said from sample `at` on, or from `played` seconds into the utterance.

        Returns the ranges that were not heard, and those of them that were written: they are free again.
        """
        frames = None if played is None else round(played * self.rate)
        queued, written = self._speaker.interrupt(at=at, played=frames)
        for first, end in reversed(written):
            self._end = self._last = self._places.vacate(first, end)
        return joined(sorted(queued + written)), written

    # Time.

    def mute(self, first: int) -> None:
        """Keep nothing from sample `first` on."""
        self._muted.append((first, FOREVER))

    def unmute(self, end: int) -> None:
        """Keep what is from sample `end` on again."""
        self._muted[-1] = (self._muted[-1][0], max(self._muted[-1][0], end))

    def release(self, now: int) -> Due:
        """Return what is to be written at `now` (nanoseconds from the start), in no particular order."""
        due = Due([], [])
        if self._heard:
            heard = until(self._heard, sample_at(now + _AHEAD_NS, self.rate) if self._live else FOREVER)
            due.pieces.extend(self._unmuted(heard))
        if self._speaker.queue:
            for each in self._speaker.due(sample_at(now, self.rate) if self._live else FOREVER):
                self._say(each, due)
        return due

    def release_heard(self, now: int) -> Due:
        """Return all heard audio, ahead of time or not: the call is at its end."""
        late = self.hear([], now=now + _HELD_NS)  # nothing is held back for so long
        return Due(self._unmuted(until(self._heard, FOREVER)), late)

    def drop_unplayed(self) -> list[Range]:
        """Forget what was queued for the speaker, and return its ranges: the call ended before it was heard."""
        return [(each.start, each.end) for each in until(self._speaker.queue, FOREVER)]

    def shrink(self, limit: int, store: Storing) -> list[Range]:
        """Let `store` take what waits beyond `limit` frames. Returns the ranges of what it could not take."""
        self._heard, lost = shrunk(self._heard, limit, store)
        self._speaker.queue, unsaid = shrunk(self._speaker.queue, limit, store)
        return lost + unsaid

    # Where a chunk goes.

    def _stretch(self, chunks: list[Heard], n: int, now: int) -> tuple[int, int, list[bytes]]:
        """Return chunks from the `n`-th on that lie without a hole between them: (next n, start, parts)."""
        rate, own_end, silence = self.rate, self._end, int(SILENCE * self.rate) if self._live else FOREVER
        jitter = JITTER * rate + 0.5
        run = chunks[n : n + 1]
        start = self._place_of(run[0], silence, jitter)
        if start is None:
            run = self._run(chunks, n)
            start = sample_at(run[-1].arrived, rate) - sum(each.frames for each in run)
            if start - own_end <= silence:
                start = own_end
            elif n + len(run) == len(chunks) and self._may_go_on(run, now):
                self._arriving = run
                return n, 0, []
        parts = [each.pcm for each in run]
        end = start + sum(map(len, parts)) // SAMPLE_BYTES
        n += len(run)
        while n < len(chunks):
            pcm, arrived, at = chunks[n]
            after = end + len(pcm) // SAMPLE_BYTES
            if at is not None:
                if not -jitter < at * rate - end < jitter:
                    break
            elif end < own_end or arrived * rate // NANOSECONDS - after > silence:
                break
            parts.append(pcm)
            end = after
            n += 1
        return n, start, parts

    def _place_of(self, chunk: Heard, silence: int, jitter: float) -> int | None:
        """Return where a chunk goes; None after a silence, as that depends on what arrived with it."""
        if chunk.at is None:
            behind = sample_at(chunk.arrived, self.rate) - chunk.frames - self._end
            return self._end if behind <= silence else None
        place = chunk.at * self.rate
        return next((end for end in (self._last, self._end) if -jitter < place - end < jitter), round(place))

    def _run(self, chunks: list[Heard], n: int) -> list[Heard]:
        """Return the chunk and those that arrived together with it: since then, faster than they play."""
        first = chunks[n]
        frames, m = first.frames, n + 1
        while m < len(chunks) and chunks[m].at is None:
            arrived = chunks[m].arrived
            if arrived - chunks[m - 1].arrived >= _BURST_NS or sample_at(arrived - first.arrived, self.rate) >= frames:
                break
            frames += chunks[m].frames
            m += 1
        return chunks[n:m]

    def _may_go_on(self, run: list[Heard], now: int) -> bool:
        """Say whether more of a burst may come: it is young, or lately came more than twice as fast as it plays."""
        # What comes a little faster than it plays is no burst but a stream, by its jitter or its clock: held back for
        # as long as that lasts it would never be written.
        since, first = now - _BURST_NS, run[0].arrived
        if first > since:
            return True
        lately = sum(each.frames for each in run if each.arrived > since)
        return lately > 2 * BURST * self.rate and now - first < _HELD_NS

    def _keep(self, start: int, parts: list[bytes], last: Heard) -> list[Range]:
        """Take a stretch in, and return the ranges where it came late."""
        samples: Samples = np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), "<i2")
        if not len(samples):
            return []
        if self._live:
            self._note_drift(start, len(samples), last)
        late: list[Range] = []
        for piece in self._drift.correct(start, samples) if self._drift.owed else [(start, samples)]:
            kept, refused = self._settle(Waiting(piece[0], cast("Audio", piece[1])))
            self._wait(kept)
            late += refused
        return late

    def _note_drift(self, start: int, frames: int, last: Heard) -> None:
        known = last.at is not None
        place = round(last.at * self.rate) + last.frames if last.at is not None else sample_at(last.arrived, self.rate)
        self._drift.note(place - start - frames, frames, contiguous=start == self._end, known=known)

    def _wait(self, pieces: list[Waiting]) -> None:
        """Let placed audio wait, in order."""
        if self._heard and pieces and pieces[0].start < self._heard[-1].start:
            self._heard = deque(sorted([*self._heard, *pieces], key=lambda each: each.start))
        else:
            self._heard += pieces

    # What is taken, and what may be kept.

    def _say(self, said: Waiting, due: Due) -> None:
        kept, late = self._settle(said)
        for each in kept:
            self._speaker.note_written(each.start, each.end)
        due.pieces.extend(each for each in self._unmuted(kept) if not isinstance(each.audio, Blank))
        due.late.extend(late)

    def _settle(self, piece: Waiting) -> tuple[list[Waiting], list[Range]]:
        """Take the free places under `piece`: its parts there, and the ranges where it came late."""
        start, end = piece.start, piece.end
        self._last = end
        self._end = max(self._end, end)
        free, late = self._places.take(start, end)
        return _parts(piece, free) if late else [piece], late

    def _unmuted(self, pieces: list[Waiting]) -> list[Waiting]:
        """Return what of `pieces` may be kept."""
        if not self._muted or all(each.start >= self._muted[-1][1] for each in pieces):
            return pieces
        return [part for each in pieces for part in _parts(each, self._unmuted_ranges(each.start, each.end))]

    def _unmuted_ranges(self, first: int, end: int) -> list[Range]:
        kept = [(first, end)]
        for mute, unmute in self._muted:
            kept = [part for a, b in kept for part in ((a, min(b, mute)), (max(a, unmute), b)) if part[0] < part[1]]
        return kept


def _parts(piece: Waiting, ranges: list[Range]) -> list[Waiting]:
    """Return the parts of `piece` in `ranges`."""
    if ranges == [(piece.start, piece.end)]:
        return [piece]
    return [Waiting(a, _copied(piece.audio[a - piece.start : b - piece.start])) for a, b in ranges]


def _copied(audio: Audio) -> Audio:
    """Return `audio` without the memory it is a view of: what is not kept must not live on in there."""
    return cast("Audio", audio.copy()) if isinstance(audio, np.ndarray) else audio

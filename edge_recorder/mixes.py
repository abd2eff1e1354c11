"""
The mixed segments of one call: which stretches are owed one, and making them from the files of the tracks.

A mix is made once, from what is on disk then: of each interval when all its tracks are finished, of each turn when it
is `late_ns` old, and of audio that came later still, alone, beside the mix that was made without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_recorder.intake import Mark
from edge_recorder.journal import Start
from edge_recorder.mixing import Reader, mix
from edge_recorder.model import MIXED, SpanKind
from edge_recorder.segment import OpenSegment, write_whole
from edge_recorder.timeline import FOREVER, NANOSECONDS, Range, instant_of, sample_at
from edge_recorder.track import Track
from edge_recorder.wav import Samples, silence

TRIES = 10  # steps that an unreadable file of a track is tried for, before its mix is made without it


@dataclass(frozen=True, slots=True)
class _Owed:
    """A stretch of the call that is owed a mix, in nanoseconds: of one segment alone, or of all tracks."""

    start: int
    end: int
    due: int
    alone: OpenSegment | None = None


class Mixes:
    """The mixed segments of one call."""

    def __init__(self, directory: Path, start: Start, *, rate: int, mark: Mark) -> None:
        """`rate` is the mix's in Hz; 0: the highest of the tracks that there are at the first."""
        self._directory = directory
        self._start = start
        self._rate = rate
        self._mark = mark
        self._owed: list[_Owed] = []
        self._next_seq = 1
        self._tries = 0

    @property
    def is_idle(self) -> bool:
        return not self._owed

    @property
    def earliest(self) -> int:
        """When the first stretch that is owed begins, in nanoseconds."""
        return min((each.start for each in self._owed), default=FOREVER)

    def owe(self, stretch: Range, *, due: int = 0) -> None:
        """Owe a stretch of the call, in nanoseconds, a mix of all tracks, from the instant `due` on."""
        self._owed.append(_Owed(*stretch, due))

    def owe_alone(self, segment: OpenSegment) -> None:
        """Owe a segment that came after the mix of its place a mix of its own."""
        first, rate = segment.tag.first_sample, segment.tag.rate
        self._owed.append(_Owed(instant_of(first, rate), instant_of(first + segment.frames, rate), 0, segment))

    def make(self, tracks: Sequence[Track], *, now: int, seal: Callable[[list[OpenSegment]], None]) -> None:
        """Write the mixes that are due at `now`, and hand each to `seal`.

        Raises:
            OSError: The disk refused; the next call goes on with the rest.
        """
        for owed in [each for each in self._owed if each.due <= now]:
            segment = self._mix(owed, tracks)
            self._owed.remove(owed)
            if segment is not None:
                seal([segment])

    def move(self, segment: OpenSegment) -> list[Range]:
        """Let a mixed segment whose fsync failed go on in a new file.

        Raises:
            OSError: The disk refused; the next call tries again.
        """
        return segment.move(self._take_seq())

    def _mix(self, owed: _Owed, tracks: Sequence[Track]) -> OpenSegment | None:
        rates = {track.name: track.rate for track in tracks}
        self._rate = self._rate or max(rates.values(), default=0)
        first, end = sample_at(owed.start, self._rate), sample_at(owed.end, self._rate)
        if first >= end:
            return None
        if owed.alone is not None:
            rates = {owed.alone.tag.track: owed.alone.tag.rate}
        missing: dict[str, OSError] = {}
        reader = _reader(owed, tracks)

        def read(name: str, start: int, frames: int) -> Samples:
            try:
                return reader(name, start, frames)
            except OSError as error:
                self._tries += 1
                if self._tries < TRIES and not isinstance(error, FileNotFoundError):
                    raise
                missing[name] = error
                return silence(frames)

        mixed = mix(rates, rate=self._rate, first=first, frames=end - first, read=read)
        segment = write_whole(
            self._directory, self._start.tag(MIXED, self._rate, seq=self._take_seq(), first_sample=first), mixed
        )
        self._tries = 0
        for name, error in missing.items():  # told once it is written: until then all of it is tried again
            reason = f"{name} could not be read: {error.strerror}"
            self._mark(SpanKind.GAP, MIXED, owed.start / NANOSECONDS, owed.end / NANOSECONDS, reason)
        return segment

    def _take_seq(self) -> int:
        self._next_seq += 1  # taken even if its file fails: what cannot be removed then must not be in the way
        return self._next_seq - 1


def _reader(owed: _Owed, tracks: Sequence[Track]) -> Reader:
    """Return what reads the stretch's audio; it raises OSError where a file is gone or broken."""
    alone = owed.alone
    if alone is not None:
        return lambda _, start, frames: _of_one(alone, start, frames)
    by_name = {track.name: track for track in tracks}
    return lambda name, start, frames: by_name[name].read(start, frames)


def _of_one(segment: OpenSegment, start: int, frames: int) -> Samples:
    """Return samples of a track as if it had this segment alone."""
    out = silence(frames)
    first = segment.tag.first_sample
    begin, end = max(start, first), min(start + frames, first + segment.frames)
    if begin < end:
        found = segment.read(begin - first, end - begin)
        out[begin - start : begin - start + len(found)] = found
    return out

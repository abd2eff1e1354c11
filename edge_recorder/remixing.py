"""
The mixed segments that a dead recorder did not come to: which are missing, and what is in them.

    interval    what no mixed segment covers, cut as the tracks are;
                audio that came when its place was mixed: alone, beside the mix that was made without it
    turn        each turn that has none;
                each salvaged piece that is in no turn: the one under way had no end yet

All is found from what is there, so that looking again after a crash finds what is still missing, and no more.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from edge_recorder.mixing import mix
from edge_recorder.model import Segment, Span
from edge_recorder.playback import Playback, Reader
from edge_recorder.timeline import NANOSECONDS, Range, instant_of, joined, sample_at
from edge_recorder.wav import Samples, padded

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Missing:
    """A stretch of the mix, in its samples, that no file has: of one segment alone, or of all tracks."""

    first: int
    end: int
    alone: Segment | None = None


def missing_intervals(
    voices: Sequence[Segment], mixed: Sequence[Segment], *, rate: int, duration: int, hash_of: Callable[[Missing], str]
) -> list[Missing]:
    """Return what is missing of a mix at `rate` Hz that was cut at the same instants as its tracks.

    A mix of late audio alone is known by its place and its hash: others may be at the same place.
    """
    regular, further = _parted(voices)
    made = Counter((_own(each), each.pcm_sha256) for each in mixed)
    places = {_own(each) for each in mixed}

    def is_made(missing: Missing) -> bool:
        place = missing.first, missing.end
        return place in places and _takes(made, (place, hash_of(missing)))

    late = [each for each in further if not is_made(Missing(*_place(each, rate), each))]
    covered = joined(sorted(place for place, _ in made.elements()))
    cuts = sorted({0, sample_at(duration, rate)} | {_place(each, rate)[0] for each in regular})
    stretches = [piece for interval in pairwise(cuts) for piece in _without(interval, covered)]
    # What is mixed now has the late audio of its place.
    alone = [Missing(*piece, each) for each in late for piece in _without(_place(each, rate), stretches)]
    return [*(Missing(*each) for each in stretches), *(each for each in alone if not is_made(each))]


def missing_turns(
    voices: Sequence[Segment], mixed: Sequence[Segment], turns: Sequence[Span], *, rate: int
) -> list[Missing]:
    """Return the turns of which there is no mix at `rate` Hz."""
    places = [(span.track, _place_of(span, rate)) for span in turns]
    for each in voices:
        first, end = _place(each, rate)
        if each.salvaged and not any(each.track == track and a < end and first < b for track, (a, b) in places):
            places.append((each.track, (first, end)))
    made = Counter(_own(each) for each in mixed)
    return [Missing(*place) for _, place in places if place[0] < place[1] and not _takes(made, place)]


class Mixer:
    """Mixes stretches of the tracks that have `voices`, `read` from their files."""

    def __init__(self, voices: Sequence[Segment], *, rate: int, duration: int, read: Reader) -> None:
        self._rate = rate
        self._duration = duration
        self._read = read
        self._all = self._players(voices)

    def make(self, missing: Missing) -> Samples:
        players = self._all if missing.alone is None else self._players([missing.alone])

        def read(track: str, first: int, frames: int) -> Samples:
            return padded(players[track].read(first, frames), frames)

        rates = {track: player.rate for track, player in players.items()}
        return mix(rates, rate=self._rate, first=missing.first, frames=missing.end - missing.first, read=read)

    def hash_of(self, missing: Missing) -> str:
        """Return what the hash of a stretch's samples would be."""
        return hashlib.sha256(self.make(missing).tobytes()).hexdigest()

    def _players(self, segments: Sequence[Segment]) -> dict[str, Playback]:
        rates = {each.track: each.rate for each in segments}
        return {
            track: Playback(
                [each for each in segments if each.track == track],
                read=self._read,
                frames=sample_at(self._duration, rate),
            )
            for track, rate in rates.items()
        }


def _parted(segments: Iterable[Segment]) -> tuple[list[Segment], list[Segment]]:
    """Part segments into those that follow one another on their track, and those that lie over these."""
    taken: dict[str, list[Range]] = {}
    regular, further = [], []
    # A segment that lies over another came later, and is no longer than the intervals are.
    for each in sorted(segments, key=lambda each: (-each.frames, each.seq)):
        ranges, (first, end) = taken.setdefault(each.track, []), _own(each)
        n = bisect_left(ranges, (first, end))
        before, behind = ranges[max(0, n - 1) : n], ranges[n : n + 1]
        if any(start < end and first < stop for start, stop in before + behind):
            further.append(each)
        else:
            ranges.insert(n, (first, end))
            regular.append(each)
    return regular, sorted(further, key=lambda each: (each.track, each.seq))


def _own(segment: Segment) -> Range:
    return segment.first_sample, segment.first_sample + segment.frames


def _place(segment: Segment, rate: int) -> Range:
    """Return where `segment` is in the samples of another rate."""
    first, end = (sample_at(instant_of(sample, segment.rate), rate) for sample in _own(segment))
    return first, end


def _place_of(span: Span, rate: int) -> Range:
    first, end = (sample_at(round(second * NANOSECONDS), rate) for second in (span.start_s, span.end_s))
    return first, end


def _without(whole: Range, covered: Sequence[Range]) -> list[Range]:
    """Return what is left of a range without those that are `covered`, which are in order and apart."""
    left, (at, end) = [], whole
    for first, last in covered:
        if first >= end:
            break
        if at < first:
            left.append((at, first))
        at = max(at, last)
    return [*left, (at, end)] if at < end else left


def _takes(made: Counter[T], which: T) -> bool:
    """Take one of those `made`. False where there is none left."""
    if not made[which]:
        return False
    made[which] -= 1
    return True

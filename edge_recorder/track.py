"""
One voice of a call on disk: from what is due to the files of its segments.

    regular slots    one after another between the cuts, each in one file
    further slots    for audio that came when the slot of its place was sealed, and for turns handed over finished

A slot's file is made when its first sample comes. What the disk refuses stays in RAM, and is tried again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from edge_recorder.segment import OpenSegment
from edge_recorder.timeline import Piece, Range, Timeline, instant_of, sample_at
from edge_recorder.wav import Samples, Tag, silence

KEPT = 64  # files that a mix may read from after they were finished, and all that one is still owed of


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """Where segments are cut: each `length_ns`; with `turns` where turns begin and end, and else after `length_ns`."""

    length_ns: int
    late_ns: int  # after its cut a segment stays open for so long
    turns: bool = False

    def after(self, sample: int, rate: int) -> int:
        """Return the cut after the one at `sample`, where no turn moves it."""
        if self.turns:
            return sample + sample_at(self.length_ns, rate)
        n = instant_of(sample, rate) // self.length_ns + 1
        cut = sample_at(n * self.length_ns, rate)
        return cut if cut > sample else sample_at((n + 1) * self.length_ns, rate)  # it may play a moment before its cut


@dataclass(slots=True)
class _Further:
    """A slot of its own, beside the regular ones."""

    first: int  # sample
    end: int
    due: int  # nanoseconds
    segment: OpenSegment | None = None  # made when its first sample is written


class Track:
    """One voice of a call on disk."""

    def __init__(self, directory: Path, tag: Tag, *, cuts: Cuts, live: bool) -> None:
        """`tag` names the call, the track, its rate, its writer and its first sample."""
        self.name = tag.track
        self.rate = tag.rate
        self.ended = False
        self.timeline = Timeline(tag.rate, live=live, start=tag.first_sample)
        self._directory = directory
        self._tag = tag
        self._cuts = cuts
        self._next_seq = 1
        self._starts = [tag.first_sample]  # of the regular slots that are not finished
        self._written_to = tag.first_sample  # the end of what regular slots hold
        self._open: dict[int, OpenSegment] = {}  # regular ones, by their first sample
        self._further: list[_Further] = []
        self._kept: deque[OpenSegment] = deque()
        self._unwritten: list[Piece] = []  # what the disk refused so far
        self._unheard: list[Range] = []  # to be silenced in the files that are open
        self.finished: list[OpenSegment] = []  # for whoever seals them to take
        self.added: list[OpenSegment] = []  # those of further slots, which no mix has yet

    @property
    def segments(self) -> list[OpenSegment]:
        """The segments that are open."""
        return [*self._open.values(), *(each.segment for each in self._further if each.segment is not None)]

    @property
    def unsealed(self) -> list[Range]:
        """The ranges that are in files that are open, or in none yet."""
        held = [(each.tag.first_sample, each.tag.first_sample + each.frames) for each in self.segments]
        return [*held, *((piece.start, piece.end) for piece in self._unwritten)]

    @property
    def is_next_open(self) -> bool:
        """Whether the regular slot that is finished next has its file already."""
        return self._starts[0] in self._open

    @property
    def unwritten_frames(self) -> int:
        return sum(len(piece.samples) for piece in self._unwritten)

    def take(self, pieces: list[Piece]) -> None:
        """Take in what is due; the next `write` puts it on disk."""
        self._unwritten += pieces

    def write(self, *, now: int) -> None:
        """Write what was taken to its segments. What the disk refuses is kept and tried again by the next `write`.

        Raises:
            OSError: The disk refused something.
        """
        while self._unheard:
            for segment in self.segments:
                segment.erase(*self._unheard[0])
            del self._unheard[0]
        while self._unwritten:
            rest = self._write(self._unwritten[0], now)
            if rest is None:
                del self._unwritten[0]
            else:
                self._unwritten[0] = rest

    def give_up(self) -> list[Range]:
        """Drop what the disk did not take, and return its ranges."""
        dropped, self._unwritten = self._unwritten, []
        return [(piece.start, piece.end) for piece in dropped]

    def erase(self, ranges: list[Range]) -> None:
        """Make silence of `ranges` in all files that are not finished: the next `write` does."""
        self._unwritten = [_silenced(piece, ranges) for piece in self._unwritten]
        self._unheard += ranges

    def cut_turn(self, sample: int) -> int:
        """Where turns move the cuts, cut at `sample`, or where what is written ends. Returns when that is, or 0."""
        if not self._cuts.turns:
            return 0
        self._extend(sample)
        at = max(sample, self._written_to, self._starts[-1])
        if at > self._starts[-1]:
            self._starts.append(at)
        return instant_of(at, self.rate)

    def add_turn(self, pieces: list[Piece], *, now: int) -> None:
        """Take in a turn that came finished; where turns move the cuts it gets a slot of its own."""
        if pieces and self._cuts.turns:
            first, end = min(piece.start for piece in pieces), max(piece.end for piece in pieces)
            self._further.append(_Further(first, end, now + self._cuts.late_ns))
        self.take(pieces)

    def finish_regular(self, *, until: int, whole: bool, last: bool = False) -> None:
        """Finish the regular slots that end by sample `until`, after which with `last` nothing comes.

        `whole` makes a file of a slot without audio too.

        Raises:
            OSError: The disk refused; the next call goes on with the rest.
        """
        self._extend(until)
        if last:
            self._starts[1:] = [cut for cut in self._starts[1:] if cut < until]
        if until > self._starts[-1]:
            self._starts.append(until)
        while len(self._starts) > 1 and self._starts[1] <= until:
            first, end = self._starts[:2]
            if first in self._open or whole:
                self._finish(self._regular(first), end - first)
                del self._open[first]
            del self._starts[0]

    def due_until(self, now: int) -> int:
        """Return the last cut that is `late_ns` ago, where turns move the cuts."""
        self._extend(sample_at(now, self.rate))
        due = [cut for cut in self._starts[1:] if instant_of(cut, self.rate) + self._cuts.late_ns <= now]
        return due[-1] if due else self._starts[0]

    def finish_further(self, *, now: int) -> None:
        """Finish the further slots that are due at `now`.

        Raises:
            OSError: The disk refused; the next call goes on with the rest.
        """
        for each in [each for each in self._further if each.due <= now]:
            if each.segment is not None:
                self._finish(each.segment, each.segment.frames, further=True)
                self.added.append(each.segment)
            self._further.remove(each)

    def move(self, segment: OpenSegment) -> list[Range]:
        """Let a segment whose fsync failed go on in a new file. Returns the ranges that nobody knows any more.

        Raises:
            OSError: The disk refused; the next call tries again.
        """
        return segment.move(self._take_seq())

    def read(self, start: int, frames: int) -> Samples:
        """Return `frames` samples from sample `start`; silence where nothing was written, or it is too long ago.

        Raises:
            OSError: A file that is needed is gone, or cannot be read.
        """
        out = silence(frames)
        # What came late has a mix of its own where no turn moves the cuts, and must not be in both.
        for segment in [*self._kept, *(self.segments if self._cuts.turns else self._open.values())]:
            first = segment.tag.first_sample
            begin, end = max(start, first), min(start + frames, first + segment.frames)
            if begin < end:
                found = segment.read(begin - first, end - begin)
                out[begin - start : begin - start + len(found)] += found  # where two overlap, one is silent
        return out

    def forget(self, before: int) -> None:
        """Read no more from old files that end before a sample: what is owed a mix begins there."""
        while len(self._kept) > KEPT and self._kept[0].tag.first_sample + self._kept[0].frames <= before:
            self._kept.popleft()

    def close(self) -> None:
        """Let go of the files as they are: salvage finishes them."""
        for segment in self.segments:
            segment.close()

    def _finish(self, segment: OpenSegment, frames: int, *, further: bool = False) -> None:
        segment.finish(frames)
        self.finished.append(segment)
        if self._cuts.turns or not further:
            self._kept.append(segment)

    def _write(self, piece: Piece, now: int) -> Piece | None:
        """Write a piece as far as the slot of its first sample goes, and return the rest."""
        start = piece.start
        self._extend(piece.end)
        segment, end = self._slot(start, piece.end, now)
        if end == piece.end:
            segment.write(piece)
            return None
        segment.write(Piece(start, piece.samples[: end - start]))
        return Piece(end, piece.samples[end - start :])

    def _slot(self, start: int, end: int, now: int) -> tuple[OpenSegment, int]:
        """Return the segment for sample `start`, and up to where it takes what ends at `end`."""
        further = next((each for each in self._further if each.first <= start < each.end), None)
        if further is None and start < self._starts[0]:
            limit = min(self._starts[0], start + sample_at(self._cuts.length_ns, self.rate))
            further = _Further(start, limit, 0)
            self._further.append(further)
        if further is not None:
            further.due = now + self._cuts.late_ns
            further.segment = further.segment or self._new(further.first)
            return further.segment, min(end, further.end)
        n = bisect_right(self._starts, start)
        end = min(end, self._starts[n]) if n < len(self._starts) else end
        self._written_to = max(self._written_to, end)
        return self._regular(self._starts[n - 1]), end

    def _extend(self, until: int) -> None:
        """Make the cuts that no turn makes, beyond sample `until`."""
        while (cut := self._cuts.after(self._starts[-1], self.rate)) <= until:
            self._starts.append(cut)

    def _regular(self, first: int) -> OpenSegment:
        if first not in self._open:
            self._open[first] = self._new(first)
        return self._open[first]

    def _new(self, first: int) -> OpenSegment:
        return OpenSegment(self._directory, replace(self._tag, first_sample=first, seq=self._take_seq()))

    def _take_seq(self) -> int:
        self._next_seq += 1
        return self._next_seq - 1


def _silenced(piece: Piece, ranges: list[Range]) -> Piece:
    """Return a piece with silence in `ranges`."""
    within = [
        (max(first, piece.start) - piece.start, min(end, piece.end) - piece.start)
        for first, end in ranges
        if first < piece.end and end > piece.start
    ]
    if not within:
        return piece
    samples = piece.samples.copy()
    for first, end in within:
        samples[first:end] = 0
    return Piece(piece.start, samples)

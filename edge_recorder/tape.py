"""
All of one call on disk: its tracks, their mix and its journal.

A tape is moved by whoever owns it, one `advance` at a time: it takes what was handed over, writes what is due, syncs
when asked, seals what is past its cut, and returns the facts that are now safe in the journal and may become rows. What
the disk refuses stays in RAM and is tried again by the next `advance`; past `queue_seconds` of it, it becomes a gap.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_recorder import model, spool
from edge_recorder.errors import IntegrityMismatch
from edge_recorder.journal import Journal, Start
from edge_recorder.mixing import mix
from edge_recorder.model import MIXED, CallState, Fact, Instant, Pace, SpanKind
from edge_recorder.settings import Capture
from edge_recorder.timeline import NANOSECONDS, Chunk, Piece, instant_of, joined, sample_at
from edge_recorder.track import OpenSegment, Track, attempt_all, segment_fact
from edge_recorder.wav import Samples, Tag, silence


@dataclass(frozen=True, slots=True)
class Heard:
    """Audio that was heard, as handed over."""

    track: str
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Played:
    """Audio that was handed to the speaker."""

    track: str
    samples: Samples
    arrived: int


@dataclass(frozen=True, slots=True)
class TrackDeclared:
    track: str
    rate: int


@dataclass(frozen=True, slots=True)
class TrackEnded:
    track: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Audio that the queue had no room for."""

    track: str
    seconds: float
    arrived: int
    at: float | None = None


Item = Heard | Played | TrackDeclared | TrackEnded | Lost | model.Message | model.Usage


@dataclass(frozen=True, slots=True)
class Ending:
    """The call's end, as it was asked for."""

    reason: str
    at: int  # nanoseconds from the call's start


@dataclass(slots=True)
class Progress:
    """What an `advance` came to."""

    facts: list[Fact] = field(default_factory=list)  # synced in the journal
    errors: list[OSError] = field(default_factory=list)  # what the disk said
    synced: bool = False  # all that was handed over so far survives power loss, or is a gap
    ended: bool = False


class Tape:
    """One call on disk."""

    def __init__(
        self, call: model.Call, data_dir: Path, *, writer: str, capture: Capture, clock: Callable[[], Instant]
    ) -> None:
        """`clock` tells the time of day, in microseconds since 1970, UTC."""
        self.call = call
        self.directory = spool.call_dir(data_dir, call.call_id, call.started_at)
        self.segments = 0  # sealed, of all tracks
        self._start = Start(call_id=call.call_id, started_at=call.started_at, writer=writer)
        self._live = call.pace == Pace.LIVE
        self._capture = capture
        self._clock = clock
        self._segment_ns = capture.segment_seconds * NANOSECONDS
        self._late_ns = int(capture.late_window * NANOSECONDS)
        self._journal: Journal | None = None
        self._tracks: dict[str, Track] = {}
        self._unwritten: list[Fact] = [call]
        self._unsynced: list[Fact] = []
        self._next_interval = 0  # the first that is not sealed
        self._unmixed: list[int] = []
        self._mixed_rate = capture.mixed_rate
        self._mixed_seq = 1
        self._spans = 0
        self._ending: Ending | None = None
        self._duration = 0  # nanoseconds; right once the call is ending

    def advance(self, items: Sequence[Item], *, now: int, sync: bool, ending: Ending | None = None) -> Progress:
        """Move the call to `now` (nanoseconds from its start). Never raises for what the disk does."""
        progress = Progress()
        # What the speaker would have played after the end, while a slow disk was waited for, was never heard.
        self._take_in(items)
        self._release(now if ending is None else min(now, ending.at))
        if ending is not None and self._ending is None:
            self._begin_ending(ending)
        sync = sync or self._ending is not None
        try:
            self._write()
            if sync:
                self._sync_tracks()
            self._seal_due(now if self._live else self._media_time())
            self._mix_due()
            self._end_call()
        except OSError as error:
            progress.errors.append(error)
            self._give_up_overdue(error)
        try:
            progress.facts = self._keep_facts(sync=sync)
        except OSError as error:
            progress.errors.append(error)
        progress.synced = sync and not progress.errors
        progress.ended = self.call.state == CallState.ENDED and not (self._unwritten or self._unsynced)
        return progress

    def close(self) -> None:
        """Let go of the call's files; an unfinished call is finished by recovery."""
        for track in self._tracks.values():
            track.close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    # What was handed over: into RAM, in order.

    def _take_in(self, items: Sequence[Item]) -> None:
        heard: dict[str, list[Chunk]] = {}
        for item in items:
            match item:
                case Heard(track, chunk):
                    heard.setdefault(track, []).append(chunk)
                case Played(track, samples, arrived):
                    self._tracks[track].timeline.play(samples, arrived=arrived)
                case TrackDeclared(track, rate):
                    self._declare(track, rate)
                case TrackEnded(track):
                    self._hear(track, heard.pop(track, []))
                    self._tracks[track].ended = True
                case model.Message() | model.Usage():
                    self._unwritten.append(item)
        for track, chunks in heard.items():
            self._hear(track, chunks)
        for item in items:
            if isinstance(item, Lost):  # the queue was full once the others were in it
                self._lose(item)

    def _release(self, now: int) -> None:
        """Hand the tracks what is due at `now`."""
        for track in self._tracks.values():
            due, late = track.timeline.release(now)
            track.take(due)
            self._mark_late(track, late)

    def _hear(self, name: str, chunks: list[Chunk]) -> None:
        track = self._tracks[name]
        self._mark_late(track, track.timeline.hear(chunks))

    def _lose(self, lost: Lost) -> None:
        """Leave the place of lost audio empty, and say so."""
        track = self._tracks[lost.track]
        if lost.at is not None:
            start = lost.at
        elif self._live:
            start = lost.arrived / NANOSECONDS
        else:
            start = track.timeline.skip(round(lost.seconds * track.rate)) / track.rate
        self._mark(SpanKind.GAP, lost.track, start, start + lost.seconds, "the queue was full")

    def _mark_late(self, track: Track, ranges: list[tuple[int, int]]) -> None:
        self._mark_ranges(SpanKind.LATE, track, ranges, "came for a place already written")

    def _declare(self, name: str, rate: int) -> None:
        tag = self._start.tag(name, rate)
        self._tracks[name] = Track(
            self.directory, tag, segment_ns=self._segment_ns, live=self._live, since=self._next_interval
        )
        declared = json.loads(self.call.tracks)
        known = declared | {name: rate}
        if declared != known:
            self._say(replace(self.call, tracks=json.dumps(known)))

    def _begin_ending(self, ending: Ending) -> None:
        """Settle how long the call is: nothing more is handed over."""
        self._ending = ending
        for track in self._tracks.values():
            track.take(track.timeline.release_heard())
            self._mark_ranges(SpanKind.UNHEARD, track, track.timeline.drop_unplayed(), "the call ended first")
        ends = [instant_of(track.timeline.end, track.rate) for track in self._tracks.values()]
        self._duration = max([ending.at if self._live else 0, *ends])

    # What is due: onto the disk.

    def _write(self) -> None:
        if self._journal is None:
            self._journal = Journal(self.directory / spool.JOURNAL, self._start)
        attempt_all(track.write for track in self._tracks.values())

    def _sync_tracks(self) -> None:
        attempt_all(track.sync for track in self._tracks.values())

    def _seal_due(self, now: int) -> None:
        while self._is_due(self._next_interval, now):
            for track in self._tracks.values():
                fact = track.seal(
                    self._next_interval, self._cut(self._next_interval + 1, track.rate), now=self._clock()
                )
                self._add_segment(fact)
            self._unmixed.append(self._next_interval)
            self._next_interval += 1

    def _is_due(self, interval: int, now: int) -> bool:
        if self._ending is not None:
            return interval * self._segment_ns < self._duration
        return (interval + 1) * self._segment_ns + self._late_ns <= now

    def _mix_due(self) -> None:
        while self._unmixed:
            if self._tracks:
                self._mix(self._unmixed[0])
            interval = self._unmixed.pop(0)
            for track in self._tracks.values():
                track.forget(interval)

    def _mix(self, interval: int) -> None:
        """Write the mixed segment of `interval` from its tracks' files."""
        rates = {track.name: track.rate for track in self._tracks.values()}
        self._mixed_rate = self._mixed_rate or max(rates.values())
        first, end = self._cut(interval, self._mixed_rate), self._cut(interval + 1, self._mixed_rate)
        if first == end:
            return
        mixed = mix(rates, rate=self._mixed_rate, first=first, frames=end - first, read=self._read)
        tag = self._start.tag(MIXED, self._mixed_rate, seq=self._mixed_seq, first_sample=first)
        self._mixed_seq += 1  # taken even if this fails: what cannot be removed then must not be in the way
        write_whole(self.directory, tag, mixed)
        self._add_segment(segment_fact(tag, mixed, now=self._clock()))

    def _read(self, name: str, first: int, frames: int) -> Samples:
        """Return samples of a track for the mix. A sealed file that is gone or damaged leaves a gap in the mix."""
        track = self._tracks[name]
        try:
            return track.read(first, frames)
        except (FileNotFoundError, IntegrityMismatch) as error:
            reason = f"{name} could not be read: {error}"
            self._mark(SpanKind.GAP, MIXED, first / track.rate, (first + frames) / track.rate, reason)
            return silence(frames)

    def _end_call(self) -> None:
        if self._ending is None or self.call.state == CallState.ENDED:
            return
        ended = replace(
            self.call,
            state=CallState.ENDED,
            end_reason=self._ending.reason,
            ended_at=self.call.started_at + self._duration // 1000,
            duration_s=self._duration / NANOSECONDS,
        )
        self._say(ended)

    def _keep_facts(self, *, sync: bool) -> list[Fact]:
        """Write the new facts to the journal, and return those that are now safe there."""
        if self._journal is None:
            return []
        sealed = any(isinstance(fact, model.Segment) for fact in self._unwritten)
        if self._unwritten:
            self._journal.append(self._unwritten)
            self._unsynced += self._unwritten
            self._unwritten = []
        if not self._unsynced or not (sync or sealed):
            return []
        try:
            self._journal.sync()
        except OSError:
            # It is never believed again about these: they are written anew.
            self._unwritten, self._unsynced = self._unsynced + self._unwritten, []
            raise
        safe, self._unsynced = self._unsynced, []
        return safe

    def _give_up_overdue(self, error: OSError) -> None:
        """Turn what the disk has refused for too long into gaps, so that RAM stays bounded."""
        for track in self._tracks.values():
            if track.refused_frames > self._capture.queue_seconds * track.rate:
                self._mark_ranges(SpanKind.GAP, track, track.drop_refused(), f"the disk refused it: {error.strerror}")

    # Small things.

    def _media_time(self) -> int:
        """Return the least end of the tracks that have not ended, or the greatest of all where each has."""
        ends = {track.name: instant_of(track.timeline.end, track.rate) for track in self._tracks.values()}
        running = [ends[track.name] for track in self._tracks.values() if not track.ended]
        return min(running) if running else max(ends.values(), default=0)

    def _cut(self, interval: int, rate: int) -> int:
        """Return the sample at which `interval` begins; the call's end for those behind it."""
        instant = interval * self._segment_ns
        return sample_at(min(instant, self._duration) if self._ending is not None else instant, rate)

    def _say(self, call: model.Call) -> None:
        self.call = call
        self._unwritten.append(call)

    def _add_segment(self, fact: model.Segment | None) -> None:
        if fact is not None:
            self._unwritten.append(fact)
            self.segments += 1

    def _mark_ranges(self, kind: SpanKind, track: Track, ranges: list[tuple[int, int]], reason: str) -> None:
        for first, end in joined(ranges):
            self._mark(kind, track.name, first / track.rate, end / track.rate, reason)

    def _mark(self, kind: SpanKind, track: str, start: float, end: float, reason: str) -> None:
        self._spans += 1
        span = model.new_span(self.call.call_id, self._spans, kind, track, start_s=start, end_s=end, reason=reason)
        self._unwritten.append(span)


def write_whole(directory: Path, tag: Tag, samples: Samples) -> None:
    """Write and seal a segment that is made in one go."""
    segment = OpenSegment(directory, tag)
    try:
        segment.write(Piece(tag.first_sample, samples))
        segment.seal(len(samples))
    except OSError:
        segment.abandon()
        raise
    segment.close()

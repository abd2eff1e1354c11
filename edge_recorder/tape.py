"""
All of one call on disk: its tracks, their mix and its journal.

A tape is moved by whoever owns it, one step at a time:
    advance       takes what was handed over, writes what is due, finishes segments past their cut, mixes them
    begin_sync    says what is to be fsynced; that is done elsewhere, so that a stalled disk holds up no `advance`
    end_sync      takes what is synced one step further, and returns the facts that may become rows
What the disk refuses stays in RAM and is tried again by the next step; past `queue_seconds` of it, it becomes a gap.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_recorder import model, spool
from edge_recorder.intake import Intake
from edge_recorder.items import ConsentSet, Ending, Item, TrackDeclared
from edge_recorder.journal import Start
from edge_recorder.keeping import Keeping
from edge_recorder.mixes import Mixes
from edge_recorder.model import MIXED, CallState, Fact, Instant, Pace, Segmentation, SpanKind
from edge_recorder.segment import OpenSegment
from edge_recorder.settings import Capture
from edge_recorder.spill import Spill
from edge_recorder.timeline import FOREVER, NANOSECONDS, Range, instant_of, joined, sample_at
from edge_recorder.track import Cuts, Track

MOST_SEALING = 32  # files of a call on their way to being sealed, beyond which none is made for silence
MIX_CONTEXT = 2 * NANOSECONDS  # before a stretch that its mix may read


@dataclass(slots=True)
class Progress:
    """What a step came to."""

    facts: list[Fact] = field(default_factory=list)  # safe in the journal
    errors: list[OSError] = field(default_factory=list)  # what the disk said


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDisk:
    """How much of a call is where."""

    unsynced_s: float  # of audio that power loss would take, of the track with most of it
    gap_s: float  # of all tracks that were not recorded
    segments: int  # sealed
    spans: int


class Tape:
    """One call on disk."""

    def __init__(
        self, call: model.Call, data_dir: Path, *, writer: str, capture: Capture, clock: Callable[[], Instant]
    ) -> None:
        """`clock` tells the time of day, in microseconds since 1970, UTC."""
        self.call = call
        self.directory = spool.call_dir(data_dir, call.call_id, call.started_at)
        self._start = Start(
            call_id=call.call_id, started_at=call.started_at, writer=writer, segmentation=capture.segmentation
        )
        self._live = call.pace == Pace.LIVE
        self._capture = capture
        self._cuts = Cuts(
            length_ns=capture.segment_seconds * NANOSECONDS,
            late_ns=int(capture.late_window * NANOSECONDS),
            turns=Segmentation(capture.segmentation) == Segmentation.TURN,
        )
        self._spill = Spill(self.directory)
        self._keeping = Keeping(self.directory, self._start, clock=clock)
        self._mixes = Mixes(self.directory, self._start, rate=capture.mixed_rate, mark=self._mark)
        self._intake = Intake(
            live=self._live,
            wait=capture.queue_seconds,
            mark=self._mark,
            begin_mark=self._begin_mark,
            make_track=self._make_track,
            say=self._take_fact,
            spill=self._spill,
        )
        self._now = 0
        self._next_interval = 0  # the first that is not finished
        self._spans = 0
        self._gap_seconds = 0.0
        self._ending: Ending | None = None
        self._duration = 0  # nanoseconds; right once the call is ending
        self._doubted = False  # an fsync failed: some segments may be suspect
        self._refused_since: int | None = None  # since when something is in RAM that was due on disk
        self._keeping.say(call)

    def on_disk(self) -> OnDisk:
        """Say how much of the call is where. May be asked by any thread."""
        return OnDisk(
            unsynced_s=max((_waiting(track) / track.rate for track in self._intake.tracks), default=0.0),
            gap_s=self._gap_seconds,
            segments=self._keeping.sealed,
            spans=self._spans,
        )

    @property
    def is_arriving(self) -> bool:
        """Whether something is held back for a moment, so that the next `advance` should not wait long."""
        return self._intake.is_arriving

    @property
    def is_refused(self) -> bool:
        """Whether the disk has not taken all that is due."""
        return self._refused_since is not None

    @property
    def is_ready(self) -> bool:
        """Whether audio can be written: the journal's first line is safe."""
        return self._keeping.is_open

    @property
    def has_ended(self) -> bool:
        """Whether all of the call, and its end, is safe."""
        return self.call.state == CallState.ENDED and self._keeping.is_idle

    def advance(self, items: Sequence[Item], *, now: int, ending: Ending | None = None) -> Progress:
        """Move the call to `now` (nanoseconds from its start). Never raises for what the disk does."""
        progress = Progress()
        self._now = now
        self._intake.take(items, now=now)
        if ending is None:
            self._intake.release(now)
        elif self._ending is None:
            # What the speaker would have played after the end, while a slow disk was waited for, was never heard.
            self._ending = ending
            self._intake.release(min(now, ending.at))
            self._duration = max(self._intake.end(min(now, ending.at)), self._written_until())
        try:
            if self._keeping.is_open:
                self._write_audio()
        except OSError as error:
            progress.errors.append(error)
            self._give_up_overdue(error)
        try:
            self._end_call()
            self._keeping.write()
        except OSError as error:
            progress.errors.append(error)
        if not self._keeping.is_open:
            self._give_up_overdue(None)
        if not progress.errors and self._keeping.is_open:
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = now
        return progress

    def begin_sync(self) -> list[int]:
        """Begin a round of fsyncs, and return the descriptors that are to be fsynced.

        Raises:
            OSError: The disk refused; there is no round.
        """
        return self._keeping.begin([segment for track in self._intake.tracks for segment in track.segments])

    def end_sync(self, failures: Mapping[int, OSError]) -> Progress:
        """End the round, of which the fsyncs in `failures` failed."""
        progress = Progress(errors=list(failures.values()))
        self._doubted = self._doubted or bool(failures)
        try:
            self._keeping.end(failures)
        except OSError as error:
            progress.errors.append(error)
        progress.facts, self._keeping.safe = self._keeping.safe, []
        removed, self._keeping.removed = self._keeping.removed, []
        for segment in removed:
            tag = segment.tag
            self._mark_gaps(
                tag.track, tag.rate, [(tag.first_sample, tag.first_sample + segment.frames)], "its file was removed"
            )
            segment.close()
        return progress

    def close(self) -> None:
        """Let go of the call's files; an unfinished call is finished by recovery."""
        for track in self._intake.tracks:
            track.close()
        self._keeping.close()
        self._spill.close()

    # Onto the disk.

    def _write_audio(self) -> None:
        tracks = self._intake.tracks
        if self._doubted:
            self._move_suspects(tracks)
        failures = [failure for track in tracks if (failure := self._written(track)) is not None]
        if failures:
            raise failures[0]
        now = self._now if self._live else self._intake.media_time()
        try:
            self._finish_regular(tracks, now)
            for track in tracks:
                track.finish_further(now=FOREVER if self._ending else self._now)
        finally:
            self._seal_finished(tracks)
        if self._cuts.turns:
            for turn in self._intake.turns:
                self._mixes.owe(turn, due=self._now + self._cuts.late_ns)
        self._intake.turns.clear()
        self._mixes.make(tracks, now=FOREVER if self._ending else self._now, seal=self._keeping.seal)
        needed = min(self._mixes.earliest, self._intake.earliest_turn, self._next_mix()) - MIX_CONTEXT
        for track in tracks:
            track.forget(sample_at(max(0, needed), track.rate))

    def _written(self, track: Track) -> OSError | None:
        limit = int(self._capture.queue_seconds * track.rate)
        try:
            track.write(now=self._now)
        except OSError as error:
            return error
        finally:
            for segment in [*track.segments, *self._keeping.sealing]:
                if segment.unsynced_frames > limit and not segment.suspect:
                    segment.forget(limit)
        return None

    def _finish_regular(self, tracks: list[Track], now: int) -> None:
        if self._cuts.turns:
            for track in tracks:
                end = sample_at(self._duration, track.rate) if self._ending else track.due_until(now)
                track.finish_regular(until=end, whole=False, last=self._ending is not None)
            return
        while self._is_due(self._next_interval, now) and self._may_open(tracks):
            start, end = (self._instant(interval) for interval in (self._next_interval, self._next_interval + 1))
            for track in tracks:
                last = self._ending is not None and end >= self._duration
                track.finish_regular(until=sample_at(end, track.rate), whole=True, last=last)
            if tracks:
                self._mixes.owe((start, end))
            self._next_interval += 1

    def _may_open(self, tracks: list[Track]) -> bool:
        """Whether the next interval takes no more descriptors than one call may have on their way to being sealed.

        After an outage of hours that took all that the process had: no round could begin that gives them back.
        """
        on_their_way = len(self._keeping.sealing) + sum(len(track.finished) for track in tracks)
        return on_their_way < MOST_SEALING or all(track.is_next_open for track in tracks)

    def _next_mix(self) -> int:
        """Return when the next interval begins that is to be mixed; never where turns are."""
        return FOREVER if self._cuts.turns else self._next_interval * self._cuts.length_ns

    def _written_until(self) -> int:
        """Return when what is not sealed ends. With pace `media` an interruption can take a track back before that."""
        ends = (instant_of(end, track.rate) for track in self._intake.tracks for _, end in track.unsealed)
        return max(ends, default=0)

    def _is_due(self, interval: int, now: int) -> bool:
        if self._ending is not None:
            return interval * self._cuts.length_ns < self._duration
        return (interval + 1) * self._cuts.length_ns + self._cuts.late_ns <= now

    def _instant(self, interval: int) -> int:
        """Return when `interval` begins; the call's end for those behind it."""
        instant = interval * self._cuts.length_ns
        return min(instant, self._duration) if self._ending is not None else instant

    def _seal_finished(self, tracks: list[Track]) -> None:
        for track in tracks:
            finished, track.finished = track.finished, []
            self._keeping.seal(finished)
            added, track.added = track.added, []
            if not self._cuts.turns:
                for segment in added:
                    self._mixes.owe_alone(segment)

    def _move_suspects(self, tracks: list[Track]) -> None:
        """Let segments whose fsync failed go on in new files."""
        movers = {track.name: track.move for track in tracks} | {MIXED: self._mixes.move}
        for segment in self._suspects(tracks):
            lost = movers[segment.tag.track](segment)
            self._mark_gaps(segment.tag.track, segment.tag.rate, lost, "an fsync failed after it had left RAM")
        self._doubted = False

    def _suspects(self, tracks: list[Track]) -> list[OpenSegment]:
        segments = [*(each for track in tracks for each in track.segments), *self._keeping.sealing]
        return [each for each in segments if each.suspect]

    def _give_up_overdue(self, error: OSError | None) -> None:
        """Turn what the disk has refused for too long into gaps, so that RAM stays bounded."""
        patience = int(self._capture.queue_seconds * NANOSECONDS)
        if self._refused_since is None or self._now - self._refused_since < patience:
            return
        reason = f"the disk refused it: {error.strerror}" if error is not None else "the disk did not answer"
        for track in self._intake.tracks:
            suspects = [each for each in self._suspects([track]) if each.tag.track == track.name]
            refused = track.unwritten_frames + sum(each.unsynced_frames for each in suspects)
            if refused > self._capture.queue_seconds * track.rate:
                lost = sorted(track.give_up() + [each for segment in suspects for each in segment.give_up()])
                self._mark_gaps(track.name, track.rate, lost, reason)

    def _end_call(self) -> None:
        """Say that the call has ended, once all of its segments are sealed."""
        if self._ending is None or self.call.state == CallState.ENDED or not self._keeping.is_open:
            return
        unfinished = any(track.segments or track.unwritten_frames for track in self._intake.tracks)
        if unfinished or self._next_mix() < self._duration or self._keeping.sealing or not self._mixes.is_idle:
            return
        self._say_call(
            replace(
                self.call,
                state=CallState.ENDED,
                end_reason=self._ending.reason,
                ended_at=self.call.started_at + self._duration // 1000,
                duration_s=self._duration / NANOSECONDS,
            )
        )

    # Facts.

    def _make_track(self, name: str, rate: int) -> Track:
        # No slot before it is open. Where turns move the cuts it begins with the call, as silence makes no file there.
        begins = self._next_interval * self._cuts.length_ns if not self._cuts.turns else 0
        tag = self._start.tag(name, rate, first_sample=sample_at(begins, rate))
        return Track(self.directory, tag, cuts=self._cuts, live=self._live)

    def _take_fact(self, item: Item) -> None:
        match item:
            case TrackDeclared(track, rate):
                declared = json.loads(self.call.tracks)
                if declared.get(track) != rate:
                    self._say_call(replace(self.call, tracks=json.dumps(declared | {track: rate})))
            case ConsentSet(consent, recording, reason):
                self._say_call(replace(self.call, consent=consent, recording=recording, not_recording_reason=reason))
            case model.Message() | model.Usage():
                self._keeping.say(item)

    def _say_call(self, call: model.Call) -> None:
        self.call = call
        self._keeping.say(call)

    def _mark_gaps(self, track: str, rate: int, ranges: list[Range], reason: str) -> None:
        for first, end in joined(sorted(ranges)):
            self._mark(SpanKind.GAP, track, first / rate, end / rate, reason)

    def _mark(
        self, kind: SpanKind, track: str | None, start: float, end: float, reason: str, *, n: int | None = None
    ) -> None:
        self._spans += n is None
        if kind == SpanKind.GAP:
            self._gap_seconds += end - start
        span = model.new_span(self.call.call_id, n or self._spans, kind, track, start_s=start, end_s=end, reason=reason)
        self._keeping.say(span)

    def _begin_mark(self, kind: SpanKind, track: str | None, start: float, reason: str) -> int:
        """Note a span that is not over yet, and return its number."""
        self._spans += 1
        span = model.new_span(self.call.call_id, self._spans, kind, track, start_s=start, end_s=start, reason=reason)
        self._keeping.began(span)
        return self._spans


def _waiting(track: Track) -> int:
    return track.unwritten_frames + sum(segment.unsynced_frames for segment in track.segments)

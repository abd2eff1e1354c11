"""
What callers handed over, taken in: audio onto the timelines of its tracks, marks and facts to where they belong.

All of this is RAM: nothing here waits for a disk. Items are taken in the order in which they were handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

import numpy as np

from edge_recorder.encodings import Encoding, to_pcm16
from edge_recorder.inlet import Inlet
from edge_recorder.items import (
    ConsentSet,
    Interrupted,
    Item,
    Lost,
    Muted,
    OfTrack,
    PlaybackHalted,
    Played,
    Skipped,
    Stream,
    TrackDeclared,
    TrackEnded,
    TurnAdded,
    TurnMarked,
    Unmuted,
)
from edge_recorder.model import Message, SpanKind, Usage
from edge_recorder.resampling import resampled
from edge_recorder.spill import Spill, Stored
from edge_recorder.timeline import (
    FOREVER,
    NANOSECONDS,
    Audio,
    Blank,
    Due,
    Heard,
    Piece,
    Range,
    Timeline,
    instant_of,
    joined,
    sample_at,
)
from edge_recorder.track import Track
from edge_recorder.wav import silence


class Mark(Protocol):
    """Makes a span; `start` and `end` are seconds."""

    def __call__(
        self, kind: SpanKind, track: str | None, start: float, end: float, reason: str, *, n: int | None = None
    ) -> None: ...


class BeginMark(Protocol):
    """Notes a span that is not over yet, and returns its number `n`, with which it is made when it ends."""

    def __call__(self, kind: SpanKind, track: str | None, start: float, reason: str) -> int: ...


@dataclass(slots=True)
class Voice:
    """A track with its ways in."""

    track: Track
    heard: Inlet
    played: Inlet
    chunks: list[Heard] = field(default_factory=list)  # to be placed
    turn: int | None = None  # when the one under way began, nanoseconds
    turn_span: int = 0  # its number

    @property
    def timeline(self) -> Timeline:
        return self.track.timeline


class _Mute(NamedTuple):
    """Why nothing is kept, since when (nanoseconds), and the number of the span that it becomes."""

    at: int
    reason: str
    span: int


class Intake:
    """What one call takes in. `voices` are its tracks; `turns` the finished turns, as (start, end) in nanoseconds."""

    def __init__(
        self,
        *,
        live: bool,
        wait: float,
        mark: Mark,
        begin_mark: BeginMark,
        make_track: Callable[[str, int], Track],
        say: Callable[[Item], None],
        spill: Spill,
    ) -> None:
        """Audio waits in RAM for `wait` seconds of it, and in `spill` beyond; `say` takes what is not audio."""
        self.voices: dict[str, Voice] = {}
        self.turns: list[Range] = []
        self._live = live
        self._wait = wait
        self._mark = mark
        self._begin_mark = begin_mark
        self._make_track = make_track
        self._say = say
        self._spill = spill
        self._muted: dict[str, _Mute] = {}  # by cause
        self._silences: list[Range] = []  # when nothing is kept, in nanoseconds, the last of them perhaps under way

    @property
    def tracks(self) -> list[Track]:
        return [voice.track for voice in list(self.voices.values())]  # another thread may ask while one is added

    @property
    def earliest_turn(self) -> int:
        """When the first of the turns under way began, in nanoseconds."""
        return min((voice.turn for voice in self.voices.values() if voice.turn is not None), default=FOREVER)

    @property
    def is_arriving(self) -> bool:
        """Whether a burst is held back for a moment, as more of it may come."""
        return any(voice.timeline.is_arriving for voice in self.voices.values())

    def take(self, items: Sequence[Item], *, now: int) -> None:
        """Take `items` in."""
        for item in items:
            if type(item) is Stream:
                voice = self.voices[item.track]
                if item.rate == voice.heard.straight and item.encoding == Encoding.PCM16:
                    voice.chunks += item.chunks
                else:
                    for each in item.chunks:
                        voice.chunks += voice.heard.take(each, item.encoding, item.rate)
            else:
                self._place(now)  # all that came before it
                self._take_other(item, now)
        for voice in self.voices.values():
            if not voice.heard.straight:
                voice.chunks += voice.heard.finish_if_idle(now)
            if not voice.played.straight:
                self._queue(voice, voice.played.finish_if_idle(now))
        self._place(now)

    def release(self, now: int) -> None:
        """Hand the tracks what is due at `now`."""
        for voice in self.voices.values():
            if voice.timeline.is_waiting:
                self._hand_over(voice, voice.timeline.release(now))
                self._shrink(voice)

    def end(self, at: int) -> int:
        """Take in all that is there, as nothing more comes. Returns how long the call is, in nanoseconds."""
        for voice in self.voices.values():
            self._finish(voice)
        self._place(at)
        for voice in self.voices.values():
            self._hand_over(voice, voice.timeline.release(at))
            self._hand_over(voice, voice.timeline.release_heard(at))
            self._mark_ranges(SpanKind.UNHEARD, voice, voice.timeline.drop_unplayed(), "the call ended first")
            self._end_turn(voice, self._instant(voice, at))
        ends = [instant_of(voice.timeline.end, voice.track.rate) for voice in self.voices.values()]
        duration = max([at if self._live else 0, *ends])
        for muted in self._muted.values():
            if self.voices:
                start, end = muted.at / NANOSECONDS, duration / NANOSECONDS
                self._mark(SpanKind.PAUSED, None, start, end, muted.reason, n=muted.span)
        return duration

    def media_time(self) -> int:
        """Return the least end of the tracks that have not ended, or the greatest of all where each has."""
        ends = {voice.track.name: instant_of(voice.timeline.end, voice.track.rate) for voice in self.voices.values()}
        running = [ends[track.name] for track in self.tracks if not track.ended]
        return min(running) if running else max(ends.values(), default=0)

    # Item by item.

    def _take_other(self, item: Item, now: int) -> None:
        match item:
            case Muted():
                self._mute(item)
            case Unmuted():
                self._unmute(item)
            case TrackDeclared():
                self._declare(item)
            case ConsentSet() | Message() | Usage():
                self._say(item)
            case _:
                self._take_of_track(self.voices[item.track], item, now)

    def _take_of_track(self, voice: Voice, item: OfTrack, now: int) -> None:
        match item:
            case Played():
                self._play(voice, item)
            case Skipped():
                self._skip(voice, item)
            case Lost():
                self._lose(voice, item)
            case Interrupted():
                self._interrupt(voice, item)
            case PlaybackHalted():
                (voice.timeline.halt if item.halts else voice.timeline.go_on)(item.at)
            case TurnMarked():
                self._mark_turn(voice, item)
            case TurnAdded():
                self._add_turn(voice, item, now)
            case TrackEnded():
                self._finish(voice)
                voice.track.ended = True

    def _declare(self, item: TrackDeclared) -> None:
        track = self._make_track(item.track, item.rate)
        self.voices[item.track] = Voice(track, Inlet(item.rate), Inlet(item.rate))
        for start, end in self._silences:  # also those that are over: what comes now may have been said within them
            track.timeline.mute(sample_at(start, item.rate))
            if end != FOREVER:
                track.timeline.unmute(sample_at(end, item.rate))
        self._say(item)

    def _play(self, voice: Voice, item: Played) -> None:
        if item.pcm is None:
            frames = round(item.frames * voice.track.rate / item.rate)
            places = voice.timeline.play(Blank(frames), arrived=item.arrived)
            self._mark_ranges(SpanKind.PAUSED, voice, [places], "handed over while nothing was kept")
            self._say_at_once(voice)
        else:
            heard = Heard(item.pcm, item.arrived)
            self._queue(voice, voice.played.take(heard, item.encoding, item.rate))

    def _queue(self, voice: Voice, chunks: list[Heard]) -> None:
        for each in chunks:
            voice.timeline.play(cast("Audio", np.frombuffer(each.pcm, "<i2")), arrived=each.arrived)
        self._say_at_once(voice)

    def _say_at_once(self, voice: Voice) -> None:
        """Where audio moves time, what is played takes its places now: what comes next on its track is behind it."""
        if not self._live:
            self._hand_over(voice, voice.timeline.release(FOREVER))

    def _skip(self, voice: Voice, item: Skipped) -> None:
        frames = round(item.seconds * voice.track.rate)
        if item.at is None:
            voice.timeline.skip(frames)
        else:
            voice.timeline.skip(max(0, round(item.at * voice.track.rate) + frames - voice.timeline.end))

    def _lose(self, voice: Voice, lost: Lost) -> None:
        """Leave the place of lost audio empty, and say so."""
        if lost.at is not None:
            start = lost.at
        else:  # behind what there was room for; what comes next is behind it
            timeline, frames = voice.timeline, round(lost.seconds * voice.track.rate)
            silent = sample_at(lost.began, timeline.rate) - timeline.end if self._live else 0
            start = (timeline.skip(max(0, silent) + frames) + max(0, silent)) / timeline.rate
        self._mark(SpanKind.GAP, lost.track, start, start + lost.seconds, "the queue was full")

    def _interrupt(self, voice: Voice, item: Interrupted) -> None:
        self._queue(voice, voice.played.finish())  # what the resampler holds back may have been heard already
        at = sample_at(self._instant(voice, item.at), voice.track.rate)
        unheard, written = voice.timeline.interrupt(at=at, played=item.played)
        voice.track.erase(written)
        self._keep_sealed(voice, written)
        self._mark_ranges(SpanKind.UNHEARD, voice, unheard, "interrupted")

    def _keep_sealed(self, voice: Voice, ranges: list[Range]) -> None:
        """Take the places again that sealed files hold: what else was put there would be said over it."""
        for first, end in voice.track.unsealed:
            ranges = without(ranges, first, end)
        for first, end in ranges:
            voice.timeline.insert(first, silence(end - first))

    def _mark_turn(self, voice: Voice, item: TurnMarked) -> None:
        at = self._instant(voice, item.at)
        self._end_turn(voice, at)
        if item.starts:
            self._start_turn(voice, at)

    def _start_turn(self, voice: Voice, at: int) -> None:
        voice.timeline.start_utterance()
        voice.turn = max(at, voice.track.cut_turn(sample_at(at, voice.track.rate)))
        voice.turn_span = self._begin_mark(SpanKind.TURN, voice.track.name, voice.turn / NANOSECONDS, "")

    def _end_turn(self, voice: Voice, at: int) -> None:
        if voice.turn is None:
            return
        start, voice.turn = voice.turn, None
        voice.timeline.end_utterance()
        end = max(at, start, voice.track.cut_turn(sample_at(at, voice.track.rate)))
        self._add_span_of_turn(voice, start, end, n=voice.turn_span)

    def _add_turn(self, voice: Voice, item: TurnAdded, now: int) -> None:
        samples = np.frombuffer(to_pcm16(item.pcm, item.encoding), "<i2")
        if item.rate != voice.track.rate:
            samples = resampled(samples, item.rate, voice.track.rate)
        if not len(samples):
            return  # at the track's rate it is less than one
        timeline = voice.timeline
        if item.at is not None:
            start = round(item.at * timeline.rate)
        elif self._live:  # behind what is there rather than over it: finished turns may come in a bunch
            start = max(sample_at(item.arrived, timeline.rate) - len(samples), timeline.end)
        else:
            start = timeline.end
        pieces, late = timeline.insert(start, samples)
        voice.track.add_turn([_loaded(each) for each in pieces], now=now)
        self._mark_late(voice, late)
        self._add_span_of_turn(voice, instant_of(start, timeline.rate), instant_of(start + len(samples), timeline.rate))

    def _add_span_of_turn(self, voice: Voice, start: int, end: int, *, n: int | None = None) -> None:
        self._mark(SpanKind.TURN, voice.track.name, start / NANOSECONDS, end / NANOSECONDS, "", n=n)
        self.turns.append((start, end))

    def _mute(self, item: Muted) -> None:
        if self._live and not self._muted:
            self._silences.append((item.at, FOREVER))
        for voice in self.voices.values():
            self._finish(voice)
            if self._live and not self._muted:
                first = sample_at(item.at, voice.track.rate)
                voice.timeline.mute(first)
                voice.track.erase([(first, FOREVER)])  # heard audio may be written a little ahead of its time
        at = item.at if self._live else self.media_time()
        n = self._begin_mark(SpanKind.PAUSED, None, at / NANOSECONDS, item.reason)
        self._muted[item.cause] = _Mute(at, item.reason, n)

    def _unmute(self, item: Unmuted) -> None:
        muted = self._muted.pop(item.cause)
        until = item.at
        if not self._live:
            ends = (instant_of(each.timeline.end, each.track.rate) for each in self.voices.values())
            until = max([muted.at, *ends])
        elif not self._muted:
            self._silences[-1] = (self._silences[-1][0], item.at)
            for voice in self.voices.values():
                voice.timeline.unmute(sample_at(item.at, voice.track.rate))
        self._mark(SpanKind.PAUSED, None, muted.at / NANOSECONDS, until / NANOSECONDS, muted.reason, n=muted.span)

    # Onto the timelines, and from them to the tracks.

    def _finish(self, voice: Voice) -> None:
        """Take in the tails of the streams under way."""
        voice.chunks += voice.heard.finish()
        self._queue(voice, voice.played.finish())

    def _place(self, now: int) -> None:
        for voice in self.voices.values():
            if voice.chunks or voice.timeline.is_arriving:
                chunks, voice.chunks = voice.chunks, []
                self._mark_late(voice, voice.timeline.hear(chunks, now=now))

    def _hand_over(self, voice: Voice, due: Due) -> None:
        pieces: list[Piece] = []
        for each in due.pieces:
            try:
                pieces.append(_loaded(each))
            except OSError as error:
                reason = f"the disk did not give back what waited on it: {error.strerror}"
                self._mark_ranges(SpanKind.GAP, voice, [(each.start, each.end)], reason)
        voice.track.take(pieces)
        self._mark_late(voice, due.late)

    def _shrink(self, voice: Voice) -> None:
        limit = int(self._wait * voice.track.rate)
        if voice.timeline.waiting > limit:
            lost = voice.timeline.shrink(limit, self._spill.store)
            self._mark_ranges(SpanKind.GAP, voice, lost, "too much waits to be played")

    def _mark_late(self, voice: Voice, ranges: list[Range]) -> None:
        if ranges:
            self._mark_ranges(SpanKind.LATE, voice, ranges, "came for a place already written")

    def _mark_ranges(self, kind: SpanKind, voice: Voice, ranges: list[Range], reason: str) -> None:
        for first, end in joined(sorted(ranges)):  # they come in the order of what was handed over
            self._mark(kind, voice.track.name, first / voice.track.rate, end / voice.track.rate, reason)

    def _instant(self, voice: Voice, at: int) -> int:
        """Return when something was: by the clock, or with pace `media` where its track has come to."""
        return at if self._live else instant_of(voice.timeline.end, voice.track.rate)


def _loaded(waiting: object) -> Piece:
    start, audio = cast("tuple[int, Audio]", waiting)
    return Piece(start, audio.load() if isinstance(audio, Stored) else cast("np.ndarray", audio))


def without(ranges: list[Range], first: int, end: int) -> list[Range]:
    """Return `ranges` less what lies between two samples."""
    parts = [part for a, b in ranges for part in ((a, min(b, first)), (max(a, end), b))]
    return [(a, b) for a, b in parts if a < b]

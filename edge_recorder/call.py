"""
The handle of one call, for any thread and any event loop: it checks what it is given, hands it over, and returns.

Nothing here waits for a disk. What is handed over is held, bounded, until the recorder's thread takes it to the tape; a
wrong argument raises before anything is taken. What must not be kept is not even copied.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

from edge_recorder import model as facts
from edge_recorder.arguments import (
    Audio,
    as_audio,
    as_exact,
    as_json,
    as_place,
    check_flag,
    checked_rate,
    clean,
    clean_if_given,
)
from edge_recorder.encodings import Encoding
from edge_recorder.errors import CallEnded, CallerError, EdgeRecorderError, RecorderClosed, UnknownTrack
from edge_recorder.handover import Budget, Handover
from edge_recorder.items import (
    ConsentSet,
    Ending,
    Interrupted,
    Item,
    Lost,
    Muted,
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
from edge_recorder.muting import Mutes
from edge_recorder.pending import Pending
from edge_recorder.stats import CallStats, CallSummary
from edge_recorder.tape import OnDisk
from edge_recorder.timeline import NANOSECONDS, Heard

LONGEST_CALL = 86_400.0  # seconds
END_WAIT = 30.0  # seconds that leaving a `with` block waits for a disk that refuses; the call goes on being ended
MOST_TRACKS = 10  # user, assistant and 8 more
LOST_APART = 1.0  # seconds between what is lost and what is lost next, from which on these are two gaps
BLOCK = 65_536  # bytes of the budget that a call takes at once, so that few writes have to ask for it
NOT_WANTED = "record=False"  # why a call is not recorded that could be
PAUSE, CONSENT = "pause", "consent"  # what nothing is kept for


@dataclass(slots=True)
class _Voice:
    """What the handle knows of a track."""

    rate: int
    ended: bool = False
    queued: float = 0.0  # seconds of heard audio since the last `take`
    stream: Stream | None = None  # what the next of it is added to
    lost: Lost | None = None  # what there was no room for, the latest


class Call:
    """One call being recorded. Made by `Recorder.start_call`.

    `id` is its UUIDv7; `recording` is False, with `reason`, when its audio cannot be recorded: its facts are kept then.
    """

    def __init__(
        self,
        fact: facts.Call,
        *,
        tracks: Mapping[str, int],
        queue_seconds: float,
        budget: Budget,
        began: int,
        clock: Callable[[], facts.Instant],
        wake: Callable[[], None],
        measure: Callable[[], OnDisk],
    ) -> None:
        """`began` is when, in `monotonic_ns`; `clock` tells the time of day; `wake` calls the recorder's thread."""
        self.id = fact.call_id
        self.recording = fact.recording
        self.reason = fact.not_recording_reason
        self._consent = fact.consent
        self._live = fact.pace == facts.Pace.LIVE
        self._queue_seconds = queue_seconds
        self._budget = budget
        self._began = began
        self._clock = clock
        self._wake = wake
        self._measure = measure
        self._lock = threading.Lock()  # held for a few instructions only, never for I/O
        self._voices: dict[str, _Voice] = {}
        self._items: list[Item] = []
        self._queued_bytes = 0
        self._allowed_bytes = 0  # of the budget, taken a block at a time
        self._lost_seconds = 0.0
        self._flushes: list[Pending[None]] = []
        self._drains: list[Pending[None]] = []
        self._messages = 0
        self._usages = 0
        self._mutes = Mutes()
        self._refusal = None if self.recording or self.reason == NOT_WANTED else self.reason  # what no consent changes
        self._is_on_tape = self.recording  # the tape knows the tracks
        self._ending: Ending | None = None
        self._summary: Pending[CallSummary] = Pending()
        self._took = 0
        self._disowned = False  # this is a forked child
        for track, rate in tracks.items():
            self._declare(track, rate)
        if not self.recording:
            self._mute(CONSENT, self.reason or "", 0)

    def write(
        self,
        track: str,
        audio: Audio,
        *,
        rate: int | None = None,
        at: float | None = None,
        encoding: str = Encoding.PCM16,
    ) -> None:
        """Hand over audio that was heard on `track`.

        Args:
            track: The track's name; `rate` (Hz) declares it at its first write.
            audio: Mono: bytes in `encoding`, or a one-dimensional int16 or float32 (-1 to 1) array. It is copied.
            rate: Samples per second; needed where the track was not declared. Another than the track's is resampled.
            at: Seconds from the call's start of the first sample, where the source knows; else its arrival tells.
            encoding: Of bytes: `pcm16` (little-endian), `float32` (little-endian), `mulaw` or `alaw`.

        Raises:
            InvalidAudio: Not whole samples, wrong dtype or shape, no such encoding, or a rate out of range.
            UnknownTrack: The track was never declared, and there is no rate.
            CallerError: `at` is no place in the call, or far ahead of it.
            CallEnded: The call, or the track, has ended.
        """
        arrived = time.monotonic_ns() - self._began
        view: bytes | memoryview
        if type(audio) is bytes and encoding == "pcm16" and not len(audio) & 1:  # the usual: nothing to be done
            view, frames = audio, len(audio) >> 1
        else:
            view, encoding, frames = as_audio(audio, encoding)
        if at is not None:
            at = self._checked_place(at, arrived)
        with self._lock:
            voice = self._voices.get(track)
            if voice is None or rate is not None or voice.ended or self._ending is not None:
                voice = self._open_voice(track, rate)
            own = rate or voice.rate
            seconds = frames / own
            if self._mutes and self._is_muted(track, seconds, arrived, at):
                return
            pcm = bytes(view)  # copied only here: what must not be kept never is
            size = len(pcm)
            queued = voice.queued + seconds
            full = queued > self._queue_seconds and voice.queued  # one long piece is better than none
            if full or (self._queued_bytes + size > self._allowed_bytes and not self._is_allowed(size)):
                self._lose(voice, Lost(track, seconds, self._began_at(arrived, seconds), at))
                return
            voice.queued = queued
            self._queued_bytes += size
            stream = voice.stream
            if stream is None or stream.rate != own or stream.encoding != encoding:
                stream = voice.stream = Stream(track, own, encoding, [])
                voice.lost = None
                self._items.append(stream)
            stream.chunks.append(Heard(pcm, arrived, at))

    def play(self, track: str, audio: Audio, *, rate: int | None = None, encoding: str = Encoding.PCM16) -> None:
        """Hand over audio that was handed to the speaker: it is queued after what still plays.

        Args and errors are those of `write`.
        """
        arrived = time.monotonic_ns() - self._began
        view, encoding, frames = as_audio(audio, encoding)
        with self._lock:
            voice = self._open_voice(track, rate)
            own = rate or voice.rate
            if not self._is_on_tape or not frames:
                return
            if self._mutes.cover_arrival(arrived if self._live else None):
                self._hand_over(Played(track, None, encoding, own, frames, arrived))
            elif self._queued_bytes + len(view) <= self._allowed_bytes or self._is_allowed(len(view)):
                self._queued_bytes += len(view)
                self._hand_over(Played(track, bytes(view), encoding, own, frames, arrived))
            else:
                self._lose(voice, Lost(track, frames / own, arrived))

    def interrupt(self, track: str, *, at: float | None = None, played: float | None = None) -> None:
        """Take back what was handed to the speaker and not heard: somebody spoke over it.

        Args:
            track: The track that was spoken over.
            at: Seconds from the call's start at which it fell silent; default: now.
            played: Or the seconds that were heard of what is being said: since the speaker last fell silent, was
                interrupted, or `start_turn`.

        Raises:
            UnknownTrack: There is no such track.
            CallerError: `at` or `played` is no number of seconds, or `at` is far ahead of the call.
            CallEnded: The call has ended.
        """
        if at is not None and played is not None:
            raise CallerError(
                "at= and played= are two answers to one question", fix="Give one of them, or none for now"
            )
        instant, played = self._instant(at), as_place(played, name="played")
        with self._lock:
            self._known_voice(track)
            self._put(Interrupted(track, instant, played))

    def pause_playback(self, track: str) -> None:
        """Say that the speaker stands still: what is queued for it waits. Errors are those of `end_track`."""
        with self._lock:
            self._known_voice(track)
            self._put(PlaybackHalted(track, halts=True, at=self._instant(None)))

    def resume_playback(self, track: str) -> None:
        """Say that the speaker goes on where it stood. Errors are those of `end_track`."""
        with self._lock:
            self._known_voice(track)
            self._put(PlaybackHalted(track, halts=False, at=self._instant(None)))

    def start_turn(self, track: str, *, at: float | None = None) -> None:
        """Mark that a turn of `track` starts, at `at` seconds from the call's start or now. It ends one under way.

        Errors are those of `interrupt`.
        """
        self._mark_turn(track, at, starts=True)

    def end_turn(self, track: str, *, at: float | None = None) -> None:
        """Mark that the turn of `track` ends. Errors are those of `interrupt`."""
        self._mark_turn(track, at, starts=False)

    def add_turn(
        self,
        track: str,
        audio: Audio,
        *,
        rate: int | None = None,
        at: float | None = None,
        encoding: str = Encoding.PCM16,
    ) -> None:
        """Hand over a finished turn, however late it comes. Without `at` it ended when it was handed over.

        Args and errors are those of `write`.
        """
        arrived = time.monotonic_ns() - self._began
        view, encoding, frames = as_audio(audio, encoding)
        if at is not None:
            at = self._checked_place(at, arrived)
        with self._lock:
            voice = self._open_voice(track, rate)
            own = rate or voice.rate
            if not frames or (self._mutes and self._is_muted(track, frames / own, arrived, at)):
                return
            if self._queued_bytes + len(view) <= self._allowed_bytes or self._is_allowed(len(view)):
                self._queued_bytes += len(view)
                self._hand_over(TurnAdded(track, bytes(view), encoding, own, arrived, at))
            else:
                self._lose(voice, Lost(track, frames / own, self._began_at(arrived, frames / own), at))

    def end_track(self, track: str) -> None:
        """Say that nothing more comes on `track`: with pace `media` the other tracks no longer wait for it.

        Raises:
            UnknownTrack: There is no such track.
            CallEnded: The call has ended.
        """
        with self._lock:
            voice = self._known_voice(track)
            if not voice.ended:
                voice.ended = True
                self._put(TrackEnded(track))

    def pause(self, reason: str) -> None:
        """Keep nothing from now on, such as while card data is read out. The span is kept, with `reason`.

        Raises:
            CallerError: `reason` is not text.
            CallEnded: The call has ended.
        """
        reason = clean(reason)
        with self._lock:
            self._refuse_after_end()
            self._mute(PAUSE, reason, self._elapsed())

    def resume(self) -> None:
        """Keep what is said from now on. What arrives within 0.5 s without an `at` was said before, and is not kept.

        Raises:
            CallEnded: The call has ended.
        """
        with self._lock:
            self._refuse_after_end()
            self._unmute(PAUSE)

    def set_consent(self, consent: Mapping[str, Any] | None = None, *, record: bool) -> None:
        """Turn recording on or off from now on, and keep why. Facts are kept either way.

        Args:
            consent: What was agreed, any JSON; None leaves it as it was.
            record: Whether audio is recorded from now on.

        Raises:
            CallerError: `consent` is not JSON, or `record` neither True nor False.
            CallEnded: The call has ended.
        """
        check_flag("record", record)
        document = as_json("consent", consent) if consent is not None else None
        with self._lock:
            self._refuse_after_end()
            self._consent = document or self._consent
            if record and self._refusal is not None:
                self.reason = self._refusal
            elif record:
                self.recording, self.reason = True, None
                self._tell_tape_of_tracks()
                self._unmute(CONSENT)
            else:
                self.recording, self.reason = False, "no consent"
                self._mute(CONSENT, self.reason, self._elapsed())
            self._items.append(ConsentSet(self._consent, self.recording, self.reason))

    def add_message(
        self,
        role: str,
        text: str,
        *,
        at: float | None = None,
        end: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Keep something said, as text, and return its message_id. `at` and `end` are seconds from the call's start.

        Raises:
            CallerError: A time is no place in the call, text is not text, or `metadata` is not JSON.
            CallEnded: The call has ended.
        """
        at, end = as_place(at), as_place(end)
        document = as_json("metadata", metadata or {})
        with self._lock:
            self._refuse_after_end()
            n = self._messages + 1
            message = facts.Message(
                message_id=facts.message_id(self.id, n),
                call_id=self.id,
                n=n,
                role=clean(role),
                text=clean(text),
                start_s=at,
                end_s=end,
                metadata=document,
                created_at=self._clock(),
            )
            self._messages = n
            self._items.append(message)
        return message.message_id

    def add_usage(
        self,
        kind: str,
        *,
        quantity: str | int | Decimal,
        unit: str,
        provider: str | None = None,
        model: str | None = None,
        cost: str | Decimal | None = None,
        currency: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Keep something a bill is made of, and return its usage_id. Numbers are exact, so never a float.

        Raises:
            CallerError: A number is a float or not one, or `metadata` is not JSON.
            CallEnded: The call has ended.
        """
        exact_quantity = as_exact("quantity", quantity)
        exact_cost = as_exact("cost", cost) if cost is not None else None
        document = as_json("metadata", metadata or {})
        with self._lock:
            self._refuse_after_end()
            n = self._usages + 1
            usage = facts.Usage(
                usage_id=facts.usage_id(self.id, n),
                call_id=self.id,
                n=n,
                kind=clean(kind),
                quantity=exact_quantity,
                unit=clean(unit),
                provider=clean_if_given(provider),
                model=clean_if_given(model),
                cost=exact_cost,
                currency=clean_if_given(currency),
                metadata=document,
                created_at=self._clock(),
            )
            self._usages = n
            self._items.append(usage)
        return usage.usage_id

    def flush(self) -> Pending[None]:
        """Take to disk, synced, all that was handed over so far. With a stalled disk it waits, and nothing is lost."""
        return self._ask(lambda: self._flushes)

    def drain(self) -> Pending[None]:
        """Wait until the queue is empty: back-pressure for sources that are faster than time (pace `media`)."""
        return self._ask(lambda: self._drains)

    def end(self, reason: str = "hangup") -> Pending[CallSummary]:
        """End the call: everything is sealed at once. Called again, it returns the same summary."""
        with self._lock:
            if self._ending is None:
                self._ending = Ending(clean(reason), self._elapsed())
        self._wake()
        return self._summary

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(TimeoutError):
            self.end(_reason_of(kind)).result(END_WAIT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(_ended(self.end(_reason_of(kind))), END_WAIT)

    def stats(self) -> CallStats:
        """Say how the call stands now."""
        there = self._measure()
        with self._lock:
            now = self._elapsed() if self._ending is None else self._ending.at
            return CallStats(
                elapsed_s=now / NANOSECONDS,
                queued_s=max((voice.queued for voice in self._voices.values()), default=0.0),
                queued_bytes=self._queued_bytes,
                untaken_s=max(0, now - self._took) / NANOSECONDS,
                lost_s=self._lost_seconds,
                unsynced_s=there.unsynced_s,
                gap_s=there.gap_s,
                segments=there.segments,
                spans=there.spans,
            )

    # The recorder's side.

    def take(self) -> Handover:
        """Take what was handed over since the last time. The recorder's own."""
        with self._lock:
            for voice in self._voices.values():
                voice.queued = 0.0
                voice.stream = voice.lost = None
            self._took = self._elapsed()
            taken = Handover(self._took, self._items, self._flushes, self._drains, self._ending)
            self._items, self._flushes, self._drains = [], [], []
            allowed, self._queued_bytes, self._allowed_bytes = self._allowed_bytes, 0, 0
        self._budget.give_back(allowed)
        return taken

    def finish(self, summary: CallSummary, *, left: list[Pending[None]]) -> None:
        """Give the summary, and its answer to whoever still waits. The recorder's own."""
        if not summary.complete:  # what still comes is taken by nobody, and must not fill the queue
            with self._lock:
                self.recording, self.reason = False, "the recorder could not go on with it"
                self._refusal, self._is_on_tape = self.reason, False
                self._mutes.begin(CONSENT, 0)
        self._summary.settle(summary)
        late = self.take()
        for pending in (*left, *late.flushes, *late.drains):
            self._answer(pending)

    def disown(self) -> None:
        """Refuse everything, in a forked child: whoever held the lock is not there. The recorder's own."""
        self._lock = threading.Lock()
        self._disowned = True
        self._ending = self._ending or Ending("forked", 0)
        self._summary = Pending()
        self._summary.fail(_not_here())
        self._wake = lambda: None

    def _ask(self, waiting: Callable[[], list[Pending[None]]]) -> Pending[None]:
        pending: Pending[None] = Pending()
        with self._lock:
            waiting().append(pending)
        if self._summary.done():  # the recorder asks no more
            self._answer(pending)
        self._wake()
        return pending

    def _answer(self, pending: Pending[None]) -> None:
        if self._disowned:
            pending.fail(_not_here())
        elif self._summary.result().complete:
            pending.settle(None)
        else:
            lost = EdgeRecorderError(f"call {self.id} is not all on disk", fix="The next start salvages what is")
            pending.fail(lost)

    def _checked_place(self, at: float, arrived: int) -> float:
        """Return `at` as a place that audio may be handed over for now.

        Raises:
            CallerError: It is no place in the call, or far ahead of it.
        """
        place = as_place(at)
        limit = arrived / NANOSECONDS + self._queue_seconds if self._live else LONGEST_CALL
        if place is None or place > limit:
            raise CallerError(
                f"at={at} is far ahead of the call, which is at {arrived / NANOSECONDS:.1f} s",
                fix="Give seconds from the call's start, not a time of day",
            )
        return place

    def _elapsed(self) -> int:
        return time.monotonic_ns() - self._began

    def _instant(self, at: float | None) -> int:
        """Return a place, or now, in nanoseconds.

        Raises:
            CallerError: `at` is no place in the call, or far ahead of it.
        """
        now = self._elapsed()
        return now if at is None else round(self._checked_place(at, now) * NANOSECONDS)

    # Within the lock.

    def _mark_turn(self, track: str, at: float | None, *, starts: bool) -> None:
        instant = self._instant(at)
        with self._lock:
            self._known_voice(track)
            self._put(TurnMarked(track, starts, instant))

    def _put(self, item: Item) -> None:
        """Hand over what belongs to a track, if the tape knows of that."""
        if self._is_on_tape:
            self._hand_over(item)

    def _hand_over(self, item: Item) -> None:
        """Hand over something that has its place between what is heard."""
        for voice in self._voices.values():
            voice.stream = voice.lost = None
        self._items.append(item)

    def _is_muted(self, track: str, seconds: float, arrived: int, at: float | None) -> bool:
        """Say whether nothing of this audio may be kept, and let it take its time all the same."""
        if not self._is_on_tape:
            return True
        if not self._live:
            if self._mutes.cover_arrival(None):
                self._hand_over(Skipped(track, seconds, at))
                return True
            return False
        if at is None:
            return self._mutes.cover_arrival(arrived)
        return self._mutes.cover(round(at * NANOSECONDS), round((at + seconds) * NANOSECONDS))

    def _mute(self, cause: str, reason: str, at: int) -> None:
        if self._mutes.begin(cause, at):
            self._hand_over(Muted(cause, reason, at))

    def _unmute(self, cause: str) -> None:
        at = self._elapsed()
        if self._mutes.end(cause, at):
            self._hand_over(Unmuted(cause, at))

    def _is_allowed(self, size: int) -> bool:
        """Take more of the budget, for `size` bytes and some to come."""
        for block in (max(size, BLOCK), size):
            if self._budget.take(block):
                self._allowed_bytes += block
                return True
        return False

    def _began_at(self, arrived: int, seconds: float) -> int:
        """Return when audio began that had been spoken when it arrived."""
        return max(0, arrived - round(seconds * NANOSECONDS))

    def _lose(self, voice: _Voice, lost: Lost) -> None:
        """Note that there was no room, between what there was room for: one note for all that is lost in a row."""
        self._lost_seconds += lost.seconds
        if voice.lost is not None and lost.start - voice.lost.start - voice.lost.seconds < LOST_APART:
            voice.lost.seconds += lost.seconds
        else:
            voice.stream, voice.lost = None, lost
            self._items.append(lost)

    def _open_voice(self, track: str, rate: int | None) -> _Voice:
        """Return the voice of `track`, declaring it if this is its first.

        Raises:
            UnknownTrack, InvalidAudio, CallerError, CallEnded: It cannot take audio of that rate.
        """
        self._refuse_after_end()
        if rate is not None:
            checked_rate(track, rate)
        voice = self._voices.get(track)
        if voice is None:
            voice = self._declare(track, rate)
        if voice.ended:
            raise CallEnded(f"track {track!r} of call {self.id} has ended", fix="Write before end_track()")
        return voice

    def _known_voice(self, track: str) -> _Voice:
        self._refuse_after_end()
        if track not in self._voices:
            raise UnknownTrack(f"call {self.id} has no track {track!r}", fix=f"Its tracks are {sorted(self._voices)}")
        return self._voices[track]

    def _declare(self, track: str, rate: int | None) -> _Voice:
        if rate is None:
            raise UnknownTrack(
                f"track {track!r} was never declared", fix="Pass rate= with its first write, or tracks= to start_call"
            )
        own = checked_rate(track, rate)
        if len(self._voices) >= MOST_TRACKS:
            raise CallerError(f"call {self.id} has {MOST_TRACKS} tracks already", fix="Start another call")
        self._voices[track] = voice = _Voice(own)
        self._put(TrackDeclared(track, own))
        return voice

    def _tell_tape_of_tracks(self) -> None:
        if not self._is_on_tape:
            self._is_on_tape = True
            self._items += [TrackDeclared(name, voice.rate) for name, voice in self._voices.items()]
            self._items += [TrackEnded(name) for name, voice in self._voices.items() if voice.ended]

    def _refuse_after_end(self) -> None:
        if self._disowned:
            raise _not_here()
        if self._ending is not None:
            raise CallEnded(f"call {self.id} has ended", fix="Start a new call")


def _not_here() -> RecorderClosed:
    return RecorderClosed("a recorder does not live on in a forked child", fix="Make a Recorder in the child")


async def _ended(summary: Pending[CallSummary]) -> None:
    await summary


def _reason_of(kind: type[BaseException] | None) -> str:
    return "hangup" if kind is None else "error"

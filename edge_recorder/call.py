"""
The handle of one call, for any thread and any event loop: it checks what it is given, hands it over, and returns.

Nothing here waits for a disk. What is handed over is held, bounded, until the recorder's thread takes it to the tape; a
wrong argument raises before anything is taken.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

from edge_recorder import model as facts
from edge_recorder.arguments import Audio, as_exact, as_json, as_place, as_samples, checked_rate, clean, clean_if_given
from edge_recorder.errors import CallEnded, CallerError, EdgeRecorderError, InvalidAudio, UnknownTrack
from edge_recorder.pending import Pending
from edge_recorder.tape import Ending, Heard, Item, Lost, Played, TrackDeclared, TrackEnded
from edge_recorder.timeline import NANOSECONDS, Chunk
from edge_recorder.wav import Samples

LONGEST_CALL = 86_400.0  # seconds
END_WAIT = 30.0  # seconds that leaving a `with` block waits for a disk that refuses; the call goes on being ended


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSummary:
    """What became of a call. `complete` says that all of it is on disk; if not, the next start salvages the rest."""

    call_id: str
    state: str
    duration_s: float | None
    segments: int
    complete: bool


@dataclass(slots=True)
class Handover:
    """What the recorder's thread takes from a call at one time."""

    items: list[Item]
    flushes: list[Pending[None]]
    drains: list[Pending[None]]
    ending: Ending | None


class Budget:
    """The bytes of audio that all calls of a recorder may queue."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            if self._used + size > self._limit:
                return False
            self._used += size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._used -= size


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
        elapsed: Callable[[], int],
        clock: Callable[[], facts.Instant],
        wake: Callable[[], None],
    ) -> None:
        """`elapsed` tells nanoseconds since the call's start, `clock` the time of day; `wake` calls the recorder."""
        self.id = fact.call_id
        self.recording = fact.recording
        self.reason = fact.not_recording_reason
        self._live = fact.pace == facts.Pace.LIVE
        self._queue_seconds = queue_seconds
        self._budget = budget
        self._elapsed = elapsed
        self._clock = clock
        self._wake = wake
        self._lock = threading.Lock()  # held for a few instructions only, never for I/O
        self._rates: dict[str, int] = {}
        self._ended_tracks: set[str] = set()
        self._items: list[Item] = []
        self._queued_bytes = 0
        self._queued_seconds: dict[str, float] = {}
        self._lost: dict[str, Lost] = {}
        self._flushes: list[Pending[None]] = []
        self._drains: list[Pending[None]] = []
        self._messages = 0
        self._usages = 0
        self._ending: Ending | None = None
        self._summary: Pending[CallSummary] = Pending()
        for track, rate in tracks.items():
            self._rate_of(track, rate)

    def write(self, track: str, audio: Audio, *, rate: int | None = None, at: float | None = None) -> None:
        """Hand over audio that was heard on `track`.

        Args:
            track: The track's name; `rate` (Hz) declares it at its first write.
            audio: Mono: int16 little-endian bytes, or a one-dimensional int16 or float32 (-1 to 1) array. It is copied.
            rate: Samples per second; needed only where the track was not declared.
            at: Seconds from the call's start of the first sample, where the source knows; else its arrival tells.

        Raises:
            InvalidAudio: Odd byte count, wrong dtype or shape, a rate out of range or not the track's.
            UnknownTrack: The track was never declared, and there is no rate.
            CallerError: `at` is no place in the call, or far ahead of it.
            CallEnded: The call, or the track, has ended.
        """
        samples = as_samples(audio)
        at = as_place(at)
        arrived = self._elapsed()
        if at is not None and at > self._horizon(arrived):
            raise CallerError(
                f"at={at} is far ahead of the call, which is at {arrived / NANOSECONDS:.1f} s",
                fix="Give seconds from the call's start, not a time of day",
            )
        with self._lock:
            own = self._rate_of(track, rate)
            self._queue(
                Heard(track, Chunk(samples, at, arrived)), samples, Lost(track, len(samples) / own, arrived, at)
            )

    def play(self, track: str, audio: Audio, *, rate: int | None = None) -> None:
        """Hand over audio that was handed to the speaker: it is queued after what still plays.

        Args and errors are those of `write`.
        """
        samples = as_samples(audio)
        arrived = self._elapsed()
        with self._lock:
            own = self._rate_of(track, rate)
            self._queue(Played(track, samples, arrived), samples, Lost(track, len(samples) / own, arrived))

    def end_track(self, track: str) -> None:
        """Say that nothing more comes on `track`: with pace `media` the other tracks no longer wait for it.

        Raises:
            UnknownTrack: There is no such track.
            CallEnded: The call has ended.
        """
        with self._lock:
            self._refuse_after_end()
            if track not in self._rates:
                raise UnknownTrack(
                    f"call {self.id} has no track {track!r}", fix=f"Its tracks are {sorted(self._rates)}"
                )
            if track not in self._ended_tracks:
                self._ended_tracks.add(track)
                if self.recording:
                    self._items.append(TrackEnded(track))

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
            self._messages += 1
            message = facts.Message(
                message_id=facts.message_id(self.id, self._messages),
                call_id=self.id,
                n=self._messages,
                role=clean(role),
                text=clean(text),
                start_s=at,
                end_s=end,
                metadata=document,
                created_at=self._clock(),
            )
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
            self._usages += 1
            usage = facts.Usage(
                usage_id=facts.usage_id(self.id, self._usages),
                call_id=self.id,
                n=self._usages,
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

    # The recorder's side.

    def take(self) -> Handover:
        """Take what was handed over since the last time. The recorder's own."""
        with self._lock:
            taken = Handover([*self._items, *self._lost.values()], self._flushes, self._drains, self._ending)
            self._items, self._flushes, self._drains = [], [], []
            self._lost.clear()
            size, self._queued_bytes = self._queued_bytes, 0
            self._queued_seconds.clear()
        self._budget.give_back(size)
        return taken

    def finish(self, summary: CallSummary, *, left: list[Pending[None]]) -> None:
        """Give the summary, and its answer to whoever still waits. The recorder's own."""
        if not summary.complete:  # what still comes is taken by nobody, and must not fill the queue
            self.recording, self.reason = False, "the recorder could not go on with it"
        self._summary.settle(summary)
        late = self.take()
        for pending in (*left, *late.flushes, *late.drains):
            self._answer(pending)

    def _ask(self, waiting: Callable[[], list[Pending[None]]]) -> Pending[None]:
        pending: Pending[None] = Pending()
        with self._lock:
            waiting().append(pending)
        if self._summary.done():  # the recorder asks no more
            self._answer(pending)
        self._wake()
        return pending

    def _answer(self, pending: Pending[None]) -> None:
        if self._summary.result().complete:
            pending.settle(None)
        else:
            lost = EdgeRecorderError(f"call {self.id} is not all on disk", fix="The next start salvages what is")
            pending.fail(lost)

    def _horizon(self, elapsed: int) -> float:
        """Return the last second of the call that audio may be handed over for now."""
        return elapsed / NANOSECONDS + self._queue_seconds if self._live else LONGEST_CALL

    # Within the lock.

    def _queue(self, item: Heard | Played, samples: Samples, lost: Lost) -> None:
        """Queue `item`, or where there is no room that it was `lost`: one note for all until the next `take`."""
        track = lost.track
        if track in self._ended_tracks:
            raise CallEnded(f"track {track!r} of call {self.id} has ended", fix="Write before end_track()")
        if not self.recording or not len(samples):
            return
        queued = self._queued_seconds.get(track, 0.0)
        has_room = not queued or queued + lost.seconds <= self._queue_seconds  # one long piece is better than none
        if not has_room or not self._budget.take(samples.nbytes):
            before = self._lost.get(track)
            self._lost[track] = replace(before, seconds=before.seconds + lost.seconds) if before else lost
            return
        self._queued_seconds[track] = queued + lost.seconds
        self._queued_bytes += samples.nbytes
        self._items.append(item)

    def _rate_of(self, track: str, rate: int | None) -> int:
        """Return the rate of `track`, declaring it if this is its first."""
        self._refuse_after_end()
        own = self._rates.get(track)
        if own is None:
            own = self._declare(track, rate)
        elif rate is not None and rate != own:
            raise InvalidAudio(f"track {track!r} has {own} Hz, and this audio {rate}", fix=f"Resample it to {own} Hz")
        return own

    def _declare(self, track: str, rate: int | None) -> int:
        if rate is None:
            raise UnknownTrack(
                f"track {track!r} was never declared", fix="Pass rate= with its first write, or tracks= to start_call"
            )
        self._rates[track] = own = checked_rate(track, rate)
        if self.recording:
            self._items.append(TrackDeclared(track, own))
        return own

    def _refuse_after_end(self) -> None:
        if self._ending is not None:
            raise CallEnded(f"call {self.id} has ended", fix="Start a new call")


async def _ended(summary: Pending[CallSummary]) -> None:
    await summary


def _reason_of(kind: type[BaseException] | None) -> str:
    return "hangup" if kind is None else "error"

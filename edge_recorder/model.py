"""
The facts of a recording: one frozen value per entity, and how their identities are derived.

Times of day are `Instant`s (microseconds since 1970, UTC); places on a call's timeline are seconds from its start, or
samples of a track. Identity is derived, never allocated twice: the same fact gets the same id wherever it is made.
What the tables, triggers, journal lines, push payloads and the centre's columns look like follows from these classes by
way of `catalog/entities.py`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated
from uuid import UUID, uuid5

Instant = Annotated[int, "instant"]  # microseconds since 1970, UTC
Json = Annotated[str, "json"]  # a JSON document as text
Exact = Annotated[str, "exact"]  # a decimal number as text, never a float

MIXED = "mixed"  # the derived track; every other track is a voice
TRACK_NAME = re.compile(r"[a-z0-9_]{1,32}")


class CallState(StrEnum):
    """Where a call stands; `ended` and `interrupted` are terminal."""

    LIVE = "live"
    ENDED = "ended"
    INTERRUPTED = "interrupted"  # its recorder died; closed by recovery


class Pace(StrEnum):
    """What moves a call's time."""

    LIVE = "live"  # the clock
    MEDIA = "media"  # the audio: time is the least end of the tracks not ended


class Segmentation(StrEnum):
    """Where the cuts between segments are."""

    INTERVAL = "interval"  # at the same instants on all tracks
    TURN = "turn"  # where a voice's turn begins and ends


class SpanKind(StrEnum):
    """What a piece of the timeline means."""

    GAP = "gap"  # audio that could not be recorded, with the reason
    PAUSED = "paused"  # nothing was to be kept
    LATE = "late"  # audio that came for samples already written
    UNHEARD = "unheard"  # handed to the speaker, but taken back, or the call ended, before it was heard
    TURN = "turn"  # one voice's turn, from its first sample to its last
    UNVERIFIED = "unverified"  # salvaged from past the last fsync


class Custody(StrEnum):
    """Where an object stands on its way to the store; `pending` and `unknown` are owed work."""

    PENDING = "pending"  # only on local disk
    UNKNOWN = "unknown"  # rebuilt from disk: the store is asked (HEAD) before anything is sent
    STORED = "stored"  # the store accepted our checksums
    QUARANTINED = "quarantined"  # needs a person; the local file stays


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One conversation."""

    call_id: str
    external_id: str | None = None
    tenant: str | None = None
    direction: str | None = None
    from_number: str | None = None
    to_number: str | None = None
    agent: str | None = None
    tags: Json = "[]"
    metadata: Json = "{}"
    consent: Json | None = None
    recording: bool = True
    not_recording_reason: str | None = None
    pace: str = Pace.LIVE
    tracks: Json = "{}"  # name -> rate in Hz
    state: str = CallState.LIVE
    started_at: Instant
    ended_at: Instant | None = None
    end_reason: str | None = None
    duration_s: float | None = None
    partial: bool = False  # rebuilt without its journal: at the centre it only fills what is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A contiguous piece of one track in one file."""

    segment_id: str
    call_id: str
    track: str
    seq: int  # from 1 within the track
    first_sample: int
    frames: int
    rate: int  # Hz
    started_at: Instant
    sealed_at: Instant
    salvaged: bool = False  # sealed by recovery, not by its recorder
    pcm_sha256: str  # over the samples, int16 little-endian
    peak_dbfs: float | None  # None: digital silence
    rms_dbfs: float | None
    clipped: int  # samples at full scale
    waveform: str  # base64 of int8 (min, max) pairs, 20 a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of the timeline with a meaning."""

    span_id: str
    call_id: str
    n: int
    track: str | None  # None: all tracks
    kind: str
    start_s: float
    end_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Something said, as text."""

    message_id: str
    call_id: str
    n: int
    role: str
    text: str
    start_s: float | None = None
    end_s: float | None = None
    metadata: Json = "{}"
    created_at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Something a bill is made of."""

    usage_id: str
    call_id: str
    n: int
    kind: str
    quantity: Exact
    unit: str
    provider: str | None = None
    model: str | None = None
    cost: Exact | None = None
    currency: str | None = None
    metadata: Json = "{}"
    created_at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One file that the object store is owed, or holds. Where it goes is fixed before its first request."""

    object_id: str  # of an audio object: its segment's id
    call_id: str
    state: str = Custody.PENDING
    store_url: str | None = None
    key: str | None = None
    format: str | None = None
    file_bytes: int | None = None
    file_sha256: str | None = None
    pcm_sha256: str | None = None
    stored_at: Instant | None = None
    error_class: str | None = None
    last_error: str | None = None


Fact = Call | Segment | Span | Message | Usage


def new_call_id(now: Instant) -> str:
    """Return a UUIDv7 (RFC 9562): it sorts by the time of the call's start."""
    value = (now // 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    return str(UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62))


def segment_id(call_id: str, track: str, seq: int) -> str:
    return str(uuid5(UUID(call_id), f"{track}/{seq}"))


def span_id(call_id: str, n: int) -> str:
    return str(uuid5(UUID(call_id), f"span/{n}"))


def new_span(
    call_id: str, n: int, kind: SpanKind, track: str | None, *, start_s: float, end_s: float, reason: str
) -> Span:
    """Return the `n`-th span of a call."""
    return Span(
        span_id=span_id(call_id, n),
        call_id=call_id,
        n=n,
        track=track,
        kind=kind,
        start_s=start_s,
        end_s=end_s,
        reason=reason,
    )


def message_id(call_id: str, n: int) -> str:
    return str(uuid5(UUID(call_id), f"message/{n}"))


def usage_id(call_id: str, n: int) -> str:
    return str(uuid5(UUID(call_id), f"usage/{n}"))

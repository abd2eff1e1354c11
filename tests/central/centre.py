"""A node as the centre's tests play it: it keeps epoch, token and cursor, and makes facts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

from edge_recorder.catalog.entities import BY_MODEL
from edge_recorder.model import (
    Call,
    CallState,
    Custody,
    Message,
    Segment,
    Span,
    StoredObject,
    Usage,
    message_id,
    new_call_id,
    segment_id,
    span_id,
    usage_id,
)
from sync.central.client import Central, Ingested, Welcome, payload

START = 1_790_000_000_123_456  # an instant in September 2026, with its microseconds


def call(call_id: str | None = None, **changes: Any) -> Call:
    return replace(
        Call(call_id=call_id or new_call_id(START), external_id="CA1", tenant="acme", agent="sales", started_at=START),
        **changes,
    )


def ended(live: Call, **changes: Any) -> Call:
    return replace(
        live,
        **(
            {"state": CallState.ENDED, "ended_at": START + 60_000_000, "end_reason": "hangup", "duration_s": 60.0}
            | changes
        ),
    )


def segment(
    call_id: str, track: str = "user", seq: int = 1, *, frames: int = 80_000, rate: int = 8000, **changes: Any
) -> Segment:
    made = Segment(
        segment_id=segment_id(call_id, track, seq),
        call_id=call_id,
        track=track,
        seq=seq,
        first_sample=(seq - 1) * frames,
        frames=frames,
        rate=rate,
        started_at=START,
        sealed_at=START + 10_000_000,
        pcm_sha256="ab" * 32,
        peak_dbfs=-3.5,
        rms_dbfs=None,
        clipped=0,
        waveform="AAECAw==" * 100,
    )
    return replace(made, **changes)


def stored(of: Segment, **changes: Any) -> StoredObject:
    made = StoredObject(
        object_id=of.segment_id,
        call_id=of.call_id,
        state=Custody.STORED,
        store_url="s3://bucket/prefix",
        key=f"{of.call_id}/{of.track}-{of.seq:06d}.flac",
        format="flac",
        file_bytes=54_321,
        file_sha256="cd" * 32,
        pcm_sha256=of.pcm_sha256,
        stored_at=START + 11_000_000,
    )
    return replace(made, **changes)


def gap(call_id: str, n: int = 1, **changes: Any) -> Span:
    made = Span(
        span_id=span_id(call_id, n),
        call_id=call_id,
        n=n,
        track="user",
        kind="gap",
        start_s=2.0,
        end_s=3.5,
        reason="disk full",
    )
    return replace(made, **changes)


def message(call_id: str, n: int = 1, **changes: Any) -> Message:
    made = Message(
        message_id=message_id(call_id, n),
        call_id=call_id,
        n=n,
        role="user",
        text="Hello",
        start_s=1.0,
        created_at=START,
    )
    return replace(made, **changes)


def usage(call_id: str, n: int = 1, **changes: Any) -> Usage:
    made = Usage(
        usage_id=usage_id(call_id, n),
        call_id=call_id,
        n=n,
        kind="tts",
        quantity="412.000000000000000001",
        unit="character",
        provider="p",
        cost="0.10",
        currency="EUR",
        created_at=START,
    )
    return replace(made, **changes)


def encoded(first_seq: int, *facts: Any) -> str:
    return payload((first_seq + n, BY_MODEL[type(fact)].table, asdict(fact)) for n, fact in enumerate(facts))


class Node:
    """What an agent keeps of its centre."""

    def __init__(self, central: Central, *, node_id: str | None = None, tenant: str | None = "acme") -> None:
        self.central = central
        self.node_id = node_id or str(uuid4())
        self.tenant = tenant
        self.epoch = ""
        self.token: str | None = None
        self.cursor = 0

    async def hello(self, epoch: str | None = None, reason: str = "new") -> Welcome:
        self.epoch = epoch or str(uuid4())
        welcome = await self.central.hello(
            node_id=self.node_id, epoch=self.epoch, label="edge-1", tenant=self.tenant, software="0.1.0", reason=reason
        )
        self.token, self.cursor = welcome.token, welcome.cursor
        return welcome

    async def push(self, *facts: Any) -> Ingested:
        """Push `facts` as the next changes, and believe the answer."""
        token = str(uuid4())
        answer = await self.send(token, *facts)
        self.token, self.cursor = token, answer.cursor
        return answer

    async def send(self, token: str, *facts: Any) -> Ingested:
        """Push `facts` as the next changes, and take no note of the answer."""
        return await self.send_raw(token, encoded(self.cursor + 1, *facts), len(facts))

    async def send_raw(self, token: str, rows: str, count: int = 1) -> Ingested:
        return await self.central.ingest(
            node_id=self.node_id,
            epoch=self.epoch,
            previous=self.token,
            token=token,
            first_seq=self.cursor + 1,
            last_seq=self.cursor + count,
            rows=rows,
        )


def without(rows: str, column: str) -> str:
    """Return `rows` as a node would send them that does not know `column`."""
    decoded = json.loads(rows)
    for each in decoded:
        del each["row"][column]
    return json.dumps(decoded)

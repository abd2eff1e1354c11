"""
The Postgres leg: tells the centre of every change, in order, each once.

    1 gather    the changes after the cursor; each row once, in its current state, parents before children
    2 save      the batch's random token, in `agent_state`
    3 ingest    the centre takes the batch and moves its cursor, in one transaction
    4 advance   our cursor and the receipts, in one transaction

A crash or a lost reply between 2 and 4 leaves a batch of which nobody here knows whether it was applied. So the centre
is asked, by the heartbeat: our pending token there, it was; our last one, the same batch goes again under the same
token, so that it does not matter if the first copy arrives after all; any other, the two histories have parted.

A batch that is refused for one of its rows is halved until that row is alone; it is set aside at the centre, as text.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from edge_recorder.catalog.connection import Catalog, Row
from edge_recorder.catalog.entities import ENTITIES, Entity
from edge_recorder.catalog.owed import StaleTransition
from edge_recorder.catalog.statements import Statement
from edge_recorder.model import Instant
from sync.backlog import read_backlog
from sync.central.errors import Diverged
from sync.retry import ErrorClass, SyncError

if TYPE_CHECKING:
    from sync.central.client import Central, Health, Ingested

STATE = "push"  # names of agent_state
LAST_HEARTBEAT = "heartbeat"
ASKED_UP_TO = "holds"
DESTINATION = "central"  # names the breaker: the DSN may hold a password, and may change

MAX_BYTES = 4 * 1024 * 1024  # of one batch, as JSON
MAX_ROWS = 1000
EARLY = 0.75  # of the interval between heartbeats, so that a timer of the same interval never skips one
HOLDS_AT_ONCE = 1000  # objects asked about in one question
NO_END = 2**63 - 1
SECOND = 1_000_000  # in an Instant

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where `epoch` stands with the centre, as far as is known here."""

    epoch: str  # of a catalog that was rebuilt under a running agent, this is another one than the catalog's
    cursor: int = 0  # the last change that the centre has taken
    token: str | None = None  # of the last batch that it took
    pending: str | None = None  # the token of a batch that was perhaps sent
    pending_last: int = 0  # its last change
    introduced: tuple[str, ...] = ()  # as what we said hello
    refused: int = 0  # rows that the centre keeps in its quarantine
    refusing: int = 0  # 1: the pending batch is one more

    @classmethod
    def from_json(cls, saved: str) -> Self:
        place = cls(**json.loads(saved))
        return replace(place, introduced=tuple(place.introduced))

    def agreed(self, token: str | None, cursor: int) -> Place:
        """Return where we stand after the centre named the last token and change that it took.

        Raises:
            Diverged: Neither continues the other.
        """
        if self.pending is not None and token == self.pending:
            return self.advanced()
        if (token, cursor) == (self.token, self.cursor):
            return self
        # One of the two was restored from a backup. Here the reseed under a new epoch will begin.
        raise Diverged(f"the centre has taken changes up to {cursor}, and this catalog says {self.cursor}")

    def advanced(self) -> Place:
        taken = replace(self, cursor=self.pending_last, token=self.pending, pending=None, pending_last=0)
        return replace(taken, refused=self.refused + self.refusing, refusing=0)


async def read_place(catalog: Catalog) -> Place:
    """Return where the catalog's epoch stands: at the beginning, if what is saved is of another epoch."""
    saved = await catalog.get_state(STATE)
    place = Place.from_json(saved) if saved is not None else None
    return place if place is not None and place.epoch == catalog.epoch else Place(epoch=catalog.epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The next thing to say to the centre. It is no item of the catalog, so no try is counted against it."""

    id: str
    attempts: int = 0


HELLO = Step(id="hello")
HEARTBEAT = Step(id="heartbeat")
BATCH = Step(id="batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Changes to be sent as one."""

    first: int
    last: int
    changes: int
    rows: int
    text: str  # as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What the node says of itself, and how it speaks."""

    dsn: str
    timeout: float  # seconds that one statement may take
    batch_rows: int
    heartbeat: float  # seconds between two
    label: str
    tenant: str | None
    software: str

    @property
    def said(self) -> tuple[str, ...]:
        return (self.label, self.tenant or "", self.software)


class Push:
    """What the Postgres leg does."""

    destination = DESTINATION
    concurrency = 1  # batches are a chain
    owed = None

    def __init__(self, catalog: Catalog, data_dir: Path, introduction: Introduction) -> None:
        self._catalog = catalog
        self._data_dir = data_dir
        self._me = introduction
        self._limit = introduction.batch_rows
        self._place: Place | None = None
        self._in_doubt = False  # whether the pending batch was applied must be asked first
        self._heard: Instant | None = None  # when the centre last answered a heartbeat
        self._central: Central | None = None

    async def due(self, *, now: Instant, latest: Instant, limit: int) -> Sequence[Step]:  # noqa: ARG002 (one step at a time)
        place = await self._load()
        last = await self._catalog.fetch_one("changes.last")
        owed = last is not None and last["seq"] > place.cursor
        beat = self._in_doubt or self._heartbeat_is_due(now)
        if (owed or beat) and place.introduced != self._me.said:
            return [HELLO]
        if beat:
            return [HEARTBEAT]
        return [BATCH] if owed else []

    async def do(self, item: Step, *, now: Instant) -> int:
        """Take one step and return the rows that were pushed."""
        place = await self._load()
        if item is HELLO:
            return await self._hello(place)
        if item is HEARTBEAT:
            return await self._heartbeat(place, now)
        return await self._batch(place, now)

    async def aclose(self) -> None:
        if self._central is not None:
            await self._central.close()

    async def _load(self) -> Place:
        if self._place is None or self._place.epoch != self._catalog.epoch:
            self._place = await read_place(self._catalog)
            self._in_doubt = self._place.pending is not None
            heard = await self._catalog.get_state(LAST_HEARTBEAT)
            self._heard = int(heard) if heard is not None else None
        return self._place

    async def _save(self, place: Place, *others: Statement) -> None:
        saved: Statement = ("agent_state.put", {"name": STATE, "value": json.dumps(asdict(place))})
        await self._catalog.write_all([saved, *others])
        self._place = place

    def _heartbeat_is_due(self, now: Instant) -> bool:
        silent = (now - self._heard) / SECOND if self._heard is not None else -1.0
        return not 0 <= silent < EARLY * self._me.heartbeat  # below 0: never, or the clock was set back

    async def _hello(self, place: Place) -> int:
        welcome = await self._opened().hello(
            node_id=self._catalog.node_id,
            epoch=place.epoch,
            label=self._me.label,
            tenant=self._me.tenant,
            software=self._me.software,
            reason="software or label changed" if place.introduced else "new catalog",
        )
        agreed = place.agreed(welcome.token, welcome.cursor)
        await self._save(replace(agreed, introduced=self._me.said))
        return 0

    async def _heartbeat(self, place: Place, now: Instant) -> int:
        """Report health, learn where the centre stands, and ask for receipts that were lost with a reply."""
        central, who = self._opened(), {"node_id": self._catalog.node_id}
        health = await self._health(now)
        pulse = await central.heartbeat(**who, epoch=place.epoch, health=health, next_within=self._me.heartbeat)
        agreed = place.agreed(pulse.token, pulse.cursor)
        asked = await self._without_receipt()
        held = await central.holds(**who, object_ids=asked) if asked else []
        receipts: list[Statement] = [("objects.take_held", {**asdict(each), "now": now}) for each in held]
        up_to = asked[-1] if len(asked) == HOLDS_AT_ONCE else ""
        await self._save(
            agreed,
            ("agent_state.put", {"name": LAST_HEARTBEAT, "value": str(now)}),
            ("agent_state.put", {"name": ASKED_UP_TO, "value": json.dumps(up_to)}),
            *receipts,
        )
        self._in_doubt, self._heard = False, now
        return 0

    async def _without_receipt(self) -> list[str]:
        """Return the next objects to ask about. They take turns: those that the centre never gets hide no others."""
        up_to = json.loads(await self._catalog.get_state(ASKED_UP_TO) or '""')
        stored = await self._catalog.fetch("objects.without_receipt", after=up_to, limit=HOLDS_AT_ONCE)
        return [row["object_id"] for row in stored]

    async def _batch(self, place: Place, now: Instant) -> int:
        batch = await self._gather(place)
        if place.pending is None:
            place = replace(place, pending=uuid4().hex, pending_last=batch.last)
            await self._save(place)
        self._in_doubt = True
        try:
            answer = await self._opened().ingest(**self._address(place, batch), rows=batch.text)
        except SyncError as error:
            if error.error_class is not ErrorClass.ITEM:
                raise
            if batch.changes > 1:
                return await self._narrow(place, batch)
            place = replace(place, refusing=1)
            answer = await self._set_aside(place, batch, error)
        else:
            place = replace(place, refusing=0)  # it was refused once, and is taken now
        await self._advance(place, answer, now)
        return batch.rows

    async def _narrow(self, place: Place, batch: Batch) -> int:
        """Nothing of the batch was applied: send half of it next, as another batch."""
        self._limit = batch.changes // 2
        await self._save(replace(place, pending=None, pending_last=0))
        self._in_doubt = False
        return 0

    async def _set_aside(self, place: Place, batch: Batch, refusal: SyncError) -> Ingested:
        log.error("change %d is refused by the centre and kept in its quarantine: %s", batch.first, refusal)
        await self._save(place)  # so that a lost reply does not lose the count
        return await self._opened().ingest_refused(**self._address(place, batch), raw=batch.text, refusal=refusal)

    async def _advance(self, place: Place, answer: Ingested, now: Instant) -> None:
        receipts: list[Statement] = [
            ("objects.take_receipt", {"object_id": object_id, "now": now}) for object_id in sorted(answer.receipts)
        ]
        await self._save(place.advanced(), *receipts)
        self._in_doubt = False
        self._limit = min(2 * self._limit, self._me.batch_rows)

    def _address(self, place: Place, batch: Batch) -> dict[str, Any]:
        return {
            "node_id": self._catalog.node_id,
            "epoch": place.epoch,
            "previous": place.token,
            "token": place.pending,
            "first_seq": batch.first,
            "last_seq": batch.last,
        }

    async def _gather(self, place: Place) -> Batch:
        """Return the next batch. A pending one has the extent that it had, or its token would stand for two."""
        from sync.central.client import payload  # noqa: PLC0415 (an idle pass must not pay for psycopg)

        again = place.pending is not None
        last, limit = (place.pending_last, MAX_ROWS) if again else (NO_END, self._limit)
        while True:
            changes = await self._catalog.fetch("changes.pending", cursor=place.cursor, last=last, limit=limit)
            if place.epoch != self._catalog.epoch:
                raise StaleTransition(f"the catalog of epoch {place.epoch} gave way to a rebuilt one")
            rows = await self._rows(changes)
            text = payload(rows)
            if again or len(changes) == 1 or len(text) <= MAX_BYTES:
                return Batch(
                    first=place.cursor + 1, last=changes[-1]["seq"], changes=len(changes), rows=len(rows), text=text
                )
            limit = len(changes) // 2

    async def _rows(self, changes: Sequence[Row]) -> list[tuple[int, str, Mapping[str, Any]]]:
        """Return the rows that `changes` speak of, each once under its latest change; none that was deleted."""
        latest = {(change["entity"], change["entity_id"]): change["seq"] for change in changes}
        found = await asyncio.gather(*(self._rows_of(entity, latest) for entity in ENTITIES))
        return [row for rows in found for row in rows]

    async def _rows_of(
        self, entity: Entity, latest: Mapping[tuple[str, str], int]
    ) -> list[tuple[int, str, Mapping[str, Any]]]:
        ids = [entity_id for table, entity_id in latest if table == entity.table]
        if not ids:
            return []
        rows = await self._catalog.fetch(f"changes.{entity.table}", ids=json.dumps(ids))
        return [(latest[entity.table, row[entity.key]], entity.table, entity.payload(row)) for row in rows]

    async def _health(self, now: Instant) -> Health:
        from sync.central.client import Health  # noqa: PLC0415 (an idle pass must not pay for psycopg)

        backlog = await read_backlog(self._catalog, store_url=None)
        oldest = [at for at in (backlog.oldest_audio, backlog.oldest_fact) if at is not None]
        disk = shutil.disk_usage(self._data_dir)
        return Health(
            clock=now,
            live_calls=backlog.live_calls,
            owed_changes=backlog.changes,
            owed_objects=backlog.objects,
            owed_bytes=backlog.bytes,
            quarantined=backlog.quarantined,
            oldest_unsynced_s=max(0.0, (now - min(oldest)) / SECOND) if oldest else None,
            disk_free_bytes=disk.free,
            disk_total_bytes=disk.total,
        )

    def _opened(self) -> Central:
        from sync.central.client import Central  # noqa: PLC0415 (an idle pass must not pay for psycopg)

        if self._central is None:
            self._central = Central(self._me.dsn, timeout=self._me.timeout)
        return self._central

"""
The S3 leg: brings the files of sealed segments to the object store.

    1 encode       in a thread; the samples are hashed against the row
    2 place        store, key and format are fixed in the row, just before its first request
    3 put          never over something else; done before with the same audio, it is done
    4 mark stored  the change log tells the centre

A crash between 2 and 3 leaves a placed object that is still owed; between 3 and 4 one that the store holds already,
which the next `put` finds out. Where the first `put` is refused in a way that proves that nothing was stored, the
placing is undone, so that a mistyped `[store] url` binds nothing to it; in any doubt it stays. A rebuilt row is
`unknown`: the store is asked first, and nothing is sent that it has. No local file is deleted here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge_recorder import spool
from edge_recorder.catalog.connection import Catalog, Row
from edge_recorder.catalog.entities import BY_TABLE
from edge_recorder.catalog.owed import OwedWork
from edge_recorder.model import Custody, Instant, Segment
from edge_recorder.settings import Store
from sync.retry import SyncError
from sync.stores import FILE_SHA256, PCM_SHA256, Head, ObjectStore, open_store
from sync.stores.naming import audio_key, audio_metadata, key_prefix

if TYPE_CHECKING:
    from sync.encoding import Encoded

FORMATS = ("flac", "wav")  # that a stored object may be in


@dataclass(frozen=True, slots=True, kw_only=True)
class OwedAudio:
    """One segment's file that the store is owed."""

    segment: Segment
    state: Custody
    attempts: int
    call_started_at: Instant
    key: str | None  # None: not placed yet
    format: str

    @property
    def id(self) -> str:
        return self.segment.segment_id


class Upload:
    """What the S3 leg does."""

    def __init__(self, catalog: Catalog, data_dir: Path, settings: Store) -> None:
        self.destination = settings.url
        self.concurrency = settings.concurrency
        self.owed = OwedWork(catalog, "objects")
        self._catalog = catalog
        self._data_dir = data_dir
        self._settings = settings
        self._store: ObjectStore | None = None
        self._proven = False  # whether the store has taken something: then it is no mistyped one
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="encode")

    async def due(self, *, now: Instant, latest: Instant, limit: int) -> Sequence[OwedAudio]:
        rows = await self._catalog.fetch(
            "objects.due", now=now, latest=latest, store_url=self._settings.url, limit=limit
        )
        items = [self._owed(row) for row in rows]
        return await self._placed_together(items) if self._proven else items

    async def do(self, item: OwedAudio, *, now: Instant) -> int:
        store = self._opened()
        if item.state is Custody.UNKNOWN:
            found, item = await self._look_for(store, item)
            if found is not None:
                return await self._mark_stored(item, found, now)
        encoded = await self._encode(item)
        metadata = audio_metadata(item.segment, node_id=self._catalog.node_id, body=encoded.body)
        async with self._placed(item):
            done = await store.put(self._key(item), encoded.body, metadata=metadata, content_type=encoded.content_type)
        return await self._mark_stored(item, done.head, now)

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._store is not None:
            await self._store.aclose()

    def _owed(self, row: Row) -> OwedAudio:
        return OwedAudio(
            segment=BY_TABLE["segments"].value(row),
            state=Custody(row["state"]),
            attempts=row["attempts"],
            call_started_at=row["call_started_at"],
            key=row["key"],
            format=row["format"] or self._settings.format,
        )

    async def _placed_together(self, items: list[OwedAudio]) -> list[OwedAudio]:
        """Fix where new objects go in one transaction, as commits are paced. An `unknown` one is asked for first."""
        new = {item.id: item for item in items if item.key is None and item.state is Custody.PENDING}
        if new:
            await self._catalog.write_all([("objects.place", self._place(item)) for item in new.values()])
        return [replace(item, key=self._key(item)) if item.id in new else item for item in items]

    @asynccontextmanager
    async def _placed(self, item: OwedAudio) -> AsyncIterator[None]:
        """Fix where the object goes. Undone if it is new there, and the store's refusal proves that it took nothing."""
        if item.key is None:
            await self._catalog.write("objects.place", **self._place(item))  # changes nothing if `due` did meanwhile
        if item.state is Custody.UNKNOWN:
            await self._catalog.write("objects.mark_missing", id=item.id)
        try:
            yield
        except SyncError as error:
            if item.key is None and error.nothing_stored:
                await self._catalog.write("objects.unplace", **self._place(item), state=item.state)
            raise

    def _place(self, item: OwedAudio) -> dict[str, str]:
        return {"id": item.id, "store_url": self._settings.url, "key": self._key(item), "format": item.format}

    def _key(self, item: OwedAudio) -> str:
        return item.key or audio_key(
            key_prefix(self._settings.url),
            self._catalog.node_id,
            call_id=item.segment.call_id,
            call_started_at=item.call_started_at,
            track=item.segment.track,
            seq=item.segment.seq,
            ext=item.format,
        )

    async def _look_for(self, store: ObjectStore, item: OwedAudio) -> tuple[Head | None, OwedAudio]:
        """Ask the store for an object of which only the file is known here, and fix its place if it is there."""
        formats = (item.format, *(each for each in FORMATS if each != item.format and item.key is None))
        for tried in (replace(item, format=each) for each in formats):
            found = await store.head(self._key(tried))
            if found is not None and found.metadata.get(PCM_SHA256) == item.segment.pcm_sha256:
                await self._catalog.write("objects.place", **self._place(tried))
                return found, tried
        return None, item

    async def _encode(self, item: OwedAudio) -> Encoded:
        directory = spool.call_dir(self._data_dir, item.segment.call_id, item.call_started_at)
        path = spool.segment_path(directory, item.segment.track, item.segment.seq)
        work = partial(_encode, path, item.format, item.segment)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _mark_stored(self, item: OwedAudio, head: Head, now: Instant) -> int:
        # What the store holds may be other bytes than ours of the same audio, so it is asked, not assumed.
        sha256 = head.metadata.get(FILE_SHA256)
        await self.owed.move("mark_stored", id=item.id, file_bytes=head.size, file_sha256=sha256, now=now)
        self._proven = True
        return head.size

    def _opened(self) -> ObjectStore:
        if self._store is None:
            self._store = open_store(self._settings)
        return self._store


def _encode(path: Path, audio_format: str, segment: Segment) -> Encoded:
    from sync.encoding import encode  # noqa: PLC0415 (an idle pass must not pay for numpy and libsndfile; and off the loop)

    return encode(path, format=audio_format, pcm_sha256=segment.pcm_sha256, frames=segment.frames, rate=segment.rate)

"""
Verify: disk x catalog x store x centre, by counts and hashes. It repairs nothing; each difference names what does.

    disk     every segment's file holds the samples that were sealed; every sealed file has its row
    catalog  every segment has its object, so that the store is owed it
    store    every stored object is there with its length and hashes (HEAD)
    centre   it stands where this node's push stands, and holds every object for which it gave a receipt

What is only on its way is owed, and no difference: audio that waits for the store, rows that a living recorder has not
committed. Nothing is owed to what the settings do not name. What a living recorder still writes is left alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edge_recorder import journal, spool, wav
from edge_recorder.catalog.connection import Catalog, Row
from edge_recorder.errors import Exit, IntegrityMismatch
from edge_recorder.settings import Settings, Store
from edge_recorder.spool import JOURNAL, SegmentFile
from sync.central.errors import Diverged, Superseded
from sync.push import read_place
from sync.retry import SyncError
from sync.stores import FILE_SHA256, PCM_SHA256, Head, ObjectStore, open_store

if TYPE_CHECKING:
    from sync.central.client import Central

READERS = 2  # files hashed at once
HOLDS_AT_ONCE = 500  # objects that the centre is asked about in one question
HELD = ("store_url", "key", "file_sha256", "pcm_sha256", "file_bytes")
SECTION = {"store": "store", "centre": "central"}  # of the settings, for each place that they may name
TO_STORE = {"pending": "audio to the store", "unknown": "audio to the store"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One disagreement, and what to do about it."""

    place: str  # disk, catalog, store or centre: the one that is wrong, as far as can be told
    item: str
    call_id: str | None
    what: str
    cause: str
    fix: str


@dataclass(slots=True)
class Report:
    """What was compared, and what came of it."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("files", "rows", "objects", "held"), 0))
    differences: list[Difference] = field(default_factory=list)
    owed: dict[str, int] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)  # store or centre -> why
    compared: list[str] = field(default_factory=lambda: ["disk", "catalog"])

    @property
    def exit_code(self) -> Exit:
        """Not to have been able to look is a failure: it must not pass for what is merely owed."""
        if self.differences:
            return Exit.INTEGRITY
        if self.unreachable:
            return Exit.FAILED
        return Exit.PARTIAL if any(self.owed.values()) else Exit.DONE

    def owe(self, what: str, count: int = 1) -> None:
        self.owed[what] = self.owed.get(what, 0) + count


async def verify(catalog: Catalog, settings: Settings, *, progress: Callable[[int], None] = lambda _: None) -> Report:
    """Compare everything that this node recorded. `progress` hears of each segment that was looked at."""
    async with _opened(catalog, settings, progress) as verification:
        await verification.run()
        return verification.report


@asynccontextmanager
async def _opened(catalog: Catalog, settings: Settings, progress: Callable[[int], None]) -> AsyncIterator[Verification]:
    verification = Verification(catalog, settings, progress)
    try:
        yield verification
    finally:
        await verification.aclose()


class Verification:
    """One run."""

    def __init__(self, catalog: Catalog, settings: Settings, progress: Callable[[int], None]) -> None:
        self.report = Report()
        self.report.compared += [name for name in ("store", "centre") if getattr(settings, SECTION[name]) is not None]
        self._catalog = catalog
        self._settings = settings
        self._progress = progress
        self._stores: dict[str, ObjectStore] = {}
        self._central: Central | None = None
        self._confirmed: list[Row] = []  # objects with a receipt, until the centre is asked about them

    async def run(self) -> None:
        data_dir = self._settings.node.data_dir
        directories = {path.name: path for path in await asyncio.to_thread(lambda: list(spool.call_dirs(data_dir)))}
        rows = {row["call_id"]: row["started_at"] for row in await self._catalog.fetch("calls.all")}
        for call_id in sorted(directories.keys() | rows.keys()):
            directory = directories.get(call_id) or spool.call_dir(data_dir, call_id, rows[call_id])
            await self._check_call(call_id, directory, known=call_id in rows)
        await self._check_centre()

    async def aclose(self) -> None:
        for store in self._stores.values():
            await store.aclose()
        if self._central is not None:
            await self._central.close()

    async def _check_call(self, call_id: str, directory: Path, *, known: bool) -> None:
        # The disk first: a recorder makes the file before the row, so each row read after it has its file.
        files, strangers, alive = await asyncio.to_thread(_look, directory, self._settings.node.data_dir)
        segments = await self._catalog.fetch("segments.of_call", call_id=call_id)
        if not known and not alive:
            self._differ("catalog", str(directory), call_id, "has a directory and no row", **REBUILD)
        sealed = {(file.track, file.seq): file for file in files if file.sealed}
        self.report.counts["files"] += len(sealed)
        self.report.counts["rows"] += len(segments)
        self._check_names(call_id, sealed, {(row["track"], row["seq"]) for row in segments}, alive=alive)
        if not alive:
            for path in [*strangers, *(file.path for file in files if not file.sealed)]:
                self._check_stranger(call_id, path)
        await _each(segments, lambda row: self._check_file(row, directory), limit=READERS)
        await self._check_objects(segments)
        self._progress(len(segments))

    def _check_names(
        self, call_id: str, sealed: dict[tuple[str, int], SegmentFile], rows: set[tuple[str, int]], *, alive: bool
    ) -> None:
        """Find the sealed files that have no row. A living recorder's row may follow."""
        for key in sorted(sealed.keys() - rows):
            if alive:
                self.report.owe("rows of living recorders")
            else:
                self._differ("catalog", str(sealed[key].path), call_id, "is sealed and has no row", **REBUILD)

    def _check_stranger(self, call_id: str, path: Path) -> None:
        if path.name.endswith(spool.PART):
            self._differ("disk", str(path), call_id, "is unsealed, and its recorder is dead", **SALVAGE)
        else:
            self._differ("disk", str(path), call_id, "is not ours", **STRANGER)

    async def _check_file(self, row: Row, directory: Path) -> None:
        """Compare a segment's file with its row."""
        path = spool.segment_path(directory, row["track"], row["seq"])
        wrong = await asyncio.to_thread(_wrong_with, path, row)
        if wrong is not None:
            where = f"The store has it, as {row['key']} in {row['store_url']}: fetch it from there"
            lost = "Restore it from a backup of this disk, then `edge-recorder verify`"
            fix = where if row["state"] == "stored" else lost
            cause = "somebody else deleted it" if "missing" in wrong else "bit rot, or somebody else wrote to it"
            self._differ("disk", str(path), row["call_id"], wrong, cause=cause, fix=fix)

    async def _check_objects(self, segments: list[Row]) -> None:
        for row in segments:
            if row["state"] is None:
                self._differ("catalog", row["segment_id"], row["call_id"], "is a segment without an object", **REBUILD)
            elif row["state"] == "quarantined" or (row["state"] in TO_STORE and self._settings.store):
                self.report.owe(TO_STORE.get(row["state"], "audio set aside"))
        stored = [row for row in segments if row["state"] == "stored"]
        limit = self._settings.store.concurrency if self._settings.store else 1
        await _each(stored, self._check_object, limit=limit)
        if self._settings.central is not None:
            self.report.owe("receipts of the centre", sum(row["receipt_at"] is None for row in stored))
        self._confirmed += [row for row in stored if row["receipt_at"] is not None]

    async def _check_object(self, row: Row) -> None:
        """Compare a stored object with its row, unless its store did not answer before."""
        url = str(row["store_url"])
        store = self._store(url)
        if store is None or url in self.report.unreachable:
            return
        try:
            head = await store.head(row["key"])
        except SyncError as error:
            self.report.unreachable[url] = str(error)
            return
        self.report.counts["objects"] += head is not None
        wrong = _wrong_in_store(head, row)
        if wrong is not None:
            self._differ("store", f"{row['key']} in {url}", row["call_id"], wrong, **IN_STORE)

    def _store(self, url: str) -> ObjectStore | None:
        settings = self._settings.store
        if settings is None:
            self.report.unreachable[url] = "[store] is not set"
            return None
        if url not in self._stores:
            self._stores[url] = open_store(_at(settings, url))
        return self._stores[url]

    async def _check_centre(self) -> None:
        place = await read_place(self._catalog)
        if self._settings.central is None:
            if place.introduced:
                self.report.unreachable["centre"] = "[central] is not set"
            return
        last = await self._catalog.fetch_one("changes.last")
        self.report.owe("changes to the centre", (last["seq"] if last else 0) - place.cursor)
        self.report.owe("rows that the centre refused and keeps in its quarantine", place.refused)
        if not place.introduced:
            return  # the centre does not know this node, and is not told by a verify
        try:
            await self._check_place()
            for rows in _batches(self._confirmed, HOLDS_AT_ONCE):
                await self._check_held(rows)
        except (Diverged, Superseded) as error:
            self._differ("centre", self._catalog.epoch, None, error.message, cause=RESTORED, fix=error.fix)
        except SyncError as error:
            self.report.unreachable["centre"] = str(error)

    async def _check_place(self) -> None:
        """Ask where the centre stands. Asked again while an agent moves on at the same time.

        Raises:
            Diverged: Elsewhere than this catalog says.
        """
        while True:
            before = await read_place(self._catalog)
            label, tenant, software = before.introduced
            welcome = await self._centre().hello(
                node_id=self._catalog.node_id,
                epoch=before.epoch,
                label=label,
                tenant=tenant or None,
                software=software,
                reason="verify",
            )
            if await read_place(self._catalog) == before:
                before.agreed(welcome.token, welcome.cursor)
                return

    async def _check_held(self, rows: list[Row]) -> None:
        held = await self._centre().holds(node_id=self._catalog.node_id, object_ids=[row["segment_id"] for row in rows])
        self.report.counts["held"] += len(held)
        there = {each.object_id: each for each in held}
        for row in rows:
            each = there.get(row["segment_id"])
            if each is None:
                self._differ("centre", row["segment_id"], row["call_id"], "is not held, and had a receipt", **AT_CENTRE)
            elif any(getattr(each, name) != row[name] for name in HELD):
                self._differ("centre", row["segment_id"], row["call_id"], "is held with other facts", **AT_CENTRE)

    def _centre(self) -> Central:
        from sync.central.client import Central  # noqa: PLC0415 (only a node that has a centre pays for psycopg)

        if self._central is None:
            settings = self._settings.require_central()
            self._central = Central(settings.dsn.get_secret_value(), timeout=settings.timeout)
        return self._central

    def _differ(self, place: str, item: str, call_id: str | None, what: str, *, cause: str, fix: str) -> None:
        found = Difference(place=place, item=item, call_id=call_id, what=what, cause=cause, fix=fix)
        self.report.differences.append(found)


# What each kind of difference most likely comes from, and what repairs it.
REBUILD = {
    "cause": "the catalog is older than the disk, or was lost",
    "fix": "`edge-recorder repair local` brings the rows back from the journals",
}
SALVAGE = {"cause": "a crash or a power loss", "fix": "`edge-recorder repair local` seals what is whole of it"}
STRANGER = {"cause": "somebody put it there", "fix": "Move it elsewhere; nothing unknown is ever deleted here"}
IN_STORE = {
    "cause": "somebody deleted or replaced it there, or a rule of the bucket did",
    "fix": "Restore that version in the store; until then keep this node's file, the only copy",
}
AT_CENTRE = {
    "cause": "the centre was restored from a backup, or somebody deleted the row",
    "fix": "Restore the centre's rows; until then keep this node's file and catalog",
}
RESTORED = "the centre or this node's catalog was restored from a backup, or the data_dir was copied"


def _look(directory: Path, data_dir: Path) -> tuple[list[SegmentFile], list[Path], bool]:
    """Return a call's segment files, the files that are neither, and whether a living recorder writes it."""
    if not directory.is_dir():
        return [], [], False
    alive = _is_written(directory, data_dir)  # asked first: one that ends meanwhile has sealed all
    files = spool.segment_files(directory)
    known = {JOURNAL, *(file.path.name for file in files)}
    strangers = [path for path in directory.iterdir() if path.name not in known and not _is_unfinished(path)]
    return files, sorted(strangers), alive


def _is_unfinished(path: Path) -> bool:
    """Whether a crash left `path` while `durable` wrote it, or as a spill with its name: ours, and read by nobody."""
    return path.name.startswith(".spill.") or (path.name.startswith(".") and path.name.endswith(".tmp"))


def _is_written(directory: Path, data_dir: Path) -> bool:
    start = journal.read_start(directory / JOURNAL)
    if start is None:
        return False
    with spool.taken_over(data_dir, start.writer) as dead:
        return not dead


def _wrong_with(path: Path, row: Row) -> str | None:
    """Return what is wrong with a segment's file, or None."""
    try:
        tag, samples = wav.read_file(path)
    except FileNotFoundError:
        return "is missing"
    except (OSError, IntegrityMismatch) as error:
        return f"cannot be read: {error}"
    if hashlib.sha256(samples.tobytes()).hexdigest() != row["pcm_sha256"]:
        return f"does not hold the {row['frames']} samples that were sealed"
    if any(getattr(tag, name) != row[name] for name in ("call_id", "track", "seq", "first_sample", "rate")):
        return "says in its header that it is another segment"
    return None


def _wrong_in_store(head: Head | None, row: Row) -> str | None:
    """Return what is wrong with a stored object, or None."""
    if head is None:
        return "is missing"
    if head.size != row["file_bytes"]:
        return f"has {head.size} bytes instead of {row['file_bytes']}"
    for name, wanted in ((FILE_SHA256, row["file_sha256"]), (PCM_SHA256, row["pcm_sha256"])):
        if head.metadata.get(name) != wanted:
            return f"has another {name}"
    return None


def _at(settings: Store, url: str) -> Store:
    return settings.model_copy(update={"url": url})


def _batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(rows)
    while batch := list(islice(source, size)):
        yield batch


async def _each(items: Iterable[T], work: Callable[[T], Awaitable[Any]], *, limit: int) -> None:
    """Do `work` for each of `items`, `limit` of them at once."""
    room = asyncio.Semaphore(limit)

    async def one(item: T) -> None:
        async with room:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for item in items:
            group.create_task(one(item))

"""
Bringing disk and catalog together again: salvage, adopt, replay the journal, close dead calls.

Calls of recorders that died are mended on disk (see `mending.py`), and the facts of all calls become rows where there
are none yet. Every step may be repeated. What a living recorder writes is left alone: its lock says so. A file that
cannot be read as what its name says is moved to quarantine/, with a note; nothing is deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edge_recorder import journal, spool, wav
from edge_recorder.catalog.connection import Catalog
from edge_recorder.catalog.statements import storing
from edge_recorder.errors import CatalogBroken, CatalogBusy, EdgeRecorderError, IntegrityMismatch
from edge_recorder.finds import head
from edge_recorder.journal import Start
from edge_recorder.mending import Mending
from edge_recorder.model import Custody, Fact, Instant, Segment
from edge_recorder.spool import JOURNAL

T = TypeVar("T")

log = logging.getLogger("edge_recorder")


class OnPool(Protocol):
    """Runs disk work beside the event loop."""

    def __call__(self, work: Callable[..., T], /, *args: Any) -> Awaitable[T]: ...


@dataclass(slots=True)
class Report:
    """What was found and done, as counts."""

    calls_seen: int = 0
    calls_closed: int = 0  # of dead recorders
    calls_left_alone: int = 0  # of living recorders
    calls_failed: int = 0  # the disk or the catalog refused; tried again the next time
    segments_salvaged: int = 0
    segments_adopted: int = 0
    segments_mixed: int = 0
    files_quarantined: int = 0
    torn_lines: int = 0  # of journals; a crash leaves one at most
    rows_replayed: int = 0

    def add(self, other: Report) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


async def recover(catalog: Catalog, data_dir: Path, *, now: Callable[[], Instant], on_pool: OnPool) -> Report:
    """Close the calls of recorders that died: what every start does. Without dead recorders it looks at nothing else.

    A new catalog is first built from all of the spool: the one before it was lost, or there was none.
    """
    if not await catalog.is_whole():
        return await repair(catalog, data_dir, now=now, on_pool=on_pool)
    report = Report()
    for writer in await on_pool(spool.writers, data_dir):
        with spool.taken_over(data_dir, writer) as dead:
            if not dead:
                continue
            directories, done = await on_pool(_calls_of, data_dir, writer)
            for directory in directories:
                work = _mend(catalog, directory, data_dir, now=now, on_pool=on_pool)
                done.add(await _bring_back(directory, work))
            if not done.calls_failed:
                spool.clear_writer(data_dir, writer)
            report.add(done)
    return report


async def repair(
    catalog: Catalog,
    data_dir: Path,
    *,
    now: Callable[[], Instant],
    on_pool: OnPool,
    progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Go through every call on disk: mend what no living recorder writes, and replay all journals into the catalog."""
    report, epoch = Report(), catalog.epoch
    # Only these can be done with afterwards: calls of one that dies from here on may have been passed by.
    done_with = set(await on_pool(spool.dead_writers, data_dir))
    for directory in await on_pool(_call_dirs, data_dir):
        try:
            start = await on_pool(_start_of, directory)
        except OSError as error:
            report.add(_failed(directory, error))
            continue
        if start is None:
            report.calls_left_alone += not await on_pool(_clear_unborn, directory, data_dir)
            continue
        with spool.taken_over(data_dir, start.writer) as dead:
            if not dead:
                done_with.discard(start.writer)  # it lives, or another mends it and may not come to its end
                work = _read(catalog, directory, on_pool=on_pool)
            else:
                work = _mend(catalog, directory, data_dir, now=now, on_pool=on_pool)
            report.add(await _bring_back(directory, work))
        progress(report)
    if report.calls_failed:
        return report
    for writer in done_with.intersection(await on_pool(spool.dead_writers, data_dir)):
        spool.clear_writer(data_dir, writer)
    await catalog.mark_whole(epoch=epoch)
    return report


async def _bring_back(directory: Path, work: Coroutine[Any, Any, Report]) -> Report:
    """Do what there is to do for one call. One that is refused does not stop the others."""
    try:
        return await work
    except (CatalogBusy, CatalogBroken):
        raise  # as it would be for each of them
    except (EdgeRecorderError, OSError) as error:
        return _failed(directory, error)


def _clear_unborn(directory: Path, data_dir: Path) -> bool:
    """Remove what a recorder left of a call that it died before it began. False where one may yet begin it."""
    if spool.was_alive(data_dir, at=directory.stat().st_mtime):
        return False
    for path in list(directory.iterdir()):
        if path.stat().st_size:
            spool.to_quarantine(data_dir, path, "nothing says which call it is of")
        else:
            path.unlink()
    directory.rmdir()
    return True


async def _mend(
    catalog: Catalog, directory: Path, data_dir: Path, *, now: Callable[[], Instant], on_pool: OnPool
) -> Report:
    """Mend one call whose recorder is dead, and replay its facts."""
    mending = await on_pool(_mending, directory, data_dir, now)
    if mending is None:
        return Report(calls_left_alone=1)
    gone = await _to_its_end(on_pool(mending.mend))
    if gone:
        await _to_its_end(on_pool(mending.note_lost, await _nowhere_else(catalog, gone)))
    done = mending.done
    return Report(
        calls_seen=1,
        calls_closed=done.closed,
        segments_salvaged=done.salvaged,
        segments_adopted=done.adopted,
        segments_mixed=done.mixed,
        files_quarantined=done.quarantined,
        torn_lines=mending.content.torn_lines,
        rows_replayed=await _replay(catalog, mending.facts),
    )


async def _to_its_end(work: Awaitable[T]) -> T:
    """Wait for disk work, also when cancelled: the lock that is held for it must not be let go before."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _read(catalog: Catalog, directory: Path, *, on_pool: OnPool) -> Report:
    """Replay the facts of a call that a living recorder writes."""
    content = await on_pool(journal.read, directory / JOURNAL)
    rows = await _replay(catalog, list(content.facts.values()))
    return Report(calls_seen=1, calls_left_alone=1, torn_lines=content.torn_lines, rows_replayed=rows)


async def _nowhere_else(catalog: Catalog, gone: list[Segment]) -> list[Segment]:
    """Return those of the segments without a file that no store can have. A catalog made anew does not know."""
    if not await catalog.is_whole():
        return []
    rows = await catalog.fetch("segments.of_call", call_id=gone[0].call_id)
    elsewhere = {row["segment_id"] for row in rows if row["state"] not in {Custody.PENDING, Custody.QUARANTINED}}
    return [each for each in gone if each.segment_id not in elsewhere]


def _mending(directory: Path, data_dir: Path, now: Callable[[], Instant]) -> Mending | None:
    start = _start_of(directory)
    return Mending(directory, data_dir, start, now) if start is not None else None


def _failed(directory: Path, error: Exception) -> Report:
    log.error("the call in %s cannot be mended now, and waits for the next time: %s", directory, error)
    return Report(calls_seen=1, calls_failed=1)


async def _replay(catalog: Catalog, facts: list[Fact]) -> int:
    """Store `facts`; what is there already, equal, makes no change. The store is asked for rebuilt objects first."""
    return sum(await catalog.write_all(list(storing(facts, custody=Custody.UNKNOWN))))


def _call_dirs(data_dir: Path) -> list[Path]:
    return list(spool.call_dirs(data_dir))


def _calls_of(data_dir: Path, writer: str) -> tuple[list[Path], Report]:
    """Return the directories of the calls that `writer` wrote, and a count of those that cannot be asked."""
    found, report = [], Report()
    for directory in spool.call_dirs(data_dir):
        try:
            start = _start_of(directory)
        except OSError as error:
            report.add(_failed(directory, error))
            continue
        if start is not None and start.writer == writer:
            found.append(directory)
    return found, report


def _start_of(directory: Path) -> Start | None:
    """Return who writes the call: by its journal, else by a file's tag. None where only a living recorder may know."""
    start = journal.read_start(directory / JOURNAL)
    if start is not None:
        return start
    for file in spool.segment_files(directory):
        with suppress(IntegrityMismatch):
            tag = wav.read_tag(head(file.path))
            return Start(call_id=tag.call_id, started_at=tag.started_at, writer=tag.writer)
    return None

"""
The recorder: one thread that takes calls to disk. MAIN FLOW of the node.

    callers' threads and loops      the recorder's thread                       small pools
    call.write() -> queue           lanes, every 0.4 s, or when woken   --->    tape.advance: take the queue, write
                                           every second                 --->    fsync
                                    rows <--- facts safe in the journal <---    tape.end_sync: rename, journal
                                    commit the rows, in groups

The thread has an event loop of its own, so that no caller's loop can take the recorder down with it. Disk work runs on
pools, so that one slow disk operation holds up neither callers nor other calls. Audio and journal never wait for the
catalog: rows that SQLite cannot take now wait here, bounded, and are on disk in the journal.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from edge_recorder import durable, model, recovery, spool
from edge_recorder.arguments import as_json, check_flag, checked_tracks, clean, clean_if_given
from edge_recorder.call import NOT_WANTED, Call
from edge_recorder.catalog import sqlite
from edge_recorder.catalog.connection import Catalog
from edge_recorder.errors import (
    CallerError,
    EdgeRecorderError,
    RecorderClosed,
    UnsafeRuntime,
)
from edge_recorder.handover import Budget
from edge_recorder.hooks import Hooks, OnError, OnGap, OnSegment
from edge_recorder.lane import Lane, Session
from edge_recorder.model import Fact, Instant, Pace, SpanKind
from edge_recorder.pending import Pending
from edge_recorder.rows import RowQueue
from edge_recorder.settings import Settings
from edge_recorder.stats import CallSummary, RecorderStats
from edge_recorder.tape import Progress, Tape

log = logging.getLogger("edge_recorder")

WRITERS = 4  # threads
LANES = 4
SYNCERS = 8  # threads
HOUSEKEEPING = 1.0  # seconds between looks at the disk's room and at the life of the main thread
PATIENCE = 0.03  # seconds that a start waits for the catalog
ROWS_RETRY = 1.0  # seconds until rows that SQLite refused are tried again
CLOSE_TIMEOUT = 30.0  # seconds

T = TypeVar("T")


def now() -> Instant:
    """Return the time of day."""
    return time.time_ns() // 1000


class Recorder:
    """Records calls into one data_dir. `settings` may be just that directory.

    Usable as `with`, as `async with`, or by `start()` and `close()`; from any thread and any event loop.
    """

    def __init__(
        self,
        settings: Settings | str | Path,
        *,
        on_segment: OnSegment | None = None,
        on_gap: OnGap | None = None,
        on_error: OnError | None = None,
    ) -> None:
        """The hooks are called on the recorder's thread, with a `model.Segment`, a `model.Span` and an exception."""
        self.settings = settings if isinstance(settings, Settings) else Settings.of({"node": {"data_dir": settings}})
        self.data_dir = self.settings.node.data_dir.absolute()
        self.node_id = ""
        self._budget = Budget(self.settings.capture.queue_bytes)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._started: Pending[EdgeRecorderError | OSError | None] = Pending()
        self._closing = asyncio.Event()
        self._admitting = threading.Lock()
        self._hooks = Hooks(on_segment=on_segment, on_gap=on_gap, on_error=on_error)
        self._lanes: list[Lane] = []
        self._open: dict[Session, asyncio.Future[None]] = {}  # done when the call's end is told
        self._calls: weakref.WeakSet[Call] = weakref.WeakSet()  # all that a fork may find
        self._finishing: set[asyncio.Task[None]] = set()
        self._has_room = True
        self._failing: set[Session] = set()  # calls of which the disk refuses something
        self._unfinished = False  # some call is not all on disk: for recovery to mend
        _running.add(self)

    # The caller's side.

    def start(self) -> Self:
        """Open the data_dir and start the recorder's thread. Blocks until it is ready: some milliseconds.

        Raises:
            DataDirError: The data_dir cannot be written, or is on a network file system.
            UnsafeRuntime: This SQLite could damage the catalog that is there.
            RecorderClosed: It was started before.
        """
        if self._thread is not None:
            raise RecorderClosed("this recorder was started before", fix="Make a new Recorder")
        self.node_id = spool.prepare(self.data_dir)
        self._has_room = spool.free_bytes(self.data_dir) >= self.settings.disk.low_water
        self._thread = threading.Thread(target=self._run, name="edge-recorder")
        self._thread.start()
        failure = self._started.result()
        if failure is not None:
            self._thread.join()
            raise failure
        return self

    def close(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """End the calls that are open, seal them, and stop the thread. True when all of it is done within `timeout`."""
        if self._thread is None or self._loop is None:
            return True
        with suppress(RuntimeError):  # its loop is closed already
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def start_call(
        self,
        *,
        external_id: str | None = None,
        tenant: str | None = None,
        direction: str | None = None,
        from_number: str | None = None,
        to_number: str | None = None,
        agent: str | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        tracks: Mapping[str, int] | None = None,
        consent: Mapping[str, Any] | None = None,
        record: bool = True,
        pace: str = Pace.LIVE,
    ) -> Call:
        """Start a call and return its handle at once; the disk follows. Two calls may share an `external_id`.

        Args:
            tracks: Name -> rate in Hz of the tracks known from the start; a first `write(..., rate=)` declares others.
            record: False keeps the call's facts, but no audio.
            pace: `live`: the clock moves time. `media`: the audio does, as fast as it comes.

        Raises:
            CallerError: An argument is wrong.
            RecorderClosed: The recorder is not running here.
        """
        self._running_loop()
        if pace not in set(Pace):
            raise CallerError(f"pace={pace!r} is not a pace", fix=f"Use one of {', '.join(Pace)}")
        check_flag("record", record)
        if isinstance(tags, str):
            raise CallerError(f"tags={tags!r} is one text", fix='Give a sequence of them, like ["vip"]')
        rates = checked_tracks(tracks)
        started_at = now()
        reason = self._reason_not_to_record(record)
        fact = model.Call(
            call_id=model.new_call_id(started_at),
            external_id=clean_if_given(external_id),
            tenant=clean(tenant) if tenant else self.settings.node.tenant,
            direction=clean_if_given(direction),
            from_number=clean_if_given(from_number),
            to_number=clean_if_given(to_number),
            agent=clean_if_given(agent),
            tags=as_json("tags", list(tags)),
            metadata=as_json("metadata", metadata or {}),
            consent=as_json("consent", consent) if consent is not None else None,
            recording=reason is None,
            not_recording_reason=reason,
            pace=pace,
            tracks=json.dumps(rates),
            started_at=started_at,
        )
        return self._begin(fact, rates)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def stats(self) -> RecorderStats:
        """Say how the recorder stands now. From any thread."""
        return RecorderStats(
            calls=len(self._open),
            queued_bytes=self._budget.used,
            disk_failing=bool(self._failing),
            has_room=self._has_room,
            hook_failures=self._hooks.failures,
        )

    def _begin(self, fact: model.Call, rates: Mapping[str, int]) -> Call:
        """Make the handle and the tape of a new call, and hand both to the recorder's thread."""
        began = time.monotonic_ns()
        tape = Tape(fact, self.data_dir, writer=self._writer.name, capture=self.settings.capture, clock=now)
        with self._admitting:
            loop = self._running_loop()
            lane = min(self._lanes, key=lambda each: each.calls)
            lane.calls += 1
            call = Call(
                fact,
                tracks=rates,
                queue_seconds=self.settings.capture.queue_seconds,
                budget=self._budget,
                began=began,
                clock=now,
                wake=lambda: _call_soon(loop, partial(lane.wake, session)),
                measure=tape.on_disk,
            )
            self._calls.add(call)
            session = Session(call, tape, lane)
            _call_soon(loop, partial(self._admit, session))
        return call

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._pid != os.getpid():
            raise RecorderClosed("a recorder does not live on in a forked child", fix="Make a Recorder in the child")
        if self._loop is None or self._thread is None or not self._thread.is_alive() or self._closing.is_set():
            raise RecorderClosed(
                "the recorder is not running", fix="Use `with Recorder(...)`, or start() before start_call()"
            )
        return self._loop

    def _reason_not_to_record(self, record: bool) -> str | None:
        if not record:
            return NOT_WANTED
        return None if self._has_room else "the disk is below disk.low_water"

    def _disown(self) -> None:
        """Refuse everything, in a forked child: the recorder's thread lives on in the parent only."""
        for call in list(self._calls):
            call.disown()

    # The recorder's thread.

    def _run(self) -> None:
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="edge-recorder-disk")
        self._syncers = ThreadPoolExecutor(SYNCERS, thread_name_prefix="edge-recorder-sync")
        try:
            asyncio.run(self._main())
        finally:
            self._writers.shutdown()
            self._syncers.shutdown()
            self._started.settle(EdgeRecorderError("the recorder's thread broke off", fix="Its traceback says why"))

    async def _main(self) -> None:
        """Be ready, keep house until told to close, and leave nothing open."""
        self._loop = asyncio.get_running_loop()
        catalog = Catalog(self.data_dir, create_for=self.node_id)
        opening = asyncio.create_task(self._open_catalog(catalog), name="catalog")
        try:
            # An SQLite that is fit for it refuses nothing: then a call need not wait until it is its turn.
            done, _ = await asyncio.wait([opening], timeout=PATIENCE if sqlite.wal_is_safe() else None)
            for task in done:
                task.result()
            self._writer = spool.WriterLock(self.data_dir)
            roots = self._open_roots()
        except (EdgeRecorderError, OSError) as error:
            await catalog.close()
            self._started.settle(error)
            return
        self._rows = RowQueue(
            catalog, recover=partial(self._recover, catalog), pause=partial(asyncio.sleep, ROWS_RETRY)
        )
        tasks = [asyncio.create_task(self._commit_rows(opening), name="rows"), *self._start_lanes(roots)]
        self._started.settle(None)
        try:
            while not self._closing.is_set():
                await self._housekeep()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), HOUSEKEEPING)
            await self._end_all()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await catalog.close()  # its thread would keep the interpreter from exiting
            self._writer.release(finished=self._rows.is_empty and not (self._rows.lost or self._unfinished))
            for root in roots:
                if root is not None:
                    os.close(root)

    async def _open_catalog(self, catalog: Catalog) -> None:
        """Open the catalog. One that is busy or broken does not keep calls from being recorded.

        Raises:
            UnsafeRuntime: This SQLite could damage the catalog that is there.
        """
        try:
            await catalog.start()
        except UnsafeRuntime:
            raise
        except EdgeRecorderError as error:
            log.warning("recording without the catalog, which is tried again: %s", error)

    async def _commit_rows(self, opening: asyncio.Task[None]) -> None:
        """Commit rows as they come, once the first try to open the catalog is over."""
        await asyncio.wait([opening])
        if not opening.cancelled() and opening.exception() is not None:
            log.error("recording without the catalog: %s", opening.exception())
        await self._rows.commit()

    def _open_roots(self) -> list[int | None]:
        """Return what the lanes sync all of the spool with, one each: the kernel tells each once of an error."""
        spooled = self.data_dir / "spool"
        try:
            return [durable.whole_sync(spooled, spool.file_system(spooled)) for _ in range(LANES)]
        except OSError:  # then each file is synced for itself
            return [None] * LANES

    def _start_lanes(self, roots: Sequence[int | None]) -> list[asyncio.Task[None]]:
        self._lanes = [
            Lane(
                self.settings.capture,
                write=partial(self._on_pool, self._writers),
                sync=partial(self._on_pool, self._syncers),
                root=root,
                report=self._take_report,
            )
            for root in roots
        ]
        return [asyncio.create_task(lane.run(), name=f"lane {n}") for n, lane in enumerate(self._lanes)]

    async def _recover(self, catalog: Catalog) -> None:
        """Close the calls of recorders that died."""
        report = await recovery.recover(catalog, self.data_dir, now=now, on_pool=partial(self._on_pool, self._writers))
        if report.calls_closed:
            log.warning(
                "closed %d calls of recorders that died, and salvaged %d segments of them",
                report.calls_closed,
                report.segments_salvaged,
            )

    async def _housekeep(self) -> None:
        with suppress(OSError):
            free = await self._on_pool(self._writers, spool.free_bytes, self.data_dir)
            self._has_room = free >= self.settings.disk.low_water
        if not threading.main_thread().is_alive():
            self._closing.set()  # the interpreter is on its way out, and waits for this thread

    async def _end_all(self) -> None:
        with self._admitting:  # whoever found the recorder running has handed its call over by now
            pass
        await asyncio.sleep(0)  # and those are admitted
        for session in list(self._open):
            session.call.end("recorder closed")
        if self._open:
            await asyncio.wait(self._open.values())

    def _admit(self, session: Session) -> None:
        self._open[session] = asyncio.get_running_loop().create_future()
        session.lane.add(session)

    def _take_report(self, session: Session, progress: Progress) -> None:
        """Take what a step of a call came to: rows, hooks, and its end."""
        if session not in self._open or session.is_done:
            return
        self._note_disk(session, progress.errors)
        committed = self._rows.put(progress.facts)
        self._tell(session, progress.facts)
        if session.failure is not None:
            log.error("call %s broke off: the next start salvages it", session.call.id, exc_info=session.failure)
            self._hooks.error(session.failure)
        # While closing, a disk that refuses is not waited for: the next start salvages what is there.
        given_up = session.failure is not None or (self._closing.is_set() and progress.errors and session.is_ending)
        if session.tape.has_ended or given_up:
            session.is_done = True
            session.lane.remove(session)
            task = asyncio.create_task(self._finish(session, committed), name=f"end of call {session.call.id}")
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def _finish(self, session: Session, committed: asyncio.Future[None]) -> None:
        """Say what became of a call, once its rows are there, or wait for SQLite."""
        complete = session.tape.has_ended and session.failure is None
        await session.lane.settled()
        await asyncio.wait([committed], timeout=ROWS_RETRY)
        session.tape.close()
        self._unfinished = self._unfinished or not complete
        session.call.finish(_summary(session, complete=complete), left=session.flushes + session.drains)
        self._failing.discard(session)
        self._open.pop(session).set_result(None)

    def _tell(self, session: Session, facts: Sequence[Fact]) -> None:
        for fact in facts:
            if isinstance(fact, model.Segment):
                self._hooks.segment(fact)
            elif isinstance(fact, model.Span) and fact.kind == SpanKind.GAP:
                self._hooks.gap(fact)
                if fact.reason not in session.gaps:  # once for each reason
                    log.error("call %s has a gap on %s from %.1f s on: %s", *_place_of(fact), fact.reason)
                session.gaps.add(fact.reason)

    def _note_disk(self, session: Session, errors: list[OSError]) -> None:
        """Log that the disk refuses, once until it takes all again."""
        if errors:
            if not self._failing:
                log.error("the disk refuses what is recorded, which waits in RAM: %s. Free room, or mend it", errors[0])
                self._hooks.error(errors[0])
            self._failing.add(session)
        elif session in self._failing and not session.tape.is_refused:  # a round may sync what was taken before
            self._failing.discard(session)
            if not self._failing:
                log.warning("the disk takes what is recorded again")

    async def _on_pool(self, pool: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T:
        """Do disk work beside the loop; while the interpreter exits, which ends all pools, do it here."""
        try:
            future = pool.submit(work, *args)
        except RuntimeError:
            return work(*args)
        return await asyncio.wrap_future(future)


def _summary(session: Session, *, complete: bool) -> CallSummary:
    call, there = session.tape.call, session.tape.on_disk()
    return CallSummary(
        call_id=call.call_id,
        state=call.state,
        duration_s=call.duration_s,
        segments=there.segments,
        gap_s=there.gap_s,
        complete=complete,
    )


def _place_of(span: model.Span) -> tuple[str, str, float]:
    return span.call_id, span.track or "all tracks", span.start_s


def _call_soon(loop: asyncio.AbstractEventLoop, work: Callable[[], object]) -> None:
    """Hand `work` to the recorder's loop. One that has closed has ended all its calls already."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(work)


_running: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _disown_all() -> None:
    for recorder in list(_running):
        recorder._disown()  # noqa: SLF001 (it is its own module's)


os.register_at_fork(after_in_child=_disown_all)

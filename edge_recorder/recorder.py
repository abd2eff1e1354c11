"""
The recorder: one thread that takes calls to disk. MAIN FLOW of the node.

    callers' threads and loops      the recorder's thread                       a small pool
    call.write() -> queue   --->    every 0.4 s, or when woken, each call:
                                    take the queue            --->              tape.advance: write, sync, seal
                                    rows <--- facts safe in the journal  <---
                                    commit the rows, in groups

The thread has an event loop of its own, so that no caller's loop can take the recorder down with it. Disk work runs on
the pool, so that one slow disk operation holds up neither callers nor other calls. Audio and journal never wait for the
catalog: rows that SQLite cannot take now wait here, bounded, and are on disk in the journal.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from edge_recorder import model, recovery, spool
from edge_recorder.arguments import as_json, checked_tracks, clean, clean_if_given
from edge_recorder.call import Budget, Call, CallSummary, Handover
from edge_recorder.catalog.connection import Catalog
from edge_recorder.errors import (
    CallerError,
    EdgeRecorderError,
    RecorderClosed,
    UnsafeRuntime,
)
from edge_recorder.model import Instant, Pace
from edge_recorder.pending import Pending
from edge_recorder.rows import RowQueue
from edge_recorder.settings import Settings
from edge_recorder.tape import Progress, Tape

log = logging.getLogger("edge_recorder")

POOL_THREADS = 4
HOUSEKEEPING = 1.0  # seconds between looks at the disk's room and at the life of the main thread
ROWS_RETRY = 1.0  # seconds until rows that SQLite refused are tried again
CLOSE_TIMEOUT = 30.0  # seconds

T = TypeVar("T")


def now() -> Instant:
    """Return the time of day."""
    return time.time_ns() // 1000


@dataclass(slots=True)
class _Session:
    """A call that is being recorded: its handle, its tape, and what wakes its task."""

    call: Call
    tape: Tape
    began: int  # monotonic nanoseconds
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    flushes: list[Pending[None]] = field(default_factory=list)
    drains: list[Pending[None]] = field(default_factory=list)

    def elapsed(self) -> int:
        return time.monotonic_ns() - self.began


class Recorder:
    """Records calls into one data_dir. `settings` may be just that directory.

    Usable as `with`, as `async with`, or by `start()` and `close()`; from any thread and any event loop.
    """

    def __init__(self, settings: Settings | str | Path) -> None:
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
        self._sessions: dict[str, tuple[_Session, asyncio.Task[None]]] = {}
        self._has_room = True
        self._disk_failing = False
        self._unfinished = False  # some call is not all on disk: for recovery to mend

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

    def _begin(self, fact: model.Call, rates: Mapping[str, int]) -> Call:
        """Make the handle and the tape of a new call, and hand both to the recorder's thread."""
        began, wake = time.monotonic_ns(), asyncio.Event()
        tape = Tape(fact, self.data_dir, writer=self._writer.name, capture=self.settings.capture, clock=now)
        with self._admitting:
            loop = self._running_loop()
            call = Call(
                fact,
                tracks=rates,
                queue_seconds=self.settings.capture.queue_seconds,
                budget=self._budget,
                elapsed=lambda: time.monotonic_ns() - began,
                clock=now,
                wake=partial(_call_soon, loop, wake.set),
            )
            _call_soon(loop, partial(self._admit, _Session(call, tape, began, wake)))
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
            return "record=False"
        return None if self._has_room else "the disk is below disk.low_water"

    # The recorder's thread.

    def _run(self) -> None:
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="edge-recorder-disk")
        try:
            asyncio.run(self._main())
        finally:
            self._pool.shutdown()
            self._started.settle(EdgeRecorderError("the recorder's thread broke off", fix="Its traceback says why"))

    async def _main(self) -> None:
        """Be ready, keep house until told to close, and leave nothing open."""
        self._loop = asyncio.get_running_loop()
        catalog = Catalog(self.data_dir, create_for=self.node_id)
        try:
            await self._open(catalog)
            self._writer = spool.WriterLock(self.data_dir)
        except (EdgeRecorderError, OSError) as error:
            await catalog.close()
            self._started.settle(error)
            return
        self._rows = RowQueue(
            catalog, recover=partial(self._recover, catalog), pause=partial(asyncio.sleep, ROWS_RETRY)
        )
        commits = asyncio.create_task(self._rows.commit(), name="rows")
        self._started.settle(None)
        try:
            while not self._closing.is_set():
                await self._housekeep()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), HOUSEKEEPING)
            await self._end_all()
        finally:
            commits.cancel()
            await asyncio.wait([commits])
            await catalog.close()  # its thread would keep the interpreter from exiting
            self._writer.release(finished=self._rows.is_empty and not (self._rows.lost or self._unfinished))

    async def _open(self, catalog: Catalog) -> None:
        """Open the catalog. One that is busy or broken does not keep calls from being recorded."""
        try:
            await catalog.start()
        except UnsafeRuntime:
            raise
        except EdgeRecorderError as error:
            log.warning("recording without the catalog, which is tried again: %s", error)

    async def _recover(self, catalog: Catalog) -> None:
        """Close the calls of recorders that died."""
        report = await recovery.recover(catalog, self.data_dir, now=now, on_pool=self._on_pool)
        if report.calls_closed:
            log.warning("closed %d calls of recorders that died: %s", report.calls_closed, report)

    async def _housekeep(self) -> None:
        with suppress(OSError):
            free = await self._on_pool(spool.free_bytes, self.data_dir)
            self._has_room = free >= self.settings.disk.low_water
        if not threading.main_thread().is_alive():
            self._closing.set()  # the interpreter is on its way out, and waits for this thread

    async def _end_all(self) -> None:
        with self._admitting:  # whoever found the recorder running has handed its call over by now
            pass
        await asyncio.sleep(0)  # and those are admitted
        for session, _ in list(self._sessions.values()):
            session.call.end("recorder closed")
        if tasks := [task for _, task in self._sessions.values()]:
            await asyncio.wait(tasks)

    def _admit(self, session: _Session) -> None:
        task = asyncio.create_task(self._keep(session), name=f"call {session.call.id}")
        self._sessions[session.call.id] = (session, task)
        task.add_done_callback(partial(self._dismiss, session))

    def _dismiss(self, session: _Session, task: asyncio.Task[None]) -> None:
        del self._sessions[session.call.id]
        if not task.cancelled() and task.exception() is not None:
            log.error("call %s broke off: the next start salvages it", session.call.id, exc_info=task.exception())

    async def _keep(self, session: _Session) -> None:
        """Take one call to disk until it has ended, and say what became of it, whatever happens."""
        progress = Progress()
        try:
            progress = await self._take_to_disk(session)
        finally:
            session.tape.close()
            self._unfinished = self._unfinished or not progress.ended
            session.call.finish(_summary(session, complete=progress.ended), left=session.flushes + session.drains)

    async def _take_to_disk(self, session: _Session) -> Progress:
        """Advance the tape at its intervals, or when woken. Calls are staggered: their flushes do not coincide."""
        capture = self.settings.capture
        wait = capture.flush_interval * random.random()  # noqa: S311 (nobody gains by guessing it)
        next_sync = int(capture.fsync_interval * 1e9 * random.random())  # noqa: S311
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(session.wake.wait(), wait)
            wait = capture.flush_interval
            session.wake.clear()
            taken = session.call.take()
            session.flushes += taken.flushes
            session.drains += taken.drains
            sync = bool(session.flushes) or session.elapsed() >= next_sync
            progress = await self._advance(session, taken, sync=sync)
            if sync:
                next_sync = session.elapsed() + int(capture.fsync_interval * 1e9)
            # While closing, a disk that refuses is not waited for: the next start salvages what is there.
            if progress.ended or (self._closing.is_set() and progress.errors):
                return progress

    async def _advance(self, session: _Session, taken: Handover, *, sync: bool) -> Progress:
        work = partial(session.tape.advance, taken.items, now=session.elapsed(), sync=sync, ending=taken.ending)
        progress = await self._on_pool(work)
        self._note_disk(progress.errors)
        committed = self._rows.put(progress.facts)
        if progress.ended:
            await asyncio.wait([committed], timeout=ROWS_RETRY)
        if progress.synced:
            _settle(session.flushes)
        if not progress.errors:
            _settle(session.drains)
        return progress

    def _note_disk(self, errors: list[OSError]) -> None:
        """Log that the disk refuses, once until it takes again."""
        if errors and not self._disk_failing:
            log.error("the disk refuses what is recorded, which waits in RAM: %s. Free room, or mend it", errors[0])
        elif self._disk_failing and not errors:
            log.warning("the disk takes what is recorded again")
        self._disk_failing = bool(errors)

    async def _on_pool(self, work: Callable[..., T], *args: Any) -> T:
        """Do disk work beside the loop; while the interpreter exits, which ends all pools, do it here."""
        try:
            future = self._pool.submit(work, *args)
        except RuntimeError:
            return work(*args)
        return await asyncio.wrap_future(future)


def _summary(session: _Session, *, complete: bool) -> CallSummary:
    call = session.tape.call
    return CallSummary(
        call_id=call.call_id,
        state=call.state,
        duration_s=call.duration_s,
        segments=session.tape.segments,
        complete=complete,
    )


def _settle(waiting: list[Pending[None]]) -> None:
    for pending in waiting:
        pending.settle(None)
    waiting.clear()


def _call_soon(loop: asyncio.AbstractEventLoop, work: Callable[[], object]) -> None:
    """Hand `work` to the recorder's loop. One that has closed has ended all its calls already."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(work)

"""
A lane: some calls that are taken to disk together, so that a thousand calls do not wake a thousand tasks.

    each flush_interval, or when one of them is woken    advance: take what was handed over, write it
    each fsync_interval, or when one of them needs it    a round: begin, fsync, end
The steps of a lane's tapes never overlap; its fsyncs are made beside them, so that a disk that stalls in one holds up
no write. Lanes are staggered, and slow work in one does not hold up another.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from edge_recorder import durable
from edge_recorder.call import Call
from edge_recorder.pending import Pending
from edge_recorder.settings import Capture
from edge_recorder.tape import Progress, Tape
from edge_recorder.timeline import BURST

STALL = 5.0  # seconds that a round may take before it is told of

log = logging.getLogger("edge_recorder")

T = TypeVar("T")


class OnPool(Protocol):
    """Runs disk work beside the event loop."""

    def __call__(self, work: Callable[..., T], /, *args: Any) -> Awaitable[T]: ...


@dataclass(slots=True, eq=False)
class Session:
    """A call that is being recorded: its handle, its tape, and who waits for it."""

    call: Call
    tape: Tape
    lane: Lane
    flushes: list[Pending[None]] = field(default_factory=list)
    drains: list[Pending[None]] = field(default_factory=list)
    is_ending: bool = False
    is_done: bool = False  # nothing more is done for it
    gaps: set[str] = field(default_factory=set)  # the reasons that were logged
    failure: Exception | None = None  # a bug: its tape can go on no further

    @property
    def needs_round(self) -> bool:
        """Whether it should not wait for the next round's time."""
        return bool(self.flushes) or self.is_ending or not self.tape.is_ready

    @property
    def is_written(self) -> bool:
        """Whether all that it was handed is in its files, so that a round makes it safe."""
        return not (self.tape.is_refused or self.tape.is_arriving)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A session in a round."""

    session: Session
    fds: list[int]
    flushes: list[Pending[None]]


class Lane:
    """Some calls that are taken to disk together."""

    def __init__(
        self,
        capture: Capture,
        *,
        write: OnPool,
        sync: OnPool,
        root: int | None,
        report: Callable[[Session, Progress], None],
    ) -> None:
        """`write` and `sync` do work beside the loop, `root` is for `durable.sync_all`; `report` hears of each step."""
        self.calls = 0  # that it has, or is given: counted by whoever gives them
        self.sessions: set[Session] = set()
        self._capture = capture
        self._write = write
        self._sync = sync
        self._root = root
        self._report = report
        self._woken: set[Session] = set()
        self._wake = asyncio.Event()
        self._stepping = asyncio.Lock()
        self._round: asyncio.Task[None] | None = None
        self._next_round = 0.0

    def add(self, session: Session) -> None:
        """Take a call on."""
        self.sessions.add(session)
        self.wake(session)

    def remove(self, session: Session) -> None:
        """Begin no more steps of a call."""
        self.calls -= session in self.sessions
        self.sessions.discard(session)
        self._woken.discard(session)

    async def settled(self) -> None:
        """Wait for the steps that are under way."""
        if self._round is not None:
            await asyncio.wait([self._round])
        async with self._stepping:
            pass

    def wake(self, session: Session) -> None:
        """Advance a call at once."""
        if session in self.sessions:
            self._woken.add(session)
            self._wake.set()

    async def run(self) -> None:
        """Take the calls to disk, for as long as it is not cancelled."""
        interval = self._capture.flush_interval
        next_flush = time.monotonic() + interval * random.random()  # noqa: S311 (nobody gains by guessing it)
        self._next_round = next_flush + self._capture.fsync_interval * random.random()  # noqa: S311
        while True:
            await self._woken_or(next_flush)
            if time.monotonic() >= next_flush:
                next_flush = max(next_flush + interval, time.monotonic() + interval / 2)
                due = set(self.sessions)
            else:
                due = self._woken & self.sessions
            self._woken -= due
            if due:
                await self._advance(due)
            self._begin_round()

    async def _woken_or(self, moment: float) -> None:
        wait = max(0.0, moment - time.monotonic()) if self.sessions else None
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), wait)
        self._wake.clear()

    async def _advance(self, sessions: Iterable[Session]) -> None:
        async with self._stepping:
            steps = await self._write(_advance_all, sessions)
        loop = asyncio.get_running_loop()
        for session, progress in steps:
            if not progress.errors and session.tape.is_ready:
                _settle(session.drains)
            if session.tape.is_arriving:
                loop.call_later(BURST, self.wake, session)
            self._report(session, progress)

    def _begin_round(self) -> None:
        if self._round is not None:
            return
        due = time.monotonic() >= self._next_round
        sessions = [each for each in self.sessions if due or each.needs_round]
        if due:
            self._next_round = time.monotonic() + self._capture.fsync_interval
        if sessions:
            self._round = asyncio.create_task(self._run_round(sessions), name="round of fsyncs")

    async def _run_round(self, sessions: Sequence[Session]) -> None:
        opening = {each for each in sessions if not each.tape.is_ready}
        try:
            async with self._stepping:
                begun, failed = await self._write(_begin_all, sessions)
            fds = [fd for each in begun for fd in each.fds]
            failures = await self._made(fds) if fds else {}
            async with self._stepping:
                steps = await self._write(_end_all, begun, failures)
        finally:
            self._round = None
        for session, progress in [*failed, *steps]:
            self._report(session, progress)
            # One that ends takes as many rounds as it needs, at once; what fails waits for the next flush.
            is_going_on = session in opening or (session.needs_round and session.is_written)
            if is_going_on and not progress.errors:
                self.wake(session)

    async def _made(self, fds: Sequence[int]) -> dict[int, OSError]:
        """Make the fsyncs of a round, and say so where the disk takes long."""
        began = time.monotonic()
        late = asyncio.get_running_loop().call_later(STALL, _warn_of_stall)
        try:
            return await self._sync(_sync_all, fds, self._root)
        finally:
            late.cancel()
            if time.monotonic() - began >= STALL:
                log.warning("the disk answered after %.1f s", time.monotonic() - began)


def _warn_of_stall() -> None:
    log.error("the disk has not answered an fsync for %d s: power loss would take what waits for it", STALL)


def _advance_all(sessions: Iterable[Session]) -> list[tuple[Session, Progress]]:
    return [(session, _step(session, _advance_one)) for session in sessions if session.failure is None]


def _advance_one(session: Session) -> Progress:
    taken = session.call.take()
    session.flushes += taken.flushes
    session.drains += taken.drains
    session.is_ending = taken.ending is not None
    return session.tape.advance(taken.items, now=taken.now, ending=taken.ending)


def _begin_all(sessions: Sequence[Session]) -> tuple[list[_Begun], list[tuple[Session, Progress]]]:
    """Begin the round of each session. Returns those that are in it, and what the others met."""
    begun: list[_Begun] = []
    failed: list[tuple[Session, Progress]] = []
    for session in sessions:
        try:
            if session.failure is None:
                begun.append(_begin_one(session))
        except OSError as error:  # told: an `advance` that opens no file may never meet it
            failed.append((session, Progress(errors=[error])))
        except Exception as error:  # noqa: BLE001 (as in `_step`)
            session.failure = error
            failed.append((session, Progress()))
    return begun, failed


def _begin_one(session: Session) -> _Begun:
    fds = session.tape.begin_sync()
    flushes: list[Pending[None]] = []
    if session.is_written:  # what gets into a file while the fsyncs are made is not safe after them
        flushes, session.flushes = session.flushes, []
    return _Begun(session, fds, flushes)


def _sync_all(fds: Sequence[int], root: int | None) -> dict[int, OSError]:
    """Make the fsyncs of a round. What is not known to have been made has failed."""
    try:
        return durable.sync_all(fds, root=root)
    except Exception as error:  # noqa: BLE001 (a bug here must not leave every call of the lane without an answer)
        return dict.fromkeys(fds, OSError(errno.EIO, f"{type(error).__name__}: {error}"))


def _end_all(begun: Sequence[_Begun], failures: dict[int, OSError]) -> list[tuple[Session, Progress]]:
    return [(each.session, _step(each.session, partial(_end_one, each, failures))) for each in begun]


def _end_one(begun: _Begun, failures: dict[int, OSError], session: Session) -> Progress:
    later, session.flushes = session.flushes, begun.flushes + session.flushes
    progress = session.tape.end_sync({fd: failures[fd] for fd in begun.fds if fd in failures})
    if not progress.errors:
        session.flushes = later
        _settle(begun.flushes)
    return progress


def _step(session: Session, step: Callable[[Session], Progress]) -> Progress:
    """Make a step of one call. A bug in it must not be the end of the others."""
    try:
        return step(session)
    except Exception as error:  # noqa: BLE001 (reported by whoever gets the session)
        session.failure = error
        return Progress()


def _settle(waiting: list[Pending[None]]) -> None:
    for pending in waiting:
        pending.settle(None)
    waiting.clear()

"""
The agent: brings what this node recorded to the store and to the centre. MAIN FLOW.

    one pass   every leg runs until it has nothing due, and again when a leg before it made work for it:
               what the upload stores is a change, which the push tells the centre, which answers with a receipt
    watch      every leg for itself, for ever: woken by the catalog's changes, and by its timer

Legs never wait for each other. One agent works on a data_dir at a time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from random import random as any_random
from time import monotonic, time_ns
from typing import Any, TypeAlias, TypeVar

from edge_recorder import spool
from edge_recorder.catalog.connection import Catalog
from edge_recorder.errors import EdgeRecorderError, Exit, SettingsError
from edge_recorder.model import Instant
from edge_recorder.settings import Central, Settings
from sync.backlog import UNRECOVERED, Backlog, read_backlog
from sync.leg import TRIES, Item, Leg, Work, cancel
from sync.push import Introduction, Push, Step, read_place
from sync.retry import Breaker, ErrorClass
from sync.upload import OwedAudio, Upload

GRACE = 10.0  # seconds that what is under way gets to finish after a SIGTERM
PATIENCE = 2  # tries more that one pass gives a destination that was well before it: a cut connection is no outage
PATIENT_FOR = 5.0  # seconds that it waits at most for one of them
CATALOG_FILES = frozenset({"catalog.db", "catalog.db-wal"})  # what a commit changes
HINT_STEP_MS = 20  # without a further change, until the legs are woken
HINT_DEBOUNCE_MS = 200  # with further ones, until they are woken all the same
GROUPS_AT_ONCE = 20  # of commits and reads that may follow each other closely
GROUP_INTERVAL = 0.05  # seconds between groups beyond that: a recorder must get its turn

AnyLeg: TypeAlias = Leg[Any]
T = TypeVar("T", bound=Item)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LegReport:
    """What one leg did and what it still owes."""

    destination: str | None  # None: not configured, so it owes nothing now and everything later
    arrived: int = 0  # objects, or rows
    size: int = 0  # bytes, of objects
    owed: int = 0
    error_class: str = ""
    access: bool = False  # it waits for credentials or permission
    reason: str = ""  # why something is still owed, and what to do

    @property
    def behind(self) -> bool:
        return self.destination is not None and self.owed > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run of the agent came to."""

    upload: LegReport
    push: LegReport
    quarantined: int
    refused: int  # rows that are in the centre's quarantine, of this pass and of earlier ones
    unrecovered: str  # why calls of dead recorders are still open, and their audio perhaps owed to nobody yet
    interrupted: bool

    @property
    def exit_code(self) -> Exit:
        behind = [leg for leg in (self.upload, self.push) if leg.behind]
        if self.interrupted:
            return Exit.INTERRUPTED
        if behind and all(leg.access for leg in behind) and not (self.refused or self.unrecovered):
            return Exit.ACCESS
        return Exit.PARTIAL if behind or self.refused or self.unrecovered else Exit.DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a running agent is."""

    objects: int
    bytes: int
    rows: int


async def run(
    settings: Settings,
    *,
    watch: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    now: Callable[[], Instant] = lambda: time_ns() // 1000,
    random: Callable[[], float] = any_random,
) -> Summary:
    """Make one pass, or `watch` until a signal comes.

    Raises:
        NoCatalog: Nothing was ever recorded there.
        LockHeld: Another agent is at work.
        SettingsError: There is no destination at all.
    """
    if settings.store is None and settings.central is None:
        raise SettingsError(
            "there is nowhere to sync to", fix="Set [store], [central], or both: see config.example.toml"
        )
    async with _opened(settings, progress, now, random) as agent:
        await agent.until_stopped(agent.watch() if watch else agent.make_pass())
        return await agent.summary()


@asynccontextmanager
async def _opened(
    settings: Settings,
    progress: Callable[[Progress], None],
    now: Callable[[], Instant],
    random: Callable[[], float],
) -> AsyncIterator[Agent]:
    data_dir = settings.node.data_dir
    async with AsyncExitStack() as stack:
        catalog = await Catalog.open(data_dir, pause=paced(monotonic, asyncio.sleep))
        stack.push_async_callback(catalog.close)
        stack.enter_context(spool.agent_lock(data_dir))
        agent = Agent(settings, catalog, progress=progress, now=now, random=random)
        for leg in agent.legs:
            stack.push_async_callback(leg.aclose)
            await leg.load()
        yield agent


async def _close_dead_calls(catalog: Catalog, data_dir: Path, now: Callable[[], Instant]) -> int:
    """Close the calls of recorders that died, so that what they left is owed too, and return how many could not be."""
    if await catalog.is_whole() and not await asyncio.to_thread(spool.dead_writers, data_dir):
        return 0
    from edge_recorder import recovery  # noqa: PLC0415 (an idle pass must not pay for numpy)

    report = await recovery.recover(catalog, data_dir, now=now, on_pool=asyncio.to_thread)
    if report.calls_closed:
        log.warning("closed %d calls of recorders that died: %s", report.calls_closed, report)
    return report.calls_failed


class Agent:
    """One run: its legs, and when each of them works. A leg without a destination in the settings is None."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        *,
        progress: Callable[[Progress], None],
        now: Callable[[], Instant],
        random: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._progress = progress
        self._now = now
        self._stop = asyncio.Event()
        self._interrupted = False
        self._unrecovered = ""

        def leg(name: str, work: Work[T], done: Callable[[], None]) -> Leg[T]:
            return Leg(name, work, catalog, now=now, random=random, max_wait=settings.sync.max_backoff, done=done)

        data_dir = settings.node.data_dir
        self.upload: Leg[OwedAudio] | None = None
        self.push: Leg[Step] | None = None
        if settings.store is not None:
            self.upload = leg("upload", Upload(catalog, data_dir, settings.store), self._uploaded)
        if settings.central is not None:
            self.push = leg("push", Push(catalog, data_dir, introduction(settings, settings.central)), self._show)

    @property
    def legs(self) -> list[AnyLeg]:
        """The legs, each after those that make work for it."""
        return [leg for leg in (self.upload, self.push) if leg is not None]

    async def make_pass(self) -> None:
        """Run every leg until none has anything due."""
        await self._recover()
        tasks: list[asyncio.Task[None]] = []
        for leg in self.legs:
            task = asyncio.create_task(self._finish(leg, earlier=tuple(tasks)), name=leg.name)
            task.add_done_callback(lambda _: self._wake())
            tasks.append(task)
        await together(tasks)

    async def watch(self) -> None:
        """Run every leg whenever it may have work, until stopped."""
        await self._recover()
        work = [self._listen(), self._scan(), *(self._keep(leg) for leg in self.legs)]
        await together([asyncio.create_task(each) for each in work])

    async def until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`. When a signal comes, nothing new is begun, and what is under way gets `GRACE` to finish."""
        task = asyncio.create_task(work)
        with self._signals(task):
            try:
                await task
            except asyncio.CancelledError:
                if not self._stop.is_set():
                    raise
                log.warning("what was under way did not finish in %g s; the next pass takes it up", GRACE)

    async def summary(self) -> Summary:
        store = self._settings.store
        backlog = await read_backlog(self._catalog, store_url=store.url if store else None)
        at = self._reached()
        audio = LegReport(
            destination=None, arrived=at.objects, size=at.bytes, owed=backlog.objects + backlog.quarantined
        )
        facts = LegReport(destination=None, arrived=at.rows, owed=backlog.changes)
        return Summary(
            upload=_explained(audio, self.upload, _why_not_stored(backlog)),
            push=_explained(facts, self.push, "some were written meanwhile"),
            quarantined=backlog.quarantined,
            refused=(await read_place(self._catalog)).refused if self.push else 0,
            unrecovered=self._unrecovered,
            interrupted=self._interrupted,
        )

    async def _recover(self) -> None:
        """Close dead calls. What cannot be read, or written, must not keep from the centre what is whole."""
        try:
            failed = await _close_dead_calls(self._catalog, self._settings.node.data_dir, self._now)
        except (EdgeRecorderError, OSError) as error:
            if str(error) != self._unrecovered:
                log.error("cannot close the calls of recorders that died: %s", error)  # noqa: TRY400 (the disk's trouble, no bug)
            self._unrecovered = str(error)
        else:
            self._unrecovered = f"{failed} of them cannot be read now: the log says why" if failed else ""
        with suppress(EdgeRecorderError):  # it is in the summary all the same
            await self._note_unrecovered()

    async def _note_unrecovered(self) -> None:
        """Keep for `status` why dead calls are open, where that changed."""
        why = json.dumps(self._unrecovered)
        if why != (await self._catalog.get_state(UNRECOVERED) or '""'):
            await self._catalog.write("agent_state.put", name=UNRECOVERED, value=why)

    async def _finish(self, leg: AnyLeg, *, earlier: tuple[asyncio.Task[None], ...]) -> None:
        """Run `leg`, and again when one of the earlier made work for it, until those are over."""
        first = True
        while not leg.stopping:
            last = all(task.done() for task in earlier)
            leg.woken.clear()
            await self._try(leg, probe=first or last)
            if last:
                return
            first = False
            await leg.woken.wait()

    async def _try(self, leg: AnyLeg, *, probe: bool) -> None:
        """Drain `leg`. One cut connection is no outage: a destination that was well is tried again after a moment."""
        was_well = leg.breaker.failures == 0
        await leg.drain(probe=probe)
        while was_well and 0 < leg.breaker.failures <= PATIENCE and _may_pass_soon(leg.breaker) and not leg.stopping:
            await passed(self._stop, leg.breaker.wait)
            await leg.drain(probe=True)

    async def _keep(self, leg: AnyLeg) -> None:
        while not leg.stopping:
            leg.woken.clear()
            await leg.drain()
            await passed(leg.woken, self._settings.sync.interval)

    async def _scan(self) -> None:
        """Look for what nobody told us of: the watcher is a hint, this is the truth."""
        while await passed(self._stop, self._settings.sync.scan_interval):
            await self._recover()
            self._wake()

    async def _listen(self) -> None:
        """Wake the legs at commits: every fact comes by one, and a sealed file's row only after its rename."""
        from watchfiles import awatch  # noqa: PLC0415 (only --watch needs it)

        try:
            async for _ in awatch(
                self._settings.node.data_dir,
                watch_filter=lambda _, path: Path(path).name in CATALOG_FILES,
                stop_event=self._stop,
                recursive=False,
                step=HINT_STEP_MS,
                debounce=HINT_DEBOUNCE_MS,
            ):
                self._wake()
        except (OSError, RuntimeError) as error:  # no inotify watch is left, or a file system has none
            log.warning("cannot watch the catalog (%s): looking each %g s", error, self._settings.sync.interval)

    def _wake(self) -> None:
        for leg in self.legs:
            leg.wake()

    def _uploaded(self) -> None:
        if self.push is not None:
            self.push.wake()
        self._show()

    def _show(self) -> None:
        self._progress(self._reached())

    def _reached(self) -> Progress:
        return Progress(
            objects=self.upload.arrived if self.upload else 0,
            bytes=self.upload.size if self.upload else 0,
            rows=self.push.size if self.push else 0,
        )

    @contextmanager
    def _signals(self, task: asyncio.Task[None]) -> Iterator[None]:
        """Take SIGTERM and SIGINT as the wish to stop; a second one has its usual effect."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread gets signals
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take_signal, number, task)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _take_signal(self, number: signal.Signals, task: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(number)
        loop.call_later(GRACE, task.cancel)
        self._interrupted = number == signal.SIGINT
        self._stop.set()
        for leg in self.legs:
            leg.stop()


def introduction(settings: Settings, central: Central) -> Introduction:
    return Introduction(
        dsn=central.dsn.get_secret_value(),
        timeout=central.timeout,
        batch_rows=central.batch_rows,
        heartbeat=settings.sync.heartbeat,
        label=settings.node.label or socket.gethostname(),
        tenant=settings.node.tenant,
        software=version("edge-recorder"),
    )


def paced(clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Return the agent's pause between groups: none for the few of a small pass, then enough to starve no recorder."""
    debt, last = 0.0, clock()

    async def pause() -> None:
        nonlocal debt, last
        at = clock()
        debt = max(0.0, debt - (at - last) / GROUP_INTERVAL) + 1
        last = at
        if debt > GROUPS_AT_ONCE:
            await sleep(GROUP_INTERVAL)

    return pause


async def passed(event: asyncio.Event, seconds: float) -> bool:
    """Wait until `event` is set or `seconds` are over. True: they are."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return True
    return False


async def together(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for all of `tasks`; when one breaks, or we are cancelled, end the others and raise what it raised."""
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel(tasks)


def _may_pass_soon(breaker: Breaker) -> bool:
    return breaker.error_class in {ErrorClass.TRANSIENT, ErrorClass.THROTTLE} and breaker.wait <= PATIENT_FOR


def _explained(report: LegReport, leg: AnyLeg | None, otherwise: str) -> LegReport:
    """Return `report` with where its leg goes, and why something is left: the destination fails, or `otherwise`."""
    if leg is None:
        return report
    reason = leg.breaker.reason or (otherwise if report.owed else "")
    return replace(
        report,
        destination=leg.destination,
        error_class=leg.breaker.error_class,
        access=leg.breaker.access,
        reason=reason,
    )


def _why_not_stored(backlog: Backlog) -> str:
    if backlog.quarantined:
        return f"{backlog.quarantined} set aside after {TRIES} tries: `edge-recorder status` says which, and why"
    if backlog.elsewhere:
        return (
            f"{backlog.elsewhere} belong in another store, where they were begun and perhaps are: set [store] url to"
            f" {backlog.elsewhere_urls} for one `sync`, then back"
        )
    return "some wait for their next try: `edge-recorder status` says which, and why"

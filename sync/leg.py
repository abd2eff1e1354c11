"""
Runs one leg of the sync: what is due, to one destination, until nothing is due or the destination fails.

    a try that ends with            the item                                the destination's breaker
    success                         is done                                 closes, and more is tried at once
    TRANSIENT THROTTLE AUTH         goes behind the others, not counted     opens: nothing new is taken
    CLOCK LOCAL
    CONFLICT ITEM                   waits; set aside after 5 of these       stays as it is

After a breaker's time one item is tried, and only with each success as many again. Where the work has no rows that
could be set aside (a batch of the push leg), every failure is the destination's.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from edge_recorder.catalog.connection import Catalog
from edge_recorder.catalog.owed import Failure, OwedWork, StaleTransition
from edge_recorder.errors import CatalogBusy
from edge_recorder.model import Instant
from sync.retry import Breaker, ErrorClass, State, SyncError, full_jitter

TRIES = 5  # of an item, before it waits for a person
ITEM_WAIT = 60.0  # seconds that an item waits at least after it failed by itself, and the base of the jitter on top
TAKEN_AT_ONCE = 100  # items read from the catalog at a time
SECOND = 1_000_000  # in an Instant

log = logging.getLogger(__name__)


class Item(Protocol):
    """One piece of owed work."""

    @property
    def id(self) -> str: ...

    @property
    def attempts(self) -> int:
        """How often it failed by its own fault."""


T = TypeVar("T", bound=Item)


class Work(Protocol[T]):
    """What a leg does. How it is run is the `Leg`'s."""

    @property
    def destination(self) -> str:
        """The name of what the work is brought to, and of its breaker."""

    @property
    def concurrency(self) -> int: ...

    @property
    def owed(self) -> OwedWork | None:
        """Where an item's failures are kept. None: every failure is the destination's."""

    async def due(self, *, now: Instant, latest: Instant, limit: int) -> Sequence[T]:
        """Return items whose time has come: it is not after `now`, or so late that a clock that was ahead set it.

        One in progress may be among them, and is left out.
        """

    async def do(self, item: T, *, now: Instant) -> int:
        """Bring the item to its destination, whatever was done of it before, and return its size.

        Raises:
            SyncError: It did not arrive, or nobody knows; its class says whose fault that is.
            StaleTransition: Somebody else was first.
        """

    async def aclose(self) -> None: ...


class Leg(Generic[T]):
    """One leg. `done` is called after each item that arrived."""

    def __init__(
        self,
        name: str,
        work: Work[T],
        catalog: Catalog,
        *,
        now: Callable[[], Instant],
        random: Callable[[], float],
        max_wait: float,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.destination = work.destination
        self.breaker = Breaker()
        self.arrived = 0  # items
        self.size = 0  # of what arrived, in the work's own unit
        self.woken = asyncio.Event()
        self.stopping = False
        self._work = work
        self._catalog = catalog
        self._now = now
        self._random = random
        self._max_wait = max_wait
        self._done = done
        self._ready: deque[T] = deque()
        self._trying = True
        self._width = 1

    async def load(self) -> None:
        """Take up the breaker where the last pass left it."""
        saved = await self._catalog.get_state(breaker_name(self.destination))
        if saved is not None:
            self.breaker = Breaker.from_dict(json.loads(saved))

    async def drain(self, *, probe: bool = False) -> None:
        """Do what is due until nothing is, or the destination fails. An open breaker lets through only a `probe`."""
        if self.breaker.state(self._seconds()) is State.OPEN and not probe:
            return
        self._trying = True
        self._ready.clear()
        self._width = 1 if self.breaker.failures else self._work.concurrency
        try:
            await self._run()
        except CatalogBusy as error:  # nothing can be noted now, so the breaker is kept in memory alone
            local = SyncError(error.message, error_class=ErrorClass.LOCAL, fix=error.fix)
            self.breaker = self._after(local)

    def wake(self) -> None:
        self.woken.set()

    def stop(self) -> None:
        """Take nothing new; what is under way goes on."""
        self.stopping = True
        self.wake()

    async def aclose(self) -> None:
        await self._work.aclose()

    async def _run(self) -> None:
        flying: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                for item in await self._next(flying):
                    flying[item.id] = asyncio.create_task(self._attempt(item), name=f"{self.name} {item.id}")
                if not flying:
                    return
                await asyncio.wait(flying.values(), return_when=asyncio.FIRST_COMPLETED)
                for landed in [item_id for item_id, task in flying.items() if task.done()]:
                    flying.pop(landed).result()
        finally:
            await cancel(flying.values())

    async def _next(self, flying: dict[str, asyncio.Task[None]]) -> list[T]:
        room = self._width - len(flying)
        if room <= 0 or self.stopping or not self._trying:
            return []
        if not self._ready:
            now = self._now()
            latest = now + int((ITEM_WAIT + self._max_wait) * SECOND)  # no wait is longer
            due = await self._work.due(now=now, latest=latest, limit=TAKEN_AT_ONCE)
            self._ready.extend(item for item in due if item.id not in flying)
        return [self._ready.popleft() for _ in range(min(room, len(self._ready)))]

    async def _attempt(self, item: T) -> None:
        try:
            await self._bring(item)
        except StaleTransition as moved:  # by `retry`, or another agent: its new state holds
            log.info("%s: %s", self.name, moved)

    async def _bring(self, item: T) -> None:
        before = self.breaker
        try:
            size = await self._work.do(item, now=self._now())
        except SyncError as error:
            await self._failed(item, error, before)
        else:
            await self._succeeded(size)

    async def _succeeded(self, size: int) -> None:
        self.arrived += 1
        self.size += size
        self._trying = True
        self._width = min(2 * self._width, self._work.concurrency)
        if self.breaker.failures:
            log.info("%s: %s is back", self.name, self.destination)
            await self._set_breaker(self.breaker.succeeded())
        self._done()

    async def _failed(self, item: T, error: SyncError, before: Breaker) -> None:
        if self._work.owed is not None and not error.error_class.pauses:
            await self._count(self._work.owed, item, error)
            return
        self._trying = False
        if self.breaker == before:  # what was under way beside it tells nothing new by failing too
            await self._set_breaker(self._after(error))
        if self._work.owed is not None:
            # Behind the others: a file that always breaks the connection must not be every probe.
            await self._work.owed.defer(
                item.id, _failure(error), tried=item.attempts, attempts=item.attempts, until=self._now()
            )

    async def _count(self, owed: OwedWork, item: T, error: SyncError) -> None:
        attempts = item.attempts + 1
        if attempts >= TRIES:
            log.error("%s: %s is set aside after %d tries: %s", self.name, item.id, attempts, error)
            await owed.quarantine(item.id, _failure(error), tried=item.attempts)
            return
        log.warning("%s: %s failed, try %d of %d: %s", self.name, item.id, attempts, TRIES, error)
        wait = ITEM_WAIT + full_jitter(attempts, base=ITEM_WAIT, cap=self._max_wait, random=self._random)
        until = self._now() + int(wait * SECOND)
        await owed.defer(item.id, _failure(error), tried=item.attempts, attempts=attempts, until=until)

    def _after(self, error: SyncError) -> Breaker:
        """Return the breaker after `error`. An outage is logged as it begins, not at each try."""
        level = logging.DEBUG if self.breaker.failures else logging.WARNING
        log.log(level, "%s: %s fails (%s): %s", self.name, self.destination, error.error_class, error)
        return self.breaker.failed(error, now=self._seconds(), random=self._random, cap=self._max_wait)

    async def _set_breaker(self, breaker: Breaker) -> None:
        self.breaker = breaker
        await self._catalog.write(
            "agent_state.put", name=breaker_name(self.destination), value=json.dumps(breaker.to_dict())
        )

    def _seconds(self) -> float:
        return self._now() / SECOND


def breaker_name(destination: str) -> str:
    """Return the name of a destination's breaker in `agent_state`."""
    return f"breaker:{destination}"


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel `tasks` and wait until they are over, whatever they end with."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


def _failure(error: SyncError) -> Failure:
    return Failure(error_class=error.error_class, last_error=str(error))

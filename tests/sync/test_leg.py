"""How a leg is run: breaker, ramp, tries and order, over a real catalog and with work that fails as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nodes import Node, noise

from edge_recorder.catalog.connection import Catalog
from edge_recorder.catalog.owed import Failure, OwedWork, StaleTransition
from edge_recorder.errors import CatalogBusy
from edge_recorder.model import Instant
from sync.leg import TRIES, Leg
from sync.retry import ErrorClass, State, SyncError

NOW = 1_790_000_000_000_000
PAUSING = [each for each in ErrorClass if each.pauses]


@dataclass(frozen=True)
class Job:
    id: str
    attempts: int


@dataclass
class Jobs:
    """The objects of a catalog, brought nowhere. `fail` says what becomes of a try."""

    catalog: Catalog
    fail: Callable[[str], Exception | None] = lambda _: None
    destination: str = "a place"
    concurrency: int = 4
    tried: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: list[int] = field(default_factory=list)
    gate: asyncio.Event | None = None

    @property
    def owed(self) -> OwedWork:
        return OwedWork(self.catalog, "objects")

    async def due(self, *, now: Instant, latest: Instant, limit: int) -> Sequence[Job]:
        rows = await self.catalog.fetch("objects.due", now=now, latest=latest, store_url="a place", limit=limit)
        return [Job(row["object_id"], row["attempts"]) for row in rows]

    async def do(self, item: Job, *, now: Instant) -> int:
        self.tried.append(item.id)
        self.at_once += 1
        self.most_at_once.append(self.at_once)
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
            if error := self.fail(item.id):
                raise error
            place = {"id": item.id, "store_url": "a place", "key": item.id, "format": "flac"}
            await self.catalog.write("objects.place", **place)
            await self.owed.move("mark_stored", id=item.id, file_bytes=1, file_sha256="", now=now)
        finally:
            self.at_once -= 1
        return 10

    async def aclose(self) -> None: ...


def error(error_class: ErrorClass) -> SyncError:
    return SyncError("it fails", error_class=error_class, fix="Wait")


@pytest.fixture
def node(data_dir: Path) -> Node:
    node = Node(data_dir)
    node.call({"user": (8000, [noise(8, seed=n) for n in range(12)])})
    return node


@pytest.fixture
def ids(node: Node) -> list[str]:
    rows = node.fetch("objects.due", now=NOW, latest=NOW, store_url="", limit=99)
    return [row["object_id"] for row in rows]


@pytest.fixture
async def catalog(node: Node, ids: list[str]) -> AsyncIterator[Catalog]:
    catalog = await Catalog.open(node.data_dir)
    yield catalog
    await catalog.close()


class Time:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> Instant:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def leg_of(jobs: Jobs, time: Time) -> Leg[Job]:
    return Leg("test", jobs, jobs.catalog, now=time, random=lambda: 1.0, max_wait=900.0)


async def counts(catalog: Catalog) -> dict[str, int]:
    return {row["state"]: row["count"] for row in await catalog.fetch("objects.counts")}


async def test_all_is_done_within_the_width(catalog: Catalog, ids: list[str], time: Time) -> None:
    """Every due item is done once, no more at a time than allowed."""
    jobs = Jobs(catalog)
    leg = leg_of(jobs, time)
    await leg.drain()
    assert sorted(jobs.tried) == sorted(ids)
    assert (leg.arrived, leg.size, max(jobs.most_at_once)) == (12, 120, 4)
    assert await counts(catalog) == {"stored": 12}


@pytest.mark.parametrize("error_class", PAUSING)
async def test_failing_destination_is_left_alone(catalog: Catalog, time: Time, error_class: ErrorClass) -> None:
    """A destination's failure stops the leg and counts against no item, however long it lasts."""
    jobs = Jobs(catalog, fail=lambda _: error(error_class))
    leg = leg_of(jobs, time)
    await leg.drain()
    assert (len(jobs.tried), leg.breaker.failures, leg.breaker.error_class) == (4, 1, error_class)
    await leg.drain()
    assert len(jobs.tried) == 4
    for failures in range(2, 12):
        time.now += 10**9
        await leg.drain()
        assert leg.breaker.failures == failures
    assert len(jobs.tried) == 4 + 10
    assert {row["attempts"] for row in await catalog.fetch("objects.problems", limit=99)} == {0}
    assert await counts(catalog) == {"pending": 12}


async def test_breaker_outlives_the_pass(catalog: Catalog, time: Time) -> None:
    """The next pass knows that the destination failed, makes one try when asked to, and heals with a success."""
    jobs = Jobs(catalog, fail=lambda _: error(ErrorClass.TRANSIENT))
    await leg_of(jobs, time).drain()
    again = leg_of(jobs, time)
    await again.load()
    assert again.breaker.state(NOW / 1e6) is State.OPEN
    jobs.tried.clear()
    await again.drain(probe=True)
    assert (len(jobs.tried), again.breaker.failures) == (1, 2)
    jobs.fail = lambda _: None
    await again.drain(probe=True)
    assert await counts(catalog) == {"stored": 12}
    healed = leg_of(jobs, time)
    await healed.load()
    assert healed.breaker.state(NOW / 1e6) is State.CLOSED


async def test_recovery_is_a_ramp(catalog: Catalog, time: Time) -> None:
    """After an outage one item is tried, then two, then four."""
    jobs = Jobs(catalog, fail=lambda _: error(ErrorClass.THROTTLE))
    leg = leg_of(jobs, time)
    await leg.drain()
    jobs.fail = lambda _: None
    jobs.most_at_once.clear()
    time.now += 10**9
    await leg.drain()
    assert jobs.most_at_once[0] == 1
    assert max(jobs.most_at_once[:3]) == 2
    assert max(jobs.most_at_once) == 4


async def test_poison_is_set_aside(catalog: Catalog, ids: list[str], time: Time) -> None:
    """An item that fails by itself is counted, waits, and is set aside at last, while the others are long done."""
    poison = ids[0]
    jobs = Jobs(catalog, fail=lambda each: error(ErrorClass.ITEM) if each == poison else None)
    leg = leg_of(jobs, time)
    for tries in range(1, TRIES + 1):
        await leg.drain()
        assert (jobs.tried.count(poison), leg.arrived, leg.breaker.failures) == (tries, 11, 0)
        time.now += 10**10
    await leg.drain()
    assert jobs.tried.count(poison) == TRIES
    (problem,) = await catalog.fetch("objects.problems", limit=9)
    assert (problem["state"], problem["attempts"], problem["last_error"]) == ("quarantined", TRIES, "it fails. Wait")


async def test_item_that_breaks_the_connection_holds_up_nobody(catalog: Catalog, ids: list[str], time: Time) -> None:
    """An item with which the destination always fails goes behind the others, so that it is not every probe."""
    poison = ids[0]
    jobs = Jobs(catalog, concurrency=1, fail=lambda each: error(ErrorClass.TRANSIENT) if each == poison else None)
    leg = leg_of(jobs, time)
    await leg.drain()
    assert leg.arrived == 0
    time.now += 10**7
    await leg.drain()
    assert leg.arrived == 11


async def test_item_moved_by_another_is_left_to_it(catalog: Catalog, ids: list[str], time: Time) -> None:
    """An item that somebody else moves while it is tried keeps that state, whatever the try comes to."""
    jobs = Jobs(catalog, gate=asyncio.Event(), fail=lambda each: error(ErrorClass.ITEM) if each == ids[0] else None)
    leg = leg_of(jobs, time)
    draining = asyncio.create_task(leg.drain())
    while len(jobs.tried) < 4:
        await asyncio.sleep(0)
    for moved in ids[:2]:
        failure = Failure(error_class="item", last_error="by a person")
        await OwedWork(catalog, "objects").quarantine(moved, failure, tried=0)
    assert jobs.gate is not None
    jobs.gate.set()
    await draining
    assert {row["last_error"] for row in await catalog.fetch("objects.problems", limit=9)} == {"by a person"}
    assert (leg.breaker.failures, await counts(catalog)) == (0, {"quarantined": 2, "stored": 10})


async def test_stop_takes_nothing_new(catalog: Catalog, time: Time) -> None:
    """What is under way when a leg is stopped finishes; nothing is begun."""
    jobs = Jobs(catalog, gate=asyncio.Event())
    leg = leg_of(jobs, time)
    draining = asyncio.create_task(leg.drain())
    while len(jobs.tried) < 4:
        await asyncio.sleep(0)
    leg.stop()
    assert jobs.gate is not None
    jobs.gate.set()
    await draining
    assert (len(jobs.tried), leg.arrived) == (4, 4)


async def test_cancelled_leg_leaves_no_task(catalog: Catalog, time: Time) -> None:
    """A leg that is cancelled ends what it had begun before it ends itself."""
    jobs = Jobs(catalog, gate=asyncio.Event())
    draining = asyncio.create_task(leg_of(jobs, time).drain())
    while len(jobs.tried) < 4:
        await asyncio.sleep(0)
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert jobs.at_once == 0


async def test_busy_catalog_is_waited_for(catalog: Catalog, time: Time) -> None:
    """A catalog that takes nothing now is this machine's trouble: the leg pauses, and nothing is counted."""

    def fail(_: str) -> Exception:
        return CatalogBusy("locked", fix="Wait")

    leg = leg_of(Jobs(catalog, fail=fail), time)
    await leg.drain()
    assert (leg.breaker.error_class, leg.breaker.failures) == (ErrorClass.LOCAL, 1)


async def test_clock_set_back_does_not_delay(catalog: Catalog, ids: list[str], time: Time) -> None:
    """An item whose next try is absurdly far ahead is due: the clock was set back."""
    wait = Failure(error_class="item", last_error="it failed")
    await OwedWork(catalog, "objects").defer(ids[0], wait, tried=0, attempts=1, until=NOW + 10**15)
    jobs = Jobs(catalog)
    await leg_of(jobs, time).drain()
    assert ids[0] in jobs.tried


async def test_clock_that_ran_ahead_costs_nothing(catalog: Catalog, time: Time) -> None:
    """What a destination refused while the clock ran ahead is due as soon as the clock is right."""
    jobs = Jobs(catalog, fail=lambda _: error(ErrorClass.CLOCK))
    time.now += 5 * 3600 * 10**6
    leg = leg_of(jobs, time)
    await leg.drain()
    time.now = NOW
    jobs.fail = lambda _: None
    await leg.drain()
    assert await counts(catalog) == {"stored": 12}


async def test_moves_take_effect_once(catalog: Catalog, ids: list[str]) -> None:
    """Of two agents that count the same try, the second learns that it was late."""
    owed = OwedWork(catalog, "objects")
    failure = Failure(error_class="item", last_error="it failed")
    await owed.defer(ids[0], failure, tried=0, attempts=1, until=NOW)
    with pytest.raises(StaleTransition):
        await owed.defer(ids[0], failure, tried=0, attempts=1, until=NOW)
    await owed.quarantine(ids[0], failure, tried=1)
    with pytest.raises(StaleTransition):
        await owed.quarantine(ids[0], failure, tried=2)
    (problem,) = await catalog.fetch("objects.problems", limit=9)
    assert (problem["state"], problem["attempts"]) == ("quarantined", 2)

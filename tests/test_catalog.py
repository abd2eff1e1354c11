"""The catalog: commits in groups, a change for each fact, one owner that lets go, and no SQLite that could harm it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edge_recorder import model, spool
from edge_recorder.catalog import connection as connection_module
from edge_recorder.catalog import generate, migrate, sqlite
from edge_recorder.catalog.connection import Catalog, catalog_path
from edge_recorder.catalog.entities import BY_TABLE, ENTITIES
from edge_recorder.catalog.owed import Failure, OwedWork, StaleTransition
from edge_recorder.catalog.statements import storing
from edge_recorder.errors import CatalogBroken, CatalogBusy, EdgeRecorderError, Exit, NoCatalog, UnsafeRuntime
from edge_recorder.model import CallState, Custody

AT_ONCE = threading.Event()
AT_ONCE.set()
STARTED = 1_790_000_000_000_000
CALL = model.Call(call_id=model.new_call_id(STARTED), external_id="CA1", started_at=STARTED)
ENDED = replace(CALL, state=CallState.ENDED, ended_at=STARTED + 5, duration_s=5e-6, end_reason="hangup")
SEGMENT = model.Segment(
    segment_id=model.segment_id(CALL.call_id, "user", 1),
    call_id=CALL.call_id,
    track="user",
    seq=1,
    first_sample=0,
    frames=8000,
    rate=8000,
    started_at=STARTED,
    sealed_at=STARTED,
    pcm_sha256="00",
    peak_dbfs=None,
    rms_dbfs=-20.5,
    clipped=0,
    waveform="",
)
SPAN = model.new_span(CALL.call_id, 1, model.SpanKind.GAP, "user", start_s=0, end_s=1.5, reason="disk full")
USAGE = model.Usage(
    usage_id=model.usage_id(CALL.call_id, 1),
    call_id=CALL.call_id,
    n=1,
    kind="tts",
    quantity="412",
    unit="character",
    created_at=STARTED,
)


def message(n: int, text: str = "Hello") -> model.Message:
    return model.Message(
        message_id=model.message_id(CALL.call_id, n),
        call_id=CALL.call_id,
        n=n,
        role="user",
        text=text,
        created_at=STARTED,
    )


def put(*facts: model.Fact) -> list[Any]:
    return list(storing(facts))


@pytest.fixture
async def catalog(data_dir: Path) -> AsyncIterator[Catalog]:
    opened = await Catalog.open(data_dir, create_for=spool.prepare(data_dir))
    yield opened
    await opened.close()


async def changes(catalog: Catalog) -> list[tuple[int, str, str]]:
    rows = await catalog.fetch("changes.pending", cursor=0, last=1_000_000, limit=1_000_000)
    return [(row["seq"], row["entity"], row["entity_id"]) for row in rows]


async def texts(catalog: Catalog) -> list[str]:
    return [row["text"] for row in await catalog.fetch("messages.of_call", call_id=CALL.call_id)]


async def pragma(catalog: Catalog, name: str) -> Any:
    ((value,),) = await catalog._connection.execute_fetchall(f"PRAGMA {name}")
    return value


# What it is.


async def test_what_the_promises_rest_on_is_in_force(catalog: Catalog) -> None:
    """A catalog is in WAL mode, fsyncs each commit, waits for others, and says that it is ours."""
    assert await pragma(catalog, "journal_mode") == "wal"
    assert await pragma(catalog, "synchronous") == 2  # FULL
    assert await pragma(catalog, "busy_timeout") == 5000
    assert await pragma(catalog, "application_id") == sqlite.APPLICATION_ID
    assert await pragma(catalog, "user_version") == migrate.SCHEMA_VERSION


async def test_every_table_is_strict(catalog: Catalog) -> None:
    """A column takes no value of another type: a mistake shows at once, and not at the centre."""
    tables = await catalog._connection.execute_fetchall("PRAGMA table_list")
    assert {row["name"]: row["strict"] for row in tables if not row["name"].startswith("sqlite_")} == dict.fromkeys(
        (*BY_TABLE, "identity", "changes", "agent_state"), 1
    )


SQL_TYPES = {"text": "TEXT", "json": "TEXT", "exact": "TEXT", "integer": "INTEGER", "instant": "INTEGER"}
SQL_TYPES |= {"boolean": "INTEGER", "real": "REAL"}
LOCAL = {"objects": {"attempts", "next_attempt_at", "receipt_at"}}  # what the centre is not told


@pytest.mark.parametrize("table", BY_TABLE)
async def test_schema_is_what_the_entities_say(catalog: Catalog, table: str) -> None:
    """Each table has the columns of its entity, of their types, and NULL where the entity allows it."""
    rows = await catalog._connection.execute_fetchall(f"PRAGMA table_info({table})")
    found = {row["name"]: (row["type"], not row["notnull"]) for row in rows if row["name"] not in LOCAL.get(table, ())}
    entity = BY_TABLE[table]
    expected = {each.name: (SQL_TYPES[each.kind], each.nullable) for each in entity.columns}
    assert found == expected
    assert [row["name"] for row in rows if row["pk"]] == [entity.key]


def test_triggers_are_not_stale() -> None:
    """The checked-in triggers are those that follow from the entities: else run `make generate`."""
    assert generate.TRIGGERS_FILE.read_text() == generate.triggers()


async def test_facts_come_back_as_they_went_in(catalog: Catalog) -> None:
    """A row read back makes the value that was stored, whatever its columns hold."""
    facts = [replace(ENDED, tags='["ü"]', consent='{"mode": "announced"}'), SEGMENT, SPAN, message(1, "電話\n"), USAGE]
    await catalog.write_all(put(*facts))
    for fact, entity in zip(facts, ENTITIES, strict=False):
        ids = json.dumps([getattr(fact, entity.key)])
        (row,) = await catalog.fetch(f"changes.{entity.table}", ids=ids)
        assert entity.value(row) == fact


# Groups.


async def test_waiting_writers_are_committed_together(catalog: Catalog) -> None:
    """Who waits at the same time shares one transaction, and so one fsync."""
    seen: list[str] = []
    await catalog._connection.set_trace_callback(seen.append)
    await asyncio.gather(*(catalog.write_all(put(message(n))) for n in range(1, 101)))
    assert seen.count("COMMIT") <= 2
    assert len(await texts(catalog)) == 100


async def test_group_is_bounded(catalog: Catalog) -> None:
    """No transaction grows past its limit: other processes get their turn."""
    seen: list[str] = []
    await catalog._connection.set_trace_callback(seen.append)
    await asyncio.gather(*(catalog.write_all(put(message(n))) for n in range(1, 601)))
    assert seen.count("COMMIT") >= 3


REFUSED: list[Any] = [
    [("objects.owe", {"object_id": "o", "call_id": "c", "state": "no such state", "pcm_sha256": ""})],
    [("put.spans", {**asdict(SPAN), "kind": None})],
    [("no.such.statement", {})],
    [("agent_state.put", {"name": "value is missing"})],
    [("agent_state.put", {"name": "list", "value": ["not", "text"]})],
    [("agent_state.put", {"name": "surrogate", "value": "\ud800"})],
    [("objects.take_receipt", {"object_id": "o", "now": 2**70})],
]


@pytest.mark.parametrize("refused", REFUSED, ids=range(len(REFUSED)))
async def test_refused_unit_hurts_no_neighbour(catalog: Catalog, refused: list[Any]) -> None:
    """In one group a unit that SQLite cannot take fails alone and entirely; those beside it are committed."""
    before, bad, after = await asyncio.gather(
        catalog.write_all(put(message(1))),
        catalog.write_all([*put(message(2)), *refused]),
        catalog.write_all(put(message(3))),
        return_exceptions=True,
    )
    assert (before, after) == ([1], [1])
    assert isinstance(bad, EdgeRecorderError)
    assert not isinstance(bad, CatalogBusy | CatalogBroken)
    assert [seq for seq, _, _ in await changes(catalog)] == [1, 2]
    await catalog.write_all(put(message(4)))
    assert [seq for seq, _, _ in await changes(catalog)] == [1, 2, 3]


@pytest.mark.parametrize(("name", "values"), [("no.such", {}), ("calls.get", {}), ("calls.get", {"call_id": "\ud800"})])
async def test_refused_read_hurts_no_neighbour(catalog: Catalog, name: str, values: dict[str, Any]) -> None:
    """A read that cannot be made fails alone, and the catalog goes on."""
    good, bad = await asyncio.gather(catalog.fetch("calls.all"), catalog.fetch(name, **values), return_exceptions=True)
    assert good == []
    assert isinstance(bad, EdgeRecorderError)
    assert await catalog.fetch("calls.all") == []


async def test_full_disk_is_busy_for_all_and_passes(catalog: Catalog) -> None:
    """With no room nothing of the group is committed, each writer is told that it may try again, and later it works."""
    pages = await pragma(catalog, "page_count")
    await pragma(catalog, f"max_page_count = {pages}")
    big = "x" * 100_000
    answers = await asyncio.gather(
        *(catalog.write_all(put(message(n, big))) for n in (1, 2, 3)), return_exceptions=True
    )
    assert [type(each) for each in answers] == [CatalogBusy] * 3
    assert await texts(catalog) == []
    await pragma(catalog, "max_page_count = 1000000")
    await catalog.write_all(put(message(1, big)))
    assert [seq for seq, _, _ in await changes(catalog)] == [1]


async def test_cancelled_writer_changes_nothing(catalog: Catalog) -> None:
    """Who stops waiting does not undo the work: its rows are committed, and so are its neighbours'."""
    tasks = [asyncio.create_task(catalog.write_all(put(message(n)))) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert len(await texts(catalog)) == 3


async def test_reads_see_what_is_committed_only(catalog: Catalog) -> None:
    """A read between writes sees those before it, and nothing of a unit that was refused."""
    bad = [*put(message(2)), ("no.such.statement", {})]
    _, first, _, second, _, third = await asyncio.gather(
        catalog.write_all(put(message(1, "a"))),
        texts(catalog),
        catalog.write_all(bad),
        texts(catalog),
        catalog.write_all(put(message(3, "c"))),
        texts(catalog),
        return_exceptions=True,
    )
    assert (first, second, third) == (["a"], ["a"], ["a", "c"])


async def test_closed_catalog_takes_nothing(data_dir: Path) -> None:
    """What was queued before the close is committed; what comes after it is refused at once."""
    catalog = await Catalog.open(data_dir, create_for=spool.prepare(data_dir))
    queued = asyncio.create_task(catalog.write_all(put(message(1))))
    await asyncio.sleep(0)
    closing = asyncio.create_task(catalog.close())
    await asyncio.sleep(0)
    with pytest.raises(EdgeRecorderError, match="closed"):
        await catalog.write_all(put(message(2)))
    await closing
    assert await queued == [1]
    await catalog.start()
    assert await texts(catalog) == ["Hello"]
    await catalog.close()


# The change log.


async def test_each_fact_makes_one_change(catalog: Catalog) -> None:
    """Every row that the centre is owed is in the change log once, a segment's object beside it."""
    await catalog.write_all(put(CALL, SEGMENT, SPAN, message(1), USAGE))
    assert [(entity, key) for _, entity, key in await changes(catalog)] == [
        ("calls", CALL.call_id),
        ("segments", SEGMENT.segment_id),
        ("objects", SEGMENT.segment_id),
        ("spans", SPAN.span_id),
        ("messages", message(1).message_id),
        ("usage", USAGE.usage_id),
    ]


async def test_equal_row_makes_no_change(catalog: Catalog) -> None:
    """A journal replayed over rows that are there owes the centre nothing, and takes no custody back."""
    facts = put(CALL, SEGMENT, SPAN, message(1), USAGE)
    await catalog.write_all(facts)
    before = await changes(catalog)
    await catalog.write_all(list(storing([CALL, SEGMENT, SPAN, message(1), USAGE], custody=Custody.UNKNOWN)))
    assert await changes(catalog) == before


OTHER = {"text": "'other'", "json": "'[9]'", "exact": "'9.5'", "integer": "7", "instant": "7", "real": "0.75"}


@pytest.mark.parametrize(
    ("entity", "column"),
    [(entity.table, column.name) for entity in ENTITIES for column in entity.columns if column.name != entity.key],
)
async def test_column_makes_a_change_when_watched(catalog: Catalog, entity: str, column: str) -> None:
    """An update of a watched column makes exactly one change; of a quiet one, or of one to its own value, none."""
    await catalog.write_all(put(CALL, SEGMENT, SPAN, message(1), USAGE))
    before = len(await changes(catalog))
    kind = next(each.kind for each in BY_TABLE[entity].columns if each.name == column)
    value = {"calls.state": "'ended'", "objects.state": "'stored'"}.get(f"{entity}.{column}")
    value = value or (f"1 - {column}" if kind == "boolean" else OTHER[kind])
    await catalog._connection.execute(f"UPDATE {entity} SET {column} = {value}")
    expected = 0 if column in BY_TABLE[entity].quiet else 1
    assert len(await changes(catalog)) == before + expected
    await catalog._connection.execute(f"UPDATE {entity} SET {column} = {column}")
    assert len(await changes(catalog)) == before + expected


@pytest.mark.parametrize("column", sorted(LOCAL["objects"]))
async def test_local_column_makes_no_change(catalog: Catalog, column: str) -> None:
    """What is the agent's own, as a receipt, owes the centre nothing: else the agent would never rest."""
    await catalog.write_all(put(SEGMENT))
    before = await changes(catalog)
    await catalog._connection.execute(f"UPDATE objects SET {column} = 17")
    assert await changes(catalog) == before


@pytest.mark.parametrize("terminal", [CallState.ENDED, CallState.INTERRUPTED])
@pytest.mark.parametrize("then", list(CallState))
async def test_terminal_state_is_never_left(catalog: Catalog, terminal: CallState, then: CallState) -> None:
    """A call that ended, or was interrupted, stays as it then was, whatever is replayed over it."""
    closed = replace(ENDED, state=terminal)
    await catalog.write_all(put(CALL))
    await catalog.write_all(put(closed))
    before = await changes(catalog)
    assert await catalog.write_all(put(replace(CALL, state=then, agent="another"))) == [0]
    (row,) = await catalog.fetch("calls.get", call_id=CALL.call_id)
    assert BY_TABLE["calls"].value(row) == closed
    assert await changes(catalog) == before


unit = st.lists(st.tuples(st.integers(1, 6), st.sampled_from("abc")), min_size=1, max_size=4)


@examples(max_examples=25)
@given(units=st.lists(st.tuples(unit, st.booleans(), st.booleans()), max_size=12))
def test_changes_are_dense_whatever_is_refused(
    tmp_path_factory: pytest.TempPathFactory, units: list[tuple[list[tuple[int, str]], bool, bool]]
) -> None:
    """However units are refused or cancelled, `seq` has no holes, and there is a change for each change of a row."""

    async def work() -> None:
        catalog = await Catalog.open(tmp_path_factory.mktemp("data"), create_for="node")
        rows: dict[int, str] = {}
        expected = 0
        tasks = []
        for writes, refused, cancelled in units:
            statements = put(*(message(n, text) for n, text in writes)) + [("no.such", {})] * refused
            task = asyncio.create_task(catalog.write_all(statements))
            tasks.append((task, cancelled))
            for n, text in writes if not refused else []:
                expected += rows.get(n) != text
                rows[n] = text
        await asyncio.sleep(0)
        for task, cancelled in tasks:
            if cancelled:
                task.cancel()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert [seq for seq, _, _ in await changes(catalog)] == list(range(1, expected + 1))
        assert await texts(catalog) == [rows[n] for n in sorted(rows)]
        await catalog.close()

    asyncio.run(work())


# Owed work.


async def test_owed_move_takes_effect_once(catalog: Catalog) -> None:
    """A move that another made first is refused, and changes nothing."""
    await catalog.write_all(put(SEGMENT))
    owed = OwedWork(catalog, "objects")
    failure = Failure(error_class="ITEM", last_error="refused")
    await owed.defer(SEGMENT.segment_id, failure, tried=0, attempts=1, until=99)
    with pytest.raises(StaleTransition):
        await owed.defer(SEGMENT.segment_id, failure, tried=0, attempts=1, until=99)
    await owed.quarantine(SEGMENT.segment_id, failure, tried=1)
    with pytest.raises(StaleTransition):
        await owed.quarantine(SEGMENT.segment_id, failure, tried=2)
    (row,) = await catalog.fetch("objects.problems", limit=9)
    assert (row["state"], row["attempts"]) == ("quarantined", 2)


# Many processes.

SCRIPT = """
import asyncio, sys
from pathlib import Path
from edge_recorder import spool
from edge_recorder.catalog.connection import Catalog
async def main():
    catalog = await Catalog.open(Path(sys.argv[1]), create_for="node")
    for n in range(20):
        await catalog.write("agent_state.put", name=f"{sys.argv[2]}/{n}", value="1")
    print(catalog.epoch)
    await catalog.close()
sys.stdin.readline()
asyncio.run(main())
"""


def test_processes_at_once_make_one_catalog(data_dir: Path) -> None:
    """Several processes that open a fresh data_dir at once share one catalog, and each one's rows are in it."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(data_dir), str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    for each in started:
        each.stdin.write("go\n")
        each.stdin.flush()
    epochs = {each.communicate(timeout=50)[0] for each in started}
    assert [each.returncode for each in started] == [0, 0, 0]
    assert len(epochs) == 1

    async def count() -> int:
        catalog = await Catalog.open(data_dir)
        ((found,),) = await catalog._connection.execute_fetchall("SELECT count(*) FROM agent_state")
        await catalog.close()
        return found

    assert asyncio.run(count()) == 60
    assert not migrate.request_path(catalog_path(data_dir)).exists()


class Alone(threading.Thread):
    """Who wants to be alone, as a migration does; `has_it` once it is, until `leave`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.has_it, self.leave, self.path = threading.Event(), threading.Event(), path

    def run(self) -> None:
        with (
            migrate._locked(migrate.request_path(self.path), threading.Event(), remove=True),
            migrate._locked(migrate.guard_path(self.path), threading.Event()),
        ):
            self.has_it.set()
            self.leave.wait(30)


@pytest.mark.parametrize("idle", [True, False])
async def test_catalog_lets_another_be_alone(catalog: Catalog, monkeypatch: pytest.MonkeyPatch, *, idle: bool) -> None:
    """Whether idle or busy, an open catalog lets go for who asks to be alone, and loses no row."""
    monkeypatch.setattr(connection_module, "LOOK_INTERVAL", 0.02 if idle else 60)
    await catalog.write_all(put(message(1)))
    alone = Alone(catalog.path)
    alone.start()
    writes = []
    try:
        for n in range(2, 2000):
            if await asyncio.to_thread(alone.has_it.wait, 20 if idle else 0.005):
                break
            writes.append(asyncio.create_task(catalog.write_all(put(message(n)))))
        assert alone.has_it.is_set()
        late = asyncio.create_task(catalog.write_all(put(message(5000, "late"))))
        done, _ = await asyncio.wait([late], timeout=0.1)
        assert not done
    finally:
        alone.leave.set()
    assert await late == [1]
    assert set(map(tuple, await asyncio.gather(*writes))) <= {(1,)}
    assert len(await texts(catalog)) == len(writes) + 2
    await asyncio.to_thread(alone.join)
    assert not migrate.request_path(catalog.path).exists()


@pytest.fixture
def alone(data_dir: Path) -> Iterator[Alone]:
    """Another who has the catalog alone, and keeps it."""
    made = Alone(catalog_path(data_dir))
    made.start()
    assert made.has_it.wait(10)
    yield made
    made.leave.set()
    made.join()


async def test_who_keeps_the_catalog_alone_is_not_waited_for_without_limit(
    data_dir: Path, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped while it held the catalog alone makes it busy; once it goes on, the catalog opens."""
    monkeypatch.setattr(migrate, "PATIENCE", 0.05)
    with pytest.raises(CatalogBusy, match="another process holds") as caught:
        await Catalog.open(data_dir, create_for="node")
    assert caught.value.fix
    alone.leave.set()
    await asyncio.to_thread(alone.join)
    opened = await Catalog.open(data_dir, create_for="node")
    await opened.close()


async def test_who_does_not_let_go_is_asked_again_only_later(
    catalog: Catalog, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that another holds up does not keep asking to be alone, which would keep all others from writing."""
    monkeypatch.setattr(migrate, "PATIENCE", 0.05)
    monkeypatch.setattr(connection_module, "LOOK_INTERVAL", 60)
    with monkeypatch.context() as newer:
        newer.setattr(migrate, "SCHEMA_VERSION", 2)
        migrating = Catalog(data_dir, create_for="node")
        with pytest.raises(CatalogBusy, match="another process holds"):
            await migrating.start()
        newer.setattr(migrate, "bring_up_to_date", None)
        with pytest.raises(CatalogBusy, match="must be migrated"):
            await migrating.start()
    assert not migrate.request_path(catalog.path).exists()
    assert await catalog.write_all(put(message(1))) == [1]


async def test_cancelled_start_holds_nothing(data_dir: Path, alone: Alone) -> None:
    """A start that is cancelled while another has the catalog alone takes the guard neither then nor later."""
    catalog = Catalog(data_dir, create_for="node")
    starting = asyncio.create_task(catalog.start())
    await waiting_for(catalog.path)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    alone.leave.set()
    await asyncio.to_thread(alone.join)
    await asyncio.get_running_loop().shutdown_default_executor()  # its thread has come to its end
    spool.let_go(migrate._lock(migrate.guard_path(catalog.path), fcntl.LOCK_EX, AT_ONCE))


async def test_close_does_not_wait_for_who_is_alone(data_dir: Path, alone: Alone) -> None:
    """Closing ends the wait of a start at once."""
    catalog = Catalog(data_dir, create_for="node")
    starting = asyncio.create_task(catalog.start())
    await waiting_for(catalog.path)
    await catalog.close()
    with pytest.raises(CatalogBusy):
        await asyncio.wait_for(starting, migrate.PATIENCE / 2)


async def waiting_for(path: Path) -> None:
    """Wait until a second one has opened the request of who is alone."""
    request = migrate.request_path(path)
    while len([fd for fd in Path("/proc/self/fd").iterdir() if is_link_to(fd, request)]) < 2:
        await asyncio.sleep(0)


def test_thread_undoes_what_nobody_waits_for_any_more() -> None:
    """What a thread made for a coroutine that was cancelled meanwhile is undone, whichever came first."""
    undone: list[int] = []
    late = connection_module._Made(lambda: 1, undo=undone.append)
    late._leave()
    late._run()
    early = connection_module._Made(lambda: 2, undo=undone.append)
    early._run()
    early._leave()
    assert undone == [1, 2]


async def test_writer_waits_for_another_connection(catalog: Catalog) -> None:
    """While another connection has a transaction open, a commit waits for its end, and then follows."""
    other = sqlite.connect(catalog.path, create=False)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(catalog.write_all(put(message(1))))
    done, _ = await asyncio.wait([writing], timeout=0.1)
    assert not done
    other.execute("ROLLBACK")
    other.close()
    assert await writing == [1]


async def test_catalog_that_stays_locked_is_busy(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that another leaves open for too long makes the catalog busy, and nothing is changed."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.02)
    other = sqlite.connect(catalog.path, create=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CatalogBusy, match="locked"):
        await catalog.write_all(put(message(1)))
    other.close()
    assert await texts(catalog) == []


async def test_closed_catalog_leaves_no_thread(data_dir: Path) -> None:
    """The connection's thread is over when `close` returns: a process may fork then."""
    before = set(threading.enumerate())
    catalog = await Catalog.open(data_dir, create_for="node")
    await catalog.write_all(put(message(1)))
    await catalog.close()
    assert not [thread for thread in set(threading.enumerate()) - before if "asyncio" not in thread.name]


async def test_request_of_a_crashed_process_is_removed(catalog: Catalog) -> None:
    """A request whose maker died holds nobody up, and does not stay."""
    migrate.request_path(catalog.path).touch()
    await catalog.write_all(put(message(1)))
    assert await texts(catalog) == ["Hello"]
    assert not migrate.request_path(catalog.path).exists()


async def test_waiting_for_one_request_does_not_remove_the_next(data_dir: Path) -> None:
    """Who waited for a requester that is done leaves the request of the next one as it is."""
    path = catalog_path(data_dir)
    request = migrate.request_path(path)
    first = migrate._lock(request, fcntl.LOCK_EX, threading.Event())
    waiting = asyncio.create_task(asyncio.to_thread(migrate.wait_for_requester, path, threading.Event()))
    while len([fd for fd in Path("/proc/self/fd").iterdir() if is_link_to(fd, request)]) < 2:
        await asyncio.sleep(0)  # until the waiting thread has opened it
    request.unlink()
    second = migrate._lock(request, fcntl.LOCK_EX, threading.Event())
    spool.let_go(first)
    await waiting
    assert request.exists()
    spool.let_go(second)


def is_link_to(fd: Path, path: Path) -> bool:
    try:
        return fd.readlink() == path
    except FileNotFoundError:  # closed meanwhile
        return False


@pytest.mark.parametrize("how", ["renamed", "deleted"])
async def test_catalog_that_moved_is_noticed(catalog: Catalog, how: str) -> None:
    """A catalog that was set aside or deleted under an open connection gets no more rows: a new one does."""
    await catalog.write_all(put(message(1, "old")))
    epoch = catalog.epoch
    for file in catalog.path.parent.glob("catalog.db*"):
        if how == "renamed":
            file.rename(file.with_name("aside" + file.name.removeprefix("catalog")))
        else:
            file.unlink()
    await catalog.write_all(put(message(2, "new")))
    assert catalog.epoch != epoch
    assert await texts(catalog) == ["new"]


async def test_deleted_catalog_is_not_made_by_its_readers(catalog: Catalog, data_dir: Path) -> None:
    """Who was not to make a catalog does not make one when it goes away: it says so, each time, until there is one."""
    reader = await Catalog.open(data_dir)
    for file in data_dir.glob("catalog.db*"):
        file.unlink()
    for _ in range(2):
        with pytest.raises(NoCatalog):
            await reader.fetch("calls.all")
    await catalog.write_all(put(CALL))
    assert len(await reader.fetch("calls.all")) == 1
    await reader.close()


# Which SQLite, and whose file.


async def test_no_catalog_is_said_so(data_dir: Path) -> None:
    """Where there is none, and none is to be made, none is made; an empty file is none."""
    with pytest.raises(NoCatalog) as caught:
        await Catalog.open(data_dir)
    assert caught.value.exit_code == Exit.NO_CATALOG
    assert not catalog_path(data_dir).exists()
    catalog_path(data_dir).touch()
    with pytest.raises(NoCatalog):
        await Catalog.open(data_dir)
    made = await Catalog.open(data_dir, create_for="node")
    assert made.node_id == "node"
    await made.close()


async def test_old_sqlite_makes_a_catalog_without_wal(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a SQLite that can corrupt WAL a new catalog is DELETE and EXTRA, and stays so with a newer SQLite."""
    monkeypatch.setattr(sqlite, "WAL_IS_SAFE_SINCE", (99,))
    old = await Catalog.open(data_dir, create_for="node")
    assert (await pragma(old, "journal_mode"), await pragma(old, "synchronous")) == ("delete", 3)
    await old.write_all(put(CALL))
    monkeypatch.undo()
    new = await Catalog.open(data_dir)
    assert (await pragma(new, "journal_mode"), await pragma(new, "synchronous")) == ("delete", 3)
    await old.write_all(put(ENDED))
    assert (await new.fetch("calls.get", call_id=CALL.call_id))[0]["state"] == "ended"
    await new.close()
    await old.close()


async def test_old_sqlite_refuses_a_wal_catalog(
    catalog: Catalog, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a SQLite that can corrupt WAL an existing WAL catalog is refused, and is not converted."""
    await catalog.write_all(put(CALL))
    monkeypatch.setattr(sqlite, "WAL_IS_SAFE_SINCE", (99,))
    with pytest.raises(UnsafeRuntime) as caught:
        await Catalog.open(data_dir, create_for="node")
    assert caught.value.exit_code == 14
    assert caught.value.fix
    monkeypatch.undo()
    assert await pragma(catalog, "journal_mode") == "wal"
    assert len(await catalog.fetch("calls.all")) == 1


@pytest.mark.parametrize(
    ("version", "safe"),
    [((3, 51, 3), True), ((3, 53, 0), True), ((3, 51, 2), False), ((3, 40, 1), False), ((4,), True)],
)
def test_wal_is_safe_since(version: tuple[int, ...], *, safe: bool) -> None:
    """WAL is used from SQLite 3.51.3 on."""
    assert sqlite.wal_is_safe(version) == safe


async def test_older_catalog_is_migrated(catalog: Catalog, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer release brings the catalog up to date, and keeps its rows and epoch, while another has it open."""
    monkeypatch.setattr(connection_module, "LOOK_INTERVAL", 0.02)
    await catalog.write_all(put(CALL))
    epoch = catalog.epoch
    steps = [(2, "ALTER TABLE calls ADD COLUMN mood TEXT;"), (3, "CREATE TABLE moods (mood TEXT) STRICT;")]
    with monkeypatch.context() as newer:
        newer.setattr(migrate, "SCHEMA_VERSION", 3)
        newer.setattr(migrate, "_steps", lambda *, after: [step for step in steps if step[0] > after])
        opened = await Catalog.open(data_dir, create_for="node")
        assert opened.epoch == epoch
        assert await pragma(opened, "user_version") == 3
        (row,) = await opened.fetch("calls.get", call_id=CALL.call_id)
        assert row["mood"] is None
        assert await catalog.fetch("calls.all")
        await opened.close()
        await catalog.close()


async def test_newer_catalog_takes_facts_of_an_older_release(catalog: Catalog, data_dir: Path) -> None:
    """Where a newer release only added, an older recorder goes on; who reads and moves work must know all of it."""
    await catalog._connection.execute("ALTER TABLE calls ADD COLUMN mood TEXT")
    await catalog._connection.execute(f"PRAGMA user_version = {migrate.SCHEMA_VERSION + 1}")
    recorder = await Catalog.open(data_dir, create_for="node")
    assert await recorder.write_all(put(CALL)) == [1]
    await recorder.close()
    with pytest.raises(UnsafeRuntime, match=f"schema {migrate.SCHEMA_VERSION + 1}") as caught:
        await Catalog.open(data_dir)
    assert "Upgrade" in caught.value.fix


async def test_catalog_of_the_next_major_version_is_refused(catalog: Catalog, data_dir: Path) -> None:
    """What a release changed that no longer only adds is written by nobody who does not know it."""
    await catalog._connection.execute(f"PRAGMA user_version = {migrate.MAJOR}")
    with pytest.raises(UnsafeRuntime, match=f"schema {migrate.MAJOR}"):
        await Catalog.open(data_dir, create_for="node")


async def test_migration_that_fails_changes_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that breaks off in the middle leaves the version before it, and nothing of itself."""
    made = await Catalog.open(data_dir, create_for="node")
    await made.close()
    with monkeypatch.context() as newer:
        newer.setattr(migrate, "SCHEMA_VERSION", 2)
        script = "CREATE TABLE moods (mood TEXT) STRICT; SELECT no_such_function();"
        newer.setattr(migrate, "_steps", lambda *, after: [(2, script)] if after < 2 else [])
        with pytest.raises(EdgeRecorderError, match="no_such_function"):
            await Catalog.open(data_dir, create_for="node")
    again = await Catalog.open(data_dir)
    assert await pragma(again, "user_version") == 1
    assert await again._connection.execute_fetchall("SELECT name FROM sqlite_master WHERE name = 'moods'") == []
    await again.close()


def test_migration_files_are_numbered_up_to_the_schema(tmp_path: Path) -> None:
    """Each version after the first has one step, in order; steps that were made already are left out."""
    for name in ("0003_b.sql", "0002_a.sql", "notes.txt"):
        (tmp_path / name).write_text(name)
    assert migrate._steps(after=1, folder=tmp_path) == [(2, "0002_a.sql"), (3, "0003_b.sql")]
    assert migrate._steps(after=2, folder=tmp_path) == [(3, "0003_b.sql")]
    assert [number for number, _ in migrate._steps(after=1)] == list(range(2, migrate.SCHEMA_VERSION + 1))


async def test_another_database_is_refused(data_dir: Path) -> None:
    """A database that is not a catalog is refused, and left as it is."""
    connection = sqlite.driver.connect(catalog_path(data_dir))
    connection.execute("CREATE TABLE somebody (else_ TEXT)")
    connection.commit()
    connection.close()
    before = catalog_path(data_dir).read_bytes()
    with pytest.raises(CatalogBroken, match="not a catalog") as caught:
        await Catalog.open(data_dir, create_for="node")
    assert caught.value.exit_code == Exit.INTEGRITY
    assert catalog_path(data_dir).read_bytes() == before


@pytest.mark.parametrize("create_for", [None, "node"])
async def test_file_that_is_no_database_is_broken(data_dir: Path, create_for: str | None) -> None:
    """A file of other bytes is a broken catalog, with the command that mends it."""
    catalog_path(data_dir).write_bytes(os.urandom(8192))
    with pytest.raises(CatalogBroken) as caught:
        await Catalog.open(data_dir, create_for=create_for)
    assert "repair local" in caught.value.fix


async def test_damaged_page_is_broken(data_dir: Path) -> None:
    """A catalog with a damaged page says so when that page is read, and does not answer wrongly."""
    made = await Catalog.open(data_dir, create_for="node")
    await made.write_all(put(*(message(n, "x" * 3000) for n in range(1, 200))))
    await made.close()
    size = catalog_path(data_dir).stat().st_size
    with catalog_path(data_dir).open("r+b") as file:
        file.seek(4096 * 2)
        file.write(b"\xa5" * (size - 4096 * 2))
    with pytest.raises(CatalogBroken):
        await read_all(data_dir)


async def read_all(data_dir: Path) -> None:
    catalog = await Catalog.open(data_dir)
    try:
        await catalog.fetch("messages.of_call", call_id=CALL.call_id)
    finally:
        await catalog.close()


async def test_read_only_disk_is_busy_for_all_and_passes(catalog: Catalog) -> None:
    """A disk that was remounted read-only refuses no row for good: it waits like one that is full."""
    await catalog._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(CatalogBusy, match="readonly"):
        await catalog.write_all(put(message(1)))
    await catalog._connection.execute("PRAGMA query_only = 0")
    assert await catalog.write_all(put(message(1))) == [1]


async def test_owner_outlives_a_moment_without_threads(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no thread is to be had to open the catalog again, every caller hears so, and later it is opened."""

    async def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(connection_module, "GROUP_LIMIT", 1)
    migrate.request_path(catalog.path).touch()
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "to_thread", refuse)
        waiting = [catalog.write_all(put(message(n))) for n in range(3)]
        answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert [type(answer) for answer in answers] == [CatalogBusy] * 3
    assert await catalog.write_all(put(message(1))) == [1]


def test_forked_child_does_not_keep_the_guard(data_dir: Path) -> None:
    """Who wants to be alone waits for no child that a killed process forked while its catalog was open."""
    program = """
import asyncio, os, signal, sys
from pathlib import Path
from edge_recorder.catalog.connection import Catalog

async def main():
    await Catalog.open(Path(sys.argv[1]), create_for="node")
    if os.fork() == 0:
        os.write(1, b"forked\\n")
        sys.stdin.read()
        os._exit(0)
    os.wait()

asyncio.run(main())
"""
    command = [sys.executable, "-W", "ignore", "-c", program, str(data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"forked\n"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        guard = migrate._lock(migrate.guard_path(catalog_path(data_dir)), fcntl.LOCK_EX, AT_ONCE)
        spool.let_go(guard)
        process.stdin.close()


async def test_nothing_is_left_open_after_a_failure(data_dir: Path) -> None:
    """A catalog that could not be opened holds neither the guard nor a thread."""
    catalog_path(data_dir).write_bytes(os.urandom(8192))
    with pytest.raises(CatalogBroken):
        await Catalog.open(data_dir)
    guard = migrate._lock(migrate.guard_path(catalog_path(data_dir)), fcntl.LOCK_EX, AT_ONCE)
    spool.let_go(guard)
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()

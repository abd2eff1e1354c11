"""What goes wrong on the way, with real servers: lost replies, killed agents, poison, wrong credentials."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import time_ns

import psycopg
import pytest
from nodes import WRITER
from psycopg.conninfo import make_conninfo
from sites import SEGMENTS, START, Site
from taps import Tap

from edge_recorder import spool
from edge_recorder.catalog.connection import Catalog, catalog_path
from edge_recorder.catalog.entities import BY_TABLE
from edge_recorder.errors import Exit
from edge_recorder.model import Message, message_id, new_call_id
from sync import agent
from sync.leg import TRIES, Leg
from sync.push import Push, Step

PROGRAM = Path(sys.executable).with_name("edge-recorder")
LONG = 1000.0  # seconds; more than any wait


def once(sign: bytes) -> Callable[[bytes], bool]:
    """Return what hears `sign`, the first time alone."""
    heard = threading.Event()

    def hear(data: bytes) -> bool:
        if sign not in data or heard.is_set():
            return False
        heard.set()
        return True

    return hear


def central_by_way_of(site: Site, port: int) -> None:
    store, central = site.settings.store, site.settings.central
    assert store is not None
    assert central is not None
    site.node.configure(
        store={"url": store.url, "endpoint_url": store.endpoint_url},
        central={"dsn": make_conninfo(central.dsn.get_secret_value(), port=port)},
    )


@pytest.mark.parametrize("said", [b"recorder.hello", b"recorder.heartbeat", b"recorder.ingest"])
def test_lost_reply_is_asked_for(site: Site, said: bytes) -> None:
    """What the centre did though its reply was lost is not done again, and the same pass goes on."""
    site.call()
    with Tap(site.before_postgres.port, once(said)) as tap:
        central_by_way_of(site, tap.port)
        assert site.sync().exit_code == Exit.DONE
    site.check_complete()
    (last,) = site.node.fetch("changes.last")
    assert site.query("select cursor from recorder.epochs") == [(last["seq"],)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("when", "stride"), [("before it is sent", 3), ("at its reply", 1)])
def test_killed_agent_leaves_nothing_undone_or_doubled(site: Site, when: str, stride: int) -> None:
    """An agent killed at any message of a pass leaves what the next pass completes, once."""
    for calls, step in enumerate(itertools.count(1, stride), 1):
        site.call(seed=10 * step)
        finished = run_killed(site, step, after=when == "at its reply")
        site.clock.at = time_ns() // 1000
        assert site.sync().exit_code == Exit.DONE
        site.check_complete(calls=calls)
        if finished:
            break
    assert step > SEGMENTS


def run_killed(site: Site, step: int, *, after: bool) -> bool:
    """Run a pass that is killed at message `step` to S3 or Postgres, or at its reply. True: it ended by itself."""
    store = site.settings.store
    assert store is not None
    messages = itertools.count(1)
    process: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        process[0].kill()

    def hear(_: bytes) -> bool:
        due = next(messages) == step
        if due and not after:
            kill()
            raise ConnectionResetError
        return due

    with Tap(site.before_s3.port, hear, kill) as s3, Tap(site.before_postgres.port, hear, kill) as postgres:
        environment = {
            "EDGE_RECORDER_STORE__ENDPOINT_URL": s3.endpoint_url,
            "EDGE_RECORDER_CENTRAL__DSN": make_conninfo(dsn_of(site), port=postgres.port),
        }
        command = [str(PROGRAM), "--config", str(site.node.config), "sync"]
        process.append(subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL))
        return process[0].wait() != -signal.SIGKILL


def dsn_of(site: Site) -> str:
    central = site.settings.central
    assert central is not None
    return central.dsn.get_secret_value()


def test_poison_file_holds_up_nobody(site: Site) -> None:
    """A file that is gone and one that is damaged are set aside after five tries; the others have long arrived."""
    call = site.call()
    call.path("user", 1).unlink()
    damaged = call.path("assistant", 2)
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"\0\0")
    for tries in range(1, TRIES + 1):
        assert site.sync().exit_code == Exit.PARTIAL
        assert len(site.bucket.keys()) == SEGMENTS - 2
        problems = site.node.fetch("objects.problems", limit=9)
        assert [(row["attempts"], row["error_class"]) for row in problems] == [(tries, "item")] * 2
        assert all("edge-recorder" in row["last_error"] for row in problems)  # the fix
        site.clock.go(LONG)
    assert site.states() == {"stored": SEGMENTS - 2, "quarantined": 2}
    kinds = site.query("select kind, problem from recorder.problems where kind = 'object quarantined'")
    assert len(kinds) == 2
    assert "2 set aside" in site.sync().upload.reason
    assert damaged.exists()


def test_call_that_cannot_be_recovered_holds_up_nobody(site: Site) -> None:
    """Where a dead recorder left what the disk does not give back, the rest is synced, and the failure is told."""
    call = site.call()
    dead = call.directory.with_name(new_call_id(START))
    (dead / spool.JOURNAL).mkdir(parents=True)  # reading it fails, as with a bad sector
    (site.node.data_dir / "writers" / f"{WRITER}.lock").touch()
    done = site.node.run("sync")
    assert (done.code, "calls of recorders that died are still open" in done.out) == (Exit.PARTIAL, True)
    site.check_complete()
    checked = site.node.run("status", "--check")
    assert (checked.code, "unhealthy: calls of recorders that died" in checked.out) == (Exit.UNHEALTHY, True)
    (dead / spool.JOURNAL).rmdir()
    dead.rmdir()
    assert site.node.run("sync").code == Exit.DONE
    assert site.node.run("status", "--check").code == Exit.DONE


def test_rebuilt_catalog_is_told_as_a_new_epoch(site: Site) -> None:
    """A catalog that is lost and rebuilt between two passes brings the centre up to date, and stores nothing twice."""
    site.call()
    site.sync()
    stored = site.bucket.keys()
    rebuild(site)
    assert site.sync().exit_code == Exit.DONE
    assert site.bucket.keys() == stored
    assert site.query("select distinct generation from recorder.objects") == [(2,)]
    site.check_complete()


def test_catalog_rebuilt_under_a_running_agent(site: Site) -> None:
    """An agent whose catalog is replaced begins anew with the centre, and a later pass finds nothing amiss."""
    site.call()
    site.sync()

    async def replaced() -> None:
        catalog = await Catalog.open(site.node.data_dir)
        leg = push_leg(site, catalog)
        await leg.drain()
        await asyncio.to_thread(rebuild, site)
        await asyncio.to_thread(site.call, seed=5)
        await leg.drain()
        assert (leg.breaker.reason, leg.breaker.failures) == ("", 0)
        await leg.aclose()
        await catalog.close()

    asyncio.run(replaced())
    assert site.query("select generation, superseded_at is null from recorder.epochs order by 1") == [
        (1, False),
        (2, True),
    ]
    assert site.sync().exit_code == Exit.DONE
    site.check_complete(calls=2)


def push_leg(site: Site, catalog: Catalog) -> Leg[Step]:
    central = site.settings.central
    assert central is not None
    push = Push(catalog, site.node.data_dir, agent.introduction(site.settings, central))
    return Leg("push", push, catalog, now=site.clock, random=site.random, max_wait=900.0)


def rebuild(site: Site) -> None:
    """Lose the catalog, and bring it back from the spool under a new epoch."""
    path = catalog_path(site.node.data_dir)
    for file in path.parent.glob("catalog.db*"):
        file.unlink()
    assert site.node.run("repair", "local").code == Exit.DONE


def test_item_waits_between_its_tries(site: Site) -> None:
    """An item that failed by itself is not tried again before its time."""
    call = site.call()
    call.path("user", 1).unlink()
    site.random = lambda: 1.0
    site.sync()
    site.sync()
    (problem,) = site.node.fetch("objects.problems", limit=9)
    assert problem["attempts"] == 1


def put(site: Site, messages: Sequence[Message]) -> None:
    site.node.write_all([("put.messages", asdict(message)) for message in messages])


def test_poison_row_holds_up_nobody(site: Site) -> None:
    """Rows that Postgres refuses are set aside at the centre, as text; the others arrive."""
    call = site.call()
    texts = [f"text {n}" for n in range(40)]
    texts[7], texts[23] = "nul \0", "\0" * 9
    first = Message(message_id="", call_id=call.id, n=0, role="user", text="", created_at=START)
    put(site, [replace(first, message_id=message_id(call.id, n), n=n, text=texts[n]) for n in range(2, 40)])
    assert site.sync().exit_code == Exit.PARTIAL
    texts_there = {text for (text,) in site.query("select text from recorder.messages")}
    refused = [raw for (raw,) in site.query("select raw from recorder.quarantine order by seq")]
    assert len(texts_there) + len(refused) == 39
    assert {"text 6", "text 8", "text 39"} <= texts_there
    assert any("nul" in raw for raw in refused)
    assert site.query("select state, audio_owed from recorder.call_list") == [("ended", 0)]
    again = site.sync()
    assert (again.refused, again.push.owed, again.exit_code) == (len(refused), 0, Exit.PARTIAL)


def poison(site: Site) -> None:
    call = site.call()
    put(
        site,
        [Message(message_id=message_id(call.id, 2), call_id=call.id, n=2, role="user", text="\0", created_at=START)],
    )


def test_refused_row_is_never_silent(site: Site) -> None:
    """A row in the centre's quarantine is said by `sync`, `status` and `verify`, again and again."""
    poison(site)
    for _ in range(2):
        done = site.node.run("sync")
        assert (done.code, "1 rows were refused by the centre" in done.out) == (Exit.PARTIAL, True)
        assert "has arrived" not in done.out
    checked = site.node.run("status", "--check")
    assert (checked.code, "unhealthy: 1 rows were refused" in checked.out) == (Exit.UNHEALTHY, True)
    verified = site.node.run("verify")
    assert (verified.code, "the centre refused" in verified.out) == (Exit.PARTIAL, True)


def test_lost_reply_does_not_lose_a_refusal(site: Site) -> None:
    """A row whose refusal was taken, but whose reply was lost, is counted once."""
    poison(site)
    with Tap(site.before_postgres.port, once(b"recorder.ingest_refused")) as tap:
        central_by_way_of(site, tap.port)
        site.sync()
        assert site.sync().refused == len(site.query("select raw from recorder.quarantine")) == 1


def test_large_rows_travel_in_small_batches(site: Site) -> None:
    """Rows of megabytes arrive, each batch within its bound."""
    call = site.call()
    first = Message(message_id="", call_id=call.id, n=0, role="user", text="", created_at=START)
    put(site, [replace(first, message_id=message_id(call.id, n), n=n, text="x" * 1_500_000) for n in range(2, 8)])
    assert site.sync().exit_code == Exit.DONE
    assert site.query("select count(*) from recorder.messages where length(text) = 1500000") == [(6,)]


def test_wrong_password_names_what_to_do(site: Site) -> None:
    """When all that is owed waits for credentials, the exit code says so; corrected, it heals without a requeue."""
    site.call()
    right = dsn_of(site)
    store = site.settings.store
    assert store is not None
    stores = {"url": store.url, "endpoint_url": store.endpoint_url}
    site.node.configure(store=stores, central={"dsn": make_conninfo(right, password="wrong")})
    summary = site.sync()
    assert (summary.exit_code, summary.push.error_class, summary.upload.owed) == (Exit.ACCESS, "auth", 0)
    assert "password" in summary.push.reason
    site.node.configure(store=stores, central={"dsn": right})
    assert site.sync().exit_code == Exit.DONE
    site.check_complete()


def test_restored_centre_stops_the_push_and_not_the_audio(site: Site) -> None:
    """A centre that knows another history is not written to; the audio goes on, and the reason is shown."""
    site.call()
    site.sync()
    site.call(seed=3)
    with_owner(site, "update recorder.epochs set token = 'of another history', cursor = 1")
    summary = site.sync()
    assert (summary.exit_code, summary.upload.owed, summary.push.error_class) == (Exit.PARTIAL, 0, "conflict")
    assert "epoch" in summary.push.reason
    assert site.query("select count(*) from recorder.calls") == [(1,)]


def with_owner(site: Site, statement: str) -> None:
    site.query(statement + " returning 1")


def test_object_begun_elsewhere_stays_there(site: Site) -> None:
    """An object that was placed in one store is not put into another when the setting changes; those after it are."""
    site.call()
    site.call(seed=3)
    site.before_s3.close()
    site.sync()
    store = site.settings.store
    assert store is not None
    directory = site.node.data_dir.with_name("nas")
    directory.mkdir()
    site.node.configure(store={"url": f"file://{directory}"})
    summary = site.sync()
    begun = summary.upload.owed
    assert (summary.exit_code, summary.upload.arrived) == (Exit.PARTIAL, 2 * SEGMENTS - begun)
    assert 0 < begun < 2 * SEGMENTS
    assert f"set [store] url to {store.url}" in summary.upload.reason
    checked = site.node.run("status", "--check")
    assert f"{begun} objects belong in another store: {store.url}" in checked.out
    assert checked.code == Exit.UNHEALTHY
    site.before_s3.open()
    site.node.configure(store={"url": store.url, "endpoint_url": store.endpoint_url})
    assert site.sync().exit_code == Exit.DONE
    assert len(site.bucket.keys()) == begun


@pytest.mark.parametrize("wrong", ["s3://no-such-bucket/pre", "file:///nowhere/at/all"])
def test_mistyped_store_binds_nothing(site: Site, wrong: str) -> None:
    """A store that is not there keeps no object to itself: the corrected setting gets them all."""
    site.call()
    store, dsn = site.settings.store, dsn_of(site)
    assert store is not None
    site.node.configure(store={"url": wrong, "endpoint_url": store.endpoint_url})
    assert site.sync().upload.owed == SEGMENTS
    site.node.configure(store={"url": store.url, "endpoint_url": store.endpoint_url}, central={"dsn": dsn})
    assert site.sync().exit_code == Exit.DONE
    site.check_complete()


def test_rebuilt_object_stays_unknown_in_a_mistyped_store(site: Site) -> None:
    """An object of which only the file is known is asked for again, after a store that is not there did not have it."""
    site.call()
    site.sync()
    stored = site.bucket.keys()
    rebuild(site)
    store, dsn = site.settings.store, dsn_of(site)
    assert store is not None
    site.node.configure(store={"url": "s3://no-such-bucket", "endpoint_url": store.endpoint_url})
    site.sync()
    assert site.states() == {"unknown": SEGMENTS}
    site.node.configure(
        store={"url": store.url, "endpoint_url": store.endpoint_url, "format": "wav"}, central={"dsn": dsn}
    )
    assert site.sync().exit_code == Exit.DONE
    assert site.bucket.keys() == stored


def test_incompatible_centre_is_no_matter_of_access(site: Site) -> None:
    """A centre without a schema is told apart from one that refuses the login: exit 3, not 12."""
    site.call()
    with psycopg.connect(site.centre_dsn) as connection:
        connection.execute("drop schema recorder cascade")
    summary = site.sync()
    assert (summary.exit_code, summary.push.access) == (Exit.PARTIAL, False)
    assert "central migrate" in summary.push.reason


def test_clone_is_no_matter_of_access(site: Site) -> None:
    """A catalog that another one has superseded is owed work that no credentials help: exit 3, not 12."""
    site.call()
    site.sync()
    with_owner(site, "update recorder.epochs set superseded_at = now()")
    site.call(seed=3)
    assert site.sync().exit_code == Exit.PARTIAL


def test_rebuilt_object_is_asked_for_first(site: Site) -> None:
    """An object of which only the file is known is found in the store, though by now another format is set."""
    call = site.call()
    site.sync()
    stored = site.bucket.keys()
    rows = [each | {"state": "unknown"} for each in site.node.fetch("changes.objects", ids=ids(call.segments))]
    blank = {"store_url": None, "key": None, "format": None, "file_bytes": None, "file_sha256": None, "stored_at": None}
    known = {column.name for column in BY_TABLE["objects"].columns}
    site.node.write_all([("put.objects", {k: v for k, v in (row | blank).items() if k in known}) for row in rows])
    store = site.settings.store
    assert store is not None
    site.node.configure(
        store={"url": store.url, "endpoint_url": store.endpoint_url, "format": "wav"}, central={"dsn": dsn_of(site)}
    )
    assert site.sync().exit_code == Exit.DONE
    assert site.bucket.keys() == stored
    assert site.states() == {"stored": SEGMENTS}
    assert {row["format"] for row in site.node.fetch("changes.objects", ids=ids(call.segments))} == {"flac"}


def ids(segments: Sequence[object]) -> str:
    quoted = ",".join(f'"{segment.segment_id}"' for segment in segments)  # type: ignore[attr-defined]
    return f"[{quoted}]"

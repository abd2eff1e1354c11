"""What the five functions promise: once, in order, durable, and only to those who may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from centre import START, Node, call, encoded, ended, gap, message, segment, stored, usage, without
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_recorder.model import CallState, Custody
from sync.central import admin
from sync.central.client import Central, Health, payload
from sync.central.errors import Diverged, IncompatibleCentre, Superseded
from sync.retry import ErrorClass, SyncError

Query = Callable[..., list[tuple[Any, ...]]]


async def test_facts_arrive_as_they_are(node: Node, query: Query) -> None:
    """Each kind of value reaches its column exactly: microseconds, decimals, JSON, booleans, nulls."""
    it = call(tags='["vip"]', metadata='{"a": {"b": 1}}', tracks='{"user": 8000}', consent=None)
    await node.push(it, segment(it.call_id), gap(it.call_id), message(it.call_id), usage(it.call_id))
    assert query("select tags, metadata -> 'a', consent, recording, started_at from recorder.calls")[0][:4] == (
        ["vip"],
        {"b": 1},
        None,
        True,
    )
    assert query("select (extract(epoch from started_at) * 1000000)::bigint from recorder.calls") == [(START,)]
    assert query("select quantity::text, cost::text from recorder.usage") == [("412.000000000000000001", "0.10")]
    assert query("select peak_dbfs, rms_dbfs, node_id::text, generation, change_seq from recorder.segments") == [
        (-3.5, None, node.node_id, 1, 2)
    ]


async def test_booleans_may_be_sqlites(node: Node, query: Query) -> None:
    """0 and 1, as SQLite writes booleans, are taken for what they are."""
    await node.send_raw(
        "t1", encoded(1, call()).replace('"recording":true', '"recording":1').replace('"partial":false', '"partial":0')
    )
    assert query("select recording, partial from recorder.calls") == [(True, False)]


async def test_same_token_is_applied_once(node: Node, query: Query) -> None:
    """A batch whose answer was lost is sent again and answered alike, and nothing is applied twice."""
    it = segment(call().call_id)
    first = await node.send("t1", it, stored(it))
    received = query("select received_at from recorder.objects")
    again = await node.send("t1", it, stored(it))
    assert first == again
    assert query("select received_at from recorder.objects") == received
    assert again.receipts == {it.segment_id}


@pytest.mark.parametrize(
    ("previous", "first_seq", "last_seq"),
    [("other", 2, 2), (None, 2, 2), ("t1", 1, 1), ("t1", 3, 3), ("t1", 2, 1)],
    ids=["wrong predecessor", "no predecessor", "applied already", "a hole", "backwards"],
)
async def test_what_does_not_follow_has_diverged(
    node: Node, query: Query, previous: str | None, first_seq: int, last_seq: int
) -> None:
    """A batch that does not continue what the centre holds is refused whole."""
    it = call()
    await node.send("t1", it)
    with pytest.raises(Diverged):
        await node.central.ingest(
            node_id=node.node_id,
            epoch=node.epoch,
            previous=previous,
            token="t2",
            first_seq=first_seq,
            last_seq=last_seq,
            rows=encoded(first_seq, ended(it)),
        )
    assert query("select state from recorder.calls") == [("live",)]
    assert query("select token, cursor from recorder.epochs") == [("t1", 1)]


async def test_token_is_not_its_own_predecessor(node: Node) -> None:
    """A batch that repeats a token over other changes is refused: its random token is no more than a repetition."""
    await node.send("t1", call())
    node.token, node.cursor = "t1", 1
    with pytest.raises(Diverged):
        await node.send("t1", call())


async def test_unknown_epoch_has_diverged(node: Node) -> None:
    """A centre that lost this epoch (restored to before it) says so to ingest and to heartbeat."""
    node.epoch = str(uuid4())
    with pytest.raises(Diverged):
        await node.push(call())
    with pytest.raises(Diverged):
        await node.central.heartbeat(node_id=node.node_id, epoch=node.epoch, health=Health(clock=START), next_within=60)


async def test_hello_is_idempotent(node: Node) -> None:
    """The same epoch again gets the same generation, and where it stands."""
    await node.push(call(), message(call().call_id))
    token = node.token
    again = await node.hello(node.epoch)
    assert (again.generation, again.cursor, again.token) == (1, 2, token)


async def test_new_epoch_supersedes(node: Node, query: Query) -> None:
    """A new epoch gets the next generation and begins at 0; the old one is refused everywhere and shown as a clone."""
    it = call()
    await node.push(it)
    old = Node(node.central, node_id=node.node_id)
    old.epoch, old.token, old.cursor = node.epoch, node.token, node.cursor
    welcome = await node.hello(reason="catalog rebuilt")
    assert (welcome.generation, welcome.cursor, welcome.token) == (2, 0, None)
    await node.push(it)

    health = Health(clock=START)
    with pytest.raises(Superseded):
        await old.push(ended(it))
    with pytest.raises(Superseded):
        await old.hello(old.epoch)
    with pytest.raises(Superseded):
        await old.central.heartbeat(node_id=old.node_id, epoch=old.epoch, health=health, next_within=60)
    assert query("select generation, state from recorder.calls") == [(2, "live")]
    assert query("select kind, item, problem from recorder.problems") == [
        ("clone refused", old.epoch, "A superseded catalog of this node spoke again, 3 times")
    ]
    assert query("select generation, epoch_reason, clone_refused_at is not null from recorder.node_health") == [
        (2, "catalog rebuilt", True)
    ]


async def test_epochs_of_one_node_at_once(node: Node, fleet_dsn: str, query: Query) -> None:
    """Hellos of several new epochs at once are numbered, and one of them is current."""
    async with Central(fleet_dsn) as other:
        nodes = [Node(each, node_id=node.node_id) for each in (node.central, other)]
        await asyncio.gather(*(each.hello() for each in nodes))
    assert query("select generation from recorder.epochs order by 1") == [(1,), (2,), (3,)]
    assert query("select count(*) from recorder.epochs where superseded_at is null") == [(1,)]


async def test_reseed_brings_every_row_once(node: Node, query: Query) -> None:
    """A new epoch may send everything again, in any order: each row is there once, in its later state."""
    it = call()
    await node.push(it, segment(it.call_id), message(it.call_id, text="before"))
    await node.hello()
    await node.push(message(it.call_id, text="after"), segment(it.call_id), it)
    assert query("select text, generation, change_seq from recorder.messages") == [("after", 2, 1)]
    assert query("select count(*) from recorder.segments") == [(1,)]


async def test_one_row_twice_in_a_batch(node: Node, query: Query) -> None:
    """Of two states of one row in a batch the later is kept."""
    it = call()
    await node.push(it, ended(it))
    assert query("select state, change_seq from recorder.calls") == [("ended", 2)]


async def test_another_nodes_row_stays(node: Node, query: Query) -> None:
    """A node cannot change what another node brought, and gets no receipt for it."""
    it = segment(call().call_id)
    await node.push(it, stored(it))
    other = Node(node.central)
    await other.hello()
    answer = await other.push(replace(it, track="forged"), stored(it, key="elsewhere"))
    assert answer.receipts == frozenset()
    assert query("select track from recorder.segments") == [("user",)]
    assert await other.central.holds(node_id=other.node_id, object_ids=[it.segment_id]) == []


@pytest.mark.parametrize("end", [CallState.ENDED, CallState.INTERRUPTED])
async def test_ended_call_stays_ended(node: Node, query: Query, end: CallState) -> None:
    """A call that ended keeps its end; the rest of it may still be corrected."""
    it = call()
    await node.push(ended(it, state=end))
    await node.push(replace(it, agent="corrected"))
    await node.push(ended(it, state=CallState.INTERRUPTED, end_reason="recorder died", duration_s=1.0, ended_at=START))
    assert query("select state, end_reason, duration_s, ended_at - started_at = '60 s' from recorder.calls") == [
        (end, "hangup", 60.0, True)
    ]
    await node.push(replace(it, agent="corrected"))
    assert query("select agent from recorder.calls") == [("corrected",)]


async def test_partial_call_only_fills_what_is_null(node: Node, query: Query) -> None:
    """A call rebuilt without its journal takes nothing back, fills what is not known, and ends a call that lived."""
    it = call(direction=None, tags='["vip"]')
    await node.push(it)
    rebuilt = replace(
        ended(it),
        state=CallState.INTERRUPTED,
        partial=True,
        direction="inbound",
        agent="x",
        tags="[]",
        external_id=None,
    )
    await node.push(rebuilt)
    assert query("select state, partial, direction, agent, tags, external_id, duration_s from recorder.calls") == [
        ("interrupted", False, "inbound", "sales", ["vip"], "CA1", 60.0)
    ]


async def test_full_call_replaces_a_partial_one(node: Node, query: Query) -> None:
    """What a journal says after all replaces the guess, its end too, and is then final."""
    it = call()
    guess = replace(
        ended(it), state=CallState.INTERRUPTED, end_reason=None, duration_s=40.0, partial=True, external_id=None
    )
    await node.push(guess)
    await node.push(replace(guess, state=CallState.ENDED, end_reason="guess"))
    assert query("select state, end_reason, duration_s, partial from recorder.calls") == [
        ("interrupted", "guess", 40.0, True)
    ]
    await node.push(ended(it))
    assert query("select state, end_reason, duration_s, partial, external_id from recorder.calls") == [
        ("ended", "hangup", 60.0, False, "CA1")
    ]


async def test_rebuilt_object_takes_nothing_back(node: Node, query: Query) -> None:
    """An object that a rebuilt catalog does not know yet stays stored at the centre, where it is."""
    it = segment(call().call_id)
    held = stored(it)
    await node.push(it, held)
    await node.hello()
    answer = await node.push(
        replace(held, state=Custody.UNKNOWN, store_url="file:///other", stored_at=None, last_error="x")
    )
    assert answer.receipts == frozenset()
    assert query("select state, store_url, last_error from recorder.objects") == [("stored", "s3://bucket/prefix", "x")]


async def test_receipts_are_for_stored_objects_only(node: Node) -> None:
    """Only objects that the centre holds as stored, with the node's own hashes, get a receipt."""
    call_id = call().call_id
    one, two = segment(call_id), segment(call_id, seq=2)
    answer = await node.push(one, two, stored(one), stored(two, state=Custody.PENDING))
    assert answer.receipts == {one.segment_id}
    assert answer.erased == frozenset()


async def test_holds(node: Node, query: Query) -> None:
    """`holds` names the stored ones among the objects asked for, with all that says which object it is."""
    call_id = call().call_id
    one, two = segment(call_id), segment(call_id, seq=2)
    await node.push(stored(one), stored(two, state=Custody.PENDING))
    (held,) = await node.central.holds(node_id=node.node_id, object_ids=[one.segment_id, two.segment_id, str(uuid4())])
    expected = stored(one)
    assert (held.object_id, held.store_url, held.key) == (one.segment_id, expected.store_url, expected.key)
    assert (held.file_sha256, held.pcm_sha256, held.file_bytes) == (expected.file_sha256, expected.pcm_sha256, 54_321)


async def test_what_a_newer_node_knows_is_kept(node: Node, query: Query) -> None:
    """Columns unknown here go to `extra`."""
    await node.send_raw("t1", encoded(1, call()).replace('"agent":', '"mood":"good","agent":'))
    assert query("select extra, agent from recorder.calls") == [({"mood": "good"}, "sales")]


async def test_unknown_entity_stops_the_push(node: Node) -> None:
    """A kind of fact unknown here is not dropped: the centre says that it is too old."""
    with pytest.raises(IncompatibleCentre, match="central migrate"):
        await node.send_raw("t1", payload([(1, "smells", {"smell_id": "x"})]))


async def test_rows_outside_of_their_batch(node: Node, query: Query) -> None:
    """A row that claims a change of another batch is refused."""
    with pytest.raises(SyncError) as caught:
        await node.send_raw("t1", encoded(2, call()))
    assert caught.value.error_class is ErrorClass.ITEM
    assert query("select cursor from recorder.epochs") == [(0,)]


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (encoded(1, message(call().call_id, text="a\0b")), "22P05"),
        (encoded(1, message(call().call_id, text="\ud800")), "22P02"),
        (encoded(1, call(metadata="{")), "22P02"),
        (encoded(1, call(started_at=2**63 - 1)), "22008"),
        (without(encoded(1, call()), "started_at"), "23502"),
        (encoded(1, usage(call().call_id, quantity="many")), "22P02"),
        (encoded(1, call(external_id="".join(map(chr, range(0x4E00, 0x4E00 + 5000))))), "54000"),
    ],
    ids=["NUL", "lone surrogate", "bad JSON", "no such time", "missing column", "no number", "too long for an index"],
)
async def test_poison_row_is_refused_then_set_aside(node: Node, query: Query, rows: str, code: str) -> None:
    """A row that Postgres cannot hold is refused as an item, kept as text, and the ones behind it arrive."""
    with pytest.raises(SyncError) as caught:
        await node.send_raw("t1", rows)
    refusal = caught.value
    assert (refusal.error_class, refusal.code) == (ErrorClass.ITEM, code)

    for _ in range(2):  # the answer to the first is lost
        answer = await node.central.ingest_refused(
            node_id=node.node_id,
            epoch=node.epoch,
            previous=None,
            token="t2",
            first_seq=1,
            last_seq=1,
            raw=rows,
            refusal=refusal,
        )
        assert (answer.cursor, answer.receipts) == (1, frozenset())
    node.token, node.cursor = "t2", 1
    await node.push(call())

    assert query("select seq, raw, sqlstate from recorder.quarantine") == [(1, rows, code)]
    assert query("select kind, item from recorder.problems") == [("row refused", f"{node.epoch}/1")]
    assert query("select count(*) from recorder.calls") == [(1,)]


async def test_refused_row_follows_like_any_other(node: Node) -> None:
    """Setting a row aside needs its predecessor's token too."""
    with pytest.raises(Diverged):
        await node.central.ingest_refused(
            node_id=node.node_id,
            epoch=node.epoch,
            previous="x",
            token="t",
            first_seq=1,
            last_seq=1,
            raw="a\0\ud800",
            refusal=SyncError("no\0", error_class=ErrorClass.ITEM, code="22000"),
        )


async def test_heartbeat(node: Node, query: Query) -> None:
    """A heartbeat shows the node's backlog, and answers where the centre stands and what time it is."""
    await node.push(call())
    (now,) = query("select (extract(epoch from now()) * 1000000)::bigint")[0]
    health = Health(
        clock=now - 3_600_000_000,
        owed_changes=7,
        owed_objects=5,
        owed_bytes=4096,
        quarantined=1,
        oldest_unsynced_s=90.0,
        disk_free_bytes=10**12,
        live_calls=2,
    )
    pulse = await node.central.heartbeat(node_id=node.node_id, epoch=node.epoch, health=health, next_within=30)
    assert (pulse.cursor, pulse.token, pulse.orders) == (1, node.token, ())
    assert pulse.server_time >= now
    row = query(
        "select stale, owed_changes, owed_objects, owed_bytes, quarantined, live_calls, disk_free_bytes,"
        " oldest_unsynced_s between 90 and 150, skew_s between -3700 and -3590, next_within = '30 s',"
        " fleet, label, cursor"
        " from recorder.node_health"
    )
    assert row == [(False, 7, 5, 4096, 1, 2, 10**12, True, True, True, "north", "edge-1", 1)]


async def test_stale_after_two_missed_heartbeats(node: Node, query: Query, execute: Callable[..., int]) -> None:
    """A node is stale when it missed two heartbeats, not one; its oldest unsynced item ages while it is silent."""
    health = Health(clock=START, oldest_unsynced_s=10.0)
    await node.central.heartbeat(node_id=node.node_id, epoch=node.epoch, health=health, next_within=60)
    stale = "select stale, oldest_unsynced_s > 60 from recorder.node_health"
    back = (
        "update recorder.nodes set last_seen = last_seen - %(ago)s::interval,"
        " oldest_unsynced_at = oldest_unsynced_at - %(ago)s::interval"
    )
    execute(back, ago="90 s")
    assert query(stale) == [(False, True)]
    execute(back, ago="60 s")
    assert query(stale) == [(True, True)]
    assert query("select kind, node_label from recorder.problems") == [("node stale", "edge-1")]


async def test_node_touches_no_table(node: Node, fleet_dsn: str) -> None:
    """The login of a fleet may call the five functions; every table, view and other function is closed to it."""
    closed = [
        "select * from recorder.calls",
        "select * from recorder.nodes",
        "select * from recorder.call_list",
        "insert into recorder.fleets values ('x', 'y')",
        "delete from recorder.quarantine",
        "select recorder.take(gen_random_uuid(), 1, 1, 1, '[]')",
        "select recorder.make_partitions('2040-01-01')",
        "select recorder.lock_node(gen_random_uuid())",
        "create table recorder.mine ()",
        "set role recorder_reader",
    ]
    async with await psycopg.AsyncConnection.connect(fleet_dsn, autocommit=True) as connection:
        for statement in closed:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute(statement.encode())


async def test_node_of_another_fleet_is_refused(node: Node, centre_dsn: str, query: Query) -> None:
    """A login can neither enrol, push, ask nor report for a node of another fleet."""
    held = segment(call().call_id)
    await node.push(stored(held))
    async with Central(admin.add_fleet(centre_dsn, "south").dsn) as other:
        forger = Node(other, node_id=node.node_id)
        forger.epoch, forger.token, forger.cursor = node.epoch, node.token, node.cursor
        health = Health(clock=START)
        for attempt in (
            forger.hello,
            lambda: forger.push(call()),
            lambda: other.heartbeat(node_id=node.node_id, epoch=node.epoch, health=health, next_within=9),
        ):
            with pytest.raises(SyncError, match="another fleet") as caught:
                await attempt()
            assert caught.value.error_class is ErrorClass.AUTH
        assert await other.holds(node_id=node.node_id, object_ids=[held.segment_id]) == []
    assert query("select count(*) from recorder.epochs") == [(1,)]


async def test_commits_are_durable_whatever_the_session_says(node: Node, fleet_dsn: str) -> None:
    """Within ingest's transaction synchronous_commit is on until the commit, and a stronger setting stays."""
    ask = "select recorder.ingest_refused(%s, %s, null, 't', 1, 1, '', '', '')"
    for before, after in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        async with await psycopg.AsyncConnection.connect(
            fleet_dsn, options=f"-c synchronous_commit={before}"
        ) as connection:
            await connection.execute(ask, (node.node_id, node.epoch))
            assert await (await connection.execute("show synchronous_commit")).fetchone() == (after,)
            await connection.rollback()


FACTS = st.sampled_from(["live", "ended", "segment", "message"])
STEPS = st.lists(
    st.tuples(
        st.lists(st.tuples(FACTS, st.integers(1, 3)), max_size=5),
        st.sampled_from(["heard", "reply lost", "never arrived", "reseed"]),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_any_history_leaves_each_row_once(central: Central, query: Query, steps: list[tuple[Any, str]]) -> None:
    """Lost requests, lost answers and reseeds in any order leave each row once, in its latest state."""
    node = Node(central)
    await node.hello()
    it = call()
    latest: dict[str, Any] = {}
    for n, (kinds, fate) in enumerate(steps):
        facts = [_fact(kind, it, k, n) for kind, k in kinds] or [it]
        if fate == "reseed":
            await node.hello()
            facts = [*latest.values(), *facts]
        token = str(uuid4())
        if fate == "reply lost":
            await node.send(token, *facts)
        welcome = await node.hello(node.epoch) if fate in {"reply lost", "never arrived"} else None
        if welcome is None or welcome.token != token:  # not applied: send it again, or for the first time
            await node.send(token, *facts)
        node.token, node.cursor = token, (await node.hello(node.epoch)).cursor
        for fact in {_id(fact): fact for fact in facts}.values():  # of two states in one batch the later counts
            _keep(latest, fact)
    mine = (it.call_id,)
    expected_call = [(fact.state,) for key, fact in latest.items() if key == it.call_id]
    assert query("select state from recorder.calls where call_id = %s", *mine) == expected_call
    expected = sorted((fact.n, fact.text) for fact in latest.values() if hasattr(fact, "role"))
    assert query("select n, text from recorder.messages where call_id = %s order by n", *mine) == expected
    expected = sorted((fact.seq, fact.frames) for fact in latest.values() if hasattr(fact, "frames"))
    assert query("select seq, frames from recorder.segments where call_id = %s order by seq", *mine) == expected
    assert query("select cursor from recorder.epochs where epoch = %s", node.epoch) == [(node.cursor,)]


def _fact(kind: str, it: Any, k: int, n: int) -> Any:
    if kind == "message":
        return message(it.call_id, k, text=f"said at step {n}")
    if kind == "segment":
        return segment(it.call_id, seq=k, frames=1000 + n)
    return ended(it) if kind == "ended" else it


def _id(fact: Any) -> str:
    return getattr(fact, "segment_id", None) or getattr(fact, "message_id", None) or fact.call_id


def _keep(latest: dict[str, Any], fact: Any) -> None:
    """What the centre is to hold: the later state, but an ended call stays so."""
    if getattr(latest.get(_id(fact)), "state", "") != CallState.ENDED:
        latest[_id(fact)] = fact

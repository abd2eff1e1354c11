"""What the dashboard reads, and who sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from centre import Node, call, ended, gap, message, segment, stored, usage
from psycopg import conninfo

from edge_recorder.model import Custody
from sync.central import admin
from sync.central.client import Central

Query = Callable[..., list[tuple[Any, ...]]]


async def test_call_list_shows_what_is_owed(node: Node, query: Query) -> None:
    """A call is listed from its first row, with its segments known, stored and owed, and its longest track's length."""
    it = call()
    listed = "select state, segments_known, segments_stored, audio_owed, seconds_recorded, gaps from recorder.call_list"
    await node.push(it)
    assert query(listed) == [("live", 0, 0, 0, 0.0, 0)]

    user = [segment(it.call_id, seq=1), segment(it.call_id, seq=2)]
    assistant = segment(it.call_id, "assistant", frames=240_000, rate=24_000)
    await node.push(
        *user, assistant, stored(user[0], state=Custody.PENDING), stored(user[1]), gap(it.call_id), ended(it)
    )
    assert query(listed) == [("ended", 3, 1, 2, 20.0, 1)]

    await node.push(stored(user[0]), stored(assistant))
    assert query(listed) == [("ended", 3, 3, 0, 20.0, 1)]
    assert query("select external_id, tenant, fleet, node_label, duration_s from recorder.call_list") == [
        ("CA1", "acme", "north", "edge-1", 60.0)
    ]


async def test_call_detail_has_everything_of_a_call(node: Node, query: Query) -> None:
    """One row holds the call with its segments and where they are, spans, messages, usage and objects."""
    it = call()
    one = segment(it.call_id)
    await node.push(it, segment(it.call_id, seq=2), one, stored(one), gap(it.call_id), usage(it.call_id))
    await node.push(
        message(it.call_id, 2, start_s=3.0, text="second"), message(it.call_id, 1, start_s=1.0, text="first")
    )
    ((segments, spans, messages, used, objects),) = query(
        "select segments, spans, messages, usage, objects from recorder.call_detail where call_id = %s", it.call_id
    )
    assert [(each["seq"], each["state"]) for each in segments] == [(1, "stored"), (2, None)]
    assert segments[0]["key"] == objects[0]["key"] == stored(one).key
    assert [(each["kind"], each["reason"]) for each in spans] == [("gap", "disk full")]
    assert [each["text"] for each in messages] == ["first", "second"]
    assert [each["unit"] for each in used] == ["character"]


async def test_call_is_what_its_own_node_says(node: Node, centre_dsn: str, query: Query) -> None:
    """What a node of another fleet sends under a call's id is seen in no view of that call, nor on its bill."""
    it = call()
    await node.push(it, segment(it.call_id))
    async with Central(admin.add_fleet(centre_dsn, "south").dsn) as central:
        other = Node(central)
        await other.hello()
        await other.push(
            stored(segment(it.call_id)),
            message(it.call_id),
            usage(it.call_id),
            gap(it.call_id),
            segment(it.call_id, seq=2),
        )
    listed = "select segments_known, segments_stored, gaps from recorder.call_list"
    assert query(listed) == [(1, 0, 0)]
    shown = "select jsonb_array_length(segments), spans, messages, usage, objects from recorder.call_detail"
    assert query(shown) == [(1, [], [], [], [])]
    for view in ("gaps", "usage_by_day"):
        assert query(f"select count(*) from recorder.{view}") == [(0,)]


async def test_call_detail_of_an_empty_call(node: Node, query: Query) -> None:
    """A call without anything has empty arrays, not nulls."""
    await node.push(call())
    assert query("select segments, spans, messages, usage, objects from recorder.call_detail") == [([], [], [], [], [])]


async def test_quarantined_object_is_a_problem(node: Node, query: Query) -> None:
    """An object that needs a person is shown with its error and what to do."""
    it = call()
    one = segment(it.call_id)
    await node.push(it, one, stored(one, state=Custody.QUARANTINED, last_error="the file changed"))
    ((kind, call_id, item, problem, fix),) = query(
        "select kind, call_id::text, item, problem, fix from recorder.problems"
    )
    assert (kind, call_id, item, problem) == ("object quarantined", it.call_id, one.segment_id, "the file changed")
    assert "edge-recorder retry" in fix


async def test_gaps(node: Node, query: Query) -> None:
    """What could not be recorded is listed with its reason; other spans are not."""
    it = call()
    await node.push(it, gap(it.call_id), gap(it.call_id, 2, kind="late"))
    assert query("select external_id, track, seconds, reason from recorder.gaps") == [("CA1", "user", 1.5, "disk full")]


async def test_usage_by_day(node: Node, query: Query) -> None:
    """Usage is summed exactly, by day, tenant, agent, kind and unit."""
    one, two = call(), call()
    await node.push(
        one, two, usage(one.call_id, 1), usage(one.call_id, 2), usage(two.call_id, quantity="0.5", cost=None)
    )
    assert query(
        "select day::text, tenant, agent, kind, quantity::text, cost::text, calls from recorder.usage_by_day"
    ) == [("2026-09-21", "acme", "sales", "tts", "824.500000000000000002", "0.20", 2)]


VIEWS = ["call_list", "call_detail", "node_health", "problems", "gaps", "usage_by_day"]


@pytest.mark.parametrize("view", VIEWS)
async def test_reader_sees_its_tenants_only(
    node: Node, reader_dsn: str, execute: Callable[..., int], query: Query, view: str
) -> None:
    """A reader sees nothing, then the tenants that it was given, then everything; in each view alike."""
    for tenant in ("acme", "bravo", None):
        each = Node(node.central, tenant=tenant)
        await each.hello()
        it = call(tenant=tenant)
        broken = segment(it.call_id)
        await each.push(it, gap(it.call_id), usage(it.call_id), stored(broken, state=Custody.QUARANTINED))
    execute("delete from recorder.epochs where node_id = %s", node.node_id)
    execute("delete from recorder.nodes where node_id = %s", node.node_id)
    role = conninfo.conninfo_to_dict(reader_dsn)["user"]

    def seen() -> set[str | None]:
        with psycopg.connect(reader_dsn, autocommit=True) as connection:
            return {tenant for (tenant,) in connection.execute(f"select tenant from recorder.{view}".encode())}

    assert seen() == set()
    execute("insert into recorder.readers values (%s, 'acme')", role)
    assert seen() == {"acme"}
    execute("insert into recorder.readers values (%s, 'bravo')", role)
    assert seen() == {"acme", "bravo"}
    execute("insert into recorder.readers values (%s, null)", role)
    assert seen() == {"acme", "bravo", None}
    assert {tenant for (tenant,) in query(f"select tenant from recorder.{view}")} == {"acme", "bravo", None}


async def test_reader_touches_no_table(reader_dsn: str) -> None:
    """A reader has the views and nothing else."""
    with psycopg.connect(reader_dsn, autocommit=True) as connection:
        for statement in (
            b"select * from recorder.calls",
            b"select * from recorder.readers",
            b"delete from recorder.fleets",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)

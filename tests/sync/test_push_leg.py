"""The push leg against a real centre, with requests and replies lost at random."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from sites import SEGMENTS, START, Site
from taps import Tap

from edge_recorder.catalog.connection import Catalog
from edge_recorder.model import Call, Message, message_id, new_call_id
from sync.central.client import Central, Held, Ingested
from sync.central.errors import Diverged
from sync.leg import Leg
from sync.push import Introduction, Place, Push, Step

STEPS = st.lists(st.sampled_from(["write", "change", "push", "lose reply", "lose request", "die"]), max_size=12)


class Model:
    """A node's facts as they should be at the centre, and the faults on the way."""

    def __init__(self, catalog: Catalog, call: Call) -> None:
        self.catalog = catalog
        self.call = call
        self.messages: dict[str, str] = {}
        self.fault = ""

    async def write(self, text: str, n: int) -> None:
        message = Message(message_id=message_id(self.call.call_id, n), call_id=self.call.call_id, n=n, role="user",
                          text=text, created_at=START)  # fmt: skip
        await self.catalog.write("put.messages", **asdict(message))
        self.messages[message.message_id] = text

    def hear(self, data: bytes) -> bool:
        if b"recorder.ingest" not in data or not self.fault:
            return False
        fault, self.fault = self.fault, ""
        if fault == "lose request":
            raise ConnectionResetError
        return True


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
@pytest.mark.timeout(180)
def test_centre_follows_whatever_is_lost(site: Site, steps: list[str]) -> None:
    """After any mix of changes, lost requests, lost replies and deaths, one undisturbed push makes the centre equal."""
    asyncio.run(follow(site, steps))


async def follow(site: Site, steps: list[str]) -> None:
    catalog = await Catalog.open(site.node.data_dir)
    call = Call(call_id=new_call_id(START), started_at=START)
    model = Model(catalog, call)
    await catalog.write("put.calls", **asdict(call))
    with Tap(site.before_postgres.port, model.hear) as tap:
        leg = leg_of(site, catalog, tap.port)
        for n, step in enumerate([*steps, "push", "push"], 1):
            if step == "write":
                await model.write(f"new {n}", n)
            elif step == "change" and model.messages:
                await model.write(f"changed {n}", 1 + (n % len(model.messages)))
            elif step in {"lose reply", "lose request"}:
                model.fault = step
            elif step == "die":
                await leg.aclose()
                leg = leg_of(site, catalog, tap.port)
            elif step == "push":
                await leg.drain(probe=True)
        await leg.aclose()
    there = site.query("select message_id::text, text from recorder.messages where call_id = %s", call.call_id)
    last = await catalog.fetch_one("changes.last")
    await catalog.close()
    assert last is not None
    assert dict(there) == model.messages
    assert site.query("select cursor from recorder.epochs") == [(last["seq"],)]
    assert leg.breaker.failures == 0


def leg_of(site: Site, catalog: Catalog, port: int) -> Leg[Step]:
    central = site.settings.central
    assert central is not None
    me = Introduction(dsn=make_conninfo(central.dsn.get_secret_value(), port=port), timeout=10, batch_rows=2,
                      heartbeat=60, label="a node", tenant=None, software="1")  # fmt: skip
    push = Push(catalog, site.node.data_dir, me)
    return Leg("push", push, catalog, now=site.clock, random=lambda: 0.0, max_wait=900)


async def test_objects_without_receipt_take_turns(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects for which no receipt can be had do not keep the centre from being asked about the others."""
    monkeypatch.setattr("sync.push.HOLDS_AT_ONCE", 2)
    await asyncio.to_thread(site.call)
    ingest, asked = Central.ingest, list[str]()

    async def without_receipts(self: Central, **batch: Any) -> Ingested:
        return replace(await ingest(self, **batch), receipts=frozenset())

    async def holds(_: Central, *, node_id: str, object_ids: Sequence[str]) -> list[Held]:
        asked.extend(object_ids)
        return []

    monkeypatch.setattr(Central, "ingest", without_receipts)
    monkeypatch.setattr(Central, "holds", holds)
    await asyncio.to_thread(site.sync)
    asked.clear()
    for _ in range(4):
        site.clock.go(100)
        await asyncio.to_thread(site.sync)
    assert len(set(asked)) == SEGMENTS


PENDING = Place(epoch="e", cursor=5, token="last", pending="next", pending_last=9)


@pytest.mark.parametrize(
    ("place", "token", "cursor", "agreed"),
    [
        (PENDING, "next", 9, Place(epoch="e", cursor=9, token="next")),
        (PENDING, "last", 5, PENDING),
        (Place(epoch="e"), None, 0, Place(epoch="e")),
    ],
    ids=["it was applied", "it was not", "nothing was ever sent"],
)
def test_answer_settles_the_doubt(place: Place, token: str | None, cursor: int, agreed: Place) -> None:
    """The centre's last token says whether the pending batch was applied."""
    assert place.agreed(token, cursor) == agreed


@pytest.mark.parametrize(("token", "cursor"), [("other", 5), ("last", 4), (None, 0), ("other", 9)])
def test_other_answer_is_another_history(token: str | None, cursor: int) -> None:
    """Any other token, or another cursor under ours, means that one of the two was restored."""
    with pytest.raises(Diverged):
        PENDING.agreed(token, cursor)
    with pytest.raises(Diverged):
        replace(PENDING, pending=None).agreed(token, cursor)

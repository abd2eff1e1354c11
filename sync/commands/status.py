"""`status`: what is owed and what is wrong, from the catalog alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from time import time_ns
from typing import Any

import click

from edge_recorder.catalog.connection import Catalog, Row
from edge_recorder.console import columns
from edge_recorder.errors import Exit
from edge_recorder.model import Instant
from edge_recorder.settings import Settings
from edge_recorder.spool import free_bytes
from sync.backlog import UNRECOVERED, Backlog, read_backlog
from sync.leg import breaker_name
from sync.push import DESTINATION, LAST_HEARTBEAT, read_place
from sync.retry import Breaker

UNSYNCED_FOR = 3600.0  # seconds that audio or facts may be on this disk alone before `--check` calls it unhealthy
PROBLEMS = 20  # objects named at most
SECOND = 1_000_000  # in an Instant
KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a node is."""

    node_id: str
    backlog: Backlog
    oldest_unsynced_s: float | None  # None: nothing that is configured is owed
    heartbeat_s: float | None  # since the centre last heard of this node
    disk_free_bytes: int
    refused: int  # rows that are in the centre's quarantine
    failing: dict[str, str]  # destination -> why its breaker is open
    objects: list[Row]  # refused last time, or set aside
    unhealthy: list[str]


@click.command()
@click.option("--check", is_flag=True, help="Exit with 4 if something needs a person.")
@click.pass_context
def status(ctx: click.Context, *, check: bool) -> None:
    """Show what is still owed, and what is wrong. Asks no network.

    Unhealthy is a node with a disk below disk.low_water, with objects set aside or placed in another store, with rows
    that the centre refused, with a destination that fails, with calls of dead recorders that cannot be closed, or with
    audio or facts that have been on this disk alone for more than an hour.
    """
    app = ctx.obj
    found = app.run(read_status(app.settings, now=time_ns() // 1000))
    app.show(asdict(found), describe(found))
    if check and found.unhealthy:
        ctx.exit(Exit.UNHEALTHY)


async def read_status(settings: Settings, *, now: Instant) -> Status:
    """Return how the node is, from its catalog alone.

    Raises:
        NoCatalog: Nothing was ever recorded there.
    """
    data_dir = settings.node.data_dir
    catalog = await Catalog.open(data_dir)
    try:
        backlog = await read_backlog(catalog, store_url=settings.store.url if settings.store else None)
        heard = await catalog.get_state(LAST_HEARTBEAT)
        failing = await _failing(catalog, settings)
        oldest = _oldest(backlog, settings, now)
        refused = (await read_place(catalog)).refused if settings.central else 0
        free = free_bytes(data_dir)
        unhealthy = [
            *_local(free, settings.disk.low_water, json.loads(await catalog.get_state(UNRECOVERED) or '""')),
            *(f"{destination} fails: {reason}" for destination, reason in failing.items()),
            *_waiting(backlog, refused, oldest),
        ]
        return Status(
            node_id=catalog.node_id,
            backlog=backlog,
            oldest_unsynced_s=oldest,
            heartbeat_s=(now - int(heard)) / SECOND if heard is not None else None,
            disk_free_bytes=free,
            refused=refused,
            failing=failing,
            objects=await catalog.fetch("objects.problems", limit=PROBLEMS),
            unhealthy=unhealthy,
        )
    finally:
        await catalog.close()


def describe(found: Status) -> str:
    backlog = found.backlog
    oldest = "-" if found.oldest_unsynced_s is None else f"{found.oldest_unsynced_s:.0f} s"
    heard = "never" if found.heartbeat_s is None else f"{found.heartbeat_s:.0f} s ago"
    facts: list[tuple[Any, ...]] = [
        ("node", found.node_id),
        ("live calls", backlog.live_calls),
        ("audio owed to the store", f"{backlog.objects} objects, {_size(backlog.bytes)} before encoding"),
        ("set aside", backlog.quarantined),
        ("facts owed to the centre", f"{backlog.changes} changes"),
        ("rows refused by the centre", found.refused),
        ("stored, unconfirmed by the centre", backlog.without_receipt),
        ("oldest on this disk alone", oldest),
        ("last heartbeat", heard),
        ("disk free", _size(found.disk_free_bytes)),
    ]
    verdict = [f"unhealthy: {each}" for each in found.unhealthy] or ["healthy"]
    return "\n".join([columns(facts), *_problems(found.objects), *verdict])


def _problems(rows: list[Row]) -> Iterator[str]:
    """Say each error once, under the objects that it is of. The file that it names is no difference."""
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        error = re.sub(rf"\S*{row['call_id']}\S*", "", row["last_error"])
        alike.setdefault((row["state"], error), []).append(row)
    for (state, _), group in alike.items():
        yield from (f"{state}  {row['object_id']}" for row in group)
        yield f"  {group[0]['last_error']}"


def _size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < KIB:
            return f"{count:.0f} {unit}"
        count /= KIB
    return f"{count:.1f} GiB"


async def _failing(catalog: Catalog, settings: Settings) -> dict[str, str]:
    destinations = [settings.store.url] if settings.store else []
    destinations += [DESTINATION] if settings.central else []
    saved = {each: await catalog.get_state(breaker_name(each)) for each in destinations}
    breakers = {each: Breaker.from_dict(json.loads(value)) for each, value in saved.items() if value is not None}
    return {each: breaker.reason for each, breaker in breakers.items() if breaker.failures}


def _oldest(backlog: Backlog, settings: Settings, now: Instant) -> float | None:
    """Return the age of the oldest thing owed. What goes nowhere by the settings is not owed."""
    audio = backlog.oldest_audio if settings.store else None
    facts = backlog.oldest_fact if settings.central else None
    starts = [at for at in (audio, facts) if at is not None]
    return max(0.0, (now - min(starts)) / SECOND) if starts else None


def _local(free: int, low_water: int, unrecovered: str) -> Iterator[str]:
    if free < low_water:
        yield f"the disk has {_size(free)} free, below disk.low_water ({_size(low_water)}): new calls keep no audio"
    if unrecovered:
        yield f"calls of recorders that died are still open: {unrecovered}"


def _waiting(backlog: Backlog, refused: int, oldest: float | None) -> Iterator[str]:
    if backlog.quarantined:
        yield f"{backlog.quarantined} objects are set aside"
    if backlog.elsewhere:
        yield f"{backlog.elsewhere} objects belong in another store: {backlog.elsewhere_urls}"
    if refused:
        yield f"{refused} rows were refused by the centre and are in its quarantine"
    if oldest is not None and oldest > UNSYNCED_FOR:
        yield f"something has been on this disk alone for {oldest:.0f} s"

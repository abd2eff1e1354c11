"""`status`: what is owed and what is wrong, from the catalog alone."""

from __future__ import annotations

import json
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
from sync.backlog import Backlog, read_backlog
from sync.leg import breaker_name
from sync.push import DESTINATION, LAST_HEARTBEAT
from sync.retry import Breaker

UNSYNCED_FOR = 3600.0  # seconds that audio or facts may be on this disk alone before `--check` calls it unhealthy
PROBLEMS = 20  # objects named at most
SECOND = 1_000_000  # in an Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a node is."""

    node_id: str
    backlog: Backlog
    oldest_unsynced_s: float | None  # None: nothing that is configured is owed
    heartbeat_s: float | None  # since the centre last heard of this node
    disk_free_bytes: int
    failing: dict[str, str]  # destination -> why its breaker is open
    objects: list[Row]  # refused last time, or set aside
    unhealthy: list[str]


@click.command()
@click.option("--check", is_flag=True, help="Exit with 4 if something needs a person.")
@click.pass_context
def status(ctx: click.Context, *, check: bool) -> None:
    """Show what is still owed, and what is wrong. Asks no network.

    Unhealthy is a node with objects set aside, with a destination that fails, or with audio or facts that have been on
    this disk alone for more than an hour.
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
        return Status(
            node_id=catalog.node_id,
            backlog=backlog,
            oldest_unsynced_s=oldest,
            heartbeat_s=(now - int(heard)) / SECOND if heard is not None else None,
            disk_free_bytes=free_bytes(data_dir),
            failing=failing,
            objects=await catalog.fetch("objects.problems", limit=PROBLEMS),
            unhealthy=_unhealthy(backlog, failing, oldest),
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
        ("audio owed to the store", f"{backlog.objects} objects, {backlog.bytes} bytes before encoding"),
        ("set aside", backlog.quarantined),
        ("facts owed to the centre", f"{backlog.changes} changes"),
        ("stored, unconfirmed by the centre", backlog.without_receipt),
        ("oldest on this disk alone", oldest),
        ("last heartbeat", heard),
        ("disk free", f"{found.disk_free_bytes} bytes"),
    ]
    problems = [f"{row['state']}  {row['object_id']}  {row['last_error']}" for row in found.objects]
    verdict = [f"unhealthy: {each}" for each in found.unhealthy] or ["healthy"]
    return "\n".join([columns(facts), *problems, *verdict])


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


def _unhealthy(backlog: Backlog, failing: dict[str, str], oldest: float | None) -> list[str]:
    found = [f"{destination} fails: {reason}" for destination, reason in failing.items()]
    if backlog.quarantined:
        found.append(f"{backlog.quarantined} objects are set aside")
    if oldest is not None and oldest > UNSYNCED_FOR:
        found.append(f"something has been on this disk alone for {oldest:.0f} s")
    return found

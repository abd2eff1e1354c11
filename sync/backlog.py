"""
What is still owed, from the catalog alone: for the summary of a pass, `status`, and the report to the centre.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_recorder.catalog.connection import Catalog
from edge_recorder.model import Instant

UNRECOVERED = "unrecovered"  # name of agent_state: why calls of dead recorders are still open


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What one node owes."""

    live_calls: int
    changes: int  # of facts, to the centre
    objects: int  # to the store
    bytes: int  # of their samples, before encoding
    elsewhere: int  # of the objects, those that were placed in another store than the one that is set now
    elsewhere_urls: str | None  # of those stores
    quarantined: int  # objects that wait for a person
    without_receipt: int  # stored objects that the centre has not confirmed
    oldest_audio: Instant | None  # the start of the oldest audio that is on this disk alone
    oldest_fact: Instant | None  # the start of the call of the oldest change that the centre has not taken


async def read_backlog(catalog: Catalog, *, store_url: str | None) -> Backlog:
    row = await catalog.fetch_one("backlog", store_url=store_url)
    return Backlog(**(row or {}))

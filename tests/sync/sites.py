"""A node with a bucket and a centre, with doors before both, and time and chance as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from nodes import MadeCall, Node, noise
from services import Bucket, Door

from edge_recorder.model import Instant
from edge_recorder.settings import Settings
from sync import agent

TRACKS = {"user": (8000, [800, 400]), "assistant": (24000, [2400, 1200]), "mixed": (24000, [2400, 1200])}
SEGMENTS = 6
START = 1_790_000_100_000_000


@dataclass
class Clock:
    """Time, as far as the agent knows it."""

    at: Instant = START

    def __call__(self) -> Instant:
        return self.at

    def go(self, seconds: float) -> None:
        self.at += int(seconds * 1_000_000)


@dataclass
class Site:
    """One node, its bucket and its centre, and the doors before them."""

    node: Node
    bucket: Bucket
    before_s3: Door
    before_postgres: Door
    centre_dsn: str  # of the owner, not by way of the door
    clock: Clock = field(default_factory=Clock)
    random: Callable[[], float] = lambda: 0.0

    def call(self, seed: int = 1) -> MadeCall:
        tracks = {
            name: (rate, [noise(frames, seed=seed + n) for n, frames in enumerate(pieces)])
            for name, (rate, pieces) in TRACKS.items()
        }
        return self.node.call(tracks)

    @property
    def settings(self) -> Settings:
        return Settings.load(self.node.config)

    def sync(self) -> agent.Summary:
        return asyncio.run(agent.run(self.settings, now=self.clock, random=self.random))

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.centre_dsn) as connection:
            return connection.execute(statement, values).fetchall()  # type: ignore[arg-type]

    def states(self) -> dict[str, int]:
        return {row["state"]: row["count"] for row in self.node.fetch("objects.counts")}

    def check_complete(self, calls: int = 1) -> None:
        """Everything of `calls` calls is in both stores, once, and the node has every receipt."""
        assert len(self.bucket.keys()) == len(set(self.bucket.keys())) == calls * SEGMENTS
        assert sorted(self.bucket.keys()) == [
            key for (key,) in self.query("select key from recorder.objects order by key")
        ]
        assert self.query("select state, segments_known, audio_owed from recorder.call_list") == (
            [("ended", SEGMENTS, 0)] * calls
        )
        for table in ("messages", "usage", "spans"):
            assert self.query(f"select count(*) from recorder.{table}") == [(calls,)]
        assert self.query("select count(*) from recorder.quarantine") == [(0,)]
        (counts,) = self.node.fetch("objects.counts")
        assert counts == {"state": "stored", "count": calls * SEGMENTS, "receipts": calls * SEGMENTS}

"""A node made by hand, without a recorder: its calls are exactly what a test says, on disk and in the catalog."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from numpy.typing import NDArray

from edge_recorder import journal, spool, wav
from edge_recorder.catalog.connection import Catalog, Row
from edge_recorder.catalog.statements import Statement, storing
from edge_recorder.commands import cli
from edge_recorder.errors import EdgeRecorderError
from edge_recorder.levels import measure
from edge_recorder.model import (
    Call,
    CallState,
    Fact,
    Message,
    Segment,
    Span,
    SpanKind,
    Usage,
    message_id,
    new_call_id,
    segment_id,
    span_id,
    usage_id,
)

START = 1_790_000_000_123_456  # an instant in September 2026, with its microseconds
WRITER = "noboot-00000000"  # a recorder that closed in order long ago

Samples = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str
    raw: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class Node:
    """A data_dir with its settings file."""

    def __init__(self, data_dir: Path, **sections: Mapping[str, Any]) -> None:
        self.data_dir = data_dir
        self.config = data_dir.with_name("config.toml")
        self.node_id = spool.prepare(data_dir)
        self.write("agent_state.put", name="made", value="true")  # makes the catalog
        self.configure(**sections)

    def configure(self, **sections: Mapping[str, Any]) -> None:
        """Write the settings: `section={"key": value}`, and the data_dir by itself."""
        tables = {"node": {"data_dir": str(self.data_dir)}, **sections}
        lines = [
            f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())
            for name, keys in tables.items()
        ]
        self.config.write_text("".join(lines))

    def run(self, *arguments: str, stdin: bytes | None = None) -> Done:
        """Run a command in this process, as `edge-recorder` would."""
        result = CliRunner().invoke(cli, ["--config", str(self.config), *arguments], input=stdin)
        if isinstance(result.exception, EdgeRecorderError):
            return Done(result.exception.exit_code, result.stdout, str(result.exception), result.stdout_bytes)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr, result.stdout_bytes)

    def write(self, name: str, /, **values: Any) -> None:
        self.write_all([(name, values)])

    def write_all(self, statements: Sequence[Statement]) -> None:
        async def work() -> None:
            catalog = await Catalog.open(self.data_dir, create_for=self.node_id)
            try:
                await catalog.write_all(statements)
            finally:
                await catalog.close()

        asyncio.run(work())

    def fetch(self, name: str, /, **values: Any) -> list[Row]:
        async def work() -> list[Row]:
            catalog = await Catalog.open(self.data_dir)
            try:
                return await catalog.fetch(name, **values)
            finally:
                await catalog.close()

        return asyncio.run(work())

    def call(self, tracks: Mapping[str, tuple[int, Sequence[Samples]]], **facts: Any) -> MadeCall:
        """Make an ended call of `tracks`: name -> (rate, the samples of each segment). Custody is `pending`."""
        return MadeCall(self, tracks, facts)


class MadeCall:
    """A call on disk and in the catalog, with one of each other fact."""

    def __init__(
        self, node: Node, tracks: Mapping[str, tuple[int, Sequence[Samples]]], facts: Mapping[str, Any]
    ) -> None:
        self.node = node
        self.id = new_call_id(START)
        seconds = max((sum(map(len, pieces)) / rate for rate, pieces in tracks.values()), default=0.0)
        live = Call(call_id=self.id, external_id="CA1", tags='["vip"]', started_at=START)
        ended = replace(live, state=CallState.ENDED, ended_at=START, end_reason="hangup", duration_s=seconds)
        self.row = replace(ended, **facts)
        self.directory = spool.call_dir(node.data_dir, self.id, START)
        self.directory.mkdir(parents=True)
        self.segments = [each for name, (rate, pieces) in tracks.items() for each in self._track(name, rate, pieces)]
        self._store()

    def path(self, track: str, seq: int = 1) -> Path:
        return spool.segment_path(self.directory, track, seq)

    def _track(self, name: str, rate: int, pieces: Sequence[Samples]) -> list[Segment]:
        firsts = np.cumsum([0, *map(len, pieces)])
        return [
            self._segment(name, rate, seq, int(first), samples)
            for seq, (first, samples) in enumerate(zip(firsts, pieces, strict=False), 1)
        ]

    def _segment(self, track: str, rate: int, seq: int, first: int, samples: Samples) -> Segment:
        tag = wav.Tag(
            call_id=self.id, started_at=START, track=track, seq=seq, first_sample=first, rate=rate, writer=WRITER
        )
        self.path(track, seq).write_bytes(wav.header(tag, frames=len(samples)) + samples.tobytes())
        return Segment(
            segment_id=segment_id(self.id, track, seq),
            call_id=self.id,
            track=track,
            seq=seq,
            first_sample=first,
            frames=len(samples),
            rate=rate,
            started_at=START,
            sealed_at=START,
            **asdict(measure(samples, rate)),
        )

    def _others(self) -> list[Fact]:
        return [
            Span(
                span_id=span_id(self.id, 1),
                call_id=self.id,
                n=1,
                track="user",
                kind=SpanKind.GAP,
                start_s=0.25,
                end_s=0.5,
                reason="disk full",
            ),
            Message(
                message_id=message_id(self.id, 1),
                call_id=self.id,
                n=1,
                role="user",
                text="Hello",
                start_s=0.125,
                created_at=START,
            ),
            Usage(
                usage_id=usage_id(self.id, 1),
                call_id=self.id,
                n=1,
                kind="tts",
                quantity="412",
                unit="character",
                created_at=START,
            ),
        ]

    def _store(self) -> None:
        facts: list[Fact] = [self.row, *self.segments, *self._others()]
        start = journal.Start(call_id=self.id, started_at=START, writer=WRITER)
        log = journal.Journal(self.directory / spool.JOURNAL, start)
        log.append(facts)
        log.close()
        self.node.write_all(list(storing(facts)))


def noise(frames: int, seed: int = 1) -> Samples:
    return np.random.default_rng(seed).integers(-30_000, 30_000, frames, np.int16)

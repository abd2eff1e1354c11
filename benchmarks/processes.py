"""
Many recorder processes and an agent on one data_dir: how soon a recorder can start a call, and how long a commit waits.

    python benchmarks/processes.py                 # 16 recorders, 50,000 pending segments, an agent beside them
    python benchmarks/processes.py --quick         # 4 recorders, 2,000 segments

A start is `Recorder(...).start()` and the first `start_call()`, imports apart. It is measured one after another, beside
the recorders that run already, and again with all processes at the same instant. A commit's wait is from `write_all` to
its answer. The agent marks objects as stored in groups of 200 statements, 50 ms apart.
"""

# ruff: noqa: INP001

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from edge_recorder import Recorder, Settings, journal, model, spool
from edge_recorder.catalog.connection import Catalog
from edge_recorder.catalog.statements import Statement, storing

STARTED = 1_790_000_000_000_000
SEGMENTS_PER_CALL = 50
GROUP = 200  # statements that the agent commits at once
GROUP_INTERVAL = 0.05  # seconds between its groups
CHUNK = 0.1  # seconds of audio handed over at once
RATE = 8000


def main() -> None:
    options = _options()
    if options.child:
        {"record": _record, "sync": _sync}[options.child](options.dir, options.seconds)
        return
    processes = 4 if options.quick else options.processes
    segments = 2_000 if options.quick else options.segments
    with tempfile.TemporaryDirectory(dir=options.dir) as room:
        data_dir = Path(room, "data")
        asyncio.run(_fill(data_dir, segments))
        figures = {
            "one after another": _run(data_dir, processes, options.seconds, at_once=False),
            "all at once": _run(data_dir, processes, options.seconds, at_once=True),
        }
    facts = {"processes": processes, "segments": segments, "machine": platform.platform(), "figures": figures}
    click.echo(json.dumps(facts, indent=2) if options.json else _table(figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--segments", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each recorder records")
    parser.add_argument(
        "--dir", type=Path, help="where to make the data_dir; default: the system's temporary directory"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


# The node as a long outage leaves it.


async def _fill(data_dir: Path, segments: int) -> None:
    """Make `segments` segments that store and centre are owed, with their calls' journals."""
    catalog = await Catalog.open(data_dir, create_for=spool.prepare(data_dir))
    for first in range(0, segments, SEGMENTS_PER_CALL):
        facts = _call(first, min(SEGMENTS_PER_CALL, segments - first))
        call_id = facts[0].call_id
        start = journal.Start(call_id=call_id, started_at=STARTED, writer="noboot-00000000")
        book = journal.Journal(spool.call_dir(data_dir, call_id, STARTED) / spool.JOURNAL, start)
        book.append(facts)
        book.close()
        await catalog.write_all(list(storing(facts)))
        _tell(f"{first + len(facts) - 1} segments made")
    await catalog.mark_whole()
    await catalog.close()


def _call(first: int, segments: int) -> list[model.Fact]:
    call_id = model.new_call_id(STARTED + first)
    call = model.Call(call_id=call_id, started_at=STARTED, state=model.CallState.ENDED, ended_at=STARTED)
    return [call, *(_segment(call_id, seq) for seq in range(1, segments + 1))]


def _segment(call_id: str, seq: int) -> model.Segment:
    return model.Segment(
        segment_id=model.segment_id(call_id, "user", seq),
        call_id=call_id,
        track="user",
        seq=seq,
        first_sample=(seq - 1) * 30 * RATE,
        frames=30 * RATE,
        rate=RATE,
        started_at=STARTED,
        sealed_at=STARTED,
        pcm_sha256="0" * 64,
        peak_dbfs=-3.0,
        rms_dbfs=-20.0,
        clipped=0,
        waveform="A" * 1600,
    )


# The processes.


def _run(data_dir: Path, processes: int, seconds: float, *, at_once: bool) -> dict[str, dict[str, float]]:
    """Run recorders and an agent, and return the figures of all of them."""
    with ExitStack() as stack:
        agent = stack.enter_context(_child("sync", data_dir, seconds))
        recorders = [stack.enter_context(_child("record", data_dir, seconds)) for _ in range(processes)]
        for each in (agent, *recorders):
            _line(each)  # it has imported all it needs
        _go(agent)
        for each in recorders:
            _go(each)
            if not at_once:
                _line(each)  # it has started its call
        if at_once:
            for each in recorders:
                _line(each)
        heard = [json.loads(_line(each)) for each in (*recorders, agent)]
    recorded, synced = heard[:-1], heard[-1]
    return {
        "start_call": _spread([each["start"] for each in recorded]),
        "commit": _spread([wait for each in recorded for wait in each["waits"]]),
        "agent's commit": _spread(synced["waits"]),
    }


def _child(what: str, data_dir: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", what, "--dir", str(data_dir), "--seconds", str(seconds)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603


def _line(child: subprocess.Popen[str]) -> str:
    line = child.stdout.readline() if child.stdout else ""
    if not line:
        raise SystemExit(f"a child process ended early, with exit code {child.wait()}")
    return line


def _go(child: subprocess.Popen[str]) -> None:
    if child.stdin:
        child.stdin.write("go\n")
        child.stdin.flush()


def _record(data_dir: Path, seconds: float) -> None:
    waits = _watch_commits()
    settings = Settings.of({"node": {"data_dir": data_dir}, "capture": {"segment_seconds": 5}})
    chunk = bytes(2 * int(RATE * CHUNK))
    _ready()
    asked = time.perf_counter()
    with Recorder(settings) as recorder:
        call = recorder.start_call(tracks={"user": RATE, "assistant": RATE})
        start = time.perf_counter() - asked
        _say("started")
        for n in range(int(seconds / CHUNK)):
            call.write("user", chunk)
            call.play("assistant", chunk)
            call.add_message("user", f"message {n}")
            time.sleep(max(0.0, asked + (n + 1) * CHUNK - time.perf_counter()))
        call.end()
    _say(json.dumps({"start": start, "waits": waits}))


def _watch_commits() -> list[float]:
    """Return the list that the wait of each commit of this process will be in."""
    waits: list[float] = []
    write_all = Catalog.write_all

    async def watched(catalog: Catalog, statements: Sequence[Statement]) -> list[int]:
        asked = time.perf_counter()
        changed = await write_all(catalog, statements)
        waits.append(time.perf_counter() - asked)
        return changed

    Catalog.write_all = watched  # type: ignore[method-assign]
    return waits


def _sync(data_dir: Path, seconds: float) -> None:
    waits = _watch_commits()
    _ready()
    asyncio.run(_mark_stored(data_dir, seconds))
    _say(json.dumps({"waits": waits}))


async def _mark_stored(data_dir: Path, seconds: float) -> None:
    """Do to the catalog what an agent that catches up does, without a store."""

    async def pause() -> None:
        await asyncio.sleep(GROUP_INTERVAL)

    catalog = await Catalog.open(data_dir, pause=pause)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        due = await catalog.fetch(
            "objects.due", now=STARTED, latest=STARTED, store_url="file:///store", limit=GROUP // 2
        )
        if not due:
            break
        await catalog.write_all([each for row in due for each in _stored(row["object_id"])])
    await catalog.close()


def _stored(object_id: str) -> Iterator[Statement]:
    yield "objects.place", {"id": object_id, "store_url": "file:///store", "key": object_id, "format": "flac"}
    yield "objects.mark_stored", {"id": object_id, "file_bytes": 1, "file_sha256": "0" * 64, "now": STARTED}


def _ready() -> None:
    _say("ready")
    sys.stdin.readline()


def _say(line: str) -> None:
    click.echo(line)  # flushes


# The figures.


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return the spread of `seconds`, in milliseconds."""
    ordered = sorted(each * 1000 for each in seconds)
    at = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (90, 99)}
    spread = {"median": statistics.median(ordered), **at, "max": ordered[-1]}
    return {"count": len(ordered)} | {name: round(value, 1) for name, value in spread.items()}


def _table(figures: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = ["| starts | what | count | median ms | p90 ms | p99 ms | max ms |", "|---|---|---|---|---|---|---|"]
    for how, kinds in figures.items():
        lines += [f"| {how} | {kind} | " + " | ".join(map(str, each.values())) + " |" for kind, each in kinds.items()]
    return "\n".join(lines)


def _tell(what: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{what}", nl=False, err=True)


if __name__ == "__main__":
    main()

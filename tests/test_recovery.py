"""What is left of a recorder that died, and how it comes back."""

from __future__ import annotations

import asyncio
import errno
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_recorder import Recorder, Settings, durable, journal, model, recovery, spool, wav
from edge_recorder.catalog.connection import Catalog, Row, catalog_path
from edge_recorder.catalog.statements import Statement
from edge_recorder.recorder import now
from edge_recorder.recovery import Report

RATE = 8000
SETTINGS = {"capture": {"segment_seconds": 1, "late_window": 0.2}}

# A recorder in a process of its own: it records 2.5 s of a ramp and a message, says that they are on disk, and waits.
DOOMED = """
import sys
import numpy as np
from edge_recorder import Recorder, Settings

settings = Settings.of({"node": {"data_dir": sys.argv[1]}, "capture": {"segment_seconds": 1, "late_window": 0.2}})
recorder = Recorder(settings).start()
call = recorder.start_call(tracks={"user": 8000, "assistant": 16000}, pace="media", external_id="doomed")
call.write("user", np.arange(20000, dtype=np.int16))
call.write("assistant", np.arange(32000, dtype=np.int16))
call.add_message("user", "still here", at=0.5)
call.flush().result(10)
print(call.id, flush=True)
sys.stdin.read()
"""


@pytest.fixture
async def catalog(data_dir: Path) -> AsyncIterator[Catalog]:
    opened = await Catalog.open(data_dir, create_for=spool.prepare(data_dir))
    yield opened
    await opened.close()


def killed_calls(data_dir: Path, count: int) -> list[str]:
    """Record with processes that are all killed by SIGKILL once their audio is flushed, and return their calls' ids."""
    command = [sys.executable, "-c", DOOMED, str(data_dir)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(count)
        ]
        ids = [process.stdout.readline().strip() for process in processes if process.stdout is not None]
        for process in processes:
            process.send_signal(signal.SIGKILL)
    assert all(ids)
    return ids


def killed_call(data_dir: Path) -> str:
    return killed_calls(data_dir, 1)[0]


async def recover(catalog: Catalog, data_dir: Path) -> Report:
    return await recovery.recover(catalog, data_dir, now=now, on_pool=asyncio.to_thread)


async def repair(catalog: Catalog, data_dir: Path) -> Report:
    return await recovery.repair(catalog, data_dir, now=now, on_pool=asyncio.to_thread)


def directory_of(data_dir: Path) -> Path:
    (directory,) = spool.call_dirs(data_dir)
    return directory


def samples_of(data_dir: Path, track: str) -> np.ndarray:
    files = [file for file in spool.segment_files(directory_of(data_dir)) if file.track == track]
    assert all(file.sealed for file in files)
    read = sorted((wav.read_file(file.path) for file in files), key=lambda each: each[0].first_sample)
    return np.concatenate([samples for _, samples in read])


async def test_killed_recorder_loses_nothing_flushed(data_dir: Path) -> None:
    """What was flushed before SIGKILL is sealed by the next start, and the call is shown as interrupted."""
    call_id = await asyncio.to_thread(killed_call, data_dir)
    async with Recorder(data_dir) as recorder, recorder.start_call():
        pass  # its row is committed after the recovery of what was left
    catalog = await Catalog.open(data_dir)
    call = await catalog.fetch_one("calls.get", call_id=call_id)
    spans = await catalog.fetch("spans.of_call", call_id=call_id)
    messages = await catalog.fetch("messages.of_call", call_id=call_id)
    segments = await catalog.fetch("segments.of_call", call_id=call_id)
    await catalog.close()
    assert call is not None
    assert (call["state"], call["duration_s"]) == ("interrupted", 2.5)
    assert [(span["track"], span["kind"], span["start_s"], span["end_s"]) for span in spans] == [
        ("assistant", "gap", 2.0, 2.5)
    ]
    assert [message["text"] for message in messages] == ["still here"]
    assert sum(row["frames"] for row in segments if row["track"] == "user") == 20000
    assert sum(row["frames"] for row in segments if row["track"] == "mixed") == 2.5 * 16000
    directory = spool.call_dir(data_dir, call_id, call["started_at"])
    assert not list(directory.glob("*.part"))


async def test_recovery_is_exact_and_repeatable(data_dir: Path, catalog: Catalog) -> None:
    """Salvage keeps each flushed sample, and doing it again finds nothing to do and changes no row."""
    await asyncio.to_thread(killed_call, data_dir)
    first = await recover(catalog, data_dir)
    changes = await catalog.fetch_one("changes.last")
    second = await repair(catalog, data_dir)
    assert (first.calls_closed, second.calls_closed) == (1, 0)
    assert second.segments_salvaged == second.segments_adopted == second.segments_mixed == 0
    assert await catalog.fetch_one("changes.last") == changes
    assert np.array_equal(samples_of(data_dir, "user"), np.arange(20000, dtype=np.int16))
    assert np.array_equal(samples_of(data_dir, "assistant"), np.arange(32000, dtype=np.int16))


async def test_catalog_is_rebuilt_from_journals(data_dir: Path) -> None:
    """With catalog.db deleted after a kill, every segment and message comes back under a new epoch, to be asked for."""
    call_id = await asyncio.to_thread(killed_call, data_dir)
    before = await Catalog.open(data_dir)
    await recover(before, data_dir)
    rows, epoch = await before.fetch("segments.of_call", call_id=call_id), before.epoch
    await before.close()
    for leftover in data_dir.glob("catalog.db*"):
        leftover.unlink()
    after = await Catalog.open(data_dir, create_for=spool.node_id(data_dir))
    await recover(after, data_dir)
    rebuilt = await after.fetch("segments.of_call", call_id=call_id)
    messages = await after.fetch("messages.of_call", call_id=call_id)
    assert after.epoch != epoch
    assert after.node_id == spool.node_id(data_dir)
    await after.close()
    assert {row["state"] for row in rebuilt} == {"unknown"}
    assert [{**row, "state": ""} for row in rebuilt] == [{**row, "state": ""} for row in rows]
    assert [message["text"] for message in messages] == ["still here"]
    assert catalog_path(data_dir).exists()


async def test_living_recorder_is_left_alone(data_dir: Path) -> None:
    """A repair beside a running recorder touches none of its open files, and its call goes on."""
    settings = Settings.of({"node": {"data_dir": data_dir}, **SETTINGS})
    async with Recorder(settings) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        call.write("user", np.ones(4000, np.int16))
        await call.flush()
        catalog = await Catalog.open(data_dir)
        report = await repair(catalog, data_dir)
        await catalog.close()
        call.write("user", np.ones(4000, np.int16))
        summary = await call.end()
    assert (report.calls_left_alone, report.segments_salvaged) == (1, 0)
    assert (summary.complete, summary.duration_s) == (True, 1.0)


@pytest.mark.parametrize("torn", [0, 1, 300, wav.HEADER_BYTES - 1])
async def test_torn_header_goes_to_quarantine(data_dir: Path, catalog: Catalog, torn: int) -> None:
    """A `.part` of which nothing says what it is waits in quarantine with a note; the rest of its call is salvaged."""
    call_id = await asyncio.to_thread(killed_call, data_dir)
    book = directory_of(data_dir) / spool.JOURNAL
    book.write_bytes(b"".join(line for line in book.read_bytes().splitlines(True) if b'"opened"' not in line))
    part = next(file.path for file in spool.segment_files(directory_of(data_dir)) if not file.sealed)
    part.write_bytes(part.read_bytes()[:torn])
    report = await recover(catalog, data_dir)
    kept = data_dir / "quarantine" / call_id / part.name
    assert report.files_quarantined == 1
    assert kept.stat().st_size == torn
    assert "header" in kept.with_name(kept.name + ".txt").read_text()
    call = await catalog.fetch_one("calls.get", call_id=call_id)
    assert call is not None
    assert call["state"] == "interrupted"


async def test_lost_journal_leaves_a_partial_call(data_dir: Path, catalog: Catalog) -> None:
    """Without its journal a call is rebuilt from its files, which say what they are, and is marked partial."""
    call_id = await asyncio.to_thread(killed_call, data_dir)
    for leftover in data_dir.glob("catalog.db*"):
        leftover.unlink()
    (directory_of(data_dir) / spool.JOURNAL).unlink()
    await repair(catalog, data_dir)
    call = await catalog.fetch_one("calls.get", call_id=call_id)
    assert call is not None
    assert (call["partial"], call["state"], call["duration_s"]) == (1, "interrupted", 2.5)
    assert np.array_equal(samples_of(data_dir, "user"), np.arange(20000, dtype=np.int16))


async def test_one_call_that_cannot_be_mended_stops_no_other(
    data_dir: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses one call's salvage leaves that call to the next time, and the others are mended now."""
    ids = await asyncio.to_thread(killed_calls, data_dir, 2)
    real = durable.replace_with

    def refuse_first(path: Path, content: bytes) -> None:
        if path.parent.name == ids[0]:
            raise OSError(errno.EIO, "Input/output error")
        real(path, content)

    monkeypatch.setattr(durable, "replace_with", refuse_first)
    first = await recover(catalog, data_dir)
    monkeypatch.undo()
    second = await recover(catalog, data_dir)
    assert (first.calls_failed, first.calls_closed) == (1, 1)
    assert (second.calls_failed, second.calls_closed) == (0, 1)
    calls = await catalog.fetch("calls.list", external_id="doomed", limit=9)
    assert [call["state"] for call in calls] == ["interrupted"] * 2


async def test_strangers_in_the_spool_stop_nothing(data_dir: Path, catalog: Catalog) -> None:
    """A file among the calls is passed over; a call that cannot be read is counted, and the others are mended."""
    await catalog.mark_whole()
    await asyncio.to_thread(killed_call, data_dir)
    day = directory_of(data_dir).parent
    (day / "01a203ef-8d00-72c9-8406-82fea971c495.tar.gz").touch()
    (day / "00000000-0000-7000-8000-000000000000" / spool.JOURNAL).mkdir(parents=True)
    first, second = await recover(catalog, data_dir), await repair(catalog, data_dir)
    assert (first.calls_closed, first.calls_failed) == (1, 1)
    assert (second.calls_seen, second.calls_failed) == (2, 1)
    assert len(spool.writers(data_dir)) == 1  # for the next start to try again


async def test_rows_that_the_catalog_refuses_stop_no_other_call(data_dir: Path, catalog: Catalog) -> None:
    """A journal with a fact that SQLite cannot hold is counted, and every other call comes back."""
    await asyncio.to_thread(killed_call, data_dir)
    started = now() - 86_400_000_000
    odd = model.Call(call_id=model.new_call_id(started), started_at=started, external_id=["CA1"])  # type: ignore[arg-type]
    path = spool.call_dir(data_dir, odd.call_id, started) / spool.JOURNAL
    path.parent.mkdir(parents=True)
    book = journal.Journal(path, journal.Start(call_id=odd.call_id, started_at=started, writer="noboot-00000000"))
    book.append([odd])
    book.close()
    report = await repair(catalog, data_dir)
    assert (report.calls_closed, report.calls_failed) == (1, 1)
    assert [call["state"] for call in await catalog.fetch("calls.list", external_id=None, limit=9)] == ["interrupted"]


async def test_recorder_that_dies_during_a_repair_is_recovered_later(data_dir: Path, catalog: Catalog) -> None:
    """A repair that passed a call by as living is not done with its recorder when that is killed meanwhile."""
    command = [sys.executable, "-c", DOOMED, str(data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        call_id = process.stdout.readline().strip()

        def kill(_: Report) -> None:
            process.kill()
            process.wait()

        await recovery.repair(catalog, data_dir, now=now, on_pool=asyncio.to_thread, progress=kill)
    report = await recover(catalog, data_dir)
    call = await catalog.fetch_one("calls.get", call_id=call_id)
    assert report.calls_closed == 1
    assert call is not None
    assert call["state"] == "interrupted"


@pytest.mark.parametrize(
    ("state", "known_by", "gaps"),
    [
        ("pending", "a whole catalog", 1),
        ("quarantined", "a whole catalog", 1),
        (None, "a whole catalog", 1),
        ("stored", "a whole catalog", 0),
        ("unknown", "a whole catalog", 0),
        (None, "a catalog made anew", 0),
    ],
)
async def test_missing_file_is_a_gap_unless_a_store_may_have_it(
    data_dir: Path, catalog: Catalog, state: str | None, known_by: str, gaps: int
) -> None:
    """A file that is gone is said to be lost once, and only where its row shows that no store has it."""
    call_id = await asyncio.to_thread(killed_call, data_dir)
    await recover(catalog, data_dir)
    rows = await catalog.fetch("segments.of_call", call_id=call_id)
    sealed = next(row for row in rows if row["track"] == "user")
    if state is None:
        await catalog.close()
        for leftover in data_dir.glob("catalog.db*"):
            leftover.unlink()
        catalog = await Catalog.open(data_dir, create_for=spool.node_id(data_dir))
        if known_by == "a whole catalog":
            await catalog.mark_whole()
    else:
        await set_state(catalog, sealed, state)
    spool.segment_path(directory_of(data_dir), "user", sealed["seq"]).unlink()
    for _ in range(2):
        await repair(catalog, data_dir)
    spans = await catalog.fetch("spans.of_call", call_id=call_id)
    await catalog.close()
    assert [span["reason"] for span in spans if span["track"] == "user" and span["kind"] == "gap"] == [
        f"user-{sealed['seq']:06d}.wav is gone"
    ] * gaps


async def set_state(catalog: Catalog, segment: Row, state: str) -> None:
    """Move a rebuilt segment's object to a state, as the agent does."""
    at = {"id": segment["segment_id"]}
    place = ("objects.place", {**at, "store_url": "file:///nas", "key": "k", "format": "wav"})
    stored = ("objects.mark_stored", {**at, "now": 1, "file_bytes": 1, "file_sha256": "0"})
    refused = ("objects.quarantine", {**at, "tried": 0, "error_class": "item", "last_error": "x"})
    moves: dict[str, list[Statement]] = {
        "unknown": [],
        "pending": [("objects.mark_missing", at)],
        "stored": [place, stored],
        "quarantined": [refused],
    }
    await catalog.write_all(moves[state])
    (row,) = [
        each
        for each in await catalog.fetch("segments.of_call", call_id=segment["call_id"])
        if each["segment_id"] == segment["segment_id"]
    ]
    assert row["state"] == state


async def test_cancelled_recovery_keeps_its_lock_until_its_disk_work_is_done(data_dir: Path, catalog: Catalog) -> None:
    """A recovery that is cancelled lets nobody else mend a call that its own thread still mends."""
    await asyncio.to_thread(killed_call, data_dir)
    (writer,) = spool.writers(data_dir)
    began, go_on = threading.Event(), threading.Event()

    async def on_pool(work: Callable[..., Any], /, *args: Any) -> Any:
        def slow() -> Any:
            if work.__name__ == "mend":
                began.set()
                assert go_on.wait(10)
            return work(*args)

        return await asyncio.to_thread(slow)

    await catalog.mark_whole()
    task = asyncio.create_task(recovery.recover(catalog, data_dir, now=now, on_pool=on_pool))
    assert await asyncio.to_thread(began.wait, 10)
    task.cancel()
    await asyncio.sleep(0)  # it is told
    with spool.taken_over(data_dir, writer) as free:
        assert not free
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    with spool.taken_over(data_dir, writer) as free:
        assert free

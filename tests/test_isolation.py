"""Many processes on one data_dir: they start at once, share one catalog, migrate it, lose it, and hold nobody up."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from nodes import Node

from edge_recorder import Recorder, model, recovery, spool
from edge_recorder.catalog import migrate, sqlite
from edge_recorder.catalog.connection import Catalog, catalog_path
from edge_recorder.catalog.statements import storing
from edge_recorder.rows import RowQueue

REPOSITORY = Path(__file__).parents[1]
STARTED = 1_790_000_000_000_000

# A recorder that takes a second of audio and a message for each line it is sent, and says so when that is on disk.
RECORD = """
import sys
from edge_recorder import Recorder, Settings
capture = {"segment_seconds": 1, "late_window": 0.1}
sys.stdin.readline()
with Recorder(Settings.of({"node": {"data_dir": sys.argv[1]}, "capture": capture})) as recorder:
    call = recorder.start_call(tracks={"user": 8000}, pace="media")
    print(call.id, flush=True)
    for n, line in enumerate(sys.stdin, 1):
        call.write("user", bytes(16000))
        call.add_message("user", f"message {n}")
        call.flush().result(20)
        print(n, flush=True)
    call.end().result(20)
"""
# The release after this one: it brings the catalog one version further.
NEWER = """
from edge_recorder.catalog import migrate
migrate.SCHEMA_VERSION += 1
further = (migrate.SCHEMA_VERSION, "ALTER TABLE calls ADD COLUMN mood TEXT;")
steps = migrate._steps
migrate._steps = lambda *, after: [*steps(after=after), *([further] if after < further[0] else [])]
"""
# Says how often this process rebuilt a catalog.
COUNT = """
from edge_recorder import recovery
repairs, repair = [], recovery.repair
async def counted(*args, **options):
    repairs.append(1)
    return await repair(*args, **options)
recovery.repair = counted
"""
# What an agent that catches up does to the catalog, until its input ends.
SYNC = """
import asyncio, sys, threading
from pathlib import Path
from edge_recorder.catalog.connection import Catalog
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()

def stored(row):
    yield "objects.place", {"id": row["object_id"], "store_url": "file:///s", "key": row["object_id"], "format": "wav"}
    yield "objects.mark_stored", {"id": row["object_id"], "file_bytes": 1, "file_sha256": "00", "now": 1}

async def main():
    catalog = await Catalog.open(Path(sys.argv[1]), pause=lambda: asyncio.sleep(0.05))
    while not over.is_set():
        due = await catalog.fetch("objects.due", now=1, latest=1, store_url="file:///s", limit=100)
        await catalog.write_all([move for row in due for move in stored(row)])
    await catalog.close()

asyncio.run(main())
"""


class Process:
    """A child process that is told what to do by lines, and answers by lines."""

    def __init__(self, script: str, data_dir: Path, *, code: Path = REPOSITORY) -> None:
        command = [sys.executable, "-c", script, str(data_dir)]
        environ = {**os.environ, "PYTHONPATH": str(code)}
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, cwd=code
        )
        self.pid = self._child.pid

    def ask(self) -> str:
        self.tell()
        return self.hear()

    def tell(self) -> None:
        self._child.stdin.write("go\n")
        self._child.stdin.flush()

    def hear(self) -> str:
        line = self._child.stdout.readline().strip()
        assert line, f"it ended with {self._child.wait()}"
        return line

    def finish(self) -> str:
        """Let it end by itself, in order, and return what it still said."""
        rest, _ = self._child.communicate(timeout=50)
        assert self._child.returncode == 0
        return rest

    def kill(self) -> None:
        self._child.kill()
        self._child.communicate()


Start = Callable[..., Process]


@pytest.fixture
def start(data_dir: Path) -> Iterator[Start]:
    """Start a child process on the data_dir."""
    started: list[Process] = []

    def begin(script: str, *, code: Path = REPOSITORY) -> Process:
        started.append(Process(script, data_dir, code=code))
        return started[-1]

    yield begin
    for each in started:
        each.kill()


def recover(data_dir: Path) -> None:
    """Do what the next start of a recorder does."""

    async def work() -> None:
        catalog = await Catalog.open(data_dir, create_for=spool.node_id(data_dir))
        try:
            await recovery.recover(catalog, data_dir, now=lambda: STARTED, on_pool=asyncio.to_thread)
            await catalog.check()
        finally:
            await catalog.close()

    asyncio.run(work())


def fetch(data_dir: Path, name: str, /, **values: Any) -> list[dict[str, Any]]:
    async def work() -> list[dict[str, Any]]:
        catalog = await Catalog.open(data_dir, create_for=spool.node_id(data_dir))
        try:
            return await catalog.fetch(name, **values)
        finally:
            await catalog.close()

    return asyncio.run(work())


def assert_all_there(data_dir: Path, rounds: dict[str, int]) -> None:
    """Each call has ended, and has a row for each second and each message of its rounds."""
    for call_id, count in rounds.items():
        (call,) = fetch(data_dir, "calls.get", call_id=call_id)
        assert (call["state"], call["duration_s"]) == ("ended", count)
        found = Counter(row["track"] for row in fetch(data_dir, "segments.of_call", call_id=call_id))
        assert found == {"user": count, "mixed": count}
        said = [row["text"] for row in fetch(data_dir, "messages.of_call", call_id=call_id)]
        assert said == [f"message {n}" for n in range(1, count + 1)]


def call_with(segments: int) -> list[model.Fact]:
    """Return the facts of an ended call."""
    call_id = model.new_call_id(STARTED)
    call = model.Call(call_id=call_id, started_at=STARTED, state=model.CallState.ENDED, ended_at=STARTED)
    return [call, *(segment(call_id, seq) for seq in range(1, segments + 1))]


def segment(call_id: str, seq: int) -> model.Segment:
    return model.Segment(
        segment_id=model.segment_id(call_id, "user", seq),
        call_id=call_id,
        track="user",
        seq=seq,
        first_sample=(seq - 1) * 8000,
        frames=8000,
        rate=8000,
        started_at=STARTED,
        sealed_at=STARTED,
        pcm_sha256="00",
        peak_dbfs=None,
        rms_dbfs=None,
        clipped=0,
        waveform="",
    )


# Many at once.


def test_processes_share_a_catalog_with_much_owed(data_dir: Path, start: Start) -> None:
    """Recorders that start at once beside an agent that catches up lose nothing, and every change is told of."""
    node = Node(data_dir)
    node.write("agent_state.put", name="whole", value="true")
    for _ in range(40):
        node.write_all(list(storing(call_with(50))))
    agent, recorders = start(SYNC), [start(RECORD) for _ in range(4)]
    for each in recorders:
        each.tell()
    ids = [each.hear() for each in recorders]
    for _ in range(3):
        for each in recorders:
            each.tell()
        assert len({each.hear() for each in recorders}) == 1
    for each in (*recorders, agent):
        each.finish()
    recover(data_dir)
    assert_all_there(data_dir, dict.fromkeys(ids, 3))
    changes = node.fetch("changes.pending", cursor=0, last=10**9, limit=10**9)
    assert [row["seq"] for row in changes] == list(range(1, len(changes) + 1))
    assert node.fetch("segments.counts")[-1]["count"] == 2000 + 4 * 3


def test_lost_catalog_is_rebuilt_by_one_while_all_record(data_dir: Path, start: Start) -> None:
    """After the catalog is lost under running recorders one of them rebuilds it, and no row of any is missing."""
    Node(data_dir).write("agent_state.put", name="whole", value="true")
    script = COUNT + RECORD + "print(len(repairs))\n"
    recorders = [start(script) for _ in range(4)]
    ids = [each.ask() for each in recorders]
    for each in recorders:
        each.ask()
    for file in data_dir.glob("catalog.db*"):
        file.unlink()
    for _ in range(2):
        for each in recorders:
            each.ask()
    until_whole(data_dir)
    assert sum(int(each.finish()) for each in recorders) == 1
    recover(data_dir)
    assert_all_there(data_dir, dict.fromkeys(ids, 3))


def until_whole(data_dir: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if catalog_path(data_dir).exists() and fetch(data_dir, "agent_state.get", name="whole"):
            return
    pytest.fail("the catalog was not rebuilt")


# Two releases.


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the release before this one: of the last tag, or of the last commit; without git, this one."""
    room = tmp_path_factory.mktemp("previous")
    code = archive("describe", "--tags", "--abbrev=0")
    if code is None:
        shutil.copytree(REPOSITORY / "edge_recorder", room / "edge_recorder")
    else:
        with tarfile.open(fileobj=io.BytesIO(code)) as files:
            files.extractall(room, filter="data")
    return room


def archive(*describe: str) -> bytes | None:
    git = shutil.which("git")
    if git is None:
        return None
    tag = subprocess.run([git, *describe], cwd=REPOSITORY, capture_output=True, check=False)
    name = tag.stdout.decode().strip() or "HEAD"
    made = subprocess.run([git, "archive", name, "edge_recorder"], cwd=REPOSITORY, capture_output=True, check=False)
    return made.stdout if made.returncode == 0 else None


@pytest.mark.parametrize("release", ["previous", "this"])
def test_newer_release_migrates_while_an_older_records(
    data_dir: Path, start: Start, previous: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    """Whatever the older release does with its rows then, it goes on recording, and after a recovery all are there."""
    older = start(RECORD, code=previous if release == "previous" else REPOSITORY)
    ids = {older.ask(): 4}
    for _ in range(2):
        older.ask()
    newer = start(NEWER + RECORD)
    ids[newer.ask()] = 2
    for each in (older, newer, newer, older):
        each.ask()
    until_version(data_dir, migrate.SCHEMA_VERSION + 1)
    newer.finish()
    older.finish()
    monkeypatch.setattr(migrate, "SCHEMA_VERSION", migrate.SCHEMA_VERSION + 1)
    recover(data_dir)
    assert_all_there(data_dir, ids)
    assert spool.writers(data_dir) == []


def until_version(data_dir: Path, version: int) -> None:
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline:
        connection = sqlite.connect(catalog_path(data_dir), create=False)
        try:
            if migrate._version(connection) == version:
                return
        finally:
            connection.close()
    pytest.fail("the catalog was not migrated")


# Who holds the catalog up.

ALONE = """
import sys, threading
from pathlib import Path
from edge_recorder.catalog import migrate
guard = Path(sys.argv[1], "catalog.guard")
with migrate._locked(guard, threading.Event()):
    print("alone", flush=True)
    sys.stdin.read()
"""


def test_stopped_process_that_holds_the_catalog_stops_no_recorder(
    data_dir: Path, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While a stopped process has the catalog alone, recorders start, record and close; the next start has the rows."""
    spool.prepare(data_dir)
    monkeypatch.setattr(migrate, "PATIENCE", 0.1)
    stopped = start(ALONE)
    assert stopped.hear() == "alone"
    os.kill(stopped.pid, signal.SIGSTOP)
    with Recorder(data_dir) as recorder, recorder.start_call(tracks={"user": 8000}, pace="media") as call:
        call.write("user", bytes(16000))
        call.add_message("user", "message 1")
    assert "recording without the catalog" in caplog.text
    os.kill(stopped.pid, signal.SIGCONT)
    stopped.finish()
    recover(data_dir)
    assert_all_there(data_dir, {call.id: 1})


class Rows:
    """A queue of rows, in a catalog that another may lock, with what was logged of it."""

    def __init__(self, catalog: Catalog, recover: Callable[[], Any]) -> None:
        self.failed = asyncio.Semaphore(0)  # released at each failure
        self.queue = RowQueue(catalog, recover=recover, pause=self._pause)
        self.task = asyncio.create_task(self.queue.commit())

    async def _pause(self) -> None:
        self.failed.release()
        await asyncio.sleep(0)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def nothing() -> None:
    """Recover nothing."""


async def opened(data_dir: Path) -> Catalog:
    catalog = await Catalog.open(data_dir, create_for=spool.prepare(data_dir))
    await catalog.mark_whole()
    return catalog


async def test_locked_catalog_is_logged_once_and_its_rows_follow(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows wait for as long as another process has the catalog locked; that it begins and ends is logged, once each."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.02)
    catalog = await opened(data_dir)
    other = sqlite.connect(catalog.path, create=False)
    other.execute("BEGIN EXCLUSIVE")
    rows = Rows(catalog, nothing)
    waiting = [rows.queue.put(call_with(60)) for _ in range(20)]
    for _ in range(5):
        await asyncio.wait_for(rows.failed.acquire(), 20)
    assert not any(done.done() for done in waiting)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    other.execute("ROLLBACK")
    other.close()
    await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "rows wait for the catalog, and are in their journals meanwhile",
        "the catalog takes rows again",
    ]
    assert rows.queue.is_empty
    assert not rows.queue.lost
    assert {row["count"] for row in await catalog.fetch("segments.counts")} == {20 * 60}
    await rows.end()
    await catalog.close()


async def test_rows_that_wait_are_bounded(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the limit the oldest rows are left to the journal, which is logged once; the newest are kept."""
    monkeypatch.setattr("edge_recorder.rows.LIMIT", 250)
    catalog = await opened(data_dir)
    queue = RowQueue(catalog, recover=nothing, pause=nothing)
    waiting = [queue.put(call_with(50)) for _ in range(5)]
    assert [done.done() for done in waiting] == [True, True, True, False, False]
    assert queue.lost
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    await catalog.close()


async def test_living_calls_do_not_wait_for_a_recovery(data_dir: Path) -> None:
    """While what died before is recovered, which can take long, the rows of living calls are committed."""
    catalog = await opened(data_dir)
    rows = Rows(catalog, asyncio.Event().wait)  # never
    await asyncio.wait_for(rows.queue.put(call_with(1)), 20)
    assert await catalog.fetch("calls.all")
    rows.queue._recovery.cancel()
    await rows.end()
    await catalog.close()


async def test_recovery_waits_for_who_rebuilds(data_dir: Path) -> None:
    """While another process rebuilds the catalog nobody else begins to; if it dies before the end, another does."""
    catalog = await Catalog.open(data_dir, create_for=spool.prepare(data_dir))
    recovered = asyncio.Event()

    async def recover_now() -> None:
        recovered.set()

    with spool.rebuilding(data_dir) as ours:
        assert ours
        rows = Rows(catalog, recover_now)
        for _ in range(3):
            await asyncio.wait_for(rows.failed.acquire(), 20)
        assert not recovered.is_set()
    await asyncio.wait_for(recovered.wait(), 20)
    await rows.end()
    await catalog.close()


async def test_bug_in_a_recovery_is_logged_once(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A recovery that fails, for whatever reason, is tried again, and does not fill the log."""
    catalog = await opened(data_dir)

    async def broken() -> None:
        raise KeyError("a bug")

    rows = Rows(catalog, broken)
    for _ in range(3):
        await asyncio.wait_for(rows.failed.acquire(), 20)
    assert [record.message for record in caplog.records] == ["calls of recorders that died are closed later"]
    rows.queue._recovery.cancel()
    await rows.end()
    await catalog.close()


# One process.


def test_import_starts_and_opens_nothing(data_dir: Path) -> None:
    """A process may fork after it has imported all of the recorder: no thread runs and no file is open."""
    script = """
import os, sys, threading
import numpy, soxr  # not ours: what they open is theirs
before = os.listdir("/proc/self/fd")
import edge_recorder, edge_recorder.recorder, edge_recorder.recovery
assert edge_recorder.Recorder
assert threading.active_count() == 1, threading.enumerate()
assert os.listdir("/proc/self/fd") == before
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=data_dir, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert list(data_dir.iterdir()) == []


def test_forked_child_records_beside_its_parent(data_dir: Path) -> None:
    """A child forked while its parent records holds no lock of it, and records with a Recorder of its own."""
    script = """
import os, sys
from edge_recorder import Recorder
def record(text):
    with recorder.start_call(tracks={"user": 8000}, pace="media") as call:
        call.write("user", bytes(16000))
        call.add_message("user", text)
recorder = Recorder(sys.argv[1]).start()
record("parent")
pid = os.fork()
if pid == 0:
    recorder = Recorder(sys.argv[1]).start()
    record("child")
    assert recorder.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert recorder.close()
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    recover(data_dir)
    said = [
        row["text"]
        for call in fetch(data_dir, "calls.all")
        for row in fetch(data_dir, "messages.of_call", call_id=call["call_id"])
    ]
    assert sorted(said) == ["child", "parent"]
    assert spool.writers(data_dir) == []


def test_closed_recorder_leaves_no_thread_and_no_file(data_dir: Path) -> None:
    """After `close` nothing of the recorder is left in the process: no thread, no open file."""
    with Recorder(data_dir):  # what is loaded or opened once for all
        pass
    threads, files = set(threading.enumerate()), open_files(data_dir)
    with Recorder(data_dir) as recorder, recorder.start_call(tracks={"user": 8000}) as call:
        call.write("user", bytes(16000))
    assert set(threading.enumerate()) <= threads
    assert open_files(data_dir) == files == []


def open_files(data_dir: Path) -> list[Path]:
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            found.append(fd.readlink())
    return [each for each in found if each.is_relative_to(data_dir)]

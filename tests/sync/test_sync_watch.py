"""`sync --watch`, as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sites import SEGMENTS, Site

from edge_recorder.errors import Exit
from sync import agent

PROGRAM = Path(sys.executable).with_name("edge-recorder")
PATIENCE = 40.0  # seconds; a busy machine is slow, and a wrong one never gets there


def until(condition: Callable[[], bool]) -> None:
    """Look until `condition` holds: another process makes it so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def watching(site: Site, **sync: float) -> Iterator[subprocess.Popen[bytes]]:
    """Run the agent, with the centre having heard of it."""
    settings = site.settings
    assert settings.store is not None
    assert settings.central is not None
    site.node.configure(
        store={"url": settings.store.url, "endpoint_url": settings.store.endpoint_url},
        central={"dsn": settings.central.dsn.get_secret_value()},
        sync=sync,
    )
    with subprocess.Popen([str(PROGRAM), "--config", str(site.node.config), "sync", "--watch"]) as process:
        try:
            until(lambda: site.query("select 1 from recorder.nodes where next_within is not null") == [(1,)])
            yield process
        finally:
            process.kill()


def arrived(site: Site) -> bool:
    owed = site.query("select audio_owed from recorder.call_list where segments_known > 0")
    receipts = {row["state"]: row["count"] == row["receipts"] for row in site.node.fetch("objects.counts")}
    return owed == [(0,)] and receipts == {"stored": True}


def test_commit_wakes_the_legs(site: Site) -> None:
    """What is recorded while the agent watches arrives long before its timer."""
    with watching(site, interval=600, scan_interval=600):
        site.call()
        until(lambda: arrived(site))
    site.check_complete()


def test_watching_heals_by_its_timer(site: Site) -> None:
    """After an outage of both destinations everything arrives with nothing new written."""
    with watching(site, interval=0.1, max_backoff=0.2):
        for door in (site.before_s3, site.before_postgres):
            door.close()
        site.call()
        until(lambda: bool(site.node.fetch("objects.problems", limit=1)))
        for door in (site.before_s3, site.before_postgres):
            door.open()
        until(lambda: arrived(site))
    site.check_complete()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, Exit.DONE), (signal.SIGINT, Exit.INTERRUPTED)])
def test_signal_ends_it_in_order(site: Site, number: signal.Signals, code: Exit) -> None:
    """A signal ends the agent at once, by its own exit code."""
    with watching(site, interval=600) as process:
        process.send_signal(number)
        assert process.wait(PATIENCE) == code


async def test_without_inotify_the_timer_is_left(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be watched, that is said once, and the timer brings everything all the same."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr("watchfiles.awatch", refuse)
    await asyncio.to_thread(site.call)
    finished = asyncio.Event()

    def progress(at: agent.Progress) -> None:
        if at.objects == SEGMENTS:
            finished.set()

    running = asyncio.create_task(agent.run(site.settings, watch=True, progress=progress))
    await finished.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert (await running).exit_code in {Exit.DONE, Exit.PARTIAL}
    assert "cannot watch the catalog (OS file watch limit reached)" in caplog.text


async def test_request_that_hangs_does_not_hold_up_the_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal ends a pass though a store never answers; what was under way is owed as before."""
    monkeypatch.setattr(agent, "GRACE", 0.1)
    await asyncio.to_thread(site.call)
    pushed = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = site.settings
        assert settings.store is not None
        hanging = settings.model_copy(update={"store": settings.store.model_copy(update={"endpoint_url": endpoint})})
        running = asyncio.create_task(agent.run(hanging, progress=lambda at: pushed.set() if at.rows else None))
        await pushed.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        summary = await running
    assert (summary.exit_code, summary.upload.owed) == (Exit.PARTIAL, SEGMENTS)

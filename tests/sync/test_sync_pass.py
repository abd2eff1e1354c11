"""One pass of the agent, end to end: real files, a real SQLite, S3 server and Postgres."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sites import SEGMENTS, Site

from edge_recorder import spool
from edge_recorder.errors import Exit, LockHeld


def test_everything_arrives_once(site: Site) -> None:
    """A pass brings every file and every fact to its store, and takes a receipt for each file."""
    site.call()
    summary = site.sync()
    assert summary.exit_code == Exit.DONE
    assert (summary.upload.arrived, summary.upload.owed, summary.push.owed) == (SEGMENTS, 0, 0)
    site.check_complete()


def test_second_pass_has_nothing_to_do(site: Site) -> None:
    """What has arrived is not sent again."""
    site.call()
    site.sync()
    again = site.sync()
    assert (again.exit_code, again.upload.arrived, again.push.arrived) == (Exit.DONE, 0, 0)


def test_s3_down_leaves_audio_owed(site: Site) -> None:
    """Without S3 the facts reach the centre, which shows what audio is owed."""
    site.call()
    site.before_s3.close()
    summary = site.sync()
    assert summary.exit_code == Exit.PARTIAL
    assert (summary.upload.owed, summary.upload.error_class, summary.push.owed) == (SEGMENTS, "transient", 0)
    assert site.query("select segments_known, audio_owed from recorder.call_list") == [(SEGMENTS, SEGMENTS)]
    assert site.bucket.keys() == []


def test_postgres_down_leaves_facts_owed(site: Site) -> None:
    """Without Postgres the audio reaches S3."""
    site.call()
    site.before_postgres.close()
    summary = site.sync()
    assert summary.exit_code == Exit.PARTIAL
    assert (summary.upload.owed, summary.push.error_class) == (0, "transient")
    assert summary.push.owed > 0
    assert len(site.bucket.keys()) == SEGMENTS
    assert site.query("select count(*) from recorder.calls") == [(0,)]


def test_heals_when_a_destination_returns_with_nothing_new_written(site: Site) -> None:
    """After an outage of both, the next pass brings everything, once, without a new fact to wake it."""
    site.call()
    for door in (site.before_s3, site.before_postgres):
        door.close()
    assert site.sync().exit_code == Exit.PARTIAL
    site.before_postgres.open()
    assert site.sync().exit_code == Exit.PARTIAL
    site.before_s3.open()
    assert site.sync().exit_code == Exit.DONE
    site.check_complete()


def test_second_agent_is_refused(site: Site) -> None:
    """One agent works on a data_dir at a time; another is told so, with its own exit code."""
    with spool.agent_lock(site.node.data_dir), pytest.raises(LockHeld):
        site.sync()
    with spool.agent_lock(site.node.data_dir):
        assert site.node.run("sync").code == Exit.LOCK_HELD


def test_two_calls_are_no_obstacle_to_each_other(site: Site) -> None:
    """Calls of several passes add up."""
    site.call()
    site.sync()
    site.call(seed=7)
    site.sync()
    site.check_complete(calls=2)


def test_without_central_changes_are_kept(site: Site) -> None:
    """A node without [central] uploads, and says what it keeps for later; when the centre is set, it gets all."""
    site.call()
    store, central = site.settings.store, site.settings.central
    assert store is not None
    assert central is not None
    site.node.configure(store={"url": store.url, "endpoint_url": store.endpoint_url})
    summary = site.sync()
    assert (summary.exit_code, summary.push.destination) == (Exit.DONE, None)
    assert summary.push.owed > SEGMENTS
    site.node.configure(
        store={"url": store.url, "endpoint_url": store.endpoint_url}, central={"dsn": central.dsn.get_secret_value()}
    )
    assert site.sync().exit_code == Exit.DONE
    site.check_complete()


def test_without_store_audio_is_kept(site: Site) -> None:
    """A node without [store] pushes its facts, and says what audio it keeps for later."""
    site.call()
    central = site.settings.central
    assert central is not None
    site.node.configure(central={"dsn": central.dsn.get_secret_value()})
    summary = site.sync()
    assert (summary.exit_code, summary.upload.destination, summary.upload.owed) == (Exit.DONE, None, SEGMENTS)
    assert site.query("select audio_owed from recorder.call_list") == [(SEGMENTS,)]


FORBIDDEN = ("botocore", "boto3", "aioboto3", "aiobotocore", "aiohttp", "psycopg", "numpy", "soundfile", "watchfiles")


def test_nothing_to_do_imports_nothing_heavy(site: Site) -> None:
    """A pass with nothing to do loads no S3, Postgres or audio library."""
    site.call()
    assert site.node.run("sync").code == Exit.DONE
    program = "from edge_recorder.commands import main; main()"
    command = [sys.executable, "-X", "importtime", "-c", program, "--config", str(site.node.config), "sync"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert (done.returncode, imported.intersection(FORBIDDEN)) == (Exit.DONE, set())
    assert "aiosqlite" in imported

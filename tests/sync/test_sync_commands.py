"""`sync` and `status` as an operator sees them."""

from __future__ import annotations

import pytest
from sites import SEGMENTS, Site

from edge_recorder.errors import Exit


def test_sync_says_what_it_did(site: Site) -> None:
    """The last line is for people: what arrived, and that nothing is owed."""
    site.call()
    done = site.node.run("sync")
    assert done.code == Exit.DONE
    assert f"uploaded {SEGMENTS} objects" in done.out
    assert int(done.out.partition("pushed ")[2].split()[0]) > SEGMENTS
    assert done.out.endswith("everything that is configured has arrived\n")


def test_sync_says_what_is_owed_and_why(site: Site) -> None:
    """What is still owed is named with its reason and what to do."""
    site.call()
    site.before_s3.close()
    done = site.node.run("sync")
    assert done.code == Exit.PARTIAL
    assert f"audio: {SEGMENTS} objects still owed to s3://" in done.out
    assert "The next `sync` tries again" in done.out


def test_sync_as_json(site: Site) -> None:
    """Under --json the summary is one versioned document."""
    site.call()
    document = site.node.run("--json", "sync").document
    assert (document["version"], document["exit_code"], document["quarantined"]) == (1, 0, 0)
    assert (document["upload"]["arrived"], document["upload"]["owed"], document["push"]["owed"]) == (SEGMENTS, 0, 0)


@pytest.mark.parametrize("command", ["sync", "status"])
def test_no_catalog(site: Site, command: str) -> None:
    """Where nothing was ever recorded, that is said, and nothing is made."""
    empty = site.node.data_dir.with_name("empty")
    empty.mkdir()
    site.node.data_dir = empty
    site.node.configure(store={"url": "file:///nowhere"})
    assert site.node.run(command).code == Exit.NO_CATALOG
    assert list(empty.iterdir()) == []


def test_nowhere_to_sync_to(site: Site) -> None:
    """Without any destination in the settings `sync` does not pretend that all is well."""
    site.node.configure()
    assert site.node.run("sync").code == Exit.USAGE


def test_status_of_a_healthy_node(site: Site) -> None:
    """A node that owes nothing is healthy."""
    site.call()
    site.node.run("sync")
    done = site.node.run("status", "--check")
    assert (done.code, done.out.splitlines()[-1]) == (Exit.DONE, "healthy")


def test_status_of_a_failing_destination(site: Site) -> None:
    """A destination that fails makes a node unhealthy, with the reason; without --check that is only shown."""
    site.call()
    site.before_s3.close()
    site.sync()
    done = site.node.run("status", "--check")
    assert (done.code, "s3://" in done.out) == (Exit.UNHEALTHY, True)
    assert site.node.run("status").code == Exit.DONE


def test_status_says_an_error_once(site: Site) -> None:
    """Objects that failed alike are listed above one error."""
    site.call()
    site.before_s3.close()
    site.sync()
    rows = site.node.fetch("objects.problems", limit=9)
    out = site.node.run("status").out
    assert len(rows) > 1
    assert all(f"{row['state']}  {row['object_id']}\n" in out for row in rows)
    assert sum(line.startswith("  PutObject") for line in out.splitlines()) == 1


def test_status_of_a_full_disk(site: Site) -> None:
    """A disk on which new calls keep no audio makes a node unhealthy; sizes are for people."""
    site.node.configure(disk={"low_water": 2**60})
    done = site.node.run("status", "--check")
    assert (done.code, "below disk.low_water (1073741824.0 GiB)" in done.out) == (Exit.UNHEALTHY, True)


def test_status_counts_what_goes_nowhere_as_kept(site: Site) -> None:
    """Without a destination in the settings old audio is no alarm."""
    site.call()  # of September, by its times
    assert site.node.run("status", "--check").code == Exit.UNHEALTHY
    site.node.configure()
    assert site.node.run("status", "--check").code == Exit.DONE


def test_status_names_what_is_set_aside(site: Site) -> None:
    """An object that waits for a person is named with its error."""
    call = site.call()
    call.path("user", 1).unlink()
    for _ in range(5):
        site.sync()
        site.clock.go(2000)
    document = site.node.run("--json", "status").document
    assert document["backlog"]["quarantined"] == 1
    assert [row["state"] for row in document["objects"]] == ["quarantined"]
    assert any("set aside" in each for each in document["unhealthy"])

"""`verify`: each kind of difference is made in earnest, and is found, named and explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nodes import MadeCall, Node, noise
from sites import SEGMENTS, Site

from edge_recorder import journal, spool
from edge_recorder.errors import Exit
from sync.commands.verify import SHOWN
from sync.retry import ErrorClass, SyncError
from sync.stores.file import FileStore

Break = Callable[[Site, MadeCall], str]


@pytest.fixture
def call(site: Site) -> MadeCall:
    """A call that is everywhere."""
    call = site.call()
    site.sync()
    return call


def _verify(site: Site, code: int) -> dict[str, Any]:
    done = site.node.run("--json", "verify")
    assert done.code == code, done.out
    report: dict[str, Any] = done.document
    return report


def _flip_a_bit(_: Site, call: MadeCall) -> str:
    data = bytearray(call.path("user").read_bytes())
    data[700] ^= 1
    call.path("user").write_bytes(data)
    return "disk: user-000001.wav: does not hold"


def _delete_a_file(_: Site, call: MadeCall) -> str:
    call.path("user").unlink()
    return "disk: user-000001.wav: is missing"


def _tear_a_header(_: Site, call: MadeCall) -> str:
    call.path("user").write_bytes(b"RIFF")
    return "disk: user-000001.wav: cannot be read"


def _swap_two_files(_: Site, call: MadeCall) -> str:
    call.path("user", 2).write_bytes(call.path("user", 1).read_bytes())
    return "disk: user-000002.wav: does not hold"


def _put_a_stranger(_: Site, call: MadeCall) -> str:
    (call.directory / "holiday.mp3").write_bytes(b"ID3")
    return "disk: holiday.mp3: is not ours"


def _leave_a_part(_: Site, call: MadeCall) -> str:
    spool.part_path(call.path("user", 9)).write_bytes(b"")
    return "disk: user-000009.wav.part: is unsealed"


def _add_a_file(_: Site, call: MadeCall) -> str:
    call.path("user", 9).write_bytes(call.path("user", 1).read_bytes())
    return "catalog: user-000009.wav: is sealed and has no row"


def _add_a_call(site: Site, call: MadeCall) -> str:
    call.directory.with_name("01a203c1-0000-7000-8000-000000000000").mkdir()
    return "catalog: 01a203c1-0000-7000-8000-000000000000: has a directory and no row"


def _delete_an_object(site: Site, _: MadeCall) -> str:
    key = site.bucket.keys()[0]
    site.bucket.client().delete_object(Bucket=site.bucket.name, Key=key)
    return "store: assistant-000001.flac: is missing"


def _replace_an_object(site: Site, _: MadeCall) -> str:
    key = site.bucket.keys()[0]
    site.bucket.client().put_object(Bucket=site.bucket.name, Key=key, Body=site.bucket.read(key))
    return "store: assistant-000001.flac: has another file-sha256"


def _cut_an_object(site: Site, _: MadeCall) -> str:
    key = site.bucket.keys()[0]
    site.bucket.client().put_object(Bucket=site.bucket.name, Key=key, Body=b"fLaC")
    return "store: assistant-000001.flac: has 4 bytes instead of"


def _lose_a_row(site: Site, call: MadeCall) -> str:
    segment = call.segments[0].segment_id
    site.query("delete from recorder.objects where object_id = %s::uuid returning object_id", segment)
    return f"centre: {segment}: is not held"


def _change_a_row(site: Site, call: MadeCall) -> str:
    segment = call.segments[0].segment_id
    site.query("update recorder.objects set file_sha256 = 'ab' where object_id = %s::uuid returning key", segment)
    return f"centre: {segment}: is held with other facts"


def _restore_the_centre(site: Site, _: MadeCall) -> str:
    site.query("update recorder.epochs set cursor = cursor - 1, token = 'older' returning cursor")
    return "centre: : the centre has taken changes up to"


def _supersede(site: Site, _: MadeCall) -> str:
    site.query("update recorder.epochs set superseded_at = now() returning epoch")
    return "centre: : the centre refuses this catalog"


BREAKS: list[Break] = [
    _flip_a_bit,
    _delete_a_file,
    _tear_a_header,
    _swap_two_files,
    _put_a_stranger,
    _leave_a_part,
    _add_a_file,
    _add_a_call,
    _delete_an_object,
    _replace_an_object,
    _cut_an_object,
    _lose_a_row,
    _change_a_row,
    _restore_the_centre,
    _supersede,
]


def test_all_agree(site: Site, call: MadeCall) -> None:
    """After a sync all four places agree, and a second look finds the same."""
    for _ in range(2):
        report = _verify(site, Exit.DONE)
        assert report["counts"] == dict.fromkeys(("files", "rows", "objects", "held"), SEGMENTS)
        assert (report["version"], report["differences"], report["unreachable"]) == (1, [], {})
        assert not any(report["owed"].values())
    assert "agree" in site.node.run("verify").out


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda each: each.__name__.strip("_"))
def test_a_difference_is_found(site: Site, call: MadeCall, break_it: Break) -> None:
    """One difference is one finding, with its place, its item, a likely cause and what to do; and exit 13."""
    place, item, what = break_it(site, call).split(": ", 2)
    (found,) = _verify(site, Exit.INTEGRITY)["differences"]
    assert found["place"] == place
    assert item.strip() in found["item"]
    assert found["what"].startswith(what)
    assert found["cause"]
    assert found["fix"]
    assert found["fix"] in site.node.run("verify").out


def test_what_is_owed_is_no_difference(site: Site) -> None:
    """Audio and changes that were never synced are owed: exit 3, and nothing differs."""
    site.call()
    report = _verify(site, Exit.PARTIAL)
    assert report["differences"] == []
    assert report["owed"]["audio to the store"] == SEGMENTS
    assert report["owed"]["changes to the centre"] > SEGMENTS
    assert report["counts"]["files"] == SEGMENTS


def test_nothing_is_owed_to_nobody(data_dir: Path) -> None:
    """A node without [store] and [central] owes nothing, and agrees with itself."""
    node = Node(data_dir)
    node.call({"user": (8000, [noise(80)])})
    done = node.run("--json", "verify")
    assert (done.code, done.document["counts"]["files"]) == (Exit.DONE, 1)
    assert node.run("verify").out.endswith("\ndisk and catalog agree, and nothing is owed\n")


def test_many_differences_of_a_kind(data_dir: Path) -> None:
    """Of many differences of one kind the first are printed, and the others counted; --json has all."""
    node = Node(data_dir)
    call = node.call({"user": (8000, [noise(80)])})
    for n in range(SHOWN + 5):
        (call.directory / f"{n}.mp3").touch()
    call.path("user").unlink()
    done = node.run("verify")
    assert (done.out.count("is not ours"), done.out.count("is missing")) == (SHOWN, 1)
    assert "disk: and 5 more like these; --json has all" in done.out
    assert len(node.run("--json", "verify").document["differences"]) == SHOWN + 6


def test_without_s3(site: Site, call: MadeCall) -> None:
    """Where S3 cannot be reached, that is said, the rest is compared, and the command has failed."""
    site.before_s3.close()
    report = _verify(site, Exit.FAILED)
    assert list(report["unreachable"]) == [f"s3://{site.bucket.name}/pre"]
    assert report["counts"]["held"] == SEGMENTS


def test_without_postgres(site: Site, call: MadeCall) -> None:
    """Where Postgres cannot be reached, that is said, the rest is compared, and the command has failed."""
    site.before_postgres.close()
    report = _verify(site, Exit.FAILED)
    assert list(report["unreachable"]) == ["centre"]
    assert report["counts"]["objects"] == SEGMENTS
    assert "not looked at: centre" in site.node.run("verify").out


def test_without_settings_for_what_was_synced(site: Site, call: MadeCall) -> None:
    """A node whose [store] and [central] were taken out of the settings cannot compare with them, and says so."""
    site.node.configure()
    report = _verify(site, Exit.FAILED)
    assert sorted(report["unreachable"]) == ["centre", f"s3://{site.bucket.name}/pre"]


def test_a_difference_counts_more_than_an_outage(site: Site, call: MadeCall) -> None:
    """With S3 away and a file gone, the difference decides the exit code."""
    site.before_s3.close()
    call.path("user").unlink()
    assert _verify(site, Exit.INTEGRITY)["unreachable"]


def test_what_a_living_recorder_writes_is_left_alone(data_dir: Path) -> None:
    """Unsealed files, and sealed ones whose rows may follow, are no differences while their recorder lives."""
    node = Node(data_dir)
    call = node.call({"user": (8000, [noise(800)])}, state="live")
    writer = spool.WriterLock(data_dir)
    log = call.directory / spool.JOURNAL
    log.unlink()
    journal.Journal(log, journal.Start(call_id=call.id, started_at=call.row.started_at, writer=writer.name)).close()
    spool.part_path(call.path("user", 2)).write_bytes(b"")
    call.path("assistant").write_bytes(call.path("user").read_bytes())
    living = node.run("--json", "verify")
    assert (living.code, living.document["differences"]) == (Exit.PARTIAL, [])
    assert living.document["owed"] == {"rows of living recorders": 1}
    writer.release(finished=False)
    assert len(node.run("--json", "verify").document["differences"]) == 2


def test_a_store_that_fails_is_asked_once(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one failure a store is not asked for the other objects: each might take its whole timeout."""
    (tmp_path / "store").mkdir()
    node = Node(data_dir, store={"url": f"file://{tmp_path}/store", "concurrency": 1})
    node.call({"user": (8000, [noise(80), noise(80), noise(80)])})
    assert node.run("sync").code == 0
    asked: list[str] = []

    async def head(_: FileStore, key: str) -> None:
        asked.append(key)
        raise SyncError("the store is away", error_class=ErrorClass.TRANSIENT)

    monkeypatch.setattr(FileStore, "head", head)
    done = node.run("--json", "verify")
    assert done.code == Exit.FAILED
    assert len(asked) == 1


def test_what_a_crash_left_unfinished_is_no_stranger(site: Site, call: MadeCall) -> None:
    """The temporary file of a write that a crash cut off is known for what it is."""
    (call.directory / ".user-000001.wav.part.1a2b.tmp").write_bytes(b"")
    _verify(site, Exit.DONE)


def test_no_catalog(tmp_path: Path, data_dir: Path) -> None:
    """Where nothing was recorded there is nothing to verify: exit 10."""
    node = Node(data_dir)
    (tmp_path / "empty").mkdir()
    node.data_dir = tmp_path / "empty"
    node.configure()
    assert node.run("verify").code == Exit.NO_CATALOG

"""`init` and `repair local`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from nodes import MadeCall, Node, noise

from edge_recorder.catalog import migrate
from edge_recorder.commands import cli
from edge_recorder.errors import CallerError, DataDirError, Exit, SettingsError
from edge_recorder.settings import Settings


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_makes_a_node_that_records(here: Path) -> None:
    """After `init` alone, the settings are read, the catalog is there, and the text says what comes next."""
    done = _run("init")
    assert done.exit_code == 0
    assert "edge-recorder record" in done.output
    assert Settings.load("config.toml").node.data_dir == here / "data"
    assert _run("calls", "list").output == "no calls\n"


def test_init_elsewhere(here: Path) -> None:
    """The settings file and the data directory may be anywhere; the directory is named absolutely."""
    assert _run("--config", "other.toml", "init", "--data-dir", "deep/er").exit_code == 0
    assert Settings.load("other.toml").node.data_dir == here / "deep" / "er"


def test_init_keeps_what_is_there(here: Path) -> None:
    """An existing settings file stays without --force; with it the node stays the same, and so do its recordings."""
    _run("init")
    node = (here / "data" / "node.json").read_bytes()
    (here / "config.toml").write_text("mine")
    done = _run("init")
    assert isinstance(done.exception, CallerError)
    assert "--force" in str(done.exception)
    assert (here / "config.toml").read_text() == "mine"
    assert _run("init", "--force").exit_code == 0
    assert (here / "data" / "node.json").read_bytes() == node


def test_init_where_nothing_can_be_written(here: Path) -> None:
    """A data directory or a settings file that cannot be written is an error, and leaves no settings file."""
    (here / "file").write_text("")
    assert isinstance(_run("init", "--data-dir", "file/data").exception, DataDirError)
    assert not (here / "config.toml").exists()
    assert isinstance(_run("--config", "nowhere/config.toml", "init").exception, SettingsError)


@pytest.fixture
def call(data_dir: Path) -> MadeCall:
    return Node(data_dir).call({"user": (8000, [noise(800), noise(400)])})


def test_repair_brings_a_lost_catalog_back(call: MadeCall) -> None:
    """With the catalog deleted, `repair local` brings every segment and message back from the journals."""
    before = call.node.run("--json", "calls", "show", call.id).document
    for name in ("catalog.db", "catalog.db-wal", "catalog.db-shm"):
        (call.node.data_dir / name).unlink(missing_ok=True)
    assert call.node.run("calls", "list").code == Exit.NO_CATALOG
    report = call.node.run("--json", "repair", "local").document
    assert (report["calls_seen"], report["files_quarantined"]) == (1, 0)
    after = call.node.run("--json", "calls", "show", call.id).document
    assert {row["state"] for row in after["segments"]} == {"unknown"}
    for name in ("call", "spans", "messages", "usage"):
        assert after[name] == before[name]


def test_repair_of_a_sound_node(call: MadeCall) -> None:
    """Repairing what is whole changes nothing, and says so."""
    done = call.node.run("repair", "local")
    assert done.code == 0
    assert "files set aside" in done.out
    assert call.node.run("--json", "calls", "list").document["calls"][0]["audio_owed"] == 2


def test_repair_where_nothing_was_recorded(call: MadeCall, here: Path) -> None:
    """A directory that is no node's is not made one."""
    (here / "empty").mkdir()
    call.node.data_dir = here / "empty"
    call.node.configure()
    assert call.node.run("repair", "local").code == Exit.NO_CATALOG
    assert list((here / "empty").iterdir()) == []


def test_repair_that_cannot_mend_a_call(call: MadeCall) -> None:
    """A call that cannot be read keeps no other from being repaired, is counted, and makes the exit code `partial`."""
    (call.directory.with_name("00000000-0000-7000-8000-000000000000") / "journal.jsonl").mkdir(parents=True)
    done = call.node.run("--json", "repair", "local")
    assert done.code == Exit.PARTIAL
    assert (done.document["calls_seen"], done.document["calls_failed"]) == (2, 1)


@pytest.mark.parametrize("damage", ["garbage", "pages"])
def test_repair_local_replaces_a_broken_catalog(data_dir: Path, damage: str) -> None:
    """A damaged catalog is set aside, never deleted, and every row comes back from the journals."""
    node = Node(data_dir)
    call = node.call({"user": (8000, [noise(800), noise(400)])})
    path = data_dir / "catalog.db"
    whole = path.read_bytes()
    path.write_bytes(b"garbage" * 1000 if damage == "garbage" else whole[:8192] + b"\xff" * (len(whole) - 8192))
    done = node.run("repair", "local")
    assert (done.code, "set aside" in done.err) == (Exit.DONE, True)
    (aside,) = data_dir.glob("catalog.db.broken-*[0-9]")
    assert aside.stat().st_size == (7000 if damage == "garbage" else len(whole))
    assert [row["segment_id"] for row in node.fetch("segments.of_call", call_id=call.id)] == [
        segment.segment_id for segment in call.segments
    ]
    assert node.run("repair", "local").err == ""


def test_commands_say_that_a_data_dir_cannot_be_written(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that is read-only, reading commands end with 12 and what to do, not with a traceback."""
    node = Node(data_dir, store={"url": f"file://{data_dir}"})

    def read_only(path: Path, *_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(migrate, "lock_shared", read_only)
    for command in (("calls", "list"), ("status",), ("verify",), ("sync",)):
        done = node.run(*command)
        assert done.code == Exit.ACCESS, command
        assert "copy the data_dir" in done.err

"""Durable writes: whole or not at all, and nothing left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_recorder import durable

Write = Callable[[Path, bytes], None]
BOTH = pytest.mark.parametrize("write", [durable.replace_with, durable.create_new])
DATA = bytes(range(256)) * 3


def refuse(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@BOTH
def test_file_holds_what_was_written(tmp_path: Path, write: Write) -> None:
    """The file has all bytes, a private mode, and no companion."""
    path = tmp_path / "node.json"
    write(path, DATA)
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o007 == 0
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_changes_the_whole_file(tmp_path: Path) -> None:
    """Who has the old file open goes on reading the old one; who opens it now gets the new one."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as old:
        durable.replace_with(path, b"the new one")
        assert old.read() == b"old"
    assert path.read_bytes() == b"the new one"


def test_creating_leaves_what_is_there(tmp_path: Path) -> None:
    """A file that exists is left as it is, and nothing stays beside it."""
    path = tmp_path / "file"
    path.write_bytes(b"first")
    with pytest.raises(FileExistsError):
        durable.create_new(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@BOTH
def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    """A kernel that takes one byte at a time gets them all."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:1]))
    write(tmp_path / "file", DATA)
    assert (tmp_path / "file").read_bytes() == DATA


def test_short_positioned_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by position, one byte at a time, each byte is at its place and the hole before it reads as zeros."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:1], at))
    samples = np.arange(-50, 50, dtype=np.int16)
    with (tmp_path / "file").open("wb") as file:
        durable.write_all(file.fileno(), samples.data, at=1000)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0
    data = (tmp_path / "file").read_bytes()
    assert data[:1000] == bytes(1000)
    assert np.array_equal(np.frombuffer(data[1000:], np.int16), samples)


def test_disk_that_takes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of no bytes ends in an error, and not in an endless loop."""
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(OSError, match="no bytes"):
        durable.replace_with(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_write_is_written(tmp_path: Path) -> None:
    """No bytes, or no samples, are no error."""
    with (tmp_path / "file").open("wb") as file:
        durable.write_all(file.fileno(), b"")
        durable.write_all(file.fileno(), np.zeros(0, np.int16).data, at=7)
    assert (tmp_path / "file").read_bytes() == b""


@BOTH
@pytest.mark.parametrize("broken", ["write", "fsync"])
def test_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, broken: str) -> None:
    """When the disk refuses bytes or their fsync, there is neither the file nor a temporary one."""
    monkeypatch.setattr(os, broken, refuse)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "file", DATA)
    assert list(tmp_path.iterdir()) == []


def test_failed_replacement_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the fsync of the new file fails, the old one is still there, whole."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        durable.replace_with(path, DATA)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [durable.replace_with, durable.create_new])
def test_failed_naming_leaves_no_temporary_file(tmp_path: Path, write: Write) -> None:
    """When the name cannot be taken (a directory has it), nothing stays beside it."""
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file", DATA)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@BOTH
def test_data_is_synced_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    """The file's bytes are fsynced while it has no name yet, and its directory once it has."""
    path, seen = tmp_path / "file", []
    real = os.fsync

    def watched(fd: int) -> None:
        seen.append((Path(f"/proc/self/fd/{fd}").readlink() == tmp_path, path.exists()))
        real(fd)

    monkeypatch.setattr(os, "fsync", watched)
    write(path, DATA)
    assert seen == [(False, False), (True, True)]


def test_directories_are_made_and_named_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each missing parent is made, and its name fsynced in its own parent before the next is made in it."""
    synced = []
    real = durable.fsync_dir
    monkeypatch.setattr(durable, "fsync_dir", lambda path: (synced.append(path), real(path)))
    durable.make_dirs(tmp_path / "a" / "b" / "c")
    durable.make_dirs(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_file_in_the_place_of_a_directory_is_an_error(tmp_path: Path) -> None:
    """A file where a directory must be is not passed over."""
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError, match="a"):
        durable.make_dirs(tmp_path / "a" / "b")


def test_no_descriptor_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it succeeds or fails, a durable write closes what it opened."""
    before = open_files()
    durable.replace_with(tmp_path / "file", DATA)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        durable.replace_with(tmp_path / "file", DATA)
    with pytest.raises(OSError, match="Input/output"):
        durable.fsync_dir(tmp_path)
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))

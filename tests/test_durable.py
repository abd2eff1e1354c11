"""Durable writes: whole or not at all, and nothing left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from disks import open_files

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


def test_directory_whose_name_is_not_durable_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the name of a new directory cannot be synced, it is not taken for durable by who asks next."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="Input/output"):
            durable.make_dirs(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    durable.make_dirs(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


# Many files at once.


@pytest.fixture
def many(tmp_path: Path) -> Iterator[list[int]]:
    """Enough open files, and a directory, for one sync of their whole file system."""
    fds = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(durable.MANY)]
    fds.append(durable.open_dir(tmp_path))
    for fd in fds[:-1]:
        durable.write_all(fd, DATA)
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """The root of a file system that tells of errors."""
    fd = durable.open_dir(tmp_path)
    yield fd
    durable._distrusted.discard(fd)
    os.close(fd)


def test_each_file_is_synced(many: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a root each file is asked, its data alone where that is enough; a failure is its own."""
    synced: dict[str, list[int]] = {"fsync": [], "fdatasync": []}
    for name, seen in synced.items():
        monkeypatch.setattr(os, name, lambda fd, seen=seen: (seen.append(fd), refuse() if fd == many[3] else None))
    failures = durable.sync_all(many, root=None)
    assert synced == {"fsync": many[-1:], "fdatasync": many[:-1]}
    assert {fd: error.errno for fd, error in failures.items()} == {many[3]: errno.EIO}


def test_descriptor_that_is_closed_is_a_failure(tmp_path: Path) -> None:
    """What cannot be asked is not taken for synced."""
    fd = durable.open_dir(tmp_path)
    os.close(fd)
    assert durable.sync_all([fd], root=None)[fd].errno == errno.EBADF


@pytest.mark.skipif(durable._SYNCFS is None, reason="there is no syncfs here")
def test_many_files_are_synced_together(many: list[int], root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a root, from MANY files on, no file is asked; with fewer, each is."""
    monkeypatch.setattr(os, "fdatasync", refuse)
    assert durable.sync_all(many, root=root) == {}
    few = many[: durable.MANY - 1]
    assert list(durable.sync_all(few, root=root)) == few


def test_error_of_the_whole_is_told_file_by_file(many: list[int], root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one sync of the whole has failed each file is asked, then and ever after: the next success may be a lie."""
    answers = iter([-1, 0, 0])
    monkeypatch.setattr(durable, "_SYNCFS", lambda _: next(answers))
    monkeypatch.setattr(os, "fdatasync", lambda fd: refuse() if fd == many[0] else None)
    for _ in range(3):
        assert list(durable.sync_all(many, root=root)) == many[:1]
    assert list(answers) == [0, 0]


def test_file_elsewhere_is_not_synced_with_the_whole(
    many: list[int], root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a mount or a link put on another file system is not covered by a sync of this one."""
    elsewhere = os.open("/dev/full", os.O_RDWR)
    asked = []
    monkeypatch.setattr(durable, "_SYNCFS", lambda _: 0)
    monkeypatch.setattr(os, "fdatasync", asked.append)
    durable.sync_all([*many, elsewhere], root=root)
    os.close(elsewhere)
    assert asked == [*many[:-1], elsewhere]


def test_errors_of_one_sync_are_not_taken_by_another(
    many: list[int], root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of an error once: who asked at the same time is not told that all is well."""
    asking, others = threading.Event(), []

    def tell_once(_: int) -> int:
        """Fail, once another has come to ask."""
        if not others:
            others.append(threading.Thread(target=lambda: found.append(durable.sync_all(many, root=root))))
            others[0].start()
            assert asking.wait(10)
            return -1
        return 0

    real = durable._sync_file_system

    def watched(fd: int, fds: Sequence[int]) -> bool:
        if threading.current_thread() in others:
            asking.set()
        return real(fd, fds)

    found: list[dict[int, OSError]] = []
    monkeypatch.setattr(durable, "_SYNCFS", tell_once)
    monkeypatch.setattr(durable, "_sync_file_system", watched)
    monkeypatch.setattr(os, "fdatasync", lambda fd: refuse() if fd == many[0] else None)
    found.append(durable.sync_all(many, root=root))
    others[0].join(10)
    assert [list(each) for each in found] == [many[:1], many[:1]]


@pytest.mark.parametrize(
    ("file_system", "release", "trusted"),
    [
        ("ext4", "6.18.44-generic", True),
        ("xfs", "5.8.0", True),
        ("btrfs", "5.15.90.1-microsoft-standard", True),
        ("ext4", "5.4.0-42", False),
        ("ext4", "4.19", False),
        ("ext4", "unknown", False),
        ("ext3", "6.1.0", False),
        ("overlay", "6.1.0", False),
        ("fuse.x", "6.1.0", False),
        ("", "6.1.0", False),
    ],
)
def test_whole_is_synced_only_where_errors_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_system: str, release: str, trusted: bool
) -> None:
    """Before Linux 5.8, and on file systems that are not known to, one sync of the whole told of no errors."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    monkeypatch.setattr(durable, "_SYNCFS", lambda _: 0)
    root = durable.whole_sync(tmp_path, file_system)
    assert (root is not None) == trusted
    if root is not None:
        assert os.path.samestat(os.fstat(root), tmp_path.stat())
        os.close(root)


def test_forked_child_waits_for_no_lock_of_its_parent(tmp_path: Path) -> None:
    """Who forks while another thread makes a directory, or syncs a stalled disk, has a child that can do both."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from edge_recorder import durable\n"
        "with durable._locks['make_dirs'], durable._locks['syncfs']:\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        signal.alarm(20)\n"
        "        durable.make_dirs(Path(sys.argv[1]) / 'a')\n"
        "        root = durable.open_dir(Path(sys.argv[1]))\n"
        "        os._exit(len(durable.sync_all([root] * durable.MANY, root=root)))\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=40, check=False)
    assert done.returncode == 0
    assert (tmp_path / "a").is_dir()

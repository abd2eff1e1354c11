"""
The directory tree of a node: where each file of a call is, who writes it, and how much room is left.

    data_dir/
      node.json                               which node this is
      catalog.db (and catalog.guard)          the catalog: see catalog/connection.py
      agent.lock, rebuild.lock                the one agent; the one process that rebuilds a lost catalog
      writers/{boot}-{random}.lock            one per recorder, locked for its life
      spool/{yyyy}/{mm}/{dd}/{call_id}/       one call, by the date of its start (UTC)
        journal.jsonl                         its facts
        {track}-{seq:06d}.wav                 a sealed segment; .wav.part until then

A name says all that it is: no table is needed to find a call's files or to know what a file holds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from edge_recorder import durable
from edge_recorder.errors import DataDirError, LockHeld
from edge_recorder.model import Instant

JOURNAL = "journal.jsonl"
SEALED = ".wav"
PART = ".wav.part"
NODE_FORMAT = 1

_SEGMENT_NAME = re.compile(r"(?P<track>[a-z0-9_]{1,32})-(?P<seq>[0-9]{6,})(?P<suffix>\.wav|\.wav\.part)")
# Where flock, POSIX locks or shared memory do not hold between processes. Of FUSE those that reach over a network, or
# into another system; one that names no kind is mostly an S3 or WebDAV mount. Not here, as they keep all three: gfs2,
# ocfs2, and virtiofs within one machine.
_NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "coda", "9p", "davfs"),
        *("ceph", "glusterfs", "lustre", "beegfs", "fhgfs", "orangefs", "pvfs2", "gpfs", "panfs"),
        *("vboxsf", "prl_fs", "vmhgfs", "osxfs"),  # shared folders of virtual machines
        "fuse",
        *("fuse.sshfs", "fuse.curlftpfs", "fuse.smbnetfs", "fuse.davfs2", "fuse.rclone"),
        *("fuse.s3fs", "fuse.goofys", "fuse.geesefs", "fuse.mountpoint-s3", "fuse.mount-s3", "fuse.s3ql"),
        *("fuse.gcsfuse", "fuse.blobfuse", "fuse.blobfuse2", "fuse.juicefs", "fuse.JuiceFS", "fuse.seaweedfs"),
        *("fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.mfs", "fuse.moosefs", "fuse.lizardfs"),
        *("fuse.vmhgfs-fuse", "fuse.osxfs", "fuse.grpcfuse"),
    }
)


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """What a segment file's name says."""

    path: Path
    track: str
    seq: int
    sealed: bool


def call_dir(data_dir: Path, call_id: str, started_at: Instant) -> Path:
    day = datetime.fromtimestamp(started_at / 1_000_000, UTC)
    return data_dir / "spool" / f"{day:%Y}" / f"{day:%m}" / f"{day:%d}" / call_id


def segment_path(directory: Path, track: str, seq: int) -> Path:
    """Return where the sealed segment is, in its call's `directory`."""
    return directory / f"{track}-{seq:06d}{SEALED}"


def part_path(sealed: Path) -> Path:
    return sealed.with_name(sealed.name + ".part")


def segment_files(directory: Path) -> list[SegmentFile]:
    """Return the segment files of a call's `directory`, by name; whatever else is there is left out."""
    named = ((path, _SEGMENT_NAME.fullmatch(path.name)) for path in sorted(directory.iterdir()))
    return [SegmentFile(path, m["track"], int(m["seq"]), m["suffix"] == SEALED) for path, m in named if m]


def call_dirs(data_dir: Path) -> Iterator[Path]:
    """Yield the directory of every call, oldest day first."""
    found = sorted((data_dir / "spool").glob("[0-9][0-9][0-9][0-9]/[0-9][0-9]/[0-9][0-9]/*-*-*-*-*"))
    yield from (path for path in found if path.is_dir())


def free_bytes(data_dir: Path) -> int:
    """Return the bytes that an ordinary user may still write."""
    room = os.statvfs(data_dir)
    return room.f_bavail * room.f_frsize


def prepare(data_dir: Path) -> str:
    """Make `data_dir` ready to record into, and return its node_id, made when it is first opened.

    Raises:
        DataDirError: It cannot be written, or is on a network file system.
    """
    try:
        durable.make_dirs(data_dir.absolute())
        _refuse_network(data_dir)
        durable.make_dirs(data_dir.absolute() / "spool")
        durable.make_dirs(data_dir.absolute() / "writers")
        _refuse_read_only(data_dir)
        if not (data_dir / "node.json").exists():
            _make_node(data_dir)
    except OSError as error:
        raise DataDirError(
            f"cannot keep recordings in {data_dir}: {error.strerror or error}",
            fix="Choose a writable directory on a local disk as node.data_dir",
        ) from error
    return node_id(data_dir)


def node_id(data_dir: Path) -> str:
    """Return which node `data_dir` is.

    Raises:
        DataDirError: It was never prepared, or its node.json is damaged.
    """
    try:
        return str(json.loads((data_dir / "node.json").read_bytes())["node_id"])
    except FileNotFoundError:
        raise DataDirError(f"{data_dir} is not a recorder's data_dir", fix="Check node.data_dir") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataDirError(
            f"{data_dir / 'node.json'} cannot be read: {error}", fix="Restore it: it says which node this is"
        ) from error


@contextmanager
def agent_lock(data_dir: Path) -> Iterator[None]:
    """Be the one agent of `data_dir`.

    Raises:
        LockHeld: Another agent is at work there.
    """
    with _tried(data_dir / "agent.lock") as ours:
        if not ours:
            raise LockHeld(f"another agent is at work in {data_dir}", fix="Let it finish, or stop it")
        yield


@contextmanager
def rebuilding(data_dir: Path) -> Iterator[bool]:
    """Be the one process that rebuilds a lost catalog. Yields False where another does."""
    with _tried(data_dir / "rebuild.lock") as ours:
        yield ours


@contextmanager
def _tried(path: Path) -> Iterator[bool]:
    fd = open_lock(path)
    try:
        yield try_lock(fd)
    finally:
        let_go(fd)


class WriterLock:
    """The lock of one recorder, held for its life: while it is, nobody salvages what that recorder writes."""

    def __init__(self, data_dir: Path) -> None:
        while True:
            self.name = f"{boot_id()}-{secrets.token_hex(4)}"
            self._path = _writer_path(data_dir, self.name)
            self._fd = open_lock(self._path, os.O_CREAT | os.O_EXCL)
            if try_lock(self._fd) and is_at(self._fd, self._path):
                break
            let_go(self._fd)  # a recovery took it for a dead one's before it was locked

    def release(self, *, finished: bool) -> None:
        """Let go. A recorder that leaves something unfinished leaves its lock file, which calls for recovery."""
        if finished:
            self._path.unlink(missing_ok=True)
        let_go(self._fd)


_held: set[int] = set()


def open_lock(path: Path, flags: int = os.O_CREAT) -> int:
    """Open a file to lock it. A forked child closes it, or the lock would outlive us there."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, durable.FILE_MODE)
    _held.add(fd)
    return fd


def let_go(fd: int) -> None:
    """Close what `open_lock` opened. In a forked child it is closed already, and its number may be another's."""
    if fd in _held:
        _held.discard(fd)
        os.close(fd)


def _let_go_in_child() -> None:
    for fd in list(_held):
        let_go(fd)


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def taken_over(data_dir: Path, writer: str) -> Iterator[bool]:
    """Hold the lock of a dead `writer` while its files are mended. Yields False where it lives or is taken."""
    path = _writer_path(data_dir, writer)
    left_behind = path.exists()
    fd = open_lock(path)
    held = try_lock(fd) and is_at(fd, path)  # who held it before may have removed it
    try:
        yield held
    finally:
        if held and not left_behind:
            path.unlink(missing_ok=True)
        let_go(fd)


def try_lock(fd: int, how: int = fcntl.LOCK_EX) -> bool:
    """Lock the file that is open as `fd`, unless that would have to wait for another."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(fd: int, path: Path) -> bool:
    """Say whether `path` still names the file that is open as `fd`."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def writers(data_dir: Path) -> list[str]:
    """Return the writers that have a lock file, alive or not."""
    return sorted(path.stem for path in (data_dir / "writers").glob("*.lock"))


def dead_writers(data_dir: Path) -> list[str]:
    """Return the writers that left a lock file and are not alive, or are being mended."""
    dead = []
    for writer in writers(data_dir):
        with taken_over(data_dir, writer) as free:
            if free:
                dead.append(writer)
    return dead


def was_alive(data_dir: Path, *, at: float) -> bool:
    """Say whether a recorder that lives now lived already `at` that time (seconds since 1970)."""
    living = set(writers(data_dir)) - set(dead_writers(data_dir))
    return any(_writer_path(data_dir, writer).stat().st_mtime <= at for writer in living)


def clear_writer(data_dir: Path, writer: str) -> None:
    """Remove the lock file of a dead writer whose calls are all closed."""
    _writer_path(data_dir, writer).unlink(missing_ok=True)


def to_quarantine(data_dir: Path, path: Path, note: str) -> Path:
    """Move a file that is not what its name says out of the spool, with a note of why. It is never deleted."""
    target = data_dir / "quarantine" / path.parent.name / path.name
    durable.make_dirs(target.parent)
    durable.replace_with(target.with_name(target.name + ".txt"), f"{note}\nfrom {path}\n".encode())
    path.rename(target)
    durable.fsync_dir(target.parent)
    return target


def boot_id() -> str:
    """Return a short id of this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:12]
    except OSError:  # not Linux
        return "noboot"


def _writer_path(data_dir: Path, writer: str) -> Path:
    return data_dir / "writers" / f"{writer}.lock"


def _make_node(data_dir: Path) -> None:
    node = {"format": NODE_FORMAT, "node_id": str(uuid4()), "label": socket.gethostname()}
    try:
        durable.create_new(data_dir / "node.json", json.dumps(node).encode())
    except FileExistsError:
        return  # another process was first: that node it is


def _refuse_read_only(data_dir: Path) -> None:
    for directory in (data_dir, data_dir / "spool", data_dir / "writers"):
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it cannot be written", str(directory))


def _refuse_network(data_dir: Path) -> None:
    kind = file_system(data_dir)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise DataDirError(
            f"{data_dir} is on a network file system ({kind}), where SQLite's locks do not hold",
            fix="Choose a directory on a local disk as node.data_dir",
        )


def file_system(path: Path) -> str:
    """Return the kind of the file system that `path` is on, as /proc/mounts names it; empty where there is none."""
    target, best = str(path.resolve()), ("", "")
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:  # not Linux
        return ""
    for line in mounts:
        _, point, kind, *_ = line.split(" ")
        where = point.replace("\\040", " ").rstrip("/") + "/"
        if (target + "/").startswith(where) and len(where) >= len(best[0]):
            best = (where, kind)
    return best[1]

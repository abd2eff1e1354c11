"""
Making bytes and names survive: write -> fsync -> rename -> fsync the directory. The only file that knows fsync.

A crash between the steps of `replace_with` leaves
    after write   a `.tmp` file that nobody reads;
    after fsync   the same, complete;
    after rename  the new file, or after power loss perhaps the old one: both whole;
    after fsync of the directory, the new file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sys
from pathlib import Path

DIRECTORY_MODE = 0o750
FILE_MODE = 0o640


def sync_data(fd: int) -> None:
    """Make the data of `fd`, and its length, survive power loss."""
    if sys.platform == "darwin":  # its fsync leaves the data in the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def fsync_dir(path: Path) -> None:
    """Make the names in `path` survive power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dirs(path: Path) -> None:
    """Make `path` and its missing parents, each name durable before the next is made in it."""
    if path.is_dir():
        return
    make_dirs(path.parent)
    path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    fsync_dir(path.parent)


def replace_with(path: Path, data: bytes) -> None:
    """Write `data` as `path`, replacing what is there: a reader sees the old file or the new one, whole."""
    temporary = _write_beside(path, data)
    try:
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def create_new(path: Path, data: bytes) -> None:
    """Write `data` as the new file `path`.

    Raises:
        FileExistsError: `path` exists; it is left as it is.
    """
    temporary = _write_beside(path, data)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


def _write_beside(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        write_all(fd, data)
        os.fsync(fd)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return temporary


def write_all(fd: int, data: bytes | memoryview, *, at: int | None = None) -> None:
    """Write all of `data`, at a position or at the file's own; a short write goes on where it stopped.

    Raises:
        OSError: The disk refused; what was written before that stays.
    """
    view = memoryview(data).cast("B")
    while view:
        done = os.write(fd, view) if at is None else os.pwrite(fd, view, at)
        if done == 0:
            raise OSError(errno.EIO, "the disk took no bytes")
        view = view[done:]
        at = None if at is None else at + done

"""
Making a catalog, bringing an older one up to date, and being alone while that happens.

`schema.sql` and `triggers.sql` are the newest shape, and what a new catalog is made from. `migrations/NNNN_what.sql`
brings version NNNN - 1 to NNNN, each in one transaction with its `user_version`; within a major version they only add.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time_ns
from uuid import uuid4

from edge_recorder import durable, spool
from edge_recorder.catalog import sqlite
from edge_recorder.errors import NoCatalog, UnsafeRuntime

SCHEMA_VERSION = 1
_HERE = Path(__file__).parent
_MIGRATIONS = _HERE / "migrations"


class NotCurrent(Exception):
    """The catalog must be made or migrated before it is opened."""


def guard_path(catalog: Path) -> Path:
    return catalog.with_name("catalog.guard")


def request_path(catalog: Path) -> Path:
    return catalog.with_name("catalog.request")


def lock_shared(path: Path) -> int:
    """Hold `path` shared, waiting for who holds it alone; `spool.let_go` of what is returned lets go."""
    fd = _lock(path, fcntl.LOCK_SH)
    spool.hold(fd)
    return fd


def open_current(path: Path) -> sqlite3.Connection:
    """Open the catalog at `path`, for one who holds the guard shared.

    Raises:
        NotCurrent: It does not exist, or is of an older version.
        UnsafeRuntime: It is of a newer major version, or this SQLite is too old for it.
    """
    if not path.exists():
        raise NotCurrent
    connection = sqlite.connect(path, create=False)
    version = _version(connection)
    if version == SCHEMA_VERSION:
        return connection
    connection.close()
    if version > SCHEMA_VERSION:
        raise UnsafeRuntime(
            f"{path} has schema {version}, and this release knows {SCHEMA_VERSION}", fix="Upgrade edge-recorder"
        )
    raise NotCurrent


def bring_up_to_date(path: Path, *, create_for: str | None) -> None:
    """Make the catalog for node `create_for` where there is none, or migrate it, alone.

    Raises:
        NoCatalog: There is none, or an empty file, and `create_for` is None.
    """
    if not path.exists() and create_for is None:
        raise NoCatalog(
            f"{path} does not exist", fix="Check node.data_dir; `edge-recorder repair local` rebuilds a lost catalog"
        )
    with _locked(request_path(path), remove=True):
        if path.exists() and _is_current(path):
            return  # another process did it while we waited for our turn
        with _locked(guard_path(path)):
            if create_for is not None:
                path.touch(durable.FILE_MODE)  # SQLite would let anyone read it
            connection = sqlite.connect(path, create=create_for is not None)
            try:
                if _version(connection) == 0:
                    if create_for is None:
                        raise NoCatalog(f"{path} is empty", fix="Start a recorder, or run `edge-recorder repair local`")
                    _create(connection, node_id=create_for)
                for version, script in _steps(after=_version(connection)):
                    _run(connection, script, version)
            finally:
                connection.close()


def set_aside(path: Path) -> Path:
    """Rename a catalog that is broken out of the way, alone; it is never deleted. Returns its new name."""
    aside = path.with_name(f"{path.name}.broken-{time_ns() // 1_000_000_000}")
    with _locked(request_path(path), remove=True), _locked(guard_path(path)):
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def wait_for_requester(path: Path) -> None:
    """Wait until who asked to be alone is done. A request whose maker died is removed: its lock is free."""
    try:
        request = os.open(request_path(path), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(request, fcntl.LOCK_EX)
        if spool.is_at(request, request_path(path)):  # and not the next one's
            request_path(path).unlink()
    finally:
        os.close(request)


def _lock(path: Path, how: int) -> int:
    """Lock the file that is at `path` once the lock is held: its last holder may have removed the one we opened."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        fcntl.flock(fd, how)
        if spool.is_at(fd, path):
            return fd
        os.close(fd)


@contextmanager
def _locked(path: Path, *, remove: bool = False) -> Iterator[None]:
    fd = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        os.close(fd)


def _is_current(path: Path) -> bool:
    connection = sqlite.connect(path, create=False)
    try:
        return _version(connection) == SCHEMA_VERSION
    finally:
        connection.close()


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _create(connection: sqlite3.Connection, *, node_id: str) -> None:
    script = (_HERE / "schema.sql").read_text() + (_HERE / "triggers.sql").read_text()
    identity = f"INSERT INTO identity VALUES ('{node_id}', '{uuid4()}', {time_ns() // 1000});"
    _run(connection, f"{script}\n{identity}\nPRAGMA application_id = {sqlite.APPLICATION_ID};", SCHEMA_VERSION)


def _run(connection: sqlite3.Connection, script: str, version: int) -> None:
    connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {version};\nCOMMIT;")


def _steps(*, after: int, folder: Path = _MIGRATIONS) -> list[tuple[int, str]]:
    numbered = sorted((int(file.name[:4]), file) for file in folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    return [(number, file.read_text()) for number, file in numbered if number > after]

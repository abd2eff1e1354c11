"""
Making a catalog, bringing an older one up to date, and being alone while that happens.

`schema.sql` and `triggers.sql` are the newest shape, and what a new catalog is made from. `migrations/NNNN_what.sql`
brings version NNNN - 1 to NNNN, each in one transaction with its `user_version`. Up to 0999 they only add: tables,
triggers, and columns that may be NULL or have a default. So a recorder of an earlier release, which names the columns
that it writes, goes on while a later one migrates under it. 1000 would begin the next major version, which it refuses.

Being alone is never waited for without limit: one process that was stopped would stop them all.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from time import monotonic, time_ns
from uuid import uuid4

from edge_recorder import durable, spool
from edge_recorder.catalog import sqlite
from edge_recorder.errors import CatalogBusy, NoCatalog, UnsafeRuntime

SCHEMA_VERSION = 1
MAJOR = 1000  # versions from one multiple of it to the next are of one major version: they only add
PATIENCE = 5.0  # seconds that another process is waited for
POLL = 0.01  # seconds between tries
FIX = "Wait for the process that holds it, or end it: `fuser -v` names it"

_HERE = Path(__file__).parent
_MIGRATIONS = _HERE / "migrations"


class NotCurrent(Exception):
    """The catalog must be made or migrated before it is opened."""


def guard_path(catalog: Path) -> Path:
    return catalog.with_name("catalog.guard")


def request_path(catalog: Path) -> Path:
    return catalog.with_name("catalog.request")


def open_shared(path: Path, hurry: Event, *, adding: bool = False) -> tuple[int, sqlite3.Connection]:
    """Hold the guard shared, and open the catalog at `path`. `spool.let_go` of the guard lets go of it.

    Args:
        hurry: Set when it is no longer worth the wait.
        adding: We only add facts, as recorders do: a catalog of a later release will do, where that only added too.

    Raises:
        NotCurrent: It does not exist, or is of an older version.
        CatalogBusy: Another process holds it alone.
        UnsafeRuntime: It is of a later release, or this SQLite is too old for it.
    """
    wait_for_requester(path, hurry)
    guard = lock_shared(guard_path(path), hurry)
    try:
        return guard, _open_current(path, adding=adding)
    except BaseException:
        spool.let_go(guard)
        raise


def lock_shared(path: Path, hurry: Event) -> int:
    """Hold `path` shared; `spool.let_go` of what is returned lets go."""
    return _lock(path, fcntl.LOCK_SH, hurry)


def _open_current(path: Path, *, adding: bool) -> sqlite3.Connection:
    if not path.exists():
        raise NotCurrent
    connection = sqlite.connect(path, create=False)
    version = _version(connection)
    if version == SCHEMA_VERSION or (adding and _only_adds(version)):
        return connection
    connection.close()
    if version > SCHEMA_VERSION:
        raise UnsafeRuntime(
            f"{path} has schema {version}, and this release knows {SCHEMA_VERSION}", fix="Upgrade edge-recorder"
        )
    raise NotCurrent


def _only_adds(version: int) -> bool:
    return version > SCHEMA_VERSION and version // MAJOR == SCHEMA_VERSION // MAJOR


def bring_up_to_date(path: Path, hurry: Event, *, create_for: str | None) -> None:
    """Make the catalog for node `create_for` where there is none, or migrate it, alone.

    Raises:
        NoCatalog: There is none, or an empty file, and `create_for` is None.
        CatalogBusy: A process that holds it does not let go.
    """
    if not path.exists() and create_for is None:
        raise NoCatalog(
            f"{path} does not exist", fix="Check node.data_dir; `edge-recorder repair local` rebuilds a lost catalog"
        )
    with _locked(request_path(path), hurry, remove=True):
        if path.exists() and _is_current(path):
            return  # another process did it while we waited for our turn
        with _locked(guard_path(path), hurry):
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
    """Rename a catalog that is broken out of the way, alone; it is never deleted. Returns its new name.

    Raises:
        CatalogBusy: A process that holds it does not let go.
    """
    aside = path.with_name(f"{path.name}.broken-{time_ns() // 1_000_000_000}")
    with _locked(request_path(path), Event(), remove=True), _locked(guard_path(path), Event()):
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def wait_for_requester(path: Path, hurry: Event) -> None:
    """Wait until who asked to be alone is done. A request whose maker died is removed: its lock is free."""
    try:
        request = spool.open_lock(request_path(path), 0)
    except FileNotFoundError:
        return
    try:
        _take(request, fcntl.LOCK_EX, request_path(path), hurry)
        if spool.is_at(request, request_path(path)):  # and not the next one's
            request_path(path).unlink()
    finally:
        spool.let_go(request)


def _lock(path: Path, how: int, hurry: Event) -> int:
    """Lock the file that is at `path` once the lock is held: its last holder may have removed the one we opened."""
    while True:
        fd = spool.open_lock(path)
        try:
            _take(fd, how, path, hurry)
            if spool.is_at(fd, path):
                return fd
        except BaseException:
            spool.let_go(fd)
            raise
        spool.let_go(fd)


def _take(fd: int, how: int, path: Path, hurry: Event) -> None:
    """Lock `fd`, waiting for its holder for as long as is reasonable."""
    until = monotonic() + PATIENCE
    while not spool.try_lock(fd, how):
        if monotonic() >= until or hurry.wait(POLL):
            raise CatalogBusy(f"another process holds {path}", fix=FIX)


@contextmanager
def _locked(path: Path, hurry: Event, *, remove: bool = False) -> Iterator[None]:
    fd = _lock(path, fcntl.LOCK_EX, hurry)
    try:
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        spool.let_go(fd)


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

"""
Which SQLite this process has, and whether it may open a catalog.

WAL needs SQLite 3.51.3: earlier ones can corrupt a database that two connections write and checkpoint at once
(https://sqlite.org/wal.html#walresetbug). Python's own `sqlite3` is often older, so `pysqlite3`, which bundles a newer
one, is preferred. With an old SQLite only, a new catalog uses DELETE + EXTRA, and an existing WAL catalog is refused.
"""

from __future__ import annotations

import sqlite3
from importlib import import_module
from pathlib import Path
from typing import Any

from edge_recorder.errors import CatalogBroken, CatalogBusy, EdgeRecorderError, UnsafeRuntime


def _driver() -> Any:
    try:
        return import_module("pysqlite3.dbapi2")
    except ImportError:  # no wheel for this platform
        return sqlite3


driver = _driver()

WAL_IS_SAFE_SINCE = (3, 51, 3)
BUSY_TIMEOUT = 5.0  # seconds that SQLite itself waits for another's transaction
APPLICATION_ID = 0x45526563  # "ERec"

Error: type[Exception] = driver.Error

# What is nobody's own fault, and may pass.
_PASSING = frozenset(
    {
        driver.SQLITE_BUSY,
        driver.SQLITE_LOCKED,
        driver.SQLITE_FULL,
        driver.SQLITE_IOERR,
        driver.SQLITE_CANTOPEN,
        driver.SQLITE_READONLY,  # a disk that was remounted after an error
        driver.SQLITE_PERM,
        driver.SQLITE_NOMEM,
        driver.SQLITE_PROTOCOL,
    }
)


def wal_is_safe(version: tuple[int, ...] | None = None) -> bool:
    return (version or driver.sqlite_version_info) >= WAL_IS_SAFE_SINCE


def connect(path: Path, *, create: bool) -> sqlite3.Connection:
    """Open `path` with the pragmas that the promises rest on. Autocommit: transactions are written out.

    Raises:
        UnsafeRuntime: The catalog is in WAL mode and this SQLite is too old for that.
        CatalogBroken: The file is not a catalog, or damaged.
    """
    if not wal_is_safe() and path.exists() and _is_wal(path):
        raise UnsafeRuntime(
            f"{path} is in WAL mode, and SQLite {driver.sqlite_version} can corrupt that",
            fix="Install pysqlite3 >= 0.6, or use a Python with SQLite >= 3.51.3",
        )
    connection = _open(path, mode="rwc" if create else "rw")
    try:
        if _is_new(connection, path):
            connection.execute(f"PRAGMA journal_mode = {'WAL' if wal_is_safe() else 'DELETE'}")
        # A DELETE catalog stays one: a process with an old SQLite may have it open. NORMAL would lose acknowledged
        # rows at power loss in WAL mode, FULL a whole transaction in DELETE mode.
        connection.execute(f"PRAGMA synchronous = {'FULL' if _mode(connection) == 'wal' else 'EXTRA'}")
    except BaseException:
        connection.close()
        raise
    return connection


def translate(error: Exception, path: Path) -> EdgeRecorderError:
    """Return what a driver's error means for the caller."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in {driver.SQLITE_CORRUPT, driver.SQLITE_NOTADB}:
        return CatalogBroken(f"{path}: {error}", fix="Run `edge-recorder repair local`")
    if code in _PASSING:
        return CatalogBusy(f"{path}: {error}", fix="Free disk space, or wait for the process that holds it")
    return EdgeRecorderError(f"{path}: {error}")


def is_busy(error: Exception) -> bool:
    """Say whether another connection's transaction is in the way, and nothing else."""
    return bool(getattr(error, "sqlite_errorcode", 0) & 0xFF == driver.SQLITE_BUSY)


def _open(path: Path, *, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection: sqlite3.Connection = driver.connect(
        uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = driver.Row
    return connection


def _is_wal(path: Path) -> bool:
    """Ask through SQLite, read-only: reading the file ourselves would drop this process's POSIX locks on it."""
    connection = _open(path, mode="ro")
    try:
        return _mode(connection) == "wal"
    finally:
        connection.close()


def _mode(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Say whether there is nothing in the database yet; what is there must be a catalog's."""
    (kind,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and kind != APPLICATION_ID:
        raise CatalogBroken(f"{path} is a database, but not a catalog", fix="Choose another data_dir")
    return not tables

"""
One transaction, all of it in the connection's own thread.

While it is open nobody else can write. Begun, filled and committed from an event loop, it stayed open for as long as
that loop, and each change of threads, waited for a busy processor: other processes waited 0.7 s for their turn.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_recorder.catalog import sqlite
from edge_recorder.catalog.statements import Statement, statement
from edge_recorder.errors import CatalogBroken, CatalogBusy, EdgeRecorderError

POLL = (
    0.004  # seconds between tries to be the one who writes; SQLite's own sleeps grow to 0.1 s, and starve the unlucky
)

# A statement that is not there, or values that SQLite cannot hold: a lone surrogate, a number past 64 bits.
_UNIT_ERRORS = (sqlite.Error, KeyError, TypeError, ValueError, OverflowError)


@dataclass(frozen=True, slots=True)
class Transactor:
    """Runs transactions and queries on the catalog at `path`. An answer that is an error is that unit's alone."""

    path: Path

    def commit(self, connection: sqlite3.Connection, units: Sequence[Sequence[Statement]]) -> list[Any]:
        """Commit all of `units` together, and return each one's counts. What SQLite refuses is rolled back alone."""
        _begin(connection)
        try:
            answers = [self._apply(connection, statements) for statements in units]
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise
        return answers

    def fetch(self, connection: sqlite3.Connection, query: Statement) -> Any:
        """Return the rows of one query."""
        name, values = query
        try:
            return [dict(row) for row in connection.execute(statement(name), dict(values))]
        except _UNIT_ERRORS as error:
            return self._own_fault(error)

    def _apply(self, connection: sqlite3.Connection, statements: Sequence[Statement]) -> Any:
        connection.execute("SAVEPOINT unit")
        try:
            answer: Any = [connection.execute(statement(name), values).rowcount for name, values in statements]
        except _UNIT_ERRORS as error:
            answer = self._own_fault(error)
            connection.execute("ROLLBACK TO unit")
        connection.execute("RELEASE unit")
        return answer

    def _own_fault(self, error: Exception) -> EdgeRecorderError:
        """Return what is wrong with a unit. An error that is the catalog's, and so everybody's, is raised on."""
        if not isinstance(error, sqlite.Error):
            return EdgeRecorderError(f"{self.path} cannot take it: {type(error).__name__}: {error}")
        translated = sqlite.translate(error, self.path)
        if isinstance(translated, CatalogBusy | CatalogBroken):
            raise error
        return translated


def _begin(connection: sqlite3.Connection) -> None:
    """Begin to write, once no other process does. All who wait have the same chance of being next."""
    tries_end = time.monotonic() + sqlite.BUSY_TIMEOUT
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        while not _has_begun(connection, last=time.monotonic() >= tries_end):
            time.sleep(POLL)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(sqlite.BUSY_TIMEOUT * 1000)}")


def _has_begun(connection: sqlite3.Connection, *, last: bool) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite.Error as error:
        if last or not sqlite.is_busy(error):
            raise
        return False
    return True

"""
One connection to the catalog, owned by one task that commits in groups.

Whoever has something to store or to read puts it in the owner's queue and awaits its turn. The owner takes what is
there, commits it as one transaction, each caller's part in a savepoint of its own, and answers; a caller that is
cancelled changes nothing about that. No transaction stays open across anything but SQLite.

Every process holds `catalog.guard` shared while its connection is open. Who must be alone (to create, to migrate, to
set a broken catalog aside) locks `catalog.request`: before each commit the owner looks for it, and at the inode of
`catalog.db`; if either moved, it closes, lets go, and opens again. A commit into a renamed catalog would succeed, into
nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import aiosqlite

from edge_recorder import spool
from edge_recorder.catalog import migrate, sqlite
from edge_recorder.catalog.statements import Statement, statement
from edge_recorder.errors import CatalogBroken, CatalogBusy, DataDirError, EdgeRecorderError, NoCatalog

# A statement that is not there, or values that SQLite cannot hold: a lone surrogate, a number past 64 bits.
_UNIT_ERRORS = (sqlite.Error, KeyError, TypeError, ValueError, OverflowError)

WHOLE = "whole"  # the name in agent_state that says that the catalog was built from all of the spool
GROUP_LIMIT = 200  # statements committed at once
LOOK_INTERVAL = 1.0  # seconds after which an idle owner looks whether another wants to be alone

Row = dict[str, Any]


def catalog_path(data_dir: Path) -> Path:
    return data_dir / "catalog.db"


@dataclass(slots=True)
class _Unit:
    """One caller's part of a group: statements to commit, or one to fetch."""

    statements: Sequence[Statement]
    answer: asyncio.Future[Any]
    reads: bool


class Catalog:
    """The catalog of one data_dir, for one event loop.

    `node_id` and `epoch` say whose catalog it is, and which life of it.
    """

    def __init__(
        self, data_dir: Path, *, create_for: str | None = None, pause: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.path = catalog_path(data_dir)
        self.node_id = ""
        self.epoch = ""
        self._create_for = create_for
        self._pause = pause
        self._queue: asyncio.Queue[_Unit | None] = asyncio.Queue()
        self._connection: aiosqlite.Connection | None = None
        self._guard = -1
        self._inode: tuple[int, int] | None = None
        self._owner: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        data_dir: Path,
        *,
        create_for: str | None = None,
        pause: Callable[[], Awaitable[None]] | None = None,
    ) -> Self:
        """Open the catalog of `data_dir`; `create_for` is the node whose catalog is made where there is none.

        `pause` is awaited between groups: an agent's keeps it from starving the recorders.

        Raises:
            NoCatalog: There is none, and none is to be made.
            UnsafeRuntime: This SQLite is too old for it.
            CatalogBroken: It is damaged.
            CatalogBusy: Another process held it for too long, or the disk is full.
        """
        catalog = cls(data_dir, create_for=create_for, pause=pause)
        await catalog.start()
        return catalog

    async def start(self) -> None:
        """Open the catalog, if it is not open; errors are those of `open`."""
        if self._owner is None:
            await self._connect()
            self._owner = asyncio.create_task(self._serve(), name="catalog owner")

    async def write(self, name: str, /, **values: Any) -> int:
        """Commit one statement and return how many rows it changed."""
        (changed,) = await self.write_all([(name, values)])
        return changed

    async def write_all(self, statements: Sequence[Statement]) -> list[int]:
        """Commit `statements` together: all of them or none. Durable when it returns."""
        return [int(count) for count in await self._submit(statements, reads=False)]

    async def fetch(self, name: str, /, **values: Any) -> list[Row]:
        """Return the rows of one query. It never sees what is not committed."""
        rows: list[Row] = await self._submit([(name, values)], reads=True)
        return rows

    async def fetch_one(self, name: str, /, **values: Any) -> Row | None:
        rows = await self.fetch(name, **values)
        return rows[0] if rows else None

    async def get_state(self, name: str) -> str | None:
        """Return what the agent remembers as `name` (JSON)."""
        row = await self.fetch_one("agent_state.get", name=name)
        return row["value"] if row else None

    async def check(self) -> None:
        """Let SQLite look through the whole file.

        Raises:
            CatalogBroken: It found damage.
        """
        found = await self.fetch_one("check")
        if found is None or found["quick_check"] != "ok":
            raise CatalogBroken(f"{self.path} is damaged: {found}", fix="Run `edge-recorder repair local`")

    async def is_whole(self) -> bool:
        """Say whether this catalog knows every call of the spool: a new one does not, until it was rebuilt."""
        return await self.get_state(WHOLE) is not None

    async def mark_whole(self) -> None:
        """Note that recovery has gone through the whole spool."""
        await self.write("agent_state.put", name=WHOLE, value="true")

    async def close(self) -> None:
        """Commit what is queued, then close the connection and let go of the guard."""
        owner, self._owner = self._owner, None  # nothing more is taken in
        if owner is not None:
            self._queue.put_nowait(None)
            await asyncio.shield(owner)
        await self._disconnect()

    async def _submit(self, statements: Sequence[Statement], *, reads: bool) -> Any:
        if self._owner is None or self._owner.done():
            raise EdgeRecorderError("the catalog is closed")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Unit(statements, answer, reads))
        return await answer

    async def _serve(self) -> None:
        closing = False
        while not closing:
            try:
                units = [await asyncio.wait_for(self._queue.get(), LOOK_INTERVAL)]
            except TimeoutError:
                await self._look()
                continue
            while not self._queue.empty() and sum(len(unit.statements) for unit in units if unit) < GROUP_LIMIT:
                units.append(self._queue.get_nowait())
            closing = None in units
            taken = [unit for unit in units if unit is not None]
            try:
                await self._answer(taken)
            except BaseException:  # a bug, or the end of the loop: nobody may wait for ever on an owner that is gone
                self._refuse(taken, EdgeRecorderError(f"{self.path}: its connection broke off"))
                raise
            if self._pause is not None and not closing and not all(unit.reads for unit in taken):
                await self._pause()

    async def _look(self) -> None:
        """Let go for who wants to be alone, though there is nothing to commit. A failure shows at the next use."""
        with suppress(EdgeRecorderError, OSError, RuntimeError):
            await self._reopen_if_moved()

    async def _answer(self, units: list[_Unit]) -> None:
        """Serve `units` in order: each run of writes as one transaction, and reads only between them."""
        for reads, run in ((reads, list(run)) for reads, run in groupby(units, key=lambda unit: unit.reads)):
            try:
                await self._reopen_if_moved()
                answers = await (self._read(run) if reads else self._commit(run))
            except sqlite.Error as error:
                self._refuse(run, sqlite.translate(error, self.path))
            except (EdgeRecorderError, OSError) as error:
                self._refuse(run, error)
            except RuntimeError as error:  # no thread is to be had now; the owner must outlive that
                self._refuse(run, CatalogBusy(f"{self.path}: {error}"))
            else:
                for unit, answer in zip(run, answers, strict=True):
                    _settle(unit.answer, answer)

    def _refuse(self, units: list[_Unit], error: Exception) -> None:
        for unit in units:
            _settle(unit.answer, error)

    async def _read(self, units: list[_Unit]) -> list[Any]:
        return [await self._fetch(self._open_connection, unit) for unit in units]

    async def _fetch(self, connection: aiosqlite.Connection, unit: _Unit) -> Any:
        ((name, values),) = unit.statements
        try:
            rows = await connection.execute_fetchall(statement(name), dict(values))
        except _UNIT_ERRORS as error:
            return self._own_fault(error)
        return [dict(row) for row in rows]

    async def _commit(self, units: list[_Unit]) -> list[Any]:
        """Commit all of `units` as one transaction. A unit that SQLite refuses is rolled back alone."""
        connection = self._open_connection
        await connection.execute("BEGIN IMMEDIATE")
        try:
            answers = [await self._apply(connection, unit) for unit in units]
            await connection.execute("COMMIT")
        except BaseException:
            await connection.rollback()
            raise
        return answers

    async def _apply(self, connection: aiosqlite.Connection, unit: _Unit) -> Any:
        await connection.execute("SAVEPOINT unit")
        try:
            answer: Any = [
                (await connection.execute(statement(name), values)).rowcount for name, values in unit.statements
            ]
        except _UNIT_ERRORS as error:
            answer = self._own_fault(error)
            await connection.execute("ROLLBACK TO unit")
        await connection.execute("RELEASE unit")
        return answer

    def _own_fault(self, error: Exception) -> EdgeRecorderError:
        """Return what is wrong with a unit. An error that is the catalog's, and so everybody's, is raised on."""
        if not isinstance(error, sqlite.Error):
            return EdgeRecorderError(f"{self.path} cannot take it: {type(error).__name__}: {error}")
        translated = sqlite.translate(error, self.path)
        if isinstance(translated, CatalogBusy | CatalogBroken):
            raise error
        return translated

    @property
    def _open_connection(self) -> aiosqlite.Connection:
        if self._connection is None:
            raise NoCatalog(f"{self.path} is not open")
        return self._connection

    async def _reopen_if_moved(self) -> None:
        wanted = migrate.request_path(self.path).exists()
        if self._connection is not None and not wanted and _inode(self.path) == self._inode:
            return
        await self._disconnect()
        if wanted:
            await asyncio.to_thread(migrate.wait_for_requester, self.path)
        await self._connect()

    async def _connect(self) -> None:
        """Take the guard shared and open the catalog, making or migrating it first where that is needed."""
        if self._create_for is None and not self.path.exists():
            raise NoCatalog(
                f"there is no catalog in {self.path.parent}",
                fix="Check node.data_dir. `edge-recorder init` makes one; `repair local` rebuilds a lost one",
            )
        while self._connection is None:
            try:
                await self._try_to_connect()
            except sqlite.Error as error:
                raise sqlite.translate(error, self.path) from error
            except RuntimeError as error:  # no thread is to be had now
                raise CatalogBusy(f"{self.path}: {error}") from error
            except OSError as error:
                raise DataDirError(
                    f"cannot open the catalog in {self.path.parent}: {error.strerror}",
                    fix="Make it writable; to read a disk that cannot be, copy the data_dir to another",
                ) from error

    async def _try_to_connect(self) -> None:
        self._guard = await asyncio.to_thread(migrate.lock_shared, migrate.guard_path(self.path))
        try:
            # Opened here, as the thread of an aiosqlite connection that fails to open outlives the loop it answers to.
            opened = await asyncio.to_thread(migrate.open_current, self.path)
            connection = self._connection = await aiosqlite.Connection(lambda: opened, iter_chunk_size=64)
            self._inode = _inode(self.path)
            ((self.node_id, self.epoch),) = await connection.execute_fetchall(statement("identity"))
        except migrate.NotCurrent:
            await self._disconnect()
            await asyncio.to_thread(migrate.bring_up_to_date, self.path, create_for=self._create_for)
        except BaseException:
            await self._disconnect()
            raise

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        guard, self._guard = self._guard, -1
        try:
            if connection is not None:
                await connection.close()
        finally:
            if guard >= 0:
                spool.let_go(guard)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _settle(answer: asyncio.Future[Any], result: Any) -> None:
    """Give the caller its answer, unless it was cancelled meanwhile: the work is done all the same."""
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)

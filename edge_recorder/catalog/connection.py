"""
One connection to the catalog, owned by one task that commits in groups.

Whoever has something to store or to read puts it in the owner's queue and awaits its turn. The owner takes what is
there, commits it as one transaction, each caller's part in a savepoint of its own, and answers; a caller that is
cancelled changes nothing about that. No transaction stays open across anything but SQLite.

Every process holds `catalog.guard` shared while its connection is open. Who must be alone (to create, to migrate, to
set a broken catalog aside) locks `catalog.request`: before each commit the owner looks for it, and at the inode of
`catalog.db`; if either moved, it closes, lets go, and opens again. A commit into a renamed catalog would succeed, into
nowhere.

Nobody is waited for without limit: a process that was stopped while it held the guard leaves us `CatalogBusy`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import aiosqlite

from edge_recorder import spool
from edge_recorder.catalog import migrate, sqlite
from edge_recorder.catalog.statements import Statement, statement
from edge_recorder.catalog.transaction import Transactor
from edge_recorder.errors import CatalogBroken, CatalogBusy, DataDirError, EdgeRecorderError, NoCatalog

WHOLE = "whole"  # the name in agent_state that says that the catalog was built from all of the spool
GROUP_LIMIT = 200  # statements committed at once
LOOK_INTERVAL = 1.0  # seconds after which an idle owner looks whether another wants to be alone
ALONE_INTERVAL = 30.0  # seconds until we ask again to be alone, where that came to nothing: asking keeps others waiting

Row = dict[str, Any]
T = TypeVar("T")


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
        self._transactor = Transactor(self.path)
        self._connection: _Connection | None = None
        self._guard = -1
        self._hurry = threading.Event()  # we are closing: no longer worth the wait
        self._ask_again_at = 0.0  # by the loop's clock
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
            self._hurry.clear()
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

    async def mark_whole(self, *, epoch: str | None = None) -> None:
        """Note that recovery has gone through the whole spool. A catalog that came after `epoch` lacks a part."""
        if epoch in {None, self.epoch}:
            await self.write("agent_state.put", name=WHOLE, value="true")

    async def close(self) -> None:
        """Commit what is queued, then close the connection and let go of the guard."""
        owner, self._owner = self._owner, None  # nothing more is taken in
        self._hurry.set()
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
        return [await self._open_connection.run(self._transactor.fetch, unit.statements[0]) for unit in units]

    async def _commit(self, units: list[_Unit]) -> list[Any]:
        answers: list[Any] = await self._open_connection.run(
            self._transactor.commit, [unit.statements for unit in units]
        )
        return answers

    @property
    def _open_connection(self) -> _Connection:
        if self._connection is None:
            raise NoCatalog(f"{self.path} is not open")
        return self._connection

    async def _reopen_if_moved(self) -> None:
        wanted = migrate.request_path(self.path).exists()
        if self._connection is not None and not wanted and _inode(self.path) == self._inode:
            return
        await self._disconnect()
        if wanted:  # before it is done there may be no catalog at all
            await asyncio.to_thread(migrate.wait_for_requester, self.path, self._hurry)
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
        try:
            self._guard, opened = await _Made(self._open, undo=_let_go).get()
        except migrate.NotCurrent:
            await self._bring_up_to_date()
            return
        try:
            self._connection = await _Connection.around(opened)
            self._inode = _inode(self.path)
            ((self.node_id, self.epoch),) = await self._connection.execute_fetchall(statement("identity"))
        except BaseException:
            await self._disconnect()
            raise

    def _open(self) -> tuple[int, sqlite3.Connection]:
        return migrate.open_shared(self.path, self._hurry, adding=self._create_for is not None)

    async def _bring_up_to_date(self) -> None:
        """Make or migrate the catalog. Who holds us up is asked again only later: asking keeps all others waiting."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._ask_again_at:
            raise CatalogBusy(f"{self.path} must be migrated, and another process held it", fix=migrate.FIX)
        try:
            await asyncio.to_thread(migrate.bring_up_to_date, self.path, self._hurry, create_for=self._create_for)
        except CatalogBusy:
            self._ask_again_at = loop.time() + ALONE_INTERVAL
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


class _Connection(aiosqlite.Connection):
    """An open connection in a thread of its own, which runs whole transactions."""

    @classmethod
    async def around(cls, opened: sqlite3.Connection) -> Self:
        """Give `opened` its thread. The thread of one that failed to open would outlive the loop it answers to."""
        connection = cls(lambda: opened, iter_chunk_size=64)
        try:
            await connection
        except BaseException:
            opened.close()
            raise
        return connection

    async def close(self) -> None:
        """Close the connection, and leave no thread behind."""
        await super().close()
        self._thread.join()

    async def run(self, work: Callable[[sqlite3.Connection, T], Any], units: T) -> Any:
        """Do `work` in the connection's thread, to its end, whether or not its caller is cancelled."""
        return await self._execute(work, self._conn, units)  # type: ignore[no-untyped-call]


class _Made(Generic[T]):
    """What a thread makes for a coroutine. One that is cancelled meanwhile can take it no more: then it is undone."""

    def __init__(self, make: Callable[[], T], *, undo: Callable[[T], None]) -> None:
        self._make = make
        self._undo = undo
        self._lock = threading.Lock()
        self._unwanted = False
        self._made: T | None = None

    async def get(self) -> T:
        try:
            return await asyncio.to_thread(self._run)
        except asyncio.CancelledError:
            self._leave()
            raise

    def _run(self) -> T:
        made = self._make()
        with self._lock:
            self._made = made
            unwanted = self._unwanted
        if unwanted:
            self._undo(made)
        return made

    def _leave(self) -> None:
        with self._lock:
            self._unwanted = True
            made = self._made
        if made is not None:
            self._undo(made)


def _let_go(opened: tuple[int, sqlite3.Connection]) -> None:
    guard, connection = opened
    connection.close()
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

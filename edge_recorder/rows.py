"""
Rows on their way to the catalog: they wait here, bounded, while SQLite cannot take them.

All of them are on disk in their call's journal already. What is given up here (too many, or refused by SQLite) is
`lost` to this recorder only: the next start takes it from the journal.

Beside them runs the recovery of what died before us, once for each catalog. Rows of living calls do not wait for it: a
catalog that was lost is rebuilt from all of the spool, which takes its time. Of many recorders one rebuilds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from edge_recorder import spool
from edge_recorder.catalog.connection import GROUP_LIMIT, Catalog
from edge_recorder.catalog.statements import Statement, storing
from edge_recorder.errors import (
    CatalogBroken,
    CatalogBusy,
    DataDirError,
    EdgeRecorderError,
    NoCatalog,
    UnsafeRuntime,
)
from edge_recorder.model import Fact

LIMIT = 100_000  # statements that wait; beyond that the oldest are left to the journal
LAST_CHANCE = 2.0  # seconds that a recovery under way still gets when the recorder closes; the next start does the rest

# What is the matter with the catalog, and not with a row: the row waits.
_NOT_THE_ROWS = (CatalogBusy, CatalogBroken, DataDirError, NoCatalog, UnsafeRuntime)

log = logging.getLogger("edge_recorder")


@dataclass(slots=True, eq=False)
class _Part:
    """The statements of one flush of one call, which are committed together."""

    statements: list[Statement]
    done: asyncio.Future[None]

    def settle(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class RowQueue:
    """The rows of one recorder.

    `recover` is awaited once for each catalog, beside the commits; `pause` after a failure.
    """

    def __init__(
        self, catalog: Catalog, *, recover: Callable[[], Awaitable[None]], pause: Callable[[], Awaitable[None]]
    ) -> None:
        self.lost = False
        self._catalog = catalog
        self._recover = recover
        self._pause = pause
        self._parts: deque[_Part] = deque()
        self._size = 0  # statements in them
        self._wanted = asyncio.Event()
        self._recovery: asyncio.Task[None] | None = None
        self._recovered_epoch = ""  # the catalog that `_recovery` is of
        # Each of these lasts for an episode, which is logged when it begins.
        self._waiting = False
        self._refusing = False
        self._overflowing = False

    @property
    def is_empty(self) -> bool:
        return not self._parts

    def put(self, facts: Sequence[Fact]) -> asyncio.Future[None]:
        """Queue the rows of `facts`; the future is done when they are committed, or left to the journal."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not facts:
            done.set_result(None)
            return done
        part = _Part(list(storing(facts)), done)
        self._parts.append(part)
        self._size += len(part.statements)
        self._make_room()
        self._wanted.set()
        return done

    async def commit(self) -> None:
        """Commit rows as they come, for as long as it takes. Ends only by being cancelled."""
        try:
            while True:
                await self._go_on()
        finally:
            if self._recovery is not None:
                await asyncio.wait([self._recovery], timeout=LAST_CHANCE)
            await self._end_recovery()

    async def _go_on(self) -> None:
        try:
            await self._catalog.start()
            await self._see_to_recovery()
            await self._wanted.wait()
            await self._commit_group()
        except (EdgeRecorderError, OSError) as error:
            self._note_waiting(error)
        except Exception:  # a bug: it must not be the end of all rows
            log.exception("rows wait for the catalog")
        else:
            return
        await self._pause()

    async def _commit_group(self) -> None:
        """Commit the oldest, each part on its own: one that SQLite refuses is left to its journal.

        No more than one transaction takes: while the catalog is locked, each costs SQLite's whole patience, and of many
        some would be committed before those that failed.

        Raises:
            EdgeRecorderError: Nothing can be committed now; it goes on waiting.
        """
        group = self._oldest()
        commits = (self._catalog.write_all(part.statements) for part in group)
        for part, answer in zip(group, await asyncio.gather(*commits, return_exceptions=True), strict=True):
            if isinstance(answer, _NOT_THE_ROWS):
                raise answer
            self._note_answer(answer)
            self._remove(part)
        if not self._parts:
            self._wanted.clear()
            self._overflowing = False

    def _oldest(self) -> list[_Part]:
        """Return the parts that one transaction takes: one at least, however long."""
        group: list[_Part] = []
        size = 0
        for part in self._parts:
            size += len(part.statements)
            if group and size > GROUP_LIMIT:
                break
            group.append(part)
        return group

    def _remove(self, part: _Part) -> None:
        with suppress(ValueError):  # there were too many meanwhile, and these were left to the journal
            self._parts.remove(part)
            self._size -= len(part.statements)
        part.settle()

    def _make_room(self) -> None:
        while self._size > LIMIT:
            if not self._overflowing:
                log.error("the catalog takes no rows: from here on the oldest are in the journals alone")
            self._overflowing = self.lost = True
            self._remove(self._parts[0])

    def _note_waiting(self, error: Exception) -> None:
        if not self._waiting:
            log.warning("rows wait for the catalog, and are in their journals meanwhile: %s", error)
        self._waiting = True

    def _note_answer(self, answer: list[int] | BaseException) -> None:
        if self._waiting:
            log.warning("the catalog takes rows again")
            self._waiting = False
        refused = isinstance(answer, BaseException)
        if refused and not self._refusing:
            log.error("the catalog refuses rows, which the next start takes from their journals: %s", answer)
        self._refusing = refused
        self.lost = self.lost or refused

    # Recovery.

    async def _see_to_recovery(self) -> None:
        """Recover into this catalog, if that was not begun: it is the first, or the one before it was lost."""
        if self._catalog.epoch != self._recovered_epoch:
            await self._end_recovery()
            self._recovered_epoch = self._catalog.epoch
            self._recovery = asyncio.create_task(self._bring_together(), name="recovery")

    async def _end_recovery(self) -> None:
        recovery, self._recovery = self._recovery, None
        if recovery is not None:
            recovery.cancel()
            await asyncio.wait([recovery])

    async def _bring_together(self) -> None:
        """Recover, for as long as it takes. Why it fails is logged once."""
        logged = False
        while True:
            try:
                if await self._has_recovered():
                    return
            except (EdgeRecorderError, OSError) as error:
                if not logged:
                    log.warning("calls of recorders that died are closed later: %s", error)
                logged = True
            except Exception:  # a bug, in one call's recovery perhaps: living calls go on
                if not logged:
                    log.exception("calls of recorders that died are closed later")
                logged = True
            await self._pause()

    async def _has_recovered(self) -> bool:
        """Recover, unless another process rebuilds the catalog just now: its end, or its death, is waited for."""
        if await self._catalog.is_whole():
            await self._recover()
            return True
        with spool.rebuilding(self._catalog.path.parent) as ours:
            if ours:
                await self._recover()
        return ours

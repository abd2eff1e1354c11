"""
Rows on their way to the catalog: they wait here, bounded, while SQLite cannot take them.

All of them are on disk in their call's journal already. What is given up here (too many, or refused by SQLite) is
`lost` to this recorder only: the next start takes it from the journal.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from edge_recorder.catalog.connection import Catalog
from edge_recorder.catalog.statements import Statement, storing
from edge_recorder.errors import CatalogBroken, CatalogBusy, EdgeRecorderError
from edge_recorder.model import Fact

LIMIT = 100_000  # statements that wait; beyond that the oldest are left to the journal

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

    `recover` is awaited before the first commit into each catalog, `pause` after a failure.
    """

    def __init__(
        self, catalog: Catalog, *, recover: Callable[[], Awaitable[None]], pause: Callable[[], Awaitable[None]]
    ) -> None:
        self.lost = False
        self._catalog = catalog
        self._recover = recover
        self._pause = pause
        self._parts: deque[_Part] = deque()
        self._wanted = asyncio.Event()
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
        self._parts.append(_Part(list(storing(facts)), done))
        self._make_room()
        self._wanted.set()
        return done

    async def commit(self) -> None:
        """Commit rows as they come, for as long as it takes. Ends only by being cancelled."""
        epoch = ""
        while True:
            try:
                await self._catalog.start()
                if self._catalog.epoch != epoch:  # the first time, or the catalog went away under us
                    await self._recover()
                    epoch = self._catalog.epoch
                await self._wanted.wait()
                await self._commit_waiting()
            except (EdgeRecorderError, OSError) as error:
                log.warning("rows wait for the catalog: %s", error)
            except Exception:  # a bug, in one call's recovery perhaps: it must not be the end of all rows
                log.exception("rows wait for the catalog")
            else:
                continue
            await self._pause()

    async def _commit_waiting(self) -> None:
        """Commit what waits, each part on its own: one that SQLite refuses is left to its journal.

        Raises:
            CatalogBusy, CatalogBroken: Nothing can be committed now; it goes on waiting.
        """
        waiting = list(self._parts)
        commits = (self._catalog.write_all(part.statements) for part in waiting)
        for part, answer in zip(waiting, await asyncio.gather(*commits, return_exceptions=True), strict=True):
            if isinstance(answer, CatalogBusy | CatalogBroken):
                raise answer
            if isinstance(answer, BaseException):
                log.error("the catalog refused rows, which the next start takes from their journal: %s", answer)
                self.lost = True
            with suppress(ValueError):  # there were too many meanwhile, and these were left to the journal
                self._parts.remove(part)
            part.settle()
        if not self._parts:
            self._wanted.clear()
            self._overflowing = False

    def _make_room(self) -> None:
        while sum(len(part.statements) for part in self._parts) > LIMIT:
            if not self._overflowing:
                log.error("the catalog takes no rows: from here on the oldest are in the journals alone")
            self._overflowing = self.lost = True
            self._parts.popleft().settle()

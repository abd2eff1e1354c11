"""
Owed work: rows that are also the queue of a leg, and the moves that all such rows share.

    owed --> owed          `defer`: its next time is set; its tries are counted, or not
    owed --> quarantined   `quarantine`: kept, shown, and no longer tried
    owed --> done          the leg's own move, such as `objects.mark_stored`

Every move is one guarded UPDATE that names the state it leaves: made twice, or by two agents, it takes effect once, and
the loser learns so from `StaleTransition`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edge_recorder.catalog.connection import Catalog
from edge_recorder.errors import EdgeRecorderError
from edge_recorder.model import Instant


class StaleTransition(EdgeRecorderError):
    """Somebody else moved the row first: its new state holds, and nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why the last try came to nothing, as the row keeps it."""

    error_class: str
    last_error: str


class OwedWork:
    """The owed rows of `table`, which has the columns `state, attempts, next_attempt_at, error_class, last_error`."""

    def __init__(self, catalog: Catalog, table: str) -> None:
        self._catalog = catalog
        self._table = table

    async def defer(self, row_id: str, failure: Failure, *, tried: int, attempts: int, until: Instant) -> None:
        """Let the row wait `until`. `tried` is the count of tries that it leaves, `attempts` the one that it gets."""
        await self.move("defer", id=row_id, tried=tried, attempts=attempts, next_attempt_at=until, **asdict(failure))

    async def quarantine(self, row_id: str, failure: Failure, *, tried: int) -> None:
        """Set the row aside, with one try more than `tried`."""
        await self.move("quarantine", id=row_id, tried=tried, **asdict(failure))

    async def move(self, statement: str, **values: Any) -> None:
        """Make one guarded move, by its statement's name without the table.

        Raises:
            StaleTransition: The row is no longer in a state that the move leaves.
        """
        if await self._catalog.write(f"{self._table}.{statement}", **values) == 0:
            raise StaleTransition(f"{self._table} {values['id']}: moved by another before `{statement}`")

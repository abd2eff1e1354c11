"""
The centre as a node sees it: five functions, each one statement and one transaction.

No prepared statement and no session state, so it works through PgBouncer in transaction mode. A connection that did not
answer in time, or failed, is closed; the next call opens another.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, LiteralString, Self

import psycopg
from psycopg import conninfo

from sync.central.errors import Diverged, IncompatibleCentre, Superseded
from sync.retry import ErrorClass, SyncError

SCHEMA_VERSION = 1  # of what this release says to the centre and understands of it
APPLICATION_NAME = "edge-recorder"
TIMEOUT = 30.0  # seconds that one call may take in all
CONNECT_TIMEOUT = 10.0  # seconds of it that connecting may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The answer to `hello`: how the centre counts this epoch, and where it stands."""

    generation: int
    cursor: int
    token: str | None  # of the last batch applied


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """The answer to a batch."""

    cursor: int
    receipts: frozenset[str]  # ids of stored objects of this batch that the centre holds just so
    erased: frozenset[str]  # calls that the centre will not hold again


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a node says of itself. None: not known."""

    clock: int  # microseconds since 1970, UTC, read just before the call
    live_calls: int | None = None
    owed_changes: int | None = None
    owed_objects: int | None = None
    owed_bytes: int | None = None
    quarantined: int | None = None
    oldest_unsynced_s: float | None = None  # None: nothing is owed
    disk_free_bytes: int | None = None
    disk_total_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """The answer to a heartbeat."""

    cursor: int
    token: str | None
    server_time: int  # microseconds since 1970, UTC
    orders: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An object that the centre holds as stored."""

    object_id: str
    store_url: str | None
    key: str | None
    file_sha256: str | None
    pcm_sha256: str | None
    file_bytes: int | None


def payload(rows: Iterable[tuple[int, str, Mapping[str, Any]]]) -> str:
    """Return (seq, entity, row)s as the JSON text that `ingest` takes. A lone surrogate survives as its escape."""
    return json.dumps([{"seq": seq, "entity": entity, "row": row} for seq, entity, row in rows], separators=(",", ":"))


class Central:
    """One connection to the centre, opened when first needed. Each call either returns or raises a `SyncError`."""

    def __init__(self, dsn: str, *, timeout: float = TIMEOUT) -> None:
        self._dsn = dsn
        self._timeout = timeout
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Open the connection, unless it is open."""
        async with self._guarded():
            await self._open()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def hello(
        self, *, node_id: str, epoch: str, label: str, tenant: str | None, software: str, reason: str
    ) -> Welcome:
        """Enrol the node in the login's fleet and open `epoch`, begun for `reason`. Saying it again changes nothing.

        Raises:
            Superseded: A later epoch of this node has spoken.
            IncompatibleCentre: The centre is missing, older or newer.
        """
        arguments = (node_id, epoch, label, tenant, SCHEMA_VERSION, software, reason)
        answer = await self._call(
            "select recorder.hello(%s::uuid, %s::text, %s::text, %s::text, %s::integer, %s::text, %s::text)", arguments
        )
        if answer["schema_version"] > SCHEMA_VERSION:
            raise IncompatibleCentre(
                f"the centre speaks schema {answer['schema_version']}, this release {SCHEMA_VERSION}",
                fix="Upgrade edge-recorder on this node",
            )
        return Welcome(generation=answer["generation"], cursor=answer["cursor"], token=answer["token"])

    async def ingest(
        self,
        *,
        node_id: str,
        epoch: str,
        previous: str | None,
        token: str,
        first_seq: int,
        last_seq: int,
        rows: str,
    ) -> Ingested:
        """Apply changes `first_seq` to `last_seq`, once however often it is said. `rows` is made by `payload`.

        Raises:
            Diverged: `previous` is not the last token there, or `first_seq` does not follow its cursor.
            Superseded: A later epoch of this node has spoken.
            SyncError: With class ITEM: a row of the batch is refused, and nothing of it was applied.
        """
        arguments = (node_id, epoch, previous, token, first_seq, last_seq, rows)
        answer = await self._call(
            "select recorder.ingest(%s::uuid, %s::text, %s::text, %s::text, %s::bigint, %s::bigint, %s::jsonb)",
            arguments,
        )
        return _ingested(answer)

    async def ingest_refused(
        self,
        *,
        node_id: str,
        epoch: str,
        previous: str | None,
        token: str,
        first_seq: int,
        last_seq: int,
        raw: str,
        refusal: SyncError,
    ) -> Ingested:
        """Set one row aside that `ingest` refused with `refusal`, as text, and move the cursor over it.

        Raises:
            Diverged: As `ingest`.
            Superseded: As `ingest`.
        """
        arguments = (
            node_id,
            epoch,
            previous,
            token,
            first_seq,
            last_seq,
            _clean(raw),
            refusal.code,
            _clean(refusal.message),
        )
        answer = await self._call(
            "select recorder.ingest_refused(%s::uuid, %s::text, %s::text, %s::text, %s::bigint, %s::bigint,"
            " %s::text, %s::text, %s::text)",
            arguments,
        )
        return _ingested(answer)

    async def heartbeat(self, *, node_id: str, epoch: str, health: Health, next_within: float) -> Pulse:
        """Report `health`, and promise to speak again within `next_within` seconds.

        Raises:
            Diverged: The centre does not know this epoch.
            Superseded: A later epoch of this node has spoken.
        """
        answer = await self._call(
            "select recorder.heartbeat(%s::uuid, %s::text, %s::jsonb, %s::double precision)",
            (node_id, epoch, json.dumps(asdict(health)), next_within),
        )
        return Pulse(
            cursor=answer["cursor"],
            token=answer["token"],
            server_time=answer["server_time"],
            orders=tuple(answer["orders"]),
        )

    async def holds(self, *, node_id: str, object_ids: Sequence[str]) -> list[Held]:
        """Return those of this node's objects that the centre holds as stored, and where."""
        answer = await self._call("select recorder.holds(%s::uuid, %s::uuid[])", (node_id, list(object_ids)))
        return [Held(**each) for each in answer]

    async def _call(self, statement: LiteralString, arguments: Sequence[Any]) -> Any:
        async with self._guarded():
            connection = await self._open()
            cursor = await connection.execute(statement, arguments)
            answer = (await cursor.fetchone() or (None,))[0]
        if isinstance(answer, dict) and answer.get("refused") == "superseded":
            raise Superseded(str(arguments[0]), answer["superseded_at"])
        return answer

    @asynccontextmanager
    async def _guarded(self) -> AsyncIterator[None]:
        """Bound what is inside in time, give its errors their class, and keep no connection of doubtful state."""
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except psycopg.Error as error:
            if not _answered(error):
                await self.close()
            raise translate(error, self._dsn) from None
        except TimeoutError:
            await self.close()
            raise SyncError(
                f"the centre did not answer in {self._timeout:g} s", error_class=ErrorClass.TRANSIENT
            ) from None
        except asyncio.CancelledError:
            await self.close()
            raise

    async def _open(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                parameters(self._dsn, connect_timeout=min(CONNECT_TIMEOUT, self._timeout)),
                autocommit=True,
                prepare_threshold=None,
            )
        return self._connection


def parameters(dsn: str, *, connect_timeout: float = CONNECT_TIMEOUT) -> str:
    """Return `dsn` with our own defaults under it. Empty: libpq's PG* variables say all.

    Raises:
        SyncError: With class AUTH: it is no connection string. What it is is not said, as it may be a password.
    """
    given = _parsed(dsn)
    if given is None:
        raise SyncError(
            "the centre's DSN is not a libpq connection string",
            error_class=ErrorClass.AUTH,
            fix="Write postgresql://user:password@host:5432/database, and special characters in the password as %XX",
        )
    ours: dict[str, Any] = {"application_name": APPLICATION_NAME, "connect_timeout": max(2, round(connect_timeout))}
    return conninfo.make_conninfo("", **(ours | given))


def _parsed(dsn: str) -> dict[str, Any] | None:
    """Return what `dsn` says, or None: of a password that was not escaped a piece may be in host or port."""
    try:
        given = {name: value for name, value in conninfo.conninfo_to_dict(dsn).items() if value is not None}
    except psycopg.ProgrammingError:
        return None
    ports = str(given.get("port") or "0").split(",")
    sound = "@" not in str(given.get("host", "")) and all(not port or port.isdecimal() for port in ports)
    return given if sound else None


def translate(error: psycopg.Error, dsn: str = "") -> SyncError:
    """Return what `error` means here, without anything of the DSN that is secret."""
    message = _without_password(error.diag.message_primary or str(error).strip() or type(error).__name__, dsn)
    code = error.sqlstate or ""
    if code == "RE001":
        return Diverged(message)
    if code == "RE002":
        return IncompatibleCentre(message, code=code)
    if code in _ACCESS or code[:2] == "28" or (not code and any(sign in message for sign in _ACCESS_SIGNS)):
        message = f"the centre refuses this login: {message}"
        return SyncError(message, error_class=ErrorClass.AUTH, fix=_ACCESS_FIX, code=code)
    if code in _MISSING or code[:2] == "42":
        return IncompatibleCentre(f"this database has no centre, or an older one: {message}", code=code)
    if code[:2] in _ITEM or (not code and isinstance(error, psycopg.DataError)):  # psycopg itself cannot send a NUL
        return SyncError(f"the centre refuses a row: {message}", error_class=ErrorClass.ITEM, code=code or "22000")
    # The rest is a server that is away, busy, full or failing over; to wait is right, and the message tells which.
    return SyncError(f"the centre: {message}", error_class=ErrorClass.TRANSIENT, code=code)


_MISSING = {
    "3F000",
    "0A000",
}  # no such schema; not supported. With them class 42: no such function, table, column, type
_ACCESS = {"42501", "3D000"}  # permission denied; no such database
_ITEM = {"22", "23", "54"}  # data, integrity, limits

# libpq gives a refused connection no SQLSTATE, only its text. A server that speaks another language is taken for one
# that is away, which waits as well and only explains less.
_ACCESS_SIGNS = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "pg_hba.conf",
    "permission denied for database",
    "is not permitted to log in",
    "certificate",
    "does not support SSL",
    "no such user",
)
_ACCESS_FIX = "Check user, password, database and TLS in the DSN; `central add-fleet NAME --rotate` renews a password"


def _answered(error: psycopg.Error) -> bool:
    """Whether the server refused the statement and the connection is as good as before.

    A read-only server (class 25) was demoted in a failover: a new connection may find the new primary, this one never.
    """
    return (error.sqlstate or "08")[:2] not in {"08", "25", "57", "58", "XX"}


def _without_password(message: str, dsn: str) -> str:
    password = (_parsed(dsn) or {}).get("password")
    return message.replace(str(password), "***") if password else message


def _ingested(answer: Mapping[str, Any]) -> Ingested:
    return Ingested(cursor=answer["cursor"], receipts=frozenset(answer["receipts"]), erased=frozenset(answer["erased"]))


def _clean(text: str) -> str:
    """Return `text` as Postgres can hold it: no NUL, no lone surrogate."""
    return text.replace("\0", "\\u0000").encode("utf-8", "backslashreplace").decode()

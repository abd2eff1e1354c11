"""
The owner's side of the centre: make and migrate its schema, and make the logins of fleets.

The owner is no superuser: it has CREATE on the database and CREATEROLE. Every step takes one advisory lock in its own
transaction, so two that migrate at once take turns, also through a pooler.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import conninfo, sql

from edge_recorder.errors import CallerError
from sync.central.client import parameters, translate
from sync.central.errors import IncompatibleCentre
from sync.retry import ErrorClass, SyncError

MIGRATIONS = Path(__file__).with_name("migrations")
CONTRACT = tuple(Path(__file__).with_name(name) for name in ("functions.sql", "ingest.sql", "views.sql", "roles.sql"))
ROLE_NAME_BYTES = 63  # Postgres cuts what is longer
MONTHS = (-1, 0, 1)  # that have partitions after a migrate, counted from this one

_FLEET_NAME = re.compile(r"[a-z0-9_]{1,31}")
_LOCK = "edge-recorder central"
_OF_A_DSN = (
    "host",
    "port",
    "dbname",
    "sslmode",
    "sslrootcert",
    "gssencmode",
    "channel_binding",
)  # what a node's takes over

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A fleet's login, as its nodes use it."""

    fleet: str
    role: str
    dsn: str


class FleetExists(CallerError):
    """A fleet of that name is here already."""


class NoSuchFleet(CallerError):
    """No fleet has that name."""


def migrate(dsn: str) -> list[str]:
    """Bring the centre's schema to this release, and return the migrations that this run applied.

    Raises:
        IncompatibleCentre: A newer release migrated it already.
        SyncError: The database cannot be reached, or the owner lacks a right.
    """
    with _connected(dsn) as connection:
        _begin(connection)
        applied = [path.stem for path in sorted(MIGRATIONS.glob("*.sql")) if _apply(connection, path)]
        _refresh(connection)
        return applied


def add_fleet(dsn: str, name: str, *, rotate: bool = False) -> Fleet:
    """Make the fleet `name` and its login, or give the login of an existing one a new password.

    Raises:
        FleetExists: It is here, and `rotate` was not asked for.
        NoSuchFleet: It is not here, and `rotate` was.
        CallerError: `name` cannot be a fleet's.
        SyncError: The database cannot be reached, has no centre, or the owner lacks a right.
    """
    if not _FLEET_NAME.fullmatch(name):
        raise CallerError(f"{name!r} is no name for a fleet", fix="Use 1 to 31 of a-z, 0-9 and _")
    password = secrets.token_urlsafe(24)
    with _connected(dsn) as connection, _alone(connection):
        role = _role_of(connection, name)
        if role is not None and not rotate:
            raise FleetExists(
                f"the fleet {name} exists, with the login {role}", fix="`--rotate` gives it a new password"
            )
        if role is None and rotate:
            raise NoSuchFleet(f"there is no fleet {name}", fix="Without `--rotate` it is made")
        if role is None:
            role = _make_login(connection, name)
        _set_password(connection, role, password)
        return Fleet(fleet=name, role=role, dsn=_dsn(connection, role, password))


def _begin(connection: Connection) -> None:
    with _alone(connection):
        connection.execute("create schema if not exists recorder")
        connection.execute(
            "create table if not exists recorder.migrations ("
            " name text primary key, applied_at timestamptz not null default now())"
        )


def _apply(connection: Connection, path: Path) -> bool:
    """Apply one migration together with its own record, unless that is there."""
    with _alone(connection):
        newest, known = _one(
            connection, "select max(name), coalesce(bool_or(name = %s), false) from recorder.migrations", path.stem
        )
        last = max(each.stem for each in MIGRATIONS.glob("*.sql"))
        if newest is not None and newest > last:
            raise IncompatibleCentre(
                f"a newer release migrated this centre to {newest}; this one knows {last}",
                fix="Upgrade edge-recorder here",
            )
        if known:
            return False
        connection.execute(path.read_bytes())
        connection.execute("insert into recorder.migrations (name) values (%s)", (path.stem,))
        return True


def _refresh(connection: Connection) -> None:
    """Replace functions, views and rights, and make the partitions of the months around this one."""
    with _alone(connection):
        for path in CONTRACT:
            connection.execute(path.read_bytes())
        for month in MONTHS:
            connection.execute("select recorder.make_partitions((now() + make_interval(months => %s))::date)", (month,))


def _role_of(connection: Connection, fleet: str) -> str | None:
    found = connection.execute("select role from recorder.fleets where name = %s", (fleet,)).fetchone()
    return found[0] if found else None


def _make_login(connection: Connection, fleet: str) -> str:
    """Make the login. Roles belong to the cluster: the name has the database's in it, and one may be left over.

    No fleet's name has a dash, so that `b` of the database `x_a` and `a_b` of `x` are two logins.
    """
    role = f"recorder_{connection.info.dbname}-{fleet}"
    if len(role.encode()) > ROLE_NAME_BYTES:
        role = f"recorder_{hashlib.sha256(role.encode()).hexdigest()[:16]}-{fleet}"
    (exists,) = _one(connection, "select exists (select from pg_roles where rolname = %s)", role)
    if not exists:
        connection.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
    connection.execute(sql.SQL("grant recorder_node to {}").format(sql.Identifier(role)))
    connection.execute("insert into recorder.fleets (name, role) values (%s, %s)", (fleet, role))
    return role


def _set_password(connection: Connection, role: str, password: str) -> None:
    """Set it as a SCRAM verifier, so that it is in no statement that a server may log."""
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    connection.execute(sql.SQL("alter role {} login password {}").format(sql.Identifier(role), sql.Literal(verifier)))


def _dsn(connection: Connection, role: str, password: str) -> str:
    owners: dict[str, Any] = connection.info.get_parameters() | {
        "dbname": connection.info.dbname,
        "host": connection.info.host,
    }
    kept = {name: owners[name] for name in _OF_A_DSN if name in owners}
    return conninfo.make_conninfo("", **(kept | {"port": connection.info.port, "user": role, "password": password}))


def _one(connection: Connection, query: str, *arguments: Any) -> tuple[Any, ...]:
    row = connection.execute(query.encode(), arguments).fetchone()
    assert row is not None  # noqa: S101 (each of these has one row)
    return row


@contextmanager
def _connected(dsn: str) -> Iterator[Connection]:
    try:
        with psycopg.connect(parameters(dsn), autocommit=True, prepare_threshold=None) as connection:
            yield connection
    except psycopg.errors.InsufficientPrivilege as error:
        raise SyncError(
            f"the owner lacks a right: {error.diag.message_primary}",
            error_class=ErrorClass.AUTH,
            fix="It needs CREATE on the database and CREATEROLE; where another owner of this cluster made the role"
            " recorder_node, also `GRANT recorder_node TO <owner> WITH ADMIN OPTION`",
            code=error.sqlstate or "",
        ) from None
    except psycopg.Error as error:
        raise translate(error, dsn) from None


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Make what is inside one transaction, and the only one of its kind at the time."""
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (_LOCK,))
        yield

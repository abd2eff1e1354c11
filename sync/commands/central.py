"""The commands of the centre's owner: `central migrate` and `central add-fleet`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

from sync.retry import SyncError

OWNER_DSN = "CENTRAL_OWNER_DSN"  # not EDGE_RECORDER_...: those are a node's settings, and no node knows the owner

_owner_dsn = click.option(
    "--owner-dsn",
    envvar=OWNER_DSN,
    show_envvar=True,
    default="",
    metavar="DSN",
    help="The owner's connection string, as libpq takes it. Not set: PGHOST, PGUSER, PGSERVICE and the like say it.",
)


@click.group()
def central() -> None:
    """Set up the central Postgres. The owner needs CREATE on the database and CREATEROLE, and no more."""


@central.command()
@_owner_dsn
@click.pass_obj
def migrate(app: Any, owner_dsn: str) -> None:
    """Make the schema, or bring it to this release. Running it again changes nothing."""
    from sync.central import admin  # noqa: PLC0415 (psycopg is loaded only by who speaks to Postgres)

    with _explained(owner_dsn):
        applied = admin.migrate(owner_dsn)
    said = "\n".join(f"applied {name}" for name in applied) or "the schema is up to date"
    app.show({"applied": applied}, said)


@central.command("add-fleet")
@click.argument("name")
@click.option("--rotate", is_flag=True, help="Give the login of an existing fleet a new password.")
@_owner_dsn
@click.pass_obj
def add_fleet(app: Any, name: str, owner_dsn: str, *, rotate: bool) -> None:
    """Make the login that the nodes of fleet NAME share, and print its DSN. Its password is shown this once."""
    from sync.central import admin  # noqa: PLC0415 (psycopg is loaded only by who speaks to Postgres)

    with _explained(owner_dsn):
        fleet = admin.add_fleet(owner_dsn, name, rotate=rotate)
    app.show(asdict(fleet), fleet.dsn)


@contextmanager
def _explained(owner_dsn: str) -> Iterator[None]:
    """Where no DSN was given, an error of the connection names what gives one."""
    try:
        yield
    except SyncError as error:
        if not owner_dsn:
            said = f"No owner was named, so libpq's own settings were used: set --owner-dsn or {OWNER_DSN}"
            error.fix = f"{said}. {error.fix}" if error.fix else said
        raise

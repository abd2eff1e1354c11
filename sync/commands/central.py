"""The commands of the centre's owner: `central migrate` and `central add-fleet`."""

from __future__ import annotations

import json
from typing import Any

import click

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

    applied = admin.migrate(owner_dsn)
    if app.json:
        click.echo(json.dumps({"applied": applied}))
    else:
        click.echo("\n".join(f"applied {name}" for name in applied) or "the schema is up to date")


@central.command("add-fleet")
@click.argument("name")
@click.option("--rotate", is_flag=True, help="Give the login of an existing fleet a new password.")
@_owner_dsn
@click.pass_obj
def add_fleet(app: Any, name: str, owner_dsn: str, *, rotate: bool) -> None:
    """Make the login that the nodes of fleet NAME share, and print its DSN. Its password is shown this once."""
    from sync.central import admin  # noqa: PLC0415 (psycopg is loaded only by who speaks to Postgres)

    fleet = admin.add_fleet(owner_dsn, name, rotate=rotate)
    if app.json:
        click.echo(json.dumps({"fleet": fleet.fleet, "role": fleet.role, "dsn": fleet.dsn}))
    else:
        click.echo(fleet.dsn)

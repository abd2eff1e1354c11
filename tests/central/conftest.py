"""A centre in a database of its own per test, made by an owner that is no superuser."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest
from centre import Node
from psycopg import conninfo, sql
from services import PostgresServer

from sync.central import admin
from sync.central.client import Central


def make_login(superuser_dsn: str, name: str, *options: str, member_of: str | None = None) -> str:
    """Make a login in the cluster and return its DSN."""
    role, password = f"{name}_{secrets.token_hex(6)}", secrets.token_hex(8)
    words = sql.SQL(" ").join(sql.SQL(word) for word in ("login", *options))
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create role {} {} password {}").format(sql.Identifier(role), words, sql.Literal(password))
        )
        if member_of:
            connection.execute(sql.SQL("grant {} to {}").format(sql.Identifier(member_of), sql.Identifier(role)))
    return conninfo.make_conninfo(superuser_dsn, user=role, password=password)


@pytest.fixture
def superuser_dsn(postgres: PostgresServer) -> str:
    """The superuser's DSN of an empty database."""
    return postgres.new_database()


@pytest.fixture
def owner_dsn(superuser_dsn: str) -> str:
    """The DSN of the owner of an empty database."""
    dsn = make_login(superuser_dsn, "owner", "createrole")
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        owner = sql.Identifier(psycopg.conninfo.conninfo_to_dict(dsn)["user"])
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("grant create on database {} to {}").format(database, owner))
        _share_node_role(connection, owner)
    return dsn


def _share_node_role(connection: psycopg.Connection[Any], owner: sql.Identifier) -> None:
    """Let `owner` grant the role that another test's owner made: all databases of a cluster share its roles."""
    if connection.execute("select from pg_roles where rolname = 'recorder_node'").rowcount:
        connection.execute(sql.SQL("grant recorder_node to {} with admin option").format(owner))


@pytest.fixture
def centre_dsn(owner_dsn: str) -> str:
    """The owner's DSN of a migrated centre."""
    admin.migrate(owner_dsn)
    return owner_dsn


@pytest.fixture
def query(centre_dsn: str) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Ask the centre as its owner."""
    with psycopg.connect(centre_dsn, autocommit=True) as connection:
        yield lambda text, *arguments: connection.execute(text, arguments).fetchall()


@pytest.fixture
def execute(centre_dsn: str) -> Iterator[Callable[..., int]]:
    """Change the centre as its owner; return how many rows that met."""
    with psycopg.connect(centre_dsn, autocommit=True) as connection:
        yield lambda text, *arguments, **named: connection.execute(text, named or arguments).rowcount


@pytest.fixture
def reader_dsn(superuser_dsn: str, centre_dsn: str) -> str:
    """The DSN of a login that may read the views, and is given no tenant yet."""
    return make_login(superuser_dsn, "reader", member_of="recorder_reader")


@pytest.fixture
def fleet_dsn(centre_dsn: str) -> str:
    return admin.add_fleet(centre_dsn, "north").dsn


@pytest.fixture
async def central(fleet_dsn: str) -> AsyncIterator[Central]:
    async with Central(fleet_dsn) as central:
        yield central


@pytest.fixture
async def node(central: Central) -> Node:
    """A node that said hello."""
    node = Node(central)
    await node.hello()
    return node

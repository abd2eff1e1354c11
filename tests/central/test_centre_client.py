"""How the client fails: in time, with a class, without a secret, and ready to go on."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from centre import Node, call
from psycopg import conninfo, sql

from sync.central.client import Central, parameters
from sync.central.errors import IncompatibleCentre
from sync.retry import ErrorClass, SyncError


async def _refusal(dsn: str, **options: Any) -> SyncError:
    async with Central(dsn, **options) as central:
        with pytest.raises(SyncError) as caught:
            await central.connect()
    return caught.value


async def test_nobody_listens() -> None:
    """A refused connection is transient."""
    error = await _refusal("postgresql://u:s3cret@127.0.0.1:1/x")
    assert error.error_class is ErrorClass.TRANSIENT
    assert "s3cret" not in str(error)


async def test_server_that_never_answers() -> None:
    """A server that takes the connection and says nothing costs the timeout, and no more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        error = await _refusal(f"host=127.0.0.1 port={port} user=u dbname=d", timeout=0.2)
    assert error.error_class is ErrorClass.TRANSIENT
    assert "did not answer in 0.2 s" in str(error)


async def test_unknown_login(centre_dsn: str) -> None:
    """A login that is not there is a matter of access, and says what to check."""
    error = await _refusal(conninfo.make_conninfo(centre_dsn, user="nobody_here", password="s3cret"))
    assert error.error_class is ErrorClass.AUTH
    assert error.exit_code == 12
    assert "add-fleet NAME --rotate" in error.fix
    assert "s3cret" not in str(error)


async def test_unknown_database(centre_dsn: str) -> None:
    """So is a database that is not there."""
    assert (await _refusal(conninfo.make_conninfo(centre_dsn, dbname="not_here"))).error_class is ErrorClass.AUTH


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:s3cret@more@host/x",
        "host=h s3cret",
        "postgresql://u:s3cret/more@host/x",
        "postgresql://u:s%3cre%t@h/d",
    ],
)
async def test_malformed_dsn_says_nothing_of_itself(dsn: str) -> None:
    """A DSN that is none is refused without quoting it: a piece of it may be the password."""
    error = await _refusal(dsn)
    assert error.error_class is ErrorClass.AUTH
    assert not any(piece in str(error) for piece in ("s3cret", "more", "re%t", "s<re"))


def test_empty_dsn_is_left_to_libpq() -> None:
    """Without a DSN the PG* variables, service and password files say where the centre is."""
    assert conninfo.conninfo_to_dict(parameters("")) == {"application_name": "edge-recorder", "connect_timeout": "10"}


async def test_database_without_a_centre(owner_dsn: str) -> None:
    """A database that was never migrated is named so, with the command that helps."""
    async with Central(owner_dsn) as central:
        with pytest.raises(IncompatibleCentre, match="central migrate"):
            await Node(central).hello()


async def test_older_centre(node: Node, execute: Callable[..., int]) -> None:
    """A centre of an earlier schema refuses hello."""
    execute("create or replace function recorder.schema_version() returns integer language sql as 'select 0'")
    with pytest.raises(IncompatibleCentre, match="central migrate"):
        await node.hello()


async def test_newer_centre(node: Node, execute: Callable[..., int]) -> None:
    """A node refuses to speak to a centre of a later schema."""
    execute("create or replace function recorder.schema_version() returns integer language sql as 'select 2'")
    with pytest.raises(IncompatibleCentre, match="Upgrade"):
        await node.hello()


async def test_connection_cut_by_the_server(node: Node, superuser_dsn: str) -> None:
    """A connection that the server ends (failover, restart) is a transient failure, and the next call opens another."""
    connection = node.central._connection
    assert connection is not None
    with psycopg.connect(superuser_dsn, autocommit=True) as superuser:
        superuser.execute("select pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
    with pytest.raises(SyncError) as caught:
        await node.push(call())
    assert caught.value.error_class is ErrorClass.TRANSIENT
    await node.push(call())


async def test_server_that_became_read_only(node: Node, superuser_dsn: str) -> None:
    """A connection to a server that was demoted is given up, as the address leads to the new primary by now."""
    role = sql.Identifier(conninfo.conninfo_to_dict(node.central._dsn)["user"])
    with psycopg.connect(superuser_dsn, autocommit=True) as superuser:
        superuser.execute(sql.SQL("alter role {} set default_transaction_read_only = on").format(role))
        await node.central.close()
        with pytest.raises(SyncError) as caught:
            await node.push(call())
        superuser.execute(sql.SQL("alter role {} reset default_transaction_read_only").format(role))
    assert caught.value.error_class is ErrorClass.TRANSIENT
    await node.push(call())


async def test_statement_that_takes_too_long(node: Node, centre_dsn: str) -> None:
    """A call that waits for a lock ends with the timeout, and the same batch goes through once the lock is gone."""
    slow = Central(node.central._dsn, timeout=0.2)
    other = Node(slow, node_id=node.node_id)
    other.epoch = node.epoch
    with psycopg.connect(centre_dsn) as blocker:
        blocker.execute("select from recorder.nodes for update")
        with pytest.raises(SyncError) as caught:
            await other.send("t1", call())
        assert caught.value.error_class is ErrorClass.TRANSIENT
    assert slow._connection is None
    assert (await other.send("t1", call())).cursor == 1
    await slow.close()


async def test_refused_row_keeps_the_connection(node: Node) -> None:
    """A server that refuses a row has answered: its connection is used again."""
    connection = node.central._connection
    with pytest.raises(SyncError):
        await node.send_raw("t1", "[1]")
    assert node.central._connection is connection

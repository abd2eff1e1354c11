"""The services that other tests stand on: they are real, they stop, and they come back with what they held."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import psycopg
import pytest
from botocore.exceptions import EndpointConnectionError
from services import Bucket, Door, PostgresServer, S3Server

from sync.commands.embedded import EmbeddedServerError

LOCAL = "127.0.0.1"


def test_each_database_is_new_and_empty(postgres: PostgresServer) -> None:
    """Two databases asked for are two databases, and neither has a table."""
    first, second = postgres.new_database(), postgres.new_database()
    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE seen (n int)")
    with psycopg.connect(second) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


def test_postgres_asks_for_a_password(postgres: PostgresServer) -> None:
    """Another user of this machine does not get in without the password."""
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.superuser_dsn, password="wrong")


def test_postgres_comes_back_with_its_rows(own_postgres: PostgresServer) -> None:
    """A stopped Postgres refuses connections; started again it has its rows, at the same address."""
    dsn = own_postgres.new_database()
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    own_postgres.stop()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(dsn)
    own_postgres.start()
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (7,)


def test_starting_and_stopping_twice_is_once(own_postgres: PostgresServer) -> None:
    """A second start keeps the first process, and a second stop finds nothing to do."""
    first = own_postgres.pid
    assert own_postgres.start().pid == first
    own_postgres.stop()
    own_postgres.stop()
    assert own_postgres.pid is None


def test_s3_holds_what_is_put(bucket: Bucket) -> None:
    """An object put is listed and read back as it was."""
    bucket.client().put_object(Bucket=bucket.name, Key="a/b.flac", Body=b"audio")
    assert bucket.keys() == ["a/b.flac"]
    assert bucket.read("a/b.flac") == b"audio"


def test_objects_outlive_a_closed_door(bucket: Bucket, door: Door) -> None:
    """Through a closed door nothing is reached; opened again, it leads to the objects put before."""
    through = bucket.client(door.endpoint_url)
    through.put_object(Bucket=bucket.name, Key="k", Body=b"before")
    door.close()
    with pytest.raises(EndpointConnectionError):
        through.get_object(Bucket=bucket.name, Key="k")
    door.open()
    assert through.get_object(Bucket=bucket.name, Key="k")["Body"].read() == b"before"


def test_closing_a_door_resets_what_is_open() -> None:
    """A connection in the middle of its bytes is reset when the door closes, and a new one refused."""
    with socket.create_server((LOCAL, 0)) as server, Door(server.getsockname()[1]) as door:
        near = socket.create_connection((LOCAL, door.port))
        far, _ = server.accept()
        with near, far:
            far.sendall(b"half")
            assert near.recv(4) == b"half"
            door.close()
            with pytest.raises(ConnectionResetError):
                near.recv(4)
            with pytest.raises(ConnectionResetError):
                far.recv(4)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOCAL, door.port))


def test_a_door_carries_both_ways_and_to_the_end() -> None:
    """Bytes pass in both directions, more than a socket's buffer of them, and each side sees the other's end."""
    sent = bytes(range(256)) * 8192
    with socket.create_server((LOCAL, 0)) as server, Door(server.getsockname()[1]) as door:
        near = socket.create_connection((LOCAL, door.port))
        far, _ = server.accept()
        with near, far:
            near.sendall(b"question")
            near.shutdown(socket.SHUT_WR)
            assert far.makefile("rb").read() == b"question"
            far.settimeout(10)
            received = _exchange(far, near, sent)
    assert received == sent


def test_a_door_without_a_server_behind_it_resets() -> None:
    """A door whose server is gone takes no connection for a good one."""
    with socket.create_server((LOCAL, 0)) as server:
        vacant = server.getsockname()[1]
    with (
        Door(vacant) as door,
        socket.create_connection((LOCAL, door.port)) as near,
        pytest.raises(ConnectionResetError),
    ):
        near.recv(1)


def test_a_paused_server_answers_when_it_goes_on(s3: S3Server, bucket: Bucket) -> None:
    """A paused server takes the request and answers it once resumed."""
    s3.pause()
    try:
        with socket.create_connection((LOCAL, s3.port)) as connection:
            connection.sendall(b"GET /moto-api/ HTTP/1.0\r\n\r\n")
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            s3.resume()
            connection.settimeout(30)
            assert connection.recv(8) == b"HTTP/1.1"
    finally:
        s3.resume()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A server whose port is taken fails at its start with what it printed, and leaves no process."""
    with socket.create_server((LOCAL, 0)) as taken:
        server = S3Server(tmp_path / "s3", port=taken.getsockname()[1])
        with pytest.raises(EmbeddedServerError, match="in use"):
            server.start()
    assert server.pid is None


def _exchange(sender: socket.socket, receiver: socket.socket, data: bytes) -> bytes:
    """Send `data` and its end while receiving it: more than the buffers hold would block a sender alone."""

    def send() -> None:
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    received = receiver.makefile("rb").read()
    thread.join()
    return received

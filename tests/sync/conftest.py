"""A site: a node, with a centre and a bucket of its own, and doors before both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import Node
from psycopg.conninfo import make_conninfo
from services import Bucket, Door, PostgresServer
from sites import Site

from sync.central import admin


@pytest.fixture
def centre_dsn(postgres: PostgresServer) -> str:
    dsn = postgres.new_database()
    admin.migrate(dsn)
    return dsn


@pytest.fixture
def site(data_dir: Path, bucket: Bucket, door: Door, postgres: PostgresServer, centre_dsn: str) -> Iterator[Site]:
    fleet = admin.add_fleet(centre_dsn, "north").dsn
    with Door(postgres.port) as before_postgres:
        node = Node(
            data_dir,
            store={"url": f"s3://{bucket.name}/pre", "endpoint_url": door.endpoint_url, "timeout": 10},
            central={"dsn": make_conninfo(fleet, port=before_postgres.port), "timeout": 10},
        )
        yield Site(node, bucket, door, before_postgres, centre_dsn)

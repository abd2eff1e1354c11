"""Fixtures: real services, started by the first test that asks and shared by all, and what each test has to itself."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from services import AWS_FOREIGN, AWS_TESTING, Bucket, Door, PostgresServer, S3Server, make_room

# A deadline per example fails on a busy machine and not on a quiet one. In CI the change fails, and not the dice.
settings.register_profile("here", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests to `make faults`."""
    if "faults" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("faults")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def services_room() -> Iterator[Path]:
    """The directory that this session's servers keep their state in."""
    room = make_room("edge-recorder-tests-")
    yield room
    shutil.rmtree(room)


@pytest.fixture(scope="session")
def postgres(services_room: Path) -> Iterator[PostgresServer]:
    """The session's Postgres: ask it for a `new_database()`, and leave it running."""
    with PostgresServer(services_room / "postgres") as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A Postgres that the test may stop and start as it likes."""
    room = make_room("edge-recorder-test-")
    with PostgresServer(room / "postgres") as server:
        yield server
    shutil.rmtree(room)


@pytest.fixture(scope="session")
def s3(services_room: Path) -> Iterator[S3Server]:
    """The session's S3 server: ask for a `bucket`, put a `door` before it to cut it off, and leave it running."""
    with S3Server(services_room / "s3") as server:
        yield server


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that mean nothing, and no others in reach."""
    for name in AWS_FOREIGN:
        monkeypatch.delenv(name, raising=False)
    for name, value in AWS_TESTING.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(s3: S3Server, aws_environment: None) -> Bucket:
    """A fresh bucket, with credentials for it in the environment."""
    name = f"calls-{secrets.token_hex(6)}"
    s3.make_bucket(name)
    return Bucket(endpoint_url=s3.endpoint_url, name=name)


@pytest.fixture
def door(s3: S3Server) -> Iterator[Door]:
    """An open door before the session's S3; the objects behind it stay while it is closed."""
    with Door(s3.port) as before_s3:
        yield before_s3


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A directory for one node's data; it exists, and is empty."""
    directory = tmp_path / "data"
    directory.mkdir()
    return directory

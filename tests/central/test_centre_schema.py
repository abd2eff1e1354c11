"""The centre's schema: its columns are the entities', its SQL is fresh, and anyone may migrate it at any time."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import psycopg
import pytest
from centre import START, Node, call, segment
from psycopg import conninfo
from services import PostgresServer

from edge_recorder.catalog.entities import ENTITIES, Entity
from edge_recorder.errors import CallerError
from edge_recorder.model import new_call_id
from sync.central import admin, generate
from sync.central.client import Central
from sync.central.errors import IncompatibleCentre
from sync.retry import ErrorClass, SyncError

Query = Callable[..., list[tuple[object, ...]]]


def test_generated_sql_is_not_stale() -> None:
    """`ingest.sql` is what the entities say now."""
    assert generate.TARGET.read_text() == generate.ingest_sql(), "run `make generate`"


@pytest.mark.parametrize("entity", ENTITIES, ids=lambda entity: entity.table)
def test_columns_are_the_entitys(entity: Entity, query: Query) -> None:
    """A fact table has its entity's columns, in their order, kinds and nullability, and then the centre's own."""
    found = query(
        "select column_name, data_type, is_nullable = 'YES' from information_schema.columns"
        " where table_schema = 'recorder' and table_name = %s order by ordinal_position",
        entity.table,
    )
    full_names = {"timestamptz": "timestamp with time zone"}
    expected = [
        (column.name, full_names.get(kind := generate.postgres_kind(entity, column), kind), column.nullable)
        for column in entity.columns
    ]
    assert found[: len(expected)] == expected
    assert [name for name, *_ in found[len(expected) :]] == list(generate.OWN)


@pytest.mark.parametrize("entity", ENTITIES, ids=lambda entity: entity.table)
def test_key_is_the_call_and_the_entity(entity: Entity, query: Query) -> None:
    """A fact's primary key is (call_id, its own id), with no time in it."""
    found = query(
        "select a.attname from pg_index i cross join unnest(i.indkey) with ordinality as k(attnum, n)"
        " join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum"
        " where i.indisprimary and i.indrelid = ('recorder.' || %s)::regclass order by k.n",
        entity.table,
    )
    assert tuple(name for (name,) in found) == generate.key(entity)


def test_migrating_again_changes_nothing(owner_dsn: str) -> None:
    """The second migrate applies no migration, and keeps the fleets."""
    assert admin.migrate(owner_dsn) == ["0001_facts"]
    admin.add_fleet(owner_dsn, "north")
    assert admin.migrate(owner_dsn) == []
    with pytest.raises(admin.FleetExists):
        admin.add_fleet(owner_dsn, "north")


def test_two_migrate_at_once(owner_dsn: str) -> None:
    """Of two migrates at the same time one does the work and both succeed."""
    applied: list[str] = []
    threads = [threading.Thread(target=lambda: applied.extend(admin.migrate(owner_dsn))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert applied == ["0001_facts"]


def test_newer_centre_is_left_alone(centre_dsn: str, execute: Callable[..., int]) -> None:
    """A migrate by an older release refuses, and says to upgrade."""
    execute("insert into recorder.migrations (name) values ('9999_later')")
    with pytest.raises(IncompatibleCentre, match="Upgrade"):
        admin.migrate(centre_dsn)


def test_owner_without_rights_is_told_which(fleet_dsn: str) -> None:
    """Who may not make the schema gets the rights that it needs named, with the exit code for permissions."""
    with pytest.raises(SyncError, match="CREATEROLE") as caught:
        admin.add_fleet(fleet_dsn, "south")
    assert caught.value.error_class is ErrorClass.AUTH
    assert caught.value.exit_code == 12


def test_fleet_before_migrate(owner_dsn: str) -> None:
    """`add-fleet` on a database without the schema says what to run."""
    with pytest.raises(IncompatibleCentre, match="central migrate"):
        admin.add_fleet(owner_dsn, "north")


@pytest.mark.parametrize("name", ["", "North", "a b", "x" * 32, "a;drop"])
def test_fleet_names(centre_dsn: str, name: str) -> None:
    """A fleet's name is short and plain."""
    with pytest.raises(CallerError, match="name for a fleet"):
        admin.add_fleet(centre_dsn, name)


def test_rotate_needs_the_fleet(centre_dsn: str) -> None:
    """`--rotate` changes the password of a fleet that is there, and makes none."""
    with pytest.raises(admin.NoSuchFleet):
        admin.add_fleet(centre_dsn, "north", rotate=True)
    first = admin.add_fleet(centre_dsn, "north")
    second = admin.add_fleet(centre_dsn, "north", rotate=True)
    assert first.role == second.role
    assert first.dsn != second.dsn


def test_role_left_over_from_a_dropped_database(centre_dsn: str, execute: Callable[..., int]) -> None:
    """A login that an earlier database of this name left in the cluster is used again."""
    role = admin.add_fleet(centre_dsn, "north").role
    execute("delete from recorder.fleets")
    assert admin.add_fleet(centre_dsn, "north").role == role


def test_database_and_fleet_are_kept_apart_in_a_role_name(postgres: PostgresServer) -> None:
    """Where database and fleet, joined, read the same, two centres of one cluster still have two logins."""
    stem = secrets.token_hex(6)
    whole, part = (postgres.new_database(name) for name in (stem, f"{stem}_eu"))
    for dsn in (whole, part):
        admin.migrate(dsn)
    first = admin.add_fleet(whole, "eu_north")
    second = admin.add_fleet(part, "north")
    assert first.role != second.role
    psycopg.connect(first.dsn).close()  # and the first one's password is still its own


def test_role_names_never_meet(postgres: PostgresServer) -> None:
    """Two databases whose long names begin alike have logins of their own."""
    roles, stem = set(), secrets.token_hex(31)
    for end in ("a", "b"):
        dsn = postgres.new_database(stem + end)
        admin.migrate(dsn)
        roles.add(admin.add_fleet(dsn, "a_fleet_with_a_name_of_31_bytes").role)
    assert len(roles) == 2
    assert all(len(role) <= 63 for role in roles)


def test_password_is_nowhere_in_the_clear(superuser_dsn: str, fleet_dsn: str) -> None:
    """What is sent to the server is a SCRAM verifier."""
    login = conninfo.conninfo_to_dict(fleet_dsn)
    with psycopg.connect(superuser_dsn) as connection:
        found = connection.execute("select rolpassword from pg_authid where rolname = %s", (login["user"],)).fetchone()
    assert found is not None
    assert found[0].startswith("SCRAM-SHA-256$")
    assert str(login["password"]) not in found[0]


def test_months_around_now_have_partitions(query: Query) -> None:
    """After a migrate the last, this and the next month have their partitions, and the rest its default."""
    (names,) = zip(*query("select relid::text from pg_partition_tree('recorder.calls') where isleaf"), strict=True)
    assert len(names) == 4
    assert f"recorder.calls_{datetime.now(UTC):%Y_%m}" in names


async def test_a_new_partition_takes_its_rows_from_the_default(
    node: Node, query: Query, execute: Callable[..., int]
) -> None:
    """Rows that came before their month had a partition move into it, and stay where the views find them."""
    may_2031 = 1_936_000_000_000_000
    late, other = call(new_call_id(may_2031)), call(new_call_id(START - 400 * 86_400_000_000))
    await node.push(late, segment(late.call_id), other)
    before = query("select tableoid::regclass::text from recorder.calls where call_id = %s", late.call_id)
    execute("select recorder.make_partitions('2031-05-20')")
    execute("select recorder.make_partitions('2031-05-01')")
    after = query("select tableoid::regclass::text from recorder.calls where call_id = %s", late.call_id)
    assert (before, after) == ([("recorder.calls_default",)], [("recorder.calls_2031_05",)])
    assert query("select count(*) from recorder.call_list") == [(2,)]


async def test_two_databases_share_the_roles(postgres: PostgresServer, fleet_dsn: str) -> None:
    """The login of one centre is nobody at another in the same cluster."""
    other = postgres.new_database()
    admin.migrate(other)
    dbname = conninfo.conninfo_to_dict(other)["dbname"]
    async with Central(conninfo.make_conninfo(fleet_dsn, dbname=dbname)) as stranger:
        with pytest.raises(SyncError, match="belongs to no fleet") as caught:
            await Node(stranger).hello()
    assert caught.value.error_class is ErrorClass.AUTH

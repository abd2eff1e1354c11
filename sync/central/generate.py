"""
The centre's upserts, made from the entities: `ingest.sql`.

Of each entity one statement takes all rows of a batch; of two states of one row in a batch the later counts. A row that
is here already gives way only to a later change of the same node. What else holds a row back is in `FILLS` and `KEEPS`.
"""

from __future__ import annotations

from pathlib import Path

from edge_recorder.catalog.entities import ENTITIES, Column, Entity

TARGET = Path(__file__).with_name("ingest.sql")

# Columns of every fact table that are the centre's own.
OWN = ("node_id", "generation", "change_seq", "received_at", "extra")

# What a column is in Postgres, and what it is in the payload where that differs.
POSTGRES = {
    "text": "text",
    "integer": "bigint",
    "real": "double precision",
    "boolean": "boolean",
    "instant": "timestamptz",
    "json": "jsonb",
    "exact": "numeric",
}
PAYLOAD = {"instant": "bigint", "json": "text"}

_EXTRA = Column("extra", "json", nullable=True)  # what a newer node sends beside the columns known here

# A row that knows less than one with its journal (or its store) would: it only fills what is null.
FILLS = {"calls": "excluded.partial", "objects": "excluded.state = 'unknown'"}

# A call never leaves a terminal state; only its journal may say more of it than a row without one did.
_ENDED = "held.state in ('ended', 'interrupted') and (not held.partial or excluded.partial or excluded.state = 'live')"
KEEPS = {
    ("calls", "state"): f"case when {_ENDED} then held.state else excluded.state end",
    **{
        ("calls", name): f"""\
case
            when excluded.partial then coalesce(held.{name}, excluded.{name})
            when {_ENDED} then held.{name}
            else excluded.{name}
            end"""
        for name in ("ended_at", "end_reason", "duration_s")
    },
    ("calls", "partial"): "held.partial and excluded.partial",
}


def ingest_sql() -> str:
    """Return the text of `ingest.sql`."""
    return "\n".join([_head(), *(_take_one(entity) for entity in ENTITIES)])


def postgres_kind(entity: Entity, column: Column) -> str:
    """Return the Postgres type of `column`: ids are uuid, all else follows from its kind."""
    return "uuid" if column.name in key(entity) else POSTGRES[column.kind]


def key(entity: Entity) -> tuple[str, ...]:
    """Return the primary key at the centre: the call's, and the entity's own."""
    return tuple(dict.fromkeys(("call_id", entity.key)))


def _head() -> str:
    tables = [entity.table for entity in ENTITIES]
    names = ", ".join(f"'{table}'" for table in tables)
    takes = "\n".join(_take_if_sent(table) for table in tables)
    return f"""\
-- Made by sync/central/generate.py from edge_recorder/catalog/entities.py; `make generate` writes it anew.

-- Take the rows of one batch, each entity with one statement.
create or replace function recorder.take(
    node uuid, generation bigint, first_seq bigint, last_seq bigint, rows jsonb
) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    sent     text[];
    in_range boolean;
begin
    select
        array_agg(distinct coalesce(r.entity, '')),
        count(*) = count(*) filter (where r.seq between first_seq and last_seq)
    into sent, in_range
    from jsonb_to_recordset(rows) as r(seq bigint, entity text);
    if not in_range then
        raise exception 'a row of this batch is not of its changes % to %', first_seq, last_seq using errcode = '22023';
    end if;
    if not sent <@ array[{names}] then
        raise exception 'this centre does not know all of: %', array_to_string(sent, ', ') using errcode = 'RE002';
    end if;
{takes}
end
$$;
"""


def _take_if_sent(table: str) -> str:
    return f"""\
    if '{table}' = any (sent) then
        perform recorder.take_{table}(node, generation, rows);
    end if;"""


def _take_one(entity: Entity) -> str:
    columns = entity.columns
    names = [column.name for column in columns]
    own_key = ", ".join(key(entity))
    return f"""\
-- {entity.table}: {_purpose(entity)}
create or replace function recorder.take_{entity.table}(node uuid, generation bigint, rows jsonb) returns void
language sql set search_path = pg_catalog, pg_temp
as $$
    insert into recorder.{entity.table} as held (
        {_wrapped(names)},
        node_id, generation, change_seq, extra
    )
    select distinct on ({", ".join(f"it.{name}" for name in key(entity))})
        {_wrapped([_read(column) for column in columns])},
        take_{entity.table}.node, take_{entity.table}.generation, sent.seq,
        nullif(sent."row" - array[
        {_wrapped([f"'{name}'" for name in names])}
        ], '{{}}')
    from jsonb_to_recordset(rows) as sent(seq bigint, entity text, "row" jsonb)
    cross join lateral jsonb_to_record(sent."row") as it(
        {_wrapped([f"{column.name} {_payload_kind(entity, column)}" for column in columns])}
    )
    where sent.entity = '{entity.table}'
    order by {", ".join(f"it.{name}" for name in key(entity))}, sent.seq desc
    on conflict ({own_key}) do update set
{_assignments(entity)}
        generation = excluded.generation, change_seq = excluded.change_seq, received_at = excluded.received_at
    where held.node_id = excluded.node_id
      and (held.generation, held.change_seq) < (excluded.generation, excluded.change_seq)
$$;
"""


def _purpose(entity: Entity) -> str:
    fills = FILLS.get(entity.table)
    return (
        f"a row with {fills.replace('excluded.', '')} only fills what is null." if fills else "the later change wins."
    )


def _assignments(entity: Entity) -> str:
    changing = [column for column in entity.columns if column.name not in key(entity)]
    values = [*((column.name, _value(entity, column)) for column in changing), ("extra", _value(entity, _EXTRA))]
    return "\n".join(f"        {name} = {value}," for name, value in values)


def _value(entity: Entity, column: Column) -> str:
    name = column.name
    if (entity.table, name) in KEEPS:
        return KEEPS[entity.table, name]
    if entity.table not in FILLS:
        return f"excluded.{name}"
    filled = f"coalesce(held.{name}, excluded.{name})" if column.nullable else f"held.{name}"
    return f"case when {FILLS[entity.table]} then {filled} else excluded.{name} end"


def _read(column: Column) -> str:
    if column.kind == "instant":
        return f"timestamptz 'epoch' + it.{column.name} * interval '1 microsecond'"
    if column.kind == "json":
        return f"it.{column.name}::jsonb"
    return f"it.{column.name}"


def _payload_kind(entity: Entity, column: Column) -> str:
    return PAYLOAD.get(column.kind, postgres_kind(entity, column))


def _wrapped(parts: list[str]) -> str:
    """Join `parts` with commas into lines that a page can hold."""
    lines = [""]
    for part in parts:
        if len(lines[-1]) + len(part) > 100:  # noqa: PLR2004 (characters of a line)
            lines.append("")
        lines[-1] += f"{part}, "
    return "\n        ".join(line.rstrip() for line in lines).removesuffix(",")

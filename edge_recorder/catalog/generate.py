"""
SQL that follows from the entities. `make generate` writes it to the checked-in files; a test fails when they are stale.
"""

from __future__ import annotations

from pathlib import Path

from edge_recorder.catalog.entities import ENTITIES, Entity

TRIGGERS_FILE = Path(__file__).with_name("triggers.sql")


def triggers() -> str:
    """Return the triggers that tell the change log of every row the centre must hear of."""
    head = "-- Made from catalog/entities.py by `make generate`: do not edit.\n"
    return head + "".join(_triggers(entity) for entity in ENTITIES)


def _triggers(entity: Entity) -> str:
    moved = "\n    OR ".join(f"new.{column} IS NOT old.{column}" for column in entity.watched)
    row = f"'{entity.table}', new.{entity.key}, new.call_id, 'put'"
    note = f"INSERT INTO changes (entity, entity_id, call_id, op) VALUES ({row});"
    return f"""
CREATE TRIGGER {entity.table}_inserted AFTER INSERT ON {entity.table}
BEGIN
    {note}
END;

CREATE TRIGGER {entity.table}_updated AFTER UPDATE ON {entity.table}
WHEN {moved}
BEGIN
    {note}
END;
"""


def upsert(entity: Entity) -> str:
    """Return the statement that stores a row of `entity` by its named columns, whether it is new or not."""
    names = [column.name for column in entity.columns]
    into = ", ".join(names)
    values = ", ".join(f":{name}" for name in names)
    sets = ", ".join(f"{name} = excluded.{name}" for name in names if name != entity.key)
    guard = f" WHERE {entity.table}.{entity.open_while}" if entity.open_while else ""
    return (
        f"INSERT INTO {entity.table} ({into}) VALUES ({values}) ON CONFLICT ({entity.key}) DO UPDATE SET {sets}{guard}"
    )

"""
The one description of what is kept of each fact: its table, its value, its key, and what the centre hears of it.

The change triggers, the upserts of catalog and centre, the journal's replay and the push payload are all made from
`ENTITIES`. `make generate` writes the SQL that follows from it, and a test fails when that is stale.
"""

from __future__ import annotations

import types
import typing
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

from edge_recorder.model import Call, Message, Segment, Span, StoredObject, Usage


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its kind (`text integer real boolean instant json exact`), and whether it may be NULL."""

    name: str
    kind: str
    nullable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """How one kind of fact is stored. `data_class` is the retention class that its rows belong to."""

    table: str
    model: type[Any]
    key: str
    data_class: str
    quiet: frozenset[str] = (
        frozenset()
    )  # columns that travel with the row, but whose change alone owes the centre nothing
    open_while: str | None = None  # the condition under which a row may still change; a terminal state is never left

    @property
    def columns(self) -> tuple[Column, ...]:
        return _columns(self)

    @property
    def watched(self) -> tuple[str, ...]:
        """The columns whose change the centre must hear of."""
        return tuple(column.name for column in self.columns if column.name not in self.quiet)

    def row(self, value: Any) -> dict[str, Any]:
        return asdict(value)

    def value(self, row: dict[str, Any]) -> Any:
        """Make the value of `row`; what a newer release wrote beside the known columns is left out."""
        return self.model(**self.payload(row))

    def payload(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the columns of a catalog's `row` that the centre is told, as they are in JSON.

        SQLite has no boolean; `json` and `exact` columns stay the text that they are, which the centre casts.
        """
        known = [column for column in self.columns if column.name in row]
        return {c.name: bool(row[c.name]) if c.kind == "boolean" else row[c.name] for c in known}


# Parents before children: the order in which rows travel.
ENTITIES: tuple[Entity, ...] = (
    Entity(table="calls", model=Call, key="call_id", data_class="call", open_while="state = 'live'"),
    Entity(table="segments", model=Segment, key="segment_id", data_class="audio"),
    Entity(table="spans", model=Span, key="span_id", data_class="audio"),
    Entity(table="messages", model=Message, key="message_id", data_class="message"),
    Entity(table="usage", model=Usage, key="usage_id", data_class="usage"),
    Entity(
        table="objects",
        model=StoredObject,
        key="object_id",
        data_class="audio",
        quiet=frozenset({"error_class", "last_error"}),
    ),
)
BY_TABLE: dict[str, Entity] = {entity.table: entity for entity in ENTITIES}
BY_MODEL: dict[type[Any], Entity] = {entity.model: entity for entity in ENTITIES}

_KINDS = {str: "text", int: "integer", float: "real", bool: "boolean"}


@cache
def _columns(entity: Entity) -> tuple[Column, ...]:
    hints = typing.get_type_hints(entity.model, include_extras=True)
    return tuple(_column(field.name, hints[field.name]) for field in fields(entity.model))


def _column(name: str, hint: Any) -> Column:
    parts = [part for part in _alternatives(hint) if part is not types.NoneType]
    (part,) = parts
    metadata: tuple[str, ...] = getattr(part, "__metadata__", ())
    return Column(name, metadata[0] if metadata else _KINDS[part], nullable=len(_alternatives(hint)) > 1)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in {typing.Union, types.UnionType}
    return typing.get_args(hint) if is_union else (hint,)

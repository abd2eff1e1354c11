"""The statements of `statements.sql` by name, and the upserts that follow from the entities."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from edge_recorder.catalog.entities import ENTITIES
from edge_recorder.catalog.generate import upsert

_NAME = re.compile(r"^-- name: (\S+)\n", re.MULTILINE)


def statement(name: str) -> str:
    """Return the SQL called `name`; `put.<table>` stores a row of that entity."""
    return _statements()[name]


@cache
def _statements() -> dict[str, str]:
    parts = _NAME.split(Path(__file__).with_suffix(".sql").read_text())
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    return named | {f"put.{entity.table}": upsert(entity) for entity in ENTITIES}

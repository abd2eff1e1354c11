"""The statements of `statements.sql` by name, and those that store facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from edge_recorder.catalog.entities import BY_MODEL, ENTITIES
from edge_recorder.catalog.generate import upsert
from edge_recorder.model import Custody, Fact, Segment

Statement = tuple[str, Mapping[str, Any]]  # a name, and its values

_NAME = re.compile(r"^-- name: (\S+)\n", re.MULTILINE)


def statement(name: str) -> str:
    """Return the SQL called `name`; `put.<table>` stores a row of that entity."""
    return _statements()[name]


def storing(facts: Iterable[Fact], *, custody: Custody = Custody.PENDING) -> Iterator[Statement]:
    """Yield what stores `facts`; the file of each segment becomes an object in `custody`, owed to the store."""
    for fact in facts:
        yield f"put.{BY_MODEL[type(fact)].table}", asdict(fact)
        if isinstance(fact, Segment):
            owed = {"object_id": fact.segment_id, "call_id": fact.call_id, "pcm_sha256": fact.pcm_sha256}
            yield "objects.owe", {**owed, "state": custody}


@cache
def _statements() -> dict[str, str]:
    parts = _NAME.split(Path(__file__).with_suffix(".sql").read_text())
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    return named | {f"put.{entity.table}": upsert(entity) for entity in ENTITIES}

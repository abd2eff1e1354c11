"""What commands print for people: columns, a moment, and progress on a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, Protocol

import click

from edge_recorder.model import Instant


class Bar(Protocol):
    """How far a long work is."""

    def update(self, n_steps: int) -> None: ...


def progress(length: int, label: str) -> AbstractContextManager[Bar]:
    """Show a bar on standard error while that is a terminal; elsewhere nothing."""
    file = sys.stderr if sys.stderr.isatty() else io.StringIO()
    # Drawn a hundred times at most: a bar that is drawn for each step of a million is most of the work.
    return click.progressbar(length=length, label=label, file=file, update_min_steps=max(1, length // 100))


def columns(rows: Iterable[Sequence[Any]]) -> str:
    """Return `rows` with their cells aligned; None is a dash."""
    lines = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def moment(instant: Instant | None) -> str | None:
    """Return an instant as a time of day in UTC, to the second."""
    return None if instant is None else f"{datetime.fromtimestamp(instant / 1e6, UTC):%Y-%m-%d %H:%M:%S}"

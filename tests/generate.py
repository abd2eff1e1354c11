"""Write every file that is made from the code: `make generate`. `test_generated.py` fails while one is stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edge_recorder import example
from edge_recorder.catalog.generate import TRIGGERS_FILE, triggers
from sync.central.generate import TARGET, ingest_sql

ROOT = Path(__file__).parents[1]
MADE: Mapping[Path, Callable[[], str]] = {
    TRIGGERS_FILE: triggers,
    TARGET: ingest_sql,
    ROOT / "config.example.toml": example.toml,
    ROOT / "docs" / "settings.md": example.page,
}


def main() -> None:
    for path, make in MADE.items():
        path.write_text(make())


if __name__ == "__main__":
    main()

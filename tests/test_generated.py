"""What is made from the code is what is checked in."""

from __future__ import annotations

from pathlib import Path

import generate
import pytest

from edge_recorder import example
from edge_recorder.settings import Settings


@pytest.mark.parametrize("path", generate.MADE, ids=lambda path: path.name)
def test_a_generated_file_is_fresh(path: Path) -> None:
    """The file is what `make generate` would write now."""
    assert path.read_text() == generate.MADE[path](), f"{path} is stale: run `make generate`"


def test_the_example_is_a_settings_file(tmp_path: Path) -> None:
    """The example is read as it is, and also with the value of every key that has one set."""
    (tmp_path / "plain.toml").write_text(example.toml())
    assert Settings.load(tmp_path / "plain.toml", environ={}).store is None
    lines = [line.removeprefix("# ") if _is_setting(line) else line for line in example.toml(tmp_path).splitlines()]
    (tmp_path / "all.toml").write_text("\n".join(line for line in lines if ' = ""' not in line))
    everything = Settings.load(tmp_path / "all.toml", environ={})
    assert everything.node.data_dir == tmp_path
    assert everything.require_store().format == "flac"
    assert everything.require_central().batch_rows == 500


def _is_setting(line: str) -> bool:
    return line.startswith("# [") or (line.startswith("# ") and " = " in line)

"""The pages name every command, option, exit code and setting."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest

from edge_recorder.commands import ENTRY_POINTS, cli
from edge_recorder.errors import Exit
from edge_recorder.example import sections

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = sorted(point.name for point in entry_points(group=ENTRY_POINTS))


def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands that do something, by the words that name them."""
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            yield from leaves(member, f"{path} {name}")
    else:
        yield path, command


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_documented(name: str) -> None:
    """Its name, its subcommands and their options stand in docs/commands.md."""
    page = (DOCS / "commands.md").read_text()
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    for path, leaf in leaves(command, name):
        assert f"`{path}" in page or f"### {path}" in page, path
        for option in leaf.params:
            assert option.param_type_name == "argument" or option.opts[0] in page, f"{path} {option.opts[0]}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_helps(name: str) -> None:
    """Each command and each of its options say what they do."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    for path, leaf in leaves(command, name):
        assert leaf.help, path
        assert all(option.help for option in leaf.params if isinstance(option, click.Option)), path


def test_exit_codes_are_documented() -> None:
    """Every exit code stands in docs/commands.md."""
    page = (DOCS / "commands.md").read_text()
    assert all(f"| {code.value} |" in page for code in Exit)


def test_settings_are_documented() -> None:
    """Every setting stands in docs/settings.md and in config.example.toml."""
    page, example = (DOCS / "settings.md").read_text(), (DOCS.parent / "config.example.toml").read_text()
    for name, kind in sections():
        assert f"[{name}]" in page
        for key in kind.model_fields:
            assert f"| `{key}` |" in page
            assert f"{key} = " in example

"""The pages name every command, option, exit code, setting, table and error."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest

import edge_recorder
import sync
from edge_recorder.catalog import statements
from edge_recorder.catalog.entities import ENTITIES
from edge_recorder.commands import ENTRY_POINTS, cli
from edge_recorder.errors import EdgeRecorderError, Exit
from edge_recorder.example import sections
from edge_recorder.model import SpanKind

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


def errors(base: type[EdgeRecorderError]) -> Iterator[type[EdgeRecorderError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from errors(kind)


def test_errors_are_documented() -> None:
    """Every error stands in docs/errors.md, in a row that ends with its exit code."""
    for package in (edge_recorder, sync):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    rows = [line for line in (DOCS / "errors.md").read_text().splitlines() if line.startswith("|")]
    for kind in set(errors(EdgeRecorderError)):
        if kind.__module__.partition(".")[0] in {"edge_recorder", "sync"}:
            assert any(f"`{kind.__name__}`" in row and row.endswith(f"| {kind.exit_code.value} |") for row in rows), (
                kind
            )


def test_tables_are_documented() -> None:
    """Every table of the catalog stands in docs/recording.md, each table and view of the centre in docs/centre.md."""
    catalog_page, centre_page = (DOCS / "recording.md").read_text(), (DOCS / "centre.md").read_text()
    schema = Path(statements.__file__).with_name("schema.sql").read_text()
    central = Path(sync.__file__).parent / "central"
    made_there = "".join(file.read_text() for file in [*central.glob("migrations/*.sql"), central / "views.sql"])
    for table in re.findall(r"^CREATE TABLE (\w+)", schema, re.MULTILINE):
        assert f"`{table}`" in catalog_page, table
    named = re.findall(
        r"create (?:or replace )?(?:table|view) (?:if not exists )?recorder\.(\w+)", made_there, re.IGNORECASE
    )
    assert {entity.table for entity in ENTITIES} | {"nodes", "call_list"} <= set(named)
    for name in {each.removesuffix("_default") for each in named}:
        assert f"`{name}`" in centre_page, name


def test_spans_are_documented() -> None:
    """Every kind of span stands in docs/recording.md."""
    page = (DOCS / "recording.md").read_text()
    assert all(f"| `{kind.value}` |" in page for kind in SpanKind)

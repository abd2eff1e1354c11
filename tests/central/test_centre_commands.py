"""`central migrate` and `central add-fleet`."""

from __future__ import annotations

import json

import pytest
from centre import Node
from click.testing import CliRunner, Result

from edge_recorder.commands import App
from sync.central.admin import FleetExists
from sync.central.client import Central
from sync.commands.central import OWNER_DSN, central


def _run(*arguments: str, json_output: bool = False, **environ: str) -> Result:
    return CliRunner().invoke(central, arguments, obj=App(json=json_output), env=environ)


@pytest.mark.parametrize("arguments", [("migrate",), ("add-fleet", "north")])
def test_no_owner(arguments: tuple[str, ...]) -> None:
    """Where no DSN was given and libpq's own settings lead nowhere, the error says what to give."""
    error = _run(*arguments, PGHOST="127.0.0.1", PGPORT="1").exception
    assert all(word in str(error) for word in ("--owner-dsn", OWNER_DSN))


async def test_from_nothing_to_a_node_that_speaks(owner_dsn: str) -> None:
    """The two commands make a centre, and a DSN with which a node enrols."""
    assert _run("migrate", "--owner-dsn", owner_dsn).output == "applied 0001_facts\n"
    assert _run("migrate", json_output=True, **{OWNER_DSN: owner_dsn}).output == '{"version": 1, "applied": []}\n'
    made = json.loads(_run("add-fleet", "north", "--owner-dsn", owner_dsn, json_output=True).output)
    assert set(made) == {"version", "fleet", "role", "dsn"}
    async with Central(made["dsn"]) as client:
        assert (await Node(client).hello()).generation == 1


def test_existing_fleet(centre_dsn: str) -> None:
    """A fleet that exists is an error that says how to rotate its password; `--rotate` does."""
    first = _run("add-fleet", "north", "--owner-dsn", centre_dsn).output
    again = _run("add-fleet", "north", "--owner-dsn", centre_dsn)
    assert isinstance(again.exception, FleetExists)
    assert "--rotate" in str(again.exception)
    assert _run("add-fleet", "north", "--rotate", "--owner-dsn", centre_dsn).output not in {first, ""}


@pytest.mark.parametrize("command", ["migrate", "add-fleet"])
def test_help_says_where_the_owner_comes_from(command: str) -> None:
    """The help names the option, its variable and libpq's own."""
    text = _run(command, "--help").output
    assert all(word in text for word in ("--owner-dsn", OWNER_DSN, "PGHOST"))

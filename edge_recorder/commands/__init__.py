"""
The `edge-recorder` program: global options, and commands found by entry point, each loaded only when it is asked for.

A command gets the `App`: the settings when it wants them, and how to print. Errors of ours become one line and their
exit code; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import click

from edge_recorder.errors import EdgeRecorderError, Exit

ENTRY_POINTS = "edge_recorder.commands"
JSON_VERSION = 1
EXTRAS = {"aioboto3": "sync", "psycopg": "sync", "watchfiles": "sync", "soundfile": "files", "moto": "demo"}

T = TypeVar("T")


@dataclass
class App:
    """What the global options say."""

    config: Path | None = None
    json: bool = False

    @cached_property
    def settings(self) -> Any:
        """The `Settings`; read when first asked for, as `--help` and `init` need none.

        Raises:
            SettingsError: They are missing or wrong.
        """
        from edge_recorder.settings import Settings  # noqa: PLC0415 (pydantic is slow to import)

        settings = Settings.load(self.config)
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        for ours in ("edge_recorder", "sync"):  # the libraries below them say what matters by their errors
            logging.getLogger(ours).setLevel(settings.log.level.upper())
        return settings

    def show(self, document: dict[str, Any], text: str) -> None:
        """Print a result: `document` as one line of versioned JSON under `--json`, else `text` for people."""
        click.echo(json.dumps({"version": JSON_VERSION, **document}, default=str) if self.json else text)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the asynchronous part of a command."""
        return asyncio.run(work)


class Commands(click.Group):
    """A group whose members are entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(point.name for point in entry_points(group=ENTRY_POINTS))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for point in entry_points(group=ENTRY_POINTS, name=cmd_name):
            try:
                command: click.Command = point.load()
            except ModuleNotFoundError as error:
                return _needs_extra(cmd_name, error)
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", type=click.Path(path_type=Path), help="The settings file (default: ./config.toml, then XDG, then /etc)."
)
@click.option("--json", "as_json", is_flag=True, help="Print versioned JSON instead of text.")
@click.version_option(package_name="edge-recorder")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, as_json: bool) -> None:
    """Record calls on local disk first; sync audio to S3 and facts to Postgres until both have all of it."""
    ctx.obj = App(config=config, json=as_json)


def main() -> None:
    """Run the program and exit with its code."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as ended:
        code = ended.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        code = Exit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = Exit.USAGE
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        code = Exit.INTERRUPTED
    except EdgeRecorderError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        click.echo(f"error: {_missing(error)}", err=True)
        code = Exit.FAILED
    sys.exit(code if isinstance(code, int) else Exit.DONE)


def _needs_extra(name: str, error: ModuleNotFoundError) -> click.Command:
    """Stand in for a command whose packages are not installed, so that `--help` still works for the others."""

    @click.command(name, help=f"(needs the package {error.name})", context_settings={"ignore_unknown_options": True})
    @click.argument("args", nargs=-1)
    def command(args: tuple[str, ...]) -> None:  # noqa: ARG001 (whatever it was given)
        raise _missing(error)

    return command


def _missing(error: ModuleNotFoundError) -> EdgeRecorderError:
    extra = EXTRAS.get(error.name or "", "sync")
    return EdgeRecorderError(f"this needs the package {error.name}", fix=f"pip install 'edge-recorder[{extra}]'")

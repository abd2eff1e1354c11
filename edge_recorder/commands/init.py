"""`init`: a data directory, its catalog, and a settings file that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge_recorder.errors import CallerError, SettingsError

NEXT = """\
{config} names {data_dir}, the data directory of node {node_id}. Next:
  edge-recorder record --user user.wav --assistant assistant.wav
  edge-recorder calls list
To send recordings on, fill in [store] and [central] of {config}, then run `edge-recorder sync`."""


@click.command()
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default="data", show_default=True, help="Where recordings are kept."
)
@click.option("--force", is_flag=True, help="Replace the settings file. The data directory is never emptied.")
@click.pass_obj
def init(app: Any, data_dir: Path, *, force: bool) -> None:
    """Make this machine a node: a data directory, its catalog, and config.toml (or --config FILE)."""
    from edge_recorder import durable, example, spool  # noqa: PLC0415 (`--help` needs none of it)

    config = app.config or Path("config.toml")
    if config.exists() and not force:
        raise CallerError(
            f"{config} exists", fix="--force replaces it; or edit it: node.data_dir says where recordings are"
        )
    data_dir = data_dir.absolute()
    node_id = spool.prepare(data_dir)
    app.run(_make_catalog(data_dir, node_id))
    try:
        durable.replace_with(config, example.toml(data_dir).encode())
    except OSError as error:
        raise SettingsError(
            f"cannot write {config}: {error.strerror}", fix="Pass --config FILE before `init`"
        ) from None
    facts = {"config": str(config), "data_dir": str(data_dir), "node_id": node_id}
    app.show(facts, NEXT.format(**facts))


async def _make_catalog(data_dir: Path, node_id: str) -> None:
    from edge_recorder.catalog.connection import Catalog  # noqa: PLC0415 (`--help` needs none of it)

    await (await Catalog.open(data_dir, create_for=node_id)).close()

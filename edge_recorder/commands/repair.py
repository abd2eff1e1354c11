"""`repair local`: disk and catalog brought together again."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING

import click

from edge_recorder.console import columns, progress
from edge_recorder.errors import CatalogBroken, Exit, NoCatalog

if TYPE_CHECKING:
    from edge_recorder.catalog.connection import Catalog
    from edge_recorder.recovery import Report

SAID = {
    "calls_seen": "calls seen",
    "calls_closed": "calls of dead recorders closed",
    "calls_left_alone": "calls of living recorders left alone",
    "calls_failed": "calls that could not be mended now",
    "segments_salvaged": "unfinished segments salvaged",
    "segments_adopted": "segments adopted that no journal knew",
    "segments_mixed": "mixed segments made",
    "files_quarantined": "files set aside in quarantine/",
    "torn_lines": "torn journal lines passed over",
    "rows_replayed": "rows replayed from journals",
}


@click.group()
def repair() -> None:
    """Repair what a crash or a person broke. Nothing is deleted, and every repair may be run again."""


@repair.command()
@click.pass_context
def local(ctx: click.Context) -> None:
    """Bring this node's disk and catalog together: salvage, adopt, replay the journals, close dead calls.

    Every recorder does this at its start for the recorders that died; this looks at every call. A lost catalog is made
    anew from the journals; a broken one is set aside first.
    """
    app = ctx.obj
    report = app.run(_repair(app.settings.node.data_dir))
    counts = asdict(report)
    app.show(counts, columns((SAID[name], count) for name, count in counts.items()))
    ctx.exit(Exit.PARTIAL if report.calls_failed else Exit.DONE)


async def _repair(data_dir: Path) -> Report:
    from edge_recorder import recovery, spool  # noqa: PLC0415 (`--help` needs none of it)

    if not (data_dir / "node.json").exists():
        raise NoCatalog(f"nothing was ever recorded in {data_dir}", fix="Check node.data_dir")
    catalog = await _open_or_replace(data_dir, spool.prepare(data_dir))
    seen = 0
    try:
        with progress(sum(1 for _ in spool.call_dirs(data_dir)), "repairing") as bar:

            def show(report: Report) -> None:
                nonlocal seen
                bar.update(report.calls_seen - seen)
                seen = report.calls_seen

            return await recovery.repair(
                catalog, data_dir, now=lambda: time_ns() // 1000, on_pool=asyncio.to_thread, progress=show
            )
    finally:
        await catalog.close()


async def _open_or_replace(data_dir: Path, node_id: str) -> Catalog:
    """Open the catalog; a broken one is set aside, and a new one made in its place for the journals to fill."""
    from edge_recorder.catalog import migrate  # noqa: PLC0415 (`--help` needs none of it)
    from edge_recorder.catalog.connection import Catalog, catalog_path  # noqa: PLC0415

    catalog = Catalog(data_dir, create_for=node_id)
    try:
        await catalog.start()
        await catalog.check()
    except CatalogBroken as error:
        await catalog.close()
        aside = await asyncio.to_thread(migrate.set_aside, catalog_path(data_dir))
        click.echo(f"{error.message}: set aside as {aside.name}, and made anew", err=True)
        return await Catalog.open(data_dir, create_for=node_id)
    return catalog

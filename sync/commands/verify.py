"""`verify`: whether disk, catalog, store and centre agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import click

from edge_recorder.catalog.connection import Catalog
from edge_recorder.console import columns, progress
from edge_recorder.errors import Exit
from edge_recorder.settings import Settings
from sync.verify import Difference, Report, verify

VERDICT = {
    Exit.DONE: "{} agree, and nothing is owed",
    Exit.PARTIAL: "{} do not differ; something is owed: `edge-recorder sync` brings it, or says why not",
    Exit.FAILED: "no difference in what could be looked at; not all could",
    Exit.INTEGRITY: "{} do not agree",
}
SHOWN = 20  # differences of one kind


@click.command("verify")
@click.pass_context
def verify_command(ctx: click.Context) -> None:
    """Compare disk, catalog, store and centre, by counts and hashes. Changes nothing.

    Exits with 0 where all agree, 3 where something is only owed, 1 where store or centre could not be asked, and 13
    where something differs: each difference is named with its likely cause and what to do.
    """
    app = ctx.obj
    report = app.run(_verify(app.settings))
    app.show({**asdict(report), "exit_code": report.exit_code}, describe(report))
    ctx.exit(report.exit_code)


async def _verify(settings: Settings) -> Report:
    catalog = await Catalog.open(settings.node.data_dir)
    try:
        total = sum(row["count"] for row in await catalog.fetch("segments.counts"))
        with progress(total, "verifying") as bar:
            return await verify(catalog, settings, progress=bar.update)
    finally:
        await catalog.close()


def describe(report: Report) -> str:
    """Return the report for people."""
    counts = report.counts
    facts = [
        ("segment files on disk", counts["files"]),
        ("segment rows", counts["rows"]),
        ("objects in the store", counts["objects"]),
        ("objects held by the centre", counts["held"]),
        *((f"owed: {what}", count) for what, count in report.owed.items() if count),
    ]
    unreachable = [f"not looked at: {place}: {why}" for place, why in report.unreachable.items()]
    *others, last = report.compared
    verdict = VERDICT[report.exit_code].format(f"{', '.join(others)} and {last}")
    return "\n".join([columns(facts), *_shown(report.differences), *unreachable, verdict])


def _shown(differences: list[Difference]) -> Iterator[str]:
    """Say the first of each kind, and how many more there are."""
    kinds: dict[tuple[str, str], list[Difference]] = {}
    for each in differences:
        kinds.setdefault((each.place, each.cause), []).append(each)
    for (place, _), alike in kinds.items():
        yield from map(_said, alike[:SHOWN])
        if len(alike) > SHOWN:
            yield f"{place}: and {len(alike) - SHOWN} more like these; --json has all"


def _said(found: Difference) -> str:
    return f"{found.place}: {found.item} {found.what}\n  likely: {found.cause}\n  to do: {found.fix}"

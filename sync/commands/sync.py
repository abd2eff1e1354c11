"""`sync`: bring everything to the store and the centre, once or for as long as it runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from time import monotonic

import click

from sync import agent

REDRAW = 0.1  # seconds between two drawings of the progress line
MIB = 1024 * 1024
CLEAR_LINE = "\r\033[K"


@click.command()
@click.option("--watch", is_flag=True, help="Stay, and sync whatever is recorded, until SIGTERM or Ctrl-C.")
@click.pass_context
def sync(ctx: click.Context, *, watch: bool) -> None:
    """Upload audio to the store and push facts to the centre, until both have all of it.

    Exits with 3 while something is still owed or was refused by the centre, and with 12 if all that is owed waits for
    credentials or permission.
    """
    app = ctx.obj
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it has a line for each commit
    summary = app.run(agent.run(app.settings, watch=watch, progress=_progress_line()))
    if sys.stderr.isatty():
        click.echo(CLEAR_LINE, nl=False, err=True)
    app.show({**asdict(summary), "exit_code": summary.exit_code}, describe(summary))
    ctx.exit(summary.exit_code)


def describe(summary: agent.Summary) -> str:
    """Return what was done, and what is still owed, why, and what to do about it."""
    upload, push = summary.upload, summary.push
    lines = [f"uploaded {upload.arrived} objects ({upload.size / MIB:.1f} MiB), pushed {push.arrived} rows"]
    lines += _owed("audio", "objects", upload, "[store]") + _owed("facts", "changes", push, "[central]")
    if summary.unrecovered:
        lines.append(f"calls of recorders that died are still open: {summary.unrecovered}")
    if summary.refused:
        lines.append(f"{summary.refused} rows were refused by the centre and are in its quarantine")
    if not (summary.refused or upload.behind or push.behind or summary.unrecovered):
        lines.append("everything that is configured has arrived")
    return "\n".join(lines)


def _owed(what: str, unit: str, leg: agent.LegReport, section: str) -> list[str]:
    if leg.destination is None:
        return [f"{what}: {section} is not set; {leg.owed} {unit} are kept for later"] if leg.owed else []
    if leg.owed or leg.reason:
        return [f"{what}: {leg.owed} {unit} still owed to {leg.destination}: {leg.reason or 'not finished'}"]
    return []


def _progress_line() -> Callable[[agent.Progress], None]:
    """Return what shows the progress on a terminal: one line, drawn over itself. How much is to come, nobody knows."""
    if not sys.stderr.isatty():
        return lambda _: None
    drawn = 0.0

    def draw(at: agent.Progress) -> None:
        nonlocal drawn
        if monotonic() - drawn >= REDRAW:
            drawn = monotonic()
            click.echo(
                f"{CLEAR_LINE}uploaded {at.objects} objects ({at.bytes / MIB:.1f} MiB), pushed {at.rows} rows",
                nl=False,
                err=True,
            )

    return draw

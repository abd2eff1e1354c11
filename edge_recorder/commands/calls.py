"""`calls list`, `calls show` and `calls export`: what this node recorded, and how it sounds."""

from __future__ import annotations

import json
import secrets
import sys
import wave
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from edge_recorder.catalog.connection import Catalog, Row
from edge_recorder.catalog.entities import BY_TABLE, Column
from edge_recorder.console import columns, moment, progress
from edge_recorder.errors import CallerError, EdgeRecorderError, NoSuchCall
from edge_recorder.model import MIXED, CallState, SpanKind

if TYPE_CHECKING:
    from edge_recorder.playback import Range, Stream

STEREO = "stereo"
LEFT, RIGHT = "user", "assistant"
STDOUT = "-"
WAV_LIMIT = 2**32 - 64  # bytes that the length field of a WAV can count
# Kinds whose time holds no sound. In what was not heard of one voice another may speak, so that is no such time.
SKIPPABLE = (SpanKind.PAUSED.value, SpanKind.GAP.value)  # by value: click shows the name of a member
DETAILS = ("segments", "spans", "messages", "usage")

Write = Callable[[Any], object]
Writer = Callable[[IO[bytes], int, int, int], AbstractContextManager[Write]]


@click.group()
def calls() -> None:
    """See and hear what this node recorded. CALL is a call_id, the beginning of one, or the provider's id."""


@calls.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Show no more than these.")
@click.option("--external-id", help="Only calls with this id of the provider.")
@click.pass_obj
def list_calls(app: Any, limit: int, external_id: str | None) -> None:
    """List calls, the latest first, with how much of their audio the store is still owed."""
    rows = app.run(_fetch(app.settings.node.data_dir, "calls.list", limit=limit, external_id=external_id))
    app.show({"calls": [_plain("calls", row) for row in rows]}, _list_text(rows))


@calls.command()
@click.argument("call")
@click.pass_obj
def show(app: Any, call: str) -> None:
    """Show CALL: where its audio is, what was said, and what a bill is made of."""
    found, details = app.run(_call(app.settings.node.data_dir, call))
    document = {name: [_plain(name, row) for row in rows] for name, rows in details.items()}
    app.show({"call": _plain("calls", found), **document}, _show_text(found, details))


@calls.command()
@click.argument("call")
@click.option("--track", default=MIXED, show_default=True, metavar="TRACK", help="A track's name, or `stereo`.")
@click.option("-o", "--output", required=True, metavar="FILE", help="A .wav or .flac file, or - for a WAV on stdout.")
@click.option(
    "--skip",
    "kinds",
    multiple=True,
    type=click.Choice(SKIPPABLE),
    help="Leave out the time of these spans, instead of silence; repeatable.",
)
@click.option("--force", is_flag=True, help="Replace FILE.")
@click.pass_obj
def export(app: Any, call: str, track: str, output: str, *, kinds: tuple[str, ...], force: bool) -> None:
    """Join the segments of CALL into one file, without a gap or a click. `stereo` is user left, assistant right."""
    data_dir = app.settings.node.data_dir
    found, details = app.run(_call(data_dir, call))
    stream, skipped = _stream(data_dir, found, details, track, kinds)
    channels = 2 if track == STEREO else 1
    with (
        _sink(output, stream.rate, channels, stream.frames, force=force) as write,
        progress(stream.frames, track) as bar,
    ):
        for block in stream:
            write(block)
            bar.update(len(block))
    if found["state"] == CallState.LIVE:
        click.echo("the call is still live: what is sealed of it was exported", err=True)
    if output != STDOUT:
        shape = {"track": track, "rate": stream.rate, "channels": channels, "frames": stream.frames}
        left_out = sum(end - start for start, end in skipped)
        parts = [{"start_s": start, "end_s": end} for start, end in skipped]
        text = f"{output}: {track} of {found['call_id']}, {stream.frames / stream.rate:.2f} s at {stream.rate} Hz"
        text += f", {left_out:.2f} s left out" if kinds else ""
        document = {"call_id": found["call_id"], "output": output, **shape, "skipped_s": left_out, "skipped": parts}
        app.show(document, text)


async def _fetch(data_dir: Path, name: str, **values: Any) -> list[Row]:
    catalog = await Catalog.open(data_dir)
    try:
        return await catalog.fetch(name, **values)
    finally:
        await catalog.close()


async def _call(data_dir: Path, ref: str) -> tuple[Row, dict[str, list[Row]]]:
    """Return the call that `ref` names, and the rows that belong to it.

    Raises:
        NoSuchCall: It names none.
        CallerError: It names more than one.
    """
    catalog = await Catalog.open(data_dir)
    try:
        found = _only(ref, await catalog.fetch("calls.find", ref=ref))
        return found, {name: await catalog.fetch(f"{name}.of_call", call_id=found["call_id"]) for name in DETAILS}
    finally:
        await catalog.close()


def _only(ref: str, found: list[Row]) -> Row:
    if not found:
        raise NoSuchCall(f"no call is {ref!r}", fix="`edge-recorder calls list` shows them")
    if len(found) > 1:
        which = "; ".join(f"{row['call_id']} of {moment(row['started_at'])}" for row in found)
        raise CallerError(f"{ref!r} is more than one call, the latest: {which}", fix="Name one by its call_id")
    return found[0]


def _stream(
    data_dir: Path, call: Row, details: dict[str, list[Row]], track: str, kinds: tuple[str, ...]
) -> tuple[Stream, list[Range]]:
    """Return what `track` of a call sounds like, and what was left out of it: the time of its spans of `kinds`.

    Raises:
        CallerError: The call has no such track.
    """
    from edge_recorder import playback, spool  # noqa: PLC0415 (only an export needs numpy)

    rows = details["segments"]
    _refuse_unknown(call, {row["track"] for row in rows}, track)
    directory = spool.call_dir(data_dir, call["call_id"], call["started_at"])
    elsewhere = {row["segment_id"]: _address(row) for row in rows if row["state"] == "stored"}
    segments = [BY_TABLE["segments"].value(row) for row in rows]
    read = playback.from_spool(directory, elsewhere=elsewhere)
    tracks = playback.Tracks(segments, read=read, duration_s=call["duration_s"])
    if track == MIXED:
        stream = tracks.mixed()
    else:
        stream = tracks.stereo(LEFT, RIGHT) if track == STEREO else tracks.track(track)
    skipped = playback.merged(_silent(details["spans"], track, kinds), end=tracks.end)
    return playback.Kept(stream, skipped, end=tracks.end) if skipped else stream, skipped


def _silent(spans: list[Row], track: str, kinds: tuple[str, ...]) -> Iterator[Range]:
    """Yield the spans of `kinds` that silence all of `track`. In one voice's own, the other voices go on."""
    own = {None} if track in {MIXED, STEREO} else {None, track}
    for row in spans:
        if row["kind"] in kinds and row["track"] in own:
            yield row["start_s"], row["end_s"]


def _refuse_unknown(call: Row, has: set[str], track: str) -> None:
    if not has:
        reason = call["not_recording_reason"] or "no segment of it is sealed"
        fix = "`edge-recorder calls show` says more"
        raise CallerError(f"there is no audio of {call['call_id']}: {reason}", fix=fix)
    for name in (LEFT, RIGHT) if track == STEREO else (track,):
        if name not in has | {MIXED}:
            raise CallerError(f"the call has no track {name!r}", fix=f"It has: {', '.join(sorted(has | {MIXED}))}")


@contextmanager
def _sink(output: str, rate: int, channels: int, frames: int, *, force: bool) -> Iterator[Write]:
    """Give what takes the blocks of an export. A file appears whole, or not at all."""
    writers: dict[str, Writer] = {".wav": _wav, ".flac": _flac}
    suffix = ".wav" if output == STDOUT else Path(output).suffix.lower()
    if suffix not in writers:
        raise CallerError(f"cannot write {output}", fix="Let -o end in .wav or .flac, or be - for a WAV on stdout")
    if suffix == ".wav" and 2 * channels * frames > WAV_LIMIT:
        raise CallerError("that is longer than a WAV can be", fix="Let -o end in .flac")
    try:
        target = nullcontext(sys.stdout.buffer) if output == STDOUT else _new(output, force=force)
        with target as file, writers[suffix](file, rate, channels, frames) as write:
            yield write
    except OSError as error:
        raise EdgeRecorderError(f"cannot write {output}: {error.strerror or error}") from None


@contextmanager
def _new(output: str, *, force: bool) -> Iterator[IO[bytes]]:
    """Give a file that becomes `output` when all went well, and vanishes when it did not."""
    target = Path(output)
    if target.exists() and not force:
        raise CallerError(f"{output} exists", fix="--force replaces it")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _wav(file: IO[bytes], rate: int, channels: int, frames: int) -> Iterator[Write]:
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, 2, rate, frames, "NONE", ""))  # the length first: a pipe cannot be corrected later
        yield lambda block: writer.writeframesraw(block.tobytes())


@contextmanager
def _flac(file: IO[bytes], rate: int, channels: int, _frames: int) -> Iterator[Write]:
    try:
        import soundfile  # noqa: PLC0415 (optional)
    except ImportError:
        raise EdgeRecorderError("FLAC needs soundfile", fix="pip install 'edge-recorder[files]', or use .wav") from None
    try:
        with soundfile.SoundFile(file, "w", rate, channels, format="FLAC", subtype="PCM_16") as writer:
            yield writer.write
    except soundfile.LibsndfileError as error:
        raise EdgeRecorderError(f"cannot write FLAC at {rate} Hz: {error.error_string}", fix="Use .wav") from None


def _plain(table: str, row: Row) -> Row:
    """Return a row as JSON has it: JSON columns decoded, booleans as such."""
    kinds = {column.name: column.kind for column in BY_TABLE[table].columns}
    return {name: _value(kinds.get(name, ""), value) for name, value in row.items()}


def _value(kind: str, value: Any) -> Any:
    if value is None:
        return None
    return json.loads(value) if kind == "json" else bool(value) if kind == "boolean" else value


def _address(row: Row) -> str:
    return f"{row['key']} in {row['store_url']}"


def _list_text(rows: list[Row]) -> str:
    if not rows:
        return "no calls"
    head = ("call", "started (UTC)", "state", "seconds", "segments", "owed", "external id")
    return columns([head, *map(_list_line, rows)])


def _list_line(row: Row) -> tuple[Any, ...]:
    return (
        row["call_id"],
        moment(row["started_at"]),
        row["state"],
        _seconds(row["duration_s"]),
        row["segments"],
        row["audio_owed"],
        row["external_id"],
    )


def _show_text(call: Row, details: dict[str, list[Row]]) -> str:
    lines = {
        "segments": (("track", "seq", "from s", "seconds", "rate", "peak dBFS", "custody", "where"), _segment_line),
        "spans": (("kind", "track", "from s", "to s", "reason"), _span_line),
        "messages": (("n", "role", "from s", "text"), _message_line),
        "usage": (("kind", "quantity", "unit", "provider", "model", "cost"), _usage_line),
    }
    parts = [columns((column.name, _said(column, call[column.name])) for column in BY_TABLE["calls"].columns)]
    for name, (head, line) in lines.items():
        if details[name]:
            parts.append(f"{name}\n{columns([head, *map(line, details[name])])}")
    return "\n\n".join(parts)


def _said(column: Column, value: Any) -> Any:
    return moment(value) if column.kind == "instant" else _value(column.kind if column.kind == "boolean" else "", value)


def _segment_line(row: Row) -> tuple[Any, ...]:
    return (
        row["track"],
        row["seq"],
        _seconds(row["first_sample"] / row["rate"]),
        _seconds(row["frames"] / row["rate"]),
        row["rate"],
        row["peak_dbfs"],
        "salvaged, " * row["salvaged"] + (row["state"] or "no object"),
        _address(row) if row["key"] else None,
    )


def _span_line(row: Row) -> tuple[Any, ...]:
    return (row["kind"], row["track"] or "all", _seconds(row["start_s"]), _seconds(row["end_s"]), row["reason"])


def _message_line(row: Row) -> tuple[Any, ...]:
    return (row["n"], row["role"], _seconds(row["start_s"]), row["text"])


def _usage_line(row: Row) -> tuple[Any, ...]:
    cost = row["cost"] and f"{row['cost']} {row['currency'] or ''}".strip()
    return (row["kind"], row["quantity"], row["unit"], row["provider"], row["model"], cost)


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"

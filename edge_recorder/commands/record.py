"""
`record`: a call from audio files, or from raw PCM on standard input, through the real Recorder.

`--pace live` hands audio over in real time, 20 ms at a time, as a telephone would; `--pace media` as fast as the disk
takes it, with back-pressure. Ctrl-C or SIGTERM ends the call in order: what was handed over is kept.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from edge_recorder.console import progress
from edge_recorder.errors import CallerError, Exit
from edge_recorder.model import Pace

if TYPE_CHECKING:
    from edge_recorder.call import Call
    from edge_recorder.sources.files import Piece, Voice

STDIN = "-"
LIVE_STEP = 0.02  # seconds of audio handed over at once: a telephone's packet
MEDIA_STEP = 1.0  # and where nothing waits for the clock; never more than a quarter of the queue
FINISHED = "end of input"
INTERRUPTED = "interrupted"


@click.command()
@click.option("--user", metavar="FILE", help="The user's voice: an audio file, or - for raw s16le on standard input.")
@click.option("--assistant", metavar="FILE", help="The assistant's voice, likewise.")
@click.option("--track", "others", multiple=True, metavar="NAME=FILE", help="Another voice, likewise; repeatable.")
@click.option("--rate", type=click.IntRange(1000, 192_000), metavar="HZ", help="Samples per second of standard input.")
@click.option(
    "--pace",
    type=click.Choice([each.value for each in Pace]),
    help="What moves time: the clock (default on standard input) or the audio.",
)
@click.option("--external-id", help="The provider's id of the call.")
@click.option("--tenant", help="Whose call it is.")
@click.option("--agent", help="Which assistant speaks.")
@click.option("--direction", help="Such as inbound or outbound.")
@click.option("--transcript", type=click.Path(path_type=Path), help="JSON: a list of {speaker, text, start, end}.")
@click.option(
    "--usage", "usages", nargs=3, multiple=True, metavar="KIND QUANTITY UNIT", help="A line of a bill; repeatable."
)
@click.pass_context
def record(
    ctx: click.Context,
    /,
    *,
    user: str | None,
    assistant: str | None,
    others: tuple[str, ...],
    rate: int | None,
    pace: str | None,
    transcript: Path | None,
    usages: tuple[tuple[str, str, str], ...],
    **facts: Any,
) -> None:
    """Record a call from audio files, or from raw PCM on standard input (--rate says how fast that is)."""
    from edge_recorder.recorder import Recorder  # noqa: PLC0415 (`--help` needs none of it)

    app = ctx.obj
    voices = _voices({"user": user, "assistant": assistant, **_named(others)}, rate)
    messages = _messages(transcript)
    pace = pace or (Pace.LIVE if rate is not None else Pace.MEDIA)
    interrupted = False
    with _sigterm_as_ctrl_c(), Recorder(app.settings) as recorder:
        tracks = {track: voice.rate for track, voice in voices.items()}
        with recorder.start_call(tracks=tracks, pace=pace, **facts) as call:
            click.echo(f"recording {call.id}", err=True)
            try:
                for kind, quantity, unit in usages:
                    call.add_usage(kind, quantity=quantity, unit=unit)
                _feed(call, voices, messages, pace=pace, queue_seconds=app.settings.capture.queue_seconds)
            except KeyboardInterrupt:
                interrupted = True
            call.end(INTERRUPTED if interrupted else FINISHED)
    summary = call.end().result()  # only now is it sure to come: a disk that refuses is not waited for any more
    app.show({**asdict(summary), "recording": call.recording, "reason": call.reason}, _text(call, summary))
    ctx.exit(_code(call, interrupted=interrupted, complete=summary.complete))


def _voices(named: Mapping[str, str | None], rate: int | None) -> dict[str, Voice]:
    from edge_recorder.sources.files import RawInput, SoundFile  # noqa: PLC0415 (`--help` needs none of it)

    given = {track: file for track, file in named.items() if file is not None}
    piped = [track for track, file in given.items() if file == STDIN]
    if not given:
        raise CallerError("there is nothing to record", fix="Give --user FILE, --assistant FILE or --track NAME=FILE")
    if len(piped) > 1:
        raise CallerError(f"{' and '.join(piped)} cannot all be standard input", fix="Give files for all but one")
    if bool(piped) != (rate is not None):
        raise CallerError(
            "raw audio on standard input has no rate of its own" if piped else "--rate is for standard input alone",
            fix="Give --rate HZ" if piped else "Leave it out: a file says its own rate",
        )
    return {
        track: RawInput(sys.stdin.buffer, rate) if rate is not None and file == STDIN else SoundFile(Path(file))
        for track, file in given.items()
    }


def _named(others: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for each in others:
        name, equals, file = each.partition("=")
        if not (name and equals and file):
            raise CallerError(f"--track {each} is not NAME=FILE", fix="Write it like --track supervisor=supervisor.wav")
        if name in {"user", "assistant", *named}:
            raise CallerError(f"the track {name} is given twice", fix="Give each track one file")
        named[name] = file
    return named


def _messages(path: Path | None) -> list[dict[str, Any]]:
    """Return the turns of a transcript.

    Raises:
        CallerError: It cannot be read, or is something else.
    """
    if path is None:
        return []
    fix = 'A transcript is a JSON list of {"speaker": "user", "text": "Hello", "start": 1.2, "end": 1.9}'
    try:
        turns = json.loads(path.read_bytes())
        return [
            {
                "role": str(turn["speaker"]),
                "text": str(turn["text"]),
                "at": float(turn["start"]),
                "end": float(turn["end"]),
            }
            for turn in turns
        ]
    except OSError as error:
        raise CallerError(f"cannot read {path}: {error.strerror}", fix=fix) from None
    except (ValueError, TypeError, KeyError) as error:
        raise CallerError(f"{path} is no transcript: {error!r}", fix=fix) from None


def _feed(
    call: Call,
    voices: Mapping[str, Voice],
    messages: Sequence[dict[str, Any]],
    *,
    pace: str,
    queue_seconds: float,
) -> None:
    """Hand over all audio of `voices`, at its pace, and each message when the call has come to it."""
    from edge_recorder.sources.files import pieces  # noqa: PLC0415 (`--help` needs none of it)

    live = pace == Pace.LIVE
    step = LIVE_STEP if live else min(MEDIA_STEP, queue_seconds / 4)
    said = deque(sorted(messages, key=lambda message: float(message["at"])))
    began = time.monotonic()
    shown = 0
    with progress(round(_length(voices) * 1000), "recording") as bar:  # in milliseconds
        for piece in pieces(voices, seconds=step):
            if live:
                _wait_until(began + piece.at + len(piece.samples) / voices[piece.track].rate)
            _hand_over(call, piece, heard_now=live and voices[piece.track].seconds is None)
            while said and said[0]["at"] <= piece.at:
                call.add_message(**said.popleft())
            if not live:
                call.drain().result()
            at = round(piece.at * 1000)
            bar.update(at - shown)
            shown = at
    for message in said:
        call.add_message(**message)


def _hand_over(call: Call, piece: Piece, *, heard_now: bool) -> None:
    if piece.ends_track:
        call.end_track(piece.track)
    else:
        # A live pipe may stall and go on later: its arrival tells where it belongs, its count of bytes does not.
        call.write(piece.track, piece.samples, at=None if heard_now else piece.at)


def _length(voices: Mapping[str, Voice]) -> float:
    return max((voice.seconds or 0.0 for voice in voices.values()), default=0.0)


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _text(call: Call, summary: Any) -> str:
    if not call.recording and summary.complete:
        return f"{summary.call_id}: {summary.state}, its audio was not recorded: {call.reason}"
    rest = "" if summary.complete else "; not all of it is on disk: the next start salvages the rest"
    return f"{summary.call_id}: {summary.state}, {summary.duration_s or 0:.2f} s in {summary.segments} segments{rest}"


def _code(call: Call, *, interrupted: bool, complete: bool) -> Exit:
    if interrupted:
        return Exit.INTERRUPTED
    return Exit.DONE if call.recording and complete else Exit.FAILED

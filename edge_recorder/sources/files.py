"""
Audio files and standard input as a source: pieces of all tracks, in the order of the timeline.

A file may be whatever libsndfile reads; standard input is raw PCM, s16le. A piece without samples says that its track
has ended.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from edge_recorder.arguments import Audio
from edge_recorder.errors import CallerError, EdgeRecorderError, InvalidAudio
from edge_recorder.wav import SAMPLE_BYTES, silence

FLOATING = frozenset({"FLOAT", "DOUBLE"})  # libsndfile would cut such samples to whole numbers: to silence


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples of one track, and where they belong."""

    track: str
    samples: Audio
    at: float  # seconds from the start

    @property
    def ends_track(self) -> bool:
        return len(self.samples) == 0


class Voice(Protocol):
    """One track's audio. `seconds` is None where nobody knows how long it is."""

    rate: int
    seconds: float | None

    def blocks(self, frames: int) -> Iterator[Audio]: ...


class SoundFile:
    """A file of one voice.

    Raises:
        CallerError: It cannot be read.
        InvalidAudio: It has more than one channel, or is no audio.
    """

    def __init__(self, path: Path) -> None:
        soundfile = _soundfile()
        try:
            self._file = soundfile.SoundFile(path)
        except soundfile.LibsndfileError as error:
            if not path.is_file():
                raise CallerError(f"{path} is not a file", fix="Check its name") from None
            raise InvalidAudio(
                f"{path} cannot be read: {error.error_string}", fix="Convert it, such as with ffmpeg, to WAV or FLAC"
            ) from None
        if self._file.channels != 1:
            raise InvalidAudio(
                f"{path} has {self._file.channels} channels, and a track is one voice",
                fix=f"Split it: `sox {path} user.wav remix 1` and `sox {path} assistant.wav remix 2`",
            )
        self.rate: int = self._file.samplerate
        self.seconds: float | None = self._file.frames / self.rate
        self._dtype = "float32" if self._file.subtype in FLOATING else "int16"

    def blocks(self, frames: int) -> Iterator[Audio]:
        with self._file:
            while len(samples := self._file.read(frames, dtype=self._dtype)):
                yield samples


class RawInput:
    """Raw PCM, s16le, from a pipe."""

    def __init__(self, pipe: IO[bytes], rate: int) -> None:
        self.rate = rate
        self.seconds: float | None = None
        self._pipe = pipe

    def blocks(self, frames: int) -> Iterator[Audio]:
        """Raises: InvalidAudio: it ends in the middle of a sample; all before that was given."""
        while data := self._pipe.read(frames * SAMPLE_BYTES):
            whole = len(data) - len(data) % SAMPLE_BYTES
            if whole:
                yield np.frombuffer(data[:whole], "<i2")
            if whole < len(data):
                raise InvalidAudio(
                    "standard input ends in the middle of a sample", fix="Send s16le: two bytes a sample, mono"
                )


def pieces(voices: Mapping[str, Voice], *, seconds: float) -> Iterator[Piece]:
    """Yield all audio of `voices`, `seconds` of a track at a time, in the order of the timeline."""
    tracks = (_of_track(track, voice, seconds) for track, voice in voices.items())
    return heapq.merge(*tracks, key=lambda piece: piece.at)


def _of_track(track: str, voice: Voice, seconds: float) -> Iterator[Piece]:
    done = 0
    for samples in voice.blocks(max(1, round(seconds * voice.rate))):
        yield Piece(track, samples, done / voice.rate)
        done += len(samples)
    yield Piece(track, silence(0), done / voice.rate)


def _soundfile() -> Any:
    try:
        import soundfile  # noqa: PLC0415 (optional: raw input needs none)
    except ImportError:
        raise EdgeRecorderError(
            "reading audio files needs soundfile", fix="pip install 'edge-recorder[files]'"
        ) from None
    return soundfile

"""
From a segment's WAV file to the bytes that are stored, and back.

Bit rot stops here: the samples read are hashed against the row before anything is made of them, and what was made is
decoded again and hashed before anyone may send it. All of it is work for a thread: libsndfile lets other threads run.
"""

from __future__ import annotations

import errno
import hashlib
import io
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile

from edge_recorder.errors import IntegrityMismatch
from sync.retry import ErrorClass, SyncError
from sync.stores import Body

Samples: TypeAlias = npt.NDArray[np.int16]

CONTENT_TYPES = {"flac": "audio/flac", "wav": "audio/wav"}
OUT_OF_HANDLES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})  # the machine's trouble, not this file's

# A FLAC stream without frames is its marker and its STREAMINFO; libsndfile writes nothing at all for it.
EMPTY_FLAC_MARK = b"fLaC\x80\x00\x00\x22"
EMPTY_FLAC_BYTES = 42
BLOCK_SIZE = 4096


class DamagedAudio(SyncError, IntegrityMismatch):
    """The audio is not what its row says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A segment as it is stored."""

    body: Body
    content_type: str
    extension: str


def encode(path: Path, *, format: str, pcm_sha256: str, frames: int, rate: int) -> Encoded:  # noqa: A002 (its name in the settings)
    """Return the segment at `path` as `flac` or `wav`.

    Raises:
        DamagedAudio: Its samples are not those that were sealed.
        SyncError: It cannot be read or encoded.
    """
    pcm = _read(path, rate)
    if len(pcm) != 2 * frames or hashlib.sha256(pcm).hexdigest() != pcm_sha256:
        raise _damaged(f"{path}: {len(pcm) // 2} samples are not the {frames} that were sealed")
    data = _flac(pcm, rate) if format == "flac" else _wav(pcm, rate)
    samples, decoded_rate = decode(data, format)
    if decoded_rate != rate or hashlib.sha256(samples.tobytes()).hexdigest() != pcm_sha256:
        raise _damaged(f"{path}: its {format} does not decode to its samples")
    return Encoded(body=Body(data), content_type=CONTENT_TYPES[format], extension=format)


def decode(data: bytes, format: str) -> tuple[Samples, int]:  # noqa: A002
    """Return the samples of stored bytes, and their rate.

    Raises:
        DamagedAudio: They are not audio in `format`.
    """
    if format == "wav":
        pcm, rate = _parse_wav(io.BytesIO(data), "the stored WAV")
        return np.frombuffer(pcm, dtype="<i2"), rate
    if len(data) == EMPTY_FLAC_BYTES and data.startswith(EMPTY_FLAC_MARK):
        return np.empty(0, dtype=np.int16), int.from_bytes(data[18:21], "big") >> 4
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    except soundfile.LibsndfileError as error:
        raise _damaged(f"the stored {format}: {error.error_string}") from None
    return samples, rate


def _read(path: Path, rate: int) -> bytes:
    try:
        with path.open("rb") as file:
            pcm, found = _parse_wav(file, str(path))
    except OSError as error:
        mine = error.errno not in OUT_OF_HANDLES
        raise SyncError(
            f"cannot read {path}: {error.strerror}",
            error_class=ErrorClass.ITEM if mine else ErrorClass.LOCAL,
            fix="`edge-recorder repair local` says what became of it" if mine else "Raise the limit of open files",
        ) from None
    if found != rate:
        raise _damaged(f"{path}: {found} Hz instead of {rate}")
    return pcm


def _parse_wav(file: io.BufferedReader | io.BytesIO, name: str) -> tuple[bytes, int]:
    """Return samples and rate of a mono 16-bit WAV, whatever other chunks it has."""
    try:
        with wave.open(file, "rb") as reader:
            if (reader.getnchannels(), reader.getsampwidth()) != (1, 2):
                raise _damaged(f"{name}: not mono with 16 bits")
            return reader.readframes(reader.getnframes()), reader.getframerate()
    except (wave.Error, EOFError, RuntimeError) as error:  # the last: a chunk says that it is longer
        raise _damaged(f"{name}: not a whole WAV: {str(error) or 'it ends early'}") from None


def _wav(pcm: bytes, rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, rate, len(pcm) // 2, "NONE", ""))
        writer.writeframes(pcm)
    return file.getvalue()


def _flac(pcm: bytes, rate: int) -> bytes:
    if not pcm:
        return _empty_flac(rate)
    file = io.BytesIO()
    try:
        soundfile.write(file, np.frombuffer(pcm, dtype="<i2"), rate, format="FLAC", subtype="PCM_16")
    except soundfile.LibsndfileError as error:
        raise SyncError(
            f"cannot encode {rate} Hz as FLAC: {error.error_string}",
            error_class=ErrorClass.ITEM,
            fix='Store such audio with [store] format = "wav"',
        ) from None
    return file.getvalue()


def _empty_flac(rate: int) -> bytes:
    """Return a FLAC stream of no samples: STREAMINFO with rate, one channel, 16 bits, and the MD5 of nothing."""
    blocks = BLOCK_SIZE.to_bytes(2, "big") * 2 + bytes(6)
    shape = (rate << 44 | 15 << 36).to_bytes(8, "big")
    return EMPTY_FLAC_MARK + blocks + shape + hashlib.md5(usedforsecurity=False).digest()


def _damaged(message: str) -> DamagedAudio:
    return DamagedAudio(
        message, error_class=ErrorClass.ITEM, fix="Keep the file: `edge-recorder verify` says which copies are good"
    )

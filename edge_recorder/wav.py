"""
The segment file: a WAV that is written by position, and says in its own header what it is.

    0    RIFF, WAVE
    12   fmt   PCM, mono, 16 bit
    36   erec  a JSON tag: call, track, seq, first sample, writer, epoch, and the frames known to be synced
    504  data  the samples from byte 512 on, int16 little-endian

What nobody wrote is a hole, which reads as silence. The header is written again after every flush, so that a file whose
recorder was killed is a right WAV up to its last flush; salvage takes the file's length when the header is behind.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
from numpy.typing import NDArray

from edge_recorder.errors import IntegrityMismatch

Samples = NDArray[np.int16]

HEADER_BYTES = 512
SAMPLE_BYTES = 2
TAG_FORMAT = 1

_TAG = b"erec"
_TAG_AT = 36
_TAG_BYTES = HEADER_BYTES - _TAG_AT - 8 - 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """What a segment file says of itself."""

    call_id: str
    started_at: int  # of the call, microseconds since 1970, UTC
    track: str
    seq: int
    first_sample: int
    rate: int
    writer: str
    synced: int = 0  # frames that were fsynced for certain


_FIELDS = {"format": int, **get_type_hints(Tag)}
_RIFF_SIZE_AT = 4
_DATA_SIZE_AT = HEADER_BYTES - 4
_SYNCED = b'{"synced":'  # first of all, and of fixed width: it is told anew without writing the rest
_SYNCED_AT = _TAG_AT + 8 + len(_SYNCED)
_SYNCED_DIGITS = 12


class Header:
    """The 512 bytes before the samples of one file, kept to be written again and again."""

    def __init__(self, tag: Tag, *, frames: int = 0) -> None:
        self.data = bytearray(_head(tag))
        self.tell(frames=frames, synced=tag.synced)

    def tell(self, *, frames: int, synced: int) -> None:
        size = frames * SAMPLE_BYTES
        struct.pack_into("<I", self.data, _RIFF_SIZE_AT, HEADER_BYTES - 8 + size)
        struct.pack_into("<I", self.data, _DATA_SIZE_AT, size)
        self.data[_SYNCED_AT : _SYNCED_AT + _SYNCED_DIGITS] = b"%12d" % synced


def header(tag: Tag, *, frames: int) -> bytes:
    """Return the 512 bytes before the samples."""
    return bytes(Header(tag, frames=frames).data)


def _head(tag: Tag) -> bytes:
    fields = {"format": TAG_FORMAT, **asdict(tag)}
    del fields["synced"]
    text = _SYNCED + b" " * _SYNCED_DIGITS + b"," + json.dumps(fields, separators=(",", ":")).encode()[1:]
    return b"".join(
        (
            struct.pack("<4sI4s", b"RIFF", 0, b"WAVE"),
            struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, tag.rate, tag.rate * SAMPLE_BYTES, SAMPLE_BYTES, 16),
            struct.pack("<4sI", _TAG, _TAG_BYTES) + text.ljust(_TAG_BYTES),
            struct.pack("<4sI", b"data", 0),
        )
    )


def read_tag(data: bytes) -> Tag:
    """Return the tag in the first bytes of a segment file.

    Raises:
        IntegrityMismatch: The header is torn, or not ours.
    """
    try:
        if len(data) < HEADER_BYTES or data[:4] != b"RIFF" or data[_TAG_AT : _TAG_AT + 4] != _TAG:
            raise ValueError("no segment header")  # noqa: TRY301 (one handler says it for all)
        fields = json.loads(data[_TAG_AT + 8 : _TAG_AT + 8 + _TAG_BYTES])
        if {name: type(value) for name, value in fields.items()} != _FIELDS:
            raise ValueError("the tag's fields are not as we write them")  # noqa: TRY301
        fields.pop("format")
        return Tag(**fields)
    except (ValueError, AttributeError) as error:
        raise IntegrityMismatch(f"the header is not a segment's: {error}") from None


def read_file(path: Path) -> tuple[Tag, Samples]:
    """Return the tag and all samples of a segment file, sealed or not, by the file's own length.

    Raises:
        IntegrityMismatch: The header is torn, or not ours.
        OSError: The file cannot be read.
    """
    data = path.read_bytes()
    return read_tag(data), _samples(data)


def read_samples(path: Path) -> Samples:
    """Return all samples of a segment file, whatever its header says. Half a sample at its end is none."""
    return _samples(path.read_bytes())


def _samples(data: bytes) -> Samples:
    frames = max(0, len(data) - HEADER_BYTES) // SAMPLE_BYTES
    return np.frombuffer(data, "<i2", count=frames, offset=min(HEADER_BYTES, len(data)))


def silence(frames: int) -> Samples:
    return np.zeros(frames, np.int16)


def padded(samples: Samples, frames: int) -> Samples:
    """Return `samples` with silence after them, `frames` long."""
    return np.concatenate((samples, silence(frames - len(samples)))) if len(samples) < frames else samples

"""
The encodings in which callers may hand over audio, and what makes int16 little-endian of each. Pure.

    pcm16     2 bytes   int16 little-endian, as it is recorded
    float32   4 bytes   IEEE 754 little-endian, from -1 to 1
    mulaw     1 byte    G.711, as telephone networks of America and Japan send it
    alaw      1 byte    G.711, as those of the rest of the world do
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from edge_recorder.errors import InvalidAudio
from edge_recorder.wav import Samples


class Encoding(StrEnum):
    PCM16 = "pcm16"
    FLOAT32 = "float32"
    MULAW = "mulaw"
    ALAW = "alaw"


FRAME_BYTES: dict[str, int] = {Encoding.PCM16: 2, Encoding.FLOAT32: 4, Encoding.MULAW: 1, Encoding.ALAW: 1}
FULL_SCALE = 32767
LOWEST = -32768 / FULL_SCALE  # as a float, of what int16 can hold


def frame_bytes(encoding: str) -> int:
    """Return how many bytes one sample has.

    Raises:
        InvalidAudio: There is no such encoding.
    """
    known = FRAME_BYTES.get(encoding)  # a StrEnum is found by its text
    return FRAME_BYTES[_known(encoding)] if known is None else known


def to_pcm16(data: bytes, encoding: str) -> bytes:
    """Return `data` as int16 little-endian bytes.

    Raises:
        InvalidAudio: There is no such encoding, or the last sample is not whole.
    """
    known = _known(encoding)
    if len(data) % FRAME_BYTES[known]:
        raise InvalidAudio(
            f"{len(data)} bytes are not whole {known} samples", fix=f"Give {FRAME_BYTES[known]} bytes for each sample"
        )
    return _DECODERS[known](data)


def from_float32(samples: NDArray[np.float32]) -> Samples:
    """Return floats from -1 to 1 as int16; what is louder is held at full scale, and what is no number is silence."""
    numbers = np.where(np.isnan(samples), np.float32(0), samples)
    # Held before they are scaled: an infinity, or 3e38, would overflow and warn.
    held = np.minimum(np.maximum(numbers, LOWEST), 1)
    scaled: Samples = np.rint(held * FULL_SCALE).astype("<i2")
    return scaled


def _known(encoding: str) -> Encoding:
    try:
        return Encoding(encoding)
    except ValueError:
        raise InvalidAudio(f"{encoding!r} is not an encoding we know", fix=f"Give {', '.join(Encoding)}") from None


def _mulaw_value(code: int) -> int:
    """Return what a G.711 mu-law code stands for, 14 bits in the upper bits of 16. All its bits travel inverted."""
    code ^= 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84 << (code >> 4 & 7)) - 0x84
    return -magnitude if code & 0x80 else magnitude


def _alaw_value(code: int) -> int:
    """Return what a G.711 A-law code stands for, 13 bits in the upper bits of 16. Its even bits travel inverted."""
    code ^= 0x55
    exponent, step = code >> 4 & 7, ((code & 0x0F) << 4) + 8
    magnitude = step + 0x100 << exponent - 1 if exponent else step
    return magnitude if code & 0x80 else -magnitude


def _by_table(value: Callable[[int], int]) -> Callable[[bytes], bytes]:
    table = np.array([value(code) for code in range(256)], "<i2")
    return lambda data: table.take(np.frombuffer(data, np.uint8)).tobytes()


_DECODERS: dict[Encoding, Callable[[bytes], bytes]] = {
    Encoding.PCM16: bytes,
    Encoding.FLOAT32: lambda data: from_float32(np.frombuffer(data, "<f4")).tobytes(),
    Encoding.MULAW: _by_table(_mulaw_value),
    Encoding.ALAW: _by_table(_alaw_value),
}

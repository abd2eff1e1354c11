"""
What callers hand over, checked: audio, rates, places on the timeline, text, numbers and JSON.

What comes back from here, journal, catalog and centre can hold. Anything else is the caller's mistake, and raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_recorder.errors import CallerError, InvalidAudio
from edge_recorder.model import MIXED, TRACK_NAME
from edge_recorder.wav import SAMPLE_BYTES, Samples

Audio = bytes | bytearray | memoryview | NDArray[np.int16] | NDArray[np.float32]

RATES = range(1_000, 192_001)  # Hz
FULL_SCALE = 32767
DIGITS = 50  # of an exact number, on either side of the point


def checked_tracks(tracks: Mapping[str, int] | None) -> dict[str, int]:
    """Return the tracks of a new call as name -> rate in Hz.

    Raises:
        CallerError: They are no mapping, or a name cannot name a track.
        InvalidAudio: A rate is no sample rate.
    """
    if tracks is not None and not isinstance(tracks, Mapping):
        raise CallerError(f"tracks={tracks!r} is no mapping", fix='Give name -> Hz, like {"user": 8000}')
    return {track: checked_rate(track, rate) for track, rate in (tracks or {}).items()}


def checked_rate(track: str, rate: int) -> int:
    """Return the rate of a new track as an int, if both can be.

    Raises:
        CallerError: The name cannot name a track.
        InvalidAudio: The rate is no sample rate.
    """
    if not isinstance(track, str) or not TRACK_NAME.fullmatch(track) or track == MIXED:
        raise CallerError(
            f"{track!r} cannot name a track",
            fix=f"Use a-z, 0-9 and _ (32 at most), and not {MIXED!r}: we make that",
        )
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or int(rate) not in RATES:
        raise InvalidAudio(f"track {track!r}: rate {rate!r} is not a sample rate", fix="Give 1000 to 192000 Hz")
    return int(rate)


def as_samples(audio: Audio) -> Samples:
    """Return a copy of `audio` as int16 samples.

    Raises:
        InvalidAudio: It is not mono int16 or float32.
    """
    if isinstance(audio, np.ndarray):
        return _from_array(audio)
    if not isinstance(audio, bytes | bytearray | memoryview):
        raise InvalidAudio(f"{type(audio).__name__} is not audio", fix="Give int16 bytes, or an int16 or float32 array")
    data = bytes(audio)
    if len(data) % SAMPLE_BYTES:
        raise InvalidAudio(
            f"{len(data)} bytes are not whole int16 samples", fix="Give int16 little-endian, 2 bytes each"
        )
    return np.frombuffer(data, "<i2")


def _from_array(audio: NDArray[Any]) -> Samples:
    if audio.ndim != 1:
        raise InvalidAudio(f"an array of shape {audio.shape} is not mono", fix="Give one channel, one-dimensional")
    if audio.dtype == np.int16:
        return audio.copy()
    if audio.dtype == np.float32:
        scaled = np.rint(np.nan_to_num(audio) * FULL_SCALE)
        samples: Samples = np.clip(scaled, -FULL_SCALE - 1, FULL_SCALE).astype(np.int16)
        return samples
    raise InvalidAudio(f"dtype {audio.dtype} is not audio", fix="Give int16, or float32 from -1 to 1")


def as_json(name: str, value: Any) -> str:
    """Return `value` as a JSON document.

    Raises:
        CallerError: It cannot be one.
    """
    try:
        return json.dumps(_cleaned(json.loads(json.dumps(value, allow_nan=False))), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise CallerError(
            f"{name} is not JSON: {error}", fix="Give dicts, lists, text, numbers, booleans and None"
        ) from None


def as_exact(name: str, value: str | int | Decimal) -> str:
    """Return a decimal number as text.

    Raises:
        CallerError: It is a float, which is never exact, or not a finite number of a sane size.
    """
    if isinstance(value, (float, bool)):
        raise CallerError(f"{name}={value!r} is not exact", fix="Give text, an int or a Decimal")
    try:
        number = Decimal(value)
    except (InvalidOperation, TypeError, ValueError):
        raise CallerError(f"{name}={value!r} is not a number", fix="Give text, an int or a Decimal") from None
    if not number.is_finite() or abs(number.adjusted()) > DIGITS or len(number.as_tuple().digits) > DIGITS:
        raise CallerError(
            f"{name}={value!r} is not finite, or too long", fix=f"Give a number of {DIGITS} digits at most"
        )
    return format(number, "f")


def clean(text: str) -> str:
    """Return `text` without what no database stores: NUL and lone surrogates become U+FFFD.

    Raises:
        CallerError: It is not text.
    """
    if not isinstance(text, str):
        raise CallerError(f"{text!r} is not text", fix="Give a str")
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_if_given(text: str | None) -> str | None:
    return None if text is None else clean(text)


def as_place(at: float | None) -> float | None:
    """Return a place on a call's timeline as a plain float, which numpy's are not: no journal could hold them.

    Raises:
        CallerError: `at` is negative, or not a finite number.
    """
    if at is None:
        return None
    try:
        seconds = float(at) if math.isfinite(at) else math.nan
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not seconds >= 0:
        raise CallerError(f"at={at!r} is not a place in the call", fix="Give seconds from the call's start, from 0 on")
    return seconds


def _cleaned(value: Any) -> Any:
    """Return a JSON value with all its text clean."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(each) for each in value]
    if isinstance(value, dict):
        return {clean(key): _cleaned(each) for key, each in value.items()}
    return value

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

from edge_recorder.encodings import Encoding, frame_bytes
from edge_recorder.errors import CallerError, InvalidAudio
from edge_recorder.model import MIXED, TRACK_NAME

Audio = bytes | bytearray | memoryview | NDArray[np.int16] | NDArray[np.float32]

_BYTES = (bytes, bytearray, memoryview)

RATES = range(1_000, 192_001)  # Hz
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


def as_audio(audio: Audio, encoding: str) -> tuple[bytes | memoryview, str, int]:
    """Return a view of `audio` as bytes, their encoding, and how many samples they are.

    Nothing is copied: what must not be kept would live on in memory that was given back.

    Raises:
        InvalidAudio: It is not mono, not whole samples, or in no encoding that we know.
    """
    data: bytes | memoryview
    if isinstance(audio, np.ndarray):
        data, encoding = _from_array(audio)
    elif isinstance(audio, _BYTES):
        view = memoryview(audio)
        data = view.cast("B") if view.c_contiguous else bytes(view)
    else:
        raise InvalidAudio(f"{type(audio).__name__} is not audio", fix="Give bytes, or an int16 or float32 array")
    width = frame_bytes(encoding)
    if len(data) % width:
        raise InvalidAudio(f"{len(data)} bytes are not whole {encoding} samples", fix=f"Give {width} bytes for each")
    return data, encoding, len(data) // width


def _from_array(audio: NDArray[Any]) -> tuple[memoryview, str]:
    if audio.ndim != 1:
        raise InvalidAudio(f"an array of shape {audio.shape} is not mono", fix="Give one channel, one-dimensional")
    if audio.dtype == np.int16:
        return np.ascontiguousarray(audio, "<i2").data.cast("B"), Encoding.PCM16
    if audio.dtype == np.float32:
        return np.ascontiguousarray(audio, "<f4").data.cast("B"), Encoding.FLOAT32
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


def check_flag(name: str, value: object) -> None:
    """Raise CallerError where `value` is neither True nor False: "no" is true, and what it is about is consent."""
    if not isinstance(value, bool):
        raise CallerError(f"{name}={value!r} is neither True nor False", fix="Give one of them")


def as_place(at: float | None, *, name: str = "at") -> float | None:
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
        raise CallerError(
            f"{name}={at!r} is not a place in the call", fix="Give seconds from the call's start, from 0 on"
        )
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

"""
How an object is named, and what its metadata says: enough to rebuild the rows of its segment from the store alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from edge_recorder.errors import EdgeRecorderError
from edge_recorder.model import Instant, Segment
from sync.stores import Body

SCHEMA = 1  # of the metadata; a greater one is read as far as it is known
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ForeignObject(EdgeRecorderError):
    """An object's metadata is not that of a recorded segment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFacts:
    """What an audio object says of itself."""

    schema: int = SCHEMA
    node_id: str
    call_id: str
    track: str
    seq: int
    first_sample: int
    frames: int
    rate: int
    started_at: Instant
    sealed_at: Instant
    salvaged: bool
    pcm_sha256: str
    file_sha256: str
    file_size: int


def key_prefix(url: str) -> str:
    """Return what all keys at `url` begin with: `a/b/` for `s3://bucket/a/b`, nothing for a directory."""
    parts = urlsplit(url)
    path = parts.path.strip("/")
    return f"{path}/" if parts.scheme == "s3" and path else ""


def audio_key(
    prefix: str, node_id: str, *, call_id: str, call_started_at: Instant, track: str, seq: int, ext: str
) -> str:
    """Return the key of a segment: under the node, then the day (UTC) on which its call began."""
    day = _time(call_started_at).strftime("%Y/%m/%d")
    return f"{prefix}{node_id}/{day}/{call_id}/{track}-{seq:06d}.{ext}"


def audio_metadata(segment: Segment, *, node_id: str, body: Body) -> dict[str, str]:
    facts = AudioFacts(
        node_id=node_id,
        call_id=segment.call_id,
        track=segment.track,
        seq=segment.seq,
        first_sample=segment.first_sample,
        frames=segment.frames,
        rate=segment.rate,
        started_at=segment.started_at,
        sealed_at=segment.sealed_at,
        salvaged=segment.salvaged,
        pcm_sha256=segment.pcm_sha256,
        file_sha256=body.sha256,
        file_size=len(body.data),
    )
    return {name.replace("_", "-"): _text(name, value) for name, value in asdict(facts).items()}


def parse_audio_metadata(metadata: Mapping[str, str]) -> AudioFacts:
    """Return what `audio_metadata` wrote. Keys that it does not know are a newer version's, and are left alone.

    Raises:
        ForeignObject: A fact is missing or unreadable.
    """
    try:
        return AudioFacts(
            schema=int(metadata["schema"]),
            node_id=metadata["node-id"],
            call_id=metadata["call-id"],
            track=metadata["track"],
            seq=int(metadata["seq"]),
            first_sample=int(metadata["first-sample"]),
            frames=int(metadata["frames"]),
            rate=int(metadata["rate"]),
            started_at=_instant(metadata["started-at"]),
            sealed_at=_instant(metadata["sealed-at"]),
            salvaged=metadata["salvaged"] == "true",
            pcm_sha256=metadata["pcm-sha256"],
            file_sha256=metadata["file-sha256"],
            file_size=int(metadata["file-size"]),
        )
    except (KeyError, ValueError) as error:
        raise ForeignObject(
            f"not the metadata of a recorded segment: {error!r}",
            fix="`adopt-s3` makes rows for objects of other systems",
        ) from None


def _text(name: str, value: str | int) -> str:
    if name.endswith("_at"):
        return _time(int(value)).isoformat(timespec="microseconds")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _time(instant: Instant) -> datetime:
    """Return `instant` as a time of day; by whole microseconds, because a float loses them."""
    return EPOCH + timedelta(microseconds=instant)


def _instant(text: str) -> Instant:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)

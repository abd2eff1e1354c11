"""Keys and metadata: what an object is can be told from the store alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_recorder.model import Segment
from sync.stores import Body
from sync.stores.naming import AudioFacts, ForeignObject, audio_key, audio_metadata, key_prefix, parse_audio_metadata

CALL = "0199c0de-0000-7000-8000-000000000001"
NODE = "6f1d5c1e-8f5b-4b0e-9a6b-1f2e3d4c5b6a"
INSTANTS = st.integers(0, 4_102_444_800_000_000)  # 1970 to 2100
COUNTS = st.integers(0, 2**40)

SEGMENTS = st.builds(
    Segment,
    segment_id=st.sampled_from([CALL, NODE]),
    call_id=st.sampled_from([CALL, NODE]),
    track=st.text("abcxyz019_", min_size=1, max_size=32),
    seq=COUNTS,
    first_sample=COUNTS,
    frames=COUNTS,
    rate=st.integers(1, 192_000),
    started_at=INSTANTS,
    sealed_at=INSTANTS,
    salvaged=st.booleans(),
    pcm_sha256=st.sampled_from(["5a" * 32, "00" * 32]),
    peak_dbfs=st.none(),
    rms_dbfs=st.none(),
    clipped=st.just(0),
    waveform=st.just(""),
)


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("s3://bucket", ""),
        ("s3://bucket/", ""),
        ("s3://bucket/calls", "calls/"),
        ("s3://bucket/a/b/", "a/b/"),
        ("file:///mnt/nas", ""),
    ],
)
def test_prefix(url: str, prefix: str) -> None:
    """What follows the bucket begins each key; a directory's path does not."""
    assert key_prefix(url) == prefix


@pytest.mark.parametrize(
    ("started_at", "day"),
    [(0, "1970/01/01"), (1_767_225_599_999_999, "2025/12/31"), (1_767_225_600_000_000, "2026/01/01")],
)
def test_key(started_at: int, day: str) -> None:
    """A key has the day, in UTC, on which its call began, and sorts by track and number."""
    key = audio_key("calls/", NODE, call_id=CALL, call_started_at=started_at, track="user", seq=7, ext="flac")
    assert key == f"calls/{NODE}/{day}/{CALL}/user-000007.flac"


@given(segment=SEGMENTS, data=st.binary(max_size=50))
def test_metadata_round_trip(segment: Segment, data: bytes) -> None:
    """All facts of a segment that its audio cannot tell come back from its metadata, which any server can keep."""
    body = Body(data)
    metadata = audio_metadata(segment, node_id=NODE, body=body)
    assert parse_audio_metadata({**metadata, "of-a-newer-version": "x"}) == AudioFacts(
        node_id=NODE,
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
        file_size=len(data),
    )
    assert body.metadata.items() <= metadata.items()
    assert all(name == name.lower() and "_" not in name and value.isascii() for name, value in metadata.items())
    assert sum(len(name) + len(value) for name, value in metadata.items()) < 2048  # what S3 keeps


@pytest.mark.parametrize("broken", [{}, {"seq": "one"}, {"started-at": "yesterday"}])
def test_foreign_metadata(broken: dict[str, str]) -> None:
    """Metadata that is not ours is said to be so."""
    whole = dict.fromkeys(("schema", "node-id", "call-id", "track", "seq"), "1") if broken else {}
    with pytest.raises(ForeignObject):
        parse_audio_metadata({**whole, **broken})

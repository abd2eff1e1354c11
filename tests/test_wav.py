"""The segment file: a WAV that others read, and that says what it is."""

from __future__ import annotations

import json
import os
import wave
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edge_recorder.errors import IntegrityMismatch
from edge_recorder.model import new_call_id
from edge_recorder.wav import HEADER_BYTES, Header, Tag, header, padded, read_file, read_samples, read_tag, silence

TAG = Tag(
    call_id=new_call_id(1_790_000_000_000_000),
    started_at=1_790_000_000_000_000,
    track="user",
    seq=3,
    first_sample=480_000,
    rate=8000,
    writer="abcdef123456-01234567",
    synced=1600,
)
SAMPLES = np.random.default_rng(5).integers(-32_768, 32_767, 4001, np.int16)


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    path = tmp_path / "user-000003.wav"
    path.write_bytes(header(TAG, frames=len(SAMPLES)) + SAMPLES.astype("<i2").tobytes())
    return path


def test_tag_comes_back() -> None:
    """What a header says is what it was given."""
    assert read_tag(header(TAG, frames=7)) == TAG


def test_longest_tag_fits() -> None:
    """The longest names and numbers that there can be still leave the samples at byte 512."""
    longest = replace(TAG, track="x" * 32, seq=10**9, first_sample=2**62, started_at=2**62, rate=192_000, synced=2**31)
    assert len(header(replace(longest, writer="w" * 40), frames=2**30)) == HEADER_BYTES


def test_header_of_the_previous_release_is_read() -> None:
    """A header whose tag names the synced frames last, as the first release wrote it, says the same."""
    tag = json.dumps({"format": 1, **asdict(TAG)}, separators=(",", ":")).encode()
    data = header(TAG, frames=7)
    assert read_tag(data[:44] + tag.ljust(460) + data[504:]) == TAG


@examples(max_examples=100)
@given(frames=st.integers(0, 2**31 - 257), synced=st.integers(0, 2**31))
def test_header_is_told_anew(frames: int, synced: int) -> None:
    """A header that is told of new lengths is the header that would be made with them."""
    kept = Header(TAG, frames=7)
    kept.tell(frames=frames, synced=synced)
    assert bytes(kept.data) == header(replace(TAG, synced=synced), frames=frames)
    assert read_tag(bytes(kept.data)).synced == synced


def test_soundfile_reads_a_segment(segment: Path) -> None:
    """libsndfile sees a mono 16-bit WAV of the right rate and length, and the same samples."""
    read, rate = soundfile.read(segment, dtype="int16")
    assert rate == TAG.rate
    assert np.array_equal(read, SAMPLES)


def test_stdlib_reads_a_segment(segment: Path) -> None:
    """Python's own wave module reads it too."""
    with wave.open(str(segment)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, TAG.rate)
        assert file.readframes(file.getnframes()) == SAMPLES.astype("<i2").tobytes()


def test_file_is_read_by_its_length(segment: Path) -> None:
    """Where the header is behind the file, the file's own length counts; half a sample does not."""
    with segment.open("r+b") as file:
        file.write(header(TAG, frames=10))
        file.seek(0, 2)
        file.write(b"\x01\x02\x03")
    tag, samples = read_file(segment)
    assert tag == TAG
    assert np.array_equal(samples, [*SAMPLES, 0x0201])


def test_file_with_a_header_alone_is_empty(tmp_path: Path) -> None:
    """A file that was just begun holds no samples, and is no error."""
    path = tmp_path / "user-000001.wav.part"
    path.write_bytes(header(TAG, frames=0))
    assert len(read_file(path)[1]) == 0


@examples(max_examples=60)
@given(length=st.integers(0, HEADER_BYTES - 1))
def test_torn_header_is_refused(length: int) -> None:
    """A header that is cut off anywhere is refused as such, and not guessed at."""
    with pytest.raises(IntegrityMismatch):
        read_tag(header(TAG, frames=7)[:length])


@examples(max_examples=300)
@given(place=st.integers(0, HEADER_BYTES - 1), value=st.integers(0, 255))
def test_damaged_header_is_refused_or_well_formed(place: int, value: int) -> None:
    """A wrong byte anywhere gives IntegrityMismatch or a tag of the right types: never another error."""
    data = bytearray(header(TAG, frames=7))
    data[place] = value
    try:
        tag = read_tag(bytes(data))
    except IntegrityMismatch:
        return
    assert [type(each) for each in asdict(tag).values()] == [type(each) for each in asdict(TAG).values()]


@pytest.mark.parametrize(
    "text",
    [
        "17",
        '"text"',
        "[]",
        "{}",
        "null",
        json.dumps({"format": 1, **asdict(TAG), "rate": "8000"}),
        json.dumps({"format": 1, **asdict(TAG), "rate": 8e3}),
        json.dumps({"format": 1, **asdict(TAG), "seq": True}),
        json.dumps(asdict(TAG)),
    ],
)
def test_tag_that_is_not_ours_is_refused(text: str) -> None:
    """A tag that is JSON, but not a tag as we write it, is refused."""
    data = header(TAG, frames=0)
    with pytest.raises(IntegrityMismatch):
        read_tag(data[:44] + text.encode().ljust(460) + data[504:])


@pytest.mark.parametrize(("length", "frames"), [(0, 0), (511, 0), (512, 0), (513, 0), (514, 1), (517, 2)])
def test_samples_are_read_whatever_the_header_says(segment: Path, length: int, frames: int) -> None:
    """Of a file whose header is torn, or which ends early, the whole samples behind byte 512 are read."""
    segment.write_bytes(bytes(512) + segment.read_bytes()[512:])
    os.truncate(segment, length)
    assert np.array_equal(read_samples(segment), SAMPLES[:frames])


def test_foreign_wav_is_refused(tmp_path: Path) -> None:
    """A WAV that somebody else made is not taken for a segment."""
    path = tmp_path / "user-000001.wav"
    soundfile.write(path, SAMPLES, 8000, subtype="PCM_16")
    with pytest.raises(IntegrityMismatch):
        read_file(path)


def test_padding_is_silence_to_a_length() -> None:
    """Padding adds silence where samples are missing, and takes nothing where they are not."""
    assert padded(SAMPLES[:3], 5).tolist() == [*SAMPLES[:3].tolist(), 0, 0]
    assert np.array_equal(padded(SAMPLES, 10), SAMPLES)
    assert not silence(3).any()

"""Playback: any layout of segments sounds like the samples that a plain array would hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_recorder import playback, spool, wav
from edge_recorder.errors import IntegrityMismatch
from edge_recorder.model import Segment, new_call_id, segment_id
from edge_recorder.playback import Playback, Stereo, from_spool, timeline

CALL = new_call_id(1_790_000_000_000_000)
Samples = NDArray[np.int16]


def segment(seq: int, first_sample: int, samples: Samples, *, track: str = "user", rate: int = 8000) -> Segment:
    return Segment(
        segment_id=segment_id(CALL, track, seq),
        call_id=CALL,
        track=track,
        seq=seq,
        first_sample=first_sample,
        frames=len(samples),
        rate=rate,
        started_at=0,
        sealed_at=0,
        pcm_sha256=hashlib.sha256(samples).hexdigest(),
        peak_dbfs=None,
        rms_dbfs=None,
        clipped=0,
        waveform="",
    )


def played(pieces: Sequence[tuple[int, Samples]], frames: int, *, rate: int = 8000) -> Playback:
    """Return the playback of `pieces` (first sample, samples), kept in memory."""
    made = {segment(n, first, samples, rate=rate): samples for n, (first, samples) in enumerate(pieces, 1)}
    return Playback(made, read=made.__getitem__, frames=frames)


def noise(frames: int, seed: int = 1) -> Samples:
    return np.random.default_rng(seed).integers(-30_000, 30_000, frames, np.int16)


def everything(stream: Playback) -> Samples:
    return np.concatenate([wav.silence(0), *stream])


layouts = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 120), st.integers(0, 99)), min_size=1, max_size=8)


@given(layouts, st.integers(0, 600), st.integers(1, 97), st.integers(0, 620), st.integers(0, 200))
def test_any_layout_equals_the_plain_model(
    layout: list[tuple[int, int, int]], frames: int, block: int, start: int, count: int
) -> None:
    """Segments in any order, with holes and overlaps, read in any blocks and from any place, are one array."""
    pieces = [(first, noise(length, seed)) for first, length, seed in layout]
    model = np.zeros(1000, np.int32)
    for first, samples in pieces:
        model[first : first + len(samples)] += samples
    expected = np.clip(model, -32768, 32767)[:frames]
    stream = played(pieces, frames)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(playback, "BLOCK", block)
        assert np.array_equal(everything(stream), expected)
    assert np.array_equal(stream.read(start, count), expected[start : start + count])


def test_only_what_is_under_a_block_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Playing from start to end reads each segment once and holds two at most."""
    monkeypatch.setattr(playback, "BLOCK", 64)
    pieces = [(n * 100, noise(100, n)) for n in range(20)]
    made = {segment(n, first, samples): samples for n, (first, samples) in enumerate(pieces, 1)}
    reads: list[int] = []

    def read(each: Segment) -> Samples:
        reads.append(each.seq)
        return made[each]

    stream = Playback(made, read=read, frames=2000)
    held = [len(stream._held) for _ in stream]
    assert reads == list(range(1, 21))
    assert max(held) == 2


def test_a_track_lasts_to_the_calls_end() -> None:
    """A track that fell silent is as long as its call; a live call's is as long as what is sealed of it."""
    segments = [segment(1, 0, noise(80)), segment(2, 80, noise(40))]
    assert timeline(segments, 0.0200005) == 160
    assert timeline(segments, 0.001) == 120
    assert timeline(segments, None) == 120
    assert timeline([], 3.0) == 0


def test_stereo_has_no_click_at_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tone that is resampled stays a tone over every block and segment border, in step with the other channel."""
    monkeypatch.setattr(playback, "BLOCK", 700)
    low = np.rint(12_000 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)).astype(np.int16)
    high = np.rint(12_000 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)).astype(np.int16)
    user = played([(0, low[:3333]), (3333, low[3333:])], 8000)
    assistant = played([(0, high)], 24_000, rate=24_000)
    both = np.concatenate(list(Stereo(user, assistant)))
    assert both.shape == (24_000, 2)
    assert np.array_equal(both[:, 1], high)
    assert np.array_equal(Stereo(user, assistant).read(9_999, 1_000), both[9_999:10_999])
    inner = slice(600, -600)  # at its two ends a tone that begins from nothing rings
    assert np.abs(both[inner, 0].astype(int) - high[inner]).max() <= 40


def test_stereo_of_unequal_lengths_ends_with_the_longer() -> None:
    """The shorter channel goes on in silence."""
    both = np.concatenate(list(Stereo(played([(0, noise(100))], 100), played([(0, noise(40, 2))], 40))))
    assert both.shape == (100, 2)
    assert not both[40:, 1].any()


def test_files_of_the_spool(tmp_path: Path) -> None:
    """A segment is read from its file, and its samples are those that were sealed."""
    samples = noise(500)
    _write(tmp_path, samples)
    assert np.array_equal(from_spool(tmp_path, elsewhere={})(segment(1, 0, samples)), samples)


@pytest.mark.parametrize("damage", ["gone", "flipped", "cut", "foreign"])
def test_a_file_that_is_not_what_was_sealed_is_named(tmp_path: Path, damage: str) -> None:
    """A missing, changed, cut or foreign file is an error that names it, and where another copy is."""
    samples = noise(500)
    path = _write(tmp_path, samples)
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        data[700] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-2])
    else:
        path.write_bytes(b"ID3")
    wanted = segment(1, 0, samples)
    with pytest.raises(IntegrityMismatch, match=r"user-000001\.wav.*The store holds it as s3://b/k"):
        from_spool(tmp_path, elsewhere={wanted.segment_id: "s3://b/k"})(wanted)
    with pytest.raises(IntegrityMismatch, match="verify"):
        from_spool(tmp_path, elsewhere={})(wanted)


def _write(directory: Path, samples: Samples) -> Path:
    tag = wav.Tag(call_id=CALL, started_at=0, track="user", seq=1, first_sample=0, rate=8000, writer="w")
    path = spool.segment_path(directory, "user", 1)
    path.write_bytes(wav.header(tag, frames=len(samples)) + samples.tobytes())
    return path

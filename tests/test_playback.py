"""Playback: any layout of segments sounds like the samples that a plain array would hold, and so do mix and cuts."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_recorder import mixing, playback, spool, wav
from edge_recorder.errors import IntegrityMismatch
from edge_recorder.model import MIXED, Segment, new_call_id, segment_id
from edge_recorder.playback import Kept, Playback, Stream, Tracks, from_spool, merged

CALL = new_call_id(1_790_000_000_000_000)
Samples = NDArray[np.int16]
EMPTY = wav.silence(0)


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


def call_of(tracks: Mapping[str, tuple[int, Sequence[tuple[int, Samples]]]], duration_s: float | None = None) -> Tracks:
    """Return the streams of a call of `tracks`: name -> (rate, pieces), kept in memory."""
    made = {
        segment(n, first, samples, track=track, rate=rate): samples
        for track, (rate, pieces) in tracks.items()
        for n, (first, samples) in enumerate(pieces, 1)
    }
    return Tracks(made, read=made.__getitem__, duration_s=duration_s)


def tone(rate: int, seconds: float, hertz: int = 440) -> Samples:
    return np.rint(12_000 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.int16)


def everything(stream: Stream) -> Samples:
    return np.concatenate([stream.read(0, 0), *stream])


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


def test_a_further_segment_fills_the_hole_of_a_sealed_one() -> None:
    """Late audio lies in a segment of its own under which the sealed one is silent: both are heard."""
    sealed, late = noise(300), noise(100, 2)
    sealed[100:200] = 0
    assert np.array_equal(everything(played([(0, sealed), (100, late)], 300)), [*sealed[:100], *late, *sealed[200:]])


def test_silence_has_its_true_length() -> None:
    """Before the first segment, between two and behind the last a track is silent for exactly as long as it was."""
    samples = noise(50)
    stream = call_of({"user": (22_050, [(30, samples[:20]), (90, samples[20:])])}, 0.01).track("user")
    assert stream.frames == 220
    expected = wav.silence(220)
    expected[30:50], expected[90:120] = samples[:20], samples[20:]
    assert np.array_equal(everything(stream), expected)


def test_a_track_lasts_to_the_calls_end() -> None:
    """A track that fell silent is as long as its call; a live call's is as long as what is sealed of the longest."""
    pieces = [(0, noise(80)), (80, noise(40))]
    assert call_of({"user": (8000, pieces)}, 0.0200005).track("user").frames == 160
    assert call_of({"user": (8000, pieces)}, 0.001).track("user").frames == 120
    assert call_of({"user": (8000, pieces)}).track("user").frames == 120
    assert call_of({"user": (8000, pieces), "assistant": (24_000, [(0, noise(480))])}).track("user").frames == 160


rates = st.sampled_from((8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000))
fractions = st.floats(0, 1, allow_nan=False)


@given(rates, rates, rates, st.integers(10**8, 3 * 10**8), st.lists(st.tuples(fractions, fractions), max_size=6))
def test_exports_of_a_call_are_equally_long(
    user: int, assistant: int, mixed: int, nanoseconds: int, cuts: list[tuple[float, float]]
) -> None:
    """Voices, mix and stereo of any rates last as long to within a sample, however often something is cut out."""
    seconds = nanoseconds / 1e9
    rate_of = {"user": user, "assistant": assistant, MIXED: mixed}
    tracks = call_of({name: (rate, [(0, noise(rate // 20))]) for name, rate in rate_of.items()}, seconds)
    skipped = merged([(min(each) * seconds, max(each) * seconds) for each in cuts], end=tracks.end)
    left = seconds - sum(end - start for start, end in skipped)
    streams = (tracks.track("user"), tracks.track("assistant"), tracks.mixed(), tracks.stereo("user", "assistant"))
    for stream in streams:
        assert stream.frames == len(everything(stream)) == nanoseconds * stream.rate // 10**9
        kept = Kept(stream, skipped, end=tracks.end)
        assert kept.frames == len(everything(kept))
        assert -1 < kept.frames - left * stream.rate <= 1e-3


@pytest.mark.parametrize("slow", [8000, 11_025, 22_050])
def test_stereo_has_no_click_where_it_is_joined(monkeypatch: pytest.MonkeyPatch, slow: int) -> None:
    """A tone that is resampled stays a tone over every block, stretch and segment, in step with the other channel."""
    monkeypatch.setattr(playback, "BLOCK", 700)
    monkeypatch.setattr(playback, "STRETCH", 1)
    low, high = tone(slow, 2.5), tone(24_000, 2.5)
    tracks = call_of({"user": (slow, [(0, low[:3333]), (3333, low[3333:])]), "assistant": (24_000, [(0, high)])})
    stereo = tracks.stereo("user", "assistant")
    both = everything(stereo)
    assert both.shape == (60_000, 2)
    assert np.array_equal(both[:, 1], high)
    assert np.array_equal(stereo.read(9_999, 40_000), both[9_999:49_999])
    inner = slice(600, -600)  # at its two ends a tone that begins from nothing rings
    assert np.abs(both[inner, 0].astype(int) - high[inner]).max() <= 40


def test_stereo_of_unequal_lengths_ends_with_the_longer() -> None:
    """The shorter channel goes on in silence."""
    tracks = call_of({"user": (8000, [(0, noise(100))]), "assistant": (8000, [(0, noise(40, 2))])})
    both = everything(tracks.stereo("user", "assistant"))
    assert both.shape == (100, 2)
    assert not both[40:, 1].any()


def test_the_mix_is_made_from_the_voices() -> None:
    """Overlapping mixed segments, or ones that leave out a turn, change nothing: the mix has every voice once."""
    user, assistant = noise(4000) // 4, noise(4000, 2) // 4
    voices = {"user": (8000, [(0, user)]), "assistant": (8000, [(0, assistant)])}
    for made in ([], [(0, noise(900))], [(100, noise(900)), (500, noise(2000)), (3000, noise(1000))]):
        mixed = call_of(voices | ({MIXED: (8000, made)} if made else {})).mixed()
        assert np.array_equal(everything(mixed), user + assistant)
    alone = call_of({"user": voices["user"], MIXED: (8000, [(0, noise(4000, 3))])})
    assert np.array_equal(everything(alone.mixed()), user)


def test_the_mix_has_the_rate_of_its_segments() -> None:
    """The mix is exported at the rate it was recorded with, and without such segments at its tracks' highest."""
    voices = {"user": (8000, [(0, noise(800))]), "assistant": (24_000, [(0, noise(2400))])}
    assert call_of(voices).mixed().rate == 24_000
    assert call_of(voices | {MIXED: (16_000, [(0, noise(1600))])}).mixed().rate == 16_000


def test_a_call_without_voices_plays_its_mixed_segments() -> None:
    """What was adopted as a mix alone is played as it is."""
    samples = noise(500)
    assert np.array_equal(everything(call_of({MIXED: (8000, [(0, samples)])}).mixed()), samples)


def test_the_mix_equals_its_segments() -> None:
    """Joined, segments that were mixed one by one are the export of the mix, bit for bit, also read from anywhere."""
    voices = {"user": (8000, noise(8000 * 8)), "assistant": (22_050, noise(22_050 * 8, 2))}
    places = [0, 24_001, 60_000, 100_003, 128_000]

    def read(name: str, first: int, frames: int) -> Samples:
        return wav.padded(voices[name][1][first : first + frames], frames)

    own = {name: rate for name, (rate, _) in voices.items()}
    made = [(a, mixing.mix(own, rate=16_000, first=a, frames=b - a, read=read)) for a, b in pairwise(places)]
    tracks = {name: (rate, [(0, samples)]) for name, (rate, samples) in voices.items()}
    mixed = call_of(tracks | {MIXED: (16_000, made)}).mixed()
    joined = np.concatenate([samples for _, samples in made])
    assert np.array_equal(everything(mixed), joined)
    for start, count in ((0, 1), (24_000, 2), (59_000, 50_000), (127_999, 9), (128_000, 9)):
        assert np.array_equal(mixed.read(start, count), joined[start : start + count])


def test_a_voice_counts_from_its_first_segment() -> None:
    """A loud voice alone is not bent for one that joins only later."""
    loud, later = np.full(8000, 32_000, np.int16), noise(8000, 2)
    tracks = {"user": (8000, [(0, loud)]), "guest": (8000, [(8000, later)]), MIXED: (8000, [(0, loud), (8000, later)])}
    mixed = everything(call_of(tracks).mixed())
    assert np.array_equal(mixed[:8000], loud)
    assert np.array_equal(mixed[8000:], mixing.add([wav.silence(8000), later]))


def test_a_stretch_is_mixed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from start to end in blocks, each stretch is made once, as long as the mixed segment that it stands for."""
    monkeypatch.setattr(playback, "BLOCK", 500)
    made: list[int] = []
    real = mixing.mix

    def counted(*args: Any, frames: int, **kwargs: Any) -> Samples:
        made.append(frames)
        return real(*args, frames=frames, **kwargs)

    monkeypatch.setattr(mixing, "mix", counted)
    pieces = [(0, noise(1800)), (1800, noise(2200))]
    assert len(everything(call_of({"user": (8000, pieces), MIXED: (8000, pieces)}).mixed())) == 4000
    assert [frames for frames in made if frames] == [1800, 2200]


@pytest.mark.parametrize("kind", ["user", MIXED, "stereo"])
def test_a_long_call_is_read_from_anywhere(kind: str) -> None:
    """Near the end of eight hours only the segments there are read, and a step further few more."""
    read: list[str] = []

    def reader(each: Segment) -> Samples:
        read.append(each.segment_id)
        return np.full(each.frames, each.seq, np.int16)

    tracks = Tracks(_index(8 * 120), read=reader, duration_s=8 * 3600.0)
    stream = {MIXED: tracks.mixed, "stereo": lambda: tracks.stereo("user", "assistant")}.get(
        kind, lambda: tracks.track("user")
    )()
    assert stream.frames == 8 * 3600 * stream.rate
    late = stream.read((8 * 3600 - 45) * stream.rate, stream.rate)
    assert len(late) == stream.rate
    assert late.any()
    assert len(read) <= 2 * 3
    stream.read((8 * 3600 - 44) * stream.rate, stream.rate)
    assert len(read) == len(set(read))


def _index(count: int) -> list[Segment]:
    """Return `count` segments of 30 s of two voices and their mix, without their samples."""
    rate_of = {"user": 22_050, "assistant": 24_000, MIXED: 24_000}
    return [
        dataclasses.replace(segment(n + 1, n * 30 * rate, EMPTY, track=track, rate=rate), frames=30 * rate)
        for track, rate in rate_of.items()
        for n in range(count)
    ]


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=5), rates, st.integers(1, 700))
def test_what_is_skipped_is_cut_out_to_the_sample(cuts: list[tuple[int, int]], rate: int, block: int) -> None:
    """What is kept is every other sample, in order and untouched but for a fade at each cut, in any blocks."""
    samples = noise(2500)
    ranges = [(min(each) / rate, max(each) / rate) for each in cuts]
    stream = played([(0, samples)], 2500, rate=rate)
    kept = Kept(stream, merged(ranges, end=2500 / rate), end=2500 / rate)
    inside = np.zeros(3000, bool)
    for one, other in cuts:
        inside[min(one, other) : max(one, other)] = True
    left = np.flatnonzero(~inside[:2500])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(playback, "BLOCK", block)
        found = everything(kept)
    assert np.array_equal(found, kept.read(0, 2500))
    assert len(found) == kept.frames == len(left)
    near = np.convolve(np.pad(inside[:2500], 1), np.ones(2 * _fade(rate) + 1, bool), "same")[1:-1] > 0
    far = ~near[left]
    assert np.array_equal(found[far], samples[left][far])
    assert (np.abs(found.astype(int)) <= np.abs(samples[left].astype(int))).all()


def _fade(rate: int) -> int:
    return round(playback.FADE * rate)


def test_a_cut_does_not_click() -> None:
    """At a cut through a tone no step is larger than the tone has by itself, on both channels."""
    voices = {"user": (8000, [(0, tone(8000, 1))]), "assistant": (8000, [(0, tone(8000, 1, 300))])}
    tracks = call_of(voices)
    stereo = tracks.stereo("user", "assistant")
    kept = everything(Kept(stereo, [(2002 / 8000, 4005 / 8000), (0.75, 1.0)], end=tracks.end))
    assert kept.shape == (2002 + 1995, 2)
    assert np.abs(np.diff(kept.astype(int), axis=0)).max() <= np.abs(np.diff(everything(stereo), axis=0)).max()
    assert np.abs(kept[[2001, 2002, -1]]).max() < 12_000 / 40


def test_all_of_a_call_may_be_skipped() -> None:
    """Nothing is left, and that is no error."""
    assert everything(Kept(played([(0, noise(100))], 100), [(0.0, 100 / 8000)], end=100 / 8000)).shape == (0,)


def test_ranges_are_merged() -> None:
    """Ranges that overlap, touch or lie within another are one; none goes past the end, and empty ones are none."""
    ranges = [(5.0, 6.0), (1.0, 3.0), (2.0, 2.5), (3.0, 4.0), (4.5, 4.5), (9.0, 12.0), (11.0, 13.0), (-1.0, 0.5)]
    assert merged(ranges, end=10.0) == [(0.0, 0.5), (1.0, 4.0), (5.0, 6.0), (9.0, 10.0)]


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

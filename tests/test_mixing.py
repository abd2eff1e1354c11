"""The mix: without seams, exact where nothing is loud, never clipped, aligned, and the same each time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_recorder.mixing import BLOCK, FULL_SCALE, KNEE, Reader, add, mix, stretch
from edge_recorder.wav import Samples, padded, silence

RATES = (8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000)
PAIRS = list(permutations(RATES, 2))


def reader(tracks: Mapping[str, Samples]) -> Reader:
    """Read tracks held in memory; silence lies behind their ends."""

    def read(name: str, first: int, frames: int) -> Samples:
        return padded(tracks[name][first : first + frames], frames)

    return read


def sine(rate: int, seconds: float) -> Samples:
    return np.rint(12_000 * np.sin(2 * np.pi * 997 * np.arange(round(rate * seconds)) / rate)).astype(np.int16)


def speech(rate: int, seconds: float, seed: int = 1) -> Samples:
    """Return tones and noise up to about -8 dBFS."""
    return _spoken(rate, seconds, seed).copy()


@cache
def _spoken(rate: int, seconds: float, seed: int) -> Samples:
    time = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(seed).normal(0, 1500, len(time))
    return (6000 * np.sin(2 * np.pi * 440 * time) + 4000 * np.sin(2 * np.pi * 1333 * time) + noise).astype(np.int16)


@pytest.mark.parametrize(("own", "target"), PAIRS)
def test_stretches_join_without_a_seam(own: int, target: int) -> None:
    """A track mixed in stretches of 30 s is the track mixed in one go, for any pair of rates."""
    read = reader({"user": speech(own, 65)})
    cuts = [0, 30 * target, 60 * target, 65 * target]
    parts = [stretch("user", own, rate=target, first=a, frames=b - a, read=read) for a, b in pairwise(cuts)]
    whole = stretch("user", own, rate=target, first=0, frames=cuts[-1], read=read)
    joined = np.concatenate(parts).astype(int)
    assert np.abs(joined - whole).max() <= 1


@examples(max_examples=60, deadline=None)
@given(pair=st.permutations(RATES), inner=st.lists(st.floats(0, 7), max_size=5))
def test_turns_join_without_a_seam(pair: list[int], inner: list[float]) -> None:
    """Stretches that are cut anywhere, as turns are, join as those do that are cut at whole seconds."""
    own, target, *_ = pair
    read = reader({"user": speech(own, 6.789)})
    cuts = sorted([0, 7 * target, *(int(seconds * target) for seconds in inner)])
    parts = [stretch("user", own, rate=target, first=a, frames=b - a, read=read) for a, b in pairwise(cuts)]
    whole = stretch("user", own, rate=target, first=0, frames=7 * target, read=read)
    assert np.abs(np.concatenate(parts).astype(int) - whole).max() <= 1


@pytest.mark.parametrize(("own", "target"), PAIRS)
def test_resampled_sine_is_the_sine(own: int, target: int) -> None:
    """A sine is the same sine at the other rate: at a seam, to the last sample, and without a lag."""
    read = reader({"user": sine(own, 40)})
    parts = [stretch("user", own, rate=target, first=i * target, frames=target, read=read) for i in (29, 30, 31)]
    exact = 12_000 * np.sin(2 * np.pi * 997 * np.arange(29 * target, 32 * target) / target)
    assert np.abs(np.concatenate(parts) - exact).max() < 2


@pytest.mark.parametrize(("own", "target"), PAIRS)
def test_tail_is_not_lost(own: int, target: int) -> None:
    """A track that ends within a second is in the mix up to its last millisecond."""
    tail = speech(own, 2.345)
    tail[-own // 500 :] = 12_000
    mixed = mix({"user": own}, rate=target, first=0, frames=round(2.345 * target), read=reader({"user": tail}))
    assert np.abs(mixed[-target // 1000 :]).max() > 9000


@pytest.mark.parametrize("own", RATES)
def test_click_stays_at_its_instant(own: int) -> None:
    """A click at 31.5 s of a track is at 31.5 s of the mix, within one sample."""
    target = 48_000 if own != 48_000 else 8000
    click = silence(40 * own)
    click[int(31.5 * own)] = 20_000
    mixed = mix({"user": own}, rate=target, first=30 * target, frames=10 * target, read=reader({"user": click}))
    at = 30 + int(np.argmax(np.abs(mixed.astype(int)))) / target
    assert abs(at - int(31.5 * own) / own) <= 1 / min(own, target)


def test_tracks_of_several_rates_are_aligned() -> None:
    """Clicks at one instant of tracks of different rates add up at one place of the mix."""
    tracks = {f"t{rate}": rate for rate in RATES}
    clicks = {name: silence(3 * rate) for name, rate in tracks.items()}
    for name, rate in tracks.items():
        clicks[name][rate : rate + rate // 1000] = 3000
    mixed = mix(tracks, rate=48_000, first=0, frames=3 * 48_000, read=reader(clicks))
    loud = np.flatnonzero(np.abs(mixed.astype(int)) > 10_000) / 48_000
    assert loud.min() > 1 - 0.0005
    assert loud.max() < 1.0015


def test_same_audio_gives_the_same_mix() -> None:
    """The mix is deterministic, so that one made again has the same hash."""
    tracks = {"user": 8000, "assistant": 24_000}
    read = reader({"user": speech(8000, 4), "assistant": speech(24_000, 4, seed=2)})
    once, again = (mix(tracks, rate=24_000, first=24_000, frames=48_000, read=read) for _ in range(2))
    assert np.array_equal(once, again)


def test_own_rate_is_not_touched() -> None:
    """A track that has the mix's rate goes in sample for sample."""
    samples = speech(8000, 2)
    assert np.array_equal(mix({"u": 8000}, rate=8000, first=0, frames=16_000, read=reader({"u": samples})), samples)


def test_mix_of_no_track_is_silence() -> None:
    """A call that has no track has a silent mix, as long as was asked."""
    assert mix({}, rate=8000, first=100, frames=50, read=reader({})).tolist() == [0] * 50


def test_mix_of_eight_tracks_is_their_sum() -> None:
    """Eight quiet tracks are their plain sum, and none of them is changed."""
    tracks = {f"t{n}": speech(8000, 3, seed=n) // 8 for n in range(8)}
    before = {name: samples.copy() for name, samples in tracks.items()}
    mixed = mix(dict.fromkeys(tracks, 8000), rate=8000, first=800, frames=16_000, read=reader(tracks))
    assert np.array_equal(mixed, sum(samples[800:16_800].astype(int) for samples in tracks.values()))
    assert all(np.array_equal(tracks[name], before[name]) for name in tracks)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_each_track_is_read_once(count: int) -> None:
    """Where no track has to be resampled, exactly what was asked for is read, once from each."""
    asked: list[tuple[str, int, int]] = []

    def read(name: str, first: int, frames: int) -> Samples:
        asked.append((name, first, frames))
        return silence(frames)

    tracks = {f"t{n}": 24_000 for n in range(count)}
    assert len(mix(tracks, rate=24_000, first=123_457, frames=1001, read=read)) == 1001
    assert asked == [(name, 123_457, 1001) for name in tracks]


def test_resampled_peaks_do_not_wrap() -> None:
    """A square wave at full scale overshoots when it is resampled: it is held at full scale, and never wraps."""
    square = np.where(np.arange(16_000) // 40 % 2, 32_767, -32_768).astype(np.int16)
    out = stretch("u", 8000, rate=48_000, first=0, frames=96_000, read=reader({"u": square})).astype(int)
    assert np.abs(np.diff(out)).max() < 33_000  # a wrap would be a step of 65,000


def test_track_that_ended_is_silence() -> None:
    """Behind its end a track adds nothing, and the mix is as long as was asked."""
    mixed = mix({"u": 11_025}, rate=8000, first=0, frames=8000 * 20, read=reader({"u": speech(11_025, 2)}))
    assert len(mixed) == 160_000
    assert not mixed[17_000:].any()


parts = st.lists(st.lists(st.integers(-32_768, 32_767), min_size=8, max_size=8), min_size=2, max_size=6)


@examples(max_examples=100)
@given(parts)
def test_sum_is_exact_until_it_is_loud(values: list[list[int]]) -> None:
    """Up to -1 dBFS the mix is the plain sum; above it keeps its sign, grows no smaller than that, and never clips."""
    exact: NDArray[np.int64] = np.sum(values, axis=0)
    mixed = add([np.array(each, np.int16) for each in values]).astype(int)
    quiet = np.abs(exact) <= KNEE
    assert np.array_equal(mixed[quiet], exact[quiet])
    assert (np.sign(mixed) == np.sign(exact)).all()
    assert (np.abs(mixed[~quiet]) >= KNEE).all()
    assert (np.abs(mixed) <= FULL_SCALE).all()


def plainly(values: list[Samples]) -> NDArray[np.int64]:
    """Add sample by sample in whole numbers, and bend all that is above the knee."""
    total: NDArray[np.int64] = np.sum(values, axis=0, dtype=np.int64)
    room = FULL_SCALE - KNEE
    bent = np.sign(total) * (KNEE + np.rint(room * np.tanh((np.abs(total) - KNEE) / room)))
    return np.where(np.abs(total) > KNEE, bent, total).astype(np.int64)


@examples(max_examples=80, deadline=None)
@given(
    frames=st.integers(0, 3 * BLOCK) | st.sampled_from([1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK]),
    loudness=st.lists(st.sampled_from([0, 500, 4000, 9000, 60_000]), min_size=2, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
def test_sum_of_blocks_is_the_sum(frames: int, loudness: list[int], seed: int) -> None:
    """However long the parts and wherever they are loud, their sum is that of the plain formula."""
    random = np.random.default_rng(seed)
    envelope = random.random() < np.linspace(0, 1, frames)  # loud in some blocks, and silent in others
    noise = [np.clip(random.normal(0, each, frames) * envelope, -32_768, 32_767) for each in loudness]
    values = [each.astype(np.int16) for each in noise]
    before = [each.copy() for each in values]
    mixed = add(values)
    assert mixed.dtype == np.int16
    assert np.array_equal(mixed, plainly(values))
    assert all(np.array_equal(now, then) for now, then in zip(values, before, strict=True))


def test_one_loud_sample_among_many() -> None:
    """A single pair of samples that would wrap is bent, and all around it is the plain sum."""
    quiet = np.full(3 * BLOCK, 100, np.int16)
    loud = quiet.copy()
    loud[BLOCK + 7] = -32_768
    mixed = add([loud, loud])
    assert mixed[BLOCK + 7] == -FULL_SCALE
    assert (np.delete(mixed, BLOCK + 7) == 200).all()


def test_read_only_parts_are_mixed() -> None:
    """What comes from a file cannot be written, and is mixed all the same."""
    part = np.frombuffer(np.full(10, 20_000, "<i2").tobytes(), "<i2")
    assert np.array_equal(add([part, part]), plainly([part, part]))


def test_louder_is_never_quieter() -> None:
    """The bend above -1 dBFS is monotonic: no fold in the wave."""
    ramp = np.arange(0, 32_768).astype(np.int16)
    assert (np.diff(add([ramp, ramp]).astype(int)) >= 0).all()
    assert (np.diff(add([-ramp, -ramp]).astype(int)) <= 0).all()

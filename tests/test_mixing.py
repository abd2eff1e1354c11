"""The mix: without seams, exact where nothing is loud, never clipped, aligned, and the same each time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_recorder.mixing import FULL_SCALE, KNEE, Reader, add, mix, stretch
from edge_recorder.wav import Samples, padded, silence

RATES = (8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000)


def reader(tracks: Mapping[str, Samples]) -> Reader:
    """Read tracks held in memory; silence lies behind their ends."""

    def read(name: str, first: int, frames: int) -> Samples:
        return padded(tracks[name][first : first + frames], frames)

    return read


def speech(rate: int, seconds: float, seed: int = 1) -> Samples:
    """Return tones and noise up to about -8 dBFS."""
    time = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(seed).normal(0, 1500, len(time))
    return (6000 * np.sin(2 * np.pi * 440 * time) + 4000 * np.sin(2 * np.pi * 1333 * time) + noise).astype(np.int16)


@pytest.mark.parametrize("own", RATES)
def test_stretches_join_without_a_seam(own: int) -> None:
    """A track mixed in stretches of 30 s is the track mixed in one go, whatever its rate."""
    target = 24_000 if own != 24_000 else 16_000
    read = reader({"user": speech(own, 65)})
    cuts = [0, 30 * target, 60 * target, 65 * target]
    parts = [stretch("user", own, rate=target, first=a, frames=b - a, read=read) for a, b in pairwise(cuts)]
    whole = stretch("user", own, rate=target, first=0, frames=cuts[-1], read=read)
    joined = np.concatenate(parts).astype(int)
    assert np.abs(joined - whole).max() <= 1


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


def test_louder_is_never_quieter() -> None:
    """The bend above -1 dBFS is monotonic: no fold in the wave."""
    ramp = np.arange(0, 32_768).astype(np.int16)
    assert (np.diff(add([ramp, ramp]).astype(int)) >= 0).all()
    assert (np.diff(add([-ramp, -ramp]).astype(int)) <= 0).all()

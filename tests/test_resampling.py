"""Resampling chunk by chunk: as in one go, however it is cut, aligned, and with its tail."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edge_recorder.resampling import Resampler, resampled
from edge_recorder.wav import Samples, silence

RATES = (8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000)
PAIRS = list(permutations(RATES, 2))


def noise(frames: int, seed: int = 1) -> Samples:
    return np.random.default_rng(seed).normal(0, 6000, frames).clip(-32_768, 32_767).astype(np.int16)


def chunked(samples: Samples, cuts: list[int], resampler: Resampler) -> Samples:
    """Resample a stretch that comes in chunks."""
    bounds = [0, *sorted(cuts), len(samples)]
    fed = [resampler.feed(samples[start:end]) for start, end in pairwise(bounds)]
    return np.concatenate([*fed, resampler.finish()])


def length(frames: int, own: int, rate: int) -> int:
    return (2 * frames * rate + own) // (2 * own)  # rounded, halves up


@examples(max_examples=150, deadline=None)
@given(pair=st.permutations(RATES), frames=st.integers(0, 30_000), data=st.data())
def test_chunks_are_resampled_as_in_one_go(pair: list[int], frames: int, data: st.DataObject) -> None:
    """Chunks of any sizes, empty ones too, give what the whole stretch gives, and as much of it."""
    own, rate, *_ = pair
    cuts = data.draw(st.lists(st.integers(0, frames), max_size=12))
    out = chunked(noise(frames), cuts, Resampler(own, rate))
    assert out.dtype == np.int16
    assert len(out) == length(frames, own, rate)
    assert np.abs(out.astype(int) - resampled(noise(frames), own, rate)).max(initial=0) <= 1


@pytest.mark.parametrize(("own", "rate"), PAIRS)
def test_frames_of_a_call_keep_in_step(own: int, rate: int) -> None:
    """After a minute in frames of 20 ms not a sample is missing or too many, and a click is where it was."""
    samples = silence(60 * own)
    samples[59 * own] = 20_000
    out = chunked(samples, list(range(0, len(samples), own // 50)), Resampler(own, rate))
    assert len(out) == 60 * rate
    assert abs(int(np.argmax(np.abs(out.astype(int)))) - 59 * rate) <= rate / min(own, rate) / 2


@pytest.mark.parametrize(("own", "rate"), PAIRS)
def test_sine_is_not_delayed(own: int, rate: int) -> None:
    """A sine comes out as the same sine, sample for sample: the filter's delay is not in it."""
    wave = np.rint(12_000 * np.sin(2 * np.pi * 997 * np.arange(3 * own) / own)).astype(np.int16)
    out = chunked(wave, list(range(0, len(wave), 160)), Resampler(own, rate))
    exact = 12_000 * np.sin(2 * np.pi * 997 * np.arange(rate, 2 * rate) / rate)
    assert np.abs(out[rate : 2 * rate] - exact).max() < 2


@pytest.mark.parametrize(("own", "rate"), PAIRS)
def test_last_millisecond_is_not_lost(own: int, rate: int) -> None:
    """What is fed just before the end comes out with it."""
    samples = silence(own)
    samples[-own // 500 :] = 12_000
    out = chunked(samples, [own // 2], Resampler(own, rate))
    assert np.abs(out[-rate // 1000 :].astype(int)).max() > 9000


@pytest.mark.parametrize(("own", "rate"), PAIRS)
def test_little_is_held_back(own: int, rate: int) -> None:
    """At any time all but the last 0.2 s of what was fed is out."""
    resampler, samples, out = Resampler(own, rate), noise(2 * own), 0
    for start in range(0, len(samples), own // 50):
        chunk = samples[start : start + own // 50]
        out += len(resampler.feed(chunk))
        assert (start + len(chunk)) / own - out / rate < 0.2


def test_next_stretch_knows_nothing_of_the_last() -> None:
    """After its end a resampler begins anew: the same audio gives the same samples."""
    resampler = Resampler(8000, 24_000)
    once, again = (chunked(noise(4001), [160, 320], resampler) for _ in range(2))
    assert np.array_equal(once, again)


def test_nothing_gives_nothing() -> None:
    """A stretch that nothing was fed of is empty."""
    resampler = Resampler(8000, 16_000)
    assert len(resampler.feed(silence(0))) == 0
    assert len(resampler.finish()) == 0


def test_same_rate_is_not_touched() -> None:
    """From a rate to itself all goes through, sample for sample and at once."""
    assert np.array_equal(Resampler(8000, 8000).feed(noise(800)), noise(800))


def test_overshoot_does_not_wrap() -> None:
    """A square wave at full scale overshoots when it is resampled: it is held at full scale."""
    square = np.where(np.arange(8000) // 40 % 2, 32_767, -32_768).astype(np.int16)
    out = chunked(square, [100, 3000], Resampler(8000, 48_000)).astype(int)
    assert np.abs(np.diff(out)).max() < 33_000  # a wrap would be a step of 65,000


def test_audio_fed_is_left_as_it_was() -> None:
    """What is fed is neither changed nor kept: it may be read-only, and may be used again."""
    samples = noise(1600)
    samples.flags.writeable = False
    assert np.array_equal(chunked(samples, [800], Resampler(16_000, 16_000)), noise(1600))
    assert np.array_equal(samples, noise(1600))

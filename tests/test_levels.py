"""What is measured of a segment: hash, levels, clipping and waveform."""

from __future__ import annotations

import base64
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edge_recorder.levels import BLOCK, measure
from edge_recorder.wav import Samples, silence

RATE = 8000


def sine(amplitude: float, *, seconds: float = 1, rate: int = RATE) -> Samples:
    return np.rint(amplitude * np.sin(2 * np.pi * 100 * np.arange(round(rate * seconds)) / rate)).astype(np.int16)


def pairs(text: str) -> list[tuple[int, int]]:
    flat = np.frombuffer(base64.b64decode(text), np.int8).astype(int)
    return list(zip(flat[::2].tolist(), flat[1::2].tolist(), strict=True))


@pytest.mark.parametrize("down", [0, 6, 20, 60])
def test_levels_of_a_sine(down: int) -> None:
    """A sine of a known amplitude has that peak in dBFS, and its RMS 3.01 dB lower."""
    levels = measure(sine(32_767 * 10 ** (-down / 20)), RATE)
    assert levels.peak_dbfs == pytest.approx(-down, abs=0.1)
    assert levels.rms_dbfs == pytest.approx(-down - 3.01, abs=0.1)


def test_silence_has_no_level() -> None:
    """Digital silence has no level, rather than minus infinity, which no JSON holds."""
    levels = measure(silence(RATE), RATE)
    assert (levels.peak_dbfs, levels.rms_dbfs, levels.clipped) == (None, None, 0)
    assert pairs(levels.waveform) == [(0, 0)] * 20


def test_nothing_is_measured_of_nothing() -> None:
    """An empty segment is measured without a warning."""
    levels = measure(silence(0), RATE)
    assert (levels.peak_dbfs, levels.rms_dbfs, levels.clipped, levels.waveform) == (None, None, 0, "")
    assert levels.pcm_sha256 == hashlib.sha256(b"").hexdigest()


def test_lowest_sample_is_full_scale() -> None:
    """The lowest int16 is 0 dBFS: its absolute value does not overflow."""
    levels = measure(np.array([-32_768, 0], np.int16), RATE)
    assert levels.peak_dbfs == 0
    assert levels.clipped == 1


def test_clipped_samples_are_counted() -> None:
    """Samples at either full scale are counted, and those just below are not."""
    assert measure(np.array([32_767, -32_768, 32_766, -32_767, 0], np.int16), RATE).clipped == 2


@pytest.mark.parametrize("sample", [32_767, -32_768])
def test_clipping_on_one_side_is_counted(sample: int) -> None:
    """Samples that clip only upwards, or only downwards, are counted."""
    assert measure(np.array([0, sample, sample], np.int16), RATE).clipped == 2


def test_hash_is_of_little_endian_samples() -> None:
    """The hash is over int16 little-endian, whatever the array's byte order."""
    samples = sine(1000)
    expected = hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()
    assert measure(samples, RATE).pcm_sha256 == expected
    assert measure(samples.astype(">i2"), RATE).pcm_sha256 == expected


def test_waveform_is_low_and_high_of_each_twentieth() -> None:
    """The waveform has one (low, high) pair for each started 1/20 s, as the upper byte of the samples."""
    samples = silence(RATE // 20 * 2 + 1)
    samples[3], samples[4] = 25_600, -12_800
    samples[-1] = 512
    assert pairs(measure(samples, RATE).waveform) == [(-50, 100), (0, 0), (2, 2)]


@pytest.mark.parametrize("rate", [11_025, 22_050, 48_000])
def test_waveform_has_twenty_pairs_a_second(rate: int) -> None:
    """Ten seconds are about 200 pairs at any rate."""
    assert len(pairs(measure(sine(900, seconds=10, rate=rate), rate).waveform)) == pytest.approx(200, abs=1)


def plainly(samples: Samples, rate: int) -> tuple[str, float | None, float | None, int, list[tuple[int, int]]]:
    """Measure by the formulas as they are written in books, in whole numbers and double precision."""
    values = samples.astype(np.int64)
    peak, power = np.abs(values).max(initial=0), np.square(values).sum() / max(1, len(values))
    step = max(1, rate // 20)
    steps = [values[start : start + step] >> 8 for start in range(0, len(values), step)]
    return (
        hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest(),
        round(float(20 * np.log10(peak / 32_768)), 2) if peak else None,
        round(float(20 * np.log10(np.sqrt(power) / 32_768)), 2) if peak else None,
        sum(value in {-32_768, 32_767} for value in values.tolist()),
        [(int(each.min()), int(each.max())) for each in steps],
    )


@examples(max_examples=60, deadline=None)
@given(
    frames=st.integers(0, 3 * BLOCK) | st.sampled_from([1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK]),
    rate=st.sampled_from([1000, 8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 192_000]),
    loudness=st.sampled_from([0, 1, 100, 4000, 15_000, 60_000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_measured_as_by_the_plain_formulas(frames: int, rate: int, loudness: int, seed: int) -> None:
    """Whatever its length, rate and loudness, audio is measured as the plain formulas do."""
    noise = np.random.default_rng(seed).normal(0, loudness, frames)
    samples = np.clip(np.rint(noise), -32_768, 32_767).astype(np.int16)
    levels = measure(samples, rate)
    measured = (levels.pcm_sha256, levels.peak_dbfs, levels.rms_dbfs, levels.clipped, pairs(levels.waveform))
    assert measured == plainly(samples, rate)


def test_view_is_measured_like_its_copy() -> None:
    """Every second sample of an array, or an array that nobody may write, is measured as its copy is."""
    samples = sine(20_000)
    assert measure(samples[::2], RATE) == measure(samples[::2].copy(), RATE)
    assert measure(np.frombuffer(samples.tobytes(), "<i2"), RATE) == measure(samples, RATE)

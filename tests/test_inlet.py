"""The way in: whatever callers hand over comes out at the track's rate, in its place, and whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edge_recorder.inlet import PAUSE, Inlet
from edge_recorder.resampling import resampled
from edge_recorder.timeline import Heard
from edge_recorder.wav import Samples

RATE = 16_000
SECOND = 1_000_000_000


def tone(seconds: float, rate: int) -> Samples:
    time = np.arange(round(seconds * rate)) / rate
    return (8000 * np.sin(2 * np.pi * 440 * time)).astype("<i2")


def pieces(samples: Samples, rate: int, *, told: bool = False, length: float = 0.02, start: float = 1.0) -> list[Heard]:
    """Return `samples` in chunks that arrive as they are spoken, from `start` on."""
    size = round(length * rate)
    return [
        Heard(
            samples[n : n + size].tobytes(),
            round((start + (n + size) / rate) * SECOND),
            start + n / rate if told else None,
        )
        for n in range(0, len(samples), size)
    ]


def through(inlet: Inlet, chunks: list[Heard], rate: int, encoding: str = "pcm16") -> list[Heard]:
    return [out for each in chunks for out in inlet.take(each, encoding, rate)]


def whole(chunks: list[Heard]) -> Samples:
    return np.frombuffer(b"".join(each.pcm for each in chunks), "<i2")


def test_own_rate_and_encoding_pass_unchanged() -> None:
    """Audio of the track's own rate goes in as it is, and no stream is under way."""
    inlet, given_in = Inlet(RATE), pieces(tone(1, RATE), RATE, told=True)
    assert through(inlet, given_in, RATE) == given_in
    assert inlet.straight == RATE
    assert inlet.finish() == []


@pytest.mark.parametrize(("encoding", "dtype"), [("float32", "<f4"), ("pcm16", "<i2")])
def test_other_encodings_are_decoded(encoding: str, dtype: str) -> None:
    """What a timeline takes is int16, whatever was handed over."""
    (out,) = Inlet(RATE).take(Heard(np.ones(160, dtype).tobytes(), 0), encoding, RATE)
    assert whole([out]).tolist() == [32_767 if encoding == "float32" else 1] * 160


def test_mulaw_of_another_rate_is_decoded_and_resampled() -> None:
    """Telephone audio on a track of 16 kHz comes out twice as many samples."""
    inlet = Inlet(RATE)
    out = through(inlet, [Heard(bytes([0xFF]) * 8000, SECOND)], 8000, "mulaw") + inlet.finish()
    assert whole(out).tolist() == [0] * RATE


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_stream_is_resampled_as_in_one_go(rate: int) -> None:
    """Chunks of another rate come out as the whole would, tail and all, without a seam."""
    inlet, samples = Inlet(RATE), tone(2, rate)
    out = through(inlet, pieces(samples, rate), rate)
    assert inlet.straight == 0
    out += inlet.finish()
    assert inlet.straight == RATE
    assert np.array_equal(whole(out), resampled(samples, rate, RATE))


@pytest.mark.parametrize("told", [False, True])
def test_resampled_audio_keeps_its_place(*, told: bool) -> None:
    """What the resampler holds back moves neither the place nor the arrival of what it gives out."""
    inlet = Inlet(RATE)
    out = through(inlet, pieces(tone(3, 48_000), 48_000, told=told), 48_000) + inlet.finish()
    end = 1.0
    for each in out:
        if told:
            assert each.at == pytest.approx(end, abs=0.001)
        else:
            assert each.at is None
        end += each.frames / RATE
        assert each.arrived / SECOND == pytest.approx(end, abs=0.001)
    assert end == pytest.approx(4, abs=0.001)


def test_place_follows_the_source_through_its_drift() -> None:
    """A source whose samples run apart from the places that it tells is believed about the places."""
    inlet = Inlet(RATE)
    samples, late = tone(60, 48_000), 1.001  # a second further each 1,000 s
    chunks = [
        Heard(each.pcm, each.arrived, None if each.at is None else 1 + (each.at - 1) * late)
        for each in pieces(samples, 48_000, told=True)
    ]
    out = through(inlet, chunks, 48_000)
    last = out[-1]
    assert last.at is not None
    assert last.at + last.frames / RATE == pytest.approx(1 + 60 * late, abs=0.2)
    assert last.at + last.frames / RATE - (1 + whole(out).size / RATE) == pytest.approx(0.06, abs=0.001)


def test_stream_ends_when_nothing_comes() -> None:
    """The tail of a stream is due once nothing has come of it for a while, and only once."""
    inlet = Inlet(RATE)
    out = through(inlet, pieces(tone(0.5, 8000), 8000), 8000)
    assert inlet.finish_if_idle(round((1.5 + PAUSE) * SECOND)) == []
    out += inlet.finish_if_idle(round((1.5 + PAUSE) * SECOND) + 1)
    assert whole(out).size == RATE // 2
    assert inlet.finish_if_idle(99 * SECOND) == []


@pytest.mark.parametrize(("told", "later"), [(False, 0.3), (True, 0.05), (True, -0.05)])
def test_stream_that_is_broken_off_has_its_tail(*, told: bool, later: float) -> None:
    """What comes after a silence, or for another place, begins another stream: the first one is whole before it."""
    inlet = Inlet(RATE)
    first, second = tone(0.5, 8000), tone(0.25, 8000)
    out = through(inlet, pieces(first, 8000, told=told), 8000)
    out += through(inlet, pieces(second, 8000, told=told, start=1.5 + later), 8000) + inlet.finish()
    expected = np.concatenate([resampled(first, 8000, RATE), resampled(second, 8000, RATE)])
    assert np.array_equal(whole(out), expected)
    if told:
        begins = next(
            each.at for each, ends in zip(out, np.cumsum([each.frames for each in out]), strict=True) if ends > 8000
        )
        assert begins == pytest.approx(1.5 + later, abs=0.001)


def test_change_of_rate_ends_the_stream() -> None:
    """A source that goes on in another rate, or in the track's own, loses nothing between."""
    inlet = Inlet(RATE)
    parts = [(tone(0.3, rate), rate) for rate in (8000, 48_000, RATE, 8000)]
    out = [each for samples, rate in parts for each in through(inlet, pieces(samples, rate), rate)] + inlet.finish()
    expected = [resampled(samples, rate, RATE) if rate != RATE else samples for samples, rate in parts]
    assert np.array_equal(whole(out), np.concatenate(expected))


@examples(max_examples=40, deadline=None)
@given(
    told=st.booleans(),
    chunks=st.lists(
        st.tuples(
            st.sampled_from((8000, 16_000, 24_000, 48_000)), st.integers(0, 30), st.sampled_from((0, 0, 0.1, 0.5))
        ),
        min_size=1,
        max_size=20,
    ),
)
def test_seconds_in_are_seconds_out(chunks: list[tuple[int, int, float]], *, told: bool) -> None:
    """However rates, lengths and pauses follow each other, as much comes out as went in, in order."""
    inlet, out, time, given_in = Inlet(RATE), [], 0.0, 0.0
    for rate, milliseconds, pause in chunks:
        time += pause + milliseconds / 1000
        given_in += milliseconds / 1000
        pcm = bytes(2 * rate * milliseconds // 1000)
        at = time - milliseconds / 1000 if told else None
        out += inlet.take(Heard(pcm, round(time * SECOND), at), "pcm16", rate)
    out += inlet.finish()
    assert whole(out).size == pytest.approx(given_in * RATE, abs=len(chunks))
    arrivals = [each.arrived for each in out]
    assert all(arrived <= time * SECOND + 1 for arrived in arrivals)
    if told:
        assert all(each.at is not None and each.at + each.frames / RATE <= time + 0.041 for each in out)

"""Clocks that run apart: drift is found through jitter, and put right where nobody speaks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edge_recorder.drift import PAUSE, STEP, Drift
from edge_recorder.timeline import Heard, Timeline
from edge_recorder.wav import Samples, silence

RATE = 1000
CHUNK = 100  # samples
SECOND = 1_000_000_000


def conversation(frames: int, *, noise: int = 0) -> Samples:
    """Return turns of 4 to 12 s with pauses of 0.3 to 3 s between them; each sample of speech is loud."""
    rng = np.random.default_rng(3)
    samples = rng.integers(-noise, noise + 1, frames).astype(np.int16)
    at = 0
    while at < frames:
        turn, pause = rng.integers(4 * RATE, 12 * RATE), rng.integers(RATE * 3 // 10, 3 * RATE)
        samples[at : at + turn] = 9000
        at += int(turn + pause)
    return samples


def handovers(
    samples: Samples, *, ppm: float, told: bool, jitter: float, together: int = 20
) -> Iterator[tuple[float, list[Heard]]]:
    """Yield when each handover of some chunks `together` was spoken, and those; the card's clock is `ppm` fast."""
    rng = np.random.default_rng(4)
    period = 1 / (RATE * (1 + ppm / 1e6))  # seconds
    chunks = len(samples) // CHUNK
    spoken = np.arange(1, chunks + 1) * CHUNK * period
    arrived = ((spoken + 0.03 + rng.uniform(0, jitter, chunks)) * SECOND).astype(np.int64).tolist()
    places = np.maximum(0, spoken - CHUNK * period + rng.uniform(-jitter, jitter, chunks) / 2).tolist()
    pcm = samples.tobytes()
    for first in range(0, chunks, together):
        yield (
            float(spoken[min(first + together, chunks) - 1]),
            [
                Heard(pcm[2 * n * CHUNK : 2 * (n + 1) * CHUNK], arrived[n], places[n] if told else None)
                for n in range(first, min(first + together, chunks))
            ],
        )


def recorded(timeline: Timeline, chunks: list[Heard]) -> list[tuple[int, Samples]]:
    now = max(each.arrived for each in chunks) + SECOND
    assert timeline.hear(chunks, now=now) == []
    return [(each.start, np.asarray(each.audio)) for each in timeline.release(now).pieces]


def off_by(samples: Samples, *, ppm: float, told: bool, together: int = 20) -> tuple[float, float]:
    """Record `samples` from a card whose clock is off. Returns how far the track ran ahead, at the least and most."""
    timeline = Timeline(RATE, live=True)
    track = silence(len(samples) + 10 * RATE)
    off = []
    for spoken, chunks in handovers(samples, ppm=ppm, told=told, jitter=0.02, together=together):
        for start, piece in recorded(timeline, chunks):
            track[start : start + len(piece)] = piece
        off.append(timeline.end / RATE - spoken)
    assert turns(track) == turns(samples), "a word was cut or stretched"
    return min(off) - off[0], max(off) - off[0]


@pytest.mark.parametrize("ppm", [-100, pytest.param(100, marks=pytest.mark.faults)])
@pytest.mark.parametrize("told", [False, True], ids=["arrivals", "places"])
def test_sound_card_off_for_eight_hours_stays_in_time(*, ppm: float, told: bool) -> None:
    """100 ppm are 2.9 s in 8 hours; the track is never more than 20 ms off, and no word is cut or stretched."""
    least, most = off_by(conversation(8 * 3600 * RATE), ppm=ppm, told=told)
    assert least > -0.025
    assert most < 0.025


@pytest.mark.parametrize("ppm", [-500, 500])
def test_drift_is_put_right_in_noise(ppm: float) -> None:
    """A microphone that is never silent is put right where it is quieter by 30 dB than its speech."""
    least, most = off_by(conversation(1800 * RATE, noise=150), ppm=ppm, told=True, together=4)
    assert least > -0.025
    assert most < 0.025


def turns(samples: Samples) -> list[int]:
    """Return how long each turn in `samples` is."""
    speaks = np.concatenate([[0], (samples == 9000).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(speaks))
    return list(edges[1::2] - edges[::2])


@pytest.mark.parametrize("told", [False, True], ids=["arrivals", "places"])
def test_clock_that_is_right_is_left_alone(*, told: bool) -> None:
    """Jitter alone changes nothing in an hour of audio, but for the one by which a first place was wrong."""
    samples = conversation(3600 * RATE)
    timeline = Timeline(RATE, live=True)
    pieces = [len(recorded(timeline, chunks)) for _, chunks in handovers(samples, ppm=0, told=told, jitter=0.02)]
    assert sum(pieces) - len(pieces) <= told
    assert timeline.end == pytest.approx(len(samples), abs=50)


def noted(drift: Drift, slack: int, *, seconds: float = 10, known: bool = False) -> int:
    """Return what is owed after `seconds` of handovers that are `slack` behind."""
    for _ in range(round(seconds * 10)):
        drift.note(slack, RATE // 10, contiguous=True, known=known)
    return drift.owed


@pytest.mark.parametrize(("moved", "owed"), [(0, 0), (9, 0), (10, 1), (50, 1), (-9, 0), (-10, -1)])
def test_drift_is_what_the_delay_moved_since_the_beginning(moved: int, owed: int) -> None:
    """However large the delay that a stream begins with, only its change is drift."""
    drift = Drift(RATE)
    assert noted(drift, 40) == 0
    assert noted(drift, 40 + moved) == owed


def test_told_places_need_no_beginning() -> None:
    """Where the source tells its places, being off is drift from the first window on."""
    drift = Drift(RATE)
    drift.note(0, 1, contiguous=False, known=True)
    assert noted(drift, -15, known=True) == -1


def test_one_late_handover_is_no_drift() -> None:
    """Of ten seconds the least delay counts."""
    drift = Drift(RATE)
    noted(drift, 5)
    noted(drift, 90, seconds=9)
    assert noted(drift, 5) == 0


def test_new_beginning_forgets_what_was_owed() -> None:
    """After a silence the stream is placed anew, so nothing is owed."""
    drift = Drift(RATE)
    noted(drift, 0)
    assert noted(drift, 20) == 1
    drift.note(0, 100, contiguous=False, known=False)
    assert drift.owed == 0


@pytest.mark.parametrize("owed", [1, -1])
def test_step_is_put_right_in_the_pause(owed: int) -> None:
    """One step of silence is put in or left out in the middle of a pause, and the speech around it stays whole."""
    drift = Drift(RATE)
    drift.owed = owed
    samples = np.full(400, 5000, np.int16)
    samples[150:250] = 0
    parts = drift.correct(7, samples)
    assert drift.owed == 0
    (first, before), (second, after) = parts
    assert first == 7
    assert second == 7 + len(before) + (10 if owed > 0 else 0)
    assert len(before) + len(after) == 400 - (0 if owed > 0 else 10)
    assert 150 < len(before) < 250
    assert sum(int(np.count_nonzero(part)) for part in (before, after)) == 300


def test_stop_within_a_word_is_no_pause() -> None:
    """Silence shorter than 50 ms is part of a word: nothing is put right there."""
    drift = Drift(RATE)
    drift.owed = 1
    samples = np.full(400, 5000, np.int16)
    samples[200 : 200 + int((PAUSE - 1) * STEP * RATE)] = 0
    assert [start for start, _ in drift.correct(0, samples)] == [0]
    assert drift.owed == 1


def test_quiet_talk_is_not_taken_for_a_pause() -> None:
    """A stream in which nothing is louder than its noise is left alone."""
    drift = Drift(RATE)
    drift.owed = -1
    ((_, kept),) = drift.correct(0, np.full(4000, 200, np.int16))
    assert len(kept) == 4000


def test_less_than_a_step_is_left_alone() -> None:
    """A handover too short to judge is passed on as it is."""
    drift = Drift(RATE)
    drift.owed = 1
    ((_, kept),) = drift.correct(0, silence(9))
    assert len(kept) == 9


def test_full_scale_is_loud() -> None:
    """The most negative sample, which has no positive counterpart, is not taken for silence."""
    drift = Drift(RATE)
    drift.owed = 1
    assert len(drift.correct(0, np.full(400, -32_768, np.int16))) == 1

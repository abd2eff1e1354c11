"""Where audio lands on its track: placement, waiting, lateness and the cuts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edge_recorder.timeline import Chunk, Piece, Timeline, instant_of, joined, sample_at
from edge_recorder.wav import Samples

RATE = 8000
SECOND = 1_000_000_000
RATES = (8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000)


def ns(seconds: float) -> int:
    return round(seconds * SECOND)


def audio(seconds: float, value: int = 1) -> Samples:
    return np.full(round(seconds * RATE), value, np.int16)


def heard(seconds: float, *, arrived: float, at: float | None = None) -> Chunk:
    return Chunk(audio(seconds), at, ns(arrived))


def places(pieces: list[Piece]) -> list[tuple[float, float]]:
    """Return where `pieces` lie, in seconds."""
    return [(first / RATE, end / RATE) for first, end in joined(sorted((each.start, each.end) for each in pieces))]


def by(timeline: Timeline, seconds: float) -> list[tuple[float, float]]:
    """Return what `timeline` releases by then."""
    return places(timeline.release(ns(seconds))[0])


@pytest.fixture
def live() -> Timeline:
    return Timeline(RATE, live=True)


def test_audio_at_a_place_is_put_there(live: Timeline) -> None:
    """Audio whose source knows its place goes there, whenever it arrives."""
    assert live.hear([heard(1, arrived=9, at=3.5)]) == []
    assert by(live, 9) == [(3.5, 4.5)]


@pytest.mark.parametrize("off", [-0.040, -0.013, 0.0, 0.021, 0.040])
def test_audio_at_about_the_end_is_appended(live: Timeline, off: float) -> None:
    """A place within 40 ms of the track's end is jitter: nothing is lost, and no hole is made."""
    assert live.hear([heard(1, arrived=1, at=0), heard(1, arrived=2, at=1 + off)]) == []
    assert by(live, 2) == [(0, 2)]


def test_audio_beyond_jitter_leaves_a_hole(live: Timeline) -> None:
    """A place more than 40 ms behind the end is a silence, and is kept as one."""
    live.hear([heard(1, arrived=1, at=0), heard(1, arrived=2.1, at=1.05)])
    assert by(live, 3) == [(0, 1), (1.05, 2.05)]


def test_steady_stream_is_contiguous_despite_jitter(live: Timeline) -> None:
    """Chunks of 20 ms whose arrivals are up to 60 ms off leave no hole between them."""
    rng = np.random.default_rng(7)
    for n in range(200):
        assert live.hear([heard(0.02, arrived=(n + 1) * 0.02 + rng.uniform(0, 0.06))]) == []
    (only,) = by(live, 10)
    assert only == (0, 4)


def test_audio_after_silence_ends_at_its_arrival(live: Timeline) -> None:
    """Without a place, what comes after a silence was being spoken until it arrived."""
    live.hear([heard(1, arrived=1)])
    live.hear([heard(0.5, arrived=6)])
    assert by(live, 6) == [(0, 1), (5.5, 6)]


def test_stall_and_burst_keep_their_length(live: Timeline) -> None:
    """A network that stalls for 5 s and then delivers 5 s at once makes 5 s of audio, and no silence."""
    live.hear([heard(1, arrived=1)])
    live.hear([heard(0.02, arrived=6 + n * 0.0001) for n in range(250)])
    assert by(live, 6.1) == [(0, 6)]


def test_burst_fills_part_of_a_silence_backwards(live: Timeline) -> None:
    """A burst shorter than the silence before it ends at its arrival, as one run."""
    live.hear([heard(1, arrived=1)])
    live.hear([heard(0.5, arrived=6), heard(0.5, arrived=6.01), heard(0.5, arrived=6.02)])
    assert by(live, 7) == [(0, 1), (4.52, 6.02)]


def test_two_runs_in_one_handover_are_placed_apart(live: Timeline) -> None:
    """Chunks taken together that did not arrive together keep the silence between them."""
    live.hear([heard(0.2, arrived=0.2), heard(0.2, arrived=3)])
    assert by(live, 3) == [(0, 0.2), (2.8, 3)]


def test_audio_ahead_of_time_waits(live: Timeline) -> None:
    """Heard audio more than 0.5 s ahead of the clock waits until its time comes."""
    live.hear([heard(3, arrived=0)])
    assert by(live, 0) == [(0, 0.5)]
    assert live.waiting_bytes == 2 * 2.5 * RATE
    assert by(live, 1) == [(0.5, 1.5)]
    assert places(live.release_heard()) == [(1.5, 3)]
    assert live.waiting_bytes == 0


def test_audio_for_a_taken_place_is_late(live: Timeline) -> None:
    """What comes for samples already written is not written, and its range is told; the rest of it is kept."""
    live.hear([heard(1, arrived=1, at=1)])
    assert live.hear([heard(2, arrived=2, at=0.5)]) == [(RATE, 2 * RATE)]
    assert by(live, 3) == [(0.5, 2.5)]


def test_audio_for_a_sealed_place_is_late(live: Timeline) -> None:
    """What comes for a segment already sealed is late, though nobody wrote there."""
    live.close_until(30 * RATE)
    assert live.hear([heard(2, arrived=33, at=29)]) == [(29 * RATE, 30 * RATE)]
    assert by(live, 33) == [(30, 31)]


def test_hole_is_filled_by_what_belongs_there(live: Timeline) -> None:
    """Late audio with a place fills the hole that was left for it, and joins its neighbours."""
    live.hear([heard(1, arrived=1, at=0), heard(1, arrived=3, at=2), heard(1, arrived=3.5, at=1)])
    assert by(live, 4) == [(0, 3)]
    assert live.end == 3 * RATE


def test_played_audio_is_queued_behind_what_plays(live: Timeline) -> None:
    """A reply synthesised faster than it plays is written as it plays, without a hole."""
    for n in range(3):
        live.play(audio(1), arrived=ns(1 + n * 0.1))
    assert by(live, 1.5) == [(1, 1.5)]
    assert by(live, 2.5) == [(1.5, 2.5)]
    live.play(audio(1), arrived=ns(2.6))
    assert by(live, 9) == [(2.5, 5)]


def test_played_audio_starts_when_handed_over(live: Timeline) -> None:
    """With nothing playing, a reply starts when it is handed to the speaker."""
    live.play(audio(1), arrived=ns(2))
    by(live, 4)
    live.play(audio(1), arrived=ns(7))
    assert by(live, 9) == [(7, 8)]


def test_unplayed_audio_is_taken_back(live: Timeline) -> None:
    """What was queued and not heard when the call ends is told as ranges, and is never written."""
    live.play(audio(2), arrived=0)
    assert by(live, 0.5) == [(0, 0.5)]
    assert live.drop_unplayed() == [(RATE // 2, 2 * RATE)]
    assert by(live, 9) == []


def test_played_audio_over_heard_audio_is_late(live: Timeline) -> None:
    """Played audio whose place was taken by then is told as late, and not silently left out."""
    live.play(audio(1), arrived=0)
    live.hear([heard(0.5, arrived=0.5, at=0.25)])
    written, late = live.release(ns(2))
    assert places(written) == [(0, 1)]
    assert late == [(RATE // 4, 3 * RATE // 4)]


def test_media_pace_appends_and_releases_at_once() -> None:
    """With pace `media` the audio moves time: arrivals mean nothing and nothing waits."""
    timeline = Timeline(RATE, live=False)
    timeline.hear([heard(10, arrived=0.001), heard(10, arrived=99)])
    timeline.play(audio(1), arrived=ns(500))
    timeline.play(audio(1), arrived=ns(600))
    assert by(timeline, 0) == [(0, 22)]
    assert timeline.end == 22 * RATE


def test_track_that_begins_later_is_closed_before() -> None:
    """A track declared in a later interval has nothing before that interval."""
    timeline = Timeline(RATE, live=False, start=30 * RATE)
    timeline.hear([heard(1, arrived=0)])
    assert by(timeline, 0) == [(30, 31)]


@given(rate=st.sampled_from(RATES) | st.integers(1000, 192_000), sample=st.integers(0, 10**11))
def test_cuts_are_inverse(rate: int, sample: int) -> None:
    """The sample at a sample's own instant is that sample, and an instant earlier it is the one before."""
    instant = instant_of(sample, rate)
    assert sample_at(instant, rate) == sample
    assert instant == 0 or sample_at(instant - 1, rate) == sample - 1


@given(rate=st.sampled_from(RATES), interval=st.integers(0, 100_000), seconds=st.integers(1, 300))
def test_cuts_fall_on_their_instants(rate: int, interval: int, seconds: int) -> None:
    """A cut at a whole second is at the same instant on every track, so a segment's first sample is in its interval."""
    cut = interval * seconds * SECOND
    assert instant_of(sample_at(cut, rate), rate) == cut


SMALL = 1000  # Hz: a sample is a millisecond
step = st.one_of(
    st.tuples(st.just("hear"), st.integers(1, 900), st.none() | st.integers(0, 6000)),
    st.tuples(st.just("play"), st.integers(1, 900), st.none()),
    st.tuples(st.just("pass"), st.integers(1, 1500), st.none()),
    st.tuples(st.just("close"), st.integers(0, 900), st.none()),
)


@examples(max_examples=150)
@given(steps=st.lists(step, max_size=25), live=st.booleans(), runs=st.booleans())
def test_every_sample_is_placed_once_or_told(
    steps: list[tuple[str, int, int | None]], *, live: bool, runs: bool
) -> None:
    """Whatever comes in whatever order: no place is written twice, and placed + late + taken back is what was given."""
    timeline = Timeline(SMALL, live=live)
    track: dict[int, int] = {}
    now = given_in = late = number = 0
    closed = 0

    def write(pieces: list[Piece]) -> None:
        for piece in pieces:
            for place, value in enumerate(piece.samples.tolist(), piece.start):
                assert place not in track, "written twice"
                assert place >= closed, "written into a sealed place"
                track[place] = value

    for kind, size, at in steps:
        if kind in {"hear", "play"}:
            samples = np.arange(number, number + size).astype(np.int16)
            number, given_in = (number + size) % 32_000, given_in + size
            if kind == "play":
                timeline.play(samples, arrived=now)
            else:
                halves = [samples[: size // 2], samples[size // 2 :]] if runs and at is None else [samples]
                chunks = [Chunk(half, None if at is None else at / 1000, now) for half in halves if len(half)]
                late += sum(end - first for first, end in timeline.hear(chunks))
        elif kind == "pass":
            now += size * SECOND // 1000
        pieces, refused = timeline.release(now)
        write(pieces)
        late += sum(end - first for first, end in refused)
        if kind == "close" and live:
            closed = max(closed, sample_at(now, SMALL) - size)
            timeline.close_until(closed)
    assert len(track) + late + timeline.waiting_bytes // 2 == given_in
    write(timeline.release_heard())
    unheard = sum(end - first for first, end in timeline.drop_unplayed())
    assert len(track) + late + unheard == given_in
    assert all(place < timeline.end for place in track)

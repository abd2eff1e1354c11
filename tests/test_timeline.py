"""Where audio lands on its track: placement, waiting, lateness and the cuts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle, pairwise
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edge_recorder.timeline import FOREVER, Audio, Heard, Timeline, instant_of, joined, sample_at
from edge_recorder.wav import Samples

RATE = 8000
SECOND = 1_000_000_000
RATES = (8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000)

Spans = list[tuple[float, float]]  # seconds: start, end


def ns(seconds: float) -> int:
    return round(seconds * SECOND)


def audio(seconds: float, value: int = 1000) -> Samples:
    return np.full(round(seconds * RATE), value, np.int16)


def speech(seconds: float) -> Audio:
    return cast("Audio", audio(seconds))


def heard(seconds: float, *, arrived: float, at: float | None = None) -> Heard:
    return Heard(audio(seconds).tobytes(), ns(arrived), at)


def stream(start: float, end: float, *, arrived: float | None = None) -> list[Heard]:
    """Return chunks of 20 ms of what was said from `start` to `end`, as they are said, or all at `arrived`."""
    ends = [start + (n + 1) * 0.02 for n in range(round((end - start) / 0.02))]
    return [heard(0.02, arrived=each if arrived is None else arrived + n * 0.0001) for n, each in enumerate(ends)]


def seconds(ranges: Iterable[tuple[int, int]]) -> Spans:
    return [(first / RATE, end / RATE) for first, end in joined(sorted(ranges))]


def by(timeline: Timeline, moment: float) -> Spans:
    """Return what `timeline` releases by then."""
    due = timeline.release(ns(moment))
    assert due.late == []
    return seconds((each.start, each.end) for each in due.pieces)


def hear(timeline: Timeline, *chunks: Heard, now: float | None = None) -> Spans:
    """Hand `chunks` over, at `now` or long after they arrived. Returns where they came too late."""
    latest = max((each.arrived for each in chunks), default=0)
    return seconds(timeline.hear(chunks, now=latest + SECOND if now is None else ns(now)))


@pytest.fixture
def live() -> Timeline:
    return Timeline(RATE, live=True)


@pytest.fixture
def media() -> Timeline:
    return Timeline(RATE, live=False)


# Heard, with its place.


def test_audio_at_a_place_is_put_there(live: Timeline) -> None:
    """Audio whose source knows its place goes there, whenever it arrives."""
    assert hear(live, heard(1, arrived=9, at=3.5)) == []
    assert by(live, 9) == [(3.5, 4.5)]


@pytest.mark.parametrize("off", [-0.040, -0.013, 0.0, 0.021, 0.040])
@pytest.mark.parametrize("apart", [False, True])
def test_audio_at_about_the_end_is_appended(live: Timeline, off: float, *, apart: bool) -> None:
    """A place within 40 ms of the track's end is jitter: nothing is lost, and no hole is made."""
    chunks = [heard(1, arrived=1, at=0), heard(1, arrived=2, at=1 + off)]
    for handover in [chunks[:1], chunks[1:]] if apart else [chunks]:
        assert hear(live, *handover) == []
    assert by(live, 2) == [(0, 2)]


def test_jitter_of_places_makes_neither_hole_nor_overlap(live: Timeline) -> None:
    """Ten minutes of chunks whose places are up to 15 ms off to either side are contiguous."""
    rng = np.random.default_rng(5)
    off = rng.uniform(-0.015, 0.015, 30_000)
    chunks = [heard(0.02, arrived=n * 0.02 + 0.1, at=max(0, n * 0.02 + off[n])) for n in range(30_000)]
    for n in range(0, 30_000, 20):
        assert hear(live, *chunks[n : n + 20]) == []
    (only,) = by(live, 601)
    assert only == pytest.approx((0, 600), abs=0.02)
    assert only[1] - only[0] == 600


def test_audio_beyond_jitter_leaves_a_hole(live: Timeline) -> None:
    """A place more than 40 ms behind the end is a silence, and is kept as one."""
    hear(live, heard(1, arrived=1, at=0), heard(1, arrived=2.1, at=1.05))
    assert by(live, 3) == [(0, 1), (1.05, 2.05)]


def test_hole_is_filled_by_what_belongs_there(live: Timeline) -> None:
    """Late audio with a place fills the hole that was left for it, and joins its neighbours."""
    hear(live, heard(1, arrived=1, at=0), heard(1, arrived=3, at=2), heard(1, arrived=3.5, at=1))
    assert by(live, 4) == [(0, 3)]
    assert live.end == 3 * RATE


def test_chunk_after_one_that_fills_a_hole_is_appended_to_it(live: Timeline) -> None:
    """Late audio that comes in chunks is contiguous too, though its places are a little off."""
    hear(live, heard(1, arrived=9, at=8))
    hear(live, heard(0.5, arrived=9, at=2), heard(0.5, arrived=9.1, at=2.49), heard(0.5, arrived=9.2, at=3.02))
    assert by(live, 10) == [(2, 3.5), (8, 9)]


def test_audio_for_a_taken_place_is_late(live: Timeline) -> None:
    """What comes for samples already placed is not written, and its range is told; the rest of it is kept."""
    hear(live, heard(1, arrived=1, at=1))
    assert hear(live, heard(2, arrived=2, at=0.5)) == [(1, 2)]
    assert by(live, 3) == [(0.5, 2.5)]


def test_audio_without_a_place_goes_behind_the_track_and_not_behind_what_filled_a_hole(media: Timeline) -> None:
    """After audio that filled a hole, audio without a place still goes to the track's end."""
    hear(media, heard(1, arrived=0, at=5))
    assert hear(media, heard(1, arrived=0, at=1), heard(1, arrived=0)) == []
    assert by(media, 0) == [(1, 2), (5, 7)]


# Heard, placed by its arrival.


def test_steady_stream_is_contiguous_despite_jitter(live: Timeline) -> None:
    """Chunks of 20 ms whose arrivals are up to 60 ms off leave no hole between them."""
    rng = np.random.default_rng(7)
    for n in range(0, 6000, 20):
        late = rng.uniform(0, 0.06, 20)
        assert hear(live, *(heard(0.02, arrived=(n + m + 1) * 0.02 + late[m]) for m in range(20))) == []
    (only,) = by(live, 121)
    assert only[1] - only[0] == 120
    assert only[0] < 0.06


def test_stream_a_little_faster_than_it_plays_is_not_held_back(live: Timeline) -> None:
    """After a silence a stream whose first chunk was delayed is no burst: it is written as it comes."""
    arrivals = [5.02 + 0.015, *(5.02 + n * 0.0199 for n in range(1, 200))]
    chunks = [heard(0.02, arrived=arrived) for arrived in arrivals]
    for n in range(0, 200, 20):
        now = arrivals[n + 19] + 0.001
        hear(live, *chunks[n : n + 20], now=now)
        assert not live.is_arriving
    ((start, end),) = by(live, 10)
    assert end - start == pytest.approx(4)
    assert start == pytest.approx(5, abs=0.021)


def test_audio_after_silence_ends_at_its_arrival(live: Timeline) -> None:
    """Without a place, what comes after a silence was being spoken until it arrived."""
    hear(live, heard(1, arrived=1))
    hear(live, heard(0.5, arrived=6))
    assert by(live, 6) == [(0, 1), (5.5, 6)]


def test_two_runs_in_one_handover_are_placed_apart(live: Timeline) -> None:
    """Chunks taken together that did not arrive together keep the silence between them."""
    hear(live, heard(0.2, arrived=0.2), heard(0.2, arrived=3))
    assert by(live, 3) == [(0, 0.2), (2.8, 3)]


def test_chunk_long_after_a_burst_does_not_move_it(live: Timeline) -> None:
    """A burst that is taken late, with a chunk that came seconds after it, still ends at its own arrival."""
    hear(live, heard(4, arrived=14), heard(0.02, arrived=17), now=18)
    assert by(live, 18) == [(10, 14), (16.98, 17)]


def test_burst_fills_part_of_a_silence_backwards(live: Timeline) -> None:
    """A burst shorter than the silence before it ends at its arrival, as one run."""
    hear(live, heard(1, arrived=1))
    hear(live, heard(0.5, arrived=6), heard(0.5, arrived=6.01), heard(0.5, arrived=6.02))
    assert by(live, 7) == [(0, 1), (4.52, 6.02)]


def test_burst_that_is_not_over_is_held_back(live: Timeline) -> None:
    """What comes after a silence waits for 50 ms, as more of its burst would move it."""
    hear(live, heard(1, arrived=1))
    hear(live, heard(0.5, arrived=6), now=6.049)
    assert live.is_arriving
    assert by(live, 6.049) == [(0, 1)]
    hear(live, now=6.05)
    assert not live.is_arriving
    assert by(live, 6.05) == [(5.5, 6)]


def test_burst_without_end_is_not_held_back_for_ever(live: Timeline) -> None:
    """A source that for ever delivers faster than it plays is written after a second at the latest."""
    hear(live, heard(1, arrived=1))
    n = 0
    while n == 0 or live.is_arriving:  # 2.5 times as fast as it plays, half a minute behind
        arrived = 31 + n * 0.008
        hear(live, heard(0.02, arrived=arrived), now=arrived)
        n += 1
    assert n * 0.008 == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("cuts", [(), (1,), (100,), (249,), (3, 120), (83, 166)])
def test_stall_and_burst_keep_their_length(live: Timeline, cuts: tuple[int, ...]) -> None:
    """A network that stalls for 5 s and then delivers 5 s at once makes 5 s of audio, however often it is taken."""
    hear(live, *stream(0, 1))
    burst = stream(1, 6, arrived=6)
    for first, end in pairwise([0, *cuts, 250]):
        hear(live, *burst[first:end], now=burst[end - 1].arrived / SECOND)
    hear(live, *stream(6, 7))
    assert by(live, 7) == [(0, 7)]


stall = st.tuples(st.integers(50, 400), st.integers(5, 300))  # its first chunk, of 15 s, and how many


@examples(max_examples=30, deadline=None)
@given(stalls=st.lists(stall, max_size=4), takes=st.lists(st.sampled_from((0.05, 0.4, 2.0)), min_size=1, max_size=9))
def test_call_with_stalls_is_as_long_as_it_was(stalls: list[tuple[int, int]], takes: list[float]) -> None:
    """A minute with stalls and bursts, taken at any moments, is a minute of audio without a hole."""
    timeline = Timeline(RATE, live=True)
    arrivals = (np.arange(3000) + 1) * 0.02
    for n, (first, frames) in enumerate(stalls):
        arrivals[n * 750 + first : n * 750 + first + frames] = arrivals[n * 750 + first + frames]
    arrivals += np.arange(3000) * 1e-7
    n, now, take = 0, 0.0, cycle(takes)
    while n < 3000:
        now += next(take)
        taken = int(np.searchsorted(arrivals, now, "right"))
        hear(timeline, *(heard(0.02, arrived=each) for each in arrivals[n:taken]), now=now)
        n = taken
    hear(timeline, now=now + 1)
    assert by(timeline, now + 1) == [(0, 60)]


def test_call_with_many_stalls_does_not_grow(live: Timeline) -> None:
    """863 s with a stall of 5 s and its burst each 50 s are 863 s."""
    for start in range(0, 850, 50):
        hear(live, *stream(start, start + 45))
        hear(live, *stream(start + 45, start + 50, arrived=start + 50))
    hear(live, *stream(850, 863))
    assert by(live, 863) == [(0, 863)]


def test_empty_chunk_is_nowhere(live: Timeline) -> None:
    """A chunk without samples moves nothing."""
    hear(live, heard(1, arrived=1))
    hear(live, heard(0, arrived=5), heard(0, arrived=5, at=9))
    assert live.end == RATE
    assert by(live, 9) == [(0, 1)]


def test_audio_ahead_of_time_waits(live: Timeline) -> None:
    """Heard audio more than 0.5 s ahead of the clock waits until its time comes."""
    hear(live, heard(3, arrived=0))
    assert by(live, 0) == [(0, 0.5)]
    assert live.waiting == 2.5 * RATE
    assert by(live, 1) == [(0.5, 1.5)]
    assert seconds((each.start, each.end) for each in live.release_heard(ns(1)).pieces) == [(1.5, 3)]
    assert live.waiting == 0


def test_audio_ahead_of_time_does_not_hold_up_what_came_later(live: Timeline) -> None:
    """What is placed before audio that waits is released when its own time has come."""
    hear(live, heard(1, arrived=0, at=7))
    hear(live, heard(1, arrived=1, at=0))
    assert by(live, 1) == [(0, 1)]
    assert by(live, 8) == [(7, 8)]


def test_end_of_call_releases_what_was_held_back(live: Timeline) -> None:
    """A burst that was held back when the call ended is all there."""
    hear(live, heard(1, arrived=3), now=3)
    due = live.release_heard(ns(3))
    assert seconds((each.start, each.end) for each in due.pieces) == [(2, 3)]
    assert not live.is_arriving


# Muted.


def test_muted_places_are_not_written(live: Timeline) -> None:
    """Nothing of what lies in a pause is given out, and what comes for it later is late."""
    live.mute(RATE)
    live.unmute(2 * RATE)
    hear(live, heard(3, arrived=3, at=0))
    assert by(live, 3) == [(0, 1), (2, 3)]
    assert hear(live, heard(1, arrived=4, at=1)) == [(1, 2)]


def test_muted_audio_that_waited_is_not_written(live: Timeline) -> None:
    """A pause that begins while audio waits for its time covers that too, heard or played."""
    hear(live, heard(4, arrived=0, at=0))
    by(live, 0)
    live.mute(RATE)
    assert by(live, 5) == [(0.5, 1)]
    live.unmute(6 * RATE)
    live.play(speech(3), arrived=ns(5))
    assert by(live, 9) == [(6, 8)]


def test_muted_inserts_are_not_written(live: Timeline) -> None:
    """A turn handed over finished is cut by position like all else."""
    live.mute(RATE)
    live.unmute(2 * RATE)
    pieces, late = live.insert(0, audio(3))
    assert (seconds((each.start, each.end) for each in pieces), late) == ([(0, 1), (2, 3)], [])


def test_muted_samples_leave_memory(live: Timeline) -> None:
    """What is kept of audio that was cut is a copy, so that no view keeps the rest in memory."""
    live.mute(RATE)
    hear(live, heard(2, arrived=2, at=0))
    (kept,) = live.release(ns(2)).pieces
    assert isinstance(kept.audio, np.ndarray)
    assert kept.audio.base is None


def test_pauses_may_follow_each_other(live: Timeline) -> None:
    """Each of several pauses is cut out."""
    for n in range(1, 6, 2):
        live.mute(n * RATE)
        live.unmute((n + 1) * RATE)
    hear(live, heard(7, arrived=7, at=0))
    assert by(live, 7) == [(0, 1), (2, 3), (4, 5), (6, 7)]


# Inserted, skipped, pace `media`.


def test_insert_takes_free_places_at_once(live: Timeline) -> None:
    """A finished turn is given out without waiting, and is late where something is."""
    hear(live, heard(1, arrived=2, at=1))
    pieces, late = live.insert(round(0.5 * RATE), audio(2))
    assert seconds((each.start, each.end) for each in pieces) == [(0.5, 1), (2, 2.5)]
    assert seconds(late) == [(1, 2)]


def test_media_pace_appends_and_releases_at_once(media: Timeline) -> None:
    """With pace `media` the audio moves time: arrivals mean nothing and nothing waits."""
    hear(media, heard(10, arrived=0.001), heard(10, arrived=99))
    media.play(speech(1), arrived=ns(500))
    media.halt(ns(501))
    media.play(speech(1), arrived=ns(600))
    assert by(media, 0) == [(0, 22)]
    assert media.end == 22 * RATE


def test_skipped_audio_takes_its_time(media: Timeline) -> None:
    """With pace `media`, audio that may not be kept moves time all the same."""
    hear(media, heard(1, arrived=0))
    assert media.skip(2 * RATE) == RATE
    hear(media, heard(1, arrived=0))
    assert by(media, 0) == [(0, 1), (3, 4)]


def test_track_that_begins_later_has_nothing_before() -> None:
    """A track declared in a later interval goes on from there."""
    timeline = Timeline(RATE, live=False, start=30 * RATE)
    hear(timeline, heard(1, arrived=0))
    assert by(timeline, 0) == [(30, 31)]


# Cuts.


@given(rate=st.sampled_from(RATES) | st.integers(1000, 192_000), sample=st.integers(0, 10**11))
def test_cuts_are_inverse(rate: int, sample: int) -> None:
    """The sample at a sample's own instant is that sample, and an instant earlier it is the one before."""
    instant = instant_of(sample, rate)
    assert sample_at(instant, rate) == sample
    assert instant == 0 or sample_at(instant - 1, rate) == sample - 1


@given(rate=st.sampled_from(RATES), interval=st.integers(0, 100_000), length=st.integers(1, 300))
def test_cuts_fall_on_their_instants(rate: int, interval: int, length: int) -> None:
    """A cut at a whole second is at the same instant on every track, so a segment's first sample is in its interval."""
    cut = interval * length * SECOND
    assert instant_of(sample_at(cut, rate), rate) == cut


def test_cuts_between_samples_do_not_add_up() -> None:
    """At 22,050 Hz, cuts each 0.1 s are never a sample off, after eight hours either."""
    lengths = {sample_at((n + 1) * SECOND // 10, 22_050) - sample_at(n * SECOND // 10, 22_050) for n in range(288_000)}
    assert lengths == {2205}
    thirds = [sample_at(n * SECOND // 3, 22_050) for n in range(86_401)]
    assert all(abs(sample - n * 7350) <= 1 for n, sample in enumerate(thirds))
    assert sample_at(10**9 * SECOND, 192_000) < FOREVER

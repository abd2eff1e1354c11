"""Where a call is cut, by the clock or by its turns: long calls, short ones, late audio, tracks that come and go."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from stage import SECOND, START, Stage, noise, whole

from edge_recorder import mixing, wav

RATE = 8000
TRACKS = {"user": RATE, "assistant": RATE}
TURNS = {"segmentation": "turn", "segment_seconds": 30}
DAY = 86_400


# By the clock.


def test_all_tracks_are_cut_at_the_same_instants(data_dir: Path) -> None:
    """Tracks of any rates are cut together, the last at the call's end, and the mix is made of all of them."""
    tracks = {"user": RATE, "assistant": 24_000, "phone": 11_025}
    with Stage(data_dir, tracks, capture={"segment_seconds": 2}) as stage:
        stage.call.play("assistant", noise(24_000 * 4))
        stage.speak("user", 0.5, noise(RATE * 4, 1))
        stage.go(5.25)
        recording = stage.end()
    for name, rate in [*tracks.items(), ("mixed", 24_000)]:
        assert recording.ranges(name) == [(n * rate, min(n + 2, 5.25) * rate // 1) for n in (0, 2, 4)]
    for segment, samples in recording.of("mixed"):
        assert np.array_equal(samples, recording.mix(24_000, segment.first_sample, segment.frames))


def test_a_segment_is_sealed_late_window_after_its_cut(data_dir: Path) -> None:
    """A segment stays open for `late_window` after its cut, and then its row comes within some rounds."""
    with Stage(data_dir, {"user": RATE}, step=0.25) as stage:
        stage.speak("user", 0, noise(RATE))
        stage.go(2.9)
        assert stage.tape.on_disk().segments == 0
        stage.go(4)
        assert stage.tape.on_disk().segments == 2  # with its mix
        stage.end()


def test_late_audio_gets_segments_of_its_own(data_dir: Path) -> None:
    """What comes for free places of sealed segments is in further ones, and in mixes that hold nothing else."""
    early, late = noise(RATE * 2), noise(RATE, 1)
    with Stage(data_dir, TRACKS) as stage:
        stage.speak("user", 0, early)
        stage.go(6)
        stage.call.write("user", late, at=2.5)
        stage.call.write("assistant", late, at=0.5)
        stage.go(10)
        recording = stage.end()
    assert np.array_equal(recording.track("user"), whole(RATE * 10, (0, early), (RATE * 5 // 2, late)))
    assert np.array_equal(recording.track("assistant"), whole(RATE * 10, (RATE // 2, late)))
    further = [(0.5, 1.5), (2.5, 3.5)]
    assert set(further) <= set(recording.seconds("mixed"))
    for segment, samples in recording.of("mixed"):
        place = (segment.first_sample / RATE, (segment.first_sample + segment.frames) / RATE)
        if place in further:
            assert np.array_equal(samples, late)
    assert sorted({*recording.seconds("user")} - {(0.5, 1.5), (2.5, 3.5)}) == [(n, n + 1) for n in range(10)]
    assert recording.spans == []


def test_late_audio_at_the_start_of_a_silent_segment(data_dir: Path) -> None:
    """A further segment that begins where a sealed silent one does takes nothing from it."""
    late = noise(RATE)
    with Stage(data_dir, TRACKS) as stage:
        stage.go(6)
        stage.call.write("user", late, at=1.0)
        stage.go(6.5)
        recording = stage.end()
    assert recording.seconds("user").count((1, 2)) == 2
    assert np.array_equal(recording.track("user"), whole(round(RATE * 6.5), (RATE, late)))
    assert np.array_equal(recording.track("mixed"), recording.track("user"))


@pytest.mark.parametrize("segmentation", ["interval", "turn"])
def test_a_call_over_midnight_stays_on_the_day_of_its_start(data_dir: Path, segmentation: str) -> None:
    """All files of a call are in the directory of its start's date (UTC), also those made on the next day."""
    midnight = (START // SECOND * 1000 // DAY + 1) * DAY * 1_000_000
    said = noise(RATE * 4)
    with Stage(data_dir, {"user": RATE}, started_at=midnight - 2_000_000, capture={"segmentation": segmentation}) as st:
        st.speak("user", 0, said)
        st.go(8)
        recording = st.end()
    assert np.array_equal(recording.track("user")[: len(said)], said)
    assert len(list((data_dir / "spool").glob("*/*/*/*"))) == 1
    assert recording.of("user")[-1][0].started_at > midnight


@pytest.mark.parametrize("segmentation", ["interval", "turn"])
def test_eight_hours(data_dir: Path, segmentation: str) -> None:
    """A call of eight hours has each of its minutes where it was said, and costs seconds."""
    began = time.process_time()
    said = noise(RATE)
    capture = {"segment_seconds": 300, "segmentation": segmentation}
    with Stage(data_dir, {"user": RATE}, step=15, capture=capture) as stage:
        for minute in range(480):
            stage.go(minute * 60 + 31)
            stage.call.write("user", said)
            stage.go(minute * 60 + 45.1)
        stage.go(8 * 3600)
        recording = stage.end()
    assert recording.call.duration_s == 8 * 3600
    for segment, samples in recording.of("user"):
        spoken = np.flatnonzero(samples.reshape(-1, RATE).any(axis=1)) + segment.first_sample // RATE
        assert (spoken % 60 == 30).all()
    assert sum(int(np.count_nonzero(samples)) for _, samples in recording.of("user")) == 480 * RATE
    assert time.process_time() - began < 30  # of which half is this test's own reading


@pytest.mark.parametrize("segmentation", ["interval", "turn"])
@pytest.mark.parametrize("seconds", [0, 0.01])
def test_a_call_that_is_over_at_once(data_dir: Path, seconds: float, segmentation: str) -> None:
    """A call of ten milliseconds, or of none, is recorded, sealed and ended like any other."""
    said = noise(round(seconds * RATE))
    with Stage(data_dir, TRACKS, capture={"segmentation": segmentation}) as stage:
        stage.go(seconds)
        stage.call.write("user", said)
        recording = stage.end()
    assert recording.call.duration_s == seconds
    assert np.array_equal(recording.track("user"), said)
    assert len(recording.of("assistant")) == (1 if seconds and segmentation == "interval" else 0)


def test_tracks_that_are_silent_or_late(data_dir: Path) -> None:
    """A declared track that never speaks is as long as the call; one declared late begins with the open segment."""
    said = noise(RATE)
    with Stage(data_dir, TRACKS) as stage:
        stage.speak("user", 0, said)
        stage.go(7.3)
        stage.call.write("second", said, rate=RATE)
        stage.go(9)
        recording = stage.end()
    assert len(recording.track("assistant")) == RATE * 9
    assert not recording.track("assistant").any()
    assert all(segment.peak_dbfs is None for segment, _ in recording.of("assistant"))
    assert recording.rates()["second"] == RATE
    assert recording.ranges("second")[0][0] == RATE * 5  # the last that was not sealed by then
    assert np.array_equal(recording.track("second"), whole(RATE * 9, (round(RATE * 6.3), said)))
    assert np.array_equal(recording.track("mixed")[RATE * 5 :], recording.track("second")[RATE * 5 :])


@pytest.mark.parametrize("segmentation", ["interval", "turn"])
def test_ten_tracks(data_dir: Path, segmentation: str) -> None:
    """Ten voices of ten rates are kept apart, each sample at its place, and summed in the mix."""
    rates = [8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000]
    tracks = {f"voice_{n}": rate for n, rate in enumerate(rates)}
    with Stage(data_dir, tracks, capture={"segmentation": segmentation, "mixed_rate": 16_000}) as stage:
        for second in range(5):
            stage.go(second + 1)
            for n, (name, rate) in enumerate(tracks.items()):
                stage.call.write(name, noise(rate, 10 * second + n, 300))
        recording = stage.end()
    for n, (name, rate) in enumerate(tracks.items()):
        assert np.array_equal(recording.track(name), np.concatenate([noise(rate, 10 * s + n, 300) for s in range(5)]))
    if segmentation == "interval":
        for segment, samples in recording.of("mixed"):
            assert np.array_equal(samples, recording.mix(16_000, segment.first_sample, segment.frames))
        apart = recording.track("mixed").astype(int) - recording.mix(16_000, 0, 16_000 * 5)
        assert np.abs(apart).max() <= 2  # made in one go it is the same but for rounding: no cut can be heard


# By turns.


def test_turns_move_the_cuts(data_dir: Path) -> None:
    """Each marked turn is a segment; what is said outside turns is kept too; and silence makes no file."""
    said = noise(RATE * 8)
    with Stage(data_dir, TRACKS, capture=TURNS) as stage:
        stage.speak("user", 0, said[:RATE])
        stage.go(3)
        stage.call.start_turn("user")
        stage.speak("user", 3, said[RATE : RATE * 3])
        stage.call.end_turn("user")
        stage.go(9)
        stage.call.start_turn("user", at=6.5)
        stage.call.write("user", said[RATE * 3 : RATE * 4], at=6.5)
        stage.call.end_turn("user", at=7.5)
        stage.go(20)
        recording = stage.end()
    assert recording.seconds("user") == [(0, 3), (3, 5), (6.5, 7.5)]
    expected = whole(RATE * 15 // 2, (0, said[:RATE]), (RATE * 3, said[RATE : RATE * 3]))
    expected[round(RATE * 6.5) :] = said[RATE * 3 : RATE * 4]
    assert np.array_equal(recording.track("user"), expected)
    assert recording.spans_of("turn", "user") == recording.seconds("mixed") == [(3, 5), (6.5, 7.5)]
    assert recording.of("assistant") == []


def test_a_turn_has_the_mix_of_all_tracks(data_dir: Path) -> None:
    """A turn's mixed segment has its range, and all that any track had by `late_window` after it."""
    tracks = {"user": RATE, "assistant": 24_000}
    with Stage(data_dir, tracks, capture=TURNS) as stage:
        stage.go(1)
        stage.call.play("assistant", noise(24_000 * 6, 1))
        stage.call.start_turn("user")
        stage.speak("user", 1.5, noise(RATE * 2))
        stage.call.end_turn("user", at=3.5)
        stage.go(12)
        recording = stage.end()
    ((segment, samples),) = recording.of("mixed")
    assert (segment.first_sample, segment.frames) == (24_000, 60_000)
    assert np.array_equal(samples, recording.mix(24_000, segment.first_sample, segment.frames))


def test_finished_turns_however_late(data_dir: Path) -> None:
    """A turn handed over finished goes to its `at`, or ends when it came, each in a segment and a mix of its own."""
    said = noise(RATE * 3)
    with Stage(data_dir, TRACKS, capture=TURNS) as stage:
        stage.go(10)
        stage.call.add_turn("user", said[:RATE], at=8.0)
        stage.go(40)
        stage.call.add_turn("assistant", said[RATE:])
        stage.call.add_turn("user", said[RATE:], at=2.0)
        stage.go(41)
        recording = stage.end()
    assert recording.seconds("user") == [(2, 4), (8, 9)]
    assert recording.seconds("assistant") == [(38, 40)]
    assert recording.seconds("mixed") == [(2, 4), (8, 9), (38, 40)]
    assert [np.array_equal(s, said[RATE:]) for _, s in recording.of("mixed")] == [True, False, True]
    assert recording.spans_of("turn", "user") == [(2, 4), (8, 9)]


def test_turns_that_overlap(data_dir: Path) -> None:
    """Where both voices speak at once each keeps its turn, and both mixes hold both voices."""
    user, assistant = noise(RATE * 4), noise(RATE * 4, 1)
    with Stage(data_dir, TRACKS, capture=TURNS) as stage:
        stage.go(10)
        stage.call.add_turn("user", user, at=2.0)
        stage.call.add_turn("assistant", assistant, at=4.0)
        stage.call.add_turn("user", user[:RATE], at=5.0)  # the second half of it is late: it was said already
        stage.go(13)
        recording = stage.end()
    assert np.array_equal(recording.track("user"), whole(RATE * 6, (RATE * 2, user)))
    assert np.array_equal(recording.track("assistant"), whole(RATE * 8, (RATE * 4, assistant)))
    assert recording.spans_of("late", "user") == [(5, 6)]
    first, second = (samples for segment, samples in recording.of("mixed") if segment.frames == RATE * 4)
    assert np.array_equal(first[RATE * 2 :], mixing.add([user[RATE * 2 :], assistant[: RATE * 2]]))
    assert np.array_equal(second[: RATE * 2], first[RATE * 2 :])
    assert np.array_equal(second[RATE * 2 :], assistant[RATE * 2 :])


def test_a_turn_that_is_longer_than_a_segment(data_dir: Path) -> None:
    """A turn of 70 s is three segments of 30 s at most, and one span; without marks a track is cut so too."""
    said = noise(RATE * 70)
    with Stage(data_dir, TRACKS, capture=TURNS) as stage:
        stage.go(5)
        stage.call.start_turn("user")
        for second in range(70):
            stage.go(second + 6)
            for track in TRACKS:
                stage.call.write(track, said[second * RATE : (second + 1) * RATE])
        stage.call.end_turn("user")
        stage.go(80)
        recording = stage.end()
    assert recording.seconds("user") == [(5, 35), (35, 65), (65, 75)]
    assert recording.seconds("assistant") == [(0, 30), (30, 60), (60, 80)]
    for track in TRACKS:
        assert np.array_equal(recording.track(track)[RATE * 5 : RATE * 75], said)
    assert recording.spans_of("turn", "user") == recording.seconds("mixed") == [(5, 75)]


def test_turn_marks_in_a_call_cut_by_the_clock(data_dir: Path) -> None:
    """Where the clock cuts, turns are spans, and move no cut."""
    with Stage(data_dir, TRACKS) as stage:
        stage.go(0.5)
        stage.call.start_turn("user")
        stage.go(1.7)
        stage.call.start_turn("user")  # which ends the first
        stage.go(2)
        recording = stage.end()
    assert recording.spans_of("turn", "user") == [(0.5, 1.7), (1.7, 2)]
    assert recording.seconds("user") == recording.seconds("mixed") == [(0, 1), (1, 2)]


def test_the_incident(data_dir: Path) -> None:
    """740 turns of the user and 27 of the assistant are as many segments and 767 mixed ones, and none is lost."""
    said = noise(80)
    with Stage(data_dir, TRACKS, step=2, capture=TURNS) as stage:
        for n in range(740):
            stage.go((n + 1) / 10)
            stage.call.add_turn("user", said)
            if n % 28 == 27 or n == 739:
                stage.call.add_turn("assistant", said)
        recording = stage.end()
    assert [len(recording.of(track)) for track in ("user", "assistant", "mixed")] == [740, 27, 767]
    assert all(np.array_equal(samples, said) for _, samples in recording.of("user"))
    assert sum(each.kind == "turn" for each in recording.spans) == 767


def test_turns_paced_by_the_audio(data_dir: Path) -> None:
    """With pace `media` finished turns follow one another, and marks cut where the track has come to."""
    said = noise(RATE * 6)
    with Stage(data_dir, {"user": RATE}, pace="media", capture=TURNS) as stage:
        stage.call.add_turn("user", said[:RATE])
        stage.call.start_turn("user")
        stage.call.write("user", said[RATE : RATE * 4])
        stage.call.end_turn("user")
        stage.call.write("user", said[RATE * 4 :])
        recording = stage.end()
    assert recording.seconds("user") == [(0, 1), (1, 4), (4, 6)]
    assert np.array_equal(recording.track("user"), said)
    assert recording.seconds("mixed") == [(0, 1), (1, 4)]


def test_sealed_files_are_what_a_player_expects(data_dir: Path) -> None:
    """The header of each sealed file says its full length, however it was cut."""
    with Stage(data_dir, TRACKS, capture=TURNS) as stage:
        stage.speak("user", 0.5, noise(RATE))
        stage.go(4)
        stage.call.add_turn("user", noise(RATE))
        recording = stage.end()
    for path in recording.directory.glob("*.wav"):
        data = path.read_bytes()
        assert int.from_bytes(data[508:512], "little") == len(data) - wav.HEADER_BYTES

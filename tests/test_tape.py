"""What other recorders got wrong, each as a call from its first sample to its last file; and what has to wait."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disks import open_files
from stage import SECOND, Samples, Stage, noise, whole

from edge_recorder import mixing, wav
from edge_recorder.resampling import resampled

RATE = 8000
TRACKS = {"user": RATE, "assistant": RATE}


def tone(seconds: float, rate: int, *, hertz: float = 440.0, loudness: float = 8000.0) -> Samples:
    return np.rint(loudness * np.sin(np.arange(round(seconds * rate)) * (2 * np.pi * hertz / rate))).astype(np.int16)


def close_to(held: Samples, expected: Samples, *, by: int = 2) -> bool:
    return len(held) == len(expected) and bool((np.abs(held.astype(int) - expected) <= by).all())


# Handed to the speaker, and never heard.


@pytest.mark.parametrize(
    ("interruption", "heard"),
    [({}, 2.5), ({"at": 3.0}, 2.0), ({"played": 1.8}, 1.8), ({"at": 9.0}, 5.0), ({"played": 99.0}, 5.0)],
)
def test_what_the_caller_did_not_hear_is_not_recorded(
    data_dir: Path, interruption: dict[str, float], heard: float
) -> None:
    """Of five seconds handed to the speaker at once, what the user spoke over is not on the track or in the mix."""
    said = noise(RATE * 5)
    with Stage(data_dir, TRACKS, capture={"segment_seconds": 30}) as stage:
        stage.go(1)
        stage.call.play("assistant", said)
        stage.go(3.5)
        stage.call.interrupt("assistant", **interruption)
        stage.go(8)
        recording = stage.end()
    kept = said[: round(heard * RATE)]
    for track in ("assistant", "mixed"):
        assert np.array_equal(recording.track(track), whole(RATE * 8, (RATE, kept)))
    unheard = [(1 + heard, 6)] if heard < 5 else []
    assert np.allclose(recording.spans_of("unheard", "assistant"), unheard)


def test_an_answer_begins_where_its_interrupted_one_ended(data_dir: Path) -> None:
    """What is said after an interruption is where it was heard, at once or later, and not behind what was dropped."""
    first, second, third = noise(RATE * 20), noise(RATE, 1), noise(RATE, 2)
    with Stage(data_dir, TRACKS) as stage:
        stage.call.play("assistant", first)
        stage.go(2)
        stage.call.interrupt("assistant")
        stage.call.play("assistant", second)
        stage.go(5)
        stage.call.play("assistant", third)
        stage.go(7)
        recording = stage.end()
    expected = whole(RATE * 7, (0, first[: RATE * 2]), (RATE * 2, second), (RATE * 5, third))
    assert np.array_equal(recording.track("assistant"), expected)


def test_played_counts_within_the_utterance(data_dir: Path) -> None:
    """`played` counts from the last silence, interruption or start of a turn, not from the call's start."""
    said = noise(RATE * 20)
    with Stage(data_dir, TRACKS, capture={"segment_seconds": 30}) as stage:
        stage.call.play("assistant", said[: RATE * 2])
        stage.go(5)
        stage.call.play("assistant", said[: RATE * 4])
        stage.go(7)
        stage.call.interrupt("assistant", played=1.5)  # until 6.5
        stage.call.play("assistant", said[: RATE * 4])
        stage.go(8)
        stage.call.start_turn("assistant")
        stage.go(10.9)
        recording = stage.end()
    held = recording.track("assistant")
    assert np.array_equal(held[: RATE * 2], said[: RATE * 2])
    assert np.array_equal(held[RATE * 5 : round(RATE * 6.5)], said[: round(RATE * 1.5)])
    assert not held[RATE * 2 : RATE * 5].any()


def test_an_interruption_does_not_reach_sealed_files(data_dir: Path) -> None:
    """What is sealed stays as it is: its places are not given away again, and what comes for them is late."""
    said, other = noise(RATE * 10), noise(RATE, 1)
    with Stage(data_dir, TRACKS) as stage:
        stage.call.play("assistant", said)
        stage.go(8)
        stage.call.interrupt("assistant", at=2.0)
        stage.call.write("assistant", other, at=3.0)
        stage.go(10)
        recording = stage.end()
    assert np.array_equal(recording.track("assistant"), whole(RATE * 10, (0, said[: RATE * 6])))
    assert recording.spans_of("unheard", "assistant") == [(2, 10)]
    assert recording.spans_of("late", "assistant") == [(3, 4)]


def test_an_interruption_where_audio_moves_time(data_dir: Path) -> None:
    """With pace `media` too an interruption leaves what is sealed, silences the rest, and the call comes to its end."""
    said = noise(RATE * 10)
    with Stage(data_dir, {"assistant": RATE}, pace="media") as stage:
        stage.call.play("assistant", said)
        stage.go(3)
        stage.call.interrupt("assistant", played=4.0)
        recording = stage.end()
    assert recording.call.duration_s == 10
    assert np.array_equal(recording.track("assistant"), whole(RATE * 10, (0, said[: RATE * 8])))
    assert recording.spans_of("unheard", "assistant") == [(4, 10)]


def test_an_interruption_where_audio_moves_time_right_after_more_was_played(data_dir: Path) -> None:
    """With pace `media` the call comes to its end too where what is taken back is sealed, open, and in no file yet."""
    said = noise(RATE * 11)
    with Stage(data_dir, {"assistant": RATE}, pace="media") as stage:
        stage.call.play("assistant", said[: RATE * 10])
        stage.go(3)
        stage.call.play("assistant", said[RATE * 10 :])
        stage.call.interrupt("assistant", played=4.0)
        recording = stage.end()
    assert recording.call.duration_s == 11
    assert np.array_equal(recording.track("assistant"), whole(RATE * 11, (0, said[: RATE * 8])))
    assert recording.spans_of("unheard", "assistant") == [(4, 11)]


def test_what_is_played_and_written_takes_turns_where_audio_moves_time(data_dir: Path) -> None:
    """With pace `media` what is played on a track is before what is written on it later."""
    said = noise(RATE * 3)
    with Stage(data_dir, {"assistant": RATE}, pace="media") as stage:
        stage.call.play("assistant", said[:RATE])
        stage.call.write("assistant", said[RATE : RATE * 2])
        stage.call.play("assistant", said[RATE * 2 :])
        recording = stage.end()
    assert np.array_equal(recording.track("assistant"), said)


def test_the_call_ends_with_a_full_queue(data_dir: Path) -> None:
    """What still waited to be said when the call ended was never heard: a span says so, and the call is not longer."""
    said = noise(RATE * 20)
    with Stage(data_dir, TRACKS) as stage:
        stage.call.play("assistant", said)
        stage.go(2.25)
        recording = stage.end()
    assert recording.call.duration_s == 2.25
    assert np.array_equal(recording.track("assistant"), said[: round(2.25 * RATE)])
    assert recording.spans_of("unheard", "assistant") == [(2.25, 20)]


def test_a_speaker_that_stands_still(data_dir: Path) -> None:
    """While playback is paused nothing is said, and what waited goes on where it stood."""
    said = noise(RATE * 4)
    with Stage(data_dir, TRACKS) as stage:
        stage.call.play("assistant", said)
        stage.go(1.5)
        stage.call.pause_playback("assistant")
        stage.go(4)
        stage.call.resume_playback("assistant")
        stage.go(8)
        recording = stage.end()
    half = round(1.5 * RATE)
    assert np.array_equal(recording.track("assistant"), whole(RATE * 8, (0, said[:half]), (RATE * 4, said[half:])))


def test_a_pause_takes_back_what_was_ahead_of_its_time(data_dir: Path) -> None:
    """Heard audio that is a little ahead of the clock is cut where a pause begins, written already or not."""
    said = noise(RATE)
    with Stage(data_dir, {"user": RATE}, step=0.25, capture={"segment_seconds": 30}) as stage:
        stage.go(1)
        stage.call.write("user", said, at=1.2)
        stage.go(1.3)  # up to 1.75 is written
        stage.call.pause("card")
        stage.go(2)
        stage.call.resume()
        stage.go(4)
        recording = stage.end()
    assert np.array_equal(recording.track("user"), whole(RATE * 4, (RATE * 12 // 10, said[: RATE // 10])))
    assert recording.spans_of("paused") == [(1.3, 2)]


# Silence, and the tracks beside each other.


@pytest.mark.parametrize("at", [4.0, None])
def test_a_pause_holds_for_a_track_that_comes_after_it(data_dir: Path, at: float | None) -> None:
    """What is first heard of a track after a pause, and was said within it, is not kept."""
    said = noise(RATE * 3)
    with Stage(data_dir, {"user": RATE}, capture={"segment_seconds": 30}) as stage:
        stage.go(1)
        stage.call.pause("card")
        stage.go(5)
        stage.call.resume()
        stage.go(7)
        stage.call.write("agent", said, rate=RATE, at=at)
        stage.go(9)
        recording = stage.end()
    assert np.array_equal(recording.track("agent")[: RATE * 7], whole(RATE * 7, (RATE * 5, said[RATE : RATE * 3])))


def test_silence_before_the_second_speaker_stays(data_dir: Path) -> None:
    """A voice that is first heard after ten seconds is there at ten seconds, on its track and in the mix."""
    user, assistant = noise(RATE), noise(RATE, 1)
    with Stage(data_dir, {"user": RATE}) as stage:
        stage.speak("user", 0, user)
        stage.go(10)
        stage.call.play("assistant", assistant, rate=RATE)
        stage.go(15)
        stage.call.write("user", user[:160], at=14.5)
        recording = stage.end()
    assert np.array_equal(recording.track("assistant")[-RATE * 5 :], whole(RATE * 5, (0, assistant)))
    expected = whole(RATE * 15, (0, user), (RATE * 10, assistant), (round(RATE * 14.5), user[:160]))
    assert np.array_equal(recording.track("mixed"), expected)
    assert recording.seconds("user")[-1][1] == recording.seconds("assistant")[-1][1] == 15


def test_tracks_do_not_pad_each_other(data_dir: Path) -> None:
    """However differently two voices come, neither moves the other: after a minute both are where they were said."""
    tracks = {"user": RATE, "assistant": 24_000}
    user = noise(RATE * 60)
    with Stage(data_dir, tracks, capture={"segment_seconds": 10}) as stage:
        for second in range(60):
            if second % 3 == 0:
                stage.call.play("assistant", noise(24_000, second))
            stage.speak("user", second, user[second * RATE : (second + 1) * RATE], bursts=[60] * 16 + [40])
        stage.go(60)
        recording = stage.end()
    recording.check_interval()
    assert np.array_equal(recording.track("user"), user)
    pieces = [(second * 24_000, noise(24_000, second)) for second in range(0, 60, 3)]
    assert np.array_equal(recording.track("assistant"), whole(60 * 24_000, *pieces))


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100])
def test_no_cut_drifts(data_dir: Path, rate: int) -> None:
    """Over a hundred cuts each segment begins where the one before ended, at its second, and no sample is lost."""
    said = noise(rate * 100 + 17)
    with Stage(data_dir, {"user": rate}, step=0.5) as stage:
        for second in range(101):
            stage.go(second + 1)
            stage.call.write("user", said[second * rate : (second + 1) * rate], at=float(second))
        recording = stage.end()
    assert [first for first, _ in recording.ranges("user")] == [rate * n for n in range(101)]
    assert np.array_equal(recording.track("user")[: len(said)], said)
    assert np.array_equal(recording.track("mixed"), recording.track("user"))


@pytest.mark.parametrize("split", [None, 0.1, 0.3])
def test_a_stall_and_its_burst_are_one_stretch_of_time(data_dir: Path, split: float | None) -> None:
    """Sixty seconds with two stalls and the bursts that follow them stay sixty seconds, sample for sample."""
    said = noise(RATE * 60)
    with Stage(data_dir, {"user": RATE}, step=split or 0.4, capture={"segment_seconds": 30}) as stage:
        stage.speak("user", 0, said, bursts=[20] * 1000 + [5000] + [20] * 500 + [3000] + [20] * 1100)
        recording = stage.end()
    assert recording.call.duration_s == 60
    assert np.array_equal(recording.track("user"), said)
    assert [each.kind for each in recording.spans] == []


def test_the_recorder_itself_had_no_turn(data_dir: Path) -> None:
    """A recorder that gets no processor for five seconds writes all of them where they were said."""
    said = noise(RATE * 10)
    with Stage(data_dir, {"user": RATE}, capture={"segment_seconds": 30}) as stage:
        for n in range(500):
            (stage.stall if 100 <= n < 350 else stage.go)((n + 1) / 50)
            stage.call.write("user", said[n * 160 : (n + 1) * 160])
        recording = stage.end()
    assert np.array_equal(recording.track("user"), said)


# Other rates, and loud voices.


@pytest.mark.parametrize("pace", ["live", "media"])
@pytest.mark.parametrize("how", ["write", "play"])
def test_no_tail_is_lost_at_a_cut_or_at_the_end(data_dir: Path, how: str, pace: str) -> None:
    """Audio of another rate comes out whole, as one stream over many segments, also where the call ends at once."""
    said = tone(5.5, 16_000)
    with Stage(data_dir, {"user": RATE}, pace=pace) as stage:
        for n in range(0, len(said), 320):
            if how == "write" and pace == "live":
                stage.go((n + 320) / 16_000)
            getattr(stage.call, how)("user", said[n : n + 320], rate=16_000)
        if pace == "live":
            stage.go(5.5)
        recording = stage.end()
    assert close_to(recording.track("user"), resampled(said, 16_000, RATE))


def test_a_rate_that_changes_in_mid_call(data_dir: Path) -> None:
    """When a source changes its rate, each stretch is as long as before, and the next begins where it ended."""
    rates = [16_000, 48_000, RATE, 24_000]
    with Stage(data_dir, {"user": RATE}) as stage:
        for n, rate in enumerate(rates):
            said = tone(1, rate, hertz=300 + 100 * n)
            for part in range(50):
                stage.go(n + (part + 1) / 50)
                stage.call.write("user", said[part * rate // 50 : (part + 1) * rate // 50], rate=rate)
        recording = stage.end()
    expected = [
        resampled(tone(1, rate, hertz=300 + 100 * n), rate, RATE)
        if rate != RATE
        else tone(1, rate, hertz=300 + 100 * n)
        for n, rate in enumerate(rates)
    ]
    assert close_to(recording.track("user"), np.concatenate(expected))


def test_an_interruption_keeps_what_the_resampler_held_back(data_dir: Path) -> None:
    """Audio of another rate is heard up to the interruption itself, not up to what had been resampled by then."""
    said = tone(3, 24_000)
    with Stage(data_dir, {"assistant": RATE}) as stage:
        for n in range(100):
            stage.call.play("assistant", said[n * 480 : (n + 1) * 480], rate=24_000)
            stage.go((n + 1) / 50)
        stage.call.interrupt("assistant")
        stage.go(4)
        recording = stage.end()
    expected = whole(RATE * 4, (0, resampled(said[: 24_000 * 2], 24_000, RATE)))
    assert close_to(recording.track("assistant"), expected)


def test_two_loud_voices_do_not_clip(data_dir: Path) -> None:
    """Where two voices together are louder than full scale, the mix bends instead of clipping or wrapping."""
    loud = tone(3, RATE, loudness=20_000)
    with Stage(data_dir, TRACKS) as stage:
        stage.go(3)
        for track in TRACKS:
            stage.call.write(track, loud, at=0.0)
        recording = stage.end()
    mixed = recording.track("mixed")
    assert np.array_equal(mixed, mixing.add([loud, loud]))
    assert sum(segment.clipped for segment, _ in recording.of("mixed")) == 0
    assert (np.sign(mixed) == np.sign(loud)).all()
    assert mixed.max() > 32_000


# What waits for its time.


@pytest.mark.parametrize("how", ["play", "at"])
def test_what_waits_beyond_the_queue_comes_back_whole(data_dir: Path, how: str) -> None:
    """Audio long before its time waits on disk beyond `queue_seconds` of it, and comes back sample for sample."""
    said = noise(RATE * 40)
    with Stage(data_dir, {"assistant": RATE}, capture={"segment_seconds": 10, "queue_seconds": 3}) as stage:
        for n in range(20):
            part = said[n * RATE * 2 : (n + 1) * RATE * 2]
            stage.call.play("assistant", part) if how == "play" else stage.call.write("assistant", part, at=n * 2.0)
            stage.go(n * 0.1 if how == "play" else n * 2.0)
            stage.advance()
            (waiting,) = stage.tape._intake.voices.values()
            assert _in_ram(waiting.timeline) <= 3 * RATE
        stage.go(40)
        recording = stage.end()
    assert np.array_equal(recording.track("assistant"), said)
    assert recording.spans == []


def _in_ram(timeline: Any) -> int:
    queues = (timeline._heard, timeline._speaker.queue)
    return sum(len(each.audio) for queue in queues for each in queue if isinstance(each.audio, np.ndarray))


def test_an_interruption_reaches_what_waits_on_disk(data_dir: Path) -> None:
    """An interruption takes back what had left RAM too, and what is said next is where it is heard."""
    said, answer = noise(RATE * 40), noise(RATE, 1)
    with Stage(data_dir, {"assistant": RATE}, capture={"queue_seconds": 2}) as stage:
        stage.call.play("assistant", said)
        stage.go(6)
        stage.call.interrupt("assistant")
        stage.call.play("assistant", answer)
        stage.go(9)
        recording = stage.end()
    assert np.array_equal(recording.track("assistant"), whole(RATE * 9, (0, said[: RATE * 6]), (RATE * 6, answer)))
    assert recording.spans_of("unheard", "assistant") == [(6, 40)]


def test_what_the_queue_has_no_room_for_is_a_gap(data_dir: Path) -> None:
    """While nothing is taken, `queue_seconds` of a track are kept, and one span says where the rest would be."""
    said = noise(RATE * 6)
    with Stage(data_dir, TRACKS, capture={"queue_seconds": 2}) as stage:
        for n in range(300):
            stage.stall((n + 1) / 50)
            stage.call.write("user", said[n * 160 : (n + 1) * 160])
        assert stage.call.stats().lost_s == pytest.approx(4, abs=0.03)
        stage.go(7)
        recording = stage.end()
    (gap,) = recording.spans_of("gap", "user")
    assert gap == pytest.approx((2, 6), abs=0.03)
    kept = said[: round(gap[0] * RATE)]
    assert np.array_equal(recording.track("user"), whole(RATE * 7, (0, kept)))


def test_a_disk_that_syncs_nothing_does_not_fill_ram(data_dir: Path) -> None:
    """While no fsync comes back, no more than `queue_seconds` of a track is kept in RAM for its sake."""
    said = noise(RATE * 20)
    with Stage(data_dir, {"user": RATE}, step=0.5, capture={"queue_seconds": 3, "segment_seconds": 300}) as stage:
        stage.round = lambda: None  # type: ignore[method-assign]
        for second in range(20):
            stage.go(second + 1)
            stage.call.write("user", said[second * RATE : (second + 1) * RATE])
            assert stage.call.stats().unsynced_s <= 4
        del stage.round
        recording = stage.end()
    assert np.array_equal(recording.track("user"), said)


def test_a_segment_says_of_itself_what_its_row_says(data_dir: Path) -> None:
    """Each file is a WAV at its full length, of the call, track and place of its row, and known to be synced."""
    with Stage(data_dir, TRACKS) as stage:
        stage.speak("user", 0.5, noise(RATE * 2))
        recording = stage.end()
    for segment, samples in recording.segments:
        path = recording.directory / f"{segment.track}-{segment.seq:06d}.wav"
        tag, _ = wav.read_file(path)
        assert (tag.call_id, tag.started_at) == (recording.call.call_id, recording.call.started_at)
        assert path.read_bytes()[:512] == wav.header(tag, frames=len(samples))
        assert segment.started_at == recording.call.started_at + segment.first_sample * SECOND // RATE // 1000


# Much at once.


def test_a_mix_is_made_of_all_that_came_at_once(data_dir: Path) -> None:
    """Of a hundred segments that are finished in one step the first is in the mix like the last."""
    said = noise(RATE * 100)
    with Stage(data_dir, {"user": RATE}, pace="media") as stage:
        stage.call.write("user", said)
        stage.go(1)
        recording = stage.end()
    assert np.array_equal(recording.track("mixed"), said)


def test_a_long_turn_is_all_in_its_mix(data_dir: Path) -> None:
    """A turn of more segments than are kept for late mixes is mixed from its first second on."""
    said = noise(RATE * 100)
    with Stage(data_dir, {"user": RATE}, capture={"segmentation": "turn"}) as stage:
        stage.call.start_turn("user")
        stage.speak("user", 0, said)
        stage.call.end_turn("user")
        stage.go(103)
        recording = stage.end()
    assert np.array_equal(recording.track("mixed"), said)


def test_a_long_silence_takes_few_descriptors(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hours are finished at once, as after a full disk, their files are made as earlier ones are let go of."""
    monkeypatch.setattr("stage.MANY_ROUNDS", 100)
    said = noise(RATE)
    with Stage(data_dir, TRACKS, pace="media") as stage:
        stage.call.write("user", said, at=500.0)
        stage.call.write("assistant", said, at=500.0)
        before = len(open_files())
        stage.advance()
        taken = len(open_files()) - before
        recording = stage.end()
    assert taken < 100
    recording.check_interval()
    assert np.array_equal(recording.track("user"), whole(RATE * 501, (RATE * 500, said)))


def test_a_turn_of_less_than_one_sample_is_nothing(data_dir: Path) -> None:
    """A turn that is too short for the track's rate makes neither a file nor a span."""
    with Stage(data_dir, {"user": RATE}, capture={"segmentation": "turn"}) as stage:
        stage.call.add_turn("user", np.ones(1, np.int16), rate=192_000)
        stage.go(3)
        recording = stage.end()
    assert (recording.segments, recording.spans) == ([], [])


def test_late_audio_is_once_in_the_mix(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mix of an interval was refused for a while, late audio is in its own mix, and not in that one too."""
    said, late = noise(RATE // 4), noise(RATE // 2, 1)
    with Stage(data_dir, {"user": RATE}) as stage:
        stage.call.write("user", said, at=0.0)
        stage.go(2.5)
        with monkeypatch.context() as patch, failing_mixes(patch, stage):
            stage.go(4)
            stage.call.write("user", late, at=0.5)
            stage.go(5)
        stage.go(9)
        recording = stage.end()
    assert np.array_equal(recording.track("mixed")[:RATE], whole(RATE, (0, said), (RATE // 2, late)))


@contextmanager
def failing_mixes(patch: pytest.MonkeyPatch, stage: Stage) -> Iterator[None]:
    """Let the disk refuse the mixes alone."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    patch.setattr("edge_recorder.mixes.write_whole", refuse)
    note = stage._note
    stage._note = lambda progress: note(replace(progress, errors=[]))  # type: ignore[method-assign]
    yield
    stage._note = note  # type: ignore[method-assign]

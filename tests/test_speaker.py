"""What is handed to a speaker: queued, said in its time, halted, and taken back when somebody speaks over it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
import pytest

from edge_recorder.timeline import Audio, Blank, Heard, Timeline, joined
from edge_recorder.wav import Samples

RATE = 8000
SECOND = 1_000_000_000

Spans = list[tuple[float, float]]  # seconds: start, end


def ns(seconds: float) -> int:
    return round(seconds * SECOND)


def audio(seconds: float, value: int = 1000) -> Samples:
    return np.full(round(seconds * RATE), value, np.int16)


def speech(seconds: float) -> Audio:
    return cast("Audio", audio(seconds))


def seconds(ranges: Iterable[tuple[int, int]]) -> Spans:
    return [(first / RATE, end / RATE) for first, end in joined(sorted(ranges))]


def by(timeline: Timeline, moment: float) -> Spans:
    """Return what `timeline` releases by then."""
    due = timeline.release(ns(moment))
    assert due.late == []
    return seconds((each.start, each.end) for each in due.pieces)


def hear(timeline: Timeline, length: float, *, at: float) -> None:
    assert timeline.hear([Heard(audio(length).tobytes(), ns(at), at)], now=ns(at)) == []


@pytest.fixture
def live() -> Timeline:
    return Timeline(RATE, live=True)


def test_played_audio_is_queued_behind_what_plays(live: Timeline) -> None:
    """A reply synthesised faster than it plays is written as it plays, without a hole."""
    for n in range(3):
        live.play(speech(1), arrived=ns(1 + n * 0.1))
    assert by(live, 1.5) == [(1, 1.5)]
    assert by(live, 2.5) == [(1.5, 2.5)]
    live.play(speech(1), arrived=ns(2.6))
    assert by(live, 9) == [(2.5, 5)]


def test_played_audio_starts_when_handed_over(live: Timeline) -> None:
    """With nothing playing, a reply starts when it is handed to the speaker."""
    assert live.play(speech(1), arrived=ns(2)) == (2 * RATE, 3 * RATE)
    by(live, 4)
    live.play(speech(1), arrived=ns(7))
    assert by(live, 9) == [(7, 8)]


def test_short_underrun_is_jitter(live: Timeline) -> None:
    """A speaker that gets the next chunk up to 0.1 s late had it in time; later, it fell silent."""
    live.play(speech(1), arrived=0)
    live.play(speech(1), arrived=ns(1.1))
    live.play(speech(1), arrived=ns(2.1))
    live.play(speech(1), arrived=ns(3.1))
    assert by(live, 9) == [(0, 4)]
    live.play(speech(1), arrived=ns(4.11))
    assert by(live, 9) == [(4.11, 5.11)]


def test_unplayed_audio_is_taken_back(live: Timeline) -> None:
    """What was queued and not heard when the call ends is told as ranges, and is never written."""
    live.play(speech(2), arrived=0)
    assert by(live, 0.5) == [(0, 0.5)]
    assert seconds(live.drop_unplayed()) == [(0.5, 2)]
    assert by(live, 9) == []


def test_played_audio_over_heard_audio_is_late(live: Timeline) -> None:
    """Played audio whose place was taken by then is told as late, and not silently left out."""
    live.play(speech(1), arrived=0)
    hear(live, 0.5, at=0.25)
    due = live.release(ns(2))
    assert seconds((each.start, each.end) for each in due.pieces) == [(0, 1)]
    assert seconds(due.late) == [(0.25, 0.75)]


def test_blank_takes_its_time_and_is_not_written(live: Timeline) -> None:
    """What was handed to the speaker while nothing was kept is silence, as long as it was."""
    live.play(cast("Audio", Blank(RATE)), arrived=0)
    live.play(speech(1), arrived=0)
    assert by(live, 0.5) == []
    assert by(live, 3) == [(1, 2)]


# Interrupted.


def test_interruption_drops_what_is_queued(live: Timeline) -> None:
    """What the speaker had not come to is never written, and was never on disk."""
    live.play(speech(5), arrived=0)
    by(live, 2)
    unheard, written = live.interrupt(at=2 * RATE)
    assert (seconds(unheard), written) == ([(2, 5)], [])
    assert by(live, 9) == []


def test_interruption_takes_back_what_was_written(live: Timeline) -> None:
    """An interruption that is told late frees the places after it, and says which were written."""
    live.play(speech(5), arrived=0)
    by(live, 2)
    unheard, written = live.interrupt(at=round(1.5 * RATE))
    assert (seconds(unheard), seconds(written)) == ([(1.5, 5)], [(1.5, 2)])
    live.play(speech(1), arrived=ns(1.5))
    assert by(live, 9) == [(1.5, 2.5)]


def test_interruption_takes_back_all_that_was_said_since(live: Timeline) -> None:
    """An interruption that is told very late frees what was said since, pauses or not."""
    for start in (0, 3, 6):
        live.play(speech(1), arrived=ns(start))
        by(live, start + 2)
    unheard, written = live.interrupt(at=0)
    assert seconds(unheard) == seconds(written) == [(0, 1), (3, 4), (6, 7)]
    assert live.end == 0


def test_interruption_to_come_leaves_what_is_said_until_then(live: Timeline) -> None:
    """What plays before the instant of the interruption is written when its time comes."""
    live.play(speech(5), arrived=0)
    live.interrupt(at=3 * RATE)
    assert by(live, 9) == [(0, 3)]


@pytest.mark.parametrize("released", [0.0, 1.0, 1.8, 2.0, 3.0])
def test_interruption_counts_what_was_played(live: Timeline, released: float) -> None:
    """After `played` seconds of what is being said, nothing was heard, released or not."""
    live.play(speech(2), arrived=0)
    live.play(speech(3), arrived=ns(0.1))
    by(live, released)
    unheard, written = live.interrupt(at=3 * RATE, played=1.8)
    assert seconds(unheard) == [(1.8, 5)]
    assert seconds(written) == ([(1.8, released)] if released > 1.8 else [])


def test_played_counts_from_when_the_speaker_fell_silent(live: Timeline) -> None:
    """`played` counts in what was said since the queue ran dry, though what was before is not released yet."""
    live.play(speech(1), arrived=0)
    by(live, 0.5)
    live.play(speech(4), arrived=ns(3))
    assert seconds(live.interrupt(at=4 * RATE, played=0.5)[0]) == [(3.5, 7)]
    assert by(live, 9) == [(0.5, 1), (3, 3.5)]


def test_played_counts_from_the_last_interruption(live: Timeline) -> None:
    """What is said after an interruption is counted anew."""
    live.play(speech(4), arrived=0)
    by(live, 2)
    live.interrupt(at=2 * RATE)
    live.play(speech(4), arrived=ns(2))
    by(live, 3)
    assert seconds(live.interrupt(at=3 * RATE, played=0.25)[0]) == [(2.25, 6)]


def test_played_counts_from_the_start_of_the_turn(live: Timeline) -> None:
    """`start_turn` begins the count anew, even while what was said before still plays."""
    live.play(speech(2), arrived=0)
    by(live, 1)
    live.start_utterance()
    live.play(speech(2), arrived=ns(1))
    assert seconds(live.interrupt(at=3 * RATE, played=0.5)[0]) == [(2.5, 4)]


def test_played_counts_through_the_pauses_of_a_turn(live: Timeline) -> None:
    """Within a turn the speaker may fall silent, and `played` goes on counting."""
    live.start_utterance()
    live.play(speech(1), arrived=0)
    live.play(speech(2), arrived=ns(3))
    assert seconds(live.interrupt(at=4 * RATE, played=1.5)[0]) == [(3.5, 5)]
    live.end_utterance()
    live.play(speech(1), arrived=ns(6))
    live.play(speech(1), arrived=ns(8))
    assert seconds(live.interrupt(at=9 * RATE, played=0.5)[0]) == [(8.5, 9)]


def test_more_played_than_was_said_takes_nothing_back(live: Timeline) -> None:
    """An interruption after the end of what was said changes nothing."""
    live.play(speech(1), arrived=0)
    assert live.interrupt(at=5 * RATE, played=4.0) == ([], [])
    assert by(live, 9) == [(0, 1)]


def test_interruption_leaves_heard_audio_alone(live: Timeline) -> None:
    """On a track that is heard and played, what was heard stays where it is."""
    hear(live, 1, at=0.5)
    live.play(speech(2), arrived=0)
    by(live, 4)
    unheard, written = live.interrupt(at=0)
    assert seconds(written) == seconds(unheard) == [(1.5, 3.5)]
    assert live.end == round(1.5 * RATE)


def test_played_counts_what_was_not_kept(live: Timeline) -> None:
    """What was said during a pause of the recording was heard all the same."""
    live.play(speech(6), arrived=0)
    live.mute(2 * RATE)
    by(live, 3)
    live.unmute(3 * RATE)
    by(live, 5)
    assert seconds(live.interrupt(at=5 * RATE, played=4.0)[0]) == [(4, 6)]


# Halted.


def test_halted_playback_waits(live: Timeline) -> None:
    """What is queued when playback pauses is said when it goes on, and the pause is silence."""
    live.play(speech(4), arrived=0)
    live.halt(ns(1))
    live.halt(ns(2))
    assert by(live, 3) == [(0, 1)]
    live.go_on(ns(5))
    live.go_on(ns(6))
    assert by(live, 9) == [(5, 8)]


def test_audio_played_while_halted_is_queued_behind(live: Timeline) -> None:
    """What is handed over while playback stands still is said after what was queued before."""
    live.play(speech(2), arrived=0)
    live.halt(ns(1))
    live.play(speech(1), arrived=ns(2))
    live.go_on(ns(4))
    assert by(live, 9) == [(0, 1), (4, 6)]


def test_audio_played_first_while_halted_starts_when_it_goes_on(live: Timeline) -> None:
    """With nothing queued, what is handed over while playback stands still is said once it goes on."""
    live.halt(ns(1))
    live.play(speech(1), arrived=ns(3))
    assert by(live, 4) == []
    live.go_on(ns(5))
    assert by(live, 9) == [(5, 6)]


def test_interruption_while_halted_drops_what_stood_still(live: Timeline) -> None:
    """Nothing was said since playback paused, so an interruption now takes back all that was queued then."""
    live.play(speech(4), arrived=0)
    live.halt(ns(1))
    by(live, 2)
    assert seconds(live.interrupt(at=3 * RATE)[0]) == [(1, 4)]
    live.go_on(ns(5))
    assert by(live, 9) == []


# Too much for RAM.


def test_shrink_stores_what_waits_beyond_a_limit(live: Timeline) -> None:
    """Beyond the limit, what waits goes elsewhere in one piece, and comes back in its place."""
    stored: list[Samples] = []

    def store(samples: Samples) -> Audio:
        stored.append(samples)
        return cast("Audio", samples.view(Elsewhere))

    for n in range(100):
        live.play(cast("Audio", audio(0.1, n + 1)), arrived=0)
    assert live.shrink(3 * RATE, store) == []
    assert [len(each) for each in stored] == [7 * RATE]
    assert live.waiting == 10 * RATE
    told = np.concatenate([np.asarray(each.audio) for each in live.release(ns(10)).pieces])
    assert np.array_equal(told, np.repeat(np.arange(1, 101), RATE // 10))


def test_shrink_tells_what_nobody_took(live: Timeline) -> None:
    """What cannot be stored is told as ranges, and its place stays silent."""
    live.play(speech(2), arrived=0)
    live.play(speech(2), arrived=0)
    hear(live, 1, at=20)
    hear(live, 1, at=25)
    lost = live.shrink(2 * RATE, lambda _: None)
    assert seconds(lost) == [(2, 4)]
    assert by(live, 30) == [(0, 2), (20, 21), (25, 26)]


class Elsewhere(np.ndarray):  # type: ignore[type-arg]
    """Stands for samples on disk: an array that is no array to the timeline."""

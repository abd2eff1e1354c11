"""The mixed segments that a dead recorder still owed: each is made once, and none that is there is made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from wrecks import RATE, Wreck, check_files, heard, mend, mixed, places, segments, spans, total

from edge_recorder import journal, model
from edge_recorder.model import MIXED, Segment, Span, SpanKind
from edge_recorder.remixing import Missing, missing_intervals, missing_turns
from edge_recorder.wav import Samples

SECOND = 1_000_000_000
CALL_ID = model.new_call_id(1_790_000_000_000_000)


def ramp(seconds: float, first: int = 1) -> Samples:
    return (np.arange(round(seconds * RATE)) % 3000 + first).astype(np.int16)


def segment(track: str, seq: int, first: float, end: float, *, rate: int = RATE, salvaged: bool = False) -> Segment:
    return Segment(
        segment_id=model.segment_id(CALL_ID, track, seq),
        call_id=CALL_ID,
        track=track,
        seq=seq,
        first_sample=round(first * rate),
        frames=round((end - first) * rate),
        rate=rate,
        started_at=0,
        sealed_at=0,
        salvaged=salvaged,
        pcm_sha256="",
        peak_dbfs=None,
        rms_dbfs=None,
        clipped=0,
        waveform="",
    )


def hash_of(missing: Missing) -> str:
    assert missing.alone is not None
    return f"{missing.alone.track}/{missing.alone.seq}"


def turn(n: int, track: str, start: float, end: float) -> Span:
    return model.new_span(CALL_ID, n, SpanKind.TURN, track, start_s=start, end_s=end, reason="")


def seconds(missing: list[Missing], rate: int = RATE) -> list[tuple[float, float, int | None]]:
    """Return where mixes are missing, in seconds, each with the number of the segment that it is of alone."""
    return [(each.first / rate, each.end / rate, each.alone.seq if each.alone else None) for each in missing]


# Intervals.


def test_missing_mix_is_cut_as_its_tracks_are() -> None:
    """What no mix covers is cut where the tracks' segments begin, and ends with the call."""
    voices = [segment("user", n, n - 1, n) for n in (1, 2, 3)] + [
        segment("agent", 1, 0, 1),
        segment("agent", 2, 3, 4.5),
    ]
    found = missing_intervals(
        voices, [segment(MIXED, 1, 0, 1)], rate=RATE, duration=round(4.5 * SECOND), hash_of=hash_of
    )
    assert seconds(found) == [(1, 2, None), (2, 3, None), (3, 4.5, None)]


def test_hole_between_mixes_is_filled() -> None:
    """A mix that is missing between two others is made, and those are not."""
    voices = [segment("user", n, n - 1, n) for n in (1, 2, 3)]
    found = missing_intervals(
        voices, [segment(MIXED, 1, 0, 1), segment(MIXED, 3, 2, 3)], rate=RATE, duration=3 * SECOND, hash_of=hash_of
    )
    assert seconds(found) == [(1, 2, None)]


def test_late_audio_moves_no_cut() -> None:
    """A further segment is mixed alone where its place was mixed without it, and with the others where it was not."""
    voices = [segment("user", n, n - 1, n) for n in (1, 2, 3)]
    late = [segment("user", 4, 0.25, 0.5), segment("user", 5, 1.5, 2.25), segment("user", 6, 2.5, 2.75)]
    made = [segment(MIXED, 1, 0, 1), segment(MIXED, 2, 1, 2)]
    found = missing_intervals(voices + late, made, rate=RATE, duration=3 * SECOND, hash_of=hash_of)
    assert seconds(found) == [(2, 3, None), (0.25, 0.5, 4), (1.5, 2, 5)]


def test_late_audio_is_mixed_alone_once() -> None:
    """Of several further segments at one place, those whose mix is there are told from the others by their hash."""
    voices = [segment(track, n, n / 4, 1) for track in ("agent", "user") for n in (0, 1)]
    made = [segment(MIXED, 1, 0, 1), replace(segment(MIXED, 2, 0.25, 1), pcm_sha256="user/1")]
    found = missing_intervals(voices, made, rate=RATE, duration=SECOND, hash_of=hash_of)
    assert [each.alone for each in found] == [voices[1]]
    made.append(replace(segment(MIXED, 3, 0.25, 1), pcm_sha256="agent/1"))
    assert missing_intervals(voices, made, rate=RATE, duration=SECOND, hash_of=hash_of) == []


def test_late_mix_sealed_first_hides_no_interval() -> None:
    """A mix of late audio alone, sealed before the mix of its place, does not stand for that."""
    voices = [segment("user", 1, 0, 1), segment("user", 2, 0, 0.75)]
    made = [replace(segment(MIXED, 2, 0, 0.75), pcm_sha256="user/2")]
    found = missing_intervals(voices, made, rate=RATE, duration=SECOND, hash_of=hash_of)
    assert seconds(found) == [(0, 1, None)]


def test_late_audio_is_told_by_its_length() -> None:
    """An interval that went on in a new file, after a failed fsync, is still an interval: the shorter one is late."""
    voices = [segment("user", 2, 0.25, 0.5), segment("user", 3, 0, 1), segment("user", 4, 1, 2)]
    found = missing_intervals(voices, [segment(MIXED, 1, 0, 1)], rate=RATE, duration=2 * SECOND, hash_of=hash_of)
    assert seconds(found) == [(1, 2, None), (0.25, 0.5, 2)]


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_rates_leave_no_sliver(rate: int) -> None:
    """At no rate of the mix is a sample's length missing that the tracks' rates cannot tell."""
    voices = [segment("user", 1, 0, 1), segment("user", 2, 1, 1.7, rate=8000), segment("agent", 1, 0, 1, rate=24000)]
    ends = round(1.7 * SECOND)
    made = [segment(MIXED, 1, 0, 1, rate=rate), segment(MIXED, 2, 1, 1.7, rate=rate)]
    assert missing_intervals(voices, made, rate=rate, duration=ends, hash_of=hash_of) == []


def test_salvaged_late_audio_is_in_the_mix_once(data_dir: Path) -> None:
    """Audio that came for a sealed interval just before the end is heard in the mix, beside what was there."""
    wreck = Wreck(data_dir, "user", "assistant")
    wreck.write("user", ramp(0.5), at=0.0)
    wreck.write("assistant", ramp(1.5, 100), at=0.0)
    wreck.step(1.5)
    wreck.sync(4)
    wreck.write("user", ramp(0.25, 500), at=0.5)
    wreck.step(1.55)
    wreck.kill()
    mending = mend(wreck.directory, data_dir)
    check_files(mending, wreck.directory)
    assert places(segments(mending, MIXED)) == [(0, 1), (1, 1.5), (0.5, 0.75)]
    assert np.array_equal(mixed(wreck.directory), total(wreck))


def test_late_mix_that_was_made_is_not_made_again(data_dir: Path) -> None:
    """Late audio whose own mix is sealed is in no other."""
    wreck = Wreck(data_dir, "user", "assistant")
    wreck.write("assistant", ramp(1.5, 100), at=0.0)
    wreck.step(1.5)
    wreck.write("user", ramp(0.25, 500), at=0.5)
    wreck.step(1.55)
    wreck.step(1.8)
    wreck.sync(4)
    wreck.kill()
    mending = mend(wreck.directory, data_dir)
    assert mending.done.mixed == 1
    assert np.array_equal(mixed(wreck.directory), total(wreck))


def test_unfinished_mix_is_made_again(data_dir: Path) -> None:
    """A mix that was not sealed is made anew from its tracks, which may have more by now."""
    wreck = Wreck(data_dir, "user", "assistant")
    wreck.write("user", ramp(1.5), at=0.0)
    wreck.step(1.5)
    wreck.kill()
    (part,) = wreck.parts(MIXED)
    part.write_bytes(part.read_bytes()[:-1000])
    mending = mend(wreck.directory, data_dir)
    check_files(mending, wreck.directory)
    assert (mending.done.quarantined, mending.done.mixed) == (0, 2)
    assert np.array_equal(mixed(wreck.directory), total(wreck))


def test_mix_keeps_its_rate(data_dir: Path) -> None:
    """A mix that is made again has the rate that was set for it, and not its tracks'."""
    wreck = Wreck(data_dir, "user", mixed_rate=2 * RATE)
    wreck.write("user", ramp(1.5), at=0.0)
    wreck.step(1.5)
    wreck.kill()
    made = segments(mend(wreck.directory, data_dir), MIXED)
    assert [(each.rate, each.frames) for each in made] == [(2 * RATE, 2 * RATE), (2 * RATE, RATE)]


def test_unfinished_mix_is_kept_where_its_tracks_are_gone(data_dir: Path) -> None:
    """A mix that cannot be made again is salvaged as it is, and the call is as long as that."""
    wreck = Wreck(data_dir, "user")
    wreck.write("user", ramp(1.5), at=0.0)
    wreck.step(1.5)
    wreck.kill()
    for part in wreck.parts("user"):
        part.unlink()
    mending = mend(wreck.directory, data_dir)
    assert [each.salvaged for each in segments(mending, MIXED)] == [True]
    assert np.array_equal(mixed(wreck.directory)[:RATE], wreck.truth["user"][:RATE])
    call = mending.content.facts[wreck.call_id]
    assert isinstance(call, model.Call)
    assert call.duration_s == 1.0


# Turns.


def test_turn_without_a_mix_gets_one() -> None:
    """Each turn is mixed once over its own range, whoever else's range is the same; one of no length is not."""
    turns = [turn(1, "user", 0, 1), turn(2, "agent", 0, 1), turn(3, "user", 2, 3.5), turn(4, "user", 5, 5)]
    voices = [segment("user", 1, 0, 1), segment("agent", 1, 0, 1), segment("user", 2, 2, 3.5)]
    assert seconds(missing_turns(voices, [segment(MIXED, 1, 0, 1)], turns, rate=RATE)) == [(0, 1, None), (2, 3.5, None)]


def test_salvaged_piece_in_no_turn_is_mixed() -> None:
    """What was salvaged of a turn without an end gets a mix; sealed audio between turns gets none."""
    voices = [segment("user", 1, 0, 1), segment("user", 2, 1, 2), segment("user", 3, 2, 2.5, salvaged=True)]
    assert seconds(missing_turns(voices, [], [turn(1, "user", 0, 1)], rate=RATE)) == [(0, 1, None), (2, 2.5, None)]


def test_turns_of_a_killed_recorder_are_mixed(data_dir: Path) -> None:
    """With cuts at turns, the turns that ended have their mix, the one under way gets one, and silence has no file."""
    wreck = Wreck(data_dir, "user", "assistant", segmentation="turn")
    wreck.add_turn("user", ramp(1.0), at=0.0)
    wreck.step(1.0)
    wreck.step(1.3)
    wreck.sync(4)
    wreck.add_turn("assistant", ramp(1.5, 100), at=1.5)
    wreck.step(3.0)
    wreck.mark_turn("user", starts=True, at=3.5)
    wreck.step(3.5)
    wreck.write("user", ramp(0.4, 700), at=3.5)
    wreck.step(3.95)
    wreck.kill()
    known = journal.read(wreck.journal)
    assert known.start is not None
    assert known.start.segmentation == "turn"
    mending = mend(wreck.directory, data_dir)
    check_files(mending, wreck.directory)
    assert places(segments(mending, MIXED)) == [(0, 1), (1.5, 3), (3.5, 3.9)]
    assert np.array_equal(mixed(wreck.directory), total(wreck))
    for track in wreck.truth:
        assert np.array_equal(heard(wreck.directory, track), wreck.truth[track])
    # The assistant's turn was not sealed: more of it could have come.
    assert spans(mending, "gap") == [("assistant", 3.0, 3.9)]


def test_silent_track_has_no_gap_between_turns(data_dir: Path) -> None:
    """Where turns make the segments, a track whose turns are all sealed was silent: nothing of it is missing."""
    wreck = Wreck(data_dir, "user", "assistant", segmentation="turn")
    wreck.add_turn("assistant", ramp(1.0, 100), at=0.0)
    wreck.step(1.0)
    wreck.step(1.3)
    wreck.sync(4)
    wreck.add_turn("user", ramp(1.0), at=2.0)
    wreck.step(3.0)
    wreck.kill()
    assert spans(mend(wreck.directory, data_dir), "gap") == []

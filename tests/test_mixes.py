"""The mixes of a call: made once, from what is on disk, and not for ever in the way of its end."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from disks import RATE, STARTED, WRITER, failing, names, noise, open_files

from edge_recorder import mixing, model, wav
from edge_recorder.journal import Start
from edge_recorder.mixes import TRIES, Mixes
from edge_recorder.model import MIXED, SpanKind
from edge_recorder.segment import OpenSegment
from edge_recorder.timeline import Piece
from edge_recorder.track import Cuts, Track
from edge_recorder.wav import Samples

SECOND = 1_000_000_000
START = Start(call_id=model.new_call_id(STARTED), started_at=STARTED, writer=WRITER)


class Desk:
    """The mixes of a call of some tracks, with what came of them."""

    def __init__(self, directory: Path, *, rate: int = 0) -> None:
        self.directory = directory
        self.spans: list[tuple[SpanKind, str | None, float, float, str]] = []
        self.sealed: list[OpenSegment] = []
        self.mixes = Mixes(directory, START, rate=rate, mark=lambda *span: self.spans.append(span))
        self.tracks: list[Track] = []

    def add(self, name: str, samples: Samples, *, rate: int = RATE, finish: bool = True) -> Track:
        cuts = Cuts(length_ns=SECOND, late_ns=0)
        track = Track(self.directory, START.tag(name, rate), cuts=cuts, live=False)
        track.take([Piece(0, samples)])
        track.write(now=0)
        if finish:
            track.finish_regular(until=len(samples) // rate * rate, whole=True)
            for segment in track.finished:
                segment.close()
        self.tracks.append(track)
        return track

    def make(self, *, now: int = 0) -> list[tuple[int, int, Samples]]:
        """Make what is due, and return (seq, first sample, samples) of each mix."""
        self.sealed.clear()
        self.mixes.make(self.tracks, now=now, seal=self.sealed.extend)
        return [(each.tag.seq, each.tag.first_sample, each.read(0, each.frames)) for each in self.sealed]


def test_mix_is_the_sum_of_all_tracks(tmp_path: Path) -> None:
    """A stretch is mixed at the highest rate, from files that are finished or open, within it and around it."""
    desk = Desk(tmp_path)
    user, agent = noise(3 * RATE), noise(3 * 2 * RATE, 2)
    desk.add("user", user)
    desk.add("agent", agent, rate=2 * RATE, finish=False)
    desk.mixes.owe((SECOND, 2 * SECOND))
    ((seq, first, samples),) = desk.make()

    def read(name: str, start: int, frames: int) -> Samples:
        return wav.padded({"user": user, "agent": agent}[name][start : start + frames], frames)

    expected = mixing.mix({"user": RATE, "agent": 2 * RATE}, rate=2 * RATE, first=2 * RATE, frames=2 * RATE, read=read)
    assert (seq, first) == (1, 2 * RATE)
    assert np.array_equal(samples, expected)
    assert desk.mixes.is_idle
    assert desk.make() == []
    tag, _ = wav.read_file(tmp_path / "mixed-000001.wav.part")
    assert (tag.track, tag.rate) == (MIXED, 2 * RATE)


def test_rate_of_the_mix_stays_that_of_the_first(tmp_path: Path) -> None:
    """A track that is declared later, with a higher rate, does not change it; one that was asked for is kept to."""
    for room, rate in (("own", 0), ("asked", 16_000)):
        (tmp_path / room).mkdir()
        desk = Desk(tmp_path / room, rate=rate)
        desk.add("user", noise(2 * RATE))
        desk.mixes.owe((0, SECOND))
        desk.make()
        desk.add("agent", noise(2 * 48_000, 2), rate=48_000)
        desk.mixes.owe((SECOND, 2 * SECOND))
        ((_, first, samples),) = desk.make()
        assert (first, len(samples)) == (rate or RATE, rate or RATE)


def test_mix_waits_for_its_time(tmp_path: Path) -> None:
    """A turn's mix is made when its late window is over, and those behind it do not wait for it."""
    desk = Desk(tmp_path)
    desk.add("user", noise(2 * RATE))
    desk.mixes.owe((0, SECOND), due=SECOND)
    desk.mixes.owe((SECOND, 2 * SECOND), due=0)
    assert [first for _, first, _ in desk.make(now=SECOND - 1)] == [RATE]
    assert not desk.mixes.is_idle
    assert [first for _, first, _ in desk.make(now=SECOND)] == [0]


def test_stretch_of_no_sample_makes_no_mix(tmp_path: Path) -> None:
    """A turn shorter than a sample is owed nothing."""
    desk = Desk(tmp_path)
    desk.add("user", noise(2 * RATE))
    desk.mixes.owe((SECOND, SECOND))
    assert desk.make() == []
    assert desk.mixes.is_idle


def test_audio_that_came_too_late_is_mixed_alone(tmp_path: Path) -> None:
    """A further segment has a mix that holds it and nothing of the other tracks."""
    desk = Desk(tmp_path, rate=RATE)
    track = desk.add("user", noise(RATE))
    desk.add("agent", noise(2 * RATE, 2))
    track.finish_regular(until=2 * RATE, whole=True)
    track.take([Piece(RATE + 500, noise(100, 3)), Piece(RATE + 700, noise(100, 4))])
    track.write(now=0)
    track.finish_further(now=SECOND)
    (added,) = track.added
    added.close()
    desk.mixes.owe_alone(added)
    ((_, first, samples),) = desk.make()
    assert first == RATE + 500
    assert np.array_equal(samples, [*noise(100, 3), *[0] * 100, *noise(100, 4)])


def test_removed_file_leaves_a_gap_in_the_mix(tmp_path: Path) -> None:
    """A track whose file is gone is missing from the mix, which says so, once."""
    desk = Desk(tmp_path)
    desk.add("user", noise(2 * RATE))
    desk.add("agent", noise(2 * RATE, 2))
    (tmp_path / "user-000002.wav.part").unlink()
    desk.mixes.owe((SECOND, 2 * SECOND))
    ((_, _, samples),) = desk.make()
    assert np.array_equal(samples, noise(2 * RATE, 2)[RATE:])
    assert desk.spans == [(SpanKind.GAP, MIXED, 1.0, 2.0, "user could not be read: No such file or directory")]


def test_removed_further_file_does_not_hold_up_the_call(tmp_path: Path) -> None:
    """A further segment whose file is gone is owed nothing more than the gap that says so."""
    desk = Desk(tmp_path)
    track = desk.add("user", noise(RATE))
    (segment,) = track.finished
    (tmp_path / "user-000001.wav.part").unlink()
    desk.mixes.owe_alone(segment)
    desk.make()
    assert desk.mixes.is_idle
    assert [span[:4] for span in desk.spans] == [(SpanKind.GAP, MIXED, 0.0, 1.0)]


def test_file_that_stays_unreadable_does_not_hold_up_the_call(tmp_path: Path) -> None:
    """A file that cannot be read now is tried again; one that never can is a gap in the mix."""
    desk = Desk(tmp_path)
    desk.add("user", noise(2 * RATE))
    desk.mixes.owe((0, SECOND))
    with failing("pread", lambda n: n == 1), pytest.raises(OSError, match="Input/output"):
        desk.make()
    assert len(desk.make()) == 1
    assert desk.spans == []
    desk.mixes.owe((SECOND, 2 * SECOND))
    with failing("pread", lambda _: True):
        for _ in range(TRIES - 1):
            with pytest.raises(OSError, match="Input/output"):
                desk.make()
        desk.mixes.make(desk.tracks, now=0, seal=desk.sealed.extend)
    assert desk.mixes.is_idle
    assert [span[:4] for span in desk.spans] == [(SpanKind.GAP, MIXED, 1.0, 2.0)]
    desk.mixes.owe((0, 2 * SECOND))
    with failing("pread", lambda n: n == 1), pytest.raises(OSError, match="Input/output"):
        desk.make()  # the next mix has its tries anew


@pytest.mark.parametrize(
    ("operation", "number"), [("open", errno.EMFILE), ("pwrite", errno.ENOSPC), ("ftruncate", errno.EIO)]
)
def test_mix_that_is_refused_is_made_later(tmp_path: Path, operation: str, number: int) -> None:
    """What the disk refuses leaves no file and no span behind; the mixes before it stay, and it is made when it can."""
    desk = Desk(tmp_path)
    desk.add("user", noise(2 * RATE), finish=False)
    before = open_files()
    desk.mixes.owe((0, SECOND))
    desk.mixes.owe((SECOND, 2 * SECOND))
    per_file = {"open": 1, "pwrite": 3, "ftruncate": 1}[operation]
    with failing(operation, lambda n: n > per_file, number):
        for _ in range(3):
            with pytest.raises(OSError, match=r"\[Errno"):
                desk.mixes.make(desk.tracks, now=0, seal=desk.sealed.extend)
    assert [each.tag.first_sample for each in desk.sealed] == [0]
    assert names(tmp_path) == ["mixed-000001.wav.part", *[f"user-00000{n}.wav.part" for n in (1, 2)]]
    assert len(open_files()) == len(before) + 1
    ((seq, first, _),) = desk.make()
    assert first == RATE
    assert seq > 1
    assert desk.spans == []


def test_mixed_segment_moves_to_the_next_number(tmp_path: Path) -> None:
    """A mix whose fsync failed goes on in a new file, and the next mix has the number after that."""
    desk = Desk(tmp_path)
    desk.add("user", noise(2 * RATE))
    desk.mixes.owe((0, SECOND))
    desk.make()
    (segment,) = desk.sealed
    segment.begin_sync()
    segment.failed()
    assert desk.mixes.move(segment) == []
    assert np.array_equal(wav.read_file(tmp_path / "mixed-000002.wav.part")[1], noise(2 * RATE)[:RATE])
    desk.mixes.owe((SECOND, 2 * SECOND))
    assert [seq for seq, _, _ in desk.make()] == [3]

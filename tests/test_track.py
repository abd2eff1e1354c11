"""From pieces to segment files, on disks that refuse: nothing is lost, believed or left behind that should not be."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from disks import OPERATIONS, RATE, STARTED, WRITER, failing, names, new_tag, noise, open_files, refusal
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edge_recorder import durable, journal, model, spool, wav
from edge_recorder.items import Item, Lost, Stream, TrackDeclared, TrackEnded
from edge_recorder.model import MIXED
from edge_recorder.settings import Capture
from edge_recorder.tape import Ending, Progress, Tape
from edge_recorder.timeline import Heard, Piece
from edge_recorder.track import Cuts, Track
from edge_recorder.wav import Samples

SECOND = 1_000_000_000
EACH_SECOND = Cuts(length_ns=SECOND, late_ns=SECOND // 2)
AT_TURNS = Cuts(length_ns=10 * SECOND, late_ns=SECOND // 2, turns=True)


def new_track(directory: Path, cuts: Cuts = EACH_SECOND, *, rate: int = RATE, first_sample: int = 0) -> Track:
    return Track(directory, new_tag(rate, first_sample=first_sample), cuts=cuts, live=False)


def put(track: Track, start: int, samples: Samples, *, now: int = 0) -> None:
    track.take([Piece(start, samples)])
    track.write(now=now)


def finished(track: Track) -> list[tuple[int, int, int]]:
    """Take the finished segments of a track, close them, and return (seq, first sample, frames) of each."""
    segments, track.finished = track.finished, []
    for each in segments:
        each.close()
    return [(each.tag.seq, each.tag.first_sample, each.frames) for each in segments]


# Slots one after another.


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_track_is_cut_at_whole_intervals(tmp_path: Path, rate: int) -> None:
    """At any rate, segments begin where their interval does and lie end to end, sample for sample."""
    track = new_track(tmp_path, Cuts(length_ns=300_000_000, late_ns=0), rate=rate)
    samples = noise(9 * rate // 10 + 777)
    for start in range(0, len(samples), 1013):
        put(track, start, samples[start : start + 1013])
    for n in range(1, 4):
        track.finish_regular(until=n * 300_000_000 * rate // SECOND, whole=True)
    track.finish_regular(until=len(samples), whole=True, last=True)
    cuts = [n * 3 * rate // 10 for n in range(4)] + [len(samples)]
    assert finished(track) == [(n + 1, cuts[n], cuts[n + 1] - cuts[n]) for n in range(4)]
    on_disk = [wav.read_file(tmp_path / name)[1] for name in names(tmp_path)]
    assert np.array_equal(np.concatenate(on_disk), samples)


def test_slot_is_finished_once(tmp_path: Path) -> None:
    """Finishing the same interval twice makes one segment."""
    track = new_track(tmp_path)
    put(track, 0, noise(RATE))
    for _ in range(2):
        track.finish_regular(until=RATE, whole=True)
    assert finished(track) == [(1, 0, RATE)]
    assert track.segments == []


@pytest.mark.parametrize("whole", [True, False])
def test_silent_slot_is_a_file_where_it_is_owed(tmp_path: Path, whole: bool) -> None:
    """Of a slot without audio there is a file of silence where all tracks are to have one, else none."""
    track = new_track(tmp_path)
    put(track, RATE, noise(RATE))
    track.finish_regular(until=3 * RATE, whole=whole)
    assert [place[1] for place in finished(track)] == ([0, RATE, 2 * RATE] if whole else [RATE])


def test_track_that_is_declared_late_begins_late(tmp_path: Path) -> None:
    """Its first slot begins at its first sample, and its later ones where those of others do."""
    track = new_track(tmp_path, first_sample=2 * RATE)
    put(track, 2 * RATE + 5, noise(RATE))
    track.finish_regular(until=4 * RATE, whole=True)
    assert finished(track) == [(1, 2 * RATE, RATE), (2, 3 * RATE, RATE)]


def test_track_reads_what_is_open_and_what_is_finished(tmp_path: Path) -> None:
    """A mix reads across cuts, from files that are open, named or let go of, and silence where nothing was written."""
    track = new_track(tmp_path)
    samples = noise(2 * RATE)
    put(track, 0, samples)
    track.finish_regular(until=RATE, whole=True)
    finished(track)
    assert np.array_equal(track.read(RATE // 2, 2 * RATE), [*samples[RATE // 2 :], *[0] * (RATE // 2)])
    (tmp_path / "user-000001.wav.part").unlink()
    with pytest.raises(FileNotFoundError):
        track.read(0, RATE)
    assert np.array_equal(track.read(RATE, RATE), samples[RATE:])
    track.close()


# Further slots.


def test_late_audio_is_a_further_segment(tmp_path: Path) -> None:
    """What comes for a finished slot has a file of its own, from its own first sample, and so has what runs on."""
    track = new_track(tmp_path)
    put(track, RATE + 100, noise(50))
    track.finish_regular(until=2 * RATE, whole=True)
    put(track, 300, noise(2 * RATE, 2), now=3 * SECOND)
    put(track, 400 + RATE, noise(10, 3), now=3 * SECOND)
    track.finish_further(now=3 * SECOND + EACH_SECOND.late_ns - 1)
    assert track.added == []
    track.finish_further(now=3 * SECOND + EACH_SECOND.late_ns)
    assert [each.tag.first_sample for each in track.added] == [300, 300 + RATE]
    assert finished(track) == [(2, 0, RATE), (1, RATE, RATE), (3, 300, RATE), (4, 300 + RATE, RATE - 300)]
    track.close()


def test_further_segment_waits_for_more(tmp_path: Path) -> None:
    """A further slot stays open for as long as something comes for it, and is as long as what came."""
    track = new_track(tmp_path)
    track.finish_regular(until=RATE, whole=False)
    put(track, 100, noise(50), now=0)
    put(track, 200, noise(50, 2), now=SECOND // 4)
    track.finish_further(now=SECOND // 2)
    assert finished(track) == []
    track.finish_further(now=SECOND)
    assert finished(track) == [(1, 100, 150)]


# Turns.


def test_turn_marks_move_the_cuts(tmp_path: Path) -> None:
    """A slot begins and ends with a turn, or where what was written ends, and at its full length."""
    track = new_track(tmp_path, AT_TURNS)
    put(track, 0, noise(300))
    assert track.cut_turn(200) == 300 * SECOND // RATE
    assert track.cut_turn(500) == 500 * SECOND // RATE
    assert track.cut_turn(500) == 500 * SECOND // RATE
    put(track, 300, noise(11 * RATE, 2))
    track.finish_regular(until=300 + 11 * RATE, whole=False, last=True)
    assert finished(track) == [
        *((1, 0, 300), (2, 300, 200), (3, 500, 10 * RATE), (4, 500 + 10 * RATE, RATE - 200)),
    ]


def test_turn_that_came_finished_has_a_segment_of_its_own(tmp_path: Path) -> None:
    """`add_turn` moves no cut of what is heard around it, and its file is as long as the turn."""
    track = new_track(tmp_path, AT_TURNS)
    put(track, 0, noise(1000))
    track.add_turn([Piece(2000, noise(500, 2))], now=0)
    track.write(now=0)
    put(track, 2500, noise(100, 3))
    track.finish_further(now=SECOND)
    track.finish_regular(until=3000, whole=False, last=True)
    assert finished(track) == [(2, 2000, 500), (1, 0, 3000)]
    assert np.array_equal(track.read(2000, 600), [*noise(500, 2), *noise(100, 3)])


def test_cut_is_due_when_its_late_window_is_over(tmp_path: Path) -> None:
    """Where turns move the cuts, each slot is due on its own."""
    track = new_track(tmp_path, AT_TURNS)
    track.cut_turn(RATE)
    track.cut_turn(2 * RATE)
    assert track.due_until(SECOND * 3 // 2 - 1) == 0
    assert track.due_until(SECOND * 3 // 2) == RATE
    assert track.due_until(SECOND * 5) == 2 * RATE
    assert track.due_until(SECOND * 13) == 12 * RATE
    assert new_track(tmp_path).cut_turn(RATE) == 0  # here no turn moves a cut


# What is taken back.


def test_erasing_waits_for_no_disk(tmp_path: Path) -> None:
    """What was taken back is silence after the next write, on disk and in RAM; what comes in its place is kept."""
    track = new_track(tmp_path)
    put(track, 0, noise(2 * RATE))
    track.finish_regular(until=RATE, whole=True)
    with failing("pwrite", lambda _: True, errno.ENOSPC):
        track.take([Piece(2 * RATE, noise(1000, 2))])
        track.erase([(RATE - 500, RATE + 500), (2 * RATE - 10, 2 * RATE + 10)])
        track.take([Piece(RATE + 100, noise(50, 3))])
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                track.write(now=0)
    track.write(now=0)
    found = track.read(0, 3 * RATE)
    expected = np.zeros(3 * RATE, np.int16)
    expected[: 2 * RATE], expected[2 * RATE : 2 * RATE + 1000] = noise(2 * RATE), noise(1000, 2)
    expected[RATE : RATE + 500] = expected[2 * RATE - 10 : 2 * RATE + 10] = 0  # a finished file stays as it is
    expected[RATE + 100 : RATE + 150] = noise(50, 3)
    assert np.array_equal(found, expected)
    finished(track)
    track.close()


def test_erasing_reaches_every_file_of_a_place(tmp_path: Path) -> None:
    """Audio that lies where a finished turn has a slot of its own is taken back all the same."""
    track = new_track(tmp_path, AT_TURNS)
    put(track, 500, noise(100))
    track.add_turn([Piece(400, noise(100, 2)), Piece(600, noise(100, 3))], now=0)
    track.write(now=0)
    track.erase([(450, 650)])
    track.write(now=0)
    assert np.array_equal(track.read(400, 300), [*noise(100, 2)[:50], *[0] * 200, *noise(100, 3)[50:]])
    track.close()


# Refusals.


def test_piece_is_written_once_however_often_its_rest_is_refused(tmp_path: Path) -> None:
    """When the second file of a piece across a cut cannot be made, the first does not hold its part again and again."""
    track = new_track(tmp_path)
    track.take([Piece(RATE - 300, noise(500))])
    with failing("open", lambda n: n > 1, errno.EMFILE):
        for _ in range(5):
            with pytest.raises(OSError, match="Too many"):
                track.write(now=0)
    assert [each.unsynced_frames for each in track.segments] == [300]
    assert track.unwritten_frames == 200
    track.write(now=0)
    assert np.array_equal(track.read(RATE - 300, 500), noise(500))
    track.close()


def test_name_that_is_taken_is_passed_over(tmp_path: Path) -> None:
    """A file that has a segment's name stays, and the segment takes the next number."""
    (tmp_path / "user-000001.wav.part").write_text("another's")
    track = new_track(tmp_path)
    track.take([Piece(0, noise(100))])
    with pytest.raises(FileExistsError):
        track.write(now=0)
    track.write(now=0)
    assert (tmp_path / "user-000001.wav.part").read_text() == "another's"
    assert [each.tag.seq for each in track.segments] == [2]
    track.close()


def test_given_up_audio_is_named(tmp_path: Path) -> None:
    """What the disk did not take is dropped on demand, with its ranges; what it took stays."""
    track = new_track(tmp_path)
    put(track, 0, noise(100))
    with failing("pwrite", lambda _: True):
        track.take([Piece(100, noise(50)), Piece(200, noise(50))])
        with pytest.raises(OSError, match="Input/output"):
            track.write(now=0)
    assert track.give_up() == [(100, 150), (200, 250)]
    assert track.unwritten_frames == 0
    track.write(now=0)
    assert np.array_equal(track.read(0, 300), [*noise(100), *[0] * 200])
    track.close()


@pytest.mark.parametrize("operation", ["open", "pwrite", "ftruncate"])
@pytest.mark.parametrize("k", range(1, 7))
def test_finishing_goes_on_where_it_was_refused(tmp_path: Path, operation: str, k: int) -> None:
    """Whichever operation fails once, each slot becomes one segment of its full length."""
    track = new_track(tmp_path)
    put(track, 100, noise(100))
    put(track, 2 * RATE, noise(100))
    with failing(operation, lambda n: n == k):
        for _ in range(2):
            try:
                track.finish_regular(until=3 * RATE, whole=True)
            except OSError as error:
                assert error.errno == errno.EIO  # noqa: PT017 (it may fail, or not)
    assert [place[1:] for place in finished(track)] == [(n * RATE, RATE) for n in range(3)]
    assert len(names(tmp_path)) == 3
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {512 + 2 * RATE}


# All of one call.

CAPTURE = Capture(segment_seconds=2, late_window=1, queue_seconds=5)


class Deck:
    """A tape, with the facts that it gave out."""

    def __init__(self, data_dir: Path, *, pace: str = "live", capture: Capture = CAPTURE) -> None:
        spool.prepare(data_dir)
        call = model.Call(call_id=model.new_call_id(STARTED), started_at=STARTED, pace=pace)
        self.tape = Tape(call, data_dir, writer=WRITER, capture=capture, clock=lambda: STARTED)
        self.directory = self.tape.directory
        self.facts: list[model.Fact] = []

    def advance(self, *items: Item, to: float, sync: bool = True, end: bool = False) -> Progress:
        """Make a step, and the round of fsyncs after it."""
        ending = Ending("hangup", round(to * SECOND)) if end else None
        progress = self.tape.advance(items, now=round(to * SECOND), ending=ending)
        if sync:
            done = self.sync()
            progress.errors += done.errors
        self.facts += progress.facts
        return progress

    def sync(self) -> Progress:
        try:
            fds = self.tape.begin_sync()
        except OSError as error:
            return Progress(errors=[error])
        progress = self.tape.end_sync(durable.sync_all(fds, root=None))
        self.facts += progress.facts
        return progress

    def end(self, to: float) -> None:
        """End the call, and give it as many steps as a recorder would."""
        for _ in range(30):
            self.advance(to=to, end=True)
            if self.tape.has_ended:
                break
        else:
            pytest.fail("the call does not end")
        self.tape.close()

    @property
    def spans(self) -> list[tuple[str, str | None, float, float]]:
        found = [fact for fact in self.facts if isinstance(fact, model.Span)]
        return [(each.kind, each.track, each.start_s, each.end_s) for each in found]

    def audio(self, track: str) -> Samples:
        """Return the track from its sealed files, which must lie end to end."""
        found = [fact for fact in self.facts if isinstance(fact, model.Segment) and fact.track == track]
        parts, end = [], 0
        for fact in sorted(found, key=lambda fact: fact.first_sample):
            _, samples = wav.read_file(spool.segment_path(self.directory, track, fact.seq))
            assert (fact.first_sample, fact.frames) == (end, len(samples))
            end += len(samples)
            parts.append(samples)
        return np.concatenate(parts)

    def check_files(self) -> None:
        """Every file has its fact and every fact its file, in the journal as in what was given out; nothing is open."""
        facts = {fact.segment_id: fact for fact in self.facts if isinstance(fact, model.Segment)}
        files = {spool.segment_path(self.directory, fact.track, fact.seq).name for fact in facts.values()}
        assert {path.name for path in self.directory.iterdir()} == files | {"journal.jsonl"}
        said = journal.read(self.directory / "journal.jsonl")
        assert said.facts == {journal.key_of(fact): fact for fact in self.facts}
        assert not [name for name in open_files() if name.startswith(str(self.directory))]


def heard(track: str, samples: Samples, *, at: float | None = None, rate: int = RATE) -> Stream:
    return Stream(track, rate, "pcm16", [Heard(samples.tobytes(), 0, at)])


@pytest.mark.parametrize("pace", ["live", "media"])
def test_tracks_end_together(data_dir: Path, pace: str) -> None:
    """Tracks of odd rates, one of which fell silent early, and their mix are equally long to within one sample."""
    deck = Deck(data_dir, pace=pace)
    rates = {"user": 11_025, "assistant": 22_050, "third": 8000}
    deck.advance(*(TrackDeclared(name, rate) for name, rate in rates.items()), to=0)
    user, agent = noise(11_025 * 5 + 123), noise(22_050)
    deck.advance(
        heard("user", user, at=0, rate=11_025), heard("assistant", agent, at=0.5, rate=22_050), to=5.1, sync=False
    )
    deck.end(5.2)
    assert deck.tape.call.state == "ended"
    for name, rate in {**rates, MIXED: 22_050}.items():
        assert len(deck.audio(name)) == pytest.approx(deck.tape.call.duration_s * rate, abs=1)
    assert np.array_equal(deck.audio("user")[: len(user)], user)
    deck.check_files()


def test_live_segments_seal_behind_their_late_window(data_dir: Path) -> None:
    """A segment takes audio for a place before until `late_window` after its cut."""
    deck = Deck(data_dir)
    deck.advance(TrackDeclared("user", RATE), heard("user", noise(RATE), at=0), to=0.5)
    deck.advance(heard("user", noise(RATE, 2), at=1), to=2.9)
    assert len(names(deck.directory)) == 2
    deck.advance(heard("user", noise(RATE, 3), at=1.5), to=3)
    for _ in range(3):
        deck.advance(to=3)
    assert deck.tape.on_disk().segments == 2
    deck.end(4)
    assert np.array_equal(deck.audio("user")[: 2 * RATE], [*noise(RATE), *noise(RATE, 2)])
    assert deck.spans == [("late", "user", 1.5, 2.0)]
    assert np.array_equal(deck.audio("user")[2 * RATE : 5 * RATE // 2], noise(RATE, 3)[RATE // 2 :])
    deck.check_files()


def test_lost_audio_is_a_gap(data_dir: Path) -> None:
    """What the queue had no room for is a gap where it belonged."""
    deck = Deck(data_dir)
    deck.advance(TrackDeclared("user", RATE), Lost("user", 1.5, 2 * SECOND), to=4)
    deck.end(4)
    assert deck.spans == [("gap", "user", 2.0, 3.5)]


def test_ended_track_holds_up_no_other(data_dir: Path) -> None:
    """With pace `media` a track that ended no longer holds back the time of the others."""
    deck = Deck(data_dir, pace="media")
    deck.advance(TrackDeclared("user", RATE), TrackDeclared("agent", RATE), heard("user", noise(6 * RATE)), to=0)
    for _ in range(3):
        deck.advance(to=0)
    assert deck.tape.on_disk().segments == 0
    deck.advance(TrackEnded("agent"), to=0)
    for _ in range(3):
        deck.advance(to=0)
    assert deck.tape.on_disk().segments == 6
    deck.end(0)
    deck.check_files()


@pytest.mark.parametrize("operation", ["open", "pwrite", "write", "fdatasync", "fsync"])
def test_disk_that_refuses_for_a_while_loses_nothing(data_dir: Path, operation: str) -> None:
    """While the disk takes nothing audio waits in RAM; when it does again all of it is on disk, without a gap."""
    deck = Deck(data_dir)
    samples = noise(8 * RATE)
    deck.advance(TrackDeclared("user", RATE), heard("user", samples[:RATE], at=0), to=1)
    with failing(operation, lambda _: True, errno.ENOSPC):
        for n in range(1, 5):
            deck.advance(heard("user", samples[n * RATE : (n + 1) * RATE], at=n), to=n + 1)
    deck.advance(heard("user", samples[5 * RATE :], at=5), to=8)
    deck.end(8)
    assert np.array_equal(deck.audio("user"), samples)
    assert deck.spans == []
    deck.check_files()


@pytest.mark.parametrize(("operation", "number"), [("pwrite", errno.ENOSPC), ("fdatasync", errno.EIO)])
def test_disk_that_refuses_too_long_makes_a_gap(data_dir: Path, operation: str, number: int) -> None:
    """Past `queue_seconds` what the disk refused is a gap with a reason, RAM stays bounded, and recording resumes."""
    deck = Deck(data_dir)
    samples = noise(30 * RATE)
    deck.advance(TrackDeclared("user", RATE), to=0)
    deck.advance(heard("user", samples[:RATE], at=0), to=1)
    unsynced = []
    with failing(operation, lambda _: True, number):
        for n in range(1, 20):
            deck.advance(heard("user", samples[n * RATE : (n + 1) * RATE], at=n), to=n + 1)
            unsynced.append(deck.tape.on_disk().unsynced_s)
    assert max(unsynced) <= CAPTURE.queue_seconds + 1
    deck.advance(heard("user", samples[20 * RATE :], at=20), to=30)
    deck.end(30)
    gaps = [fact for fact in deck.facts if isinstance(fact, model.Span)]
    assert {gap.kind for gap in gaps} <= {"gap"}
    assert all(gap.reason for gap in gaps)
    lost = np.zeros(30 * RATE, bool)
    for gap in gaps:
        lost[round(gap.start_s * RATE) : round(gap.end_s * RATE)] = True
    assert not lost[:RATE].any()
    assert not lost[20 * RATE :].any()
    assert np.array_equal(deck.audio("user")[~lost], samples[~lost])
    deck.check_files()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("k", [*range(1, 20), 23, 27, 33, 41, 55])
def test_one_failure_anywhere_ends_well(data_dir: Path, operation: str, k: int) -> None:
    """Whichever disk operation fails once, no step raises, the call ends whole, and no file is left over."""
    deck = Deck(data_dir)
    user, agent = noise(5 * RATE), noise(5 * 11_025, 2)
    message = model.Message(
        message_id="m", call_id=deck.tape.call.call_id, n=1, role="user", text="Hello", created_at=STARTED
    )
    with failing(operation, lambda n: n == k):
        deck.advance(TrackDeclared("user", RATE), TrackDeclared("agent", 11_025), message, to=0)
        for n in range(5):
            mine = heard("user", user[n * RATE :][:RATE], at=n)
            deck.advance(mine, heard("agent", agent[n * 11_025 :][:11_025], at=n, rate=11_025), to=n + 1)
        deck.end(5)
    assert np.array_equal(deck.audio("user"), user)
    assert np.array_equal(deck.audio("agent"), agent)
    assert len(deck.audio(MIXED)) == 5 * 11_025
    assert message in deck.facts
    assert deck.spans == []
    deck.check_files()


def test_process_without_descriptors_loses_nothing(data_dir: Path) -> None:
    """While no file can be opened audio waits; then all of it is on disk, and no descriptor was left open meanwhile."""
    deck = Deck(data_dir)
    samples = noise(6 * RATE)
    deck.advance(TrackDeclared("user", RATE), to=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    deck.advance(heard("user", samples[:RATE], at=0), to=1)
    before = open_files()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        progress = [deck.advance(heard("user", samples[n * RATE :][:RATE], at=n), to=n + 1) for n in range(1, 6)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert errno.EMFILE in {error.errno for each in progress for error in each.errors}
    assert open_files() == before
    deck.end(6)
    assert np.array_equal(deck.audio("user"), samples)
    assert deck.spans == []
    deck.check_files()


def test_call_whose_directory_is_removed_ends_with_gaps(data_dir: Path) -> None:
    """What was in the directory is a gap, what comes after is kept in a new one, and the call ends."""
    deck = Deck(data_dir)
    samples = noise(10 * RATE)
    deck.advance(TrackDeclared("user", RATE), to=0)
    for n in range(10):
        if n == 5:
            shutil.rmtree(deck.directory)
        deck.advance(heard("user", samples[n * RATE :][:RATE], at=n), to=n + 1)
    deck.end(10)
    lost = np.zeros(10 * RATE, bool)
    for kind, track, start, end in deck.spans:
        assert kind == "gap"
        lost[round(start * RATE) : round(end * RATE)] |= track == "user"
    assert not lost[6 * RATE :].any()
    found = [(path, *wav.read_file(path)) for path in deck.directory.glob("user-*.wav")]
    for _, tag, kept in found:
        assert np.array_equal(kept, samples[tag.first_sample :][: len(kept)])
    held = {n for _, tag, kept in found for n in range(tag.first_sample, tag.first_sample + len(kept))}
    assert held >= set(range(6 * RATE, 10 * RATE))
    assert journal.read(deck.directory / "journal.jsonl").facts[deck.tape.call.call_id] == deck.tape.call
    assert deck.tape.call.state == "ended"


def test_stalled_fsync_holds_no_more_than_its_share_of_ram(data_dir: Path) -> None:
    """With a round under way for long, an open segment keeps `queue_seconds` in RAM; a good end loses nothing."""
    deck = Deck(data_dir, capture=Capture(segment_seconds=60, queue_seconds=3))
    samples = noise(12 * RATE)
    deck.advance(TrackDeclared("user", RATE), to=0)
    fds: list[int] = []
    for n in range(12):
        deck.advance(heard("user", samples[n * RATE :][:RATE], at=n), to=n + 1, sync=False)
        fds = fds or deck.tape.begin_sync()
        assert deck.tape.on_disk().unsynced_s <= 4
    deck.tape.end_sync({})
    deck.end(12)
    assert np.array_equal(deck.audio("user"), samples)
    assert deck.spans == []
    deck.check_files()


def test_stalled_fsync_that_fails_names_what_left_ram(data_dir: Path) -> None:
    """When it fails in the end, what was in RAM no more is a gap, and all else is there."""
    deck = Deck(data_dir, capture=Capture(segment_seconds=60, queue_seconds=3))
    samples = noise(12 * RATE)
    deck.advance(TrackDeclared("user", RATE), to=0)
    fds: list[int] = []
    for n in range(12):
        deck.advance(heard("user", samples[n * RATE :][:RATE], at=n), to=n + 1, sync=False)
        fds = fds or deck.tape.begin_sync()
    deck.tape.end_sync(dict.fromkeys(fds, refusal()))
    deck.end(12)
    assert deck.spans == [("gap", "user", 0.0, 9.0)]
    assert np.array_equal(deck.audio("user")[9 * RATE :], samples[9 * RATE :])
    assert not deck.audio("user")[: 9 * RATE].any()
    deck.check_files()


trouble = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(1, 60)), max_size=5, unique=True)


@examples(max_examples=40)
@given(faults=trouble, order=st.permutations(range(6)))
def test_any_few_failures_end_well(
    tmp_path_factory: pytest.TempPathFactory, faults: list[tuple[str, int]], order: list[int]
) -> None:
    """With several failures at any operations, and chunks in any order, all audio is there and no file is left over."""
    deck = Deck(tmp_path_factory.mktemp("data"))
    samples = noise(6 * RATE)

    def picked(name: str) -> Callable[[int], bool]:
        return lambda n: (name, n) in faults

    with ExitStack() as disk:
        for name in OPERATIONS:
            disk.enter_context(failing(name, picked(name)))
        deck.advance(TrackDeclared("user", RATE), to=0)
        for n in order:
            deck.advance(heard("user", samples[n * RATE :][:RATE], at=n), to=1)
        for n in range(2, 7):
            deck.advance(to=n, sync=bool(n % 2))
        deck.end(6)
    assert np.array_equal(deck.audio("user"), samples)
    assert deck.spans == []
    deck.check_files()

"""From pieces to segment files, on disks that refuse: nothing is lost, believed or left behind that should not be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edge_recorder import durable, journal, model, spool, wav
from edge_recorder.model import MIXED
from edge_recorder.settings import Capture
from edge_recorder.tape import Ending, Heard, Item, Lost, Played, Progress, Tape, TrackDeclared, TrackEnded
from edge_recorder.timeline import Chunk, Piece
from edge_recorder.track import OpenSegment, Track
from edge_recorder.wav import Samples, Tag

STARTED = 1_790_000_000_000_000
SECOND = 1_000_000_000
RATE = 8000
WRITER = "abcdef123456-01234567"


def noise(frames: int, seed: int = 1) -> Samples:
    return np.random.default_rng(seed).integers(-9000, 9000, frames, np.int16)


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def new_tag(rate: int = RATE, track: str = "user") -> Tag:
    call_id = model.new_call_id(STARTED)
    return Tag(call_id=call_id, started_at=STARTED, track=track, seq=1, first_sample=0, rate=rate, writer=WRITER)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def failing(name: str, when: Callable[[int], bool], number: int = errno.EIO) -> Iterator[list[int]]:
    """Let those calls of `durable.<name>` fail that `when` picks by their count, from 1. Yields the failed ones."""
    real = getattr(durable, name)
    count, failed = [0], []

    def call(*args: object, **kwargs: object) -> object:
        count[0] += 1
        if when(count[0]):
            failed.append(count[0])
            raise error(number)
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, name, call)
        yield failed


# One segment.


def test_segment_is_written_by_position(tmp_path: Path) -> None:
    """Pieces in any order are at their places, and silence is between them."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(500, noise(100)))
    segment.write(Piece(0, noise(50, 2)))
    path = segment.seal(1000)
    segment.close()
    _, samples = wav.read_file(path)
    expected = np.zeros(1000, np.int16)
    expected[500:600], expected[:50] = noise(100), noise(50, 2)
    assert np.array_equal(samples, expected)


def test_header_follows_every_flush(tmp_path: Path) -> None:
    """An unsealed file is a right WAV up to its last flush, and says how far it was synced for certain."""
    segment = OpenSegment(tmp_path, new_tag())
    path = tmp_path / "user-000001.wav.part"
    segment.write(Piece(0, noise(100)))
    segment.sync()
    segment.write(Piece(100, noise(60)))
    segment.write_header()
    tag, samples = wav.read_file(path)
    assert tag.synced == 100
    assert path.read_bytes()[508:512] == (2 * 160).to_bytes(4, "little")
    assert np.array_equal(samples, [*noise(100), *noise(60)])
    segment.close()


def test_failed_seal_claims_nothing_synced(tmp_path: Path) -> None:
    """A seal whose fsync fails has not written into the file that all of it is synced: salvage would believe that."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(100)))
    segment.sync()
    segment.write(Piece(100, noise(100)))
    with failing("sync_data", lambda _: True), pytest.raises(OSError, match="Input/output"):
        segment.seal(200)
    assert wav.read_file(tmp_path / "user-000001.wav.part")[0].synced == 100
    assert segment.suspect
    segment.close()


@pytest.mark.parametrize("failures", [1, 3])
def test_seal_whose_directory_fsync_fails_is_retried(tmp_path: Path, failures: int) -> None:
    """When only the name could not be made durable, the next seal finishes the same file."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(100)))
    segment.sync()
    for _ in range(failures):
        with failing("fsync_dir", lambda _: True), pytest.raises(OSError, match="Input/output"):
            segment.seal(100)
    segment.sync()
    assert segment.seal(100) == tmp_path / "user-000001.wav"
    segment.close()
    assert [path.name for path in tmp_path.iterdir()] == ["user-000001.wav"]
    assert np.array_equal(wav.read_file(tmp_path / "user-000001.wav")[1], noise(100))


def test_segment_that_is_renamed_but_not_sealed_is_copied_whole(tmp_path: Path) -> None:
    """When the name could not be made durable, and then the next fsync fails, the new file has all of the old one."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(100)))
    segment.sync()
    segment.write(Piece(100, noise(100, 2)))
    for step in ("fsync_dir", "sync_data"):
        with failing(step, lambda _: True), pytest.raises(OSError, match="Input/output"):
            segment.seal(200)
    moved = segment.move_to(tmp_path, 2)
    path = moved.seal(200)
    moved.close()
    assert np.array_equal(wav.read_file(path)[1], [*noise(100), *noise(100, 2)])


def test_segment_that_cannot_be_begun_leaves_nothing(tmp_path: Path) -> None:
    """When not even the header can be written, neither a file nor a descriptor stays."""
    before = open_files()
    with failing("write_all", lambda _: True, errno.ENOSPC), pytest.raises(OSError, match="No space"):
        OpenSegment(tmp_path, new_tag())
    assert list(tmp_path.iterdir()) == []
    assert open_files() == before


def test_move_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    """When the new file fails as well, it is removed and the old one stays, with its audio still in RAM."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(100)))
    with failing("sync_data", lambda _: True):
        with pytest.raises(OSError, match="Input/output"):
            segment.sync()
        with pytest.raises(OSError, match="Input/output"):
            segment.move_to(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["user-000001.wav.part"]
    moved = segment.move_to(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["user-000003.wav.part"]
    assert np.array_equal(moved.read(0, 100), noise(100))
    moved.close()


# One track.


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_track_is_cut_at_whole_intervals(tmp_path: Path, rate: int) -> None:
    """At any rate, segments begin where their interval does and lie end to end, sample for sample."""
    track = Track(tmp_path, new_tag(rate), segment_ns=SECOND, live=False)
    samples = noise(rate * 3 + 77)
    for start in range(0, len(samples), 1013):
        track.take([Piece(start, samples[start : start + 1013])])
        track.write()
    facts = [track.seal(n, rate * (n + 1), now=STARTED) for n in range(3)]
    facts.append(track.seal(3, len(samples), now=STARTED))
    assert [(fact.seq, fact.first_sample) for fact in facts] == [(n + 1, n * rate) for n in range(4)]
    on_disk = [wav.read_file(spool.segment_path(tmp_path, "user", fact.seq))[1] for fact in facts]
    assert np.array_equal(np.concatenate(on_disk), samples)
    assert [len(each) for each in on_disk] == [fact.frames for fact in facts]


def test_sealed_segment_is_not_sealed_again(tmp_path: Path) -> None:
    """Sealing an interval twice makes one segment."""
    track = Track(tmp_path, new_tag(), segment_ns=SECOND, live=False)
    track.take([Piece(0, noise(RATE))])
    track.write()
    assert track.seal(0, RATE, now=STARTED) is not None
    assert track.seal(0, RATE, now=STARTED) is None
    assert [path.name for path in tmp_path.iterdir()] == ["user-000001.wav"]


def test_track_reads_what_is_open_and_what_is_sealed(tmp_path: Path) -> None:
    """The mix reads across cuts, from sealed and open files alike, and silence where nothing was written."""
    track = Track(tmp_path, new_tag(), segment_ns=SECOND, live=False)
    samples = noise(2 * RATE)
    track.take([Piece(0, samples)])
    track.write()
    track.seal(0, RATE, now=STARTED)
    assert np.array_equal(track.read(RATE // 2, 2 * RATE), [*samples[RATE // 2 :], *[0] * (RATE // 2)])
    track.forget(1)
    assert not track.read(0, RATE).any()
    track.close()


@pytest.mark.parametrize("broken", ["sync_data", "fsync_dir", "write_all"])
@pytest.mark.parametrize("k", range(1, 9))
def test_one_failure_anywhere_loses_nothing(tmp_path: Path, broken: str, k: int) -> None:
    """Whichever write or fsync fails once, all audio is in sealed files in the end, once, and nothing is left over."""
    track = Track(tmp_path, new_tag(), segment_ns=SECOND, live=False)
    samples = noise(2 * RATE)
    facts: dict[int, model.Segment] = {}
    before = open_files()

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as failure:
            assert failure.errno == errno.EIO  # noqa: PT017 (it may fail, or not)

    def seal(interval: int) -> None:
        fact = track.seal(interval, RATE * (interval + 1), now=STARTED)
        if fact is not None:
            facts[interval] = fact

    with failing(broken, lambda n: n == k) as failed:
        for start in range(0, len(samples), RATE // 4):
            track.take([Piece(start, samples[start : start + RATE // 4])])
            attempt(track.write)
            attempt(track.sync)
        for interval in (0, 0, 1, 1):
            attempt(track.write)
            attempt(track.sync)
            attempt(lambda number=interval: seal(number))
    assert failed in ([k], [])  # there are no more calls than there are
    assert sorted(facts) == [0, 1]
    names = {f"user-{fact.seq:06d}.wav" for fact in facts.values()}
    assert {path.name for path in tmp_path.iterdir()} == names
    for interval, fact in facts.items():
        tag, found = wav.read_file(tmp_path / f"user-{fact.seq:06d}.wav")
        assert (tag.seq, tag.first_sample) == (fact.seq, interval * RATE)
        assert np.array_equal(found, samples[interval * RATE :][:RATE])
    assert open_files() == before


def test_file_whose_fsync_failed_is_replaced(tmp_path: Path) -> None:
    """A failed fsync is not tried again on its file: all goes to a new number, and the old file is removed."""
    track = Track(tmp_path, new_tag(), segment_ns=30 * SECOND, live=False)
    track.take([Piece(0, noise(RATE))])
    track.write()
    track.sync()
    track.take([Piece(RATE, noise(RATE, 2))])
    track.write()
    with failing("sync_data", lambda n: n == 1) as failed:
        track.sync()
    assert failed == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["user-000002.wav.part"]
    assert np.array_equal(track.read(0, 2 * RATE), [*noise(RATE), *noise(RATE, 2)])
    track.close()


# One tape.

CAPTURE = Capture(segment_seconds=2, late_window=1, queue_seconds=5)


class Deck:
    """A tape, with the facts that it gave out and the time that its call has come to."""

    def __init__(self, data_dir: Path, *, pace: str = "live", capture: Capture = CAPTURE) -> None:
        spool.prepare(data_dir)
        call = model.Call(call_id=model.new_call_id(STARTED), started_at=STARTED, pace=pace)
        self.tape = Tape(call, data_dir, writer=WRITER, capture=capture, clock=lambda: STARTED)
        self.directory = self.tape.directory
        self.facts: list[model.Fact] = []

    def advance(self, *items: Item, to: float, sync: bool = True, end: bool = False) -> Progress:
        ending = Ending("hangup", round(to * SECOND)) if end else None
        progress = self.tape.advance(items, now=round(to * SECOND), sync=sync, ending=ending)
        self.facts += progress.facts
        return progress

    def end(self, to: float) -> None:
        """End the call, and give it as many turns as a recorder would."""
        self.advance(to=to, end=True)
        for _ in range(20):
            if self.advance(to=to).ended:
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
        """Every file has its fact and every fact its file, in the journal as in what was given out."""
        facts = {fact.segment_id: fact for fact in self.facts if isinstance(fact, model.Segment)}
        files = {spool.segment_path(self.directory, fact.track, fact.seq).name for fact in facts.values()}
        assert {path.name for path in self.directory.iterdir()} == files | {"journal.jsonl"}
        said = journal.read(self.directory / "journal.jsonl")
        assert said.facts == {journal.key_of(fact): fact for fact in self.facts}


def heard(track: str, samples: Samples, *, at: float | None = None, arrived: float = 0) -> Heard:
    return Heard(track, Chunk(samples, at, round(arrived * SECOND)))


@pytest.mark.parametrize("pace", ["live", "media"])
def test_tracks_end_together(data_dir: Path, pace: str) -> None:
    """Tracks of odd rates, one of which fell silent early, and their mix are equally long to within one sample."""
    deck = Deck(data_dir, pace=pace)
    rates = {"user": 11_025, "assistant": 22_050, "third": 8000}
    deck.advance(*(TrackDeclared(name, rate) for name, rate in rates.items()), to=0)
    deck.advance(
        heard("user", noise(11_025 * 5 + 123), at=0), heard("assistant", noise(22_050), at=0.5), to=5.1, sync=False
    )
    deck.end(5.2)
    call = next(fact for fact in reversed(deck.facts) if isinstance(fact, model.Call))
    assert call.state == "ended"
    for name, rate in {**rates, MIXED: 22_050}.items():
        assert len(deck.audio(name)) == pytest.approx(call.duration_s * rate, abs=1)
    assert np.array_equal(deck.audio("user")[: 11_025 * 5 + 123], noise(11_025 * 5 + 123))
    deck.check_files()


def test_live_segments_seal_behind_their_late_window(data_dir: Path) -> None:
    """A segment takes late audio until `late_window` after its cut; what comes then is told as late."""
    deck = Deck(data_dir)
    deck.advance(TrackDeclared("user", RATE), heard("user", noise(RATE), at=0), to=2.5)
    deck.advance(heard("user", noise(RATE, 2), at=1), to=2.9)
    assert deck.tape.segments == 0
    deck.advance(to=3)
    assert deck.tape.segments == 2
    deck.advance(heard("user", noise(RATE, 3), at=1.5), to=3.1)
    deck.end(4)
    assert np.array_equal(deck.audio("user")[: 2 * RATE], [*noise(RATE), *noise(RATE, 2)])
    assert deck.spans == [("late", "user", 1.5, 2.0)]
    deck.check_files()


def test_speech_queued_at_the_end_is_unheard(data_dir: Path) -> None:
    """What the speaker had still to play at the end is not recorded, though a slow disk was waited for."""
    deck = Deck(data_dir)
    deck.advance(TrackDeclared("assistant", RATE), to=0)
    played = Played("assistant", noise(10 * RATE), 0)
    progress = deck.tape.advance([played], now=20 * SECOND, sync=True, ending=Ending("hangup", 3 * SECOND))
    deck.facts += progress.facts
    deck.tape.close()
    assert progress.ended
    assert np.array_equal(deck.audio("assistant"), noise(10 * RATE)[: 3 * RATE])
    assert deck.spans == [("unheard", "assistant", 3.0, 10.0)]
    assert deck.tape.call.duration_s == 3


def test_declared_tracks_are_said_once(data_dir: Path) -> None:
    """Tracks that the call was started with are no news; one that is declared later is, beside the others."""
    spool.prepare(data_dir)
    call = model.Call(call_id=model.new_call_id(STARTED), started_at=STARTED, tracks='{"user": 8000, "agent": 16000}')
    tape = Tape(call, data_dir, writer=WRITER, capture=CAPTURE, clock=lambda: STARTED)
    declared = [TrackDeclared("user", 8000), TrackDeclared("agent", 16_000)]
    assert tape.advance(declared, now=0, sync=True).facts == [call]
    (news,) = tape.advance([TrackDeclared("third", 8000)], now=0, sync=True).facts
    assert news.tracks == '{"user": 8000, "agent": 16000, "third": 8000}'
    tape.close()


def test_full_disk_for_a_while_loses_nothing(data_dir: Path) -> None:
    """While the disk is full audio waits in RAM; with room again all of it is on disk, without a gap."""
    deck = Deck(data_dir)
    samples = noise(8 * RATE)
    deck.advance(TrackDeclared("user", RATE), heard("user", samples[:RATE], at=0), to=1)
    with failing("write_all", lambda _: True, errno.ENOSPC):
        for n in range(1, 5):
            progress = deck.advance(heard("user", samples[n * RATE : (n + 1) * RATE], at=n), to=n + 1)
            assert [each.errno for each in progress.errors]
            assert not progress.synced
    deck.advance(heard("user", samples[5 * RATE :], at=5), to=8)
    deck.end(8)
    assert np.array_equal(deck.audio("user"), samples)
    assert deck.spans == []
    deck.check_files()


@pytest.mark.parametrize(("broken", "number"), [("write_all", errno.ENOSPC), ("sync_data", errno.EIO)])
def test_disk_that_refuses_too_long_makes_a_gap(data_dir: Path, broken: str, number: int) -> None:
    """Past `queue_seconds` what the disk refused is a gap with the reason, RAM stays bounded, and recording resumes."""
    deck = Deck(data_dir)
    samples = noise(30 * RATE)
    deck.advance(TrackDeclared("user", RATE), heard("user", samples[:RATE], at=0), to=1)
    waiting = []
    with failing(broken, lambda _: True, number):
        for n in range(1, 20):
            deck.advance(heard("user", samples[n * RATE : (n + 1) * RATE], at=n), to=n + 1)
            waiting.append(deck.tape._tracks["user"].refused_frames)
    assert max(waiting) <= (CAPTURE.queue_seconds + 1) * RATE
    deck.advance(heard("user", samples[20 * RATE :], at=20), to=30)
    deck.end(30)
    gaps = [fact for fact in deck.facts if isinstance(fact, model.Span)]
    assert {gap.kind for gap in gaps} == {"gap"}
    assert {gap.reason for gap in gaps} == {f"the disk refused it: {os.strerror(number)}"}
    audio = deck.audio("user")
    lost = np.zeros(30 * RATE, bool)
    for gap in gaps:
        lost[round(gap.start_s * RATE) : round(gap.end_s * RATE)] = True
    assert not lost[:RATE].any()
    assert not lost[20 * RATE :].any()
    assert np.array_equal(audio[~lost], samples[~lost])
    deck.check_files()


@pytest.mark.parametrize("broken", ["sync_data", "fsync_dir", "write_all", "make_dirs"])
@pytest.mark.parametrize("k", [*range(1, 14), 17, 21, 25])
def test_one_failure_anywhere_ends_well(data_dir: Path, broken: str, k: int) -> None:
    """Whichever disk operation fails once, `advance` does not raise, the call ends whole, and no file is left over."""
    deck = Deck(data_dir)
    user, agent = noise(5 * RATE), noise(5 * 11_025, 2)
    message = model.Message(
        message_id="m", call_id=deck.tape.call.call_id, n=1, role="user", text="Hello", created_at=STARTED
    )
    with failing(broken, lambda n: n == k):
        deck.advance(TrackDeclared("user", RATE), TrackDeclared("agent", 11_025), message, to=0)
        for n in range(5):
            chunks = (heard("user", user[n * RATE :][:RATE], at=n), heard("agent", agent[n * 11_025 :][:11_025], at=n))
            deck.advance(*chunks, to=n + 1)
        deck.end(5)
    assert np.array_equal(deck.audio("user"), user)
    assert np.array_equal(deck.audio("agent"), agent)
    assert len(deck.audio(MIXED)) == 5 * 11_025
    assert message in deck.facts
    assert deck.spans == []
    deck.check_files()


def test_facts_after_a_failed_fsync_are_written_again(data_dir: Path) -> None:
    """A journal whose fsync failed is not believed: its facts are given out only once they were written anew."""
    deck = Deck(data_dir)
    deck.advance(to=0)
    message = model.Message(message_id="m", call_id="c", n=1, role="user", text="Hello", created_at=STARTED)
    path = deck.directory / "journal.jsonl"
    with failing("sync_data", lambda _: True):
        assert deck.advance(message, to=1).facts == []
    os.truncate(path, path.stat().st_size - 30)  # what a disk may then have of it
    assert deck.advance(to=2).facts == [message]
    assert journal.read(path).facts["m"] == message
    deck.tape.close()


def test_unsynced_facts_are_not_given_out(data_dir: Path) -> None:
    """A fact becomes a row only once it is synced in the journal."""
    deck = Deck(data_dir)
    message = model.Message(message_id="m", call_id="c", n=1, role="user", text="Hello", created_at=STARTED)
    assert deck.advance(message, to=0, sync=False).facts == []
    assert deck.advance(to=1, sync=True).facts == [deck.tape.call, message]
    deck.tape.close()


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
    assert deck.tape.segments == 0
    deck.advance(TrackEnded("agent"), to=0)
    assert deck.tape.segments == 6
    deck.end(0)


trouble = st.lists(
    st.tuples(st.sampled_from(["sync_data", "fsync_dir", "write_all"]), st.integers(1, 40)), max_size=4, unique=True
)


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

    with (
        failing("sync_data", picked("sync_data")),
        failing("fsync_dir", picked("fsync_dir")),
        failing("write_all", picked("write_all")),
    ):
        deck.advance(TrackDeclared("user", RATE), to=0)
        for n in order:
            deck.advance(heard("user", samples[n * RATE :][:RATE], at=n), to=1)
        for n in range(2, 7):
            deck.advance(to=n, sync=bool(n % 2))
        deck.end(6)
    assert np.array_equal(deck.audio("user"), samples)
    assert deck.spans == []
    deck.check_files()

"""One segment file on a disk that refuses: what is not in it was said to be lost, and nothing is taken for synced."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest
from disks import RATE, STARTED, failing, names, new_tag, noise, open_files
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_recorder import durable, wav
from edge_recorder.segment import BLOCK, OpenSegment, write_whole
from edge_recorder.timeline import Piece


def sync(segment: OpenSegment) -> None:
    durable.sync_data(segment.begin_sync())
    segment.synced()


def fail(segment: OpenSegment) -> None:
    """Let an fsync fail that drops what it could not write."""
    segment.begin_sync()
    segment.failed()


def test_segment_is_written_by_position(tmp_path: Path) -> None:
    """Pieces in any order are at their places, and silence is between them and to the full length."""
    segment = OpenSegment(tmp_path, new_tag(first_sample=7000))
    segment.write(Piece(7500, noise(100)))
    segment.write(Piece(7000, noise(50, 2)))
    segment.finish(1000)
    sync(segment)
    segment.name()
    segment.close()
    tag, samples = wav.read_file(tmp_path / "user-000001.wav")
    expected = np.zeros(1000, np.int16)
    expected[500:600], expected[:50] = noise(100), noise(50, 2)
    assert np.array_equal(samples, expected)
    assert (tag.first_sample, tag.synced) == (7000, 1000)


def test_header_follows_every_round(tmp_path: Path) -> None:
    """An unsealed file is a right WAV up to its last round, and says how far it is synced for certain."""
    segment = OpenSegment(tmp_path, new_tag())
    path = tmp_path / "user-000001.wav.part"
    segment.write(Piece(0, noise(100)))
    segment.begin_sync()
    segment.write(Piece(100, noise(60)))
    assert wav.read_file(path)[0].synced == 0
    segment.synced()
    tag, samples = wav.read_file(path)
    assert tag.synced == 100
    assert path.read_bytes()[508:512] == (2 * 160).to_bytes(4, "little")
    assert np.array_equal(samples, [*noise(100), *noise(60)])
    assert segment.unsynced_frames == 60
    segment.close()


def test_failed_fsync_claims_nothing(tmp_path: Path) -> None:
    """After a failed fsync the header claims what it did before, and no other fsync is asked of that file."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(100)))
    sync(segment)
    segment.write(Piece(100, noise(100)))
    segment.finish(200)
    fail(segment)
    assert wav.read_file(tmp_path / "user-000001.wav.part")[0].synced == 100
    assert segment.is_dirty
    assert not segment.needs_sync
    segment.close()


def test_erasing_leaves_the_rest(tmp_path: Path) -> None:
    """Silence is written over what is in the file, and the file grows no longer by it."""
    segment = OpenSegment(tmp_path, new_tag(first_sample=1000))
    segment.write(Piece(1000, noise(100)))
    segment.erase(0, 1010)
    segment.erase(1090, 5000)
    segment.erase(3000, 4000)
    assert segment.frames == 100
    assert np.array_equal(segment.read(0, 200), [*[0] * 10, *noise(100)[10:90], *[0] * 10])
    segment.close()


def test_segment_that_cannot_be_begun_leaves_nothing(tmp_path: Path) -> None:
    """When not even the header can be written, neither a file nor a descriptor stays."""
    before = open_files()
    with failing("pwrite", lambda _: True, errno.ENOSPC), pytest.raises(OSError, match="No space"):
        OpenSegment(tmp_path, new_tag())
    assert names(tmp_path) == []
    assert open_files() == before


def test_file_that_is_there_is_not_written_into(tmp_path: Path) -> None:
    """A name that is taken is an error, and what has it stays as it is."""
    (tmp_path / "user-000001.wav.part").write_text("another's")
    with pytest.raises(FileExistsError):
        OpenSegment(tmp_path, new_tag())
    assert (tmp_path / "user-000001.wav.part").read_text() == "another's"


@pytest.mark.parametrize("operation", ["pwrite", "ftruncate"])
def test_whole_segment_that_fails_leaves_nothing(tmp_path: Path, operation: str) -> None:
    """A segment made in one go is there at its full length, or not at all."""
    before = open_files()
    with failing(operation, lambda n: n == (2 if operation == "pwrite" else 1)), pytest.raises(OSError, match="Input"):
        write_whole(tmp_path, new_tag(), noise(100))
    assert names(tmp_path) == []
    assert open_files() == before
    write_whole(tmp_path, new_tag(), noise(100)).close()
    assert names(tmp_path) == ["user-000001.wav.part"]


def test_half_written_piece_is_written_again(tmp_path: Path) -> None:
    """Where the file may grow no further, a piece that is on disk in part is not taken for written; then it is."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(100)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 + 2 * 150, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            segment.write(Piece(100, noise(100, 2)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (segment.frames, segment.unsynced_frames) == (100, 100)
    segment.write(Piece(100, noise(100, 2)))
    assert np.array_equal(segment.read(0, 300), [*noise(100), *noise(100, 2)])
    segment.abandon()


# A new file after a failed fsync.


def test_move_takes_the_synced_part_from_disk_and_the_rest_from_ram(tmp_path: Path) -> None:
    """What the disk has of the unsynced part is not believed; the old file goes when the new one is synced."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(3 * BLOCK)))
    sync(segment)
    segment.write(Piece(3 * BLOCK, noise(100, 2)))
    with (tmp_path / "user-000001.wav.part").open("r+b") as file:
        file.seek(512 + 2 * 3 * BLOCK)
        file.write(b"\x77" * 200)
    fail(segment)
    assert segment.move(2) == []
    assert names(tmp_path) == ["user-000001.wav.part", "user-000002.wav.part"]
    tag, samples = wav.read_file(tmp_path / "user-000002.wav.part")
    assert (tag.seq, tag.synced) == (2, 0)
    assert np.array_equal(samples, [*noise(3 * BLOCK), *noise(100, 2)])
    sync(segment)
    assert names(tmp_path) == ["user-000002.wav.part"]
    segment.close()


def test_segment_moves_twice(tmp_path: Path) -> None:
    """When the new file fails too, the next is made from the first one, and the one between goes."""
    before = open_files()
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(100)))
    sync(segment)
    for seq in (2, 3):
        segment.write(Piece(100 * (seq - 1), noise(100, seq)))
        fail(segment)
        assert segment.move(seq) == []
    assert names(tmp_path) == ["user-000001.wav.part", "user-000003.wav.part"]
    sync(segment)
    assert names(tmp_path) == ["user-000003.wav.part"]
    assert np.array_equal(segment.read(0, 300), [*noise(100), *noise(100, 2), *noise(100, 3)])
    segment.close()
    assert open_files() == before


@pytest.mark.parametrize("operation", ["open", "pwrite", "ftruncate"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_move_that_fails_keeps_the_old_file(tmp_path: Path, operation: str, k: int) -> None:
    """When the new file cannot be made, nothing of it stays, and the next move finds all that this one did."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(100)))
    sync(segment)
    segment.write(Piece(100, noise(100, 2)))
    fail(segment)
    before = open_files()
    with failing(operation, lambda n: n == k) as failed:
        try:
            segment.move(2)
        except OSError as error:
            assert error.errno == errno.EIO  # noqa: PT017 (it may fail, or not)
    if failed:
        assert names(tmp_path) == ["user-000001.wav.part"]
        assert open_files() == before
        segment.move(3)
    assert np.array_equal(segment.read(0, 300), [*noise(100), *noise(100, 2)])
    assert not segment.suspect
    segment.close()


@pytest.fixture
def late(tmp_path: Path) -> OpenSegment:
    """A segment with two pieces in a round and two behind it, of which RAM keeps only the last."""
    segment = OpenSegment(tmp_path, new_tag())
    for n in range(4):
        if n == 2:
            segment.begin_sync()
        segment.write(Piece(100 * n, noise(100, n)))
    segment.forget(150)
    return segment


def test_what_left_ram_is_lost_when_its_fsync_fails(late: OpenSegment) -> None:
    """With an fsync under way for too long the oldest audio leaves RAM; when it fails, the move says which."""
    assert late.unsynced_frames == 100
    late.failed()
    assert late.move(2) == [(0, 100), (100, 200), (200, 300)]
    assert not late.read(0, 300).any()
    assert np.array_equal(late.read(300, 100), noise(100, 3))
    late.abandon()


def test_what_left_ram_is_not_lost_when_its_fsync_succeeds(late: OpenSegment) -> None:
    """A round that ends well covers what left RAM meanwhile, and nothing that came after it began."""
    late.synced()
    fail(late)
    assert late.move(2) == [(200, 300)]
    assert np.array_equal(late.read(0, 200), [*noise(100, 0), *noise(100, 1)])
    assert np.array_equal(late.read(300, 100), noise(100, 3))
    late.abandon()


def test_giving_up_during_a_round_does_not_end_it(tmp_path: Path) -> None:
    """What comes after it is not taken for a part of the round that was under way."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(100)))
    segment.begin_sync()
    assert segment.give_up() == [(0, 100)]
    segment.write(Piece(100, noise(50, 2)))
    segment.synced()
    assert (segment.unsynced_frames, segment.is_dirty) == (50, True)
    segment.abandon()


def test_outcome_of_a_file_that_was_left_counts_for_nothing(tmp_path: Path) -> None:
    """What is said of an fsync that was under way when its segment moved is not taken for the new file's."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(100)))
    for seq, tell in ((2, segment.synced), (3, segment.failed)):
        segment.begin_sync()
        segment.move(seq)
        tell()
        assert segment.needs_sync
        assert segment.unsynced_frames == 100
    segment.abandon()
    assert names(tmp_path) == []


def test_what_the_disk_does_not_give_back_is_lost(tmp_path: Path) -> None:
    """What can be read of a synced part is saved, what cannot is told, and the old file stays for a person."""
    segment = OpenSegment(tmp_path, new_tag(first_sample=1000))
    segment.write(Piece(1000, noise(3 * BLOCK)))
    sync(segment)
    segment.write(Piece(1000 + 3 * BLOCK, noise(10, 2)))
    fail(segment)
    with failing("pread", lambda n: n == 2):
        assert segment.move(2) == [(1000 + BLOCK, 1000 + 2 * BLOCK)]
    sync(segment)
    assert names(tmp_path) == ["user-000001.wav.part", "user-000002.wav.part"]
    found = segment.read(0, 3 * BLOCK + 10)
    expected = np.concatenate((noise(3 * BLOCK), noise(10, 2)))
    expected[BLOCK : 2 * BLOCK] = 0
    assert np.array_equal(found, expected)
    segment.close()


def test_file_that_was_cut_short_is_lost_behind_the_cut(tmp_path: Path) -> None:
    """Where another truncated the file, the move says what is missing."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(1000)))
    sync(segment)
    fail(segment)
    os.truncate(tmp_path / "user-000001.wav.part", 512 + 2 * 600)
    assert segment.move(2) == [(600, 1000)]
    assert np.array_equal(segment.read(0, 600), noise(1000)[:600])
    segment.abandon()


def test_removed_file_is_saved_by_a_move(tmp_path: Path) -> None:
    """A file that was removed under us is still open: a move has all of it."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(100)))
    sync(segment)
    (tmp_path / "user-000001.wav.part").unlink()
    with pytest.raises(FileNotFoundError):
        segment.name()
    fail(segment)
    assert segment.move(2) == []
    assert np.array_equal(wav.read_file(tmp_path / "user-000002.wav.part")[1], noise(100))
    segment.abandon()
    assert names(tmp_path) == []


def test_finished_segment_is_read_under_its_name(tmp_path: Path) -> None:
    """Once it is named and let go of, it is opened again to be read; its fact says what is in it."""
    segment = write_whole(tmp_path, new_tag(first_sample=RATE), noise(100))
    sync(segment)
    segment.name()
    segment.close()
    assert names(tmp_path) == ["user-000001.wav"]
    before = open_files()
    assert np.array_equal(segment.read(20, 500), noise(100)[20:])
    assert open_files() == before
    fact = segment.fact(now=STARTED)
    assert (fact.first_sample, fact.frames, fact.started_at) == (RATE, 100, STARTED + 1_000_000)


FRAMES = 600
GARBAGE = np.full(FRAMES, 0x7777, np.int16).tobytes()
places = st.tuples(st.integers(0, FRAMES - 1), st.integers(1, 200)).map(lambda p: (p[0], min(FRAMES, p[0] + p[1])))
FIRST = 5000


class OneSegment(RuleBasedStateMachine):
    """Any life of a segment, on a disk that forgets what an fsync failed for and then tells of success."""

    def __init__(self) -> None:
        super().__init__()
        self.room = tempfile.TemporaryDirectory()
        self.directory = Path(self.room.name)
        self.before = open_files()
        self.segment = OpenSegment(self.directory, new_tag(first_sample=FIRST))
        self.seq = 1
        self.expected = np.zeros(FRAMES, np.int16)
        self.unsynced = np.zeros(FRAMES, bool)  # since the last good fsync of this file
        self.doubtful = np.zeros(FRAMES, bool)  # may be in RAM no more
        self.lost = np.zeros(FRAMES, bool)
        self.in_round: tuple[np.ndarray, np.ndarray] | None = None  # expected, unsynced
        self.since = np.zeros(FRAMES, bool)  # written since the round began
        self.durable = np.zeros(FRAMES, np.int16)

    def teardown(self) -> None:
        if self.segment.suspect:
            self.move()
        self.segment.finish(FRAMES)
        self.begin()
        self.end_well()
        assert not self.segment.is_dirty
        self.segment.name()
        self.segment.close()
        assert names(self.directory) == [f"user-{self.seq:06d}.wav"]
        assert open_files() == self.before
        tag, samples = wav.read_file(self.directory / f"user-{self.seq:06d}.wav")
        assert (tag.seq, tag.synced, len(samples)) == (self.seq, FRAMES, FRAMES)
        assert np.array_equal(samples[~self.lost], self.expected[~self.lost])
        self.room.cleanup()

    @rule(place=places, seed=st.integers(0, 1 << 20))
    def write(self, place: tuple[int, int], seed: int) -> None:
        first, end = place
        self.segment.write(Piece(FIRST + first, noise(end - first, seed)))
        self.note(first, end, noise(end - first, seed))

    @rule(place=places, seed=st.integers(0, 1 << 20), number=st.sampled_from([errno.ENOSPC, errno.EIO]))
    def write_what_the_disk_refuses_first(self, place: tuple[int, int], seed: int, number: int) -> None:
        first, end = place
        piece = Piece(FIRST + first, noise(end - first, seed))
        with failing("pwrite", lambda _: True, number), pytest.raises(OSError, match=r"\[Errno"):
            self.segment.write(piece)
        self.segment.write(piece)
        self.note(first, end, noise(end - first, seed))

    @rule(place=places)
    def erase(self, place: tuple[int, int]) -> None:
        first, end = place
        self.segment.erase(FIRST + first, FIRST + end)
        end = min(end, self.segment.frames)
        if first < end:
            self.note(first, end, np.zeros(end - first, np.int16))

    @precondition(lambda self: not self.segment.suspect)
    @rule()
    def begin(self) -> None:
        self.segment.begin_sync()
        self.in_round = (self.expected.copy(), self.unsynced.copy())
        self.since[:] = False

    @precondition(lambda self: self.in_round is not None)
    @rule()
    def end_well(self) -> None:
        assert self.in_round is not None
        self.segment.synced()
        self.durable[:], _ = self.in_round
        self.unsynced, self.in_round = self.since.copy(), None

    @precondition(lambda self: self.in_round is not None)
    @rule()
    def end_badly(self) -> None:
        self.segment.failed()
        self.in_round = None
        with (self.directory / f"user-{self.seq:06d}.wav.part").open("r+b") as file:
            for n in np.flatnonzero(self.unsynced).tolist():
                file.seek(512 + 2 * n)
                file.write(GARBAGE[:2])

    @precondition(lambda self: self.segment.suspect)
    @rule()
    def move(self) -> None:
        self.seq += 1
        self.note_lost(self.segment.move(self.seq))
        self.in_round = None
        self.unsynced[:] = True  # a new file

    @precondition(lambda self: self.segment.suspect)
    @rule(k=st.integers(1, 4))
    def fail_to_move(self, k: int) -> None:
        self.seq += 1
        with failing("pwrite", lambda n: n >= k) as failed:
            try:
                self.note_lost(self.segment.move(self.seq))
            except OSError:
                self.seq -= 1
                assert failed
            else:
                self.unsynced[:] = True

    @rule(frames=st.integers(0, FRAMES))
    def forget(self, frames: int) -> None:
        if self.segment.unsynced_frames > frames:
            self.doubtful |= self.unsynced
        self.segment.forget(frames)
        assert self.segment.unsynced_frames <= frames

    @rule()
    def give_up(self) -> None:
        self.doubtful |= self.unsynced
        self.note_lost(self.segment.give_up())
        assert self.segment.unsynced_frames == 0

    @invariant()
    def what_is_clean_is_durable(self) -> None:
        if not self.segment.is_dirty:
            assert np.array_equal(self.durable[~self.lost], self.expected[~self.lost])

    @invariant()
    def what_is_not_suspect_is_readable(self) -> None:
        if not self.segment.suspect:
            found = wav.padded(self.segment.read(0, FRAMES), FRAMES)
            assert np.array_equal(found[~self.lost], self.expected[~self.lost])

    def note(self, first: int, end: int, samples: np.ndarray) -> None:
        self.expected[first:end] = samples
        self.unsynced[first:end] = self.since[first:end] = True
        self.lost[first:end] = False

    def note_lost(self, ranges: list[tuple[int, int]]) -> None:
        for first, end in ranges:
            assert self.doubtful[first - FIRST : end - FIRST].all()
            self.lost[first - FIRST : end - FIRST] = True


TestOneSegment = OneSegment.TestCase
TestOneSegment.settings = examples(max_examples=60, stateful_step_count=30)


def test_erased_audio_is_erased_from_the_file_left_too(tmp_path: Path) -> None:
    """Until a moved segment is synced its old file is there for salvage, which must not find what nobody may keep."""
    segment = OpenSegment(tmp_path, new_tag())
    segment.write(Piece(0, noise(800)))
    segment.begin_sync()
    segment.synced()
    segment.begin_sync()
    segment.failed()
    segment.move(2)
    segment.erase(400, 800)
    for path in tmp_path.iterdir():
        assert not wav.read_samples(path)[400:800].any()
    segment.close()

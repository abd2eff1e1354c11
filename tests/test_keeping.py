"""From written to safe: each step only when the one before it is synced, on disks that refuse any of them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from disks import STARTED, WRITER, failing, names, noise, open_files

from edge_recorder import durable, journal, model, wav
from edge_recorder.journal import Start
from edge_recorder.keeping import Keeping
from edge_recorder.segment import OpenSegment, write_whole
from edge_recorder.timeline import Piece

START = Start(call_id=model.new_call_id(STARTED), started_at=STARTED, writer=WRITER)
CALL = model.Call(call_id=START.call_id, started_at=STARTED)
MESSAGE = model.Message(message_id="m", call_id=START.call_id, n=1, role="user", text="Hello", created_at=STARTED)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "22" / START.call_id


@pytest.fixture
def keeping(directory: Path) -> Keeping:
    """The keeping of a call whose first line is safe."""
    keeping = Keeping(directory, START, clock=lambda: STARTED)
    go_round(keeping)
    assert keeping.is_open
    return keeping


def go_round(keeping: Keeping, segments: Sequence[OpenSegment] = ()) -> list[int]:
    """Make a round, and return what failed in it."""
    fds = keeping.begin(segments)
    failures = durable.sync_all(fds, root=None)
    keeping.end(failures)
    return [failure.errno or 0 for failure in failures.values()]


def finished(directory: Path, seq: int = 1) -> OpenSegment:
    return write_whole(directory, START.tag("user", 8000, seq=seq, first_sample=100 * (seq - 1)), noise(100, seq))


def in_journal(directory: Path) -> list[str]:
    return list(journal.read(directory / "journal.jsonl").facts)


def test_segment_is_sealed_step_by_step(keeping: Keeping, directory: Path) -> None:
    """Synced, then renamed; the name synced, then its fact is written; the fact synced, then it is given out."""
    segment = finished(directory)
    keeping.seal([segment])
    assert names(directory) == ["journal.jsonl", "user-000001.wav.part"]
    go_round(keeping)
    assert names(directory) == ["journal.jsonl", "user-000001.wav"]
    assert not keeping.sealed
    go_round(keeping)
    assert keeping.sealed == 1
    assert keeping.safe == []
    go_round(keeping)
    assert (
        [journal.key_of(fact) for fact in keeping.safe]
        == in_journal(directory)
        == [model.segment_id(START.call_id, "user", 1)]
    )
    assert keeping.is_idle
    keeping.close()


def test_each_step_follows_its_fsync(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way of a call to disk, no name is given and no fact is written that an fsync had not to precede."""
    done: list[tuple[str, str]] = []

    def watch(name: str, place: int) -> None:
        real = getattr(os, name)

        def call(*args: object) -> object:
            what = args[place]
            done.append((name, Path(f"/proc/self/fd/{what}").readlink().name if isinstance(what, int) else "wav"))
            return real(*args)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "fdatasync", "write", "rename"):
        watch(name, 0)
    keeping = Keeping(directory, START, clock=lambda: STARTED)
    keeping.write()
    done.clear()  # it made the day's directory
    go_round(keeping)
    segment = finished(directory)
    go_round(keeping, [segment])
    keeping.seal([segment])
    while not keeping.is_idle:
        go_round(keeping)
    day, call = ("fsync", "22"), ("fsync", START.call_id)
    assert done == [
        *(day, call, ("fdatasync", "journal.jsonl")),
        ("write", "journal.jsonl"),  # what the new file is
        *(("fdatasync", "user-000001.wav.part"), call, ("fdatasync", "journal.jsonl"), ("rename", "wav")),
        *(call, ("write", "journal.jsonl"), ("fdatasync", "journal.jsonl")),
    ]
    keeping.close()


def test_facts_are_given_out_once_they_are_synced(keeping: Keeping, directory: Path) -> None:
    """A fact said during a round is not of that round."""
    keeping.say(CALL)
    fds = keeping.begin([])
    keeping.say(MESSAGE)
    keeping.write()
    keeping.end(durable.sync_all(fds, root=None))
    assert keeping.safe == [CALL]
    assert in_journal(directory) == [CALL.call_id, "m"]
    go_round(keeping)
    assert keeping.safe == [CALL, MESSAGE]
    keeping.close()


@pytest.mark.parametrize("operation", ["fsync", "fdatasync"])
@pytest.mark.parametrize("k", [1, 2])
def test_call_is_not_open_before_its_journal_is_safe(directory: Path, operation: str, k: int) -> None:
    """While the first line or one of its directories is not synced, no audio may be written and no fact is safe."""
    keeping = Keeping(directory, START, clock=lambda: STARTED)
    keeping.say(CALL)
    keeping.write()
    with failing(operation, lambda n: n == k) as failed:
        go_round(keeping)
    if failed:
        assert not keeping.is_open
        assert keeping.safe == []
        go_round(keeping)
    assert keeping.is_open
    assert keeping.safe == [CALL]
    assert journal.read(directory / "journal.jsonl").torn_lines == 0
    keeping.close()


def test_facts_after_a_failed_fsync_are_written_again(keeping: Keeping, directory: Path) -> None:
    """A journal whose fsync failed is not believed: its facts are given out only once they were written anew."""
    keeping.say(MESSAGE)
    with failing("fdatasync", lambda _: True):
        assert go_round(keeping) == [errno.EIO]
    assert keeping.safe == []
    path = directory / "journal.jsonl"
    os.truncate(path, path.stat().st_size - 30)  # what a disk may then have of it
    go_round(keeping)
    assert keeping.safe == [MESSAGE]
    assert journal.read(path).facts["m"] == MESSAGE
    keeping.close()


def test_failed_fsync_makes_its_segment_suspect_alone(keeping: Keeping, directory: Path) -> None:
    """The others of the round are synced; the suspect is in no other round until it has moved."""
    segments = [finished(directory, seq) for seq in (1, 2, 3)]
    with failing("fdatasync", lambda n: n == 2):
        assert go_round(keeping, segments) == [errno.EIO]
    assert [each.suspect for each in segments] == [False, True, False]
    assert [each.is_dirty for each in segments] == [False, True, False]
    fds = keeping.begin(segments)
    assert [Path(f"/proc/self/fd/{fd}").readlink() for fd in fds] == [directory]
    keeping.end({})
    keeping.seal(segments)
    for _ in range(3):
        go_round(keeping)
    assert names(directory) == ["journal.jsonl", "user-000001.wav", "user-000002.wav.part", "user-000003.wav"]
    assert segments[1].move(4) == []
    for _ in range(3):
        go_round(keeping)
    assert names(directory) == ["journal.jsonl", *(f"user-00000{seq}.wav" for seq in (1, 3, 4))]
    assert keeping.is_idle
    keeping.close()


def test_failed_round_forgets_no_failure(keeping: Keeping, directory: Path) -> None:
    """Where the header cannot be written after a good fsync, the bad ones of the round are suspect all the same."""
    segments = [finished(directory, seq) for seq in (1, 2)]
    fds = keeping.begin(segments)
    with failing("pwrite", lambda _: True, errno.ENOSPC):
        keeping.end({fds[1]: OSError(errno.EIO, "Input/output error")})
    assert [each.suspect for each in segments] == [False, True]
    for each in segments:
        each.close()
    keeping.close()


def test_data_without_a_safe_name_is_not_synced(keeping: Keeping, directory: Path) -> None:
    """When only the directory could not be synced, a new file's audio stays in RAM until it is."""
    segment = OpenSegment(directory, START.tag("user", 8000))
    segment.write(Piece(0, noise(100)))
    with failing("fsync", lambda _: True):
        go_round(keeping, [segment])
    assert segment.unsynced_frames == 100
    assert segment.is_fresh
    go_round(keeping, [segment])
    assert (segment.unsynced_frames, segment.is_dirty, segment.is_fresh) == (0, False, False)
    segment.close()
    keeping.close()


@pytest.mark.parametrize("failures", [1, 3])
def test_name_that_is_not_synced_is_no_seal(keeping: Keeping, directory: Path, failures: int) -> None:
    """While the directory cannot be synced, a renamed segment has no fact; then it has one."""
    keeping.seal([finished(directory)])
    go_round(keeping)
    for _ in range(failures):
        with failing("fsync", lambda _: True):
            go_round(keeping)
        assert in_journal(directory) == []
    for _ in range(2):
        go_round(keeping)
    assert in_journal(directory) == [model.segment_id(START.call_id, "user", 1)]
    assert keeping.is_idle
    keeping.close()


def test_name_that_is_taken_holds_up_no_other(keeping: Keeping, directory: Path) -> None:
    """A directory in the way of one segment's name is told, and tried again; the next segment is sealed meanwhile."""
    (directory / "user-000001.wav").mkdir()
    keeping.seal([finished(directory, 1), finished(directory, 2)])
    for _ in range(3):
        with pytest.raises(IsADirectoryError):
            go_round(keeping)
    assert keeping.sealed == 1
    (directory / "user-000001.wav").rmdir()
    for _ in range(3):
        go_round(keeping)
    assert keeping.sealed == 2
    assert keeping.is_idle
    keeping.close()


def test_removed_file_is_said(keeping: Keeping, directory: Path) -> None:
    """A segment whose file is gone when it is to be named is handed back, and holds up nothing."""
    gone, there = finished(directory, 1), finished(directory, 2)
    keeping.seal([gone, there])
    (directory / "user-000001.wav.part").unlink()
    for _ in range(3):
        go_round(keeping)
    assert keeping.removed == [gone]
    assert keeping.sealed == 1
    assert keeping.is_idle
    gone.close()
    keeping.close()


def test_unreadable_file_is_said(keeping: Keeping, directory: Path) -> None:
    """A segment that its disk does not give back for its checksum is handed back, rather than asked for for ever."""
    segment = finished(directory)
    keeping.seal([segment])
    go_round(keeping)
    with failing("pread", lambda _: True):
        go_round(keeping)
    assert keeping.removed == [segment]
    assert keeping.is_idle
    keeping.close()


def test_removed_directory_is_made_again(keeping: Keeping, directory: Path) -> None:
    """With all of the call's files gone, what was in them is handed back, and what comes is kept in a new journal."""
    before = finished(directory, 1)
    keeping.say(CALL)
    go_round(keeping, [before])
    shutil.rmtree(directory.parent)
    keeping.say(MESSAGE)
    keeping.write()  # into the journal that is gone
    with pytest.raises(FileNotFoundError):
        finished(directory, 2)
    go_round(keeping, [before])
    assert keeping.is_open
    after = finished(directory, 2)
    keeping.seal([before, after])
    while not keeping.is_idle:
        go_round(keeping)
    assert keeping.removed == [before]
    assert journal.read_start(directory / "journal.jsonl") == START
    assert in_journal(directory) == ["m", model.segment_id(START.call_id, "user", 2)]
    assert np.array_equal(wav.read_file(directory / "user-000002.wav")[1], noise(100, 2))
    before.close()
    keeping.close()


def test_removed_journal_is_begun_again(keeping: Keeping, directory: Path) -> None:
    """A journal that was removed alone names its writer again before more audio is written."""
    (directory / "journal.jsonl").unlink()
    fds = keeping.begin([])
    assert not keeping.is_open
    keeping.end(durable.sync_all(fds, root=None))
    assert keeping.is_open
    assert journal.read_start(directory / "journal.jsonl") == START
    keeping.close()


def test_full_disk_does_not_keep_audio_from_being_synced(keeping: Keeping, directory: Path) -> None:
    """When the journal takes no more, what the disk took before is synced all the same, and the facts wait."""
    segment = finished(directory)
    keeping.say(MESSAGE)
    with failing("write", lambda _: True, errno.ENOSPC):
        go_round(keeping, [segment])
        with pytest.raises(OSError, match="No space"):
            keeping.write()
    assert not segment.is_dirty
    assert not keeping.is_idle
    go_round(keeping)
    assert keeping.safe == [MESSAGE]
    segment.close()
    keeping.close()


@pytest.mark.parametrize("k", [1, 2])
def test_round_that_cannot_begin_leaves_no_descriptor(directory: Path, k: int) -> None:
    """Out of descriptors, whichever directory is refused, those opened before it are closed."""
    keeping = Keeping(directory, START, clock=lambda: STARTED)
    keeping.write()
    before = open_files()
    with failing("open", lambda n: n == k, errno.EMFILE), pytest.raises(OSError, match="Too many"):
        keeping.begin([])
    assert open_files() == before
    go_round(keeping)
    assert keeping.is_open
    keeping.close()


def test_round_that_never_ends_counts_for_nothing(keeping: Keeping, directory: Path) -> None:
    """When a round breaks off, the next one asks for all of it again, and no descriptor stays open."""
    segment = finished(directory)
    before = open_files()
    keeping.say(MESSAGE)
    first = keeping.begin([segment])
    assert len(keeping.begin([segment])) == len(first) == 3
    keeping.end({})
    assert open_files() == before
    keeping.end({})  # there is no other
    segment.close()
    keeping.close()


def test_closing_lets_go_of_all(keeping: Keeping, directory: Path) -> None:
    """However far the segments have come, and even within a round, nothing stays open."""
    keeping.seal([finished(directory, 1)])
    go_round(keeping)
    keeping.seal([finished(directory, 2)])
    keeping.begin([])
    keeping.close()
    assert not [name for name in open_files() if str(directory) in name]


def test_note_made_during_a_round_waits_for_the_next(keeping: Keeping) -> None:
    """A round says nothing of a span that began while its fsyncs were made: the next one fsyncs the journal again."""
    first, second = (
        model.new_span(START.call_id, n, model.SpanKind.PAUSED, None, start_s=n, end_s=n, reason="card") for n in (1, 2)
    )
    keeping.began(first)
    fds = keeping.begin([])
    keeping.began(second)
    keeping.write()
    keeping.end(durable.sync_all(fds, root=None))
    assert keeping.begin([]) == fds
    keeping.end({})
    assert keeping.begin([]) == []

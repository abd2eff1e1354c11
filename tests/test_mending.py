"""One call of a dead recorder: whatever way it died, its audio is heard once, and what is missing is said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from wrecks import (
    RATE,
    Wreck,
    check_files,
    copy_part,
    heard,
    killed_call,
    mend,
    mixed,
    noise,
    places,
    segments,
    spans,
    start_of,
    total,
)

from edge_recorder import journal, model, spool, wav
from edge_recorder.journal import Journal
from edge_recorder.model import MIXED, Segment, SpanKind
from edge_recorder.wav import HEADER_BYTES


@pytest.fixture
def wreck(data_dir: Path) -> Wreck:
    return killed_call(data_dir)


def test_call_comes_back_whole(wreck: Wreck) -> None:
    """Each flushed sample is heard once on its track and once in the mix, and the files are as the facts say."""
    mending = mend(wreck.directory, wreck.data_dir)
    check_files(mending, wreck.directory)
    for track, truth in wreck.truth.items():
        assert np.array_equal(heard(wreck.directory, track), truth)
    assert np.array_equal(mixed(wreck.directory), total(wreck))
    assert spans(mending, "gap") == [("assistant", 2.0, 2.5)]
    call = mending.content.facts[wreck.call_id]
    assert isinstance(call, model.Call)
    assert (call.state, call.duration_s) == ("interrupted", 2.5)


def test_mended_call_is_left_as_it_is(wreck: Wreck) -> None:
    """Mending again changes no file and adds no line."""
    mend(wreck.directory, wreck.data_dir)
    before = {path: path.read_bytes() for path in wreck.directory.iterdir()}
    again = mend(wreck.directory, wreck.data_dir)
    assert {path: path.read_bytes() for path in wreck.directory.iterdir()} == before
    assert (again.done.salvaged, again.done.adopted, again.done.mixed, again.done.closed) == (0, 0, 0, 0)


def test_known_files_are_not_read(wreck: Wreck) -> None:
    """Of a call that was mended before, no audio is read again, however much there is: that is for `verify`."""
    mend(wreck.directory, wreck.data_dir)
    for file in spool.segment_files(wreck.directory):
        file.path.unlink()
        os.mkfifo(file.path)  # whoever opens it waits for ever
    again = mend(wreck.directory, wreck.data_dir)
    assert (again.done.adopted, again.done.quarantined, again.done.mixed) == (0, 0, 0)


def test_what_no_fsync_covers_is_unverified(data_dir: Path) -> None:
    """Of a salvaged file a span says from where on nothing is known to have reached the disk."""
    wreck = Wreck(data_dir, "user")
    wreck.write("user", noise(0.5), at=0.0)
    wreck.step(0.5)
    wreck.sync()
    wreck.write("user", noise(0.25), at=0.5)
    wreck.step(0.75)
    wreck.kill()
    assert spans(mend(wreck.directory, data_dir), "unverified") == [("user", 0.5, 0.75)]


# Files.


@pytest.mark.parametrize("torn", ["zeros", "noise", "half"])
def test_torn_header_is_made_again_from_the_journal(wreck: Wreck, torn: str) -> None:
    """A `.part` whose header a crash tore, with its audio behind it, is salvaged where its making was noted."""
    part = wreck.parts("user")[-1]
    note_opened(wreck, part)
    data = part.read_bytes()
    heads = {"zeros": bytes(512), "noise": os.urandom(512), "half": data[:60] + bytes(452)}
    part.write_bytes(heads[torn] + data[HEADER_BYTES:])
    mending = mend(wreck.directory, wreck.data_dir)
    check_files(mending, wreck.directory)
    assert mending.done.quarantined == 0
    assert np.array_equal(heard(wreck.directory, "user"), wreck.truth["user"])
    assert ("user", 2.0, 2.5) in spans(mending, "unverified")  # how much of it was synced is not known any more


def test_torn_header_of_a_sealed_file_is_made_again(wreck: Wreck) -> None:
    """A file that got its name, but whose fact and header did not reach the disk, is salvaged all the same."""
    sealed = spool.segment_path(wreck.directory, "user", 1)
    note_opened(wreck, sealed)
    lines = wreck.journal.read_bytes().splitlines(keepends=True)
    wreck.journal.write_bytes(b"".join(line for line in lines if b'"entity":"segments"' not in line))
    sealed.write_bytes(bytes(HEADER_BYTES) + sealed.read_bytes()[HEADER_BYTES:])
    mending = mend(wreck.directory, wreck.data_dir)
    check_files(mending, wreck.directory)
    assert mending.done.quarantined == 0
    assert np.array_equal(heard(wreck.directory, "user"), wreck.truth["user"])
    assert [span for span in spans(mending, "unverified") if span[1] < 1.0] == []


def test_torn_header_without_a_note_is_set_aside(wreck: Wreck) -> None:
    """Where the journal does not know what a torn header said, the file waits in quarantine, whole."""
    part = wreck.parts("user")[-1]
    data = bytes(HEADER_BYTES) + part.read_bytes()[HEADER_BYTES:]
    part.write_bytes(data)
    path = wreck.journal
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if b'"opened"' not in line))
    mending = mend(wreck.directory, wreck.data_dir)
    kept = wreck.data_dir / "quarantine" / wreck.call_id / part.name
    assert mending.done.quarantined == 1
    assert kept.read_bytes() == data
    assert "header" in kept.with_name(kept.name + ".txt").read_text()


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513])
def test_file_without_a_sample_is_nothing(wreck: Wreck, length: int) -> None:
    """A `.part` that ends before its first sample goes, for the journal says that it was just made."""
    part = wreck.parts("user")[-1]
    note_opened(wreck, part)
    os.truncate(part, length)
    mending = mend(wreck.directory, wreck.data_dir)
    check_files(mending, wreck.directory)
    assert mending.done.quarantined == 0
    assert np.array_equal(heard(wreck.directory, "user")[: 2 * RATE], wreck.truth["user"][: 2 * RATE])


def test_half_a_sample_is_none(wreck: Wreck) -> None:
    """An odd byte that a crash left at the end is no sample, and shifts none."""
    with wreck.parts("user")[-1].open("ab") as file:
        file.write(b"\x7f")
    mending = mend(wreck.directory, wreck.data_dir)
    check_files(mending, wreck.directory)
    assert np.array_equal(heard(wreck.directory, "user"), wreck.truth["user"])


def test_renamed_file_without_a_fact_is_adopted(wreck: Wreck) -> None:
    """A crash between the rename and the journal's line leaves a file that is taken in with the same fact."""
    sealed = [fact for fact in journal.read(wreck.journal).facts.values() if isinstance(fact, Segment)]
    assert {fact.track for fact in sealed} == {"user", "assistant", MIXED}
    lines = wreck.journal.read_bytes().splitlines(keepends=True)
    wreck.journal.write_bytes(b"".join(line for line in lines if b'"entity":"segments"' not in line))
    mending = mend(wreck.directory, wreck.data_dir)
    assert mending.done.adopted == len(sealed)
    assert [mending.content.facts[fact.segment_id] for fact in sealed] == sealed


def test_fact_without_its_file_leaves_a_gap(wreck: Wreck, caplog: pytest.LogCaptureFixture) -> None:
    """A sealed file that is gone is said once, by a span and a log line, and its fact stays."""
    fact = next(fact for fact in journal.read(wreck.journal).facts.values() if isinstance(fact, Segment))
    path = spool.segment_path(wreck.directory, fact.track, fact.seq)
    path.unlink()
    mending = mend(wreck.directory, wreck.data_dir)
    said = journal.read(wreck.journal).facts
    assert (fact.track, 0.0, 1.0) in spans(mending, "gap")
    assert [record.levelname for record in caplog.records if path.name in record.message] == ["ERROR"]
    again = mend(wreck.directory, wreck.data_dir)
    assert journal.read(wreck.journal).facts == said == again.content.facts
    assert said[fact.segment_id] == fact
    assert len([record for record in caplog.records if path.name in record.message]) == 1


def test_audio_that_is_gone_is_a_gap_in_the_mix(wreck: Wreck) -> None:
    """A mix that is made without a file that is gone says so."""
    remove_mix(wreck)
    spool.segment_path(wreck.directory, "user", 1).unlink()
    mending = mend(wreck.directory, wreck.data_dir)
    assert (MIXED, 0.0, 1.0) in spans(mending, "gap")
    assert np.array_equal(mixed(wreck.directory)[:RATE], wreck.truth["assistant"][:RATE])


def test_temporary_files_go(wreck: Wreck) -> None:
    """What a crash left of a spill, or of a file being replaced, is removed; what nobody knows stays."""
    for name in (".spill.x1y2z3", ".user-000002.wav.part.0123abcd.tmp", "notes.txt"):
        (wreck.directory / name).write_bytes(b"?")
    mend(wreck.directory, wreck.data_dir)
    assert [path.name for path in wreck.directory.iterdir() if path.suffix not in {".wav", ".jsonl"}] == ["notes.txt"]


def test_header_of_the_previous_release_is_salvaged(wreck: Wreck) -> None:
    """A `.part` that the release before wrote comes back like our own."""
    for part in (*wreck.parts("user"), *wreck.parts("assistant")):
        data = part.read_bytes()
        tag = journal.asdict(wav.read_tag(data))
        text = journal.json.dumps({"format": 1, **tag}, separators=(",", ":")).encode()
        part.write_bytes(data[:44] + text.ljust(460) + data[504:])
    mending = mend(wreck.directory, wreck.data_dir)
    check_files(mending, wreck.directory)
    assert np.array_equal(heard(wreck.directory, "user"), wreck.truth["user"])
    assert np.array_equal(mixed(wreck.directory), total(wreck))


# Copies.


@pytest.mark.parametrize("frames", [0, 1000, None])
def test_copy_is_not_heard_twice(wreck: Wreck, frames: int | None) -> None:
    """Of a `.part` and its copy, whole or cut short by the crash, each sample is heard once."""
    copy_part(wreck.parts("user")[-1], seq=40, frames=frames)
    mending = mend(wreck.directory, wreck.data_dir)
    check_files(mending, wreck.directory)
    assert mending.done.quarantined == (0 if frames == 0 else 1)
    assert np.array_equal(heard(wreck.directory, "user"), wreck.truth["user"])
    assert np.array_equal(mixed(wreck.directory), total(wreck))


def test_torn_copies_make_one_whole(wreck: Wreck) -> None:
    """Where a file and its copy each have something that the other lacks, all of it is heard, and nothing twice."""
    part = wreck.parts("user")[-1]
    tag, whole = wav.read_file(part)
    first, second = whole.copy(), whole.copy()
    first[3000:] = 0  # never reached the disk, and came from RAM into the copy
    second[:500] = 0  # a block of the copy that did not reach it either
    part.write_bytes(wav.header(tag, frames=len(first)) + first.tobytes())
    copy_part(part, seq=40, samples=second)
    mend(wreck.directory, wreck.data_dir)
    assert np.array_equal(heard(wreck.directory, "user"), wreck.truth["user"])


def test_further_segment_is_no_copy(data_dir: Path) -> None:
    """Late audio that begins where a sealed, silent interval begins is not taken for a copy of that."""
    wreck = Wreck(data_dir, "user", "assistant")
    wreck.write("assistant", noise(1.5, 2), at=0.0)
    wreck.step(1.5)
    wreck.sync(4)
    wreck.write("user", noise(0.5), at=0.0)
    wreck.step(1.55)
    wreck.kill()
    assert [wav.read_tag(part.read_bytes()).first_sample for part in wreck.parts("user")] == [0]
    mending = mend(wreck.directory, data_dir)
    assert mending.done.quarantined == 0
    assert places(segments(mending, "user")) == [(0.0, 1.0), (0.0, 0.5)]
    assert np.array_equal(heard(wreck.directory, "user"), wreck.truth["user"])
    assert np.array_equal(mixed(wreck.directory), total(wreck))


def test_silent_interval_is_no_copy_of_late_audio(data_dir: Path) -> None:
    """A silent interval that was not sealed stays, though late audio begins with it and holds all of its nothing."""
    wreck = Wreck(data_dir, "user", "assistant")
    wreck.write("assistant", noise(1.5, 2), at=0.0)
    wreck.step(1.5)
    wreck.write("user", noise(0.5), at=0.0)
    wreck.step(1.55)
    wreck.kill()
    mending = mend(wreck.directory, data_dir)
    assert mending.done.quarantined == 0
    assert places(segments(mending, "user")) == [(0.0, 1.0), (0.0, 0.5)]
    assert np.array_equal(mixed(wreck.directory), total(wreck))


def test_late_mix_is_no_copy(data_dir: Path) -> None:
    """A mix of late audio alone, which cannot be made again, is kept whole beside the mix of its place."""
    wreck = Wreck(data_dir, "user", "assistant")
    wreck.write("assistant", noise(1.5, 2), at=0.0)
    wreck.step(1.5)
    wreck.sync(4)
    wreck.write("user", noise(0.5), at=0.0)
    wreck.step(1.55)
    wreck.step(1.8)
    wreck.kill()
    (late,) = wreck.parts("user")
    late.unlink()
    mending = mend(wreck.directory, data_dir)
    assert mending.done.quarantined == 0
    assert np.array_equal(mixed(wreck.directory), total(wreck))


# Spans without an end.


def test_span_that_began_is_ended(wreck: Wreck) -> None:
    """A pause that lasts when the recorder dies ends with the call, and a turn with its track."""
    book = Journal(wreck.journal, start_of(wreck))
    for n, (kind, track) in enumerate([(SpanKind.PAUSED, None), (SpanKind.TURN, "assistant")], 8):
        book.began(model.new_span(wreck.call_id, n, kind, track, start_s=1.25, end_s=1.25, reason="card"))
    book.close()
    mending = mend(wreck.directory, wreck.data_dir)
    assert spans(mending, "paused") == [(None, 1.25, 2.5)]
    assert spans(mending, "turn") == [("assistant", 1.25, 2.0)]
    assert len({fact.n for fact in mending.facts if isinstance(fact, model.Span)}) == len(
        [fact for fact in mending.facts if isinstance(fact, model.Span)]
    )


def test_pause_after_the_last_sample_is_kept(wreck: Wreck) -> None:
    """A pause that began when nothing was recorded any more is there all the same, without a length."""
    book = Journal(wreck.journal, start_of(wreck))
    book.began(model.new_span(wreck.call_id, 8, SpanKind.PAUSED, None, start_s=7.5, end_s=7.5, reason="card"))
    book.close()
    assert spans(mend(wreck.directory, wreck.data_dir), "paused") == [(None, 7.5, 7.5)]


# Parts.


def note_opened(wreck: Wreck, part: Path) -> None:
    book = Journal(wreck.journal, start_of(wreck))
    book.opened([wav.read_tag(part.read_bytes())])
    book.close()


def remove_mix(wreck: Wreck) -> None:
    """Let all mixed segments be as if they were never made."""
    for file in spool.segment_files(wreck.directory):
        if file.track == MIXED:
            file.path.unlink()
    lines = wreck.journal.read_bytes().splitlines(keepends=True)
    wreck.journal.write_bytes(b"".join(line for line in lines if b'"track":"mixed"' not in line))

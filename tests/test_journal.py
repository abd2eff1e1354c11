"""A call's journal: whatever a crash or a disk leaves of it, what it says was written."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edge_recorder import journal, model
from edge_recorder.journal import Journal, Start
from edge_recorder.model import Fact

STARTED = 1_790_000_000_000_000
CALL_ID = model.new_call_id(STARTED)
START = Start(call_id=CALL_ID, started_at=STARTED, writer="abcdef123456-01234567")
CALL = model.Call(call_id=CALL_ID, external_id="CA1", started_at=STARTED, metadata='{"ünï": "☎ \\n"}')


def message(n: int, text: str = "Hello") -> model.Message:
    return model.Message(
        message_id=model.message_id(CALL_ID, n), call_id=CALL_ID, n=n, role="user", text=text, created_at=STARTED
    )


def span(n: int) -> model.Span:
    return model.new_span(CALL_ID, n, model.SpanKind.GAP, "user", start_s=0.5, end_s=1.25, reason="disk full")


TAG = START.tag("user", 8000, seq=1, first_sample=16_000)

# A row that changes, so that an older state of it is a fact that was written too.
FACTS: list[Fact] = [
    CALL,
    message(1, "two\nlines, and 電話"),
    span(1),
    replace(CALL, tracks='{"user": 8000}'),
    message(2, ""),
    replace(span(2), end_s=2.5),
    replace(CALL, state=model.CallState.ENDED, ended_at=STARTED + 5, duration_s=5e-6),
]


def written(path: Path) -> bytes:
    book = Journal(path, START)
    book.append(FACTS[:3])
    book.opened([TAG, replace(TAG, seq=2)])
    book.began(span(2))
    book.append(FACTS[3:])
    book.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal")


@pytest.fixture(scope="module")
def whole(room: Path) -> bytes:
    return written(room / "whole.jsonl")


def read(room: Path, data: bytes) -> journal.Content:
    path = room / "damaged.jsonl"
    path.write_bytes(data)
    start = journal.read_start(path)
    assert start in {None, START}
    return journal.read(path)


def test_what_was_written_comes_back(room: Path, whole: bytes) -> None:
    """The last state of each row comes back, in the order in which the rows first appeared."""
    content = read(room, whole)
    assert content.start == START
    assert list(content.facts.values()) == [FACTS[6], FACTS[1], FACTS[2], FACTS[4], FACTS[5]]
    assert content.torn_lines == 0
    assert [content.tag_of("user", seq, START) for seq in (1, 2, 3)] == [TAG, replace(TAG, seq=2), None]
    assert content.began == {span(2).span_id: span(2)}
    assert content.open_spans() == []


def test_absent_journal_says_nothing(tmp_path: Path) -> None:
    """A call without a journal is no error."""
    assert journal.read(tmp_path / "none").facts == {}
    assert journal.read_start(tmp_path / "none") is None


def test_journal_torn_at_any_byte_says_what_it_has(room: Path, whole: bytes) -> None:
    """Cut off after any byte, the journal has every line before the cut, and makes nothing of the torn one."""
    # What each line adds: the start, three facts, two files, a span that begins, the other facts.
    facts = [None, *FACTS[:3], None, None, None, *FACTS[3:]]
    for length in range(len(whole) + 1):
        content = read(room, whole[:length])
        lines = whole[:length].count(b"\n") + (whole[length : length + 1] == b"\n")  # a line without its end is whole
        known = {journal.key_of(fact): fact for fact in facts[:lines] if fact is not None}
        assert content.facts == known
        assert content.start == (START if lines else None)
        assert len(content.opened) == min(2, max(0, lines - 4))
        assert content.open_spans() == ([span(2)] if 7 <= lines < len(facts) - 1 else [])
        assert content.torn_lines <= 1


def test_flipped_byte_spoils_its_own_line_only(room: Path, whole: bytes) -> None:
    """With any one byte flipped, all that is read was written, and at most two lines are missing."""
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        content = read(room, bytes(data))
        assert all(fact in FACTS for fact in content.facts.values())
        assert len(content.facts) >= 3
        assert content.torn_lines in {1, 2}


@examples(max_examples=200)
@given(data=st.data())
def test_any_damage_yields_only_what_was_written(room: Path, whole: bytes, data: st.DataObject) -> None:
    """However a disk mangles a journal, reading it never raises, and yields nothing that was not written."""
    mangled = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        first = data.draw(st.integers(0, len(mangled)))
        count = data.draw(st.integers(0, 80))
        mangled[first : first + count] = data.draw(st.binary(max_size=40) | st.just(b"\0" * count))
    assert all(fact in FACTS for fact in read(room, bytes(mangled)).facts.values())


def test_line_of_a_newer_release_is_passed_over(tmp_path: Path) -> None:
    """An entity and a column that this release does not know are left out, and spoil nothing."""
    written(tmp_path / "j")
    row = {**journal.asdict(message(9)), "mood": "happy"}
    with (tmp_path / "j").open("ab") as file:
        file.write(journal._line("moods", {"mood_id": 1}) + journal._line("messages", row))
    content = journal.read(tmp_path / "j")
    assert content.facts[message(9).message_id] == message(9)
    assert content.torn_lines == 0


@pytest.mark.parametrize("taken", [0, 1, 40])
def test_failed_write_spoils_no_later_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """Of a write that failed within a line, the line is lost, and the next one is not."""
    path = tmp_path / "journal.jsonl"
    book = Journal(path, START)
    real = os.write
    monkeypatch.setattr(os, "write", short_then_full(real, taken))
    with pytest.raises(OSError, match="No space"):
        book.append([message(1)])
    monkeypatch.setattr(os, "write", real)
    book.append([message(1), message(2)])
    book.close()
    content = journal.read(path)
    assert list(content.facts.values()) == [message(1), message(2)]
    assert content.start == START


@pytest.mark.parametrize("taken", [1, 40])
def test_first_line_torn_by_a_full_disk_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """When the disk was full at the start line, the next attempt makes a journal that says whose it is."""
    path = tmp_path / "journal.jsonl"
    real = os.write
    monkeypatch.setattr(os, "write", short_then_full(real, taken))
    with pytest.raises(OSError, match="No space"):
        Journal(path, START)
    monkeypatch.setattr(os, "write", real)
    book = Journal(path, START)
    book.append([message(1)])
    book.close()
    assert journal.read_start(path) == START
    assert journal.read(path).start == START
    assert list(journal.read(path).facts.values()) == [message(1)]


def test_journal_of_a_killed_recorder_is_continued(tmp_path: Path) -> None:
    """Facts added behind a line that a crash tore are whole: that is how recovery closes a call."""
    path = tmp_path / "journal.jsonl"
    path.write_bytes(written(path)[:-7])
    book = Journal(path, START)
    book.append([message(3)])
    book.close()
    content = journal.read(path)
    assert content.torn_lines == 1
    assert list(content.facts.values()) == [FACTS[3], FACTS[1], FACTS[2], FACTS[4], FACTS[5], message(3)]


def test_line_after_a_failed_fsync_stands_alone(tmp_path: Path) -> None:
    """What is appended after a failed fsync starts a line of its own: what is before it may be nowhere."""
    path = tmp_path / "journal.jsonl"
    book = Journal(path, START)
    book.append([message(1)])
    book.distrust()
    os.truncate(path, path.stat().st_size - 9)  # what the disk then has of it
    book.append([message(1), message(2)])
    book.close()
    assert list(journal.read(path).facts.values()) == [message(1), message(2)]


def test_journal_that_cannot_be_begun_leaves_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal whose first line the disk refuses lets go of its file, for it is tried again and again."""
    before = open_files()
    monkeypatch.setattr(os, "write", refuse)
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            Journal(tmp_path / "journal.jsonl", START)
    assert open_files() == before


def refuse(fd: int, data: memoryview) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def short_then_full(write: object, taken: int) -> object:
    """Return a `write` that takes `taken` bytes and then has no space."""
    left = [taken]

    def short(fd: int, data: memoryview) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(fd, data[: left[0]])  # type: ignore[operator]
        left[0] -= done
        return done

    return short


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))

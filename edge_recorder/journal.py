"""
A call's facts on disk, one JSON line each, with a checksum: what the catalog is rebuilt from.

The first line names the recorder that writes the call; it is synced before any audio file is made. A fact is the
whole row as it then was, so the last line of a row is its state. A fact is synced here before its row is committed: the
journal is never behind the catalog. A line that a crash tore fails its checksum and is passed over.

Two kinds of line are no rows, and are for recovery alone:
    opened    a segment file was made: what its header says, should a crash tear that
    began     a span began (a pause, a turn): its end is the fact of the same id
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_recorder import durable
from edge_recorder.catalog.entities import BY_MODEL, BY_TABLE
from edge_recorder.model import Fact, Instant, Segmentation, Span
from edge_recorder.wav import Tag

FORMAT = 1
START = "journal"  # the entity of the first line
OPENED = "opened"
BEGAN = "began"

_START_FIELDS = ("call_id", "started_at", "writer", "segmentation", "format")
_OPENED_FIELDS = ("track", "seq", "first_sample", "rate")
_CRC_LENGTH = len(',"crc32":"00000000"}')


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The first line: which call this is, and who writes it."""

    call_id: str
    started_at: Instant
    writer: str
    segmentation: str = Segmentation.INTERVAL
    format: int = FORMAT

    def tag(self, track: str, rate: int, *, seq: int = 1, first_sample: int = 0) -> Tag:
        """Return what a segment file of this call says of itself."""
        return Tag(
            call_id=self.call_id,
            started_at=self.started_at,
            track=track,
            seq=seq,
            first_sample=first_sample,
            rate=rate,
            writer=self.writer,
        )


@dataclass(slots=True)
class Content:
    """What a journal says: the last state of each row, in the order the rows first appeared."""

    start: Start | None = None
    facts: dict[str, Fact] = field(default_factory=dict)  # by the row's own id
    torn_lines: int = 0
    opened: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)  # by track and number
    began: dict[str, Span] = field(default_factory=dict)  # by the span's id

    def tag_of(self, track: str, seq: int, start: Start) -> Tag | None:
        """Return what the header of a segment file said, if its making was noted. Nothing is known of its fsyncs."""
        row = self.opened.get((track, seq))
        return start.tag(track, row["rate"], seq=seq, first_sample=row["first_sample"]) if row else None

    def open_spans(self) -> list[Span]:
        """Return the spans that began, and of which no end is known."""
        return [span for span in self.began.values() if span.span_id not in self.facts]


class Journal:
    """The journal of one call, for appending."""

    def __init__(self, path: Path, start: Start) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, durable.FILE_MODE)
        self._torn = os.fstat(self.fd).st_size > 0  # whoever wrote it before may have been killed within a line
        try:
            self._append(_line(START, asdict(start)))
        except OSError:
            os.close(self.fd)
            raise

    def append(self, facts: Sequence[Fact]) -> None:
        """Add `facts`; durable after an fsync of `fd`, and at first one of the directory."""
        self._append(b"".join(_line(BY_MODEL[type(fact)].table, asdict(fact)) for fact in facts))

    def opened(self, tags: Iterable[Tag]) -> None:
        """Note that the files of `tags` were made. Noted again, it changes nothing."""
        rows = ({name: getattr(tag, name) for name in _OPENED_FIELDS} for tag in tags)
        self._append(b"".join(_line(OPENED, row) for row in rows))

    def began(self, span: Span) -> None:
        """Note that `span` began. It is no fact before it ends, with the same id."""
        self._append(_line(BEGAN, asdict(span)))

    def distrust(self) -> None:
        """Note that an fsync failed. What was appended since the last good one may be nowhere: append it again."""
        self._torn = True

    def close(self) -> None:
        os.close(self.fd)

    def _append(self, lines: bytes) -> None:
        # What a failed write left of a line is ended first, so that it cannot spoil this one.
        data, self._torn = (b"\n" + lines if self._torn else lines), True
        durable.write_all(self.fd, data)
        self._torn = False


def read(path: Path) -> Content:
    """Return what the journal at `path` says; an absent one says nothing."""
    content = Content()
    for entity, row in _entries(path, content):
        if entity == START:
            content.start = _start(row)
        elif entity in BY_TABLE:  # a newer release may know more
            known = BY_TABLE[entity]
            content.facts[str(row[known.key])] = known.value(row)
        elif entity == OPENED:
            content.opened[row["track"], row["seq"]] = row
        elif entity == BEGAN:
            content.began[row["span_id"]] = BY_MODEL[Span].value(row)
    return content


def read_start(path: Path) -> Start | None:
    """Return which call the journal at `path` is of, and who writes it. None where there is none."""
    try:
        with path.open("rb") as file:
            entries = (_parse(line.removesuffix(b"\n")) for line in file)
            # The first line, unless it was torn: then its writer, or who mended the call, wrote it again.
            return next((_start(row) for entity, row in filter(None, entries) if entity == START), None)
    except FileNotFoundError:
        return None


def key_of(fact: Fact) -> str:
    """Return the id of the row that `fact` is."""
    return str(getattr(fact, BY_MODEL[type(fact)].key))


def _start(row: dict[str, Any]) -> Start:
    return Start(**{name: row[name] for name in _START_FIELDS if name in row})  # an older release wrote fewer


def _entries(path: Path, content: Content) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        entry = _parse(line)
        if entry is not None:
            yield entry
        elif line:
            content.torn_lines += 1


def _line(entity: str, row: dict[str, Any]) -> bytes:
    body = json.dumps({"entity": entity, "row": row}, separators=(",", ":"))[:-1].encode()
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


def _parse(line: bytes) -> tuple[str, dict[str, Any]] | None:
    body, tail = line[:-_CRC_LENGTH], line[-_CRC_LENGTH:]
    if tail != b',"crc32":"%08x"}' % zlib.crc32(body):
        return None
    entry = json.loads(line)
    return entry["entity"], entry["row"]

"""Segment files that no journal knows: what they are, and what of them is in another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edge_recorder import wav
from edge_recorder.errors import IntegrityMismatch
from edge_recorder.journal import Content, Start
from edge_recorder.spool import SegmentFile
from edge_recorder.wav import HEADER_BYTES, SAMPLE_BYTES, Samples, Tag


@dataclass(frozen=True, slots=True)
class Found:
    """A segment file that the journal has not. `tag` is its header's, or the journal's where that is torn."""

    file: SegmentFile
    tag: Tag
    frames: int
    whole: bool  # sealed, with a header

    @property
    def place(self) -> tuple[str, int]:
        return self.tag.track, self.tag.first_sample


def identified(file: SegmentFile, content: Content, start: Start) -> Found:
    """Return what `file` is, by its header or else by the journal.

    Raises:
        IntegrityMismatch: It is not what its name says, or nobody knows.
    """
    frames = max(0, file.path.stat().st_size - HEADER_BYTES) // SAMPLE_BYTES
    try:
        tag = wav.read_tag(head(file.path))
    except IntegrityMismatch:
        noted = content.tag_of(file.track, file.seq, start)
        if noted is None:
            raise
        synced = frames if file.sealed else 0  # it was synced before it got its name
        return Found(file, replace(noted, synced=synced), frames, whole=False)
    if (tag.track, tag.seq, tag.call_id) != (file.track, file.seq, start.call_id):
        raise IntegrityMismatch(f"its header says {tag.track}-{tag.seq} of call {tag.call_id}")
    return Found(file, tag, frames, whole=file.sealed)


def head(path: Path) -> bytes:
    """Return what a segment file begins with."""
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)


def readable(paths: Sequence[Path]) -> Iterator[Samples]:
    """Yield the samples of those of the files that are there."""
    for path in paths:
        with suppress(FileNotFoundError):  # it was set aside, or is lost
            yield wav.read_samples(path)


def not_copied(samples: Samples, others: Sequence[Samples]) -> Samples:
    """Return `samples` without what `others` of the same place hold: a failed fsync leaves copies, whole or in part.

    No place of a track is written to twice, so only a copy has anything where another file has something.

    Raises:
        IntegrityMismatch: Another holds all of it.
    """
    for other in others:
        rest = samples.copy()
        rest[: len(other)][other[: len(samples)] != 0] = 0
        if len(other) >= len(samples) and not rest.any():
            raise IntegrityMismatch("another file of the same place holds all of it")
        samples = rest
    return samples

"""
One segment file, from its first sample until it is sealed: written by position, synced in rounds.

    write          the samples are the kernel's: they survive SIGKILL
    sync           begin_sync, an fsync by whoever runs the round, then synced or failed: they survive power loss
    finish         its full length and a right header; the next round makes that durable
    name           renamed from `.wav.part` to `.wav`
A failed fsync is not tried again on that file, where it could tell of success: `move` takes what is known to be synced,
and what came since and is still in RAM, to a new file under the next number. The old one goes when that is synced.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_recorder import durable, model, spool, wav
from edge_recorder.levels import measure
from edge_recorder.timeline import Piece, Range, instant_of
from edge_recorder.wav import HEADER_BYTES, SAMPLE_BYTES, Header, Samples, Tag

BLOCK = 1 << 16  # frames that are read together when a file is copied: one bad sector takes no more with it


@dataclass(slots=True)
class _Syncing:
    """What the fsync that is under way is for."""

    changes: int
    pieces: int  # the first of those in RAM
    forgotten: int  # the first of the ranges
    frames: int


class OpenSegment:
    """A segment file that is not sealed yet."""

    def __init__(self, directory: Path, tag: Tag) -> None:
        self.tag = tag
        self.frames = 0  # up to the last sample written
        self.suspect = False  # an fsync failed: whatever the file says now is not believed
        self.unsynced_frames = 0  # in RAM until an fsync has succeeded
        self._directory = directory
        self._file = _File(directory, tag)
        self._old: _File | None = None  # what this one replaces, until this one is synced
        self._unsynced: list[Piece] = []
        self._forgotten: list[Range] = []  # not synced, and no more in RAM either
        self.is_fresh = True  # its name is not synced
        self._changes = 1  # the file itself is one
        self._synced_changes = 0
        self._syncing: _Syncing | None = None

    @property
    def is_dirty(self) -> bool:
        """Whether there is anything that no fsync was believed for."""
        return self._changes != self._synced_changes

    @property
    def needs_sync(self) -> bool:
        """Whether an fsync would help. After one that failed the next may tell of success: `move` comes first."""
        return self.is_dirty and not self.suspect

    def write(self, piece: Piece) -> None:
        """Write `piece` at its place. Written again, it changes nothing."""
        at = piece.start - self.tag.first_sample
        self._file.write(at, piece.samples)
        self._unsynced.append(piece)
        frames = len(piece.samples)
        self.unsynced_frames += frames
        self._changes += 1
        self.frames = max(self.frames, at + frames)

    def erase(self, first: int, end: int) -> None:
        """Write silence over what of a range is in this file."""
        first, end = max(first, self.tag.first_sample), min(end, self.tag.first_sample + self.frames)
        if first < end:
            blank = wav.silence(end - first)
            self.write(Piece(first, blank))
            if self._old is not None:  # salvage would take it from there
                with suppress(OSError):
                    self._old.write(first - self.tag.first_sample, blank)

    def read(self, start: int, frames: int) -> Samples:
        """Return samples from `start` within the file; short where it ends."""
        return self._file.read(start, frames)

    def finish(self, frames: int) -> None:
        """Give the file its full length and a right header."""
        self._file.truncate(frames)
        self._file.tell(frames)
        self.frames = frames
        self._changes += 1

    def begin_sync(self) -> int:
        """Return the descriptor to be fsynced; `synced` or `failed` says how it went."""
        self._syncing = _Syncing(self._changes, len(self._unsynced), len(self._forgotten), self.frames)
        return self._file.fd

    def synced(self) -> None:
        """Note that all up to `begin_sync` survives power loss, unless that was said of a file left since."""
        this, self._syncing = self._syncing, None
        if this is None:
            return
        self._synced_changes = this.changes
        self.unsynced_frames -= sum(len(piece.samples) for piece in self._unsynced[: this.pieces])
        del self._unsynced[: this.pieces], self._forgotten[: this.forgotten]
        self._file.synced = this.frames
        if self._old is not None:
            self._old.remove()
            self._old = None
        with suppress(OSError):  # salvage then believes less of the file than it may
            self._file.tell(self.frames)

    def failed(self) -> None:
        """Note that the fsync failed, unless it was one of a file left since."""
        if self._syncing is not None:
            self._syncing, self.suspect = None, True

    def forget(self, frames: int) -> None:
        """Keep no more than `frames` in RAM: an fsync has been under way for too long."""
        while self._unsynced and self.unsynced_frames > frames:
            piece = self._unsynced.pop(0)
            self._forgotten.append((piece.start, piece.end))
            self.unsynced_frames -= len(piece.samples)
            if self._syncing is not None and self._syncing.pieces:
                self._syncing.pieces -= 1
                self._syncing.forgotten += 1

    def give_up(self) -> list[Range]:
        """Drop what is in RAM alone, and return its ranges: the next `move` leaves it out."""
        lost = [(piece.start, piece.end) for piece in self._unsynced]
        self._unsynced, self.unsynced_frames = [], 0
        if self._syncing is not None:
            self._syncing.pieces = 0
        return lost

    def move(self, seq: int) -> list[Range]:
        """Go on in a new file with all that is known of this one. Returns the ranges that nobody knows any more.

        Raises:
            OSError: The new file cannot be written; this one stays, and its next move is another number's.
        """
        tag = replace(self.tag, seq=seq)
        known = self._old or self._file
        new = _File(self._directory, tag)
        try:
            lost = [(tag.first_sample + first, tag.first_sample + end) for first, end in new.copy(known)]
            for piece in self._unsynced:
                new.write(piece.start - tag.first_sample, piece.samples)
            new.truncate(self.frames)
            new.tell(self.frames)
        except OSError:
            new.remove()
            raise
        if known is self._file and known.synced:
            self._old = known
        else:  # it holds nothing that was ever synced, and so nothing that is not here
            self._file.remove()
        self.tag, self._file, self.suspect, self.is_fresh = tag, new, False, True
        self._syncing = None  # whatever an fsync under way says, it says of another file
        self._changes += 1
        lost, self._forgotten = lost + self._forgotten, []
        return lost

    def name(self) -> None:
        """Give the file its final name."""
        self._file.rename(spool.segment_path(self._directory, self.tag.track, self.tag.seq))

    def fact(self, *, now: model.Instant) -> model.Segment:
        """Return what there is to say of the file once it is sealed."""
        return segment_fact(self.tag, self.read(0, self.frames), now=now)

    def close(self) -> None:
        """Let go of the file as it is; `read` opens it again."""
        self._file.close()
        if self._old is not None:
            self._old.close()

    def abandon(self) -> None:
        """Remove the file: it holds nothing that is to be kept."""
        for file in filter(None, (self._file, self._old)):
            file.remove()


class _File:
    """The file of a segment, under the name that it has now."""

    def __init__(self, directory: Path, tag: Tag) -> None:
        self.path = spool.part_path(spool.segment_path(directory, tag.track, tag.seq))
        self.synced = 0  # frames
        self._is_readable = True
        self._header = Header(tag)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, durable.FILE_MODE)
        try:
            self.tell(0)  # first of all: a file without it cannot be salvaged
        except OSError:
            self.remove()
            raise

    def write(self, at: int, samples: Samples) -> None:
        durable.write_all(self.fd, samples.data, at=HEADER_BYTES + at * SAMPLE_BYTES)

    def tell(self, frames: int) -> None:
        """Write the header: how long the file is, and how much of it is known to be synced."""
        self._header.tell(frames=frames, synced=self.synced)
        durable.write_all(self.fd, self._header.data, at=0)

    def copy(self, other: _File) -> list[Range]:
        """Take over what is synced of `other`. Returns what its disk does not give back.

        Raises:
            OSError: It cannot be written here.
        """
        missing = []
        for at in range(0, other.synced, BLOCK):
            end = min(at + BLOCK, other.synced)
            found = other.read_if_possible(at, end - at)
            self.write(at, found)
            if at + len(found) < end:
                missing.append((at + len(found), end))
        return missing

    def read_if_possible(self, at: int, frames: int) -> Samples:
        try:
            return self.read(at, frames)
        except OSError:
            self._is_readable = False
            return wav.silence(0)

    def read(self, at: int, frames: int) -> Samples:
        fd = self.fd if self.fd >= 0 else os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, frames * SAMPLE_BYTES, HEADER_BYTES + at * SAMPLE_BYTES)
        finally:
            if fd != self.fd:
                os.close(fd)
        return np.frombuffer(data, "<i2", count=len(data) // SAMPLE_BYTES)

    def truncate(self, frames: int) -> None:
        os.ftruncate(self.fd, HEADER_BYTES + frames * SAMPLE_BYTES)

    def rename(self, path: Path) -> None:
        self.path.rename(path)
        self.path = path

    def remove(self) -> None:
        """Close and remove the file. One that cannot be removed, or read, is recovery's to set aside."""
        self.close()
        if self._is_readable:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def write_whole(directory: Path, tag: Tag, samples: Samples) -> OpenSegment:
    """Write a segment that is made in one go, at its full length.

    Raises:
        OSError: The disk refused; nothing is left of it.
    """
    segment = OpenSegment(directory, tag)
    try:
        segment.write(Piece(tag.first_sample, samples))
        segment.finish(len(samples))
    except OSError:
        segment.abandon()
        raise
    return segment


def segment_fact(tag: Tag, samples: Samples, *, now: model.Instant, salvaged: bool = False) -> model.Segment:
    """Return what there is to say of a sealed segment file."""
    levels = measure(samples, tag.rate)
    return model.Segment(
        segment_id=model.segment_id(tag.call_id, tag.track, tag.seq),
        call_id=tag.call_id,
        track=tag.track,
        seq=tag.seq,
        first_sample=tag.first_sample,
        frames=len(samples),
        rate=tag.rate,
        started_at=tag.started_at + instant_of(tag.first_sample, tag.rate) // 1000,
        sealed_at=now,
        salvaged=salvaged,
        pcm_sha256=levels.pcm_sha256,
        peak_dbfs=levels.peak_dbfs,
        rms_dbfs=levels.rms_dbfs,
        clipped=levels.clipped,
        waveform=levels.waveform,
    )

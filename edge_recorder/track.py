"""
From a track's pieces to its sealed segments: the files of one track, written by position.

A segment of a track stands in `{track}-{seq}.wav.part` until it is sealed:
    truncate to its full length, write the header, fsync      a crash leaves a `.part` that salvage finishes
    rename to `.wav`, fsync the directory                     a crash leaves a file without a fact: recovery adopts it
    the fact in the journal, fsync                            a crash leaves a fact without a row: recovery replays it
A failed fsync is never believed again on that file: what is known to be synced, and what came since and is still in
RAM, go to a new file under the next number, and the old one is removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from edge_recorder import durable, model, spool, wav
from edge_recorder.levels import measure
from edge_recorder.timeline import Piece, Timeline, instant_of, sample_at
from edge_recorder.wav import HEADER_BYTES, SAMPLE_BYTES, Samples, Tag, silence


class OpenSegment:
    """A segment file that is still written to."""

    def __init__(self, directory: Path, tag: Tag) -> None:
        self.tag = tag
        self.frames = 0  # up to the last sample written
        self.suspect = False  # an fsync failed: whatever the file says now is not believed
        self._sealed_path = spool.segment_path(directory, tag.track, tag.seq)
        self._path = spool.part_path(self._sealed_path)
        self._unsynced: list[Piece] = []  # in RAM until an fsync has succeeded
        self._named = False
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, durable.FILE_MODE)
        try:
            self.write_header()  # first of all: a file without it cannot be salvaged
        except OSError:
            self.abandon()
            raise

    def write(self, piece: Piece) -> None:
        """Write `piece` at its place. Written again, it changes nothing."""
        at = HEADER_BYTES + (piece.start - self.tag.first_sample) * SAMPLE_BYTES
        durable.write_all(self._fd, piece.samples.astype("<i2", copy=False).data, at=at)
        self._unsynced.append(piece)
        self.frames = max(self.frames, piece.end - self.tag.first_sample)

    def write_header(self) -> None:
        durable.write_all(self._fd, wav.header(self.tag, frames=self.frames), at=0)

    def sync(self) -> None:
        """Make everything written so far survive power loss."""
        if self._named and not self._unsynced:
            return
        self.suspect = True
        durable.sync_data(self._fd)
        if not self._named:
            durable.fsync_dir(self._path.parent)
            self._named = True
        self.suspect = False
        self._unsynced.clear()
        self.tag = replace(self.tag, synced=self.frames)
        self.write_header()  # so that salvage knows how far it may believe the file

    def seal(self, frames: int) -> Path:
        """Give the file its full length and its final name, durably, and return that. It stays open, to be retried."""
        os.ftruncate(self._fd, HEADER_BYTES + frames * SAMPLE_BYTES)
        self.frames = frames
        self.write_header()  # it says what was synced before; that all of it is, the name says
        self.suspect = True
        durable.sync_data(self._fd)
        self.suspect = False
        self._unsynced.clear()
        self.tag = replace(self.tag, synced=frames)  # what a move copies, should the next try's fsync fail
        if self._path != self._sealed_path:
            self._path.rename(self._sealed_path)
            self._path = self._sealed_path
        durable.fsync_dir(self._path.parent)
        return self._path

    def read(self, start: int, frames: int) -> Samples:
        """Return samples from `start` within the file; short where it ends."""
        data = os.pread(self._fd, frames * SAMPLE_BYTES, HEADER_BYTES + start * SAMPLE_BYTES)
        return np.frombuffer(data, "<i2", count=len(data) // SAMPLE_BYTES)

    @property
    def refused_frames(self) -> int:
        """Frames that are in RAM because no fsync of them is believed."""
        return sum(len(piece.samples) for piece in self._unsynced) if self.suspect else 0

    def drop_refused(self) -> list[Piece]:
        """Give up what is in RAM only, and return it: the next `move_to` leaves it out."""
        dropped, self._unsynced = (self._unsynced, []) if self.suspect else ([], self._unsynced)
        return dropped

    def move_to(self, directory: Path, seq: int) -> OpenSegment:
        """Return a new file with all that is known of this one; this one is removed once the new one is synced."""
        new = OpenSegment(directory, replace(self.tag, seq=seq, synced=0))
        try:
            if self.tag.synced:
                new.write(Piece(self.tag.first_sample, self.read(0, self.tag.synced)))
            for piece in self._unsynced:
                new.write(piece)
            new.write_header()
            new.sync()
        except OSError:
            new.abandon()
            raise
        self.abandon()
        return new

    def abandon(self) -> None:
        """Remove the file: another holds all that it held. One that cannot be removed is recovery's to set aside."""
        self.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._fd)
        self._fd = -1


class Track:
    """One voice of a call on disk, in segments of `segment_ns` nanoseconds of the call each."""

    def __init__(self, directory: Path, tag: Tag, *, segment_ns: int, live: bool, since: int = 0) -> None:
        """`tag` names the call, the track, its rate and writer; `since` is the interval that the track begins in."""
        self.name = tag.track
        self.rate = tag.rate
        self.ended = False
        self._directory = directory
        self._tag = tag
        self._segment_ns = segment_ns
        self._next_seq = 1
        self._open: dict[int, OpenSegment] = {}  # by interval
        self._sealed: dict[int, model.Segment] = {}  # by interval, until they are mixed
        self._unwritten: list[Piece] = []  # what the disk refused so far
        self.timeline = Timeline(tag.rate, live=live, start=self._cut(since))

    @property
    def refused_frames(self) -> int:
        """Frames that the disk has refused so far."""
        unsynced = sum(segment.refused_frames for segment in self._open.values())
        return unsynced + sum(len(piece.samples) for piece in self._unwritten)

    def take(self, pieces: list[Piece]) -> None:
        """Take in what is due; the next `write` puts it on disk."""
        self._unwritten += pieces

    def write(self) -> None:
        """Write what was taken to its segments. What the disk refuses is kept and tried again by the next `write`.

        Raises:
            OSError: The disk refused something.
        """
        changed: set[int] = set()
        while self._unwritten:
            for interval, part in self._split(self._unwritten[0]):
                self._segment(interval).write(part)
                changed.add(interval)
            del self._unwritten[0]
        for interval in changed:
            self._open[interval].write_header()

    def drop_refused(self) -> list[tuple[int, int]]:
        """Give up what the disk has refused, and return its ranges (first, end)."""
        dropped, self._unwritten = self._unwritten, []
        for segment in self._open.values():
            dropped += segment.drop_refused()
        return sorted((piece.start, piece.end) for piece in dropped)

    def sync(self) -> None:
        """Make everything written survive power loss; a file whose fsync fails is replaced by a new one.

        Raises:
            OSError: The new file failed too. Its audio is still in RAM, and the next call tries again.
        """
        attempt_all(partial(self._sync_segment, interval) for interval in list(self._open))

    def _sync_segment(self, interval: int) -> None:
        segment = self._open[interval]
        try:
            if not segment.suspect:
                segment.sync()
                return
        except OSError:
            pass  # the disk's word on this file counts for nothing from here on
        self._open[interval] = segment.move_to(self._directory, self._take_seq())

    def seal(self, interval: int, end: int, *, now: model.Instant) -> model.Segment | None:
        """Seal the segment of `interval`, which ends at sample `end`, and return its fact.

        None where it has no samples, or is sealed already.

        Raises:
            OSError: The disk refused; the next call tries again.
        """
        first = self._cut(interval)
        if end <= max(first, self.timeline.closed_until):
            return None
        if self._segment(interval).suspect:
            self.sync()
        segment = self._segment(interval)
        path = segment.seal(end - first)
        fact = segment_fact(segment.tag, wav.read_file(path)[1], now=now)
        segment.close()
        self.timeline.close_until(end)
        self._sealed[interval] = fact
        del self._open[interval]
        return fact

    def forget(self, interval: int) -> None:
        """Read no more from sealed segments before `interval`: they are mixed."""
        self._sealed = {known: fact for known, fact in self._sealed.items() if known >= interval}

    def read(self, start: int, frames: int) -> Samples:
        """Return `frames` samples from sample `start`; silence where nothing was written, or it is forgotten."""
        out = silence(frames)
        for interval in sorted(self._open.keys() | self._sealed.keys()):
            first, last = max(start, self._cut(interval)), min(start + frames, self._cut(interval + 1))
            if first < last:
                found = self._read(interval, first - self._cut(interval), last - first)
                out[first - start : first - start + len(found)] = found
        return out

    def close(self) -> None:
        """Let go of the files as they are: salvage finishes them."""
        for segment in self._open.values():
            segment.close()
        self._open.clear()

    def _read(self, interval: int, start: int, frames: int) -> Samples:
        if interval in self._open:
            return self._open[interval].read(start, frames)
        path = spool.segment_path(self._directory, self.name, self._sealed[interval].seq)
        return wav.read_file(path)[1][start : start + frames]

    def _split(self, piece: Piece) -> list[tuple[int, Piece]]:
        """Split `piece` at the cuts: (interval, part)."""
        parts = []
        start = piece.start
        while start < piece.end:
            interval = instant_of(start, self.rate) // self._segment_ns
            end = min(piece.end, self._cut(interval + 1))
            parts.append((interval, Piece(start, piece.samples[start - piece.start : end - piece.start])))
            start = end
        return parts

    def _segment(self, interval: int) -> OpenSegment:
        if interval not in self._open:
            tag = replace(self._tag, first_sample=self._cut(interval), seq=self._next_seq)
            self._open[interval] = OpenSegment(self._directory, tag)
            self._next_seq += 1
        return self._open[interval]

    def _take_seq(self) -> int:
        self._next_seq += 1
        return self._next_seq - 1

    def _cut(self, interval: int) -> int:
        return sample_at(interval * self._segment_ns, self.rate)


def attempt_all(attempts: Iterable[Callable[[], None]]) -> None:
    """Make each attempt, though one before it failed, and then raise the first failure.

    Raises:
        OSError: The disk refused one of them, or more.
    """
    failures = []
    for attempt in attempts:
        try:
            attempt()
        except OSError as error:
            failures.append(error)
    if failures:
        raise failures[0]


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

"""
Bringing disk and catalog together again: salvage, adopt, replay the journal, close dead calls.

What a recorder that died leaves of a call, and what becomes of it:
    a `.part`                            its audio is whole up to the last flush: sealed as it is, `salvaged`
    a `.wav` that no journal knows       adopted: the file says itself what it is
    a journal whose rows are missing     replayed
    intervals without their mix          mixed
    a call that never ended              `interrupted` at its latest sample; a shorter track gets a `gap`
Every step may be repeated. What a living recorder writes is left alone: its lock says so. A file that cannot be read as
what its name says is moved to quarantine/, with a note; nothing is deleted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edge_recorder import durable, journal, model, spool, wav
from edge_recorder.catalog.connection import Catalog
from edge_recorder.catalog.statements import storing
from edge_recorder.errors import CatalogBroken, CatalogBusy, EdgeRecorderError, IntegrityMismatch
from edge_recorder.journal import Content, Journal, Start
from edge_recorder.mixing import mix
from edge_recorder.model import MIXED, CallState, Custody, Fact, Instant, SpanKind
from edge_recorder.playback import Playback
from edge_recorder.spool import JOURNAL, SegmentFile
from edge_recorder.tape import write_whole
from edge_recorder.timeline import instant_of, sample_at
from edge_recorder.track import segment_fact
from edge_recorder.wav import HEADER_BYTES, SAMPLE_BYTES, Samples, Tag, silence

T = TypeVar("T")

log = logging.getLogger("edge_recorder")


class OnPool(Protocol):
    """Runs disk work beside the event loop."""

    def __call__(self, work: Callable[..., T], /, *args: Any) -> Awaitable[T]: ...


@dataclass(slots=True)
class Report:
    """What was found and done, as counts."""

    calls_seen: int = 0
    calls_closed: int = 0  # of dead recorders
    calls_left_alone: int = 0  # of living recorders
    calls_failed: int = 0  # the disk or the catalog refused; tried again the next time
    segments_salvaged: int = 0
    segments_adopted: int = 0
    segments_mixed: int = 0
    files_quarantined: int = 0
    torn_lines: int = 0  # of journals; a crash leaves one at most
    rows_replayed: int = 0

    def add(self, other: Report) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


async def recover(catalog: Catalog, data_dir: Path, *, now: Callable[[], Instant], on_pool: OnPool) -> Report:
    """Close the calls of recorders that died: what every start does. Without dead recorders it looks at nothing else.

    A new catalog is first built from all of the spool: the one before it was lost, or there was none.
    """
    if not await catalog.is_whole():
        return await repair(catalog, data_dir, now=now, on_pool=on_pool)
    report = Report()
    for writer in await on_pool(spool.writers, data_dir):
        with spool.taken_over(data_dir, writer) as dead:
            if not dead:
                continue
            directories, done = await on_pool(_calls_of, data_dir, writer)
            for directory in directories:
                done.add(await _bring_back(catalog, partial(_mend, directory, data_dir, now), on_pool))
            if not done.calls_failed:
                spool.clear_writer(data_dir, writer)
            report.add(done)
    return report


async def repair(
    catalog: Catalog,
    data_dir: Path,
    *,
    now: Callable[[], Instant],
    on_pool: OnPool,
    progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Go through every call on disk: mend what no living recorder writes, and replay all journals into the catalog."""
    report = Report()
    # Only these can be done with afterwards: calls of one that dies from here on may have been passed by.
    done_with = set(await on_pool(spool.dead_writers, data_dir))
    for directory in await on_pool(_call_dirs, data_dir):
        try:
            start = await on_pool(_start_of, directory)
        except OSError as error:
            report.add(_failed(directory, error))
            continue
        if start is None:
            report.calls_left_alone += 1
            continue
        with spool.taken_over(data_dir, start.writer) as dead:
            if not dead:
                done_with.discard(start.writer)  # it lives, or another mends it and may not come to its end
            work = partial(_mend, directory, data_dir, now) if dead else partial(_read, directory)
            report.add(await _bring_back(catalog, work, on_pool))
        progress(report)
    if report.calls_failed:
        return report
    for writer in done_with.intersection(await on_pool(spool.dead_writers, data_dir)):
        spool.clear_writer(data_dir, writer)
    await catalog.mark_whole()
    return report


async def _bring_back(catalog: Catalog, work: partial[tuple[list[Fact], Report]], on_pool: OnPool) -> Report:
    """Do the disk's part for one call, and replay its facts. One call that is refused does not stop the others."""
    try:
        facts, report = await on_pool(work)
        report.rows_replayed = await _replay(catalog, facts)
    except (CatalogBusy, CatalogBroken):
        raise  # as it would be for each of them
    except (EdgeRecorderError, OSError) as error:
        return _failed(work.args[0], error)
    return report


def _failed(directory: Path, error: Exception) -> Report:
    log.error("the call in %s cannot be mended now, and waits for the next time: %s", directory, error)
    return Report(calls_seen=1, calls_failed=1)


async def _replay(catalog: Catalog, facts: list[Fact]) -> int:
    """Store `facts`; what is there already, equal, makes no change. The store is asked for rebuilt objects first."""
    return sum(await catalog.write_all(list(storing(facts, custody=Custody.UNKNOWN))))


def _call_dirs(data_dir: Path) -> list[Path]:
    return list(spool.call_dirs(data_dir))


def _calls_of(data_dir: Path, writer: str) -> tuple[list[Path], Report]:
    """Return the directories of the calls that `writer` wrote, and a count of those that cannot be asked."""
    found, report = [], Report()
    for directory in spool.call_dirs(data_dir):
        try:
            start = journal.read_start(directory / JOURNAL)
        except OSError as error:
            report.add(_failed(directory, error))
            continue
        if start is not None and start.writer == writer:
            found.append(directory)
    return found, report


def _start_of(directory: Path) -> Start | None:
    """Return who writes the call: by its journal, else by a file's tag. None where only a living recorder may know."""
    start = journal.read_start(directory / JOURNAL)
    if start is not None:
        return start
    for file in spool.segment_files(directory):
        try:
            tag = wav.read_tag(_head(file.path))
        except IntegrityMismatch:
            continue
        return Start(call_id=tag.call_id, started_at=tag.started_at, writer=tag.writer)
    return None


def _read(directory: Path) -> tuple[list[Fact], Report]:
    content = journal.read(directory / JOURNAL)
    return list(content.facts.values()), Report(calls_seen=1, calls_left_alone=1, torn_lines=content.torn_lines)


def _mend(directory: Path, data_dir: Path, now: Callable[[], Instant]) -> tuple[list[Fact], Report]:
    """Mend one call whose recorder is dead, and return all its facts."""
    start = _start_of(directory)
    if start is None:
        return [], Report(calls_left_alone=1)
    mending = _Mending(directory, data_dir, start, now)
    mending.take_in_files()
    mending.close_call()
    mending.keep()
    return list(mending.content.facts.values()), mending.report


class _Mending:
    """One call being mended: the facts its journal has, and those that are added."""

    def __init__(self, directory: Path, data_dir: Path, start: Start, now: Callable[[], Instant]) -> None:
        self.content: Content = journal.read(directory / JOURNAL)
        self.report = Report(calls_seen=1, torn_lines=self.content.torn_lines)
        self._directory = directory
        self._data_dir = data_dir
        self._start = start
        self._now = now
        self._new: list[Fact] = []
        self._call = self._known_call()

    def take_in_files(self) -> None:
        """Salvage each `.part`, and adopt each sealed file, that the journal does not know."""
        known = {(fact.track, fact.seq) for fact in self._segments()}
        files = [file for file in spool.segment_files(self._directory) if (file.track, file.seq) not in known]
        superseded = self._superseded(files)
        for file in files:
            try:
                tag, samples = self._read_file(file)
                if file.path in superseded:
                    raise IntegrityMismatch("another file of the same place holds all of it")  # noqa: TRY301
            except IntegrityMismatch as error:
                spool.to_quarantine(self._data_dir, file.path, str(error))
                self.report.files_quarantined += 1
                continue
            self._take_in(file, tag, samples)

    def close_call(self) -> None:
        """End a call that never ended, at its latest sample, with its mix made up to there."""
        if self._call.state != CallState.LIVE:
            return
        tracks = {fact.track: fact.rate for fact in self._segments() if fact.track != MIXED}
        ends = {track: self._end_of(track, rate) for track, rate in tracks.items()}
        duration = max(ends.values(), default=0)
        for track, end in ends.items():
            if sample_at(end, tracks[track]) < sample_at(duration, tracks[track]):
                self._mark(SpanKind.GAP, track, end, duration, "the recorder died first")
        self._mix_missing(tracks, duration)
        closed = replace(
            self._call,
            state=CallState.INTERRUPTED,
            end_reason="the recorder died",
            ended_at=self._call.started_at + duration // 1000,
            duration_s=duration / 1e9,
            tracks=json.dumps(json.loads(self._call.tracks) | tracks),
        )
        self._add(closed)
        self.report.calls_closed += 1

    def keep(self) -> None:
        """Write what was found out to the journal, durably."""
        if not self._new:
            return
        book = Journal(self._directory / JOURNAL, self._start)
        try:
            book.append(self._new)
            book.sync()
        finally:
            book.close()

    def _known_call(self) -> model.Call:
        known = self.content.facts.get(self._start.call_id)
        if isinstance(known, model.Call):
            return known
        call = model.Call(call_id=self._start.call_id, started_at=self._start.started_at, partial=True)
        self._add(call)
        return call

    def _superseded(self, files: list[SegmentFile]) -> set[Path]:
        """Return the `.part`s of which another file has the place: copied when an fsync failed, whole or in part."""
        longest = {(fact.track, fact.first_sample): (fact.frames, fact.seq) for fact in self._segments()}
        places: dict[Path, tuple[tuple[str, int], tuple[int, int]]] = {}
        for file in files:
            with suppress(IntegrityMismatch):
                tag = wav.read_tag(_head(file.path))
                frames = (file.path.stat().st_size - HEADER_BYTES) // SAMPLE_BYTES
                place, length = (tag.track, tag.first_sample), (frames, tag.seq)
                longest[place] = max(longest.get(place, length), length)
                if not file.sealed:
                    places[file.path] = (place, length)
        return {path for path, (place, length) in places.items() if length != longest[place]}

    def _read_file(self, file: SegmentFile) -> tuple[Tag, Samples]:
        tag, samples = wav.read_file(file.path)
        if (tag.track, tag.seq, tag.call_id) != (file.track, file.seq, self._start.call_id):
            raise IntegrityMismatch(f"its header says {tag.track}-{tag.seq} of call {tag.call_id}")
        return tag, samples

    def _take_in(self, file: SegmentFile, tag: Tag, samples: Samples) -> None:
        if not file.sealed:
            if not len(samples):
                file.path.unlink()  # it is ours, and holds nothing
                return
            _seal_salvaged(file.path, tag, len(samples))
            self.report.segments_salvaged += 1
            if tag.synced < len(samples):
                first, end = tag.first_sample + tag.synced, tag.first_sample + len(samples)
                reason = "past the last fsync before the recorder died"
                self._mark(
                    SpanKind.UNVERIFIED, tag.track, instant_of(first, tag.rate), instant_of(end, tag.rate), reason
                )
        else:
            self.report.segments_adopted += 1
        self._add(segment_fact(tag, samples, now=self._now(), salvaged=not file.sealed))

    def _mix_missing(self, tracks: dict[str, int], duration: int) -> None:
        """Make the mixed segments that the recorder did not come to, with the cuts that its tracks have."""
        if not tracks:
            return
        mixed = [fact for fact in self._segments() if fact.track == MIXED]
        rate = mixed[-1].rate if mixed else max(tracks.values())
        begin = max((instant_of(fact.first_sample + fact.frames, rate) for fact in mixed), default=0)
        cuts = {instant_of(fact.first_sample, fact.rate) for fact in self._segments() if fact.track != MIXED}
        edges = sorted({begin, duration} | {cut for cut in cuts if begin < cut < duration})
        players = {track: self._player(track, duration) for track in tracks}

        def read(track: str, first: int, frames: int) -> Samples:
            found = players[track].read(first, frames)
            return wav.padded(found, frames)

        next_seq = 1 + max((fact.seq for fact in mixed), default=0)
        for seq, (start, end) in enumerate(pairwise(edges), next_seq):
            first, last = sample_at(start, rate), sample_at(end, rate)
            if first == last:
                continue
            tag = self._start.tag(MIXED, rate, seq=seq, first_sample=first)
            samples = mix(tracks, rate=rate, first=first, frames=last - first, read=read)
            write_whole(self._directory, tag, samples)
            self._add(segment_fact(tag, samples, now=self._now(), salvaged=True))
            self.report.segments_mixed += 1

    def _player(self, track: str, duration: int) -> Playback:
        segments = [fact for fact in self._segments() if fact.track == track]
        return Playback(segments, read=self._samples_of, frames=sample_at(duration, segments[0].rate))

    def _samples_of(self, segment: model.Segment) -> Samples:
        """Return the samples of a sealed segment for the mix, where a file that is gone or damaged leaves a gap."""
        try:
            samples = wav.read_file(spool.segment_path(self._directory, segment.track, segment.seq))[1]
        except (FileNotFoundError, IntegrityMismatch) as error:
            start, end = (
                instant_of(sample, segment.rate)
                for sample in (segment.first_sample, segment.first_sample + segment.frames)
            )
            self._mark(SpanKind.GAP, MIXED, start, end, f"{segment.track} could not be read: {error}")
            samples = silence(0)
        return wav.padded(samples, segment.frames)

    def _segments(self) -> list[model.Segment]:
        found = [fact for fact in self.content.facts.values() if isinstance(fact, model.Segment)]
        return sorted(found, key=lambda fact: (fact.track, fact.seq))

    def _end_of(self, track: str, rate: int) -> int:
        return max(
            instant_of(fact.first_sample + fact.frames, rate) for fact in self._segments() if fact.track == track
        )

    def _mark(self, kind: SpanKind, track: str, start: int, end: int, reason: str) -> None:
        n = 1 + max((fact.n for fact in self.content.facts.values() if isinstance(fact, model.Span)), default=0)
        span = model.new_span(self._start.call_id, n, kind, track, start_s=start / 1e9, end_s=end / 1e9, reason=reason)
        self._add(span)

    def _add(self, fact: Fact) -> None:
        self.content.facts[journal.key_of(fact)] = fact
        self._new.append(fact)


def _seal_salvaged(part: Path, tag: Tag, frames: int) -> None:
    """Give a `.part` a right header and its final name. Its samples are on disk, or were never promised."""
    data = (
        wav.header(replace(tag, synced=frames), frames=frames)
        + part.read_bytes()[HEADER_BYTES:][: frames * SAMPLE_BYTES]
    )
    durable.replace_with(part, data)
    part.rename(part.with_suffix(""))
    durable.fsync_dir(part.parent)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)

"""
One call of a dead recorder, mended on disk.

What there is, and what becomes of it:
    a `.part`                          its audio is whole up to the last flush: sealed as it is, `salvaged`
    one whose header is torn           the journal noted what it said; without that it is set aside
    one that was copied to another     only what the other does not hold of it, so that nothing is heard twice
    a `.part` of the mix               removed, and made again from the tracks; kept where these are gone
    a `.wav` that the journal has not  adopted: the file says itself what it is
    a fact without its file            stays, for it was true; a `gap` says so unless the store holds the file
    mixed segments that are missing    made
    spans without an end               a pause ends with the call, a turn with its track
    a call that never ended            `interrupted` at its latest sample; a shorter track gets a `gap`

The facts of salvaged files are in the journal before these get their names. A crash
    before the facts leaves `.part`s, and all is done again;
    before the names leaves `.part`s of known facts: they only get their names.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_recorder import durable, journal, model, spool, wav
from edge_recorder.errors import IntegrityMismatch
from edge_recorder.finds import Found, identified, not_copied, readable
from edge_recorder.journal import Content, Journal, Start
from edge_recorder.model import MIXED, CallState, Fact, Instant, Segmentation, SpanKind
from edge_recorder.remixing import Missing, Mixer, missing_intervals, missing_turns
from edge_recorder.segment import segment_fact, write_whole
from edge_recorder.spool import JOURNAL, SegmentFile
from edge_recorder.timeline import NANOSECONDS, Range, instant_of, sample_at
from edge_recorder.wav import Samples, silence

log = logging.getLogger("edge_recorder")


@dataclass(slots=True)
class Done:
    """What was done to one call, as counts."""

    closed: int = 0
    salvaged: int = 0
    adopted: int = 0
    mixed: int = 0
    quarantined: int = 0


class Mending:
    """One call being mended: the facts that its journal has, and those that are added."""

    def __init__(self, directory: Path, data_dir: Path, start: Start, now: Callable[[], Instant]) -> None:
        self.content: Content = journal.read(directory / JOURNAL)
        self.done = Done()
        self._directory = directory
        self._data_dir = data_dir
        self._start = start
        self._now = now
        self._new: list[Fact] = []  # not in the journal yet
        self._unnamed: list[Path] = []  # salvaged files, whose facts go first
        self._unfinished_mixes: list[Found] = []
        self._call = self._known_call()

    @property
    def facts(self) -> list[Fact]:
        return list(self.content.facts.values())

    def mend(self) -> list[model.Segment]:
        """Mend the call. Returns the segments whose file is gone."""
        self._remove_temporaries()
        self._take_in_files()
        if self._call.state == CallState.LIVE:
            self._close_call()
        self._keep()
        there = {path.name for path in self._directory.iterdir()}
        return [each for each in self._segments() if self._path(each).name not in there]

    def note_lost(self, lost: Sequence[model.Segment]) -> None:
        """Say of segments whose files are gone, and are nowhere else, that they are lost."""
        for each in lost:
            name = self._path(each).name
            if self._mark(SpanKind.GAP, each.track, _stretch(each), f"{name} is gone"):
                log.error("%s is gone, and no store has it: restore it there, or accept the gap", self._path(each))
        self._keep()

    # Files.

    def _remove_temporaries(self) -> None:
        """Remove what was never meant to be read again."""
        for pattern in (".spill.*", ".*.tmp"):
            for path in self._directory.glob(pattern):
                path.unlink()

    def _take_in_files(self) -> None:
        """Salvage each `.part`, and adopt each sealed file, that the journal does not know. The mix comes last."""
        found = self._found()
        copies = self._by_place(found)
        for mixes in (False, True):
            for each in found:
                if (each.tag.track == MIXED) == mixes:
                    self._take_in(each, [path for path in copies[each.place] if path != each.file.path])
            self._keep()
            self._name_salvaged()

    def _found(self) -> list[Found]:
        """Return the files that are to be taken in, the shortest first. What does not say what it is, is set aside."""
        known = {(fact.track, fact.seq): fact for fact in self._segments()}
        found = []
        for file in spool.segment_files(self._directory):
            fact = known.get((file.track, file.seq))
            if fact is None:
                with self._set_aside(file.path):
                    found.append(identified(file, self.content, self._start))
            elif not file.sealed:
                with self._set_aside(file.path):
                    self._finish_naming(file, fact)
        return sorted(found, key=lambda each: (each.frames, each.tag.seq))

    def _finish_naming(self, file: SegmentFile, fact: model.Segment) -> None:
        """Give its name to a file whose fact is known: salvage was cut short before that."""
        if self._path(fact).exists():
            raise IntegrityMismatch(f"{self._path(fact).name} has its place")
        if hashlib.sha256(wav.read_file(file.path)[1].tobytes()).hexdigest() != fact.pcm_sha256:
            raise IntegrityMismatch("it does not hold the samples that were salvaged")
        self._unnamed.append(file.path)

    def _by_place(self, found: list[Found]) -> dict[tuple[str, int], list[Path]]:
        """Return the files that begin at the same sample of a track, the least trusted first."""
        places: dict[tuple[str, int], list[Path]] = {}
        for each in found:
            places.setdefault(each.place, []).append(each.file.path)
        for fact in self._segments():
            if (fact.track, fact.first_sample) in places:
                places[fact.track, fact.first_sample].append(self._path(fact))
        return places

    def _take_in(self, found: Found, beside: list[Path]) -> None:
        with self._set_aside(found.file.path):
            if found.whole:
                self._add(segment_fact(found.tag, wav.read_samples(found.file.path), now=self._now()))
                self.done.adopted += 1
            elif not found.frames:
                found.file.path.unlink()  # it is ours, and holds nothing
            elif found.tag.track == MIXED and self._call.state == CallState.LIVE:
                self._unfinished_mixes.append(found)
            else:
                self._salvage(found, beside)

    def _salvage(self, found: Found, beside: list[Path]) -> None:
        tag, path = found.tag, found.file.path
        samples, others = wav.read_samples(path), list(readable(beside))
        if tag.track == MIXED:  # where late audio has a mix of its own beside the other
            others = [each for each in others if np.array_equal(each[: len(samples)], samples)]
        samples = not_copied(samples, others)
        durable.replace_with(path, wav.header(tag, frames=found.frames) + samples.tobytes())
        if tag.synced < found.frames:
            place = tag.first_sample + tag.synced, tag.first_sample + found.frames
            reason = "past the last fsync before the recorder died"
            self._mark(SpanKind.UNVERIFIED, tag.track, _instants(place, tag.rate), reason)
        self._add(segment_fact(tag, samples, now=self._now(), salvaged=True))
        self._unnamed.append(path)
        self.done.salvaged += 1

    def _name_salvaged(self) -> None:
        """Give salvaged files their names. Their facts are safe."""
        for part in self._unnamed:
            part.rename(part.with_name(part.name.removesuffix(".part")))
        if self._unnamed:
            durable.fsync_dir(self._directory)
        self._unnamed = []

    # The call.

    def _close_call(self) -> None:
        """End a call that never ended, at its latest sample, with its mix made up to there."""
        self._settle_mixes()
        ends = self._ends()
        duration = max(ends.values(), default=0)
        for span in self.content.open_spans():
            end = ends.get(span.track or "", 0) if span.kind == SpanKind.TURN else duration
            self._add(replace(span, end_s=max(span.start_s, end / NANOSECONDS)))
        self._mark_shorter_tracks(ends, duration)
        self._mix_missing()
        closed = replace(
            self._call,
            state=CallState.INTERRUPTED,
            end_reason="the recorder died",
            ended_at=self._call.started_at + duration // 1000,
            duration_s=duration / NANOSECONDS,
            tracks=json.dumps(json.loads(self._call.tracks) | {each.track: each.rate for each in self._voices()}),
        )
        self._add(closed)
        self.done.closed = 1

    def _mark_shorter_tracks(self, ends: dict[str, int], duration: int) -> None:
        last = {each.track: each for each in sorted(self._voices(), key=lambda each: _stretch(each)[1])}
        for track, each in last.items():
            if self._start.segmentation == Segmentation.TURN and not each.salvaged:
                continue  # nobody spoke there when the recorder died
            if sample_at(ends[track], each.rate) < sample_at(duration, each.rate):
                self._mark(SpanKind.GAP, track, (ends[track], duration), "the recorder died first")

    def _settle_mixes(self) -> None:
        """Remove the unfinished mixes that will be made again, and salvage those of which the tracks are gone."""
        again = {missing.first: missing.end for missing in self._missing_mixes()}
        for found in self._unfinished_mixes:
            first, rate = found.tag.first_sample, found.tag.rate
            under = self._voices_under(_instants((first, again.get(first, first)), rate))
            if under and all(self._path(each).exists() for each in under):
                found.file.path.unlink()
                continue
            beside = [
                each.file.path for each in self._unfinished_mixes if each is not found and each.place == found.place
            ]
            with self._set_aside(found.file.path):
                self._salvage(found, beside)
        self._keep()
        self._name_salvaged()

    def _mix_missing(self) -> None:
        """Make the mixed segments that the recorder did not come to."""
        mixer = self._mixer()
        last = max((each.seq for each in self._mixed()), default=0)
        for seq, each in enumerate(self._missing_mixes(), last + 1):
            self._mix(seq, each, mixer, self._mixed_rate())

    def _missing_mixes(self) -> list[Missing]:
        voices, mixed, rate = self._voices(), self._mixed(), self._mixed_rate()
        if not voices:
            return []
        if self._start.segmentation != Segmentation.TURN:
            hash_of = self._mixer().hash_of
            return missing_intervals(voices, mixed, rate=rate, duration=self._duration(), hash_of=hash_of)
        turns = [fact for fact in self.facts if isinstance(fact, model.Span) and fact.kind == SpanKind.TURN]
        return missing_turns(voices, mixed, turns, rate=rate)

    def _mixer(self) -> Mixer:
        return Mixer(self._voices(), rate=self._mixed_rate(), duration=self._duration(), read=self._samples_of)

    def _mixed_rate(self) -> int:
        """Return the rate of the mix: what it was, or else the highest of the tracks."""
        made = [each.rate for each in self._mixed()] or [each.tag.rate for each in self._unfinished_mixes]
        return made[-1] if made else max((each.rate for each in self._voices()), default=0)

    def _mix(self, seq: int, missing: Missing, mixer: Mixer, rate: int) -> None:
        tag = self._start.tag(MIXED, rate, seq=seq, first_sample=missing.first)
        samples = mixer.make(missing)
        segment = write_whole(self._directory, tag, samples)
        durable.sync_data(segment.begin_sync())
        segment.name()
        durable.fsync_dir(self._directory)
        segment.close()
        self._add(segment_fact(tag, samples, now=self._now(), salvaged=True))
        self.done.mixed += 1

    def _samples_of(self, segment: model.Segment) -> Samples:
        """Return the samples of a sealed segment for the mix, where a file that is gone or damaged leaves a gap."""
        try:
            samples = wav.read_file(self._path(segment))[1]
        except (FileNotFoundError, IntegrityMismatch):
            self._mark(SpanKind.GAP, MIXED, _stretch(segment), f"{self._path(segment).name} could not be read")
            samples = silence(0)
        return wav.padded(samples, segment.frames)

    # Facts.

    def _known_call(self) -> model.Call:
        known = self.content.facts.get(self._start.call_id)
        if isinstance(known, model.Call):
            return known
        call = model.Call(call_id=self._start.call_id, started_at=self._start.started_at, partial=True)
        self._add(call)
        return call

    def _segments(self) -> list[model.Segment]:
        found = [fact for fact in self.content.facts.values() if isinstance(fact, model.Segment)]
        return sorted(found, key=lambda fact: (fact.track, fact.seq))

    def _voices(self) -> list[model.Segment]:
        return [each for each in self._segments() if each.track != MIXED]

    def _mixed(self) -> list[model.Segment]:
        return [each for each in self._segments() if each.track == MIXED]

    def _voices_under(self, stretch: Range) -> list[model.Segment]:
        """Return the segments of the tracks that have something in a `stretch` of the call, in nanoseconds."""
        start, end = stretch
        return [each for each in self._voices() if _stretch(each)[0] < end and start < _stretch(each)[1]]

    def _ends(self) -> dict[str, int]:
        """Return where each track ends, in nanoseconds."""
        ends: dict[str, int] = {}
        for each in self._segments():
            ends[each.track] = max(_stretch(each)[1], ends.get(each.track, 0))
        return ends

    def _duration(self) -> int:
        return max(self._ends().values(), default=0)

    def _path(self, segment: model.Segment) -> Path:
        return spool.segment_path(self._directory, segment.track, segment.seq)

    def _mark(self, kind: SpanKind, track: str, stretch: Range, reason: str) -> bool:
        """Add a span, its `stretch` in nanoseconds. False where it is there already."""
        spans = [*self.content.began.values(), *(fact for fact in self.facts if isinstance(fact, model.Span))]
        start, end = (instant / NANOSECONDS for instant in stretch)
        if any((each.kind, each.track, each.start_s, each.end_s) == (kind, track, start, end) for each in spans):
            return False
        n = 1 + max((each.n for each in spans), default=0)
        self._add(model.new_span(self._start.call_id, n, kind, track, start_s=start, end_s=end, reason=reason))
        return True

    def _add(self, fact: Fact) -> None:
        self.content.facts[journal.key_of(fact)] = fact
        self._new.append(fact)

    def _keep(self) -> None:
        """Write what was found out to the journal, durably."""
        if not self._new:
            return
        book = Journal(self._directory / JOURNAL, self._start)
        try:
            book.append(self._new)
            durable.sync_data(book.fd)
            durable.fsync_dir(self._directory)
        finally:
            book.close()
        self._new = []

    @contextmanager
    def _set_aside(self, path: Path) -> Iterator[None]:
        """Set a file aside that turns out not to be what its name says. It is never deleted."""
        try:
            yield
        except IntegrityMismatch as error:
            spool.to_quarantine(self._data_dir, path, str(error))
            self.done.quarantined += 1


def _instants(place: Range, rate: int) -> Range:
    return instant_of(place[0], rate), instant_of(place[1], rate)


def _stretch(segment: model.Segment) -> Range:
    """Return where `segment` is, in nanoseconds of the call."""
    return _instants((segment.first_sample, segment.first_sample + segment.frames), segment.rate)

"""Calls whose recorder died: recorded on a real tape that is let go of where it is, and what is left of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_recorder import journal, model, spool, wav
from edge_recorder.items import Ending, Item, Stream, TrackDeclared, TurnAdded, TurnMarked
from edge_recorder.journal import Start
from edge_recorder.mending import Mending
from edge_recorder.model import MIXED, Segment, Span
from edge_recorder.settings import Capture
from edge_recorder.tape import Tape
from edge_recorder.timeline import NANOSECONDS, Heard
from edge_recorder.wav import Samples

STARTED = 1_790_000_000_000_000
RATE = 8000
WRITER = "abcdef123456-01234567"  # nobody holds its lock
DURATION = 12 * RATE  # samples that are compared


def noise(seconds: float, seed: int = 1) -> Samples:
    """Return quiet noise without a zero, so that a sum is never bent and a hole is seen."""
    drawn = np.random.default_rng(seed).integers(1, 4000, round(seconds * RATE), np.int16)
    return np.where(drawn % 2, drawn, -drawn).astype(np.int16)


class Wreck:
    """A call that is recorded step by step, until it is left as it is."""

    def __init__(self, data_dir: Path, *tracks: str, segmentation: str = "interval", mixed_rate: int = RATE) -> None:
        call = model.Call(call_id=model.new_call_id(STARTED), started_at=STARTED)
        capture = Capture(segment_seconds=1, late_window=0.2, segmentation=segmentation, mixed_rate=mixed_rate)
        self.data_dir = data_dir
        self.call_id = call.call_id
        self.truth = {track: wav.silence(DURATION) for track in tracks}  # what was written
        self._tape = Tape(call, data_dir, writer=WRITER, capture=capture, clock=lambda: STARTED)
        self.directory = self._tape.directory
        self._items: list[Item] = [TrackDeclared(track, RATE) for track in tracks]
        self.step(0)
        self.sync()

    @property
    def journal(self) -> Path:
        return self.directory / spool.JOURNAL

    def write(self, track: str, samples: Samples, *, at: float) -> None:
        """Write where nothing was written before."""
        first = round(at * RATE)
        self.truth[track][first : first + len(samples)] = samples
        heard = Heard(samples.tobytes(), round(at * NANOSECONDS), at)
        self._items.append(Stream(track, RATE, "pcm16", [heard]))

    def mark_turn(self, track: str, *, starts: bool, at: float) -> None:
        self._items.append(TurnMarked(track, starts, round(at * NANOSECONDS)))

    def add_turn(self, track: str, samples: Samples, *, at: float) -> None:
        first = round(at * RATE)
        self.truth[track][first : first + len(samples)] = samples
        self._items.append(TurnAdded(track, samples.tobytes(), "pcm16", RATE, round(at * NANOSECONDS), at))

    def step(self, now: float, *, ending: Ending | None = None) -> None:
        items, self._items = self._items, []
        assert not self._tape.advance(items, now=round(now * NANOSECONDS), ending=ending).errors

    def sync(self, rounds: int = 1, *, failing: Callable[[], bool] = lambda: False) -> None:
        """Take what is written to safety, in `rounds`; `failing` says of each fsync whether it fails."""
        for _ in range(rounds):
            failures = {}
            for fd in self._tape.begin_sync():
                if failing():
                    failures[fd] = OSError(errno.EIO, os.strerror(errno.EIO))
                else:
                    os.fsync(fd)
            assert len(self._tape.end_sync(failures).errors) == len(failures)

    def kill(self) -> None:
        """Leave all as it is, as a SIGKILL does."""
        self._tape.close()

    def parts(self, track: str) -> list[Path]:
        return [file.path for file in spool.segment_files(self.directory) if file.track == track and not file.sealed]


def killed_call(data_dir: Path) -> Wreck:
    """A call of 2.5 s on `user` and 2 s on `assistant`, killed before its second cut was due."""
    wreck = Wreck(data_dir, "user", "assistant")
    wreck.write("user", noise(1.5), at=0.0)
    wreck.write("assistant", noise(2.0, 2), at=0.0)
    wreck.step(1.5)
    wreck.sync(4)
    wreck.write("user", noise(1.0, 3), at=1.5)
    wreck.step(2.1)
    wreck.step(2.5)  # what was ahead of time
    wreck.kill()
    return wreck


def mend(directory: Path, data_dir: Path) -> Mending:
    """Mend the call in `directory`, as its next start does."""
    start = journal.read_start(directory / spool.JOURNAL)
    assert start is not None
    mending = Mending(directory, data_dir, start, lambda: STARTED)
    mending.note_lost(mending.mend())
    return mending


def segments(mending: Mending, track: str) -> list[Segment]:
    found = [fact for fact in mending.facts if isinstance(fact, Segment) and fact.track == track]
    return sorted(found, key=lambda each: each.seq)


def spans(mending: Mending, kind: str) -> list[tuple[str | None, float, float]]:
    """Return where the spans of a kind are."""
    found = [fact for fact in mending.facts if isinstance(fact, Span) and fact.kind == kind]
    return [(span.track, span.start_s, span.end_s) for span in found]


def heard(directory: Path, track: str) -> Samples:
    """Return the sum of all sealed files of a track, each at its place."""
    out = wav.silence(DURATION)
    for file in spool.segment_files(directory):
        if file.track == track:
            assert file.sealed, file.path
            tag, samples = wav.read_file(file.path)
            end = min(DURATION, tag.first_sample + len(samples))
            out[tag.first_sample : end] += samples[: end - tag.first_sample]
    return out


def places(found: Sequence[Segment]) -> list[tuple[float, float]]:
    """Return where segments begin and end, in seconds."""
    return [(each.first_sample / each.rate, (each.first_sample + each.frames) / each.rate) for each in found]


def check_files(mending: Mending, directory: Path) -> None:
    """Hold each fact against its file, and see that there is no other file."""
    facts = [fact for fact in mending.facts if isinstance(fact, Segment)]
    assert {(file.track, file.seq) for file in spool.segment_files(directory)} == {(f.track, f.seq) for f in facts}
    for fact in facts:
        tag, samples = wav.read_file(spool.segment_path(directory, fact.track, fact.seq))
        assert (tag.first_sample, tag.rate, len(samples)) == (fact.first_sample, fact.rate, fact.frames)


def total(wreck: Wreck) -> Samples:
    """Return the sum of what was written on all tracks: quiet as it is, that is the mix."""
    return np.sum(list(wreck.truth.values()), axis=0).astype(np.int16)


def mixed(directory: Path) -> Samples:
    return heard(directory, MIXED)


def start_of(wreck: Wreck) -> Start:
    return Start(call_id=wreck.call_id, started_at=STARTED, writer=WRITER)


def copy_part(part: Path, *, seq: int, frames: int | None = None, samples: Samples | None = None) -> None:
    """Write a copy of `part` under a higher number, as is done when an fsync has failed."""
    tag, whole = wav.read_file(part)
    kept = whole[:frames] if samples is None else samples
    copy = spool.part_path(spool.segment_path(part.parent, tag.track, seq))
    copy.write_bytes(wav.header(replace(tag, seq=seq), frames=len(kept)) + kept.tobytes())

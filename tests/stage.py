"""
A call in virtual time: the real handle and the real tape on real files, with a clock that the test moves.

`Stage.go` moves the clock and makes the steps and rounds that a recorder would make meanwhile. `Stage.end` ends the
call, and proves what must be true of any: each row is its file, all is in the journal, and nothing is left open.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_recorder import call as call_module
from edge_recorder import durable, journal, mixing, model, spool, wav
from edge_recorder.call import Call
from edge_recorder.handover import Budget
from edge_recorder.levels import measure
from edge_recorder.model import MIXED, Pace, Segment, Span
from edge_recorder.places import joined
from edge_recorder.settings import Capture
from edge_recorder.tape import Progress, Tape

START = 1_790_000_000_123_456  # an instant in September 2026, with its microseconds
SECOND = 1_000_000_000
MANY_ROUNDS = 12  # no call needs as many to end

Samples = NDArray[np.int16]


class Clock:
    """Stands for the module `time` in the handle."""

    def __init__(self) -> None:
        self.now = 0  # nanoseconds

    def monotonic_ns(self) -> int:
        return self.now


def ns(seconds: float) -> int:
    return round(seconds * SECOND)


def noise(frames: int, seed: int = 0, loudness: int = 3000) -> Samples:
    """Return samples of which none is 0, so that silence is never taken for them."""
    dice = np.random.default_rng(seed)
    return (dice.integers(1, loudness, frames) * dice.choice([-1, 1], frames)).astype(np.int16)


def whole(length: int, *pieces: tuple[int, Samples]) -> Samples:
    """Return a track of `length` samples with `pieces` at their places."""
    out = np.zeros(length, np.int16)
    for start, samples in pieces:
        out[start : start + len(samples)] = samples
    return out


@dataclass
class Recording:
    """What is there of a call that has ended."""

    call: model.Call
    segments: list[tuple[Segment, Samples]]
    spans: list[Span]
    directory: Path

    def of(self, track: str) -> list[tuple[Segment, Samples]]:
        """Return the segments of a track by their places."""
        return sorted((each for each in self.segments if each[0].track == track), key=lambda each: _place(each[0]))

    def ranges(self, track: str) -> list[tuple[int, int]]:
        return [_place(segment) for segment, _ in self.of(track)]

    def seconds(self, track: str) -> list[tuple[float, float]]:
        """Return from when to when each segment of a track is."""
        return [(s.first_sample / s.rate, (s.first_sample + s.frames) / s.rate) for s, _ in self.of(track)]

    def track(self, name: str) -> Samples:
        """Return all of a track. Where segments overlap, all but one are silent."""
        found = self.of(name)
        out = np.zeros(max((_place(segment)[1] for segment, _ in found), default=0), np.int16)
        for segment, samples in found:
            there = out[slice(*_place(segment))]
            assert not (there.astype(bool) & samples.astype(bool)).any(), f"{name} says two things at once"
            there += samples
        return out

    def spans_of(self, kind: str, track: str | None = None) -> list[tuple[float, float]]:
        """Return when spans of a kind were, in order."""
        return sorted((each.start_s, each.end_s) for each in self.spans if (each.kind, each.track) == (kind, track))

    def rates(self) -> dict[str, int]:
        rates: dict[str, int] = json.loads(self.call.tracks)
        return rates

    def check_interval(self) -> None:
        """Prove that all tracks and the mix cover the whole call, cut at the same instants."""
        duration = ns(self.call.duration_s or 0)
        for name in [*self.rates(), MIXED]:
            rate = self.of(name)[0][0].rate if duration else 1
            assert abs(max((end for _, end in self.ranges(name)), default=0) - duration * rate // SECOND) <= 1, name
            covered = joined(self.ranges(name))
            assert [first for first, _ in covered] == [0] * bool(duration), f"{name} has a hole"

    def mix(self, rate: int, first: int, frames: int) -> Samples:
        """Return what the mix of the tracks is, made anew from what they hold now."""
        tracks = {name: self.track(name) for name in self.rates()}

        def read(name: str, start: int, count: int) -> Samples:
            return wav.padded(tracks[name][start : start + count], count)

        return mixing.mix(self.rates(), rate=rate, first=first, frames=frames, read=read)


@dataclass
class Stage:
    """One call in virtual time."""

    data_dir: Path
    tracks: Mapping[str, int] | None = None
    pace: str = Pace.LIVE
    record: bool = True
    step: float = 0.4  # seconds between steps
    started_at: int = START
    capture: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._clock = Clock()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(call_module, "time", self._clock)
        capture = Capture(**{"segment_seconds": 1, **self.capture})
        self.facts: dict[str, model.Fact] = {}
        fact = model.Call(
            call_id=model.new_call_id(self.started_at),
            started_at=self.started_at,
            pace=self.pace,
            recording=self.record,
            not_recording_reason=None if self.record else "record=False",
            tracks=json.dumps(dict(self.tracks or {})),
        )
        self.tape = Tape(fact, self.data_dir, writer="noboot-00000000", capture=capture, clock=self.time_of_day)
        self.call = Call(
            fact,
            tracks=self.tracks or {},
            queue_seconds=capture.queue_seconds,
            budget=Budget(capture.queue_bytes),
            began=0,
            clock=self.time_of_day,
            wake=lambda: None,
            measure=self.tape.on_disk,
        )
        self._next_step = ns(self.step)
        self.round()  # the journal is open: files may be made
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tape.close()
        self._patch.undo()

    @property
    def now(self) -> int:
        """Nanoseconds since the call's start."""
        return self._clock.now

    def time_of_day(self) -> model.Instant:
        return self.started_at + self._clock.now // 1000

    def go(self, seconds: float, *, nanoseconds: int | None = None) -> None:
        """Move the clock there, with the steps and rounds that are due before."""
        then = ns(seconds) if nanoseconds is None else nanoseconds
        assert then >= self.now, "time does not go back"
        while self._next_step <= then:
            self._clock.now = self._next_step
            self._next_step += ns(self.step)
            self.advance()
            self.round()
        self._clock.now = then

    def stall(self, seconds: float) -> None:
        """Move the clock there, with no step before it: the recorder's thread had no turn."""
        self._clock.now = ns(seconds)
        self._next_step = max(self._next_step, self._clock.now)

    def advance(self) -> None:
        """Make a step now."""
        taken = self.call.take()
        self._note(self.tape.advance(taken.items, now=taken.now, ending=taken.ending))

    def round(self) -> None:
        """Make a round of fsyncs now."""
        fds = self.tape.begin_sync()
        self._note(self.tape.end_sync(durable.sync_all(fds, root=None)))

    def end(self) -> Recording:
        """End the call now, and return what is there of it."""
        self.call.end()
        for _ in range(MANY_ROUNDS):
            self.advance()
            self.round()
            if self.tape.has_ended:
                break
        assert self.tape.has_ended
        recording = self._recording()
        _check(recording, self.facts)
        return recording

    def speak(self, track: str, start: float, samples: Samples, *, bursts: list[int] | None = None) -> int:
        """Write what is said from `start` on as a live source does: each burst (ms) when its last sample is said.

        Returns the first sample.
        """
        rate = (self.tracks or {})[track]
        first = at = round(start * rate)
        for burst in bursts or [20] * (len(samples) * 50 // rate):
            said = samples[at - first : at - first + rate * burst // 1000]
            at += len(said)
            self.go(0, nanoseconds=max(self.now, -(-at * SECOND // rate)))
            for n in range(0, len(said), rate // 50):
                self.call.write(track, said[n : n + rate // 50])
        return first

    def _note(self, progress: Progress) -> None:
        assert progress.errors == []
        self.facts |= {journal.key_of(fact): fact for fact in progress.facts}

    def _recording(self) -> Recording:
        facts = list(self.facts.values())
        read = []
        for segment in (each for each in facts if isinstance(each, Segment)):
            tag, samples = wav.read_file(spool.segment_path(self.tape.directory, segment.track, segment.seq))
            assert (tag.first_sample, tag.rate, tag.seq) == (segment.first_sample, segment.rate, segment.seq)
            read.append((segment, samples))
        spans = [each for each in facts if isinstance(each, Span)]
        return Recording(self.tape.call, read, spans, self.tape.directory)


def _place(segment: Segment) -> tuple[int, int]:
    return segment.first_sample, segment.first_sample + segment.frames


def _check(recording: Recording, facts: Mapping[str, model.Fact]) -> None:
    """Prove what must be true of any call that has ended."""
    files = spool.segment_files(recording.directory)
    assert all(file.sealed for file in files)
    assert {(file.track, file.seq) for file in files} == {(s.track, s.seq) for s, _ in recording.segments}
    for segment, samples in recording.segments:
        levels = measure(samples, segment.rate)
        assert (segment.frames, segment.pcm_sha256) == (len(samples), levels.pcm_sha256)
        assert (segment.peak_dbfs, segment.clipped, segment.waveform) == (
            levels.peak_dbfs,
            levels.clipped,
            levels.waveform,
        )
    assert recording.call.state == model.CallState.ENDED
    said = journal.read(recording.directory / spool.JOURNAL)
    assert (said.torn_lines, said.facts) == (0, dict(facts))

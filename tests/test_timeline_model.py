"""A timeline against a plain model of its rules, sample by sample, whatever comes in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import cast

import numpy as np
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edge_recorder.timeline import Audio, Heard, Range, Timeline, Waiting

RATE = 1000  # Hz: a sample is a millisecond
MILLISECOND = 1_000_000  # nanoseconds
FAR = 1 << 40
LOUD = 1100  # the value of the first sample: none is quiet, so that drift is never put right


class Fate(Enum):
    ARRIVING = "arriving"  # not placed yet
    WAITING = "waiting"  # placed, but ahead of time
    QUEUED = "queued"  # to be said
    WRITTEN = "written"
    LATE = "late"
    MUTED = "muted"
    UNHEARD = "unheard"


@dataclass
class Chunk:
    samples: list[int]
    arrived: int
    at: int | None


@dataclass
class Model:
    """The rules as they are told to people. A sample is a number, and so is a place."""

    live: bool
    fate: dict[int, Fate] = field(default_factory=dict)
    place: dict[int, int] = field(default_factory=dict)  # of each sample that has one
    taken: dict[int, int] = field(default_factory=dict)  # by place
    chunks: list[Chunk] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    utterance: list[int] = field(default_factory=list)
    spoken: set[int] = field(default_factory=set)
    in_turn: bool = False
    halted: int | None = None
    muted: set[int] = field(default_factory=set)
    is_muted: bool = False
    muted_from: int = 0
    end: int = 0
    last: int = 0
    late: list[int] = field(default_factory=list)  # places, since asked
    unheard: list[int] = field(default_factory=list)

    # Heard.

    def hear(self, chunks: list[Chunk], now: int) -> None:
        for chunk in chunks:
            self.chunks.append(chunk)
            self.fate |= dict.fromkeys(chunk.samples, Fate.ARRIVING)
        while self.chunks:
            together = self.first_together(now)
            if together is None:
                return
            run, start = together
            del self.chunks[: len(run)]
            self.put([sample for chunk in run for sample in chunk.samples], start, Fate.WAITING)

    def first_together(self, now: int) -> tuple[list[Chunk], int] | None:
        first = self.chunks[0]
        if first.at is not None:
            near = [end for end in (self.last, self.end) if abs(first.at - end) <= 40]
            return [first], near[0] if near else first.at
        if not self.live or first.arrived - len(first.samples) - self.end <= 100:
            return [first], self.end
        run = [first]
        for chunk in self.chunks[1:]:
            enough = chunk.arrived - first.arrived >= sum(len(each.samples) for each in run)
            if chunk.at is not None or enough or chunk.arrived - run[-1].arrived >= 50:
                break
            run.append(chunk)
        start = run[-1].arrived - sum(len(each.samples) for each in run)
        if start - self.end <= 100:
            return run, self.end
        recent = sum(len(each.samples) for each in run if each.arrived > now - 50)
        goes_on = first.arrived > now - 50 or (recent > 100 and now - first.arrived < 1000)
        return None if goes_on and len(run) == len(self.chunks) else (run, start)

    def put(self, samples: list[int], start: int, fate: Fate) -> None:
        for place, sample in enumerate(samples, start):
            if place in self.taken or place < 0:
                self.fate[sample] = Fate.LATE
                self.late.append(place)
            else:
                self.taken[place], self.place[sample], self.fate[sample] = sample, place, fate
        if samples:
            self.last = start + len(samples)
            self.end = max(self.end, self.last)

    # Played.

    def play(self, samples: list[int], now: int) -> None:
        start = self.place[self.queue[-1]] + 1 if self.queue else self.end
        clock = now if self.halted is None else self.halted
        if self.live and clock - start > 100:
            start = clock
            if not self.in_turn:
                self.utterance = []
        for place, sample in enumerate(samples, start):
            self.place[sample], self.fate[sample] = place, Fate.QUEUED
        self.queue += samples
        self.utterance += samples

    def go_on(self, now: int) -> None:
        if self.halted is not None:
            for sample in self.queue:
                self.place[sample] += now - self.halted if self.place[sample] >= self.halted else 0
        self.halted = None

    def interrupt(self, at: int, played: int | None) -> None:
        cut = at
        if played is not None:
            cut = self.place[self.utterance[played]] if played < len(self.utterance) else FAR
        if self.halted is not None:
            cut = min(cut, self.halted)
        freed = [each for each in self.spoken if self.place[each] >= cut]
        unheard = [each for each in self.queue if self.place[each] >= cut] + freed
        self.unheard += [self.place[each] for each in unheard]
        self.fate |= dict.fromkeys(unheard, Fate.UNHEARD)
        self.queue = [each for each in self.queue if self.place[each] < cut]
        self.utterance = []
        self.spoken -= set(freed)
        for sample in freed:
            del self.taken[self.place[sample]]
        if freed:
            lowest = min(self.place[each] for each in freed)
            self.end = self.last = max(self.taken, default=lowest - 1) + 1

    # Time.

    def release(self, now: int) -> None:
        for sample, fate in self.fate.items():
            if fate == Fate.WAITING and (not self.live or self.place[sample] < now + 500):
                self.write(sample)
        clock = now if self.halted is None else self.halted
        due = [each for each in self.queue if not self.live or self.place[each] < clock]
        self.queue = self.queue[len(due) :]
        for sample in due:
            self.put([sample], self.place[sample], Fate.WRITTEN)
            if self.fate[sample] != Fate.LATE:
                self.spoken.add(sample)
                self.write(sample)

    def write(self, sample: int) -> None:
        place = self.place[sample]
        muted = place in self.muted or (self.is_muted and place >= self.muted_from)
        self.fate[sample] = Fate.MUTED if muted else Fate.WRITTEN

    def written(self) -> dict[int, int]:
        return {self.place[sample]: sample for sample, fate in self.fate.items() if fate == Fate.WRITTEN}


class Bench:
    """A timeline and its model, given the same."""

    def __init__(self, *, live: bool) -> None:
        self.timeline = Timeline(RATE, live=live)
        self.model = Model(live)
        self.now = 0
        self.chunks: list[Chunk] = []
        self.file: dict[int, int] = {}  # what is written, by place
        self.late: list[int] = []
        self.unheard: list[int] = []
        self.given = 0

    def samples(self, frames: int) -> list[int]:
        self.given += frames
        return list(range(self.given - frames, self.given))

    def audio(self, samples: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
        return (np.array(samples, np.int64) + LOUD).astype("<i2")

    def hear(self, sizes: list[int], gap: int, at: int | None) -> None:
        """Let chunks arrive, `gap` apart."""
        for n, frames in enumerate(sizes):
            self.now += gap if n else 0
            place = None if at is None else max(0, self.now + at)
            self.chunks.append(Chunk(self.samples(frames), self.now, place))

    def place(self) -> None:
        """Place all that arrived, as is done before anything else happens."""
        chunks, self.chunks = self.chunks, []
        given = [
            Heard(
                self.audio(each.samples).tobytes(),
                each.arrived * MILLISECOND,
                None if each.at is None else each.at / RATE,
            )
            for each in chunks
        ]
        self.late += places(self.timeline.hear(given, now=self.now * MILLISECOND))
        self.model.hear(chunks, self.now)

    def take(self) -> None:
        self.place()
        due = self.timeline.release(self.now * MILLISECOND)
        self.write(due.pieces)
        self.late += places(due.late)
        self.model.release(self.now)

    def play(self, frames: int) -> None:
        samples = self.samples(frames)
        self.timeline.play(cast("Audio", self.audio(samples)), arrived=self.now * MILLISECOND)
        self.model.play(samples, self.now)

    def insert(self, start: int, frames: int) -> None:
        samples = self.samples(frames)
        pieces, late = self.timeline.insert(start, self.audio(samples))
        self.write(pieces)
        self.late += places(late)
        self.model.put(samples, start, Fate.WRITTEN)
        for sample in samples:
            if self.model.fate[sample] == Fate.WRITTEN:
                self.model.write(sample)

    def interrupt(self, at: int, played: int | None) -> None:
        at = max(0, self.now + at)
        unheard, written = self.timeline.interrupt(at=at, played=None if played is None else played / RATE)
        for place in places(written):
            self.file.pop(place, None)
        self.unheard += places(unheard)
        self.model.interrupt(at, played)

    def halt(self) -> None:
        self.timeline.halt(self.now * MILLISECOND)
        if self.model.live and self.model.halted is None:
            self.model.halted = self.now

    def go_on(self) -> None:
        self.timeline.go_on(self.now * MILLISECOND)
        self.model.go_on(self.now)

    def mute(self) -> None:
        if not self.model.is_muted:
            self.timeline.mute(self.now)
            self.model.is_muted, self.model.muted_from = True, self.now

    def unmute(self) -> None:
        if self.model.is_muted:
            self.timeline.unmute(self.now)
            self.model.is_muted = False
            self.model.muted |= set(range(self.model.muted_from, self.now))

    def turn(self, starts: bool) -> None:
        if starts:
            self.timeline.start_utterance()
            self.model.utterance = []
        else:
            self.timeline.end_utterance()
        self.model.in_turn = starts

    def end(self) -> None:
        self.take()
        due = self.timeline.release_heard(self.now * MILLISECOND)
        self.write(due.pieces)
        self.late += places(due.late)
        self.unheard += places(self.timeline.drop_unplayed())
        self.model.hear([], self.now + 10_000)
        self.model.unheard += [self.model.place[each] for each in self.model.queue]
        self.model.fate |= dict.fromkeys(self.model.queue, Fate.UNHEARD)
        self.model.queue = []
        for sample, fate in self.model.fate.items():
            if fate == Fate.WAITING:
                self.model.write(sample)

    def write(self, pieces: list[Waiting]) -> None:
        for piece in pieces:
            for place, value in enumerate(np.asarray(piece.audio).tolist(), piece.start):
                assert place not in self.file, "written twice"
                self.file[place] = value - LOUD

    def check(self) -> None:
        """Everything is where the model says, and all that was given is somewhere, once."""
        model = self.model
        fates = list(model.fate.values())
        assert self.file == model.written()
        assert sorted(self.late) == sorted(model.late)
        assert sorted(self.unheard) == sorted(model.unheard)
        assert self.timeline.end == model.end
        assert self.timeline.is_arriving == bool(model.chunks)
        waiting = self.timeline.waiting
        assert waiting == fates.count(Fate.WAITING) + fates.count(Fate.QUEUED)
        handed_over = self.given - sum(len(each.samples) for each in self.chunks)
        known = len(self.file) + len(self.late) + waiting + len(self.unheard)
        assert known + fates.count(Fate.MUTED) + fates.count(Fate.ARRIVING) == handed_over


def places(ranges: list[Range]) -> list[int]:
    return [place for first, end in ranges for place in range(first, end)]


sizes = st.lists(st.sampled_from((1, 10, 20, 20, 60, 200)), min_size=1, max_size=8)
off = st.sampled_from((None, None, None, 0)) | st.integers(-60, 60) | st.integers(-2000, 1500)
hears = st.tuples(st.just("hear"), sizes, st.sampled_from((0, 1, 10, 20, 30, 60)), off)
plays = st.tuples(st.just("play"), st.integers(1, 900))
passes = st.tuples(st.just("pass"), st.sampled_from((5, 30, 60, 120, 400, 2500)) | st.integers(1, 900))
take = st.just(("take",))
interrupts = st.tuples(st.just("interrupt"), st.just(0) | st.integers(-800, 300), st.none() | st.integers(0, 900))
inserts = st.tuples(st.just("insert"), st.integers(0, 4000), st.integers(1, 500))
switches = st.sampled_from([("halt",), ("halt",), ("go_on",), ("go_on",), ("mute",), ("unmute",), ("turn", True)])
of_heard = st.one_of(hears, passes, take, hears, passes, take, inserts, switches)
of_played = st.one_of(plays, passes, take, plays, passes, interrupts, switches, st.just(("turn", False)))
step = st.one_of(of_heard, of_played)


@examples(max_examples=300, deadline=None)
@given(
    steps=st.one_of(*(st.lists(each, min_size=10, max_size=40) for each in (of_heard, of_played, step))),
    live=st.sampled_from((True, True, True, False)),
)
def test_each_sample_is_where_the_rules_say(steps: list[tuple[str, ...]], *, live: bool) -> None:
    """Each sample handed over is placed, late, muted, unheard or waiting: exactly one of them, and where it belongs."""
    bench = Bench(live=live)
    for name, *arguments in steps:
        if name == "pass":
            bench.now += cast("int", arguments[0])
            continue
        if name != "hear":
            bench.place()
        getattr(bench, name)(*arguments)
        bench.check()
    bench.end()
    bench.check()
    assert bench.timeline.waiting == 0

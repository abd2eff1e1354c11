"""Any call at all: whatever is said, played, taken back, paused or late, each sample is where a plain model puts it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray
from stage import Recording, Stage, noise

from edge_recorder import Recorder, journal, mixing, spool, wav
from edge_recorder.encodings import to_pcm16
from edge_recorder.model import Span
from edge_recorder.wav import padded

TICK = 0.1  # seconds: all of these calls happens on a grid, where no place is jitter
GUARD = 5  # ticks after a pause
LENGTH = 70  # ticks of a call, at most
SAME = {"user": 8000, "assistant": 8000, "far": 8000}
APART = {"user": 8000, "assistant": 16_000, "far": 22_050}

Samples = NDArray[np.int16]
Step = tuple[str, int, int]  # what is done, how many ticks of it, and how far back


class Voice:
    """What a track is to hold, sample by sample."""

    def __init__(self, rate: int) -> None:
        self.tick = rate // 10
        self.says = np.zeros(4 * LENGTH * self.tick, np.int16)
        self.taken = np.zeros(len(self.says), bool)
        self.late = np.zeros(len(self.says), bool)
        self.unheard = np.zeros(len(self.says), bool)
        self.end = 0

    def put(self, first: int, samples: Samples, muted: list[range]) -> None:
        """Take the free places; what lies in a pause takes its place, and is not kept."""
        there = slice(first * self.tick, first * self.tick + len(samples))
        self.late[there] |= self.taken[there]
        free = ~self.taken[there]
        self.taken[there] = True
        for pause in muted:
            cut = slice(max(0, pause.start - first) * self.tick, max(0, pause.stop - first) * self.tick)
            free[cut] = False
        self.says[there][free] = samples[free]
        self.end = max(self.end, first + len(samples) // self.tick)

    def take_back(self, cut: int, end: int) -> None:
        there = slice(cut * self.tick, end * self.tick)
        self.unheard[there] = True
        self.says[there] = 0
        self.taken[there] = False
        self.end = min(self.end, cut)


@dataclass
class Model:
    """What a live call comes to, in ticks. It hands over and notes at once."""

    stage: Stage
    late_ticks: int  # how far back it is safe to change anything
    now: int = 0
    voices: dict[str, Voice] = field(default_factory=dict)
    pauses: list[range] = field(default_factory=list)
    paused: int | None = None
    queue: list[tuple[int, Samples | None]] = field(default_factory=list)  # played: first tick, samples
    began: int | None = 0  # the first tick of what is being said, where `played` counts from there
    turns: int = 0
    in_turn: bool = False
    blanks: list[tuple[int, int]] = field(default_factory=list)
    seeds: Iterator[int] = field(default_factory=lambda: iter(range(1, 10_000)))

    @property
    def muted(self) -> list[range]:
        return self.pauses if self.paused is None else [*self.pauses, range(self.paused, 4 * LENGTH)]

    @property
    def guarded(self) -> bool:
        """Whether what arrives now is not kept."""
        return self.paused is not None or any(p.start <= self.now < p.stop + GUARD for p in self.pauses)

    def noise(self, track: str, ticks: int) -> Samples:
        return noise(ticks * self.voices[track].tick, next(self.seeds))

    def hear(self, ticks: int) -> None:
        """The user's last `ticks` arrive in one burst, 20 ms at a time."""
        samples = self.noise("user", ticks)
        for part in np.split(samples, ticks * 5):
            self.stage.call.write("user", part)
        if not self.guarded:
            self.voices["user"].put(self.now - ticks, samples, self.muted)

    def place(self, ticks: int, back: int, encoding: str | None) -> None:
        """Audio with its place, in some encoding, or as a finished turn."""
        samples, first = self.noise("far", ticks), self.now - ticks - back % self.late_ticks
        if first < 0:
            return
        hand_over: Any = self.stage.call.write if encoding else self.stage.call.add_turn
        data = samples.tobytes()
        if encoding not in (None, "pcm16"):
            codes = np.random.default_rng(next(self.seeds)).integers(0, 256, len(samples), np.uint8)
            quiet = {"mulaw": codes | 0x40, "alaw": codes & 0xBF ^ 0x55}  # so that no mix is bent
            data = quiet.get(encoding, (samples / np.float32(40_000)).astype("<f4")).tobytes()
            samples = np.frombuffer(to_pcm16(data, encoding), "<i2")
        hand_over("far", data, at=first * TICK, encoding=encoding or "pcm16")
        if any(each.start <= first and first + ticks <= each.stop for each in self.muted):
            return
        self.voices["far"].put(first, samples, self.muted)
        self.turns += encoding is None

    def play(self, ticks: int) -> None:
        samples, voice = self.noise("assistant", ticks), self.voices["assistant"]
        self.stage.call.play("assistant", samples)
        start = voice.end
        if self.now - start > 1:
            start = self.began = self.now
        self.queue.append((start, None if self.guarded else samples))
        if self.guarded:
            self.blanks.append((start, start + ticks))
        voice.end = start + ticks

    def interrupt(self, how: str, back: int) -> None:
        voice, cut = self.voices["assistant"], self.now
        if how != "now" and not self.pauses and self.paused is None:
            cut -= back % self.late_ticks
        if self.began is None or cut <= self.began:
            return
        if how == "played" and cut < self.now:
            self.stage.call.interrupt("assistant", played=(cut - self.began) * TICK)
        else:
            self.stage.call.interrupt("assistant", at=cut * TICK if how != "now" else None)
        if voice.end > cut:
            voice.take_back(cut, voice.end)
            self._cut_queue(cut)
        self.began = None  # `played` counts from here, or from a moment before it

    def pause(self, goes_on: bool) -> None:
        if self.paused is None and not goes_on:
            self.paused = self.now
            self.stage.call.pause("card")
        elif self.paused is not None and goes_on:
            self.pauses.append(range(self.paused, self.now))
            self.paused = None
            self.stage.call.resume()

    def mark(self) -> None:
        self.in_turn = not self.in_turn
        (self.stage.call.start_turn if self.in_turn else self.stage.call.end_turn)("user")
        self.turns += not self.in_turn

    def end(self) -> Recording:
        recording = self.stage.end()
        voice = self.voices["assistant"]
        if voice.end > self.now:
            voice.take_back(self.now, voice.end)
            self._cut_queue(self.now)
        for first, samples in self.queue:
            if samples is not None and len(samples):
                voice.put(first, samples, self.muted)
        self.turns += self.in_turn
        return recording

    def _cut_queue(self, cut: int) -> None:
        tick = self.voices["assistant"].tick
        self.queue = [
            (first, samples if samples is None else samples[: max(0, cut - first) * tick])
            for first, samples in self.queue
        ]


def steps() -> st.SearchStrategy[list[Step]]:
    kinds = ["hear", "hear", "quiet", "pcm16", "mulaw", "alaw", "float32", "turn", "play", "play"]
    kinds += ["now", "at", "played", "pause", "resume", "mark", "wait"]
    return st.lists(st.tuples(st.sampled_from(kinds), st.integers(1, 9), st.integers(0, 40)), max_size=40)


def run(model: Model, plan: list[Step]) -> None:
    """Let the plan happen. The user speaks on where nothing else moves time."""
    for kind, ticks, back in plan:
        if model.now + ticks > LENGTH:
            break
        if kind in ("hear", "quiet", "wait"):
            quiet = kind == "quiet" or model.voices["user"].end < model.now
            model.now += ticks + (2 if kind == "hear" and quiet else 0)  # a silence is more than jitter
            model.stage.go(model.now * TICK)
            if kind == "hear":
                model.hear(ticks)
        elif kind == "play":
            model.play(ticks)
        elif kind in ("now", "at", "played"):
            model.interrupt(kind, back)
        elif kind in ("pause", "resume"):
            model.pause(kind == "resume")
        elif kind == "mark":
            model.mark()
        else:
            model.place(ticks, back, None if kind == "turn" else kind)


def ranges_of(mask: NDArray[np.bool_], rate: int) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(a / rate, b / rate) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def union_of(spans: list[tuple[float, float]], rate: int, length: int) -> NDArray[np.bool_]:
    mask = np.zeros(length, bool)
    for start, end in spans:
        mask[round(start * rate) : round(end * rate)] = True
    return mask


@pytest.mark.parametrize("segmentation", ["interval", "turn"])
@given(
    plan=steps(),
    tracks=st.sampled_from([SAME, APART]),
    step=st.sampled_from([0.05, 0.13, 0.4, 0.5]),
    late=st.sampled_from([0.5, 2.0]),
)
@examples(max_examples=120)
def test_every_sample_is_where_it_belongs(
    segmentation: str, plan: list[Step], tracks: dict[str, int], step: float, late: float
) -> None:
    """In any live call each sample is at its place, and a span accounts for each that is not kept."""
    late = 2.0 if tracks is APART else late  # so that each mix was made with its neighbours there
    with (
        tempfile.TemporaryDirectory() as room,
        Stage(
            Path(room),
            tracks,
            step=step,
            capture={"segmentation": segmentation, "late_window": late},
        ) as stage,
    ):
        model = Model(stage, late_ticks=min(9, int(late / TICK)))
        model.voices = {name: Voice(rate) for name, rate in tracks.items()}
        run(model, plan)
        recording = model.end()
    for name, rate in tracks.items():
        check_track(recording, name, rate, model.voices[name])
    pauses = [(p.start * TICK, p.stop * TICK) for p in model.pauses]
    if model.paused is not None:
        pauses.append((model.paused * TICK, recording.call.duration_s or 0))
    assert np.allclose(recording.spans_of("paused"), pauses)
    assert not [each for each in recording.spans if each.kind == "gap"]
    assert sum(each.kind == "turn" for each in recording.spans) == model.turns
    check_mix(recording, tracks, segmentation)


def check_track(recording: Recording, name: str, rate: int, voice: Voice) -> None:
    held = recording.track(name)
    expected = voice.says[: len(held)]
    assert np.array_equal(held, expected), (name, np.flatnonzero(held != expected)[:1] / rate)
    assert not voice.says[len(held) :].any(), f"{name} ends too soon"
    length = len(voice.says)
    assert np.array_equal(union_of(recording.spans_of("late", name), rate, length), voice.late)
    if not voice.unheard.any():
        assert recording.spans_of("unheard", name) == []
    unheard = union_of(recording.spans_of("unheard", name), rate, length)
    assert np.array_equal(unheard | held_at(held, length), voice.unheard | held_at(held, length))


def held_at(held: Samples, length: int) -> NDArray[np.bool_]:
    mask = np.zeros(length, bool)
    mask[: len(held)] = held.astype(bool)
    return mask


def check_mix(recording: Recording, tracks: dict[str, int], segmentation: str) -> None:
    if segmentation == "turn":
        turns = [each for each in recording.spans if each.kind == "turn"]
        said = sorted((each.start_s, each.end_s) for each in turns if each.end_s > each.start_s)
        assert np.allclose(recording.seconds("mixed"), said, atol=2 / 8000)
        return
    recording.check_interval()
    mixed = np.zeros(len(recording.track("mixed")) if tracks is APART else 0, np.int16)
    if tracks is SAME:
        mixed = np.zeros(max((end for _, end in recording.ranges("mixed")), default=0), np.int16)
        for segment, samples in recording.of("mixed"):
            mixed[segment.first_sample : segment.first_sample + segment.frames] += samples
        said = [recording.track(name) for name in tracks]
        assert np.array_equal(mixed, sum((whole_of(each, len(mixed)) for each in said), np.zeros(len(mixed), np.int16)))
        return
    for segment, samples in recording.of("mixed"):
        assert np.array_equal(samples, recording.mix(segment.rate, segment.first_sample, segment.frames))


def whole_of(samples: Samples, length: int) -> Samples:
    assert len(samples) == length
    return samples


# Where the audio moves time.

Handed = tuple[str, str, int]  # how, on which track, ticks


def handed() -> st.SearchStrategy[list[Handed]]:
    kinds = st.sampled_from(["write", "write", "write", "play", "turn", "pause", "resume"])
    return st.lists(st.tuples(kinds, st.sampled_from(["user", "far"]), st.integers(1, 9)), max_size=25)


@pytest.mark.parametrize("segmentation", ["interval", "turn"])
@given(plan=handed(), step=st.sampled_from([0.05, 0.4]), tracks=st.sampled_from([SAME, APART]))
@examples(max_examples=60)
def test_audio_that_moves_time_is_one_after_another(
    segmentation: str, plan: list[Handed], step: float, tracks: dict[str, int]
) -> None:
    """With pace `media` each track is what was handed over, in its order, with silence for what was not kept."""
    says = {name: [np.zeros(0, np.int16)] for name in tracks}
    paused = False
    capture = {"segmentation": segmentation}
    with tempfile.TemporaryDirectory() as room, Stage(Path(room), tracks, "media", step=step, capture=capture) as stage:
        for n, (how, track, ticks) in enumerate(plan):
            stage.go(n * 0.3)
            samples = noise(ticks * tracks[track] // 10, n)
            if how in ("pause", "resume"):
                paused = how == "pause"
                stage.call.pause("card") if paused else stage.call.resume()
                continue
            {"write": stage.call.write, "play": stage.call.play, "turn": stage.call.add_turn}[how](track, samples)
            says[track].append(samples * (not paused))
        recording = stage.end()
    if segmentation == "interval":
        recording.check_interval()
    for name in tracks:
        held, expected = recording.track(name), np.concatenate(says[name])
        length = max(len(held), len(expected))
        assert np.array_equal(padded(held, length), padded(expected, length))
    assert not [each for each in recording.spans if each.kind in ("gap", "late", "unheard")]


# In real time.


def test_a_live_call_in_real_time(data_dir: Path) -> None:
    """A recorder on the real clock keeps a stream with a stall in one piece, and of what is played what was heard."""
    said, answer = noise(12_000), noise(24_000, 1)
    with Recorder(data_dir) as recorder, recorder.start_call(tracks={"user": 8000, "assistant": 8000}) as call:
        call.play("assistant", answer)
        began = time.monotonic()
        for n, part in enumerate(np.split(said, 75)):
            due = (n + 1) / 50 if not 25 <= n < 45 else 0.9  # a stall of 0.4 s, and its burst
            time.sleep(max(0.0, began + due - time.monotonic()))  # a source that speaks in real time
            call.write("user", part)
        call.interrupt("assistant")
        call.add_message("user", "wait!")
        call.flush().result(20)
    (directory,) = spool.call_dirs(data_dir)
    facts = journal.read(directory / spool.JOURNAL).facts.values()
    held = {name: wav.read_file(directory / f"{name}-000001.wav")[1] for name in ("user", "assistant", "mixed")}
    first = int(np.flatnonzero(held["user"])[0])
    assert np.array_equal(held["user"][first : first + len(said)], said)
    assert not held["user"][first + len(said) :].any()
    heard = int(np.flatnonzero(held["assistant"])[-1]) + 1
    start = int(np.flatnonzero(held["assistant"])[0])
    assert np.array_equal(held["assistant"][start:heard], answer[: heard - start])
    (unheard,) = [each for each in facts if isinstance(each, Span)]
    assert (unheard.kind, round(unheard.start_s * 8000), round(unheard.end_s * 8000)) == (
        "unheard",
        heard,
        start + len(answer),
    )
    assert 11_000 < heard - start < 23_000
    assert np.array_equal(held["mixed"], mixing.add([held["user"], held["assistant"]]))

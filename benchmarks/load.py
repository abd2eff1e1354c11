"""
The load: one thread that hands over each call's 20 ms, as fast as it can (`burst`) or when its time comes (`pace`).

At pace, the calls are spread over the 20 ms, in up to 20 groups, and their starts over one segment, so that flushes and
seals come evenly, as on a node with calls of all ages. What is measured begins then, and ends before the calls do.
"""

# ruff: noqa: INP001

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import machine
import speech
from speech import TICK_MS, TICKS, TICKS_PER_SECOND
from writers import Writer

MS = 1_000_000  # nanoseconds
GROUPS = 20
SAMPLES = 100_000  # of each latency; later ones take the place of the oldest
LOOKS = 4_000
LOOK_TURNS = 5  # times 20 ms until a call is asked how it stands
MB = 1_000_000
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """A call as fast as it can be written, with its start and its end."""

    cpu_us: float  # for a tick
    grown_mb: float  # RAM just before its end
    peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Many calls in real time. The CPU is that of the whole process: the feeder's share has still to be taken off."""

    calls: int
    seconds: float
    handed_over: float  # the part of the ticks that were due
    cpu_us: float  # for a tick
    write_us: dict[str, float]
    late_ms: dict[str, float]
    untaken_ms: dict[str, float]  # since the recorder last took what was handed over; empty: the writer can't tell
    unsynced_ms: dict[str, float]  # of audio not synced yet
    lost_s: float | None
    idle_mb: float
    call_kb: float  # RAM for each call
    peak_mb: float
    flat: list[tuple[float, float, int]]  # seconds, MB of RAM, open files


def burst(start: Callable[[], Writer], ticks: int) -> Burst:
    """Write one call of that many ticks."""
    pairs = list(islice(cycle(zip(speech.ticks(1), speech.ticks(2), strict=True)), ticks))
    _feed_all(start(), pairs[:TICKS_PER_SECOND]).end()  # what is loaded once is no part of what a call costs
    before, began = machine.rss(), time.process_time()
    call = _feed_all(start(), pairs)
    grown = machine.rss() - before
    call.end()
    used = time.process_time() - began
    return Burst(cpu_us=used / ticks * 1e6, grown_mb=grown / MB, peak_mb=max(0, machine.high_water() - before) / MB)


def _feed_all(call: Writer, pairs: Sequence[tuple[bytes, bytes]]) -> Writer:
    for user, assistant in pairs:
        call.write("user", user)
        call.write("assistant", assistant)
    return call


class Ages:
    """Nanoseconds that something took. All room is touched beforehand, so that filling it is not taken for growth."""

    def __init__(self, room: int) -> None:
        self._room = array("q", b"\1" * 8 * room)
        self._count = 0
        self._longest = 0

    def add(self, age: int) -> None:
        self._room[self._count % len(self._room)] = age
        self._count += 1
        self._longest = max(self._longest, age)

    def quantiles(self, *, unit: int) -> dict[str, float]:
        """Return the quantiles and the longest of all in that unit; nothing, of nothing."""
        if not self._count:
            return {}
        ordered = sorted(self._room[: self._count])
        last = len(ordered) - 1
        found = {name: ordered[min(last, int(part * len(ordered)))] / unit for name, part in QUANTILES.items()}
        return {**found, "max": self._longest / unit}


@dataclass(slots=True)
class Feeder:
    """Feeds `calls` calls in real time: `ramp` seconds to start them, `settle` to become even, `seconds` measured."""

    start: Callable[[], Writer]
    calls: int
    ramp: float
    settle: float
    seconds: float
    every: float  # seconds between two looks at the RAM
    _groups: list[list[Writer]] = field(default_factory=list)
    _started: int = 0
    _ticks: int = 0  # measured
    _late: Ages = field(default_factory=lambda: Ages(SAMPLES))
    _wrote: Ages = field(default_factory=lambda: Ages(SAMPLES))
    _untaken: Ages = field(default_factory=lambda: Ages(LOOKS))
    _unsynced: Ages = field(default_factory=lambda: Ages(LOOKS))

    def run(self) -> Pace:
        """Feed until the time is over."""
        self._groups = [[] for _ in range(min(self.calls, GROUPS))]
        voices = speech.ticks(1), speech.ticks(2)
        self._warm_up(*voices)
        idle, flat = machine.rss(), []
        slot_ns = TICK_MS * MS // len(self._groups)
        begin = time.perf_counter_ns()
        measured = begin + int((self.ramp + self.settle) * 1e9)
        end = measured + int(self.seconds * 1e9)
        used, looked, slot, now = 0.0, measured, 0, begin
        while now < end:
            now = _wait_until(begin + slot * slot_ns)
            self._admit((now - begin) / 1e9)
            if now >= looked:
                used = used or time.process_time()
                flat.append(((now - measured) / 1e9, machine.rss() / MB, machine.open_files()))
                looked += int(self.every * 1e9)
            self._feed(slot, voices, late=now - begin - slot * slot_ns, count=now >= measured)
            slot += 1
        used, took = time.process_time() - used, (now - measured) / 1e9
        full, peak = machine.rss(), machine.high_water()
        return Pace(
            calls=self.calls,
            seconds=took,
            handed_over=self._ticks / (self.calls * took * TICKS_PER_SECOND),
            cpu_us=used / self._ticks * 1e6,
            write_us=self._wrote.quantiles(unit=1_000),
            late_ms=self._late.quantiles(unit=MS),
            untaken_ms=self._untaken.quantiles(unit=MS),
            unsynced_ms=self._unsynced.quantiles(unit=MS),
            lost_s=self._lost(),
            idle_mb=idle / MB,
            call_kb=(full - idle) / self.calls / 1000,
            peak_mb=peak / MB,
            flat=[*flat, (took, full / MB, machine.open_files())],
        )

    def _warm_up(self, user: Sequence[bytes], assistant: Sequence[bytes]) -> None:
        """Record a call that is not counted, for what is loaded at first use."""
        _feed_all(self.start(), list(zip(user, assistant, strict=True))[: TICKS_PER_SECOND // 4]).end()
        time.sleep(min(1.0, self.seconds))

    def _admit(self, elapsed: float) -> None:
        """Start the calls whose time has come, one at most, so that starting delays no tick for long."""
        if self._started < self.calls and elapsed >= self.ramp * self._started / self.calls:
            self._groups[self._started % len(self._groups)].append(self.start())
            self._started += 1

    def _feed(self, slot: int, voices: tuple[list[bytes], list[bytes]], *, late: int, count: bool) -> None:
        """Hand over 20 ms for each call of one group, and time the write of one of them."""
        turn, number = divmod(slot, len(self._groups))
        group = self._groups[number]
        place = (turn + 23 * number) % TICKS
        user, assistant = voices[0][place], voices[1][place]
        timed = turn % len(group) if group else 0
        for index, call in enumerate(group):
            if index == timed:
                took = _timed(call, user)
            else:
                call.write("user", user)
            call.write("assistant", assistant)
        if count and group:
            self._ticks += len(group)
            self._late.add(late)
            self._wrote.add(took)
            if not slot % (LOOK_TURNS * len(self._groups) + 1):
                self._ask(group[timed])

    def _ask(self, call: Writer) -> None:
        """Ask a call of ours how old the audio is that a kill, or power loss, would take."""
        if stats := getattr(call, "stats", None):
            there = stats()
            self._untaken.add(int(there.untaken_s * 1e9))
            self._unsynced.add(int(there.unsynced_s * 1e9))

    def _lost(self) -> float | None:
        """Return the seconds of audio that are not recorded, of all calls, where the writer can tell."""
        asked = [call.stats() for group in self._groups for call in group if hasattr(call, "stats")]
        return sum(each.lost_s + each.gap_s for each in asked) if asked else None


def _timed(call: Writer, audio: bytes) -> int:
    began = time.perf_counter_ns()
    call.write("user", audio)
    return time.perf_counter_ns() - began


def _wait_until(due: int) -> int:
    now = time.perf_counter_ns()
    if now < due:
        time.sleep((due - now) / 1e9)
        now = time.perf_counter_ns()
    return now

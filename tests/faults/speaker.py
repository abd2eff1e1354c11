"""
The process that a fault befalls: a recorder with calls that speak in real time, and note what they handed over.

Started as `python speaker.py PLAN BOARD GATE`: a `Plan` as JSON, the file of its `Board`, and the descriptor of a
socket to hand the gate's listener to (-1: without a gate). Prints an `Outcome` as JSON when all calls have ended.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import gate
import numpy as np
from numpy.typing import NDArray

from edge_recorder import Call, EdgeRecorderError, Recorder, Settings

TICK = 0.02  # seconds of audio in a chunk
LAG = 0.1  # seconds behind the clock after which a speaker is silent rather than late
MOST_TICKS = 10_000
READY = -1  # in the board's first cell: the recorder runs, and no call has begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a speaker does."""

    data_dir: str
    capture: dict[str, Any]
    calls: int = 1
    tracks: dict[str, int] = field(default_factory=lambda: {"user": 8000, "assistant": 16000})
    seconds: float = 1.4
    placed: bool = True  # each chunk says where it belongs; else its arrival does
    end_wait: float = 20.0  # seconds
    close_wait: float = 20.0  # seconds
    no_files_from: float | None = None  # seconds: from then on no descriptor can be had ...
    no_files_until: float = 0.0  # ... until then
    free_files: int = 0  # but so many
    flushes: bool = True  # half way
    low_water: int = 0
    waits_for: str = ""  # a file that has to be there before the first call
    board: str = ""  # where the board is; empty: beside the data_dir


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a speaker met."""

    calls: list[str]
    complete: list[bool | None]  # None: the end was not done in time
    flushed: list[bool | None]  # the same of a flush() asked for half way
    closed: bool
    raised: list[str]  # what write() raised
    leaked: list[str]  # files that a recorder left open
    write_p50: float
    write_p999: float
    write_max: float


class Board:
    """What a speaker handed over and when, in a file that its death does not touch: writing to it is no system call."""

    def __init__(self, path: Path, *, new: bool = False) -> None:
        mode: Any = "w+" if new else "r+"
        self._cells = np.memmap(path, np.float64, mode=mode, shape=(1 + MOST_TICKS, 2))

    def note(self, tick: int, place: int) -> None:
        """Say that chunk `tick`, which belongs at `place` (in ticks), was handed over by all calls on all tracks."""
        self._cells[1 + tick] = time.monotonic(), place
        self._cells[0, 0] = tick + 1

    def note_ready(self) -> None:
        self._cells[0, 0] = READY

    @property
    def is_ready(self) -> bool:
        return bool(self._cells[0, 0])

    @property
    def ticks(self) -> int:
        return max(0, int(self._cells[0, 0]))

    @property
    def handed(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """When each chunk was handed over, in monotonic seconds, and where it belongs, in ticks."""
        cells = np.array(self._cells[1 : 1 + self.ticks])
        return cells[:, 0], cells[:, 1].astype(np.int64)

    @property
    def reached(self) -> float:
        """Seconds of the call that were handed over."""
        places = self.handed[1]
        return (int(places[-1]) + 1) * TICK if len(places) else 0.0

    @property
    def worst_lag(self) -> float:
        """The longest time in seconds between two chunks: what the machine did to the speaker, it did to all."""
        return float(np.diff(self.handed[0]).max(initial=TICK))


def voice(call: int, track: str, first: int, frames: int) -> NDArray[np.int16]:
    """Return the samples of a track that stand from `first` on: each tells its place, and none is silent."""
    seed = call * 31 + sum(track.encode())
    return ((np.arange(first, first + frames) * 7919 + seed * 104_729) % 3001 + 1).astype(np.int16)


def main(plan: Plan, board: Board, hand_over: int) -> Outcome:
    settings = Settings.of(
        {"node": {"data_dir": plan.data_dir}, "capture": plan.capture, "disk": {"low_water": plan.low_water}}
    )
    if hand_over >= 0:
        with socket.socket(fileno=hand_over) as parent:
            listener = gate.put_up()
            # Not by send_fds with data alone: what comes after this line stands before the gate.
            socket.send_fds(parent, [b"gate"], [listener])
            os.close(listener)
    descriptors = _descriptors()
    recorder = Recorder(settings).start()
    board.note_ready()
    while plan.waits_for and not Path(plan.waits_for).exists():
        time.sleep(0.005)
    calls = [recorder.start_call(tracks=plan.tracks, external_id=f"call-{n}") for n in range(plan.calls)]
    spoken = _Speech(plan, board, calls)
    spoken.run()
    complete = _ended(calls, plan.end_wait)
    closed = recorder.close(plan.close_wait)
    took = np.array(spoken.took or [0.0])
    return Outcome(
        calls=[call.id for call in calls],
        complete=complete,
        flushed=[_done(each) for each in spoken.flushes],
        closed=closed,
        raised=spoken.raised,
        leaked=[path for fd, path in _descriptors().items() if fd not in descriptors],
        write_p50=float(np.percentile(took, 50)),
        write_p999=float(np.percentile(took, 99.9)),
        write_max=float(took.max()),
    )


class _Speech:
    """What all calls say, chunk by chunk, as the clock goes."""

    def __init__(self, plan: Plan, board: Board, calls: list[Call]) -> None:
        self.took: list[float] = []
        self.raised: list[str] = []
        self.flushes: list[Any] = []
        self._plan = plan
        self._board = board
        self._calls = calls

    def run(self) -> None:
        began = time.monotonic()
        ticks = round(self._plan.seconds / TICK)
        place = tick = 0
        while place < ticks:
            wait = began + (place + 1) * TICK - time.monotonic()
            if wait < -LAG:
                place += int(-wait / TICK)
                continue
            time.sleep(max(0.0, wait))
            with _without_files(self._plan, place * TICK):
                self._say(place if self._plan.placed else tick)
            self._board.note(tick, place if self._plan.placed else tick)
            if self._plan.flushes and place >= ticks // 2 and not self.flushes:
                self.flushes = [call.flush() for call in self._calls]
            place, tick = place + 1, tick + 1

    def _say(self, place: int) -> None:
        for n, call in enumerate(self._calls):
            for track, rate in self._plan.tracks.items():
                frames = round(TICK * rate)
                samples = voice(n, track, place * frames, frames)
                at = place * TICK if self._plan.placed else None
                begun = time.perf_counter()
                try:
                    call.write(track, samples, at=at)
                except Exception as error:  # noqa: BLE001 (the test is that there is none, of whatever kind)
                    self.raised.append(repr(error))
                self.took.append(time.perf_counter() - begun)


@contextmanager
def _without_files(plan: Plan, now: float) -> Iterator[None]:
    """Take away the free descriptors for as long as the plan says."""
    if plan.no_files_from is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanting = plan.no_files_from <= now < plan.no_files_until
        if wanting != (soft < hard):
            resource.setrlimit(resource.RLIMIT_NOFILE, (_limit(plan.free_files) if wanting else hard, hard))
    yield


def _limit(free: int) -> int:
    """Return the limit under which no more than `free` descriptors can be had."""
    used = _descriptors().keys()
    return next(limit for limit in count(3) if limit - len(used & set(range(limit))) > free) - 1


def _descriptors() -> dict[int, str]:
    """Return the descriptors in use, each with its file."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one with which they are listed
            found[int(link.name)] = str(link.readlink())
    return found


def _ended(calls: list[Call], timeout: float) -> list[bool | None]:
    deadline = time.monotonic() + timeout
    endings = [call.end() for call in calls]
    complete: list[bool | None] = []
    for ending in endings:
        try:
            complete.append(ending.result(max(0.0, deadline - time.monotonic())).complete)
        except TimeoutError:
            complete.append(None)
    return complete


def _done(pending: Any) -> bool | None:
    try:
        pending.result(0)
    except TimeoutError:
        return None
    except EdgeRecorderError:
        return False
    return True


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    outcome = main(Plan(**json.loads(sys.argv[1])), Board(Path(sys.argv[2])), int(sys.argv[3]))
    sys.stdout.write(json.dumps(asdict(outcome)))

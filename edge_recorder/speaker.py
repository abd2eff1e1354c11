"""
What a speaker is given: it waits until its time has come, and what nobody heard is taken back. Pure.

    utterance    what is said since the queue last ran dry, was interrupted or a turn started: `interrupt(played=)`
                 counts within it
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import numpy as np

from edge_recorder.places import FOREVER, Range, clipped
from edge_recorder.wav import Samples

STRETCHES = 1024  # of what was said that are remembered, each without a pause in it


class Audio(Protocol):
    """Samples that are here, or that can be had when their time has come."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Audio: ...


@dataclass(frozen=True, slots=True)
class Blank:
    """The length of audio that nobody may keep."""

    frames: int

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, part: slice, /) -> Blank:
        return Blank(len(range(self.frames)[part]))


class Waiting(NamedTuple):
    """Audio with a place whose time has not come."""

    start: int
    audio: Audio

    @property
    def end(self) -> int:
        return self.start + len(self.audio)


class Storing(Protocol):
    """Keeps samples elsewhere than in RAM; None where it cannot."""

    def __call__(self, samples: Samples, /) -> Audio | None: ...


class Speaker:
    """The speaker of one track. All places and instants are samples of it."""

    def __init__(self, patience: int) -> None:
        """`patience` is how long the queue may be dry and what comes still be said as if it had not been."""
        self.queue: deque[Waiting] = deque()
        self._patience = patience
        self._halted: int | None = None  # since when it stands still
        self._said: deque[Range] = deque(maxlen=STRETCHES)
        self._written: deque[Range] = deque(maxlen=STRETCHES)  # of what was said
        self._began = 0  # where the utterance begins
        self._in_turn = False

    def play(self, audio: Audio, *, end: int, clock: int) -> Range:
        """Queue `audio` behind what still plays, or else behind `end`, but not where it was said in the past."""
        start = self.queue[-1].end if self.queue else end
        time = clock if self._halted is None else self._halted
        if time - start > self._patience:
            start = time
            if not self._in_turn:
                self._began = start
        self.queue.append(Waiting(start, audio))
        return start, start + len(audio)

    def start_turn(self) -> None:
        """Begin an utterance, which is not over when the queue runs dry."""
        self._began = self._end()
        self._in_turn = True

    def end_turn(self) -> None:
        self._in_turn = False

    def halt(self, at: int) -> None:
        """Stand still from `at` on."""
        if self._halted is None:
            self._halted = at

    def go_on(self, at: int) -> None:
        """Go on at `at`: what is queued moves by as long as it stood still."""
        if self._halted is None:
            return
        since, self._halted = self._halted, None
        said = until(self.queue, since)
        self.queue = deque([*said, *(Waiting(each.start + at - since, each.audio) for each in self.queue)])
        if self._began > since:
            self._began += at - since

    def interrupt(self, *, at: int, played: int | None) -> tuple[list[Range], list[Range]]:
        """Take back all from `at` on, or from `played` frames into the utterance.

        Returns the ranges of it that were queued, and those that were written.
        """
        cut = at if played is None else self._place_of_played(played)
        if self._halted is not None:  # nothing was said since
            cut = min(cut, self._halted)
        queue, self.queue = self.queue, deque()
        for each in queue:
            if each.start < cut:
                self.queue.append(each if each.end <= cut else Waiting(each.start, each.audio[: cut - each.start]))
        written = clipped(self._written, cut, FOREVER)
        self._said = deque(clipped(self._said, 0, cut), STRETCHES)
        self._written = deque(clipped(self._written, 0, cut), STRETCHES)
        self._began = self._end()
        queued = [(max(each.start, cut), each.end) for each in queue if each.end > cut]
        return queued, written

    def due(self, clock: int) -> list[Waiting]:
        """Return what is said by `clock`."""
        said = until(self.queue, clock if self._halted is None else min(clock, self._halted))
        for each in said:
            _append(self._said, each.start, each.end)
        return said

    def note_written(self, first: int, end: int) -> None:
        """Note that these places hold what was said: an interruption may take it back."""
        _append(self._written, first, end)

    def _place_of_played(self, frames: int) -> int:
        """Return the sample after the first `frames` of the utterance; where it ends, if it is not so long."""
        place = self._began
        for first, end in self._ranges():
            first = max(first, self._began)  # noqa: PLW2901 (what is before was said before)
            if frames <= end - first:
                return first + frames
            frames -= max(0, end - first)
            place = max(place, end)
        return place

    def _end(self) -> int:
        return max((end for _, end in self._ranges()), default=0)

    def _ranges(self) -> list[Range]:
        """Return where all is that was said, or is to be."""
        return [*self._said, *((each.start, each.end) for each in self.queue)]


def until(queue: deque[Waiting], sample: int) -> list[Waiting]:
    """Take from `queue`, which is in order, what lies before `sample`, splitting the piece across it."""
    if queue and queue[-1].end <= sample:
        whole = list(queue)
        queue.clear()
        return whole
    taken: list[Waiting] = []
    while queue and queue[0].start < sample:
        piece = queue.popleft()
        if piece.end > sample:
            here = sample - piece.start
            queue.appendleft(Waiting(sample, piece.audio[here:]))
            piece = Waiting(piece.start, piece.audio[:here])
        taken.append(piece)
    return taken


def shrunk(queue: deque[Waiting], limit: int, store: Storing) -> tuple[deque[Waiting], list[Range]]:
    """Let `store` take what `queue` holds in RAM beyond `limit` frames. Returns the rest, and what nobody took."""
    kept: deque[Waiting] = deque()
    lost: list[Range] = []
    beyond: list[Waiting] = []  # adjoining pieces, stored as one: an hour of them would be too many
    here = 0

    def store_beyond() -> None:
        if beyond:
            start, samples = beyond[0].start, np.concatenate([cast("Samples", each.audio) for each in beyond])
            stored = store(samples)
            if stored is None:
                lost.append((start, start + len(samples)))
            kept.append(Waiting(start, Blank(len(samples)) if stored is None else stored))
            beyond.clear()

    for each in queue:
        in_ram = isinstance(each.audio, np.ndarray)
        here += len(each.audio) if in_ram else 0
        if beyond and not (in_ram and beyond[-1].end == each.start):
            store_beyond()
        (beyond if in_ram and here > limit else kept).append(each)
    store_beyond()
    return kept, lost


def _append(ranges: deque[Range], first: int, end: int) -> None:
    if ranges and ranges[-1][1] == first:
        ranges[-1] = (ranges[-1][0], end)
    else:
        ranges.append((first, end))

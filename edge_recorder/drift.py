"""
Clocks that run apart: how far a stream's samples are off the call's clock, and putting it right in silence.

A sound card 100 ppm slow is 2.9 s behind after 8 hours. Jitter comes and goes; drift is what the least delay of ten
seconds has moved since the stream began. It is taken back 10 ms at a time, where nobody speaks: never within a word.
"""

from __future__ import annotations

import numpy as np

from edge_recorder.wav import Samples

STEP = 0.010  # seconds that are put right at once
WINDOW = 10  # seconds of audio that are looked at together
HANDOVERS = 25  # and handovers, at the least: of a few, the least delay is chance
PAUSE = 5  # steps of quiet in a row that are a pause; less may be within a word
QUIET = 33  # samples up to this (-60 dBFS) are silence
FAINT = 32  # and so are those up to this part (-30 dB) of the loudest of late: few microphones are ever silent


class Drift:
    """The drift of one stream at `rate` Hz. `owed` is what it is off: +1 step to put in, -1 to leave out, or 0."""

    def __init__(self, rate: int) -> None:
        self.owed = 0
        self._step = int(STEP * rate)
        self._window = WINDOW * rate
        self._least: int | None = None  # the delay that the stream began with
        self._known = False
        self._slacks: list[int] = []
        self._seen = 0  # samples, in this window
        self._loudest = 0  # since something is owed

    def note(self, slack: int, frames: int, *, contiguous: bool, known: bool) -> None:
        """Note `frames` more, whose end is `slack` samples behind the clock; `known` where the source told where."""
        if not contiguous or known != self._known:
            self._known, self._least, self.owed = known, None, 0
            self._look_anew()
            return
        self._slacks.append(slack)
        self._seen += frames
        if self._seen >= self._window and len(self._slacks) >= HANDOVERS:
            self._compare()

    def correct(self, start: int, samples: Samples) -> list[tuple[int, Samples]]:
        """Return `samples` from `start` on with one step put right in the first pause, where there is one."""
        at = self._pause(samples)
        if at is None:
            return [(start, samples)]
        owed, self.owed = self.owed, 0
        self._look_anew()  # what was noted is of before
        if owed > 0:
            parts = [(start, samples[:at]), (start + at + self._step, samples[at:])]
        else:
            parts = [(start, samples[:at]), (start + at, samples[at + self._step :])]
        return [part for part in parts if len(part[1])]

    def _compare(self) -> None:
        # A delay is never less than the way takes, so the least is the truest; a told place errs to either side.
        least = sorted(self._slacks)[len(self._slacks) // 2] if self._known else min(self._slacks)
        self._look_anew()
        if self._least is None:
            self._least = 0 if self._known else least
        moved = least - self._least
        owed = (moved >= self._step) - (moved <= -self._step)
        if owed != self.owed:
            self.owed, self._loudest = owed, 0

    def _look_anew(self) -> None:
        self._seen = 0
        self._slacks.clear()

    def _pause(self, samples: Samples) -> int | None:
        """Return the middle of the first pause in `samples`."""
        steps = samples[: len(samples) // self._step * self._step].reshape(-1, self._step)
        if not len(steps):
            return None
        loudness = np.maximum(steps.max(axis=1).astype(np.int32), -steps.min(axis=1).astype(np.int32))
        self._loudest = max(self._loudest, int(loudness.max()))
        quiet = loudness <= max(QUIET, self._loudest // FAINT)
        length = min(PAUSE, len(steps))
        pauses = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(quiet, length).all(axis=1))
        return None if not len(pauses) else (int(pauses[0]) + length // 2) * self._step

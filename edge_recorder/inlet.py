"""From what callers hand over to samples at their track's rate: decoded, and resampled as one stream, tail and all."""

from __future__ import annotations

import numpy as np

from edge_recorder.encodings import to_pcm16
from edge_recorder.resampling import Resampler
from edge_recorder.timeline import JITTER, NANOSECONDS, Heard
from edge_recorder.wav import Samples

PAUSE = 0.2  # seconds without audio after which a stream is over, and its tail is due


class Inlet:
    """The way in of one track of `rate` Hz."""

    def __init__(self, rate: int) -> None:
        self.straight = rate  # Hz of audio that goes in as it is; 0 while a stream of another rate is under way
        self._rate = rate
        self._resampler: Resampler | None = None
        self._from = rate  # Hz of the stream under way
        self._arrived = 0
        self._at: float | None = None  # where the stream under way ends, where the source tells
        self._held = 0.0  # seconds that the resampler has taken and not given out

    def take(self, audio: Heard, encoding: str, rate: int) -> list[Heard]:
        """Return what is to be placed for a piece of audio as it was handed over."""
        pcm, arrived, at = to_pcm16(audio.pcm, encoding), audio.arrived, audio.at
        chunks = [] if self._goes_on(rate, arrived, at) else self.finish()
        if rate == self._rate:
            return [*chunks, Heard(pcm, arrived, at)]
        if self._resampler is None:
            self._resampler, self._from, self._held, self.straight = Resampler(rate, self._rate), rate, 0.0, 0
        samples = np.frombuffer(pcm, "<i2")
        seconds = len(samples) / rate
        self._arrived = arrived
        # From each chunk anew: added up, a source whose clock runs apart would be ever further from what it says.
        self._at = None if at is None else at + seconds
        self._held += seconds
        return chunks + self._chunks(self._resampler.feed(samples))

    def finish(self) -> list[Heard]:
        """Return the tail of the stream under way, which is over."""
        resampler, self._resampler, self.straight = self._resampler, None, self._rate
        return [] if resampler is None else self._chunks(resampler.finish())

    def finish_if_idle(self, now: int) -> list[Heard]:
        """Return the tail of a stream that nothing has come of for a while."""
        return self.finish() if self._resampler is not None and now - self._arrived > PAUSE * NANOSECONDS else []

    def _goes_on(self, rate: int, arrived: int, at: float | None) -> bool:
        if rate != self._from or (at is None) != (self._at is None):
            return False
        if at is None or self._at is None:
            return arrived - self._arrived <= PAUSE * NANOSECONDS
        return abs(at - self._at) <= JITTER

    def _chunks(self, samples: Samples) -> list[Heard]:
        if not len(samples):
            return []
        at = None if self._at is None else max(0.0, self._at - self._held)
        self._held = max(0.0, self._held - len(samples) / self._rate)
        # What the resampler holds back had arrived already.
        arrived = self._arrived - round(self._held * NANOSECONDS)
        return [Heard(samples.astype("<i2", copy=False).tobytes(), arrived, at)]

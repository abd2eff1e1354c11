"""Audio like speech: seeded noise in syllables and phrases, loud and quiet, and the same in every run."""

# ruff: noqa: INP001

from __future__ import annotations

import numpy as np

RATE = 16_000
TICK_MS = 20
TICKS_PER_SECOND = 1000 // TICK_MS
FRAMES = RATE // TICKS_PER_SECOND  # samples in a tick
TICK_BYTES = 2 * FRAMES
TICKS = 500  # ten seconds, over and over

TRACKS = {"user": RATE, "assistant": RATE}


def ticks(seed: int) -> list[bytes]:
    """Return ten seconds of one voice, as ticks of int16 little-endian bytes."""
    dice = np.random.default_rng(seed)
    samples = TICKS * FRAMES
    voice = np.convolve(dice.standard_normal(samples), np.hanning(9), "same")
    syllables = np.clip(np.sin(2 * np.pi * 4 * np.arange(samples) / RATE + seed), 0.0, None)
    phrases = np.repeat(dice.random(TICKS // 25) < 0.6, samples // (TICKS // 25))  # noqa: PLR2004 (6 of 10 half seconds)
    loud = 20_000 * voice / np.abs(voice).max() * syllables * phrases
    pcm = np.rint(loud + 30 * dice.standard_normal(samples)).astype("<i2").tobytes()
    return [pcm[at : at + TICK_BYTES] for at in range(0, len(pcm), TICK_BYTES)]

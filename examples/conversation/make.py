"""
Make the conversation of this folder again, or check it: `make.py [--check]`.

Each turn is spoken by espeak-ng, cut to its sound, and laid on one timeline after a pause (or before the other has
ended). The caller goes through a telephone's band at 8 kHz; the assistant stays wide at 24 kHz. The same espeak-ng, sox
and soxr give the same files, sample for sample. Needs espeak-ng and sox on the path, and this project's environment.
"""
# ruff: noqa: INP001 (a script to run, not a package to import)

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

HERE = Path(__file__).parent
PEAK = 10 ** (-3 / 20)  # -3 dBFS
AUDIBLE = 10 ** (-40 / 20)  # of a turn's own peak: where its sound begins and ends
SILENCE = 10 ** (-60 / 20)  # below it, in RMS, nobody speaks
FADE_SECONDS = 0.005
FRAME_SECONDS = 0.01
TOLERANCE_SECONDS = 0.06  # two frames, and what a band filter smears

Samples = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """One side of the call."""

    espeak: tuple[str, ...]
    rate: int
    band: tuple[str, ...]  # what sox does to it
    tail: float  # seconds of silence after the last word of the call: the two ends hang up at different moments


@dataclass(frozen=True, slots=True)
class Turn:
    """Something said, `pause` seconds after all before it has ended; a negative pause talks into it."""

    speaker: str
    pause: float
    text: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """A turn as sound, at its place on the timeline."""

    turn: Turn
    start: float
    sound: Samples


VOICES = {
    "user": Voice(espeak=("-v", "en-us+f3", "-s", "168", "-p", "55"), rate=8000, band=("sinc", "300-3400"), tail=1.35),
    "assistant": Voice(
        espeak=("-v", "en-gb-x-rp", "-s", "172", "-p", "40"), rate=24000, band=("sinc", "-9000"), tail=0.9
    ),
}

CALL = [
    Turn("assistant", 0.8, "Larkspur Deliveries, good afternoon. How can I help you?"),
    Turn("user", 0.55, "Hi. I have a parcel coming tomorrow, and I won't be at home. Can I change the day?"),
    Turn("assistant", 0.9, "Of course. May I have the order number, please?"),
    Turn("user", 1.3, "Yes, one moment. It is four seven one, nine zero two."),
    Turn(
        "assistant", 1.1, "Thank you. Four seven one, nine zero two. That is a parcel for Ines Calder, is that right?"
    ),
    Turn("user", -0.35, "Yes, that's me."),
    Turn("assistant", 0.7, "Good. I can bring it on Thursday between nine and twelve, or on Friday between one and"),
    Turn("user", -0.75, "Sorry, Thursday morning is fine. But could it be after ten?"),
    Turn("assistant", 1.0, "Let me look. Yes, Thursday between ten and twelve is free. Shall I book that for you?"),
    Turn("user", 0.45, "Yes, please. And could the driver ring the bell of my neighbour, Mister Oduya, if I am late?"),
    Turn(
        "assistant", 0.8, "I have added a note: if nobody answers, ring at Oduya, second floor. Is there anything else?"
    ),
    Turn("user", 0.6, "No, that was all. Thank you very much."),
    Turn("assistant", 0.4, "You're welcome. Your parcel comes on Thursday, between ten and twelve. Goodbye!"),
    Turn("user", -0.2, "Bye!"),
]


def main(arguments: list[str]) -> None:
    if arguments not in ([], ["--check"]):
        raise SystemExit("usage: make.py [--check]")
    if not arguments:
        make()
    problems = check()
    if problems:
        raise SystemExit("\n".join(problems))


def make() -> None:
    spoken = lay_out(CALL)
    end = max(each.start + seconds(each) for each in spoken)
    for speaker, voice in VOICES.items():
        track = on_timeline([each for each in spoken if each.turn.speaker == speaker], voice, end + voice.tail)
        soundfile.write(HERE / f"{speaker}.flac", track, voice.rate, subtype="PCM_16", compression_level=1.0)
    write_transcript(spoken)


def lay_out(call: list[Turn]) -> list[Spoken]:
    spoken: list[Spoken] = []
    now = 0.0
    for turn in call:
        each = Spoken(turn, round(now + turn.pause, 3), speak(turn))
        spoken.append(each)
        now = max(now, each.start + seconds(each))
    return spoken


def speak(turn: Turn) -> Samples:
    """Return the turn's sound at its voice's rate, from its first audible sample to its last."""
    voice = VOICES[turn.speaker]
    wav = run("espeak-ng", *voice.espeak, "--stdout", turn.text)
    # -D: dither is random, and this has to come out the same each time. -V1: a pipe's header has no length, known.
    wav = run("sox", "-V1", "-D", "-v", "0.8", "-t", "wav", "-", "-t", "wav", "-", *voice.band, given=wav)
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float64")
    resampled: Samples = soxr.resample(samples, rate, voice.rate, quality="VHQ")
    return cut(resampled / np.abs(resampled).max(), voice.rate)


def cut(samples: Samples, rate: int) -> Samples:
    loud = np.flatnonzero(np.abs(samples) > AUDIBLE)
    sound = samples[loud[0] : loud[-1] + 1].copy()
    fade = np.linspace(0, 1, int(FADE_SECONDS * rate))
    sound[: fade.size] *= fade
    sound[-fade.size :] *= fade[::-1]
    return sound


def on_timeline(spoken: list[Spoken], voice: Voice, length: float) -> npt.NDArray[np.int16]:
    track = np.zeros(int(length * voice.rate))
    for each in spoken:
        first = round(each.start * voice.rate)
        track[first : first + each.sound.size] += each.sound
    track *= PEAK * 32767 / np.abs(track).max()
    return track.round().astype(np.int16)


def write_transcript(spoken: list[Spoken]) -> None:
    lines = [
        {
            "speaker": each.turn.speaker,
            "text": each.turn.text,
            "start": each.start,
            "end": round(each.start + seconds(each), 3),
        }
        for each in spoken
    ]
    (HERE / "transcript.json").write_text(json.dumps(lines, indent=2) + "\n")


def check() -> list[str]:
    """Name each place where the transcript's times and the signal's energy disagree, and each wrong level or length."""
    transcript = json.loads((HERE / "transcript.json").read_text())
    problems = []
    for speaker, voice in VOICES.items():
        track, rate = soundfile.read(HERE / f"{speaker}.flac", dtype="float64")
        if rate != voice.rate or track.ndim != 1:
            problems.append(f"{speaker}: {rate} Hz, {track.ndim} dimensions")
        if abs(np.abs(track).max() - PEAK) > 1 / 32768:
            problems.append(f"{speaker}: peak {20 * np.log10(np.abs(track).max()):.2f} dBFS")
        turns = [(line["start"], line["end"]) for line in transcript if line["speaker"] == speaker]
        problems += [f"{speaker}: {problem}" for problem in disagreements(track, rate, turns)]
    return problems


def disagreements(track: Samples, rate: int, turns: list[tuple[float, float]]) -> list[str]:
    """Between two turns nobody speaks; within a turn the first and the last sound lie at its ends."""
    loud = loud_times(track, rate)
    problems = []
    for start, end in turns:
        inside = loud[(loud > start - TOLERANCE_SECONDS) & (loud < end + TOLERANCE_SECONDS)]
        if not inside.size or inside[0] - start > TOLERANCE_SECONDS or end - inside[-1] > TOLERANCE_SECONDS:
            problems.append(f"no speech at the ends of {start} to {end}")
    for (_, before), (after, _) in pairwise([(0.0, 0.0), *turns, (track.size / rate, 0.0)]):
        between = loud[(loud > before + TOLERANCE_SECONDS) & (loud < after - TOLERANCE_SECONDS)]
        if between.size:
            problems.append(f"speech at {between[0]:.2f}, between two turns")
    return problems


def loud_times(track: Samples, rate: int) -> Samples:
    """Return the middle of each frame in which somebody speaks."""
    frame = int(FRAME_SECONDS * rate)
    frames = track[: track.size // frame * frame].reshape(-1, frame)
    loud = np.flatnonzero(np.sqrt((frames**2).mean(axis=1)) > SILENCE)
    return (loud.astype(np.float64) + 0.5) * FRAME_SECONDS


def seconds(each: Spoken) -> float:
    return each.sound.size / VOICES[each.turn.speaker].rate


def run(*command: str, given: bytes = b"") -> bytes:
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True).stdout  # noqa: S603 (our own words)


if __name__ == "__main__":
    main(sys.argv[1:])

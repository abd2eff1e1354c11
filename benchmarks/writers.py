"""
What is compared: each writer takes a call's user and assistant, 20 ms at a time, user first.

All but the last of the peers leave three files: user, assistant and mixed. `nothing` is the feeder's own cost.
"""

# ruff: noqa: INP001

from __future__ import annotations

import os
import time
import wave
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from speech import RATE, TICKS_PER_SECOND, TRACKS

if TYPE_CHECKING:
    from edge_recorder import Call, CallSummary, Pending

FILES = ("user", "assistant", "mixed")
BLOCK = TICKS_PER_SECOND // 2  # ticks in half a second
CLOSE_TIMEOUT = 60.0  # seconds


class Writer(Protocol):
    """One call's recording."""

    def write(self, track: str, audio: bytes) -> object: ...

    def end(self) -> object: ...


class Nothing:
    """Takes all and does nothing."""

    def write(self, track: str, audio: bytes) -> None: ...

    def end(self) -> None: ...


class Wave:
    """The standard library, header right after every tick: what most recorders are made of."""

    def __init__(self, room: Path) -> None:
        self._files = [self._open(room / f"{name}.wav") for name in FILES]
        self._user = b""

    def write(self, track: str, audio: bytes) -> None:
        if track == "user":
            self._user = audio
        else:
            for file, pcm in zip(self._files, (self._user, audio, mixed(self._user, audio)), strict=True):
                self._put(file, pcm)

    def end(self) -> None:
        for file in self._files:
            file.close()

    def _put(self, file: wave.Wave_write, pcm: bytes) -> None:
        file.writeframes(pcm)

    def _open(self, path: Path) -> wave.Wave_write:
        file = wave.open(str(path), "wb")  # noqa: SIM115 (closed by end)
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        return file


class WaveRaw(Wave):
    """The same with the header at the end: killed, it leaves files that say they are empty."""

    def _put(self, file: wave.Wave_write, pcm: bytes) -> None:
        file.writeframesraw(pcm)


class SoundFiles:
    """libsndfile, which writes the header at the end too."""

    def __init__(self, room: Path) -> None:
        from soundfile import SoundFile  # noqa: PLC0415 (an extra)

        self._files = [
            SoundFile(room / f"{name}.wav", "w", samplerate=RATE, channels=1, subtype="PCM_16") for name in FILES
        ]
        self._user = b""

    def write(self, track: str, audio: bytes) -> None:
        if track == "user":
            self._user = audio
        else:
            for file, pcm in zip(self._files, (self._user, audio, mixed(self._user, audio)), strict=True):
                file.buffer_write(pcm, "int16")

    def end(self) -> None:
        for file in self._files:
            file.close()


class Blocks:
    """The floor: numpy on half seconds, and three bare os.write. No header, no place in time, no proof of anything."""

    def __init__(self, room: Path) -> None:
        self._files = [os.open(room / f"{name}.pcm", os.O_WRONLY | os.O_CREAT, 0o600) for name in FILES]
        self._user: list[bytes] = []
        self._assistant: list[bytes] = []

    def write(self, track: str, audio: bytes) -> None:
        if track == "user":
            self._user.append(audio)
        else:
            self._assistant.append(audio)
            if len(self._assistant) == BLOCK:
                self._flush()

    def end(self) -> None:
        if self._files:
            self._flush()
        while self._files:
            os.close(self._files.pop())

    def _flush(self) -> None:
        user, assistant = b"".join(self._user), b"".join(self._assistant)
        for file, pcm in zip(self._files, (user, assistant, mixed(user, assistant)), strict=True):
            os.write(file, pcm)
        self._user.clear()
        self._assistant.clear()


class Pipecat:
    """Pipecat's AudioBufferProcessor: RAM only, mixed at the end. Its own work, without a pipeline's queues."""

    def __init__(self, _room: Path) -> None:
        from pipecat.clocks.system_clock import SystemClock  # noqa: PLC0415 (an extra)
        from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame, StartFrame  # noqa: PLC0415
        from pipecat.processors.audio.audio_buffer_processor import AudioBufferProcessor  # noqa: PLC0415
        from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup  # noqa: PLC0415
        from pipecat.utils.asyncio.task_manager import TaskManager  # noqa: PLC0415

        self._kinds = {"user": InputAudioRawFrame, "assistant": OutputAudioRawFrame}
        self._down = FrameDirection.DOWNSTREAM
        self._processor = AudioBufferProcessor()
        self._processor.add_event_handler("on_audio_data", _take)
        self._processor.add_event_handler("on_track_audio_data", _take)
        setup = FrameProcessorSetup(
            clock=SystemClock(), task_manager=TaskManager(), pipeline_worker=None, audio_out_sample_rate=RATE
        )
        step(self._processor.setup(setup))
        step(self._processor.process_frame(StartFrame(), self._down))
        step(self._processor.start_recording())
        # A pipeline has its frames in any case, so making them is not counted: these two are used over and over.
        self._frames = {track: kind(audio=b"", sample_rate=RATE, num_channels=1) for track, kind in self._kinds.items()}

    def write(self, track: str, audio: bytes) -> None:
        frame = self._frames[track]
        frame.audio = audio
        step(self._processor.process_frame(frame, self._down))

    def end(self) -> None:
        step(self._processor.stop_recording())


PEERS: dict[str, Callable[[Path], Writer]] = {
    "nothing": lambda _room: Nothing(),
    "wave": Wave,
    "wave-raw": WaveRaw,
    "soundfile": SoundFiles,
    "blocks": Blocks,
    "pipecat": Pipecat,
}


class Peers:
    """Calls that one of the peers records, each in a directory of its own."""

    def __init__(self, name: str, room: Path) -> None:
        self._kind = PEERS[name]
        self._room = room
        self._calls: list[Writer] = []

    def start(self) -> Writer:
        own = self._room / str(len(self._calls))
        own.mkdir()
        self._calls.append(self._kind(own))
        return self._calls[-1]

    def close(self) -> int:
        for call in self._calls:
            call.end()
        return 0


class Ours:
    """Calls that a Recorder records, with everything on."""

    def __init__(self, room: Path, capture: dict[str, Any]) -> None:
        from edge_recorder import Recorder, Settings  # noqa: PLC0415 (no part of a peer's RAM)

        self._recorder = Recorder(Settings.of({"node": {"data_dir": room}, "capture": capture})).start()
        self._calls: list[Call] = []

    def start(self) -> Writer:
        call = self._recorder.start_call(tracks=TRACKS)
        self._calls.append(call)
        if not call.recording:
            raise SystemExit(f"no audio is recorded: {call.reason}. Name another directory with --dir")
        return call

    def close(self) -> int:
        """End all calls, and return how many are not all on disk."""
        deadline = time.monotonic() + CLOSE_TIMEOUT
        summaries = [call.end() for call in self._calls]
        incomplete = sum(not _complete(each, deadline - time.monotonic()) for each in summaries)
        self._recorder.close(CLOSE_TIMEOUT)
        return incomplete


def opened(name: str, room: Path, capture: dict[str, Any]) -> Peers | Ours:
    """Return what starts calls with the writer called `name`, and ends them."""
    return Ours(room, capture) if name == "ours" else Peers(name, room)


def mixed(user: bytes, assistant: bytes) -> bytes:
    """Return the plain sum, clipped."""
    total = np.frombuffer(user, "<i2").astype(np.int32) + np.frombuffer(assistant, "<i2")
    pcm: bytes = np.clip(total, -32768, 32767).astype("<i2").tobytes()
    return pcm


def step(work: Coroutine[Any, Any, None]) -> None:
    """Run to its end a coroutine that never waits, at less cost than a task."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise SystemExit("Pipecat waits for something where it did not before: it can't be measured like this any more")


def _complete(summary: Pending[CallSummary], timeout: float) -> bool:
    try:
        return summary.result(max(0.0, timeout)).complete
    except TimeoutError:
        return False


async def _take(*_audio: object) -> None: ...

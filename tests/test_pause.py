"""
The pause proof: of what is said while nothing may be kept, nothing is left on disk or in RAM.

A child process records. Each piece that it hands over is made of 64 bytes that nothing else holds: derived when they
are needed, in a buffer that is zeroed at once. Then this process looks for them in all files of the data_dir, in the
child's open files that have no name, and in all of its memory.
"""

from __future__ import annotations

import json
import mmap
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from edge_recorder import Recorder, Settings, journal, model, spool
from edge_recorder.call import Call
from edge_recorder.encodings import to_pcm16

RATE = 8000
PATTERN = 64  # bytes
PIECE = 320  # bytes: 20 ms
BEFORE, AFTER = ("before", "before_played"), ("after", "after_played")
KEPT = "kept in RAM"  # the child holds it, so that we know that looking finds

Forbidden = dict[str, Callable[[Call, bytearray, float], None]]
FORBIDDEN: Forbidden = {  # (call, audio, a place in the pause)
    "now": lambda call, audio, _: call.write("user", audio),
    "placed": lambda call, audio, at: call.write("user", audio, at=at),
    "viewed": lambda call, audio, _: call.write("user", memoryview(audio)),
    "array": lambda call, audio, _: call.write("user", np.frombuffer(audio, np.int16)),
    "mulaw": lambda call, audio, _: call.write("user", audio, encoding="mulaw"),
    "resampled": lambda call, audio, _: call.write("user", audio, rate=16_000),
    "played": lambda call, audio, _: call.play("assistant", audio),
    "turn": lambda call, audio, _: call.add_turn("user", audio),
    "placed_turn": lambda call, audio, at: call.add_turn("user", audio, at=at),
    "new_track": lambda call, audio, _: call.write("phone", audio, rate=RATE),
}
GUARDED = ("now", "viewed", "array", "mulaw", "placed", "placed_turn")  # also when they come just after it


def pattern(seed: int, name: str, into: bytearray) -> bytearray:
    """Fill `into` with the bytes of `name`, over and over. No other object ever holds two of them."""
    state = seed
    for letter in name:
        state = (state * 1_000_003 ^ ord(letter)) & 0xFFFFFFFF
    for n in range(PATTERN):
        state = (state * 1_664_525 + 1_013_904_223) & 0xFFFFFFFF
        into[n] = state >> 24 | 1
    for n in range(PATTERN, len(into)):
        into[n] = into[n - PATTERN]
    return into


# The child.


@dataclass
class Child:
    call: Call
    seed: int

    def say(self, name: str, hand_over: Callable[[Call, bytearray, float], None], at: float = 0.0) -> None:
        audio = pattern(self.seed, name, bytearray(PIECE))
        hand_over(self.call, audio, at)
        for n in range(PIECE):
            audio[n] = 0

    def elapsed(self) -> float:
        return self.call.stats().elapsed_s

    def forbid(self, stop: Callable[[], None], go_on: Callable[[], None] | None) -> dict[str, float]:
        """Say what must not be kept, from before `stop` took effect to after `go_on`, and return the instants."""
        times = {"before": self.elapsed()}
        stop()
        times["began"] = self.elapsed()
        for name, hand_over in FORBIDDEN.items():
            self.say(name, hand_over, times["began"] + 0.01)
        self.call.flush().result(20)
        while self.elapsed() < times["began"] + 0.1:  # so that it is as long as what was placed in it
            time.sleep(0.01)
        times["ends"] = self.elapsed()
        if go_on is not None:
            go_on()
            times["ended"] = self.elapsed()
            for name in GUARDED:
                self.say(f"guarded {name}", FORBIDDEN[name], times["began"] + 0.03)
        return times


def main(data_dir: str, mode: str, seed: int) -> None:
    held = pattern(seed, KEPT, bytearray(PATTERN))
    settings = Settings.of({"node": {"data_dir": data_dir}, "capture": {"queue_seconds": 5}})
    with Recorder(settings) as recorder:
        call = recorder.start_call(tracks={"user": RATE, "assistant": RATE}, record=mode != "refused")
        child = Child(call, seed)
        ways: dict[str, tuple[Callable[[], None], Callable[[], None] | None]] = {
            "pause": (lambda: call.pause("card"), call.resume),
            "consent": (
                lambda: call.set_consent(record=False),
                lambda: call.set_consent({"mode": "asked"}, record=True),
            ),
            "refused": (lambda: None, None),
        }
        if mode != "refused":
            child.say("before", lambda call, audio, _: call.write("user", audio, at=0.0))
            child.say("before_played", lambda call, audio, _: call.play("assistant", audio))
            while child.elapsed() < 0.2:  # it is played by then
                time.sleep(0.01)
        times = child.forbid(*ways[mode])
        call.add_message("user", "said in text")
        if mode == "refused":
            call.flush().result(20)
            wait(times)
            call.set_consent({"mode": "asked"}, record=True)
            times["ends"] = times["ended"] = child.elapsed()
        child.say("after", lambda call, audio, _: call.write("user", audio, at=child.elapsed()))
        while child.elapsed() < times["ended"] + 0.6:  # the guard is over
            time.sleep(0.01)
        child.say("after_played", lambda call, audio, _: call.play("assistant", audio))
        at = child.elapsed()
        while child.elapsed() < at + 0.1:
            time.sleep(0.01)
        call.flush().result(20)
        wait(times)
        call.end().result(20)
        wait(times)
    assert held


def wait(times: dict[str, float]) -> None:
    """Let the parent look."""
    sys.stdout.write(json.dumps(times) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


# The parent.


class Witness:
    """The child as seen from outside."""

    def __init__(self, child: subprocess.Popen[str], data_dir: Path, seed: int) -> None:
        self.child, self.data_dir, self.seed = child, data_dir, seed

    def next(self) -> dict[str, float]:
        """Wait until the child stands still, for the first time or again."""
        line = _of(self.child.stdout).readline()
        assert line, "the child died"
        times: dict[str, float] = json.loads(line)
        return times

    def go_on(self) -> None:
        _of(self.child.stdin).write("\n")
        _of(self.child.stdin).flush()

    def bytes_of(self, name: str) -> bytes:
        return bytes(pattern(self.seed, name, bytearray(PATTERN)))

    def on_disk(self) -> bytes:
        """Return all that is in files, with a name or without."""
        files = [path for path in self.data_dir.rglob("*") if path.is_file()]
        descriptors = Path(f"/proc/{self.child.pid}/fd").iterdir()
        unlinked = [each for each in descriptors if str(each.readlink()).endswith("(deleted)")]
        return b"\0".join(path.read_bytes() for path in [*files, *unlinked])

    def memory(self) -> Iterator[bytes]:
        """Yield each stretch of the child's memory that it may have written to: what a core holds."""
        with Path(f"/proc/{self.child.pid}/mem").open("rb", buffering=0) as mem:
            for line in Path(f"/proc/{self.child.pid}/maps").read_text().splitlines():
                area, modes = line.split()[:2]
                if not modes.startswith("rw"):
                    continue
                first, end = (int(each, 16) for each in area.split("-"))
                mem.seek(first)
                yield _read(mem, end - first)

    def in_memory(self, names: list[str]) -> set[str]:
        wanted = self.forms(names)
        return {name for stretch in self.memory() for name, form in wanted if form in stretch}

    def forms(self, names: list[str]) -> list[tuple[str, bytes]]:
        """Return each name with its bytes as they were handed over, and as samples where those are others."""
        raw = [(name, self.bytes_of(name)) for name in names]
        return [*raw, *((name, to_pcm16(form, "mulaw")) for name, form in raw if "mulaw" in name)]


@contextmanager
def witnessed(data_dir: Path, mode: str) -> Iterator[Witness]:
    seed = secrets.randbits(31)
    command = [sys.executable, __file__, str(data_dir), mode, str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield Witness(child, data_dir, seed)
            child.communicate(timeout=30)
        finally:
            child.kill()
    assert child.returncode == 0


def facts_of(data_dir: Path) -> list[Any]:
    (directory,) = spool.call_dirs(data_dir)
    return list(journal.read(directory / spool.JOURNAL).facts.values())


FORBIDDEN_NAMES = [*FORBIDDEN, *(f"guarded {name}" for name in GUARDED)]


@pytest.mark.parametrize("mode", ["pause", "consent", "refused"])
def test_nothing_of_a_pause_is_left(data_dir: Path, mode: str) -> None:
    """Of audio handed over in any way while nothing may be kept, no bytes are in a file or in the process's memory."""
    names = list(FORBIDDEN) if mode == "refused" else FORBIDDEN_NAMES
    with witnessed(data_dir, mode) as witness:
        if mode == "refused":
            witness.next()
            assert not list(data_dir.rglob("*.part"))
            assert witness.in_memory([*names, KEPT]) == {KEPT}
            witness.go_on()
        times = witness.next()
        assert witness.in_memory([*names, KEPT]) == {KEPT}
        for last in (False, True):  # while it goes on, and when all is sealed
            disk = witness.on_disk()
            found = [name for name in (*BEFORE, *AFTER) if witness.bytes_of(name) in disk]
            assert found == [*(() if mode == "refused" else BEFORE), *AFTER]
            assert [name for name, form in witness.forms(names) if form in disk] == []
            witness.go_on()
            if not last:
                witness.next()
    check_facts(data_dir, mode, times)


def check_facts(data_dir: Path, mode: str, times: dict[str, float]) -> None:
    """Prove that the pause itself is on record, with its reason and its times, and so is what was said in text."""
    facts = facts_of(data_dir)
    reason = {"pause": "card", "consent": "no consent", "refused": "record=False"}[mode]
    (paused,) = [each for each in facts if isinstance(each, model.Span) and each.kind == "paused" and not each.track]
    assert paused.reason == reason
    assert times["before"] <= paused.start_s <= times["began"] or (mode == "refused" and paused.start_s == 0)
    assert times["ends"] - (mode == "refused") <= paused.end_s <= times["ended"]
    assert [each.text for each in facts if isinstance(each, model.Message)] == ["said in text"]
    (call,) = [each for each in facts if isinstance(each, model.Call)]
    assert (call.state, call.recording, call.not_recording_reason) == ("ended", True, None)
    assert call.consent == (None if mode == "pause" else '{"mode": "asked"}')


@pytest.mark.faults
@pytest.mark.skipif(shutil.which("gdb") is None, reason="there is no gdb")
def test_no_core_tells_of_a_pause(data_dir: Path, tmp_path: Path) -> None:
    """A core of the process, taken while it goes on after a pause, holds none of what was said in it."""
    core = tmp_path / "core"
    with witnessed(data_dir, "pause") as witness:
        witness.next()
        command = ["gdb", "-nx", "-batch", "-iex", "set auto-solib-add off", "-iex", "set debuginfod enabled off"]
        command += ["-p", str(witness.child.pid), "-ex", f"generate-core-file {core}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=45, check=False)
        witness.go_on()
        witness.next()
        witness.go_on()
    if not core.exists():
        pytest.skip(f"gdb may not attach here: {done.stderr[-200:]}")
    with core.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as dump:
        found = [name for name, form in witness.forms([*FORBIDDEN_NAMES, KEPT]) if dump.find(form) >= 0]
    core.unlink()  # it is large
    assert found == [KEPT]


def _of(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _read(mem: Any, size: int) -> bytes:
    try:
        return bytes(mem.read(size) or b"")
    except OSError:  # such as a page behind the end of a mapped file
        return b""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

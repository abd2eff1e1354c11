"""A speaker that runs: started, watched, killed at a time, and what it left behind for the tests to judge."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from gate import Gate, Rule
from speaker import Board, Outcome, Plan

HERE = Path(__file__).parent
POLL = 0.005  # seconds between looks at what another process has done
SHORT = {"segment_seconds": 1, "late_window": 0.1, "flush_interval": 0.05, "fsync_interval": 0.1}


class Scene:
    """One speaker in a process of its own, with a gate before its disk where there is a `rule`."""

    def __init__(self, plan: Plan, *, rule: Rule | None = None) -> None:
        self.plan = plan
        self.data_dir = Path(plan.data_dir)
        self.gate: Gate | None = None
        self.killed_at: float | None = None
        self.errors = ""  # what it logged
        beside = Path(plan.board or f"{plan.data_dir}.board")
        self.board = Board(beside, new=True)
        self._log = beside.with_suffix(".log").open("w+")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.process = self._start(beside, theirs.fileno() if rule is not None else -1)
            theirs.close()
            if rule is not None:
                self.gate = Gate(_received(ours), self.data_dir, rule)

    def _start(self, board: Path, gate: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "speaker.py"), json.dumps(asdict(self.plan)), str(board), str(gate)]
        descriptors = (gate,) if gate >= 0 else ()
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log, text=True, pass_fds=descriptors
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
        if self.gate is not None:
            self.gate.close()
        self._log.close()

    def kill(self) -> None:
        """End the process as a crash would."""
        self.process.kill()
        self.killed_at = time.monotonic()
        self.process.wait()

    def finish(self, timeout: float = 60.0) -> Outcome | None:
        """Wait for the speaker's end, and return what it met; None where it was killed."""
        out, _ = self.process.communicate(timeout=timeout)
        if self.gate is not None and self.gate.killed_at is not None:
            self.killed_at = self.gate.killed_at
        self._log.seek(0)
        self.errors = self._log.read()
        return Outcome(**json.loads(out)) if out else None

    def wait_until_said(self, seconds: float) -> None:
        """Wait until the calls have handed over the audio up to `seconds` of the call."""
        wait_for(lambda: self.board.reached >= seconds, timeout=seconds + 30)


def run_together(plans: Sequence[Plan]) -> list[tuple[Scene, Outcome]]:
    """Run speakers at the same time to their ends."""
    with ExitStack() as stack:
        scenes = [stack.enter_context(Scene(plan)) for plan in plans]
        outcomes = [(scene, scene.finish()) for scene in scenes]
    for scene, outcome in outcomes:
        assert outcome is not None, scene.errors
    return [(scene, outcome) for scene, outcome in outcomes if outcome is not None]


def wait_for(happened: Callable[[], object], *, timeout: float) -> None:
    """Wait until something has happened in another process, which has no other way to tell."""
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(POLL)


def _received(ours: socket.socket) -> int:
    ours.settimeout(30)
    _, descriptors, _, _ = socket.recv_fds(ours, 16, 1)
    assert descriptors, "the speaker died before its gate was up"
    return descriptors[0]

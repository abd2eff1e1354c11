"""
One case in a process of its own, so that its RAM and CPU are clean: `run` starts it, and `main` is what then runs.

The case comes as JSON in the first argument, and its figures go to stdout as JSON. What is not installed is no failure.
"""

# ruff: noqa: INP001

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

GRACE = 240.0  # seconds beyond a case's own time until it is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one child measures: `kind` is `burst`, `pace` or `syncing`."""

    kind: str
    writer: str = ""
    calls: int = 1
    ticks: int = 0
    ramp: float = 0.0
    settle: float = 0.0
    seconds: float = 0.0
    every: float = 10.0
    files: int = 0
    repeats: int = 1
    capture: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        size = f"{self.files} files" if self.kind == "syncing" else f"{self.writer}, {self.calls} calls"
        return f"{self.kind}: {size}"


def run(case: Case, directory: Path) -> dict[str, Any]:
    """Run `case` in a child of its own, in a directory that is gone afterwards. Its `error` says what kept it."""
    with TemporaryDirectory(dir=directory, prefix="edge-recorder-bench-", ignore_cleanup_errors=True) as room:
        try:
            done = subprocess.run(  # noqa: S603 (ourselves)
                [sys.executable, __file__, json.dumps(asdict(case)), room],
                capture_output=True,
                text=True,
                check=False,
                timeout=case.ramp + case.settle + case.seconds + GRACE,
            )
        except subprocess.TimeoutExpired as late:
            return {"error": f"not done after {late.timeout:.0f} s"}
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Measure the case that the arguments name."""
    logging.basicConfig(level=logging.ERROR)
    case, room = Case(**json.loads(sys.argv[1])), Path(sys.argv[2])
    try:
        figures = asyncio.run(_in_loop(case, room)) if case.writer == "pipecat" else _measure(case, room)
    except ModuleNotFoundError as error:
        figures = {"missing": f"{error.name} is not installed: pip install 'edge-recorder[bench]'"}
    print(json.dumps(figures), flush=True)  # noqa: T201 (it is the answer)
    if figures.get("incomplete"):
        os._exit(0)  # a recorder that still works off what it could not keep up with would hold up the next case


async def _in_loop(case: Case, room: Path) -> dict[str, Any]:
    """Measure within a running loop, which Pipecat looks for and never waits on."""
    return _measure(case, room)


def _measure(case: Case, room: Path) -> dict[str, Any]:
    import load  # noqa: PLC0415 (what starts the cases needs none of this)
    import machine  # noqa: PLC0415
    import syncing  # noqa: PLC0415
    import writers  # noqa: PLC0415

    machine.allow_open_files()
    if case.kind == "syncing":
        found = syncing.compare(room, files=case.files, repeats=case.repeats)
        return {name: asdict(each) for name, each in found.items()}
    opened = writers.opened(case.writer, room, case.capture)
    if case.kind == "burst":
        return asdict(load.burst(opened.start, case.ticks))
    feeder = load.Feeder(
        start=opened.start,
        calls=case.calls,
        ramp=case.ramp,
        settle=case.settle,
        seconds=case.seconds,
        every=case.every,
    )
    figures = asdict(feeder.run())
    began, used = time.monotonic(), time.process_time()
    incomplete = opened.close()
    return {
        **figures,
        "incomplete": incomplete,
        "end_s": time.monotonic() - began,
        "end_cpu_ms": (time.process_time() - used) * 1000 / case.calls,
    }


if __name__ == "__main__":
    main()

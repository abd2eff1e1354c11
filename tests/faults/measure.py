"""
Measure what a crash takes, with the default settings, on the disk that DIRECTORY is on: `make faults-measure`.

    killed    the age of the youngest audio that SIGKILL took, per track, over many kills at random moments
    synced    how long after its handover audio was fsynced, by the `synced` mark in its file's header
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from evidence import Evidence
from scene import Scene, wait_for
from speaker import TICK, Plan, voice

from edge_recorder import IntegrityMismatch, spool, wav

KILLS = 40
EARLIEST, LATEST = 1.5, 4.5  # seconds of the call at which it is killed
WATCHED = 20.0  # seconds
LOOK = 0.02  # seconds between looks at the files
LOOKED_AT = 4  # calls of which the files are looked at
TRACKS = {"user": 8000, "assistant": 24000}


def killed(room: Path, *, calls: int, kills: int) -> list[float]:
    """Return, for each track of each killed call, the age in seconds of the oldest audio that was lost."""
    ages = []
    for n in range(kills):
        plan = Plan(data_dir=str(room / f"killed-{calls}-{n}"), capture={}, calls=calls, tracks=TRACKS, seconds=30.0)
        with Scene(plan) as scene:
            scene.wait_until_said(random.uniform(EARLIEST, LATEST))
            scene.kill()
        evidence = Evidence(scene.data_dir)
        evidence.heal()
        ids = {row["external_id"]: call_id for call_id, row in evidence.calls.items()}
        ages += [
            _age_lost(scene, evidence, ids[f"call-{call}"], call, track) for call in range(calls) for track in TRACKS
        ]
    return ages


def _age_lost(scene: Scene, evidence: Evidence, call_id: str, call: int, track: str) -> float:
    frames = round(TICK * TRACKS[track])
    kept = evidence.samples(call_id, track)
    times, places = scene.board.handed
    for handed, place in zip(times, places, strict=True):
        chunk = kept[place * frames : (place + 1) * frames]
        if not np.array_equal(chunk, voice(call, track, int(place) * frames, frames)):
            return float((scene.killed_at or 0.0) - handed)
    return float((scene.killed_at or 0.0) - times[-1])  # all of it is there: no older than the last chunk


def synced(room: Path, *, calls: int) -> tuple[list[float], float]:
    """Return how long after its handover each chunk was synced, as seen every 20 ms, and the p99.9 of write()."""
    plan = Plan(
        data_dir=str(room / f"synced-{calls}"), capture={}, calls=calls, tracks=TRACKS, seconds=WATCHED, flushes=False
    )
    delays: list[float] = []
    with Scene(plan) as scene:
        wait_for(lambda: scene.board.ticks, timeout=30)
        marks: dict[Path, int] = {}
        while scene.process.poll() is None and scene.board.reached < WATCHED - 2:
            for path, rate, frames in _marks(scene.data_dir):
                before, marks[path] = marks.get(path, 0), max(frames, marks.get(path, 0))
                delays += _delays(scene, before / rate, frames / rate)
            time.sleep(LOOK)
        outcome = scene.finish()
    assert outcome is not None, scene.errors
    assert outcome.complete == [True] * calls, scene.errors
    return delays, outcome.write_p999


def _marks(data_dir: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield each open file with its rate and how many frames are synced, counted from the call's start."""
    for directory in list(spool.call_dirs(data_dir))[:LOOKED_AT]:
        for path in directory.glob("*.part"):
            if path.name.startswith("mixed"):
                continue
            with suppress(OSError, IntegrityMismatch), path.open("rb") as file:
                tag = wav.read_tag(file.read(wav.HEADER_BYTES))
                yield path, tag.rate, tag.first_sample + tag.synced


def _delays(scene: Scene, start: float, end: float) -> list[float]:
    """Return how long ago the chunks that end within (start, end] of the call were handed over."""
    now = time.monotonic()
    times, places = scene.board.handed
    ends = (places + 1) * TICK
    return [float(now - handed) for handed in times[(ends > start + 1e-9) & (ends <= end + 1e-9)]]


def figures(values: list[float]) -> dict[str, float]:
    """Return the distribution of some seconds."""
    at = {f"p{p:g}": round(float(np.percentile(values, p)), 3) for p in (50, 95, 99)}
    return {"n": len(values), **at, "max": round(max(values), 3)}


def show(measured: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(measured) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where to record; its disk is what is measured")
    parser.add_argument("--kills", type=int, default=KILLS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edge-recorder-faults-", dir=options.directory) as room:
        for calls, kills in ((1, options.kills), (100, max(1, options.kills // 8))):
            ages = killed(Path(room), calls=calls, kills=kills)
            show({"killed": f"{calls} calls, {kills} kills", "age_lost_s": figures(ages)})
        for calls in (1, 100):
            delays, p999 = synced(Path(room), calls=calls)
            show({"synced": f"{calls} calls", "delay_s": figures(delays), "write_p999_us": round(p999 * 1e6)})


if __name__ == "__main__":
    main()

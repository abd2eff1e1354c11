"""A disk that is full: audio, journal, SQLite and its checkpoints, on a file system of their own."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from evidence import Evidence
from scene import SHORT, Scene, wait_for
from speaker import Plan

SIZE = 8 * 2**20  # bytes
TRACKS = {"user": 8000, "assistant": 16000}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    point = tmp_path / "small"
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(point)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here: that needs root")
    yield point
    subprocess.run(["umount", "--lazy", str(point)], check=True, timeout=30)


def fill(filler: Path) -> None:
    """Write `filler` until no room is left."""
    with filler.open("wb", buffering=0) as file:
        for block in (bytes(65_536), bytes(4096), bytes(1)):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                write_for_ever(file, block)


def write_for_ever(file: IO[bytes], block: bytes) -> None:
    while True:
        file.write(block)


def filled_while_speaking(small: Path, *, calls: int, seconds: float, full: tuple[float, float]) -> Evidence:
    """Let calls speak, fill their disk from `full[0]` to `full[1]`, and return what they left, checked."""
    plan = Plan(
        data_dir=str(small / "data"),
        capture=SHORT | {"queue_seconds": 0.3},
        calls=calls,
        tracks=TRACKS,
        seconds=seconds,
        board=str(small.with_name("board")),
    )
    begin, end = full
    with Scene(plan) as scene:
        scene.wait_until_said(begin)
        fill(small / "filler")
        scene.wait_until_said(end)
        (small / "filler").unlink()
        outcome = scene.finish(timeout=seconds + 60)
    assert outcome is not None, scene.errors
    assert outcome.raised == []
    assert outcome.complete == [True] * calls, scene.errors
    assert outcome.closed
    assert "ERROR" in scene.errors, "nobody was told"
    evidence = Evidence(scene.data_dir)
    assert {row["state"] for row in evidence.calls.values()} == {"ended"}, "its rows did not follow"
    evidence.heal()
    evidence.check()
    for n in range(calls):
        assert not evidence.missing(scene.board, n, tracks=TRACKS)
    return evidence


def test_full_disk_leaves_gaps_and_recording_resumes(small: Path) -> None:
    """A disk that is full for longer than the queue is long costs gaps that say so; with room again all is recorded."""
    evidence = filled_while_speaking(small, calls=2, seconds=2.8, full=(0.6, 1.6))
    for call_id in evidence.calls:
        gaps = evidence.spans(call_id, "gap")
        assert gaps
        assert all("space" in span["reason"] or "full" in span["reason"] for span in gaps)
        assert max(span["end_s"] for span in gaps) < 2.4, "it did not resume"


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("begin", [0.3, 0.9, 1.5, 2.1, 2.7])
def test_full_disk_at_other_times(small: Path, begin: float) -> None:
    """Wherever in a segment the disk fills, each sample is recorded or in a gap."""
    filled_while_speaking(small, calls=6, seconds=6.0, full=(begin, begin + 2.0))


def test_disk_full_from_the_start_keeps_the_process(small: Path) -> None:
    """A disk that is full before the first call, and stays so, is survived, and nothing is taken for recorded."""
    plan = Plan(
        data_dir=str(small / "data"),
        capture=SHORT | {"queue_seconds": 0.3},
        seconds=0.6,
        end_wait=0.5,
        waits_for=str(small.with_name("go")),
        board=str(small.with_name("board")),
    )
    with Scene(plan) as scene:
        wait_for(lambda: scene.board.is_ready, timeout=30)
        fill(small / "filler")
        small.with_name("go").touch()
        outcome = scene.finish()
    assert outcome is not None, scene.errors
    assert outcome.raised == []
    assert outcome.complete != [True]
    assert outcome.closed
    (small / "filler").unlink()
    evidence = Evidence(scene.data_dir)
    evidence.heal()
    evidence.check()

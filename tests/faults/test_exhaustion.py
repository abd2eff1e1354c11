"""What else may be taken from a recorder: its descriptors, its directory, its catalog."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from evidence import Evidence
from scene import SHORT, Scene, run_together
from speaker import Outcome, Plan

HOLDER = """
import sys
from pysqlite3 import dbapi2 as sqlite3

connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
"""


@contextmanager
def catalog_held(path: Path) -> Iterator[None]:
    """Hold the catalog exclusively, from another process."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.communicate("", timeout=30)
        assert holder.returncode == 0


def check_whole(scene: Scene, outcome: Outcome) -> None:
    """Every call is complete, each of its samples recorded, and no descriptor is left open."""
    assert outcome.raised == []
    assert outcome.complete == [True] * scene.plan.calls, scene.errors
    assert outcome.leaked == []
    evidence = Evidence(scene.data_dir)
    assert {row["state"] for row in evidence.calls.values()} == {"ended"}, "its rows did not follow"
    evidence.heal()
    evidence.check()
    for n in range(scene.plan.calls):
        assert not evidence.missing(scene.board, n, tracks=scene.plan.tracks)
    assert not [span for call_id in evidence.calls for span in evidence.spans(call_id, "gap", "late")]


def test_want_of_descriptors_is_waited_for(room: Path) -> None:
    """A process that has no descriptor left, or one, while its calls go on records all of them once it has some."""
    plans = [
        Plan(
            data_dir=str(room / f"free-{free}"),
            capture=SHORT,
            calls=4,
            seconds=2.0,
            no_files_from=0.9,  # a cut: new segments cannot be opened, and sealed ones not be named durably
            no_files_until=1.6,
            free_files=free,
        )
        for free in (0, 1)
    ]
    for scene, outcome in run_together(plans):
        check_whole(scene, outcome)
        assert "ERROR" in scene.errors, "nobody was told"


def test_call_that_begins_without_descriptors_is_recorded(room: Path) -> None:
    """A call that starts while no descriptor can be had, or a few, is recorded from its beginning."""
    plans = [
        Plan(
            data_dir=str(room / f"free-{free}"),
            capture=SHORT,
            no_files_from=0.0,
            seconds=1.0,
            no_files_until=0.6,
            free_files=free,
        )
        for free in (0, 1, 2, 3)
    ]
    for scene, outcome in run_together(plans):
        check_whole(scene, outcome)


def removed_data_dir(room: Path) -> tuple[Scene, Outcome]:
    """Return a speaker under which its data_dir was removed before anything was sealed."""
    plan = Plan(data_dir=str(room / "data"), capture=SHORT, calls=2, seconds=1.2, end_wait=0.5)
    with Scene(plan) as scene:
        scene.wait_until_said(0.5)
        while scene.data_dir.exists():  # what the recorder makes meanwhile is in the way
            shutil.rmtree(scene.data_dir, ignore_errors=True)
        outcome = scene.finish()
    assert outcome is not None, scene.errors
    return scene, outcome


def test_removed_data_dir_is_survived(room: Path) -> None:
    """With its data_dir removed under it the process lives on, write() raises nothing, and close() comes back."""
    scene, outcome = removed_data_dir(room)
    assert outcome.raised == []
    assert outcome.closed
    if outcome.complete == [True, True]:  # then each sample is in a file again, or its loss is named
        evidence = Evidence(scene.data_dir)
        for n in range(2):
            assert not evidence.missing(scene.board, n, tracks=scene.plan.tracks)


@pytest.mark.faults
def test_removed_data_dir_is_logged(room: Path) -> None:
    """A data_dir removed under a recorder is an error that somebody is told of."""
    scene, _ = removed_data_dir(room)
    assert "ERROR" in scene.errors


@pytest.mark.parametrize("seconds", [3.0, pytest.param(60.0, marks=[pytest.mark.faults, pytest.mark.timeout(180)])])
def test_locked_catalog_keeps_no_audio_waiting(room: Path, seconds: float) -> None:
    """While another process holds the catalog, audio and journal go on; rows follow when it lets go."""
    plan = Plan(data_dir=str(room / "data"), capture=SHORT, calls=2, seconds=seconds + 1.0)
    with Scene(plan) as scene:
        scene.wait_until_said(0.3)
        with catalog_held(scene.data_dir / "catalog.db"):
            scene.wait_until_said(seconds)
            sealed = list(scene.data_dir.rglob("user-*.wav"))
            assert len(sealed) >= 2 * (int(seconds) - 1), "audio waited for the catalog"
        outcome = scene.finish(timeout=120)
    assert outcome is not None, scene.errors
    check_whole(scene, outcome)

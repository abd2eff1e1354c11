"""SIGKILL before each single thing that a recorder does to its disk, from its start to its close."""

from __future__ import annotations

import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import gate
import pytest
from evidence import Evidence
from scene import SHORT, Scene
from speaker import Plan

from edge_recorder import Recorder, spool

AT_ONCE = 6  # speakers; they mostly wait for their clock
SAMPLE = 6  # points of the short form
PROMISED = 0.5  # seconds until audio survives SIGKILL, with the default settings
SLACK = 0.2  # seconds beside `flush_interval` until audio survives: the pool, the gate, a busy machine


def plan_in(room: Path, name: str) -> Plan:
    return Plan(data_dir=str(room / name), capture=SHORT)


def killed_at(room: Path, n: int) -> Scene:
    """Return a speaker that was killed before its `n`-th event, or came to its end before that."""
    with Scene(plan_in(room, f"{n:05}"), rule=gate.kill_at(n)) as scene:
        outcome = scene.finish()
    assert (outcome is None) == (scene.killed_at is not None), scene.errors
    return scene


def count_events(room: Path) -> int:
    """Return how many things a whole recording does to its disk."""
    with Scene(plan_in(room, "whole"), rule=gate.allow) as scene:
        assert scene.finish() is not None, scene.errors
    assert scene.gate is not None
    return len(scene.gate.passed)


def check(scene: Scene) -> None:
    """What is left is healed, whole and agrees with itself, and no audio of before the last flush is missing."""
    # Each way to heal has its turn: the next recorder's start, and the command.
    if scene.gate is not None and len(scene.gate.passed) % 2:
        with Recorder(scene.data_dir) as recorder, recorder.start_call(external_id="next"):
            pass  # its row is committed after the recovery of what was left
    evidence = Evidence(scene.data_dir)
    evidence.heal()
    evidence.check()
    evidence.check_nothing_to_heal()
    until = None
    if scene.killed_at is not None:
        until = scene.killed_at - SHORT["flush_interval"] - SLACK - 2 * scene.board.worst_lag
    missing = evidence.missing(scene.board, 0, tracks=scene.plan.tracks, until=until)
    assert not missing
    spans = [span for call_id in evidence.calls for span in evidence.spans(call_id, "gap")]
    assert all("died" in span["reason"] for span in spans), spans


def check_all(room: Path, points: Iterable[int]) -> None:
    """Kill at each of `points`, several at once, and check what each leaves."""
    with ThreadPoolExecutor(AT_ONCE) as speakers:
        for n, scene in zip(points, speakers.map(lambda n: killed_at(room, n), points), strict=True):
            try:
                check(scene)
            except AssertionError as error:
                last = [f"{event.name} {event.path}" for event in scene.gate.passed[-6:]] if scene.gate else []
                raise AssertionError(f"killed before event {n}, the last of {last}: {error}") from error


def test_sigkill_at_random_points_loses_nothing_flushed(room: Path, gated: None, dice: random.Random) -> None:
    """A recorder killed at any of a few points of its life leaves what heals, with all audio that was flushed."""
    whole = count_events(room)
    check_all(room, sorted(dice.sample(range(1, whole), SAMPLE)))


def test_sigkill_takes_no_more_than_half_a_second(room: Path, dice: random.Random) -> None:
    """With the default settings, audio handed over half a second before SIGKILL is there, whenever that comes."""
    with ExitStack() as stack:
        plans = [Plan(data_dir=str(room / f"{n}"), capture={}, calls=4, seconds=30.0) for n in range(3)]
        scenes = [stack.enter_context(Scene(plan)) for plan in plans]
        for scene, moment in zip(scenes, sorted(dice.uniform(0.6, 2.0) for _ in scenes), strict=True):
            scene.wait_until_said(moment)
            scene.kill()
    for scene in scenes:
        evidence = Evidence(scene.data_dir)
        evidence.heal()
        evidence.check()
        until = (scene.killed_at or 0.0) - PROMISED - 2 * scene.board.worst_lag
        for n in range(4):
            assert not evidence.missing(scene.board, n, tracks=scene.plan.tracks, until=until)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_sigkill_at_every_point_loses_nothing_flushed(room: Path, gated: None) -> None:
    """A recorder killed before each single change of its disk leaves what heals, until one lives to its end."""
    n = 1
    while True:
        points = range(n, n + 8 * AT_ONCE)
        check_all(room, points)
        n = points.stop
        if count_events(room) < n:
            return


@pytest.mark.faults
@pytest.mark.parametrize("name", ["openat", "write"])
def test_call_that_was_never_written_is_no_difference(room: Path, gated: None, name: str) -> None:
    """A recorder killed before it has written a call's first line leaves nothing that verify complains of."""
    with Scene(plan_in(room, "unborn"), rule=gate.kill_before(name, end=spool.JOURNAL)) as scene:
        assert scene.finish() is None
    evidence = Evidence(scene.data_dir)
    evidence.heal()
    verified = evidence.node.run("verify")
    assert verified.code == 0, verified.out

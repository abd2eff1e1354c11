"""A disk whose fsyncs take very long: callers notice nothing, and no sample is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from evidence import Evidence
from gate import SYNCS, Rule, delay
from scene import Scene
from speaker import Outcome, Plan

TRACKS = {"user": 8000, "assistant": 24000}
START = 1.0  # seconds until the calls have begun on a disk that is still quick


def stalled(room: Path, rule: Rule, *, name: str, calls: int, seconds: float, wait: float) -> Outcome:
    """Let `calls` speak for `seconds` on a disk that `rule` delays, check that nothing is lost, and say how it was."""
    plan = Plan(
        data_dir=str(room / name),
        capture={"segment_seconds": max(1, round(seconds / 3)), "late_window": 0.5},
        calls=calls,
        tracks=TRACKS,
        seconds=seconds,
        placed=False,
        end_wait=wait,
        close_wait=wait,
    )
    with Scene(plan, rule=rule) as scene:
        outcome = scene.finish(timeout=seconds + 2 * wait + 60)
    assert outcome is not None, scene.errors
    assert outcome.raised == []
    assert outcome.complete == [True] * calls, scene.errors
    evidence = Evidence(scene.data_dir)
    evidence.heal()
    evidence.check()
    for n in range(calls):
        assert evidence.is_all_said(scene.board, n, tracks=TRACKS)
    assert not [span for call_id in evidence.calls for span in evidence.spans(call_id, "gap", "late")]
    return outcome


def test_fsyncs_of_a_second_lose_nothing(room: Path, gated: None) -> None:
    """20 calls on a disk whose fsyncs take a second each for a while lose no sample."""
    stalled(room, delay(SYNCS, 1.0, after=START, during=1.0), name="data", calls=20, seconds=2.0, wait=30.0)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_disk_that_stalls_for_twenty_seconds_loses_nothing(
    room: Path, gated: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 calls on a disk that answers no fsync for 20 s lose no sample; the times of write() are shown."""
    rules = {"quick": delay(SYNCS, 0.0), "stalled": delay(SYNCS, 20.0, after=5.0, during=10.0)}
    for name, rule in rules.items():
        outcome = stalled(room, rule, name=name, calls=100, seconds=40.0, wait=120.0)
        times = (outcome.write_p50, outcome.write_p999, outcome.write_max)
        p50, p999, longest = (round(second * 1e6) for second in times)
        with capsys.disabled():
            sys.stdout.write(f"\nwrite(), {name} disk: p50 {p50} µs, p99.9 {p999} µs, longest {longest} µs\n")


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_disk_that_is_always_slow_loses_nothing(room: Path, gated: None) -> None:
    """100 calls on a disk whose every fsync takes 5 s, once they have begun, lose no sample."""
    stalled(room, delay(SYNCS, 5.0, after=START), name="data", calls=100, seconds=30.0, wait=600.0)

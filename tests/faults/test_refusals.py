"""EIO and ENOSPC from each kind of call that a recorder makes to its disk: once, for a while, and for ever."""

from __future__ import annotations

import errno
import math
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from evidence import Evidence
from gate import CALLS, SYNCS, WRITES, Refusal
from scene import SHORT, Scene
from speaker import Outcome, Plan

AT_ONCE = 6
SAMPLE = 4  # kinds in the short form
SLACK = 0.2  # as at SIGKILL
QUEUE = 0.3  # seconds that a call may wait for a disk before it is a gap
WHILE = 0.6  # seconds: longer than that, and shorter than the call

KINDS = {
    "write": WRITES,
    "sync": SYNCS,
    "open": {"openat"},
    "truncate": {"ftruncate", "fallocate"},
    "rename": {"rename", "renameat", "renameat2"},
    "any": set(CALLS),
}
ERRORS = (errno.EIO, errno.ENOSPC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One refusal: from the `first` call of `kind` on, for `seconds` (0: that one only)."""

    kind: str
    number: int
    first: int = 1
    seconds: float = 0.0
    begin: str = "spool/"

    def __str__(self) -> str:
        span = f"for {self.seconds} s from" if self.seconds else "at"
        return f"{errno.errorcode[self.number]} {span} {self.kind} {self.first} on {self.begin}"


def befallen(room: Path, case: Case) -> tuple[Scene, Refusal, Outcome]:
    """Return a speaker that ran while the disk refused."""
    rule = Refusal(KINDS[case.kind], case.number, begin=case.begin, first=case.first, seconds=case.seconds)
    name = str(case).translate({ord(" "): "-", ord("/"): None})
    for_ever = math.isinf(case.seconds)
    plan = Plan(
        data_dir=str(room / name),
        capture=SHORT | {"queue_seconds": QUEUE if case.seconds else 30.0},
        end_wait=1.5 if for_ever else 20.0,
    )
    with Scene(plan, rule=rule) as scene:
        outcome = scene.finish()
    assert outcome is not None, f"{case}: the process died: {scene.errors}"
    return scene, rule, outcome


def check(case: Case, scene: Scene, rule: Refusal, outcome: Outcome) -> None:
    """The call went on, and each sample is in a sealed file or named by a span."""
    assert outcome.raised == []
    assert outcome.closed
    assert outcome.leaked == []
    evidence = Evidence(scene.data_dir)
    evidence.heal()
    evidence.check()
    until = None
    if math.isinf(case.seconds):  # what came then was never on disk, and there is no place left to say so
        assert outcome.complete != [True]
        until = rule.refused[0].at - SHORT["flush_interval"] - SLACK - scene.board.worst_lag
    else:
        assert outcome.complete == outcome.flushed == [True], scene.errors
    assert not evidence.missing(scene.board, 0, tracks=scene.plan.tracks, until=until)
    if not case.seconds:
        gaps = [dict(span) for call_id in evidence.calls for span in evidence.spans(call_id, "gap")]
        assert not gaps, "one refusal lost audio"
    elif rule.refused:
        assert "ERROR" in scene.errors, "nobody was told"
    check_disbelief(scene, rule)


def check_disbelief(scene: Scene, rule: Refusal) -> None:
    """No file that an fsync failed on became a segment: the kernel may have dropped what was in it, and tells once."""
    assert scene.gate is not None
    doubted = {event.path: event.at for event in rule.refused if event.name in SYNCS and event.path.endswith(".part")}
    named = [event for event in scene.gate.passed if event.name in KINDS["rename"] and event not in rule.refused]
    believed = [event for event in named if event.at > doubted.get(event.path, math.inf)]
    assert not believed, "a failed fsync was believed"


def check_all(room: Path, cases: Sequence[Case]) -> list[Refusal]:
    """Let each of `cases` befall a speaker, several at once, and check what it leaves."""
    rules = []
    with ThreadPoolExecutor(AT_ONCE) as speakers:
        for case, (scene, rule, outcome) in zip(
            cases, speakers.map(lambda case: befallen(room, case), cases), strict=True
        ):
            try:
                check(case, scene, rule, outcome)
            except AssertionError as error:
                raise AssertionError(f"{case}: {error}\n{scene.errors}") from error
            rules.append(rule)
    return rules


def points(dice: random.Random, *, seconds: float = 0.0) -> Iterable[Case]:
    """Return one case each of some kinds, at a random time of the call."""
    most = {"write": 200, "sync": 40, "open": 6, "truncate": 6, "rename": 3, "any": 250}
    for kind in dice.sample(sorted(most), SAMPLE):
        yield Case(kind=kind, number=dice.choice(ERRORS), first=dice.randint(1, most[kind]), seconds=seconds)


def test_one_refusal_loses_nothing(room: Path, gated: None, dice: random.Random) -> None:
    """A single EIO or ENOSPC of any kind, at any time, on a call's files or the catalog's, costs no call a sample."""
    catalog = [Case(kind="any", number=number, first=dice.randint(1, 60), begin="catalog.db") for number in ERRORS]
    check_all(room, [*points(dice), *catalog])


def test_disk_that_refuses_for_a_while_leaves_audio_or_gaps(room: Path, gated: None, dice: random.Random) -> None:
    """A disk that refuses for longer than the queue leaves a complete call, each sample recorded or in a gap."""
    check_all(room, list(points(dice, seconds=WHILE)))


def test_disk_that_refuses_for_ever_is_no_success(room: Path, gated: None, dice: random.Random) -> None:
    """A disk that never comes back is survived: no end and no flush succeeds, and what was on disk before is there."""
    check_all(
        room,
        [
            Case(kind=kind, number=dice.choice(ERRORS), first=dice.randint(1, 20), seconds=math.inf)
            for kind in dice.sample(("write", "sync", "any"), 2)
        ],
    )


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"any"}))
@pytest.mark.parametrize("seconds", [0.0, WHILE])
def test_refusal_at_every_point(room: Path, gated: None, kind: str, seconds: float) -> None:
    """Each single call of a kind is refused, alone or as the first of many, until a call ends before it."""
    step = 1 if not seconds else 5
    first = 1
    while True:
        cases = [
            Case(kind=kind, number=ERRORS[n % 2], first=n, seconds=seconds)
            for n in range(first, first + 8 * step, step)
        ]
        if not all(rule.refused for rule in check_all(room, cases)):
            return
        first += 8 * step

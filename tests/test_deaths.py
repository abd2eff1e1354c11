"""Any way to die, of a recorder and of its recovery: each sample that was on disk is heard once."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from wrecks import STARTED, Wreck, check_files, copy_part, heard, killed_call, mend, mixed, noise, start_of, total

from edge_recorder import durable, journal, model, spool
from edge_recorder.mending import Mending
from edge_recorder.model import MIXED, Segment


def test_crash_within_mending_changes_nothing_in_the_end(data_dir: Path, tmp_path: Path) -> None:
    """Mending that is cut short before any step on the disk, and done again, comes to what it comes to at once."""
    wreck = killed_call(data_dir)
    copy_part(wreck.parts("user")[-1], seq=40, frames=1000)
    whole = shutil.copytree(wreck.directory, tmp_path / "whole")
    steps = count_steps(lambda: mend(whole, tmp_path))
    expected = outcome(whole)
    assert steps > 20
    for n in range(steps):
        left = shutil.copytree(wreck.directory, tmp_path / f"cut-{n}")
        with pytest.raises(KeyboardInterrupt), dying_at(n):
            mend(left, tmp_path / f"data-{n}")
        mend(left, tmp_path / f"data-{n}")
        assert outcome(left) == expected, n
        assert np.array_equal(heard(left, "user"), wreck.truth["user"]), n
        assert np.array_equal(mixed(left), total(wreck)), n


def outcome(directory: Path) -> set[tuple[object, ...]]:
    """Return what the journal says of the audio; who made a mix is no matter."""
    found: set[tuple[object, ...]] = set()
    for fact in journal.read(directory / spool.JOURNAL).facts.values():
        if isinstance(fact, Segment):
            salvaged = fact.salvaged or fact.track == MIXED
            found.add((fact.track, fact.first_sample, fact.frames, fact.pcm_sha256, salvaged))
        elif isinstance(fact, model.Span):
            found.add((fact.kind, fact.track, fact.start_s, fact.end_s, fact.reason))
        elif isinstance(fact, model.Call):
            found.add((fact.state, fact.duration_s, fact.tracks))
    return found


def count_steps(work: Callable[[], object]) -> int:
    with dying_at(-1) as steps:
        work()
    return steps[0]


@contextmanager
def dying_at(n: int) -> Iterator[list[int]]:
    """Die before the `n`-th step on the disk, counted from 0. What is not caught is as good as a crash."""
    steps = [0]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            steps[0] += 1
            if steps[0] == n + 1:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_all", "sync_data", "fsync_dir"):
            patch.setattr(durable, name, counted(getattr(durable, name)))
        for name in ("rename", "unlink"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        yield steps


@examples(max_examples=40)
@given(data=st.data())
def test_journal_torn_anywhere_leaves_all_audio(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """With its journal cut off at any byte, or gone, each sample of a call is still heard once on its track."""
    wreck = torn_wreck(tmp_path_factory)
    directory = shutil.copytree(wreck.directory, tmp_path_factory.mktemp("torn") / wreck.call_id)
    path = directory / spool.JOURNAL
    os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))
    mending = Mending(directory, directory.parent, start_of(wreck), lambda: STARTED)
    mending.mend()
    check_files(mending, directory)
    for track, truth in wreck.truth.items():
        assert np.array_equal(heard(directory, track), truth)
    assert np.array_equal(mixed(directory), total(wreck))
    shutil.rmtree(directory.parent)


_torn: list[Wreck] = []


def torn_wreck(factory: pytest.TempPathFactory) -> Wreck:
    """Return a call with late audio, made once."""
    if not _torn:
        wreck = Wreck(factory.mktemp("wreck"), "user", "assistant")
        _torn.append(wreck)
        for n in range(8):
            wreck.write("user", noise(0.3, n), at=n * 0.4)
            wreck.write("assistant", noise(0.4, 50 + n), at=n * 0.4)
            wreck.step(n * 0.4 + 0.4)
            wreck.sync(2)
        wreck.write("user", noise(0.1, 99), at=0.3)
        wreck.step(3.25)
        wreck.kill()
    return _torn[0]


@examples(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_any_call_killed_anywhere_is_heard_once(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Whatever came in what order, late, synced, copied or not: the tracks have each sample once, as has the mix."""
    dice = random.Random(seed)
    failing = dice.choice([0, 0, 0.1, 0.4])  # of the fsyncs
    data_dir = tmp_path_factory.mktemp("any")
    wreck = Wreck(data_dir, "user", "assistant")
    free = {(track, n) for track in wreck.truth for n in range(40)}  # places of 0.1 s
    for step in range(dice.randint(1, 40)):
        reach = [place for place in sorted(free) if place[1] <= step]
        for track, n in dice.sample(reach, min(len(reach), dice.choice([0, 1, 2, 3]))):
            free.remove((track, n))
            wreck.write(track, noise(0.1, seed % 1000 + n), at=n / 10)
        wreck.step((step + 1) / 10)
        wreck.sync(dice.choice([0, 0, 1, 3]), failing=lambda: dice.random() < failing)
    wreck.kill()
    mending = mend(wreck.directory, data_dir)
    check_files(mending, wreck.directory)
    for track, truth in wreck.truth.items():
        assert np.array_equal(heard(wreck.directory, track), truth)
    if not failing:  # a mix whose fsyncs fail may be sealed after the mix of what came later, and then has both
        assert np.array_equal(mixed(wreck.directory), total(wreck))
    shutil.rmtree(data_dir)

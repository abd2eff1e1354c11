"""When nothing is kept: several causes at once, and speech that arrives after the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_recorder.muting import GUARD, REMEMBERED, Mutes

SECOND = 1_000_000_000


@pytest.fixture
def mutes() -> Mutes:
    return Mutes()


def muted(mutes: Mutes, since: float, until: float, *, cause: str = "pause") -> None:
    assert mutes.begin(cause, round(since * SECOND))
    assert mutes.end(cause, round(until * SECOND))


def covers(mutes: Mutes, first: float, end: float) -> bool:
    return mutes.cover(round(first * SECOND), round(end * SECOND))


def test_without_a_cause_everything_is_kept(mutes: Mutes) -> None:
    """At first nothing is covered, and there is nothing to ask."""
    assert not mutes
    assert not mutes.cover_arrival(0)
    assert not mutes.cover_arrival(None)
    assert not covers(mutes, 0, 1)


def test_causes_are_begun_and_ended_once(mutes: Mutes) -> None:
    """A cause that lasts does not begin again, and one that does not last does not end."""
    assert mutes.begin("pause", 0)
    assert not mutes.begin("pause", 5)
    assert mutes.end("pause", 9)
    assert not mutes.end("pause", 9)
    assert not mutes.end("consent", 9)


def test_arrivals_are_covered_until_the_guard_is_over(mutes: Mutes) -> None:
    """What arrives up to 0.5 s after the end was spoken before it; what arrived before the beginning is kept."""
    muted(mutes, 1, 2)
    assert not mutes.cover_arrival(SECOND - 1)
    assert mutes.cover_arrival(SECOND)
    assert mutes.cover_arrival(2 * SECOND + GUARD - 1)
    assert not mutes.cover_arrival(2 * SECOND + GUARD)


def test_while_a_cause_lasts_every_arrival_is_covered(mutes: Mutes) -> None:
    """Whoever was a moment too slow to be first does not slip through."""
    mutes.begin("pause", SECOND)
    assert mutes.cover_arrival(SECOND - 1)
    assert mutes.cover_arrival(None)


def test_without_a_clock_there_is_no_guard(mutes: Mutes) -> None:
    """Where audio moves time, what comes after the end is kept at once."""
    muted(mutes, 1, 2)
    assert not mutes.cover_arrival(None)


def test_places_are_covered_exactly(mutes: Mutes) -> None:
    """Audio that knows its place is dropped only if all of it lies in one span; the timeline cuts the rest."""
    muted(mutes, 1, 2)
    assert covers(mutes, 1, 2)
    assert covers(mutes, 1.2, 1.5)
    assert not covers(mutes, 0.9, 1.5)
    assert not covers(mutes, 1.5, 2.1)
    mutes.begin("pause", 5 * SECOND)
    assert covers(mutes, 5, 60)
    assert not covers(mutes, 4.9, 60)


def test_causes_at_once_are_one_span(mutes: Mutes) -> None:
    """Nothing is kept from the first cause's beginning to the last one's end."""
    mutes.begin("pause", SECOND)
    mutes.begin("consent", 2 * SECOND)
    mutes.end("pause", 3 * SECOND)
    assert mutes.cover_arrival(10 * SECOND)
    mutes.end("consent", 4 * SECOND)
    assert covers(mutes, 1, 4)
    assert not mutes.cover_arrival(4 * SECOND + GUARD)


def test_spans_remembered_are_bounded(mutes: Mutes) -> None:
    """Of many spans the latest are remembered; what is older is for the timeline to cut."""
    for n in range(REMEMBERED + 1):
        muted(mutes, 10 * n, 10 * n + 1)
    assert mutes
    assert not covers(mutes, 0, 1)
    assert covers(mutes, 10, 11)


@given(
    moves=st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(1, 9)), max_size=20),
    asked=st.integers(0, 200),
)
def test_covered_is_what_lies_in_any_cause(moves: list[tuple[str, bool, int]], asked: int) -> None:
    """Whatever begins and ends in whatever order, an instant is covered exactly while a cause lasts."""
    mutes, now = Mutes(), 0
    lasting: set[str] = set()
    covered: set[int] = set()
    for cause, begins, later in moves:
        covered |= set(range(now, now + later)) if lasting else set()
        now += later
        if begins:
            assert mutes.begin(cause, now) == (cause not in lasting)
            lasting.add(cause)
        else:
            assert mutes.end(cause, now) == (cause in lasting)
            lasting.discard(cause)
    covered |= set(range(now, 300)) if lasting else set()
    assert mutes.cover(asked, asked + 1) == (asked in covered)

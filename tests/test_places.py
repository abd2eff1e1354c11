"""Which places are taken: ranges that stand for a set of samples, and a bound on how many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_recorder.places import RANGES, Places, clipped, joined


def test_remembered_ranges_are_bounded() -> None:
    """Of a track in shreds the latest places are remembered, and what is before them takes nothing more."""
    places = Places()
    for n in range(RANGES + 10):
        places.take(n * 100, n * 100 + 8)
    assert places.take(250, 330) == ([], [(250, 330)])
    first = (RANGES + 5) * 100
    assert places.take(first - 50, first + 30) == ([(first - 50, first), (first + 8, first + 30)], [(first, first + 8)])


@given(ranges=st.lists(st.tuples(st.booleans(), st.integers(-20, 200), st.integers(1, 40)), max_size=40))
def test_places_are_a_set_of_samples(ranges: list[tuple[bool, int, int]]) -> None:
    """Taking and vacating ranges does what taking and vacating each of their samples does."""
    places, taken = Places(), set(range(-50, 0))
    for takes, first, frames in ranges:
        samples = set(range(first, first + frames))
        if takes:
            free, late = places.take(first, first + frames)
            assert samples - taken == {n for a, b in free for n in range(a, b)}
            assert samples & taken == {n for a, b in late for n in range(a, b)}
            taken |= samples
        elif first >= 0:
            end = places.vacate(first, first + frames)
            taken -= samples
            assert end == max(taken) + 1 or (max(taken) < 0 and end == first)


def test_joined_ranges_touch_no_more() -> None:
    """Ranges that touch or overlap are one."""
    assert joined([(0, 2), (2, 3), (5, 9), (6, 7)]) == [(0, 3), (5, 9)]


def test_clipped_ranges_lie_between() -> None:
    """Of ranges, what lies between two samples."""
    assert clipped([(0, 2), (4, 9), (10, 12)], 1, 10) == [(1, 2), (4, 9)]

"""Error classes, waiting and the breaker."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_recorder.errors import Exit
from sync.retry import Breaker, ErrorClass, State, SyncError, full_jitter

AWAY = SyncError("away", error_class=ErrorClass.TRANSIENT)


@given(attempt=st.integers(1, 10**9), luck=st.floats(0, 1, exclude_max=True))
def test_jitter_is_within_the_cap(attempt: int, luck: float) -> None:
    """No wait is longer than the cap, however often it failed."""
    assert 0 <= full_jitter(attempt, base=1.0, cap=900.0, random=lambda: luck) <= 900


def test_jitter_comes_after_the_cap() -> None:
    """Waits double up to the cap, and at the cap they still differ."""
    assert [full_jitter(n, base=1.0, cap=900.0, random=lambda: 1.0) for n in (1, 2, 3, 12)] == [1, 2, 4, 900]
    assert full_jitter(50, base=1.0, cap=900.0, random=lambda: 0.5) == 450


def test_breaker_opens_tries_and_closes() -> None:
    """A failure opens it, its time makes it half-open, a further failure opens it for longer, a success closes it."""
    breaker = Breaker()
    assert breaker.state(100) is State.CLOSED
    breaker = breaker.failed(AWAY, now=100, random=lambda: 1.0)
    assert [breaker.state(now) for now in (100, 100.9, 101)] == [State.OPEN, State.OPEN, State.HALF_OPEN]
    breaker = breaker.failed(AWAY, now=101, random=lambda: 1.0)
    assert (breaker.retry_at, breaker.failures, breaker.reason) == (103, 2, "away")
    assert breaker.succeeded() == Breaker()


def test_destination_may_ask_for_more() -> None:
    """A wait that the destination named is the least one."""
    throttled = SyncError("slow down", error_class=ErrorClass.THROTTLE, retry_after=60)
    assert Breaker().failed(throttled, now=0, random=lambda: 0.5).wait == 60


def test_clock_set_back_does_not_hold_it_open() -> None:
    """A clock that was set back by a day lets it try at once."""
    breaker = Breaker().failed(AWAY, now=86_400, random=lambda: 1.0)
    assert breaker.state(0) is State.HALF_OPEN


def test_breaker_outlives_a_pass() -> None:
    """A breaker comes back from JSON as it was."""
    breaker = Breaker().failed(AWAY, now=100.5, random=lambda: 0.3)
    assert Breaker.from_dict(json.loads(json.dumps(breaker.to_dict()))) == breaker


@pytest.mark.parametrize("error_class", ErrorClass)
def test_who_waits(error_class: ErrorClass) -> None:
    """Conflicts and items count against the item; all else pauses the destination. Access has its own exit code."""
    assert error_class.pauses is (error_class not in {"conflict", "item"})
    code = SyncError("x", error_class=error_class).exit_code
    assert code == (Exit.ACCESS if error_class is ErrorClass.AUTH else Exit.FAILED)

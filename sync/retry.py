"""
What went wrong and when to try again.

An error gets its class where it is born. The first five classes mean the destination: its `Breaker` opens and all that
is for it waits. The last two mean the item, and count against it.

    closed --failure--> open --its time has come--> half-open --failure--> open (for longer)
       ^                                                |
       +--------------------- success ------------------+

A breaker is a value: it knows no clock and no randomness, and outlives a pass as a row of `agent_state`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from edge_recorder.errors import EdgeRecorderError, Exit

BASE = 1.0  # seconds that the first wait is at most
CAP = 900.0  # seconds that any wait is at most

_MAX_EXPONENT = 64  # beyond it every wait is the cap; a float would overflow at 1024


class ErrorClass(StrEnum):
    """What an error means for what comes next."""

    TRANSIENT = "transient"  # the destination is away or busy
    THROTTLE = "throttle"  # the destination asks for less
    AUTH = "auth"  # the destination refuses us until a person changes something there or here
    CLOCK = "clock"  # our clock is wrong
    LOCAL = "local"  # our own disk, memory or catalog
    CONFLICT = "conflict"  # the destination holds something else under the item's name
    ITEM = "item"  # this one item is refused

    @property
    def pauses(self) -> bool:
        """Whether everything for the destination waits, rather than this item alone."""
        return self not in {ErrorClass.CONFLICT, ErrorClass.ITEM}


class SyncError(EdgeRecorderError):
    """Something could not be brought to its destination; `error_class` says whose fault that is."""

    def __init__(
        self,
        message: str,
        *,
        error_class: ErrorClass,
        fix: str = "",
        retry_after: float | None = None,
        code: str = "",
        nothing_stored: bool = False,
    ) -> None:
        super().__init__(message, fix=fix)
        self.error_class = error_class
        self.retry_after = retry_after  # seconds, where the destination named them
        self.code = code  # the destination's own name of the error: an SQLSTATE, an S3 error code
        self.nothing_stored = nothing_stored  # proven: the request was refused as a whole, or never sent
        if error_class is ErrorClass.AUTH:
            self.exit_code = Exit.ACCESS


def full_jitter(attempt: int, *, base: float, cap: float, random: Callable[[], float]) -> float:
    """Return the seconds to wait after failure number `attempt` (from 1).

    The jitter comes after the cap, or a thousand nodes that all wait the longest would come back together.
    """
    return random() * min(cap, base * 2.0 ** min(attempt - 1, _MAX_EXPONENT))


class State(StrEnum):
    """What a breaker lets through."""

    CLOSED = "closed"  # everything
    OPEN = "open"  # nothing
    HALF_OPEN = "half_open"  # one try


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """What is known of one destination's health. Times are seconds since 1970."""

    failures: int = 0  # in a row; only a success resets it
    opened_at: float = 0.0
    wait: float = 0.0
    error_class: str = ""
    access: bool = False  # whether the failure is one of credentials or permission
    reason: str = ""

    def state(self, now: float) -> State:
        if self.failures == 0:
            return State.CLOSED
        # A clock that was set back must not keep a breaker open for the difference.
        return State.OPEN if self.opened_at <= now < self.retry_at else State.HALF_OPEN

    @property
    def retry_at(self) -> float:
        return self.opened_at + self.wait

    def failed(
        self, error: SyncError, *, now: float, random: Callable[[], float], base: float = BASE, cap: float = CAP
    ) -> Self:
        """Return the breaker after `error`; a wait that the destination named is the least one."""
        wait = full_jitter(self.failures + 1, base=base, cap=cap, random=random)
        return type(self)(
            failures=self.failures + 1,
            opened_at=now,
            wait=max(wait, error.retry_after or 0.0),
            error_class=error.error_class,
            access=error.exit_code is Exit.ACCESS,
            reason=str(error),
        )

    def succeeded(self) -> Self:
        return type(self)()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        return cls(**saved)

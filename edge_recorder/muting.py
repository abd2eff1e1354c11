"""When nothing of a call is kept: for a pause, for want of consent, or for both at once."""

from __future__ import annotations

from collections import deque

from edge_recorder.timeline import NANOSECONDS

GUARD = int(0.5 * NANOSECONDS)  # speech that arrives so long after the end was spoken before it
REMEMBERED = 64  # spans; audio older than those is cut by the timeline


class Mutes:
    """The spans, in nanoseconds of the call, of which nothing is kept."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}  # cause -> since when
        self._since = 0  # when the first of those that last began
        self._closed: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)

    def __bool__(self) -> bool:
        return bool(self._open or self._closed)

    def begin(self, cause: str, at: int) -> bool:
        """Let `cause` begin. False where it lasts already."""
        if cause in self._open:
            return False
        if not self._open:
            self._since = at
        self._open[cause] = at
        return True

    def end(self, cause: str, at: int) -> bool:
        """Let `cause` end. False where it does not last."""
        if self._open.pop(cause, None) is None:
            return False
        if not self._open:
            self._closed.append((self._since, at))
        return True

    def cover_arrival(self, arrived: int | None) -> bool:
        """Say whether what arrived then must not be kept; None asks for now, where no clock counts."""
        if self._open or arrived is None:
            return bool(self._open)
        return any(since <= arrived < until + GUARD for since, until in self._closed)

    def cover(self, first: int, end: int) -> bool:
        """Say whether nothing between two instants is to be kept."""
        lasting = [(self._since, end)] if self._open else []
        return any(since <= first and end <= until for since, until in [*self._closed, *lasting])

"""Which places of a track are taken, and which are free. Pure, and bounded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

RANGES = 4096  # that are remembered; what is older than those takes nothing more

FOREVER = 1 << 62

Range = tuple[int, int]  # samples: first, end


class Places:
    """The places of one track."""

    def __init__(self) -> None:
        self._taken: list[Range] = []  # in order, apart
        self._out_of_sight = 0  # before this, what is taken is no longer remembered

    def take(self, start: int, end: int) -> tuple[list[Range], list[Range]]:
        """Take what is free of a range. Returns that, and what was taken before."""
        if self._taken and self._taken[-1][1] == start < end:  # a steady stream stays one range
            self._taken[-1] = (self._taken[-1][0], end)
            return [(start, end)], []
        free, late = self._split(start, end)
        for first, last in free:
            self._occupy(first, last)
        return free, late

    def vacate(self, first: int, end: int) -> int:
        """Make a range free again. Returns where what is taken ends now."""
        self._taken = [
            part
            for taken in self._taken
            for part in ((taken[0], min(taken[1], first)), (max(taken[0], end), taken[1]))
            if part[0] < part[1]
        ]
        return self._taken[-1][1] if self._taken else first

    def _split(self, start: int, end: int) -> tuple[list[Range], list[Range]]:
        """Return the parts of a range that are free, and those that are taken."""
        free: list[Range] = []
        taken: list[Range] = []
        near = max(0, bisect_left(self._taken, (start, start)) - 1)
        for first, last in [(min(start, 0), self._out_of_sight), *self._taken[near:]]:
            if first >= end:
                break
            if last <= start:
                continue
            if first > start:
                free.append((start, first))
            taken.append((max(first, start), min(last, end)))
            start = min(last, end)
        if start < end:
            free.append((start, end))
        return free, taken

    def _occupy(self, first: int, end: int) -> None:
        """Take a free range, joined to its neighbours."""
        n = bisect_left(self._taken, (first, end))
        if n < len(self._taken) and self._taken[n][0] == end:
            end = self._taken.pop(n)[1]
        if n and self._taken[n - 1][1] == first:
            self._taken[n - 1] = (self._taken[n - 1][0], end)
        else:
            self._taken.insert(n, (first, end))
        if len(self._taken) > RANGES:
            self._out_of_sight = self._taken.pop(0)[1]


def joined(ranges: list[Range]) -> list[Range]:
    """Return ordered `ranges` with those that touch made one."""
    whole: list[Range] = []
    for first, end in ranges:
        if whole and whole[-1][1] >= first:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((first, end))
    return whole


def clipped(ranges: Iterable[Range], first: int, end: int) -> list[Range]:
    """Return what of `ranges` lies between two samples."""
    return [part for a, b in ranges if (part := (max(a, first), min(b, end)))[0] < part[1]]

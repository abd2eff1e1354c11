"""What goes from a call's handle to the recorder's thread at one time, and the bytes that all of them may queue."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from edge_recorder.items import Ending, Item
from edge_recorder.pending import Pending


@dataclass(slots=True)
class Handover:
    """What the recorder's thread takes from a call at one time."""

    now: int  # nanoseconds from the call's start: all that comes later was handed over later
    items: list[Item]
    flushes: list[Pending[None]]
    drains: list[Pending[None]]
    ending: Ending | None


class Budget:
    """The bytes of audio that all calls of a recorder may queue."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        return self._used

    def take(self, size: int) -> bool:
        with self._lock:
            if self._used + size > self._limit:
                return False
            self._used += size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._used -= size

"""What a host wants to hear of: its own functions, on the recorder's thread. One that raises is logged and counted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from edge_recorder.model import Segment, Span

log = logging.getLogger("edge_recorder")

OnSegment = Callable[[Segment], object]
OnGap = Callable[[Span], object]
OnError = Callable[[Exception], object]


class Hooks:
    """The hooks of one recorder. `failures` counts those that raised."""

    def __init__(
        self, *, on_segment: OnSegment | None = None, on_gap: OnGap | None = None, on_error: OnError | None = None
    ) -> None:
        self.failures = 0
        self._hooks: dict[str, Callable[[Any], object] | None] = {
            "on_segment": on_segment,
            "on_gap": on_gap,
            "on_error": on_error,
        }
        self._failing: set[str] = set()
        self._lock = threading.Lock()

    def segment(self, segment: Segment) -> None:
        """Tell that a segment is sealed."""
        self._call("on_segment", segment)

    def gap(self, span: Span) -> None:
        """Tell that audio could not be recorded."""
        self._call("on_gap", span)

    def error(self, error: Exception) -> None:
        """Tell of an error that no caller was told of."""
        self._call("on_error", error)

    def _call(self, name: str, value: object) -> None:
        hook = self._hooks[name]
        if hook is None:
            return
        try:
            hook(value)
        except BaseException:  # a SystemExit too: it would end the recorder, and every call with it
            with self._lock:
                self.failures += 1
            if name not in self._failing:  # once until it works again
                log.exception("the hook %s raised, which changes nothing for the recording", name)
            self._failing.add(name)
        else:
            self._failing.discard(name)

"""Work that the recorder does for a caller, who may wait for it in any event loop, in any thread, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Generic, TypeVar

from edge_recorder.errors import EdgeRecorderError

T = TypeVar("T")


class Pending(Generic[T]):
    """Work that the recorder does: awaitable in any event loop, and `result(timeout)` waits in any thread.

    Cancelling an await, or a timeout, never cancels the work.
    """

    def __init__(self) -> None:
        self._future: Future[T] = Future()
        self._future.set_running_or_notify_cancel()

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout: float | None = None) -> T:
        """Wait up to `timeout` seconds.

        Raises:
            TimeoutError: It is not done yet; it goes on.
        """
        return self._future.result(timeout)

    def done(self) -> bool:
        return self._future.done()

    def settle(self, value: T) -> None:
        """Give the result. The recorder's own."""
        with suppress(InvalidStateError):  # a caller's thread and the recorder's may both answer, at once
            self._future.set_result(value)

    def fail(self, error: EdgeRecorderError) -> None:
        """Give an error instead. The recorder's own."""
        with suppress(InvalidStateError):
            self._future.set_exception(error)

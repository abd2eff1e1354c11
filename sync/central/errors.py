"""How the centre can refuse a node as a whole. Kept apart from the client, so that naming these loads no psycopg."""

from __future__ import annotations

from edge_recorder.errors import Exit
from sync.retry import ErrorClass, SyncError


class Diverged(SyncError):
    """The centre and this catalog do not continue each other: one was restored, or the epoch is unknown there."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message, error_class=ErrorClass.CONFLICT, fix="The agent reseeds under a new epoch", code="RE001"
        )


class Superseded(SyncError):
    """A newer catalog of this node has spoken: this one is a clone."""

    def __init__(self, node_id: str, since: str) -> None:
        super().__init__(
            f"the centre refuses this catalog: another one speaks for node {node_id} since {since}",
            error_class=ErrorClass.AUTH,
            fix="Two machines run one data_dir or a copy of it: stop one, and give it a data_dir of its own",
        )
        self.exit_code = Exit.FAILED


class IncompatibleCentre(SyncError):
    """The centre's schema is missing, older than what is asked of it, or newer than this release."""

    def __init__(self, message: str, *, fix: str = "Run `edge-recorder central migrate`", code: str = "") -> None:
        super().__init__(message, error_class=ErrorClass.AUTH, fix=fix, code=code)
        self.exit_code = Exit.FAILED

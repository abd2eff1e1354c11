"""
Records calls on local disk first: audio as segments, facts in a journal and a SQLite catalog. No network, ever.

    from edge_recorder import Recorder

    with Recorder("data") as recorder, recorder.start_call(tracks={"user": 8000}) as call:
        call.write("user", pcm)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edge_recorder.errors import (
    CallEnded,
    CallerError,
    CatalogBroken,
    CatalogBusy,
    DataDirError,
    EdgeRecorderError,
    IntegrityMismatch,
    InvalidAudio,
    LockHeld,
    NoCatalog,
    NoSuchCall,
    RecorderClosed,
    SettingsError,
    UnknownTrack,
    UnsafeRuntime,
)

if TYPE_CHECKING:
    from edge_recorder.call import Call
    from edge_recorder.pending import Pending
    from edge_recorder.recorder import Recorder
    from edge_recorder.settings import Settings
    from edge_recorder.stats import CallStats, CallSummary, RecorderStats

__all__ = [
    "Call",
    "CallEnded",
    "CallStats",
    "CallSummary",
    "CallerError",
    "CatalogBroken",
    "CatalogBusy",
    "DataDirError",
    "EdgeRecorderError",
    "IntegrityMismatch",
    "InvalidAudio",
    "LockHeld",
    "NoCatalog",
    "NoSuchCall",
    "Pending",
    "Recorder",
    "RecorderClosed",
    "RecorderStats",
    "Settings",
    "SettingsError",
    "UnknownTrack",
    "UnsafeRuntime",
]

# Loaded at their first use: an agent with nothing to do must not pay for numpy and all of capture.
_WHERE = {
    "Call": "edge_recorder.call",
    "CallStats": "edge_recorder.stats",
    "CallSummary": "edge_recorder.stats",
    "Pending": "edge_recorder.pending",
    "Recorder": "edge_recorder.recorder",
    "RecorderStats": "edge_recorder.stats",
    "Settings": "edge_recorder.settings",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)

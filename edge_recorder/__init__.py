"""
Records calls on local disk first: audio as segments, facts in a journal and a SQLite catalog. No network, ever.

    from edge_recorder import Recorder

    with Recorder("data") as recorder, recorder.start_call(tracks={"user": 8000}) as call:
        call.write("user", pcm)
"""

from edge_recorder.call import Call, CallSummary, Pending
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
from edge_recorder.recorder import Recorder
from edge_recorder.settings import Settings

__all__ = [
    "Call",
    "CallEnded",
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
    "Settings",
    "SettingsError",
    "UnknownTrack",
    "UnsafeRuntime",
]

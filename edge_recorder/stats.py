"""What a call came to, and how calls and recorders stand now."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSummary:
    """What became of a call. `complete` says that all of it is on disk; if not, the next start salvages the rest."""

    call_id: str
    state: str
    duration_s: float | None
    segments: int
    gap_s: float  # of all tracks that could not be recorded
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStats:
    """How a call stands now."""

    elapsed_s: float  # by the clock, from its start to now, or to its end
    queued_s: float  # of audio handed over and not taken yet, of the track with most of it
    queued_bytes: int
    untaken_s: float  # since the recorder last took what was handed over
    unsynced_s: float  # of audio that power loss would take, of the track with most of it
    lost_s: float  # of all tracks that the queue had no room for
    gap_s: float  # of all tracks that were not recorded, for whatever reason
    segments: int  # sealed
    spans: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderStats:
    """How a recorder stands now."""

    calls: int  # being recorded
    queued_bytes: int  # of audio that all calls may have handed over and that was not taken yet, at most
    disk_failing: bool
    has_room: bool  # the disk is above disk.low_water
    hook_failures: int

"""What callers hand over, in order: the items between a call's handle and its tape. Instants are in nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from edge_recorder import model
from edge_recorder.timeline import NANOSECONDS, Heard


@dataclass(slots=True, eq=False)
class Stream:
    """Heard audio of one track, rate and encoding, with nothing else handed over between: `chunks` grows until then."""

    track: str
    rate: int
    encoding: str
    chunks: list[Heard]


class Played(NamedTuple):
    """Audio that was handed to the speaker. None of it may be kept where `pcm` is None."""

    track: str
    pcm: bytes | None
    encoding: str
    rate: int
    frames: int
    arrived: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """Heard audio of which nothing may be kept: it takes its time all the same."""

    track: str
    seconds: float
    at: float | None


@dataclass(slots=True)
class Lost:
    """Audio that the queue had no room for: `seconds` grows until something else is handed over."""

    track: str
    seconds: float
    began: int
    at: float | None = None

    @property
    def start(self) -> float:
        """When it began, in seconds: as the source told, or else by its arrival."""
        return self.began / NANOSECONDS if self.at is None else self.at


@dataclass(frozen=True, slots=True)
class TurnAdded:
    """A finished turn."""

    track: str
    pcm: bytes
    encoding: str
    rate: int
    arrived: int
    at: float | None


@dataclass(frozen=True, slots=True)
class TurnMarked:
    """A turn that starts, or ends."""

    track: str
    starts: bool
    at: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """What is said is taken back from an instant on, or from `played` seconds into it."""

    track: str
    at: int
    played: float | None


@dataclass(frozen=True, slots=True)
class PlaybackHalted:
    """Playback stands still, or goes on."""

    track: str
    halts: bool
    at: int


@dataclass(frozen=True, slots=True)
class TrackDeclared:
    track: str
    rate: int


@dataclass(frozen=True, slots=True)
class TrackEnded:
    track: str


@dataclass(frozen=True, slots=True)
class Muted:
    """From here on nothing is kept. Several causes may last at once, each of which has a span of its own."""

    cause: str
    reason: str
    at: int


@dataclass(frozen=True, slots=True)
class Unmuted:
    """A cause is over."""

    cause: str
    at: int


@dataclass(frozen=True, slots=True)
class ConsentSet:
    """What the call's row says from now on."""

    consent: model.Json | None
    recording: bool
    reason: str | None


OfTrack = Stream | Played | Skipped | Lost | TurnAdded | TurnMarked | Interrupted | PlaybackHalted | TrackEnded
Item = OfTrack | TrackDeclared | Muted | Unmuted | ConsentSet | model.Message | model.Usage


@dataclass(frozen=True, slots=True)
class Ending:
    """The call's end, as it was asked for."""

    reason: str
    at: int

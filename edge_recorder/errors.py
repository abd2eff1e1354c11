"""
Every error that edge_recorder and sync raise on purpose: one base, one sentence each.

An error carries what the operator should do (`fix`) and the exit code that a command ends with when it meets it.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2  # a wrong option or setting
    PARTIAL = 3  # done what could be done; something is still owed
    UNHEALTHY = 4  # `status --check`
    NO_CATALOG = 10
    LOCK_HELD = 11
    ACCESS = 12  # credentials or permission
    INTEGRITY = 13
    UNSAFE_RUNTIME = 14
    INTERRUPTED = 130


class EdgeRecorderError(Exception):
    """The base of all errors here: what happened, and in `fix` what to do about it."""

    exit_code: Exit = Exit.FAILED

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}. {self.fix}" if self.fix else self.message


class SettingsError(EdgeRecorderError):
    """A setting or a variable is unknown, missing or wrong."""

    exit_code = Exit.USAGE


class CallerError(EdgeRecorderError, ValueError):
    """The caller made a mistake: a wrong argument, or a call at the wrong time."""

    exit_code = Exit.USAGE


class InvalidAudio(CallerError):
    """The audio handed over is not what it is said to be: odd bytes, a wrong dtype, more than one channel."""


class UnknownTrack(CallerError):
    """A track that was never declared was written to without its rate."""


class CallEnded(CallerError):
    """Something was handed to a call after its end."""


class RecorderClosed(CallerError):
    """The recorder was used before its start, after its close, or in a forked child."""


class DataDirError(EdgeRecorderError):
    """The data directory cannot hold a catalog and recordings safely."""

    exit_code = Exit.ACCESS


class NoCatalog(EdgeRecorderError):
    """There is no catalog where one was expected."""

    exit_code = Exit.NO_CATALOG


class NoSuchCall(EdgeRecorderError):
    """No call has that id."""

    exit_code = Exit.USAGE


class LockHeld(EdgeRecorderError):
    """Another process holds the lock that this one needs."""

    exit_code = Exit.LOCK_HELD


class IntegrityMismatch(EdgeRecorderError):
    """Bytes are not what their recorded hash or length says."""

    exit_code = Exit.INTEGRITY


class UnsafeRuntime(EdgeRecorderError):
    """This Python's SQLite could damage the catalog that it was asked to open."""

    exit_code = Exit.UNSAFE_RUNTIME


class CatalogBroken(EdgeRecorderError):
    """SQLite says that the catalog's file is damaged or not a catalog."""

    exit_code = Exit.INTEGRITY


class CatalogBusy(EdgeRecorderError):
    """SQLite could not take a transaction now: another holds it, or the disk is full. Nothing was changed."""

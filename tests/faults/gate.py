"""
A gate before the disk: each system call of another process that changes a file waits here until a rule has judged it.

The process asks for it itself (`put_up`), hands the listener over, and goes on; every thread that it starts stands
before the same gate. It is the kernel's seccomp notification (Linux >= 5.5): it counts over all threads in one order,
sees paths, and needs neither root nor a tracer. strace counts by thread, so its N-th write is another one each time.

    None              the call is made
    Fail(errno)       it is not made, and fails so
    Delay(seconds)    it is made that much later; others pass meanwhile
    KILL              the process is killed instead
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import math
import os
import platform
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path


class About(Enum):
    """Which argument says what file a call is about."""

    FD = "the first, a descriptor"
    PATH = "the first, a path"
    AT = "the second, a path"


# name -> (number on x86_64, on aarch64; -1: not there), what it is about
CALLS: dict[str, tuple[tuple[int, int], About]] = {
    "write": ((1, 64), About.FD),
    "writev": ((20, 66), About.FD),
    "pwrite64": ((18, 68), About.FD),
    "pwritev": ((296, 70), About.FD),
    "openat": ((257, 56), About.AT),
    "ftruncate": ((77, 46), About.FD),
    "fallocate": ((285, 47), About.FD),
    "fsync": ((74, 82), About.FD),
    "fdatasync": ((75, 83), About.FD),
    "syncfs": ((306, 267), About.FD),
    "sync_file_range": ((277, 84), About.FD),
    "rename": ((82, -1), About.PATH),
    "renameat": ((264, 38), About.AT),
    "renameat2": ((316, 276), About.AT),
    "link": ((86, -1), About.PATH),
    "linkat": ((265, 37), About.AT),
    "unlink": ((87, -1), About.PATH),
    "unlinkat": ((263, 35), About.AT),
    "mkdir": ((83, -1), About.PATH),
    "mkdirat": ((258, 34), About.AT),
}
SYNCS = frozenset({"fsync", "fdatasync", "syncfs"})
WRITES = frozenset({"write", "writev", "pwrite64", "pwritev"})

_MACHINES = {"x86_64": (0, 317, 0xC000003E), "aarch64": (1, 277, 0xC00000B7)}  # column, seccomp(2), AUDIT_ARCH
_NO_NEW_PRIVS, _SET_MODE_FILTER, _NEW_LISTENER = 38, 1, 1 << 3
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NOTICE = struct.Struct("QII iIQ 6Q")
_ANSWER = struct.Struct("QqiI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_LONGEST_PATH = 4096


@dataclass(frozen=True, slots=True)
class Event:
    """A system call that waits."""

    name: str
    path: str
    at: float  # monotonic seconds


@dataclass(frozen=True, slots=True)
class Fail:
    errno: int


@dataclass(frozen=True, slots=True)
class Delay:
    seconds: float


class Kill:
    """The process ends here."""


KILL = Kill()
Verdict = Fail | Delay | Kill | None
Rule = Callable[[Event], Verdict]


def put_up(names: Container[str] = CALLS) -> int:
    """Put this process, from here on, before a gate, and return its listener.

    Raises:
        OSError: This kernel, or this container, does not allow it.
    """
    column, seccomp, arch = _MACHINES[platform.machine()]
    numbers = [call[column] for name, (call, _) in CALLS.items() if name in names and call[column] >= 0]
    code = [(_LOAD, 0, 0, 4), (_JUMP_IF_EQUAL, 0, len(numbers) + 1, arch), (_LOAD, 0, 0, 0)]
    code += [(_JUMP_IF_EQUAL, len(numbers) - n, 0, number) for n, number in enumerate(numbers)]
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _NOTIFY)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    listener = -1
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        listener = libc.syscall(seccomp, _SET_MODE_FILTER, _NEW_LISTENER, program)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "no gate can be put up here")
    return int(listener)


def reason_against() -> str | None:
    """Return why no gate can be put up on this machine, or None where it can."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return "seccomp notifications are Linux's, and known here for x86_64 and aarch64"
    trial = [sys.executable, "-c", "import gate; gate.put_up({'fallocate'})"]
    done = subprocess.run(trial, check=False, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    if done.returncode == 0:
        return None
    return f"the kernel or the container refuses a seccomp listener: {done.stderr.strip().splitlines()[-1]}"


class Gate:
    """The watch at a gate: judges what comes to `directory` by `rule`, in a thread of its own."""

    def __init__(self, listener: int, directory: Path, rule: Rule) -> None:
        self.passed: list[Event] = []  # what came to it, in order
        self.killed_at: float | None = None
        self._listener = listener
        self._directory = str(directory)
        self._rule = rule
        self._sending = threading.Lock()
        self._timers: list[threading.Timer] = []
        self._thread = threading.Thread(target=self._watch, name="gate", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go, once the process is gone."""
        for timer in self._timers:
            timer.cancel()
        self._thread.join(10)
        os.close(self._listener)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while True:
            ((_, happened),) = poll.poll()
            if not happened & select.POLLIN:  # nobody is left behind the gate
                return
            notice = bytearray(_NOTICE.size)
            try:
                fcntl.ioctl(self._listener, _RECEIVE, notice, True)
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.EINTR}:  # its thread was killed meanwhile
                    raise
                continue
            self._judge(bytes(notice))

    def _judge(self, data: bytes) -> None:
        notice, pid, _, number, _, _, *args = _NOTICE.unpack(data)
        event = self._event(pid, number, args)
        match self._rule(event) if event is not None else None:
            case None:
                self._answer(notice, 0, _CONTINUE)
            case Fail(refused):
                self._answer(notice, -refused, 0)
            case Delay(seconds):
                timer = threading.Timer(seconds, partial(self._answer, notice, 0, _CONTINUE))
                timer.daemon = True
                timer.start()
                self._timers.append(timer)
            case Kill():
                self.killed_at = time.monotonic()
                os.kill(_process_of(pid), signal.SIGKILL)

    def _answer(self, notice: int, error: int, flags: int) -> None:
        with self._sending:
            try:
                fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(notice, 0, error, flags))
            except OSError as refused:
                if refused.errno not in {errno.ENOENT, errno.EBADF}:  # who asked is gone
                    raise

    def _event(self, pid: int, number: int, args: list[int]) -> Event | None:
        """Return what `pid` is about to do to a file in the directory; None where it is about anything else."""
        name = _NAMES[number]
        if name == "openat" and not args[2] & (os.O_CREAT | os.O_TRUNC):
            return None
        try:
            path = _path(pid, CALLS[name][1], args)
        except OSError:  # who asked is gone
            return None
        if not path.startswith(self._directory):
            return None
        event = Event(name, path.removeprefix(self._directory).lstrip("/"), time.monotonic())
        self.passed.append(event)
        return event


_COLUMN = _MACHINES.get(platform.machine(), (0, 0, 0))[0]
_NAMES = {numbers[_COLUMN]: name for name, (numbers, _) in CALLS.items()}


def _path(pid: int, about: About, args: list[int]) -> str:
    if about is About.FD:
        return str(Path(f"/proc/{pid}/fd/{args[0] & 0xFFFFFFFF}").readlink())
    address = args[0] if about is About.PATH else args[1]
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return os.fsdecode(memory.read(_LONGEST_PATH).split(b"\0", 1)[0])


def _process_of(thread: int) -> int:
    status = Path(f"/proc/{thread}/status").read_text()
    return int(status.split("\nTgid:", 1)[1].split(None, 1)[0])


# Rules.


def allow(_: Event) -> None:
    """Let everything pass."""


def kill_at(n: int) -> Rule:
    """Kill the process at its `n`-th event, from 1: before it is done."""
    seen = 0

    def rule(_: Event) -> Verdict:
        nonlocal seen
        seen += 1
        return KILL if seen == n else None

    return rule


def kill_before(name: str, *, end: str) -> Rule:
    """Kill the process before its first call of `name` on a path that ends so."""
    return lambda event: KILL if event.name == name and event.path.endswith(end) else None


class Refusal:
    """Fails calls of `names` on paths that begin with `begin`: the `first` of them, and all for `seconds` more."""

    def __init__(
        self, names: Container[str], number: int, *, begin: str = "spool/", first: int = 1, seconds: float = 0.0
    ) -> None:
        self.seen = 0
        self.refused: list[Event] = []
        self._names = names
        self._number = number
        self._begin = begin
        self._first = first
        self._seconds = seconds

    def __call__(self, event: Event) -> Verdict:
        if event.name not in self._names or not event.path.startswith(self._begin):
            return None
        self.seen += 1
        if self.seen < self._first:
            return None
        if self.refused and event.at >= self.refused[0].at + self._seconds:
            return None
        self.refused.append(event)
        return Fail(self._number)


def delay(names: Container[str], seconds: float, *, after: float = 0.0, during: float = math.inf) -> Rule:
    """Make each call of `names` take `seconds` longer, `during` a while that begins `after` the first event."""
    begin: float | None = None

    def rule(event: Event) -> Verdict:
        nonlocal begin
        begin = event.at + after if begin is None else begin
        slow = event.name in names and begin <= event.at < begin + during
        return Delay(seconds) if slow else None

    return rule

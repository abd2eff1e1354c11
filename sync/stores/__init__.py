"""
The object store port: where audio goes, whatever keeps it.

    body      the bytes of one object and their hashes, made once: the buffer that was hashed is the one that is sent
    put       stores a body under a new key; a key that is taken is never overwritten
    head      what the store holds under a key, or None
    get       an object's bytes, or a range of them
    list      the objects whose keys begin with a prefix, in the order of their keys

A store deletes nothing, because a node may not. Each error is a `SyncError` with its class, given where it is born.
Every object carries the hash and the length of its bytes in its metadata, so a second `put` of the same thing, by this
agent or another, is recognised as done.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from edge_recorder.settings import Store
from sync.retry import ErrorClass, SyncError

FILE_SHA256 = "file-sha256"
FILE_SIZE = "file-size"
PCM_SHA256 = "pcm-sha256"


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of one object and their hashes."""

    data: bytes = field(repr=False)
    sha256: str = field(init=False)  # hex
    md5: str = field(init=False)  # base64, as Content-MD5 wants it

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        frozen = bytes(data)  # a copy of what can still change, and no copy of bytes
        md5 = hashlib.md5(frozen, usedforsecurity=False).digest()
        object.__setattr__(self, "data", frozen)
        object.__setattr__(self, "sha256", hashlib.sha256(frozen).hexdigest())
        object.__setattr__(self, "md5", base64.b64encode(md5).decode())

    @property
    def sha256_base64(self) -> str:
        return base64.b64encode(bytes.fromhex(self.sha256)).decode()

    @property
    def metadata(self) -> dict[str, str]:
        """What every object says of its own bytes."""
        return {FILE_SHA256: self.sha256, FILE_SIZE: str(len(self.data))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a store holds under one key, without its bytes."""

    size: int
    metadata: dict[str, str]
    etag: str | None = None  # the store's own word for this content; None where it has none


@dataclass(frozen=True, slots=True, kw_only=True)
class PutResult:
    """What the store holds now under the key. `created` is False when it held that already."""

    created: bool
    head: Head


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    size: int
    etag: str | None = None


class ObjectMissing(SyncError):
    """Nothing is stored under that key."""


class ObjectConflict(SyncError):
    """Another content is stored under that key; it stays."""


class ObjectStore(Protocol):
    """What `sync` may ask of a store. One conformance suite, `tests/stores/`, holds for all."""

    async def put(self, key: str, body: Body, *, metadata: Mapping[str, str], content_type: str) -> PutResult:
        """Store `body` as the new object `key`. Done before with the same content, it is done.

        Metadata keys are lower case with dashes; values are any text. The body's own metadata is added.

        Raises:
            ObjectConflict: `key` holds something else.
            SyncError: It is not known to be stored; the error's class says whose fault that is.
        """

    async def head(self, key: str) -> Head | None: ...

    async def get(self, key: str, *, start: int | None = None, length: int | None = None) -> bytes:
        """Return the object's bytes, or up to `length` of them from `start`; none past its end.

        Raises:
            ObjectMissing: There is no such object.
        """

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]: ...

    async def aclose(self) -> None:
        """Close what the store holds open."""


def open_store(settings: Store) -> ObjectStore:
    """Return the store of `settings.url`. Nothing is connected, nor any S3 library imported, before it is needed."""
    if settings.url.startswith("file:"):
        from sync.stores.file import FileStore  # noqa: PLC0415 (only what is used)

        return FileStore(settings)
    from sync.stores.s3 import S3Store  # noqa: PLC0415 (an idle pass must not pay for botocore)

    return S3Store(settings)


def settle(key: str, body: Body, wanted: Mapping[str, str], there: Head) -> PutResult:
    """Return what a `put` of `body` comes to where `there` is stored already.

    The same file is success. So is the same audio in other bytes (an encoder was upgraded between a lost reply and its
    repetition), which is why the caller takes length and hash from the result.

    Raises:
        ObjectConflict: It is something else.
    """
    whole = there.metadata.get(FILE_SIZE, str(there.size)) == str(there.size)
    same_file = there.size == len(body.data) and there.metadata.get(FILE_SHA256) == body.sha256
    same_audio = PCM_SHA256 in wanted and there.metadata.get(PCM_SHA256) == wanted[PCM_SHA256]
    if whole and (same_file or same_audio):
        return PutResult(created=False, head=there)
    raise ObjectConflict(
        f"{key} holds another content: {there.size} bytes, {FILE_SHA256} {there.metadata.get(FILE_SHA256, 'unknown')}; "
        f"ours has {len(body.data)} bytes, {body.sha256}",
        error_class=ErrorClass.CONFLICT,
        fix="Nothing was overwritten. Find out who else writes under this node's id (a cloned node?), move the stored "
        "object away, then `edge-recorder retry`",
    )

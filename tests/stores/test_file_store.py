"""What only a store in a directory has to keep."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path

import pytest

from edge_recorder import durable
from edge_recorder.settings import Store
from sync.retry import ErrorClass, SyncError
from sync.stores import Body, ObjectConflict, PutResult, open_store
from sync.stores.file import FileStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a nas").mkdir()
    return tmp_path / "a nas"


@pytest.fixture
def nas(root: Path) -> FileStore:
    return at(root)


def at(root: Path, timeout: float = 60.0) -> FileStore:
    return FileStore(Store(url=root.as_uri(), timeout=timeout))


async def put(store: FileStore, key: str, data: bytes, **metadata: str) -> PutResult:
    return await store.put(key, Body(data), metadata=metadata, content_type="audio/flac")


async def test_url_with_escapes(root: Path) -> None:
    """A directory with a space in its name is found by its URL."""
    store = open_store(Store(url=root.as_uri()))
    await store.put("k", Body(b"x"), metadata={}, content_type="audio/wav")
    assert (root / "k").read_bytes() == b"x"


@pytest.mark.parametrize(
    "key", ["../out", "a/../../out", "/etc/passwd", "", "a//b", ".hidden", "a/.b", "k.meta.json", "nul\0", "a/"]
)
async def test_keys_stay_inside(nas: FileStore, root: Path, key: str) -> None:
    """A key that would leave the directory, or take one of our own names, is refused, for reading too."""
    with pytest.raises(SyncError) as caught:
        await put(nas, key, b"x")
    assert caught.value.error_class is ErrorClass.ITEM
    for reading in (nas.head(key), nas.get(key)):
        with pytest.raises(SyncError, match="cannot be a key"):
            await reading
    assert os.listdir(root.parent) == [root.name]  # noqa: PTH208 (names, in one call)
    assert os.listdir(root) == []  # noqa: PTH208


@pytest.mark.parametrize("proof", [True, False], ids=["before", "after"])
async def test_refusal_that_proves_that_nothing_is_there(
    nas: FileStore, monkeypatch: pytest.MonkeyPatch, proof: bool
) -> None:
    """Permission that is denied before the object is linked proves that nothing was stored; after it, it does not."""
    create_new = durable.create_new

    def refuse(path: Path, data: bytes) -> None:
        if not proof:
            create_new(path, data)
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(durable, "replace_with" if proof else "create_new", refuse)
    with pytest.raises(SyncError) as caught:
        await put(nas, "k", b"x")
    assert caught.value.nothing_stored is proof


async def test_listing_stays_inside(nas: FileStore) -> None:
    """A prefix that would leave the directory is refused."""
    with pytest.raises(SyncError, match="cannot be a key"):
        [info async for info in nas.list("../")]


async def test_missing_mount(tmp_path: Path) -> None:
    """A root that is not there is local trouble with a fix, and is never made."""
    store = at(tmp_path / "mnt" / "nas")
    for step in (put(store, "k", b"x"), store.head("k"), store.get("k")):
        with pytest.raises(SyncError) as caught:
            await step
        assert caught.value.error_class is ErrorClass.LOCAL
        assert "Mount it" in caught.value.fix
        assert caught.value.nothing_stored
    assert not (tmp_path / "mnt").exists()


async def test_crash_after_the_sidecar(nas: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between sidecar and object leaves nothing that anyone sees, and the next put completes it."""

    def crash(path: Path, data: bytes) -> None:
        raise OSError(errno.EIO, "power cut")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "create_new", crash)
        with pytest.raises(SyncError) as caught:
            await put(nas, "a/k", b"x", seq="1")
    assert caught.value.error_class is ErrorClass.TRANSIENT
    assert (root / "a" / "k.meta.json").exists()
    assert await nas.head("a/k") is None
    assert [info async for info in nas.list("")] == []
    assert (await put(nas, "a/k", b"y", seq="2")).created
    head = await nas.head("a/k")
    assert head is not None
    assert head.metadata == {"seq": "2", **Body(b"y").metadata}


async def test_metadata_is_there_before_the_object(nas: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the object becomes visible its metadata is on disk."""
    real = durable.create_new
    seen: list[dict[str, str]] = []

    def create(path: Path, data: bytes) -> None:
        seen.append(json.loads((root / "k.meta.json").read_bytes())["metadata"])
        real(path, data)

    monkeypatch.setattr(durable, "create_new", create)
    await put(nas, "k", b"x", seq="1")
    assert seen == [{"seq": "1", **Body(b"x").metadata}]


async def test_writers_at_once(root: Path) -> None:
    """Of many writers of different content under one key one wins, and all others learn so."""
    bodies = [bytes([n]) * 4000 for n in range(8)]
    results = await asyncio.gather(*(put(at(root), "k", data) for data in bodies), return_exceptions=True)
    winners = [data for data, result in zip(bodies, results, strict=True) if isinstance(result, PutResult)]
    assert winners == [(root / "k").read_bytes()]
    assert sum(isinstance(result, ObjectConflict) for result in results) == 7


async def test_same_content_at_once(root: Path) -> None:
    """Of many writers of the same content one makes the object and the others find it done."""
    results = await asyncio.gather(*(put(at(root), "k", b"same") for _ in range(8)))
    assert sum(result.created for result in results) == 1


async def test_file_that_lost_bytes(nas: FileStore, root: Path) -> None:
    """A stored file that no longer is what its sidecar says is a conflict, not success."""
    await put(nas, "k", b"whole", **{"pcm-sha256": "5a" * 32})
    (root / "k").write_bytes(b"whol")
    with pytest.raises(ObjectConflict):
        await put(nas, "k", b"whole", **{"pcm-sha256": "5a" * 32})


async def test_file_without_a_sidecar(nas: FileStore, root: Path) -> None:
    """A file that something else copied there is known by its bytes."""
    (root / "k").write_bytes(b"copied")
    assert not (await put(nas, "k", b"copied")).created
    head = await nas.head("k")
    assert head is not None
    assert (head.size, head.metadata) == (6, {})


async def test_mount_that_hangs(root: Path) -> None:
    """A file system that answers nothing is an outage within the timeout, and holds up none but its own threads."""
    store = at(root, timeout=0.1)
    (root / "k").write_bytes(b"x")
    os.mkfifo(root / "k.meta.json")  # who reads it waits for a writer
    with pytest.raises(SyncError) as caught:
        await put(store, "k", b"x")
    assert caught.value.error_class is ErrorClass.TRANSIENT
    assert await asyncio.to_thread(lambda: "alive") == "alive"
    os.close(os.open(root / "k.meta.json", os.O_WRONLY))
    await store.aclose()


async def test_folder_is_no_object(nas: FileStore) -> None:
    """A folder is not an object, and a key under an object cannot be one."""
    await put(nas, "a/b", b"x")
    assert await nas.head("a") is None
    for key in ("a", "a/b/c"):
        with pytest.raises(SyncError) as caught:
            await put(nas, key, b"x")
        assert caught.value.error_class is ErrorClass.ITEM


@pytest.mark.parametrize(
    ("number", "error_class"),
    [
        (errno.ENOSPC, ErrorClass.LOCAL),
        (errno.EROFS, ErrorClass.AUTH),
        (errno.EACCES, ErrorClass.AUTH),
        (errno.ESTALE, ErrorClass.TRANSIENT),
        (errno.EIO, ErrorClass.TRANSIENT),
    ],
)
async def test_error_classes(
    nas: FileStore, monkeypatch: pytest.MonkeyPatch, number: int, error_class: ErrorClass
) -> None:
    """What a file system refuses has its class and a fix."""

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, "replace_with", refuse)
    with pytest.raises(SyncError) as caught:
        await put(nas, "k", b"x")
    assert caught.value.error_class is error_class
    assert caught.value.fix

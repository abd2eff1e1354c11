"""What every store promises, tried on each."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys

import pytest

from sync.retry import ErrorClass
from sync.stores import Body, ObjectConflict, ObjectMissing, ObjectStore

LARGE = 5 * 1024 * 1024


async def _put(store: ObjectStore, key: str, data: bytes, **metadata: str) -> bool:
    done = await store.put(key, Body(data), metadata=metadata, content_type="audio/flac")
    return done.created


@pytest.mark.parametrize("size", [0, 1, 4096, LARGE])
async def test_what_was_put_is_there(store: ObjectStore, size: int) -> None:
    """An object of any size comes back byte for byte, and HEAD says its length and hash."""
    body = Body(os.urandom(size))
    done = await store.put("a/b.flac", body, metadata={"seq": "1"}, content_type="audio/flac")
    head = await store.head("a/b.flac")
    assert done.created
    assert head is not None
    assert (head.size, head.metadata) == (size, {"seq": "1", **body.metadata})
    assert await store.get("a/b.flac") == body.data


async def test_nothing_there(store: ObjectStore) -> None:
    """HEAD of a missing object is None and GET an error that says so."""
    assert await store.head("no/such") is None
    with pytest.raises(ObjectMissing) as caught:
        await store.get("no/such")
    assert caught.value.error_class is ErrorClass.ITEM


async def test_again_is_done(store: ObjectStore) -> None:
    """The same content put again is success, and says that it was there."""
    assert await _put(store, "twice", b"same")
    assert not await _put(store, "twice", b"same")
    assert await store.get("twice") == b"same"


async def test_never_overwritten(store: ObjectStore) -> None:
    """Another content of the same length under a key that is taken is a conflict, and what was there stays."""
    await _put(store, "taken", b"first")
    with pytest.raises(ObjectConflict) as caught:
        await _put(store, "taken", b"other")
    assert caught.value.error_class is ErrorClass.CONFLICT
    assert await store.get("taken") == b"first"


async def test_same_audio_encoded_otherwise_is_done(store: ObjectStore) -> None:
    """Audio that is stored as other bytes, by an older encoder, is stored; the result tells which bytes."""
    metadata = {"pcm-sha256": "5a" * 32}
    first = await store.put("audio", Body(b"by the old encoder"), metadata=metadata, content_type="audio/flac")
    again = await store.put("audio", Body(b"by the new"), metadata=metadata, content_type="audio/flac")
    assert not again.created
    assert again.head.size == first.head.size
    assert again.head.metadata["file-sha256"] == Body(b"by the old encoder").sha256


async def test_metadata_is_any_text(store: ObjectStore) -> None:
    """Metadata comes back as it was, whatever characters it has."""
    texts = {
        "plain": "a-z 0_9",
        "umlaut": "Grüße",
        "wide": "通话 🎙",
        "percent": "100%25",
        "edges": "  spaces  ",
        "empty": "",
    }
    await _put(store, "meta", b"x", **texts)
    head = await store.head("meta")
    assert head is not None
    assert head.metadata == {**texts, **Body(b"x").metadata}


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 4, b"0123"),
        (3, 4, b"3456"),
        (7, None, b"789"),
        (8, 100, b"89"),
        (10, 5, b""),
        (2, 0, b""),
        (None, 3, b"012"),
    ],
)
async def test_ranges(store: ObjectStore, start: int | None, length: int | None, expected: bytes) -> None:
    """A range gives just its bytes, fewer at the end and none past it."""
    await _put(store, "range", b"0123456789")
    assert await store.get("range", start=start, length=length) == expected


async def test_list(store: ObjectStore) -> None:
    """A listing has the objects below a prefix, in order, with their sizes, and nothing else."""
    for key in ("n/2/b-000002.flac", "n/2/b-000001.flac", "n/10/a.wav", "m/x"):
        await _put(store, key, key.encode())
    listed = [(info.key, info.size) async for info in store.list("n/")]
    assert listed == [(key, len(key)) for key in ("n/10/a.wav", "n/2/b-000001.flac", "n/2/b-000002.flac")]
    assert [info.key async for info in store.list("n/2/b-000002")] == ["n/2/b-000002.flac"]
    assert [info.key async for info in store.list("other/")] == []
    assert len([info async for info in store.list("")]) >= 4


def test_body_is_frozen() -> None:
    """A body does not follow the buffer that it was made from, and its hashes are those of its bytes."""
    buffer = bytearray(b"before")
    body = Body(buffer)
    buffer[:] = b"after!"
    assert body == Body(b"before") == Body(memoryview(b"before"))
    assert body.sha256 == hashlib.sha256(b"before").hexdigest()
    assert base64.b64decode(body.md5) == hashlib.md5(b"before").digest()


def test_port_is_light() -> None:
    """Importing the port loads no S3 library: an idle pass must not pay for one."""
    script = (
        "import sys, sync.stores, sync.stores.naming; print({'botocore', 'aioboto3', 'aiohttp'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"

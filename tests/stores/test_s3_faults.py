"""What the S3 store sends, and what it makes of every way in which a server can fail it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import time
from pathlib import Path

import pytest
from strict_s3 import Fault, Refusal, StrictS3

from edge_recorder.settings import Store
from sync.retry import ErrorClass, SyncError
from sync.stores import Body, ObjectConflict, PutResult, open_store
from sync.stores.s3 import S3Store
from sync.stores.s3_errors import CLOCK, PLACE, TLS

BODY = Body(b"\x00\x01" * 5000)


async def put(store: S3Store, key: str = "pre/key", body: Body = BODY) -> PutResult:
    return await store.put(key, body, metadata={"track": "user"}, content_type="audio/flac")


async def refused(store: S3Store) -> SyncError:
    with pytest.raises(SyncError) as caught:
        await put(store)
    return caught.value


def check_integrity(server: StrictS3) -> None:
    """Recompute what a PutObject must carry from the body that came."""
    (sent,) = server.puts()
    sha256 = hashlib.sha256(sent.body)
    assert sent.headers["x-amz-content-sha256"] == sha256.hexdigest()
    assert sent.headers["x-amz-checksum-sha256"] == base64.b64encode(sha256.digest()).decode()
    assert sent.headers["content-md5"] == base64.b64encode(hashlib.md5(sent.body).digest()).decode()
    assert sent.headers["if-none-match"] == "*"
    assert {"x-amz-content-sha256", "content-md5", "x-amz-checksum-sha256"} <= set(sent.signed_headers)
    assert "expect" not in sent.headers
    assert "x-amz-trailer" not in sent.headers
    assert sent.body == BODY.data


async def test_request_carries_three_hashes(strict_store: S3Store, strict: StrictS3) -> None:
    """A PutObject carries the signed payload hash, Content-MD5, the checksum and If-None-Match, and expects nothing."""
    assert (await put(strict_store)).created
    check_integrity(strict)


async def test_payload_is_signed_over_tls_too(tls_strict: StrictS3, ca_bundle: Path) -> None:
    """Over TLS, where botocore would leave the payload unsigned, the same hashes are sent; `ca_bundle` is trusted."""
    store = S3Store(Store(url="s3://recordings", endpoint_url=tls_strict.address, ca_bundle=ca_bundle))
    await put(store)
    await store.aclose()
    check_integrity(tls_strict)


async def test_untrusted_certificate(tls_strict: StrictS3) -> None:
    """A certificate that nobody vouches for stops the store, and the error names the setting."""
    store = S3Store(Store(url="s3://recordings", endpoint_url=tls_strict.address))
    error = await refused(store)
    await store.aclose()
    assert (error.error_class, error.fix) == (ErrorClass.AUTH, TLS)
    assert tls_strict.requests == []


async def test_412_to_our_own_success(strict_store: S3Store, strict: StrictS3) -> None:
    """A 412 for what we stored ourselves is success, found by HEAD."""
    await put(strict_store)
    again = await put(strict_store)
    assert not again.created
    assert again.head.metadata["file-sha256"] == BODY.sha256
    assert [request.method for request in strict.requests] == ["PUT", "PUT", "HEAD"]


async def test_412_for_another_content(strict_store: S3Store, strict: StrictS3) -> None:
    """A 412 for something else is a conflict, and it stays."""
    await put(strict_store, body=Body(b"\x07" * len(BODY.data)))
    with pytest.raises(ObjectConflict):
        await put(strict_store)
    assert strict.objects["pre/key"].body[0] == 7


@pytest.mark.parametrize(
    ("status", "code", "proof"),
    [
        (404, "NoSuchBucket", True),
        (403, "AccessDenied", True),
        (403, "InvalidAccessKeyId", True),
        (403, "SomethingNew", False),
        (400, "ExpiredToken", False),
        (500, "InternalError", False),
        (503, "SlowDown", False),
    ],
)
async def test_proof_that_nothing_was_stored(
    strict_store: S3Store, strict: StrictS3, status: int, code: str, proof: bool
) -> None:
    """Only a refusal that comes before anything was looked at proves that a PutObject stored nothing."""
    strict.faults.append(Refusal(status, code))
    assert (await refused(strict_store)).nothing_stored is proof


async def test_refused_head_proves_nothing_of_the_put(strict_store: S3Store, strict: StrictS3) -> None:
    """Where the reply to a PUT was lost and the HEAD after it is refused, nobody knows whether it is stored."""
    strict.faults.extend([Fault.LOSE_REPLY, Fault.LOSE_REPLY, Refusal(403, "AccessDenied")])
    assert not (await refused(strict_store)).nothing_stored


@pytest.mark.parametrize("times", [1, 2])
async def test_reply_lost_after_the_body_was_stored(strict_store: S3Store, strict: StrictS3, times: int) -> None:
    """A reply that is lost, also to aiohttp's own repetition, is settled by HEAD: stored, once."""
    strict.faults.extend([Fault.LOSE_REPLY] * times)
    assert not (await put(strict_store)).created
    assert strict.objects["pre/key"].body == BODY.data


async def test_connection_cut_before_anything_was_stored(strict_store: S3Store, strict: StrictS3) -> None:
    """Where HEAD finds nothing after a cut, the upload is still owed."""
    strict.faults.extend([Fault.CUT, Fault.CUT])
    assert (await refused(strict_store)).error_class is ErrorClass.TRANSIENT
    assert strict.objects == {}
    assert (await put(strict_store)).created


@pytest.mark.parametrize("fault", [Fault.SILENCE, Fault.DRIP])
async def test_server_that_never_answers(strict: StrictS3, fault: Fault) -> None:
    """The timeout bounds the whole request, also when something always comes, and the store is usable after it."""
    store = S3Store(Store(url="s3://recordings", endpoint_url=strict.address, timeout=1))
    await store._connected()  # a busy machine may need longer for this, and no request would meet its fault
    strict.faults.extend([fault, fault])
    began = time.monotonic()
    error = await refused(store)
    assert time.monotonic() - began < 20
    assert error.error_class is ErrorClass.TRANSIENT
    assert (await put(store)).created
    await store.aclose()


@pytest.mark.parametrize("answers", [1, 2])
async def test_answer_that_is_not_an_s3s(strict_store: S3Store, strict: StrictS3, answers: int) -> None:
    """A 200 without an ETag, as from a captive portal, is no success, and pauses the store until S3 answers."""
    strict.faults.extend([Fault.LOSE_REPLY] * (2 * (answers - 1)) + [Refusal(200)])
    error = await refused(strict_store)
    assert (error.error_class, error.fix) == (ErrorClass.AUTH, PLACE)
    assert (await put(strict_store)).head.metadata["file-sha256"] == BODY.sha256


async def test_cancelled_upload(strict_store: S3Store, strict: StrictS3) -> None:
    """A cancelled upload is cancelled, not an error, and leaves the store usable."""
    strict.faults.append(Fault.SILENCE)
    task = asyncio.create_task(put(strict_store))
    await strict.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await put(strict_store)).created


@pytest.mark.parametrize(
    ("status", "code", "error_class"),
    [
        (500, "InternalError", ErrorClass.TRANSIENT),
        (502, "", ErrorClass.TRANSIENT),
        (409, "ConditionalRequestConflict", ErrorClass.TRANSIENT),
        (400, "RequestTimeout", ErrorClass.TRANSIENT),
        (503, "SlowDown", ErrorClass.THROTTLE),
        (503, "", ErrorClass.THROTTLE),
        (429, "TooManyRequests", ErrorClass.THROTTLE),
        (403, "InvalidAccessKeyId", ErrorClass.AUTH),
        (403, "SignatureDoesNotMatch", ErrorClass.AUTH),
        (400, "ExpiredToken", ErrorClass.AUTH),
        (403, "AccessDenied", ErrorClass.AUTH),
        (403, "SomethingNew", ErrorClass.AUTH),
        (404, "NoSuchBucket", ErrorClass.AUTH),
        (501, "NotImplemented", ErrorClass.AUTH),
        (403, "RequestTimeTooSkewed", ErrorClass.CLOCK),
        (400, "EntityTooLarge", ErrorClass.ITEM),
        (400, "BadDigest", ErrorClass.ITEM),
        (400, "InvalidDigest", ErrorClass.ITEM),
        (400, "SomethingElse", ErrorClass.ITEM),
    ],
)
async def test_error_classes(
    strict_store: S3Store, strict: StrictS3, status: int, code: str, error_class: ErrorClass
) -> None:
    """Each refusal has its class and a fix, is sent once, and the next upload goes through."""
    strict.faults.append(Refusal(status, code))
    error = await refused(strict_store)
    assert error.error_class is error_class
    assert error.fix
    assert len(strict.puts()) == 1
    assert (await put(strict_store)).created


async def test_clock_and_token_name_the_fix(strict_store: S3Store, strict: StrictS3) -> None:
    """Skew names the clock, and an expired token itself."""
    strict.faults.extend([Refusal(403, "RequestTimeTooSkewed"), Refusal(400, "ExpiredToken")])
    assert (await refused(strict_store)).fix == CLOCK
    assert "token has expired" in (await refused(strict_store)).fix


async def test_retry_after(strict_store: S3Store, strict: StrictS3) -> None:
    """The pause that a server asks for is kept."""
    strict.faults.append(Refusal(503, "SlowDown", {"retry-after": "17"}))
    assert (await refused(strict_store)).retry_after == 17.0


@pytest.mark.parametrize(
    ("status", "error_class"),
    [(403, ErrorClass.AUTH), (400, ErrorClass.AUTH), (503, ErrorClass.THROTTLE), (500, ErrorClass.TRANSIENT)],
)
async def test_head_without_a_reason(
    strict_store: S3Store, strict: StrictS3, status: int, error_class: ErrorClass
) -> None:
    """A HEAD's error has no code, so its status must do; only 404 means that nothing is there."""
    strict.faults.append(Refusal(status))
    with pytest.raises(SyncError) as caught:
        await strict_store.head("pre/key")
    assert caught.value.error_class is error_class
    assert await strict_store.head("pre/key") is None


async def test_new_credentials_are_read_after_a_refusal(
    strict: StrictS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Credentials that were replaced on disk are used after a refusal, without a restart."""
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = OLD\naws_secret_access_key = secret\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    store = S3Store(Store(url="s3://recordings", endpoint_url=strict.address))
    strict.faults.append(Refusal(403, "InvalidAccessKeyId"))
    assert (await refused(store)).error_class is ErrorClass.AUTH
    file.write_text("[default]\naws_access_key_id = NEW\naws_secret_access_key = secret\n")
    await put(store)
    await store.aclose()
    assert [request.access_key for request in strict.puts()] == ["OLD", "NEW"]


async def test_no_credentials(strict: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials nothing is sent, and the error says which are wanted."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = S3Store(Store(url="s3://recordings", endpoint_url=strict.address))
    error = await refused(store)
    await store.aclose()
    assert error.error_class is ErrorClass.AUTH
    assert "AWS_ACCESS_KEY_ID" in error.fix
    assert strict.requests == []


async def test_nobody_listens() -> None:
    """A refused connection is an outage, and costs one try."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    store = open_store(Store(url="s3://recordings", endpoint_url=f"http://127.0.0.1:{port}"))
    assert isinstance(store, S3Store)
    error = await refused(store)
    await store.aclose()
    assert error.error_class is ErrorClass.TRANSIENT
    assert "PutObject" in error.message


async def test_wrong_endpoint() -> None:
    """An endpoint that is no URL is a setting to correct."""
    store = S3Store(Store(url="s3://recordings", endpoint_url="not a url"))
    error = await refused(store)
    await store.aclose()
    assert error.error_class is ErrorClass.AUTH
    assert "endpoint_url" in error.fix


async def test_half_a_body(strict_store: S3Store, strict: StrictS3) -> None:
    """A download cut short is an error, never a shorter object."""
    await put(strict_store)
    strict.faults.append(Fault.HALF_BODY)
    with pytest.raises(SyncError) as caught:
        await strict_store.get("pre/key")
    assert caught.value.error_class is ErrorClass.TRANSIENT


async def test_server_without_ranges(strict_store: S3Store, strict: StrictS3) -> None:
    """A server that answers a range with the whole object still gives the range."""
    await put(strict_store)
    strict.faults.append(Fault.NO_RANGES)
    assert await strict_store.get("pre/key", start=10, length=4) == BODY.data[10:14]


async def test_long_listing(strict_store: S3Store) -> None:
    """A listing of many pages is given whole."""
    keys = [f"pre/{n}" for n in range(5)]
    for key in keys:
        await put(strict_store, key)
    assert [info.key async for info in strict_store.list("pre/")] == keys


async def test_uploads_at_once(strict_store: S3Store, strict: StrictS3) -> None:
    """Many uploads share one client."""
    done = await asyncio.gather(*(put(strict_store, f"pre/{n}", Body(bytes([n]) * 2000)) for n in range(20)))
    assert all(result.created for result in done)
    assert {key: stored.body[0] for key, stored in strict.objects.items()} == {f"pre/{n}": n for n in range(20)}

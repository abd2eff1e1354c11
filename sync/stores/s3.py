"""
A store in S3, or what speaks like it, on aioboto3.

Integrity rests on no single feature of a server. Each PutObject carries, computed before it is sent,

    x-amz-content-sha256   the SHA-256 of the body, signed, over TLS too   (AWS and Ceph refuse a wrong one)
    Content-MD5            the same for older servers                      (Ceph, Swift and rclone refuse a wrong one)
    x-amz-checksum-sha256  kept by the store beside the object             (AWS)
    If-None-Match: *       a key that is taken stays                       (AWS, Ceph, MinIO; rclone ignores it)

A 412 may be the answer to our own success: aiohttp repeats a PUT by itself when its connection breaks. So after a 412,
and after any reply that did not come, HEAD is asked, and what is there is compared.

Nothing is retried here. Whether and when is the breaker's to say, which knows the other items, sees clock and
credentials heal, and must not wait behind a second clock.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import aioboto3
from aiobotocore.config import AioConfig
from aiohttp import ClientError as HttpError
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import BotoCoreError, ClientError

from edge_recorder.settings import Store
from sync.retry import ErrorClass, SyncError
from sync.stores import Body, Head, ObjectInfo, ObjectMissing, PutResult, settle
from sync.stores.s3_errors import InDoubt, of_client, of_server

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

CONNECT_TIMEOUT = 10.0  # seconds
CONNECTIONS_SPARE = 4  # beside the uploads, for heads and reads
PLAIN = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")  # what metadata carries as it is


class S3Store:
    """One bucket. `head_first` is for servers that ignore If-None-Match."""

    def __init__(self, settings: Store, *, head_first: bool = False) -> None:
        self._settings = settings
        self._bucket = urlsplit(settings.url).netloc
        self._head_first = head_first
        self._client: S3Client | None = None
        self._open = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._in_use = 0
        self._refused = False

    async def put(self, key: str, body: Body, *, metadata: Mapping[str, str], content_type: str) -> PutResult:
        wanted = {**metadata, **body.metadata}
        if self._head_first and (there := await self.head(key)) is not None:
            return settle(key, body, wanted, there)
        try:
            etag = await self._put_object(key, body, wanted, content_type)
        except InDoubt:
            there = await self._head_after(key)
            if there is None:
                raise
            return settle(key, body, wanted, there)
        return PutResult(created=True, head=Head(size=len(body.data), metadata=wanted, etag=etag))

    async def head(self, key: str) -> Head | None:
        try:
            async with self._request("HeadObject", key) as client:
                found = await client.head_object(Bucket=self._bucket, Key=key)
                return Head(size=found["ContentLength"], metadata=_read(found["Metadata"]), etag=_etag(found))
        except ObjectMissing:
            return None

    async def get(self, key: str, *, start: int | None = None, length: int | None = None) -> bytes:
        if length == 0:
            return b""  # no Range can say so
        first, last = start or 0, "" if length is None else (start or 0) + length - 1
        wanted: dict[str, Any] = {} if first == 0 and length is None else {"Range": f"bytes={first}-{last}"}
        async with self._request("GetObject", key) as client:
            try:
                found = await client.get_object(Bucket=self._bucket, Key=key, **wanted)
            except ClientError as error:
                if error.response["Error"].get("Code") in {"InvalidRange", "416"}:
                    return b""  # past its end
                raise
            async with found["Body"] as stream:
                data = await stream.read()
        if wanted and "ContentRange" not in found:  # a server without ranges sends all
            return data[first:][:length]
        return data

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        page: dict[str, Any] = {}
        while True:
            async with self._request("ListObjectsV2", prefix) as client:
                found = await client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, **page)
            for each in found.get("Contents", []):
                yield ObjectInfo(key=each["Key"], size=each["Size"], etag=each.get("ETag"))
            if not found.get("IsTruncated"):
                return
            page = {"ContinuationToken": found["NextContinuationToken"]}

    async def aclose(self) -> None:
        self._client = None
        await self._open.aclose()

    async def _head_after(self, key: str) -> Head | None:
        """Ask what a PUT in doubt came to. To be refused that says nothing of the PUT."""
        try:
            return await self.head(key)
        except SyncError as error:
            error.nothing_stored = False
            raise

    async def _put_object(self, key: str, body: Body, metadata: Mapping[str, str], content_type: str) -> str:
        async with self._request("PutObject", key) as client:
            done = await client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=io.BytesIO(body.data),  # shares its memory; as plain bytes aiohttp would send it in one write
                ContentType=content_type,
                ContentMD5=body.md5,
                ChecksumSHA256=body.sha256_base64,
                IfNoneMatch="*",
                Metadata={name: quote(value, safe=PLAIN) for name, value in metadata.items()},
            )
            return _etag(done)

    @asynccontextmanager
    async def _request(self, operation: str, key: str) -> AsyncIterator[S3Client]:
        """Give the client for one request: bounded in time, its errors given their class."""
        subject = f"{operation} {self._settings.url}: {key}"
        self._in_use += 1
        try:
            # aiohttp bounds single reads and connects, not the whole.
            async with asyncio.timeout(self._settings.timeout):
                yield await self._connected()
        except ClientError as error:
            raise self._noted(of_server(subject, error)) from error
        except (BotoCoreError, HttpError, TimeoutError, ValueError, OSError) as error:
            raise self._noted(of_client(subject, error)) from error
        finally:
            self._in_use -= 1

    def _noted(self, error: SyncError) -> SyncError:
        self._refused = self._refused or error.error_class is ErrorClass.AUTH
        return error

    async def _connected(self) -> S3Client:
        """Return the client; after a refusal a new one, because a client reads the credential files only once."""
        async with self._opening:
            if self._refused and self._in_use == 1:  # ours is the only request
                await self.aclose()
                self._refused = False
            if self._client is None:
                client: S3Client = await self._open.enter_async_context(self._new_client())
                client.meta.events.register("before-send.s3.PutObject", _without_expect)
                self._client = client
            return self._client

    def _new_client(self) -> Any:
        settings = self._settings
        return aioboto3.Session().client(
            "s3",
            region_name=settings.region,
            endpoint_url=settings.endpoint_url,
            verify=str(settings.ca_bundle) if settings.ca_bundle is not None else None,
            config=AioConfig(
                retries={"mode": "standard", "total_max_attempts": 1},
                connect_timeout=min(CONNECT_TIMEOUT, settings.timeout),
                read_timeout=settings.timeout,
                max_pool_connections=settings.concurrency + CONNECTIONS_SPARE,
                # botocore's own checksums come as trailers over TLS, which Ceph and rclone refuse. Ours do not.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": settings.addressing_style, "payload_signing_enabled": True},
            ),
        )


def _without_expect(request: AWSPreparedRequest, **_: object) -> None:
    """Send the body at once: aiohttp would wait, without a timer, for a `100 Continue` that some servers never send."""
    if "Expect" in request.headers:
        del request.headers["Expect"]


def _etag(answer: Mapping[str, Any]) -> str:
    """Return the object's ETag. What says 200 without one is no S3 but a proxy, or a captive portal."""
    if "ETag" not in answer:
        raise ValueError("the answer has no ETag, so it is not an S3's")
    return str(answer["ETag"])


def _read(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): unquote(value) for name, value in metadata.items()}

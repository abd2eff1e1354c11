"""
A small S3 that checks what others let pass, and fails on demand.

It refuses a PutObject whose three hashes are not those of the body that came, and keeps every request for the test to
look at. `faults` are taken in turn, one per request.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 2  # objects in one page of a listing
DRIP_SECONDS = 0.05


class Fault(StrEnum):
    LOSE_REPLY = "lose_reply"  # carry it out, then cut the connection
    CUT = "cut"  # cut the connection, nothing done
    SILENCE = "silence"  # never answer
    DRIP = "drip"  # answer for ever, a byte at a time
    HALF_BODY = "half_body"  # promise a whole body and send half
    NO_RANGES = "no_ranges"  # answer a range with all


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.target).path).lstrip("/").partition("/")[2]

    @property
    def access_key(self) -> str:
        return self.headers["authorization"].partition("Credential=")[2].partition("/")[0]

    @property
    def signed_headers(self) -> list[str]:
        return self.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class StrictS3:
    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.objects: dict[str, Request] = {}
        self.requests: list[Request] = []
        self.arrived = asyncio.Event()
        self.faults: deque[Fault | Refusal] = deque()
        self._tls = tls
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def puts(self) -> list[Request]:
        return [request for request in self.requests if request.method == "PUT"]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while (request := await _read(reader)) is not None and await self._answer(request, writer):
                pass
        except (ConnectionError, ssl.SSLError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer `request`, and say whether the connection stays."""
        self.requests.append(request)
        self.arrived.set()
        fault = self.faults.popleft() if self.faults else None
        if fault is Fault.SILENCE:
            await asyncio.Event().wait()
        if fault is Fault.CUT:
            return False
        if fault is Fault.DRIP:
            await _drip(writer)
        reply = _refusal(fault) if isinstance(fault, Refusal) else self._reply(request, ranges=fault != Fault.NO_RANGES)
        if fault is Fault.LOSE_REPLY:
            return False
        _write(writer, request, reply, half=fault is Fault.HALF_BODY)
        await writer.drain()
        return fault is not Fault.HALF_BODY

    def _reply(self, request: Request, *, ranges: bool) -> Reply:
        if request.method == "PUT":
            return self._put(request)
        if "list-type" in request.target:
            return self._list(parse_qs(urlsplit(request.target).query))
        if not request.key:  # the bucket itself: botocore asks for its region after a HEAD that gave no reason
            return Reply(200)
        stored = self.objects.get(request.key)
        if stored is None:
            return _refusal(Refusal(404, "NoSuchKey"))
        headers = {name: value for name, value in stored.headers.items() if name.startswith("x-amz-meta-")}
        headers["etag"] = _etag(stored)
        if ranges and "range" in request.headers:
            first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
            part = stored.body[int(first) : int(last) + 1 if last else None]
            return Reply(206, {**headers, "content-range": f"bytes {first}-/{len(stored.body)}"}, part)
        return Reply(200, headers, stored.body)

    def _put(self, request: Request) -> Reply:
        sha256 = hashlib.sha256(request.body)
        if request.headers.get("x-amz-content-sha256") != sha256.hexdigest():
            return _refusal(Refusal(400, "XAmzContentSHA256Mismatch"))
        if request.headers.get("content-md5") != base64.b64encode(hashlib.md5(request.body).digest()).decode():
            return _refusal(Refusal(400, "BadDigest"))
        if request.headers.get("x-amz-checksum-sha256") != base64.b64encode(sha256.digest()).decode():
            return _refusal(Refusal(400, "XAmzContentChecksumMismatch"))
        if request.headers.get("if-none-match") == "*" and request.key in self.objects:
            return _refusal(Refusal(412, "PreconditionFailed"))
        self.objects[request.key] = request
        return Reply(200, {"etag": _etag(request)})

    def _list(self, query: dict[str, list[str]]) -> Reply:
        keys = [key for key in sorted(self.objects) if key.startswith(query.get("prefix", [""])[0])]
        start = int(query.get("continuation-token", ["0"])[0])
        page = keys[start : start + PAGE]
        lines = [f"<Contents><Key>{key}</Key><Size>{len(self.objects[key].body)}</Size></Contents>" for key in page]
        more = start + PAGE < len(keys)
        token = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if more else ""
        body = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(lines)}"
        return Reply(200, body=f"<ListBucketResult>{body}</ListBucketResult>".encode())


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx-endless: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(DRIP_SECONDS)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    except asyncio.IncompleteReadError:
        return None
    method, target, _ = first.split(" ")
    return Request(method, target, headers, body)


def _write(writer: asyncio.StreamWriter, request: Request, reply: Reply, *, half: bool) -> None:
    headers = {**reply.headers, "content-length": str(len(reply.body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {reply.status} Status\r\n{lines}\r\n".encode())
    if request.method != "HEAD":
        writer.write(reply.body[: len(reply.body) // 2] if half else reply.body)


def _refusal(refusal: Refusal) -> Reply:
    body = f"<Error><Code>{refusal.code}</Code><Message>as asked</Message></Error>" if refusal.code else ""
    return Reply(refusal.status, refusal.headers, body.encode())


def _etag(stored: Request) -> str:
    return f'"{hashlib.md5(stored.body).hexdigest()}"'

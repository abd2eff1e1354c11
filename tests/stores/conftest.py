"""The stores that the suite runs on: a directory, moto's server, rclone's server, and a strict stub of our own."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from services import Bucket
from strict_s3 import StrictS3

from edge_recorder.settings import Store
from sync.stores import ObjectStore, open_store
from sync.stores.s3 import S3Store

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
BUCKET = "recordings"


@contextmanager
def serve(*command: str) -> Iterator[str]:
    """Run `command` and give the address that it prints."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        address = next(found[0] for line in process.stdout if (found := ADDRESS.search(line)))
        rest = threading.Thread(target=process.stdout.read)  # a full pipe would stop the server
        rest.start()
        try:
            yield address
        finally:
            process.terminate()
            rest.join()


@pytest.fixture(scope="session")
def rclone_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rclone = shutil.which("rclone", path=str(Path(sys.executable).parent))
    assert rclone is not None
    options = ("--config", "", "--addr", "127.0.0.1:0", "--auth-key", "testing,testing")
    with serve(rclone, "serve", "s3", *options, str(tmp_path_factory.mktemp("rclone"))) as address:
        yield address


@pytest.fixture(autouse=True)
def _credentials(aws_environment: None) -> None:
    """Nothing of this machine's own AWS settings reaches a test."""


@pytest.fixture(params=["file", "moto", "rclone"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """Each store in turn, empty."""
    opened = await _open(request, tmp_path)
    yield opened
    await opened.aclose()


async def _open(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "file":
        return open_store(Store(url=tmp_path.as_uri()))
    if request.param == "moto":
        bucket: Bucket = request.getfixturevalue("bucket")
        return open_store(Store(url=f"s3://{bucket.name}", endpoint_url=bucket.endpoint_url))
    name = f"{BUCKET}-{uuid4()}"
    settings = Store(url=f"s3://{name}", endpoint_url=request.getfixturevalue("rclone_address"))
    store = S3Store(settings, head_first=True)  # it ignores If-None-Match
    async with store._request("CreateBucket", name) as client:
        await client.create_bucket(Bucket=name)
    return store


@pytest.fixture
async def strict() -> AsyncIterator[StrictS3]:
    async with StrictS3() as server:
        yield server


@pytest.fixture
async def strict_store(strict: StrictS3) -> AsyncIterator[S3Store]:
    """A store on the strict stub."""
    opened = S3Store(Store(url=f"s3://{BUCKET}/pre", endpoint_url=strict.address, timeout=20))
    await opened._connected()  # loads botocore's tables, which the timeout of a first request must not pay for
    yield opened
    await opened.aclose()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "strict stub")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def ca_bundle(certificate: tuple[Path, Path]) -> Path:
    return certificate[0]


@pytest.fixture
async def tls_strict(certificate: tuple[Path, Path]) -> AsyncIterator[StrictS3]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    async with StrictS3(context) as server:
        yield server

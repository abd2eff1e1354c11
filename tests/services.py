"""
The real services that tests run against.

The servers themselves are the product's own, which the demo uses too (`sync.commands.embedded`). Here is what only a
test needs: a bucket of its own, a client to look into it, and an environment without any credentials of the machine's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

from sync.commands.embedded import Door, make_room
from sync.commands.embedded import EmbeddedPostgres as PostgresServer
from sync.commands.embedded import EmbeddedS3 as S3Server

__all__ = ["AWS_FOREIGN", "AWS_TESTING", "Bucket", "Door", "PostgresServer", "S3Server", "make_room"]

AWS_TESTING = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}
AWS_FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")

ONE_TRY = Config(
    connect_timeout=5,
    read_timeout=10,
    retries={"total_max_attempts": 1},
    s3={"addressing_style": "path"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket that one test has to itself."""

    endpoint_url: str
    name: str

    def client(self, endpoint_url: str = "") -> Any:
        """Return an S3 client that tries once, here or by another way (a door's `endpoint_url`)."""
        return boto3.client("s3", endpoint_url=endpoint_url or self.endpoint_url, config=ONE_TRY)

    def keys(self) -> list[str]:
        """Return every key in it, in order."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        """Return what is stored under `key`."""
        stored: bytes = self.client().get_object(Bucket=self.name, Key=key)["Body"].read()
        return stored

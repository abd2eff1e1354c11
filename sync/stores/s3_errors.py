"""
What an error of S3, or of the way to it, means and what to do about it.

A server's own code says more than its status, so codes come first. A HEAD has no body and so no code: its 403 may be
permission, credentials or the clock, and its 400 an expired token.
"""

from __future__ import annotations

import ssl

from aiohttp import ClientConnectorError
from aiohttp import ClientError as HttpError
from botocore import exceptions as boto

from sync.retry import ErrorClass, SyncError
from sync.stores import ObjectMissing

CREDENTIALS = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile or role that stands in for them"
PERMISSION = "Allow this login s3:PutObject, s3:GetObject and s3:ListBucket there"
PLACE = "Check [store] url, region and endpoint_url"
TLS = "Check [store] ca_bundle and the certificate of the endpoint"
CLOCK = "Set this machine's clock (NTP)"
WAIT = "The next `sync` tries again"
ITEM = "Look at the error; when its cause is gone, `edge-recorder retry`"

THE_WAY = (ErrorClass.TRANSIENT, WAIT)
TOO_FAST = (ErrorClass.THROTTLE, WAIT)
BAD_ITEM = (ErrorClass.ITEM, ITEM)
BAD_CREDENTIALS = (ErrorClass.AUTH, CREDENTIALS)
FORBIDDEN = (ErrorClass.AUTH, PERMISSION)
BAD_PLACE = (ErrorClass.AUTH, PLACE)

CODES = {
    # It will pass.
    "ConditionalRequestConflict": THE_WAY,
    "IncompleteBody": THE_WAY,
    "InternalError": THE_WAY,
    "OperationAborted": THE_WAY,
    "RequestTimeout": THE_WAY,
    "RequestLimitExceeded": TOO_FAST,
    "ServiceUnavailable": TOO_FAST,
    "SlowDown": TOO_FAST,
    "Throttling": TOO_FAST,
    "ThrottlingException": TOO_FAST,
    "TooManyRequests": TOO_FAST,
    # Somebody must look; it heals when they have.
    "ExpiredToken": (ErrorClass.AUTH, "The session token has expired: renew it where it comes from"),
    "InvalidAccessKeyId": BAD_CREDENTIALS,
    "InvalidToken": BAD_CREDENTIALS,
    "SignatureDoesNotMatch": BAD_CREDENTIALS,
    "TokenRefreshRequired": BAD_CREDENTIALS,
    "AccessDenied": FORBIDDEN,
    "AllAccessDisabled": FORBIDDEN,
    "AuthorizationHeaderMalformed": BAD_PLACE,
    "InvalidBucketName": BAD_PLACE,
    "NoSuchBucket": (ErrorClass.AUTH, "Make that bucket, or correct [store] url. It is never made here"),
    "PermanentRedirect": BAD_PLACE,
    "NotImplemented": (ErrorClass.AUTH, "This endpoint lacks what is needed: `edge-recorder doctor` says what"),
    "QuotaExceeded": (ErrorClass.AUTH, "Raise the quota of that bucket or user"),
    "RequestExpired": (ErrorClass.CLOCK, CLOCK),
    "RequestTimeTooSkewed": (ErrorClass.CLOCK, CLOCK),
    # This object will not do.
    "BadDigest": BAD_ITEM,
    "EntityTooLarge": BAD_ITEM,
    "InvalidDigest": BAD_ITEM,
    "InvalidObjectState": (ErrorClass.ITEM, "It was moved to an archive: restore it there"),
    "InvalidRequest": BAD_ITEM,
    "KeyTooLongError": BAD_ITEM,
    "MetadataTooLarge": BAD_ITEM,
    "XAmzContentChecksumMismatch": BAD_ITEM,
    "XAmzContentSHA256Mismatch": BAD_ITEM,
}
STATUSES = {
    401: BAD_CREDENTIALS,
    403: (ErrorClass.AUTH, f"{PERMISSION}. {CREDENTIALS}. {CLOCK}"),
    408: THE_WAY,
    409: THE_WAY,
    425: THE_WAY,
    429: TOO_FAST,
    503: TOO_FAST,
}
# Refused before anything was looked at: the bucket is not there or not ours, or the login is not known. A token that
# has just expired is not among them, as the same PUT may have come through a moment before.
REFUSED = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "InvalidAccessKeyId",
        "InvalidBucketName",
        "NoSuchBucket",
        "PermanentRedirect",
        "SignatureDoesNotMatch",
    }
)
MISSING = frozenset({"NoSuchKey", "404"})
NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.ProfileNotFound,
    boto.SSOError,
    boto.TokenRetrievalError,
)
LOST = (boto.HTTPClientError, HttpError, TimeoutError, OSError)
NOT_SENT = (boto.ConnectTimeoutError, boto.ProxyConnectionError)


class InDoubt(SyncError):
    """The request may have been carried out: its reply was lost, or says that the key is taken (perhaps by us)."""


def of_server(subject: str, error: boto.ClientError) -> SyncError:
    """Return what the server's answer means."""
    code = str(error.response["Error"].get("Code", ""))
    status = int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))
    message = f"{subject}: {code} {error.response['Error'].get('Message', '')}".rstrip()
    if code in MISSING:
        return ObjectMissing(message, error_class=ErrorClass.ITEM, fix="`verify` shows what else is missing", code=code)
    if status == 412:  # noqa: PLR2004 (Precondition Failed)
        return InDoubt(message, error_class=ErrorClass.TRANSIENT, fix=WAIT, code=code)
    error_class, fix = CODES.get(code) or _of_status(status, error.operation_name)
    return SyncError(
        message,
        error_class=error_class,
        fix=fix,
        retry_after=_retry_after(error),
        code=code,
        nothing_stored=code in REFUSED,
    )


def of_client(subject: str, error: Exception) -> SyncError:
    """Return what it means that no answer came, or none that an S3 would give."""
    cause = error.kwargs.get("error", error) if isinstance(error, boto.BotoCoreError) else error
    message = f"{subject}: {error}" if str(error) else f"{subject}: no answer in time"
    if isinstance(cause, ssl.SSLError | FileNotFoundError | PermissionError):
        return SyncError(message, error_class=ErrorClass.AUTH, fix=TLS)
    if isinstance(error, NOT_SENT) or isinstance(cause, ClientConnectorError):
        return SyncError(message, error_class=ErrorClass.TRANSIENT, fix=WAIT)
    if isinstance(error, NO_CREDENTIALS):
        return SyncError(message, error_class=ErrorClass.AUTH, fix=CREDENTIALS, nothing_stored=True)
    if isinstance(error, boto.ParamValidationError):
        return SyncError(message, error_class=ErrorClass.ITEM, fix=ITEM)
    if isinstance(error, LOST):
        return InDoubt(message, error_class=ErrorClass.TRANSIENT, fix=WAIT)
    return SyncError(message, error_class=ErrorClass.AUTH, fix=PLACE)


def _of_status(status: int, operation: str) -> tuple[ErrorClass, str]:
    if status in STATUSES:
        return STATUSES[status]
    if status >= 500:  # noqa: PLR2004 (server errors)
        return THE_WAY
    if status < 400:  # noqa: PLR2004 (a redirect that nobody followed)
        return BAD_PLACE
    return STATUSES[403] if operation == "HeadObject" else BAD_ITEM


def _retry_after(error: boto.ClientError) -> float | None:
    """Return the seconds that the server asks for, where it names them."""
    asked = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("retry-after", "")
    return float(asked) if asked.isdecimal() else None

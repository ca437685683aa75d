"""Errors of any driver as storage errors whose messages say which object, why, and what to do.

s3fs raises `OSError`s caused by botocore's error, adlfs the Azure SDK's own, gcsfs its `HttpError`. They are
recognised by status, code and class name, so no driver needs to be installed.
"""

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from prefect_augment.errors import StorageError, TransientError
from prefect_augment.params.locations import hide_secrets

Kind = Literal[
    "absent",  # no such object
    "exists",  # a condition was not met: there is an object
    "transient",  # may pass
    "unreachable",  # no answer from the endpoint; may be transient, too
    "denied",
    "credentials",
    "bucket",
    "region",
    "skew",
    "certificate",
    "changed",  # the object was replaced while it was read
    "other",
]

# fmt: off
_CODES: dict[Kind, frozenset[str]] = {
    "absent": frozenset({"NoSuchKey", "BlobNotFound", "NotFound"}),
    "exists": frozenset({"PreconditionFailed", "BlobAlreadyExists", "ConditionNotMet"}),
    "bucket": frozenset({"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}),
    "skew": frozenset({"RequestTimeTooSkewed", "RequestExpired"}),
    "region": frozenset({
        "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect",
        "TemporaryRedirect"
    }),
    "credentials": frozenset({
        "AuthenticationFailed", "AuthFailure", "ExpiredToken", "ExpiredTokenException",
        "InvalidAccessKeyId", "InvalidAuthenticationInfo", "InvalidClientTokenId", "InvalidToken",
        "MissingAuthenticationToken", "NoAuthenticationInformation", "SignatureDoesNotMatch",
        "TokenRefreshRequired", "UnrecognizedClientException"
    }),
    "denied": frozenset({
        "AccessDenied", "AccountProblem", "AllAccessDisabled", "AuthorizationFailure",
        "AuthorizationPermissionMismatch", "Forbidden", "InsufficientAccountPermissions"
    }),
    # ConditionalRequestConflict (409) is S3's word for two conditional writes at one time: ask again, and
    # the second answer says who was first. A damaged body is sent again, too. NoSuchUpload is what s3fs hears
    # when it takes back an upload whose last answer was lost: it was finished, or it begins anew.
    "transient": frozenset({
        "BadDigest", "BandwidthLimitExceeded", "ConditionalRequestConflict", "IncompleteBody",
        "InternalError", "NoSuchUpload", "OperationAborted", "OperationTimedOut",
        "RequestLimitExceeded", "RequestTimeout", "ServerBusy", "ServiceUnavailable", "SlowDown",
        "Throttling", "ThrottlingException", "TooManyRequests", "XAmzContentSHA256Mismatch"
    }),
}
# fmt: on
_KIND_OF_CODE = {code: kind for kind, codes in _CODES.items() for code in codes}
_KIND_OF_STATUS: dict[int, Kind] = {
    301: "region",
    307: "region",
    401: "credentials",
    403: "denied",
    404: "absent",
    412: "exists",
    **dict.fromkeys((408, 429, 500, 502, 503, 504), "transient"),
}
# fmt: off
# By name, since the drivers may not be installed. A class counts through its parents, too.
_CLASSES: dict[Kind, frozenset[str]] = {
    "credentials": frozenset({
        "ClientAuthenticationError", "CredentialRetrievalError", "CredentialUnavailableError",
        "DefaultCredentialsError", "NoCredentialsError", "PartialCredentialsError",
        "ProfileNotFound", "RefreshError", "TokenRetrievalError", "SSOTokenLoadError",
        "UnauthorizedSSOTokenError"
    }),
    "certificate": frozenset({"ClientConnectorCertificateError", "SSLError"}),
    "changed": frozenset({"FileExpired"}),
    "unreachable": frozenset({
        "ClientConnectorError", "ConnectTimeoutError", "EndpointConnectionError",
        "ServiceRequestError"
    }),
    "transient": frozenset({
        "ChecksumError", "ChunkedEncodingError", "ClientConnectionError", "ClientPayloadError",
        "FSTimeoutError", "HTTPClientError", "IncompleteRead", "IncompleteReadError", "ProxyError",
        "ResponseParserError", "ServiceResponseError", "Timeout", "TransportError"
    }),
}
# fmt: on
DRIVERS = frozenset(
    {"adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "requests", "s3fs"}
)


@dataclass(frozen=True)
class Fault:
    """The kind of a fault, and the store's own code for it (empty if none)."""

    kind: Kind
    code: str = ""


def fault_of(exc: BaseException) -> Fault:
    """Return the fault that a driver's exception stands for."""
    chain = list(_chain(exc))
    # What a store answered says more than what became of the answer on its way up.
    for part in chain:
        code, status = _answer(part)
        kind = _KIND_OF_CODE.get(code) or _KIND_OF_STATUS.get(status or 0)
        if kind is not None:
            return Fault(kind, code or str(status))
    if any(isinstance(part, ssl.SSLCertVerificationError) for part in chain):
        return Fault("certificate")
    causes = list(_chain(exc, only_causes=True))
    for part in chain:
        kind = _kind_of_class(part)
        # What was expected and handled before something else went wrong says nothing of that.
        if kind in ("absent", "exists") and part not in causes:
            continue
        if kind is not None:
            return Fault(kind, type(part).__name__)
    return Fault("other", next((code for code, _ in map(_answer, chain) if code), ""))


def _chain(exc: BaseException, *, only_causes: bool = False) -> Iterator[BaseException]:
    seen: set[int] = set()
    part: BaseException | None = exc
    while part is not None and id(part) not in seen:
        seen.add(id(part))
        yield part
        part = part.__cause__ or (None if only_causes else part.__context__)


def _answer(exc: BaseException) -> tuple[str, int | None]:
    """Return the error code and HTTP status of the store's answer, where the exception has them."""
    response = getattr(exc, "response", None)
    if isinstance(response, dict):  # botocore
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code.isdigit():  # the answer to a HEAD request has no body, so the status is all it says
            return "", int(code)
        return code, status
    if type(exc).__module__.startswith("azure."):
        answer: Any = getattr(exc, "error_code", None)
        return str(getattr(answer, "value", answer) or ""), getattr(exc, "status_code", None)
    for name in ("code", "status"):  # gcsfs, aiohttp
        value: Any = getattr(exc, name, None)
        if type(exc).__module__.split(".")[0] in DRIVERS and str(value).isdigit():
            return "", int(value)
    if isinstance(exc, OSError) and str(exc).startswith("Forbidden: "):  # gcsfs
        return "Forbidden", 403
    return "", None


def _kind_of_class(exc: BaseException) -> Kind | None:
    if isinstance(exc, FileNotFoundError):
        return "absent"
    if isinstance(exc, FileExistsError):
        return "exists"
    if isinstance(exc, PermissionError):
        return "denied"
    if isinstance(exc, socket.gaierror | ConnectionRefusedError):
        return "unreachable"
    if isinstance(exc, ConnectionError | TimeoutError):
        return "transient"
    names = {parent.__name__ for parent in type(exc).__mro__}
    if type(exc).__module__.split(".")[0] not in {*DRIVERS, "fsspec", "http"}:
        return None
    return next((kind for kind, classes in _CLASSES.items() if names & classes), None)


_PERMISSIONS = {
    "s3": {
        "read": "s3:GetObject",
        "look at": "s3:GetObject and s3:ListBucket",
        "write": "s3:PutObject",
        "list": "s3:ListBucket",
        "delete": "s3:DeleteObject",
    },
    "gs": {
        "read": "storage.objects.get",
        "look at": "storage.objects.get and storage.objects.list",
        "write": "storage.objects.create and storage.objects.delete",
        "list": "storage.objects.list",
        "delete": "storage.objects.delete",
    },
    "az": dict.fromkeys(("read", "look at", "list"), "the role Storage Blob Data Reader")
    | dict.fromkeys(("write", "delete"), "the role Storage Blob Data Contributor"),
}
_FAMILIES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
_ADVICE = {
    "InvalidAccessKeyId": "the access key id is not known there",
    "InvalidClientTokenId": "the access key id is not known there",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key id",
    "ExpiredToken": "the session's token has expired; get a new one",
    "ExpiredTokenException": "the session's token has expired; get a new one",
    "AuthenticationFailed": "the account key or token is not valid, or this machine's clock is wrong",
}


def as_storage_error(
    exc: Exception, *, verb: str, uri: str, path: str, has_answered: bool = False
) -> StorageError | None:
    """Return the storage error that an exception stands for; None if it is not a store's.

    ``verb`` is what was tried (read, write, list, delete, look at), ``path`` the object below the root
    ``uri``. If nothing there has ever answered (``has_answered``), the error is final: the address may be wrong.
    """
    where = f"{uri}/{path}".rstrip("/")
    if "://" not in uri or uri.startswith(("file://", "memory://")):
        return _of_disk(exc, verb, where)
    fault = fault_of(exc)
    if fault.kind == "other" and not (
        isinstance(exc, OSError) or type(exc).__module__.split(".")[0] in DRIVERS
    ):
        return None
    passes = fault.kind == "transient" or (fault.kind == "unreachable" and has_answered)
    kind = TransientError if passes else StorageError
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    bucket = bucket.partition("@")[0]  # Azure's container
    return kind(
        f"cannot {verb} {where}: {_why(fault, exc, verb, uri, bucket)}",
        path=path,
        bucket=bucket,
        key="/".join(part for part in (prefix, path) if part),
        code=fault.code,
    )


_WHY: dict[Kind, str] = {
    "denied": "permission denied{code}; grant {needed} on {holder} {bucket!r} to the credentials in use, check "
    "that they are the ones that are meant, or choose another location.",
    "credentials": "{advice}{code}; credentials come from the environment, the driver's own configuration or a "
    "Prefect block named in source.storage_block or destination.storage_block.",
    "bucket": "there is no {holder} {bucket!r} at this endpoint{code}; create it, or check its name and the "
    "endpoint.",
    "skew": "this machine's clock and the store's differ too much{code}, so it takes no signature; set the clock "
    "(NTP) and run again.",
    "region": "{holder} {bucket!r} is in another region or at another endpoint{code}; set AWS_DEFAULT_REGION or "
    "endpoint_url.",
    "certificate": "the endpoint's certificate is not valid here; check the endpoint, or name your authority's file "
    "in AWS_CA_BUNDLE.",
    "changed": "it was replaced while it was read; run again once the source stands still.",
    "unreachable": "no answer from the endpoint{code}: {words}; check endpoint_url and the network, then run "
    "again.",
    "transient": "the store kept failing{code}: {words}; run again later, the run continues where it was.",
}


def _why(fault: Fault, exc: Exception, verb: str, uri: str, bucket: str) -> str:
    scheme = uri.partition("://")[0]
    family = _FAMILIES.get(scheme, scheme)
    is_missing = fault.kind == "absent" and verb in ("write", "list")
    return _WHY.get("bucket" if is_missing else fault.kind, "{error}: {words}.").format(
        code=f" ({fault.code})" if fault.code else "",
        needed=_PERMISSIONS.get(family, {}).get(verb, f"what it takes to {verb} objects"),
        holder="container" if family == "az" else "bucket",
        bucket=bucket,
        advice=_ADVICE.get(fault.code, "no credentials that the store takes were found"),
        error=type(exc).__name__,
        words=_words(exc),
    )


def _words(exc: Exception) -> str:
    """Return the first line of the driver's message; some print whole requests below it."""
    line = (str(exc).strip() or type(exc).__name__).splitlines()[0]
    return hide_secrets(line)[:200].rstrip(".")


_NO_SPACE = "no space left to {} {}; free some and run again, the run continues where it was."
_ON_DISK = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: "cannot {} {}: larger than the file system or the user's limit (ulimit -f) allows; raise the limit "
    "or write smaller shards (publish.shard_mib).",
}


def _of_disk(exc: Exception, verb: str, where: str) -> StorageError | None:
    if isinstance(exc, PermissionError):
        return StorageError(
            f"no permission to {verb} {where}; grant it or choose another location."
        )
    if not isinstance(exc, OSError):
        return None
    if exc.errno in _ON_DISK:
        return StorageError(_ON_DISK[exc.errno].format(verb, where))
    why = f"{type(exc).__name__}: {exc}"
    if exc.errno == errno.ENOTDIR:
        why = "a part of this path is a file and no folder; choose another location"
    elif exc.errno in (errno.EISDIR, errno.EROFS, errno.EEXIST):
        why = f"{os.strerror(exc.errno)}; choose another location"
    return StorageError(f"cannot {verb} {where}: {why}.")

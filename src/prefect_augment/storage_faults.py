"""What an error of a store means, whichever driver raised it.

s3fs raises `OSError`s with botocore's error as their cause, adlfs the Azure SDK's own, gcsfs its `HttpError`.
They are known here by their status, code and class name, so that no driver needs to be installed.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["DRIVERS", "Fault", "Kind", "fault_of"]

Kind = Literal[
    "absent",  # no such object
    "exists",  # a condition was not met: there is an object
    "transient",  # may pass
    "unreachable",  # nobody answers at the endpoint; may pass, too
    "denied",
    "credentials",
    "bucket",
    "region",
    "skew",
    "certificate",
    "changed",  # the object was replaced while it was read
    "other",
]

_CODES: dict[Kind, frozenset[str]] = {
    "absent": frozenset({"NoSuchKey", "BlobNotFound", "NotFound"}),
    "exists": frozenset({"PreconditionFailed", "BlobAlreadyExists", "ConditionNotMet"}),
    "bucket": frozenset({"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}),
    "skew": frozenset({"RequestTimeTooSkewed", "RequestExpired"}),
    "region": frozenset(
        {
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException",
            "PermanentRedirect",
            "TemporaryRedirect",
        }
    ),
    "credentials": frozenset(
        {
            "AuthenticationFailed",
            "AuthFailure",
            "ExpiredToken",
            "ExpiredTokenException",
            "InvalidAccessKeyId",
            "InvalidAuthenticationInfo",
            "InvalidClientTokenId",
            "InvalidToken",
            "MissingAuthenticationToken",
            "NoAuthenticationInformation",
            "SignatureDoesNotMatch",
            "TokenRefreshRequired",
            "UnrecognizedClientException",
        }
    ),
    "denied": frozenset(
        {
            "AccessDenied",
            "AccountProblem",
            "AllAccessDisabled",
            "AuthorizationFailure",
            "AuthorizationPermissionMismatch",
            "Forbidden",
            "InsufficientAccountPermissions",
        }
    ),
    # ConditionalRequestConflict (409) is S3's word for two conditional writes at one time: ask again, and
    # the second answer says who was first. A damaged body is sent again, too. NoSuchUpload is what s3fs hears
    # when it takes back an upload whose last answer was lost: it was finished, or it begins anew.
    "transient": frozenset(
        {
            "BadDigest",
            "BandwidthLimitExceeded",
            "ConditionalRequestConflict",
            "IncompleteBody",
            "InternalError",
            "NoSuchUpload",
            "OperationAborted",
            "OperationTimedOut",
            "RequestLimitExceeded",
            "RequestTimeout",
            "ServerBusy",
            "ServiceUnavailable",
            "SlowDown",
            "Throttling",
            "ThrottlingException",
            "TooManyRequests",
            "XAmzContentSHA256Mismatch",
        }
    ),
}
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
# By name, since the drivers may not be installed. A class counts through its parents, too.
_KIND_OF_CLASS: tuple[tuple[Kind, frozenset[str]], ...] = (
    (
        "credentials",
        frozenset(
            {
                "ClientAuthenticationError",
                "CredentialRetrievalError",
                "CredentialUnavailableError",
                "DefaultCredentialsError",
                "NoCredentialsError",
                "PartialCredentialsError",
                "ProfileNotFound",
                "RefreshError",
                "TokenRetrievalError",
                "SSOTokenLoadError",
                "UnauthorizedSSOTokenError",
            }
        ),
    ),
    ("certificate", frozenset({"ClientConnectorCertificateError", "SSLError"})),
    ("changed", frozenset({"FileExpired"})),
    (
        "unreachable",
        frozenset(
            {
                "ClientConnectorError",
                "ConnectTimeoutError",
                "EndpointConnectionError",
                "ServiceRequestError",
            }
        ),
    ),
    (
        "transient",
        frozenset(
            {
                "ChecksumError",
                "ChunkedEncodingError",
                "ClientConnectionError",
                "ClientPayloadError",
                "FSTimeoutError",
                "HTTPClientError",
                "IncompleteRead",
                "IncompleteReadError",
                "ProxyError",
                "ResponseParserError",
                "ServiceResponseError",
                "Timeout",
                "TransportError",
            }
        ),
    ),
)
DRIVERS = frozenset(
    {"adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "requests", "s3fs"}
)


@dataclass(frozen=True)
class Fault:
    """What happened: the kind, and the store's own word for it (empty where it gave none)."""

    kind: Kind
    code: str = ""

    @property
    def may_pass(self) -> bool:
        """Whether asking again may help."""
        return self.kind in ("transient", "unreachable")


def fault_of(exc: BaseException) -> Fault:
    """Return what an exception of a driver means."""
    chain = list(_chain(exc))
    # What a store answered says more than what became of the answer on its way up.
    for part in chain:
        code, status = _answer(part)
        kind = _KIND_OF_CODE.get(code) or _KIND_OF_STATUS.get(status or 0)
        if kind is not None:
            return Fault(kind, code or str(status))
    for part in chain:
        if isinstance(part, ssl.SSLCertVerificationError):
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
    """Return the code and the HTTP status that a store answered with, as far as this error tells."""
    response = getattr(exc, "response", None)
    if isinstance(response, dict):  # botocore
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code.isdigit():  # the answer to a HEAD request has no body, so the status is all it says
            return "", int(code)
        return code, status
    if type(exc).__module__.startswith("azure."):
        given: Any = getattr(exc, "error_code", None)
        return str(getattr(given, "value", given) or ""), getattr(exc, "status_code", None)
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
    return next((kind for kind, classes in _KIND_OF_CLASS if names & classes), None)

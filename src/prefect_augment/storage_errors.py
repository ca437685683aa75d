"""What a person reads where a store fails: which object, why, and what can be done about it."""

from __future__ import annotations

import errno
import os

from prefect_augment.errors import StorageError, TransientError
from prefect_augment.storage_faults import DRIVERS, Fault, fault_of

__all__ = ["as_storage_error"]

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
    """Return the error to raise for an exception; None where it is none of a store.

    Parameters
    ----------
    exc : Exception
        What a driver raised.
    verb : {"read", "write", "list", "delete", "look at"}
        What was tried.
    uri, path : str
        The store's root and the object below it.
    has_answered : bool
        Whether anybody has ever answered there. If not, nobody may ever: then it is no `TransientError`.
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
    bucket, key = _names(uri, path)
    return kind(
        f"cannot {verb} {where}: {_said(fault, exc, verb, uri, bucket)}",
        path=path,
        bucket=bucket,
        key=key,
        code=fault.code,
    )


def _said(fault: Fault, exc: Exception, verb: str, uri: str, bucket: str) -> str:
    code = f" ({fault.code})" if fault.code else ""
    holder = "container" if _family(uri) == "az" else "bucket"
    if fault.kind == "denied":
        needed = _PERMISSIONS.get(_family(uri), {}).get(verb, f"what it takes to {verb} objects")
        return (
            f"permission denied{code}; grant {needed} on {holder} {bucket!r} to the credentials in use, check "
            "that they are the ones that are meant, or choose another location."
        )
    if fault.kind == "credentials":
        why = _ADVICE.get(fault.code, "no credentials that the store takes were found")
        return (
            f"{why}{code}; credentials come from the environment, the driver's own configuration or a Prefect block "
            "named in source.storage_block or destination.storage_block."
        )
    if fault.kind == "bucket" or (fault.kind == "absent" and verb in ("write", "list")):
        return f"there is no {holder} {bucket!r} at this endpoint{code}; create it, or check its name and the endpoint."
    if fault.kind == "skew":
        return (
            f"this machine's clock and the store's differ too much{code}, so it takes no signature; set the clock "
            "(NTP) and run again."
        )
    if fault.kind == "region":
        return (
            f"{holder} {bucket!r} is in another region or at another endpoint{code}; set AWS_DEFAULT_REGION or "
            "endpoint_url."
        )
    if fault.kind == "certificate":
        return (
            "the endpoint's certificate is not valid here; check the endpoint, or name your authority's file in "
            "AWS_CA_BUNDLE."
        )
    if fault.kind == "changed":
        return "it was replaced while it was read; run again once the source stands still."
    if fault.kind == "unreachable":
        return (
            f"nobody answers at the endpoint{code}: {_words(exc)}; check endpoint_url and the network, then run "
            "again."
        )
    if fault.kind == "transient":
        return f"the store kept failing{code}: {_words(exc)}; run again later, the run continues where it was."
    return f"{type(exc).__name__}: {_words(exc)}."


def _words(exc: Exception) -> str:
    """The first line of what the driver says; some print whole requests below it."""
    return (str(exc).strip() or type(exc).__name__).splitlines()[0][:200].rstrip(".")


def _family(uri: str) -> str:
    scheme = uri.partition("://")[0]
    return _FAMILIES.get(scheme, scheme)


def _names(uri: str, path: str) -> tuple[str, str]:
    """Return the bucket (container) and the object's key in it."""
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    return bucket.partition("@")[0], "/".join(part for part in (prefix, path) if part)


def _of_disk(exc: Exception, verb: str, where: str) -> StorageError | None:
    if isinstance(exc, PermissionError):
        return StorageError(
            f"no permission to {verb} {where}; grant it or choose another location."
        )
    if not isinstance(exc, OSError):
        return None
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"no space left to {verb} {where}; free some and run again, the run continues where it was."
        )
    if exc.errno == errno.EFBIG:
        return StorageError(
            f"cannot {verb} {where}: larger than the file system or the user's limit (ulimit -f) allows; "
            "raise the limit or write smaller shards (publish.shard_mib)."
        )
    if exc.errno in (errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.EEXIST):
        return StorageError(
            f"cannot {verb} {where}: {os.strerror(exc.errno)}; choose another location."
        )
    return StorageError(f"cannot {verb} {where}: {type(exc).__name__}: {exc}.")

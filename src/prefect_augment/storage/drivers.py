"""Options and quirks of the object store drivers (s3fs, adlfs, gcsfs), which bring them under one contract."""

import functools
import json
import os
from typing import Any

import fsspec

# Variables that decide whom a driver connects as, and where.
_CONNECTION = ("AWS_", "AZURE_", "GOOGLE_", "GCSFS_", "STORAGE_EMULATOR_HOST", "HOME", "FSSPEC_")

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
# The protocol of a URL -> the extra with its driver.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
EXTRAS |= dict.fromkeys(("az", "abfs", "abfss"), "azure")
_CHECKSUMS = {
    "request_checksum_calculation": "AWS_REQUEST_CHECKSUM_CALCULATION",
    "response_checksum_validation": "AWS_RESPONSE_CHECKSUM_VALIDATION",
}


def open_fs(uri: str, requested: dict[str, Any]) -> tuple[Any, str]:
    """Return the file system of ``uri`` and the root on it.

    Each task of a run opens its store, and a new client of botocore takes a quarter of a second. So a file
    system is opened once per process, options and credentials of the environment.
    """
    try:
        options = json.dumps(requested, sort_keys=True)
    except TypeError:  # an object, such as a credential of Azure's
        return _open(uri, requested)
    environment = tuple(sorted(i for i in os.environ.items() if i[0].startswith(_CONNECTION)))
    return _opened(uri, options, environment, os.getpid())


@functools.lru_cache(maxsize=16)
def _opened(uri: str, options: str, _environment: tuple[Any, ...], _pid: int) -> tuple[Any, str]:
    return _open(uri, json.loads(options))


def _open(uri: str, requested: dict[str, Any]) -> tuple[Any, str]:
    fs, root = fsspec.core.url_to_fs(uri, **options_of(uri, requested))
    return fs, str(root)


def forget_connections() -> None:
    """Open every file system anew: keys may have been changed in a file that drivers read at the start."""
    _opened.cache_clear()


def options_of(uri: str, requested: dict[str, Any]) -> dict[str, Any]:
    """Return the fsspec options to open ``uri`` with: the user's, then our defaults."""
    if uri.startswith("memory://"):
        return requested
    # Listings are never cached, and fsspec does not share instances: a stale listing hides another writer's
    # manifest, and fsspec knows nothing of the environment's credentials.
    options = {"use_listings_cache": False, "skip_instance_cache": True, **requested}
    if uri.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = {**_s3_config(requested), **requested.get("config_kwargs", {})}
    return options


def s3_endpoint(requested: dict[str, Any]) -> str:
    """Return the URL of an S3 server that is not Amazon's, from the options or the environment; else empty."""
    return (
        requested.get("endpoint_url")
        or requested.get("client_kwargs", {}).get("endpoint_url")
        or next(filter(None, map(os.environ.get, _ENDPOINTS)), "")
    )


def _s3_config(requested: dict[str, Any]) -> dict[str, Any]:
    """Return botocore's settings: no retries of its own, and checksums that other makers' stores take."""
    config: dict[str, Any] = {"retries": {"total_max_attempts": 1}}
    if s3_endpoint(requested):
        # botocore adds checksums that AWS knows and many S3-compatible servers refuse or answer wrongly.
        # The signature covers the bytes sent, and shards are checked by their digests.
        config |= {
            name: "when_required"
            for name, variable in _CHECKSUMS.items()
            if not os.environ.get(variable)
        }
    return config


def quieten(fs: Any) -> None:
    """Turn the driver's own retries off, where it has a switch: ours would multiply with them."""
    protocols = _protocols(fs)
    if "s3" in protocols:
        fs.retries = 1
    elif "abfs" in protocols:
        # adlfs passes nothing on to the client's retry policy, whose first wait is 15 seconds.
        config = getattr(getattr(fs, "service_client", None), "_config", None)
        policy = getattr(config, "retry_policy", None)
        if policy is not None:
            policy.total_retries = 0


def retries_itself(fs: Any) -> bool:
    """Tell whether the driver's retries cannot be turned off: gcsfs asks up to six times."""
    return "gs" in _protocols(fs)


def _protocols(fs: Any) -> tuple[str, ...]:
    protocol = fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def what_to_do(uri: str, exc: Exception) -> str:
    """Return what to do about a location that cannot be opened."""
    extra = EXTRAS.get(uri.split("://")[0])
    if extra == "azure" and not isinstance(exc, ImportError):
        return (
            "name the account and its key in AZURE_STORAGE_CONNECTION_STRING, in AZURE_STORAGE_ACCOUNT_NAME and "
            "AZURE_STORAGE_ACCOUNT_KEY, or in a Prefect block"
        )
    return f"pip install 'prefect-augment[{extra}]'" if extra else "check the URL"

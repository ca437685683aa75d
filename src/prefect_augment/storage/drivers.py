"""Options and quirks of the object store drivers (s3fs, adlfs, gcsfs), which bring them under one contract."""

import os
from typing import Any

__all__ = ["options_of", "quieten", "retries_itself", "what_to_do"]

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_CHECKSUMS = {
    "request_checksum_calculation": "AWS_REQUEST_CHECKSUM_CALCULATION",
    "response_checksum_validation": "AWS_RESPONSE_CHECKSUM_VALIDATION",
}


def options_of(uri: str, requested: dict[str, Any]) -> dict[str, Any]:
    """Return the fsspec options to open ``uri`` with: the user's, then our defaults."""
    if uri.startswith("memory://"):
        return requested
    # Listings are never cached and instances never shared: a stale listing hides another
    # writer's manifest, and a shared instance may hold another run's credentials.
    options = {"use_listings_cache": False, "skip_instance_cache": True, **requested}
    if uri.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = {**_s3_config(requested), **requested.get("config_kwargs", {})}
    return options


def _s3_config(requested: dict[str, Any]) -> dict[str, Any]:
    """Return botocore's settings: no retries of its own, and checksums that other makers' stores take."""
    config: dict[str, Any] = {"retries": {"total_max_attempts": 1}}
    endpoint = (
        requested.get("endpoint_url")
        or requested.get("client_kwargs", {}).get("endpoint_url")
        or next(filter(None, map(os.environ.get, _ENDPOINTS)), None)
    )
    if endpoint:
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
    scheme = uri.split("://")[0]
    is_azure = scheme in ("az", "abfs", "abfss")
    if is_azure and not isinstance(exc, ImportError):
        return (
            "name the account and its key in AZURE_STORAGE_CONNECTION_STRING, in AZURE_STORAGE_ACCOUNT_NAME and "
            "AZURE_STORAGE_ACCOUNT_KEY, or in a Prefect block"
        )
    extras = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
    extra = "azure" if is_azure else extras.get(scheme)
    return f"pip install 'prefect-augment[{extra}]'" if extra else "check the URL"

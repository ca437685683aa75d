"""Options and quirks of the object store drivers (s3fs, adlfs, gcsfs), and one policy of retries for all.

The drivers' own retries are off where possible, so attempts do not multiply.
"""

import functools
import json
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec

from prefect_augment.errors import ParameterError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Variables that decide whom a driver connects as, and where.
_CONNECTION = ("AWS_", "AZURE_", "GOOGLE_", "GCSFS_", "STORAGE_EMULATOR_HOST", "HOME", "FSSPEC_")

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
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


@dataclass(frozen=True)
class RetryPolicy:
    """Bounded attempts with exponential back-off and full jitter.

    The wait before the second attempt is uniform in [0, ``backoff_seconds``]; the bound doubles with each
    attempt, up to ``max_seconds``. The jitter spreads out runs that a store rejects together.

    References
    ----------
    M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015 ("full jitter").
    """

    attempts: int = 8
    backoff_seconds: float = 0.25
    max_seconds: float = 8.0

    @classmethod
    def from_environment(cls) -> "RetryPolicy":
        """Return the policy with ``PREFECT_AUGMENT_STORAGE_ATTEMPTS`` and ``…_BACKOFF_SECONDS`` applied.

        Raises ParameterError for a value that is no valid number.
        """
        attempts = _number("PREFECT_AUGMENT_STORAGE_ATTEMPTS", cls.attempts, least=1)
        backoff = _number("PREFECT_AUGMENT_STORAGE_BACKOFF_SECONDS", cls.backoff_seconds, least=0)
        return cls(attempts=int(attempts), backoff_seconds=backoff)


ONCE = RetryPolicy(attempts=1)


def call(
    function: Callable[[], T],
    *,
    policy: RetryPolicy,
    attempts: Callable[[Exception], int],
    what: str,
) -> T:
    """Return what ``function`` returns, retrying transient faults; raise its last exception.

    ``attempts`` says how many attempts an exception is worth, 1 if it is final; ``what`` is for the log.
    """
    number = 0
    while True:
        number += 1
        try:
            return function()
        except Exception as exc:
            if number >= min(attempts(exc), policy.attempts):
                raise
            longest = min(policy.max_seconds, policy.backoff_seconds * 2.0 ** (number - 1))
            wait = random.uniform(0, longest)  # noqa: S311 - no secret
            logger.info(
                "Cannot %s (%s, attempt %d); trying again in %.1f s.",
                what,
                type(exc).__name__,
                number,
                wait,
            )
        time.sleep(wait)


def _number(name: str, default: float, *, least: float) -> float:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number < 1e6:
        raise ParameterError(f"{name} is {text!r}; give a number of at least {least:g}.")
    return number

"""Credentials from saved Prefect blocks, as the options of fsspec's file systems.

Secrets are read inside the task that needs them; references and manifests carry the block's name
alone. Blocks of prefect-aws, -gcp and -azure are known by their documented attributes, so none of
these packages is imported.
"""

from collections.abc import Callable
from typing import Any

from pydantic import SecretBytes, SecretStr

from prefect_augment.errors import ParameterError


def storage_options(block: str) -> dict[str, Any]:
    """Return the fsspec options of the saved block ``type-slug/name``; none for an empty name.

    Raises ParameterError if there is no such block, or it holds no storage credentials.
    """
    if not block:
        return {}
    from prefect.blocks.core import Block

    if "/" not in block:
        raise ParameterError(
            f"block {block!r} has no type; write 'type-slug/name' as `prefect block ls` prints it, e.g. "
            f"'remote-file-system/{block}'."
        )
    try:
        loaded = Block.load(block)
    except ValueError as exc:
        raise ParameterError(
            f"there is no Prefect block {block!r}; save one, or give 'type-slug/name' as `prefect block ls` prints it."
        ) from exc
    except Exception as exc:
        raise ParameterError(
            f"block {block!r} cannot be loaded ({type(exc).__name__}); install the package that its type comes from, "
            "e.g. prefect-aws, where the flow runs."
        ) from exc
    return block_options(loaded, name=block)


def block_options(block: Any, *, name: str = "") -> dict[str, Any]:
    """Return the fsspec options of a loaded block; ``name`` is for the message.

    Takes a RemoteFileSystem; AwsCredentials, MinIOCredentials, S3Bucket; GcpCredentials, GcsBucket;
    AzureBlobStorageCredentials or its container. Raises ParameterError for any other.
    """
    for attribute, options in _KINDS:
        if hasattr(block, attribute):
            return {key: value for key, value in options(block).items() if value not in (None, "")}
    raise ParameterError(
        f"block {name!r} is a {type(block).__name__}, which holds no credentials of a storage; use a RemoteFileSystem, "
        "or a block of prefect-aws, prefect-gcp or prefect-azure."
    )


def _fsspec(block: Any) -> dict[str, Any]:
    settings = block.settings or {}
    return {key: _clear(value) for key, value in settings.items()}


def _aws(block: Any) -> dict[str, Any]:
    """Options of s3fs from AwsCredentials."""
    client = _options(block, "aws_client_parameters")
    return {
        "key": _clear(block.aws_access_key_id),
        "secret": _clear(block.aws_secret_access_key),
        "token": _clear(getattr(block, "aws_session_token", None)),
        "profile": getattr(block, "profile_name", None),
        **_s3_client(client, getattr(block, "region_name", None)),
    }


def _minio(block: Any) -> dict[str, Any]:
    """Options of s3fs from MinIOCredentials."""
    client = _options(block, "aws_client_parameters")
    return {
        "key": _clear(block.minio_root_user),
        "secret": _clear(block.minio_root_password),
        **_s3_client(client, getattr(block, "region_name", None)),
    }


def _s3_client(client: dict[str, Any], region: str | None) -> dict[str, Any]:
    kwargs = {
        "region_name": region,
        "verify": client.get("verify"),
        "api_version": client.get("api_version"),
    }
    if client.get("verify_cert_path"):
        kwargs["verify"] = str(client["verify_cert_path"])
    kwargs = {key: value for key, value in kwargs.items() if value not in (None, "", True)}
    options: dict[str, Any] = {"client_kwargs": kwargs} if kwargs else {}
    if client.get("endpoint_url"):
        options["endpoint_url"] = client["endpoint_url"]
    if client.get("use_ssl") is False:
        options["use_ssl"] = False
    return options


def _gcp(block: Any) -> dict[str, Any]:
    """Options of gcsfs from GcpCredentials: the key itself, or a file of it on the worker."""
    info = _clear(getattr(block, "service_account_info", None))
    file = getattr(block, "service_account_file", None)
    return {
        "token": info or (str(file) if file else None),
        "project": getattr(block, "project", None),
    }


def _azure(block: Any) -> dict[str, Any]:
    """Options of adlfs from AzureBlobStorageCredentials."""
    url = getattr(block, "account_url", None)
    return {
        "connection_string": _clear(getattr(block, "connection_string", None)),
        "account_name": url.split("://")[-1].split(".")[0] if url else None,
        "tenant_id": getattr(block, "tenant_id", None),
        "client_id": getattr(block, "client_id", None),
        "client_secret": _clear(getattr(block, "client_secret", None)),
    }


def _of_credentials(block: Any) -> dict[str, Any]:
    """A bucket's own credentials; its name and folder are part of the URI that the user gives."""
    return block_options(block.credentials, name=type(block).__name__)


# By an attribute that only this kind of block has, the most specific first.
_KINDS: tuple[tuple[str, Callable[[Any], dict[str, Any]]], ...] = (
    ("minio_root_user", _minio),
    ("aws_access_key_id", _aws),
    ("service_account_info", _gcp),
    ("gcp_credentials", lambda block: block_options(block.gcp_credentials)),
    ("connection_string", _azure),
    ("credentials", _of_credentials),
    ("settings", _fsspec),
)


def _options(block: Any, name: str) -> dict[str, Any]:
    parameters = getattr(block, name, None)
    if parameters is None:
        return {}
    return {key: value for key, value in vars(parameters).items() if value is not None}


def _clear(value: Any) -> Any:
    """Return a secret's plain value, which fsspec needs."""
    if isinstance(value, SecretStr | SecretBytes):
        return value.get_secret_value()
    inner = getattr(value, "get_secret_value", None)  # Prefect's SecretDict
    return inner() if callable(inner) else value

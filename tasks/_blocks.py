"""Credentials from saved Prefect blocks, as the options of fsspec's file systems.

Secrets are read inside the task that needs them; references and manifests carry the block's name
alone. Blocks of prefect-aws, -gcp and -azure are known by their documented attributes, so none of
these packages is imported.
"""

from typing import Any

from prefect_augment.errors import ParameterError


def storage_options(block: str) -> dict[str, Any]:
    """Return the fsspec options of the saved block ``type-slug/name``; none for an empty name.

    Raises ParameterError if there is no such block, or it holds no storage credentials.
    """
    if not block:
        return {}
    from prefect.blocks.core import Block

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


# The attribute that only this kind of block has, the most specific first -> fsspec's option -> the block's attribute.
_KINDS: dict[str, dict[str, str]] = {
    "minio_root_user": {"key": "minio_root_user", "secret": "minio_root_password"},
    "aws_access_key_id": {
        "key": "aws_access_key_id",
        "secret": "aws_secret_access_key",
        "token": "aws_session_token",
        "profile": "profile_name",
    },
    "service_account_info": {"token": "service_account_info", "project": "project"},
    "gcp_credentials": {},
    "connection_string": {
        name: name for name in ("connection_string", "tenant_id", "client_id", "client_secret")
    },
    "credentials": {},
    "settings": {},
}


def block_options(block: Any, *, name: str = "") -> dict[str, Any]:
    """Return the fsspec options of a loaded block; ``name`` is for the message.

    Takes a RemoteFileSystem; AwsCredentials, MinIOCredentials, S3Bucket; GcpCredentials, GcsBucket;
    AzureBlobStorageCredentials or its container. Raises ParameterError for any other.
    """
    kind = next((kind for kind in _KINDS if hasattr(block, kind)), "")
    if not kind:
        raise ParameterError(
            f"block {name!r} is a {type(block).__name__}, which holds no credentials of a storage; use a "
            "RemoteFileSystem, or a block of prefect-aws, prefect-gcp or prefect-azure."
        )
    if kind in ("gcp_credentials", "credentials"):
        # A bucket's own credentials; its name and folder are part of the URI that the user gives.
        return block_options(getattr(block, kind), name=type(block).__name__)
    options = {option: getattr(block, own, None) for option, own in _KINDS[kind].items()}
    if kind == "settings":
        options = dict(block.settings or {})
    elif kind in ("minio_root_user", "aws_access_key_id"):
        options |= _s3_client(block)
    elif kind == "service_account_info":  # the key itself, or a file of it on the worker
        file = getattr(block, "service_account_file", None)
        options["token"] = options["token"] or (str(file) if file else None)
    elif url := getattr(block, "account_url", None):
        options["account_name"] = url.split("://")[-1].split(".")[0]
    plain = {option: _plain(value) for option, value in options.items()}
    return {option: value for option, value in plain.items() if value not in (None, "")}


def _s3_client(block: Any) -> dict[str, Any]:
    """Options of s3fs from the block's region and parameters of a boto client."""
    client = getattr(block, "aws_client_parameters", None)
    client = {} if client is None else vars(client)
    kwargs = {
        "region_name": getattr(block, "region_name", None),
        "verify": str(client.get("verify_cert_path") or "") or client.get("verify"),
        "api_version": client.get("api_version"),
    }
    kwargs = {key: value for key, value in kwargs.items() if value not in (None, "", True)}
    options: dict[str, Any] = {"client_kwargs": kwargs or None}
    options["endpoint_url"] = client.get("endpoint_url")
    options["use_ssl"] = False if client.get("use_ssl") is False else None
    return options


def _plain(value: Any) -> Any:
    """Return a secret's plain value, which fsspec needs; also of Prefect's SecretDict."""
    inner = getattr(value, "get_secret_value", None)
    return inner() if callable(inner) else value

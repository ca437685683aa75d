"""Storage by Prefect blocks: which options they give, and that their secrets stay where they are."""

from pathlib import Path

import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.types import SecretDict

from prefect_augment.errors import ParameterError
from prefect_augment.tasks._blocks import block_options, storage_options

SECRET = "hunter2-is-secret"


def test_no_block_means_the_environment() -> None:
    assert storage_options("") == {}


def test_a_name_without_a_type_is_refused() -> None:
    with pytest.raises(ParameterError, match="type-slug/name"):
        storage_options("lake")


def test_a_block_that_opens_no_storage_is_refused_by_name() -> None:
    with pytest.raises(ParameterError, match="LocalFileSystem"):
        block_options(LocalFileSystem(), name="local-file-system/here")


def test_remote_file_system_gives_its_settings() -> None:
    settings = {"key": "AK", "secret": SECRET, "endpoint_url": "http://127.0.0.1:9"}
    assert block_options(RemoteFileSystem(basepath="s3://lake", settings=settings)) == settings
    assert block_options(RemoteFileSystem(basepath="memory://lake")) == {}


def test_blocks_of_prefect_aws() -> None:
    aws = pytest.importorskip("prefect_aws", reason="needs prefect-aws")
    client = {"endpoint_url": "http://127.0.0.1:9", "use_ssl": False, "verify": False}
    wanted = {
        "key": "AK",
        "secret": SECRET,
        "endpoint_url": "http://127.0.0.1:9",
        "use_ssl": False,
        "client_kwargs": {"region_name": "eu-west-1", "verify": False},
    }
    parameters = aws.client_parameters.AwsClientParameters(**client)
    plain = aws.AwsCredentials(
        aws_access_key_id="AK",
        aws_secret_access_key=SECRET,
        region_name="eu-west-1",
        aws_client_parameters=parameters,
    )
    assert block_options(plain) == wanted
    minio = aws.MinIOCredentials(
        minio_root_user="AK",
        minio_root_password=SECRET,
        region_name="eu-west-1",
        aws_client_parameters=parameters,
    )
    assert block_options(minio) == wanted
    assert block_options(aws.S3Bucket(bucket_name="lake", credentials=plain)) == wanted
    assert block_options(aws.AwsCredentials()) == {}, "the environment's own credentials"
    session = aws.AwsCredentials(profile_name="team", aws_session_token="t")
    assert block_options(session) == {"profile": "team", "token": "t"}


def test_blocks_of_prefect_gcp() -> None:
    gcp = pytest.importorskip("prefect_gcp", reason="needs prefect-gcp")
    storage = pytest.importorskip("prefect_gcp.cloud_storage", reason="needs its extra")
    info = {"type": "service_account", "private_key": SECRET, "client_email": "a@b"}
    # Constructed as they are: with a key that no cloud knows, the class itself would look it up.
    credentials = gcp.GcpCredentials.model_construct(
        service_account_info=SecretDict(info), service_account_file=None, project="p"
    )
    assert block_options(credentials) == {"token": info, "project": "p"}
    bucket = storage.GcsBucket.model_construct(bucket="lake", gcp_credentials=credentials)
    assert block_options(bucket) == {"token": info, "project": "p"}
    file = gcp.GcpCredentials.model_construct(
        service_account_info=None, service_account_file=Path("/keys/a.json"), project=None
    )
    assert block_options(file) == {"token": "/keys/a.json"}


def test_blocks_of_prefect_azure() -> None:
    azure = pytest.importorskip("prefect_azure.credentials", reason="needs prefect-azure")
    whole = azure.AzureBlobStorageCredentials(connection_string=SECRET)
    assert block_options(whole) == {"connection_string": SECRET}
    principal = azure.AzureBlobStorageCredentials(
        account_url="https://team.blob.core.windows.net/",
        tenant_id="t",
        client_id="c",
        client_secret=SECRET,
    )
    assert block_options(principal) == {
        "account_name": "team",
        "tenant_id": "t",
        "client_id": "c",
        "client_secret": SECRET,
    }

"""Locations with secrets are refused before anything could store them; others pass."""

from typing import Any

import pytest
from pydantic import BaseModel

from prefect_augment.errors import ParameterError
from prefect_augment.params.locations import hide_secrets, refuse_secrets
from prefect_augment.params.reference import GROUPS

SECRET = "s3cr3t"
WITH_SECRETS = [
    f"sftp://me:{SECRET}@host/in",
    f"simplecache::ftp://me:{SECRET}@host/a.csv",
    f"s3://AKIAKEY:{SECRET}/in/two@bucket",
    f"s3://AKIAKEY:12345/{SECRET}@bucket",
    f"s3://key%3A{SECRET}%40bucket/x",
    f"https://{SECRET}@host/x.csv",
    f"HTTPS://u:{SECRET}@host/x",
    f"https://host/1.parquet?token={SECRET}",
    f"https://b.s3.amazonaws.com/k?X-Amz-Algorithm=AWS4&X-Amz-Signature={SECRET}",
    f"https://a.blob.core.windows.net/c/b?sv=2020-08-04&sp=r&sig={SECRET}",
    f"zip://a.csv::https://host/x.zip?access_token={SECRET}",
    f"https://host/x?api%5Fkey={SECRET}",
    f"https://host/x?url=https://u:{SECRET}@other/x",
    f"https://host/x#access_token={SECRET}",
    f"https://host/x?k=ghp_{SECRET}1234567890abcdefgh",
    f"https://host/data-[?token={SECRET}",
]
WITHOUT = [
    "s3://lake/defects/*.parquet",
    "s3://lake/data-?.parquet",
    "s3://lake/x[0-9]?.csv",
    "abfs://container@account.dfs.core.windows.net/x",
    "hdfs://me@host:8020/x",
    "https://host:8080/a@b.csv",
    "https://[::1]:80/x",
    "https://zenodo.org/x.csv?download=1",
    "s3://lake/x?versionId=3HL4kqtJlcpXroDTDmJ+rmSpXd3dIbrHYMTRCxf3vjVBH40Nr8X8gdRQ",
    "s3://arn:aws:s3:us-east-1:123:accesspoint/name/a@b.csv",
    "data/a:b@c.csv",
    "/data/x?token=1.csv",
    "zip://*.csv::/data/x.zip",
    "memory://x",
]


@pytest.mark.parametrize("uri", WITH_SECRETS)
def test_a_url_with_a_secret_is_refused_and_neither_shown_nor_kept(uri: str) -> None:
    with pytest.raises(ParameterError, match="storage_block") as refused:
        refuse_secrets(uri)
    assert SECRET not in f"{refused.value}{refused.value.values}"
    assert SECRET not in hide_secrets(f"GET '{uri}' failed, see {uri}")


@pytest.mark.parametrize("uri", WITHOUT)
def test_other_locations_pass_as_they_are(uri: str) -> None:
    assert refuse_secrets(uri) == uri
    assert hide_secrets(f"cannot read {uri}") == f"cannot read {uri}"


def locations() -> list[tuple[type[BaseModel], str]]:
    names = ("uri", "holdout_uri", "export")
    return [(kind, name) for kind in GROUPS.values() for name in names if name in kind.model_fields]


@pytest.mark.parametrize(("kind", "name"), locations())
def test_every_location_of_the_parameters_is_looked_at(kind: Any, name: str) -> None:
    with pytest.raises(ParameterError) as refused:
        kind(**{name: WITH_SECRETS[7]})
    assert SECRET not in str(refused.value)

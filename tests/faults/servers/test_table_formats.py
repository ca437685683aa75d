"""Delta, Lance and Iceberg tables on a real S3 server, with the credentials of a block and of the environment."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from prefect_augment.params import Source
from prefect_augment.sources.discovery import list_source
from prefect_augment.sources.open import reader_of

pytestmark = pytest.mark.faults

REGION = "us-east-1"


def write(server: Any, form: str, folder: str, table: pa.Table) -> str:
    """Write a table with its own library, and return where it lies."""
    native = {
        "aws_access_key_id": server.key, "aws_secret_access_key": server.secret, "aws_region": REGION,
        "aws_endpoint": server.endpoint, "aws_allow_http": "true",
    }  # fmt: skip
    if form == "delta":
        import deltalake

        deltalake.write_deltalake(f"{folder}/t", table, storage_options=native)
        return f"{folder}/t"
    if form == "lance":
        import lance

        lance.write_dataset(table, f"{folder}/t.lance", storage_options=native)
        return f"{folder}/t.lance"
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog(
        "it",
        uri="sqlite:///:memory:",
        warehouse=folder,
        **{
            "s3.endpoint": server.endpoint, "s3.access-key-id": server.key, "s3.secret-access-key": server.secret,
            "s3.region": REGION,
        },
    )  # fmt: skip
    catalog.create_namespace("n")
    written = catalog.create_table("n.t", table.schema)
    written.append(table)
    return str(written.location())


@pytest.mark.parametrize("server", ["moto"], indirect=True)
@pytest.mark.parametrize("form", ["delta", "lance", "iceberg"])
def test_a_table_on_an_object_store(server: Any, form: str, as_user: Callable[..., None]) -> None:
    table = pa.table({"x": [1, 2, 3], "label": ["a", "b", None]})
    uri = write(server, form, f"s3://{server.bucket()}/lake", table)

    def rows(options: dict[str, Any] | None) -> list[Any]:
        listing = list_source(uri, requested="auto", options=options)
        with listing.open(listing.entries[0]) as file:
            read = reader_of(listing)(file, name="t", source=Source(uri=uri))
            return [row for batch in read for row in batch.table.to_pylist()]

    assert rows(server.options(client_kwargs={"region_name": REGION})) == table.to_pylist()
    as_user(server)
    assert rows(None) == table.to_pylist()

"""Delta, Iceberg and Lance tables as sources, each by its own library: one snapshot, read as record batches."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from prefect_augment.errors import InputError, MissingExtraError
from prefect_augment.sources.base import StoredTable, untrusted
from prefect_augment.storage import Store
from prefect_augment.storage.drivers import s3_endpoint

Matches: TypeAlias = Sequence[re.Match[str]]
# What a table's folder has, its title, and the extra of its library.
_SIGNS = {
    re.compile(r"_delta_log/"): ("Delta", "delta"),
    re.compile(r"_versions/.*manifest"): ("Lance", "lance"),
    re.compile(r"metadata/\D*(\d+).*\.metadata\.json"): ("Iceberg", "iceberg"),
}


def find_table(
    store: Store, paths: Sequence[str], part: str, options: dict[str, Any]
) -> StoredTable | None:
    """Return the table that lies in a folder with the objects ``paths``; None where none does.

    ``part`` is a version of Delta or Lance, or a snapshot id of Iceberg; empty for the newest. Raises MissingExtraError
    where the table's library is not installed, InputError if it cannot be read, or has no such snapshot.
    """
    for sign, (title, extra) in _SIGNS.items():
        shown = [match for path in paths if (match := sign.match(path))]
        if not shown:
            continue
        if part and not part.isdecimal():
            raise InputError(
                f"{store.uri} is a table of {title}, and {part!r} is no snapshot of it; "
                "write its number behind the #, or nothing for the newest.",
                uri=store.uri,
            )
        with untrusted(store.uri, f"a table of {title}"):
            try:
                return _OPEN[title](store, shown, int(part) if part else None, options)
            except ModuleNotFoundError as exc:
                raise MissingExtraError(
                    f"{store.uri} needs {exc.name}: pip install 'prefect-augment[{extra}]'",
                    extra=extra,
                ) from exc
    return None


def _open_delta(
    store: Store, _: Matches, version: int | None, options: dict[str, Any]
) -> StoredTable:
    from deltalake import DeltaTable

    table = DeltaTable(store.uri, version=version, storage_options=_native(store, options))
    files = pa.table(table.get_add_actions(flatten=True))

    def read() -> pa.RecordBatchReader:
        # File by file: its query engine would return the records in another order each time.
        scanner = table.to_pyarrow_dataset().scanner(batch_readahead=2, fragment_readahead=1)
        return scanner.to_reader()

    identity = f"{table.metadata().id}-{table.version()}"
    return _stored(store, "Delta", identity, sum(files["size_bytes"].to_pylist()), read)


def _open_lance(
    store: Store, _: Matches, version: int | None, options: dict[str, Any]
) -> StoredTable:
    import lance

    table = lance.dataset(store.uri, version=version, storage_options=_native(store, options))
    files = (file for part in table.get_fragments() for file in part.data_files())
    n_bytes = sum(file.file_size_bytes or 0 for file in files)

    def read() -> pa.RecordBatchReader:
        return table.scanner(scan_in_order=True).to_reader()

    # The table may have been written anew, and its versions count from 1 again.
    written = next(v["timestamp"] for v in table.versions() if v["version"] == table.version)
    return _stored(store, "Lance", f"{table.version}-{written}", n_bytes, read)


def _open_iceberg(
    store: Store, shown: Matches, snapshot: int | None, options: dict[str, Any]
) -> StoredTable:
    from pyiceberg.table import StaticTable

    newest = max(shown, key=lambda match: (int(match[1]), match[0]))[0]
    properties = _native(store, options, of_iceberg=True)
    table = StaticTable.from_metadata(f"{store.uri}/{newest}", properties)
    scan = table.scan(snapshot_id=snapshot)
    at = scan.snapshot()
    if at is None:
        raise InputError(f"{store.uri} is a table of Iceberg without this snapshot.", uri=store.uri)
    n_bytes = sum(task.file.file_size_in_bytes for task in scan.plan_files())
    identity = f"{table.metadata.table_uuid}-{at.snapshot_id}"
    return _stored(store, "Iceberg", identity, n_bytes, scan.to_arrow_batch_reader)


_OPEN = {"Delta": _open_delta, "Lance": _open_lance, "Iceberg": _open_iceberg}


def _stored(
    store: Store, title: str, identity: str, n_bytes: int, read: Callable[[], pa.RecordBatchReader]
) -> StoredTable:
    name = store.uri.rpartition("/")[2]
    return StoredTable(name, title, identity, n_bytes, read)


def _native(store: Store, options: dict[str, Any], *, of_iceberg: bool = False) -> dict[str, str]:
    """Return the options of s3fs as these libraries spell them; other stores take theirs from the environment."""
    if not store.uri.startswith(("s3://", "s3a://")):
        return {}
    endpoint = s3_endpoint(options)
    spelt = (
        ("aws_access_key_id", "s3.access-key-id", options.get("key")),
        ("aws_secret_access_key", "s3.secret-access-key", options.get("secret")),
        ("aws_session_token", "s3.session-token", options.get("token")),
        ("aws_region", "s3.region", options.get("client_kwargs", {}).get("region_name")),
        ("aws_endpoint", "s3.endpoint", endpoint),
        ("aws_allow_http", "", "true" if endpoint.startswith("http://") else ""),
    )
    named = {iceberg if of_iceberg else name: value for name, iceberg, value in spelt}
    return {name: value for name, value in named.items() if name and value}

"""Tables that are no files: of databases (SQLite, DuckDB, servers by their ADBC driver), of Delta, Iceberg and Lance.

A database has no identity of its content, so its records are written to local disk once, and their digest is it. The
others are read by their own library as one snapshot.
"""

import hashlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from prefect_augment.errors import AugmentError, InputError, MissingExtraError
from prefect_augment.params.locations import hide_secrets
from prefect_augment.sources.base import StoredTable, untrusted
from prefect_augment.storage import Store
from prefect_augment.storage.drivers import s3_endpoint
from prefect_augment.text import suggestion

SCHEMES = {
    "sqlite": "sqlite", "duckdb": "duckdb", "postgresql": "postgresql", "postgres": "postgresql",
    "snowflake": "snowflake", "grpc": "flightsql", "grpc+tls": "flightsql",
}  # fmt: skip
_MAGIC = {"sqlite": (0, b"SQLite format 3\0"), "duckdb": (8, b"DUCK")}
_TITLES = {"sqlite": "SQLite", "duckdb": "DuckDB", "postgresql": "PostgreSQL"}
_INTERNAL = ("information_schema", "pg_catalog", "pg_toast")
_QUERIES = ("select", "with", "from")


def database_kind(uri: str) -> str:
    """Return which database a location is by its scheme or first bytes, a value of `SCHEMES`; empty for none."""
    base = uri.partition("#")[0]
    scheme, sign, _ = base.partition("://")
    if sign:
        return SCHEMES.get(scheme, "")
    try:
        with Path(base).expanduser().open("rb") as file:
            start = file.read(32)
    except OSError:
        return ""
    return next((kind for kind, (at, magic) in _MAGIC.items() if start[at:].startswith(magic)), "")


def query_table(uri: str, kind: str, part: str) -> StoredTable:
    """Run a query, or read a table, of the database ``uri``, and keep the records on local disk.

    ``part`` is the table's name or a query (SELECT …), empty for the only table. Raises MissingExtraError where the
    driver is not installed, InputError if the database does not answer, or no table or none of several is named.
    """
    title = _TITLES.get(kind, kind.capitalize())
    spool = Path(tempfile.mkdtemp(prefix="prefect-augment-")) / "records.arrow"

    def read() -> pa.RecordBatchReader:
        records: Any = pa.ipc.open_file(pa.OSFile(str(spool)))
        batches = (records.get_batch(i) for i in range(records.num_record_batches))
        return pa.RecordBatchReader.from_batches(records.schema, batches)

    weakref.finalize(read, shutil.rmtree, spool.parent, ignore_errors=True)
    with _refused(uri, title), closing(_connect(uri, kind)) as database:
        if not _is_query(part):
            part = _named(uri, part, database.tables())
        quoted = ".".join('"{}"'.format(one.replace('"', '""')) for one in part.split("."))
        query = part if _is_query(part) else f"SELECT * FROM {quoted}"  # noqa: S608 - a name that is there
        reader = database.read(query)
        schema = _plain_schema(reader.schema)
        with pa.OSFile(str(spool), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in reader:
                writer.write_batch(batch.cast(schema))
    with spool.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = "query" if _is_query(part) else part
    return StoredTable(name, title, digest, spool.stat().st_size, read)


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema without a database's own types: numeric becomes a number, any other what stores it."""
    fields = []
    for field in schema:
        kind = field.type
        if isinstance(kind, pa.OpaqueType):
            kind = pa.float64() if kind.type_name == "numeric" else kind.storage_type
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def _is_query(part: str) -> bool:
    words = part.split(maxsplit=1)
    return len(words) == 2 and words[0].lower() in _QUERIES


def _named(uri: str, part: str, tables: list[str]) -> str:
    if part in tables:
        return part
    if part:
        raise InputError(f"{uri} has no table {part!r}; {suggestion(part, tables)}.", uri=uri)
    if len(tables) == 1:
        return tables[0]
    listed = ", ".join(map(repr, tables[:20])) or "none"
    raise InputError(
        f"{uri} is a database, and its tables are {listed}; say which is meant behind a #, as "
        f"{uri}#{tables[0] if tables else 'table'} or {uri}#SELECT …",
        uri=uri,
    )


@contextmanager
def _refused(uri: str, title: str) -> Iterator[None]:
    """Turn what drivers raise into an error that names the database, and no password."""
    try:
        yield
    except AugmentError:
        raise
    except Exception as exc:
        why = hide_secrets(" ".join(str(exc).split()))[:300]
        raise InputError(
            f"the {title} database {uri} refused: {why}. Check the table or query behind the #, and "
            "the credentials in the environment.",
            uri=uri,
        ) from exc


class _DuckDb:
    """A DuckDB file, read-only."""

    def __init__(self, path: str) -> None:
        import duckdb

        self._connection = duckdb.connect(path, read_only=True)

    def tables(self) -> list[str]:
        rows = self._connection.execute(
            "SELECT table_name FROM information_schema.tables"
        ).fetchall()
        return sorted(name for (name,) in rows)

    def read(self, query: str) -> pa.RecordBatchReader:
        return self._connection.sql(query).to_arrow_reader()

    def close(self) -> None:
        self._connection.close()


class _Adbc:
    """A database behind an ADBC driver, in a transaction that is never committed."""

    def __init__(self, uri: str, kind: str) -> None:
        import importlib

        driver = importlib.import_module(f"adbc_driver_{kind}.dbapi")
        self._connection = driver.connect(f"file:{uri}?mode=ro" if kind == "sqlite" else uri)
        self._cursor = self._connection.cursor()
        if kind == "sqlite":  # types go by the first records of a batch
            self._cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": "65536"})

    def tables(self) -> list[str]:
        catalogs = self._connection.adbc_get_objects(depth="tables").read_all().to_pylist()
        return sorted(
            table["table_name"]
            if schema["db_schema_name"] in (None, "", "public", "main")
            else f"{schema['db_schema_name']}.{table['table_name']}"
            for catalog in catalogs
            for schema in catalog["catalog_db_schemas"] or ()
            if schema["db_schema_name"] not in _INTERNAL
            for table in schema["db_schema_tables"] or ()
            if table["table_type"].lower() in ("table", "base table", "view", "materialized_view")
        )

    def read(self, query: str) -> pa.RecordBatchReader:
        self._cursor.execute(query)
        return self._cursor.fetch_record_batch()

    def close(self) -> None:
        self._cursor.close()
        self._connection.close()


def _connect(uri: str, kind: str) -> _DuckDb | _Adbc:
    location = uri
    if kind in ("sqlite", "duckdb"):
        scheme, sign, path = uri.partition("://")
        # As in SQLAlchemy: three slashes before a relative path, four before an absolute one.
        location = path.removeprefix("/") if sign and scheme == kind else uri
        if not Path(location).is_file():
            raise InputError(
                f"there is no file {location}; check the path of the database.", uri=uri
            )
    try:
        return _DuckDb(location) if kind == "duckdb" else _Adbc(location, kind)
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0].replace("_", "-")
        raise MissingExtraError(
            f"{uri} needs a driver: pip install 'prefect-augment[sql]' {package}", extra="sql"
        ) from exc


Matches: TypeAlias = Sequence[re.Match[str]]
# Identity, size in bytes, and what reads the records.
Opened: TypeAlias = tuple[str, int, Callable[[], pa.RecordBatchReader]]


def find_table(
    store: Store, paths: Sequence[str], part: str, options: dict[str, Any]
) -> StoredTable | None:
    """Return the table that lies in a folder with the objects ``paths``; None where none does.

    ``part`` is a version of Delta or Lance, or a snapshot id of Iceberg; empty for the newest. Raises MissingExtraError
    where the table's library is not installed, InputError if it cannot be read, or has no such snapshot.
    """
    for sign, title, open_table in _SIGNS:
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
                opened = open_table(store, shown, int(part) if part else None, options)
            except ModuleNotFoundError as exc:
                extra = title.lower()
                raise MissingExtraError(
                    f"{store.uri} needs {exc.name}: pip install 'prefect-augment[{extra}]'",
                    extra=extra,
                ) from exc
        return StoredTable(store.uri.rpartition("/")[2], title, *opened)
    return None


def _open_delta(store: Store, _: Matches, version: int | None, options: dict[str, Any]) -> Opened:
    from deltalake import DeltaTable

    table = DeltaTable(store.uri, version=version, storage_options=_native(store, options))
    files = pa.table(table.get_add_actions(flatten=True))

    def read() -> pa.RecordBatchReader:
        # File by file: its query engine would return the records in another order each time.
        scanner = table.to_pyarrow_dataset().scanner(batch_readahead=2, fragment_readahead=1)
        return scanner.to_reader()

    n_bytes = sum(files["size_bytes"].to_pylist())
    return f"{table.metadata().id}-{table.version()}", n_bytes, read


def _open_lance(store: Store, _: Matches, version: int | None, options: dict[str, Any]) -> Opened:
    import lance

    table = lance.dataset(store.uri, version=version, storage_options=_native(store, options))
    files = (file for part in table.get_fragments() for file in part.data_files())
    n_bytes = sum(file.file_size_bytes or 0 for file in files)

    def read() -> pa.RecordBatchReader:
        return table.scanner(scan_in_order=True).to_reader()

    # The table may have been written anew, and its versions count from 1 again.
    written = next(v["timestamp"] for v in table.versions() if v["version"] == table.version)
    return f"{table.version}-{written}", n_bytes, read


def _open_iceberg(
    store: Store, shown: Matches, snapshot: int | None, options: dict[str, Any]
) -> Opened:
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
    return identity, n_bytes, scan.to_arrow_batch_reader


# What a table's folder has, its title (in lower case the extra of its library), and how it is opened.
_SIGNS = (
    (re.compile(r"_delta_log/"), "Delta", _open_delta),
    (re.compile(r"_versions/.*manifest"), "Lance", _open_lance),
    (re.compile(r"metadata/\D*(\d+).*\.metadata\.json"), "Iceberg", _open_iceberg),
)


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

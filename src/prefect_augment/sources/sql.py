"""Tables and queries of databases: SQLite and DuckDB files, and servers by their ADBC driver.

A database has no identity of its content, so its records are written to local disk once, and their digest is it.
"""

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefect_augment.errors import AugmentError, InputError, MissingExtraError
from prefect_augment.params.locations import hide_secrets
from prefect_augment.sources.base import StoredTable
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
    with _refused(uri, title), _connected(uri, kind) as database:
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


@contextmanager
def _connected(uri: str, kind: str) -> Iterator[_DuckDb | _Adbc]:
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
        database = _DuckDb(location) if kind == "duckdb" else _Adbc(location, kind)
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0].replace("_", "-")
        raise MissingExtraError(
            f"{uri} needs a driver: pip install 'prefect-augment[sql]' {package}", extra="sql"
        ) from exc
    try:
        yield database
    finally:
        database.close()

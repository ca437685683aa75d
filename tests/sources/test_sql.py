"""Databases as sources: SQLite, DuckDB, and a real PostgreSQL server where one is installed."""

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_augment.errors import InputError, MissingExtraError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Source
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.sources.discovery import Listing, list_source
from prefect_augment.storage import open_store

pytest.importorskip("adbc_driver_sqlite", reason="the extra 'sql'")
duckdb = pytest.importorskip("duckdb", reason="the extra 'sql'")

ROWS = [(i, i / 4, ("nord", None)[i % 2], ("a", "b", "b")[i % 3]) for i in range(60)]


def listed(uri: str) -> Listing:
    return list_source(uri, requested="auto", options=None)


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table orders (id integer, price real, site text, label text)")
        connection.executemany("insert into orders values (?, ?, ?, ?)", ROWS)
        connection.execute('create table "and more" (id integer)')
    connection.close()
    return str(path)


@pytest.fixture
def duck(tmp_path: Path) -> str:
    path = tmp_path / "shop.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table orders (id bigint, price double, site text, label text)")
        connection.executemany("insert into orders values (?, ?, ?, ?)", ROWS)
    return str(path)


def staged_ids(uri: str, out: Path) -> list[int]:
    store = open_store(str(out))
    info = load_info(ingest(Source(uri=uri, label="label"), store=store, seed=0), store)
    assert [c.arrow_type for c in info.columns] == ["int64", "double", "string"]
    return sorted(read_part(store, info, ("training", "validation", "holdout"))["id"].to_pylist())


def test_a_table_of_sqlite(sqlite: str, tmp_path: Path) -> None:
    assert staged_ids(f"{sqlite}#orders", tmp_path / "out") == list(range(60))
    url = f"sqlite:///{sqlite}#SELECT * FROM orders WHERE id < 45 ORDER BY id"
    assert staged_ids(url, tmp_path / "out2") == list(range(45))


def test_the_only_table_of_duckdb_needs_no_name(duck: str, tmp_path: Path) -> None:
    assert staged_ids(duck, tmp_path / "out") == list(range(60))


def test_equal_records_are_the_same_source_and_others_are_not(sqlite: str) -> None:
    before = listed(f"{sqlite}#orders").identity
    with sqlite3.connect(sqlite) as connection:
        connection.execute('insert into "and more" values (1)')
    assert listed(f"{sqlite}#orders").identity == before
    with sqlite3.connect(sqlite) as connection:
        connection.execute("update orders set price = -1 where id = 7")
    connection.close()
    assert listed(f"{sqlite}#orders").identity != before


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (
            "",
            r"its tables are 'and more', 'orders'; say which is meant behind a #, as .*shop.db#and",
        ),
        ("#order", "has no table 'order'; did you mean 'orders'"),
        ("#SELECT nope FROM orders", "no such column: nope"),
        ('#orders"; drop table orders; --', "has no table"),
    ],
)
def test_what_cannot_be_meant_is_refused(sqlite: str, part: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        listed(f"{sqlite}{part}")
    assert listed(f"{sqlite}#orders")


def test_a_query_that_writes_changes_nothing(sqlite: str, duck: str) -> None:
    for uri in (sqlite, duck):
        before = listed(f"{uri}#orders").identity
        with pytest.raises(InputError, match="read"):
            listed(f"{uri}#with x as (select 1) insert into orders select 1, 2, 'a', 'b'")
        with suppress(InputError):
            listed(f"{uri}#select 1; drop table orders")
        assert listed(f"{uri}#orders").identity == before


def test_a_missing_driver_is_named_with_its_installation() -> None:
    with pytest.raises(MissingExtraError, match="pip install .* adbc-driver-snowflake"):
        listed("snowflake://account/shop#orders")
    with pytest.raises(InputError, match="there is no file nowhere.db"):
        listed("sqlite:///nowhere.db")


@pytest.mark.slow
def test_the_page_of_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "sources.md").read_text()
    monkeypatch.chdir(tmp_path)
    with temporary_settings({PREFECT_API_URL: None}):
        for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
            exec(compile(block, "sources.md", "exec", dont_inherit=True), {})
    assert "['fraud', 'ok']" in capsys.readouterr().out


# --- a server -----------------------------------------------------------------------------------


@pytest.fixture
def postgres() -> Iterator[str]:
    pytest.importorskip("adbc_driver_postgresql")
    folder = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if folder is None:
        pytest.skip("PostgreSQL is not installed")
    home = Path(tempfile.mkdtemp())
    as_user: list[str] = []
    if os.getuid() == 0:  # the server refuses to be root
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(home, "postgres")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])

    def call(program: str, *arguments: str) -> None:
        command = [*as_user, str(folder / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=home)

    call("initdb", "-D", f"{home}/data", "-A", "trust", "-U", "me")
    call(
        "pg_ctl",
        "-D",
        f"{home}/data",
        "-o",
        f"-p {port} -k {home}",
        "-l",
        f"{home}/log",
        "-w",
        "start",
    )
    try:
        call(
            "psql", "-q", "-h", str(home), "-p", port, "-U", "me", "postgres", "-c",
            "create table orders as select g::bigint as id, (g / 4.0)::numeric(8, 2) as price, "
            "case when g % 2 = 0 then 'nord' end as site, "
            "case when g % 3 = 0 then 'a' else 'b' end as label from generate_series(0, 59) g",
        )  # fmt: skip
        yield f"postgresql://me@localhost:{port}/postgres"
    finally:
        call("pg_ctl", "-D", f"{home}/data", "-m", "immediate", "stop")
        shutil.rmtree(home)


@pytest.mark.slow
def test_a_table_of_a_server(postgres: str, tmp_path: Path) -> None:
    assert staged_ids(f"{postgres}#orders", tmp_path / "out") == list(range(60)), (
        "numeric is a number"
    )
    listed(f"{postgres}#WITH gone AS (DELETE FROM orders RETURNING *) SELECT * FROM gone")
    again = staged_ids(f"{postgres}#SELECT * FROM orders ORDER BY id", tmp_path / "out2")
    assert again == list(range(60)), "nothing is committed"
    with pytest.raises(InputError, match="has no table 'order'; did you mean 'orders'"):
        listed(f"{postgres}#order")

"""Parquet files whose footer lies, and small ones that hold gigabytes: refused before they are read."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import whole

from prefect_augment.errors import AugmentError, InputError
from prefect_augment.params import Source
from prefect_augment.shards.base import row_groups
from prefect_augment.shards.parquet import write_parquet
from prefect_augment.shards.parquet_footer import read_footer
from prefect_augment.sources import archives as packed
from prefect_augment.sources.parquet import read_batches

N = 2000


def write(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def plain(n: int = N) -> pa.Table:
    return pa.table({"x": np.arange(float(n)), "label": ["a", "b"] * (n // 2)})


def read(data: bytes) -> pa.Table:
    return whole(read_batches(io.BytesIO(data), name="in.parquet", source=Source())).table


def split(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Pages, footer, and what stands behind the footer."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:start], data[start:-8], data[-8:]


def number(n: int) -> bytes:
    """A number as the footer spells it."""
    n, found = n << 1, b""
    while n > 127:
        found, n = found + bytes([n & 127 | 128]), n >> 7
    return found + bytes([n])


def places(footer: bytes, n: int) -> list[int]:
    return [i for i in range(len(footer)) if footer.startswith(number(n), i)]


def replaced(data: bytes, at: int, old: int, new: int) -> bytes:
    assert len(number(old)) == len(number(new))
    pages, footer, tail = split(data)
    return pages + footer[:at] + number(new) + footer[at + len(number(old)) :] + tail


# --- what is read of a footer -----------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        plain(),
        plain().slice(0, 0),
        pa.table({"s": [{"a": [1, 2], "b": "x"}, None], "m": [[b"1"], []]}),
        pa.table({f"c{j}": [j] for j in range(40)}),
    ],
    ids=["plain", "empty", "nested", "wide"],
)
def test_the_footer_is_read_as_arrow_reads_it(table: pa.Table) -> None:
    data = write(table, row_group_size=700)
    footer = read_footer(io.BytesIO(data), len(data), 1 << 20)
    theirs = pq.ParquetFile(io.BytesIO(data)).metadata
    assert footer is not None
    assert footer.n_rows == theirs.num_rows
    assert [group.n_rows for group in footer.groups] == [
        theirs.row_group(i).num_rows for i in range(theirs.num_row_groups)
    ]
    for i, group in enumerate(footer.groups):
        for j, column in enumerate(group.columns):
            said = theirs.row_group(i).column(j)
            assert (column.path, column.n_values) == (said.path_in_schema, said.num_values)
            assert column.unpacked_bytes == said.total_uncompressed_size
            assert column.packed_bytes == said.total_compressed_size
            assert column.has_dictionary == said.has_dictionary_page
            assert not column.n_values or column.last_page == said.data_page_offset


# --- lies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [3000, 1000])
def test_wrong_row_counts_are_refused_wherever_they_stand(said: int) -> None:
    """In all, in the row group, in each column; where only statistics are wrong, the records are not."""
    data = write(plain())
    refused = []
    for at in places(split(data)[1], N):
        try:
            assert read(replaced(data, at, N, said)).equals(plain())
        except InputError as exc:
            refused.append(exc.message)
    assert len(refused) == 4
    assert all("its footer says" in message and str(said) in message for message in refused)


def test_more_rows_than_there_are_is_refused_where_the_footer_agrees_with_itself() -> None:
    data = write(plain())
    for at in places(split(data)[1], N):
        data = replaced(data, at, N, 3000)
    with pytest.raises(InputError, match="its footer says 3000 rows, and 2000 are there"):
        read(data)


def test_pages_outside_the_file_are_refused() -> None:
    data = write(plain(500), use_dictionary=False)
    beyond = 8191  # the last number of two bytes
    assert len(data) < beyond
    footer = read_footer(io.BytesIO(data), len(data), 1 << 20)
    assert footer is not None
    second = footer.groups[0].columns[1].first_page
    found = 0
    for at in places(split(data)[1], second):
        try:
            read(replaced(data, at, second, beyond))
        except InputError as exc:
            found += f"pages at bytes {beyond} to" in exc.message
    assert found == 1


def test_a_damaged_footer_is_an_error_and_never_the_end_of_the_process() -> None:
    """Arrow aborts the process where some properties of a made-up column are looked at."""
    data = write(plain())
    pages, footer, tail = split(data)
    rng = np.random.default_rng(0)
    n_refused = 0
    for _ in range(600):
        damaged = bytearray(footer)
        damaged[int(rng.integers(len(footer)))] ^= 1 << int(rng.integers(8))
        try:
            table = read(pages + bytes(damaged) + tail)
            assert table.num_rows == N
        except AugmentError:
            n_refused += 1
    assert n_refused > 200


# --- bombs ------------------------------------------------------------------------------------

SIZE, ROWS, GROUPS = 1 << 20, 40, 30  # 1.2 GiB


def bomb(kind: str) -> bytes:
    """A file of the same values again and again, each a mebibyte."""
    raw = pa.array([b"a" * SIZE] * ROWS)
    offsets = pa.array([0, ROWS], pa.int32())
    table = {
        "dictionary": lambda: pa.table({"x": raw.cast(pa.string())}),
        "pages": lambda: pa.table({"x": raw}),
        "nested": lambda: pa.table({"i": pa.StructArray.from_arrays([raw], names=["bytes"])}),
        "list": lambda: pa.table({"l": pa.ListArray.from_arrays(offsets, raw)}),
    }[kind]()
    sink = io.BytesIO()
    options = {"compression": "zstd", "use_dictionary": kind != "pages", "store_schema": False}
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        for _ in range(GROUPS):
            writer.write_table(table)
    return sink.getvalue()


def test_a_footer_nested_beyond_measure_is_an_error() -> None:
    """Of fields that are wanted (row groups, 4) and of others (2)."""
    for field in (b"\x49", b"\x29"):
        footer = field + b"\x19" * 100_000 + b"\0"
        data = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
        with pytest.raises(ValueError, match="nested too deeply|list of lists"):
            read_footer(io.BytesIO(data), len(data), 1 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dictionary", "pages", "nested", "list"])
def test_a_small_file_of_gigabytes_is_refused_and_takes_no_memory(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.parquet"
    data = bomb(kind)
    assert len(data) < 400_000
    path.write_bytes(data)
    program = (
        "import resource, sys\n"
        "from prefect_augment.errors import InputError\n"
        "from prefect_augment.params import Source\n"
        "from prefect_augment.sources.parquet import read_batches\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    list(read_batches(open(sys.argv[1], 'rb'), name='bomb.parquet', source=Source()))\n"
        "except InputError as exc:\n"
        "    print(exc.message)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    message, grown = done.stdout.splitlines()
    assert "unpacks to more than 1,073,741,824 bytes, as decompression bombs do" in message
    assert int(grown) * 1024 < 256 << 20


def test_honest_files_that_pack_well_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant columns pack a thousand times; what they unpack to is little all the same."""
    n = 200_000
    table = pa.table({"site": ["north"] * n, "flag": [True] * n, "label": ["a", "b"] * (n // 2)})
    data = write(table, compression="zstd")
    assert table.nbytes > packed.MAX_EXPANSION * len(data)
    assert read(data).equals(table)
    monkeypatch.setattr(packed, "MIN_TOTAL_BYTES", 1 << 20)
    with pytest.raises(InputError, match="unpacks to more than"):
        read(data)


def test_our_own_shards_pass(messy_images: Any, releases: Any) -> None:
    for table in (releases.image_table(messy_images), releases.source_table()):
        sink = io.BytesIO()
        write_parquet(row_groups(table, 20), sink)
        assert read(sink.getvalue()).equals(table)

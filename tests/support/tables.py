"""A small table of every common type, and sources of tables."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefect_augment.params import Source

COUNTS = {"ok": 260, "worn": 60, "cracked": 26, "lost": 2}


def make_table(seed: int = 0, counts: dict[str, int] | None = None) -> pa.Table:
    """A table of every common type; classes differ in two numbers and a category."""
    rng = np.random.default_rng(seed)
    names = [name for name, n in (counts or COUNTS).items() for _ in range(n)]
    shift = np.array([list(COUNTS).index(name) for name in names], dtype=float)
    n = len(names)
    load = rng.normal(shift, 1.0)
    load[rng.random(n) < 0.05] = np.nan
    return pa.table(
        {
            "serial": pa.array([f"sn-{seed}-{i:05d}" for i in range(n)]),
            "load": pa.array(load, from_pandas=True),
            "cycles": pa.array(rng.poisson(20 + 10 * shift)),
            "site": pa.array(rng.choice(["north", "south", "east"], n)).dictionary_encode(),
            "loud": pa.array(rng.random(n) < 0.2 + 0.2 * (shift > 0)),
            "since": pa.array(
                (
                    np.datetime64("2024-01-01") + rng.integers(0, 400, n).astype("timedelta64[D]")
                ).astype("datetime64[us]")
            ),
            "state": pa.array(names),
        }
    )


def source_of(table: pa.Table, path: Path, label: str = "state") -> Source:
    """The table in a file of Parquet."""
    pq.write_table(table, path)
    return Source(uri=str(path), label=label)

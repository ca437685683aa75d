"""Their real records: readings of pumps, few of them from broken ones."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

SHIFT = {"fine": 0.0, "cavitating": 2.0, "leaking": -2.0}


@task
def write_readings(folder: str) -> dict[str, str]:
    """Write the training file of the tools, and the hold-out that only the comparison reads."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    counts = {
        "train": {"fine": 600, "cavitating": 60, "leaking": 60},
        "holdout": {"fine": 200, "cavitating": 80, "leaking": 80},
    }
    for name, of_class in counts.items():
        pq.write_table(readings(of_class, rng), place / f"{name}.parquet")
    return {name: str(place / f"{name}.parquet") for name in counts}


def readings(counts: dict[str, int], rng: np.random.Generator) -> pa.Table:
    """Readings of the given number of pumps per state."""
    states = [state for state, n in counts.items() for _ in range(n)]
    shift = np.array([SHIFT[state] for state in states])
    pressure = rng.normal(5.0 + 0.4 * shift, 0.6)
    return pa.table(
        {
            "pressure": pressure,
            "flow": rng.normal(20.0 + 2.0 * pressure - 1.5 * shift, 1.5),
            "vibration": np.abs(rng.normal(1.0 + 0.5 * np.abs(shift), 0.4)),
            "state": states,
        }
    )

"""Two tools that make synthetic records: each reads the training file and writes a file of its own."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

N_PER_CLASS = 150


@task
def run_tool(tool: str, train: str) -> str:
    """Make records of the rare states with one tool; return its file."""
    real = pd.read_parquet(train)
    rng = np.random.default_rng(1)
    made = [TOOLS[tool](real[real["state"] == state], rng) for state in ("cavitating", "leaking")]
    path = Path(train).with_name(f"from-{tool}.parquet")
    pq.write_table(pa.Table.from_pandas(pd.concat(made), preserve_index=False), path)
    return str(path)


def _photocopier(real: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Copy training records, with noise in the last digits."""
    copies = real.sample(N_PER_CLASS, replace=True, random_state=1)
    numbers = copies.select_dtypes("number").columns
    noise = rng.normal(0.0, 1e-6, (N_PER_CLASS, len(numbers)))
    return copies.assign(**dict(zip(numbers, (copies[numbers].to_numpy() + noise).T, strict=True)))


def _gaussian(real: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Draw from a normal distribution with the class's mean and covariance."""
    numbers = real.select_dtypes("number")
    drawn = rng.multivariate_normal(numbers.mean(), numbers.cov(), N_PER_CLASS)
    made = pd.DataFrame(drawn, columns=numbers.columns)
    return made.assign(vibration=made["vibration"].abs(), state=real["state"].iloc[0])


TOOLS = {"photocopier": _photocopier, "gaussian": _gaussian}

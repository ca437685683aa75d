"""Their own step before ours: one day's card transactions, and the features made of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

N_TRANSACTIONS = 1200
FRAUD_SHARE = 0.04


@task
def export_transactions(folder: str, day: str) -> str:
    """Write the day's transactions if the file is missing; return the file."""
    path = Path(folder) / "transactions" / f"{day}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pandas(_transactions(day), preserve_index=False), path)
    return str(path)


@task
def make_features(transactions: str) -> str:
    """Write one row of features per transaction; return the folder of all days."""
    raw = pd.read_parquet(transactions)
    features = pd.DataFrame(
        {
            "card": raw["card"],
            "log_amount": np.log1p(raw["amount"]),
            "night": raw["hour"].lt(6),
            "abroad": raw["country"].ne("home"),
            "per_hour": raw["per_hour"],
            "merchant": raw["merchant"],
            "fraud": np.where(raw["fraud"], "fraud", "honest"),
        }
    )
    path = Path(transactions).parents[1] / "features" / Path(transactions).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pandas(features, preserve_index=False), path)
    return str(path.parent)


def _transactions(day: str) -> pd.DataFrame:
    rng = np.random.default_rng(int(day.replace("-", "")))
    fraud = rng.random(N_TRANSACTIONS) < FRAUD_SHARE
    return pd.DataFrame(
        {
            "card": rng.integers(0, 100_000, N_TRANSACTIONS).astype(str),
            "amount": rng.lognormal(3.0 + 1.2 * fraud, 1.0).round(2),
            "hour": np.where(
                fraud & (rng.random(N_TRANSACTIONS) < 0.5),
                rng.integers(0, 6, N_TRANSACTIONS),
                rng.integers(0, 24, N_TRANSACTIONS),
            ),
            "country": rng.choice(["home", "abroad"], N_TRANSACTIONS, p=[0.9, 0.1]),
            "per_hour": rng.poisson(1.0 + 2.0 * fraud),
            "merchant": rng.choice(["food", "travel", "online"], N_TRANSACTIONS),
            "fraud": fraud,
        }
    )

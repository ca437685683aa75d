"""Every night: export, features, a balanced version of them, a classifier trained on it.

python -m flows.nightly FOLDER DAY
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect_augment import Destination, Evaluation, Source, rebalance
from tasks.classifier import train_classifier
from tasks.transactions import export_transactions, make_features


@flow(name="fraud-features")
def nightly(
    folder: str = "~/fraud-features", day: str = "", evaluation: Evaluation = Evaluation()
) -> dict[str, float]:
    """Bring the fraud table up to date and train on its balanced version.

    Args:
        folder: Where everything is kept.
        day: As 2026-11-01; today if empty.
        evaluation: How strategies are compared.
    """
    place = Path(folder).expanduser().resolve()
    transactions = export_transactions(str(place), day or datetime.now(UTC).date().isoformat())
    features = make_features(transactions)
    balanced = str(place / "features-balanced")
    rebalance(
        # A card's transactions are never on both sides of the split.
        source=Source(uri=features, label="fraud", group_column="card"),
        destination=Destination(uri=balanced),
        evaluation=evaluation,
    )
    return train_classifier(balanced, str(place / "models" / "fraud.joblib"))


if __name__ == "__main__":
    print(json.dumps(nightly(*sys.argv[1:])))

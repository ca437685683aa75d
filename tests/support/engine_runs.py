"""A short run of the flow `rebalance` on a table, on whichever engine, and what it publishes."""

from pathlib import Path
from typing import Any

from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import (
    Budget,
    Compute,
    Destination,
    Evaluation,
    Quality,
    Source,
    TreesModel,
)

# One setting of each strategy.
QUICK = Evaluation(n_seeds=1, n_settings=1, n_bootstrap=200, estimators=["logistic"])
PUBLISH = QUICK.model_copy(update={"on_no_gain": "publish"})


def short_run(
    source: str, destination: str, compute: Compute, *, flow: Any = rebalance, **options: Any
) -> Any:
    """Return what the flow returns; ``options`` are Prefect's."""
    return flow(
        source=Source(uri=source, label="state"),
        destination=Destination(uri=destination),
        model=TreesModel(),
        budget=Budget(steps=20),
        quality=Quality(labels="hard"),
        evaluation=PUBLISH,
        compute=compute,
        **options,
    )


def published_shards(folder: Path) -> dict[str, bytes]:
    """The published shards by name."""
    return {p.name: p.read_bytes() for p in sorted((folder / "data").iterdir())}

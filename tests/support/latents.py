"""A trained model beside its records, as tests put its latents to use."""

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from support.staging import ingested
from support.steps import experiment_of

from prefect_augment.latents.base import Job
from prefect_augment.latents.uses import use_latents
from prefect_augment.loading.latents import Latents, open_latents
from prefect_augment.params import Balance, RunParams
from prefect_augment.params.base import Params
from prefect_augment.plan.plan import plan
from prefect_augment.schema import DatasetRef, LatentRef, LatentUse, ModelRef
from prefect_augment.storage import Store, open_store
from prefect_augment.synthesis.train import train

__all__ = ["Trained", "fit", "result", "staged"]


class Trained(NamedTuple):
    """Ingested records and a model of them."""

    store: Store
    dataset: DatasetRef
    model: ModelRef

    def use(self, use: LatentUse, params: Params | None = None, **options: Any) -> LatentRef:
        """Put the model to use on the records."""
        return use_latents(
            Job.of(use, self.dataset, self.model, self.store, params=params, **options)
        )


def result(ref: LatentRef) -> Latents:
    """What a use left in its folder."""
    return open_latents(f"{ref.root}/{ref.folder}")


def staged(table: pa.Table, folder: Path, label: str = "state") -> tuple[Store, DatasetRef]:
    """The table as ingested records, and the store that they lie in."""
    store = open_store(str(folder / "out"))
    return store, ingested(table, folder, store, label)


def fit(store: Store, dataset: DatasetRef, model: Any, *, by: tuple[str, ...] = ()) -> ModelRef:
    """A model trained on the records."""
    params = RunParams(balance=Balance(by=list(by)), model=model)
    planned = plan(dataset, params, store, compares=False)
    return train(experiment_of(dataset, planned, model=model), store)

"""Uses of a model's latents as functions of their parameters, without a flow."""

from __future__ import annotations

from typing import Any, Protocol

from prefect_augment.latents.uses import USES, use_latents
from prefect_augment.params import Output
from prefect_augment.params.base import Params
from prefect_augment.schema.base import DatasetRef, LatentRef, LatentUse, ModelRef
from prefect_augment.storage.store import Store

__all__ = [
    "anomalies",
    "classify",
    "denoise",
    "embed",
    "interpolate",
    "reconstruct",
    "shift_attribute",
]


class _Use(Protocol):
    __name__: str

    def __call__(
        self,
        dataset: DatasetRef,
        *,
        model: ModelRef,
        store: Store,
        params: Params | None = None,
        output: Output | None = None,
        out: Store | None = None,
        **options: Any,
    ) -> LatentRef: ...


def _use(name: LatentUse) -> _Use:
    def run(
        dataset: DatasetRef,
        *,
        model: ModelRef,
        store: Store,
        params: Params | None = None,
        output: Output | None = None,
        out: Store | None = None,
        **options: Any,
    ) -> LatentRef:
        of = USES[name].params
        params = params or (of(**options) if of else None)
        return use_latents(name, dataset, model, store, params=params, output=output, out=out)

    run.__name__ = USES[name].command
    return run


embed = _use("embeddings")
anomalies = _use("anomalies")
reconstruct = _use("reconstructions")
denoise = _use("denoised")
interpolate = _use("interpolations")
shift_attribute = _use("shifts")
classify = _use("classes")

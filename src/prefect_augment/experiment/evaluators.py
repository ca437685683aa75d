"""The evaluator of a kind of data; that of images is imported on use, since it needs torch."""

from __future__ import annotations

from prefect_augment.errors import MissingExtraError
from prefect_augment.experiment import table_evaluator
from prefect_augment.experiment.evaluator import Evaluator, Wishes
from prefect_augment.schema.base import BalancePlan, DatasetInfo
from prefect_augment.storage.store import Store

__all__ = ["open_evaluator"]


def open_evaluator(
    store: Store, info: DatasetInfo, plan: BalancePlan, wishes: Wishes | None = None
) -> Evaluator:
    """Return the evaluator for staged records.

    Raises
    ------
    MissingExtraError
        If the records are images and torch or Pillow is not installed.
    """
    wishes = wishes or Wishes()
    if info.modality == "table":
        return table_evaluator.open_evaluator(store, info, plan, wishes)
    try:
        from prefect_augment.experiment import image_evaluator
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] == "prefect_augment":
            raise
        raise MissingExtraError(
            f"judging images needs {exc.name}: pip install 'prefect-augment[images,torch]'",
            extra="images,torch",
        ) from exc
    return image_evaluator.open_evaluator(store, info, plan, wishes)

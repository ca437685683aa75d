"""Open the evaluator of an experiment's kind of data; images' is imported on use, since it needs torch."""

from prefect_augment.encoding.arrays import training_matrix
from prefect_augment.errors import MissingExtraError
from prefect_augment.experiment.evaluator import Evaluator, compared_sample
from prefect_augment.experiment.table_evaluator import TableEvaluator
from prefect_augment.schema import Experiment
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Store


def open_evaluator(store: Store, experiment: Experiment) -> Evaluator:
    """The evaluator of an experiment; MissingExtraError for images without torch or Pillow."""
    info = load_info(experiment.dataset, store)
    if info.modality == "table":
        records = training_matrix(store, info, experiment.plan, compared_sample(experiment))
        return TableEvaluator(experiment, info, records, store)
    try:
        from prefect_augment.experiment import image_evaluator
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] == "prefect_augment":
            raise
        raise MissingExtraError(
            f"comparing strategies on images needs {exc.name}: pip install 'prefect-augment[images,torch]'",
            extra="images,torch",
        ) from exc
    return image_evaluator.open_evaluator(store, info, experiment)

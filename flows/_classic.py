"""Classic records of a release, made by the workers of an engine where there is one."""

from prefect_augment.encoding.arrays import TRAINED_ON
from prefect_augment.schema import Release
from prefect_augment.shards.staged import load_info
from prefect_augment.tasks._engines import engine
from prefect_augment.tasks._runtime import call, open_root, run, run_each
from prefect_augment.tasks.augment import augment_part, augment_records


def with_classic(release: Release, *, workers: int) -> Release:
    """Add the classic records that the recipe has; an engine's workers share the images."""
    experiment = release.experiment
    dataset, counts = experiment.dataset, release.recipe.classic if release.recipe else {}
    if not counts:
        return release
    if engine() is not None and dataset.modality == "image":
        shards = load_info(dataset, open_root(dataset)).shards
        n_parts = min(workers, sum(shard.split in TRAINED_ON for shard in shards))
        if n_parts > 1:
            calls = [
                call(augment_part, experiment, counts, part=part, n_parts=n_parts)
                for part in range(n_parts)
            ]
            run_each(calls, workers=workers, step="augment")
    classic = run(augment_records, experiment, counts)
    return release.model_copy(update={"classic": classic})

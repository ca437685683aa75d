"""Classic records of a release, made by the workers of an engine where there is one."""

from prefect_augment.encoding.arrays import TRAINED_ON
from prefect_augment.schema import Release
from prefect_augment.shards.staged import load_info
from prefect_augment.tasks._engines import engine
from prefect_augment.tasks._runtime import call, open_root, run, share
from prefect_augment.tasks.augment import augment_part, augment_records


def with_classic(release: Release) -> Release:
    """Add the classic records that the recipe has; an engine's workers share the images."""
    experiment = release.experiment
    dataset, counts = experiment.dataset, release.recipe.classic if release.recipe else {}
    if not counts:
        return release
    if engine() is not None and dataset.modality == "image":
        shards = load_info(dataset, open_root(dataset)).shards
        share(
            lambda i, n: call(augment_part, experiment, counts, part=i, n_parts=n),
            step="augment",
            most=sum(shard.split in TRAINED_ON for shard in shards),
        )
    classic = run(augment_records, experiment, counts)
    return release.model_copy(update={"classic": classic})

"""Augment: write classic records, and check that a policy's changed images keep their label."""

from collections.abc import Mapping

from prefect_augment.augmentation.base import augment, augment_part as stage_part
from prefect_augment.augmentation.label_preservation import act_on, check_policy, policy_page
from prefect_augment.params import Classic
from prefect_augment.schema import DatasetRef, Experiment, PolicyCheck
from prefect_augment.tasks._display import artifact_key, dataset_slug, markdown_artifact, progress
from prefect_augment.tasks._runtime import open_root, step
from prefect_augment.text import class_list


@step(lambda p: f"augment {class_list(p['counts'])}")
def augment_records(experiment: Experiment, counts: Mapping[str, int]) -> DatasetRef:
    """Write classic records made from the training part, each naming its parent.

    Parameters
    ----------
    experiment : Experiment
        Ingested records, of which the hold-out is not read.
    counts : mapping of str to int
        Records to make per stratum of the plan.

    Returns
    -------
    DatasetRef
        Staged classic records.
    """
    dataset = experiment.dataset
    with progress("augment", dataset.root):
        ref = augment(experiment, counts, open_root(dataset))
        return ref.model_copy(update={"block": dataset.block})


@step(lambda p: f"augment, part {p['part'] + 1} of {p['n_parts']}")
def augment_part(
    experiment: Experiment, counts: Mapping[str, int], *, part: int, n_parts: int
) -> int:
    """Change the images of a part of the shards of :func:`augment_records`, which finds them.

    Parameters
    ----------
    experiment, counts
        As for :func:`augment_records`; of images.
    part, n_parts : int
        Which part, from 0, of how many.

    Returns
    -------
    int
        How many shards are this part's.
    """
    return stage_part(experiment, counts, open_root(experiment.dataset), part=part, n_parts=n_parts)


@step(lambda p: f"check policy {p['classic'].image}")
def check_image_policy(
    dataset: DatasetRef, classic: Classic, *, seed: int = 0, show_pictures: bool = True
) -> PolicyCheck:
    """Say how often each operation of a policy makes an image look like another class; warn or refuse.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested images; the hold-out is not read.
    classic : Classic
        The policy.
    seed : int
        Of the classifier and of the copies.
    show_pictures : bool
        Whether real images may be shown in the artifact.

    Returns
    -------
    PolicyCheck
        Also shown as an artifact, with originals beside their copies.
    """
    with progress("check policy", dataset.root):
        store = open_root(dataset)
        check = check_policy(dataset, classic=classic, seed=seed, store=store)
        key = artifact_key("policy", dataset_slug(dataset.root))
        page = policy_page(check, store, show_pictures=show_pictures)
        markdown_artifact(key, page, f"Policy {check.policy}")
        act_on(check, classic)
        return check

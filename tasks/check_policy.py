"""Check a policy: whether changed images keep their label, in the eyes of a classifier of the real ones."""

from __future__ import annotations

from prefect import task

from prefect_augment.augmentation.label_preservation import (
    PolicyCheck,
    act_on,
    check_policy,
    policy_page,
)
from prefect_augment.params import Classic
from prefect_augment.schema.base import DatasetRef
from prefect_augment.tasks._runtime import (
    TASK_OPTIONS,
    artifact_key,
    dataset_slug,
    markdown_artifact,
    named,
    open_block_store,
    progress,
    run_log,
)

__all__ = ["check_image_policy"]


@task(
    name="check_image_policy",
    task_run_name=named(lambda p: f"check policy {p['classic'].image}"),
    **TASK_OPTIONS,
)
def check_image_policy(
    dataset: DatasetRef, classic: Classic, *, seed: int = 0, show_pictures: bool = True
) -> PolicyCheck:
    """Say how often each operation of a policy makes an image another class's; warn or refuse.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested images; the hold-out is not read.
    classic : Classic
        The policy, and what is done where it does damage.
    seed : int
        Of the probe and of the copies.
    show_pictures : bool
        Whether real images may be shown in the artifact.

    Returns
    -------
    PolicyCheck
        Also shown as an artifact, with a sheet of originals beside copies.
    """
    with run_log(), progress("check policy", dataset.root):
        store = open_block_store(dataset.root, dataset.block)
        found = check_policy(dataset, classic=classic, seed=seed, store=store)
        key = artifact_key(dataset_slug(dataset.root), "policy")
        page = policy_page(found, store, show_pictures=show_pictures)
        markdown_artifact(key, page, f"Policy {found.policy}")
        act_on(found, classic)
        return found

"""What flows do first: check parameters, fill in defaults, hold the destination."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from prefect.runtime import flow_run
from pydantic import BaseModel

from prefect_augment.augmentation.label_preservation import needs_check
from prefect_augment.augmentation.text import check_comparable
from prefect_augment.catalogue.openlineage import traced
from prefect_augment.encoding.columns import learnt_owners
from prefect_augment.errors import InputError, ParameterError
from prefect_augment.evaluation.classifiers.own_estimator import check_modality
from prefect_augment.evaluation.metrics.chosen_measure import check_metric, measure_of
from prefect_augment.examples import example_source
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.flows._stopping import stoppable_run
from prefect_augment.loading.encoder import staged_encoder
from prefect_augment.params import (
    AutoModel,
    Compute,
    Destination,
    Encoder,
    MstModel,
    NoModel,
    Publish,
    RunParams,
    Source,
)
from prefect_augment.publish.export import check_export
from prefect_augment.publish.publish import check_destination
from prefect_augment.registry import check_shard_format, load_model_class
from prefect_augment.schema import DatasetRef, Experiment
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import contains
from prefect_augment.tasks._blocks import storage_options
from prefect_augment.tasks._display import STEPS, dataset_slug, run_progress
from prefect_augment.tasks._engines import check_address, open_engine
from prefect_augment.tasks._limits import check_crashes, destination_lease
from prefect_augment.tasks._runtime import (
    call,
    check_shared,
    open_destination,
    open_root,
    prepare_destination,
    run,
    run_log,
    share,
)
from prefect_augment.tasks.augment import check_image_policy
from prefect_augment.tasks.ingest import ingest_dataset, ingest_part, near_part

# The fastest fit of the fastest model on a small table takes about this long.
MINIMUM_SECONDS = 0.2
MANY_IMAGES = 1000  # whose comparison takes longer than to start two tasks
LARGEST_SEED = 2**32 - 1  # numpy's and scikit-learn's


@contextmanager
def running(
    destination: Destination,
    *,
    publishes: bool = True,
    steps: Sequence[str] = tuple(STEPS),
    job: str = "",
    source: str = "",
    compute: Compute = Compute(),
) -> Iterator[int]:
    """Show the run's log lines and one progress bar of these steps, stop endless restarts, hold the destination.

    Tasks inside run where ``compute`` says. Yields how many of them may run at the same time.

    ``publishes`` is False for a run that only inspects or stages; it waits for no other run. OpenLineage hears of the
    ``job``, if it has a name, and of its ``source``.
    """
    check_address(compute, destination)
    with stoppable_run(), run_log(), ExitStack() as stack:
        check_crashes()
        if job:
            stack.enter_context(traced(job, source, destination.uri, flow_run.id))
        if publishes:
            stack.enter_context(destination_lease(destination.uri))
        stack.enter_context(run_progress(destination.uri, steps))
        yield stack.enter_context(open_engine(compute))


@contextmanager
def reading(
    source: Source,
    destination: Destination,
    *,
    steps: Sequence[str],
    suffix: str = "balanced",
    publish: Publish | None = None,
    job: str = "",
    compute: Compute = Compute(),
) -> Iterator[tuple[Source, Destination, int]]:
    """As :func:`running`, for a flow with a source; yields it, the destination, and how many tasks may run.

    Without a URI the source is the built-in example, beside a destination in the home folder: a worker's own
    folder is temporary. A run with a ``job`` publishes, and others wait for it.
    """
    if not destination.uri:
        name = dataset_slug(source.uri) if source.uri else "example"
        place = Path.home() / "prefect-augment" / f"{name}-{suffix}"
        destination = Destination(uri=str(place))
    with running(
        destination, publishes=bool(job), steps=steps, job=job, source=source.uri, compute=compute
    ) as workers:
        if publish is not None:
            prepare_destination(destination, publish)
        source = source if source.uri else example_source(f"{destination.uri}-example", seed=0)
        check_shared(destination, source)
        yield source, destination, workers


def ingested(source: Source, destination: Destination, *, seed: int) -> DatasetRef:
    """Ingest the source; an engine's workers share the checks of images and the parsing of text files."""
    n_checked = share(
        lambda i, n: call(ingest_part, source, destination, seed=seed, part=i, n_parts=n),
        step="ingest",
    )
    # Groups or a hold-out column of the user's own decide what stays together, or with what.
    own_split = source.group_column or source.group_pattern or source.holdout_column
    if n_checked >= MANY_IMAGES and not own_split:
        share(
            lambda i, n: call(near_part, source, destination, seed=seed, part=i, n_parts=n),
            step="ingest",
        )
    return run(ingest_dataset, source, destination, seed=seed)


def check_parameters(
    source: Source, destination: Destination, params: RunParams, *, compares: bool = False
) -> None:
    """Raise ParameterError or InputError for what cannot work, before anything is read."""
    check_seed(params.seed)
    budget = params.budget
    if not budget.steps and budget.minutes * 60 < MINIMUM_SECONDS:
        raise ParameterError(
            f"budget.minutes={budget.minutes:g} is {budget.minutes * 60:.2g} seconds, too little for one step of "
            f"any model; give at least {MINIMUM_SECONDS / 60:.2g}, or budget.steps instead."
        )
    if params.encoder.why_unpublishable:
        raise ParameterError(params.encoder.why_unpublishable)
    if compares:
        check_metric(params.evaluation.metric)
    if set(params.publish.origins) == {"synthetic"} and params.quality.min_level_records == 1:
        raise ParameterError(
            "quality.min_level_records is 1, which lets values of single records out, and publish.origins makes a "
            "dataset to share; give at least 2."
        )
    if compares and params.balance.unit == "object":
        raise ParameterError(
            "balance.unit is 'object', and strategies are compared by the classes of whole images, not by boxes; "
            "balance boxes with the flow augment, or records with balance.unit 'record'."
        )
    if not isinstance(params.model, AutoModel | NoModel):  # what auto is depends on the data
        load_model_class(params.model)
    if source.uri and destination.uri:
        source_root = source.uri.split("*")[0].rstrip("/")
        if contains(source_root, destination.uri) and source_root:
            raise InputError(
                f"destination {destination.uri!r} lies inside the source {source.uri!r}, so the next run would read "
                "its own output; choose a destination outside the source."
            )


def check_encoder(encoder: Encoder, destination: Destination) -> None:
    """Read and open the user's encoder, before anything else is read, and keep a copy for the run's steps."""
    if encoder.uri:
        options = storage_options(encoder.storage_block)
        staged_encoder(encoder, open_destination(destination), options)


def check_comparison(dataset: DatasetRef, params: RunParams) -> None:
    """Raise ParameterError for estimators or an encoder of another kind of data, and for what cannot be compared.

    Also for a share whose synthetic records would have real people's numbers.
    """
    encoder = params.encoder
    check_modality(params.evaluation, dataset.modality)
    if encoder.uri and dataset.modality != "image":
        raise ParameterError(
            f"encoder {encoder.name} is for images, and the source is a table; leave encoder.uri empty."
        )
    store = open_root(dataset)
    check_comparable(dataset, store)
    owners = learnt_owners(load_info(dataset, store).columns)
    if owners and set(params.publish.origins) == {"synthetic"}:
        raise ParameterError(
            f"publish.origins is [synthetic], and column {owners[0]!r} says whose record it is: synthetic records "
            "would have the values of real ones. Name it as source.group_column, or give its kind in source.columns: "
            "identifier leaves the values out; category keeps them, if they are nobody's.",
            column=owners[0],
        )


def check_seed(seed: int) -> None:
    """Raise ParameterError for a seed that numpy and scikit-learn do not take."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ParameterError(f"seed is {seed}; expected a whole number from 0 to {LARGEST_SEED}.")


def check_measure(experiment: Experiment) -> None:
    """Raise ParameterError for a metric that these classes do not have, or that fails on them."""
    n_real = experiment.plan.real_counts
    compared = {c.label for c in experiment.plan.classes if c.compared}
    measure_of(
        experiment.params.evaluation.metric,
        classes=tuple(n_real),
        compared=np.array([label in compared for label in n_real]),
        counts=np.array(list(n_real.values()), dtype=np.int64),
    )


def check_before_work(experiment: Experiment) -> None:
    """Refuse a metric, destination, format or policy that cannot be used, before anything is trained."""
    check_measure(experiment)
    dataset, params = experiment.dataset, experiment.params
    store = open_root(dataset)
    check_destination(store, dataset)
    if params.publish.export:
        check_export(store, params.publish.export)
    if isinstance(params.model, MstModel):
        columns = load_info(dataset, store).columns
        numbers = [
            c.name for c in columns if c.kind == "numeric" and c.name not in params.balance.by
        ]
        params.model.check_bounds(numbers)
    try_estimators(experiment)
    check_shard_format(params.publish.format, modality=dataset.modality)
    if needs_check(params.classic, dataset, params.balance):
        shows = params.report.pictures == "real"
        run(check_image_policy, dataset, params.classic, seed=params.seed, show_pictures=shows)


def try_estimators(experiment: Experiment) -> None:
    """Refuse an estimator or encoder of the user's that fails on these records, before anything is trained."""
    if experiment.params.evaluation.own_estimators or experiment.params.encoder.uri:
        open_evaluator(open_root(experiment.dataset), experiment).try_estimators()


def as_json(params: RunParams, *others: BaseModel) -> dict[str, Any]:
    """Return parameters as JSON, by the name of their section; blocks by name, no secrets."""
    sections = {type(other).__name__.lower(): other.model_dump(mode="json") for other in others}
    return sections | params.model_dump(mode="json")

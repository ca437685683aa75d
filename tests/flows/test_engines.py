"""Where tasks run: threads, processes, Dask and Ray give the same bytes, and a run's page shows the same."""

import time
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.objects import Artifact, Log, TaskRun
from prefect.flows import Flow
from prefect.task_runners import ProcessPoolTaskRunner
from support import run_pages
from support.engine_runs import published_shards, short_run
from support.tables import make_table, source_of

from prefect_augment.errors import AugmentError, ParameterError
from prefect_augment.examples import example_images
from prefect_augment.flows._classic import with_classic
from prefect_augment.flows._inputs import ingested
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Compute, Destination, NoModel, RunParams, Source
from prefect_augment.plan.plan import plan as make_plan
from prefect_augment.plan.strategies import classic_recipe
from prefect_augment.schema import Experiment, Release, RunResult
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import open_store
from prefect_augment.tasks._engines import open_engine

pytestmark = pytest.mark.flow
# Tasks of a run; each works on a worker.
STEPS = {
    "ingest_dataset", "plan_balance", "score_strategy", "pilot_strategy", "train_model", "sample_classes",
    "filter_candidates", "measure_privacy", "choose_strategy", "confirm_choice", "write_report", "publish_dataset",
}  # fmt: skip


@pytest.fixture(scope="module")
def shared_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source_of(make_table(), tmp_path_factory.mktemp("engines") / "in.parquet")


def run(
    source: Source, folder: Path, compute: Compute, flow: Flow[..., RunResult] = rebalance
) -> UUID:
    """Make a short run, and return its id."""
    state = short_run(source.uri, str(folder), compute, flow=flow, return_state=True)
    assert state.is_completed(), state.message
    return run_pages.run_id(state)


@pytest.fixture(scope="module")
def of_one_thread(
    prefect_harness: None, shared_source: Source, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("engines") / "out"
    run(shared_source, folder, Compute(workers=1))
    return published_shards(folder)


def what_a_page_shows(run_id: UUID) -> tuple[list[Artifact], list[Log], list[TaskRun]]:
    for _ in range(60):  # Prefect sends log lines and states in batches
        logs, tasks = run_pages.logs(run_id), run_pages.task_runs(run_id)
        ended = all(task.state_name == "Completed" for task in tasks)
        if ended and tasks and any("Published" in log.message for log in logs):
            break
        time.sleep(0.5)
    return run_pages.artifacts(run_id), logs, tasks


# Processes are those of the next test, and of tests/faults/test_lost_workers.py.
@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_an_engine_gives_the_bytes_of_one_thread_and_shows_the_same(
    engine: str, shared_source: Source, of_one_thread: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip(f"prefect_{engine}", reason=f"needs the extra {engine}")
    compute = Compute.model_validate({"engine": engine, "workers": 2})
    run_id = run(shared_source, tmp_path / "out", compute)
    assert published_shards(tmp_path / "out") == of_one_thread
    assert any("synthetic" in name for name in of_one_thread)
    artifacts, logs, tasks = what_a_page_shows(run_id)
    assert {task.state_name for task in tasks} == {"Completed"}
    names = {task.task_key.partition("-")[0] for task in tasks}
    assert names >= STEPS, names
    # A line of the first task and one of the last, which workers wrote.
    assert any(log.message.startswith("Read in.parquet") for log in logs)
    assert any("Published" in log.message for log in logs)
    bars = [a for a in artifacts if a.type == "progress"]
    assert [a.data for a in bars] == [100.0]


def test_a_task_runner_of_with_options_is_the_engine(
    shared_source: Source, of_one_thread: dict[str, bytes], tmp_path: Path
) -> None:
    flow = rebalance.with_options(task_runner=ProcessPoolTaskRunner(max_workers=2))
    run_id = run(shared_source, tmp_path / "out", Compute(), flow)
    assert published_shards(tmp_path / "out") == of_one_thread
    _, logs, tasks = what_a_page_shows(run_id)
    parts = {"ingest_part", "fit_part", "publish_part"}
    assert {"ingest_dataset", *parts} <= {task.task_key.partition("-")[0] for task in tasks}
    assert any("Tasks run on the task runner" in log.message for log in logs)


def test_workers_share_the_checks_of_a_sources_images(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="needs the images extra")
    source, there = (
        example_images(str(tmp_path / "in"), seed=0),
        Destination(uri=str(tmp_path / "out")),
    )
    store, alone = open_store(there.uri), open_store(str(tmp_path / "alone"))
    with open_engine(Compute(engine="processes", workers=2)):
        dataset = ingested(source, there, seed=0)
    assert load_info(dataset, store) == load_info(ingest(source, store=alone, seed=0), alone)
    staged = [name.rpartition("/")[2] for name in store.list("_staging/ingest")]
    pairs = [name.partition(".")[0][-6:] for name in staged if name.startswith("pairs-")]
    assert sorted(pairs) == ["0-of-2", "1-of-2"]
    parts = {name.rpartition("-")[0] for name in staged if name.startswith("checks-")}
    assert parts == {f"checks-{of}-{part}-of-2" for of in ("source", "holdout") for part in (0, 1)}


def test_workers_share_the_images_of_classic_augmentation(tmp_path: Path) -> None:
    pytest.importorskip("albumentations", reason="needs the images extra")
    store, params = open_store(str(tmp_path / "out")), RunParams(model=NoModel())
    dataset = ingest(example_images(str(tmp_path / "in"), seed=0), store=store, seed=0)
    plan = make_plan(dataset, params, store, compares=False)
    experiment = Experiment(dataset=dataset, plan=plan, params=params)
    recipe = classic_recipe(plan, "image", params.classic)
    with open_engine(Compute(engine="processes", workers=2)):
        release = with_classic(Release(experiment=experiment, recipe=recipe))
    assert release.classic is not None
    assert release.classic.class_counts == recipe.classic
    staged = [name for name in store.list("_staging/augment") if "/copies-" in name]
    assert {name.rpartition("/")[2] for name in staged if name.endswith(".json")} == {
        "copies-00000.json",
        "copies-00001.json",
    }, "of training and of validation"


def test_a_destination_in_memory_is_refused_where_workers_are_other_processes(
    shared_source: Source,
) -> None:
    compute = Compute(engine="processes")
    with pytest.raises(ParameterError, match="memory://somewhere lies in the memory of the flow"):
        rebalance(
            source=shared_source,
            destination=Destination(uri="memory://somewhere"),
            model=NoModel(),
            compute=compute,
        )


def test_an_address_that_nobody_answers_at_is_named(shared_source: Source) -> None:
    pytest.importorskip("prefect_dask", reason="needs the extra dask")
    compute = Compute(engine="dask", address="tcp://127.0.0.1:9")
    with pytest.raises(AugmentError, match=r"no Dask cluster answers at tcp://127\.0\.0\.1:9"):
        rebalance(source=shared_source, model=NoModel(), compute=compute)

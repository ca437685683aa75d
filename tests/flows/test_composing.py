"""Our tasks inside flows of other people, in every way that Prefect has of calling a task."""

import asyncio
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, get_type_hints

import cloudpickle
import pyarrow.parquet as pq
import pytest
from prefect import Task, flow, unmapped
from prefect.client.orchestration import get_client
from prefect.exceptions import ParameterTypeError
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from support import run_pages
from support.engine_runs import QUICK
from support.tables import make_table, source_of

import prefect_augment
import prefect_augment.tasks
from prefect_augment import (
    Balance,
    Classic,
    Destination,
    Experiment,
    NoModel,
    Release,
    RunParams,
    Source,
    TreesModel,
    augment_records,
    choose_strategy,
    confirm_choice,
    filter_candidates,
    import_synthetic,
    ingest_dataset,
    open_dataset,
    plan_balance,
    publish_dataset,
    rebalance,
    sample_classes,
    score_strategy,
    train_model,
    write_report,
)
from prefect_augment.errors import LabelError
from prefect_augment.plan.strategies import make_recipe, make_strategies

WITH_TREES = RunParams(model=TreesModel(), evaluation=QUICK)
WITHOUT_MODEL = RunParams(model=NoModel(), evaluation=QUICK)

pytestmark = pytest.mark.usefixtures("quick_runs")


def our_tasks() -> dict[str, Task[..., Any]]:
    """Every task of the package, by name."""
    modules = [m.name for m in iter_modules(prefect_augment.tasks.__path__)]
    return {
        name: item
        for module in modules
        for name, item in vars(import_module(f"prefect_augment.tasks.{module}")).items()
        if isinstance(item, Task)
    }


# --- what a reader of the signature learns ---


@pytest.mark.parametrize("task", our_tasks().values(), ids=our_tasks())
def test_every_parameter_of_a_task_has_a_type_and_a_description(task: Task[..., Any]) -> None:
    """Types that resolve at run time, too: Prefect and pydantic read them there."""
    hints = get_type_hints(task.fn)
    parameters = list(inspect.signature(task.fn).parameters)
    assert {*parameters, "return"} <= set(hints)
    documented = inspect.getdoc(task.fn) or ""
    heads = re.findall(r"^(\w[\w, ]*?)(?: : .*)?$", documented, flags=re.MULTILINE)
    named = {name.strip() for head in heads for name in head.split(",")}
    assert set(parameters) <= named, "each stands in the docstring"
    assert "Returns\n-------" in documented


def test_every_task_is_a_public_name_of_the_package() -> None:
    assert set(our_tasks()) <= set(prefect_augment.__all__)


@pytest.mark.parametrize("task", our_tasks().values(), ids=our_tasks())
def test_a_task_can_be_sent_to_another_process(task: Task[..., Any]) -> None:
    """What runners of processes, Dask and Ray do first."""
    assert cloudpickle.loads(cloudpickle.dumps(task)).name == task.name


# --- inside flows ---


@pytest.mark.flow
def test_submitted_tasks_take_one_anothers_futures(
    source: Source, destination: Destination
) -> None:
    @flow
    def theirs() -> Any:
        dataset = ingest_dataset.submit(source, destination)
        plan = plan_balance.submit(dataset, WITH_TREES).result()
        experiment = Experiment(dataset=dataset.result(), plan=plan, params=WITH_TREES)
        model = train_model.submit(experiment)
        drawn = sample_classes.submit(dataset, model, {"cracked": 30})
        filtered = filter_candidates.submit(experiment, drawn)
        experiment = experiment.model_copy(update={"candidates": filtered})
        release = Release(experiment=experiment).model_copy(update={"models": [model]})
        return publish_dataset.submit(release).result()

    commit = theirs()
    assert commit.version == 1
    (model,) = open_dataset(destination.uri).manifest.models
    assert model.kind == "trees", "a list of futures is resolved as well"


@pytest.mark.flow
def test_strategies_are_mapped_over_with_the_rest_unmapped(
    source: Source, destination: Destination
) -> None:
    @flow
    def theirs() -> Any:
        dataset = ingest_dataset(source, destination)
        plan = plan_balance(dataset, WITHOUT_MODEL)
        experiment = Experiment(dataset=dataset, plan=plan, params=WITHOUT_MODEL)
        strategies = make_strategies(dataset.modality, model=None, classic=Classic())
        scores = score_strategy.map(unmapped(experiment), strategies, unmapped(0))
        return strategies, choose_strategy(scores)

    strategies, choice = theirs()
    assert len(strategies) > 3
    assert choice.baseline in strategies


@pytest.mark.flow
def test_one_bad_source_among_mapped_ones_fails_alone(source: Source, tmp_path: Path) -> None:
    bad = source_of(make_table().drop_columns(["state"]), tmp_path / "unlabelled.parquet")
    places = [Destination(uri=str(tmp_path / name)) for name in ("a", "b")]

    @flow
    def theirs() -> Any:
        futures = ingest_dataset.map([source, bad], places)
        futures.wait()
        return [future.state for future in futures]

    good, failed = theirs(return_state=True).result(raise_on_failure=False)
    assert good.is_completed()
    assert failed.is_failed()
    with pytest.raises(LabelError, match="state"):
        failed.result()


@pytest.mark.flow
def test_options_of_a_task_can_be_changed(source: Source, destination: Destination) -> None:
    ours = ingest_dataset.with_options(
        name="read the parts", task_run_name="of {source.label}", retries=0, tags=["parts"]
    )

    @flow
    def theirs() -> Any:
        return ours(source, destination, return_state=True)

    state = theirs()
    assert state.is_completed()
    with get_client(sync_client=True) as client:
        run = client.read_task_run(state.state_details.task_run_id)
    assert run.name == "of state"
    assert "parts" in run.tags
    assert ingest_dataset.name == "ingest_dataset", "the original is what it was"


# A flow of one empty task shows it too: asyncio.run leaves Prefect's own connection to be collected.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.flow
def test_tasks_and_flow_run_inside_an_asynchronous_flow(
    source: Source, destination: Destination, tmp_path: Path
) -> None:
    @flow
    async def theirs() -> Any:
        dataset = ingest_dataset(source, destination)
        plan = plan_balance.submit(dataset, WITHOUT_MODEL).result()
        whole = rebalance(
            source=source,
            destination=Destination(uri=str(tmp_path / "whole")),
            model=NoModel(),
            evaluation=QUICK,
        )
        experiment = Experiment(dataset=dataset, plan=plan, params=WITHOUT_MODEL)
        return publish_dataset(Release(experiment=experiment)), whole

    commit, whole = asyncio.run(theirs())
    assert commit.version == 1
    assert whole.version == 1


@pytest.mark.flow
def test_the_flow_is_a_subflow_of_another_flow(source: Source, destination: Destination) -> None:
    @flow
    def theirs() -> Any:
        return rebalance(source, destination, model=NoModel(), evaluation=QUICK, return_state=True)

    state = theirs()
    assert state.result().version == 1
    assert run_pages.flow_run(run_pages.run_id(state)).parent_task_run_id is not None


# --- outside Prefect ---


@pytest.fixture
def no_api() -> Iterator[None]:
    """Whatever other tests have started: a call of the API fails in here."""
    with temporary_settings({PREFECT_API_URL: None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("no_api", "quick_runs")
def test_a_flow_is_a_plain_function_where_no_server_is_configured(
    source: Source, destination: Destination
) -> None:
    result = rebalance(source=source, destination=destination, model=NoModel(), evaluation=QUICK)
    assert result.version == 1
    with pytest.raises(ParameterTypeError, match="seed"):
        rebalance(source=source, seed="many")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.usefixtures("no_api")
def test_every_task_is_a_plain_function_outside_prefect(
    source: Source, destination: Destination, tmp_path: Path
) -> None:
    """The whole job by hand, as in a notebook or under another orchestrator."""
    dataset = ingest_dataset.fn(source, destination)
    plan = plan_balance.fn(dataset, WITH_TREES)
    experiment = Experiment(dataset=dataset, plan=plan, params=WITH_TREES)
    trained = train_model.fn(experiment)
    drawn = sample_classes.fn(dataset, trained, {"cracked": 30})
    filtered = filter_candidates.fn(experiment, drawn)
    experiment = experiment.model_copy(update={"candidates": filtered})
    strategies = make_strategies(
        dataset.modality, model="trees", classic=Classic(), soft_labels=plan.soft_labels
    )
    scores = [score_strategy.fn(experiment, strategy, 0) for strategy in strategies]
    choice = choose_strategy.fn(scores)
    verdict = confirm_choice.fn(experiment, choice, scores)
    smote = next(strategy for strategy in strategies if strategy.family == "classic").model_copy(
        update={"amount": 1.0}
    )
    recipe = make_recipe(experiment, smote, scores)
    made = augment_records.fn(experiment, recipe.classic)
    release = Release(
        experiment=experiment, recipe=recipe, verdict=verdict, scores=tuple(scores), classic=made
    )
    page = write_report.fn(release)
    commit = publish_dataset.fn(release, page)

    pq.write_table(make_table(seed=5, counts={"cracked": 20}), tmp_path / "theirs.parquet")
    external = import_synthetic.fn(dataset, plan, str(tmp_path / "theirs.parquet"))

    assert commit.version == 1
    assert external.class_counts == {"cracked": 20}
    published = open_dataset(destination.uri)
    assert published.to_table(origins=["classic"]).num_rows > 0
    assert published.manifest.verdict == verdict.without_paths()


# --- published without a recipe ---


def test_classic_records_that_are_given_are_published(
    source: Source, destination: Destination
) -> None:
    dataset = ingest_dataset.fn(source, destination)
    params = RunParams(balance=Balance(target="majority"), model=NoModel())
    plan = plan_balance.fn(dataset, params)
    experiment = Experiment(dataset=dataset, plan=plan, params=params)
    wanted = {c.name: c.n_classic for c in plan.classes if c.n_classic}
    made = augment_records.fn(experiment, wanted)
    publish_dataset.fn(Release(experiment=experiment, classic=made))
    published = open_dataset(destination.uri)
    assert published.to_table(origins=["classic"]).num_rows == sum(wanted.values()) > 0
    assert f"{sum(wanted.values())} classic records were added" in published.recipe.sentence


@pytest.mark.slow
def test_soft_labels_bring_each_class_to_its_target_by_weights(
    source: Source, destination: Destination
) -> None:
    dataset = ingest_dataset.fn(source, destination)
    params = RunParams(model=TreesModel())
    plan = plan_balance.fn(dataset, params)
    assert plan.soft_labels
    experiment = Experiment(dataset=dataset, plan=plan, params=params)
    model = train_model.fn(experiment)
    wanted = {c.name: c.n_synthetic for c in plan.classes if c.name in model.strata}
    filtered = filter_candidates.fn(experiment, sample_classes.fn(dataset, model, wanted))
    experiment = experiment.model_copy(update={"candidates": filtered})
    publish_dataset.fn(Release(experiment=experiment, models=(model,)))
    table = open_dataset(destination.uri).to_pandas("train")
    weight = table.groupby("state", observed=True)["aug_weight"].sum()
    target = {c.name: c.target for c in plan.classes}
    for name in target:
        assert weight[name] / weight.sum() == pytest.approx(
            target[name] / sum(target.values()), rel=1e-3
        )
    assert table["aug_weight"].mean() == pytest.approx(1.0)

"""A comparison by the user's own classifier: on tables a pipeline, on images a torch module."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import own_models
from support.steps import experiment_of

from prefect_augment.evaluation.classifiers.own_estimator import check_estimators
from prefect_augment.evaluation.verdict.selection import choose_strategy
from prefect_augment.experiment.confirmation import confirm
from prefect_augment.experiment.evaluator import Synthetic
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.score import score
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Budget, Classic, Evaluation, NoModel, RunParams, Source
from prefect_augment.plan.plan import plan
from prefect_augment.plan.strategies import make_recipe, make_strategies
from prefect_augment.registry import ALLOW_IMPORT_PATHS
from prefect_augment.schema import DatasetRef, Experiment
from prefect_augment.storage import Store


@pytest.fixture(scope="module")
def store(memory_store: Store) -> Store:
    return memory_store


@pytest.fixture(scope="module")
def dataset(
    store: Store, make_table: Callable[..., pa.Table], tmp_path_factory: pytest.TempPathFactory
) -> DatasetRef:
    path: Path = tmp_path_factory.mktemp("source") / "records.parquet"
    pq.write_table(make_table(), path)
    return ingest(Source(uri=str(path), label="state"), store=store, seed=0)


def compared_by(dataset: DatasetRef, store: Store, evaluation: Evaluation) -> Experiment:
    asked = RunParams(model=NoModel(), evaluation=evaluation, budget=Budget(device="cpu"))
    found = plan(dataset, asked, store, compares=False)
    if dataset.modality == "image":
        found = found.model_copy(update={"classifier_steps": 25})
    return experiment_of(dataset, found, **dict(asked))


@pytest.mark.slow
def test_a_pipeline_decides_a_comparison_and_is_named_in_the_evidence(
    dataset: DatasetRef, store: Store
) -> None:
    """The pipeline fails on nulls: the corrupted copies must not have any that it did not train on."""
    pipeline = own_models.pipeline(C=0.5)
    asked = compared_by(
        dataset, store, Evaluation(estimators=[pipeline], n_seeds=2, n_bootstrap=100)
    )
    (own,) = asked.params.evaluation.own_estimators
    strategies = [
        s
        for s in make_strategies("table", model=None, classic=Classic(), own_estimators=True)
        if s.family in ("as_is", "weights", "threshold", "bagging")
    ]
    scores = [score(asked, strategy, 0, store) for strategy in strategies]
    assert len({s.score for s in scores}) == 4, "bags are trained, too"
    assert {tuple(s.estimators) for s in scores} == {("LogisticRegression",)}
    verdict = confirm(asked, choose_strategy(scores), scores, store)
    assert set(verdict.strategies["as is"]) == {"LogisticRegression"}
    info = verdict.estimators["LogisticRegression"]
    assert (info.package, info.digest) == ("scikit-learn", own.digest)
    assert make_recipe(asked, strategies[0], scores).estimators == {own.title: own.digest}


def test_built_in_estimators_are_named_too_and_random_ones_are_fitted_per_seed(
    dataset: DatasetRef, store: Store
) -> None:
    by_name = compared_by(dataset, store, Evaluation(estimators=["boosting", "random_forest"]))
    evaluator = open_evaluator(store, by_name)
    assert evaluator.estimators == ("boosting", "random_forest")
    assert evaluator.estimator_infos["random_forest"].package == "scikit-learn"
    (as_is,) = (
        s for s in make_strategies("table", model=None, classic=Classic()) if s.family == "as_is"
    )
    assert not evaluator.is_fixed(as_is)
    given = Synthetic(evaluator.records.X[:4], np.zeros(4, dtype=np.int64))
    again = evaluator.synthetic(np.arange(5), candidates=given, seed=7)
    assert again is given, "another tool's records are not drawn anew"
    assert open_evaluator(store, compared_by(dataset, store, Evaluation())).is_fixed(as_is)


def image_table() -> pa.Table:
    """Rows that are light, or columns, in noise."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    labels = ["rows"] * 150 + ["columns"] * 60
    records = []
    for label in labels:
        pixels = rng.integers(0, 160, (12, 12)).astype(np.uint8)
        pixels[rng.integers(12)] += 90
        buffer = io.BytesIO()
        image.fromarray(pixels.T if label == "columns" else pixels).save(buffer, format="PNG")
        records.append({"bytes": buffer.getvalue(), "path": None})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array(records, kind), "label": labels})


@pytest.mark.slow
def test_a_torch_module_by_factory_compares_images_and_repeats(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dropout draws from torch's global generator; the seed decides nevertheless."""
    pytest.importorskip("torch")
    monkeypatch.setenv(ALLOW_IMPORT_PATHS, "1")
    pq.write_table(image_table(), tmp_path / "images.parquet")
    images = ingest(
        Source(uri=str(tmp_path / "images.parquet"), label="label"), store=store, seed=0
    )
    module = {"factory": "support.own_models:flat_net", "options": {"dropout": 0.5}, "name": "flat"}
    evaluation = check_estimators(Evaluation(estimators=[module], n_seeds=2, n_bootstrap=100))
    asked = compared_by(images, store, evaluation)
    strategies = [
        s
        for s in make_strategies("image", model=None, classic=Classic())
        if s.family in ("as_is", "loss")
    ]
    scores = [score(asked, s, 0, store) for s in strategies]
    verdict = confirm(asked, choose_strategy(scores), scores, store, workers=2)
    assert set(verdict.strategies["as is"]) == {"flat"}
    assert verdict.estimators["flat"].digest == evaluation.own_estimators[0].digest
    store.fs.rm(store.full("_staging/confirm"), recursive=True)
    assert confirm(asked, choose_strategy(scores), scores, store) == verdict

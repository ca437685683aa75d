"""A comparison by the user's own classifier: on tables a pipeline, on images a torch module."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support import own_models
from support.shapes import image_table
from support.staging import ingested
from support.steps import planned_experiment, strategies_of

from prefect_augment.evaluation.classifiers.own_estimator import check_estimators
from prefect_augment.evaluation.verdict.selection import choose_strategy
from prefect_augment.experiment.confirmation import confirm
from prefect_augment.experiment.evaluator import Synthetic
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.score import score
from prefect_augment.params import Budget, Evaluation, NoModel
from prefect_augment.plan.strategies import make_recipe
from prefect_augment.registry import ALLOW_IMPORT_PATHS
from prefect_augment.schema import DatasetRef, Experiment
from prefect_augment.storage import Store


def compared_by(dataset: DatasetRef, store: Store, evaluation: Evaluation) -> Experiment:
    params = {"model": NoModel(), "evaluation": evaluation, "budget": Budget(device="cpu")}
    changes = {"classifier_steps": 25} if dataset.modality == "image" else None
    return planned_experiment(dataset, store, changes=changes, **params)


@pytest.mark.slow
def test_a_pipeline_decides_and_is_named_in_the_evidence(dataset: DatasetRef, store: Store) -> None:
    """The pipeline fails on nulls: the corrupted copies must not have any that it did not train on."""
    pipeline = own_models.pipeline(C=0.5)
    asked = compared_by(
        dataset, store, Evaluation(estimators=[pipeline], n_seeds=2, n_bootstrap=100)
    )
    (own,) = asked.params.evaluation.own_estimators
    strategies = strategies_of("as_is", "weights", "threshold", "bagging", own_estimators=True)
    scores = [score(asked, strategy, 0, store) for strategy in strategies]
    assert len({s.score for s in scores}) == 4, "bags are trained, too"
    assert {tuple(s.estimators) for s in scores} == {("LogisticRegression",)}
    verdict = confirm(asked, choose_strategy(scores), scores, store)
    assert set(verdict.strategies["as is"]) == {"LogisticRegression"}
    info = verdict.estimators["LogisticRegression"]
    assert (info.package, info.digest) == ("scikit-learn", own.digest)
    assert make_recipe(asked, strategies[0], scores).estimators == {own.title: own.digest}


def test_built_in_estimators_are_named_too(dataset: DatasetRef, store: Store) -> None:
    by_name = compared_by(dataset, store, Evaluation(estimators=["boosting", "random_forest"]))
    evaluator = open_evaluator(store, by_name)
    assert evaluator.estimators == ("boosting", "random_forest")
    assert evaluator.estimator_infos["random_forest"].package == "scikit-learn"
    (as_is,) = strategies_of("as_is")
    assert not evaluator.is_fixed(as_is)
    given = Synthetic(evaluator.records.X[:4], np.zeros(4, dtype=np.int64))
    again = evaluator.synthetic(np.arange(5), candidates=given, seed=7)
    assert again is given, "another tool's records are not drawn anew"
    assert open_evaluator(store, compared_by(dataset, store, Evaluation())).is_fixed(as_is)


def light_lines() -> pa.Table:
    """Rows that are light, or columns, in noise."""
    rng = np.random.default_rng(0)
    labels = ["rows"] * 150 + ["columns"] * 60
    images = []
    for label in labels:
        pixels = rng.integers(0, 160, (12, 12)).astype(np.uint8)
        pixels[rng.integers(12)] += 90
        images.append(pixels.T if label == "columns" else pixels)
    return image_table(images, labels)


@pytest.mark.slow
def test_a_torch_module_by_factory_compares_images_and_repeats(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dropout draws from torch's global generator; the seed decides nevertheless."""
    pytest.importorskip("torch")
    monkeypatch.setenv(ALLOW_IMPORT_PATHS, "1")
    images = ingested(light_lines(), tmp_path, store, "label")
    module = {"factory": "support.own_models:flat_net", "options": {"dropout": 0.5}, "name": "flat"}
    evaluation = check_estimators(Evaluation(estimators=[module], n_seeds=2, n_bootstrap=100))
    asked = compared_by(images, store, evaluation)
    strategies = strategies_of("as_is", "loss", modality="image")
    scores = [score(asked, s, 0, store) for s in strategies]
    verdict = confirm(asked, choose_strategy(scores), scores, store, workers=2)
    assert set(verdict.strategies["as is"]) == {"flat"}
    assert verdict.estimators["flat"].digest == evaluation.own_estimators[0].digest
    store.fs.rm(store.full("_staging/confirm"), recursive=True)
    assert confirm(asked, choose_strategy(scores), scores, store) == verdict

"""Tables above the limit are compared on a sample, which the verdict names."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.staging import ingested
from support.steps import planned_experiment, strategies_of

from prefect_augment.encoding.arrays import Labelled
from prefect_augment.encoding.subsample import read_training_records
from prefect_augment.evaluation.verdict.selection import choose_strategy
from prefect_augment.experiment.audit import has_doubted_labels
from prefect_augment.experiment.confirmation import confirm
from prefect_augment.experiment.evaluator import FilterQuery
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.score import score
from prefect_augment.experiment.table_evaluator import TableEvaluator
from prefect_augment.params import Evaluation, NoModel, TreesModel
from prefect_augment.plan.strategies import make_recipe
from prefect_augment.registry import load_model_class
from prefect_augment.schema import DatasetRef, Experiment, experiment as experiment_module
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Store

EVALUATION = Evaluation(estimators=["logistic"], n_seeds=1, n_bootstrap=100)
MOST = 400


@pytest.fixture(scope="module")
def dataset(
    store: Store, make_table: Callable[..., pa.Table], tmp_path_factory: pytest.TempPathFactory
) -> DatasetRef:
    table = make_table(counts={"ok": 1300, "worn": 500, "lost": 200})
    return ingested(table, tmp_path_factory.mktemp("source"), store)


def asked(dataset: DatasetRef, store: Store, *, trees: bool = False) -> Experiment:
    model = TreesModel() if trees else NoModel()
    return planned_experiment(dataset, store, model=model, evaluation=EVALUATION)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_module, "MAX_COMPARED", MOST)


def test_the_limit_is_in_the_keys_of_larger_tables_alone(
    dataset: DatasetRef, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = asked(dataset, store)
    assert wanted.max_compared > dataset.n_records
    before = wanted.key("score")
    assert not open_evaluator(store, wanted).is_sampled
    monkeypatch.setattr(experiment_module, "MAX_COMPARED", dataset.n_records)
    assert wanted.key("score") == before
    monkeypatch.setattr(experiment_module, "MAX_COMPARED", MOST)
    assert wanted.key("score") != before


@pytest.mark.slow
@pytest.mark.usefixtures("limited")
def test_a_large_table_is_compared_on_a_named_sample(dataset: DatasetRef, store: Store) -> None:
    wanted = asked(dataset, store)
    evaluator = open_evaluator(store, wanted)
    data = evaluator.records
    assert evaluator.is_sampled
    # The limit, and up to a third of it of a class that is rarer than a third.
    assert MOST <= len(data.y) <= MOST + MOST // 3
    assert 0.1 < data.is_validation.mean() < 0.3
    strategies = strategies_of("as_is", "threshold", "weights")
    scores = [score(wanted, s.model_copy(update={"amount": 1.0}), 0, store) for s in strategies]
    verdict = confirm(wanted, choose_strategy(scores), scores, store)
    n_holdout = sum(s.n_records for s in load_info(dataset, store).shards if s.split == "holdout")
    assert n_holdout <= MOST, "the hold-out is within the limit"
    (said,) = [reason for reason in verdict.reasons if "were compared on" in reason]
    assert f"{len(data.y):,} of 1,600 training and validation records" in said
    assert "by their ids and the seed" in said
    assert "hold-out" not in said


@pytest.mark.slow
@pytest.mark.usefixtures("limited")
def test_thresholds_are_for_estimators_of_all_records(tmp_path: Path, store: Store) -> None:
    """A rare class is more frequent in the sample, so a threshold tuned there is too low a factor for all records."""
    rng = np.random.default_rng(0)
    rare = np.arange(4000) % 50 == 0
    x = rng.normal(size=4000) + 2 * rare
    table = pa.table({"x": x, "state": np.where(rare, "rare", "common")})
    wanted = asked(ingested(table, tmp_path, store), store)
    counts = np.bincount(open_evaluator(store, wanted).records.y) / np.array([3136, 64])
    over = counts[1] / counts[0]
    assert over > 5, "all of the rare class, and an eighth of the others"
    for family in ("threshold", "weights"):
        (strategy,) = strategies_of(family)
        one = score(wanted, strategy.model_copy(update={"amount": 1.0}), 0, store)
        recipe = make_recipe(wanted, one.strategy, [one])
        for estimator, tuned in one.thresholds.items():
            ratio = tuned["rare"] / tuned["common"]
            given = recipe.thresholds[estimator]["rare"] / recipe.thresholds[estimator]["common"]
            # Balanced weights leave the same shares of both.
            assert given / ratio == pytest.approx(over if family == "threshold" else 1, rel=1e-6)
        assert one.thresholds


@pytest.mark.usefixtures("limited")
def test_cleaning_is_not_tried_on_a_sample(tmp_path: Path, store: Store) -> None:
    """The recipe would doubt the sampled records alone."""
    rng = np.random.default_rng(0)
    rare = np.arange(600) % 5 == 0
    x, y = rng.normal(size=600) + 8 * rare, rare ^ (rng.random(600) < 0.05)
    table = pa.table({"x": x, "state": np.where(y, "rare", "common")})
    wanted = asked(ingested(table, tmp_path, store), store)
    (as_is,) = strategies_of("as_is")
    assert open_evaluator(store, wanted).is_sampled
    assert not has_doubted_labels(wanted, [score(wanted, as_is, 0, store)], store)


@pytest.mark.usefixtures("limited")
def test_copies_are_looked_for_among_the_records_that_the_model_has_seen(
    dataset: DatasetRef, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison's sample lacks most of them."""
    monkeypatch.setattr(load_model_class(TreesModel()), "max_training_records", 450)
    wanted = asked(dataset, store, trees=True)
    info = load_info(dataset, store)
    own = open_evaluator(store, wanted)
    assert isinstance(own, TableEvaluator)
    seen = own.with_model_records()
    records, _ = read_training_records(store, info, by=(), most=450, seed=0)
    training = ~seen.records.is_validation
    assert set(seen.records.keys[training]) == set(records["aug_id"].to_pylist())
    assert set(seen.records.keys[~training]) == set(own.records.keys[own.records.is_validation])
    assert (np.sort(seen.records.keys) == seen.records.keys).all()
    k = own.records.strata_names.index("lost")
    unknown = ~np.isin(seen.records.keys, own.records.keys)
    copies = seen.records.X[training & unknown & (seen.records.strata == k)]
    assert len(copies) > 20, "rare classes are learnt whole"
    query = FilterQuery(
        training=np.flatnonzero(training),
        validation=np.flatnonzero(~training),
        candidates=Labelled(copies, np.full(len(copies), k)),
        ordinals=np.arange(len(copies)),
        seed=0,
    )
    assert (seen.filter(query).reason == "near copy").mean() > 0.9

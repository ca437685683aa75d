"""The evaluator: one scoring, filter and verdict over tables and images, on tiny data of both."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.shapes import image_table, pictures, shapes
from support.staging import ingested, shards_of
from support.steps import candidates_with, experiment_of, strategies_of

from prefect_augment import experiment
from prefect_augment.encoding import subsample
from prefect_augment.encoding.arrays import Labelled
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.errors import MissingExtraError
from prefect_augment.evaluation.verdict.selection import choose_strategy
from prefect_augment.experiment import table_evaluator
from prefect_augment.experiment.audit import audit_list, with_doubted
from prefect_augment.experiment.confirmation import confirm, fit_part
from prefect_augment.experiment.evaluator import (
    Evaluator,
    FilterQuery,
    Synthetic,
    kept_synthetic,
    sampled_note,
    score_folds,
)
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.filter import filter_candidates
from prefect_augment.experiment.score import score
from prefect_augment.experiment.table_evaluator import TableEvaluator, audit_table
from prefect_augment.experiment.training_set import drawn_training_set
from prefect_augment.params import (
    AutoModel,
    Budget,
    Classic,
    DiffusionModel,
    Evaluation,
    NoModel,
    RunParams,
)
from prefect_augment.plan import estimate as estimates
from prefect_augment.plan.plan import plan
from prefect_augment.plan.strategies import EXTERNAL, make_recipe, make_strategies
from prefect_augment.schema import (
    BalancePlan,
    Choice,
    DatasetInfo,
    DatasetRef,
    Experiment,
    HoldoutResult,
    Strategy,
)
from prefect_augment.shards.staged import read_part
from prefect_augment.storage import Stage, Store, read_result

COUNTS = {"ring": 160, "cross": 70, "dot": 60}
N_SEEDS = 2
EVALUATION = Evaluation(n_seeds=N_SEEDS, n_bootstrap=100, estimators=["logistic"])
ON_CPU = Budget(device="cpu")
STEPS = 25


@pytest.fixture(scope="module", params=["table", "image"])
def dataset(
    request: pytest.FixtureRequest,
    store: Store,
    make_table: Callable[..., pa.Table],
    tmp_path_factory: pytest.TempPathFactory,
) -> DatasetRef:
    """The same classes as numbers and as pictures."""
    folder = tmp_path_factory.mktemp("source")
    if request.param == "table":
        return ingested(make_table(), folder, store)
    pytest.importorskip("torch")
    return ingested(pictures(0, COUNTS), folder, store, "label")


def planned(dataset: DatasetRef, store: Store, model: Any = None) -> BalancePlan:
    found = plan(
        dataset, RunParams(model=model or AutoModel(), evaluation=EVALUATION), store, compares=False
    )
    steps = STEPS if dataset.modality == "image" else 0
    return found.model_copy(update={"classifier_steps": steps})


@pytest.fixture
def evaluator(dataset: DatasetRef, store: Store) -> Evaluator:
    return open_evaluator(store, asked_of(dataset, planned(dataset, store)))


def asked_of(dataset: DatasetRef, plan: BalancePlan, **params: Any) -> Experiment:
    return experiment_of(dataset, plan, evaluation=EVALUATION, budget=ON_CPU, **params)


def predicted(evaluator: Evaluator, strategy: Strategy, seed: int = 0) -> dict[str, np.ndarray]:
    """What an estimator of the training records says of validation's."""
    training, validation = rows_of(evaluator)
    X = evaluator.records.X[validation]
    return dict(evaluator.predictions(strategy, training, X, synthetic=None, seed=seed))


def rows_of(evaluator: Evaluator) -> tuple[np.ndarray, np.ndarray]:
    is_validation = evaluator.records.is_validation
    return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)


def test_the_modality_decides_the_evaluator(evaluator: Evaluator, dataset: DatasetRef) -> None:
    image = dataset.modality == "image"
    assert evaluator.records.X.ndim == (4 if image else 2)
    assert evaluator.estimators == (("convolutional",) if image else ("logistic",))
    assert list(evaluator.records.keys) == sorted(evaluator.records.keys)
    counts = evaluator.info.part_counts
    n_train = sum(sum(counts[part].values()) for part in ("training", "validation"))
    assert len(evaluator.records.X) == len(evaluator.records.y) == n_train


def test_the_hold_out_has_the_form_of_training_records(evaluator: Evaluator, store: Store) -> None:
    table = read_part(store, evaluator.info, ["holdout"])
    holdout = evaluator.read(table)
    assert holdout.X.shape[1:] == evaluator.records.X.shape[1:]
    assert holdout.X.dtype == evaluator.records.X.dtype
    assert np.array_equal(evaluator.encode(table), holdout.X, equal_nan=holdout.X.ndim == 2)
    assert not set(holdout.keys) & set(evaluator.records.keys)


@pytest.mark.slow
def test_every_strategy_without_a_model_gives_probabilities_of_all_classes(
    evaluator: Evaluator, dataset: DatasetRef
) -> None:
    n_validation = evaluator.records.is_validation.sum()
    for strategy in make_strategies(dataset.modality, model=None, classic=Classic()):
        strategy = strategy.model_copy(update={"amount": strategy.amount or 1.0})
        found = predicted(evaluator, strategy)
        assert tuple(found) == evaluator.estimators
        for proba in found.values():
            assert proba.shape == (n_validation, len(evaluator.records.classes))
            assert np.allclose(proba.sum(axis=1), 1)


@pytest.mark.slow
def test_an_audit_finds_swapped_labels_and_reads_its_own_rows_alone(
    evaluator: Evaluator, dataset: DatasetRef, store: Store
) -> None:
    if not isinstance(evaluator, TableEvaluator):
        pytest.skip("of tables")
    training, validation = rows_of(evaluator)
    data = evaluator.records
    swapped = training[data.y[training] == 0][:6]
    labels = (data.y.copy(), data.strata.copy())
    for codes in labels:
        codes[swapped] = 1
        codes[validation] = np.roll(codes[validation], 1)
    audits = []
    for y, strata in (labels, (np.where(data.is_validation, data.y, labels[0]), labels[1])):
        table_evaluator._recent.clear()
        changed = replace(evaluator, records=replace(data, y=y, strata=strata))
        audits.append(audit_table(changed, training, seed=3))
    table_evaluator._recent.clear()
    assert np.array_equal(audits[0].score, audits[1].score), "validation labels change nothing"
    score = audits[0].score
    assert np.median(score[np.isin(training, swapped)]) > np.quantile(score, 0.9)
    assert audits[0].doubted.any()
    assert audits[0].doubted.mean() < 0.2
    clean = Strategy(name="clean labels", family="clean", doubted_weight=0.25)
    recipe = with_doubted(make_recipe(evaluator.experiment, clean, []), evaluator.experiment, store)
    assert set(recipe.doubted) <= set(data.keys)
    assert set(recipe.doubted.values()) <= {0.25}
    assert sum(recipe.prior_train.values()) == pytest.approx(1.0)
    listed = audit_list(evaluator.experiment, store)
    doubted = listed.filter(listed["doubted"])["aug_id"].to_pylist()
    assert set(doubted) == set(recipe.doubted), "what counts less stands in the list"
    assert all(listed["reason"].to_pylist())


@pytest.mark.slow
def test_predictions_repeat_bit_for_bit(evaluator: Evaluator) -> None:
    strategy = Strategy(name="resampling", family="resampling")
    a, b = (predicted(evaluator, strategy, seed=5) for _ in range(2))
    for name in evaluator.estimators:
        assert np.array_equal(a[name], b[name])


def test_a_fold_never_scores_a_record_that_it_trained_on(evaluator: Evaluator) -> None:
    folds = evaluator.folds(seed=0, has_candidates=False)
    assert folds.shape == evaluator.records.y.shape
    scored = folds >= 0
    if folds.min() < 0:
        assert np.array_equal(scored, evaluator.records.is_validation)
    if evaluator.records.groups is not None:
        for group in np.unique(evaluator.records.groups):
            assert len(set(folds[evaluator.records.groups == group])) == 1


@pytest.mark.slow
def test_swapped_labels_and_copies_do_not_pass_the_filter(evaluator: Evaluator) -> None:
    training, validation = rows_of(evaluator)
    data = evaluator.records
    # The second class can be compared, too.
    rare, largest = np.argsort([c.n_real for c in evaluator.plan.classes])[-2:]
    copies = training[data.strata[training] == rare][:15]
    other = validation[data.strata[validation] == largest][:15]
    X = np.concatenate([data.X[copies], data.X[other]])
    candidates = Labelled(X, np.full(len(X), rare))
    plan_of_hard = evaluator.plan.model_copy(update={"soft_labels": False})
    asked = evaluator.experiment.model_copy(update={"plan": plan_of_hard})
    outcome = replace(evaluator, experiment=asked).filter(
        FilterQuery(training, validation, candidates, np.arange(len(X)), seed=0)
    )
    assert (outcome.reason[: len(copies)] == "near copy").all()
    assert outcome.passed[len(copies) :].mean() < 0.5


def candidates_of(dataset: DatasetRef, info: DatasetInfo, store: Store) -> DatasetRef:
    """Staged candidates: training records of the rarer classes with fresh ids, as a model would draw."""
    table = read_part(store, info, ["validation"]).drop_columns(["aug_id", "content_key"])
    names = table[info.label].to_pylist()
    n = table.num_rows
    columns = {
        "aug_id": derived_ids("candidate", list(range(n))),
        "aug_model": pa.array(["m"] * n),
        "aug_seed": pa.array(np.arange(n)),
        "aug_stratum": pa.array(names),
        "aug_ordinal": pa.array(np.arange(n)),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    stage = Stage(store, "sample", f"candidates-{dataset.key}")
    shards = shards_of(
        store, table, stage.prefix, "candidates", label=info.label, origin="synthetic"
    )
    made = info.model_copy(update={"stage": "sample", "key": stage.key, "shards": shards})
    stage.finish(made)
    return dataset.model_copy(update={"path": stage.outcome_path, "key": stage.key})


@pytest.mark.slow
def test_candidates_are_filtered_and_read_back_best_first(
    evaluator: Evaluator, dataset: DatasetRef, store: Store
) -> None:
    drawn = candidates_of(dataset, evaluator.info, store)
    hard = evaluator.plan.model_copy(update={"soft_labels": False})
    asked = evaluator.experiment.model_copy(update={"plan": hard})
    report = filter_candidates(asked, drawn, store)
    assert kept_synthetic(evaluator, store) is None
    filtered = evaluator.experiment.model_copy(update={"candidates": report})
    with_candidates = replace(evaluator, experiment=filtered)
    kept = kept_synthetic(with_candidates, store)
    everything = kept_synthetic(with_candidates, store, with_dropped=True)
    assert len(everything[0]) == sum(c.n_candidates for c in report.classes)
    assert kept is None or kept[0].shape[1:] == evaluator.records.X.shape[1:]
    assert sum(report.kept_counts.values()) == (0 if kept is None else len(kept[0]))


@pytest.mark.slow
def test_strategies_are_scored_chosen_and_confirmed(dataset: DatasetRef, store: Store) -> None:
    """From the plan to the verdict, with the same calls for either kind."""
    asked = asked_of(dataset, planned(dataset, store, NoModel()), model=NoModel())
    strategies = strategies_of("as_is", "resampling", modality=dataset.modality)
    scores = [score(asked, strategy, 0, store) for strategy in strategies]
    assert all(0 <= s.score <= 1 for s in scores)
    assert scores[1].strategy.amount in (0.5, 1.0), "the amount that was better"
    again = score(asked, strategies[0], 0, store)
    assert again == scores[0], "a receipt is obeyed"
    verdict = confirm(asked, choose_strategy(scores), scores, store)
    store.fs.rm(store.full("_staging/confirm"), recursive=True)
    beside = confirm(asked, choose_strategy(scores), scores, store, workers=3)
    assert beside == verdict, "what is trained at the same time changes nothing"
    store.fs.rm(store.full("_staging/confirm"), recursive=True)
    choice = choose_strategy(scores)
    parts = [fit_part(asked, choice, scores, store, part=i, n_parts=2) for i in (0, 1, 1)]
    assert min(parts[:2]) > 0
    assert parts[2] == 0, "what is staged is not trained again"
    leaks = store.fs.glob(store.full("_staging/confirm/*/leaks.json"))
    assert len(leaks) == (dataset.modality == "table"), "the last part has looked for leaks"
    assert confirm(asked, choose_strategy(scores), scores, store) == verdict
    assert verdict.n_holdout > 0
    assert set(verdict.balanced_accuracy) >= {"as is"}
    assert verdict.n_seeds == N_SEEDS
    diagnostics = read_result(store, verdict.diagnostics, HoldoutResult)
    assert diagnostics.slices is None, "the run was not balanced within groups"
    assert set(diagnostics.calibration.strategies) == {verdict.chosen, verdict.baseline, "as is"}


@pytest.mark.slow
def test_the_hold_out_shows_the_models_strategy_of_a_table_where_another_is_chosen(
    store: Store, make_table: Callable[..., pa.Table], tmp_path: Path
) -> None:
    dataset = ingested(make_table(), tmp_path, store)
    as_is = Strategy(name="as is", family="as_is", amount=1.0)
    trees = Strategy(name="trees", family="model", amount=0.5)
    choice = Choice(chosen=as_is, baseline=as_is, as_is=as_is, model=trees, scores={}, reason="")
    verdict = confirm(asked_of(dataset, planned(dataset, store)), choice, [], store)
    assert verdict.published == "as is"
    assert set(verdict.balanced_accuracy) == {"as is", "trees"}
    assert [(d.strategy, d.against) for d in verdict.differences] == [("trees", "as is")]


@pytest.fixture(scope="module")
def images(store: Store, tmp_path_factory: pytest.TempPathFactory) -> DatasetRef:
    pytest.importorskip("torch")
    return ingested(pictures(1, COUNTS), tmp_path_factory.mktemp("images"), store, "label")


@pytest.mark.slow
def test_image_strategies_draw_the_balance_they_ask_for(images: DatasetRef, store: Store) -> None:
    found = planned(images, store)
    data = open_evaluator(store, experiment_of(images, found)).records
    synthetic = Synthetic(data.X[data.y == 1][:30], np.full(30, 1))
    classic = Classic(image_strategies=["CMO", "deferred re-weighting"])
    for strategy in make_strategies("image", model="diffusion", classic=classic):
        strategy = strategy.model_copy(update={"amount": 1.0})
        own, rows = synthetic if strategy.has_model else None, np.arange(len(data.X))
        drawn = drawn_training_set(strategy, data, rows, plan=found, synthetic=own)
        shares = np.bincount(drawn.strata, drawn.weights) / drawn.weights.sum()
        natural = np.bincount(data.strata) / len(data.strata)
        even = strategy.family not in ("as_is", "threshold", "loss")
        assert shares == pytest.approx([1 / 3] * 3 if even else natural), strategy.name
        assert drawn.weights.mean() == pytest.approx(1)
        assert drawn.synthetic.sum() == len(drawn.X) - len(data.X)
        assert bool(drawn.synthetic.any()) == strategy.has_model


def test_external_images_are_drawn_as_they_are(images: DatasetRef, store: Store) -> None:
    found = planned(images, store)
    data = open_evaluator(store, experiment_of(images, found)).records
    synthetic = Synthetic(data.X[:10], np.full(10, 2))
    rows = np.arange(len(data.X))
    drawn = drawn_training_set(EXTERNAL, data, rows, plan=found, synthetic=synthetic)
    assert (drawn.weights == 1).all()
    assert drawn.synthetic.sum() == 10


def test_more_images_than_a_comparison_holds_are_sampled_by_seed_and_the_plan_says_so(
    images: DatasetRef, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = RunParams(model=NoModel(), evaluation=EVALUATION)
    whole = plan(images, params, store)
    every = open_evaluator(store, experiment_of(images, whole, model=NoModel()))
    held, _ = every.read_holdout(store)
    n, limit = len(every.records.y), 60
    assert whole.max_compared == 0
    monkeypatch.setattr(estimates, "COMPARED_BYTES", limit * every.records.X[0].size)
    monkeypatch.setattr(subsample, "LEAST_OF_CLASS", 5)
    found = plan(images, params, store)
    sampled = {
        seed: open_evaluator(store, experiment_of(images, found, model=NoModel(), seed=seed))
        for seed in (0, 1)
    }
    data = sampled[0].records
    holdout, table = sampled[0].read_holdout(store)
    n_strata = 2 * len(data.classes)  # of training and of validation
    assert limit <= len(data.y) < limit + 5 * n_strata < n
    assert limit // 4 <= len(holdout.y) < len(held.y)
    assert found.max_compared == limit
    assert f"compared on {limit} of the training and validation images" in found.warnings[0]
    note = sampled_note(sampled[0], holdout)
    assert f"{len(data.y)} of {n} training and validation records" in note
    assert f"{len(holdout.y)} of {len(held.y)} holdout records" in note
    assert experiment_of(images, whole).key("score") != experiment_of(images, found).key("score")
    rows = np.searchsorted(every.records.keys, data.keys)
    assert np.array_equal(data.X, every.records.X[rows])
    assert np.array_equal(data.y, every.records.y[rows])
    assert np.array_equal(data.is_validation, every.records.is_validation[rows])
    assert set(data.keys) != set(sampled[1].records.keys)
    assert table.column("aug_id").to_pylist() == holdout.keys.tolist()
    assert set(holdout.keys) <= set(held.keys)
    counts, of_all = np.bincount(data.y), np.bincount(every.records.y)
    assert (counts >= np.minimum(of_all, 5)).all(), "rare classes stay"
    # A model's candidates may copy any image, so none is left out beside them.
    with_model = RunParams(evaluation=EVALUATION, model=DiffusionModel())
    assert plan(images, with_model, store).max_compared == 0


def test_an_image_model_trains_on_the_runs_candidates(images: DatasetRef, store: Store) -> None:
    """Under every seed: a model of images cannot be trained anew for each."""
    evaluator = open_evaluator(store, experiment_of(images, planned(images, store)))
    given = Synthetic(evaluator.records.X[:4], np.zeros(4, dtype=np.int64))
    assert evaluator.synthetic(np.arange(5), candidates=given, seed=7) is given
    none = evaluator.synthetic(np.arange(5), candidates=None, seed=7)
    assert none.X.shape == (0, *evaluator.records.X.shape[1:])
    assert len(none.strata) == 0
    assert np.array_equal(
        evaluator.folds(seed=0, has_candidates=True) >= 0, evaluator.records.is_validation
    )


def test_plan_fits_the_steps_to_records_and_budget(images: DatasetRef, store: Store) -> None:
    asked = RunParams(model=NoModel(), evaluation=EVALUATION)
    found = plan(images, asked, store)
    assert found.classifier_steps == 300
    assert 0 < found.estimate.comparison_seconds < found.estimate.seconds
    hurried = plan(images, asked.model_copy(update={"budget": Budget(minutes=0.01)}), store)
    assert hurried.classifier_steps == 300, "fewer steps than that teach nothing"


@pytest.mark.slow
def test_strategies_on_request_train_as_they_say(images: DatasetRef, store: Store) -> None:
    """Mixing, smoothing and patches each make another classifier than the plain strategy, the same by seed."""
    short = planned(images, store).model_copy(update={"classifier_steps": 4})
    classic = Classic(image_strategies=["CMO", "CutMix", "label-aware smoothing", "patch features"])
    evaluator = open_evaluator(store, asked_of(images, short, classic=classic))

    def proba_of(strategy: Strategy, **changes: Any) -> np.ndarray:
        changed = strategy.model_copy(update={"amount": 1.0, **changes})
        return predicted(evaluator, changed)["convolutional"]

    asked = make_strategies("image", model=None, classic=classic)[-4:]
    changed = {one.name: proba_of(one) for one in asked}
    plain = {one.name: proba_of(one, mixing="", smoothing=0.0, patches=0) for one in asked}
    for name, proba in changed.items():
        assert np.allclose(proba.sum(axis=1), 1), name
        assert not np.allclose(proba, plain[name]), name
    assert np.array_equal(proba_of(asked[0]), changed["CMO"])


@pytest.mark.slow
def test_the_classifier_is_as_wide_as_the_plan_says(images: DatasetRef, store: Store) -> None:
    found = planned(images, store)
    narrow = found.model_copy(update={"classifier_width": 0.25})
    as_is = Strategy(name="as is", family="as_is", amount=1.0)
    whole, half = (
        predicted(open_evaluator(store, asked_of(images, one)), as_is)["convolutional"]
        for one in (found, narrow)
    )
    assert whole.shape == half.shape
    assert not np.array_equal(whole, half)


def test_recipe_of_images_says_how_to_train(images: DatasetRef, store: Store) -> None:
    found = planned(images, store)
    kept = candidates_with({c.name: c.n_synthetic for c in found.classes})
    asked = experiment_of(images, found, candidates=kept)
    by_name = {
        strategy.name: make_recipe(asked, strategy.model_copy(update={"amount": 1.0}), [])
        for strategy in make_strategies("image", model="diffusion", classic=Classic())
    }
    soft = by_name["balanced softmax"]
    assert soft.loss == "balanced_softmax"
    assert "balanced softmax" in soft.sentence
    assert set(soft.class_weight.values()) == {1.0}
    classic = by_name["resampling + classic"]
    assert (classic.classic_policy, classic.classic_prob, classic.classic) == ("safe", 0.5, {})
    assert "'safe' to 50% of the records" in classic.sentence
    assert by_name["resampling"].classic_policy == ""
    both = by_name["classic + diffusion"]
    assert both.real_only_finish == 0.6
    assert both.synthetic == by_name["diffusion"].synthetic != {}
    assert "first 60% of the training steps only" in both.sentence


@pytest.mark.slow
def test_auto_trains_no_image_model_on_a_short_budget(images: DatasetRef, store: Store) -> None:
    """It is said, and goes on without; asked for by name it is planned."""
    hurried = Budget(minutes=0.2, device="cpu")

    def planned_with(model: Any) -> BalancePlan:
        return plan(images, RunParams(model=model, evaluation=EVALUATION, budget=hurried), store)

    found = planned_with(AutoModel())
    assert found.n_synthetic == 0
    assert "no synthetic records" in found.warnings[0]
    assert "by name" in found.warnings[0]
    asked_for = planned_with(DiffusionModel())
    assert asked_for.n_synthetic > 0
    assert not any("no synthetic" in line for line in asked_for.warnings)


def test_images_without_torch_are_refused_with_the_line_to_install_it(
    images: DatasetRef, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planned(images, store, NoModel())
    for name in [n for n in sys.modules if n.endswith((".image_evaluator", ".convnet"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(experiment, "image_evaluator", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'prefect-augment\[images,torch\]'"):
        open_evaluator(store, experiment_of(images, found))


@pytest.mark.slow
def test_near_duplicates_stay_in_one_fold(store: Store, tmp_path: Path) -> None:
    """A picture and its brighter twins: what splits them would score memory."""
    pytest.importorskip("torch")
    made, names = shapes(2, COUNTS)
    twins = [np.clip(m.astype(int) + 2, 0, 255).astype(np.uint8) for m in made[::2]]
    table = image_table([*made, *twins], [*names, *names[::2]])
    dataset = ingested(table, tmp_path, store, "label")
    evaluator = open_evaluator(store, experiment_of(dataset, planned(dataset, store)))
    groups = evaluator.records.groups
    assert groups is not None
    assert np.bincount(groups).max() >= 2
    folds = score_folds(evaluator.records, n_folds=5, seed=0)
    assert all(len(set(folds[groups == g])) == 1 for g in np.unique(groups))


def test_the_classic_of_the_strategies_has_the_ranges_of_the_written_one() -> None:
    pytest.importorskip("torch")
    from prefect_augment.augmentation.image_presets import PRESETS
    from prefect_augment.experiment.image_evaluator import RANGES

    assert set(RANGES) == {"safe"}  # others are applied image by image
    affine, light = (operation.arguments for operation in PRESETS["safe"])
    ranges = RANGES["safe"]
    assert affine["rotate"] == (-ranges.rotate_degrees, ranges.rotate_degrees)
    assert affine["scale"] == ranges.scale_range
    assert affine["translate_percent"] == (-ranges.shift, ranges.shift)
    assert light["brightness_limit"] == (-ranges.brightness, ranges.brightness)
    assert light["contrast_limit"] == (-ranges.contrast, ranges.contrast)

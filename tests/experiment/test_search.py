"""The search: who survives a rung, what is counted, and that baselines are tried as hard as models."""

from collections.abc import Callable
from typing import Any, get_args
from uuid import uuid4

import pytest
from support.staging import class_plan, image_info, plan_of as plan_of_classes
from support.steps import candidates_with, planned_experiment, strategies_of as strategies_in

from prefect_augment.evaluation.verdict.answers import first_answer
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.score import evidence, score as score_strategy
from prefect_augment.experiment.search import (
    best_settings,
    finalists,
    pilot,
    rung,
    survivors,
    with_choice,
)
from prefect_augment.params import (
    AutoModel,
    Budget,
    Classic,
    Evaluation,
    NoModel,
    RunParams,
    TreesModel,
)
from prefect_augment.params.balance import ImageStrategy
from prefect_augment.plan.plan import plan
from prefect_augment.plan.search_space import (
    N_KEPT,
    N_SETTINGS,
    PILOT_FOLDS,
    TABLE_MODELS,
    Schedule,
    n_trained,
    pilot_budget,
    pilot_groups,
    settings,
    suitable,
    training_budget,
)
from prefect_augment.plan.strategies import make_strategies
from prefect_augment.schema import (
    BalancePlan,
    Choice,
    DatasetInfo,
    DatasetRef,
    EstimatorScore,
    SearchResult,
    Strategy,
    StrategyScore,
)
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Store, open_store

EVALUATION = Evaluation(estimators=["logistic"], n_seeds=2, n_bootstrap=100)


def plan_of(*, n_synthetic: int = 60, soft: bool = False, n_settings: int = 8) -> BalancePlan:
    classes = class_plan("common", 60), class_plan("rare", 12, 72, n_synthetic=n_synthetic)
    return plan_of_classes(classes, soft_labels=soft, n_settings=n_settings)


def scored(
    strategy: Strategy, score: float, *, seed: int = 0, seconds: float = 1.0
) -> StrategyScore:
    same = dict.fromkeys(("balanced_accuracy", "macro_f1", "auprc", "worst_recall"), score)
    estimator = EstimatorScore(**same, worst_class="rare", brier=0.1, recall={"rare": score})
    return StrategyScore(
        strategy=strategy,
        seed=seed,
        score=score,
        estimators={"logistic": estimator},
        n_train=72,
        n_validation=200,
        seconds=seconds,
        folds=(score - 0.01, score, score + 0.01),
    )


def strategies_of(modality: str, *, soft: bool = False) -> tuple[Strategy, ...]:
    return make_strategies(modality, model="net", classic=Classic(), soft_labels=soft)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("modality", "soft"), [("table", True), ("table", False), ("image", False)]
)
def test_baselines_together_are_tried_with_at_least_as_many_settings_as_a_model(
    modality: str, soft: bool
) -> None:
    found = {
        strategy.name: settings(strategy, plan=plan_of(soft=soft), classic=Classic())
        for strategy in strategies_of(modality, soft=soft)
    }
    searched = {name: len(own) for name, own in found.items() if len(own) > 1}
    of_models = [n for name, n in searched.items() if "net" in name]
    of_baselines = [n for name, n in searched.items() if "net" not in name]
    assert of_models, "the models are searched"
    assert max(of_models) <= sum(of_baselines)
    assert min(of_baselines) == len({"quarter", "half", "three quarters", "all of the way"})
    assert max(searched.values()) <= N_SETTINGS
    for own in found.values():
        assert len(set(own)) == len(own), "no setting is tried twice"


def test_a_short_list_of_settings_is_a_prefix_of_the_long_one_for_all_strategies_alike() -> None:
    for strategy in strategies_of("image"):
        whole = settings(strategy, plan=plan_of(), classic=Classic())
        assert settings(strategy, plan=plan_of(n_settings=2), classic=Classic()) == whole[:2]


def test_amounts_per_real_record_go_from_a_half_to_five() -> None:
    (strategy,) = (a for a in strategies_of("table") if a.family == "model")
    hard = settings(strategy, plan=plan_of(n_synthetic=60), classic=Classic())
    assert {one.per_real for one in hard} == {0.0, 0.5, 1.0, 2.0}, "0: what the plan has, 5 here"
    one = settings(strategy, plan=plan_of(n_synthetic=12), classic=Classic())
    assert {one.per_real for one in one} == {0.0, 0.5}, "the plan itself is 1 per real"
    soft = settings(strategy, plan=plan_of(soft=True), classic=Classic())
    assert {2 * one.synthetic_weight for one in soft} == {0.5, 1.0, 2.0, 5.0}


def test_p_and_strength_of_classic_augmentation_are_searched() -> None:
    classic = Classic(image_prob=0.4)
    (strategy,) = strategies_in("classic", modality="image", classic=classic)
    found = settings(strategy, plan=plan_of(), classic=classic)
    assert {one.classic_prob for one in found} == {0.2, 0.4, 1.0}
    assert {one.classic_strength for one in found} == {0.5, 1.0, 2.0}
    assert found[0].classic_prob == 0.4, "the user's own first"
    own = settings(strategy, plan=plan_of(), classic=Classic(policy="- HorizontalFlip: {p: 0.5}"))
    assert {one.classic_strength for one in own} == {1.0}, "a pipeline goes as far as it says"


def test_strategies_of_images_are_searched_and_counted() -> None:
    """Each by the amount and by what it is about, with the user's own policy."""
    classic = Classic(image_strategies=list(get_args(ImageStrategy)), image_prob=0.4)
    asked = make_strategies("image", model=None, classic=classic)[6:]
    assert [one.name for one in asked] == classic.image_strategies
    for strategy in asked:
        found = settings(strategy, plan=plan_of(), classic=classic)
        assert found[0] == strategy.model_copy(update={"amount": 1.0}), "its own setting first"
        assert len(found) == n_trained(found) == (8 if strategy.patches else 4)
        assert {one.amount for one in found} == {0.5, 1.0}
        assert {one.classic_prob for one in found} == {0.0 if strategy.patches else 0.4}
        assert all(one.is_image_strategy and not one.has_model for one in found)


def test_patch_features_are_tried_by_default_but_not_beside_networks_of_the_user() -> None:
    def names(classic: Classic, **how: bool) -> set[str]:
        return {one.name for one in make_strategies("image", model=None, classic=classic, **how)}

    assert "patch features" in names(Classic())
    assert "patch features" not in names(Classic(image_strategies=[]))
    asked = names(Classic(image_strategies=["patch features", "CMO"]), own_estimators=True)
    assert asked == names(Classic(image_strategies=["CMO"]))


def test_copies_leave_no_record_that_counts_less_than_another() -> None:
    for strategy in strategies_of("table"):
        found = settings(strategy, plan=plan_of(), classic=Classic(), copies=True)
        assert {one.synthetic_weight for one in found} == {1.0}


def test_strategies_without_settings_are_one_group_and_share_a_estimator() -> None:
    groups = pilot_groups(strategies_of("table"), plan=plan_of(), classic=Classic())
    assert [strategy.name for strategy in groups[0]] == ["as is", "threshold"]
    assert n_trained(groups[0]) == 1
    assert len({strategy.name for group in groups for strategy in group}) == len(
        strategies_of("table")
    )


def test_no_piece_has_more_than_two_settings_but_where_they_share_what_is_learnt() -> None:
    groups = pilot_groups(strategies_of("table"), plan=plan_of(), classic=Classic())
    own = [group for group in groups[1:] if not group[0].has_model]
    assert {len(group) for group in own} == {2}
    assert {len({one.name for one in group}) for group in groups[1:]} == {1}
    (model,) = (group for group in groups if group[0].family == "model")
    assert len(model) > 2


@pytest.fixture
def pilots() -> list[StrategyScore]:
    """Seven strategies with two settings each; 'net' and 'as is' are the worst."""
    families = {
        "as is": ("as_is", 0.50),
        "weights": ("weights", 0.71),
        "resampling": ("resampling", 0.72),
        "SMOTE": ("classic", 0.73),
        "loss": ("loss", 0.74),
        "threshold": ("threshold", 0.60),
        "net": ("model", 0.40),
    }
    found = []
    for name, (family, score) in families.items():
        strategy = Strategy(name=name, family=family, amount=1.0)  # type: ignore[arg-type]
        found.append(scored(strategy, score))
        if family not in ("as_is", "threshold"):
            found.append(scored(strategy.model_copy(update={"amount": 0.5}), score + 0.09))
    return found


def test_the_best_setting_of_the_best_strategies_goes_on(pilots: list[StrategyScore]) -> None:
    kept = survivors(pilots)
    names = {strategy.name for strategy in kept}
    assert names == {"as is", "weights", "resampling", "SMOTE", "loss", "net"}
    assert len(kept) == N_KEPT + 2, "as is and the best model go on whatever their scores"
    assert all(strategy.amount == 0.5 for strategy in kept if strategy.name != "as is"), (
        "the better setting"
    )


def test_settings_that_tie_leave_the_earlier_one(pilots: list[StrategyScore]) -> None:
    """On few records the best of many settings is the luckiest one."""
    strategy = Strategy(name="weights", family="weights", amount=1.0)
    first, other = scored(strategy, 0.70), scored(strategy.model_copy(update={"amount": 0.5}), 0.75)
    assert best_settings([first, other])[0] == other, "better on every fold alike"
    noisy = other.model_copy(update={"folds": (0.55, 0.75, 0.95)})
    assert best_settings([first, noisy])[0] == first, "within a standard error of the folds"
    alone = [s.model_copy(update={"folds": (), "n_validation": 10}) for s in (first, other)]
    assert best_settings(alone)[0] == alone[0], "less than one of ten records"


def test_the_order_of_strategies_does_not_change_who_goes_on(pilots: list[StrategyScore]) -> None:
    assert set(survivors(pilots)) == set(survivors(pilots[::-1]))


def test_finalists_are_as_is_and_the_best_two(pilots: list[StrategyScore]) -> None:
    full = [
        scored(strategy, s)
        for strategy, s in zip(survivors(pilots), (0.5, 0.9, 0.8, 0.7, 0.6, 0.4), strict=True)
    ]
    assert [strategy.name for strategy in finalists(full)] == ["as is", "weights", "resampling"]


def clock(minutes: float, *, steps: int = 0, **given: Any) -> Schedule:
    budget = Budget(minutes=minutes, steps=steps)
    return Schedule.of(budget, **{"workers": 1, "trains_network": False, **given})


def test_as_many_strategies_are_scored_as_there_is_time_for(pilots: list[StrategyScore]) -> None:
    best = best_settings(pilots)
    assert clock(1000).n_kept(pilots, best) == len(best) == 7
    assert clock(0.5).n_kept(pilots, best) == 2
    assert clock(0.5, steps=10).n_kept(pilots, best) == N_KEPT, "by counts alone"


def test_what_is_scored_at_the_same_time_takes_the_clock_once(pilots: list[StrategyScore]) -> None:
    seconds, best = sum(score.seconds for score in pilots), best_settings(pilots)
    alone, beside, far = (clock(seconds / 30, workers=n).n_kept(pilots, best) for n in (1, 2, 256))
    assert alone < beside < far == len(best), "no more at a time than there are"


def test_a_network_takes_its_part_of_the_minutes(pilots: list[StrategyScore]) -> None:
    best = best_settings(pilots)
    assert clock(1.5).n_kept(pilots, best) > clock(1.5, trains_network=True).n_kept(pilots, best)


def test_pilots_of_models_are_within_the_time_of_comparison(pilots: list[StrategyScore]) -> None:
    best = best_settings(pilots)
    kept = [clock(1.5, spent=seconds).n_kept(pilots, best) for seconds in (0.0, 20.0, 1000.0)]
    assert kept[0] > kept[1] > kept[2] == 2


def test_as_many_seeds_are_compared_with_as_there_is_time_for(pilots: list[StrategyScore]) -> None:
    full = [scored(strategy, 0.5, seconds=5.0) for strategy in survivors(pilots)]
    last = finalists(full)
    found = [clock(minutes).n_seeds(pilots, full, last, most=3) for minutes in (0.1, 1.5, 2.2, 100)]
    assert found == [1, 1, 2, 3]
    longer = [score.model_copy(update={"seconds": 10.0}) for score in full]
    assert clock(2.2).n_seeds(pilots, longer, last, most=3) == 1
    counted = clock(0.1, steps=10)
    assert counted.n_seeds(pilots, full, last, most=3) == 3, "minutes do not count"


def test_the_hold_out_is_within_the_time_of_comparison(pilots: list[StrategyScore]) -> None:
    best = best_settings(pilots)
    # A pilot trained three times with a third of the steps; all five folds are five whole trainings, and the three
    # strategies of the hold-out are trained once, on a quarter more records.
    in_full, holdout = len(best) * 5 * 1.0, 3 * 1.25
    minutes = (sum(score.seconds for score in pilots) + in_full + holdout) / 0.7 / 60
    assert clock(minutes + 0.001).n_kept(pilots, best) == len(best)
    assert clock(minutes - 0.001).n_kept(pilots, best) == len(best) - 1


def test_a_rung_shows_every_trial_and_why_it_was_dropped(pilots: list[StrategyScore]) -> None:
    kept = survivors(pilots)
    found = rung("pilots", pilots, kept, reasons={"": "not among the best"}, timed=False)
    assert len(found.trials) == len(pilots)
    assert found.n_kept == len(kept)
    dropped = [t for t in found.trials if not t.kept]
    assert {t.reason for t in dropped} == {
        "not among the best",
        "another setting of this strategy scored higher, or as high and comes first",
    }
    assert {t.seconds for t in found.trials} == {0.0}, "no times where the same bytes are asked for"
    assert found.trials[0].spread == pytest.approx(0.01)
    assert found.trials[0].n_scores == 3


def test_the_last_rung_keeps_what_goes_to_the_hold_out(pilots: list[StrategyScore]) -> None:
    kept = survivors(pilots)
    info = SearchResult(
        rungs=(
            rung("pilots", pilots, kept, reasons={}),
            rung("in full", [scored(strategy, 0.5) for strategy in kept], kept, reasons={}),
        ),
        n_settings=8,
    )
    of_name = {strategy.name: strategy for strategy in kept}
    choice = Choice(
        chosen=of_name["net"],
        baseline=of_name["loss"],
        as_is=of_name["as is"],
        model=of_name["net"],
        scores={},
        reason="net has a mean score of 0.5 on validation records.",
    )
    found = with_choice(info, choice)
    assert found.rungs[0] == info.rungs[0]
    last = {t.strategy.name: t for t in found.rungs[-1].trials}
    assert {name for name, t in last.items() if t.kept} == {"net", "loss", "as is"}
    assert last["SMOTE"].reason == "net has a mean score of 0.5 on validation records"
    assert last["loss"].reason == ""


@pytest.mark.slow
def test_pilots_are_scored_on_fewer_folds_and_repeat(dataset: DatasetRef, store: Store) -> None:
    asked = planned_experiment(dataset, store, model=NoModel(), evaluation=EVALUATION)
    (strategy,) = strategies_in("weights")
    tried = settings(strategy, plan=asked.plan, classic=Classic())
    scores = pilot(asked, tried, store)
    assert tuple(s.strategy for s in scores) == tried
    assert {len(s.folds) for s in scores} == {PILOT_FOLDS}
    assert all(s.thresholds for s in scores if s.strategy.tune_threshold)
    again = pilot(asked, tried, store)
    assert again == scores, "a receipt is obeyed"
    other = open_store(f"memory://{uuid4().hex}")
    other.fs.copy(store.root, other.root, recursive=True)
    for path in other.fs.find(other.root):
        if "/pilot/" in path:
            other.fs.rm(path)
    moved = asked.model_copy(update={"dataset": dataset.model_copy(update={"root": other.uri})})
    anew, untimed = (
        [s.model_copy(update={"seconds": 0}) for s in found]
        for found in (pilot(moved, tried, other), scores)
    )
    assert anew == untimed
    other.fs.rm(other.root, recursive=True)


def test_strategies_without_a_model_train_once(dataset: DatasetRef, store: Store) -> None:
    """Scores without synthetic records do not wait for them, and are found again beside them."""
    asked = planned_experiment(dataset, store, model=TreesModel(), evaluation=EVALUATION)
    as_is, threshold = make_strategies("table", model=None, classic=Classic())[:2]
    first = [score_strategy(asked, strategy, 0, store) for strategy in (as_is, threshold)]
    assert first[0].path == first[1].path
    assert len(store.fs.glob(store.full("_staging/predict/*/probabilities.npy"))) == 1
    later = asked.with_model(TABLE_MODELS["trees"]).model_copy(
        update={"candidates": candidates_with({"cracked": 9})}
    )
    assert [score_strategy(later, strategy, 0, store) for strategy in (as_is, threshold)] == first
    ensemble = Strategy(name="ensemble", family="ensemble", tune_threshold=True)
    control = first[1].model_copy(update={"strategy": ensemble})
    found = evidence(open_evaluator(store, asked), [*first, control], store)
    assert set(found.predictions) == {"as is", "threshold"}, "a control could not be chosen"
    answer = first_answer(found, "threshold", "as is")
    assert answer.startswith("First comparison, on ")
    assert " points of balanced accuracy over your data as they are " in answer


@pytest.mark.slow
def test_a_model_can_be_trained_for_its_pilots_alone(dataset: DatasetRef, store: Store) -> None:
    asked = planned_experiment(dataset, store, model=TreesModel(), evaluation=EVALUATION)
    asked = asked.with_model(TABLE_MODELS["trees"])
    strategy = Strategy(name="trees", family="model", amount=1.0, tune_threshold=True)
    (score,) = pilot(asked, [strategy], store, budget=pilot_budget(Budget(minutes=1)))
    assert 0 < score.score <= 1


@pytest.fixture
def info(dataset: DatasetRef, store: Store) -> DatasetInfo:
    return load_info(dataset, store)


def test_auto_compares_models_only_where_validation_alone_can(info: DatasetInfo) -> None:
    pytest.importorskip("torch")
    kinds, over = suitable(info, plan_of(), AutoModel())
    assert kinds == ("trees",)
    assert "validation records" in over["flow"]
    many = info.model_copy(
        update={"part_counts": {"validation": dict.fromkeys(info.compared, 500)}}
    )
    kinds, over = suitable(many, plan_of(), AutoModel())
    assert kinds == ("trees", "flow")
    assert "vae" in over
    assert "flow" not in over


def test_a_model_by_name_is_compared_with_no_other(info: DatasetInfo) -> None:
    assert suitable(info, plan_of(), TreesModel()) == (("trees",), {})
    assert suitable(info, plan_of(n_synthetic=0), AutoModel())[0] == ()


def test_a_pilot_gets_a_quarter_of_the_training() -> None:
    assert pilot_budget(Budget(minutes=8)).minutes == 2
    assert pilot_budget(Budget(steps=1)).steps == 1
    assert pilot_budget(Budget(steps=100)).steps == 25


@pytest.mark.parametrize(("n_piloted", "minutes"), [(0, 8), (1, 6), (2, 4)])
def test_what_pilots_took_is_not_trained_again(n_piloted: int, minutes: float) -> None:
    assert training_budget(Budget(minutes=8), n_piloted).minutes == minutes
    asked = Budget(minutes=8, steps=100)
    assert training_budget(asked, n_piloted) == asked, "steps are as many as were asked for"


@pytest.fixture
def plan_of_images(
    store: Store, dataset: DatasetRef, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., BalancePlan]:
    """Plan so many images a class, validation's 20 besides, as a processor with bf16 would."""
    pytest.importorskip("torch")
    info = load_info(dataset, store)
    image = image_info(12, 12, n=300, n_channels=1)
    monkeypatch.setattr("prefect_augment.plan.plan.cpu_multiplies_bf16", lambda: True)

    def planned(budget: Budget, *, n_training: int = 20, **asked: int) -> BalancePlan:
        counts = {
            part: {**info.part_counts[part], **dict.fromkeys(info.compared, n)}
            for part, n in (("training", n_training), ("validation", 20))
        }
        changes = {"image": image, "modality": "image", "part_counts": counts | {"holdout": {}}}
        pictures = info.model_copy(update=changes)
        monkeypatch.setattr("prefect_augment.plan.plan.load_info", lambda *_: pictures)
        evaluation = Evaluation(**asked)  # type: ignore[arg-type]
        params = RunParams(model=NoModel(), budget=budget, evaluation=evaluation)
        return plan(dataset, params, store)

    return planned


def test_images_are_tried_with_fewer_settings_where_the_budget_is_short(
    plan_of_images: Callable[..., BalancePlan],
) -> None:
    """Decided by counts, so that a rerun tries the same."""
    found = [plan_of_images(Budget(minutes=m)) for m in (0.05, 5, 240)]
    assert [one.n_settings for one in found] == [2, 4, 8]
    assert plan_of_images(Budget(minutes=240, steps=10)).n_settings == 4
    assert plan_of_images(Budget(minutes=0.05), n_settings=8).n_settings == 8
    assert {one.classifier_width for one in found} == {1.0}, (
        "so few records have a narrow one anyway"
    )


@pytest.mark.parametrize("n_settings", [0, 1, 8])
def test_a_budget_too_short_for_the_whole_classifier_takes_half_of_its_channels(
    plan_of_images: Callable[..., BalancePlan], n_settings: int
) -> None:
    asked = {"n_training": 4_000, "n_settings": n_settings}
    short, ample = (plan_of_images(Budget(minutes=m), **asked) for m in (1, 600))
    assert (short.classifier_width, ample.classifier_width) == (0.5, 1.0)
    assert short.classifier_steps <= ample.classifier_steps
    assert any("half of its channels" in line for line in short.warnings)
    assert not any("half of its channels" in line for line in ample.warnings)
    in_steps = plan_of_images(Budget(minutes=1, steps=10), **asked)
    assert in_steps.classifier_width == 1.0, "then minutes do not count"


def test_settings_are_as_many_as_are_asked_for(store: Store, dataset: DatasetRef) -> None:
    default, one = (
        plan(dataset, RunParams(model=NoModel(), evaluation=Evaluation(n_settings=n)), store)
        for n in (0, 1)
    )
    assert (default.n_settings, one.n_settings) == (4, 1)
    assert one.estimate.comparison_seconds <= default.estimate.comparison_seconds
    assert one.estimate.seconds < default.estimate.seconds

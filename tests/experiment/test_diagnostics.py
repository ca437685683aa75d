"""What the verdict's one reading of the hold-out says beside it, and how it reaches report and recipe."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from support.staging import ingested
from support.steps import experiment_of, publish_parts, release_of

from prefect_augment.encoding.subsample import read_parts
from prefect_augment.errors import ParameterError
from prefect_augment.experiment import evaluator as evaluators
from prefect_augment.experiment.confirmation import confirm
from prefect_augment.experiment.looks import Looks
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.params import Balance, Evaluation, NoModel, Report, RunParams
from prefect_augment.plan.plan import plan
from prefect_augment.plan.strategies import make_recipe
from prefect_augment.plan.weights import class_shares, shares_trained
from prefect_augment.report.build import report
from prefect_augment.schema import (
    BalancePlan,
    Choice,
    DatasetRef,
    Experiment,
    Findings,
    HoldoutResult,
    Result,
    Strategy,
    Verdict,
)
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Store, open_store, read_result

EVALUATION = Evaluation(n_seeds=2, n_bootstrap=200, estimators=["logistic"])
AS_IS = Strategy(name="as is", family="as_is")
WEIGHTS = Strategy(name="class weights", family="weights", amount=1.0)


def table(n: int = 2400) -> pa.Table:
    """One rare class in ten; at the site "south" the feature says the opposite about it."""
    rng = np.random.default_rng(0)
    rare = rng.random(n) < 0.1
    south = rng.random(n) < 0.3
    x = rng.normal(size=n) + rare * np.where(south, -2.0, 2.0)
    names = ["south" if s else "north" for s in south]
    return pa.table(
        {
            "x": x,
            "z": rng.normal(size=n),
            "site": pa.array([None if i % 100 == 0 else s for i, s in enumerate(names)]),
            "many": pa.array([f"v{i % 40}" for i in range(n)]),
            "state": np.where(rare, "rare", "common"),
        }
    )


@pytest.fixture(scope="module")
def dataset(store: Store, tmp_path_factory: pytest.TempPathFactory) -> DatasetRef:
    return ingested(table(), tmp_path_factory.mktemp("source"), store)


def planned_by(column: str, dataset: DatasetRef, store: Store) -> BalancePlan:
    params = RunParams(balance=Balance(by=[column]), model=NoModel(), evaluation=EVALUATION)
    return plan(dataset, params, store, compares=False)


@pytest.fixture(scope="module")
def planned(dataset: DatasetRef, store: Store) -> BalancePlan:
    return planned_by("site", dataset, store)


def asked(dataset: DatasetRef, planned: BalancePlan) -> Experiment:
    return experiment_of(dataset, planned, model=NoModel(), evaluation=EVALUATION)


@pytest.fixture(scope="module")
def compared(dataset: DatasetRef, planned: BalancePlan, store: Store) -> tuple[Verdict, list[Any]]:
    """The verdict, and every reading of the hold-out that it took."""
    reads: list[Any] = []

    def counting(where: Store, info: Any, parts: Any, **options: Any) -> list[pa.Table]:
        reads.append(list(parts))
        return read_parts(where, info, parts, **options)

    choice = Choice(chosen=WEIGHTS, baseline=WEIGHTS, as_is=AS_IS, model=None, scores={}, reason="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluators, "read_parts", counting)
        found = confirm(asked(dataset, planned), choice, [], store)
    return found, [parts for parts in reads if "holdout" in parts]


@pytest.fixture(scope="module")
def info(compared: tuple[Verdict, list[Any]], store: Store) -> HoldoutResult:
    return read_result(store, compared[0].diagnostics, HoldoutResult)  # type: ignore[return-value]


def test_everything_comes_from_one_reading_of_the_hold_out(compared: Any) -> None:
    assert compared[1] == [["holdout"]]


def test_a_look_is_counted_before_the_hold_out_is_read(
    compared: Any,
    dataset: DatasetRef,
    planned: BalancePlan,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look = compared[0].look
    assert (look.number, look.n_holdout, look.level) == (1, compared[0].n_holdout, 0.95)

    def killed(where: Store, info: Any, parts: Any, **options: Any) -> list[pa.Table]:
        if "holdout" in parts:
            raise KeyboardInterrupt
        return read_parts(where, info, parts, **options)

    monkeypatch.setattr(evaluators, "read_parts", killed)
    other = Choice(chosen=AS_IS, baseline=AS_IS, as_is=AS_IS, model=None, scores={}, reason="")
    experiment = asked(dataset, planned)
    with pytest.raises(KeyboardInterrupt):
        confirm(experiment, other, [], store)
    looks = Looks(store, load_info(dataset, store))
    assert looks.take("another").number == 3
    assert looks.take(experiment.key("confirm", other)).number == 2, "a rerun is the same look"


def test_groups_have_a_recall_before_and_after(info: HoldoutResult, dataset: DatasetRef) -> None:
    found = info.slices
    assert (found.before, found.after) == ("as is", "class weights")
    assert {s.group["site"] for s in found.slices} == {"north", "south", "null"}
    assert sum(g.n_holdout for g in found.groups) == info.calibration.n_records  # type: ignore[union-attr]
    rare = {s.group["site"]: s for s in found.slices if s.label == "rare"}
    north, south = rare["north"], rare["south"]
    assert north.decision == "gains"
    assert south.decision == "too few" or (
        south.after is not None and south.after.estimate < north.after.estimate
    )
    assert any(s.decision == "too few" for s in found.slices), "records without a site are few"


def test_the_correction_undoes_the_weights(info: HoldoutResult, planned: BalancePlan) -> None:
    found = info.calibration
    assert found.looked_at == ("rare",)
    assert found.prior_true == pytest.approx(class_shares(planned))
    assert found.prior_train["as is"] == pytest.approx(found.prior_true)
    assert found.prior_train["class weights"]["rare"] == pytest.approx(0.5, abs=0.01)
    weighted = found.strategies["class weights"]["logistic"]
    assert found.strategies["as is"]["logistic"].corrected is None
    assert weighted.as_predicted.class_ece.low > 0.1
    assert weighted.corrected.class_ece.estimate < 0.3 * weighted.as_predicted.class_ece.estimate
    assert weighted.change.high < 0


def test_classes_have_their_difference_with_an_interval(compared: Any) -> None:
    found = compared[0]
    assert set(found.class_differences) == {"common", "rare"}
    gain = found.class_differences["rare"]
    assert gain.low <= gain.estimate <= gain.high
    assert (found.class_decisions["rare"] == "accept") == (gain.low > 0)


@pytest.mark.slow
def test_report_and_page_have_a_key_and_a_section_for_each(
    compared: Any, dataset: DatasetRef, planned: BalancePlan, info: HoldoutResult, store: Store
) -> None:
    recipe = make_recipe(asked(dataset, planned), WEIGHTS, [])
    shown = Report(pictures="none")
    ref, _ = report(release_of(dataset, planned, recipe, verdict=compared[0], report=shown), store)
    found = json.loads(store.read(f"{ref.prefix}/report.json"))
    page = store.read(f"{ref.prefix}/report.html").decode()
    for name in ("slices", "calibration"):
        assert found[name] == json.loads(getattr(info, name).to_json())
        assert f'id="{name}"' in page
    kept = json.loads(store.read(f"{ref.prefix}/recipe.json"))
    assert kept["prior_true"] == pytest.approx(class_shares(planned))
    assert kept["prior_train"]["rare"] == pytest.approx(0.5, abs=0.01)


def test_card_and_dataset_have_the_correction(releases: ModuleType, tmp_path: Path) -> None:
    here = open_store(str(tmp_path / "out"))
    release = releases.stage_release(here)
    shares = class_shares(release.plan)
    even = dict.fromkeys(shares, 1 / len(shares))
    recipe = release.recipe.model_copy(update={"prior_true": shares, "prior_train": even})
    publish_parts(**vars(release) | {"recipe": recipe})
    card = here.read("README.md").decode()
    assert "## Probabilities" in card
    dataset = open_dataset(here.uri)
    n = len(dataset.classes)
    assert f"| {n * shares['a']:.3g} |" in card, "the factor of a class"
    found = dataset.correct_prior(np.full((1, n), 1 / n))
    assert found[0].tolist() == pytest.approx([shares[name] for name in dataset.classes])
    other = {name: float(i + 1) for i, name in enumerate(dataset.classes)}
    moved = dataset.correct_prior(np.full((1, n), 1 / n), prior=other)
    assert moved[0] == pytest.approx(np.arange(1, n + 1) / np.arange(1, n + 1).sum())
    with pytest.raises(ParameterError, match="prior has no share of"):
        dataset.correct_prior(np.full((1, n), 1 / n), prior={"a": 1.0})
    # Where the recipe leaves the shares as they are there is nothing to correct.
    plain = recipe.model_copy(update={"prior_train": shares, "sentence": "Other."})
    publish_parts(**vars(release) | {"recipe": plain})
    assert "## Probabilities" not in here.read("README.md").decode()


def test_what_balanced_softmax_leaves_of_the_prior() -> None:
    shares = {"a": 0.9, "b": 0.1}
    whole = shares_trained(shares, Strategy(name="loss", family="loss", amount=1.0))
    assert whole == pytest.approx({"a": 0.5, "b": 0.5})
    half = shares_trained(shares, Strategy(name="loss", family="loss", amount=0.5))
    assert half["a"] / half["b"] == pytest.approx(3)


@pytest.mark.parametrize(
    ("column", "said"),
    [("x", "holds numbers of type double, not categories"), ("many", "which has 40 values")],
)
def test_columns_that_are_no_groups_are_refused(
    dataset: DatasetRef, store: Store, column: str, said: str
) -> None:
    with pytest.raises(ParameterError, match=said):
        planned_by(column, dataset, store)


@pytest.mark.parametrize("kind", [HoldoutResult, Findings])
def test_results_of_corrupted_records_are_readable(info: HoldoutResult, kind: type[Result]) -> None:
    """Versions before 0.3 stored them, and a proposal of theirs may still wait for approval."""
    stored = json.loads(info.to_json()) | {"robustness": {"n_records": 3, "conditions": []}}
    assert kind.model_validate_json(json.dumps(stored)) == kind.model_validate(info.model_dump())
    with pytest.raises(ValidationError):
        kind.model_validate(stored | {"unknown": 1})

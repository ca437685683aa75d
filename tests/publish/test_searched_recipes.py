"""What the search has set goes out: in the recipe, in the weights of records, and in what torch is given."""

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args

import pyarrow.compute as pc
import pytest
from support import releases
from support.staging import class_plan, plan_of
from support.steps import candidates_with, experiment_of, publish_parts

from prefect_augment.augmentation.image_policy import ImagePolicy
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Classic, Publish
from prefect_augment.params.balance import ImageStrategy
from prefect_augment.plan.strategies import make_recipe, make_strategies, wanted_records
from prefect_augment.plan.weights import shares_trained, smoothing_by_class
from prefect_augment.publish.proposal import lowered
from prefect_augment.schema import BalancePlan, DatasetRef, Recipe, Strategy
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store

DATASET = DatasetRef(
    root="", path="", key="", digest="", label="label", n_records=110, class_counts={}
)


@pytest.fixture
def plan() -> BalancePlan:
    return plan_of([class_plan("common", 100), class_plan("rare", 10, 60, n_synthetic=50)])


def strategy(**changes: object) -> Strategy:
    return Strategy.model_validate({"name": "net", "family": "model", "amount": 1.0, **changes})


def test_records_per_real_one_are_what_the_strategy_says(plan: BalancePlan) -> None:
    counts = {"common": 100, "rare": 10}
    assert wanted_records(strategy(), counts, plan)["rare"].synthetic == 50
    assert wanted_records(strategy(per_real=2.0), counts, plan)["rare"].synthetic == 20
    assert (
        wanted_records(strategy(per_real=2.0), {"common": 50, "rare": 4}, plan)["rare"].synthetic
        == 8
    )


def test_what_counts_less_leaves_the_balance_as_it_is(plan: BalancePlan) -> None:
    """A class's sum of weights is the strategy's amount; only who brings it changes."""
    asked = experiment_of(DATASET, plan, candidates=candidates_with({"rare": 50}))
    recipes = [make_recipe(asked, strategy(synthetic_weight=w), []) for w in (1.0, 0.5)]
    for recipe in recipes:
        total = recipe.class_weight["rare"] * (10 + recipe.counted("rare"))
        assert total == pytest.approx(100 * recipe.class_weight["common"])
    assert recipes[1].counted("rare") == 25
    assert recipes[1].class_weight["rare"] > recipes[0].class_weight["rare"]
    assert "counts 0.5 times" in recipes[1].sentence
    fewer = lowered(recipes[1], plan, {"rare": 20})
    assert fewer.counted("rare") == 10
    total = fewer.class_weight["rare"] * (10 + fewer.counted("rare"))
    assert total == pytest.approx(100 * fewer.class_weight["common"])


def test_published_weights_hold_what_a_synthetic_record_counts(store: Store) -> None:
    release = releases.stage_release(store)
    recipe = release.recipe.model_copy(update={"synthetic_weight": 0.5})
    publish_parts(**{**vars(release), "recipe": recipe, "publish": Publish()})
    table = open_dataset(store.uri).to_table()
    synthetic = table.filter(pc.equal(table["aug_origin"], "synthetic"))
    assert synthetic.num_rows
    for name in set(synthetic["label"].to_pylist()):
        of_class = table.filter(pc.equal(table["label"], name))
        weight = {
            origin: set(
                of_class.filter(pc.equal(of_class["aug_origin"], origin))["aug_weight"].to_pylist()
            )
            for origin in ("real", "synthetic")
        }
        (real,), (made,) = weight["real"], weight["synthetic"]
        assert made == pytest.approx(real / 2)
    assert pc.mean(table["aug_weight"]).as_py() == pytest.approx(1.0)


def test_a_record_with_a_doubted_label_stays_and_counts_less(store: Store) -> None:
    release = releases.stage_release(store)
    ids = open_real_ids(release, store)
    recipe = release.recipe.model_copy(update={"doubted": {ids[0]: 0.0, ids[1]: 0.25}})
    publish_parts(**{**vars(release), "recipe": recipe, "publish": Publish()})
    dataset = open_dataset(store.uri)
    table = dataset.to_table(origins=["real"])
    weight = dict(zip(table["aug_id"].to_pylist(), table["aug_weight"].to_pylist(), strict=True))
    name = dict(zip(table["aug_id"].to_pylist(), table["label"].to_pylist(), strict=True))
    whole = {name[i]: w for i, w in weight.items() if i not in ids[:2]}
    assert set(weight) == set(ids), "counts in are counts out"
    assert weight[ids[0]] == 0
    assert weight[ids[1]] == pytest.approx(whole[name[ids[1]]] / 4)
    assert dataset.sample_weight().mean() == pytest.approx(1.0)
    assert not verify(store).problems


def open_real_ids(release: SimpleNamespace, store: Store) -> list[str]:
    """Ids of the real records that are published for training."""
    parts = ["training", "validation"]
    table = read_part(store, load_info(release.dataset, store), parts)
    return sorted(table["aug_id"].to_pylist())


def test_the_recipe_holds_the_policy_as_far_as_it_was_searched(plan: BalancePlan) -> None:
    pytest.importorskip("albumentations", reason="needs the extra 'images'")
    classic = Classic()
    found = make_recipe(
        experiment_of(DATASET, plan, classic=classic),
        Strategy(name="a", family="loss", classic_prob=0.25, classic_strength=2.0),
        [],
    )
    assert (found.loss, found.classic_prob, found.classic_policy) == (
        "balanced_softmax",
        0.25,
        "safe",
    )
    policy = ImagePolicy.from_config(found.classic_config)
    assert policy.digest == ImagePolicy.from_params(classic).stronger(2.0).digest
    assert "2 times as far" in found.sentence
    assert "25%" in found.sentence
    assert "balanced softmax" in found.sentence


@pytest.mark.parametrize("name", get_args(ImageStrategy))
def test_a_recipe_holds_what_is_mixed_smoothed_and_deferred(plan: BalancePlan, name: str) -> None:
    pytest.importorskip("albumentations", reason="needs the extra 'images'")
    classic = Classic(image_strategies=[name])  # type: ignore[list-item]
    one = make_strategies("image", model=None, classic=classic)[-1]
    recipe = make_recipe(
        experiment_of(DATASET, plan, classic=classic), one.model_copy(update={"amount": 1.0}), []
    )
    stored = recipe.model_dump_json()
    assert Recipe.model_validate_json(stored).model_dump_json() == stored
    assert (recipe.mixing, recipe.mixing_prob, recipe.deferred) == (
        one.mixing,
        one.mixing_prob,
        one.deferred,
    )
    assert recipe.smoothing == ({"common": one.smoothing, "rare": 0.0} if one.smoothing else {})
    assert recipe.classic_policy == ("" if one.patches else "safe")
    balanced = recipe.class_weight["rare"] == pytest.approx(10 * recipe.class_weight["common"])
    assert balanced != (recipe.loss == "balanced_softmax"), "balanced once, by weight or by loss"
    said = {
        "mixing": "with a partner", "deferred": "in the first 60%", "smoothing": "Give 30%",
        "patches": "Train PatchClassifier.of(recipe)",
    }  # fmt: skip
    for field, words in said.items():
        assert (words in recipe.sentence) == bool(getattr(one, field))


def test_mixing_moves_the_class_shares_that_a_network_learns() -> None:
    """Half of the records mixed, half of each the partner's: a quarter of the labels is drawn evenly."""
    shares = {"common": 0.9, "rare": 0.1}
    mixup = Strategy(name="mixup", family="weights", mixing="mixup", mixing_prob=0.5)
    assert shares_trained(shares, mixup) == pytest.approx({"common": 0.8, "rare": 0.2}, abs=1e-6)
    loss = mixup.model_copy(update={"family": "loss", "amount": 1.0})
    assert shares_trained(shares, loss)["rare"] == pytest.approx(2 / (2 + 0.8 / 0.9))


def test_labels_of_large_classes_are_smoothed_most() -> None:
    """Zhong et al. 2021, section 3.3: a quarter of a sine from the smallest class to the largest."""
    found = smoothing_by_class([100, 55, 10, 0], 0.4)
    assert found == pytest.approx([0.4, 0.4 * 0.5**0.5, 0.0, 0.0])
    assert not smoothing_by_class([7, 7], 0.4).any()


def test_torch_is_given_pictures_changed_as_far_as_the_recipe_says(
    tmp_path: Path, messy_images: ModuleType
) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
    pytest.importorskip("albumentations", reason="needs the extra 'images'")
    store = open_store(str(tmp_path / "images"))
    source = releases.image_table(messy_images)
    release = releases.stage_release(store, table=source)
    release.dataset = releases.stage_dataset(store, source, key="pictures", modality="image")
    policy = ImagePolicy.from_params(Classic(image_prob=1.0))

    def changed(strength: float) -> float:
        """Mean change of a picture, as torch is given it."""
        recipe = release.recipe.model_copy(
            update={
                "classic_policy": "safe",
                "classic_prob": 1.0,
                "classic_config": policy.stronger(strength).info,
                "class_weight": {},
                "synthetic": {},
                "classic": {},
            }
        )
        publish_parts(**{**vars(release), "recipe": recipe, "publish": Publish()})
        dataset = open_dataset(store.uri)
        columns = ["image", "aug_id"]
        plain = {x["aug_id"]: x["image"] for x, _ in dataset.to_torch(columns=columns, channels=3)}
        stream = dataset.to_torch(columns=columns, channels=3, recipe=True)
        assert stream.recipe.classic_config["digest"] == policy.stronger(strength).digest
        gaps = [(x["image"].float() - plain[x["aug_id"]].float()).abs().mean() for x, _ in stream]
        return float(torch.stack(gaps).mean())

    none, once, twice = changed(0.0), changed(1.0), changed(2.0)
    assert none < 0.1 * once
    assert once < twice

"""Weights that stay what they were while they hardly move, and shards that keep their names with them."""

from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.steps import publish_parts

from prefect_augment.loading.dataset import open_dataset
from prefect_augment.params import Publish
from prefect_augment.plan.weights import keep_weights
from prefect_augment.schema import BalancePlan, DatasetRef, Recipe
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Store, list_versions, read_manifest


@pytest.fixture
def release(store: Store, releases: ModuleType) -> Any:
    return releases.stage_release(store)


def grown(store: Store, releases: ModuleType, release: Any, table: pa.Table) -> DatasetRef:
    """The staged source after a file joined it: earlier shards as they are, and new ones beside them."""
    n = table.num_rows
    old = load_info(release.dataset, store)
    ref = releases.stage_dataset(store, table, key=f"batch-{n}", first=1000)
    new = load_info(ref, store)
    counts = {
        part: {k: n_k + new.part_counts[part].get(k, 0) for k, n_k in classes.items()}
        for part, classes in old.part_counts.items()
    }
    names = {"key": f"grown-{n}", "digest": f"d{n}"}
    info = old.model_copy(
        update={"shards": (*old.shards, *new.shards), "part_counts": counts, **names}
    )
    path = f"_staging/ingest/grown-{n}/outcome.json"
    store.put(path, info.to_json())
    return release.dataset.model_copy(update={"path": path, "key": info.key, "digest": info.digest})


def planned(store: Store, dataset: DatasetRef, release: Any) -> tuple[BalancePlan, Recipe]:
    """The plan for what is staged now, and weights that give every class as much."""
    counts = load_info(dataset, store).part_counts
    names = [c.name for c in release.plan.classes]
    n = {name: counts["training"][name] + counts["validation"][name] for name in names}
    classes = tuple(c.model_copy(update={"n_real": n[c.name]}) for c in release.plan.classes)
    weights = {name: sum(n.values()) / (len(n) * n_k) for name, n_k in n.items()}
    own = {"name": "class weights", "family": "weights"}
    strategy = release.recipe.strategy.model_copy(update=own)
    changes = {"strategy": strategy, "class_weight": weights}
    nothing: dict[str, Any] = {"synthetic": {}, "classic": {}, "copies": {}}
    recipe = release.recipe.model_copy(update=changes | nothing)
    return release.plan.model_copy(update={"classes": classes}), recipe


def run(store: Store, release: Any, dataset: DatasetRef, settings: Publish | None = None) -> Recipe:
    settings = settings or Publish()
    plan, recipe = planned(store, dataset, release)
    recipe = keep_weights(recipe, plan, settings, store)
    given = {"dataset": dataset, "plan": plan, "recipe": recipe, "publish": settings}
    publish_parts(**{**vars(release), "candidates": None, "classic": None, "models": (), **given})
    return recipe


def real_names(store: Store, version: int) -> set[str]:
    return {s.path for s in read_manifest(store, version).shards if s.origin == "real"}


def stored_weights(store: Store) -> dict[str, set[float]]:
    table = open_dataset(store.uri).to_table()
    return {
        name: set(table.filter(pc.equal(table["label"], name))["aug_weight"].to_pylist())
        for name in read_manifest(store).classes
    }


def test_a_source_that_grows_a_little_keeps_its_shards(
    store: Store, release: Any, releases: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = run(store, release, release.dataset)
    assert first.weights_from is None
    second = run(store, release, grown(store, releases, release, releases.source_table(10, seed=5)))
    assert second.weights_from == 1
    assert real_names(store, 1) < real_names(store, 2)
    assert "The weights are those of version 1" in caplog.text
    manifest = read_manifest(store)
    assert manifest.recipe == second
    assert manifest.weights == read_manifest(store, 1).weights == second.class_weight
    assert stored_weights(store) == {name: {w} for name, w in manifest.weights.items()}
    assert "The weights are those of version 1" in store.read("README.md").decode()


def test_a_source_that_grows_much_gets_new_weights(
    store: Store, release: Any, releases: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """Sixty records of the largest class: the others' weights move by more than a fifth."""
    caplog.set_level("INFO")
    run(store, release, release.dataset)
    table = releases.source_table(140, seed=5)
    much = table.filter(pc.equal(table["label"], "a")).slice(0, 60)
    second = run(store, release, grown(store, releases, release, much))
    assert second.weights_from is None
    assert "The weights are new" in caplog.text
    assert "would change from" in caplog.text
    manifest = read_manifest(store)
    assert manifest.weights == pytest.approx(second.class_weight)
    assert stored_weights(store) == {name: {w} for name, w in manifest.weights.items()}
    held = {s.path for s in manifest.shards if s.split == "holdout"}
    assert real_names(store, 1) & real_names(store, 2) == held & real_names(store, 1)
    assert open_dataset(store.uri).sample_weight().mean() == pytest.approx(1.0)


def test_a_rerun_with_inherited_weights_publishes_nothing(
    store: Store, release: Any, releases: ModuleType
) -> None:
    """The weights of a version that inherited them are still those of the version they were made for."""
    run(store, release, release.dataset)
    dataset = grown(store, releases, release, releases.source_table(10, seed=5))
    second = run(store, release, dataset)
    assert run(store, release, dataset) == second
    assert list_versions(store) == (1, 2)
    third = run(store, release, grown(store, releases, release, releases.source_table(12, seed=5)))
    assert third.weights_from == 1
    assert third.class_weight == second.class_weight


def test_a_rerun_of_the_first_version_publishes_nothing(store: Store, release: Any) -> None:
    first = run(store, release, release.dataset)
    assert run(store, release, release.dataset) == first
    assert list_versions(store) == (1,)


@pytest.mark.parametrize("kind", ["strategy", "strata", "copies"])
def test_weights_of_another_kind_of_recipe_are_not_inherited(
    store: Store, release: Any, releases: ModuleType, kind: str
) -> None:
    run(store, release, release.dataset)
    more = grown(store, releases, release, releases.source_table(10, seed=5))
    plan, recipe = planned(store, more, release)
    if kind == "strategy":
        other = recipe.strategy.model_copy(update={"family": "resampling"})
        recipe = recipe.model_copy(update={"strategy": other})
    elif kind == "strata":
        plan = plan.model_copy(update={"classes": plan.classes[:-1]})
    else:
        recipe = recipe.model_copy(update={"copies": {plan.classes[0].name: 3}})
    assert keep_weights(recipe, plan, Publish(), store) == recipe


def test_the_size_of_shards_is_the_only_thing_that_cuts_a_staged_shard(
    store: Store, release: Any, releases: ModuleType
) -> None:
    """Also where each becomes several published ones."""
    settings = Publish(shard_records=7)
    run(store, release, release.dataset, settings)
    more = grown(store, releases, release, releases.source_table(10, seed=5))
    run(store, release, more, settings)
    assert len(real_names(store, 1)) > len(load_info(release.dataset, store).shards)
    assert real_names(store, 1) < real_names(store, 2)

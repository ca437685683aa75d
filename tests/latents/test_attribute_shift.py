"""Attribute arithmetic: the direction from one value of a column to another, added to records."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from support.latents import Trained, fit, result, staged
from support.releases import publish_as_is

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS
from prefect_augment.latents import base as base_module
from prefect_augment.latents.inputs import select_classes, version_records
from prefect_augment.latents.page import latents_page
from prefect_augment.params import AttributeShift, Output, PluginModel, TreesModel
from prefect_augment.schema import LatentRef
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import open_store
from prefect_augment.synthesis.model_store import load_model

NUMBERS = ("load", "cycles")


def shift(trained: Trained, *, output: Output | None = None, **params: Any) -> LatentRef:
    return trained.use("shifts", AttributeShift(**params), output=output)


# --- what is written ---


def test_every_record_comes_once_per_strength_in_the_columns_of_the_source(
    trained: Trained,
) -> None:
    store, dataset, _ = trained
    ref = shift(trained, start="ok", end="worn", strengths=[0, 1, -1])
    table = result(ref).to_table()
    source = read_part(store, load_info(dataset, store), ["training", "validation", "holdout"])
    ok = source.filter(pc.equal(source["state"], "ok"))
    assert table["aug_id"].to_pylist() == np.repeat(ok["aug_id"].to_pylist(), 3).tolist()
    assert table["aug_strength"].to_pylist() == [0.0, 1.0, -1.0] * ok.num_rows
    assert set(table["aug_split"].to_pylist()) == {"training", "validation", "holdout"}
    assert set(table["state"].to_pylist()) == {"ok"}, "decoded as what they are"
    for name in ("load", "cycles", "site", "loud", "since"):
        assert table.schema.field(name).type == source.schema.field(name).type
    assert ref.summary["n_shifted"] == ok.num_rows == ref.n_records / 3


def test_strength_0_is_the_plain_reconstruction(trained: Trained) -> None:
    ref = shift(trained, strengths=[0.0, 1.0], only=["ok", "worn", "cracked", "lost"])
    table = result(ref).to_table()
    as_they_are = table.filter(pc.equal(table["aug_strength"], 0.0))
    plain = result(trained.use("reconstructions")).to_table()
    assert as_they_are["aug_id"].to_pylist() == plain["aug_id"].to_pylist()
    for name in ("load", "cycles", "site", "loud", "since"):
        assert as_they_are[name].to_pylist() == plain[f"{name}_reconstructed"].to_pylist()


def test_the_direction_is_the_difference_of_two_means_of_training_records(trained: Trained) -> None:
    store, _, model = trained
    ref = shift(trained, start="ok", end="cracked", strengths=[0.5])
    vectors = result(trained.use("embeddings"))
    fitted, encoder = load_model(store, model)
    Z, training = vectors.vectors("training").astype(float), vectors.to_table("training")
    means = {}
    for name in ("ok", "cracked"):
        mine = pc.equal(training["state"], name).to_numpy(zero_copy_only=False)
        means[name] = Z[mine].mean(axis=0)
        assert ref.summary["n_start" if name == "ok" else "n_end"] == mine.sum()
    direction = means["cracked"] - means["ok"]
    assert ref.summary["distance"] == pytest.approx(np.linalg.norm(direction))
    every = vectors.to_table()
    ok = pc.equal(every["state"], "ok").to_numpy(zero_copy_only=False)
    moved = (vectors.vectors()[ok] + 0.5 * direction).astype(np.float32)
    X = fitted.decode_latents(moved, np.zeros(len(moved), dtype=np.int64))  # type: ignore[attr-defined]
    expected = X[:, list(encoder.names).index("load")]  # type: ignore[union-attr]
    np.testing.assert_allclose(result(ref).to_table()["load"].to_numpy(), expected, rtol=1e-5)


def test_the_attribute_that_a_classifier_reads_rises_with_the_strength(trained: Trained) -> None:
    store, dataset, _ = trained
    real = (
        read_part(store, load_info(dataset, store), ["validation", "holdout"]).to_pandas().dropna()
    )
    estimator = LogisticRegression().fit(
        real[list(NUMBERS)], real["state"].isin(["cracked", "worn"])
    )
    ref = shift(trained, start="ok", end="cracked", strengths=[-1, 0, 0.5, 1, 1.5])
    made = result(ref).to_pandas()
    likely = estimator.predict_proba(made[list(NUMBERS)])[:, 1]
    by_strength = [likely[made["aug_strength"] == s].mean() for s in ref.summary["strengths"]]
    assert (np.diff(by_strength) > 0.03).all()
    assert by_strength[0] < 0.1
    assert by_strength[-1] > 0.8


def test_how_well_the_direction_tells_the_two_apart_is_measured_on_validation(
    trained: Trained,
) -> None:
    ref = shift(trained, start="ok", end="worn")
    vectors = result(trained.use("embeddings"))
    training, validation = vectors.to_table("training"), vectors.to_table("validation")
    ends = [
        vectors.vectors("training")[
            pc.equal(training["state"], name).to_numpy(zero_copy_only=False)
        ]
        for name in ("ok", "worn")
    ]
    direction = ends[1].mean(axis=0) - ends[0].mean(axis=0)
    states = np.array(validation["state"].to_pylist())
    two = np.isin(states, ["ok", "worn"])
    expected = roc_auc_score(states[two] == "worn", vectors.vectors("validation")[two] @ direction)
    assert ref.summary["validation_auroc"] == pytest.approx(expected)
    assert expected > 0.8


def test_the_same_inputs_give_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    stores = [open_store(str(tmp_path / name)) for name in ("one", "two")]
    for out in stores:
        trained.use("shifts", out=out)
    first, second = ({path: out.read(path) for path in out.list()} for out in stores)
    assert first == second
    assert shift(trained).folder == shift(trained).folder
    assert shift(trained, strengths=[2]).folder != shift(trained).folder


def test_records_are_read_some_at_a_time(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    store = trained.store
    whole = result(shift(trained)).to_table()
    read = base_module.iter_shards

    def small(*args: Any, **kwargs: Any) -> Any:
        for table in read(*args, **kwargs):
            yield from map(pa.Table.from_batches, zip(table.to_batches(max_chunksize=50)))

    monkeypatch.setattr(base_module, "iter_shards", small)
    out = open_store(f"{store.uri}-again")
    again = result(trained.use("shifts", out=out)).to_table()
    for name in ("aug_id", "aug_strength", "site"):
        assert again[name].to_pylist() == whole[name].to_pylist()
    np.testing.assert_allclose(again["load"], whole["load"], rtol=1e-6)


# --- which attribute, which records ---


def test_by_default_it_leads_from_the_largest_class_to_the_rarest_that_is_large_enough(
    trained: Trained,
) -> None:
    summary = shift(trained).summary
    assert (summary["column"], summary["start"], summary["end"]) == ("state", "ok", "cracked")
    assert summary["n_end"] >= MIN_SAMPLED_RECORDS, "of 'lost' there are two records"
    assert shift(trained, end="ok").summary["start"] == "worn", "the largest of the others"


def test_an_attribute_is_any_column_with_values(trained: Trained) -> None:
    ref = shift(trained, column="loud", start="false", end="true", strengths=[0, 2])
    made = result(ref).to_pandas()
    assert ref.summary["column"] == "loud"
    loud = [made.loc[made["aug_strength"] == s, "loud"].astype(float).mean() for s in (0, 2)]
    assert loud[1] > loud[0] + 0.2


def test_records_are_named_by_class_or_by_id(trained: Trained) -> None:
    store, dataset, _ = trained
    validation = read_part(store, load_info(dataset, store), ["validation"])
    mine = validation["aug_id"].filter(pc.equal(validation["state"], "ok")).to_pylist()[:2]
    ref = shift(trained, start="ok", end="worn", only=["cracked", *mine], strengths=[1.0])
    table = result(ref).to_table()
    states = dict(zip(table["aug_id"].to_pylist(), table["state"].to_pylist(), strict=True))
    assert [states[i] for i in mine] == ["ok", "ok"]
    assert set(states.values()) == {"ok", "cracked"}
    assert len(states) == 2 + dataset.class_counts["cracked"]


def test_only_the_parts_that_were_asked_for_are_shifted(trained: Trained) -> None:
    whole, validation = shift(trained), shift(trained, output=Output(parts=["validation"]))
    assert set(result(validation).to_table()["aug_split"].to_pylist()) == {"validation"}
    assert validation.summary["distance"] == whole.summary["distance"], (
        "the direction is that of training records"
    )


def test_records_of_a_class_that_the_model_does_not_know_are_decoded_as_one_that_it_does(
    trained: Trained, linear_model: PluginModel
) -> None:
    store, dataset, _ = trained
    two = select_classes(dataset, classes=["ok", "worn"], store=store)
    knows_two = trained._replace(model=fit(store, two, linear_model))
    with pytest.raises(ParameterError, match="as_class"):
        shift(knows_two, only=["cracked"])
    ref = shift(knows_two, only=["cracked"], as_class="ok", start="ok", end="cracked")
    assert set(result(ref).to_table()["state"].to_pylist()) == {"ok"}


def test_the_direction_of_a_published_version_is_not_of_its_hold_out(trained: Trained) -> None:
    store, dataset, _ = trained
    publish_as_is(store, dataset)
    published = version_records(store)
    summary = shift(trained._replace(dataset=published), start="ok", end="worn").summary
    counts = load_info(published, store).part_counts
    assert set(counts) == {"train", "holdout"}
    assert (summary["n_start"], summary["n_end"]) == (
        counts["train"]["ok"],
        counts["train"]["worn"],
    )
    assert summary["validation_auroc"] is None, "there is no validation to measure it on"


# --- what cannot be ---


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (
            {"column": "sit"},
            r"column 'sit' has no values .*did you mean 'site'.*'state', or one of",
        ),
        ({"column": "site", "end": "west"}, r"'west' of column 'site'.*'east', 'north', 'south'"),
        ({"start": "okay"}, r"no training record has the value 'okay'.*did you mean 'ok'"),
        ({"end": "lost"}, r"each with 8 training records at least; 'lost' has \d\."),
        ({"start": "ok", "end": "ok"}, r"both are 'ok'"),
        ({"only": ["okay"]}, r"'okay' is neither a class nor the aug_id.*'worn'"),
        ({"as_class": "okay"}, "'okay', which the model does not know"),
    ],
)
def test_an_unknown_value_is_refused_with_the_known_ones(
    trained: Trained, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(ParameterError, match=words):
        shift(trained, **params)


def test_a_single_value_has_no_direction(linear_model: PluginModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"x": rng.normal(size=90), "kind": ["a"] * 60 + ["b"] * 30, "one": ["u"] * 90})
    store, dataset = staged(table, tmp_path, label="kind")
    with pytest.raises(ParameterError, match="there are not two such values.*'u: "):
        shift(Trained(store, dataset, fit(store, dataset, linear_model)), column="one")


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), float("-inf")])
def test_a_strength_is_a_finite_number(strength: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        AttributeShift(strengths=[0.0, strength])


def test_a_model_without_a_latent_space_says_which_have_one(trained: Trained) -> None:
    store, dataset, _ = trained
    trees = fit(store, dataset, TreesModel())
    with pytest.raises(ParameterError, match="'trees' has no latent space"):
        shift(trained._replace(model=trees))


# --- what people see ---


def test_the_page_says_what_was_shifted_and_how_well_the_direction_tells(trained: Trained) -> None:
    store = trained.store
    ref = shift(trained, start="ok", end="worn", strengths=[0, 1])
    page = latents_page(ref, store)
    assert f"Shifted {ref.summary['n_shifted']} records by 2 strengths" in page
    assert f"AUROC {ref.summary['validation_auroc']:.3f}" in page
    assert page.count("\n| ") >= 20, "the first records"
    assert (
        "named by `aug_id`, shifted by one strength"
        in store.read(f"{ref.folder}/README.md").decode()
    )

"""Uses of a model's latents: embeddings, anomalies, reconstructions, interpolations, classes."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError
from support.latents import Trained, fit, result, staged
from support.releases import publish_as_is
from support.tables import make_table

from prefect_augment.errors import (
    DivergedError,
    EmptyClassError,
    IntegrityError,
    ParameterError,
    SchemaError,
)
from prefect_augment.genmodels.tables.flow import TableFlow
from prefect_augment.latents import (
    anomalies as anomalies_module,
    base as base_module,
    inputs as inputs_module,
    uses as uses_module,
)
from prefect_augment.latents.base import Strata, suffixes
from prefect_augment.latents.capabilities import able_model
from prefect_augment.latents.classify import posterior
from prefect_augment.latents.inputs import select_classes, version_records
from prefect_augment.latents.interpolate import way
from prefect_augment.latents.page import latents_page
from prefect_augment.latents.uses import USES
from prefect_augment.maintenance.erase import erase
from prefect_augment.maintenance.gc import collect_garbage
from prefect_augment.params import (
    Anomalies,
    AttributeShift,
    AutoModel,
    Classification,
    Interpolation,
    NoModel,
    Output,
    PluginModel,
    Reconstruction,
    TreesModel,
)
from prefect_augment.registry import MODELS
from prefect_augment.schema import LatentRef
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store
from prefect_augment.synthesis.model_store import load_model
from prefect_augment.synthesis.sample import sample


def files(store: Store, ref: LatentRef) -> set[str]:
    return {path.removeprefix(f"{ref.folder}/") for path in store.list(ref.folder)}


# --- what every use does ---


def test_vectors_are_those_of_the_model_in_the_order_of_the_records(trained: Trained) -> None:
    store, dataset, model = trained
    ref = trained.use("embeddings")
    latents = result(ref)
    fitted, encoder = load_model(store, model)
    info = load_info(dataset, store)
    real = read_part(store, info, ["training", "validation", "holdout"])
    table = latents.to_table()
    assert table.column_names == ["aug_id", "state", "aug_split", "aug_origin", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 3)
    assert table["aug_id"].to_pylist() == real["aug_id"].to_pylist()
    assert table["state"].to_pylist() == real["state"].to_pylist()
    np.testing.assert_allclose(latents.vectors(), fitted.embed(encoder.encode(real)), rtol=1e-5)
    counts = {part: sum(n.values()) for part, n in info.part_counts.items()}
    assert Counter(table["aug_split"].to_pylist()) == counts
    assert latents.info.model == model
    assert latents.info.dataset.digest == dataset.digest
    assert len(latents.vectors("validation")) == counts["validation"]


def test_pandas_reads_the_folder_of_data_by_itself(trained: Trained) -> None:
    store, dataset, _ = trained
    ref = trained.use("embeddings")
    frame = pd.read_parquet(f"{store.uri}/{ref.folder}/data")
    assert len(frame) == ref.n_records == dataset.n_records
    assert np.stack(frame["embedding"].to_list()).shape == (ref.n_records, 3)


def test_the_same_use_again_finds_its_result_and_another_model_has_its_own(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, dataset, _ = trained
    first = trained.use("embeddings")
    narrower = PluginModel(name="linear", options={"n_latent": 2})
    other = trained._replace(model=fit(store, dataset, narrower))
    assert other.use("embeddings").folder != first.folder
    monkeypatch.setattr(uses_module, "open_view", None)  # it would be called
    assert trained.use("embeddings") == first


@pytest.mark.slow
def test_a_use_that_was_killed_at_any_write_goes_on_and_ends_with_the_same_bytes(
    trained: Trained,
    dying: Any,
    killed: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anomalies_module, "scores_chart", lambda scores: b"a picture takes long")

    def run(out: Store) -> LatentRef:
        return trained.use("anomalies", out=out)

    whole = open_store(str(tmp_path / "whole"))
    expected = {path: whole.read(path) for _ in [run(whole)] for path in whole.list()}
    n = 0
    while True:
        n += 1
        here = open_store(str(tmp_path / f"killed-{n}"))
        try:
            run(dying(here, n))
        except killed:
            pass
        else:
            break
        run(here)
        assert {path: here.read(path) for path in here.list()} == expected
    assert n > 8, "shards, receipts, picture, index"


def test_only_the_parts_that_were_asked_for_are_read(trained: Trained) -> None:
    ref = trained.use("embeddings", output=Output(parts=["validation"]))
    assert set(result(ref).to_table()["aug_split"].to_pylist()) == {"validation"}


def test_a_result_elsewhere_leaves_the_dataset_as_it_is(trained: Trained, tmp_path: Path) -> None:
    store, dataset, _ = trained
    before = set(store.list())
    out = open_store(str(tmp_path / "elsewhere"))
    ref = trained.use("embeddings", out=out)
    assert set(store.list()) == before
    assert len(result(ref).vectors()) == dataset.n_records


def test_nothing_but_the_result_is_left_in_its_folder(trained: Trained) -> None:
    store = trained.store
    ref = trained.use("anomalies")
    left = files(store, ref)
    latents = result(ref)
    shards = {shard.path for shard in latents.info.shards}
    assert left == {"index.json", "README.md", *latents.info.pictures, *shards}


def test_records_of_a_shard_are_read_some_at_a_time(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = trained.store
    whole = result(trained.use("anomalies")).to_table()
    sizes = []
    read = base_module.iter_shards

    def small(*args: Any, **kwargs: Any) -> Any:
        for table in read(*args, **kwargs):
            for batch in table.to_batches(max_chunksize=50):
                sizes.append(batch.num_rows)
                yield pa.Table.from_batches([batch])

    monkeypatch.setattr(base_module, "iter_shards", small)
    out = open_store(f"{store.uri}-again")
    again = result(trained.use("anomalies", out=out)).to_table()
    assert max(sizes) == 50
    assert again.drop_columns("score") == whole.drop_columns("score")
    np.testing.assert_allclose(again["score"], whole["score"])


@pytest.mark.parametrize(
    ("use", "column", "params"),
    [("anomalies", "score", None), ("shifts", "aug_strength", AttributeShift(start="ok"))],
)
def test_a_label_named_like_a_column_of_the_result_is_refused(
    use: Any, column: str, params: Any, linear_model: PluginModel, tmp_path: Path
) -> None:
    table = make_table()
    names = [column if name == "state" else name for name in table.column_names]
    store, dataset = staged(table.rename_columns(names), tmp_path, label=column)
    with pytest.raises(SchemaError, match=f"named '{column}'"):
        Trained(store, dataset, fit(store, dataset, linear_model)).use(use, params)


def test_a_folder_without_an_index_is_refused(trained: Trained) -> None:
    store = trained.store
    ref = trained.use("embeddings")
    store.delete(f"{ref.folder}/index.json")
    with pytest.raises(IntegrityError, match=r"no index\.json"):
        result(ref)


def test_vectors_are_asked_of_embeddings_only(trained: Trained) -> None:
    with pytest.raises(SchemaError, match="no vectors"):
        result(trained.use("anomalies")).vectors()


def test_vectors_that_are_not_finite_are_refused(
    trained: Trained, linear_model: PluginModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, model = trained
    fitted, _ = load_model(store, model)
    monkeypatch.setattr(type(fitted), "embed", lambda self, X: np.full((len(X), 3), np.nan))
    with pytest.raises(DivergedError, match="vectors that are not finite"):
        trained.use("embeddings")


# --- models that are not able ---


def test_a_model_without_a_latent_space_says_which_have_one(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, dataset, _ = trained
    for method in ("embed", "class_log_likelihoods"):
        monkeypatch.setattr(TableFlow, method, None, raising=False)
    trees = trained._replace(model=fit(store, dataset, TreesModel()))
    says = {"latents": "has no latent space", "likelihoods": "does not know how likely .*"}
    for use in USES.keys() - {"denoised"}:
        with pytest.raises(
            ParameterError, match=f"'trees' {says[USES[use].ability]}; choose .*flow"
        ):
            trees.use(use)
    with pytest.raises(ParameterError, match="'trees' has no latent space"):
        able_model(TreesModel(), "latents")
    with pytest.raises(ParameterError, match="choose .*flow"):
        able_model(NoModel(), "latents", modality="table")


def test_auto_takes_the_first_registered_kind_that_is_able(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in list(MODELS):
        if kind not in ("trees", "flow", "diffusion"):
            monkeypatch.delitem(MODELS, kind)
    with pytest.raises(ParameterError, match="no model of table data that has a latent space"):
        able_model(AutoModel(), "latents", modality="table")
    monkeypatch.setattr(TableFlow, "embed", None, raising=False)
    assert able_model(AutoModel(), "latents", modality="table").kind == "flow"


def test_what_has_to_be_installed_for_a_latent_space_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("prefect_augment.genmodels.")]:
        monkeypatch.delitem(sys.modules, name)
    for model in (AutoModel(), NoModel(), TreesModel()):
        with pytest.raises(ParameterError, match=r"pip install .*prefect-augment\[torch\]"):
            able_model(model, "latents", modality="table")


# --- anomalies ---


def test_scores_flags_and_ranks_agree_with_one_another(trained: Trained) -> None:
    ref = trained.use("anomalies", Anomalies(normal_share=0.1))
    table = result(ref).to_table()
    scores = table["score"].to_numpy()
    threshold = ref.summary["threshold"]
    assert table["anomaly"].to_pylist() == (scores > threshold).tolist()
    assert sorted(table["rank"].to_pylist()) == list(range(1, len(scores) + 1))
    assert table.sort_by("rank")["score"].to_pylist() == sorted(scores.tolist(), reverse=True)
    validation = scores[pc.equal(table["aug_split"], "validation").to_numpy()]
    assert 0.05 < (validation > threshold).mean() <= 0.1
    counts = ref.summary["counts"]["validation"]
    assert sum(c["flagged"] for c in counts.values()) == (validation > threshold).sum()
    assert ref.summary["n_flagged"] == (scores > threshold).sum()
    assert "holdout" not in ref.summary["counts"], (
        "what becomes of the hold-out is for one comparison"
    )


def test_a_model_of_one_class_finds_the_others_strange(
    linear_model: PluginModel, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=500)
    rows = {"a": a, "b": a + rng.normal(scale=0.1, size=500), "kind": ["good"] * 500}
    rows["b"][:40] += rng.choice([-3, 3], 40)
    rows["kind"][:40] = ["bad"] * 40
    store, dataset = staged(pa.table(rows), tmp_path, label="kind")
    good = select_classes(dataset, classes=["good"], store=store)
    model = fit(store, good, PluginModel(name="linear", options={"n_latent": 1}))
    ref = Trained(store, dataset, model).use("anomalies")
    assert ref.summary["normal"] == ["good"]
    assert ref.summary["validation_auroc"] == 1.0
    counts = ref.summary["counts"]
    assert {part: counts[part]["bad"]["flagged"] for part in counts} == {
        part: counts[part]["bad"]["records"] for part in counts
    }
    assert any("is estimated on" in note for note in ref.notes), "a twentieth of 74 records is few"


def test_a_threshold_needs_normal_validation_records(trained: Trained) -> None:
    with pytest.raises(ParameterError, match="the threshold needs validation records of"):
        trained.use("anomalies", output=Output(parts=["training"]))
    for share in (0.0, 1.0):
        with pytest.raises(ValidationError, match="normal_share"):
            Anomalies(normal_share=share)


def test_selected_records_keep_their_ids_and_parts(trained: Trained) -> None:
    store, dataset, _ = trained
    some = select_classes(dataset, classes=["worn", "ok"], store=store)
    whole, part_of = load_info(dataset, store), load_info(some, store)
    for part in ("training", "validation"):
        table = read_part(store, whole, [part])
        kept = table.filter(pc.is_in(table["state"], pa.array(["worn", "ok"])))
        assert read_part(store, part_of, [part])["aug_id"].to_pylist() == kept["aug_id"].to_pylist()
    assert {s.split for s in part_of.shards} == {"training", "validation"}
    assert sum(some.class_counts.values()) == some.n_records


def test_classes_that_are_not_there_or_have_nothing_to_learn_are_named(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, dataset, _ = trained
    with pytest.raises(ParameterError, match="no class 'wornn'.*worn"):
        select_classes(dataset, classes=["wornn"], store=store)
    with pytest.raises(ParameterError, match="no class was named"):
        select_classes(dataset, classes=[], store=store)
    counts = load_info(dataset, store).part_counts
    counts["validation"]["lost"] = counts["training"].pop("lost")
    info = load_info(dataset, store).model_copy(update={"part_counts": counts})
    monkeypatch.setattr(inputs_module, "load_info", lambda ref, store: info)
    with pytest.raises(EmptyClassError, match="'lost' have no training record to learn from"):
        select_classes(dataset, classes=["lost"], store=store)


# --- reconstructions ---


def test_originals_and_reconstructions_have_the_dtypes_of_the_source(
    linear_model: PluginModel, tmp_path: Path
) -> None:
    frame = pd.DataFrame(
        {
            "n": pd.array([1, 2, None, 4] * 30, dtype="Int64"),
            "x": np.linspace(0, 1, 120),
            "c": pd.Categorical(["p", "q"] * 60),
            "x_error": np.tile([5.0, 6.0, 7.0], 40),
            "label": ["u", "v", "v"] * 40,
        }
    )
    table = pa.Table.from_pandas(frame, preserve_index=False)
    store, dataset = staged(table, tmp_path, label="label")
    trained = Trained(store, dataset, fit(store, dataset, linear_model))
    summary = result(trained.use("reconstructions")).to_pandas()
    second, third = suffixes(["n", "x", "c", "x_error"])
    assert (second, third) == ("__reconstructed", "__error"), "x_error is there already"
    for name in ("n", "x", "c"):
        assert summary[name].dtype == frame[name].dtype
        assert summary[name + second].dtype == frame[name].dtype
    np.testing.assert_allclose(summary["x" + third], abs(summary["x"] - summary["x" + second]))
    differs = summary["c"].astype(str) != summary["c" + second].astype(str)
    assert (summary["c" + third] == differs).all()
    one_missing = summary["n"].isna() != summary["n" + second].isna()
    assert summary["n" + third].isna().equals(one_missing)


def test_the_summary_is_that_of_the_errors(trained: Trained) -> None:
    ref = trained.use("reconstructions")
    validation = result(ref).to_pandas("validation")
    scores = ref.summary["parts"]["validation"]
    assert scores["site"]["right"] == pytest.approx(1 - validation["site_error"].mean())
    mse = (validation["cycles_error"] ** 2).mean()
    assert scores["cycles"]["explained"] == pytest.approx(
        1 - mse / validation["cycles"].var(ddof=0)
    )
    assert scores["load"]["one_missing"] == pytest.approx(validation["load"].isna().mean())


def test_records_of_a_class_that_the_model_does_not_know_are_decoded_as_one_that_it_does(
    trained: Trained, linear_model: PluginModel
) -> None:
    store, dataset, _ = trained
    two, one = (
        trained._replace(
            model=fit(store, select_classes(dataset, classes=names, store=store), linear_model)
        )
        for names in (["ok", "worn"], ["ok"])
    )
    with pytest.raises(ParameterError, match="as_class"):
        two.use("reconstructions")
    with pytest.raises(ParameterError, match="'okay', which the model does not know"):
        two.use("reconstructions", Reconstruction(as_class="okay"))
    ref = two.use("reconstructions", Reconstruction(as_class="ok"))
    assert ref.n_records == dataset.n_records
    assert one.use("reconstructions").n_records == dataset.n_records


# --- interpolations ---


def test_a_strip_leads_from_one_class_to_the_other(trained: Trained) -> None:
    store, dataset, _ = trained
    params = Interpolation(start="ok", end="cracked", n_steps=5, path="straight")
    table = result(trained.use("interpolations", params)).to_table()
    assert table["aug_step"].to_pylist() == list(range(7))
    assert table["aug_place"].to_pylist() == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert table["state"].to_pylist() == ["ok"] * 3 + ["cracked"] * 4
    source = read_part(store, load_info(dataset, store), ["training"])
    for name in ("load", "cycles", "site", "loud", "since"):
        assert table.schema.field(name).type == source.schema.field(name).type
    ids = table["aug_id"].to_pylist()
    assert ids[1:-1] == [None] * 5
    assert {ids[0], ids[-1]} <= set(source["aug_id"].to_pylist())
    load = np.array(table["load"].to_pylist()[1:-1])
    assert (np.diff(load) > 0).all() or (np.diff(load) < 0).all(), "a straight line, decoded"


def test_the_class_changes_as_a_whole_in_the_middle() -> None:
    """One number is the class's, the other the record's own: the one jumps, the other goes in equal steps."""
    first, last, places = np.array([0.0, 1.0]), np.array([8.0, 5.0]), np.linspace(0.0, 1.0, 5)
    steps = way(first, last, places, np.array([8.0, 0.0]))
    assert steps.tolist() == [[0, 1], [0, 2], [8, 3], [8, 4], [8, 5]]
    straight = way(first, last, places)
    assert straight[:, 0].tolist() == [0, 2, 4, 6, 8]
    of_one_class = way(first, last, places, np.zeros(2))
    assert of_one_class.tolist() == straight.tolist()


def test_a_class_stands_for_the_record_nearest_to_its_mean(trained: Trained) -> None:
    ref = trained.use("interpolations", Interpolation(start="ok", end="worn"))
    vectors = result(trained.use("embeddings"))
    table, Z = vectors.to_table("training"), vectors.vectors("training").astype(float)
    for end in ("start", "end"):
        rows = pc.equal(table["state"], ref.summary[f"{end}_class"]).to_numpy(zero_copy_only=False)
        ids, mine = table["aug_id"].filter(pa.array(rows)), Z[rows]
        nearest = np.linalg.norm(mine - mine.mean(axis=0), axis=1).argmin()
        assert ref.summary[end] == ids[int(nearest)].as_py()


def test_a_strip_between_two_records_by_their_ids(trained: Trained) -> None:
    store, dataset, _ = trained
    ids = read_part(store, load_info(dataset, store), ["validation"])["aug_id"].to_pylist()[:2]
    ref = trained.use("interpolations", Interpolation(start=ids[0], end=ids[1], n_steps=2))
    assert (ref.summary["start"], ref.summary["end"], ref.n_records) == (*ids, 4)


def test_by_default_it_goes_from_the_largest_class_to_the_smallest(trained: Trained) -> None:
    ref = trained.use("interpolations")
    assert ref.summary["start_class"] == "ok"
    assert ref.summary["end_class"] == "lost"


def test_an_end_that_is_nothing_is_said(trained: Trained) -> None:
    with pytest.raises(ParameterError, match="neither a class nor the aug_id"):
        trained.use("interpolations", Interpolation(start="okay"))
    with pytest.raises(ParameterError, match="both ends of the strip are 'ok'"):
        trained.use("interpolations", Interpolation(end="ok"))


def test_an_end_of_a_class_that_was_not_learnt_is_said(
    trained: Trained, linear_model: PluginModel
) -> None:
    store, dataset, _ = trained
    training = read_part(store, load_info(dataset, store), ["training"])
    cracked = training["aug_id"].filter(pc.equal(training["state"], "cracked"))[0].as_py()
    two = select_classes(dataset, classes=["ok", "worn"], store=store)
    knows_two = trained._replace(model=fit(store, two, linear_model))
    with pytest.raises(ParameterError, match="not trained on 'cracked'.* classes that it knows"):
        knows_two.use("interpolations", Interpolation(start="ok", end=cracked))


# --- classes ---


def test_the_predicted_class_is_the_most_likely_one(trained: Trained) -> None:
    store, dataset, model = trained
    fitted, encoder = load_model(store, model)
    ref = trained.use("classes")
    table = result(ref).to_table()
    real = read_part(store, load_info(dataset, store), ["training", "validation", "holdout"])
    likely = fitted.class_log_likelihoods(encoder.encode(real))
    expected = np.array(encoder.strata)[likely.argmax(axis=1)]
    assert table["predicted"].to_pylist() == expected.tolist()
    validation = result(ref).to_pandas("validation")
    scores = ref.summary["parts"]["validation"]
    assert scores["accuracy"] == pytest.approx(
        (validation["state"] == validation["predicted"]).mean()
    )
    recall = (validation["state"] == validation["predicted"]).groupby(validation["state"]).mean()
    assert scores["balanced_accuracy"] == pytest.approx(recall.mean())
    assert scores["recall"] == pytest.approx(recall.to_dict())
    assert "holdout" in set(table["aug_split"].to_pylist()) - set(ref.summary["parts"])


def test_the_observed_prior_favours_the_common_class(trained: Trained) -> None:
    share = {}
    for prior in ("balanced", "observed"):
        ref = trained.use("classes", Classification(prior=prior))  # type: ignore[arg-type]
        predicted = result(ref).to_table()["predicted"].to_pylist()
        share[prior] = predicted.count("ok") / len(predicted)
    assert share["observed"] > share["balanced"]


def test_posteriors_of_two_points_are_bayes_rule(trained: Trained) -> None:
    store, _, linear = trained
    _, encoder = load_model(store, linear)
    strata = Strata(encoder)
    log_prior = np.log(np.array([0.5, 0.25, 0.125, 0.125]))
    likely = np.log(np.array([[0.1, 0.2, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]]))
    shares = posterior(likely, log_prior, strata)
    np.testing.assert_allclose(shares, [[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.125, 0.125]])


def test_strata_within_a_class_add_up_to_it(trained: Trained, linear_model: PluginModel) -> None:
    store, dataset, _ = trained
    by_loud = trained._replace(model=fit(store, dataset, linear_model, by=("loud",)))
    ref = by_loud.use("classes")
    assert set(ref.summary["classes"]) <= {"ok", "worn", "cracked", "lost"}
    assert ref.summary["parts"]["validation"]["balanced_accuracy"] > 0.4
    assert by_loud.use("interpolations").n_records == 11
    assert by_loud.use("reconstructions").n_records == dataset.n_records


# --- other records, and what else lies in the folder ---


@pytest.mark.slow
def test_synthetic_records_and_published_versions_are_embedded_alike(trained: Trained) -> None:
    store, dataset, model = trained
    drawn = sample(model, counts={"worn": 7}, seed=1, store=store, dataset=dataset)
    made = result(trained._replace(dataset=drawn).use("embeddings")).to_table()
    assert set(made["aug_origin"].to_pylist()) == {"synthetic"}
    assert made["state"].to_pylist() == ["worn"] * 7
    publish_as_is(store, dataset)
    published = version_records(store)
    assert published.n_records == dataset.n_records
    latents = result(trained._replace(dataset=published).use("embeddings"))
    assert latents.info.version == 1
    assert set(latents.to_table()["aug_split"].to_pylist()) == {"train", "holdout"}
    ingested = result(trained.use("embeddings")).to_table()
    assert set(latents.to_table()["aug_id"].to_pylist()) == set(ingested["aug_id"].to_pylist())


def test_gc_keeps_what_is_whole_and_removes_what_is_not(trained: Trained) -> None:
    store, dataset, _ = trained
    publish_as_is(store, dataset)
    whole, broken = trained.use("embeddings"), trained.use("anomalies")
    store.delete(f"{broken.folder}/index.json")
    report = collect_garbage(store, older_than_days=0)
    assert not report.unknown
    assert files(store, broken) == set()
    assert len(result(whole).vectors()) == dataset.n_records


def test_erasing_records_removes_what_was_made_of_them(trained: Trained) -> None:
    store, dataset, _ = trained
    publish_as_is(store, dataset)
    ref = trained.use("embeddings")
    gone = result(ref).to_table()["aug_id"][0].as_py()
    erase(store, [gone])
    assert files(store, ref) == set()


# --- what people see ---

EVIL = "<img src=x onerror=alert(1)>|[a](b)"


@pytest.mark.slow
def test_pages_show_the_result_and_escape_names(linear_model: PluginModel, tmp_path: Path) -> None:
    table = make_table()
    names = [EVIL if name == "worn" else name for name in table["state"].to_pylist()]
    table = table.set_column(table.schema.get_field_index("state"), "state", pa.array(names))
    store, dataset = staged(table, tmp_path)
    trained = Trained(store, dataset, fit(store, dataset, linear_model))
    pages = {use: latents_page(trained.use(use), store) for use in USES if use != "denoised"}
    for page in pages.values():
        assert "<img src=x" not in page
        assert "[a](b)" not in page
        assert len(page) < 200_000
        assert trained.model.digest[:12] in page
    assert "data:image/png;base64" in pages["embeddings"]
    assert "data:image/png;base64" in pages["anomalies"]
    assert "flagged" in pages["anomalies"]
    assert "explained variance" in pages["reconstructions"]
    assert pages["interpolations"].count("\n| ") >= 11
    assert "recall, %" in pages["classes"]

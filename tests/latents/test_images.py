"""Uses of a model on images: pictures, maps of where an image is strange, denoising."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from support import releases
from support.latents import Trained, fit, result, staged
from support.tables import make_table

from prefect_augment.encoding.pixels import decode_image
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.figures.image_grid import ROW_HEIGHT
from prefect_augment.ingest.ingest import ingest
from prefect_augment.latents.adapter import MAX_SHOWN, some_records
from prefect_augment.latents.base import Job
from prefect_augment.latents.capabilities import able_model
from prefect_augment.latents.inputs import select_classes
from prefect_augment.latents.page import latents_page
from prefect_augment.latents.uses import USES
from prefect_augment.params import (
    Anomalies,
    AttributeShift,
    AutoModel,
    Denoising,
    Interpolation,
    Output,
    PluginModel,
    Source,
)
from prefect_augment.schema import DatasetRef, LatentRef
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store
from prefect_augment.synthesis.model_store import load_model

SIZE = 16
N_WAVES = 6
KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def waves(counts: dict[str, int]) -> pa.Table:
    """Gray pictures of six waves, whose weights make them different; of those called spoilt, a corner is white."""
    rng = np.random.default_rng(0)
    place = np.arange(SIZE) / SIZE
    ways = [(1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (2, 2)]
    basis = [np.cos(2 * np.pi * (a * place[:, None] + b * place + 0.1 * a)) for a, b in ways]
    images, labels = [], [name for name, n in counts.items() for _ in range(n)]
    for i, label in enumerate(labels):
        weights = rng.normal(0, 14, N_WAVES)
        weights[0] += 50 if label == "down" else -50
        pixels = 128 + np.tensordot(weights, basis, 1) + rng.normal(0, 1, (SIZE, SIZE))
        if label == "spoilt":
            pixels[:4, :4] = 255
        images.append({"bytes": png(pixels.clip(0, 255).astype(np.uint8)), "path": f"{i}.png"})
    return pa.table(
        {"image": pa.array(images, KIND), "label": labels, "shelf": np.arange(len(labels)) % 5}
    )


def trained_on(
    counts: dict[str, int], folder: Path, only: tuple[str, ...] = (), by: tuple[str, ...] = ()
) -> Trained:
    store, dataset = staged(waves(counts), folder, label="label")
    learnt = select_classes(dataset, classes=only, store=store) if only else dataset
    model = PluginModel(name="linear", options={"n_latent": N_WAVES})
    return Trained(store, dataset, fit(store, learnt, model, by=by))


@pytest.fixture
def trained(linear_model: PluginModel, tmp_path: Path) -> Trained:
    return trained_on({"across": 80, "down": 40}, tmp_path)


def pictures(store: Store, ref: LatentRef) -> list[np.ndarray]:
    paths = result(ref).info.pictures
    return [decode_image(store.read(f"{ref.folder}/{path}")) for path in paths]


# --- every use ---


@pytest.mark.slow
def test_images_that_are_balanced_within_groups_are_shown_too(
    linear_model: PluginModel, tmp_path: Path
) -> None:
    trained = trained_on({"across": 80, "down": 80}, tmp_path, by=("shelf",))
    for use in ("embeddings", "reconstructions"):
        assert len(result(trained.use(use)).info.pictures) >= 1


@pytest.mark.slow
def test_every_use_of_images_has_a_picture_on_its_page(trained: Trained) -> None:
    n_pictures = dict.fromkeys(USES, 1) | {"embeddings": 2, "anomalies": 2, "classes": 0}
    for use, n in n_pictures.items():
        ref = trained.use(use)
        page = latents_page(ref, trained.store)
        assert len(pictures(trained.store, ref)) == page.count("data:image/png;base64") == n
        assert len(page) < 500_000


@pytest.mark.slow
def test_images_of_many_kinds_and_sizes_take_the_same_ways(
    linear_model: PluginModel, messy_images: Any, tmp_path: Path
) -> None:
    store, dataset = staged(releases.image_table(messy_images, 90), tmp_path, label="label")
    trained = Trained(store, dataset, fit(store, dataset, linear_model))
    assert result(trained.use("embeddings")).vectors().shape[1] == 3
    table = result(trained.use("reconstructions")).to_table()
    assert table.schema.field("image_reconstructed").type == table.schema.field("image").type
    strip = result(trained.use("interpolations")).to_table()
    assert strip["image"].null_count == 0
    assert trained.use("shifts").n_records > 0
    classes = trained.use("classes")
    assert 0 <= classes.summary["parts"]["validation"]["accuracy"] <= 1
    denoised = result(trained.use("denoised")).to_table()
    assert denoised["site"].combine_chunks().type == table_of(store, dataset)["site"].type
    assert denoised["mask"].to_pylist() == table_of(store, dataset)["mask"].to_pylist()


def table_of(store: Store, dataset: DatasetRef) -> pa.Table:
    return read_part(store, load_info(dataset, store), ["training", "validation", "holdout"])


def test_a_strip_begins_and_ends_with_records_as_they_are(trained: Trained) -> None:
    store, dataset, _ = trained
    ref = trained.use("interpolations", Interpolation(start="across", end="down", n_steps=12))
    strip = result(ref).to_table()
    source = {row["aug_id"]: row["image"]["bytes"] for row in table_of(store, dataset).to_pylist()}
    first, last = strip.slice(0, 1).to_pylist()[0], strip.slice(13, 1).to_pylist()[0]
    assert first["image"]["bytes"] == source[first["aug_id"]]
    assert last["image"]["bytes"] == source[last["aug_id"]]
    (sheet,) = pictures(store, ref)
    (other,) = pictures(store, trained.use("embeddings"))[1:]
    assert sheet.shape[1] == other.shape[1], "sheets stand below one another at one scale"


def test_what_is_shown_is_of_validation_and_of_the_hold_out_only_where_nothing_else_is_read(
    trained: Trained,
) -> None:
    store, dataset, model = trained
    by_part = {
        part: set(read_part(store, load_info(dataset, store), [part])["aug_id"].to_pylist())
        for part in ("validation", "holdout")
    }
    for parts, shown in (
        (["training", "validation", "holdout"], "validation"),
        (["holdout"], "holdout"),
    ):
        output = Output(parts=parts)  # type: ignore[arg-type]
        job = Job.of("embeddings", dataset, model, store, output=output)
        records, part = some_records(job, ["image"])
        assert part == shown
        assert set(records["aug_id"].to_pylist()) <= by_part[shown]
        assert records["label"].to_pylist() == ["across"] * 4 + ["down"] * 4, "classes take turns"


def test_an_attribute_that_is_added_shows_in_the_images(trained: Trained) -> None:
    store, dataset, _ = trained
    params = AttributeShift(start="across", end="down", strengths=[-0.5, 0, 0.5, 1])
    ref = trained.use("shifts", params)
    made, source = result(ref).to_table(), table_of(store, dataset)
    assert made.schema.field("image").type == source.schema.field("image").type
    is_down = np.array(source["label"].to_pylist()) == "down"
    estimator = LogisticRegression(C=1e-6, max_iter=1000).fit(pixels_of(source["image"]), is_down)
    likely = estimator.predict_proba(pixels_of(made["image"]))[:, 1].reshape(-1, 4).mean(axis=0)
    assert (np.diff(likely) > 0.05).all()
    assert likely[1] < 0.2
    assert likely[3] > 0.8
    assert ref.summary["validation_auroc"] > 0.95


def test_a_shift_of_records_outside_the_shown_part_has_no_picture(trained: Trained) -> None:
    store, dataset, _ = trained
    training = read_part(store, load_info(dataset, store), ["training"])
    across = training.filter(pa.array([name == "across" for name in training["label"].to_pylist()]))
    one = across["aug_id"][0].as_py()
    params = AttributeShift(start="across", end="down", strengths=[1.0], only=[one])
    ref = trained.use("shifts", params)
    assert ref.n_records == 1
    assert pictures(store, ref) == []


@pytest.mark.slow
def test_the_picture_of_a_shift_has_a_row_per_strength_below_the_records(trained: Trained) -> None:
    heights = []
    for strengths in ([0.0], [0.0, 1.0], list(np.linspace(0, 1, 32))):
        ref = trained.use("shifts", AttributeShift(strengths=strengths))
        (sheet,) = pictures(trained.store, ref)
        heights.append(len(sheet))
    assert heights[1] - heights[0] == ROW_HEIGHT
    assert heights[2] - heights[0] == (MAX_SHOWN - 1) * ROW_HEIGHT, "of many some are shown"


def pixels_of(column: pa.ChunkedArray) -> np.ndarray:
    return np.stack([decode_image(row["bytes"]).ravel() for row in column.to_pylist()])


# --- anomalies ---


@pytest.mark.slow
def test_the_map_of_a_flagged_image_is_hottest_where_it_is_spoilt(
    linear_model: PluginModel, tmp_path: Path
) -> None:
    trained = trained_on({"across": 120, "spoilt": 20}, tmp_path, ("across",))
    latents = result(trained.use("anomalies"))
    frame, maps = latents.to_pandas(), latents.error_maps()
    flagged = frame[frame["anomaly"]]
    assert maps.shape == (len(flagged), SIZE, SIZE)
    assert frame["error_map"].isna().tolist() == (~frame["anomaly"]).tolist()
    spoilt = (flagged["label"] == "spoilt").to_numpy()
    assert spoilt.sum() == 20
    for error in maps[spoilt]:
        y, x = np.unravel_index(error.argmax(), error.shape)
        assert max(y, x) < 4
    assert (
        len(latents.error_maps("validation")) == flagged["aug_split"].value_counts()["validation"]
    )


def test_the_map_is_the_squared_error_of_the_reconstruction(trained: Trained) -> None:
    store, dataset, model = trained
    ref = trained.use("anomalies", Anomalies(normal_share=0.5))
    latents, (fitted, encoder) = result(ref), load_model(store, model)
    flagged = latents.to_pandas().query("anomaly")
    source = {row["aug_id"]: row for row in table_of(store, dataset).to_pylist()}
    images = pa.array([source[i]["image"] for i in flagged["aug_id"]], KIND)
    X = encoder.encode(pa.table({"image": images}))
    made = fitted.decode_latents(fitted.embed(X), np.zeros(len(X), dtype=np.int64))  # type: ignore[attr-defined]
    expected = ((X / 255 - made / 255) ** 2).mean(axis=3)
    np.testing.assert_allclose(latents.error_maps(), expected, atol=1e-6)


def test_a_model_that_maps_by_itself_is_believed(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, model = trained
    fitted, _ = load_model(store, model)
    monkeypatch.setattr(
        type(fitted), "anomaly_maps", lambda self, X: X[..., 0] * 1.0, raising=False
    )
    latents = result(trained.use("anomalies"))
    assert latents.error_maps().max() > 100


def test_maps_are_asked_of_anomalies_only(trained: Trained) -> None:
    with pytest.raises(SchemaError, match="no maps"):
        result(trained.use("embeddings")).error_maps()


# --- denoising ---


def test_denoised_images_are_a_dataset_with_the_columns_of_the_source(trained: Trained) -> None:
    store, dataset, _ = trained
    ref = trained.use("denoised", Denoising(noise=0.2))
    table, source = result(ref).to_table(), table_of(store, dataset)
    for name in ("aug_id", "label", "shelf"):
        assert table[name].to_pylist() == source[name].to_pylist()
    assert table.schema.field("image").type == source.schema.field("image").type
    assert table["image"].to_pylist() != source["image"].to_pylist()


@pytest.mark.slow
def test_a_denoised_folder_is_a_source_whose_hold_out_stays(trained: Trained) -> None:
    store, dataset, _ = trained
    ref = trained.use("denoised")
    folder, again = f"{store.uri}/{ref.folder}", open_store(f"{store.uri}-again")
    taken = ingest(Source(uri=folder, label="label"), store=again, seed=0)
    before, after = load_info(dataset, store), load_info(taken, again)
    assert taken.modality == "image"
    assert [c.name for c in after.columns] == [c.name for c in before.columns]
    assert after.part_counts["holdout"] == before.part_counts["holdout"]
    assert taken.class_counts == dataset.class_counts
    training = trained.use("denoised", output=Output(parts=["training", "validation"]))
    source = Source(uri=f"{store.uri}/{training.folder}", label="label")
    alone = ingest(source, store=open_store(f"{store.uri}-alone"), seed=0)
    assert alone.n_records == training.n_records, "no hold-out of its own: a new one is split off"


def test_an_index_of_another_tool_is_no_result_of_ours(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    pq.write_table(make_table(), tmp_path / "theirs" / "a.parquet")
    (tmp_path / "theirs" / "index.json").write_text('{"use": "denoised"}')
    source = Source(uri=str(tmp_path / "theirs"), label="state")
    taken = ingest(source, store=open_store(str(tmp_path / "other")), seed=0)
    assert taken.n_records == make_table().num_rows


def test_what_denoising_does_is_measured_by_noise_that_is_added(trained: Trained) -> None:
    summary = trained.use("denoised", Denoising(noise=0.2)).summary["check"]
    assert summary["part"] == "validation"
    assert 12 < summary["psnr_noisy"] < 16, "20 log10(1 / 0.2) is 14; what is cut off adds to it"
    assert summary["psnr"] > summary["psnr_noisy"] + 3


def test_denoising_is_of_images_by_models_that_can(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    for noise in (0.0, 1.5):
        with pytest.raises(ValidationError, match="noise"):
            Denoising(noise=noise)
    fitted, _ = load_model(trained.store, trained.model)
    monkeypatch.delattr(type(fitted), "denoise")
    with pytest.raises(ParameterError, match="'linear' does not take noise out"):
        trained.use("denoised")
    with pytest.raises(ParameterError, match="no model of table data that takes noise out"):
        able_model(AutoModel(), "denoising", modality="table")


# --- other readers ---


def test_datasets_reads_the_folder_part_by_part(trained: Trained) -> None:
    datasets = pytest.importorskip("datasets")
    store, dataset, _ = trained
    for use in ("embeddings", "denoised"):
        ref = trained.use(use)
        loaded = datasets.load_dataset(f"{store.uri}/{ref.folder}", cache_dir=f"{store.uri}-cache")
        assert sum(len(part) for part in loaded.values()) == dataset.n_records
        assert set(loaded) == {"training", "validation", "holdout"}

"""A run with an encoder: the linear probe wins, is published with its weights' name, and is applied."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch", reason="the extra 'torch'")
pytest.importorskip("albumentations", reason="the extra 'images'")
pytest.importorskip("onnxruntime", reason="the extra 'encoder'")

from support.encoders import encoder_bytes, encoder_params
from support.shapes import COUNTS, pictures
from support.tables import source_of

from prefect_augment import LinearProbe, RecipeClassifier, open_dataset, open_encoder
from prefect_augment.errors import ParameterError
from prefect_augment.flows.evaluate import evaluate
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import (
    Budget,
    Classic,
    Destination,
    Encoder,
    Evaluation,
    NoModel,
    Source,
)
from prefect_augment.schema import RunResult

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs", "few_steps")]

DATA = encoder_bytes(n_features=32)


def run(folder: Path, encoder: Encoder, **params: Any) -> RunResult:
    if not (source := folder / "shapes.parquet").exists():
        pq.write_table(pictures(), source)
    return rebalance.fn(
        source=Source(uri=str(source), label="label"),
        destination=Destination(uri=str(folder / "out")),
        model=NoModel(),
        classic=Classic(image="none", image_strategies=[]),
        encoder=encoder,
        budget=Budget(steps=40, device="cpu"),
        evaluation=Evaluation(n_seeds=1, n_settings=2, n_bootstrap=200),
        **params,
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    folder = tmp_path_factory.mktemp("encoder")
    encoder = encoder_params(folder, DATA, mean=[0.2], std=[0.3])
    return run(folder, encoder), folder


def test_a_published_probe_is_applied_and_reaches_the_reports_score(
    published: tuple[RunResult, Path],
) -> None:
    result, folder = published
    verdict, dataset = result.verdict, open_dataset(folder / "out")
    assert verdict is not None
    recipe = dataset.recipe
    assert (verdict.published, recipe.strategy.family) == ("linear probe", "probe")
    encoder = open_encoder(recipe)
    train, holdout = dataset.to_table(), dataset.to_table("holdout")
    model = RecipeClassifier(LinearProbe.of(recipe), recipe, random_state=0)
    weights = dataset.sample_weight()
    # As the report has it.
    model.fit(encoder.features(train["image"]), train["label"], sample_weight=weights)
    truth = np.array(holdout["label"].to_pylist())
    right = model.predict(encoder.features(holdout["image"])) == truth
    score = np.mean([right[truth == name].mean() for name in COUNTS])
    said = verdict.balanced_accuracy["linear probe"]
    assert said.low <= score <= said.high
    assert score == pytest.approx(said.estimate)
    assert said.estimate > 0.8 > verdict.balanced_accuracy["as is"].estimate
    assert list(recipe.thresholds) == ["linear probe"]


def test_name_digest_and_licence_are_in_manifest_card_and_recipe(
    published: tuple[RunResult, Path],
) -> None:
    result, folder = published
    manifest, digest = open_dataset(folder / "out").manifest, hashlib.sha256(DATA).hexdigest()
    assert manifest.encoder == manifest.recipe.encoder
    assert manifest.encoder is not None
    assert (manifest.encoder.name, manifest.encoder.sha256) == ("encoder.onnx", digest)
    assert manifest.encoder.licence == "Apache-2.0"
    card = (folder / "out" / "README.md").read_text()
    assert "encoder.features(train[" in Path(result.report).read_text(), "how to train"
    assert "encoder.onnx" in card
    assert digest in card
    assert "Apache-2.0" in card


def test_the_same_encoder_gives_the_same_version_wherever_it_lies(
    published: tuple[RunResult, Path], tmp_path: Path
) -> None:
    _, folder = published
    encoder = encoder_params(folder, DATA, mean=[0.2], std=[0.3])
    (folder / "encoder.onnx").rename(tmp_path / "moved.onnx")
    moved = encoder.model_copy(update={"uri": str(tmp_path / "moved.onnx")})
    before = sorted(path.name for path in (folder / "out" / "_staging" / "predict").iterdir())
    run(folder, moved)
    after = sorted(path.name for path in (folder / "out" / "_staging" / "predict").iterdir())
    assert after == before


@pytest.mark.parametrize("licence", ["CC-BY-NC-4.0", ""])
def test_weights_that_forbid_it_are_refused_before_anything_is_read(
    licence: str, tmp_path: Path
) -> None:
    encoder = encoder_params(tmp_path, DATA, licence=licence)
    with pytest.raises(ParameterError, match=r"encoder\.onnx .* nothing made with it can be publ"):
        run(tmp_path, encoder)
    assert not (tmp_path / "out").exists()


def test_fidelity_of_another_tools_images_is_measured_in_the_encoders_features(
    tmp_path: Path,
) -> None:
    """They are drawn like the real ones, so their distance is about that of real ones."""
    pq.write_table(pictures(1), tmp_path / "others.parquet")
    evaluated = evaluate.fn(
        source=source_of(pictures(), tmp_path / "shapes.parquet", "label"),
        synthetic=str(tmp_path / "others.parquet"),
        destination=Destination(uri=str(tmp_path / "out")),
        classic=Classic(image="none"),
        encoder=encoder_params(tmp_path, DATA, mean=[0.2], std=[0.3]),
        budget=Budget(steps=40, device="cpu"),
        evaluation=Evaluation(n_seeds=1, n_settings=1, n_bootstrap=200),
    )
    page = Path(evaluated.report)
    report = json.loads((page.parent / "report.json").read_text())
    compared = {score["strategy"]["name"] for score in report["strategy_scores"]}
    assert {"threshold", "linear probe"} <= compared
    assert "patch features" not in compared, "the network is what they are judged by"
    candidates = report["candidates"]
    of_class = {c["name"]: c["metrics"] for c in candidates["classes"]}
    for metrics in (candidates["metrics"], of_class["ring"]):
        assert metrics["frechet_distance"] < 1.5 * metrics["real_frechet_largest"]
    assert "32 features of your encoder encoder.onnx (sha256 " in candidates["feature_space"]
    assert "Fréchet distance of the kept images to unseen real ones" in page.read_text()


def test_a_bad_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    encoder = encoder_params(tmp_path, DATA[:-5])
    with pytest.raises(ParameterError, match="encoder.onnx is not an ONNX file, or it is cut off"):
        run(tmp_path, encoder)
    assert not list((tmp_path / "out" / "_staging").glob("ingest/*"))


def test_an_encoder_beside_a_table_is_refused(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(60.0), "label": ["a"] * 40 + ["b"] * 20})
    pq.write_table(table, tmp_path / "shapes.parquet")
    with pytest.raises(ParameterError, match="is for images, and the source is a table"):
        run(tmp_path, encoder_params(tmp_path, DATA))
